"""Which method learns what from the same faces: pre-training runs of one size, and what each is worth downstream.

    python benchmarks/study.py train    --data DIR --out runs/study --setting cpu [--only byol across] [--minutes 60]
    python benchmarks/study.py evaluate --data DIR --out runs/study
    python benchmarks/study.py write    --out runs/study --page docs/results.md

`train` goes on where it was stopped, and keeps weights at fractions of the schedule for curves. `evaluate` scores every
kept checkpoint once; a score that is there is not measured again. `write` puts the tables into a block of the page and
all scores into `OUT/study.json`. DIR has the packs pretrain/ (WebDataset shards), expression/ (train/ and test/, a
folder per class), attributes/celeba, attributes/utkface, landmarks/, parsing/ and verification/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from descriptors import DESCRIPTORS, Descriptor
from results import fill, table
from sklearn.linear_model import Ridge

import facessl
from facessl.config.parse import from_dict
from facessl.core import checkpoint
from facessl.core.environment import describe
from facessl.data.loader import EvalLoader
from facessl.data.splits import parts
from facessl.evaluation.protocols.knn import knn
from facessl.evaluation.protocols.linear import linear
from facessl.evaluation.regions import score_regions
from facessl.methods.base import has_regions
from facessl.metrics.bootstrap import bootstrap_mean, interval, resampled_sums
from facessl.metrics.segmentation import ConfusionMatrix, mean_f1
from facessl.models.backbone import Backbone
from facessl.models.forward import evaluating
from facessl.pretrained.load import backbone_card, build_method
from facessl.report.folder import RunFolder, read_run_folder
from facessl.report.write import headline
from facessl.tasks.alignment import AlignmentMeter
from facessl.tasks.attributes import AttributesMeter
from facessl.tasks.expression import ExpressionMeter
from facessl.views.augment import Augment
from facessl.views.normalize import normalize
from facessl.views.supervised import Supervised

#: What all runs of a setting share.
SETTINGS = {
    "cpu": "--image-size 64 --batch-size 128 --threads 1 --workers 0 --backbone resnet18 --backbone.options "
    "{output_stride:8,channels:[32,64,128,192]}",
    "gpu": "--image-size 96 --batch-size 512 --backbone resnet18 --backbone.options {output_stride:8}",
}
_HEADS = "--method.hidden 1024 --method.dim 128"
_EMA = f"{_HEADS} --method.momentum 0.99"
_OPTIM = "--optim.name adamw --optim.lr 1e-3 --optim.reference_batch null --optim.weight_decay 1e-4"
#: Run -> its flags, and how many images it sees on a CPU.
RUNS = {
    "byol": (f"--method byol {_EMA} {_OPTIM}", 600_000),
    "fra-across": ("--config fra/regions-across", 600_000),
    "fra-official": (f"--method fra --method.variant official {_EMA} {_OPTIM}", 600_000),
    "fra-paper": (f"--method fra --method.variant paper {_EMA} {_OPTIM}", 150_000),
    "simclr": (f"--method simclr {_HEADS} {_OPTIM}", 150_000),
    "fra-regions": ("--config fra/regions", 150_000),
    "dino": (
        "--method dino --method.hidden_dim 1024 --method.bottleneck_dim 128 --method.out_dim 1024 "
        f"--method.momentum 0.99 --method.teacher_temp 0.04 --method.warmup_teacher_temp_epochs 0 {_OPTIM} "
        "--optim.final_lr 0 --clip_grad 0",
        150_000,
    ),
}
#: Fractions of the schedule at which weights are kept.
MARKS = 6
_GPU_EPOCHS_OF_600K = 4  # 2.4 million images, 103 epochs of 23,242 faces


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("train", "evaluate", "write"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--images", type=int, help="images of every run, for a try")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many minutes, to be resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--block", default="study", help="name of the block in the page")
    args = parser.parse_args()
    if args.action == "write":
        found = {name: read_scores(args.out / name) for name in (*DESCRIPTORS, "random", *RUNS)}
        found = {name: scores for name, scores in found.items() if scores}
        args.page.write_text(fill(args.page.read_text(), args.block, tables(args.out, found)))
        heads = {name: headline(read_run_folder(args.out / name)) for name in found if name in RUNS}
        (args.out / "study.json").write_text(json.dumps({"runs": heads, "scores": found}))
        return
    if args.data is None or not (args.data / "pretrain").is_dir():
        sys.exit(f"study: --data {args.data} has no folder pretrain/: name the folder of the packs")
    end = time.monotonic() + 60 * args.minutes
    for name in args.only:
        if args.action == "evaluate":
            evaluate_run(args.out / name, args.data)
        elif end > time.monotonic():
            train(name, args, (end - time.monotonic()) / 60)


def train(name: str, args: argparse.Namespace, minutes: float) -> None:
    """One run, or the rest of it; its kept weights are `marks/step-*.ckpt`."""
    out, (flags, images) = args.out / name, RUNS[name]
    images = args.images or images * (_GPU_EPOCHS_OF_600K if args.setting == "gpu" else 1)
    words = f"{SETTINGS[args.setting]} {flags}".split()
    batch = int(words[words.index("--batch-size") + 1])
    saved = max(1, images // batch // MARKS // 5)
    every = 5 * saved
    source = f"webdataset:{args.data.resolve()}/pretrain/*.tar"
    command = [sys.executable, "-m", "facessl", "pretrain", source, *words, "--precision", "bf16"]
    command += ["--out", str(out), "--seed", str(args.seed), "--max-steps", str(every * MARKS)]
    command += ["--checkpoint-every", str(saved), "--log-every", "50", "--monitor.every", str(every)]
    command += ["--max-minutes", str(round(minutes, 2))] + (["--resume"] if (out / "config.yaml").exists() else [])
    stop = threading.Event()
    keeper = threading.Thread(target=keep, args=(out, every, stop))
    keeper.start()
    try:
        subprocess.run([word.replace(",", ", ").replace(":", ": ") if word[0] == "{" else word for word in command])
    finally:
        stop.set()
        keeper.join()


def keep(out: Path, every: int, stop: threading.Event) -> None:
    """Hold on to checkpoints at the marks, of which a run itself keeps the last two."""
    while True:
        ended = stop.wait(1)
        for path in out.glob("checkpoints/step-*.ckpt"):
            kept = out / "marks" / path.name
            if int(path.stem[5:]) % every == 0 and not kept.exists():
                kept.parent.mkdir(exist_ok=True)
                os.link(path, kept)
        if ended:
            return


def evaluate_run(run: Path, data: Path) -> None:
    """Score the kept weights of a run: the last ones by everything, those before by the curve's two protocols."""
    marks = sorted((run / "marks").glob("step-*.ckpt"))
    if not marks:
        print(f"{run}: no weights yet")
        return
    for kind in DESCRIPTORS:
        for name in SCORES.keys() - {_TUNED, *_ON_MAP}:  # their pooled features are their maps
            at = run.parent / kind / "0" / f"{name}.json"
            measured(at, lambda name=name, kind=kind: SCORES[name](Descriptor(kind), data))
    torch.manual_seed(0)
    fresh = build_method(from_dict(checkpoint.read_run(marks[0])["config"])).backbone
    for name, score in SCORES.items():
        measured(run.parent / "random" / "0" / f"{name}.json", lambda score=score: score(fresh, data))
    for mark in marks:
        method = facessl.load_method(mark)
        at = run / "scores" / mark.stem[5:]
        names = SCORES if mark == marks[-1] else ("expression k-NN", "expression linear")
        for name in names:
            measured(at / f"{name}.json", lambda name=name, method=method: SCORES[name](method.backbone, data))
        if mark == marks[-1] and has_regions(method):
            measured(at / "regions.json", lambda method=method: score_regions(method, f"masks-folder:{data}/parsing"))


def measured(path: Path, measure: Callable[[], dict[str, Any]]) -> None:
    """Write what `measure` gives, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = measure()
        path.with_suffix(".part").write_text(json.dumps({**found, "environment": describe()}))
        path.with_suffix(".part").replace(path)
        print(path, {k: v for k, v in found.items() if k in ("name", "value", "interval")}, flush=True)


Score = Callable[[Backbone, Path], dict[str, Any]]


def by_protocol(
    source: str, protocol: Callable[..., Any], labels: str = "all", figure: str = "", **options: Any
) -> Score:
    """A score of the package's own protocols on so many of the training labels, with its numbers image by image.

    `figure`: the score's name, where it is not the headline; without numbers image by image.
    """

    def score(backbone: Backbone, data: Path) -> dict[str, Any]:
        trains = options.get("task") != "verification"
        chooses = protocol is linear and trains and labels == "all"
        found = parts(source.replace("{}", str(data)), need_val=chooses, need_train=trains, labels=labels)
        extra = {"val": found.val} if protocol is linear else {}
        with image_by_image() as each:
            result = protocol(backbone, found.train, found.test, **extra, **options)
        images = {"images": result["n_test"], "training_images": result["n_train"]}
        if figure:
            value = {"name": figure, "value": result[figure], "interval": result[f"{figure}_interval"]}
            return {**value, "better": "higher", "per_image": None, **images}
        return {**result["headline"], "per_image": those_of(result["headline"], each), **images}

    return score


@contextlib.contextmanager
def image_by_image() -> Iterator[list[list[float]]]:
    """What the meters that give results in this block measured on each image."""
    found: list[list[float]] = []
    with contextlib.ExitStack() as stack:
        for meter in (ExpressionMeter, AttributesMeter, AlignmentMeter):

            def result(self: Any, real: Any = meter.result) -> dict[str, Any]:
                found.append(self.per_image().tolist())
                return real(self)

            stack.enter_context(mock.patch.object(meter, "result", result))
        yield found


def those_of(headline: dict[str, Any], each: list[list[float]]) -> list[float] | None:
    """The numbers whose mean the headline is: others are of validation images and baselines. None without meters."""
    if not each:
        return None
    return next(found for found in each if np.isclose(np.mean(found), headline["value"], rtol=1e-6, atol=0))


def fine_tuned_landmarks(backbone: Backbone, data: Path) -> dict[str, Any]:
    """NME of 68 landmarks after ten epochs of the whole network, heatmaps and coordinates."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.safetensors"
        card = backbone_card(backbone, method={"name": "study"}, source=str(data), steps=None, commit="")
        checkpoint.write_backbone(path, backbone.model.state_dict(), card)
        with image_by_image() as each:
            result = facessl.finetune(
                str(path),
                f"landmarks-csv:{data}/landmarks/landmarks.csv?layout=ibug68",
                **{"epochs": 10, "image_size": backbone.image_size, "select": "last", "precision": "bf16"},
                **{"threads": 1, "workers": 0, "out": f"{folder}/run", "log_every": 50},
                task={"name": "alignment", "width": 64, "heatmap_size": 16},
            )
    found = those_of(result["test"]["headline"], each)
    return {**result["test"]["headline"], "per_image": found, "images": len(found or ())}


def parsing(backbone: Backbone, data: Path) -> dict[str, Any]:
    """Mean F1 over 19 classes at 64 x 64 pixels, of a ridge regression from each cell to the classes of its pixels."""
    found = parts(f"masks-folder:{data}/parsing", need_val=False)
    x, y = cells(backbone, found.train)
    classes, side = len(found.train.mask_names), y.shape[1] // x.shape[1]
    mean, spread = x.mean((0, 1, 2)), x.std((0, 1, 2)) + 1e-6
    target = np.eye(classes, dtype=np.float32)[tiles(y, side)]  # (cells, side * side, K)
    fit = Ridge(alpha=100.0).fit(((x - mean) / spread).reshape(-1, x.shape[-1]), target.reshape(len(target), -1))
    x, y = cells(backbone, found.test)
    scores = fit.predict(((x - mean) / spread).reshape(-1, x.shape[-1]))
    predicted = scores.reshape(len(scores), side * side, classes).argmax(2)
    matrix = ConfusionMatrix(classes)
    for one, truth in zip(np.split(predicted, len(y)), np.split(tiles(y, side), len(y)), strict=True):
        matrix.update(one, truth)
    rows = matrix.per_image.reshape(len(matrix), -1)
    value, low, high = interval(mean_f1(matrix.total()), mean_f1(resampled(rows, classes)))
    head = {"name": "mean_f1", "value": value, "interval": [low, high], "better": "higher"}
    return {**head, "confusion": rows.tolist(), "images": len(matrix)}


def tiles(y: np.ndarray, side: int) -> np.ndarray:
    """(M, S, S) classes -> (M * cells, side * side), the pixels of each cell of a grid."""
    M, g = len(y), y.shape[1] // side
    return y.reshape(M, g, side, g, side).transpose(0, 1, 3, 2, 4).reshape(M * g * g, side * side)


def resampled(rows: np.ndarray, classes: int) -> np.ndarray:
    """(M, K * K) confusion matrices of images -> those of a thousand resamples, the same ones for every method."""
    return resampled_sums(rows).reshape(-1, classes, classes)


def cells(backbone: Backbone, source: Any) -> tuple[np.ndarray, np.ndarray]:
    """(M, h, w, C) feature maps and (M, 64, 64) classes of a source with masks."""
    view = Supervised(Augment(), backbone.image_size, train=False)
    features, masks = [], []
    for batch in EvalLoader(source, view, batch_size=64):
        with evaluating(backbone):
            found = backbone.forward_features(normalize(batch.views[0], backbone.mean, backbone.std)).float()
        features.append(found.permute(0, 2, 3, 1).numpy())
        mask = torch.nn.functional.interpolate(batch.mask[:, None].float(), size=64, mode="nearest-exact")
        masks.append(mask[:, 0].long().numpy())
    return np.concatenate(features), np.concatenate(masks)


_TUNED = "landmarks, fine-tuned"
_ON_MAP = ("expression linear, on the map", "CelebA attributes, linear on the map")
SCORES: dict[str, Score] = {
    "expression k-NN": by_protocol("{}/expression", knn),
    "expression linear": by_protocol("{}/expression", linear),
    **{
        f"expression linear, {percent} % of the labels": by_protocol("{}/expression", linear, labels=f"{percent}%")
        for percent in ("0.5", "1", "5", "10", "50")
    },
    "expression linear, mean over classes": by_protocol("{}/expression", linear, figure="mean_class_accuracy"),
    _ON_MAP[0]: by_protocol("{}/expression", linear, features="map"),
    "CelebA attributes, linear": by_protocol("labels-csv:{}/attributes/celeba/attributes.csv?attributes=*", linear),
    _ON_MAP[1]: by_protocol("labels-csv:{}/attributes/celeba/attributes.csv?attributes=*", linear, features="map"),
    "landmarks, linear": by_protocol(
        "landmarks-csv:{}/landmarks/landmarks.csv?layout=ibug68", linear, task="alignment"
    ),
    _TUNED: fine_tuned_landmarks,
    "parsing, linear": parsing,
    "verification": by_protocol(
        "pairs-csv:{}/verification/pairs.csv?root={}/attributes/celeba", linear, task="verification"
    ),
}


def read_scores(run: Path) -> dict[int, dict[str, Any]]:
    """Steps -> scores by name."""
    at = run if run.name in ("random", *DESCRIPTORS) else run / "scores"
    return {
        int(folder.name): {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        for folder in sorted(at.glob("*"))
    }


def tables(out: Path, found: dict[str, dict[int, Any]]) -> str:
    """The runs, scores of the last weights, paired differences against HOG, random weights and BYOL, and the curves."""
    last = {name: scores[max(scores)] for name, scores in found.items()}
    folders = {name: read_run_folder(out / name) for name in found if name in RUNS}
    seen = {name: images_seen(folder) for name, folder in folders.items()}
    titles = DESCRIPTORS | {"random": "random weights"} | {name: f"{name} ({n:,} images)" for name, n in seen.items()}
    rows = [["run", "images", "images/s (median)", "commit", "machine"]]
    for name, folder in folders.items():
        head, where = headline(folder), folder.environment
        machine = where["gpu"] or f"{where['processor']}, {where['cores']} core(s)"
        rows.append([name, f"{seen[name]:,}", f"{head['images_per_second']:.0f}", str(head["commit"]), machine])
    text = table(rows)
    rows = [["score", *(titles[name] for name in found)]]
    rows += [[score, *(cell(last[name].get(score)) for name in found)] for score in SCORES]
    text += "\n\n" + table(rows)
    for base in ("hog", "random", "byol"):
        if base in found:
            # Beside BYOL only runs that have seen as many images.
            runs = [name for name in seen if name != base and (base != "byol" or seen[name] == seen[base])]
            text += paired(last, runs, base, titles[base])
    rows = [["run", "score", *(f"{k}/{MARKS}" for k in range(1, MARKS + 1))]]
    for name in seen:
        for score in ("expression k-NN", "expression linear"):
            cells_of = [f"{one[score]['value']:.3f}" for _, one in sorted(found[name].items()) if score in one]
            rows.append([titles[name], score, *(cells_of + ["-"] * MARKS)[:MARKS]])
    return f"{text}\n\nOver the course of each run:\n\n{table(rows)}"


def paired(last: dict[str, Any], runs: list[str], base: str, title: str) -> str:
    """Heading and table of the differences between runs and one baseline, of the scores that both have per image."""
    rows = [["score", *runs]]
    for score in SCORES:
        row = [difference(last[name].get(score), last[base].get(score)) for name in runs]
        if any(one != "-" for one in row):
            rows.append([score, *row])
    head = f"Difference from {title}, paired, 95 % bootstrap intervals (bold: better; landmarks: lower is better):"
    return f"\n\n{head}\n\n{table(rows)}" if len(rows) > 1 else ""


def images_seen(run: RunFolder) -> int:
    """Images that the last kept weights of a run have seen."""
    marks = (run.path / "marks").glob("step-*.ckpt")
    return max((int(mark.stem[5:]) for mark in marks), default=0) * run.config["batch_size"]


def cell(score: dict[str, Any] | None) -> str:
    return "-" if score is None else "{:.3f} [{:.3f}, {:.3f}]".format(score["value"], *score["interval"])


def difference(a: dict[str, Any] | None, b: dict[str, Any] | None) -> str:
    """a - b; bold where the interval leaves 0 out on the better side."""
    if a is None or b is None:
        return "-"
    if "confusion" in a:
        first, second = (np.array(one["confusion"]) for one in (a, b))
        classes = int(first.shape[1] ** 0.5)
        spread = mean_f1(resampled(first, classes)) - mean_f1(resampled(second, classes))
        found = interval(a["value"] - b["value"], spread)
    elif a["per_image"] is None:
        return "-"
    else:
        found = bootstrap_mean(np.array(a["per_image"], float) - np.array(b["per_image"], float))
    text = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    better = found.low > 0 if a["better"] == "higher" else found.high < 0
    return f"**{text}**" if better else text


if __name__ == "__main__":
    main()
