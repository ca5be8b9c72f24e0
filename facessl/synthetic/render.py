"""From an identity and a scene to an image with its landmarks and class map."""

from dataclasses import dataclass

import cv2
import numpy as np

from facessl.synthetic import eyes, face_parts, hair, photo, soft, worn
from facessl.synthetic.canvas import SUPER, Canvas, blend
from facessl.synthetic.identity import Identity
from facessl.synthetic.scene import Scene


@dataclass(frozen=True)
class Picture:
    """A synthetic face."""

    image: np.ndarray  # (S, S, 3) uint8 RGB
    mask: np.ndarray  # (S, S) uint8, 11 classes in LaPa order
    landmarks: np.ndarray  # (68, 2) float32 in pixels, iBUG order


def render(who: Identity, scene: Scene, size: int) -> Picture:
    """Draw `who` in `scene`, `size` pixels wide."""
    canvas = Canvas(size, who, scene)
    photo.paint_backdrop(canvas.rgb, scene.backdrop, canvas.rng)
    hair.draw_hair_back(canvas)
    face_parts.draw_body(canvas)
    # The nearer ear lies over the head, the other one behind it (hidden from 25 degrees on).
    near = [side for side in (-1.0, 1.0) if -side * scene.camera.yaw > 6]
    face_parts.draw_ears(canvas, [side for side in (-1.0, 1.0) if side not in near and side * scene.camera.yaw < 25])
    _draw_skin(canvas)
    face_parts.draw_spots(canvas)
    face_parts.draw_folds(canvas)
    eyes.draw_eyes(canvas)
    eyes.draw_brows(canvas)
    face_parts.draw_nose(canvas)
    face_parts.draw_mouth(canvas)
    hair.draw_beard(canvas)
    if who.long_hair:
        face_parts.draw_ears(canvas, near)
    hair.draw_hair(canvas)
    if not who.long_hair:
        face_parts.draw_ears(canvas, near)
    worn.draw_glasses(canvas)
    worn.draw_hat(canvas)
    worn.draw_occluder(canvas)
    mask = canvas.label[SUPER // 2 :: SUPER, SUPER // 2 :: SUPER].copy()
    return Picture(_develop(canvas), mask, canvas.marks)


def _draw_skin(canvas: Canvas) -> None:
    """The bare head: its outline filled with the skin's colors."""
    cam = canvas.cam
    canvas.skin = canvas.mask(cam.project(canvas.head.outline(cam.yaw)))
    paint = soft.to_image(soft.skin_map(canvas.head, canvas.who, canvas.scene), cam, canvas.size)
    blend(canvas.rgb, canvas.skin, cv2.resize(paint, canvas.label.shape, interpolation=cv2.INTER_LINEAR))
    cv2.max(canvas.figure, canvas.skin, canvas.figure)
    np.putmask(canvas.label, canvas.skin > 127, 1)


def _develop(canvas: Canvas) -> np.ndarray:
    """Light the figure, reduce to the final size, expose."""
    size = (canvas.size, canvas.size)
    rgb = cv2.resize(canvas.rgb, size, interpolation=cv2.INTER_AREA)
    figure = cv2.resize(canvas.figure, size, interpolation=cv2.INTER_AREA)
    light = np.full_like(rgb, soft.UNITY)
    shade = soft.light_map(canvas.head, canvas.who, canvas.scene)
    blend(light, figure, soft.to_image(shade, canvas.cam, canvas.size))
    return photo.expose(cv2.multiply(rgb, light, scale=1 / soft.UNITY), canvas.scene, canvas.rng)
