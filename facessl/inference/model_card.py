"""README.md of an exported model, with sections for its owner to complete."""

from collections.abc import Mapping, Sequence
from typing import Any

from facessl.core.markdown import markdown_table
from facessl.tasks.base import Results, Scores

#: How a product uses each format.
_USE = {
    "onnx": """import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

how = json.loads(Path("model.json").read_text())["preprocessing"]
face = ImageOps.exif_transpose(Image.open("face.jpg")).convert("RGB").resize(how["size"], Image.Resampling.BILINEAR)
x = (np.asarray(face) / 255 - how["mean"]) / how["std"]  # (S, S, 3)
session = onnxruntime.InferenceSession("model.onnx")
outputs = session.run(None, {"images": x.transpose(2, 0, 1)[None].astype(np.float32)})  # named in model.json""",
    "timm": """import timm
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("face.jpg")).convert("RGB")
model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image).unsqueeze(0))  # (1, C)""",
    "hf": """from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

image = ImageOps.exif_transpose(Image.open("face.jpg")).convert("RGB")
processor, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".")
features = model(**processor(image, return_tensors="pt")).pooler_output  # (1, C)""",
}
_TEXT = """---
library_name: {library}
tags: [face, {tag}]
---
# {title}

{summary}

## Use

```python
{use}
```

## Input

{input}

## Training

{training}
{scores}
## Intended use and limits

To be completed by the owner of the model: what it is for, who may use it, and on whose pictures. Scores hold for images
like those they were measured on; other cameras, poses, ages and skin types can do worse. Do not use it to decide about
people without measuring it on the people concerned.

## License

To be completed: the license of these weights depends on that of the training images, `{source}`, and of the weights
that training began with.
"""


def model_card(
    card: Mapping[str, Any], preprocessing: Mapping[str, Any], format: str, results: Results | None = None
) -> str:
    """The page as Markdown, of a run's `card`, how its input is made, and the results of `facessl finetune`."""
    task, settings = card.get("task"), dict(card.get("task") or card.get("method") or {})
    name = settings.pop("name", "an unknown method")
    facts = {
        "network": f"{card['timm_name']} {card.get('timm_options') or ''}".strip(),
        "training images": f"`{card.get('source')}`",
        "task" if task else "method": name,
        "protocol": card.get("protocol"),
        "started from": card.get("run"),
        "steps": card.get("steps"),
        "settings": f"`{settings}`" if settings else None,
        "commit of facessl": card.get("commit"),
    }
    return _TEXT.format(
        library={"hf": "transformers"}.get(format, format),
        tag=name if task and format == "onnx" else "image-feature-extraction",
        title=f"{card['timm_name']}, {'fine-tuned for' if task else 'pre-trained with'} {name}",
        summary="A network for pictures of one face each, trained with facessl."
        + (" This folder holds the backbone without the head." if task and format != "onnx" else ""),
        use=_USE[format],
        input=_listed(preprocessing),
        training=_listed(facts),
        scores="" if results is None else _scores(results["test"]),
        source=card.get("source"),
    )


def _listed(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value not in (None, ""))


def _scores(test: Scores) -> str:
    """Scores of the test part with their intervals, and by group if that was measured."""
    scores: dict[str, Any] = dict(test)
    units = dict(test.get("units") or {})
    if headline := test.get("headline"):
        units[headline["name"]] = headline.get("unit") or "fraction"
    rows = [
        {"score": name, "value": _number(value), "interval": _interval(interval), "unit": units.get(name, "fraction")}
        for name, value in scores.items()
        if isinstance(value, (int, float)) and isinstance(interval := scores.get(f"{name}_interval"), list)
    ]
    lines = ["", "## Scores", "", f"On {test.get('images', 'unknown')} test images, with 95 % intervals:", ""]
    lines += markdown_table(rows)
    for score, result in (test.get("groups") or {}).items():
        gap, by_chance = _number(result.get("gap")), _number(result.get("gap_by_chance"))
        rows = [
            {
                **{"group": row["name"], "images": str(row.get("images", "unknown"))},
                **{"value": _number(row.get("value")), "interval": _interval(row.get("interval"))},
                "": "" if row.get("counted", True) else "too few images for the gap",
            }
            for row in result.get("groups") or []
        ]
        lines += ["", f"{score} by group (gap {gap}; {by_chance} by chance):", "", *markdown_table(rows)]
        if note := result.get("note"):
            lines += ["", f"{note[0].upper()}{note[1:]}."]
    if not test.get("groups"):
        lines += ["", "Not measured by group of people: the test images name no groups."]
    return "\n".join([*lines, ""])


def _interval(values: Sequence[Any] | None) -> str:
    return " to ".join(map(_number, values or ["unknown"]))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "unknown"
