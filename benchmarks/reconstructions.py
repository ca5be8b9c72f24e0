"""Pictures of what a masked run (MCF, MAE) paints: image, what the encoder sees, what the decoder makes of it.

    python benchmarks/reconstructions.py runs/mcf-small synthetic: --out reconstructions.png

Three rows, one column per image. The same masks are drawn for the same `--seed`. MCF has no loss on pixels: its
colours may be off where its teacher does not see them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facessl.core.errors import ConfigError
from facessl.core.files import write_png
from facessl.data.source import open_source
from facessl.inference.region_pictures import sample_images
from facessl.pretrained.load import load_method
from facessl.views.geometric import resize
from facessl.views.normalize import normalize


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run folder or checkpoint of MCF or MAE")
    parser.add_argument("source", help="NAME:PATH?option=value, or a path")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cell", type=int, default=128, help="pixels of one image in the picture")
    args = parser.parse_args()
    method: Any = load_method(args.run)
    if not hasattr(method, "reconstruct"):
        raise ConfigError(f"{args.run} holds a method that paints nothing: give a run of mcf or mae")
    images = sample_images(open_source(args.source), count=args.count, size=method.backbone.image_size, seed=args.seed)
    rows = reconstructions(method, images, args.seed)
    cells = [[resize(image, args.cell) for image in row] for row in rows]
    write_png(args.out, np.concatenate([np.concatenate(row, 1) for row in cells], 0))


def reconstructions(method: Any, images: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """Image, visible patches (the rest grey) and painted image, each (N, S, S, 3) uint8.

    Args:
        method: MCF or MAE in evaluation mode.
        images: (N, S, S, 3) uint8 squares of its size.
        seed: of the masks.
    """
    backbone = method.backbone
    x = normalize(torch.from_numpy(images).permute(0, 3, 1, 2), backbone.mean, backbone.std)
    h, w = method.grid
    noise = torch.rand(len(x), h * w, generator=torch.Generator().manual_seed(seed))
    painted, removed = method.reconstruct(x, noise)
    hidden = removed.view(-1, h, w).repeat_interleave(backbone.stride, 1).repeat_interleave(backbone.stride, 2)
    visible = np.where(hidden.numpy()[..., None], np.uint8(128), images)
    return [images, visible, _pixels(painted, backbone.mean, backbone.std)]


def _pixels(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(N, 3, S, S) normalised -> (N, S, S, 3) uint8."""
    scale, shift = (torch.tensor(v).view(1, 3, 1, 1) for v in (std, mean))
    rgb = ((x.float() * scale + shift).clamp(0, 1) * 255).round().to(torch.uint8)
    return rgb.permute(0, 2, 3, 1).contiguous().numpy()


if __name__ == "__main__":
    main()
