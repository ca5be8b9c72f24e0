"""A frozen network in whose features reconstructions are compared."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facessl.core import checkpoint
from facessl.core.errors import CheckpointError, ConfigError, UnknownName
from facessl.models import vit_files, weights
from facessl.models.backbone import Backbone

#: The default teacher, MCF's; who publishes it.
MOCO = "vit-b-300ep.pth.tar"
MOCO_FROM = (
    "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar, see github.com/facebookresearch/moco-v3"
)
KINDS = (
    f"the MoCo v3 checkpoint ({MOCO}), another ViT's .pth, a run folder, a .safetensors of `facessl convert`, "
    "timm:NAME (pre-trained weights of timm) or random:NAME (random weights)"
)


class Teacher:
    """Features of a frozen network after some of its blocks.

    No `nn.Module`: it belongs to no state dict, optimiser or batch-norm conversion. The file is read at the first use
    (or by `load`), so that a trained method can be opened where its teacher is not.
    """

    def __init__(
        self, spec: str, *, blocks: tuple[int, ...] | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """
        Args:
            spec: `timm:NAME`, `random:NAME`, or the path of a checkpoint, export or run folder.
            blocks: after which blocks (or stages, for a network without blocks) features are taken, counted from 0;
                None: four of them at equal distances, the last one included (2, 5, 8, 11 of 12); of a network whose map
                shrinks (ResNet), the last four stages.
            mean, std: normalisation of the images it will be given, RGB in 0..1.
        """
        self.spec = spec
        self.blocks = blocks
        self.mean, self.std = mean, std
        self.backbone: Backbone | None = None

    def load(self, image_size: int) -> Backbone:
        """The network, frozen and in evaluation mode, for squares of `image_size` pixels.

        Raises:
            ConfigError, CheckpointError, UnknownName: it cannot be had, or has not enough blocks.
        """
        if self.backbone is None:
            backbone = load_teacher(self.spec, image_size, self.mean, self.std)
            backbone.requires_grad_(False).eval()
            self.indices(backbone)
            self.backbone = backbone
        return self.backbone

    def indices(self, backbone: Backbone) -> list[int]:
        """Blocks after which features are taken."""
        levels = backbone.model.feature_info
        count = len(levels)
        if self.blocks is not None:
            chosen = list(self.blocks)
        elif levels[0]["reduction"] < levels[-1]["reduction"]:
            chosen = list(range(count - 4, count))
        else:
            chosen = [count * part // 4 - 1 for part in (1, 2, 3, 4)]
        if not all(0 <= index < count for index in chosen):
            raise ConfigError(
                f"teacher {self.spec} has {count} blocks or stages: give --method.teacher-blocks from 0 to "
                f"{count - 1}, or a teacher of four or more"
            )
        return chosen

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Features of images; gradients pass to `x`.

        Args:
            x: (B, 3, S, S), normalised by `mean` and `std`.

        Returns:
            one tensor (B, T, C) per block: prefix tokens (class token), then patches; T cells of a map elsewhere.
        """
        backbone = self.load(x.shape[-1])
        parameter = next(backbone.parameters())
        if parameter.device != x.device or parameter.dtype != torch.promote_types(x.dtype, torch.float32):
            backbone.to(x.device, torch.promote_types(x.dtype, torch.float32))
        return self._features(backbone, self._renormalised(x, backbone))

    def _features(self, backbone: Backbone, x: Tensor) -> list[Tensor]:
        model: Any = backbone.model
        found = model.forward_intermediates(
            x, self.indices(backbone), intermediates_only=True, stop_early=True, output_fmt="NCHW",
            **({"return_prefix_tokens": True} if backbone.prefix_tokens else {}),
        )  # fmt: skip
        if not backbone.prefix_tokens:
            return [features.flatten(2).transpose(1, 2) for features in found]  # (B, C, h, w) -> (B, hw, C)
        return [torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1) for patches, prefix in found]

    def _renormalised(self, x: Tensor, backbone: Backbone) -> Tensor:
        """`x` as the teacher was trained to see it."""
        if (self.mean, self.std) == (backbone.mean, backbone.std):
            return x
        own = zip(self.mean, self.std, backbone.mean, backbone.std, strict=True)
        scale, shift = zip(*((s / ts, (m - tm) / ts) for m, s, tm, ts in own), strict=True)
        return x * x.new_tensor(scale).view(1, 3, 1, 1) + x.new_tensor(shift).view(1, 3, 1, 1)


def load_teacher(spec: str, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Backbone:
    """The network that `spec` names, for squares of `image_size` pixels.

    Args:
        spec: as in `Teacher`.
        image_size: side in pixels.
        mean, std: normalisation that a `random:` teacher gets.

    Raises:
        ConfigError, CheckpointError: one sentence that names `spec`.
    """
    kind, _, name = spec.partition(":")
    try:
        if kind == "random":  # weights that depend on the name alone: the same in every process, after every resume
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(name.encode()))
                return Backbone(name, image_size=image_size, mean=mean, std=std)
        if kind == "timm":
            return Backbone(name, image_size=image_size, pretrained=True)
        backbone = _from_file(Path(spec))
        weights.set_image_size(backbone, image_size)
        return backbone
    except (ConfigError, UnknownName) as error:
        raise ConfigError(f"teacher {spec}: {error}") from None


def _from_file(path: Path) -> Backbone:
    """An export of this library, or a ViT under timm's names, bare or as MoCo v3 saves it."""
    path = path / "backbone.safetensors" if path.is_dir() else path
    if not path.is_file():
        where = f", which its authors publish ({MOCO_FROM})" if path.name == MOCO else ""
        raise CheckpointError(f"teacher {path} does not exist{where}: give with --method.teacher {KINDS}")
    if path.suffix == ".safetensors":
        tensors, card = checkpoint.read_safetensors(path)
        if "timm_name" not in card:
            raise CheckpointError(
                f"teacher {path} has no card that says which network it is: `facessl convert {path} --out "
                "teacher.safetensors` writes one with a card (--name NAME says which timm model it is)"
            )
        return weights.from_export(path, tensors, card)
    state = checkpoint.read(path)
    found = weights.tensors(state)
    moco = any(name.startswith(vit_files.MOCO_PREFIX) for name in found) or vit_files.is_moco(state, found)
    try:
        backbone = vit_files.moco_vit(found) if moco else vit_files.plain_vit(found)
    except CheckpointError as error:
        raise CheckpointError(
            f"teacher {path} holds no ViT under timm's names ({error}): give {KINDS}; a file of another model becomes "
            f"one by `facessl convert {path} --out teacher.safetensors`, with --name NAME for other timm models"
        ) from None
    if not moco:
        heads = backbone.model.blocks[0].attn.num_heads
        print(
            f"teacher {path.name}: guessed: {heads} attention heads, ImageNet's mean and std; where they are others: "
            f"`facessl convert {path} --heads N --mean '[R, G, B]' --std '[R, G, B]' --out teacher.safetensors`, and "
            "--method.teacher teacher.safetensors",
            file=sys.stderr,
        )
    return backbone
