"""Views for training with labels: one crop and one warp that moves the labels along, then degradations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar

import cv2
import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.face_square import Frame, similarity
from facessl.data.layouts import Layout
from facessl.data.loader import SampleViews
from facessl.views import degrade
from facessl.views.augment import Augment, Distribution
from facessl.views.geometric import BOX_DRAWS, photometric_params
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD

#: Uniform numbers that one image takes from its generator, always all of them, so that a probability set to 0 changes
#: nothing else.
_COUNTS = {"move": 8, "photometric": 10, "noise": 2, "occlusion": 5, "gamma": 3, "fusion": 3}
_ERASING = 2 + BOX_DRAWS
DRAWS = sum(_COUNTS.values()) + 2 * _ERASING
_LEFT_RIGHT = [1, 0, 2, 4, 3]  # five points of the mirrored image


class Supervised:
    """Crops an image, augments it in training, and moves its labels to the view.

    Args:
        augment, image_size: crop and augmentation, and side of the views in pixels.
        layout: order of the landmarks; None: unknown, they cannot be mirrored.
        mask_flip: class of the mirrored image by class of the image; None: unknown, masks cannot be mirrored. Classes
            without sides are `range(number of classes)`.
        needs: label fields that the task uses; None: all there are. Landmarks and masks that cannot be mirrored
            are an error if they are named, and None in training if they are not. A mask that is not named is None
            in evaluation too.
        train: False: only the crop, whether there is a generator or not.
        mask_outside: class of a view's pixels that lie outside the image; 255: none, they are left out.
        mean, std: normalization, for what erasing fills in.

    Raises:
        ConfigError: flips are set, but labels that the task needs cannot be mirrored; no pixels.
    """

    sizes = ()

    def __init__(
        self,
        augment: Augment,
        image_size: int,
        *,
        layout: Layout | None = None,
        mask_flip: Sequence[int] | None = None,
        needs: frozenset[str] | None = None,
        train: bool = True,
        mask_outside: int = 255,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        if image_size < 1:
            raise ConfigError(f"the image size is {image_size}, but it must be 1 or more")
        sideless = {"landmarks": layout, "mask": mask_flip} if augment.flip and train else {}
        self._dropped: dict[str, Any] = {name: None for name, known in sideless.items() if known is None}
        for name in sorted((needs or frozenset()) & self._dropped.keys()):
            fix = "the order of its points (layout)" if name == "landmarks" else "the classes' sides (mask_flip)"
            raise ConfigError(
                f"the augmentation flips images (flip={augment.flip}), but the source does not tell {fix}, so that its "
                f"{name} cannot be mirrored: set flip to 0 or name it in the source"
            )
        self._with_mask = needs is None or "mask" in needs
        self.augment, self.size, self._train_mode = augment, image_size, train
        self._mask_outside = mask_outside
        self._flip = np.array(layout.flip) if layout else None
        self._classes = np.arange(256, dtype=np.uint8)
        if mask_flip is not None:
            self._classes[: len(mask_flip)] = mask_flip
        self._view = augment.view(image_size)
        self._fill = (  # mean and standard deviation
            255 * np.array(mean) * (augment.erasing_fill != "zero"),
            255 * np.array(std) * (augment.erasing_fill == "noise"),
        )

    def draw(self, rng: np.random.Generator | None) -> DrawnLabeled:
        """The random numbers of one image; None: evaluation, only the crop."""
        return DrawnLabeled(self, rng.random(DRAWS) if rng is not None and self._train_mode else None)

    def apply(self, sample: Sample, image: np.ndarray, draws: np.ndarray | None) -> SampleViews:
        """One sample's view or views.

        Args:
            image: (H, W, 3) uint8 RGB, the decoded image at full size.
            draws: (DRAWS,) uniform in 0..1; None: only the crop.

        Returns:
            A copy of the sample with the labels and `frame` of the first view; one view (S, S, 3) uint8, or two where
            `pairs` is set and there are draws; as many rows (P,) float32 of `Column`, none without draws; no crops.

        Raises:
            DataError: the sample lacks what the crop needs, or has another number of landmarks than the layout.
        """
        a = self.augment
        frame = a.frame(sample, image.shape, self.size)
        if draws is None:
            return self._move_labels(sample, image, frame), [frame.image(image, a.border)], [], []
        return (*self._train(sample, image, frame, draws), [])

    def _train(
        self, sample: Sample, image: np.ndarray, frame: Frame, draws: np.ndarray
    ) -> tuple[Sample, list[np.ndarray], list[np.ndarray]]:
        a, parts, start = self.augment, {}, 0
        for name, count in (*_COUNTS.items(), ("erasing", _ERASING), ("erasing of the mirrored view", _ERASING)):
            parts[name], start = draws[start : start + count], start + count
        move, rotation, flip = self._move(parts["move"].tolist())
        frame = frame.compose(move)
        if parts["noise"][0] < a.noise:
            image = degrade.add_noise(image, a.noise_std, parts["noise"][1])
        view = self._degrade(frame.image(image, a.border), parts)
        params = photometric_params(self._view, parts["photometric"])
        sample = self._move_labels(replace(sample, **self._dropped), image, frame, rotation, flip)
        first = self._erase(view, parts["erasing"])
        if not a.pairs:
            return sample, [first], [params]
        if a.shared_erasing:
            second = cv2.flip(first, 1)
        else:
            second = self._erase(cv2.flip(view, 1), parts["erasing of the mirrored view"])
        return sample, [first, second], [params, params]

    def _move(self, draws: list[float]) -> tuple[np.ndarray, float, bool]:
        """(3, 3) of view pixels, its rotation in degrees, whether it mirrors."""
        a = self.augment
        rotation_on, rotation, scale_on, scale, shift_on, x, y, flip = draws
        turn = _spread(rotation, a.rotation, a.distribution) if rotation_on < a.rotation_p else 0.0
        zoom = max(0.1, 1 + _spread(scale, a.scale, a.distribution)) if scale_on < a.scale_p else 1.0
        shift = (0.0, 0.0)
        if shift_on < a.shift_p:
            shift = (_spread(x, a.shift, a.shift_distribution), _spread(y, a.shift, a.shift_distribution))
        mirrored = flip < a.flip
        return similarity(self.size, rotation=turn, scale=zoom, shift=shift, flip=mirrored), turn, mirrored

    def _degrade(self, view: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
        """(S, S, 3) with occlusion, gamma and noise."""
        a = self.augment
        if parts["occlusion"][0] < a.occlusion:
            view = degrade.occlude(view, parts["occlusion"][1:], a.occlusion_shape == "ellipse")
        on, side, place = parts["gamma"].tolist()
        if on < a.gamma:
            low, high = a.gamma_low if side < 0.5 else a.gamma_high
            view = degrade.apply_gamma(view, low + place * (high - low))
        on, fraction, seed = parts["fusion"].tolist()
        if on < a.fusion:
            view = degrade.fuse_noise(view, fraction * a.fusion_max, seed)
        return view

    def _erase(self, view: np.ndarray, draws: np.ndarray) -> np.ndarray:
        if draws[0] >= self.augment.erasing:
            return view
        box = degrade.erase_box(self.size, draws[2:], self.augment.erasing_scale, self.augment.erasing_ratio)
        return view if box is None else degrade.erase(view, box, *self._fill, draws[1])

    def _move_labels(
        self, sample: Sample, image: np.ndarray, frame: Frame, rotation: float = 0.0, flip: bool = False
    ) -> Sample:
        """The sample with its labels in the view. Points outside the view keep their place outside."""
        new: dict[str, Any] = {"frame": frame.matrix.astype(np.float32)}
        if sample.landmarks is not None:
            order = self._order(sample) if flip else slice(None)
            new["landmarks"] = frame.points(sample.landmarks).astype(np.float32)[order]
            new["visible"] = None if sample.visible is None else sample.visible[order]
        if sample.five_points is not None:
            points = frame.points(sample.five_points).astype(np.float32)
            new["five_points"] = points[_LEFT_RIGHT] if flip else points
        if sample.box is not None:
            left, top, right, bottom = sample.box
            corners = frame.points(np.array([(left, top), (right, top), (left, bottom), (right, bottom)]))
            new["box"] = np.concatenate([corners.min(0), corners.max(0)]).astype(np.float32)
        if not self._with_mask:
            new["mask"] = None
        elif sample.mask is not None:
            mask = self._classes[sample.mask] if flip else sample.mask
            new["mask"] = frame.mask(mask, image.shape, outside=self._mask_outside)
        if sample.pose is not None:
            yaw, pitch, roll = sample.pose
            pose = (-yaw, pitch, -roll - rotation) if flip else (yaw, pitch, roll + rotation)
            new["pose"] = np.array(pose, np.float32)
        return replace(sample, **new)

    def _order(self, sample: Sample) -> np.ndarray:
        """Index of the points of the mirrored image."""
        count, known = (0 if points is None else len(points) for points in (sample.landmarks, self._flip))
        if self._flip is None or known != count:
            raise DataError(f"{sample.key} has {count} landmarks, but the source's layout has {known}")
        return self._flip


@dataclass(frozen=True)
class DrawnLabeled:
    """Views with labels and their random numbers. The image is not reduced: labels are in its full size."""

    views: Supervised
    draws: np.ndarray | None
    reduction: ClassVar[None] = None

    def __call__(self, sample: Sample, image: np.ndarray, out: Sequence[np.ndarray] = ()) -> SampleViews:
        """Call `Supervised.apply`; `out` is not used, as the views have their own memory."""
        return self.views.apply(sample, image, self.draws)


def _spread(draw: float, width: float, distribution: Distribution) -> float:
    """A uniform draw in 0..1 -> uniform in -width..width, or normal with standard deviation `width`."""
    if distribution == "uniform":
        return (2 * draw - 1) * width
    return width * NormalDist().inv_cdf(min(max(draw, 1e-12), 1 - 1e-12))
