"""Soft maps on the upright view plane: the skin's color and the light that falls on the head.

Both are sums of axis-parallel Gaussian blobs on a coarse grid, computed as one matrix product; the camera's affine map
brings them into the image.
"""

import cv2
import numpy as np

from facessl.synthetic.geometry import Camera
from facessl.synthetic.identity import Identity
from facessl.synthetic.model import Head
from facessl.synthetic.scene import Scene

_GRID, _REACH = 56, 2.0  # samples per side, head units from the middle to the border
UNITY = 128  # light that leaves colors as they are
_GRAY = 138.0
_AXIS = np.linspace(-_REACH, _REACH, _GRID, dtype=np.float32)


def to_image(plane: np.ndarray, camera: Camera, size: int) -> np.ndarray:
    """A (G, G, 3) map of the view plane -> (size, size, 3), where it falls in the image."""
    step = 2 * _REACH / (_GRID - 1)
    m = camera.affine.astype(np.float64).copy()
    m[:, 2] += m[:, :2] @ (-_REACH, -_REACH)
    m[:, :2] *= step
    return cv2.warpAffine(plane, m, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class Blobs:
    """Gaussian blobs fixed to points of a head, each with standard deviations in head units and one or more values."""

    def __init__(self, head: Head, camera: Camera) -> None:
        self._head, self._camera = head, camera
        self._surface: list[tuple[float, ...]] = []
        self._free: list[tuple[float, ...]] = []
        self._points: list[np.ndarray] = []

    def at(self, x: float, y: float, sx: float, sy: float, *value: float, lift: float = 0.0) -> None:
        """A blob on the front surface below (x, y), moved `lift` towards the viewer."""
        self._surface.append((x, y, lift, sx, sy, *value))

    def pair(self, x: float, y: float, sx: float, sy: float, *value: float, lift: float = 0.0) -> None:
        """The same blob on both sides of the face."""
        self.at(-x, y, sx, sy, *value, lift=lift)
        self.at(x, y, sx, sy, *value, lift=lift)

    def add(self, point: np.ndarray, sx: float, sy: float, *value: float) -> None:
        """A blob at a 3-D point of the head frame."""
        self._points.append(point)
        self._free.append((sx, sy, *value))

    def _parts(self) -> tuple[np.ndarray, ...]:
        table, free = np.array(self._surface, np.float32), np.array(self._free, np.float32)
        surface = self._head.on_face(table[:, 0], table[:, 1], table[:, 2])
        at = self._camera.view(np.concatenate([surface, np.array(self._points, np.float32)]))
        rest = np.concatenate([table[:, 3:], free])
        dx = (_AXIS - at[:, :1]) / rest[:, :1]
        dy = (_AXIS - at[:, 1:]) / rest[:, 1:2]
        return dx, dy, np.exp(-0.5 * dx * dx), np.exp(-0.5 * dy * dy), rest[:, 2:], rest[:, :2]

    def total(self) -> list[np.ndarray]:
        """Sum of the blobs: one (G, G) map per value."""
        _, _, gx, gy, value, _ = self._parts()
        return [(gy * value[:, c : c + 1]).T @ gx for c in range(value.shape[1])]

    def slope(self) -> tuple[np.ndarray, np.ndarray]:
        """d/dx and d/dy of the sum of heights (value 0), each (G, G)."""
        dx, dy, gx, gy, value, sigma = self._parts()
        return (gy * value).T @ (-gx * dx / sigma[:, :1]), (-gy * dy / sigma[:, 1:] * value).T @ gx


def _bumps(head: Head, camera: Camera) -> Blobs:
    """Heights above the ellipsoid in head units."""
    s, e, b = head.shape, head.expression, Blobs(head, camera)
    ex, ey, ny, my = s["eye_x"], s["eye_y"], s["nose_y"], s["mouth_y"]
    b.pair(ex, ey - 0.02, 0.20, 0.12, -0.085)
    b.pair(ex, ey + 0.005, 0.12, 0.075, 0.06)
    b.pair(ex - 0.03, ey - 0.24, 0.26, 0.08, 0.045 + 0.02 * e.furrow)
    b.at(0, ey - 0.2, 0.12, 0.09, 0.025 - 0.03 * e.furrow)
    for t in (0.1, 0.4, 0.7):
        y = ey + t * (ny - 0.12 - ey)
        b.at(0, y, 0.075, 0.13, 0.09 + 0.08 * t, lift=s["bridge"] + t * 0.15)
    b.add(head.points[30] - (0, -0.02, 0.05), s["tip"], s["tip"], 0.17)
    b.pair(s["nose_w"] * 0.78, ny - 0.05, 0.06, 0.065, 0.055, lift=0.1)
    b.at(0, ny + 0.07, 0.16, 0.045, -0.05, lift=0.08)
    b.pair(0.55, ny - 0.22 - 0.08 * e.cheek, 0.2, 0.17, 0.06 + 0.07 * e.cheek)
    b.pair(0.36, my - 0.12, 0.045, 0.16, -0.012 - 0.04 * e.cheek)
    b.at(0, my - 0.03, 0.26, 0.09, 0.05, lift=0.05)
    b.add(head.points[51] + (0, 0.02, 0), 0.2, 0.05, 0.03)
    b.add(head.points[57] - (0, 0.04, 0), 0.17, 0.06, 0.05)
    b.add(head.points[57] + (0, 0.085, -0.02), 0.2, 0.05, -0.06)
    b.at(0, head.chin - 0.2, 0.2, 0.12, 0.075)
    return b


def _ellipsoid(head: Head, camera: Camera) -> tuple[np.ndarray, ...]:
    """Normal (three maps, not of unit length) of the turned ellipsoid behind the face, and where it is, 0 to 1."""
    axes = np.array([1.04 * head.shape["width"], 1.06 * head.chin, 1.14], np.float32)
    form = camera.rotation @ np.diag(1 / axes**2) @ camera.rotation.T
    (a, d, e), (_, b, f), (_, _, c) = form.tolist()
    center = camera.view(np.array([[0.0, 0.0, -0.17]], np.float32))[0]
    x, y = (_AXIS - center[0])[None, :], (_AXIS - center[1])[:, None]
    slope = e * x + f * y
    disc = slope * slope - c * (a * x * x + 2 * d * x * y + b * y * y - 1)
    root = np.sqrt(np.maximum(disc, 0.02))
    z = (root - slope) / c
    t = np.minimum(np.maximum((disc + 0.9) / (-0.1 + 0.9), 0), 1)
    return a * x + d * y + e * z, d * x + b * y + f * z, root, t * t * (3 - 2 * t)


def light_map(head: Head, who: Identity, scene: Scene) -> np.ndarray:
    """(G, G, 3) uint8 factors (in units of 1 / UNITY) on the colors of the head: sun, light from all around, shine."""
    nx, ny, nz, inside = _ellipsoid(head, scene.camera)
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    sx, sy = _bumps(head, scene.camera).slope()
    nx, ny, nz = nx / length - sx * nz / length, ny / length - sy * nz / length, nz / length
    scale = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx * scale, ny * scale, nz * scale
    sun = scene.sun.tolist()
    lambert = nx * sun[0] + ny * sun[1] + nz * sun[2]
    diffuse = np.maximum((lambert + 0.3) / 1.3, 0)  # wrapped: light scatters inside skin
    flat = 0.55 + 0.2 * sun[2]
    diffuse = flat + (diffuse - flat) * inside
    half = np.array([sun[0], sun[1], sun[2] + 1])
    hx, hy, hz = (half / np.linalg.norm(half)).tolist()
    shine = np.maximum(nx * hx + ny * hy + nz * hz, 0)
    for _ in range(4):  # to the 16th power
        shine *= shine
    rim = 0.86 + 0.14 * nz
    sky = (0.86 - 0.14 * ny) * rim
    key = diffuse * rim + 0.22 * shine * shine * inside
    # The camera's automatic exposure: it goes half of the way to a mean gray on the face.
    face = slice(_GRID // 3, 2 * _GRID // 3)
    gray = key[face, face].mean() * scene.key.mean() + sky[face, face].mean() * scene.fill.mean()
    brightness = float(gray * who.skin.mean())
    gain = min(1.8, max(0.75, (_GRAY / brightness) ** 0.45))
    colors = zip((scene.key * (gain * UNITY)).tolist(), (scene.fill * (gain * UNITY)).tolist(), strict=True)
    return cv2.merge([np.minimum(key * a + sky * b, 255).astype(np.uint8) for a, b in colors])


def skin_map(head: Head, who: Identity, scene: Scene) -> np.ndarray:
    """(G, G, 3) uint8 color of the bare skin, before light."""
    s, e, b = head.shape, head.expression, Blobs(head, scene.camera)
    ex, ey, ny, my = s["eye_x"], s["eye_y"], s["nose_y"], s["mouth_y"]
    pale = 1 - 0.6 * who.melanin
    flush = (0.04 + 0.05 * scene.makeup + 0.03 * e.cheek) * pale
    b.pair(0.58, ny - 0.18, 0.2, 0.16, 0.2 * flush, -1.5 * flush, -1.4 * flush)
    b.add(head.points[30], 0.13, 0.1, 0.02, -0.07 * pale, -0.06 * pale)
    b.at(0, head.chin - 0.16, 0.18, 0.1, 0.01, -0.035 * pale, -0.03 * pale)
    b.pair(ex, ey - 0.03, 0.22, 0.11, -0.10, -0.15, -0.14)
    b.pair(ex - 0.02, ey + 0.13, 0.18, 0.055, *(-v * (0.4 + who.age) for v in (0.10, 0.13, 0.10)))
    b.pair(ex - 0.24, ey - 0.02, 0.07, 0.14, -0.10, -0.12, -0.12)
    b.at(0, ny + 0.06, 0.14, 0.04, -0.16, -0.2, -0.2, lift=0.1)
    b.add(head.points[57] + (0, 0.06, 0), 0.17, 0.035, -0.11, -0.13, -0.13)
    b.pair(0.95, 0.75, 0.16, 0.45, -0.10, -0.13, -0.13)
    if scene.makeup > 0.15:
        shade = np.array([(-0.3, -0.5, -0.4), (-0.1, -0.35, -0.2), (-0.35, -0.3, -0.1)][who.seed % 3])
        b.pair(ex, ey - 0.11, 0.17, 0.05, *(shade * 0.8 * scene.makeup))
    stubble = 0.0 if who.masculinity < 0.6 or who.age < 0.2 else 0.09 + 0.22 * float(scene.beard > 0.2)
    if stubble:
        tone = (-stubble * 1.1, -stubble * 0.95, -stubble * 0.8)
        b.at(0, my + 0.42, 0.3, 0.17, *tone)
        b.pair(0.5, my + 0.2, 0.2, 0.24, *tone)
        b.at(0, my - 0.15, 0.22, 0.05, *tone)
    planes = zip(who.skin.tolist(), b.total(), strict=True)
    return cv2.merge([np.minimum(c * np.exp(plane), 255).astype(np.uint8) for c, plane in planes])
