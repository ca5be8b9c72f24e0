"""Every reader of bytes that somebody else wrote: a valid file, and the call that reads it."""

import contextlib
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from facessl.config import commands, parse
from facessl.core.checkpoint import FORMAT
from facessl.data.decode import decode, decode_mask, pixels, stored_size
from facessl.data.skipped import ImageError
from facessl.data.source import open_source
from facessl.models.backbone import Backbone
from facessl.pretrained.load import backbone_card, build_method, load_method, open_backbone
from facessl.report.write import report
from facessl.tools.pack import pack
from facessl.tools.shards import verify
from facessl.training.metrics_log import MetricsLog
from tests import report_runs
from tests.contract.test_sources import EXAMPLES
from tests.data.layouts_marks import w300_tables
from tests.helpers import TINY

SMALL = "test_resnet"  # 2 MB


class Case(NamedTuple):
    """`read` reads `file`; what is mutated is `valid`, which `wrap` brings into the file's form (its checksums)."""

    file: Path
    read: Callable[[], object]
    valid: bytes
    wrap: Callable[[bytes], bytes] = bytes


def image(kind: str, root: Path, *, mode: str = "RGB", **options: Any) -> Case:
    file = root / "x"
    Image.fromarray(np.arange(480, dtype=np.uint8).reshape(24, 20)).convert(mode).save(file, kind, **options)

    def read() -> None:
        for call in (decode, partial(decode, min_side=8), stored_size, decode_mask):
            with contextlib.suppress(ImageError):
                call(file.read_bytes(), key="x")

    return Case(file, read, file.read_bytes())


def source(name: str, file: str, root: Path, *, options: str = "") -> Case:
    spec = (w300_tables if name == "w300-tables" else EXAMPLES[name])(root) + options

    def read() -> None:
        opened = open_source(spec)
        if opened.streaming:
            for sample in opened.stream(seed=None, epoch=0, rank=0, world_size=1):  # type: ignore[attr-defined]
                pixels(sample)
        for at in range(0 if opened.streaming else min(len(opened), 12)):
            with contextlib.suppress(ImageError):
                pixels(opened[at])

    return Case(root / file, read, (root / file).read_bytes(), tar if file.endswith(".tar") else bytes)


def packed(file: str, root: Path) -> Case:
    """A file that `pack` wrote, and reads to go on."""
    spec, out = EXAMPLES["pairs_csv"](root / "set"), root / "out"
    pack(spec, out, shard_size=4, workers=0)

    def read() -> None:
        if file == "pack.json":
            verify(out)
            pack(spec, out, shard_size=4, workers=0)
        pixels(open_source(f"webdataset:{out}?cache=false")[0])

    return Case(out / file, read, (out / file).read_bytes(), tar if file.endswith(".tar") else bytes)


def tar(data: bytes) -> bytes:
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for i, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            blocks[i] = block[:148] + b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:])) + block[156:]
    return b"".join(blocks)


def exported(part: str, root: Path) -> Case:
    """A backbone's card, in its safetensors or beside them, or the header of safetensors without a card."""
    backbone, file = Backbone(SMALL, image_size=32), root / "backbone.safetensors"
    state = dict(backbone.model.state_dict())
    card = json.dumps(backbone_card(backbone, method={"name": "fra"}, source="faces", steps=1, commit="")).encode()
    if part == "card":
        wrap = lambda text: save(state, metadata={"card": text.decode("utf-8", "replace")})  # noqa: E731
        return Case(file, partial(open_backbone, file), card, wrap)
    data = save(state)
    file.write_bytes(data)
    if part == "backbone.json":
        return Case(file.with_suffix(".json"), partial(open_backbone, file), card)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    wrap = lambda head: struct.pack("<Q", len(head)) + head + data[end:]  # noqa: E731
    return Case(file, partial(open_backbone, file, name=SMALL), data[8:end], wrap)


def checkpoint(name: str, root: Path) -> Case:
    """Ours (.ckpt) or as authors publish them."""
    file, read = root / name, partial(open_backbone, root / name, name=SMALL)
    state = {"state_dict": dict(Backbone(SMALL).model.state_dict()), "epoch": 3, "arch": SMALL}
    if name == "x.ckpt":
        config, read = parse.parse([*TINY, "--backbone", SMALL]), partial(load_method, file)  # type: ignore[arg-type]
        weights = build_method(config).state_dict()  # type: ignore[attr-defined]
        state = {"format": FORMAT, "step": 1, "config": config.to_dict(), "method": weights}
    torch.save(state, file)
    return Case(file, read, file.read_bytes())


def recipe(command: commands.Command, root: Path) -> Case:
    words = ["--config", str(root / "r.yaml"), *(["none", "faces"] if command is commands.FINETUNE else [])]
    values: dict[str, Any] = {"task": {"name": "expression"}, "labels": "10%", "optim": {"lr": 0.1}}
    if command is commands.PRETRAIN:
        values = {"method": {"name": "fra", "num_regions": 8}, "views": [{"scale": [0.2, 1.0]}] * 2, "batch_size": 32}
    return Case(root / "r.yaml", lambda: parse.parse(words, command=command), yaml.safe_dump(values).encode())


def resumed(file: str, root: Path) -> Case:
    words = ["--resume", "--out", str(root)]
    if file == "config.yaml":
        text = yaml.safe_dump(parse.parse([*TINY, "--out", str(root)]).to_dict())
        return Case(root / file, lambda: parse.parse(words), text.encode())
    return Case(root / file, lambda: MetricsLog(root).cut_after(1, {}), b"step,seconds,loss\n1,0.5,2.5\n2,1.0,2.25\n")


def reported(file: str, root: Path) -> Case:
    """A file of a run folder, or what `probe --out` wrote."""
    path = root / "run" / file
    if tuned := file in ("results.json", "model.json", "probe.json"):
        report_runs.write_tuned(root / "run", report_runs.expression())
        path.with_name("probe.json").write_text('{"source": "x", "protocol": "knn", "accuracy": 0.5, "subsets": {}}')
    else:
        report_runs.write_run(root / "run")
    path.with_name("metrics.csv").write_text("step,loss\n1,2.5\n2,2.25\n")  # charts take most of the time
    given = path if file == "probe.json" else path.parent
    return Case(path, partial(report, [given], compare="paper" if tuned else None), path.read_bytes())


_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
_SOURCES = {
    "aflw19": "AFLWinfo_release.mat", "affectnet": "Manually_Annotated_file_lists/training.csv",
    "celeba": "list_attr_celeba.txt", "celebamaskhq": "CelebA-HQ-to-CelebA-mapping.txt", "fer2013": "fer2013.csv",
    "ferplus": "data/FER2013Train/label.csv", "imagelist": "list.csv", "labels_csv": "table.csv",
    "laionface": "split_00000/00000.tar", "landmarks_csv": "faces.csv", "lapa": "train/labels/face0.png",
    "lfw": "pairs.txt", "masks_folder": "classes.txt", "pairs_csv": "pairs.csv",
    "points": "train/a/face0.pts",
    "rafdb": "EmoLabel/list_patition_label.txt", "w300": "afw/a_1.pts", "w300-tables": "face_landmarks_300w_train.csv",
    "wflw": "face_landmarks_wflw_train.csv",
}  # fmt: skip
_RUN = ("config.yaml", "metrics.csv", "skipped.csv", "environment.json", "results.json", "model.json", "probe.json")

#: Reader -> its case, made in an empty folder.
READERS: dict[str, Callable[[Path], Case]] = {
    **{kind.lower(): partial(image, kind) for kind in ("PNG", "WEBP", "BMP", "GIF")},
    "jpeg": partial(image, "JPEG", progressive=True, exif=_EXIF),
    "cmyk jpeg": partial(image, "JPEG", mode="CMYK"),
    "palette png": partial(image, "PNG", mode="P"),
    **{name: partial(source, name, file) for name, file in _SOURCES.items()},
    "webdataset": partial(source, "webdataset", "s-000.tar", options="?cache=false"),
    "webdataset stream": partial(source, "webdataset", "s-000.tar", options="?streaming=true"),
    **{f"pack {file}": partial(packed, file) for file in ("pack.json", "traits.json", "shard-000000.tar")},
    **{part: partial(exported, part) for part in ("card", "backbone.json", "safetensors")},
    **{f"checkpoint {name}": partial(checkpoint, name) for name in ("x.ckpt", "x.pth")},
    **{f"recipe of {command.name}": partial(recipe, command) for command in (commands.PRETRAIN, commands.FINETUNE)},
    **{f"resume {file}": partial(resumed, file) for file in ("config.yaml", "metrics.csv")},
    **{f"report {file}": partial(reported, file) for file in _RUN},
}
