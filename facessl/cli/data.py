"""Commands that make data sets: `crop` and `pack`."""

import json
import sys
from pathlib import Path

from facessl.cli.commandline import list_skipped, parsed_words, summary
from facessl.config.argument_parser import Parser
from facessl.core.errors import ConfigError, many
from facessl.core.escape import printable

_OUT = "folder to write to; the same call again goes on where it was stopped"


def cmd_crop(argv: list[str]) -> int:
    """Find the faces in photos, write them as squares; the last line is JSON; exit status 1 where no face was found."""
    from facessl.tools.options import CropOptions

    parser = Parser(prog="facessl crop", description=summary(cmd_crop))
    parser.add_argument("photos", type=str, help="a folder, a video, or NAME:PATH?option=value")
    parser.add_argument("--out", type=Path, default=Path("faces"), help=_OUT)
    parser.add_argument(
        "--every",
        type=str | None,
        help="interval between the frames of videos, such as 1s, 0.5s or 2min (null: 1s of a video, and the videos of "
        "a folder are left out)",
    )
    parser.add_class_arguments(CropOptions, as_group=False, skip={"detector_model", "min_score", "smallest", "format"})
    parser.add_argument("--model", type=Path | None, help="weights of the detector yunet (.onnx)")
    options = parsed_words(parser, argv, "crop")
    photos, out, every, model = (options.pop(name) for name in ("photos", "out", "every", "model"))
    from facessl.core.distributed import launched
    from facessl.core.progress import ProgressLine
    from facessl.data.source import parse
    from facessl.tools.crop import crop

    if every is not None:
        name, path, others = parse(photos)
        if name not in ("folder", "video"):
            raise ConfigError(f"--every is for a video or a folder of videos, and {photos} is neither: leave it out")
        photos = f"video:{path}?" + "&".join(f"{key}={value}" for key, value in {**others, "every": every}.items())
    with ProgressLine("image", enabled=launched()[0] == 0) as progress:
        result = crop(photos, out, detector_model=model, progress=progress, **options)
    if not result.finished or (launched()[0] and not result.new_photos):  # another rank has the numbers
        return 0
    list_skipped([*result.skipped, *((photo, "no face found") for photo in result.without_face)])
    counts = {name: len(value) if isinstance(value, list) else value for name, value in vars(result).items()}
    print(json.dumps({"out": str(out), **counts}))
    if result.faces:
        return 0
    why = f"{counts['without_face']} without a face, {counts['skipped']} unreadable"
    if result.small or result.blurred:
        why += f", {result.small + result.blurred} faces too small or blurred (--min-size, --min-sharpness)"
    if result.new_photos < result.photos:
        why = f"{out / 'skipped.csv'} says why"
    print(printable(f"facessl: no face in the {many(result.photos, 'photo')} of {photos} ({why})"), file=sys.stderr)
    return 1


def cmd_pack(argv: list[str]) -> int:
    """Write any source as tar shards of small JPEGs, with all labels; the last line is JSON."""
    from facessl.tools.options import PackOptions

    parser = Parser(prog="facessl pack", description=summary(cmd_pack))
    source_help = "images, NAME:PATH?option=value or a path; with --verify a folder of shards"
    parser.add_argument("source", type=str, help=source_help)
    parser.add_argument("--out", type=Path, default=Path("shards"), help=_OUT)
    parser.add_class_arguments(PackOptions, as_group=False)
    verify_help = "only compare the shards of a folder with their checksums"
    parser.add_argument("--verify", type=bool, default=False, help=verify_help)
    options = parsed_words(parser, argv, "pack")
    source, out, only_verify = (options.pop(name) for name in ("source", "out", "verify"))
    from facessl.core.distributed import launched
    from facessl.core.progress import ProgressLine
    from facessl.tools.pack import pack
    from facessl.tools.shards import verify

    if only_verify:
        print(json.dumps(verify(source)))
        return 0
    with ProgressLine("image", enabled=launched()[0] == 0) as progress:
        result = pack(source, out, progress=progress, **options)
    if not result.finished or (launched()[0] and result.before == result.images):  # another rank has the numbers
        return 0
    list_skipped(result.unreadable)
    counts = {name: value for name, value in vars(result).items() if name not in ("unreadable", "finished")}
    print(json.dumps({"out": str(out), **counts}))
    return 0
