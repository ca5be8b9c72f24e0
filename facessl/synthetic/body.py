"""Neck, clothes and ears; all background in the class map."""

from __future__ import annotations

import numpy as np

from facessl.synthetic.canvas import Canvas, tint
from facessl.synthetic.geometry import curve
from facessl.synthetic.identity import Identity
from facessl.synthetic.model import Head
from facessl.synthetic.scene import Scene

_EAR_U = np.array([0.15, -0.2, -0.75, -1.0, -0.8, -0.35, 0.05, 0.2])  # front to back
_EAR_V = np.array([-0.12, -0.36, -0.38, -0.1, 0.16, 0.36, 0.42, 0.2])  # top to lobe
_CIRCLE = np.stack([np.cos(np.arange(10) * 0.6283), np.sin(np.arange(10) * 0.6283)], 1)


def draw_body(canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray) -> None:
    """Shoulders, collar and neck."""
    cam, unit = scene.camera, scene.camera.unit
    chin = cam.project(np.array([[0, head.chin, 0.25]], np.float32))[0]
    lean = np.array([np.sin(np.radians(cam.roll)) * -0.25, 0])
    build, neck = 0.9 + 0.25 * who.masculinity, 0.46 + 0.14 * who.masculinity

    def body(points: list[tuple[float, float]]) -> np.ndarray:
        return chin + (np.array(points, np.float32) + lean).astype(np.float32) * unit

    half = [(-2.9, 2.6), (-2.3 * build, 1.0), (-1.45 * build, 0.66), (-0.66 * build, 0.38)]
    torso = curve(body([*half, (0, 0.5), *((-x, y) for x, y in half[::-1])]))
    canvas.fill(torso, scene.clothes)
    top = cam.project(head.on_face(np.array([-neck, neck]), np.full(2, 0.8)) * np.array((1, 1, 0), np.float32))
    base = curve(body([(neck + 0.12, 0.46), (0.34, 0.8), (0, 0.92), (-0.34, 0.8), (-neck - 0.12, 0.46)]))
    throat = np.concatenate([top, base])
    canvas.fill(throat, tint(who.skin, 0.9))
    clip = canvas.mask(throat)
    shade = marks[3:14] - cam.up * 0.12 - np.array([scene.sun[0], 0]) * (0.15 * unit)
    canvas.glaze([shade], tint(who.skin, 0.42) * (1, 0.86, 0.82), 0.6, blur=0.08 * unit, clip=clip)
    canvas.glaze([base], tint(scene.clothes, 0.6), 0.9, width=0.07 * unit, blur=0.012 * unit)


def draw_ears(canvas: Canvas, head: Head, who: Identity, scene: Scene, sides: list[float]) -> None:
    """Ears, in three dimensions; side -1 is the image's left."""
    if not sides:
        return
    cam, unit, size = scene.camera, scene.camera.unit, head.shape["ear"]
    w = float(head.rings(np.array(0.3))[0])
    x = w - 0.03 + 0.13 * np.maximum(-_EAR_U, 0) * size
    shape = np.stack([x, 0.27 + _EAR_V * size, 0.02 + 0.27 * _EAR_U * size], 1).astype(np.float32)
    middle = shape.mean(0)
    turn = np.array([(side, 1, 1) for side in sides], np.float32)[:, None]
    shells = curve(cam.project(shape * turn), closed=True)
    inner = curve(cam.project((middle + (shape - middle) * 0.6) * turn), closed=True)
    dark = tint(who.skin, 0.5) * (1, 0.82, 0.78)
    for shell in shells:
        canvas.fill(shell, tint(who.skin, 0.95) * (1.02, 0.96, 0.94))
    canvas.glaze(inner, dark, 0.5, blur=0.03 * unit)
    canvas.glaze(shells, dark, 0.45, width=0.02 * unit, blur=0.012 * unit)
    if scene.earrings:
        for lobe in cam.project((shape[6] + np.array((0, 0.05, 0), np.float32)) * turn):
            canvas.fill(lobe[0] + _CIRCLE * (0.05 * unit), (226, 190, 96))
