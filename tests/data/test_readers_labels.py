"""Readers of data sets with classes, attributes, identities and pairs: their conventions."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from facessl.core.errors import ConfigError, DataError, UnknownName
from facessl.data.source import open_source
from facessl.data.sources.ferplus import majority
from facessl.data.sources.lfw import LFW

from . import layouts_labels as layouts


def build(name: str, root: Path) -> str:
    """The spec of a data set in miniature in `root`."""
    spec: str = getattr(layouts, f"build_{name}")(root)
    return spec


def labels(spec: str) -> list[int | None]:
    source = open_source(spec)
    return [source[i].label for i in range(len(source))]


def test_vggface2_numbers_persons_by_folder(tmp_path: Path) -> None:
    spec = build("vggface2", tmp_path)
    source = open_source(spec)
    assert source.label_names == ("n000002", "n000012", "n000022")
    assert [source[i].identity for i in range(6)] == labels(spec) == [0, 0, 1, 1, 2, 2]
    assert open_source(spec + "&split=test").label_names == ("n000001", "n000011", "n000021")


def test_laionface_tells_parts_with_equal_shards_apart(tmp_path: Path) -> None:
    spec = build("laionface", tmp_path)
    source = open_source(spec)
    assert source.inner_name(1) == "split_00000/00000.tar/000000001.jpg"
    assert source.inner_name(4) == "split_00001/00000.tar/000000001.jpg"
    assert source[4].text == "face 1 of part 1"
    assert [open_source(spec + "?parts=1")[i].text for i in range(3)] == [f"face {i} of part 1" for i in range(3)]
    with pytest.raises(DataError, match="split_00002 is missing or holds no tar"):
        open_source(spec + "?parts=20m")


def test_ferplus_majority() -> None:
    for votes, label in layouts.FERPLUS_VOTES:
        assert majority(list(votes)) == label


def test_ferplus_8_and_7_classes_and_fras_folders(tmp_path: Path) -> None:
    spec = build("ferplus", tmp_path)
    assert labels(spec) == [0, 1, 2, 3, 6, 7]
    assert open_source(spec).label_names[3:8] == ("sadness", "anger", "disgust", "fear", "contempt")
    assert labels(spec + "&classes=7") == [0, 1, 2, 3, 6]
    assert len(open_source(spec + "&classes=7").label_names) == 7
    for name in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        (tmp_path / "fra/Labels" / name).mkdir(parents=True)
        shutil.move(tmp_path / "data" / name / "label.csv", tmp_path / "fra/Labels" / name)
        shutil.move(tmp_path / "data" / name, tmp_path / "fra/Images" / name)
    source = open_source(f"ferplus:{tmp_path}/fra?strict=false&split=val")
    assert Path(source.key(0)).relative_to(tmp_path / "fra/Images/FER2013Valid").name == "fer0000010.png"
    with pytest.raises(ConfigError, match=r"ferplus\?classes=6 cannot be used: it must be one of 8, 7"):
        open_source(spec + "&classes=6")


def test_fer2013_csv_and_folders(tmp_path: Path) -> None:
    spec = build("fer2013", tmp_path)
    source = open_source(spec)
    assert source.label_names == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    np.testing.assert_array_equal(source[2].image, np.repeat(layouts.pixels(2)[:, :, 1:2], 3, axis=2))
    assert labels(spec) == [0, 1, 2, 3, 4, 5]
    assert labels(spec + "&split=test") == [0, 1, 2, 3, 4, 5, 6]
    assert labels(spec + "&split=val") == [0, 1]
    for name in ("happy", "angry", "surprise"):  # by the alphabet: angry, happy, surprise
        layouts.face(tmp_path / "folders/train" / name / "0.png")
        layouts.face(tmp_path / "folders/test" / name / "0.png")
    source = open_source(f"fer2013:{tmp_path}/folders?strict=false")
    assert {Path(source.key(i)).parent.name: source[i].label for i in range(3)} == {
        "angry": 0,
        "happy": 3,
        "surprise": 5,
    }
    assert source.splits == {"train": "train", "test": "test"}


def test_fer2013_reads_the_challenges_column_order(tmp_path: Path) -> None:
    row = "3, Training, " + " ".join(["7"] * 2304)
    layouts.text(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", row)
    sample = open_source(f"fer2013:{tmp_path}?strict=false")[0]
    assert (sample.label, sample.image.min(), sample.image.max()) == (3, 7, 7)


def test_rafdb_order_and_images(tmp_path: Path) -> None:
    spec = build("rafdb", tmp_path)
    source = open_source(spec)
    assert [source.label_names[label] for label in labels(spec) if label is not None] == [
        *("sadness", "surprise", "neutral", "happiness", "fear", "disgust"),
    ]
    assert Path(source.key(0)) == tmp_path / "Image/aligned/train_00001_aligned.jpg"
    assert Path(open_source(spec + "&images=original").key(0)) == tmp_path / "Image/original/train_00001.jpg"
    assert labels(spec + "&split=test") == [0, 1, 2, 3, 4, 5, 6]


def test_affectnet_lists_and_folders(tmp_path: Path) -> None:
    spec = build("affectnet", tmp_path)
    assert labels(spec) == [0, 1, 2, 6, 7, 5]
    assert labels(spec + "&classes=7&split=val") == [0, 1, 2, 6, 5]
    source = open_source(spec)
    assert [source.label_names[i] for i in (1, 3, 7)] == ["happy", "surprise", "contempt"]
    # 30 x 20 pixels from (4, 5) on: their outline is half a pixel outside the centers of the outer ones.
    np.testing.assert_array_equal(source[0].box, np.array([3.5, 4.5, 33.5, 24.5], np.float32))
    file = tmp_path / "Manually_Annotated_file_lists/training.csv"
    file.write_text(file.read_text().partition("\n")[2])  # the same list without its header
    assert labels(spec) == [0, 1, 2, 6, 7, 5]
    for label in (1, 6, 7):
        layouts.face(tmp_path / f"copy/train/{label}/0.jpg")
    copy = open_source(f"affectnet:{tmp_path}/copy?strict=false&classes=7")
    assert ([copy[i].label for i in range(len(copy))], copy.provides) == ([1, 6], {"label"})


def test_celeba_fields(tmp_path: Path) -> None:
    spec = build("celeba", tmp_path)
    source, test = open_source(spec), open_source(spec + "&split=test")
    assert source.provides == {"attributes", "identity", "five_points", "group"}
    assert (source.attribute_names, source.group_names) == (layouts.CELEBA_NAMES, ("not Male", "Male"))
    assert [Path(test.key(i)).name for i in range(2)] == ["000009.jpg", "000010.jpg"]
    for number, sample in ((0, source[0]), (3, source[3]), (9, test[1])):
        wanted = [int((40 * number + at) % 7 == 0) for at in range(40)]
        assert sample.attributes.tolist() == wanted
        assert (sample.identity, sample.group) == (2880 + number // 2, wanted[20])
        assert sample.five_points.tolist() == [[69, 109], [106, 113], [77, 142], [73 + number, 152], [108, 154]]
    with pytest.raises(UnknownName, match=r"unknown attribute of celeba 'male': did you mean 'Male'"):
        open_source(spec.replace("group=Male", "group=male"))


def test_celeba_of_kaggle_is_the_same(tmp_path: Path) -> None:
    spec = build("celeba", tmp_path)
    official = [open_source(spec)[i] for i in range(6)]
    for stem, header in (
        ("list_attr_celeba", None),
        ("list_landmarks_align_celeba", None),
        ("list_eval_partition", "image_id,partition"),
    ):
        rows = (tmp_path / f"{stem}.txt").read_text().splitlines()
        names = header or "image_id," + ",".join(rows[1].split())
        layouts.text(tmp_path / f"{stem}.csv", names, *(",".join(row.split()) for row in rows[0 if header else 2 :]))
        (tmp_path / f"{stem}.txt").unlink()
    (tmp_path / "identity_CelebA.txt").unlink()
    (tmp_path / "img_align_celeba").rename(tmp_path / "inner")
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "inner").rename(tmp_path / "img_align_celeba/img_align_celeba")
    source = open_source(spec)
    assert source.provides == {"attributes", "five_points", "group"}
    for i, sample in enumerate(official):
        np.testing.assert_array_equal(source[i].attributes, sample.attributes)
        np.testing.assert_array_equal(source[i].five_points, sample.five_points)


def test_utkface_names_and_split(tmp_path: Path) -> None:
    spec = build("utkface", tmp_path)
    parts = [open_source(f"{spec}?split={split}&group=age&label=gender") for split in ("train", "test")]
    keys = [Path(part.key(i)).name for part in parts for i in range(len(part))]
    assert len(set(keys)) == 8  # every image once, without the one that has no race
    for part in parts:
        for i in range(len(part)):
            sample, (age, gender, race) = part[i], (int(n) for n in Path(part.key(i)).name.split("_")[:3])
            assert (sample.label, sample.group) == (gender, 0 if age < 18 else 1 if age < 60 else 2)
            bits = [gender == 0, age < 18, age >= 60, *(race == at for at in range(5))]
            assert sample.attributes.tolist() == bits
    shutil.copytree(tmp_path, tmp_path / "again", ignore=shutil.ignore_patterns("again"))
    assert len(open_source(spec)) == 6  # Kaggle's copy has every image in several folders


def test_lfw_pairs(tmp_path: Path) -> None:
    source = open_source(build("lfw", tmp_path))
    assert isinstance(source, LFW)
    names = [Path(source.key(i)).stem for i in range(len(source))]
    assert names == ["Ann_A_0001", "Ann_A_0002", "Bob_0001", "Bob_0002", "Cy_0001", "Dee_0001"]
    assert [source[i].identity for i in range(6)] == [0, 0, 1, 1, 2, 3]
    assert source.pairs.tolist() == [[0, 1], [2, 3], [0, 2], [4, 1], [1, 0], [3, 2], [5, 3], [4, 5]]
    assert source.same.tolist() == [True, True, False, False] * 2
    assert source.folds.tolist() == [0] * 4 + [1] * 4
    (tmp_path / "lfw").rename(tmp_path / "lfw-deepfunneled")
    assert Path(open_source(f"lfw:{tmp_path}?strict=false").key(0)).parts[-3] == "lfw-deepfunneled"
    assert len(open_source(f"lfw:{tmp_path}/lfw-deepfunneled?strict=false")) == 6


def test_labels_csv_numbers_names_over_all_splits(tmp_path: Path) -> None:
    spec = build("labels_csv", tmp_path)
    train, test = open_source(spec), open_source(spec.replace("split=train", "split=test"))
    assert train.label_names == test.label_names == ("calm", "happy", "sad")
    assert train.attribute_names == test.attribute_names == ("smiling", "hat")
    assert train.splits == {"train": "train", "test": "test"}
    assert train.group_names == ("0", "1", "2", "3")
    sample = test[1]  # row 7: happy, p3, region 3
    assert (sample.label, sample.identity, sample.group) == (1, 3, 3)
    assert (sample.attributes.tolist(), sample.box.tolist()) == ([1, 1], [1, 2, 37, 40.5])  # type: ignore[union-attr]


def test_labels_csv_options(tmp_path: Path) -> None:
    build("labels_csv", tmp_path)
    table = tmp_path / "elsewhere/t.csv"
    layouts.text(table, "name,x,y,w,h,age\n0.jpg,1,2,30,40,7\n1.jpg,1,2,30,40,9")
    source = open_source(f"labels-csv:{table}?root={tmp_path}/img&image=name&label=age")
    assert (source[1].label, len(source.label_names), len(source)) == (9, 10, 2)
    assert source[0].box.tolist() == [0.5, 1.5, 30.5, 41.5]  # type: ignore[union-attr]
    with pytest.raises(UnknownName, match=r"unknown column of .*table\.csv 'smile': did you mean 'smiling'"):
        open_source(f"labels-csv:{tmp_path}/table.csv?attributes=hat,smile")
    with pytest.raises(ConfigError, match=r"split=valid cannot be used: it must be one of test, train"):
        open_source(f"labels-csv:{tmp_path}/table.csv?split=valid")


def test_pairs_csv_without_folds(tmp_path: Path) -> None:
    build("pairs_csv", tmp_path)
    layouts.text(tmp_path / "other/p.csv", "image_b,same,image_a", "1.jpg,0,5.jpg", "0.jpg,1,1.jpg")
    source = open_source(f"pairs-csv:{tmp_path}/other/p.csv?root={tmp_path}/img")
    assert [Path(source.key(i)).name for i in range(3)] == ["0.jpg", "1.jpg", "5.jpg"]
    assert (source.pairs.tolist(), source.folds) == ([[2, 1], [1, 0]], None)


def test_the_published_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the fixture's numbers in place of the published ones, strict opens."""
    for name, constant, value in (
        ("vggface2", "PERSONS", {"train": 3, "test": 3}),
        ("ferplus", "KEPT", {"train": 6, "val": 6, "test": 6}),
        ("fer2013", "SIZES", {"train": (6,), "val": (2,), "test": (7,)}),
        ("rafdb", "SIZES", {"train": 6, "test": 7}),
        ("affectnet", "SIZES", {(8, "train"): (6,), (8, "val"): (6,)}),
        ("celeba", "SIZES", {"train": 6, "val": 2, "test": 2}),
    ):
        monkeypatch.setattr(f"facessl.data.sources.{name}.{constant}", value)
        spec = build(name, tmp_path / name).replace("strict=false", "strict=true")
        for split in open_source(spec).splits.values():
            assert len(open_source(f"{spec}&split={split}")) > 0
