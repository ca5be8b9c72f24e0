"""MCF (arXiv:2309.03575): masked images reconstructed in a frozen network's features; class tokens contrasted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core import checkpoint
from facessl.core.errors import CheckpointError, ConfigError
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FRACTION, FROM_1, INNER_FRACTION, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import MomentumUpdate, frozen_copy
from facessl.models.layers.losses import info_nce
from facessl.models.layers.masking import Mask, encode_visible, random_mask, unpatchify
from facessl.models.mae_decoder import decoder_for
from facessl.models.teacher import Loader, Teacher
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD
from facessl.views.spec import View

#: The whole image resized to the square, and a flip.
MCF_VIEWS = (View(scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter_p=0.0, grayscale=0.0),)
#: The paper's teacher, and who publishes it.
MOCO = "vit-b-300ep.pth.tar"
MOCO_FROM = "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/, see github.com/facebookresearch/moco-v3"
#: Axis of (B, tokens, channels) along which features have unit length before they are compared.
AXES = {"official": 1, "channels": 2}


@dataclass(frozen=True)
class MCFArgs:
    """Hyper-parameters of MCF; the defaults are its paper's.

    Attributes:
        variant: features have unit length over the tokens, for each channel ("official", the released code), or over
            the channels of every token ("channels", this project's).
        teacher: the frozen network whose features are compared: the file of MoCo v3's ViT-B (the paper's), another
            checkpoint, a run folder, an exported backbone, `timm:NAME` (downloads timm's pre-trained weights once) or
            `timm:NAME?pretrained=false` (random weights, for trials without any file).
        teacher_blocks: after which of its blocks features are compared, counted from 0; null: four at equal
            distances, the last one included, which is 2, 5, 8, 11 of the paper's 12; of a ResNet the last four stages.
        mask_ratio: fraction of the patches that the encoder does not see.
        positions: "sincos", the fixed table, or "learned", timm's.
        decoder_width: channels of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        decoder_checkpoint: a file whose decoder blocks this decoder starts from (this project's): MAE's layout, or a
            checkpoint of this library's MAE or MCF; null: none.
        pretrained_blocks: how many of the first decoder blocks start from it.
        feature_weight: weight of the reconstruction.
        contrast_weight: weight of the contrast.
        temperature: T of the contrast.
        momentum: of the target network, fixed.
        hidden: width of the hidden layer of projector and predictor.
        dim: width of projections and predictions.
    """

    variant: Literal["official", "channels"] = "official"
    teacher: str = MOCO
    teacher_blocks: tuple[int, ...] | None = None
    mask_ratio: float = 0.75
    positions: Literal["sincos", "learned"] = "sincos"
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_checkpoint: str | None = None
    pretrained_blocks: int = 0
    feature_weight: float = 1000.0
    contrast_weight: float = 1.0
    temperature: float = 0.2
    momentum: float = 0.99
    hidden: int = 4096
    dim: int = 256

    def __post_init__(self) -> None:
        blocks = (lambda v: 0 <= v <= self.decoder_depth, f"0 to decoder_depth, {self.decoder_depth}")
        check_values(
            self,
            {
                "mask_ratio": INNER_FRACTION,
                "momentum": FRACTION,
                "temperature feature_weight contrast_weight": POSITIVE,
                "decoder_width decoder_depth decoder_heads hidden dim": FROM_1,
                "pretrained_blocks": blocks,
            },
            prefix="method.",
        )
        if (self.decoder_checkpoint is None) != (self.pretrained_blocks == 0):
            raise ConfigError(
                f"method.decoder_checkpoint is {self.decoder_checkpoint} and method.pretrained_blocks is "
                f"{self.pretrained_blocks}: give both or neither"
            )


class MCF(nn.Module):
    """Mask Contrastive Face (Wang et al., ACM MM 2023).

    A ViT sees a quarter of the patches; a decoder reconstructs the whole image. The loss is

        1000 sum_l MSE(f_l(reconstruction), f_l(image)) + 2T InfoNCE(q, k),

    where f_l are the unit-length features of a frozen network after its blocks 2, 5, 8, 11; q is the prediction of
    the class token of the online network, k the projected class token of the momentum network under another random
    mask of the same image; negatives are the other images of all ranks. There is no loss on pixels.

    Differences:
        What the paper's abstract and the authors' description leave open is as in the released code. The target moves
        once after each optimizer step (there once per accumulated batch), batch norm spans the GPUs, encoder and heads
        start as timm's (`weight_init: jax` by default) and torch's do, and the whole image is resized to the square.
        `decoder_checkpoint` and `variant="channels"` are this project's. All differences: docs/methods/mcf.md.
    """

    Args: ClassVar[type[MCFArgs]] = MCFArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adamw", "lr": 1.5e-4, "reference_batch": 256, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "backbone": {"name": "vit_base_patch16_224", "options": {"weight_init": "jax"}},
    }
    views: ClassVar[tuple[View, ...]] = MCF_VIEWS
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    batch_wide: ClassVar[str] = "the negatives"
    patches_only: ClassVar[bool] = True
    initial: ClassVar[frozenset[str]] = frozenset({"decoder_checkpoint", "pretrained_blocks"})

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`backbone` is a ViT with a class token; `values` are fields of `MCFArgs`."""
        super().__init__()
        self.args = args = MCFArgs(**values)
        self.backbone = backbone
        self.decoder = decoder_for(backbone, args)
        self.grid: tuple[int, int] = backbone.model.patch_embed.grid_size
        if args.decoder_checkpoint is not None:
            state = checkpoint.read(Path(args.decoder_checkpoint))
            self.decoder.load_blocks(state, args.pretrained_blocks, args.decoder_checkpoint)
        self.projector = nn.Sequential(
            *_hidden(backbone.num_features, args.hidden, args.dim), nn.BatchNorm1d(args.dim, affine=False)
        )
        self.predictor = nn.Sequential(*_hidden(args.dim, args.hidden, args.dim))
        self.target_backbone = frozen_copy(self.backbone)
        self.target_projector = frozen_copy(self.projector)
        self.teacher = Teacher(args.teacher, blocks=args.teacher_blocks, mean=backbone.mean, std=backbone.std)
        self._follow = MomentumUpdate((self.backbone, self.target_backbone), (self.projector, self.target_projector))

    def prepare(self, loader: Loader) -> None:
        """Read the teacher."""
        if self.args.teacher == MOCO and not Path(MOCO).is_file():
            raise CheckpointError(
                f"teacher {MOCO} does not exist: its authors publish it ({MOCO_FROM}); or give another one with "
                "--method.teacher: a checkpoint, a run folder, an exported backbone or timm:NAME"
            )
        self.teacher.load(loader, self.backbone.image_size)

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of one view (B, 3, S, S); logs, unweighted, `feature_reconstruction` (the sum over the blocks) and
        `contrastive` (2T InfoNCE)."""
        (x,) = batch.views
        online_mask, target_mask = (random_mask(noise, self.args.mask_ratio) for noise in self.noise(batch))
        latent, reconstructed = self._reconstruct(x, online_mask)
        with torch.no_grad():
            features = self.teacher(x)
            target = encode_visible(self.target_backbone.model, x, target_mask.keep)
            k = self.target_projector(target[:, 0])  # (B, dim)
        axis = AXES[self.args.variant]
        pairs = zip(self.teacher(reconstructed), features, strict=True)
        feature = torch.stack([unit_mse(f, target_f, axis) for f, target_f in pairs]).sum()
        q = self.predictor(self.projector(latent[:, 0]))  # (B, dim)
        contrast = 2 * self.args.temperature * info_nce(q, k, self.args.temperature)
        loss = self.args.feature_weight * feature + self.args.contrast_weight * contrast
        return Step(loss, {"feature_reconstruction": feature.detach(), "contrastive": contrast.detach()})

    def noise(self, batch: Batch) -> Tensor:
        """Uniform noise (2, B, T) of the online and of the target mask, drawn on the device."""
        return torch.rand((2, len(batch), self.grid[0] * self.grid[1]), device=batch.views[0].device)

    def _reconstruct(self, x: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + K, C) of the visible patches, and the images (B, 3, S, S) that the decoder makes of them."""
        latent = encode_visible(self.backbone.model, x, mask.keep)
        return latent, unpatchify(self.decoder(latent, mask.restore), self.backbone.stride, self.grid)

    def after_step(self, progress: Progress) -> None:
        """Moves the target network."""
        self._follow(self.ema_momentum(progress))

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the target network, the same throughout."""
        return self.args.momentum

    @torch.no_grad()
    def reconstruct(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions of images (B, 3, S, S), normalized like them, and the hidden patches, (B, T) bool, with
        masks of uniform noise (B, T); call it in evaluation mode."""
        mask = random_mask(noise, self.args.mask_ratio)
        return self._reconstruct(x, mask)[1], mask.removed


def _hidden(width: int, hidden: int, out: int) -> list[nn.Module]:
    first, last = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, out, bias=False)
    return [first, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), last]


def unit_mse(features: Tensor, target: Tensor, axis: int) -> Tensor:
    """Mean squared difference of features (B, T, C), both of unit length along `axis`: 1, tokens of a channel; 2,
    channels of a token."""
    with full_precision(features):
        unit, unit_target = (F.normalize(at_least_float32(f), dim=axis) for f in (features, target))
        return F.mse_loss(unit, unit_target)
