"""Hair and beards: a cap around the skull, bounded by the hairline, under strands that follow the skull."""

import cv2
import numpy as np

from facessl.synthetic.canvas import SUPER, Canvas, blend, one_color, scalar, soften, tint
from facessl.synthetic.geometry import circle, curve
from facessl.synthetic.model import TOP, Head

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


def cap_outline(head: Head, yaw: float, grow: float, low: float, lift: float, tilt: float = 0.0) -> np.ndarray:
    """(n, 3) the head's outline above height `low`, `grow` thicker, its crown lifted by `lift` (more on one side)."""
    y = TOP - 0.02 + (min(low, 0.6) - TOP) * (1 - np.cos(np.linspace(0, np.pi / 2, 20)))
    y[-1] = low
    thick = np.full(len(y), grow) if low > 1 else grow * np.clip((low + 0.05 - y) / 0.4, 0, 1) ** 0.7
    thick = thick * np.sqrt(np.clip((y - TOP + 0.02) / 0.3, 0, 1))  # round at the crown
    points = head.hang(np.array([[180.0], [-180.0]]), np.stack([y, y]), yaw, thick)
    points = np.concatenate([points[0], points[1, ::-1]])
    rise = np.clip((0.3 - points[:, 1]) / 1.5, 0, 1) * lift
    points[:, 1] -= rise * (1 + tilt * np.clip(points[:, 0], -1, 1))
    return points


def _hairline(canvas: Canvas) -> np.ndarray:
    """(n, 3) the edge of the hair from the left sideburn over the forehead to the right one."""
    who, style = canvas.who, canvas.who.hair_style
    y = np.array([0, 0.01, 0.05, 0.17, 0.42, 0.72, 0.98, 1.25]) + who.shape["hairline"]
    if style == "receding":
        y = y - (0.16, 0.3, 0.42, 0.38, 0.2, 0.05, 0, 0)
    if who.fringe:
        reach = (0.2 + 0.15 * who.fringe) if style == "crop" else (0.46 + 0.26 * who.fringe)
        y = y + np.array([1, 0.98, 0.92, 0.75, 0.4, 0.1, 0, 0]) * reach
    if who.long_hair:
        a, h = np.array([0.0, 16, 32, 45, 55, 61, 63, 64, 65, 68, 72]), np.append(y, [0.6, 1.4, 2.9])
    else:
        a, h = np.array([0.0, 18, 36, 52, 62, 68, 74, 80, 84, 104]), np.append(y, [0.45, 0.62])
    sides = canvas.head.hang(np.stack([-a, a]), np.stack([h, h]), canvas.cam.yaw)
    rim = np.concatenate([sides[0, ::-1], sides[1, 1:]])
    if style in _LOOSE and not who.fringe:
        rim[:, 1] += who.parting * 0.14 * rim[:, 0] * (rim[:, 1] < -0.3)
    return rim


def _window(canvas: Canvas) -> np.ndarray:
    """(2S, 2S) coverage of what the hair leaves free: from the hairline downwards."""
    cam, who = canvas.cam, canvas.who
    line = curve(cam.project(_hairline(canvas)), per=4)
    if who.hair_style in ("curly", "afro") or who.fringe:
        n = len(line)
        calm = np.minimum(np.arange(n), np.arange(n)[::-1]) > 12
        line = line + (canvas.rng.uniform(-1, 1, n) * calm * 0.028)[:, None] * cam.up
    if who.long_hair:
        return canvas.mask(line)
    below = canvas.head.around(np.array([180.0, 180, -180, -180]), np.array([0.9, 2, 2, 0.9]), cam.yaw, 0.7)
    return canvas.mask(np.concatenate([line, cam.project(below)]))


def draw_hair_back(canvas: Canvas) -> None:
    """Draw the hair behind the neck or the head."""
    cam, who = canvas.cam, canvas.who
    if who.long_hair:
        wavy = who.hair_style == "wavy"
        y = np.linspace(-0.8, _CAP[who.hair_style][2] + 0.05, 7)
        width = np.array([0.7, 0.98, 1.06, 1.1, 1.1, 1.08, 0.9]) + 0.6 * max(0.0, who.shape["volume"])
        if wavy:
            width = width + 0.06 * np.sin(np.arange(7) * 1.9 + who.seed % 7) + 0.06
        k = np.concatenate([[1.0, -1.0], canvas.rng.uniform(-1, 1, 24)])[:, None]
        x = k * width + 0.03 * np.sin(y * 3 + k * 9) * wavy - 0.25 * np.sin(np.radians(cam.yaw))
        lines = cam.project(np.stack(np.broadcast_arrays(x, y, np.float32(-0.35)), -1))
        area = curve(np.concatenate([lines[0], lines[1, ::-1]]), per=4)
        canvas.fill(area, tint(who.hair, 0.55), HAIR)
        clip = canvas.mask(area)
        strands = curve(lines[2:], per=3)
        for some, factor in ((strands[:12], 0.9), (strands[12:], 0.35)):
            canvas.glaze(some, tint(who.hair, factor), 0.4, width=0.035, blur=0.012, clip=clip)
    elif who.hair_style == "tied":
        bun = cam.project(np.array([0.25 * who.parting, TOP - 0.05, -0.55]))
        ball = circle(20) * (1, 0.85) * (0.42 * canvas.unit)
        canvas.fill(bun + ball, tint(who.hair, 0.75), HAIR)
        canvas.glaze([bun + ball * 0.55 - 0.1 * canvas.unit], tint(who.hair, 1.25), 0.4, blur=0.09)
        canvas.glaze([bun + ball * r for r in (0.5, 0.75)], tint(who.hair, 0.4), 0.5, width=0.03, blur=0.012)


def draw_hair(canvas: Canvas) -> None:
    """The hair on the head, with its shadow on the skin."""
    who, style, cam, unit = canvas.who, canvas.who.hair_style, canvas.cam, canvas.unit
    if style == "bald":
        return
    grow, lift, low = _CAP[style]
    if canvas.scene.hat != "none":
        lift, grow = 0.0, grow if who.long_hair else min(grow, 0.12)
    grow *= 0.7 + 2 * max(0.03, who.shape["volume"])
    tilt = 0.5 * np.sign(who.parting) if style == "side_part" else 0.0
    outline = cam.project(cap_outline(canvas.head, cam.yaw, grow, low, lift, tilt))
    if style in ("curly", "afro"):  # bumps, as curls make them
        away = outline - outline.mean(0)
        away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-3
        bumps = (canvas.rng.uniform(-1, 1, len(outline)) * (0.05 * unit))[:, None]
        outline = curve(outline + away * bumps, closed=True, per=3)
    box = canvas.box(outline, 0.1 * unit)
    if box is None:
        return
    x0, y0, x1, y1 = box
    part = np.s_[y0:y1, x0:x1]
    cap, hole = canvas.mask(outline)[part], _window(canvas)[part]
    inside = cv2.bitwise_and(cap, cv2.bitwise_not(hole))
    small = cv2.resize(inside, ((x1 - x0) // 4 + 1, (y1 - y0) // 4 + 1), interpolation=cv2.INTER_AREA)
    shadow = cv2.resize(soften(small, 0.08 * unit * SUPER / 4), inside.shape[::-1], interpolation=cv2.INTER_LINEAR)
    shadow = cv2.multiply(shadow, canvas.skin[part], scale=1 / 255)
    blend(canvas.rgb[part], shadow, tint(who.skin, 0.4) * (1, 0.86, 0.8), 0.6)
    edge = soften(hole, (0.012 if who.long_hair or who.fringe else 0.035) * unit * SUPER)
    cover = cv2.multiply(cap, cv2.bitwise_not(edge), scale=1 / 255)
    blend(canvas.rgb[part], cover, _texture(canvas, outline)[part], 0.85 if style == "receding" else 1.0)
    cv2.max(canvas.figure[part], cover, canvas.figure[part])
    np.putmask(canvas.label[part], cover > 127, HAIR)


def _paths(canvas: Canvas) -> np.ndarray:
    """(n, m, 3) strands over the skull."""
    who, head, rng = canvas.who, canvas.head, canvas.rng
    yaw, t = canvas.cam.yaw, (np.linspace(0, 1, 12) ** 1.5)[None, :]
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


def _texture(canvas: Canvas, outline: np.ndarray) -> np.ndarray:
    """(2S, 2S, 3) picture of hair, to be cut to shape; drawn at half of that, which keeps strands soft."""
    who, unit, size, rng = canvas.who, canvas.unit, canvas.size, canvas.rng
    picture = one_color(size, size, tint(who.hair, 0.9))
    if who.hair_style in ("curly", "afro"):
        n, radius = (190, 0.07) if who.hair_style == "curly" else (320, 0.04)
        at = rng.uniform(outline.min(0), outline.max(0), (n, 1, 2))
        t = np.linspace(0, 3.6, 6) + rng.uniform(0, 6.28, n)[:, None]
        strands = at + np.stack([np.cos(t), np.sin(t)], -1) * (radius * unit)
        shades = (0.5, 0.68, 1.0, 1.1)
    else:
        strands = canvas.cam.project(_paths(canvas))
        strands = strands[rng.permutation(len(strands))]
        shades = (0.66, 0.8, 0.98, 1.08)
    fixed = list(np.rint(strands * 16).astype(np.int32))
    thick = max(1, round(0.022 * unit))
    for k, factor in enumerate(shades):
        cv2.polylines(picture, fixed[k::4], False, scalar(tint(who.hair, factor)), thick, cv2.LINE_8, 4)
    if who.hair_style not in ("curly", "afro", "crop", "receding"):
        light = np.zeros((size, size), np.uint8)
        start = 2 if who.fringe and who.long_hair else 4
        bright = [f[start : start + 4] for f in fixed[::2]]
        cv2.polylines(light, bright, False, 120, max(1, round(0.045 * unit)), cv2.LINE_8, 4)
        blend(picture, soften(light, 0.035 * unit), tint(who.hair + 14, 1.3 if who.hair.mean() < 120 else 1.2))
    return cv2.resize(picture, canvas.label.shape[::-1], interpolation=cv2.INTER_LINEAR)


def draw_beard(canvas: Canvas) -> None:
    """A beard from half strength on, a full one near 1, and a moustache, with the class of what is below."""
    who, scene, marks = canvas.who, canvas.scene, canvas.marks
    hair = who.brow_color * 0.75 + who.hair * 0.25 if who.hair_style == "bald" else who.hair * 0.85
    if scene.beard > 0.5:
        full = scene.beard > 0.8
        mouth = cv2.dilate(canvas.mask(marks[48:60]), np.ones((3, 3), np.uint8), iterations=2)
        clip = cv2.bitwise_not(mouth)
        area = _beard_area(canvas, full)
        canvas.glaze([area], hair, 0.6 + 0.3 * full, blur=0.04, clip=clip)
        _draw_hairs(canvas, area, hair, marks[33], cv2.min(canvas.mask(area), clip), 110)
    if scene.moustache > 0.3:
        # Between nose and upper lip, drooping over the corners of the mouth.
        drop = -scene.camera.up * 0.05
        crest = marks[33] * 0.62 + marks[51] * 0.38
        left, right = marks[48] * 1.04 - marks[54] * 0.04 + drop, marks[54] * 1.04 - marks[48] * 0.04 + drop
        arc = np.stack([left, (left + crest) / 2 - drop, crest, (right + crest) / 2 - drop, right])
        lip = np.stack([right, marks[53], marks[51], marks[49], left]) + drop * 0.1
        area = np.concatenate([curve(arc), curve(lip)])
        canvas.glaze([area], hair, 0.85, blur=0.016)
        _draw_hairs(canvas, area, hair, marks[30], canvas.mask(area), 44)


def _beard_area(canvas: Canvas, full: bool) -> np.ndarray:
    """(n, 2) pixels: from the ears along the jaw, up to cheeks and lower lip."""
    cam, head = canvas.cam, canvas.head
    low = head.contour(cam.yaw)
    low[:, 1] += np.interp(np.arange(17), [0, 4, 8, 12, 16], [0, 0.02, 0.1, 0.02, 0]) * (1.6 if full else 0.3)
    x = np.array([0.93, 0.82, 0.62, 0.46, 0.28, 0.0]) * (head.shape["cheek"] if full else 0.93)
    y = head.shape["mouth_y"] + np.array([-0.75, -0.2, 0.0, 0.0, 0.2, 0.24])
    edge = head.on_face(np.concatenate([x, -x[-2::-1]]), np.concatenate([y, y[-2::-1]]), 0.02)
    return np.concatenate([curve(cam.project(low[1:16]), per=3), curve(cam.project(edge), per=3)])


def _draw_hairs(
    canvas: Canvas, area: np.ndarray, color: np.ndarray, origin: np.ndarray, clip: np.ndarray, n: int
) -> None:
    """Short strokes that start in the bounds of `area` and fan out from `origin`, cut out by `clip`."""
    p = canvas.rng.uniform(area.min(0), area.max(0), (n, 2)).astype(np.float32)
    away = p - origin
    away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-3
    strokes = np.stack([p, p + away * (0.09 * canvas.unit)], 1)
    canvas.glaze(strokes[: n // 2], tint(color, 0.55), 0.5, width=0.012, clip=clip)
    canvas.glaze(strokes[n // 2 :], tint(color, 1.22), 0.4, width=0.012, clip=clip)
