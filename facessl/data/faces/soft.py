"""Soft maps on the upright view plane: the skin's colour and the light that falls on the head.

Both are sums of axis-parallel Gaussian blobs on a coarse grid. A sum of separable blobs is one matrix product,
so a face's thirty-odd bumps and tints cost next to nothing; the camera's affine map brings them into the image.
"""

from __future__ import annotations

import cv2
import numpy as np

from facessl.data.faces.geometry import Camera, smoothstep
from facessl.data.faces.identity import Identity
from facessl.data.faces.model import Head
from facessl.data.faces.scene import Scene

_GRID, _REACH = 80, 2.5  # samples per side, head units from the middle to the border
_AXIS = np.linspace(-_REACH, _REACH, _GRID, dtype=np.float32)


def to_image(plane: np.ndarray, camera: Camera, side: int, supersampling: int) -> np.ndarray:
    """A (G, G, 3) map of the view plane -> (side, side, 3) in the image, `supersampling` samples per pixel."""
    step = 2 * _REACH / (_GRID - 1)
    m = camera.affine.astype(np.float64).copy()
    m[:, 2] += m[:, :2] @ (-_REACH, -_REACH)
    m[:, :2] *= step
    m *= supersampling
    m[:, 2] += (supersampling - 1) / 2
    return cv2.warpAffine(plane, m, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class Blobs:
    """Gaussian blobs fixed to points of a head."""

    def __init__(self, head: Head, camera: Camera) -> None:
        self._head, self._camera = head, camera
        self._at: list[np.ndarray] = []
        self._sigma: list[tuple[float, float]] = []
        self._value: list[tuple[float, ...]] = []

    def add(self, point: np.ndarray, sx: float, sy: float, *value: float) -> None:
        """A blob at a 3-D point of the head frame, with standard deviations in head units."""
        self._at.append(point)
        self._sigma.append((sx, sy))
        self._value.append(value)

    def pair(self, x: float, y: float, sx: float, sy: float, *value: float, lift: float = 0.0) -> None:
        """The same blob on both sides of the face; the far one fades as it turns away."""
        for side in (-1.0, 1.0):
            self.at(side * x, y, sx, sy, *value, lift=lift)

    def at(self, x: float, y: float, sx: float, sy: float, *value: float, lift: float = 0.0) -> None:
        """A blob on the front surface below (x, y)."""
        self.add(self._head.on_face(np.array([x]), np.array([y]), lift)[0], sx, sy, *value)

    def _parts(self) -> tuple[np.ndarray, ...]:
        at = self._camera.view(np.array(self._at, np.float32))
        sigma = np.array(self._sigma, np.float32)
        dx = (_AXIS - at[:, :1]) / sigma[:, :1]
        dy = (_AXIS - at[:, 1:]) / sigma[:, 1:]
        return dx, dy, np.exp(-0.5 * dx * dx), np.exp(-0.5 * dy * dy), np.array(self._value, np.float32), sigma

    def total(self) -> np.ndarray:
        """(G, G, C) sum of the blobs."""
        _, _, gx, gy, value, _ = self._parts()
        return np.stack([(gy * value[:, c : c + 1]).T @ gx for c in range(value.shape[1])], -1)

    def slope(self) -> tuple[np.ndarray, np.ndarray]:
        """d/dx and d/dy of the sum of heights (value 0), each (G, G)."""
        dx, dy, gx, gy, value, sigma = self._parts()
        return (gy * value).T @ (-gx * dx / sigma[:, :1]), (-gy * dy / sigma[:, 1:] * value).T @ gx


def _bumps(head: Head, camera: Camera) -> Blobs:
    """What stands out from the ellipsoid: height in head units."""
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
    b.pair(s["nose_w"] * 0.78, ny - 0.05, 0.055, 0.06, 0.055, lift=0.1)
    b.at(0, ny + 0.07, 0.16, 0.045, -0.05, lift=0.08)
    b.pair(0.55, ny - 0.22 - 0.08 * e.cheek, 0.2, 0.17, 0.06 + 0.07 * e.cheek)
    b.pair(0.36, my - 0.12, 0.045, 0.16, -0.012 - 0.04 * e.cheek)
    b.at(0, my - 0.03, 0.26, 0.09, 0.05, lift=0.05)
    b.add(head.points[51] + (0, 0.02, 0), 0.2, 0.05, 0.03)
    b.add(head.points[57] - (0, 0.04, 0), 0.17, 0.06, 0.05)
    b.add(head.points[57] + (0, 0.085, -0.02), 0.2, 0.05, -0.06)
    b.at(0, head.chin - 0.2, 0.2, 0.12, 0.075)
    return b


def light_map(head: Head, scene: Scene, oil: float) -> np.ndarray:
    """(G, G, 3) float32 factors on the colours of the head: diffuse light from the sun, fill from all around.

    Args:
        oil: strength of the skin's shine, added as a fourth of it to all colours.
    """
    camera = scene.camera
    rotation = camera.rotation
    axes = np.array([1.04 * head.shape["width"], 1.02 * head.chin, 1.14], np.float32)
    form = rotation @ np.diag(1 / axes**2) @ rotation.T
    centre = camera.view(np.array([[0.0, 0.0, -0.17]], np.float32))[0]
    x, y = (_AXIS - centre[0])[None, :], (_AXIS - centre[1])[:, None]
    b = form[0, 2] * x + form[1, 2] * y
    c = form[0, 0] * x * x + 2 * form[0, 1] * x * y + form[1, 1] * y * y - 1
    disc = b * b - form[2, 2] * c
    inside = smoothstep(disc, -0.9, -0.1)
    z = (-b + np.sqrt(np.maximum(disc, 0.015))) / form[2, 2]
    n = np.stack([form[0, 0] * x + form[0, 1] * y + form[0, 2] * z] * 3)
    n[1] = form[1, 0] * x + form[1, 1] * y + form[1, 2] * z
    n[2] = np.maximum(form[2, 0] * x + form[2, 1] * y + form[2, 2] * z, 0.05)
    n /= np.sqrt((n * n).sum(0)) + 1e-6
    sx, sy = _bumps(head, camera).slope()
    n[0] -= sx * n[2]
    n[1] -= sy * n[2]
    n /= np.sqrt((n * n).sum(0))
    sun = scene.sun
    lambert = n[0] * sun[0] + n[1] * sun[1] + n[2] * sun[2]
    diffuse = np.maximum((lambert + 0.25) / 1.25, 0)  # wrapped: light scatters inside skin
    sky = 0.5 - 0.5 * n[1]
    half = sun + (0, 0, 1)
    half = half / np.linalg.norm(half)
    shine = np.maximum(n[0] * half[0] + n[1] * half[1] + n[2] * half[2], 0) ** 26 * oil
    rim = 0.86 + 0.14 * n[2]
    flat = 0.62 + 0.3 * sun[2]
    diffuse = flat + (diffuse - flat) * inside
    shine = shine * inside
    base = (diffuse[..., None] * scene.key + (0.72 + 0.28 * sky)[..., None] * scene.fill) * rim[..., None]
    return (base * 1.06 + 0.3 * shine[..., None] * scene.key).astype(np.float32)


def skin_map(head: Head, identity: Identity, scene: Scene) -> np.ndarray:
    """(G, G, 3) uint8 colour of the bare skin, before light."""
    s, e, b = head.shape, head.expression, Blobs(head, scene.camera)
    ex, ey, ny, my = s["eye_x"], s["eye_y"], s["nose_y"], s["mouth_y"]
    pale = 1 - 0.6 * identity.melanin
    flush = (0.04 + 0.05 * scene.makeup + 0.03 * e.cheek) * pale
    b.pair(0.58, ny - 0.18, 0.2, 0.16, 0.2 * flush, -1.5 * flush, -1.4 * flush)
    b.add(head.points[30], 0.13, 0.1, 0.02, -0.07 * pale, -0.06 * pale)
    b.at(0, head.chin - 0.16, 0.18, 0.1, 0.01, -0.035 * pale, -0.03 * pale)
    b.pair(ex, ey - 0.03, 0.22, 0.11, -0.10, -0.15, -0.14)
    b.pair(ex - 0.02, ey + 0.13, 0.18, 0.055, *(-v * (0.4 + identity.age) for v in (0.10, 0.13, 0.10)))
    b.pair(ex - 0.24, ey - 0.02, 0.07, 0.14, -0.10, -0.12, -0.12)
    b.at(0, ny + 0.06, 0.14, 0.04, -0.16, -0.2, -0.2, lift=0.1)
    b.add(head.points[57] + (0, 0.06, 0), 0.17, 0.035, -0.11, -0.13, -0.13)
    b.pair(0.95, 0.75, 0.16, 0.45, -0.10, -0.13, -0.13)
    if scene.makeup > 0.15:
        shade = np.array([(-0.3, -0.5, -0.4), (-0.1, -0.35, -0.2), (-0.35, -0.3, -0.1)][identity.seed % 3])
        b.pair(ex, ey - 0.11, 0.17, 0.05, *(shade * 0.8 * scene.makeup))
    stubble = 0.0 if identity.masculinity < 0.6 or identity.age < 0.2 else 0.09 + 0.22 * float(scene.beard > 0.2)
    if stubble:
        tone = (-stubble * 1.1, -stubble * 0.95, -stubble * 0.8)
        b.at(0, my + 0.42, 0.3, 0.17, *tone)
        b.pair(0.5, my + 0.2, 0.2, 0.24, *tone)
        b.at(0, my - 0.15, 0.22, 0.05, *tone)
    paint = identity.skin * np.exp(b.total())
    return np.clip(paint, 0, 255).astype(np.uint8)
