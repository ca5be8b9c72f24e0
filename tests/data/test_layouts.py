"""Landmark orders: on a symmetric face, mirroring must change nothing but which side a point is on."""

import numpy as np
import pytest

from facessl.core.errors import UnknownName
from facessl.data.layouts import layout, names
from facessl.data.sources.synthetic import Synthetic

from .make import mirror


def arc(count: int, center: tuple[float, float], radius: tuple[float, float], start: float, end: float) -> np.ndarray:
    """(count, 2) points on an ellipse from angle start to end in degrees (0 right, 90 down)."""
    t = np.radians(np.linspace(start, end, count))
    return np.stack([center[0] + radius[0] * np.cos(t), center[1] + radius[1] * np.sin(t)], 1)


def line(count: int, first: tuple[float, float], last: tuple[float, float]) -> np.ndarray:
    return np.linspace(first, last, count)


def ring(count: int, x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """A closed outline that starts at the left, goes over the top and round."""
    return arc(count + 1, (x, y), (rx, ry), 180, 540)[:-1]


def brow(x: float, upper: bool) -> np.ndarray:
    """Five points above, four below, of a brow that has its thick end towards x = 0."""
    if upper:
        return arc(5, (x, -30), (12, 4), 180, 360)
    inner = x - 12 * np.sign(x)
    return line(4, (inner, -28), (inner + 20 * np.sign(x), -28))  # outwards


def idealised(name: str) -> np.ndarray:
    """A face symmetric about x = 0, drawn part by part in the order that the data set's figure shows."""
    eyes = {n: [ring(n, -20, -15, 8, 4), ring(n, 20, -15, 8, 4)] for n in (6, 8)}
    mouth = [ring(12, 0, 30, 15, 7), ring(8, 0, 30, 11, 3)]
    chin = arc(33, (0, -10), (40, 60), 180, 0)
    brows = [brow(-20, True), brow(-20, False), brow(20, True), brow(20, False)[::-1]]
    pupils = np.array([[-20.0, -15], [20, -15]])
    parts = {
        "ibug68": [
            *(chin[::2], brow(-20, True), brow(20, True), line(4, (0, -15), (0, 8)), line(5, (-8, 12), (8, 12))),
            *(*eyes[6], *mouth),
        ],
        "wflw98": [
            *(chin, *brows, line(4, (0, -15), (0, 8)), line(5, (-8, 12), (8, 12)), *eyes[8], *mouth, pupils),
        ],
        "aflw19": [
            *(line(3, (-32, -30), (-8, -30)), line(3, (8, -30), (32, -30))),
            *(line(3, (-28, -15), (-12, -15)), line(3, (12, -15), (28, -15))),
            *(line(3, (-8, 10), (8, 10)), line(3, (-15, 30), (15, 30)), np.array([[0.0, 50]])),
        ],
        "lapa106": [
            *(chin, *brows, line(4, (0, -15), (0, 8)), arc(11, (0, 0), (9, 14), 225, -45)),
            *(eyes[8][0], pupils[:1], eyes[8][1], pupils[1:], *mouth, pupils),
        ],
    }
    return np.concatenate(parts[name])


@pytest.mark.parametrize("name", names())
def test_a_symmetric_face_is_its_own_mirror_image(name: str) -> None:
    face, order = idealised(name) + 50.0, layout(name)
    assert len(face) == order.points
    np.testing.assert_allclose(mirror(face, order, width=101), face, atol=1e-9)


@pytest.mark.parametrize("name", names())
def test_a_flip_is_its_own_inverse(name: str) -> None:
    flip = layout(name).flip
    assert [flip[other] for other in flip] == list(range(layout(name).points))


@pytest.mark.parametrize("name", names())
def test_units_are_measured_between_the_two_sides(name: str) -> None:
    face, order = idealised(name), layout(name)
    left, right = order.ocular
    assert order.flip[left] == right
    assert face[left, 0] == face[:, 0][[left, right]].min() == pytest.approx(-28)
    sides = [face[list(indices)].mean(0) for indices in order.pupils]
    np.testing.assert_allclose(sides, [[-20, -15], [20, -15]], atol=1e-9)


def test_ibug68_mirrors_drawn_faces_on_themselves() -> None:
    source = Synthetic(n=40, size=64, yaw=0, pitch=0, roll=0, occlusion=0)
    order, gaps = layout("ibug68"), []
    for i in range(len(source)):
        marks = source[i].landmarks
        left, right = marks[list(order.ocular)]
        width = float(left[0] + right[0]) + 1  # mirror about the middle between the eyes
        gaps.append(np.abs(mirror(marks, order, width) - marks).max() / (right[0] - left[0]))
    assert np.median(gaps) < 0.15  # synthetic faces are slightly lopsided; a wrong pair is off by far more


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'ibug68'"):
        layout("ibug_68")
