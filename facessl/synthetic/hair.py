"""Hair: a cap around the skull, cut out by the hairline, under strands that follow the skull."""

from __future__ import annotations

import cv2
import numpy as np

from facessl.synthetic.canvas import SUPER, Canvas, blend, plain, scalar, soften, tint
from facessl.synthetic.geometry import curve
from facessl.synthetic.identity import Identity
from facessl.synthetic.model import TOP, Head
from facessl.synthetic.scene import Scene

HAIR = 10
_LOOSE = ("side_part", "bob", "long", "wavy")  # styles with a parting
#: Thickness at the sides, lift of the crown, lowest height.
_CAP = {
    "crop": (0.05, 0.05, 0.45),
    "receding": (0.04, 0.02, 0.45),
    "side_part": (0.09, 0.14, 0.45),
    "tied": (0.03, 0.04, 0.45),
    "curly": (0.16, 0.14, 0.4),
    "afro": (0.40, 0.34, 0.6),
    "bob": (0.19, 0.10, 1.2),
    "long": (0.17, 0.09, 2.7),
    "wavy": (0.22, 0.10, 2.5),
}


def cap_outline(head: Head, scene: Scene, grow: float, low: float, lift: float, tilt: float = 0.0) -> np.ndarray:
    """(n, 3) the head's outline above height `low`, `grow` thicker, its crown lifted by `lift` (more on one side)."""
    y = TOP - 0.02 + (min(low, 0.6) - TOP) * (1 - np.cos(np.linspace(0, np.pi / 2, 20)))
    y[-1] = low
    thick = np.full(len(y), grow) if low > 1 else grow * np.clip((low + 0.05 - y) / 0.4, 0, 1) ** 0.7
    thick = thick * np.sqrt(np.clip((y - TOP + 0.02) / 0.3, 0, 1))  # round at the crown
    points = head.hang(np.array([[180.0], [-180.0]]), np.stack([y, y]), scene.camera.yaw, thick)
    points = np.concatenate([points[0], points[1, ::-1]])
    rise = np.clip((0.3 - points[:, 1]) / 1.5, 0, 1) * lift
    points[:, 1] -= rise * (1 + tilt * np.clip(points[:, 0], -1, 1))
    return points


def _hairline(head: Head, who: Identity, scene: Scene) -> np.ndarray:
    """(n, 3) the edge of the hair from the left sideburn over the forehead to the right one."""
    style, long_ = who.hair_style, who.long_hair
    angle = np.array([0.0, 16, 32, 45, 55, 61, 63, 64]) if long_ else np.array([0.0, 18, 36, 52, 62, 68, 74, 80])
    y = np.array([0, 0.01, 0.05, 0.17, 0.42, 0.72, 0.98, 1.25]) + who.shape["hairline"]
    if style == "receding":
        y = y - (0.16, 0.3, 0.42, 0.38, 0.2, 0.05, 0, 0)
    if who.fringe:
        reach = (0.2 + 0.15 * who.fringe) if style == "crop" else (0.46 + 0.26 * who.fringe)
        y = y + np.array([1, 0.98, 0.92, 0.75, 0.4, 0.1, 0, 0]) * reach
    end_angle, end_y = ([65.0, 68, 72], [0.6, 1.4, 2.9]) if long_ else ([84.0, 104], [0.45, 0.62])
    a, h = np.concatenate([angle, end_angle]), np.concatenate([y, end_y])
    sides = head.hang(np.stack([-a, a]), np.stack([h, h]), scene.camera.yaw)
    rim = np.concatenate([sides[0, ::-1], sides[1, 1:]])
    if style in _LOOSE and not who.fringe:
        rim[:, 1] += who.parting * 0.14 * rim[:, 0] * (rim[:, 1] < -0.3)
    return rim


def _window(canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """(2S, 2S) coverage of what the hair leaves free: from the hairline downwards."""
    cam = scene.camera
    line = curve(cam.project(_hairline(head, who, scene)), per=4)
    if who.hair_style in ("curly", "afro") or who.fringe:
        n = len(line)
        calm = np.minimum(np.arange(n), np.arange(n)[::-1]) > 12
        line = line + (rng.uniform(-1, 1, n) * calm * 0.028)[:, None] * cam.up
    if who.long_hair:
        return canvas.mask(line)
    below = head.around(np.array([180.0, 180, -180, -180]), np.array([0.9, 2, 2, 0.9]), cam.yaw, 0.7)
    return canvas.mask(np.concatenate([line, cam.project(below)]))


def draw_hair_back(canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator) -> None:
    """What falls behind the neck, or stands behind the head."""
    cam, unit, style = scene.camera, scene.camera.unit, who.hair_style
    colour = tint(who.hair, 0.55)
    if who.long_hair:
        y = np.linspace(-0.8, _CAP[style][2] + 0.05, 7)
        width = np.array([0.7, 0.98, 1.06, 1.1, 1.1, 1.08, 0.9]) + 0.6 * max(0.0, who.shape["volume"])
        if style == "wavy":
            width = width + 0.06 * np.sin(np.arange(7) * 1.9 + who.seed % 7) + 0.06
        k = np.concatenate([[1.0, -1.0], rng.uniform(-1, 1, 24)])[:, None]
        x = k * width + 0.03 * np.sin(y * 3 + k * 9) * (style == "wavy") - 0.25 * np.sin(np.radians(cam.yaw))
        lines = cam.project(np.stack(np.broadcast_arrays(x, y, np.float32(-0.35)), -1).astype(np.float32))
        area = curve(np.concatenate([lines[0], lines[1, ::-1]]), per=4)
        canvas.fill(area, colour, HAIR)
        clip = canvas.mask(area)
        strands = curve(lines[2:], per=3)
        canvas.glaze(strands[:12], tint(who.hair, 0.9), 0.4, width=0.035 * unit, blur=0.012 * unit, clip=clip)
        canvas.glaze(strands[12:], tint(who.hair, 0.35), 0.4, width=0.035 * unit, blur=0.012 * unit, clip=clip)
    elif style == "tied":
        bun = cam.project(np.array([[0.25 * who.parting, TOP - 0.05, -0.55]], np.float32))[0]
        t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ball = np.stack([np.cos(t), np.sin(t) * 0.85], 1) * (0.42 * unit)
        canvas.fill(bun + ball, tint(who.hair, 0.75), HAIR)
        canvas.glaze([bun + ball * 0.55 - 0.1 * unit], tint(who.hair, 1.25), 0.4, blur=0.09 * unit)
        loops = [bun + ball * r for r in (0.5, 0.75)]
        canvas.glaze(np.stack(loops), tint(who.hair, 0.4), 0.5, width=0.03 * unit, blur=0.012 * unit)


def draw_hair(canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator) -> None:
    """The hair on the head, with its shadow on the skin."""
    style, cam, unit = who.hair_style, scene.camera, scene.camera.unit
    if style == "bald":
        return
    grow, lift, low = _CAP[style]
    if scene.hat != "none":
        lift, grow = 0.0, grow if who.long_hair else min(grow, 0.12)
    tilt = 0.5 * np.sign(who.parting) if style == "side_part" else 0.0
    outline = cam.project(cap_outline(head, scene, grow * (0.7 + 2 * max(0.03, who.shape["volume"])), low, lift, tilt))
    if style in ("curly", "afro"):
        outline = _tufts(outline, rng, 0.05 * unit)
    box = canvas.box(outline, 0.1 * unit)
    if box is None:
        return
    x0, y0, x1, y1 = box
    part = np.s_[y0:y1, x0:x1]
    cap, hole = canvas.mask(outline)[part], _window(canvas, head, who, scene, rng)[part]
    inside = cv2.bitwise_and(cap, cv2.bitwise_not(hole))
    small = cv2.resize(inside, ((x1 - x0) // 4 + 1, (y1 - y0) // 4 + 1), interpolation=cv2.INTER_AREA)
    shadow = cv2.resize(soften(small, 0.08 * unit * SUPER / 4), inside.shape[::-1], interpolation=cv2.INTER_LINEAR)
    shadow = cv2.multiply(shadow, canvas.skin[part], scale=1 / 255)
    blend(canvas.rgb[part], shadow, tint(who.skin, 0.4) * (1, 0.86, 0.8), 0.6)
    edge = soften(hole, (0.012 if who.long_hair or who.fringe else 0.035) * unit * SUPER)
    cover = cv2.multiply(cap, cv2.bitwise_not(edge), scale=1 / 255)
    texture = _texture(canvas, head, who, scene, rng, outline)
    blend(canvas.rgb[part], cover, texture[part], 0.85 if style == "receding" else 1.0)
    cv2.max(canvas.figure[part], cover, canvas.figure[part])
    np.putmask(canvas.label[part], cover > 127, HAIR)


def _tufts(outline: np.ndarray, rng: np.random.Generator, size: float) -> np.ndarray:
    """The outline (n, 2) with bumps, as curls make it."""
    away = outline - outline.mean(0)
    away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-3
    return curve(outline + away * (rng.uniform(-1, 1, len(outline)) * size)[:, None], closed=True, per=3)


def _paths(head: Head, who: Identity, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """(n, m, 3) strands over the skull."""
    yaw, t = scene.camera.yaw, (np.linspace(0, 1, 12) ** 1.5)[None, :]
    if who.hair_style in ("crop", "receding"):
        n = 200
        a, y0 = rng.uniform(-170, 170, n)[:, None], rng.uniform(TOP, 0.4, n)[:, None]
        t = t[:, ::3]
        return head.around(a + 14 * t * who.parting, y0 + t * rng.uniform(0.12, 0.3, n)[:, None], yaw, 0.06)
    if who.hair_style in _LOOSE and not who.fringe:
        n = 100
        u = rng.uniform(0, 1, n)[:, None]
        side = np.where(np.arange(n) < n // 2, -1.0, 1.0)[:, None]
        start = -40.0 * who.parting
        end = side * (66 + 110 * (1 - u) ** 0.8)
        y0 = TOP + u**0.7 * (who.shape["hairline"] - 0.02 - TOP)
        y1 = 2.7 if who.long_hair else 0.5
        swing = np.sin(np.minimum(t * (2.4 if who.long_hair else 1.4), 1) * np.pi / 2)
        a = start + (end - start) * swing
        if who.hair_style == "wavy":
            a = a + 5 * np.sin(t * 13 + 2 * u) * np.minimum(2 * t, 1)
        return head.hang(a, y0 + (y1 - y0) * t**1.5, yaw, 0.1)
    n = 90
    y1 = 2.7 if who.long_hair else 0.6
    a = (np.linspace(-172, 172, n) + rng.uniform(-5, 5, n))[:, None] + who.parting * 22 * (1 - t)
    if who.hair_style == "wavy":
        a = a + 6 * np.sin(t * 14)
    return head.hang(a, TOP + (y1 - TOP) * t**1.15, yaw, 0.1)


def _texture(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator, outline: np.ndarray
) -> np.ndarray:
    """(2S, 2S, 3) picture of hair, to be cut to shape; drawn at half of that, which keeps strands soft."""
    unit, style, size = scene.camera.unit, who.hair_style, canvas.size
    picture = plain(size, size, tint(who.hair, 0.9))
    if style in ("curly", "afro"):
        n, radius = (190, 0.07) if style == "curly" else (320, 0.04)
        at = rng.uniform(outline.min(0), outline.max(0), (n, 1, 2))
        t = np.linspace(0, 3.6, 6) + rng.uniform(0, 6.28, n)[:, None]
        strands = at + np.stack([np.cos(t), np.sin(t)], -1) * (radius * unit)
        shades = (0.5, 0.68, 1.0, 1.1)
    else:
        strands = scene.camera.project(_paths(head, who, scene, rng))
        strands = strands[rng.permutation(len(strands))]
        shades = (0.66, 0.8, 0.98, 1.08)
    fixed = list(np.rint(strands * 16).astype(np.int32))
    thick = max(1, round(0.022 * unit))
    for k, factor in enumerate(shades):
        cv2.polylines(picture, fixed[k::4], False, scalar(tint(who.hair, factor)), thick, cv2.LINE_8, 4)
    if style not in ("curly", "afro", "crop", "receding"):
        light = np.zeros((size, size), np.uint8)
        start = 2 if who.fringe and who.long_hair else 4
        bright = [f[start : start + 4] for f in fixed[::2]]
        cv2.polylines(light, bright, False, 120, max(1, round(0.045 * unit)), cv2.LINE_8, 4)
        blend(picture, soften(light, 0.035 * unit), tint(who.hair + 14, 1.3 if who.hair.mean() < 120 else 1.2))
    return cv2.resize(picture, canvas.label.shape[::-1], interpolation=cv2.INTER_LINEAR)
