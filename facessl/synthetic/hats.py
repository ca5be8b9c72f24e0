"""Hats; background in the class map, as LaPa has no class for them."""

from __future__ import annotations

import numpy as np

from facessl.synthetic.canvas import Canvas, tint
from facessl.synthetic.geometry import curve
from facessl.synthetic.hair import cap_outline
from facessl.synthetic.model import TOP, Head
from facessl.synthetic.scene import Scene

_A = np.linspace(90, -90, 17)  # angles along the front, right to left


def draw_hat(canvas: Canvas, head: Head, scene: Scene) -> None:
    """A cap with a visor, a beanie or a hat with a brim."""
    if scene.hat == "none":
        return
    cam, unit = scene.camera, scene.camera.unit
    colour = np.clip(scene.clothes[::-1] * 0.75 + 15, 0, 190)
    dark = tint(colour, 0.5)
    rim_y = -0.62 if scene.hat == "beanie" else -0.68
    rim = head.around(_A, np.full(17, rim_y), cam.yaw, 0.16)
    band = cam.project(rim)
    if scene.hat == "brim":
        _brim(canvas, head, scene, rim_y, colour)
    sides = cam.project(cap_outline(head, scene, 0.16, rim_y, 0.3 if scene.hat == "brim" else 0.12))
    half = len(sides) // 2
    crown = np.concatenate([sides[:half], band, sides[half:]])
    canvas.fill(crown, colour, 0)
    seams = head.around(np.linspace(-75, 75, 6)[:, None], np.tile(np.linspace(TOP, rim_y, 6), (6, 1)), cam.yaw, 0.15)
    clip = canvas.mask(crown)
    if scene.hat == "cap":
        canvas.glaze(cam.project(seams), dark, 0.35, width=0.02 * unit, blur=0.012 * unit, clip=clip)
        _visor(canvas, head, scene, rim_y, colour, band)
    elif scene.hat == "beanie":
        fine = curve(band, per=3)
        cuff = np.concatenate([band - cam.up * 0.06, (band + cam.up * 0.24)[::-1]])
        ribs = np.stack([fine - cam.up * 0.05, fine + cam.up * 0.22], 1)
        knit = np.stack([fine + cam.up * 0.24, fine * 0.5 + (sides[0] + sides[-1]) * 0.25 + cam.up * 0.1], 1)
        canvas.glaze(knit, dark, 0.25, width=0.02 * unit, clip=clip)
        canvas.glaze([cuff - cam.up * 0.05], (30, 22, 20), 0.4, blur=0.05 * unit, clip=canvas.skin)
        canvas.fill(cuff, tint(colour, 0.88), 0)
        canvas.glaze(ribs, dark, 0.35, width=0.02 * unit)
    else:
        ribbon = np.concatenate([band, (band + cam.up * 0.2)[::-1]])
        canvas.glaze([ribbon], dark, 0.9, clip=clip, blur=0.01 * unit)


def _visor(canvas: Canvas, head: Head, scene: Scene, rim_y: float, colour: np.ndarray, band: np.ndarray) -> None:
    cam, unit = scene.camera, scene.camera.unit
    a = np.radians(np.linspace(66, -66, 13))
    front = head.around(np.degrees(a), np.full(13, rim_y), cam.yaw, 0.16)
    reach = np.cos(a * (np.pi / 2 / 1.152)) ** 0.7
    away = np.stack([0.15 * np.sin(a), np.full(13, 0.36), np.full(13, 0.72)], 1) * reach[:, None]
    edge = cam.project((front + away).astype(np.float32))
    area = np.concatenate([edge, cam.project(front)[::-1]])
    canvas.glaze([area - cam.up * 0.14], (30, 22, 20), 0.4, blur=0.08 * unit, clip=canvas.skin)
    canvas.fill(area, tint(colour, 0.78), 0)
    canvas.glaze([edge], tint(colour, 1.35), 0.5, width=0.022 * unit)


def _brim(canvas: Canvas, head: Head, scene: Scene, rim_y: float, colour: np.ndarray) -> None:
    cam, unit = scene.camera, scene.camera.unit
    a = np.radians(np.linspace(0, 360, 40, endpoint=False))
    w = float(head.rings(np.array(rim_y))[0])
    droop = rim_y + 0.06 + 0.05 * np.sin(a) ** 2
    ring = np.stack([np.sin(a) * (w + 0.62), droop, np.cos(a) * 1.62 - 0.2], 1)
    area = cam.project(ring.astype(np.float32))
    canvas.glaze([area - cam.up * 0.2], (30, 22, 20), 0.4, blur=0.1 * unit, clip=canvas.skin)
    canvas.fill(area, tint(colour, 0.75), 0)
    canvas.glaze([np.concatenate([area, area[:1]])], tint(colour, 0.9), width=0.06 * unit)
