"""The synthetic faces: truthful labels, reproducible pictures, clear errors."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from facessl.core.errors import ConfigError
from facessl.data.sources.synthetic import ATTRIBUTES, Synthetic
from facessl.synthetic.identity import sample_identity
from facessl.synthetic.render import render
from facessl.synthetic.scene import Limits, sample_scene

LEFT_EYE, RIGHT_EYE, MOUTH = range(36, 42), range(42, 48), range(48, 68)
REGIONS = {
    "left brow": ((2,), range(17, 22)),
    "right brow": ((3,), range(22, 27)),
    "left eye": ((4,), LEFT_EYE),
    "right eye": ((5,), RIGHT_EYE),
    "nose": ((6,), (27, 29, 30, 31, 35)),
    "mouth": ((7, 8, 9), MOUTH),
}
DIGEST = """
import hashlib
from facessl.data.sources.synthetic import ATTRIBUTES, Synthetic
s = Synthetic(size=48, seed=3)
print(hashlib.sha256(b"".join(s[i].image.tobytes() + s[i].landmarks.tobytes() for i in (7, 2))).hexdigest())
"""


@pytest.fixture(scope="module")
def bare() -> list:
    """64 uncovered faces of 96 pixels."""
    source = Synthetic(size=96, occlusion=0.0, seed=1)
    shown = source.attribute_names.index("sunglasses")
    return [s for s in (source[i] for i in range(64)) if not s.attributes[shown]]


def test_same_picture_in_another_process_and_order() -> None:
    ours = Synthetic(size=48, seed=3, n=8)
    ours[0]
    digest = hashlib.sha256(b"".join(ours[i].image.tobytes() + ours[i].landmarks.tobytes() for i in (7, 2)))
    theirs = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout
    assert theirs.strip() == digest.hexdigest()
    assert not np.array_equal(Synthetic(size=48, seed=4)[2].image, ours[2].image)


@pytest.mark.parametrize("name", REGIONS)
def test_mask_lies_where_the_landmarks_are(bare: list, name: str) -> None:
    classes, points = REGIONS[name]
    off = []
    for s in bare:
        y, x = np.nonzero(np.isin(s.mask, classes))
        if len(x) < 10:  # hidden by hair, a hat, or closed
            continue
        face = np.linalg.norm(s.landmarks[36] - s.landmarks[45])
        off.append(np.hypot(x.mean() - s.landmarks[points, 0].mean(), y.mean() - s.landmarks[points, 1].mean()) / face)
    assert len(off) > 40
    assert np.median(off) < 0.06
    assert np.quantile(off, 0.9) < 0.16


def test_landmarks_lie_on_the_drawing(bare: list) -> None:
    """Pupils and lashes make the eyes' inside vary more than the cheeks, whatever the light: a shift would show."""
    hits = 0
    for s in bare:
        gray = s.image.astype(np.float32).mean(2)
        eye = s.landmarks[LEFT_EYE].mean(0)
        cheek = (s.landmarks[2] + s.landmarks[31]) / 2

        def spread(at: np.ndarray, gray: np.ndarray = gray) -> float:
            x, y = np.rint(at).astype(int)
            return float(gray[max(0, y - 2) : y + 3, max(0, x - 3) : x + 4].std())

        hits += spread(eye) > spread(cheek)
    assert hits / len(bare) > 0.95


def test_left_is_the_left_of_the_image(bare: list) -> None:
    upright = [s for s in bare if abs(s.pose[2]) <= 15]
    assert len(upright) > 50
    for s in upright:
        assert (np.diff(s.landmarks[[0, 36, 39, 42, 45, 16], 0]) > -1).all()


def test_pose_turns_the_landmarks() -> None:
    for i in range(14):
        s = Synthetic(size=96, roll=0.0, seed=5)[i]
        middle = (s.landmarks[36] + s.landmarks[45]) / 2
        wide = np.linalg.norm(s.landmarks[36] - s.landmarks[45])
        if abs(s.pose[0]) > 8:
            assert np.sign(s.landmarks[30, 0] - middle[0]) == np.sign(s.pose[0]), "yaw > 0: nose to the right"
        tilted = Synthetic(size=96, yaw=0.0, pitch=0.0, seed=5)[i]
        across = tilted.landmarks[45] - tilted.landmarks[36]
        assert np.degrees(np.arctan2(across[1], across[0])) == pytest.approx(tilted.pose[2], abs=1.5)
        assert wide > 10
    up = Synthetic(size=96, yaw=0.0, roll=0.0, seed=6)
    lift = [
        (s.pose[1], (s.landmarks[30] - s.landmarks[27])[1] / np.ptp(s.landmarks[:, 1]))
        for s in map(up.__getitem__, range(40))
    ]
    assert np.corrcoef(np.array(lift).T)[0, 1] < -0.6, "pitch > 0: nose up"


def test_expressions_can_be_told_apart_by_shape() -> None:
    source = Synthetic(size=48, yaw=0.0, pitch=0.0, roll=0.0, occlusion=0.0, seed=2)
    samples = [source[i] for i in range(220)]
    shapes = np.array([(s.landmarks[17:] - s.landmarks[27]) for s in samples]).reshape(len(samples), -1)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    label = np.array([s.label for s in samples])
    assert set(label) == set(range(7))
    centers = np.stack([shapes[:150][label[:150] == k].mean(0) for k in range(7)])
    guess = np.linalg.norm(shapes[150:, None] - centers, axis=2).argmin(1)
    assert (guess == label[150:]).mean() > 0.6


def test_identity_keeps_what_does_not_change() -> None:
    source = Synthetic(size=32, identities=6)
    fixed = [source.attribute_names.index(a) for a in ("long_hair", "bald", "aged", "freckles", "curly_hair")]
    seen: dict[int, np.ndarray] = {}
    for i in range(60):
        s = source[i]
        assert np.array_equal(seen.setdefault(s.identity, s.attributes[fixed]), s.attributes[fixed])
    assert len(seen) == 6


def test_zoomed_faces_are_the_same_ones_closer_with_eyes_and_mouth_in_the_picture() -> None:
    for i in range(20):
        far, near = (Synthetic(size=48, zoom=zoom, yaw=15, pitch=8, roll=8)[i].landmarks for zoom in (1.0, 1.5))
        widths = [np.ptp(marks[[36, 45]], axis=0) for marks in (far, near)]
        np.testing.assert_allclose(widths[1], 1.5 * widths[0], rtol=0.02, atol=0.05)
        assert near[17:].min() >= 0
        assert near[17:].max() <= 47


def test_studio_pictures_of_one_person_differ_by_face_and_pose_only() -> None:
    plain, studio = (Synthetic(n=12, size=48, identities=1, degrade=0, occlusion=0, studio=on) for on in (False, True))
    corners = {on: [s[i].image[:4, :4].mean((0, 1)) for i in range(12)] for on, s in ((0, plain), (1, studio))}
    assert np.ptp(corners[1], axis=0).max() < 3 < np.ptp(corners[0], axis=0).max()
    worn = [ATTRIBUTES.index(name) for name in ("glasses", "sunglasses", "hat", "earrings")]
    for i in range(12):
        assert not studio[i].attributes[worn].any()
        assert (studio[i].label, studio[i].pose.tolist()) == (plain[i].label, plain[i].pose.tolist())
        np.testing.assert_array_equal(studio[i].landmarks[27:36], plain[i].landmarks[27:36])


def test_what_is_hidden_becomes_background() -> None:
    who = sample_identity(0, 1)
    for seed in range(8):
        scene = sample_scene(np.random.default_rng(seed), who, 96, Limits(occlusion=1.0))
        assert scene.occluder != "none"
        covered, free = (render(who, s, 96).mask for s in (scene, dataclasses.replace(scene, occluder="none")))
        changed = covered != free
        assert changed.sum() > 100
        assert (covered[changed] == 0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 0), ("size", 8), ("seed", -1), ("identities", 0), ("yaw", 90), ("occlusion", 2), ("zoom", 3)],
)
def test_bad_options_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"synthetic: {name} must be .*{value!r}"):
        Synthetic(**{name: value})
    with pytest.raises(ConfigError, match="takes no path"):
        Synthetic("photos")
