"""Body, ears, nose, mouth, folds and spots of the skin."""

import functools

import cv2
import numpy as np

from facessl.synthetic.canvas import Canvas, tint
from facessl.synthetic.geometry import curve

NOSE, UPPER_LIP, INNER_MOUTH, LOWER_LIP = 6, 7, 8, 9
_LIPSTICKS = np.array([(176, 32, 48), (190, 70, 84), (140, 30, 70), (196, 84, 70)], np.float32)
_WING_X = np.array([0.62, 0.86, 1.0, 0.97, 0.78, 0.5])
_WING_Y = np.array([-0.20, -0.185, -0.11, -0.04, -0.015, 0.0])
_WING_Z = np.array([0.13, 0.1, 0.07, 0.08, 0.12, 0.17])
_HOLE_X = 0.42 + 0.3 * np.array([-1, -0.6, 0.3, 1, 0.4, -0.6])
_HOLE_Y = np.array([0.005, -0.03, -0.042, -0.012, 0.016, 0.018])
_ROOT_X, _ROOT_Y, _ROOT_Z = np.array([0.10, 0.085, 0.115]), np.array([0.0, 0.14, 0.3]), np.array([0.5, 0.75, 1.0])
_TIP_X, _TIP_Y = np.array([-0.75, -0.7, -0.3, 0.3, 0.7, 0.75, 0]), np.array([0.25, -0.4, -0.85, -0.85, -0.4, 0.25, 0.9])
_TIP = np.stack([_TIP_X, _TIP_Y, np.zeros(7)], 1).astype(np.float32)
_EAR_U = np.array([0.15, -0.2, -0.75, -1.0, -0.8, -0.35, 0.05, 0.2])  # front to back
_EAR_V = np.array([-0.12, -0.36, -0.38, -0.1, 0.16, 0.36, 0.42, 0.2])  # top to lobe
_EARRING = np.stack([np.cos(np.arange(10) * 0.6283), np.sin(np.arange(10) * 0.6283)], 1)


def draw_body(canvas: Canvas) -> None:
    """Shoulders, collar and neck: background in the class map."""
    cam, who, scene, unit = canvas.cam, canvas.who, canvas.scene, canvas.unit
    chin = cam.project(np.array([0, canvas.head.chin, 0.25]))
    lean = np.array([np.sin(np.radians(cam.roll)) * -0.25, 0])
    build, neck = 0.9 + 0.25 * who.masculinity, 0.46 + 0.14 * who.masculinity

    def body(points: list[tuple[float, float]]) -> np.ndarray:
        return chin + (np.array(points, np.float32) + lean).astype(np.float32) * unit

    half = [(-2.9, 2.6), (-2.3 * build, 1.0), (-1.45 * build, 0.66), (-0.66 * build, 0.38)]
    canvas.fill(curve(body([*half, (0, 0.5), *((-x, y) for x, y in half[::-1])])), scene.clothes)
    top = cam.project(canvas.head.on_face(np.array([-neck, neck]), np.full(2, 0.8)) * (1, 1, 0))
    base = curve(body([(neck + 0.12, 0.46), (0.34, 0.8), (0, 0.92), (-0.34, 0.8), (-neck - 0.12, 0.46)]))
    throat = np.concatenate([top, base])
    canvas.fill(throat, tint(who.skin, 0.9))
    shade = canvas.marks[3:14] - cam.up * 0.12 - np.array([scene.sun[0], 0]) * (0.15 * unit)
    canvas.glaze([shade], tint(who.skin, 0.42) * (1, 0.86, 0.82), 0.6, blur=0.08, clip=canvas.mask(throat))
    canvas.glaze([base], tint(scene.clothes, 0.6), 0.9, width=0.07, blur=0.012)


def draw_ears(canvas: Canvas, sides: list[float]) -> None:
    """Ears, in three dimensions and background in the class map; side -1 is the image's left."""
    if not sides:
        return
    cam, skin, size = canvas.cam, canvas.who.skin, canvas.head.shape["ear"]
    w = float(canvas.head.rings(np.array(0.3))[0])
    x = w - 0.03 + 0.13 * np.maximum(-_EAR_U, 0) * size
    shape = np.stack([x, 0.27 + _EAR_V * size, 0.02 + 0.27 * _EAR_U * size], 1).astype(np.float32)
    middle = shape.mean(0)
    turn = np.array([(side, 1, 1) for side in sides], np.float32)[:, None]
    shells = curve(cam.project(shape * turn), closed=True)
    inner = curve(cam.project((middle + (shape - middle) * 0.6) * turn), closed=True)
    dark = tint(skin, 0.5) * (1, 0.82, 0.78)
    for shell in shells:
        canvas.fill(shell, tint(skin, 0.95) * (1.02, 0.96, 0.94))
    canvas.glaze(inner, dark, 0.5, blur=0.03)
    canvas.glaze(shells, dark, 0.45, width=0.02, blur=0.012)
    if canvas.scene.earrings:
        for lobe in cam.project((shape[6] + np.array((0, 0.05, 0), np.float32)) * turn):
            canvas.fill(lobe[0] + _EARRING * (0.05 * canvas.unit), (226, 190, 96))


def draw_nose(canvas: Canvas) -> None:
    """Nostrils, wings and the line of the ridge; the volume itself comes from the light."""
    cam, head, marks, s = canvas.cam, canvas.head, canvas.marks, canvas.head.shape
    base, w = float(head.points[33, 1]), s["nose_w"]
    dark = tint(canvas.who.skin, 0.34) * (1, 0.82, 0.78)
    x = np.concatenate([_WING_X * w, _HOLE_X * w, _ROOT_X, (0.0, 0.5 * w)])
    y = np.concatenate([base + _WING_Y, base + _HOLE_Y, s["eye_y"] + _ROOT_Y, (base + 0.045, base + 0.02)])
    lift = np.concatenate([_WING_Z, np.full(6, 0.17), s["bridge"] * _ROOT_Z, (0.17, 0.17)])
    sides = cam.project(head.both(x, y, lift))
    wings, holes = curve(sides[:, :6]), curve(sides[:, 6:12], closed=True)
    roots, under = sides[:, 12:15], curve(np.stack([sides[0, 16], sides[0, 15], sides[1, 16]]))
    ball = cam.project(head.points[30] + _TIP * s["tip"] + np.array((0, 0.03, 0), np.float32))
    whole = np.concatenate([wings[0], wings[1], roots[0], roots[1], ball, marks[27:36]]).astype(np.float32)
    canvas.fill(curve(cv2.convexHull(whole)[:, 0], closed=True, per=2), label=NOSE)
    far = 0 if cam.yaw < 0 else 1
    ridge = marks[28:31] * 0.75 + roots[far, 1:2] * 0.25 + (marks[28:31] - marks[28]) * 0.25
    edge = curve(np.concatenate([roots[far, :2], ridge]))[:-4]
    soft = (0.42, 0.42, 0.35, max(0.0, min(0.4, (abs(cam.yaw) - 10) / 60)))
    canvas.glaze([wings[0], wings[1], under, edge], dark, soft, blur=0.016, width=0.026)
    canvas.glaze(holes, tint(dark, 0.5), 0.85, blur=0.009)


def draw_mouth(canvas: Canvas) -> None:
    """Lips, teeth and tongue from points 48..67."""
    unit, m, down, who, scene = canvas.unit, canvas.marks, -canvas.cam.up, canvas.who, canvas.scene
    top, bottom = curve(m[48:55]), curve(m[[54, 55, 56, 57, 58, 59, 48]])
    in_top, in_bottom = curve(m[[60, 61, 62, 63, 64]]), curve(m[[64, 65, 66, 67, 60]])
    inner = np.concatenate([in_top, in_bottom[1:-1]])
    color = who.lips
    if scene.makeup > 0.1:
        red = _LIPSTICKS[who.seed % 4] * (1 - 0.25 * who.melanin)
        color = color + (red - color) * (0.35 + 0.5 * scene.makeup)
    upper = np.concatenate([m[48:49], top[1:], in_top[::-1]])
    lower = np.concatenate([m[54:55], bottom[1:], in_bottom[::-1]])
    gap = float((m[66] - m[62]) @ down) / unit**2
    canvas.fill(np.concatenate([top, bottom[1:-1]]), label=INNER_MOUTH)
    if gap > 0.02:
        _draw_inside(canvas, inner, gap)
    canvas.glaze([upper], tint(color, 0.82), 0.92, blur=0.009)
    canvas.glaze([lower], color, 0.92, blur=0.009)
    canvas.fill(upper, label=UPPER_LIP)
    canvas.fill(lower, label=LOWER_LIP)
    middle = (in_top + in_bottom[::-1]) / 2
    if gap > 0.012:
        canvas.fill(inner, label=INNER_MOUTH)
    else:
        canvas.fill(np.concatenate([middle, (middle + down * 0.01)[::-1]]), label=INNER_MOUTH)
    out = (m[54] - m[48]) / (np.linalg.norm(m[54] - m[48]) + 1e-6) * unit
    corners = [np.stack([m[48] + out * 0.03, m[48] - out * 0.025]), np.stack([m[54] - out * 0.03, m[54] + out * 0.025])]
    canvas.glaze(corners, tint(who.skin, 0.36), 0.5, width=0.03, blur=0.012)
    if gap <= 0.012:
        ends = np.concatenate([m[48:49], middle, m[54:55]])
        canvas.glaze([ends], tint(color, 0.28), 0.9, width=0.026, blur=0.006)
    gloss = m[[58, 57, 56]] * 0.55 + m[[67, 66, 65]] * 0.45 - down * 0.005
    canvas.glaze([curve(gloss)], (255, 235, 230), 0.22 + 0.2 * scene.makeup, width=0.03, blur=0.018)


def _draw_inside(canvas: Canvas, inner: np.ndarray, gap: float) -> None:
    """The dark of the open mouth, teeth and tongue; a mouth opened to an oval shows less of the teeth."""
    m, down = canvas.marks, -canvas.cam.up
    wide = float(np.linalg.norm(m[64] - m[60])) / canvas.unit
    canvas.fill(inner, (52, 18, 20))
    clip = canvas.mask(inner)
    reach = down * min(0.10, 0.75 * gap + 0.01, max(0.02, 0.3 * (wide - gap)))
    arch = curve(m[[60, 61, 62, 63, 64]])
    if gap > 0.12:
        low = curve(m[[60, 67, 66, 65, 64]])
        canvas.glaze([low - down * 0.01], (168, 74, 78), 0.9, clip=clip, width=0.17, blur=0.03)
    canvas.glaze([np.concatenate([arch, (arch + reach)[::-1]])], (228, 221, 210), 0.96, clip=clip, blur=0.006)
    t = np.linspace(0.15, 0.85, 7) * (len(arch) - 1)
    k = np.arange(len(arch))
    at = np.stack([np.interp(t, k, arch[:, 0]), np.interp(t, k, arch[:, 1])], 1)
    teeth = np.stack([at, at + reach * 0.95], 1)
    canvas.glaze(teeth, (150, 128, 118), 0.3, clip=clip, width=0.01)
    canvas.glaze([arch], (60, 20, 22), 0.4, clip=clip, width=0.045, blur=0.02)


def _folds(canvas: Canvas) -> list[tuple[list[float], list[float], float, bool]]:
    """(|x| of three points, their y, opacity, wide) of the folds that expressions and age draw."""
    e, s, old = canvas.scene.expression, canvas.head.shape, max(0.0, canvas.who.age - 0.4) / 0.6
    ny, my, ey, ex = s["nose_y"], s["mouth_y"], s["eye_y"], s["eye_x"]
    reach = 0.1 * max(0.0, e.corner) + 0.05 * max(0.0, e.stretch)
    deep = 0.08 + 0.55 * e.cheek + 0.3 * e.wrinkle + 0.4 * old
    folds = [
        ([0.25, 0.40 + reach, 0.47 + reach], [ny - 0.1, ny + 0.06, my - 0.04], deep, True),
        ([0.055, 0.05, 0.06], [ey - 0.33, ey - 0.25, ey - 0.15], 0.75 * e.furrow + 0.15 * old, True),
        ([ex - 0.2, ex, ex + 0.2], [0.13, 0.2, 0.15], 0.5 * old + 0.15 * e.squint, True),
        ([0.36, 0.38, 0.4], [my + 0.12, my + 0.18, my + 0.25], 0.5 * max(0.0, -e.corner - 0.2), True),
    ]
    for k in range(2):
        y = ey + 0.09 + 0.08 * k
        folds.append(([0.06, 0.1, 0.14], [y, y - 0.03, y - 0.05], 0.6 * e.wrinkle, False))
    raised = 0.21 * max(0.0, e.inner + e.outer) + 0.4 * old + 0.25 * max(0.0, e.inner)
    for k in range(3):
        y = -0.5 - 0.11 * k
        folds.append(([0.0, 0.25, 0.5 - 0.05 * k], [y, y - 0.02, y + 0.03], raised * (0.7 - 0.14 * k), False))
    x0, feet = ex + s["eye_w"] + 0.05, 0.5 * old + 0.35 * e.squint * e.cheek
    for dy in (-0.05, 0.0, 0.05):
        folds.append(([x0, x0 + 0.05, x0 + 0.1], [ey + 0.4 * dy, ey + 0.8 * dy, ey + 1.5 * dy], feet, False))
    return folds


def draw_folds(canvas: Canvas) -> None:
    """Folds beside the mouth, between the brows, on the forehead, crow's feet."""
    dark = tint(canvas.who.skin, 0.45) * (1, 0.86, 0.82)
    folds = [f for f in _folds(canvas) if f[2] > 0.05]
    for wide in (True, False):
        some = [f for f in folds if f[3] == wide]
        if some:
            x, y = np.array([f[0] for f in some]), np.array([f[1] for f in some])
            lines = curve(canvas.cam.project(canvas.head.both(x, y, 0.03))).reshape(2 * len(some), -1, 2)
            alpha = [min(0.75, f[2]) for f in some] * 2
            width = 0.028 if wide else 0.016
            canvas.glaze(lines, dark, alpha, width=width, blur=0.5 * width)


@functools.lru_cache(maxsize=2048)
def _spots(seed: int, freckles: int) -> tuple[np.ndarray, np.ndarray, int]:
    """x and y of a person's moles, then freckles; the number of moles."""
    rng = np.random.default_rng(seed)
    moles = int(rng.integers(0, 3))
    x = np.concatenate([rng.uniform(-0.75, 0.75, moles), np.clip(rng.normal(0, 0.42, freckles), -0.8, 0.8)])
    return x, np.concatenate([rng.uniform(-0.5, 1.3, moles), rng.normal(0.36, 0.17, freckles)]), moles


def draw_spots(canvas: Canvas) -> None:
    """Freckles and moles, at the same place in every picture of a person."""
    skin = canvas.who.skin
    x, y, moles = _spots(canvas.who.seed, int(70 * canvas.who.freckles))
    if not len(x):
        return
    p = canvas.cam.project(canvas.head.on_face(x, y, 0.02))
    dots = np.stack([p, p + 0.01], 1)
    if len(x) > moles:
        canvas.glaze(dots[moles:], tint(skin, 0.62) * (1, 0.88, 0.8), 0.4, width=0.018)
    if moles:
        canvas.glaze(dots[:moles], tint(skin, 0.3), 0.75, width=0.028)
