"""timm backbones behind one interface."""

import contextlib
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import timm
import torch
from PIL import Image
from timm.layers import Format, to_2tuple
from torch import Tensor, nn

import facessl.models.facecycle  # noqa: F401 (registers PCL's own network with timm)
from facessl.core.errors import ConfigError, DataError, UnknownName
from facessl.models.layers.attention import choose_attention
from facessl.models.layers.sync_batch_norm import spans_ranks
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize

#: Largest side of an image in pixels; a table of positions grows with its square.
MAX_SIZE = 4096
#: Seconds that the server of pre-trained weights has to answer in.
_ANSWER = 3


class Settings(NamedTuple):
    """Preprocessing of timm's pre-trained weights of a model: RGB in 0..1, side in pixels."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    image_size: int = 224


def pretrained_settings(name: str) -> Settings:
    """Settings of timm's pre-trained weights `name`, or ImageNet's. UnknownName: no such model or tag."""
    plain, dot, _ = name.partition(".")
    if not timm.is_model(plain):
        raise UnknownName("backbone", name, timm.list_models())
    if dot and name not in (tagged := timm.list_pretrained(f"{plain}.*")):
        raise UnknownName("backbone", name, tagged or [plain])
    config = timm.get_pretrained_cfg(name)
    return Settings() if config is None else Settings(tuple(config.mean), tuple(config.std), config.input_size[-1])


#: Options of `timm.create_model` that read another file or address than the model's own, or describe its content.
_ELSEWHERE = re.compile(r"pretrained.*|cache_dir|.*(path|file|url|hub_id|overlay)|scriptable|exportable|no_jit")


def _created(name: str, pretrained: bool, options: Mapping[str, Any]) -> Any:
    """The timm model. ConfigError: an option it does not take, or weights that cannot be had."""
    if odd := sorted(option for option in options if _ELSEWHERE.fullmatch(option)):
        raise ConfigError(f"backbone.options.{odd[0]} is not a property of {name}: leave it out")
    try:
        with _offline_without_server() if pretrained else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # timm and the clients of the hub share no base class
        reason = " ".join(str(error).split()).partition(". ")[0][:160] or type(error).__name__
    if not pretrained:
        raise ConfigError(f"backbone {name!r} does not accept {options or 'its defaults'}: {reason}")
    _created(name, False, options)
    raise ConfigError(
        f"the pre-trained weights of {name} could not be downloaded ({reason}): try with a network, or download "
        f"them elsewhere and convert them (facessl convert weights.pth --name {name} --out backbone.safetensors)"
    )


@contextlib.contextmanager
def _offline_without_server() -> Iterator[None]:
    """Look in the cache only if the server of pre-trained weights cannot be reached, instead of trying for long."""
    hub = huggingface_hub.constants
    host = hub.ENDPOINT.partition("://")[2].partition("/")[0].partition(":")[0]
    before = hub.HF_HUB_OFFLINE
    if not any(key.lower() in ("https_proxy", "http_proxy", "all_proxy") for key in os.environ):
        try:
            port = 80 if hub.ENDPOINT.startswith("http://") else 443
            socket.create_connection((host, port), _ANSWER).close()
        except OSError:
            hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _track_once(norm: Any, _: Any) -> None:
    """Running statistics move in the forward pass, and not again where the backward pass repeats it."""
    repeated = torch._C._current_graph_task_id() != -1
    norm.momentum = 0.0 if repeated else norm.usual_momentum
    if repeated and norm.training:
        norm.num_batches_tracked.sub_(1)


class Backbone(nn.Module):
    """A timm ResNet or ViT (or any timm model with a feature map) without its classifier.

    Attributes:
        name: timm model name.
        timm_options: options given by the user.
        model_args: options passed to timm.
        num_features: C, channels of the map and of the embedding.
        stride: pixels of the image per cell of the map.
        image_size: side in pixels that `preprocess` makes.
        mean: RGB normalization in 0..1 that `preprocess` applies.
        std: as `mean`.
        model: the timm model; its state dict is what `backbone.safetensors` holds.
    """

    model: Any

    def __init__(
        self,
        name: str = "resnet50",
        *,
        image_size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pretrained: bool = False,
        **timm_options: Any,
    ) -> None:
        """
        Args:
            name: any timm model name.
            image_size: input side in pixels; ViTs get their position table for it.
            mean, std: normalization of the inputs, RGB in 0..1; None: that of the pre-trained weights, or ImageNet's.
            pretrained: start from timm's pre-trained weights (downloads once).
            timm_options: passed to `timm.create_model`, e.g. `output_stride=16`.

        Raises:
            UnknownName: timm has no such model; the nearest name is given.
            ConfigError: options, size, normalization or pre-trained weights that cannot be had.
        """
        super().__init__()
        settings = pretrained_settings(name)
        defaults = settings if pretrained else Settings()
        if not 1 <= image_size <= MAX_SIZE:
            raise ConfigError(f"image size {image_size} is out of range: give 1 to {MAX_SIZE} pixels")
        options = dict(timm_options)
        if "img_size" not in options and ("vit" in name or "deit" in name):
            options["img_size"] = image_size
        self.model = _created(name, pretrained, options)
        choose_attention(self.model)
        self.name = name
        self.pretrained = pretrained
        self.timm_options = timm_options
        self.model_args = options
        self.any_size = False
        self.image_size = image_size
        self.set_normalization(defaults.mean if mean is None else mean, defaults.std if std is None else std)
        self.num_features: int = self.model.num_features
        self.prefix_tokens: int = getattr(self.model, "num_prefix_tokens", 0)
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        stride = self.model.feature_info[-1]["reduction"] if patch is None else to_2tuple(patch)[0]
        self.stride = int(stride)
        if image_size < self.stride:
            raise ConfigError(
                f"image size {image_size} is below the stride {self.stride} of {name}: use a larger image"
            )

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set `mean` and `std`. ConfigError unless they are three finite numbers each, those of `std` above 0."""
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(v) and (v > 0 or name == "mean") for v in values):
                kind = "three finite numbers" + (" above 0" if name == "std" else "")
                raise ConfigError(f"{name} = {list(values)} is not a normalization: give {kind}, e.g. [0.5, 0.5, 0.5]")
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

    @property
    def pooling(self) -> str:
        """Pooling of the map to the embedding in timm's words: "avg", "token" (the class token) or another."""
        head = getattr(self.model, "head", None)
        pool = getattr(self.model, "global_pool", None) or getattr(head, "global_pool", "avg")
        return str(getattr(pool, "pool_type", pool))

    def forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map (B, C, h, w) and pooled embedding (B, C) of one pass; x (B, 3, H, W) normalized."""
        raw = self.model.forward_features(x)
        return self._as_map(raw, x), self.model.forward_head(raw, pre_logits=True)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalized -> (B, C, h, w): the last map of a ResNet, the patch tokens of a ViT as a map."""
        return self._as_map(self.model.forward_features(x), x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalized -> (B, C) pooled embedding (mean of the map; the class token where timm uses it)."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Four maps of one pass, fine to coarse, for dense tasks.

        A hierarchical model (ResNet, ConvNeXt, Swin) gives its last four stages: strides 4, 8, 16, 32, less where
        `output_stride` dilates it. A model of one stride (ViT) gives the outputs of four blocks, 3, 5, 7, 11 of 12
        and in proportion for other depths (FaRL's), all at that stride, before the last norm, which gets no gradient.

        Returns four maps (B, C_i, h_i, w_i) with C_i in `pyramid_channels`. ConfigError: the model has none.
        """
        indices = [index for index, _, _ in self._levels()]
        return self.model.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)

    @property
    def pyramid_channels(self) -> list[int]:
        """Channels of the four maps of `forward_pyramid`."""
        return [channels for _, channels, _ in self._levels()]

    @property
    def pyramid_strides(self) -> list[int]:
        """Pixels of the image per cell of the four maps of `forward_pyramid`."""
        return [stride for _, _, stride in self._levels()]

    def _levels(self) -> list[tuple[int, int, int]]:
        """(index for timm, channels, stride) of the four maps."""
        levels = [(i, int(f["num_chs"]), int(f["reduction"])) for i, f in enumerate(self.model.feature_info)]
        if not hasattr(self.model, "forward_intermediates") or len(levels) < 4:
            raise ConfigError(f"backbone {self.name} has no four feature maps for dense tasks: use a ResNet or a ViT")
        if levels[0][2] < levels[-1][2]:
            return levels[-4:]
        return [levels[round(len(levels) * part / 12) - 1] for part in (4, 6, 8, 12)]

    def checkpoint_activations(self) -> None:
        """Compute activations inside the blocks again in the backward pass. ConfigError: timm cannot for this model."""
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise ConfigError(f"{self.name} has no checkpointing in timm: leave --backbone.checkpointing out") from None
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.usual_momentum = module.momentum  # type: ignore[assignment]
                module.register_forward_pre_hook(_track_once)

    def compile_features(self) -> None:
        """Compile the feature extractor in place, for training; the state dict keeps its keys. ConfigError for batch
        norms that span the ranks, at each of which the compiled code would break off."""
        if norms := sum(map(spans_ranks, self.model.modules())):
            raise ConfigError(
                f"--compile was not tested with batch norms that span the ranks ({norms} in {self.name}): leave it "
                "out, or give each rank its own statistics with --sync-batch-norm false"
            )
        plain, compiled = self.model.forward_features, torch.compile(self.model.forward_features)
        is_target = not any(parameter.requires_grad for parameter in self.model.parameters())  # it may be in eval mode

        def forward_features(x: Tensor) -> Tensor:
            # The batches of a monitor would take up torch's few versions of the code, and make later ones for any size.
            return compiled(x) if self.model.training or is_target else plain(x)

        self.model.forward_features = forward_features

    def take_any_size(self) -> None:
        """Let a ViT take images of other sizes than `image_size`: its position table is then resized to the grid at
        hand, and zeros complete a last patch that is cut. A model that takes one size only (e.g. a Swin) stays so."""
        embed = getattr(self.model, "patch_embed", None)
        if embed is None or not hasattr(self.model, "dynamic_img_size"):
            self.any_size = not getattr(embed, "strict_img_size", False)
            return
        self.any_size = True
        self.model.dynamic_img_size = True  # as timm's constructor does for `dynamic_img_size=True`
        embed.strict_img_size, embed.dynamic_img_pad, embed.flatten = False, True, False
        embed.output_fmt = Format.NHWC

    def forward_views(self, views: Sequence[Tensor]) -> Tensor:
        """V views (B, 3, S_v, S_v), normalized -> pooled embeddings (V, B, C); neighbors of equal size share a pass.

        ConfigError: several sizes, which the model does not take, or not before `take_any_size`.
        """
        sizes = sorted({view.shape[-1] for view in views})
        if len(sizes) > 1 and not self.any_size:
            raise ConfigError(
                f"backbone {self.name} takes images of one size, but the views have {sizes} pixels: use a ResNet or a "
                "ViT, or views of one size"
            )
        groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
        return torch.cat([self(torch.cat(group)) for group in groups]).unflatten(0, (len(views), -1))

    def check_size(self) -> None:
        """ConfigError if a ViT would lose an edge of its images: their side is not a multiple of its patch."""
        embed = getattr(self.model, "patch_embed", None)
        over = self.image_size % self.stride
        if over and not getattr(embed, "dynamic_img_pad", True):
            below = self.image_size - over
            raise ConfigError(
                f"image size {self.image_size} is not a multiple of the {self.stride}-pixel patch of {self.name}: use "
                f"--image-size {below} or {below + self.stride}"
            )

    def _as_map(self, raw: Tensor, x: Tensor) -> Tensor:
        if raw.ndim == 4:
            # timm's Swin and ConvNeXt-like models differ in where the channels are.
            return raw if raw.shape[1] == self.num_features else raw.permute(0, 3, 1, 2)
        tokens = raw[:, self.prefix_tokens :]  # (B, hw, C)
        h, w = -(-x.shape[-2] // self.stride), -(-x.shape[-1] // self.stride)  # a ViT fills up a broken patch
        return tokens.transpose(1, 2).unflatten(2, (h, w))  # also where the batch is a symbol (export)

    def preprocess(self, images: Iterable[str | Path | Image.Image | np.ndarray] | np.ndarray) -> Tensor:
        """Paths, PIL images or (H, W, 3) uint8 RGB arrays -> (B, 3, image_size, image_size) float32, as in evaluation:
        the whole image is resized to the square, and no face is cut out (`facessl.crop_face`). One image alone is a
        batch of one.
        """
        from facessl.data.decode import to_rgb
        from facessl.views.geometric import resize

        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        images = list(images)
        if not images or any(image is None for image in images):
            missing = (
                "no images were given" if not images else f"image {[i is None for i in images].index(True)} is None"
            )
            raise DataError(f"{missing}: leave out photos in which crop_face found no face")
        squares = torch.from_numpy(
            np.stack([resize(to_rgb(image), self.image_size) for image in images])
        )  # (B, S, S, 3)
        return normalize(squares.permute(0, 3, 1, 2).to(next(self.parameters()).device), self.mean, self.std)
