"""Which images a protocol sees in which role."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facessl.core.errors import ConfigError
from facessl.core.types import Sample
from facessl.data import splits
from facessl.data.source import Source, open_source
from facessl.data.sources.synthetic import Synthetic
from facessl.data.splits import Splits, Subset, carve, parts

WITH_VAL = {"train": "train", "val": "dev", "test": "test"}


class Listed(Source):
    """A source with named parts; reading an image is a mistake in these tests."""

    provides = columns = frozenset({"label", "identity"})
    label_names = ("a", "b")
    opened: list[str] = []  # noqa: RUF012

    def __init__(self, path: str, *, split: str = "train", extra: int = 0) -> None:
        self.split, self.n = split, {"train": 200}.get(split, 40)
        type(self).opened.append(split)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        raise AssertionError("an image was read")

    def name(self, index: int) -> str:
        return f"{self.split}/{index:03d}.jpg"

    def values(self, field: str) -> np.ndarray:
        return np.arange(self.n) // 5 if field == "identity" else np.arange(self.n) % 2


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> type[Listed]:
    """`synthetic:` opens this source instead."""
    kind = type("Kind", (Listed,), {"opened": []})
    for module in ("facessl.data.splits", "facessl.data.source"):
        monkeypatch.setattr(f"{module}.plugins.find", lambda folder, name: kind)
    return kind


def keys(source: object) -> list[str]:
    return [source.key(i) for i in range(len(source))]  # type: ignore[attr-defined,arg-type]


def test_roles_open_the_published_parts_and_only_those_that_are_needed(listed: type[Listed]) -> None:
    listed.splits = WITH_VAL  # type: ignore[attr-defined]
    found = parts("synthetic:x?extra=1", need_val=False)
    train, test = found.train, found.test
    assert (train.split, test.split) == ("train", "test")  # type: ignore[attr-defined]
    assert sorted(listed.opened) == ["test", "train"]
    found = parts("synthetic:x")
    assert found.val.split == "dev"  # type: ignore[attr-defined]
    assert not found.carved


def test_a_split_that_the_user_wrote_is_one_part(listed: type[Listed]) -> None:
    listed.splits = WITH_VAL  # type: ignore[attr-defined]
    found = parts("synthetic:x?split=train", need_val=False)
    train, test = found.train, found.test
    assert set(listed.opened) == {"train"}
    assert sorted(keys(train) + keys(test)) == keys(Listed("x"))


def test_another_test_source_is_opened_by_its_role(listed: type[Listed]) -> None:
    listed.splits = WITH_VAL  # type: ignore[attr-defined]
    assert parts("synthetic:x", test="synthetic:y", need_val=False).test.split == "test"  # type: ignore[attr-defined]
    assert parts("synthetic:x", val="synthetic:y").val.split == "dev"  # type: ignore[attr-defined,union-attr]


def test_a_list_says_its_parts_only_once_it_is_open(listed: type[Listed], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Listed.__init__

    def opening(self: Listed, path: str, *, split: str = "train") -> None:
        plain(self, path, split=split)
        self.splits = {"train": "train", "test": "test"}  # type: ignore[attr-defined]

    monkeypatch.setattr(listed, "__init__", opening)
    found = parts("synthetic:x")
    assert found.test.split == "test"  # type: ignore[attr-defined]
    assert found.carved
    assert set(keys(found.train)) | set(keys(found.val)) == set(keys(Listed("x")))


def test_a_table_with_a_column_of_parts(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for part, count in (("train", 12), ("test", 4)):
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{part}{i}.png")
            rows.append(f"{part}{i}.png,{'ab'[i % 2]},{part}")
    (tmp_path / "faces.csv").write_text("\n".join(rows))
    found = parts(f"labels_csv:{tmp_path / 'faces.csv'}")
    assert found.carved
    assert (len(found.train), len(found.val), len(found.test)) == (10, 2, 4)
    assert all("test" in Path(key).name for key in keys(found.test))


def test_validation_shares_no_person_with_training(listed: type[Listed]) -> None:
    listed.splits = {"train": "train", "test": "test"}  # type: ignore[attr-defined]
    found = parts("synthetic:x")
    persons = [set(np.unique(part.column("identity"))) for part in (found.train, found.val)]  # type: ignore[attr-defined]
    assert not persons[0] & persons[1]
    assert len(found.val) == 20
    assert len(found.train) == 180


def test_persons_that_are_the_classes_are_in_both_parts() -> None:
    train, held = carve(Synthetic(n=120, size=32, identities=3, label="identity"), 0.3)
    assert set(train.column("label")) == set(held.column("label")) == {0, 1, 2}


def test_validation_is_not_empty_beside_a_test_part_chosen_by_hash() -> None:
    # Two checksums of the same family may exclude each other.
    found = parts("synthetic:?n=300&size=32&identities=100000")
    assert 20 <= len(found.val) <= 30
    assert not set(keys(found.val)) & (set(keys(found.test)) | set(keys(found.train)))


@pytest.mark.fault("C4", "of 50 images of each class 14 angry and 7 happy ones were in the test part")
def test_a_small_source_is_divided_class_by_class(tmp_path: Path) -> None:
    """A fifth of each class, by the names alone; a class of fewer than five images is divided by the hash."""
    for name, count in (("angry", 50), ("happy", 50), ("sad", 12), ("odd", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    test = parts(str(tmp_path), need_val=False, needs=("label",)).test
    counts = dict(zip(test.label_names, np.bincount(test.column("label"), minlength=4).tolist(), strict=True))
    assert counts | {"odd": 0} == {"angry": 10, "happy": 10, "sad": 2, "odd": 0}
    (tmp_path / "angry" / "new.png").write_bytes((tmp_path / "angry/0.png").read_bytes())
    again = parts(str(tmp_path), need_val=False, needs=("label",)).test
    assert len(set(keys(test)) - set(keys(again))) <= 1


def test_few_labels_are_drawn_before_validation_is_carved_out(listed: type[Listed]) -> None:
    listed.splits = WITH_VAL  # type: ignore[attr-defined]
    found = parts("synthetic:x", labels="10%")
    assert len(found.train) + len(found.val) == 20
    assert all(key.startswith("train/") for key in keys(found.val))


def test_a_source_for_testing_alone(listed: type[Listed]) -> None:
    listed.splits = {"test": "test"}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="none to train on"):
        parts("synthetic:x")
    found = parts("synthetic:x", need_train=False)
    assert (len(found.train), found.val, len(found.test)) == (0, None, 40)


def part_names(found: Splits) -> list[str]:
    """Folders or values of the column `split` that the keys of each part say, without a number behind."""
    sources = [part for part in (found.train, found.val, found.test) if part is not None]
    return [",".join(sorted({Path(key).parts[-3] for key in keys(part)})) for part in sources]


@pytest.mark.fault("A2", "Train/ and Test/ became two classes")
@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "dev", "TEST"),
        ("train", "Validation", "eval"),
    ],
)
def test_folders_called_after_parts_are_parts_whatever_their_case(names: tuple[str, ...], tmp_path: Path) -> None:
    for part in names:
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    found = parts(str(tmp_path))
    assert part_names(found) == list(names)
    assert found.train.label_names == found.test.label_names == ("a", "b")
    assert parts("synthetic:?n=30&size=32", test=str(tmp_path)).test.root.name == names[2]  # type: ignore[attr-defined]
    (tmp_path / names[2]).rename(tmp_path / "other")
    found = parts(str(tmp_path))
    assert found.test.root.name == names[1]  # type: ignore[attr-defined]
    assert found.carved
    (tmp_path / "other").rename(tmp_path / "tests")
    (tmp_path / names[1]).rename(tmp_path / "evaluation")
    (tmp_path / "tests").rename(tmp_path / "test")
    with pytest.raises(ConfigError, match=r"evaluation and .*test are both called after the test part"):
        parts(str(tmp_path))


def test_a_folder_of_parts_read_whole_has_the_classes_inside_them(tmp_path: Path) -> None:
    for part in ("Train", "Test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    source = open_source(str(tmp_path))
    assert source.label_names == ("a", "b")
    assert source.column("label").tolist() == [0, 1, 0, 1]


@pytest.mark.fault("A3", "test rows were trained on, without a word")
@pytest.mark.parametrize("reader", ["imagelist", "labels-csv", "landmarks-csv", "masks-folder"])
@pytest.mark.parametrize(
    ("column", "values"), [("split", ("train", "test")), ("Split", ("Training", "TEST")), (" SPLIT", ("TRAIN", "eval"))]
)
def test_a_column_called_split_divides_every_table(
    reader: str, column: str, values: tuple[str, str], tmp_path: Path
) -> None:
    rows = [f"image,mask,{column},x0,y0"]
    for i in range(12):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / kind / f"{i}.png")
        rows.append(f"images/{i}.png,masks/{i}.png,{values[i % 4 == 3]},1,2")
    (tmp_path / "classes.txt").write_text("background\nskin\n")
    table = tmp_path / "index.csv"
    table.write_text("\n".join(rows))
    spec = f"{reader}:{tmp_path if reader == 'masks-folder' else table}"
    found = parts(spec, need_val=False)
    assert [int(Path(key).stem) for key in keys(found.test)] == [3, 7, 11]
    assert len(found.train) == 9
    assert len(open_source(spec)) == 12
    assert len(open_source(f"{spec}?split={values[1]}")) == len(open_source(f"{spec}?split=test")) == 3
    table.write_text("\n".join([*rows[:-1], rows[-1].replace(values[1], "tset")]))
    with pytest.raises(ConfigError, match=r"the split 'tset', which is not one of train \(training\), val \(valid"):
        parts(spec)
    assert len(open_source(f"{spec}?split=tset")) == 1
    assert len(parts(f"{spec}?split=none", val_fraction=0.2).train) > 4


def test_a_subset_keeps_what_else_its_source_knows() -> None:
    source = Synthetic(n=6, size=32)
    source.layout = "ibug68"  # type: ignore[attr-defined]
    source.subsets = {"pose": np.array([0, 3, 5])}  # type: ignore[attr-defined]
    source.pairs = np.array([[0, 1], [3, 5], [5, 4]])  # type: ignore[attr-defined]
    source.same, source.folds = np.array([1, 0, 1], bool), np.array([0, 1, 2])  # type: ignore[attr-defined]
    part = Subset(source, np.array([5, 3, 4]))
    assert part.layout == "ibug68"
    assert part.subsets["pose"].tolist() == [0, 1]
    assert part.pairs.tolist() == [[1, 0], [0, 2]]
    assert (part.same.tolist(), part.folds.tolist()) == ([False, True], [1, 2])


def test_shares_out_of_range_are_refused() -> None:
    source = open_source("synthetic:?n=4&size=32")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        carve(source, 1.0)
    with pytest.raises(ConfigError, match="too few images"):
        splits.carve(Subset(source, np.array([0])), 0.1)
