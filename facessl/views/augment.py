"""How labelled images are augmented, as data, and the published protocols' numbers.

Where a protocol runs its steps in another order than `Augment` does, the preset says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from facessl.core.errors import ConfigError
from facessl.data.frame import Border, Crop, Template
from facessl.views.spec import View, renamed

Distribution = Literal["uniform", "normal"]
_PROBABILITIES = (
    *("shift_p", "rotation_p", "scale_p", "flip", "jitter_p", "grayscale", "blur", "gamma", "noise", "fusion"),
    *("occlusion", "erasing"),
)
_RANGES = ("blur_sigma", "gamma_low", "gamma_high", "erasing_scale", "erasing_ratio")
_HIGHEST = {"shift": 1, "rotation": 180, "scale": 0.9, "warp": 1, "fusion_max": 1, "noise_std": 255}


@dataclass(frozen=True)
class Augment:
    """How a labelled image becomes a view. The defaults are the whole image, unchanged.

    All geometry is one bilinear warp of the stored pixels; the pixels are degraded in the order of the fields, with
    jitter, grayscale and blur on the device (`facessl.views.photometric`). Probabilities are those of training; a view
    of an evaluation is only the crop.

    Attributes:
        crop: "whole" image, square around the sample's "box", or similarity of its "five_points".
        crop_scale: what is shown, relative to the box, the template or the image: 1.25 leaves a margin.
        template: where the five points go: "farl", "celeba" or "arcface" (`facessl.data.frame.TEMPLATES`).
        warp: FaRL's tanh warp, 0 (none) to 1 (`facessl.data.frame.Frame`).
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
        occlusion: probability of a black thing in front (`facessl.views.degrade.occlude`).
        occlusion_shape: "block" or "ellipse".
        gamma: probability of a power law, its exponent from `gamma_low` or, as often, from `gamma_high`.
        gamma_low: range of exponents that brighten.
        gamma_high: range of exponents that darken.
        fusion: probability of a blend with uniform noise.
        fusion_max: largest fraction of that noise.
        erasing: probability of random erasing (torchvision's), once per view.
        erasing_scale: area of it relative to the view.
        erasing_ratio: its height / width.
        erasing_fill: "mean" of the normalisation (0 after it), "zero" (black), or "noise" (normal after it).
        jitter: strengths of brightness, contrast, saturation, hue, as in `facessl.views.spec.View`.
        jitter_p: probability of the jitter.
        grayscale: probability of a conversion to grayscale.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its sigma as a fraction of the view's side.
        pairs: two views in training: the image, and the same mirrored.
        shared_erasing: the mirrored view of a pair mirrors the erased area too, instead of having its own.

    Raises:
        ConfigError: a field out of its range; the field, the value and the valid range are named.
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
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                self._reject(name, "a probability from 0 to 1")
        for name in _RANGES:
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                self._reject(name, "(low, high) with 0 < low <= high")
        if not self.erasing_scale[1] < 1:
            self._reject("erasing_scale", "a part of the view, below 1")
        for name, high in _HIGHEST.items():
            if not 0 <= getattr(self, name) <= high:
                self._reject(name, f"from 0 to {high}")
        if not 0 < self.crop_scale <= 10:
            self._reject("crop_scale", "above 0 and at most 10")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                self._reject(name, f"one of {', '.join(get_args(hint))}")
        self.view(1)  # checks the jitter

    def _reject(self, name: str, valid: str) -> NoReturn:
        raise ConfigError(f"the augmentation has {name}={getattr(self, name)!r}, but it must be {valid}")

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


#: FRA's fine-tuning on expressions (main_fer.py): resize, flip, jitter 0.5 p 0.5, translation by up to 0.2 p 0.5,
#: rotation by up to 10 degrees p 0.5, torchvision's RandomErasing p 0.5 after the normalisation. Differences: one
#: bilinear warp instead of two nearest-neighbour ones; the jitter comes after the warp and the erasing.
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

#: EAC on RAF-DB (src/main.py, src/dataset.py): resize, Gaussian noise of variance 30 on the stored image p 0.5, random
#: erasing of 0.02..0.25 of the area p 0.5, each view its own as the paper has it. The released code's mode for clean
#: labels mirrors the erased view: `shared_erasing`.
EAC_EXPRESSION = Augment(noise=0.5, noise_std=math.sqrt(30), erasing=0.5, erasing_scale=(0.02, 0.25), pairs=True)

#: FaRL's alignment on 300W and WFLW (farl/experiments/face_alignment, and the toolkit that it runs in, py-blueprint).
#: The box is the lists' centre +- 100 scale and fills 0.8 +- 0.1 of the view; shift 0.05, rotation 0.174 rad, all
#: uniform; no flip; always an occlusion; noise p 0.5; grey p 0.1; gamma 1/2, 1 or 2 with equal chance; a box blur of
#: up to 1 % of the side (here a Gaussian of the same variance; widths of 0 and 1 pixel, 39 % of the draws, blur
#: nothing). Differences: gamma runs before the noise, grey after both.
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

#: FaRL's parsing of LaPa (farl/experiments/face_parsing): five points to the template, tanh warp 0.8, shift 0.01
#: uniform, rotation 0.314 rad and scale 0.1 normal (py-blueprint's default), grey, gamma and blur as above; no flip.
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

#: STAR (lib/dataset/augmentation.py, 256 px): the box is the lists' centre +- 100 scale; flip; shift 0.05, rotation
#: 18 degrees, scale 0.1, all normal; occlusion p 0.4; box blur of up to 5 % of the side p 0.3 (here a Gaussian of the
#: same variance; widths below 2 pixels, 16 %, blur nothing); gamma 0.25..1 or 1..4 p 0.2; noise p 0.2; grey p 0.2.
#: Differences: grey and blur run last.
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
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in renamed(values).items()}
    return Augment(**fields)
