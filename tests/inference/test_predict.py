"""Predictions on photos: coordinates come back, files are the photo's own, nothing is lost on the way."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from facessl.cli.main import USER_ERROR, main
from facessl.cli.networks import NOTHING_FOUND
from facessl.core import checkpoint
from facessl.core.errors import ConfigError, DataError
from facessl.data.decode import decode_mask
from facessl.data.detect import detect
from facessl.data.face_square import similarity
from facessl.data.sources.synthetic import Synthetic
from facessl.inference import predict as predict_module
from facessl.inference import trained_task
from facessl.inference.framing import measure, sentence
from facessl.inference.predict import NO_FACE, frame_of_face, predict
from facessl.inference.trained_task import Trained
from facessl.models.backbone import Backbone
from facessl.tasks.alignment import Alignment
from facessl.tasks.base import Labels
from facessl.tasks.expression import Expression
from facessl.tasks.parsing import Parsing
from facessl.views.augment import Augment
from tests.helpers import as_ranks

SIZE = 96
MARKED = (36, 45, 57)  # an eye's outer corner, the other one's, the lower lip


@dataclass
class Found:
    box: np.ndarray
    score: float = 0.9
    five_points: np.ndarray | None = None


class Dots(nn.Module):
    """A task that is always right: three landmarks, each the middle of what is red, green or blue in the view."""

    describe = Alignment.describe

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(1, 1)
        self.backbone.mean, self.backbone.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # type: ignore[assignment]
        self.labels = Labels(points=3)
        self.batches: list[int] = []

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        self.batches.append(len(x))
        weight = (x - (x.sum(1, keepdim=True) - x) / 2).clamp_min(0)  # (B, 3, S, S)
        weight = torch.where(weight > 0.1, weight, 0)
        weight = weight / weight.sum((2, 3), keepdim=True)
        place = torch.arange(x.shape[-1], dtype=x.dtype)
        return {"landmarks": torch.stack([(weight.sum(2) * place).sum(2), (weight.sum(3) * place).sum(2)], dim=2)}


def dots(**augment: Any) -> Trained:
    return Trained(Dots(), SIZE, Augment(**augment), {"task": {"name": "alignment"}})  # type: ignore[arg-type]


def marked_face(index: int, *, rotation: float = 0.0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, Found]:
    """A dim synthetic face, turned and scaled, with three colored dots: (300, 300, 3), (3, 2) places, the face."""
    sample = Synthetic(n=8, size=128, occlusion=0.0)[index]
    turn = np.diag([1.0, 1.0, 1.0])
    turn[:2, 2] = 300 / 2 - 128 / 2
    matrix = similarity(300, rotation=rotation, scale=scale) @ turn
    gray = sample.image.mean(2).astype(np.float32) / 8
    canvas = cv2.warpAffine(gray, matrix[:2], (300, 300))[..., None].repeat(3, 2)
    places = sample.landmarks @ matrix[:2, :2].T + matrix[:2, 2]
    y, x = np.mgrid[:300, :300]
    for channel, (px, py) in enumerate(places[list(MARKED)]):
        canvas[..., channel] += 200 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.5**2))
    eyes, mouth = [places[36:42].mean(0), places[42:48].mean(0)], [places[48], places[54]]
    box = np.concatenate([places.min(0) - 5, places.max(0) + 5])
    found = Found(box, five_points=np.stack([*eyes, places[30], *mouth]))
    return canvas.clip(0, 255).astype(np.uint8), places[list(MARKED)], found


def saved(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def finder(*faces: Found) -> Any:
    return lambda image: list(faces)


def told(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(("rotation", "scale"), [(0.0, 1.0), (35.0, 0.6), (-70.0, 1.4)])
@pytest.mark.parametrize(
    "augment",
    [
        {"crop": "whole"},
        {"crop": "box", "crop_scale": 1.25},
        {"crop": "five_points"},
        {"crop": "five_points", "warp": 0.8, "template": "celeba"},
    ],
    ids=lambda a: "-".join(str(v) for v in a.values()),
)
def test_landmarks_come_back_to_the_photo(
    augment: dict[str, Any], rotation: float, scale: float, tmp_path: Path
) -> None:
    for index in range(3):
        image, places, face = marked_face(index, rotation=rotation, scale=scale)
        photo = saved(image, tmp_path / f"{index}.png")
        predict(dots(**augment), [photo], out=tmp_path / "out", detector=finder(face), draw=False)
        back = np.array(told(tmp_path / "out" / f"{index}.json")["faces"][0]["landmarks"])
        assert np.abs(back - places).max() < 0.5


@pytest.mark.parametrize("crop", ["whole", "box", "five_points"])
def test_without_crop_the_whole_picture_is_the_face(crop: str, tmp_path: Path) -> None:
    image, places, _ = marked_face(0)
    wide = image[40:250]  # not square
    (found,) = predict(
        dots(crop=crop, crop_scale=1.25), [saved(wide, tmp_path / "a.png")], out=tmp_path / "out", crop=False
    )
    assert np.abs(np.array(found.faces[0]["landmarks"]) - (places - (0, 40))).max() < 0.5
    assert found.faces[0]["box"] == [-0.5, -0.5, 299.5, 209.5]
    assert found.faces[0]["score"] is None


def test_a_turned_photo_is_predicted_upright(tmp_path: Path) -> None:
    image, places, face = marked_face(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for viewing
    Image.fromarray(np.rot90(image[:240], 1)).save(tmp_path / "a.jpg", exif=exif, quality=98)
    (found,) = predict(dots(crop="box"), [tmp_path / "a.jpg"], out=tmp_path / "out", detector=finder(face), draw=False)
    content = told(found.files[0])
    assert (content["width"], content["height"]) == (300, 240)
    assert np.abs(np.array(found.faces[0]["landmarks"]) - places).max() < 0.5


def test_faces_of_several_photos_share_batches_and_keep_their_places(tmp_path: Path) -> None:
    marked = [marked_face(i) for i in range(3)]
    photos = [saved(marked[0][0], tmp_path / "one.png")]
    both = np.concatenate([marked[1][0], marked[2][0]], axis=1)  # (300, 600, 3)
    photos.append(saved(both, tmp_path / "two.png"))
    moved = Found(marked[2][2].box + np.array([300, 0, 300, 0]))
    faces = {300: [marked[0][2]], 600: [marked[1][2], moved]}
    trained = dots(crop="box", crop_scale=1.1)
    one, two = predict(
        trained, photos, out=tmp_path / "out", detector=lambda image: faces[image.shape[1]], batch_size=8
    )
    assert trained.task.batches == [3]  # type: ignore[attr-defined]
    assert np.abs(np.array(one.faces[0]["landmarks"]) - marked[0][1]).max() < 0.5
    assert np.abs(np.array(two.faces[0]["landmarks"]) - marked[1][1]).max() < 0.5
    assert np.abs(np.array(two.faces[1]["landmarks"]) - marked[2][1] - (300, 0)).max() < 0.5
    small = predict(trained, photos, out=tmp_path / "2", detector=lambda image: faces[image.shape[1]], batch_size=1)
    assert [found.faces for found in small] == [one.faces, two.faces]


@pytest.mark.fault("A13", "`predict` cropped faces with a margin of 1.3, whatever the training images showed")
def test_a_face_is_framed_as_in_the_training_images(tmp_path: Path) -> None:
    source = Synthetic(n=12, size=128, yaw=5, pitch=5, roll=5, occlusion=0.0, degrade=0.0)
    framing = measure(source)
    assert framing["faces"] >= 10
    trained = dots()
    trained.card["framing"] = framing
    shown = []
    for index in range(6):  # each training image as a part of a photo
        image = np.full((400, 400, 3), 128, np.uint8)
        image[150:278, 60:188] = source[index].image
        (face, *_) = detect(image)
        frame = frame_of_face(trained, face, 400, 400)
        shown.append(frame.inverse_points(np.array([(-0.5, -0.5), (SIZE - 0.5, SIZE - 0.5)])).ravel())
    assert np.median(shown, 0) == pytest.approx([59.5, 149.5, 187.5, 277.5], abs=8)
    few = measure(Synthetic(n=3, size=128))
    assert "margin" not in few
    assert "too few" in sentence(few)


def test_margin_widens_the_square_of_whole_image_models() -> None:
    face = Found(np.array([10.0, 20.0, 50.0, 80.0]))
    frame = frame_of_face(dots(), face, 200, 200, margin=1.5, lift=0.1)
    ends = frame.inverse_points(np.array([(-0.5, -0.5), (SIZE - 0.5, SIZE - 0.5)]))
    assert np.allclose(ends, [(30 - 45, 44 - 45), (30 + 45, 44 + 45)])  # lifted by a tenth of 60
    with pytest.raises(ConfigError, match="margin = 70"):
        predict(dots(), [], out="unused", margin=70, detector=finder())


def test_no_face_is_said_and_unreadable_photos_are_listed(tmp_path: Path) -> None:
    image, _, _ = marked_face(0)
    good, bad = saved(image, tmp_path / "good.png"), tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    first, second, third = predict(
        dots(), [bad, good, tmp_path / "missing.png"], out=tmp_path / "out", detector=finder(), max_bad=0.7
    )
    assert (first.read, second.read, third.read) == (False, True, False)
    assert "bad.jpg" in first.note
    assert second.note == told(tmp_path / "out" / "good.json")["note"] == NO_FACE
    assert not (tmp_path / "out" / "bad.json").exists()
    with pytest.raises(DataError, match="no photo could be read"):
        predict(dots(), [bad], out=tmp_path / "out", detector=finder())


def test_a_detector_without_points_is_named_where_they_are_needed(tmp_path: Path) -> None:
    image, _, face = marked_face(0)
    face.five_points = None
    with pytest.raises(DataError, match="--detector mtcnn"):
        predict(
            dots(crop="five_points"), [saved(image, tmp_path / "a.png")], out=tmp_path / "out", detector=finder(face)
        )


def names(out: Path) -> Sequence[str]:
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def test_equal_names_do_not_meet_and_a_second_call_rewrites_its_own(tmp_path: Path) -> None:
    image, _, _ = marked_face(0)
    given = [saved(image, tmp_path / p) for p in ("a/x.png", "b/x.png", "c/x.bmp", "a/x.mask.png")]
    out = tmp_path / "out"
    for photos in (given, given[::-1], given):
        found = predict(dots(), photos, out=out, crop=False)
        assert names(out) == sorted(f"{n}.{e}" for n in ("x", "x-2", "x-3", "x_mask") for e in ("json", "png"))
        for photo in found:
            assert told(photo.files[0])["photo"] == photo.photo
    predict(dots(), [given[0], saved(image, tmp_path / "X.png")], out=tmp_path / "case", crop=False)
    assert names(tmp_path / "case") == ["X-2.json", "X-2.png", "x.json", "x.png"]


def test_a_folder_keeps_its_sub_folders_and_a_photo_counts_once(tmp_path: Path) -> None:
    image, _, _ = marked_face(0)
    photos = tmp_path / "photos"
    saved(image, photos / "a/x.png")
    saved(image, photos / "b/x.png")
    out = photos / "predictions"
    for _ in range(2):  # the pictures of the first call are no photos of the second
        found = predict(dots(), [photos, photos / "a/x.png"], out=out, crop=False)
        assert len(found) == 2
        assert names(out) == ["a/x.json", "a/x.png", "b/x.json", "b/x.png"]
    with pytest.raises(ConfigError, match="another folder"):
        predict(dots(), [photos], out=photos, crop=False)


def test_foreign_files_stay_and_overwrite_spares_photos(tmp_path: Path) -> None:
    image, _, _ = marked_face(0)
    photo, out = saved(image, tmp_path / "x.png"), tmp_path / "out"
    out.mkdir()
    (out / "x.json").write_text('{"mine": 1}')
    (out / "y.png").write_bytes(b"mine")
    predict(dots(), [photo, saved(image, tmp_path / "y.png")], out=out, crop=False)
    assert (out / "x.json").read_text() == '{"mine": 1}'
    assert (out / "y.png").read_bytes() == b"mine"
    assert told(out / "x-2.json")["photo"] == str(photo)
    predict(dots(), [photo], out=out, crop=False, overwrite=True)
    assert told(out / "x.json")["photo"] == str(photo)
    before = photo.read_bytes()
    predict(dots(), [photo], out=tmp_path, crop=False, overwrite=True)
    assert photo.read_bytes() == before
    assert (tmp_path / "x-2.png").is_file()


def test_masks_are_class_numbers_in_the_photos_size(tmp_path: Path) -> None:
    image, _, face = marked_face(0)
    backbone = Backbone("test_resnet", image_size=64)
    labels = Labels(mask_names=("background", "skin", "hair"))
    task = Parsing(backbone, labels, width=16)
    trained = Trained(task, 64, Augment(), {"task": {"name": "parsing"}})  # type: ignore[arg-type]
    photo = saved(image[:200], tmp_path / "a.png")
    (found,) = predict(trained, [photo], out=tmp_path / "out", detector=finder(face, face))
    assert [face["mask"] for face in found.faces] == ["a.mask.png", "a.mask-2.png"]
    mask = decode_mask((tmp_path / "out" / "a.mask.png").read_bytes(), key="a")
    assert mask.shape == (200, 300)
    assert np.bincount(mask.ravel(), minlength=3) / mask.size == pytest.approx(
        list(found.faces[0]["share"].values()), abs=1e-4
    )
    before = sorted(tmp_path.rglob("*"))
    (alone,) = predict(trained, photo, detector=finder(face, face))
    assert (alone.files, sorted(tmp_path.rglob("*")), Path("predictions").exists()) == ([], before, False)
    np.testing.assert_array_equal(alone.faces[0].pop("mask"), mask)
    assert alone.faces[0].items() <= found.faces[0].items()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a finished run: an expression model with random weights."""
    backbone = Backbone("test_resnet", image_size=32)
    labels = Labels(label_names=("calm", "glad"))
    task = Expression(backbone, labels)
    settings = {"task": {"name": "expression"}, "protocol": "finetune", "image_size": 32, "run": "none", "source": "s"}
    info = trained_task.card(task, labels, settings, Augment(), steps=1, commit="")  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    checkpoint.write_backbone(tmp_path / "run" / "model.safetensors", task.state_dict(), info)
    return tmp_path / "run"


def test_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, _, _ = marked_face(0)
    a, b, bad = saved(image, tmp_path / "a.png"), saved(image, tmp_path / "b.png"), tmp_path / "c.png"
    bad.write_bytes(b"")
    out = str(tmp_path / "out")
    words = ["predict", str(run), str(a), str(b), str(bad), "--no-crop", "--out", out, "--device", "cpu"]
    assert main([*words, "--max-bad", "0"]) == USER_ERROR
    assert "1 image of 3 cannot be read, more than the 0 that max_bad allows" in capsys.readouterr().err
    assert main(words) == 0, "one is always allowed by a fraction above 0"
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == {"photos": 2, "faces": 2, "out": out, "skipped": 1}
    assert "c.png" in printed.err
    assert told(tmp_path / "out" / "a.json")["faces"][0]["label"] in ("calm", "glad")
    plain = saved(np.full((64, 64, 3), 128, np.uint8), tmp_path / "plain.png")
    assert main(["predict", str(run), str(plain), "--out", out, "--device", "cpu"]) == NOTHING_FOUND
    capsys.readouterr()
    assert main([*words, "--task", "alignment"]) == USER_ERROR
    assert "expression" in capsys.readouterr().err
    assert main(["predict", str(run), str(bad), "--no-crop", "--out", out]) == USER_ERROR


def test_ranks_predict_a_part_of_the_photos_each(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate("abcde"):
        saved(marked_face(index)[0], tmp_path / "photos" / f"{name}.png")
    words = ["predict", str(run), "photos", "--no-crop", "--device", "cpu", "--out", "two"]
    assert as_ranks(lambda: main(words), 2) == [0, 0]
    assert json.loads(capfd.readouterr().out) == {"photos": 5, "faces": 5, "out": "two", "skipped": 0}
    predict(run, tmp_path / "photos", crop=False, out=tmp_path / "one")
    for name in "abcde":
        (face,) = told(tmp_path / "two" / f"{name}.json")["faces"]
        assert face["probabilities"] == pytest.approx(
            told(tmp_path / "one" / f"{name}.json")["faces"][0]["probabilities"], abs=1e-4
        )
        assert (tmp_path / "two" / f"{name}.png").is_file()


@pytest.mark.fault("A6", "the rank that held only the unreadable photo of 20 said that no photo could be read")
def test_unreadable_photos_are_counted_over_all_ranks_in_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [saved(marked_face(0)[0], tmp_path / f"{name}.png") for name in "abcd"]
    photos[3].write_bytes(b"no image")
    out = tmp_path / "out"
    others: list[tuple[str, str]] = []
    locked = []

    def gathered(value: Any) -> list[Any]:
        locked.append((out / ".lock").exists())
        return [others, value]

    monkeypatch.setattr(predict_module, "gathered", gathered)
    monkeypatch.setattr(predict_module, "own_part", lambda count: slice(3, count))
    (found,) = predict(dots(), photos, out=out, crop=False, max_bad=0.5)
    assert not found.read
    assert locked == [True, True]  # before the first photo and after the last one of any rank
    others += [(str(photo), f"cannot read the image {photo}: gone") for photo in photos[:2]]
    with pytest.raises(DataError, match="3 images of 4 cannot be read, more than the 2 that max_bad allows"):
        predict(dots(), photos, out=out, crop=False, max_bad=0.5)
