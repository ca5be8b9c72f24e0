"""Search, groups and their pictures."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import facessl
from facessl.cli.main import main
from facessl.core import checkpoint, escape
from facessl.core.errors import ConfigError, DataError
from facessl.inference.embed import embeddings
from facessl.inference.embedding_formats import Embeddings, read_embeddings, write_embeddings
from facessl.inference.groups import Groups, group, principal_components, write_groups
from facessl.inference.neighbors import l2_normalize, nearest, search
from facessl.models.backbone import Backbone
from facessl.pretrained.load import backbone_card
from tests.data.test_detect import photo

ODD = "caf\udce9\x1b]0;a\x07=<b>.png"


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone("test_resnet", image_size=32).eval()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Seven pictures of noise."""
    (tmp_path / "faces").mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"{i}.png" for i in range(6)), ODD):
        pixels = rng.integers(0, 256, (6, 5, 3)).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "faces" / name)
    return tmp_path / "faces"


def clusters(sizes: tuple[int, ...], noise: int = 0) -> Embeddings:
    """Tight clusters of these sizes in 16 dimensions, of different lengths, and rows that belong to none."""
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((len(sizes), 16))
    rows = [c + 0.01 * rng.standard_normal((n, 16)) for c, n in zip(centers, sizes, strict=True)]
    array = np.concatenate([*rows, rng.standard_normal((noise, 16))]) * rng.uniform(0.5, 2, (sum(sizes) + noise, 1))
    return Embeddings(array.astype(np.float32), [f"{i}.png" for i in range(len(array))], np.arange(len(array)))


@pytest.mark.parametrize("k", [1, 5, 9])
def test_nearest_is_the_slow_way_and_equal_rows_keep_their_order(k: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((7, 4)).astype(np.float32)
    rows[5] = 4 * rows[1]  # the same direction
    rows[6] = 0
    distances, chosen = nearest(l2_normalize(rows[:2]), l2_normalize(rows), k)
    for i in range(2):
        away = [1 - a @ rows[i] / max(np.linalg.norm(a), 1e-9) / np.linalg.norm(rows[i]) for a in rows]
        order = sorted(range(7), key=lambda j: (round(away[j], 5), j))[:k]
        assert chosen[i].tolist() == order
        np.testing.assert_allclose(distances[i], np.array(away)[order], atol=1e-6)
    np.testing.assert_allclose(l2_normalize(np.array([[3e38, 4e-38], [1e-30, 0]])), [[1, 0], [1, 0]], atol=1e-6)


def test_search_finds_the_photo_itself_by_every_name(
    faces: Path, backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "backbone.safetensors"
    card = backbone_card(backbone, method={"name": "byol"}, source="faces", steps=1, commit="")
    checkpoint.write_backbone(run, backbone.model.state_dict(), card)
    file = tmp_path / "e.csv"
    assert main(["embed", str(run), str(faces), "--out", str(file), "--workers", "0"]) == 0
    (faces / "0.png").unlink()
    (faces / "1.png").write_text("no image")
    out = tmp_path / "sheet.png"
    capsys.readouterr()
    assert main(["search", str(run), str(faces / ODD), str(file), "--k", "99", "--out", str(out)]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)["neighbors"]
    assert (len(told), len(table)) == (7, 8)
    assert told[0] == {"path": escape.printable(str(faces / ODD)), "distance": 0.0}
    assert table[1].endswith(told[0]["path"])
    assert table[1].isprintable()
    assert Image.open(out).size == (7 * 138 + 10, 2 * (138 + 34) + 10)  # the query and 7, in two rows
    assert facessl.search(run, faces / "3.png", file, k=2).paths[0] == str(faces / "3.png")
    for other in (Backbone("test_resnet", image_size=64), Backbone("test_resnet", image_size=32, mean=(0, 0, 0))):
        other.model.load_state_dict(backbone.model.state_dict())
        with pytest.raises(ConfigError, match=r"e\.csv was made with another network"):
            search(other.eval(), faces / "3.png", file)
    with pytest.raises(ConfigError, match="does not name the network that computed it"):
        search(backbone, faces / "3.png", replace(read_embeddings(file), network=""))
    for name, says in (
        (faces, "is not a file"),
        ("nothere.jpg", "does not exist"),
        (faces / "1.png", "1.png cannot be read"),
    ):
        with pytest.raises(DataError, match=says):
            search(backbone, name, file)


@pytest.mark.fault("C8", "a whole photo was compared with crops, which gave other faces without a word")
def test_the_face_of_a_photo_is_cropped_as_the_rows_were(tmp_path: Path, backbone: Backbone) -> None:
    places = {"a": (60, 30, 200), "b": (240, 20, 220), "c": (10, 60, 160)}
    (tmp_path / "photos").mkdir()
    for index, (name, place) in enumerate(places.items()):
        Image.fromarray(photo(place, index=index)[0]).save(tmp_path / "photos" / f"{name}.png")
    assert facessl.crop(tmp_path / "photos", tmp_path / "crops").faces == 3
    rows = embeddings(backbone, str(tmp_path / "crops"))
    for name in places:
        found = search(backbone, tmp_path / "photos" / f"{name}.png", rows, k=3, crop=True)
        assert found.paths[0] == str(tmp_path / "crops" / f"{name}.jpg")
        assert found.distances[0] < 1e-6
    assert search(backbone, tmp_path / "photos" / "a.png", rows).distances[0] > 1e-5
    Image.fromarray(photo()[0]).save(tmp_path / "empty.png")
    with pytest.raises(DataError, match=r"no face found in .*empty\.png"):
        search(backbone, tmp_path / "empty.png", rows, crop=True)


def test_bf16_embeddings_are_searched_in_bf16(faces: Path, backbone: Backbone) -> None:
    found = search(backbone, faces / "2.png", embeddings(backbone, str(faces), precision="bf16", batch_size=1), k=1)
    assert found.paths == [str(faces / "2.png")]
    assert found.distances[0] < 1e-6


def test_groups_are_the_clusters_by_size() -> None:
    found = group(clusters((6, 11, 8), noise=4), min_cluster_size=5)
    assert found.labels[:25].tolist() == [2] * 6 + [0] * 11 + [1] * 8
    assert found.probabilities[:25].min() > 0.3 > found.probabilities[25:].max()  # a lone face is in none, or barely
    again = group(clusters((6, 11, 8), noise=4), min_cluster_size=5, pca_components=8)
    np.testing.assert_array_equal(again.labels, found.labels)
    shrunk = clusters((8, 8))
    shrunk.array[:8] = (
        shrunk.array[8:] * np.linspace(0.1, 0.2, 8, dtype=np.float32)[:, None]
    )  # one direction, two lengths
    assert len(group(shrunk, metric="euclidean")) == 2
    assert len(group(shrunk, metric="cosine")) < 2


@pytest.mark.parametrize("count", [1, 4, 9])
def test_too_few_images_are_in_no_group(count: int) -> None:
    assert group(clusters((count,)), min_cluster_size=5).labels.tolist() == [-1] * count


def test_the_folder_of_groups_is_rewritten_and_nothing_else(faces: Path, tmp_path: Path) -> None:
    paths = [str(faces / ODD), str(faces / "1.png"), str(tmp_path / "gone.png"), "=a"]
    probabilities = np.array([0.5, 1, 0.25, 0])
    assert write_groups(tmp_path / "out", Groups(paths, np.array([0, 0, 1, -1]), probabilities)) == 0
    assert write_groups(tmp_path / "out", Groups(paths, np.array([0, 0, 0, -1]), probabilities), faces=2) == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["group-000.jpg", "groups.csv"]
    assert Image.open(tmp_path / "out" / "group-000.jpg").width == 2 * 138 + 10
    lines = list(csv.DictReader((tmp_path / "out" / "groups.csv").open()))
    assert [escape.from_csv(line["path"]) for line in lines] == paths
    assert [(line["group"], line["probability"]) for line in lines] == [
        ("0", "0.5"), ("0", "1.0"), ("0", "0.25"), ("-1", "0.0"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="has other files in it"):
        write_groups(faces, Groups(paths, np.full(4, -1), probabilities))


def test_principal_components_are_those_of_the_singular_values() -> None:
    array = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    centered = array - array.mean(0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    found, fraction = principal_components(array, 2)
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :2] * s[:2]), rtol=1e-3, atol=1e-3)
    assert fraction == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-4)
    few, held = principal_components(array[:4], 6)  # fewer images than dimensions
    u, s, _ = np.linalg.svd(array[:4] - array[:4].mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(few[:, :3]), np.abs(u * s)[:, :3], rtol=1e-3, atol=1e-3)
    assert (few.shape, held) == ((4, 6), pytest.approx(1))
    assert not few[:, 3:].any()
    assert principal_components(np.ones((2, 300_000), np.float32), 2)[0].shape == (2, 2)
    alone, fraction = principal_components(array[:1], 8)
    assert (alone.shape, fraction) == ((1, 8), 1.0)
    assert not alone.any()


def test_the_commands_refuse_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.chdir(tmp_path)
    write_embeddings("e.parquet", clusters((3,)))
    for words, says in (
        ("group e.parquet --min-cluster-size 1 --out g", "min_cluster_size = 1 is out of range"),
        ("group e.parquet --pca-components 0 --out g", "pca_components = 0 is out of range"),
        ("group e.parquet --out .", "has other files in it"),
        ("map no.parquet --projection umap --out m.html", "pip install 'facessl[umap]'"),
        ("group no.parquet --out g", "no.parquet does not exist"),
        ("search run a.jpg e.parquet --out x.gif", "must end in .png or .jpg"),
        ("search run a\x1b[2J.jpg e.parquet --out x.png", r"a\x1b[2J.jpg does not exist"),
        ("map e.parquet --out map.txt", "must end in .html"),
        ("map e.parquet --color e.parquet --out map.html", "cannot read the table"),
    ):
        assert main(words.split(" ")) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert says in said
