"""FaRL (arXiv:2112.03109): faces and their captions contrasted, and hidden patches predicted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.errors import ConfigError, DataError
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FRACTION, FROM_1, INNER_FRACTION, check_values
from facessl.models.backbone import Backbone
from facessl.models.dvae import VisualTokens
from facessl.models.layers.attention import choose_attention
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.models.layers.losses import info_nce
from facessl.models.layers.masking import check_maskable, embed_patches, run_blocks
from facessl.models.teacher import Loader
from facessl.views.normalize import CLIP_MEAN, CLIP_STD
from facessl.views.spec import View

#: Nearly the whole image: captions may speak of all of it, and of left and right.
FARL_VIEWS = (View(scale=(0.9, 1.0), flip=0.0, jitter_p=0.0, grayscale=0.0),)
#: The temperature stays at 0.01 or more, as CLIP's.
LARGEST_SCALE = math.log(100)


@dataclass(frozen=True)
class FaRLArgs:
    """Hyper-parameters of FaRL; the defaults are its paper's, as far as they are known (see `FaRL`, Differences).

    Attributes:
        temperature: of the image-text contrast at the start; it is learned, and stays at 0.01 or more.
        dim: D, width of the space of images and texts.
        text_width: channels of the text tower.
        text_depth: blocks of the text tower.
        text_heads: attention heads of the text tower.
        context: tokens of a caption, start and end included; longer ones are cut.
        mask_ratio: fraction of the patches that is hidden, 75 of 196.
        masking: "random" patches, or "block": patches that lie together (those of the largest mean noise over 5 x 5).
        dvae: file with the state dict of DALL-E's dVAE encoder, whose tokens are predicted; null: features of the
            momentum image tower are.
        vocabulary: number of the dVAE's tokens.
        momentum: of the momentum image tower at the start; it rises to 1 by a cosine. Not used with a dVAE.
    """

    temperature: float = 0.07
    dim: int = 512
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    context: int = 77
    mask_ratio: float = 75 / 196
    masking: Literal["random", "block"] = "random"
    dvae: str | None = None
    vocabulary: int = 8192
    momentum: float = 0.996

    def __post_init__(self) -> None:
        check_values(
            self,
            {
                "mask_ratio": INNER_FRACTION,
                "momentum": FRACTION,
                "temperature": (lambda v: 0.01 <= v <= 100, "a number from 0.01 to 100"),
                "dim text_width text_depth text_heads vocabulary": FROM_1,
                "context": (lambda v: v >= 3, "3 or more"),
            },
            prefix="method.",
        )
        if self.text_width % self.text_heads:
            raise ConfigError(
                f"method.text_heads is {self.text_heads}: give a divisor of text_width, {self.text_width}"
            )


class TextTower(nn.Module):
    """open_clip's causal transformer over byte pairs; a sentence's feature is that of its last token, projected."""

    def __init__(self, width: int, depth: int, heads: int, *, context: int, out_features: int) -> None:
        """Sentences are filled up or cut to `context` tokens, start and end included; `out_features` is D. ConfigError
        where open_clip is not installed."""
        super().__init__()
        # Late: these take seconds, and most runs need none of them.
        try:
            from open_clip.tokenizer import SimpleTokenizer
            from open_clip.transformer import QuickGELU, TextTransformer
        except ModuleNotFoundError as error:
            raise ConfigError(f"FaRL's text encoder is open_clip's ({error}): pip install 'facessl[farl]'") from None

        self.tokenizer = SimpleTokenizer(context_length=context)
        self.transformer = TextTransformer(
            context_length=context,
            vocab_size=self.tokenizer.vocab_size,
            width=width,
            heads=heads,
            layers=depth,
            output_dim=out_features,
            act_layer=QuickGELU,
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> (B, D)."""
        tower = self.transformer
        tokens = self.tokenizer(list(texts))  # (B, context)
        # Tokens after a sentence's end, its largest token, cannot change its feature and are left out.
        length = int(tokens.argmax(1).max()) + 1
        device = tower.token_embedding.weight.device
        tokens = tokens[:, :length].contiguous()
        tokens = (tokens.pin_memory() if device.type == "cuda" else tokens).to(device, non_blocking=True)
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])  # (B, length, width)
        last = x[torch.arange(len(texts), device=device), tokens.argmax(1)]
        return tower.ln_final(last) @ tower.text_projection


class FaRL(nn.Module):
    """Facial representation learning in a visual-linguistic manner (Zheng et al., CVPR 2022).

    A ViT and a text tower are trained by the contrast of images with their captions (InfoNCE both ways over all
    ranks, learned temperature). The same ViT also sees the image with 75 of its 196 patches replaced by a learned
    token; one more transformer block and a linear layer on its output before the last norm predict what was hidden:
    L = L_ITC + L_MIM.

    The paper's image tower is `vit_base_patch16_clip_quickgelu_224`; its class token is exported.

    Differences:
        The pre-training code was never released: image tower and prediction follow the released downstream code, the
        numbers are from memory, masking and augmentation are guesses. Without `dvae` (the paper's targets) the targets
        are patch features of a momentum copy of the image tower, each channel standardized over an image's patches,
        as in data2vec (Baevski et al., ICML 2022), and the loss is the mean squared error. All: docs/methods/farl.md.
    """

    Args: ClassVar[type[FaRLArgs]] = FaRLArgs
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    defaults: ClassVar[Mapping[str, Any]] = {
        # 1e-3 at the batch size of the paper, 5120
        "optim": {"name": "adamw", "lr": 5e-5, "reference_batch": 256, "betas": [0.9, 0.98], "weight_decay": 0.05},
        "backbone": {"name": "vit_base_patch16_clip_quickgelu_224"},
    }
    views: ClassVar[tuple[View, ...]] = FARL_VIEWS
    mean: ClassVar[tuple[float, float, float]] = CLIP_MEAN
    std: ClassVar[tuple[float, float, float]] = CLIP_STD
    batch_wide: ClassVar[str] = "the negatives"
    patches_only: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`backbone`, a ViT with a class token, is the image tower; `values` are fields of `FaRLArgs`."""
        super().__init__()
        self.args = args = FaRLArgs(**values)
        check_maskable(backbone.model, backbone.name)
        width = backbone.num_features
        self.backbone = backbone
        self.grid: tuple[int, int] = backbone.model.patch_embed.grid_size
        patches = self.grid[0] * self.grid[1]
        self.hidden = round(args.mask_ratio * patches)
        if not 0 < self.hidden < patches:
            raise ConfigError(f"method.mask_ratio is {args.mask_ratio}: it hides {self.hidden} of {patches} patches")
        self.text = TextTower(
            args.text_width, args.text_depth, args.text_heads, context=args.context, out_features=args.dim
        )
        self.image_projection = nn.Linear(width, args.dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(args.temperature)))
        self.mask_token = nn.Parameter(width**-0.5 * torch.randn(width))
        heads = backbone.model.blocks[0].attn.num_heads
        block = Block(width, heads, qkv_bias=True, norm_layer=nn.LayerNorm, act_layer=QuickGELU)
        outputs = width if args.dvae is None else args.vocabulary
        self.mim = nn.Sequential(block, nn.LayerNorm(width), nn.Linear(width, outputs))
        self.mim.apply(_init_weights)
        choose_attention(self.mim)
        self.tokens: VisualTokens | None = None
        if args.dvae is not None:
            self.tokens = VisualTokens(args.dvae, vocabulary=args.vocabulary, mean=backbone.mean, std=backbone.std)
        else:
            self.target_backbone = frozen_copy(self.backbone)
            self._follow = MomentumUpdate((self.backbone, self.target_backbone))

    def prepare(self, loader: Loader) -> None:
        """Read the dVAE."""
        if self.tokens is not None:
            self.tokens.load()

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of one view (B, 3, S, S) and B captions; DataError for an image without a caption.

        Logs `image_text` and `masked_modeling`, unweighted, and the `temperature`.
        """
        (x,) = batch.views
        if batch.text is None:
            where = f" near {batch.keys[0]}" if batch.keys else ""
            raise DataError(f"FaRL needs a caption for every image, but the source lacks some{where}: add them")
        removed = self.removed(self.noise(batch))
        pooled, tokens = self._encode(x, removed)
        pair = (self.image_projection(pooled), self.text(batch.text))  # (B, D) each
        temperature = (-self.log_scale).exp()
        contrast = (info_nce(*pair, temperature) + info_nce(*pair[::-1], temperature)) / 2
        hidden = self._masked_loss(x, self.mim(tokens)[:, self.backbone.prefix_tokens :], removed)
        loss = contrast + hidden
        logs = {"image_text": contrast, "masked_modeling": hidden, "temperature": temperature}
        return Step(loss, {name: value.detach() for name, value in logs.items()})

    def noise(self, batch: Batch) -> Tensor:
        """Uniform noise (B, T) of the masks, drawn on the device."""
        return torch.rand(len(batch), self.grid[0] * self.grid[1], device=batch.views[0].device)

    def removed(self, noise: Tensor) -> Tensor:
        """The hidden patches, as many in every image: noise (B, T) -> (B, T) bool."""
        if self.args.masking == "block":
            cells = noise.unflatten(1, self.grid).unsqueeze(1)  # (B, 1, h, w)
            noise = F.avg_pool2d(cells, 5, stride=1, padding=2, count_include_pad=False).flatten(1)
        return noise.argsort(dim=1, descending=True).argsort(dim=1) < self.hidden

    def _encode(self, x: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled embedding (B, C) of images and, from the same pass, tokens (B, P + T, C) of the images with hidden
        patches before the last norm."""
        model = self.backbone.model
        prefix, patches, positions = embed_patches(model, x)
        masked = torch.where(removed[:, :, None], self.mask_token.to(patches.dtype), patches)
        clean, hidden = run_blocks(model, prefix, torch.cat([patches, masked]) + positions).chunk(2)
        return model.forward_head(model.norm(clean), pre_logits=True), hidden

    def _masked_loss(self, x: Tensor, predicted: Tensor, removed: Tensor) -> Tensor:
        """Loss of what is predicted (B, T, outputs) for the hidden patches."""
        # Positions, as many in every image: a boolean mask would wait for a GPU to count them.
        at = removed.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : self.hidden]  # (B, hidden)
        predicted = at_least_float32(torch.take_along_dim(predicted, at[:, :, None], 1))  # (B, hidden, outputs)
        if self.tokens is not None:
            with full_precision(x):
                return F.cross_entropy(predicted.flatten(0, 1), self.tokens(x, self.grid).gather(1, at).flatten())
        with torch.no_grad():
            features = self.target_backbone.model.forward_features(x)[:, self.backbone.prefix_tokens :]
        with full_precision(x):
            features = at_least_float32(features)  # (B, T, C)
            variance, mean = torch.var_mean(features, dim=1, keepdim=True, unbiased=False)  # over an image's patches
            target = (features - mean) / (variance + 1e-6).sqrt()
            return F.mse_loss(predicted, torch.take_along_dim(target, at[:, :, None], 1))

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Keeps the temperature at 0.01 or more, and moves the momentum tower."""
        self.log_scale.clamp_(max=LARGEST_SCALE)
        if self.tokens is None:
            self._follow(self.ema_momentum(progress))

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the momentum tower now; 1 if there is none."""
        return cosine_momentum(self.args.momentum, progress.fraction) if self.tokens is None else 1.0


def _init_weights(module: nn.Module) -> None:
    """Truncated normal of standard deviation 0.02, biases 0, as the released prediction block."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
