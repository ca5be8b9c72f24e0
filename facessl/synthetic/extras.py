"""Glasses and things that hide a part of the face."""

from __future__ import annotations

import numpy as np

from facessl.synthetic.canvas import Canvas, tint
from facessl.synthetic.geometry import curve
from facessl.synthetic.identity import Identity
from facessl.synthetic.model import Head
from facessl.synthetic.scene import Scene

_FRAMES = ((24, 22, 24), (60, 40, 30), (120, 30, 34), (40, 52, 84), (186, 160, 110), (150, 152, 156))


def draw_glasses(canvas: Canvas, head: Head, who: Identity, scene: Scene) -> None:
    """Spectacles; dark lenses hide the eyes (background in the class map), clear ones and frames hide nothing."""
    if scene.glasses == "none":
        return
    cam, unit, s = scene.camera, scene.camera.unit, head.shape
    colour = _FRAMES[who.seed % len(_FRAMES)]
    power = (1.0, 0.75, 0.5)[who.seed % 3]  # round to rectangular
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    form = np.stack(
        [np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power, np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power], 1
    )
    width, height = 0.325, 0.25 + 0.03 * (power == 1.0)
    lenses, depth = [], 0.93 + 0.06
    for side in (-1.0, 1.0):
        x = side * (s["eye_x"] + 0.01) + form[:, 0] * width
        y = s["eye_y"] + 0.035 + form[:, 1] * height
        z = depth - 0.16 * (x / 0.8) ** 2
        lenses.append(cam.project(np.stack([x, y, z], 1).astype(np.float32)))
    dark = scene.glasses == "dark"
    for lens in lenses:
        if dark:
            canvas.fill(lens, (26, 24, 28), 0)
            shine = lens * 0.55 + lens.mean(0) * 0.45 + cam.affine[:, :2] @ (-0.05, -0.07)
            canvas.glaze([shine], (150, 160, 178), 0.35, blur=0.06 * unit, clip=canvas.mask(lens))
        else:
            canvas.glaze([lens], (235, 242, 250), 0.07)
            a, b = cam.affine[:, :2] @ (-0.2, 0.16), cam.affine[:, :2] @ (0.1, -0.2)
            canvas.glaze(
                [np.stack([lens.mean(0) + a, lens.mean(0) + b])], (255, 255, 255), 0.25,
                width=0.07 * unit, blur=0.02 * unit, clip=canvas.mask(lens),
            )  # fmt: skip
    shadow = [np.concatenate([lens, lens[:1]]) + cam.affine[:, 1] * 0.05 for lens in lenses]
    canvas.glaze(shadow, (40, 20, 14), 0.25, width=0.04 * unit, blur=0.02 * unit, clip=canvas.skin)
    bridge_x = np.array([-1, -0.5, 0.5, 1]) * (s["eye_x"] - width + 0.02)
    bridge = np.stack([bridge_x, s["eye_y"] + np.array([0.0, -0.05, -0.05, 0.0]), np.full(4, depth + 0.02)], 1)
    strokes = [np.concatenate([lens, lens[:1]]) for lens in lenses] + [curve(cam.project(bridge.astype(np.float32)))]
    for side in (-1.0, 1.0):
        facing = np.sin(np.radians(cam.yaw)) * side
        if facing < 0.12:
            x = side * np.array([s["eye_x"] + width, 1.0, 1.02])
            z = np.array([depth - 0.16 * ((s["eye_x"] + width) / 0.8) ** 2, 0.45, 0.05])
            strokes.append(cam.project(np.stack([x, np.full(3, s["eye_y"] - 0.03), z], 1).astype(np.float32)))
    thick = (0.055, 0.035, 0.022)[who.seed // 7 % 3]
    canvas.glaze(strokes, colour, 0.96, width=thick * unit)
    canvas.glaze([x - cam.affine[:, 1] * 0.008 for x in strokes[:2]], tint(colour, 1.5), 0.35, width=0.008 * unit)


def draw_occluder(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, rng: np.random.Generator
) -> None:
    """A hand, a scarf, a surgical mask or a thing in front of the face; background in the class map."""
    if scene.occluder == "none":
        return
    {"hand": _hand, "scarf": _scarf, "patch": _patch, "surgical_mask": _surgical}[scene.occluder](
        canvas, head, who, scene, marks, rng
    )


def _hand(canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, rng: np.random.Generator) -> None:
    unit = scene.camera.unit
    side = -1.0 if rng.uniform() < 0.5 else 1.0
    target = (
        marks[[48, 30, 41, 19][int(rng.integers(4))]] if side < 0 else marks[[54, 30, 46, 24][int(rng.integers(4))]]
    )
    tip = target + rng.normal(0, 0.1, 2) * unit
    skin = tint(who.skin, 0.95)
    dark = tint(who.skin, 0.42) * (1, 0.84, 0.8)
    tilt = np.radians(rng.uniform(20, 70)) * side
    along = np.array([np.sin(tilt), np.cos(tilt)])
    across = np.array([along[1], -along[0]])
    palm_at = tip + along * 1.25 * unit
    t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    palm = palm_at + np.cos(t)[:, None] * across * 0.5 * unit + np.sin(t)[:, None] * along * 0.62 * unit
    wrist = np.stack([palm_at + across * 0.4 * unit, palm_at - across * 0.4 * unit]) + along * 0.3 * unit
    arm = np.concatenate([wrist, (wrist + along * 3.0 * unit)[::-1]])
    fingers = []
    for k, length in enumerate((0.82, 1.0, 0.96, 0.74)):
        root = palm_at + across * (0.36 - 0.24 * k) * unit - along * 0.38 * unit
        spread = across * (0.14 - 0.09 * k) * unit
        fingers.append(
            curve(
                np.stack(
                    [
                        root,
                        root - along * 0.45 * length * unit + spread * 0.6,
                        root - along * 0.9 * length * unit + spread * 0.7,
                    ]
                ).astype(np.float32)
            )
        )
    thumb = curve(
        np.stack(
            [
                palm_at + across * 0.4 * unit,
                palm_at + across * 0.78 * unit - along * 0.3 * unit,
                palm_at + across * 0.82 * unit - along * 0.62 * unit,
            ]
        ).astype(np.float32)
    )
    everything = [*fingers, thumb]
    canvas.glaze(
        [f + 0.06 * unit for f in everything], (30, 16, 12), 0.4, width=0.26 * unit, blur=0.06 * unit, clip=canvas.skin
    )
    canvas.fill(arm, skin, 0)
    canvas.fill(palm, skin, 0)
    for f in everything:
        canvas.tube(f, dark, 0.25 * unit, 0)
        canvas.tube(f, skin, 0.225 * unit, 0)
        canvas.glaze([f - across * 0.03 * unit], tint(who.skin, 1.25), 0.35, width=0.07 * unit, blur=0.025 * unit)
        nail = f[-1] - along * -0.02 * unit
        canvas.tube(np.stack([nail, nail + along * 0.05 * unit]), tint(skin * (1.03, 0.93, 0.93), 1.15), 0.12 * unit, 0)


def _scarf(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, rng: np.random.Generator
) -> None:
    cam, unit = scene.camera, scene.camera.unit
    colour = np.clip(rng.uniform(40, 215) + rng.normal(0, 45, 3), 10, 240)
    y = head.shape["nose_y"] + rng.uniform(-0.25, 0.15)
    a = np.linspace(-100, 100, 13)
    top = cam.project(head.around(a, np.full(13, y) + 0.12 * np.cos(np.radians(a)) ** 2 - 0.05, cam.yaw, 0.1))
    low = head.around(np.linspace(100, -100, 13), np.full(13, head.chin), cam.yaw, 0.5)
    low = cam.project(low + np.array((0, 0.35, 0), np.float32))
    area = np.concatenate([curve(top), curve(low)])
    canvas.fill(area, colour, 0)
    clip = canvas.mask(area)
    for k in range(1, 6):
        fold = curve(top + (low[::-1] - top) * (k / 6 + rng.uniform(-0.05, 0.05, 13))[:, None])
        canvas.glaze([fold], tint(colour, 0.5 if k % 2 else 1.25), 0.45, width=0.06 * unit, blur=0.03 * unit, clip=clip)
    if rng.uniform() < 0.5:
        stripes = [np.stack([p, q]) for p, q in zip(curve(top)[::6], curve(low)[::-1][::6], strict=False)]
        canvas.glaze(stripes, 255 - colour, 0.5, width=0.08 * unit, clip=clip)


def _surgical(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, rng: np.random.Generator
) -> None:
    cam, unit = scene.camera, scene.camera.unit
    colour = np.array(
        [(164, 208, 226), (238, 240, 240), (40, 42, 46), (176, 214, 196)][int(rng.integers(4))], np.float32
    )
    nose = float(head.points[29, 1])
    chin = head.chin + 0.04
    x = np.array([-0.74, -0.45, -0.14, 0, 0.14, 0.45, 0.74])
    upper = head.on_face(
        x, nose + np.array([0.22, 0.1, 0.0, -0.02, 0.0, 0.1, 0.22]), np.array([0.04, 0.1, 0.3, 0.36, 0.3, 0.1, 0.04])
    )
    lower = head.on_face(x[::-1] * 0.8, np.array([-0.3, -0.1, -0.01, 0, -0.01, -0.1, -0.3]) + chin, 0.12)
    p, q = cam.project(upper), cam.project(lower)
    area = np.concatenate([curve(p), curve(q)])
    straps = [
        cam.project(head.around(np.array([s * 55.0, s * 88.0]), np.array([h, 0.2]), cam.yaw, 0.03))
        for s in (-1, 1)
        for h in (nose + 0.2, chin - 0.3)
    ]
    canvas.glaze([area + cam.affine[:, 1] * 0.05], (30, 16, 12), 0.35, blur=0.05 * unit, clip=canvas.skin)
    canvas.glaze(straps, tint(colour, 0.9), 0.9, width=0.03 * unit)
    canvas.fill(area, colour, 0)
    clip = canvas.mask(area)
    for k in (0.3, 0.5, 0.7):
        canvas.glaze(
            [curve(p + (q[::-1] - p) * k)], tint(colour, 0.6), 0.5, width=0.025 * unit, blur=0.015 * unit, clip=clip
        )
    canvas.glaze(
        [curve(p + (q[::-1] - p) * 0.06)], tint(colour, 1.5), 0.5, width=0.04 * unit, blur=0.01 * unit, clip=clip
    )
    canvas.glaze([area], tint(colour, 0.5), 0.4, width=0.04 * unit, blur=0.03 * unit, clip=clip)


def _patch(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, marks: np.ndarray, rng: np.random.Generator
) -> None:
    unit = scene.camera.unit
    centre = marks.mean(0) + rng.normal(0, 0.55, 2) * unit
    w, h, tilt = rng.uniform(0.3, 0.55) * unit, rng.uniform(0.5, 0.85) * unit, rng.uniform(-0.8, 0.8)
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    box = np.stack(
        [np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.25 * w, np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.25 * h], 1
    )
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    area = box @ turn.T + centre
    colour = np.clip(rng.uniform(30, 220) + rng.normal(0, 40, 3), 8, 245)
    canvas.glaze([area + 0.06 * unit], (20, 14, 12), 0.4, blur=0.07 * unit, clip=canvas.skin)
    canvas.fill(area, tint(colour, 0.7), 0)
    canvas.fill((box * 0.9) @ turn.T + centre, colour, 0)
    canvas.glaze([(box * (0.3, 0.9) - (0.5 * w, 0)) @ turn.T + centre], tint(colour, 1.4), 0.35, blur=0.08 * unit)
