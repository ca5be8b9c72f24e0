import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from facessl.core.errors import ConfigError, DataWarning
from facessl.data.source import open_source
from facessl.data.splits import at_most, parts
from facessl.evaluation.evaluate import evaluate
from facessl.evaluation.protocols import knn as module
from facessl.evaluation.protocols.knn import classify, knn
from facessl.models.backbone import Backbone
from tests.evaluation.conftest import write_shades

Clusters = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def clusters() -> Clusters:
    """(300, 16) embeddings around 5 centers, their labels, and 80 more to be classified."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (380,), generator=g)
    z = torch.randn(5, 16, generator=g)[labels] + 1.5 * torch.randn(380, 16, generator=g)
    return z[:300], labels[:300], z[300:]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder with train/ and test/, classes told apart by their brightness; test/ lacks the first class."""
    write_shades(tmp_path / "train", ("dark", "light", "mid"), 8)
    write_shades(tmp_path / "test", ("light", "mid"), 8)
    return tmp_path


def test_groups_are_scored_apart(faces: Path, backbone: Backbone) -> None:
    """Images of the group `odd` carry another image's class: every one of them is wrong."""
    rows = ["image,shade,kind,split"]
    for file in sorted(faces.rglob("*.png")):
        part, shade, kind = file.parts[-3], file.parts[-2], "odd" if int(file.stem) % 2 else "even"
        wrong = part == "test" and kind == "odd"
        rows.append(f"{file.relative_to(faces)},{'dark' if wrong else shade},{kind},{part}")
    (faces / "t.csv").write_text("\n".join(rows))
    parts = [open_source(f"labels-csv:{faces}/t.csv?label=shade&group=kind&split={part}") for part in ("train", "test")]
    found = knn(backbone, *parts, k=3)["groups"]["accuracy"]
    assert {row["name"]: row["value"] for row in found["groups"]} == {"even": 1.0, "odd": 0.0}


def test_votes_agree_with_scikit_learn(clusters: Clusters) -> None:
    train, labels, test = clusters
    twin = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = twin.fit(train.numpy(), labels.numpy()).predict(test.numpy())
    assert classify(train, labels, test).tolist() == expected.tolist()


def test_leave_one_out_never_sees_the_image_itself(clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, _ = clusters
    train, labels = train[:60], labels[:60]
    monkeypatch.setattr(module, "_CHUNK", 7 * 60)  # several chunks of queries
    expected = []
    for i in range(60):
        others = torch.arange(60) != i
        expected.append(classify(train[others], labels[others], train[i : i + 1], k=7).item())
    assert classify(train, labels, None, k=7).tolist() == expected


@pytest.mark.parametrize(("k", "test"), [(0, True), (301, True), (300, False)])
def test_more_neighbors_than_images_are_refused(clusters: Clusters, k: int, test: bool) -> None:
    train, labels, queries = clusters
    with pytest.raises(ConfigError, match=f"k = {k} .* use 1 to"):
        classify(train, labels, queries if test else None, k=k)


def test_classes_are_matched_by_name(faces: Path, backbone: Backbone) -> None:
    # Alone, "light" is class 0 of the test folder, which is "dark" in training.
    found = parts(str(faces), need_val=False)
    train, test = found.train, found.test
    assert knn(backbone, train, test, k=3)["per_class"] == {"light": 1.0, "mid": 1.0}
    with pytest.raises(ConfigError, match="lacks: dark"):
        knn(backbone, test, train, k=3)


def test_a_source_without_labels_is_refused(faces: Path, backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="needs labels"):
        knn(backbone, open_source(str(faces / "train" / "dark")))


def test_split_by_key_survives_moving_the_folder(faces: Path, tmp_path: Path) -> None:
    names = []
    for place in (faces / "train", tmp_path / "moved"):
        if place.name == "moved":
            (faces / "train").rename(place)
        found = parts(str(place), need_val=False)
        train, test = found.train, found.test
        assert len(train) + len(test) == 24
        names.append([test[i].key.removeprefix(str(place)) for i in range(len(test))])
    assert names[0] == names[1] != []


def test_at_most_spreads_over_all_classes(faces: Path) -> None:
    few = at_most(open_source(str(faces / "train")), 6)
    assert [few[i].label for i in range(len(few))] == [0, 0, 1, 1, 2, 2]


@pytest.mark.fault("A14", "`probe RUN labeled/ --test labeled/` reported an accuracy without a word")
def test_test_images_that_were_trained_on_are_told(faces: Path, tmp_path: Path, backbone: Backbone) -> None:
    """By their content, under other names as well."""
    other = tmp_path / "other"
    shutil.copytree(faces / "train", other)
    for i, image in enumerate(sorted(other.rglob("*.png"))):
        image.rename(image.with_name(f"face-{i}.png"))
    shutil.copy(next(other.rglob("*.png")), other / "mid" / "again.png")
    Image.new("RGB", (9, 9)).save(other / "mid" / "new.png")
    with pytest.warns(DataWarning, match=r"^25 of 26 test images are training images as well \(the first: .*face-0"):
        evaluate(backbone, str(faces / "train"), test=str(other), k=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert "by a hash" in evaluate(backbone, str(faces / "train"), k=3)["test_part"]
        assert "test_part" not in evaluate(backbone, str(faces), k=3)
