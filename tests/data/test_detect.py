"""Faces in photos: found where they are, none where there is none; folders of crops that lead back to the photos."""

import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from facessl.cli.main import main
from facessl.core.errors import ConfigError, UnknownName
from facessl.data.detect import Face, detect, detect_all
from facessl.data.detectors import mtcnn
from facessl.data.detectors import yunet as yunet_module
from facessl.data.face_square import TEMPLATES, Frame, Template, similarity
from facessl.data.skipped import ImageError
from facessl.data.sources.synthetic import Synthetic
from facessl.tools.crop import crop, crop_face
from facessl.tools.options import Align
from tests.helpers import read_table

crop_module = importlib.import_module("facessl.tools.crop")
FRONTAL = {"yaw": 10.0, "pitch": 8.0, "roll": 8.0, "occlusion": 0.0, "degrade": 0.2}


def box_of(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner))


def photo(*places: tuple[int, int, int], index: int = 0, size: tuple[int, int] = (300, 500)) -> tuple[np.ndarray, list]:
    """A smooth photo with synthetic faces at (left, top, side), and the boxes of their landmarks."""
    height, width = size
    image = np.repeat(np.linspace(60, 160, width).astype(np.uint8)[None, :, None], height, 0).repeat(3, 2)
    source, boxes = Synthetic(n=50, size=160, seed=2, **FRONTAL), []  # type: ignore[arg-type]
    for number, (left, top, side) in enumerate(places):
        face = source[index + number]
        image[top : top + side, left : left + side] = cv2.resize(face.image, (side, side))
        boxes.append(box_of((face.landmarks + 0.5) * side / 160 - 0.5 + (left, top)))
    return image, boxes


def test_frontal_faces_are_found_where_they_are() -> None:
    scores = []
    for index in range(8):
        image, (box,) = photo((20 * index, 40, 200), index=index)
        (face,) = detect(image)
        scores.append(iou(face.box, box))
    assert min(scores) > 0.6


def test_the_five_points_are_eyes_nose_and_mouth() -> None:
    source, distances = Synthetic(n=50, size=160, seed=2, **FRONTAL), []  # type: ignore[arg-type]
    for index in range(6):
        (face,) = detect(photo((100, 40, 200), index=index)[0])
        marks = source[index].landmarks
        wanted = np.stack([marks[36:42].mean(0), marks[42:48].mean(0), marks[30], marks[48], marks[54]])
        distances.append(np.linalg.norm(face.five_points - (wanted + 0.5) * 200 / 160 + 0.5 - (100, 40), axis=1))
    mean = np.mean(distances, 0)  # where the eyes lie 60 pixels apart; the mouths of synthetic faces are harder
    assert mean[:3].max() < 6
    assert mean[3:].max() < 12


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_photo_has_its_face_where_it_is(turns: int) -> None:
    image, _ = photo((60, 40, 200))
    upright = detect(image)[0]
    (face,) = detect(np.ascontiguousarray(np.rot90(image, turns)))
    # np.rot90 counter-clockwise: (x, y) goes to (y, width - 1 - x)
    points, (height, width) = upright.five_points, image.shape[:2]
    for _ in range(turns):
        points, (height, width) = np.stack([points[:, 1], width - 1 - points[:, 0]], 1), (width, height)
    assert np.abs(face.five_points - points).max() < 4


def test_a_candidate_in_the_border_is_not_dropped_for_one_of_another_photo() -> None:
    boxes = torch.tensor([[600.0, 600, 660, 660], [-61, -61, -1, -1]])
    assert len(mtcnn._best(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.5)) == 2


def test_photos_of_several_sizes_together_have_the_faces_they_have_alone() -> None:
    images = [photo((60, 40, 200), (300, 100, 150))[0], photo((10, 10, 180), size=(200, 240))[0], photo()[0]]
    for together, image in zip(detect_all(images), images, strict=True):
        alone = detect(image)
        assert [f.box.tolist() for f in together] == [pytest.approx(f.box.tolist(), abs=2) for f in alone]


def test_a_large_photo_gives_boxes_in_its_own_pixels() -> None:
    image, (box,) = photo((100, 40, 200))
    large = cv2.resize(image, None, fx=3.0, fy=3.0)
    faces = detect(large)
    assert iou(faces[0].box, (box + 0.5) * 3 - 0.5) > 0.5


def test_the_larger_face_comes_first() -> None:
    image, boxes = photo((20, 120, 130), (220, 20, 260))
    faces = detect(image)
    assert iou(faces[0].box, boxes[1]) > 0.5
    assert any(iou(face.box, boxes[0]) > 0.5 for face in faces[1:])


def test_no_face_is_an_empty_list() -> None:
    assert detect(photo()[0]) == []
    assert detect(np.zeros((8, 8, 3), np.uint8)) == []


def test_yunet_gives_its_box_and_points_in_our_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "yunet.onnx"
    model.write_bytes(b"")

    class Fake:
        def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802
            assert size == (30, 20)

        def setScoreThreshold(self, score: float) -> None:  # noqa: N802
            assert score == 0.6

        def detect(self, image: np.ndarray) -> tuple[int, np.ndarray]:
            assert image[0, 0].tolist() == [3, 2, 1]  # BGR
            row = [1, 2, 10, 12, *range(10), 0.9]
            return 1, np.array([row], np.float32)

    monkeypatch.setattr(yunet_module.cv2.FaceDetectorYN, "create", lambda *_: Fake())
    (face,) = detect(np.tile(np.array([1, 2, 3], np.uint8), (20, 30, 1)), detector="yunet", model=model)
    assert face.box.tolist() == [1, 2, 11, 14]
    assert face.five_points.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_yunet_model_that_is_none_is_named(tmp_path: Path) -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"nothing\.onnx does not exist"):
        detect(image, detector="yunet", model=tmp_path / "nothing.onnx")
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"name a YuNet \.onnx file with --model"):
        detect(image, detector="yunet")
    with pytest.raises(ConfigError, match="leave out the model"):
        detect(image, model=tmp_path / "wrong.onnx")
    with pytest.raises(ConfigError, match=r"wrong\.onnx cannot be read as YuNet"):
        detect(image, detector="yunet", model=tmp_path / "wrong.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name, places, index in (("a/one.png", [(60, 30, 200)], 0), ("b/two.png", [(10, 100, 150), (220, 20, 260)], 0)):
        (root / name).parent.mkdir(parents=True)
        Image.fromarray(photo(*places, index=index)[0]).save(root / name)
    Image.fromarray(photo()[0]).save(root / "a" / "empty.png")
    (root / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return root


def matrix_of(row: dict[str, str]) -> np.ndarray:
    return np.array([*(float(row[f"m{i}{j}"]) for i in range(2) for j in range(3)), 0, 0, 1]).reshape(3, 3)


def test_crops_lie_in_the_same_sub_folders_and_lead_back(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces"
    summary = crop(str(photos), out, size=96, margin=1.5, format="png")
    assert (summary.photos, summary.faces, summary.new_photos) == (4, 2, 4)
    assert [Path(key).name for key in summary.without_face] == ["empty.png"]
    assert [Path(key).name for key, _ in summary.skipped] == ["broken.jpg"]
    assert "broken.jpg" in (out / "skipped.csv").read_text()
    assert sorted(row["image"] for row in read_table(out / "faces.csv")) == ["a/one.png", "b/two.png"]
    for row in read_table(out / "faces.csv"):
        matrix = matrix_of(row)
        found = np.array(Image.open(out / row["image"]))
        again = Frame(matrix, 96).image(np.array(Image.open(row["original"])), "reflect")
        assert np.abs(found.astype(int) - again).max() <= 1  # the table's digits
        box = np.array([float(row[name]) for name in ("left", "top", "right", "bottom")])
        longer = max(box[2] - box[0], box[3] - box[1])
        assert float(row["size"]) == pytest.approx(longer)
        assert 96 / matrix[0, 0] == pytest.approx(longer * 1.5, rel=1e-5)


@pytest.mark.parametrize(
    ("align", "template"), [("none", "farl"), ("eyes", "farl"), ("five-points", "farl"), ("five-points", "arcface")]
)
@pytest.mark.parametrize("degrees", [0, 25])
def test_aligned_crops_lead_back(align: Align, template: Template, degrees: float, tmp_path: Path) -> None:
    turn = similarity(500, rotation=degrees)
    image = cv2.warpAffine(photo((150, 150, 200), size=(500, 500))[0], turn[:2], (500, 500), borderValue=(90, 90, 90))
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    out = tmp_path / "out"
    crop(tmp_path / "photos", out, size=224, align=align, template=template, margin=1.5, format="png")  # type: ignore[arg-type]
    (row,) = read_table(out / "faces.csv")
    frame, (there,), (inside,) = Frame(matrix_of(row), 224), detect(image), detect(np.array(Image.open(out / "a.png")))
    side = max(there.box[2:] - there.box[:2])
    assert np.abs(frame.inverse_points(inside.five_points) - there.five_points).max() < 0.06 * side
    moved = frame.points(there.five_points)
    tilt = abs(moved[1, 1] - moved[0, 1]) / np.linalg.norm(moved[1] - moved[0])
    if align == "eyes":
        assert tilt < 1e-6
    if align == "five-points":
        assert tilt < 0.1
        target = ((TEMPLATES[template] - 0.5) / 1.5 + 0.5) * 224 - 0.5
        assert np.abs(moved.mean(0) - target.mean(0)).max() < 1e-3  # a least-squares fit keeps the mean
        assert np.abs(moved - target).max() < 15


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A detector that finds two faces in every photo but the empty one, at once; one entry per photo it looked at."""
    seen: list[int] = []

    def fake(image: np.ndarray, **options: object) -> list[Face]:
        seen.append(1)
        boxes = [(100, 50, 200, 150), (20, 80, 60, 120)] if (image[..., 0] != image[0, :, 0]).any() else []
        return [Face(np.array(box, np.float32), 0.9) for box in boxes]

    monkeypatch.setattr(crop_module, "detect", fake)
    return seen


def test_one_face_is_cut_as_crop_cuts_it(photos: Path, tmp_path: Path) -> None:
    two, given = photos / "b" / "two.png", ({}, {"size": 64, "margin": 1.6, "align": "eyes"})
    for options in given:
        out = tmp_path / str(len(options))
        crop(photos, out, format="png", **options)  # type: ignore[arg-type]
        stored = np.asarray(Image.open(out / "b" / "two.png"))
        for image in (two, str(two), Image.open(two), np.asarray(Image.open(two))):
            np.testing.assert_array_equal(crop_face(image, **options), stored)
    assert crop_face(photos / "a" / "empty.png") is None
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        crop_face(photos / "b" / "broken.jpg")
    with pytest.raises(UnknownName, match="option of crop_face 'dedupe'"):
        crop_face(two, dedupe=True)


def test_every_face_of_a_photo_where_asked(photos: Path, tmp_path: Path, looked: list[int]) -> None:
    out = tmp_path / "faces"
    Image.open(photos / "a" / "one.png").save(photos / "a" / "one.bmp")
    assert crop(str(photos), out, size=64, all_faces=True).faces == 6
    names = {row["image"] for row in read_table(out / "faces.csv")}
    both = {"a/one.jpg", "a/one-2.jpg", "a/one.png.jpg", "a/one.png-2.jpg"}
    assert names == {*both, "b/two.jpg", "b/two-2.jpg"}
    assert all((out / name).is_file() for name in names)


@pytest.mark.fault("C3", "`crop` smeared the edge of the photo over what lies outside it")
def test_a_crop_beyond_the_photo_shows_it_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    face = Face(np.array([-30.5, -20.5, 69.5, 79.5], np.float32), 0.9)
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: [face])
    crop(tmp_path / "photos", tmp_path / "out", size=100, margin=1.0, format="png")
    wanted = np.pad(image, ((20, 0), (30, 0), (0, 0)), mode="symmetric")[:100, :100]
    assert (np.array(Image.open(tmp_path / "out" / "a.png")) == wanted).all()


def test_small_and_blurred_faces_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharp, _ = photo((100, 50, 200), (320, 50, 160))
    for name, image in (("sharp", sharp), ("blurred", cv2.GaussianBlur(sharp, None, 5))):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / f"{name}.png")
    faces = [Face(np.array(box, np.float32), 0.9) for box in ((140, 90, 260, 220), (360, 90, 430, 170))]
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: faces)
    first = crop(tmp_path / "photos", tmp_path / "all", all_faces=True)
    assert (first.faces, first.small, first.blurred) == (4, 0, 0)
    rows = read_table(tmp_path / "all" / "faces.csv")
    values = {Path(row["image"]).stem: (float(row["size"]), float(row["sharpness"])) for row in rows}
    assert values["sharp"][0] == values["blurred"][0] == 130
    assert values["sharp"][1] > 4 * values["blurred"][1]
    limit = 2 * values["blurred"][1]
    found = crop(tmp_path / "photos", tmp_path / "some", all_faces=True, min_size=100, min_sharpness=limit)
    assert (found.faces, found.small, found.blurred) == (1, 2, 1)
    assert [row["image"] for row in read_table(tmp_path / "some" / "faces.csv")] == ["sharp.jpg"]
    again = crop(tmp_path / "photos", tmp_path / "some", all_faces=True, min_size=100, min_sharpness=limit)
    assert (again.new_photos, again.without_face, again.skipped) == (0, [], [])


@pytest.mark.fault("C3", "`crop` printed nothing for minutes")
def test_crop_prints_how_far_it_is(photos: Path, looked: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crop", str(photos), "--out", str(photos.parent / "out"), "--align", "none"]) == 0
    assert "image 4/4 " in capsys.readouterr().err


def test_crop_without_a_face_ends_with_a_sentence_unless_there_are_faces_already(
    photos: Path, looked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(photos.parent / "out"), "--align", "none"]
    for says in ("the 1 photo of empty (1 without a face, 0 unreadable)", "the 1 photo of empty (", "skipped.csv says"):
        assert main(["crop", str(photos / "a" / "empty.png"), *words]) == 1
        assert says.replace("empty", str(photos / "a" / "empty.png"), 1) in capsys.readouterr().err
    assert main(["crop", str(photos), *words]) == 0
    assert main(["crop", str(photos / "a" / "empty.png"), *words]) == 0


@pytest.mark.fault("E16", "a photo that could not be read once was left out for ever, although it was corrected")
def test_a_corrected_photo_is_cropped(photos: Path, tmp_path: Path) -> None:
    assert len(crop(photos, tmp_path / "out").skipped) == 1
    Image.fromarray(photo((60, 30, 200), index=0)[0]).save(photos / "b" / "broken.jpg")
    found = crop(photos, tmp_path / "out")
    assert (found.skipped, found.new_photos, found.new_faces) == ([], 1, 1)
    assert "broken" not in (tmp_path / "out" / "skipped.csv").read_text()


def test_a_stopped_crop_goes_on_and_other_settings_are_refused(photos: Path, tmp_path: Path, looked: list[int]) -> None:
    out = tmp_path / "faces"

    def interrupted(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crop(str(photos), out, size=64, progress=interrupted)
    with open(out / "faces.csv", "a") as file:
        file.write("a/torn.jpg,so")  # what a full disk or a killed process leaves
    looked.clear()
    summary = crop(str(photos), out, size=64)
    assert (summary.new_photos, summary.new_faces) == (2, 1)
    assert len(looked) == 1  # of the two photos that were left, one is broken
    assert sorted(row["image"] for row in read_table(out / "faces.csv")) == ["a/one.jpg", "b/two.jpg"]
    again = crop(str(photos), out, size=64)
    assert (again.new_photos, again.new_faces, again.faces) == (1, 0, 2)  # the broken one, once more
    with pytest.raises(ConfigError, match="was made with --size 64, and this call is with --size 80"):
        crop(str(photos), out, size=80)


def test_nothing_of_somebody_else_is_touched(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="not empty"):
        crop(str(photos), tmp_path / "mine")
    with pytest.raises(ConfigError, match="cannot lie inside"):
        crop(str(photos), photos / "faces")
    with pytest.raises(ConfigError, match="margin is 0: give"):
        crop(str(photos), tmp_path / "new", margin=0)
