"""Augmentation of labeled images as data, and the published protocols' numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from facessl.core.types import Sample
from facessl.core.values import FRACTION, RANGE, between, check_values
from facessl.data.face_square import Border, Crop, Frame, Template, frame_of, from_box
from facessl.views.spec import View

Distribution = Literal["uniform", "normal"]


@dataclass(frozen=True)
class Augment:
    """Augmentation of a labeled image to a view. The defaults are the whole image, unchanged.

    All geometry is one bilinear warp of the stored pixels; the pixels are degraded in the order of the fields, with
    jitter, grayscale and blur on the device (`facessl.views.photometric`). Probabilities are those of training; a view
    of an evaluation is only the crop.

    Attributes:
        crop: "whole" image, square around the sample's "box", or similarity of its "five_points".
        crop_scale: what is shown, relative to the box, the template or the image: 1.25 leaves a margin.
        template: where the five points go: "farl", "celeba" or "arcface" (`facessl.data.face_square.TEMPLATES`).
        warp: FaRL's tanh warp, 0 (none) to 1 (`facessl.data.face_square.Frame`).
        border: what lies outside the image: "zero", the repeated "edge", or "reflect", the image mirrored.
        shift: of the view, right and down, as a fraction of its side; half-width of a uniform, or sigma of a normal.
        rotation: degrees, likewise.
        scale: enlargement 1 +- scale, likewise.
        distribution: of rotation and scale.
        shift_distribution: of the shift.
        shift_p: probability of the shift.
        rotation_p: probability of the rotation.
        scale_p: probability of the scale.
        flip: probability of a horizontal flip; labels with sides change them.
        noise: probability of Gaussian noise on the stored image, before the crop.
        noise_std: its standard deviation in 0..255.
        occlusion: probability of a black occluder (`facessl.views.degrade.occlude`).
        occlusion_shape: "block" or "ellipse".
        gamma: probability of a power law, its exponent from `gamma_low` or, as often, from `gamma_high`.
        gamma_low: range of exponents that brighten.
        gamma_high: range of exponents that darken.
        fusion: probability of a blend with uniform noise.
        fusion_max: largest fraction of that noise.
        erasing: probability of random erasing (torchvision's), once per view.
        erasing_scale: area of it relative to the view.
        erasing_ratio: its height / width.
        erasing_fill: "mean" of the normalization (0 after it), "zero" (black), or "noise" (normal after it).
        jitter: strengths of brightness, contrast, saturation, hue, as in `facessl.views.spec.View`.
        jitter_p: probability of the jitter.
        grayscale: probability of a conversion to grayscale.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its sigma as a fraction of the view's side.
        pairs: two views in training: the image, and the same mirrored.
        shared_erasing: the mirrored view of a pair mirrors the erased area too, instead of having its own.

    Raises:
        ConfigError: a field out of its range.
    """

    crop: Crop = "whole"
    crop_scale: float = 1.0
    template: Template = "farl"
    warp: float = 0.0
    border: Border = "zero"
    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    distribution: Distribution = "uniform"
    shift_distribution: Distribution = "uniform"
    shift_p: float = 1.0
    rotation_p: float = 1.0
    scale_p: float = 1.0
    flip: float = 0.0
    noise: float = 0.0
    noise_std: float = 5.0
    occlusion: float = 0.0
    occlusion_shape: Literal["block", "ellipse"] = "block"
    gamma: float = 0.0
    gamma_low: tuple[float, float] = (0.5, 1.0)
    gamma_high: tuple[float, float] = (1.0, 2.0)
    fusion: float = 0.0
    fusion_max: float = 0.5
    erasing: float = 0.0
    erasing_scale: tuple[float, float] = (0.02, 0.33)
    erasing_ratio: tuple[float, float] = (0.3, 3.3)
    erasing_fill: Literal["mean", "zero", "noise"] = "mean"
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.001, 0.01)
    pairs: bool = False
    shared_erasing: bool = False

    def __post_init__(self) -> None:
        check_values(
            self,
            {
                "shift_p rotation_p scale_p flip noise occlusion gamma fusion erasing": FRACTION,
                "jitter_p grayscale blur shift warp fusion_max": FRACTION,
                "blur_sigma gamma_low gamma_high erasing_scale erasing_ratio": RANGE,
                "erasing_scale": (lambda v: v[1] < 1, "fractions of the view, below 1"),
                "rotation": between(0, 180),
                "scale": between(0, 0.9),
                "noise_std": between(0, 255),
                "crop_scale": (lambda v: 0 < v <= 10, "a number above 0 and at most 10"),
            },
            prefix="augment.",
        )
        self.view(1)  # checks the jitter

    def frame(self, sample: Sample, image_shape: tuple[int, ...], size: int) -> Frame:
        """The crop of one sample, views of `size` pixels; arguments, errors as of `data.face_square.frame_of`."""
        options: dict[str, Any] = {"crop": self.crop, "scale": self.crop_scale, "template": self.template}
        return frame_of(sample, image_shape, size=size, warp=self.warp, **options)

    def frame_of_picture(self, height: int, width: int, size: int) -> Frame:
        """The crop of a picture that is one cropped face: for models of boxes or five points all of it."""
        if self.crop == "whole":
            return self.frame(Sample(b"", "a face"), (height, width, 3), size)
        return replace(from_box((-0.5, -0.5, width - 0.5, height - 0.5), size), warp=self.warp)

    def view(self, size: int) -> View:
        """The part that runs on the device, for views of `size` pixels."""
        low, high = self.blur_sigma
        return View(
            flip=0,
            jitter=self.jitter,
            jitter_p=self.jitter_p,
            grayscale=self.grayscale,
            blur=self.blur,
            blur_sigma=(low * size, high * size),
        )


#: FRA's fine-tuning on expressions (main_fer.py). Differences: one bilinear warp instead of two nearest-neighbor ones;
#: the jitter comes after the warp and the erasing.
FRA_EXPRESSION = Augment(
    shift=0.2,
    shift_p=0.5,
    rotation=10,
    rotation_p=0.5,
    flip=0.5,
    jitter=(0.5, 0.5, 0.5, 0.0),
    jitter_p=0.5,
    erasing=0.5,
)

#: FRA's fine-tuning on CelebA's attributes (main_far.py): the same without erasing.
FRA_ATTRIBUTES = replace(FRA_EXPRESSION, erasing=0.0)

#: EAC on RAF-DB (src/main.py, src/dataset.py). Each view has its own erasing, as in the paper; the released code's mode
#: for clean labels is `shared_erasing`.
EAC_EXPRESSION = Augment(noise=0.5, noise_std=math.sqrt(30), erasing=0.5, erasing_scale=(0.02, 0.25), pairs=True)

#: FaRL's alignment on 300W and WFLW (farl/experiments/face_alignment, and its toolkit py-blueprint). The box is the
#: lists' center +- 100 scale. Differences: the box blur is a Gaussian of the same variance (0.61: its widths of 0 and 1
#: pixel blur nothing); gamma runs before the noise, gray after both.
FARL_ALIGNMENT = Augment(
    crop="box",
    crop_scale=1 / 0.8,
    shift=0.05,
    rotation=math.degrees(0.174),
    scale=0.1 / 0.8,
    occlusion=1.0,
    gamma=2 / 3,
    gamma_low=(0.5, 0.5),
    gamma_high=(2.0, 2.0),
    fusion=0.5,
    grayscale=0.1,
    blur=0.61,
    blur_sigma=(0.001, 0.0025),
)

#: The same on AFLW-19, whose boxes fill 1.0 +- 0.1 of the view.
FARL_ALIGNMENT_AFLW19 = replace(FARL_ALIGNMENT, crop_scale=1.0, scale=0.1)

#: FaRL's parsing of LaPa (farl/experiments/face_parsing); gray, gamma and blur as above.
FARL_PARSING_LAPA = replace(
    FARL_ALIGNMENT,
    crop="five_points",
    crop_scale=1.0,
    warp=0.8,
    shift=0.01,
    rotation=math.degrees(0.314),
    scale=0.1,
    distribution="normal",
    occlusion=0.0,
    fusion=0.0,
)

#: FaRL's parsing of CelebAMask-HQ: the aligned image as it is, no warp.
FARL_PARSING_CELEBAM = replace(FARL_PARSING_LAPA, crop="whole", warp=0.0)

#: STAR (lib/dataset/augmentation.py, 256 px); the box is the lists' center +- 100 scale. Differences: the box blur is a
#: Gaussian of the same variance (0.84: its widths below 2 pixels blur nothing); gray and blur run last.
STAR_ALIGNMENT = Augment(
    crop="box",
    shift=0.05,
    rotation=18,
    scale=0.1,
    distribution="normal",
    shift_distribution="normal",
    flip=0.5,
    occlusion=0.4,
    gamma=0.2,
    gamma_low=(0.25, 1.0),
    gamma_high=(1.0, 4.0),
    fusion=0.2,
    grayscale=0.2,
    blur=0.3 * 0.84,
    blur_sigma=(0.002, 0.0135),
)


def augment_from_dict(values: Mapping[str, Any]) -> Augment:
    """An `Augment` from plain values, as configurations and cards hold them."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Augment(**fields)
