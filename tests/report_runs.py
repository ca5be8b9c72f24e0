"""Run folders of both kinds as the report reads them, and a reader of its pages."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from facessl.metrics.multilabel import attribute_scores
from facessl.metrics.nme import landmark_scores
from facessl.metrics.segmentation import ConfusionMatrix, parsing_scores
from facessl.tasks.expression import ExpressionMeter

CONFIG = {
    "source": "folder:/data/faces",
    "image_size": 64,
    "batch_size": 32,
    "backbone": {"name": "resnet18"},
    "method": {"name": "fra", "num_regions": 8},
}


def write_run(folder: Path, *, spread: float = 0.4, sharp: float = 0.5, lr: float = 0.1) -> Path:
    """A run of 100 steps: a log line each 10, a measurement each 50."""
    (folder / "regions").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "optim": {"lr": lr}}))
    (folder / "environment.json").write_text(json.dumps({"commit": "0123456789ab", "versions": {"torch": "2.11.0"}}))
    (folder / "skipped.csv").write_text("key,reason\na/1.jpg,it begins with <script>alert(1)</script>\n")
    plain = ["step", "epoch", "images", "seconds", "loss", "relation", "lr", "momentum", "images_per_second"]
    watched = ["embedding_std", "usage_entropy", "sharpness", "knn_accuracy", "knn_accuracy_low", "knn_accuracy_high"]
    columns = [*plain, "data_wait", *(f"monitor/{w}" for w in watched)]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for step in range(0, 101, 10):
            head = {"step": step, "epoch": step / 20, "images": step * 32, "seconds": step * 2}
            if step % 50 == 0:
                share = 0.3 + step / 1000
                values = [0.2 + (spread - 0.2) * step / 100, 6, sharp, share, share - 0.02, share + 0.02]
                writer.writerow(head | {f"monitor/{w}": v for w, v in zip(watched, values, strict=True)})
                picture = Image.new("RGB", (400, 100), "white")
                picture.save(folder / "regions" / f"step-{step:08d}.png")
            if step:
                terms = {"loss": 2 - step / 100, "relation": 2.08, "lr": 0.1, "momentum": 0.99}
                writer.writerow(head | terms | {"images_per_second": 16, "data_wait": 0.05})
    picture.save(folder / "regions.png")
    return folder


class Page(HTMLParser):
    """Text, headings and every address of a page; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []
        self.headings: list[str] = []
        self.titles: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "img", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img", "path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open[-2:] == ["figcaption", "b"]:
            self.titles.append(data)
        if "style" not in self.open:
            self.text += data.replace("\u00a0", " ") + " "


# ---- runs of facessl finetune

NAMES = ("angry", "calm", "glad")


def expression() -> dict[str, Any]:
    """What the meter of the expression task says of 60 synthetic faces in two groups."""
    target = np.arange(60) % 3
    predicted = np.where(np.arange(60) % 5 == 0, 0, target)
    meter = ExpressionMeter(NAMES, SimpleNamespace(label_names=NAMES, group_names=("women", "<b>men</b>"), subsets={}))  # type: ignore[arg-type]
    batch = SimpleNamespace(index=torch.arange(60), group=torch.arange(60) % 2, label=torch.from_numpy(target))
    meter.add({"probabilities": torch.eye(3)[predicted]}, batch)  # type: ignore[arg-type]
    return meter.result() | {"skipped": 0}


def alignment() -> dict[str, Any]:
    errors = np.linspace(0.01, 0.12, 50)
    found = landmark_scores(errors, unit="interocular", thresholds=(0.1,))
    name = "nme_interocular"
    line = {"name": name, "value": found[name], "interval": found[f"{name}_interval"], "better": "lower"}
    subset = {"images": 9, name: 0.0812, f"{name}_interval": [0.07, 0.09]}
    return {"headline": line, **found, "subsets": {"pose": subset}, "images": 50}


def parsing() -> dict[str, Any]:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 1], [1, 1]]), np.array([[0, 1], [1, 0]]))
    found = parsing_scores(matrix, names=("background", "skin", "hat"))
    line = {"name": "mean_f1", "value": found["mean_f1"], "interval": found["mean_f1_interval"], "better": "higher"}
    return {"headline": line, **found}


def attributes() -> dict[str, Any]:
    target = np.arange(80).reshape(40, 2) % 3 == 0
    found = attribute_scores(target * 0.9, target, names=("Hat", "Smile"))
    name = "mean_accuracy"
    line = {"name": name, "value": found[name], "interval": found[f"{name}_interval"], "better": "higher"}
    return {"headline": line, **found}


def write_tuned(folder: Path, test: dict[str, Any], *, task: str = "expression", select: str = "val") -> Path:
    folder.mkdir(parents=True)
    settings = {k: v for k, v in CONFIG.items() if k != "method"} | {"run": "runs/mine", "labels": "10%"}
    settings |= {"task": {"name": task}, "protocol": "finetune", "frozen": False, "select": select}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "status.json").write_text(json.dumps({"finished": True, "steps": 40}))
    (folder / "model.json").write_text(json.dumps({"labels": {"label_names": NAMES}}))
    rows = ["step,seconds,epoch,images,loss,coordinate,lr,monitor/val_accuracy"]
    rows += [f"{s},{s},{s / 20},{s * 32},{2 - s / 100},1.5,0.1,{s / 100}" for s in range(10, 41, 10)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    selected = {"step": 30, "by": select} | ({"name": "accuracy", "value": 0.3} if select != "last" else {})
    place = folder / "examples"
    place.mkdir()
    shown = {"keys": ["/data/faces/7.jpg"], "label": "glad", "prediction": "calm", "measure": "probability"}
    listed = {}
    for kind, value in (("worst", 0.9), ("typical", 0.4)):
        Image.new("RGB", (400, 320)).save(place / f"{kind}-01.jpg")
        listed[kind] = [{"file": f"{kind}-01.jpg", **shown, "value": value}]
    (place / "examples.json").write_text(json.dumps(listed))
    results = {"task": task, "protocol": "finetune", "selected": selected, "train_images": 219, "test": test}
    (folder / "results.json").write_text(json.dumps(results))
    return folder
