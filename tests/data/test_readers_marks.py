"""Readers of landmark and mask sets: conventions (sides, orders, units, splits), published counts."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from facessl.core.errors import FaceSSLError
from facessl.data.decode import decode, decode_mask
from facessl.data.layouts import layout
from facessl.data.skipped import ImageError
from facessl.data.source import open_source
from facessl.data.sources import lapa
from facessl.data.sources._annotations import side_pairs
from facessl.data.sources.celebamaskhq import ORDERS
from tests.data import layouts_marks as marks

pytestmark = pytest.mark.filterwarnings("ignore:LaPa's training images")

LANDMARKED = ("wflw", "w300", "aflw19", "lapa", "landmarks_csv", "points")


def built(name: str, folder: Path, **options: Any) -> Any:
    """The miniature set `name`, opened with more options."""
    spec = getattr(marks, f"build_{name}", None) or getattr(marks, name)
    text = spec(folder)
    for key, value in options.items():
        text += ("&" if "?" in text else "?") + f"{key}={value}"
    return open_source(text)


# Landmarks


@pytest.mark.parametrize("name", LANDMARKED)
def test_landmarks_are_those_that_were_written_in_zero_based_pixels(name: str, tmp_path: Path) -> None:
    source = built(name, tmp_path)
    order = layout(source.layout)
    # AFLW's permutation reverses the faces; of 300-W the training folders have two faces each.
    faces = {"aflw19": range(6, 0, -1), "points": (0, 2, 4, 1, 3, 5)}.get(name, range(6))
    for i, face in enumerate(faces):
        sample = source[i]
        expected = marks.ordered(order.name, marks.drawn(face)[1])
        np.testing.assert_allclose(sample.landmarks, expected, atol=2e-3)
        assert sample.landmarks.dtype == np.float32
        image = decode(sample.image, key=sample.key)
        assert np.abs(image.astype(int) - marks.drawn(face)[0]).mean() < 12  # JPEG


@pytest.mark.parametrize("name", [*LANDMARKED, "w300_tables"])
def test_boxes_are_left_top_right_bottom_of_the_face(name: str, tmp_path: Path) -> None:
    source = built(name, tmp_path)
    for i in range(6):
        left, top, right, bottom = source[i].box
        low, high = source[i].landmarks.min(0), source[i].landmarks.max(0)
        assert left <= low[0] + 1e-3
        assert top <= low[1] + 1e-3
        assert right >= high[0] - 1e-3
        assert bottom >= high[1] - 1e-3
        np.testing.assert_allclose(((left + right) / 2, (top + bottom) / 2), (low + high) / 2, atol=1e-2)
        if name != "aflw19":  # AFLW's boxes are rectangles
            np.testing.assert_allclose(right - left, (high - low).max(), atol=1e-2)
            np.testing.assert_allclose(bottom - top, right - left, atol=1e-3)


def test_wflw_formats_agree_on_points_and_subsets_and_differ_in_boxes(tmp_path: Path) -> None:
    tables = built("wflw", tmp_path, split="test")
    raw = built("wflw", tmp_path, split="test", format="raw")
    for i in range(3):
        np.testing.assert_allclose(tables[i].landmarks, raw[i].landmarks)
        np.testing.assert_array_equal(raw[i].box, [5, 6, 40, 41])
    positions = {name: found.tolist() for name, found in raw.subsets.items()}
    assert positions == {"pose": [0], "expression": [1], "illumination": [2], "makeup": [], "occlusion": [], "blur": []}
    # Only three of the six tables were written.
    assert {name: found.tolist() for name, found in tables.subsets.items()} == {
        "pose": [0],
        "expression": [1],
        "illumination": [2],
    }
    assert built("wflw", tmp_path).subsets == {}


def test_w300_formats_agree(tmp_path: Path) -> None:
    """The tables lie two pixels above pixels from 0, the .pts files one; the blank is only in the file's name."""
    points, tables = (built(name, tmp_path / name, split="full") for name in ("w300", "w300_tables"))
    assert [Path(points.key(i)).name for i in range(4)] == [Path(tables.key(i)).name for i in range(4)]
    assert Path(tables.key(3)).name == "image_092 _01.jpg"
    for i in range(4):
        np.testing.assert_allclose(points[i].landmarks, tables[i].landmarks, atol=1e-3)
        np.testing.assert_allclose(points[i].box, tables[i].box, atol=1e-2)
    for source in (points, tables):
        assert {name: found.tolist() for name, found in source.subsets.items()} == {
            "common": [0, 1],
            "challenge": [2, 3],
        }


def test_w300_tells_the_test_sets_apart_in_one_table(tmp_path: Path) -> None:
    spec = marks.w300_tables(tmp_path)
    whole, rest = ((tmp_path / f"face_landmarks_300w_valid_{part}.csv") for part in ("common", "challenge"))
    lines = whole.read_text().splitlines() + rest.read_text().splitlines()[1:]
    (tmp_path / "face_landmarks_300w_valid.csv").write_text("\n".join(lines))
    whole.unlink()
    rest.unlink()
    assert [len(open_source(f"{spec}&split={part}")) for part in ("common", "challenge", "full")] == [2, 2, 4]


def test_aflw_visibility_and_frontal_faces(tmp_path: Path) -> None:
    info = marks.aflw_info(24386, 20000)
    savemat(tmp_path / "AFLWinfo_release.mat", info)
    name = info["nameList"][4385, 0]
    marks.save(tmp_path / "data/flickr" / name, marks.drawn(0)[0])
    source = open_source(f"aflw19:{tmp_path}?split=test&strict=false")
    assert len(source) == 4386
    assert source.key(0).endswith(name)  # the first of the test part, by `ra`
    frontal = source.subsets["frontal"]  # type: ignore[attr-defined]
    assert len(frontal) == 2193
    visible = info["mask_new"][info["ra"][0, 20000:] - 1]
    np.testing.assert_array_equal(frontal, np.flatnonzero(visible.all(1)))
    np.testing.assert_array_equal(source[0].visible, visible[0])  # type: ignore[arg-type]
    with pytest.raises(FaceSSLError, match="2193 frontal test faces where the published set has 1314"):
        open_source(f"aflw19:{tmp_path}?split=test")


def test_a_table_of_ones_own_takes_boxes(tmp_path: Path) -> None:
    assert len(built("landmarks_csv", tmp_path)) == 6
    file = tmp_path / "faces.csv"
    assert len(open_source(f"landmarks_csv:{file}")) == 8
    plain = open_source(f"landmarks_csv:{file}")
    assert plain.layout is None
    assert plain.splits == {"train": "train", "test": "test"}
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(f"{line},{'left,top,right,bottom' if not i else '1,2,30,40'}" for i, line in enumerate(lines))
    )
    np.testing.assert_array_equal(open_source(f"landmarks_csv:{file}")[7].box, [1, 2, 30, 40])  # type: ignore[arg-type]


# Masks


def center(mask: np.ndarray, value: int) -> float:
    """Mean column of a class."""
    return float(np.nonzero(mask == value)[1].mean())


def test_lapa_sides_are_those_of_the_image(tmp_path: Path) -> None:
    source = built("lapa", tmp_path)
    assert source.mask_names[2:6] == ("left_eyebrow", "right_eyebrow", "left_eye", "right_eye")
    assert source.mask_flip == (0, 1, 3, 2, 5, 4, 6, 7, 8, 9, 10)
    for i in range(6):
        sample = source[i]
        np.testing.assert_array_equal(sample.mask, marks.drawn(i)[2])
        assert center(sample.mask, 2) < center(sample.mask, 3)
        left_brow = sample.landmarks[33:42]
        assert left_brow[:, 0].min() - 2 < center(sample.mask, 2) < left_brow[:, 0].max() + 2
        eyes = [sample.landmarks[36 + 68 : 37 + 68], sample.landmarks[105:106]]
        np.testing.assert_array_equal(sample.five_points[:2], np.concatenate(eyes))
        nose, corners = sample.five_points[2], sample.five_points[3:]
        np.testing.assert_allclose(nose, marks.drawn(i)[1][30], atol=1e-3)
        np.testing.assert_allclose(corners, marks.drawn(i)[1][[48, 54]], atol=1e-3)


def test_lapa_warns_once_that_it_contains_300w(tmp_path: Path) -> None:
    lapa._warn_of_overlap.cache_clear()
    with pytest.warns(UserWarning, match="300-W"):
        built("lapa", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built("lapa", tmp_path)
        lapa._warn_of_overlap.cache_clear()
        built("lapa", tmp_path, split="test")


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        (
            "official",
            {"skin": 1, "nose": 2, "l_eye": 4, "r_eye": 5, "l_brow": 6, "mouth": 10, "u_lip": 11, "cloth": 18},
        ),
        ("farl", {"skin": 2, "nose": 10, "l_eye": 8, "r_eye": 9, "l_brow": 6, "mouth": 11, "u_lip": 13, "hair": 14}),
    ],
)
def test_celebamaskhq_numbers_its_classes_in_both_orders(order: str, numbers: dict[str, int], tmp_path: Path) -> None:
    source = built("celebamaskhq", tmp_path, order=order)
    names = source.mask_names
    assert {name: names.index(name) for name in numbers} == numbers
    assert sorted(names[1:]) == sorted(ORDERS["official"])
    assert len(names) == 19
    pairs = {names[i]: names[j] for i, j in enumerate(source.mask_flip) if i != j}
    assert pairs == {f"{a}_{part}": f"{b}_{part}" for a, b in ("lr", "rl") for part in ("eye", "brow", "ear")}
    sample, drawn = source[0], marks.drawn(0)[2].repeat(2, 0).repeat(2, 1)
    mask = sample.mask
    assert mask.shape == decode(sample.image, key="").shape[:2] == (96, 96)
    assert center(mask, numbers["l_eye"]) > center(mask, numbers["r_eye"])  # the person's left
    np.testing.assert_array_equal(mask == numbers["nose"], drawn == 6)  # skin covers it too; the later class counts
    np.testing.assert_array_equal(mask == numbers["l_eye"], drawn == 5)
    winner = "cloth" if order == "official" else "hair"  # both cover the same pixels
    np.testing.assert_array_equal(mask == names.index(winner), drawn == 10)


def test_celebamaskhq_partitions_differ_at_the_border(tmp_path: Path) -> None:
    def images(**options: str) -> list[int]:
        source = built("celebamaskhq", tmp_path, **options)
        return [int(Path(source.key(i)).stem) for i in range(len(source))]

    assert images() == [0, 1, 2, 3, 4, 5]
    assert images(split="val") == [6, 7]
    assert images(split="test") == [8, 9]
    assert images(partition="celeba") == [0, 1, 2, 3, 4]
    assert images(partition="celeba", split="val") == [5, 6]
    assert images(partition="celeba", split="test") == [7, 8, 9]


def test_masks_of_ones_own_keep_their_numbers_whatever_the_palette(tmp_path: Path) -> None:
    source = built("masks_folder", tmp_path)
    for i in range(6):
        np.testing.assert_array_equal(source[i].mask, marks.drawn(i)[2])
    assert source.mask_names[:3] == ("background", "skin", "nose")
    assert source.mask_flip[3:] == (3, 5, 4, 7, 6, 9, 8, 10)
    assert built("masks_folder", tmp_path, flip="none").mask_flip is None
    assert built("masks_folder", tmp_path, flip="1:2,8:9").mask_flip == (0, 2, 1, 3, 4, 5, 6, 7, 9, 8, 10)


@pytest.mark.parametrize("form", ["parts inside", "parts outside", "index.csv"])
def test_masks_of_ones_own_in_parts(form: str, tmp_path: Path) -> None:
    spec = marks.build_masks_folder(tmp_path)
    if form == "index.csv":
        rows = [f"images/face{i}.jpg,{'train' if i < 4 else 'test'},masks/face{i}.png" for i in range(6)]
        (tmp_path / "index.csv").write_text("image,split,mask\n" + "\n".join(rows))
    else:
        for kind, ending in (("images", "jpg"), ("masks", "png")):
            for i in range(6):
                part = "train" if i < 4 else "test"
                folder = tmp_path / (f"{kind}/{part}" if form == "parts inside" else f"{part}/{kind}")
                folder.mkdir(parents=True, exist_ok=True)
                (tmp_path / kind / f"face{i}.{ending}").rename(folder / f"face{i}.{ending}")
    source = open_source(f"{spec}?split=test")
    assert source.splits == {"train": "train", "test": "test"}
    assert len(source) == 2
    assert len(open_source(spec)) == 6
    np.testing.assert_array_equal(source[1].mask, marks.drawn(5)[2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        ("background skin left_eye right_eye", (0, 1, 3, 2)),
        ("background EyeLeft EyeRight", (0, 2, 1)),
        ("background u_lip l_lip l_ear r_ear", (0, 1, 2, 4, 3)),  # l_lip is the lower lip
        ("background nose eye_2 eye_3", (0, 1, 3, 2)),
        ("background hair skin", None),
        ("background stage_7 stage_8", None),  # not their own numbers
    ],
)
def test_sides_are_recognized_in_names(names: str, flip: tuple[int, ...] | None) -> None:
    assert side_pairs(names.split()) == flip


def test_masks_are_never_colors(tmp_path: Path) -> None:
    jpeg, color = tmp_path / "m.jpg", tmp_path / "m.png"
    Image.new("L", (16, 16)).save(jpeg)
    Image.new("RGB", (16, 16), (3, 4, 5)).save(color)
    for file, reason in ((jpeg, "cannot be a JPEG"), (color, "colors, not class numbers")):
        with pytest.raises(ImageError, match=reason):
            decode_mask(file.read_bytes(), key=str(file))
    Image.new("1", (16, 16), 1).save(color)
    assert (decode_mask(color.read_bytes(), key="") == 1).all()


# Published counts


def test_whole_wflw_test_list(tmp_path: Path) -> None:
    marks.build_wflw(tmp_path)
    file = tmp_path / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt"
    cells = file.read_text().splitlines()[0].split()
    sizes = (326, 314, 698, 206, 736, 773)
    rows = [[*cells[:200], *(str(int(i < size)) for size in sizes), cells[206]] for i in range(2500)]
    marks.write(file, [" ".join(row) for row in rows])
    source = open_source(f"wflw:{tmp_path}?split=test&format=raw")
    assert len(source) == 2500
    found = {name: len(positions) for name, positions in source.subsets.items()}
    assert tuple(found.values()) == sizes
    swapped = [[*row[:200], *row[201:202], *row[200:201], *row[202:]] for row in rows]
    marks.write(file, [" ".join(row) for row in swapped])
    with pytest.raises(FaceSSLError, match="314 faces of the subset pose where the published set has 326"):
        open_source(f"wflw:{tmp_path}?split=test&format=raw")


def test_whole_celebamaskhq_mapping(tmp_path: Path) -> None:
    marks.build_celebamaskhq(tmp_path)
    originals = [*range(24183), *range(162771, 162771 + 2993), *range(182638, 182638 + 2824)]
    rows = [f"{i} {original} {original + 1:06d}.jpg" for i, original in enumerate(originals)]
    marks.write(tmp_path / "CelebA-HQ-to-CelebA-mapping.txt", ["idx orig_idx orig_file", *rows])
    marks.save(tmp_path / "CelebA-HQ-img/24183.jpg", marks.drawn(0)[0])
    assert len(open_source(f"celebamaskhq:{tmp_path}")) == 24183
    assert len(open_source(f"celebamaskhq:{tmp_path}?split=val")) == 2993


def test_drawn_faces_name_their_layout_classes_and_groups() -> None:
    source = open_source("synthetic:?n=8&size=32&group=glasses")
    at = source.attribute_names.index("glasses")
    assert source.layout == "ibug68"
    assert source.mask_names[2] == "left_eyebrow"
    assert source.mask_flip[2] == 3
    assert source.group_names == ("not glasses", "glasses")
    assert "group" in source.provides
    assert all(source[i].group == source[i].attributes[at] for i in range(8))  # type: ignore[index]
    plain = open_source("synthetic:?n=8&size=32")
    assert "group" not in plain.provides
    with pytest.raises(FaceSSLError, match="did you mean 'glasses'"):
        open_source("synthetic:?group=glases")
