"""Embedding into a file: by several ranks that of one process, and a stopped command goes on."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from facessl.cli import main
from facessl.core import checkpoint
from facessl.core.errors import ConfigError, DataError
from facessl.data.source import open_source
from facessl.inference import embed_file
from facessl.inference.embed import embedding_batches, embeddings, load_embedder
from facessl.inference.embed_file import embed_to_file
from facessl.inference.embedding_formats import write_embeddings
from facessl.models.backbone import Backbone
from facessl.pretrained.load import backbone_card
from tests.helpers import as_ranks


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`embed` without its --out, in its folder: a tiny network, 40 images in two classes, one of them unreadable."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", image_size=32).eval()
    card = backbone_card(backbone, method={"name": "byol"}, source="faces", steps=1, commit="")
    checkpoint.write_backbone(tmp_path / "net.safetensors", backbone.model.state_dict(), card)
    rng = np.random.default_rng(0)
    for i in range(40):
        file = tmp_path / "faces" / "ab"[i % 2] / f"{i:02d}\udce9.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(file)
    (tmp_path / "faces" / "b" / "03\udce9.png").write_text("no image")
    return ["embed", "net.safetensors", "faces", "--batch-size", "5", "--workers", "0", "--device", "cpu"]


def test_killed_ranks_go_on_as_fewer_and_write_the_file_of_one_process(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    network, source = load_embedder(tmp_path / "net.safetensors"), open_source(str(tmp_path / "faces"))
    write_embeddings(tmp_path / "one.parquet", embedding_batches(network, source, batch_size=5))
    fatal, real = [25], embed_file.embedding_batches

    def told(*args: Any, batches: Any, **options: Any) -> Any:
        def each() -> Iterator[Any]:
            for positions in batches:
                print("embedding", positions[0], file=sys.stderr)
                if positions[0] in fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield positions

        return real(*args, batches=each(), **options)

    monkeypatch.setattr(embed_file, "embedding_batches", told)
    words += ["--out", "out.parquet"]
    assert -signal.SIGKILL in as_ranks(lambda: main(words), 4)
    assert not (tmp_path / "out.parquet").exists()
    done = {int(block.name) for block in tmp_path.glob(".out.parquet.*.parts/*") if block.name.isdecimal()}
    assert 20 in done
    fatal.clear()
    capfd.readouterr()
    assert as_ranks(lambda: main(words), 2) == [0, 0]
    out, err = capfd.readouterr()
    assert {int(start) for start in re.findall(r"embedding (\d+)", err)} == {*range(0, 40, 5)} - done
    (line,) = out.splitlines()
    assert '"images": 39, "skipped": 1' in line
    assert err.count("skipped faces/b") == 1
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "out"))
    assert two.schema.equals(one.schema, check_metadata=True)
    columns = [[Path(path).name for path in table["path"].to_pylist()] for table in (one, two)]
    assert columns[0] == columns[1]
    assert two["label_name"].equals(one["label_name"])
    np.testing.assert_allclose(np.stack(two["embedding"].to_numpy()), np.stack(one["embedding"].to_numpy()), atol=1e-6)
    assert not list(tmp_path.glob(".out*"))


def test_too_many_unreadable_images_are_counted_over_all_blocks(words: list[str], tmp_path: Path) -> None:
    source = open_source(str(tmp_path / "faces"))
    network = load_embedder(tmp_path / "net.safetensors")
    (tmp_path / "faces" / "b" / "39\udce9.png").write_text("no image")
    with pytest.raises(DataError, match="2 images of 40 cannot be read, more than the 1 that max_bad allows"):
        embed_to_file(tmp_path / "x.npy", network, source, max_bad=0.025, batch_size=5)
    assert not list(tmp_path.glob("x.*"))
    assert embed_to_file(tmp_path / "x.npy", network, source, max_bad=0.05, batch_size=5)[0] == 38  # type: ignore[index]
    assert len(np.load(tmp_path / "x.npy")) == 38


@pytest.mark.fault(
    "A6", "a block of several ranks kept it as unreadable, and the same error came after each correction"
)
def test_a_corrected_image_and_a_lost_block_are_embedded_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tmp_path / "faces"))
    network = load_embedder(tmp_path / "net.safetensors")
    bad = tmp_path / "faces" / "b" / "37\udce9.png"
    image = bad.read_bytes()
    bad.write_bytes(bytes(len(image)))  # of equal length, and not one of the images that the fingerprint looks at
    with pytest.raises(DataError, match="2 images of 40 cannot be read"):
        embed_to_file(tmp_path / "x.npy", network, source, max_bad=0.025, batch_size=5)
    bad.write_bytes(image)
    embedded = []
    real = embed_file.embedding_batches

    def told(*args: Any, batches: Any, **options: Any) -> Any:
        return real(*args, batches=(embedded.append(batch[0]) or batch for batch in batches), **options)

    monkeypatch.setattr(embed_file, "embedding_batches", told)
    lost = next(tmp_path.glob(".x.npy.*.parts")) / f"{0:012d}"
    lost.write_bytes(lost.read_bytes()[:-100])  # a machine that lost power before its disk had all of it
    counted: list[tuple[int, int]] = []
    options: dict[str, Any] = {"batch_size": 5, "progress": lambda *done: counted.append(done)}
    assert embed_to_file(tmp_path / "x.npy", network, source, max_bad=0.025, **options)[0] == 39  # type: ignore[index]
    assert embedded == [0, 30, 35]
    assert counted[-1] == (40, 40)  # with the blocks that were there
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), embeddings(network, source).array, atol=1e-6)
    assert not list(tmp_path.glob(".x*"))


@pytest.mark.fault("E6", "blocks beside the file were trusted: foreign rows were taken, a link was followed")
@pytest.mark.parametrize(
    "values",
    [{}, [], {"labels": None, "skipped": 5}, {"labels": [0], "skipped": []}, "deep", None],
)
def test_what_lies_beside_the_file_is_checked(
    values: Any, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, source, out = load_embedder("net.safetensors"), open_source("faces/a"), tmp_path / "e.parquet"
    with monkeypatch.context() as kept:
        kept.setattr("shutil.rmtree", lambda *_, **__: None)
        embed_to_file(out, network, source)
    (folder,) = tmp_path.glob(".e.parquet.*.parts")
    whole = pq.read_table(out)
    if values is None:
        folder.rename(tmp_path / "victim")
        folder.symlink_to(tmp_path / "victim")
        with pytest.raises(ConfigError, match="is a link"):
            embed_to_file(out, network, source)
        return
    first, head, rest = (folder / f"{0:012d}").read_bytes().split(b"\n", 2)
    changed = 5000 * b"[" if values == "deep" else json.dumps({**json.loads(head), "values": values}).encode()
    (folder / f"{0:012d}").write_bytes(b"\n".join([first, changed, rest]))
    embed_to_file(out, network, source)
    assert pq.read_table(out).equals(whole)


@pytest.mark.fault("E6", "a block with a foreign position, a repeated one or an unknown class ended in a traceback")
@pytest.mark.parametrize(
    ("positions", "unreadable", "labels"),
    [
        ([0, 1, 2, 3, 4, 999], [], 6 * [0]),
        ([0, 1, 2, 3, 4, 4], [], 6 * [0]),
        ([0, 1, 2, 3, 4, 7], [], 6 * [0]),
        ([0, 1, 2, 3, 4], [999], 4 * [0]),
        ([0, 1, 2, 3, 4], [], 5 * [999]),
        ([0, 1, 2, 3, 4], [], 5 * [-2]),
        ([0, 1, 2, 3, 4], [], None),
    ],
)
def test_a_block_that_does_not_fit_the_source_is_computed_again(
    positions: list[int], unreadable: list[int], labels: Any, words: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    network, source = load_embedder(tmp_path / "net.safetensors"), open_source(str(tmp_path / "faces"))
    with monkeypatch.context() as kept:
        kept.setattr("shutil.rmtree", lambda *_, **__: None)
        embed_to_file(tmp_path / "e.parquet", network, source, batch_size=5)
    whole = pq.read_table(tmp_path / "e.parquet")
    block = next(tmp_path.glob(".e.parquet.*.parts")) / f"{0:012d}"
    first, head, _ = block.read_bytes().split(b"\n", 2)
    size = 4 * network.num_features * (len(positions) - len(unreadable))
    values = {"labels": labels, "skipped": [["key", "reason"] for _ in unreadable]}
    record = {"positions": positions, "unreadable": unreadable, "values": values, "sizes": [size]}
    assert json.loads(head).keys() == record.keys()
    block.write_bytes(b"\n".join([first, json.dumps(record).encode(), bytes(size) + b"null\n"]))
    embed_to_file(tmp_path / "e.parquet", network, source, batch_size=5)
    assert pq.read_table(tmp_path / "e.parquet").equals(whole)
