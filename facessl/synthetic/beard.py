"""Beard and moustache; they keep the class of the skin (or whatever) below them."""

from __future__ import annotations

import cv2
import numpy as np

from facessl.synthetic.canvas import Canvas, tint
from facessl.synthetic.geometry import curve
from facessl.synthetic.identity import Identity
from facessl.synthetic.model import Head
from facessl.synthetic.scene import Scene


def draw_beard(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, rng: np.random.Generator
) -> None:
    """A beard from half strength on, a full one near 1; stubble is a matter of the skin map."""
    unit = scene.camera.unit
    hair = who.brow_colour * 0.75 + who.hair * 0.25 if who.hair_style == "bald" else who.hair * 0.85
    if scene.beard > 0.5:
        full = scene.beard > 0.8
        mouth = cv2.dilate(canvas.mask(marks[48:60]), np.ones((3, 3), np.uint8), iterations=2)
        clip = cv2.bitwise_not(mouth)
        area = _beard_area(head, scene, full)
        canvas.glaze([area], hair, 0.6 + 0.3 * full, blur=0.04 * unit, clip=clip)
        _hairs(canvas, area, hair, marks[33], clip, rng, unit, 110)
    if scene.moustache > 0.3:
        area = _moustache_area(scene, marks)
        canvas.glaze([area], hair, 0.85, blur=0.016 * unit)
        _hairs(canvas, area, hair, marks[30], None, rng, unit, 44)


def _beard_area(head: Head, scene: Scene, full: bool) -> np.ndarray:
    """(n, 2) pixels: from the ears along the jaw, up to cheeks and lower lip."""
    cam = scene.camera
    low = head.contour(cam.yaw)
    low[:, 1] += np.interp(np.arange(17), [0, 4, 8, 12, 16], [0, 0.02, 0.1, 0.02, 0]) * (1.6 if full else 0.3)
    x = np.array([0.93, 0.82, 0.62, 0.46, 0.28, 0.0]) * (head.shape["cheek"] if full else 0.93)
    y = head.shape["mouth_y"] + np.array([-0.75, -0.2, 0.0, 0.0, 0.2, 0.24])
    edge = head.on_face(np.concatenate([x, -x[-2::-1]]), np.concatenate([y, y[-2::-1]]), 0.02)
    return np.concatenate([curve(cam.project(low[1:16]), per=3), curve(cam.project(edge), per=3)])


def _moustache_area(scene: Scene, marks: np.ndarray) -> np.ndarray:
    """(n, 2) pixels: between nose and upper lip, drooping over the corners of the mouth."""
    drop = -scene.camera.up * 0.05
    crest = marks[33] * 0.62 + marks[51] * 0.38
    left, right = marks[48] * 1.04 - marks[54] * 0.04 + drop, marks[54] * 1.04 - marks[48] * 0.04 + drop
    arc = np.stack([left, (left + crest) / 2 - drop * 1.0, crest, (right + crest) / 2 - drop * 1.0, right])
    lip = np.stack([right, marks[53], marks[51], marks[49], left]) + drop * 0.1
    return np.concatenate([curve(arc), curve(lip)])


def _hairs(
    canvas: Canvas,
    area: np.ndarray,
    colour: np.ndarray,
    origin: np.ndarray,
    clip: np.ndarray | None,
    rng: np.random.Generator,
    unit: float,
    n: int,
) -> None:
    """Short strokes that fan out from `origin`, inside `area`."""
    p = rng.uniform(area.min(0), area.max(0), (n, 2)).astype(np.float32)
    away = p - origin
    away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-3
    inside = canvas.mask(area)
    inside = cv2.min(inside, clip) if clip is not None else inside
    strokes = np.stack([p, p + away * (0.09 * unit)], 1)
    canvas.glaze(strokes[: n // 2], tint(colour, 0.55), 0.5, width=0.012 * unit, clip=inside)
    canvas.glaze(strokes[n // 2 :], tint(colour, 1.22), 0.4, width=0.012 * unit, clip=inside)
