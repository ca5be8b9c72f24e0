"""Options of `crop` and `pack`; their docstrings are the help of the commands. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from facessl.core.errors import UnknownName
from facessl.core.values import between, check_values
from facessl.data.detect import CROP_MARGIN, CROP_QUALITY, CROP_SIZE, SMALLEST
from facessl.tools.phash import COPIES, Near

Align = Literal["none", "eyes", "five-points"]
#: Options of `crop` that say how one face is found and cut out.
OF_ONE_FACE = ("size", "margin", "align", "template", "detector", "detector_model", "min_score", "smallest")
Options = TypeVar("Options", bound="CropOptions | PackOptions")


@dataclass(frozen=True)
class CropOptions:
    """Options of `facessl.crop`.

    Attributes:
        size: side of the squares in pixels.
        margin: side of a square over the longer side of the face's box, brows to chin (null: 1.3); with --align
            five-points how much is shown relative to the template (null: 1).
        align: none cuts upright squares; eyes turns the photo until the eyes are level; five-points also moves and
            scales it, so that eyes, nose and mouth come nearest to their places in the template.
        template: places of the five points: those of FaRL, of FaRL's CelebA model, or of ArcFace.
        all_faces: every face of a photo instead of the surest one.
        detector: mtcnn, or yunet, which needs --model.
        detector_model: weights of the detector yunet (.onnx).
        min_score: least score of a face; null: the detector's own.
        smallest: smallest face that MTCNN looks for, as a fraction of the long side.
        min_size: leave out faces whose box has a longer side of fewer pixels of the photo.
        min_sharpness: leave out faces that are less sharp; `sharpness` in faces.csv is the variance of the Laplacian,
            and 15 leaves out badly blurred ones.
        dedupe: leave out near-duplicates: faces whose 64-bit perceptual hash differs in at most 4 bits, or as many as
            are given (0 to 10), from an earlier one; duplicates.csv lists them.
        format: jpg or png.
        quality: JPEG quality of the squares, from 1 (smallest files) to 100 (fewest artifacts).
        workers: processes that find faces at the same time; 0 works in this process.
        max_bad: fraction of unreadable photos above which it stops.
    """

    size: int = CROP_SIZE
    margin: float | None = None
    align: Align = "none"
    template: Literal["farl", "celeba", "arcface"] = "farl"
    all_faces: bool = False
    detector: str = "mtcnn"
    detector_model: str | Path | None = None
    min_score: float | None = None
    smallest: float = SMALLEST
    min_size: float = 0
    min_sharpness: float = 0
    dedupe: bool | int | None = None
    format: Literal["jpg", "png"] = "jpg"
    quality: int = CROP_QUALITY
    workers: int = 0
    max_bad: float = 0.05

    def resolved(self) -> "CropOptions":
        """The options with defaults filled in. ConfigError: a value is out of range."""
        margin = (1.0 if self.align == "five-points" else CROP_MARGIN) if self.margin is None else self.margin
        model = None if self.detector_model is None else str(self.detector_model)
        options = replace(self, margin=margin, detector_model=model, dedupe=_bits(self.dedupe))
        rules = {"size": between(8, 4096), "margin": between(0.1, 10), "quality": between(1, 100)}
        check_values(options, rules | {"smallest": between(0.01, 1)}, prefix="crop's ")
        return options


@dataclass(frozen=True)
class PackOptions:
    """Options of `facessl.tools.pack.pack`.

    Attributes:
        size: shorter side of larger images in pixels; 0 keeps all sizes.
        quality: JPEG quality of the images, from 1 (smallest files) to 100 (fewest artifacts).
        copy: keep the encoded files as they are.
        shard_size: images per shard, or its size as 500MB or 2GB.
        workers: processes that encode images at the same time; null: one per core; 0 works in this process.
        dedupe: leave out near-duplicates: images whose 64-bit perceptual hash differs in at most 4 bits, or as many as
            are given (0 to 10), from an earlier one; duplicates.csv lists them.
        max_bad: fraction of unreadable images above which it stops.
    """

    size: int = 256
    quality: int = 90
    copy: bool = False
    shard_size: str = "2000"
    workers: int | None = None
    dedupe: bool | int | None = None
    max_bad: float = 0.05

    def resolved(self) -> "PackOptions":
        """The options with 0 for those that `copy` makes void. ConfigError: a value is out of range."""
        options = replace(self, shard_size=str(self.shard_size), dedupe=_bits(self.dedupe))
        options = replace(options, size=0, quality=0) if self.copy else options
        check_values(
            options, {"size": between(0, 8192), "quality": between(0 if self.copy else 1, 100)}, prefix="pack's "
        )
        return options


def read_options(kind: type[Options], job: str, given: Mapping[str, Any], known: Sequence[str] = ()) -> Options:
    """The options that were given as keywords of the function `job`.

    UnknownName: one that is not among `known`, by default all of `kind`.
    """
    known = known or [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise UnknownName(f"option of {job}", name, known)
    return kind(**given)


def output_settings(options: CropOptions | PackOptions) -> dict[str, Any]:
    """Options that change the output, as its manifest holds them."""
    return {name: value for name, value in vars(options).items() if name not in ("workers", "max_bad")}


def _bits(dedupe: bool | int | None) -> int | None:
    """Largest distance of near-duplicates; None keeps them. ConfigError: it cannot be searched."""
    distance = (COPIES if dedupe else None) if isinstance(dedupe, bool) else dedupe
    return None if distance is None else Near(distance).distance
