import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from facessl.cli.main import main
from facessl.core import checkpoint
from facessl.core.errors import CheckpointError, ConfigError, DataError, DataWarning
from facessl.core.files import write_picture
from facessl.data.source import open_source
from facessl.evaluation.features import features
from facessl.inference import trained_task
from facessl.inference.embed import (
    Embeddings,
    embed,
    embedding_batches,
    embeddings,
    load_embedder,
)
from facessl.inference.embedding_formats import write_embeddings
from facessl.inference.predict import predict
from facessl.inference.prediction_pictures import palette
from facessl.inference.region_pictures import region_picture, sample_images, write_regions
from facessl.methods.byol import BYOL
from facessl.methods.fra import FRA
from facessl.models.backbone import Backbone
from facessl.tasks.base import Labels
from facessl.tasks.verification import Verification
from facessl.views.augment import Augment

BAD = 3  # position of the unreadable image in `folder`


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in two classes, image i about 25 * i bright; the fourth is a text file."""
    rng = np.random.default_rng(0)
    for i in range(10):
        place = tmp_path / "faces" / ("a" if i < 5 else "b")
        place.mkdir(parents=True, exist_ok=True)
        if i == BAD:
            (place / f"{i}.png").write_text("no image")
        else:
            pixels = 25 * i + rng.integers(0, 25, (40, 30, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return tmp_path / "faces"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone("test_resnet", image_size=32).eval()


@pytest.fixture(scope="module")
def fra() -> FRA:
    torch.manual_seed(0)
    return FRA(Backbone("test_resnet", image_size=64), hidden=16, dim=8, num_regions=4)


def test_embeddings_are_those_of_the_readable_images_in_order(folder: Path, backbone: Backbone) -> None:
    found = embeddings(backbone, str(folder), batch_size=4)
    files = [path for path in sorted(folder.rglob("*.png")) if path.name != f"{BAD}.png"]
    assert found.keys == [str(path) for path in files]
    with torch.no_grad():
        expected = torch.cat([backbone(backbone.preprocess(path)) for path in files])
    np.testing.assert_allclose(found.array, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert found.index.tolist() == [i for i in range(10) if i != BAD]
    assert found.labels.tolist() == [0] * 4 + [1] * 5
    assert [key for key, _ in found.skipped] == [str(folder / "a" / f"{BAD}.png")]


def test_embed_says_which_images_have_no_row(folder: Path, backbone: Backbone) -> None:
    said = rf"^1 of 10 images could not be read and has no row \(the first: .*{BAD}\.png: .*\): facessl\.embeddings\("
    with pytest.warns(DataWarning, match=said):
        assert len(embed(backbone, str(folder))) == 9
    (folder / "a" / f"{BAD}.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(embed(backbone, str(folder))) == 9


@pytest.mark.fault("A12", "`embed` and `probe` of a run of verification took the backbone's output, cosine -0.05")
def test_a_run_of_verification_embeds_as_it_predicts(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    task = Verification(Backbone("test_resnet", image_size=32), Labels(identities=3), dim=24)
    settings = {"task": {"name": "verification", "dim": 24}, "protocol": "finetune", "image_size": 32}
    card = trained_task.card(
        task, Labels(identities=3), {**settings, "run": "none", "source": "s"}, Augment(), steps=1, commit=""
    )
    checkpoint.write_backbone(tmp_path / "run" / "model.safetensors", task.state_dict(), card)
    checkpoint.write_backbone(
        tmp_path / "run" / "backbone.safetensors",
        task.backbone.model.state_dict(),
        card | {"format": "facessl-backbone-1"},
    )
    embedder = load_embedder(tmp_path / "run")
    found = embeddings(embedder, str(folder))
    assert found.array.shape == (9, 24)
    predicted = predict(tmp_path / "run", found.keys, crop=False, draw=False, out=tmp_path / "out")
    again = np.array([photo.faces[0]["embedding"] for photo in predicted])
    np.testing.assert_allclose((found.array * again).sum(1), 1, atol=1e-4)
    assert (
        main(["embed", str(tmp_path / "run"), str(folder), "--out", str(tmp_path / "e.parquet"), "--max-bad", "1"]) == 0
    )
    assert pq.read_table(tmp_path / "e.parquet")["embedding"].type.list_size == 24
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["probe", str(tmp_path / "run"), "synthetic:?n=40&size=40", "--protocol", "linear"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["dimensions"] == 24
    kept = features(embedder, open_source(str(folder)), augment=embedder.augment)
    np.testing.assert_array_equal(kept.array, found.array)
    for field, value, said in (("labels", {"points": "x"}, "labels.points is 'x'"), ("augment", {"x": 1}, "field x")):
        checkpoint.write_backbone(tmp_path / "model.safetensors", task.state_dict(), card | {field: value})
        with pytest.raises(CheckpointError, match=said):
            trained_task.load_trained(tmp_path / "model.safetensors")


@pytest.mark.parametrize("batch_size", [4, 3, 1], ids=["in a batch", "at a batch's start", "alone in its batch"])
def test_a_skipped_image_is_reported_once(folder: Path, backbone: Backbone, batch_size: int) -> None:
    parts = embedding_batches(backbone, open_source(str(folder)), batch_size=batch_size)
    assert len([pair for part in parts for pair in part.skipped]) == 1


def test_a_source_without_a_readable_image_is_refused(folder: Path, backbone: Backbone) -> None:
    for path in folder.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"no image of .* could be read .*begins with"):
        embed(backbone, str(folder), max_bad=1)


def test_embedding_leaves_a_network_in_training_as_it_was(folder: Path) -> None:
    backbone = Backbone("test_resnet", image_size=32).train()
    backbone.model.layer1.eval()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    embed(backbone, str(folder), max_bad=1)
    assert backbone.training
    assert not backbone.model.layer1.training
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    backbone(torch.zeros(2, 3, 32, 32)).sum().backward()  # nothing cached without gradients


def test_batches_share_row_groups(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    """A row group per batch makes a file of a million faces large and slow to read."""
    write_embeddings(tmp_path / "e.parquet", embedding_batches(backbone, open_source(str(folder)), batch_size=2))
    assert pq.ParquetFile(tmp_path / "e.parquet").num_row_groups == 1


def test_a_failure_while_writing_keeps_the_old_file(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, embeddings(backbone, str(folder)))
    old = path.read_bytes()

    def broken() -> Iterator[Embeddings]:
        yield from embedding_batches(backbone, open_source(str(folder)), batch_size=4)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_embeddings(path, broken())
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["e.parquet"]


def test_a_folder_that_cannot_be_made_is_the_error_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = Embeddings(array=np.zeros((1, 2), np.float32), keys=["a"], index=np.zeros(1, np.int64))
    with pytest.raises(ConfigError, match=r"e\.parquet cannot be made \((File exists|Not a directory)"):
        write_embeddings(tmp_path / "file" / "e.parquet", rows)
    with pytest.raises(DataError, match=r"cannot write .*p\.png: (File exists|Not a directory)"):
        write_picture(tmp_path / "file" / "p.png", np.zeros((2, 2, 3), np.uint8))


def test_other_endings_and_precisions_are_refused(tmp_path: Path, backbone: Backbone, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"precision 'fp8'.* fp32, bf16, fp16"):
        embed(backbone, str(folder), precision="fp8", max_bad=1)
    with pytest.raises(ConfigError, match=r"must end in .parquet or .npy or .csv"):
        write_embeddings(tmp_path / "e.txt", embeddings(backbone, str(folder)))
    with pytest.raises(ConfigError, match=r"must end in .png"):
        write_picture(tmp_path / "regions.gif", np.zeros((2, 2, 3), np.uint8))


def test_bf16_embeddings_point_the_same_way(folder: Path, backbone: Backbone) -> None:
    a, b = (embed(backbone, str(folder), precision=precision, max_bad=1) for precision in ("fp32", "bf16"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert b.dtype == np.float32
    assert cosine.min() > 0.99


def test_sampled_images_are_spread_and_readable(folder: Path) -> None:
    source = open_source(str(folder))
    assert sample_images(source, count=99, size=16).shape == (9, 16, 16, 3)
    for seed in range(8):
        # One of the first five, one of the last five; an unreadable one gives way to its neighbor.
        first, second = sample_images(source, count=2, size=16, seed=seed).mean((1, 2, 3)) // 25
        assert first in (0, 1, 2, 4)
        assert second in range(5, 10)


def test_without_a_readable_image_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"can be read \(the first: cannot read the image .*a\.jpg: not a JPEG"):
        sample_images(open_source(str(tmp_path)), count=2, size=16)


def test_regions_png_has_a_row_per_image(folder: Path, fra: FRA, tmp_path: Path) -> None:
    fra.train()
    sizes = []
    for count in (3, 4):
        write_regions(tmp_path / "regions.png", fra, str(folder), count=count)
        sizes.append(Image.open(tmp_path / "regions.png").size)
    assert fra.training
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] - sizes[0][1] == pytest.approx(112, abs=6)


def test_a_method_without_regions_is_named(folder: Path, tmp_path: Path) -> None:
    byol = BYOL(Backbone("test_resnet", image_size=32))
    with pytest.raises(ConfigError, match="'byol' has no regions"):
        write_regions(tmp_path / "regions.png", byol, str(folder))


def test_region_picture_shows_image_maps_and_winners() -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    heatmaps = torch.zeros(1, 2, 32, 32)
    heatmaps[0, 0, :, :16], heatmaps[0, 1, :, 16:] = 1, 1  # region 1 left, region 2 right
    grid = region_picture(images, heatmaps).astype(int)
    magma = ((0, 0, 3), (251, 252, 191))  # its ends
    cells = _cells(grid)
    assert len(cells) == 4
    _, one, two, winners = cells
    for cell, bright in ((one, 0), (two, 1)):
        np.testing.assert_allclose(cell[16, 4], magma[1 - bright], atol=3)
        np.testing.assert_allclose(cell[16, 28], magma[bright], atol=3)
    colors = np.array(palette(2)) / 2  # over a black image
    np.testing.assert_allclose(winners[16, 4], colors[0], atol=1)
    np.testing.assert_allclose(winners[16, 28], colors[1], atol=1)


def _cells(grid: np.ndarray, side: int = 32) -> list[np.ndarray]:
    """The cells of the only row: the white between them is one color from top to bottom."""
    inked = (grid != 255).any(2).sum(1)  # pixels per line
    row = max(range(len(grid) - side), key=lambda y: inked[y : y + side].min())
    filled = (grid[row : row + side] != 255).any(2).all(0)
    starts = [x for x in range(1, len(filled)) if filled[x] and not filled[x - 1]]
    return [grid[row : row + side, x : x + side] for x in starts]


def test_many_regions_have_different_colors_and_a_bounded_picture() -> None:
    assert len(set(palette(64))) == 64
    maps = torch.randn(1, 64, 4, 4).softmax(1)
    assert region_picture(np.zeros((1, 64, 64, 3), np.uint8), maps, max_regions=6).shape[1] < 9 * 72
