"""Alignment: landmarks of a face, by heatmaps on a feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.errors import ConfigError, DataError
from facessl.core.precision import at_least_float32
from facessl.core.types import Batch, Progress, Step
from facessl.data.face_square import Frame
from facessl.data.source import Source
from facessl.metrics import nme
from facessl.models.backbone import Backbone
from facessl.models.layers.heatmaps import gaussian_heatmaps, rescale, soft_argmax
from facessl.models.layers.landmark_losses import coordinate_l2, heatmap_bce
from facessl.models.layers.star import StarHead, star_loss
from facessl.models.layers.upernet import UPerNet
from facessl.tasks._dense import FARL, FARL_OPTIM, NARROW, freeze_unreached
from facessl.tasks.base import Collected, Example, Examples, Labels, Predictions, headline
from facessl.views.augment import FARL_ALIGNMENT, STAR_ALIGNMENT, Augment


@dataclass(frozen=True)
class AlignmentArgs:
    """Settings of the alignment task.

    Attributes:
        head: farl (UPerNet, coordinate and heatmap loss) or star (edges, anisotropic attention, STAR loss).
        width: channels of the head; 768 is FaRL's, 64 to 128 suit a CPU.
        heatmap_size: side in cells to which FaRL's heatmaps are brought for their cross entropy; null: a quarter of the
            view. Landmarks are decoded at the head's own size.
        sigma: of FaRL's Gaussians in these cells; they end at four sigma.
        dropout: fraction of the head's channels that are dropped per image.
        coordinate_weight: of the coordinate loss.
        heatmap_weight: of the heatmap loss.
        unit: what NME is divided by: interocular, interpupil, box or diag.
        thresholds: of failure rate and area under the curve; none: only the NME.
        hidden: points that are marked invisible count too, in training and in the NME, wherever they have coordinates.
    """

    head: Literal["farl", "star"] = "farl"
    width: int = 768
    heatmap_size: int | None = 128
    sigma: float = 1.25
    dropout: float = 0.1
    coordinate_weight: float = 1.0
    heatmap_weight: float = 1.0
    unit: Literal["interocular", "interpupil", "box", "diag"] = "interocular"
    thresholds: tuple[float, ...] = (0.1,)
    hidden: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "heatmap_size", "sigma"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"task.{name} = {value} is out of range: give a positive number")


#: First bias of the heatmaps' logits, so that nearly every cell starts empty (the prior of Lin et al., ICCV 2017): the
#: mean over a thousand half-full cells is the center of the view, wherever the landmark is.
_EMPTY = -5.0


class Alignment(nn.Module):
    """Landmarks: mean L2 distance of coordinates plus binary cross entropy of heatmaps (FaRL's downstream protocol).

    `finetune` is that protocol (Zheng et al., CVPR 2022, section 4.3, and its released configuration): AdamW, weight
    decay 1e-5, 1e-4 for the backbone and 1e-2 for pyramid and head, average of the weights with momentum 0.999, batch
    40, 448 px, no flip. Its epochs are 250 (300W) or 150 (WFLW, AFLW-19); the step at epoch 200 is therefore reached on
    300W only. `star` is the protocol of STAR (Zhou et al., CVPR 2023, and its released configuration), which FRA's
    Table 4 uses on a ResNet: 256 px, Adam 1e-3 times 0.1 at epochs 200, 350 and 450 of 500, batch 32, average of the
    weights with momentum 0.5^(32 / 10000), STAR loss and AWing on point and edge maps (`facessl.models.layers.star`).

    Differences: FaRL's release makes views of 512 px and shrinks them to 448; here they are cut at 448 at once.
    Heatmaps start nearly empty (`_EMPTY`). STAR sees BGR in -1..1, here it is RGB by the backbone's own mean and
    standard deviation. `ema_ramp` (`FinetuneConfig`) is on unless the recipe turns it off.
    """

    Args: ClassVar[type[AlignmentArgs]] = AlignmentArgs
    needs: ClassVar[frozenset[str]] = frozenset({"landmarks"})
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "finetune": {**FARL, "epochs": 150, "optim": {**FARL_OPTIM, "lrs": {"head": 1e-2}}},
        "star": {
            **{"image_size": 256, "batch_size": 32, "epochs": 500, "ema": 0.99778},
            "optim": {
                **{"name": "adam", "lr": 1e-3, "weight_decay": 0.0, "warmup_epochs": 0, "schedule": "step"},
                "milestones": [200, 350, 450],
            },
            "task": {"head": "star", "width": 256},
        },
    }
    augments: ClassVar[Mapping[str, Augment]] = {"finetune": FARL_ALIGNMENT, "star": STAR_ALIGNMENT}

    def __init__(self, backbone: Backbone, labels: Labels, **values: Any) -> None:
        """`values` are fields of `AlignmentArgs`. DataError: no landmarks, or STAR without their order."""
        super().__init__()
        self.args = args = AlignmentArgs(**values)
        self.labels = labels
        if labels.points < 1:
            raise DataError("an alignment task needs landmarks, and the source has none")
        self.backbone = backbone
        freeze_unreached(backbone)
        pyramid = (backbone.pyramid_channels, backbone.pyramid_strides)
        self.head: nn.Module
        if args.head == "star":
            if labels.order is None:
                raise DataError(
                    "the STAR head needs to know the order of the landmarks: name it with the source's option layout= "
                    "(ibug68, wflw98, aflw19, lapa106), or use task.head = farl"
                )
            self.edges = labels.order.edges
            self.head = StarHead(*pyramid, points=labels.points, edges=self.edges, width=args.width)
        else:
            head = UPerNet(*pyramid, out_channels=labels.points, width=args.width, dropout=args.dropout)
            nn.init.constant_(head.classifier.get_parameter("bias"), _EMPTY)
            self.head = head

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of the first view; logs `coordinate` and `heatmap`, or STAR's terms."""
        assert batch.landmarks is not None
        x = batch.views[0]
        size = (x.shape[-2], x.shape[-1])
        visible = _counted(batch, self.args)
        outputs = self.head(self.backbone.forward_pyramid(x))
        if self.args.head == "star":
            loss, terms = star_loss(outputs, batch.landmarks, visible, edges=self.edges, image=size)
            return Step(loss, {name: term.detach() for name, term in terms.items()})
        logits = at_least_float32(outputs)
        points = self._decoded(logits.sigmoid(), size)
        coordinate = coordinate_l2(points, batch.landmarks, visible, size=size)
        side = self.args.heatmap_size or size[0] // 4
        cells, sigma = (side, side), self.args.sigma
        if logits.shape[-2:] != cells:
            logits = F.interpolate(logits, size=cells, mode="bilinear", align_corners=False)
        target = rescale(batch.landmarks, size, cells)
        truth = gaussian_heatmaps(target, cells, sigma=sigma, radius=4 * sigma, visible=visible)
        heatmap = heatmap_bce(logits, truth, visible=visible)
        loss = self.args.coordinate_weight * coordinate + self.args.heatmap_weight * heatmap
        return Step(loss, {"coordinate": coordinate.detach(), "heatmap": heatmap.detach()})

    def _decoded(self, heat: Tensor, size: tuple[int, int]) -> Tensor:
        """Activations (B, K, s, s) -> points (B, K, 2) in pixels of the view."""
        return rescale(soft_argmax(heat), (heat.shape[-2], heat.shape[-1]), size)

    def cheaper(self, image_size: int) -> dict[str, Any]:
        """Settings for small views."""
        settings = {"width": NARROW} if self.args.width > NARROW else {}
        if self.args.head == "farl" and (self.args.heatmap_size or 0) > image_size // 4:
            settings["heatmap_size"] = image_size // 4
        return settings

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) normalized -> landmarks (B, K, 2) in pixels of the view."""
        outputs = self.head(self.backbone.forward_pyramid(x))
        heat = outputs.heatmaps if self.args.head == "star" else at_least_float32(outputs).sigmoid()
        return {"landmarks": self._decoded(heat, (x.shape[-2], x.shape[-1]))}

    def meter(self, source: Source, augment: Augment) -> AlignmentMeter:
        """Scores on `source` in the pixels of its stored images."""
        return AlignmentMeter(source, self.labels, self.args, augment)

    def describe(self, predictions: Predictions, row: int, frame: Frame, height: int, width: int) -> dict[str, Any]:
        """`landmarks` [[x, y], ...] in pixels of the stored image, and the name of their order."""
        points = frame.inverse_points(predictions["landmarks"][row])
        return {"layout": self.labels.layout, "landmarks": [[round(float(v), 2) for v in p] for p in points]}


class AlignmentMeter:
    """NME (divided by `facessl.metrics.nme.normalizer`), failure rates and areas, in stored pixels."""

    def __init__(self, source: Source, labels: Labels, args: AlignmentArgs, augment: Augment) -> None:
        self.collected = Collected(source)
        self.args = args
        self.warp = augment.warp
        if "landmarks" not in source.provides:
            raise DataError("the test images have no landmarks: name a source that gives them with --test")
        own = source.layout
        if own is not None and labels.layout is not None and own != labels.layout:
            raise DataError(f"the landmarks of the test images ({own}) are not those of training ({labels.layout})")
        order = labels.order
        if args.unit in ("interocular", "interpupil") and order is None:
            raise ConfigError(
                f"task.unit = {args.unit} needs to know which landmarks are eyes: name the order of the source with "
                "layout=ibug68 (or wflw98, aflw19, lapa106), or use task.unit = box"
            )
        if args.unit == "interpupil" and order is not None and order.pupils is None:
            raise ConfigError(f"the landmarks {order.name} have no pupils: use task.unit = interocular")
        self.eyes = {} if order is None else {"interocular": order.ocular, "interpupil": order.pupils}

    def add(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Predictions of one batch; both they and the truth go back through the frames."""
        assert batch.landmarks is not None
        assert batch.frame is not None
        predicted, known = predictions["landmarks"].shape[1], batch.landmarks.shape[1]
        if predicted != known:
            raise DataError(f"the test images have {known} landmarks and those of training {predicted}")
        size = batch.views[0].shape[-1]
        frames = [Frame(matrix, size, self.warp) for matrix in batch.frame.cpu().double().numpy()]
        moved = {}
        for name, points in {"predicted": predictions["landmarks"], "target": batch.landmarks}.items():
            rows = points.detach().cpu().double().numpy()
            moved[name] = np.stack([frame.inverse_points(row) for frame, row in zip(frames, rows, strict=True)])
        self.collected.add(batch, **moved, visible=_counted(batch, self.args))

    def per_image(self) -> np.ndarray:
        """(N,) normalized mean error of each image."""
        truth = self.collected["target"]
        visible = self.collected.get("visible")
        name, eyes = self.args.unit, self.eyes.get(self.args.unit)
        unit = nme.normalizer(name, truth, eyes=eyes, boxes=None if eyes else self._boxes(truth, visible))
        return nme.nme(self.collected["predicted"], truth, unit=unit, visible=visible)

    def examples(self) -> Examples:
        """One answer per image, by its error."""
        index, errors = self.collected["index"], self.per_image()

        def example(row: int) -> Example:
            return Example((int(index[row]),), "", "", f"nme_{self.args.unit}", float(errors[row]))

        return Examples(errors, example)

    def _boxes(self, truth: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
        """(N, 4) the data set's own boxes if it has them, else those of the landmarks that count."""
        source = self.collected.source
        if "box" in source.provides:
            positions, rows = np.unique(self.collected["index"], return_inverse=True)
            return np.stack([source[int(i)].box for i in positions])[rows]  # type: ignore[misc]
        boxes = []
        for row, points in enumerate(truth):
            visible_points = points if visible is None or not visible[row].any() else points[visible[row] > 0]
            boxes.append(np.concatenate([visible_points.min(0), visible_points.max(0)]))
        return np.stack(boxes)

    def result(self) -> dict[str, Any]:
        """Scores with intervals; headline `nme_<unit>`."""
        errors = self.per_image()
        scores = nme.landmark_scores(errors, unit=self.args.unit, thresholds=self.args.thresholds)
        name = f"nme_{self.args.unit}"
        return {
            "headline": headline(name, scores[name], scores[f"{name}_interval"], better="lower"),
            **scores,
            **self.collected.breakdown({name: errors}, "lower"),
            "images": len(errors),
        }


def _counted(batch: Batch, args: AlignmentArgs) -> Tensor | None:
    """(B, K), 1 if a landmark counts; None: all do."""
    if not args.hidden or batch.landmarks is None:
        return batch.visible
    return batch.landmarks.isfinite().all(-1)
