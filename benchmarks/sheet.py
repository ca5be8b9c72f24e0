"""The contact sheet of the synthetic faces in the documentation: `python benchmarks/sheet.py docs/synthetic.png`.

Rows: eight persons; one person in eight pictures; one person in the seven expressions and asleep; the first row's
class maps and landmarks.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import cv2
import numpy as np

from facessl.synthetic.expression import EXPRESSIONS, Expression, sample_expression
from facessl.synthetic.geometry import Camera
from facessl.synthetic.identity import sample_identity
from facessl.synthetic.model import CLOSED
from facessl.synthetic.render import Picture, render
from facessl.synthetic.scene import Limits, sample_scene

_COLUMNS, _SIZE = 8, 116
_COLORS = np.array(
    [
        (34, 34, 40),
        (244, 206, 178),
        (150, 90, 40),
        (196, 130, 60),
        (60, 120, 220),
        (70, 190, 230),
        (236, 150, 120),
        (214, 60, 90),
        (90, 20, 40),
        (236, 100, 140),
        (92, 70, 110),
    ],
    np.uint8,
)


def _draw(person: int, picture: int, seed: int = 11) -> Picture:
    who = sample_identity(seed, person)
    rng = np.random.default_rng((seed, 2, picture))
    return render(who, sample_scene(rng, who, _SIZE, Limits(degrade=0.0)), _SIZE)


def _expressions(person: int, seed: int = 11) -> list[Picture]:
    who, middle = sample_identity(seed, person), (_SIZE - 1) / 2
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, who, _SIZE, Limits(degrade=0.0, occlusion=0.0))
    camera = Camera(-9.0, 2.0, 0.0, 0.26 * _SIZE, (middle, middle))
    scene = replace(scene, camera=camera, hat="none", glasses="none", backdrop="studio", gaze=(0.1, 0.0))
    faces = [sample_expression(rng, name) for name in EXPRESSIONS] + [Expression(lid=CLOSED)]
    return [render(who, replace(scene, expression=face), _SIZE) for face in faces]


def _labels(picture: Picture) -> np.ndarray:
    """(S, S, 3) uint8 class map with the landmarks on it."""
    out = _COLORS[picture.mask]
    for x, y in np.rint(picture.landmarks * 16).astype(int).tolist():
        cv2.circle(out, (x, y), 11, (255, 255, 255), -1, cv2.LINE_AA, 4)
    return out


def sheet() -> np.ndarray:
    """(4 S, 8 S, 3) uint8 RGB."""
    persons = [_draw(k, k) for k in range(_COLUMNS)]
    rows = [
        [p.image for p in persons],
        [_draw(7, 100 + k).image for k in range(_COLUMNS)],
        [p.image for p in _expressions(21)],
        [_labels(p) for p in persons],
    ]
    return np.concatenate([np.concatenate(row, 1) for row in rows])


if __name__ == "__main__":
    cv2.imwrite(sys.argv[1], sheet()[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
