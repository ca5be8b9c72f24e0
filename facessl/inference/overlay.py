"""Classes laid over an image: colours that can be told apart, a tint, light borders."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

Colour = tuple[int, int, int]

#: Colours that stay apart for most colour-blind readers; further ones are spread over the hues.
_PALETTE = ("e6194b", "4363d8", "ffe119", "3cb44b", "f58231", "42d4f4", "911eb4", "fabed4")


def palette(count: int) -> list[Colour]:
    """`count` RGB colours, 0..255, that can be told apart."""
    colours = [tuple(bytes.fromhex(code)) for code in _PALETTE[:count]]
    for i in range(len(colours), count):
        # The golden angle puts each new hue far from the earlier ones.
        hue, light = (0.05 + i * 0.618034) % 1, (0.42, 0.62, 0.78)[i % 3]
        colours.append(tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.75)))
    return colours  # type: ignore[return-value]


def overlay(
    image: np.ndarray, classes: np.ndarray, colours: Sequence[Colour], *, where: np.ndarray | None = None
) -> np.ndarray:
    """(H, W, 3) uint8: the image tinted by the class (H, W) of each pixel, with light borders between classes.

    `where` (H, W) bool: the pixels that are tinted; None: all.
    """
    tinted = (0.5 * image + 0.5 * np.asarray(colours, np.float32)[classes]).round()
    out = tinted if where is None else np.where(where[..., None], tinted, image)
    border = np.zeros(classes.shape, bool)
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[1:] |= classes[1:] != classes[:-1]
    out[border] = 0.4 * out[border] + 0.6 * 255
    return out.round().astype(np.uint8)
