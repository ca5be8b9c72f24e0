"""From a person and a scene to a picture with its landmarks and class map."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from facessl.synthetic import beard, body, extras, eyes, features, hair, hats, photo, soft
from facessl.synthetic.canvas import SUPER, Canvas, blend
from facessl.synthetic.identity import Identity
from facessl.synthetic.model import TOP, Head, visible_landmarks
from facessl.synthetic.scene import Scene

SKIN = 1


@dataclass(frozen=True)
class Picture:
    """A synthetic face.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        mask: (S, S) uint8, 11 classes in LaPa order.
        landmarks: (68, 2) float32 in pixels, iBUG order.
    """

    image: np.ndarray
    mask: np.ndarray
    landmarks: np.ndarray


def render(who: Identity, scene: Scene, size: int) -> Picture:
    """Draw `who` in `scene`, `size` pixels wide."""
    rng = np.random.default_rng(scene.seed)
    head, canvas, cam = Head(who, scene.expression), Canvas(size), scene.camera
    marks = visible_landmarks(head, cam)
    photo.paint_backdrop(canvas.rgb, scene.backdrop, rng)
    hair.draw_hair_back(canvas, head, who, scene, rng)
    body.draw_body(canvas, head, who, scene, marks)
    # An ear that is turned to the viewer lies over the head, the other one behind it, from 25 degrees on unseen.
    near = [side for side in (-1.0, 1.0) if -side * cam.yaw > 6]
    behind = [side for side in (-1.0, 1.0) if side not in near and side * cam.yaw < 25]
    body.draw_ears(canvas, head, who, scene, behind)
    _skin(canvas, head, who, scene)
    features.draw_spots(canvas, head, who, scene)
    features.draw_folds(canvas, head, who, scene)
    eyes.draw_eyes(canvas, head, who, scene, marks)
    eyes.draw_brows(canvas, who, scene, marks, rng)
    features.draw_nose(canvas, head, who, scene, marks)
    features.draw_mouth(canvas, head, who, scene, marks)
    beard.draw_beard(canvas, head, who, scene, marks, rng)
    if who.long_hair:
        body.draw_ears(canvas, head, who, scene, near)
    hair.draw_hair(canvas, head, who, scene, rng)
    if not who.long_hair:
        body.draw_ears(canvas, head, who, scene, near)
    extras.draw_glasses(canvas, head, who, scene)
    hats.draw_hat(canvas, head, scene)
    extras.draw_occluder(canvas, head, who, scene, marks, rng)
    image = _develop(canvas, head, who, scene, rng)
    return Picture(image, canvas.label[SUPER // 2 :: SUPER, SUPER // 2 :: SUPER].copy(), marks)


def _skin(canvas: Canvas, head: Head, who: Identity, scene: Scene) -> None:
    """The bare head: its outline filled with the skin's colours."""
    cam = scene.camera
    outline = cam.project(head.outline(cam.yaw, TOP, head.chin, n=34))
    canvas.skin = canvas.mask(outline)
    paint = soft.to_image(soft.skin_map(head, who, scene), cam, canvas.size)
    canvas.layer(canvas.skin, cv2.resize(paint, canvas.label.shape, interpolation=cv2.INTER_LINEAR))
    canvas.figure = cv2.max(canvas.figure, canvas.skin)
    np.putmask(canvas.label, canvas.skin > 127, SKIN)


def _develop(canvas: Canvas, head: Head, who: Identity, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Light the figure, reduce to the final size, expose."""
    size = (canvas.size, canvas.size)
    rgb = cv2.resize(canvas.rgb, size, interpolation=cv2.INTER_AREA)
    figure = cv2.resize(canvas.figure, size, interpolation=cv2.INTER_AREA)
    light = np.full_like(rgb, soft.UNITY)
    blend(light, figure, soft.to_image(soft.light_map(head, who, scene), scene.camera, canvas.size))
    return photo.expose(cv2.multiply(rgb, light, scale=1 / soft.UNITY), scene, rng)
