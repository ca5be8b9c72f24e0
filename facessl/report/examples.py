"""The answers of a fine-tuned model that its report shows: pictures and a list of them in the run folder."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Required, TypedDict

from PIL import Image

from facessl.core.errors import DataError
from facessl.core.files import write_atomic
from facessl.core.schema import to_json
from facessl.evaluation.mistakes import Mistakes
from facessl.tasks.base import Example

FOLDER, LIST = "examples", "examples.json"
#: Answers of each kind that are shown, and the most pixels of a picture's height.
SHOWN, _HEIGHT = 12, 320


class Shown(TypedDict, total=False):
    """One answer in `examples/examples.json`, with the name of its picture."""

    file: Required[str]
    keys: list[str]
    label: str
    prediction: str
    attribute: str
    measure: Required[str]
    value: float | None


class Listed(TypedDict, total=False):
    """`examples/examples.json`."""

    worst: list[Shown]
    typical: list[Shown]
    classes: list[str]  # of masks, by their number


def write_examples(folder: Path, mistakes: Mistakes) -> None:
    """Write `examples/`: `examples.json`, and a JPEG for each of the worst and typical answers that can be read.

    Of attributes it has the worst answer of each, at most `SHOWN` of them.
    """
    place = folder / FOLDER
    if place.is_symlink():  # replaced, not written through
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)
    kinds = {"worst": _across_attributes(mistakes.worst), "typical": mistakes.typical}
    listed: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for name, examples in kinds.items():
        for number, example in enumerate(examples[:SHOWN], 1):
            try:
                picture = Image.fromarray(mistakes.picture(example, panel=False))
            except DataError:
                continue
            place.mkdir(exist_ok=True)
            out = io.BytesIO()
            picture.thumbnail((4 * _HEIGHT, _HEIGHT), Image.Resampling.LANCZOS)
            picture.save(out, format="JPEG", quality=88)
            file = f"{name}-{number:02d}.jpg"
            write_atomic(place / file, out.getvalue())
            listed[name].append({"file": file} | {k: v for k, v in asdict(example).items() if k != "index"})
    if any(listed.values()):
        classes = mistakes.trained.card["labels"]["mask_names"]
        write_atomic(place / LIST, to_json(listed | {"classes": classes}, indent=2).encode() + b"\n")


def _across_attributes(worst: Sequence[Example]) -> list[Example]:
    """The worst answer of each attribute, the most confident ones first; of other tasks all as they are."""
    if not any(example.attribute for example in worst):
        return list(worst)
    first = {example.attribute: example for example in reversed(worst)}
    return sorted(first.values(), key=lambda example: -example.value)
