"""Nose, mouth, facial hair and the marks of age."""

from __future__ import annotations

import cv2
import numpy as np

from facessl.data.faces.canvas import Canvas, tint
from facessl.data.faces.geometry import curve
from facessl.data.faces.identity import Identity
from facessl.data.faces.model import Head
from facessl.data.faces.scene import Scene

NOSE, UPPER_LIP, INNER_MOUTH, LOWER_LIP = 6, 7, 8, 9


def draw_nose(canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray) -> None:
    """Nostrils, wings and the line of the ridge; the volume itself comes from the light."""
    cam, unit, s = scene.camera, scene.camera.unit, head.shape
    base, w = float(head.points[33, 1]), s["nose_w"]
    dark = tint(who.skin, 0.34) * (1, 0.82, 0.78)
    wings = []
    for side in (-1.0, 1.0):
        u = np.array([0.62, 0.86, 1.0, 0.97, 0.78, 0.5])
        y = base + np.array([-0.20, -0.185, -0.11, -0.04, -0.015, 0.0])
        wings.append(cam.project(head.on_face(side * u * w, y, np.array([0.13, 0.1, 0.07, 0.08, 0.12, 0.17]))))
    tip = np.array([[-0.7, 0.2], [-0.5, -0.5], [0, -0.9], [0.5, -0.5], [0.7, 0.2], [0, 0.9]])
    ball = cam.project(head.points[30] + np.c_[tip * s["tip"], np.zeros(6)] + (0, 0.03, 0.0))
    root = cam.project(head.on_face(np.array([-0.10, 0.10]), np.full(2, s["eye_y"] + 0.02), s["bridge"] - 0.1))
    whole = np.concatenate([root, wings[0], wings[1], ball, marks[27:36]]).astype(np.float32)
    canvas.label_fill(cv2.convexHull(whole)[:, 0], NOSE)
    for wing in wings:
        canvas.glaze([curve(wing)], dark, 0.42, blur=0.014 * unit, width=0.024 * unit)
    if abs(cam.yaw) > 12:
        far = 0 if cam.yaw < 0 else 1
        edge = curve(np.concatenate([root[far : far + 1], marks[28:31] + (root[far] - marks[27]) * 0.25]))
        canvas.glaze([edge], dark, min(0.5, abs(cam.yaw) / 60), blur=0.02 * unit, width=0.03 * unit)
    for side in (-1.0, 1.0):
        x = side * (0.42 + 0.3 * np.array([-1, -0.6, 0.3, 1, 0.4, -0.6])) * w
        y = base + np.array([0.005, -0.03, -0.042, -0.012, 0.016, 0.018])
        hole = cam.project(head.on_face(x, y, 0.17))
        canvas.glaze([curve(hole, closed=True)], tint(dark, 0.5), 0.85, blur=0.009 * unit)
    under = cam.project(head.on_face(np.array([-0.5, 0, 0.5]) * w, base + np.array([0.02, 0.045, 0.02]), 0.17))
    canvas.glaze([curve(under)], dark, 0.35, blur=0.018 * unit, width=0.03 * unit)


def draw_mouth(canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray) -> None:
    """Lips, teeth and tongue from points 48..67."""
    unit, m = scene.camera.unit, marks
    down = scene.camera.affine[:, 1] / unit
    top, bottom = curve(m[48:55]), curve(m[[54, 55, 56, 57, 58, 59, 48]])
    in_top, in_bottom = curve(m[[60, 61, 62, 63, 64]]), curve(m[[64, 65, 66, 67, 60]])
    inner = np.concatenate([in_top, in_bottom[1:-1]])
    colour = who.lips
    if scene.makeup > 0.1:
        red = np.array([(176, 32, 48), (190, 70, 84), (140, 30, 70), (196, 84, 70)][who.seed % 4], np.float32)
        colour = colour + (red * (1 - 0.25 * who.melanin) - colour) * (0.35 + 0.5 * scene.makeup)
    upper = np.concatenate([m[48:49], top[1:], in_top[::-1]])
    lower = np.concatenate([m[54:55], bottom[1:], in_bottom[::-1]])
    edge = 0.008 * unit
    gap = float((m[66] - m[62]) @ down) / unit
    canvas.label_fill(np.concatenate([top, bottom[1:-1]]), INNER_MOUTH)
    if gap > 0.02:
        _inside(canvas, inner, m, gap, unit, down)
    canvas.glaze([upper], tint(colour, 0.84), 0.92, blur=edge)
    canvas.glaze([lower], colour, 0.92, blur=edge)
    canvas.label_fill(upper, UPPER_LIP)
    canvas.label_fill(lower, LOWER_LIP)
    if gap > 0.012:
        canvas.label_fill(inner, INNER_MOUTH)
    else:
        middle = (in_top + in_bottom[::-1]) / 2
        ends = np.concatenate([m[48:49], middle, m[54:55]])
        canvas.glaze([ends], tint(colour, 0.28), 0.9, width=0.026 * unit, blur=0.006 * unit)
        canvas.label_fill(np.concatenate([middle, (middle + down * 0.01 * unit)[::-1]]), INNER_MOUTH)
    gloss = (m[[58, 57, 56]] * 0.55 + m[[67, 66, 65]] * 0.45) - down * 0.005 * unit
    canvas.glaze([curve(gloss)], (255, 235, 230), 0.22 + 0.2 * scene.makeup, width=0.03 * unit, blur=0.016 * unit)
    dark = tint(who.skin, 0.36)
    for corner, other in ((m[48], m[54]), (m[54], m[48])):
        out = (corner - other) / (np.linalg.norm(other - corner) + 1e-6)
        canvas.glaze(
            [np.stack([corner - out * 0.03 * unit, corner + out * 0.025 * unit])],
            dark, 0.5, width=0.03 * unit, blur=0.012 * unit,
        )  # fmt: skip


def _inside(canvas: Canvas, inner: np.ndarray, m: np.ndarray, gap: float, unit: float, down: np.ndarray) -> None:
    """The dark of the open mouth, teeth and tongue."""
    canvas.fill(inner, (52, 18, 20))
    clip = canvas.mask([inner])
    reach = down * unit * min(0.10, 0.75 * gap + 0.01)
    arch = curve(m[[60, 61, 62, 63, 64]])
    canvas.glaze([np.concatenate([arch, (arch + reach)[::-1]])], (238, 232, 222), 0.96, clip=clip, blur=0.006 * unit)
    if gap > 0.12:
        low = curve(m[[60, 67, 66, 65, 64]])
        canvas.glaze([low - down * 0.01 * unit], (168, 74, 78), 0.9, clip=clip, width=0.17 * unit, blur=0.03 * unit)
    teeth = []
    for t in np.linspace(0.15, 0.85, 7):
        k = t * (len(arch) - 1)
        a = arch[int(k)] + (arch[min(int(k) + 1, len(arch) - 1)] - arch[int(k)]) * (k - int(k))
        teeth.append(np.stack([a, a + reach * 0.95]))
    canvas.glaze(teeth, (150, 128, 118), 0.35, clip=clip, width=0.01 * unit)
    canvas.glaze([arch], (30, 8, 10), 0.5, clip=clip, width=0.05 * unit, blur=0.02 * unit)


def draw_folds(canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray) -> None:
    """Folds that expressions and age draw: beside the mouth, between the brows, forehead, crow's feet."""
    cam, unit, e, s = scene.camera, scene.camera.unit, scene.expression, head.shape
    old = max(0.0, who.age - 0.4) / 0.6
    dark = tint(who.skin, 0.45) * (1, 0.86, 0.82)
    ny, my = s["nose_y"], s["mouth_y"]

    def crease(x: list[float], y: list[float], alpha: float, width: float) -> None:
        if alpha > 0.05:
            for side in (-1.0, 1.0):
                p = cam.project(head.on_face(side * np.array(x), np.array(y), 0.03))
                canvas.glaze([curve(p)], dark, min(alpha, 0.75), width=width * unit, blur=0.5 * width * unit)

    reach = 0.1 * max(0.0, e.corner) + 0.05 * max(0.0, e.stretch)
    deep = 0.08 + 0.55 * e.cheek + 0.3 * e.wrinkle + 0.4 * old
    crease([0.24, 0.36 + reach, 0.46 + reach, 0.47 + reach], [ny - 0.1, ny + 0.03, my - 0.12, my], deep, 0.028)
    crease([0.055, 0.05, 0.06], [s["eye_y"] - 0.33, -0.24, -0.14], 0.75 * e.furrow + 0.15 * old, 0.02)
    for k in range(3):
        crease([0.06, 0.13], [0.1 + 0.07 * k, 0.05 + 0.07 * k], 0.6 * e.wrinkle, 0.016)
    raised = 0.42 * max(0.0, (e.inner + e.outer) / 2) + 0.4 * old + 0.25 * max(0.0, e.inner)
    for k in range(3):
        y = -0.52 - 0.11 * k
        crease([0.0, 0.25, 0.5 - 0.05 * k], [y, y - 0.02, y + 0.03], raised * (1 - 0.2 * k) * 0.7, 0.016)
    feet = 0.5 * old + 0.35 * e.squint * e.cheek
    x0 = s["eye_x"] + s["eye_w"] + 0.05
    for dy in (-0.05, 0.0, 0.05):
        crease([x0, x0 + 0.09], [s["eye_y"] + 0.4 * dy, s["eye_y"] + 1.4 * dy], feet, 0.012)
    crease([s["eye_x"] - 0.2, s["eye_x"], s["eye_x"] + 0.2], [0.13, 0.2, 0.15], 0.5 * old + 0.15 * e.squint, 0.018)
    if scene.expression.corner < -0.5:
        crease([0.36, 0.4], [my + 0.13, my + 0.24], 0.4, 0.022)


def draw_spots(canvas: Canvas, head: Head, who: Identity, scene: Scene) -> None:
    """Freckles and moles, at the same place in every picture of a person."""
    rng = np.random.default_rng(who.seed)
    cam = scene.camera
    moles = int(rng.integers(0, 3))
    n = int(70 * who.freckles)
    x = np.concatenate([rng.uniform(-0.75, 0.75, moles), rng.normal(0, 0.42, n)])
    y = np.concatenate([rng.uniform(-0.5, 1.4, moles), rng.normal(0.36, 0.17, n)])
    keep = np.abs(x) < 0.8
    if not keep.any():
        return
    p = cam.project(head.on_face(x[keep], y[keep], 0.02))
    dots = [np.stack([q, q + 0.01]) for q in p]
    many = dots[moles:]
    if many:
        canvas.glaze(many, tint(who.skin, 0.62) * (1, 0.88, 0.8), 0.4, width=0.018 * cam.unit)
    if dots[:moles]:
        canvas.glaze(dots[:moles], tint(who.skin, 0.3), 0.75, width=0.03 * cam.unit, blur=0.004 * cam.unit)


def draw_beard(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, rng: np.random.Generator
) -> None:
    """Full beard (from half strength on) and moustache; they stay skin, or what lies under them, in the class map."""
    cam, unit = scene.camera, scene.camera.unit
    hair = who.brow_colour * 0.75 + who.hair * 0.25 if who.hair_style == "bald" else who.hair * 0.85
    mouth = canvas.mask([np.concatenate([marks[48:60]])])
    mouth = cv2.bitwise_not(cv2.dilate(mouth, None, iterations=2))
    if scene.beard > 0.5:
        full = scene.beard > 0.8
        jaw = head.contour(cam.yaw)
        low = jaw.copy()
        low[:, 1] += np.interp(np.arange(17), [0, 4, 8, 12, 16], [0, 0.02, 0.1, 0.02, 0]) * (1.6 if full else 0.3)
        side = 0.62 if full else 0.56
        x = np.array([0.93, 0.8, side, 0.47, 0.3, 0.0, -0.3, -0.47, -side, -0.8, -0.93])
        y = head.shape["mouth_y"] + np.array([-0.75, -0.2, 0.02, 0.0, 0.2, 0.25, 0.2, 0.0, 0.02, -0.2, -0.75])
        edge = cam.project(head.on_face(x * head.shape["cheek"], y, 0.02))
        area = np.concatenate([curve(cam.project(low[1:16]), per=3), curve(edge, per=3)])
        canvas.glaze([area], hair, 0.62 + 0.3 * full, blur=0.035 * unit, clip=mouth)
        _hairs(canvas, area, hair, marks, mouth, rng, unit, 110)
    if scene.moustache > 0.3:
        nose, lip = marks[33], marks[51]
        up = (nose - lip) * 0.62 + lip
        left = marks[48] * 1.05 - marks[54] * 0.05
        right = marks[54] * 1.05 - marks[48] * 0.05
        drop = scene.camera.affine[:, 1] * 0.05
        arc = curve(
            np.stack([left + drop, (left + up) / 2 - drop * 0.2, up, (right + up) / 2 - drop * 0.2, right + drop])
        )
        lip_line = curve(np.stack([marks[54] + drop, marks[53], marks[51], marks[49], marks[48] + drop])) - drop * 0.2
        shape = np.concatenate([arc, lip_line])
        canvas.glaze([shape], hair, 0.85, blur=0.014 * unit)
        _hairs(canvas, shape, hair, marks, None, rng, unit, 40)


def _hairs(
    canvas: Canvas,
    area: np.ndarray,
    colour: np.ndarray,
    marks: np.ndarray,
    clip: np.ndarray | None,
    rng: np.random.Generator,
    unit: float,
    n: int,
) -> None:
    """Short strokes that fan out from the nose, inside `area`."""
    low, high = area.min(0), area.max(0)
    p = rng.uniform(low, high, (n, 2)).astype(np.float32)
    away = p - marks[33]
    away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-3
    end = p + away * (0.09 * unit)
    inside = canvas.mask([area])
    inside = cv2.min(inside, clip) if clip is not None else inside
    strokes = [np.stack(s) for s in zip(p, end, strict=True)]
    half = n // 2
    canvas.glaze(strokes[:half], tint(colour, 0.55), 0.5, width=0.012 * unit, clip=inside)
    canvas.glaze(strokes[half:], tint(colour, 1.22), 0.4, width=0.012 * unit, clip=inside)
