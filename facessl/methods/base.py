"""The interface of a method. Nothing here is inherited: a method is any `nn.Module` with these members."""

from typing import Any, ClassVar, Protocol

from facessl.core.types import Batch, Progress, Step
from facessl.models.backbone import Backbone
from facessl.views.spec import View


class Method(Protocol):
    """A self-supervised method: `nn.Module`, built as `Method(backbone, **vars(args))`, all keyword-only.

    `backbone` becomes the online backbone. ConfigError: a value outside its range, or a backbone that does not fit.

    Attributes:
        Args: frozen dataclass with the method's hyper-parameters and defaults (those of its paper).
        needs: fields of `Batch` the method reads besides `views`; checked against the source's `provides`.
        views: the paper's views as data (`facessl.views.spec.View`), sized by the run's `image_size`.
        mean: normalization the paper used, RGB in 0..1.
        std: as `mean`.
        backbone: the online backbone that the run exports.
        defaults (Mapping[str, Any]): the paper's settings of `PretrainConfig` that belong to the method and not to a
            data set, as plain values (`{"optim": {"name": "adamw", "lr": 1.5e-4}}`), below recipes and flags. `optim`
            counts if no other optimizer is chosen, `backbone` if no other backbone is; absent: none.
        view_count (tuple[int, int | None]): fewest and most views (None: no limit) that `step` takes; absent: as many
            as `views`.
        patches_only (bool): True if the method leaves patches out, so that only a ViT can be its backbone; absent:
            any.
        batch_wide (str): what of the loss spans the batch ("the negatives"), so that the mean over micro-batches is
            another loss; absent: the loss is a mean over images.
        initial (frozenset[str]): names of values that say from which file some weights start; `load_method` leaves them
            out. Absent: none.
        has_prior (bool): whether `heatmaps` add a prior over the image and take `prior="off"` (content only) and
            `prior="alone"`; absent: they do not.
        has_regions (bool): whether `heatmaps` works with these settings; absent: it does.

    Methods:
        step(batch, progress): the loss of one (micro-)batch. It changes nothing besides batch-norm statistics and, in
            training mode with gradients on, a buffer for `after_step` whose size does not grow with the calls.
        after_step(progress): EMA, queues, prototypes; called once after each optimizer step, which may follow
            several calls of `step` (gradient accumulation).
        prepare(loader): methods with frozen networks only; reads them before training begins or goes on, so that a
            trained method opens without them. `loader` is `facessl.pretrained.load.load_frozen`.
        ema_momentum(progress): methods with a momentum network only; its momentum now, for the log.
        schedule(progress): methods with a schedule of their own only; a few words on it for the start line.
        heatmaps(x): methods with regions only; x (B, 3, H, W) normalized -> (B, N, h, w), rows sum to 1 over N.
    """

    Args: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]]
    views: ClassVar[tuple[View, ...]]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    backbone: Backbone

    def step(self, batch: Batch, progress: Progress) -> Step: ...

    def after_step(self, progress: Progress) -> None: ...


def has_regions(method: object) -> bool:
    """Whether `method.heatmaps` works with the method's settings."""
    return hasattr(method, "heatmaps") and bool(getattr(method, "has_regions", True))
