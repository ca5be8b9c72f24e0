"""Eyes and brows."""

from __future__ import annotations

import cv2
import numpy as np

from facessl.data.faces.canvas import Canvas, blend, tint
from facessl.data.faces.geometry import curve, ribbon
from facessl.data.faces.identity import Identity
from facessl.data.faces.model import Head
from facessl.data.faces.scene import Scene

BROW_LABELS, EYE_LABELS = (2, 3), (4, 5)


def draw_eye(canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, side: int) -> None:
    """One eye; `marks` (68, 2) pixels, `side` 0 for the image's left."""
    unit, cam = scene.camera.unit, scene.camera
    ring = marks[36:42] if side == 0 else marks[42:48][[3, 2, 1, 0, 5, 4]]  # outer corner first, upper lid, inner
    upper, lower = curve(ring[[0, 1, 2, 3]]), curve(ring[[3, 4, 5, 0]])
    outline = np.concatenate([upper, lower[1:-1]])
    up = cam.affine[:, 1] / unit * -1  # unit vector towards the brow
    opening = float(np.linalg.norm((ring[1] + ring[2] - ring[4] - ring[5]) / 2)) / unit
    dark = tint(who.skin, 0.32) * (1, 0.85, 0.8)
    crease = upper + up * unit * (head.shape["crease"] * (1 if opening > 0.05 else 0.9) + 0.015)
    canvas.glaze([np.concatenate([upper, crease[::-1]])], tint(who.skin, 0.84), 0.5, blur=0.02 * unit)
    if scene.makeup > 0.15:
        shade = np.array([(120, 72, 62), (150, 84, 96), (92, 78, 104)][who.seed % 3], np.float32) * (
            1 - 0.4 * who.melanin
        )
        canvas.glaze([np.concatenate([upper, crease[::-1]])], shade, 0.6 * scene.makeup, blur=0.025 * unit)
    canvas.glaze([crease], dark, 0.55, blur=0.008 * unit, width=0.022 * unit)
    canvas.glaze([lower + (ring[3] - ring[0]) * 0 - up * 0.05 * unit], dark, 0.22, blur=0.02 * unit, width=0.03 * unit)
    if opening > 0.035:
        _eyeball(canvas, head, who, scene, outline, upper, ring)
        canvas.label_fill(outline, EYE_LABELS[side])
    lash = 0.022 + 0.016 * scene.makeup + 0.008 * (1 - who.masculinity)
    wing = np.array([0.6, 1.0, 0.9, 0.5])
    thick = np.interp(np.linspace(0, 3, len(upper)), np.arange(4), wing) * lash * unit
    line = upper.copy()
    if scene.makeup > 0.3 or who.masculinity < 0.35:
        out = (ring[0] - ring[3]) / (np.linalg.norm(ring[0] - ring[3]) + 1e-6)
        line = np.concatenate([[ring[0] + (out + 0.6 * up) * 0.05 * unit], line])
        thick = np.concatenate([[0.0], thick])
    ink = np.minimum(tint(who.brow_colour, 0.35), 45)
    canvas.fill(ribbon(line, thick), ink)
    canvas.glaze([lower], dark, 0.55 + 0.3 * scene.makeup, width=0.016 * unit, blur=0.006 * unit)


def _eyeball(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, outline: np.ndarray, upper: np.ndarray, ring: np.ndarray
) -> None:
    """White, iris, pupil, the lid's shadow and the catch-light, cut out by the lids."""
    unit, cam = scene.camera.unit, scene.camera
    box = canvas.box([outline], 0.02 * unit)
    if box is None:
        return
    x0, y0, x1, y1 = box
    patch = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    patch[:] = tint((236, 232, 228), 1 - 0.1 * who.age) if who.melanin < 0.7 else (226, 218, 208)
    across = (ring[3] - ring[0]) / 2
    middle = (ring[0] + ring[3]) / 2
    down = cam.affine[:, 1] / unit
    turn = np.sin(np.radians(cam.yaw)) * 0.35
    gx = scene.gaze[0] * 0.45 + turn * 0.3
    sign = 1.0 if across @ cam.affine[:, 0] > 0 else -1.0
    radius = head.shape["iris"] * unit
    lid_mid = (ring[1] + ring[2] + ring[4] + ring[5]) / 4
    level = middle * 0.35 + lid_mid * 0.65
    iris = level + across * gx * sign + down * (0.005 + 0.06 * scene.gaze[1]) * unit
    squeeze = max(0.72, float(np.cos(np.radians(cam.yaw))))

    def disc(at: np.ndarray, r: float, colour: np.ndarray | tuple[float, ...]) -> None:
        p = canvas.fixed(at[None], (x0, y0))[0]
        axes = (round(r * squeeze * 2 * 16), round(r * 2 * 16))
        cv2.ellipse(patch, p.tolist(), axes, cam.roll, 0, 360, [float(v) for v in colour], -1, cv2.LINE_AA, 4)

    disc(iris, radius, tint(who.iris, 0.42))
    disc(iris, radius * 0.86, who.iris)
    disc(iris + down * radius * 0.28, radius * 0.5, tint(who.iris, 1.25))
    disc(iris, radius * (0.40 + 0.06 * (scene.fill[1] < 0.45)), (12, 10, 10))
    shadow = np.zeros(patch.shape[:2], np.uint8)
    cv2.polylines(shadow, [canvas.fixed(upper, (x0, y0))], False, 255, max(2, round(0.09 * unit * 2)), cv2.LINE_AA, 4)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.02 * unit * 2 + 0.3)
    blend(patch, shadow, (38, 26, 26), 0.55)
    corner = np.zeros(patch.shape[:2], np.uint8)
    cv2.circle(
        corner, canvas.fixed(ring[3:4], (x0, y0))[0].tolist(), round(0.05 * unit * 2 * 16), 255, -1, cv2.LINE_AA, 4
    )
    blend(patch, corner, tint((196, 120, 112), 1 - 0.3 * who.melanin), 0.7)
    light = iris + (cam.affine[:, :2] / unit) @ (scene.sun[:2] * 0.5 + (0.0, -0.25)) * radius * 0.75
    disc(light, radius * 0.26, (255, 255, 255))
    cover = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(cover, [canvas.fixed(outline, (x0, y0))], 255, cv2.LINE_AA, 4)
    blend(canvas.rgb[y0:y1, x0:x1], cover, patch)


def draw_brow(
    canvas: Canvas, who: Identity, scene: Scene, marks: np.ndarray, side: int, rng: np.random.Generator
) -> None:
    """One brow: a soft ribbon along points 17..21 (or 26..22) with single hairs on it."""
    unit = scene.camera.unit
    line = curve(marks[17:22] if side == 0 else marks[22:27][::-1], per=4)
    half = who.shape["brow_w"] * unit
    profile = np.interp(np.linspace(0, 1, len(line)), [0, 0.35, 0.75, 1], [0.12, 0.7, 1.0, 0.8])
    body = ribbon(line, profile * half)
    colour = who.brow_colour
    canvas.glaze([body], colour, 0.8, blur=0.011 * unit)
    canvas.label_fill(body, BROW_LABELS[side])
    t = rng.uniform(0.04, 1, 26)
    at = np.stack([np.interp(t * (len(line) - 1), np.arange(len(line)), line[:, k]) for k in (0, 1)], 1)
    outward = line[0] - line[-1]
    outward = outward / (np.linalg.norm(outward) + 1e-6)
    up = -scene.camera.affine[:, 1] / unit
    width = np.interp(t, [0, 0.35, 0.75, 1], [0.12, 0.7, 1.0, 0.8]) * half
    start = at - up * (width * rng.uniform(-0.2, 1, 26))[:, None]
    lean = np.interp(t, [0, 0.6, 1], [0.15, 0.6, 1.3])
    end = start + (outward + up * lean[:, None]) * (0.07 * unit)
    hairs = [np.stack([a, b]) for a, b in zip(start, end, strict=True)]
    canvas.glaze(hairs, tint(colour, 0.6), 0.5, width=0.014 * unit)
