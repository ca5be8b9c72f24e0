"""A frozen network in whose features reconstructions are compared."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from facessl.core.constants import constant
from facessl.core.errors import CheckpointError, ConfigError, FaceSSLError
from facessl.models.backbone import Backbone
from facessl.models.weights import set_image_size

#: From the text that names a network to the network: `facessl.pretrained.load.load_frozen`.
Loader = Callable[[str], Backbone]


class Teacher:
    """Features of a frozen network after some of its blocks.

    No `nn.Module`: it belongs to no state dict, optimizer or batch-norm conversion; `load` reads it before training.
    """

    def __init__(
        self, spec: str, *, blocks: tuple[int, ...] | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """
        Args:
            spec: as `load_backbone` takes it: `timm:NAME`, or the path of a checkpoint, export or run folder.
            blocks: after which blocks (or stages, for a network without blocks) features are taken, counted from 0;
                None: four of them at equal distances, the last one included (2, 5, 8, 11 of 12); of a network whose map
                shrinks (ResNet), the last four stages.
            mean, std: normalization of the images it will be given, RGB in 0..1.
        """
        self.spec = spec
        self.blocks = blocks
        self.mean, self.std = mean, std
        self.backbone: Backbone | None = None

    def load(self, loader: Loader, image_size: int) -> Backbone:
        """Read the network for squares of `image_size` pixels.

        CheckpointError: it cannot be had. ConfigError: it has not enough blocks.
        """
        try:
            backbone = loader(self.spec)
            set_image_size(backbone, image_size)
        except FaceSSLError as error:
            where = "" if str(error).startswith(self.spec) else f"{self.spec}: "
            raise CheckpointError(f"teacher {where}{error}") from None
        self.indices(backbone)
        self.backbone = backbone.requires_grad_(False).eval()
        return backbone

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
        """Features of images x (B, 3, S, S), normalized by `mean` and `std`; gradients pass to `x`.

        One tensor (B, T, C) per block: prefix tokens (class token), then patches; T cells of a map elsewhere.
        """
        backbone, x = self._placed(x)
        model: Any = backbone.model
        prefixes = {"return_prefix_tokens": True} if backbone.prefix_tokens else {}
        maps = model.forward_intermediates(
            x, self.indices(backbone), intermediates_only=True, stop_early=True, output_fmt="NCHW", **prefixes
        )
        if not backbone.prefix_tokens:
            return [features.flatten(2).transpose(1, 2) for features in maps]  # (B, C, h, w) -> (B, hw, C)
        return [torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1) for patches, prefix in maps]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, h, w) and pooled embedding (B, C) of images as for a call."""
        backbone, x = self._placed(x)
        return backbone.forward_both(x)

    def _placed(self, x: Tensor) -> tuple[Backbone, Tensor]:
        """The network where `x` is and in its type, and `x` as it was trained to see it."""
        if self.backbone is None:
            raise ConfigError(f"teacher {self.spec} was not read: call `prepare` of the method before its first step")
        backbone = self.backbone
        parameter = next(backbone.parameters())
        if parameter.device != x.device or parameter.dtype != torch.promote_types(x.dtype, torch.float32):
            backbone.to(x.device, torch.promote_types(x.dtype, torch.float32))
        if (self.mean, self.std) == (backbone.mean, backbone.std):
            return backbone, x
        channels = zip(self.mean, self.std, backbone.mean, backbone.std, strict=True)
        scale, shift = zip(*((s / ts, (m - tm) / ts) for m, s, tm, ts in channels), strict=True)
        return backbone, x * constant(scale, x).view(1, 3, 1, 1) + constant(shift, x).view(1, 3, 1, 1)
