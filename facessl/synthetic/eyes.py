"""Eyes and brows."""

import cv2
import numpy as np

from facessl.synthetic.canvas import SUPER, Canvas, blend, one_color, scalar, soften, tint
from facessl.synthetic.geometry import curve, ribbon

_SHADOWS = np.array([(120, 72, 62), (150, 84, 96), (92, 78, 104)], np.float32)


def draw_eyes(canvas: Canvas) -> None:
    """Both eyes."""
    who, scene, marks, up = canvas.who, canvas.scene, canvas.marks, canvas.cam.up
    rings = np.stack([marks[36:42], marks[42:48][[3, 2, 1, 0, 5, 4]]])  # outer corner, upper lid, inner corner
    upper, lower = curve(rings[:, [0, 1, 2, 3]]), curve(rings[:, [3, 4, 5, 0]])
    outline = np.concatenate([upper, lower[:, 1:-1]], 1)
    opening = np.linalg.norm((rings[:, 1] + rings[:, 2] - rings[:, 4] - rings[:, 5]) / 2, axis=1) / canvas.unit
    dark = tint(who.skin, 0.3) * (1, 0.85, 0.8)
    crease = upper + up * (canvas.head.shape["crease"] + 0.015)
    lid = np.concatenate([upper, crease[:, ::-1]], 1)
    canvas.glaze(lid, tint(who.skin, 0.8), 0.5, blur=0.02)
    if scene.makeup > 0.15:
        canvas.glaze(lid, _SHADOWS[who.seed % 3] * (1 - 0.4 * who.melanin), 0.6 * scene.makeup, blur=0.025)
    lines = np.concatenate([crease, lower - up * 0.055])
    canvas.glaze(lines, dark, (0.6, 0.6, 0.24, 0.24), blur=0.01, width=0.026)
    for side in (0, 1):
        if opening[side] > 0.03:
            _draw_eyeball(canvas, outline[side], upper[side], rings[side])
            canvas.fill(outline[side], label=4 + side)
    ink = np.minimum(tint(who.brow_color, 0.35), 45)
    lash = (0.018 + 0.02 * scene.makeup + 0.012 * (1 - who.masculinity)) * canvas.unit
    thick = np.interp(np.linspace(0, 3, upper.shape[1]), np.arange(4), [0.6, 1.0, 0.9, 0.45]) * lash
    winged = scene.makeup > 0.3 or who.masculinity < 0.35
    for line, ring in zip(upper, rings, strict=True):
        if winged:
            out = (ring[0] - ring[3]) / (np.linalg.norm(ring[0] - ring[3]) + 1e-6) * canvas.unit
            wing = ring[0] + (out + 0.6 * up) * 0.055
            canvas.fill(ribbon(np.concatenate([wing[None], line]), np.append(0.0, thick)), ink)
        else:
            canvas.fill(ribbon(line, thick), ink)
    canvas.glaze(lower, dark, 0.5 + 0.3 * scene.makeup, width=0.016)


def _draw_eyeball(canvas: Canvas, outline: np.ndarray, upper: np.ndarray, ring: np.ndarray) -> None:
    """White, iris, pupil, the lid's shadow and the catch-light, cut out by the lids."""
    cam, unit, who, scene = canvas.cam, canvas.unit, canvas.who, canvas.scene
    box = canvas.box(outline, 0.02 * unit)
    if box is None:
        return
    x0, y0, x1, y1 = box
    white = np.array((238, 234, 230) if who.melanin < 0.7 else (230, 223, 212), np.float32)
    patch = one_color(x1 - x0, y1 - y0, white * (1 - 0.08 * who.age))
    across, down, yaw = (ring[3] - ring[0]) / 2, -cam.up, np.radians(cam.yaw)
    toward = 1.0 if across @ cam.affine[:, 0] > 0 else -1.0
    level = (ring[0] + ring[3]) * 0.2 + (ring[1] + ring[2] + ring[4] + ring[5]) * 0.15
    shift = (scene.gaze[0] * 0.45 + float(np.sin(yaw)) * 0.1) * toward
    iris = level + across * shift + down * (0.005 + 0.06 * scene.gaze[1])
    radius, squeeze = canvas.head.shape["iris"] * unit, max(0.72, float(np.cos(yaw)))

    def disc(at: np.ndarray, r: float, color: np.ndarray | tuple[float, ...]) -> None:
        axes = (round(r * squeeze * SUPER * 16), round(r * SUPER * 16))
        at_fixed = canvas.fixed(at, (x0, y0)).tolist()
        cv2.ellipse(patch, at_fixed, axes, cam.roll, 0, 360, scalar(color), -1, cv2.LINE_AA, 4)

    disc(ring[3], 0.05 * unit, tint((206, 142, 134), 1 - 0.3 * who.melanin))
    disc(iris, radius, tint(who.iris, 0.4))
    disc(iris, radius * 0.86, who.iris)
    disc(iris + down * (radius * 0.28 / unit), radius * 0.5, tint(who.iris, 1.25))
    disc(iris, radius * (0.40 + 0.06 * float(scene.fill[1] < 0.45)), (12, 10, 10))
    shadow = np.zeros(patch.shape[:2], np.uint8)
    thick = max(2, canvas.thickness(0.10))
    cv2.polylines(shadow, [canvas.fixed(upper, (x0, y0))], False, 255, thick, cv2.LINE_8, 4)
    blend(patch, soften(shadow, 0.02 * unit * SUPER), (38, 26, 26), 0.55)
    light = iris + cam.affine[:, :2] @ (scene.sun[:2] * 0.5 + (0.0, -0.25)) * (radius / unit * 0.75)
    disc(light, radius * 0.26, (255, 255, 255))
    cover = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(cover, [canvas.fixed(outline, (x0, y0))], 255, cv2.LINE_AA, 4)
    blend(canvas.rgb[y0:y1, x0:x1], cover, patch)


def draw_brows(canvas: Canvas) -> None:
    """Both brows: a soft ribbon along points 17..21 (and 26..22) with single hairs on it."""
    unit, up, who, rng, n = canvas.unit, canvas.cam.up, canvas.who, canvas.rng, 24
    lines = curve(np.stack([canvas.marks[17:22], canvas.marks[22:27][::-1]]), per=4)
    half = who.shape["brow_w"] * unit
    at_stop, at_width = [0, 0.35, 0.75, 1], [0.12, 0.7, 1.0, 0.8]
    stops = np.linspace(0, 1, lines.shape[1])
    bodies = np.stack([ribbon(line, np.interp(stops, at_stop, at_width) * half) for line in lines])
    canvas.glaze(bodies, who.brow_color, 0.8, blur=0.013, clip=canvas.skin)
    t = np.sort(rng.uniform(0.04, 1, n))
    side = np.interp(t, at_stop, at_width) * half * rng.uniform(-0.2, 1, n)
    lean = np.interp(t, [0, 0.6, 1], [0.15, 0.6, 1.3])
    hairs = []
    for k, line in enumerate(lines):
        canvas.fill(bodies[k], label=2 + k)
        at = np.stack([np.interp(t, stops, line[:, 0]), np.interp(t, stops, line[:, 1])], 1)
        out = (line[0] - line[-1]) * (unit / (np.linalg.norm(line[0] - line[-1]) + 1e-6))
        start = at - up / unit * side[:, None]
        hairs.append(np.stack([start, start + (out + up * lean[:, None]) * 0.07], 1))
    canvas.glaze(np.concatenate(hairs), tint(who.brow_color, 0.6), 0.45, width=0.014, clip=canvas.skin)
