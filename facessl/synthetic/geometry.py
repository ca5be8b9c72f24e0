"""Curves and the camera of the synthetic faces.

Head frame: the unit is half the breadth of a mean face (about 70 mm), x to the image's right, y down, z to the
viewer, the eyes on y = 0. View plane: the head after yaw and pitch, still upright, in the same unit; soft maps
(paint, light) live there. Pixels: the center of the top-left pixel is (0, 0).
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

_DISTANCE = 9.0  # camera to head, in head units: about 63 cm, a portrait's perspective


@functools.cache
def _spline(n: int, closed: bool, per: int) -> np.ndarray:
    """(m, n) weights of a uniform Catmull-Rom curve through n points with `per` samples per segment."""
    segments = n if closed else n - 1
    t = np.arange(per) / per
    basis = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1) / 2
    rows = np.zeros((segments * per + (not closed), n), np.float32)
    for s in range(segments):
        for k in range(4):
            j = s + k - 1
            j = j % n if closed else min(max(j, 0), n - 1)
            rows[s * per : (s + 1) * per, j] += basis[:, k]
    if not closed:
        rows[-1, -1] = 1
    return rows


def curve(points: np.ndarray, closed: bool = False, per: int = 5) -> np.ndarray:
    """A smooth curve through `points` (..., n, D) -> (..., m, D)."""
    return _spline(points.shape[-2], closed, per) @ points.astype(np.float32, copy=False)


def circle(n: int, power: float = 1.0) -> np.ndarray:
    """(n, 2) points of the unit circle; a `power` towards 0 makes it a square."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    round_ = np.stack([np.cos(t), np.sin(t)], 1)
    return np.sign(round_) * np.abs(round_) ** power


def ribbon(line: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The closed outline of a stroke along `line` (n, 2) with half-widths `widths` (n,) -> (2n, 2)."""
    d = np.empty_like(line)
    d[1:-1], d[0], d[-1] = line[2:] - line[:-2], line[1] - line[0], line[-1] - line[-2]
    scale = widths / (np.hypot(d[:, 0], d[:, 1]) + 1e-6)
    offset = np.stack([-d[:, 1] * scale, d[:, 0] * scale], 1)
    return np.concatenate([line + offset, (line - offset)[::-1]])


@dataclass(frozen=True)
class Camera:
    """Position and rotation of the head."""

    # yaw, pitch, roll: degrees; positive turns the nose to the image's right, lifts it, and turns the face clockwise.
    yaw: float
    pitch: float
    roll: float
    unit: float  # pixels per head unit
    center: tuple[float, float]  # pixel on which the view plane's origin falls

    @functools.cached_property
    def rotation(self) -> np.ndarray:
        """(3, 3): head frame to view frame, roll not included."""
        y, p = math.radians(self.yaw), math.radians(self.pitch)
        cy, sy, cp, sp = math.cos(y), math.sin(y), math.cos(p), math.sin(p)
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], np.float32)
        nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]], np.float32)
        return nod @ turn

    @functools.cached_property
    def affine(self) -> np.ndarray:
        """(2, 3): view plane to pixels."""
        r = math.radians(self.roll)
        c, s = math.cos(r) * self.unit, math.sin(r) * self.unit
        return np.array([[c, -s, self.center[0]], [s, c, self.center[1]]], np.float32)

    @functools.cached_property
    def up(self) -> np.ndarray:
        """(2,) pixels of one head unit towards the crown."""
        return -self.affine[:, 1]

    def view(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) head frame -> (..., 2) view plane."""
        p = points @ self.rotation.T
        return p[..., :2] * (_DISTANCE / (_DISTANCE - p[..., 2:]))

    def project(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) head frame -> (..., 2) pixels."""
        return self.view(np.asarray(points, np.float32)) @ self.affine[:, :2].T + self.affine[:, 2]
