"""Commands that make data sets: `crop` and `pack`."""

import json
from pathlib import Path
from typing import Any, Literal

from facessl.cli.commandline import list_skipped
from facessl.core.errors import ConfigError


def cmd_crop(
    photos: str,
    out: Path = Path("faces"),
    every: str | None = None,
    size: int = 256,
    margin: float | None = None,
    align: Literal["none", "eyes", "five-points"] = "none",
    template: Literal["farl", "celeba", "arcface"] = "farl",
    all_faces: bool = False,
    detector: str = "mtcnn",
    model: Path | None = None,
    min_size: float = 0,
    min_sharpness: float = 0,
    dedupe: bool | int | None = None,
    quality: int = 95,
    workers: int = 0,
    max_bad: float = 0.05,
) -> int:
    """Find the faces in photos and write them as squares; the last line is JSON.

    Args:
        photos: a folder, a video, or NAME:PATH?option=value.
        out: folder to write to; the same call again goes on where it was stopped.
        every: interval between the frames of videos, such as 1s, 0.5s or 2min (null: 1s of a video, and the videos of a
            folder are left out).
        size: side of the squares in pixels.
        margin: side of a square over the longer side of the face's box, brows to chin (null: 1.3); with --align
            five-points how much is shown relative to the template (null: 1).
        align: none cuts upright squares; eyes turns the photo until the eyes are level; five-points also moves and
            scales it, so that eyes, nose and mouth come nearest to their places in the template.
        template: places of the five points: those of FaRL, of FaRL's CelebA model, or of ArcFace.
        all_faces: every face of a photo instead of the surest one.
        detector: mtcnn, or yunet, which needs --model.
        model: weights of the detector yunet (.onnx).
        min_size: leave out faces whose box has a longer side of fewer pixels of the photo.
        min_sharpness: leave out faces that are less sharp; `sharpness` in faces.csv is the variance of the Laplacian,
            and 15 leaves out badly blurred ones.
        dedupe: leave out near-duplicates: faces whose 64-bit perceptual hash differs in at most 4 bits, or as many as
            are given (0 to 10), from an earlier one; duplicates.csv lists them.
        quality: JPEG quality of the squares, from 1 (smallest files) to 100 (fewest artifacts).
        workers: processes that find faces at the same time; 0 works in this process.
        max_bad: fraction of unreadable photos above which it stops.
    """
    from facessl.core.distributed import launched
    from facessl.core.progress import ProgressLine
    from facessl.data.source import parse
    from facessl.tools.crop import crop

    if every is not None:
        name, path, others = parse(photos)
        if name not in ("folder", "video"):
            raise ConfigError(f"--every is for a video or a folder of videos, and {photos} is neither: leave it out")
        photos = f"video:{path}?" + "&".join(f"{key}={value}" for key, value in {**others, "every": every}.items())
    options: dict[str, Any] = {"size": size, "margin": margin, "align": align, "template": template}
    options |= {"all_faces": all_faces, "detector": detector, "detector_model": model}
    options |= {"min_size": min_size, "min_sharpness": min_sharpness, "quality": quality, "workers": workers}
    options["dedupe"] = _bits(dedupe)
    with ProgressLine("image", enabled=launched()[0] == 0) as progress:
        found = crop(photos, out, progress=progress, max_bad=max_bad, **options)
    if not found.finished or (launched()[0] and not found.new_photos):  # another rank has the numbers
        return 0
    list_skipped([*found.skipped, *((photo, "no face found") for photo in found.without_face)])
    counts = {name: len(value) if isinstance(value, list) else value for name, value in vars(found).items()}
    print(json.dumps({"out": str(out), **counts}))
    return 0


def _bits(dedupe: bool | int | None) -> int | None:
    """The distance that `--dedupe`, alone or with a number, means."""
    from facessl.tools.phash import COPIES

    return (COPIES if dedupe else None) if isinstance(dedupe, bool) else dedupe


def cmd_pack(
    source: str,
    out: Path = Path("shards"),
    size: int = 256,
    quality: int = 90,
    copy: bool = False,
    shard_size: str = "2000",
    workers: int | None = None,
    dedupe: bool | int | None = None,
    max_bad: float = 0.05,
    verify: bool = False,
) -> int:
    """Write any source as tar shards of small JPEGs, with all labels; the last line is JSON.

    Args:
        source: images, NAME:PATH?option=value or a path; with --verify a folder of shards.
        out: folder to write to; the same call again goes on where it was stopped.
        size: shorter side of larger images in pixels; 0 keeps all sizes.
        quality: JPEG quality of the images, from 1 (smallest files) to 100 (fewest artifacts).
        copy: keep the encoded files as they are.
        shard_size: images per shard, or its size as 500MB or 2GB.
        workers: processes that encode images at the same time; null: one per core; 0 works in this process.
        dedupe: leave out near-duplicates: images whose 64-bit perceptual hash differs in at most 4 bits, or as many as
            are given (0 to 10), from an earlier one; duplicates.csv lists them.
        max_bad: fraction of unreadable images above which it stops.
        verify: only compare the shards of a folder with their checksums.
    """
    from facessl.core.distributed import launched
    from facessl.core.progress import ProgressLine
    from facessl.tools.pack import pack
    from facessl.tools.shards import verify as verified

    if verify:
        print(json.dumps(verified(source)))
        return 0
    options: dict[str, Any] = {"shard_size": shard_size, "workers": workers, "max_bad": max_bad}
    options["dedupe"] = _bits(dedupe)
    with ProgressLine("image", enabled=launched()[0] == 0) as progress:
        found = pack(source, out, size=size, quality=quality, copy=copy, progress=progress, **options)
    if not found.finished or (launched()[0] and found.before == found.images):  # another rank has the numbers
        return 0
    list_skipped(found.unreadable)
    print(
        json.dumps({"out": str(out), **{k: v for k, v in vars(found).items() if k not in ("unreadable", "finished")}})
    )
    return 0
