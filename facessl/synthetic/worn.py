"""Glasses, hats and things that hide a part of the face: background in the class map, as LaPa has no class for them."""

import numpy as np

from facessl.synthetic.canvas import Canvas, tint
from facessl.synthetic.geometry import circle, curve
from facessl.synthetic.hair import cap_outline
from facessl.synthetic.model import TOP

_FRAMES = ((24, 22, 24), (60, 40, 30), (120, 30, 34), (40, 52, 84), (186, 160, 110), (150, 152, 156))


def draw_glasses(canvas: Canvas) -> None:
    """Spectacles; dark lenses hide the eyes (background in the class map), clear ones and frames hide nothing."""
    if canvas.scene.glasses == "none":
        return
    cam, who, s = canvas.cam, canvas.who, canvas.head.shape
    color = _FRAMES[who.seed % len(_FRAMES)]
    power = (1.0, 0.75, 0.5)[who.seed % 3]  # round to rectangular
    form = circle(28, power)
    width, height, depth = 0.325, 0.25 + 0.03 * (power == 1.0), 0.93 + 0.06
    lenses = []
    for side in (-1.0, 1.0):
        x = side * (s["eye_x"] + 0.01) + form[:, 0] * width
        y = s["eye_y"] + 0.035 + form[:, 1] * height
        lenses.append(cam.project(np.stack([x, y, depth - 0.16 * (x / 0.8) ** 2], 1)))
    for lens in lenses:
        if canvas.scene.glasses == "dark":
            canvas.fill(lens, (26, 24, 28), 0)
            shine = lens * 0.55 + lens.mean(0) * 0.45 + cam.affine[:, :2] @ (-0.05, -0.07)
            canvas.glaze([shine], (150, 160, 178), 0.35, blur=0.06, clip=canvas.mask(lens))
        else:
            canvas.glaze([lens], (235, 242, 250), 0.07)
            ends = [lens.mean(0) + cam.affine[:, :2] @ end for end in ((-0.2, 0.16), (0.1, -0.2))]
            canvas.glaze([np.stack(ends)], (255, 255, 255), 0.25, width=0.07, blur=0.02, clip=canvas.mask(lens))
    rims = [np.concatenate([lens, lens[:1]]) for lens in lenses]
    shadow = [rim + cam.affine[:, 1] * 0.05 for rim in rims]
    canvas.glaze(shadow, (40, 20, 14), 0.25, width=0.04, blur=0.02, clip=canvas.skin)
    bridge_x = np.array([-1, -0.5, 0.5, 1]) * (s["eye_x"] - width + 0.02)
    bridge = np.stack([bridge_x, s["eye_y"] + np.array([0.0, -0.05, -0.05, 0.0]), np.full(4, depth + 0.02)], 1)
    strokes = [*rims, curve(cam.project(bridge))]
    for side in (-1.0, 1.0):
        if np.sin(np.radians(cam.yaw)) * side < 0.12:
            x = side * np.array([s["eye_x"] + width, 1.0, 1.02])
            z = np.array([depth - 0.16 * ((s["eye_x"] + width) / 0.8) ** 2, 0.45, 0.05])
            strokes.append(cam.project(np.stack([x, np.full(3, s["eye_y"] - 0.03), z], 1)))
    canvas.glaze(strokes, color, 0.96, width=(0.055, 0.035, 0.022)[who.seed // 7 % 3])
    canvas.glaze([rim - cam.affine[:, 1] * 0.008 for rim in rims], tint(color, 1.5), 0.35, width=0.008)


def draw_hat(canvas: Canvas) -> None:
    """A cap with a visor, a beanie or a hat with a brim."""
    kind, head, cam = canvas.scene.hat, canvas.head, canvas.cam
    if kind == "none":
        return
    color = np.clip(canvas.scene.clothes[::-1] * 0.75 + 15, 0, 190)
    dark = tint(color, 0.5)
    rim_y = -0.62 if kind == "beanie" else -0.68
    band = cam.project(head.around(np.linspace(90, -90, 17), np.full(17, rim_y), cam.yaw, 0.16))
    if kind == "brim":
        _draw_brim(canvas, rim_y, color)
    sides = cam.project(cap_outline(head, cam.yaw, 0.16, rim_y, 0.3 if kind == "brim" else 0.12))
    half = len(sides) // 2
    crown = np.concatenate([sides[:half], band, sides[half:]])
    canvas.fill(crown, color, 0)
    clip = canvas.mask(crown)
    if kind == "cap":
        y = np.tile(np.linspace(TOP, rim_y, 6), (6, 1))
        seams = cam.project(head.around(np.linspace(-75, 75, 6)[:, None], y, cam.yaw, 0.15))
        canvas.glaze(seams, dark, 0.35, width=0.02, blur=0.012, clip=clip)
        _draw_visor(canvas, rim_y, color)
    elif kind == "beanie":
        fine = curve(band, per=3)
        cuff = np.concatenate([band - cam.up * 0.06, (band + cam.up * 0.24)[::-1]])
        ribs = np.stack([fine - cam.up * 0.05, fine + cam.up * 0.22], 1)
        knit = np.stack([fine + cam.up * 0.24, fine * 0.5 + (sides[0] + sides[-1]) * 0.25 + cam.up * 0.1], 1)
        canvas.glaze(knit, dark, 0.25, width=0.02, clip=clip)
        canvas.glaze([cuff - cam.up * 0.05], (30, 22, 20), 0.4, blur=0.05, clip=canvas.skin)
        canvas.fill(cuff, tint(color, 0.88), 0)
        canvas.glaze(ribs, dark, 0.35, width=0.02)
    else:
        canvas.glaze([np.concatenate([band, (band + cam.up * 0.2)[::-1]])], dark, 0.9, clip=clip, blur=0.01)


def _draw_visor(canvas: Canvas, rim_y: float, color: np.ndarray) -> None:
    cam = canvas.cam
    a = np.radians(np.linspace(66, -66, 13))
    front = canvas.head.around(np.degrees(a), np.full(13, rim_y), cam.yaw, 0.16)
    reach = np.cos(a * (np.pi / 2 / 1.152)) ** 0.7
    away = np.stack([0.15 * np.sin(a), np.full(13, 0.36), np.full(13, 0.72)], 1) * reach[:, None]
    edge = cam.project(front + away)
    area = np.concatenate([edge, cam.project(front)[::-1]])
    canvas.glaze([area - cam.up * 0.14], (30, 22, 20), 0.4, blur=0.08, clip=canvas.skin)
    canvas.fill(area, tint(color, 0.78), 0)
    canvas.glaze([edge], tint(color, 1.35), 0.5, width=0.022)


def _draw_brim(canvas: Canvas, rim_y: float, color: np.ndarray) -> None:
    cam = canvas.cam
    a = np.radians(np.linspace(0, 360, 40, endpoint=False))
    w = float(canvas.head.rings(np.array(rim_y))[0])
    droop = rim_y + 0.06 + 0.05 * np.sin(a) ** 2
    area = cam.project(np.stack([np.sin(a) * (w + 0.62), droop, np.cos(a) * 1.62 - 0.2], 1))
    canvas.glaze([area - cam.up * 0.2], (30, 22, 20), 0.4, blur=0.1, clip=canvas.skin)
    canvas.fill(area, tint(color, 0.75), 0)
    canvas.glaze([np.concatenate([area, area[:1]])], tint(color, 0.9), width=0.06)


def draw_occluder(canvas: Canvas) -> None:
    """A hand, a scarf, a surgical mask or a thing in front of the face; background in the class map."""
    if canvas.scene.occluder != "none":
        _OCCLUDERS[canvas.scene.occluder](canvas)


def _draw_hand(canvas: Canvas) -> None:
    unit, rng, skin = canvas.unit, canvas.rng, tint(canvas.who.skin, 0.95)
    side = -1.0 if rng.uniform() < 0.5 else 1.0
    target = ((48, 30, 41, 19) if side < 0 else (54, 30, 46, 24))[int(rng.integers(4))]
    tip = canvas.marks[target] + rng.normal(0, 0.1, 2) * unit
    dark = tint(canvas.who.skin, 0.42) * (1, 0.84, 0.8)
    tilt = np.radians(rng.uniform(20, 70)) * side
    along = np.array([np.sin(tilt), np.cos(tilt)])
    across = np.array([along[1], -along[0]])
    palm_at = tip + along * 1.25 * unit
    form = circle(20)
    palm = palm_at + form[:, :1] * across * 0.5 * unit + form[:, 1:] * along * 0.62 * unit
    wrist = np.stack([palm_at + across * 0.4 * unit, palm_at - across * 0.4 * unit]) + along * 0.3 * unit
    fingers = []
    for k, length in enumerate((0.82, 1.0, 0.96, 0.74)):
        root = palm_at + across * (0.36 - 0.24 * k) * unit - along * 0.38 * unit
        spread = across * (0.14 - 0.09 * k) * unit
        joints = [root - along * reach * length * unit + spread * out for reach, out in ((0.45, 0.6), (0.9, 0.7))]
        fingers.append(curve(np.stack([root, *joints])))
    thumb = [palm_at + across * out * unit - along * up * unit for out, up in ((0.4, 0), (0.78, 0.3), (0.82, 0.62))]
    fingers.append(curve(np.stack(thumb)))
    canvas.glaze([f + 0.06 * unit for f in fingers], (30, 16, 12), 0.4, width=0.26, blur=0.06, clip=canvas.skin)
    canvas.fill(np.concatenate([wrist, (wrist + along * 3.0 * unit)[::-1]]), skin, 0)
    canvas.fill(palm, skin, 0)
    for f in fingers:
        canvas.tube(f, dark, 0.25)
        canvas.tube(f, skin, 0.225)
        canvas.glaze([f - across * 0.03 * unit], tint(canvas.who.skin, 1.25), 0.35, width=0.07, blur=0.025)
        nail = f[-1] - along * -0.02 * unit
        canvas.tube(np.stack([nail, nail + along * 0.05 * unit]), tint(skin * (1.03, 0.93, 0.93), 1.15), 0.12)


def _draw_scarf(canvas: Canvas) -> None:
    cam, head, rng = canvas.cam, canvas.head, canvas.rng
    color = np.clip(rng.uniform(40, 215) + rng.normal(0, 45, 3), 10, 240)
    y = head.shape["nose_y"] + rng.uniform(-0.25, 0.15)
    a = np.linspace(-100, 100, 13)
    top = cam.project(head.around(a, np.full(13, y) + 0.12 * np.cos(np.radians(a)) ** 2 - 0.05, cam.yaw, 0.1))
    low = head.around(np.linspace(100, -100, 13), np.full(13, head.chin), cam.yaw, 0.5)
    low = cam.project(low + np.array((0, 0.35, 0), np.float32))
    area = np.concatenate([curve(top), curve(low)])
    canvas.fill(area, color, 0)
    clip = canvas.mask(area)
    for k in range(1, 6):
        fold = curve(top + (low[::-1] - top) * (k / 6 + rng.uniform(-0.05, 0.05, 13))[:, None])
        canvas.glaze([fold], tint(color, 0.5 if k % 2 else 1.25), 0.45, width=0.06, blur=0.03, clip=clip)
    if rng.uniform() < 0.5:
        stripes = np.stack([curve(top)[::6], curve(low)[::-1][::6]], 1)
        canvas.glaze(stripes, 255 - color, 0.5, width=0.08, clip=clip)


def _draw_surgical_mask(canvas: Canvas) -> None:
    cam, head = canvas.cam, canvas.head
    colors = ((164, 208, 226), (238, 240, 240), (40, 42, 46), (176, 214, 196))
    color = colors[int(canvas.rng.integers(4))]
    nose, chin = float(head.points[29, 1]), head.chin + 0.04
    x = np.array([-0.74, -0.45, -0.14, 0, 0.14, 0.45, 0.74])
    drop, lift = np.array([0.22, 0.1, 0.0, -0.02, 0.0, 0.1, 0.22]), np.array([0.04, 0.1, 0.3, 0.36, 0.3, 0.1, 0.04])
    p = cam.project(head.on_face(x, nose + drop, lift))
    q = cam.project(head.on_face(x[::-1] * 0.8, np.array([-0.3, -0.1, -0.01, 0, -0.01, -0.1, -0.3]) + chin, 0.12))
    area = np.concatenate([curve(p), curve(q)])
    ends = [(np.array([s * 55.0, s * 88.0]), np.array([h, 0.2])) for s in (-1, 1) for h in (nose + 0.2, chin - 0.3)]
    straps = [cam.project(head.around(a, y, cam.yaw, 0.03)) for a, y in ends]
    canvas.glaze([area + cam.affine[:, 1] * 0.05], (30, 16, 12), 0.35, blur=0.05, clip=canvas.skin)
    canvas.glaze(straps, tint(color, 0.9), 0.9, width=0.03)
    canvas.fill(area, color, 0)
    clip = canvas.mask(area)
    for k, shade, width, blur in (
        *((k, 0.6, 0.025, 0.015) for k in (0.3, 0.5, 0.7)),  # pleats
        (0.06, 1.5, 0.04, 0.01),  # upper edge
    ):
        canvas.glaze([curve(p + (q[::-1] - p) * k)], tint(color, shade), 0.5, width=width, blur=blur, clip=clip)
    canvas.glaze([area], tint(color, 0.5), 0.4, width=0.04, blur=0.03, clip=clip)


def _draw_patch(canvas: Canvas) -> None:
    unit, rng = canvas.unit, canvas.rng
    center = canvas.marks.mean(0) + rng.normal(0, 0.55, 2) * unit
    w, h, tilt = rng.uniform(0.3, 0.55) * unit, rng.uniform(0.5, 0.85) * unit, rng.uniform(-0.8, 0.8)
    box = circle(32, 0.25) * (w, h)
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    area = box @ turn.T + center
    color = np.clip(rng.uniform(30, 220) + rng.normal(0, 40, 3), 8, 245)
    canvas.glaze([area + 0.06 * unit], (20, 14, 12), 0.4, blur=0.07, clip=canvas.skin)
    canvas.fill(area, tint(color, 0.7), 0)
    canvas.fill((box * 0.9) @ turn.T + center, color, 0)
    canvas.glaze([(box * (0.3, 0.9) - (0.5 * w, 0)) @ turn.T + center], tint(color, 1.4), 0.35, blur=0.08)


_OCCLUDERS = {"hand": _draw_hand, "scarf": _draw_scarf, "patch": _draw_patch, "surgical_mask": _draw_surgical_mask}
