"""Hair, hats, ears, neck and clothes."""

from __future__ import annotations

import cv2
import numpy as np

from facessl.data.faces.canvas import Canvas, tint
from facessl.data.faces.geometry import curve
from facessl.data.faces.identity import Identity
from facessl.data.faces.model import TOP, Head
from facessl.data.faces.scene import Scene

HAIR = 10


def draw_body(canvas: Canvas, head: Head, who: Identity, scene: Scene) -> None:
    """Shoulders, collar and neck; they stay background in the class map, as in LaPa."""
    cam, unit = scene.camera, scene.camera.unit
    chin = cam.pixels(cam.view(np.array([[0, head.chin, 0.25]], np.float32)))[0]
    build = 0.9 + 0.25 * who.masculinity
    lean = np.array([np.sin(np.radians(cam.roll)) * -0.25, 0]) * unit

    def body(points: list[tuple[float, float]]) -> np.ndarray:
        return chin + lean + np.array(points, np.float32) * unit

    neck = 0.44 + 0.16 * who.masculinity
    torso = [(-2.9, 2.6), (-2.3 * build, 0.98), (-1.4 * build, 0.66), (-0.62 * build, 0.36), (0, 0.5)]
    torso += [(-x, y) for x, y in torso[-2::-1]]
    skin = tint(who.skin, 0.86)
    canvas.fill(curve(body(torso)), scene.clothes)
    top = cam.project(head.on_face(np.array([-neck, neck]), np.full(2, 0.8), 0.0) * (1, 1, 0))
    base = body([(neck + 0.12, 0.5), (0.3, 0.85), (0, 0.95), (-0.3, 0.85), (-neck - 0.12, 0.5)])
    canvas.fill(np.concatenate([top, curve(base)]), skin)
    jaw = cam.project(head.contour(cam.yaw))[3:14]
    clip = canvas.mask([np.concatenate([top, curve(base)])])
    shade = jaw + cam.affine[:, 1] * 0.10 - np.array([scene.sun[0], 0]) * 0.18 * unit
    canvas.glaze([shade], tint(who.skin, 0.4) * (1, 0.85, 0.8), 0.75, blur=0.09 * unit, clip=clip)
    canvas.glaze([curve(base)], tint(scene.clothes, 0.6), 0.9, width=0.07 * unit, blur=0.012 * unit)
    for side in (-1, 1):
        fold = body([(side * 0.75, 0.62), (side * 1.0, 1.1), (side * 0.95, 1.7)])
        canvas.glaze([curve(fold)], tint(scene.clothes, 0.55), 0.4, width=0.06 * unit, blur=0.04 * unit)


def draw_ear(canvas: Canvas, head: Head, who: Identity, scene: Scene, side: float) -> None:
    """One ear, in three dimensions; `side` -1 is the image's left. It stays background in the class map."""
    cam, unit, s = scene.camera, scene.camera.unit, head.shape
    size = s["ear"]
    u = np.array([0.15, -0.2, -0.75, -1.0, -0.8, -0.35, 0.05, 0.2])
    v = np.array([-0.12, -0.36, -0.38, -0.1, 0.16, 0.36, 0.42, 0.2]) * size
    w = float(head.rings(0.3)[0])
    out = 0.02 + 0.13 * -np.minimum(u, 0) * size
    points = np.stack([side * (w - 0.05 + out), 0.27 + v, 0.02 + 0.27 * u * size], -1).astype(np.float32)
    shell = curve(cam.project(points), closed=True)
    skin = tint(who.skin, 0.93) * (1.02, 0.95, 0.93)
    canvas.fill(shell, skin)
    inner = points * (1, 1, 1)
    middle = points.mean(0)
    inner = middle + (points - middle) * 0.62
    dark = tint(who.skin, 0.5) * (1, 0.82, 0.78)
    canvas.glaze([curve(cam.project(inner), closed=True)], dark, 0.5, blur=0.03 * unit)
    canvas.glaze([shell], dark, 0.45, width=0.02 * unit, blur=0.01 * unit)
    if scene.earrings:
        lobe = cam.project(points[6:7] + (0, 0.05, 0))
        ring = lobe + np.stack([np.cos(np.arange(8) * 0.785), np.sin(np.arange(8) * 0.785)], 1) * 0.05 * unit
        canvas.fill(ring, (226, 190, 96))


def cap_outline(head: Head, scene: Scene, grow: float, low: float, lift: float) -> np.ndarray:
    """(n, 2) pixels: the head's outline above height `low`, `grow` thicker, its crown lifted by `lift`."""
    points = head.outline(scene.camera.yaw, TOP - 0.02, low, grow)
    points = points.copy()
    points[:, 1] -= lift * np.clip((0.3 - points[:, 1]) / 1.5, 0, 1)
    return scene.camera.project(points)


def face_window(head: Head, who: Identity, scene: Scene, margin: float = 0.0) -> np.ndarray:
    """(n, 2) pixels: the part of the head that hair leaves free: hairline, sideburns, then round the jaw."""
    cam, top = scene.camera, who.shape["hairline"]
    style = who.hair_style
    recede = {"receding": -0.34, "bald": -0.5}.get(style, 0.0)
    angle = np.array([0, 18, 36, 52, 62, 68, 74, 80])
    y = np.array([0, 0.01, 0.04, 0.16, 0.42, 0.72, 0.98, 1.25]) + top
    if style == "receding":
        y = y + np.array([-0.16, -0.3, -0.42, -0.38, -0.2, -0.05, 0, 0])
    elif recede:
        y = y + recede
    if who.long_hair:
        angle = np.array([0, 16, 32, 46, 56, 63, 66, 66])
    if who.fringe:
        drop = 0.45 + 0.32 * who.fringe
        y = y + np.array([1, 0.98, 0.92, 0.75, 0.4, 0.1, 0, 0]) * drop * (0.5 if style == "crop" else 1)
    low = 1.3 if who.long_hair else 0.62
    side_a = np.array([84, 104]) if not who.long_hair else np.array([68, 74])
    a = np.concatenate([angle, side_a])
    h = np.concatenate([y, [0.45, low]]) - margin
    right = head.around(a, h, cam.yaw)
    left = head.around(-a, h, cam.yaw)
    swing = who.parting * 0.12 * (who.hair_style in ("side_part", "bob", "long", "wavy")) * (1 - who.fringe)
    rim = np.concatenate([left[::-1], right[1:]])
    rim[:, 1] += swing * rim[:, 0]
    line = curve(cam.project(rim), per=4)
    jaw = cam.project(
        head.around(np.array([180.0, 180, 180, -180, -180, -180]), np.array([0.9, 1.4, 2, 2, 1.4, 0.9]), cam.yaw, 0.6)
    )
    return np.concatenate([line, jaw])


def draw_hair_back(canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator) -> None:
    """What falls behind the neck, or stands behind the head."""
    cam, unit = scene.camera, scene.camera.unit
    style = who.hair_style
    colour = tint(who.hair, 0.6)
    if style in ("bob", "long", "wavy"):
        end = {"bob": 1.35, "long": 2.9, "wavy": 2.7}[style] * head.shape["length"]
        y = np.linspace(-0.2, end, 7)
        width = (
            1.05 + who.shape["volume"] + np.array([0.0, 0.04, 0.08, 0.1, 0.1, 0.06, -0.12 if style == "bob" else 0.0])
        )
        if style == "wavy":
            width = width + 0.09 * np.sin(np.arange(7) * 1.9 + who.seed % 7) + 0.08
        flow = np.sin(np.radians(cam.yaw)) * 0.25
        right = np.stack([width - flow, y, np.full(7, -0.35)], 1)
        left = np.stack([-width - flow, y, np.full(7, -0.35)], 1)
        area = curve(cam.project(np.concatenate([right, left[::-1]]).astype(np.float32)), per=4)
        canvas.fill(area, colour, HAIR)
        strokes = []
        for k in rng.uniform(-1, 1, 26):
            x = k * width - flow + 0.03 * np.sin(y * 3 + k * 9) * (style == "wavy")
            strokes.append(curve(cam.project(np.stack([x, y, np.full(7, -0.3)], 1).astype(np.float32)), per=3))
        clip = canvas.mask([area])
        canvas.glaze(strokes[:13], tint(who.hair, 1.06), 0.4, width=0.035 * unit, blur=0.012 * unit, clip=clip)
        canvas.glaze(strokes[13:], tint(who.hair, 0.35), 0.4, width=0.035 * unit, blur=0.012 * unit, clip=clip)
    elif style == "tied":
        bun = cam.project(np.array([[0.25 * who.parting, TOP - 0.05, -0.55]], np.float32))[0]
        t = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        ball = bun + np.stack([np.cos(t), np.sin(t) * 0.85], 1) * 0.42 * unit
        canvas.fill(ball, tint(colour, 1.05), HAIR)
        canvas.glaze([ball * 0.6 + bun * 0.4 - 0.08 * unit], tint(who.hair, 1.2), 0.4, blur=0.1 * unit)


def _tufts(outline: np.ndarray, rng: np.random.Generator, unit: float, size: float) -> np.ndarray:
    """The outline with bumps, as curls make it."""
    n = len(outline)
    middle = outline.mean(0)
    away = outline - middle
    away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-3
    wave = rng.uniform(-1, 1, n) * size * unit
    return curve((outline + away * wave[:, None]).astype(np.float32), closed=True, per=3)


def draw_hair(canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator) -> None:
    """The hair on the head: a cap around the skull, cut out by the hairline, with strands along the skull."""
    style, unit = who.hair_style, scene.camera.unit
    if style == "bald":
        return
    volume = max(0.03, who.shape["volume"])
    grow = {"crop": 0.045, "receding": 0.04, "side_part": 0.09, "tied": 0.03, "curly": 0.16, "afro": 0.38}.get(
        style, 0.09
    )
    lift = {"crop": 0.05, "receding": 0.02, "side_part": 0.16, "tied": 0.03, "curly": 0.14, "afro": 0.34}.get(
        style, 0.08
    )
    low = {"afro": 0.55, "curly": 0.35, "bob": 1.25, "long": 1.7, "wavy": 1.7}.get(style, 0.45)
    if scene.hat != "none":
        lift, grow = 0.0, min(grow, 0.12)
    outline = cap_outline(head, scene, grow * (0.7 + 2 * volume), low, lift)
    if style in ("curly", "afro"):
        outline = _tufts(outline, rng, unit, 0.05)
    window = face_window(head, who, scene)
    if style in ("curly", "afro"):
        window = _tufts(window, rng, unit, 0.03)
    cap, hole = canvas.mask([outline]), canvas.mask([window])
    soft = 0.02 if who.long_hair or who.fringe else 0.035
    edge = cv2.GaussianBlur(hole, (0, 0), soft * unit * 2)
    cover = cv2.multiply(cap, cv2.bitwise_not(edge), scale=1 / 255)
    shadow = cv2.GaussianBlur(cv2.bitwise_and(cap, cv2.bitwise_not(hole)), (0, 0), 0.07 * unit * 2)
    shadow = cv2.multiply(shadow, canvas.skin, scale=1 / 255)
    canvas.layer(shadow, tint(who.skin, 0.4) * (1, 0.86, 0.8), 0.6)
    texture = _texture(canvas, head, who, scene, rng, outline)
    canvas.layer(cover, texture, 1.0 if style != "receding" else 0.92)
    canvas.figure = cv2.max(canvas.figure, cover)
    canvas.label[cover > 127] = HAIR


def _texture(
    canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator, outline: np.ndarray
) -> np.ndarray:
    """(2S, 2S, 3) picture of hair, to be cut to shape."""
    unit, cam, style = scene.camera.unit, scene.camera, who.hair_style
    pen = Canvas.blank(canvas.size, tint(who.hair, 0.9))
    if style in ("curly", "afro"):
        low, high = outline.min(0), outline.max(0)
        n = 150
        at = rng.uniform(low, high, (n, 2))
        t = np.linspace(0, 4.2, 7)
        ring = np.stack([np.cos(t), np.sin(t)], 1) * (0.075 if style == "curly" else 0.045) * unit
        arcs = [a + ring for a in at]
        pen.lines(arcs[: n // 2], tint(who.hair, 0.55), 0.03 * unit)
        pen.lines(arcs[n // 2 :], tint(who.hair, 1.16), 0.02 * unit)
        return pen.rgb
    y = np.linspace(TOP, 1.5 if who.long_hair else 0.6, 9)
    fall = (y - y[0]) / (y[-1] - y[0])
    n = 84
    turn = who.parting * 70
    angle = np.linspace(-170, 170, n) + rng.uniform(-4, 4, n)
    sweep = turn * (1 - fall) * (0.9 if style in ("side_part", "bob", "long", "wavy") else 0.25)
    wave = 7 * np.sin(fall * 14) if style == "wavy" else 0.0
    strands = [cam.project(head.around(a + sweep * (1 - abs(a) / 170) + wave, y, cam.yaw, 0.1)) for a in angle]
    strands = [curve(s.astype(np.float32), per=2) for s in strands]
    shades = rng.permutation(n)
    width = 0.03 if style != "crop" else 0.02
    for k, factor in enumerate((0.5, 0.7, 1.05, 1.16)):
        pen.lines([strands[i] for i in shades[k::4]], tint(who.hair, factor), width * unit)
    band = [s[5:9] for s in strands[::2]]
    shine = 1.45 if who.hair.mean() < 120 else 1.3
    pen.glaze(band, tint(who.hair + 18, shine), 0.35, width=0.05 * unit, blur=0.03 * unit)
    return cv2.GaussianBlur(pen.rgb, (0, 0), 0.006 * unit * 2 + 0.3)


def draw_hat(canvas: Canvas, head: Head, who: Identity, scene: Scene) -> None:
    """A cap, a beanie or a hat with a brim; background in the class map, as in LaPa."""
    if scene.hat == "none":
        return
    cam, unit = scene.camera, scene.camera.unit
    colour = np.clip(scene.clothes[::-1] * 0.8 + 20, 0, 235)
    rim_y = -0.66 if scene.hat != "beanie" else -0.58
    crown = cap_outline(head, scene, 0.15, rim_y, 0.12 if scene.hat != "brim" else 0.3)
    canvas.fill(crown, colour, 0)
    a = np.linspace(-180, 180, 25)
    rim = head.around(a, np.full(25, rim_y), cam.yaw, 0.16)
    front = np.abs(a) <= 92
    band = cam.project(rim[front])
    up = -cam.affine[:, 1]
    dark = tint(colour, 0.55)
    clip = canvas.mask([crown])
    for x in np.linspace(-75, 75, 6):
        seam = cam.project(head.around(np.full(6, x), np.linspace(TOP, rim_y, 6), cam.yaw, 0.15))
        canvas.glaze([seam], dark, 0.3, width=0.02 * unit, blur=0.012 * unit, clip=clip)
    if scene.hat == "beanie":
        cuff = np.concatenate([band + up * -0.06, (band + up * 0.22)[::-1]])
        canvas.fill(cuff, tint(colour, 0.86), 0)
        ribs = [np.stack([p + up * -0.05, p + up * 0.2]) for p in curve(band, per=3)]
        canvas.glaze(ribs, dark, 0.35, width=0.02 * unit)
        return
    reach = 0.62 if scene.hat == "cap" else 0.5
    span = np.abs(a) <= (62 if scene.hat == "cap" else 180)
    flare = head.around(a, np.full(25, rim_y + (0.1 if scene.hat == "cap" else 0.03)), cam.yaw, 0.16)
    away = np.stack([np.sin(np.radians(a)), np.zeros(25), np.cos(np.radians(a))], 1)
    bend = np.cos(np.radians(a) * (90 / 62))[:, None] if scene.hat == "cap" else np.ones((25, 1))
    visor = cam.project((flare + away * reach * np.clip(bend, 0, 1))[span].astype(np.float32))
    inner = cam.project(rim[span])
    below = np.concatenate([visor, inner[::-1]]) - up * 0.16
    canvas.glaze([below], (30, 22, 20), 0.38, blur=0.09 * unit, clip=canvas.skin)
    canvas.fill(np.concatenate([visor, inner[::-1]]), tint(colour, 0.8), 0)
    canvas.glaze([visor], tint(colour, 1.3), 0.5, width=0.02 * unit)
