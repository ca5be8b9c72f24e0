"""The picture of predictions in the documentation: what fine-tuned runs say about synthetic faces they have not seen.

Command: `python benchmarks/pictures.py RUN_ALIGNMENT RUN_PARSING RUN_EXPRESSION RUN_ATTRIBUTES [--out FILE]` with run
folders of `facessl finetune`, one row each, any number. Without a run, four small ones are trained first
(about 40 minutes of one core), below `--train` (runs/pictures); what is there already is used. The last row shows
several faces in one photo, which the built-in detector finds, by the first run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from facessl.core.types import Sample
from facessl.data.detect import detect
from facessl.data.sources.synthetic import Synthetic
from facessl.inference import prediction_pictures
from facessl.inference.predict import frame_of_face
from facessl.inference.prediction_pictures import font
from facessl.inference.trained_task import Trained, load_trained
from facessl.training.finetune import finetune

#: Faces of other persons than those of training, whose seed is 0.
SEED, SIDE = 20, 320
WIDTH, GAP, HEAD, SHRINK = 1370, 8, 30, 0.7
MOVED = {"shift": 0.05, "rotation": 15, "scale": 0.15, "flip": 0.5}
FACE = {"image_size": 128, "augment": MOVED | {"crop": "box", "crop_scale": 1.25}}
#: Settings of each small run. Expressions and attributes are a matter of a few pixels, which 600 steps from random
#: weights do not find: they start from the weights of the landmarks.
TASKS: dict[str, dict[str, Any]] = {
    "alignment": FACE | {"task": {"name": "alignment", "width": 64, "heatmap_size": 32}, "max_steps": 450},
    "parsing": {"task": {"name": "parsing", "width": 64}, "image_size": 128, "augment": MOVED, "max_steps": 1200},
    "expression": FACE | {"task": {"name": "expression"}, "max_steps": 600, "lr": 5e-4},
    "attributes": FACE | {"task": {"name": "attributes"}, "max_steps": 600, "lr": 5e-4},
}


def train(folder: Path) -> list[Path]:
    """Run folders of the four tasks, trained on synthetic faces where they are not there yet."""
    runs: list[Path] = []
    for name, settings in TASKS.items():
        run = folder / name
        if not (run / "model.safetensors").is_file():
            own = {key: value for key, value in settings.items() if key != "lr"}
            finetune(
                str(runs[0]) if "lr" in settings else "none",
                "synthetic:?n=4000&size=128",
                test="synthetic:?n=400&size=128&seed=1",
                out=str(run),
                optim={"lr": settings.get("lr", 1e-3), "lrs": {}, "schedule": "cosine", "warmup_epochs": 0.5},
                batch_size=32,
                ema=0.0,
                precision="bf16",
                **(own if "lr" in settings else own | {"backbone": {"name": "resnet18"}}),
            )
        runs.append(run)
    return runs


def predicted(trained: Trained, image: np.ndarray, sample: Sample | None = None) -> np.ndarray:
    """An image with the predictions of a run: of the faces that are found, or of `sample`, one cut-out face."""
    height, width = image.shape[:2]
    if sample is None:
        found = detect(image)
        frames = [frame_of_face(trained, face, height, width) for face in found]
        boxes = [face.box for face in found]
    else:
        own = getattr(sample, trained.augment.crop, None) is not None
        frames = [
            trained.augment.frame(sample, image.shape, trained.image_size)
            if own
            else trained.augment.frame_of_picture(height, width, trained.image_size)
        ]
        boxes = [np.array([-0.5, -0.5, width - 0.5, height - 0.5])]
    raw = trained.predict([image] * len(frames), frames) if frames else {}
    faces = [
        {"box": box, "framed": sample is None} | trained.task.describe(raw, i, frame, height, width)
        for i, (box, frame) in enumerate(zip(boxes, frames, strict=True))
    ]
    return prediction_pictures.draw(image, faces)


def row_of(trained: Trained, source: Synthetic, start: int) -> tuple[list[np.ndarray], int]:
    """As many synthetic faces as fit beside each other, and the position of the next one."""
    cells: list[np.ndarray] = []
    used = 0
    while True:
        sample = source[start]
        assert isinstance(sample.image, np.ndarray)
        cell = predicted(trained, sample.image, sample)
        if cells and used + cell.shape[1] > WIDTH:
            return cells, start
        cells.append(cell)
        used += cell.shape[1] + GAP
        start += 1


def group_photo(source: Synthetic, count: int = 5) -> np.ndarray:
    """(SIDE, WIDTH, 3) with synthetic faces of several sizes side by side."""
    photo = np.full((SIDE, WIDTH, 3), (196, 204, 212), np.uint8)
    left = GAP
    for index, scale in zip(range(count), (0.85, 0.7, 1.0, 0.6, 0.8), strict=False):
        image = source[index].image
        assert isinstance(image, np.ndarray)
        side = round(SIDE * scale)
        small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
        photo[SIDE - side :, left : left + side] = small[:, : WIDTH - left]
        left += side
    return photo[:, : min(left + GAP, WIDTH)]


def page(rows: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Rows with a title, on white, at the size of the documentation."""
    heights = [HEAD + max(cell.shape[0] for cell in cells) + GAP for _, cells in rows]
    wide = max(sum(cell.shape[1] + GAP for cell in cells) for _, cells in rows)
    canvas = Image.new("RGB", (wide + GAP, sum(heights)), "white")
    brush = ImageDraw.Draw(canvas)
    y = 0
    for (title, cells), height in zip(rows, heights, strict=True):
        brush.text((GAP, y + 4), title, fill=(25, 25, 25), font=font(18))
        x = GAP
        for cell in cells:
            canvas.paste(Image.fromarray(cell), (x, y + HEAD))
            x += cell.shape[1] + GAP
        y += height
    size = (round(canvas.width * SHRINK), round(canvas.height * SHRINK))
    return canvas.resize(size, Image.Resampling.LANCZOS)


def few_colors(picture: Image.Image) -> Image.Image:
    """With 256 colors, a third of the size; those of the classes, which cover little, are among them."""
    fixed = np.array(prediction_pictures.class_colors(12), np.uint8)
    common = picture.quantize(256 - len(fixed), method=Image.Quantize.MEDIANCUT).getpalette() or []
    chosen = Image.new("P", (1, 1))
    chosen.putpalette([*fixed.ravel().tolist(), *common[: 3 * (256 - len(fixed))]])
    return picture.quantize(palette=chosen, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders of `facessl finetune`")
    parser.add_argument("--out", type=Path, default=Path("docs/predictions.png"))
    parser.add_argument("--train", type=Path, default=Path("runs/pictures"), help="where the small runs are")
    args = parser.parse_args()
    runs = [load_trained(run) for run in args.runs or train(args.train)]
    source = Synthetic(n=200, seed=SEED, size=SIDE, yaw=25, pitch=12, occlusion=0.05, degrade=0)
    rows, start = [], 0
    for trained in runs:
        cells, start = row_of(trained, source, start)
        rows.append((trained.name, cells))
    crowd = Synthetic(n=8, seed=SEED + 1, size=SIDE, yaw=12, pitch=8, roll=10, occlusion=0, degrade=0)
    rows.append((f"several faces in one photo: {rows[0][0]}", [predicted(runs[0], group_photo(crowd))]))
    picture = few_colors(page(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out, optimize=True)
    print(json.dumps({"out": str(args.out), "bytes": args.out.stat().st_size, "size": picture.size}))


if __name__ == "__main__":
    main()
