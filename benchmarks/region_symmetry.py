"""Why FRA's heatmaps stay uniform or not: how different the regions are before training, and how much of that the
online and the target network agree on.

For each setting, a fresh FRA in training mode sees the same images twice, as its online and its target network do.
S (cosines, Eq. 1) minus its mean over the regions is what tells regions apart. Printed: the cosine between mask
embeddings, the standard deviation of that difference, and its correlation between the two passes. Where dropout noise
is larger than the difference, the correlation is near 0: the relation term (Eq. 2, 3) then asks both networks to agree
on noise, and the best answer is "no region differs from another".

    python benchmarks/region_symmetry.py [--backbone resnet18] [--image-size 96] [--batch-size 64]
"""

from __future__ import annotations

import argparse
import datetime
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from facessl.core import environment
from facessl.data.source import open_source
from facessl.inference.region_pictures import sample_images
from facessl.methods.fra import FRA
from facessl.models.backbone import Backbone
from facessl.views.normalize import normalize


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="synthetic:?n=512&size=96")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--output-stride", type=int, default=16)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = sample_images(open_source(args.source), count=max(args.batch_size), size=args.image_size, seed=args.seed)
    results = [
        measure(args, images[:size], variant, dropout)
        for size in args.batch_size
        for variant in ("paper", "official")
        for dropout in (0.1, 0.0)
    ]
    head = {"date": datetime.date.today().isoformat(), "benchmark": "region_symmetry", "settings": vars(args)}
    print(json.dumps(head | {"environment": environment.describe(), "results": results}))


@torch.no_grad()
def measure(args: argparse.Namespace, images: np.ndarray, variant: str, dropout: float) -> dict[str, Any]:
    """Two passes of one fresh network over `images` (B, S, S, 3) uint8."""
    torch.manual_seed(args.seed)
    backbone = Backbone(args.backbone, image_size=args.image_size, output_stride=args.output_stride)
    method = FRA(backbone, variant=variant, dropout=dropout, hidden=1024).train()
    x = normalize(torch.from_numpy(images).permute(0, 3, 1, 2), method.mean, method.std)
    features = torch.cat([backbone.forward_features(piece) for piece in x.split(64)])
    heads = method.heads
    passes: list[Tensor] = []
    cosines = 0.0
    for _ in range(2):
        embedding = heads.decoder(features)  # type: ignore[misc]  # (B, N, D)
        if heads.averaged:
            embedding = embedding.mean(0)  # (N, D)
        unit = F.normalize(embedding, dim=-1)
        n = unit.shape[-2]
        gram = unit @ unit.transpose(-1, -2)
        cosines = float((gram.sum((-1, -2)) - n).mean() / (n * (n - 1)))
        s = heads.similarity(features, embedding)  # (B, hw, N)
        passes.append((s - s.mean(-1, keepdim=True)).flatten())
    both = torch.corrcoef(torch.stack(passes))
    return {
        "variant": variant,
        "dropout": dropout,
        "batch": len(images),
        "mask_embedding_cosine": round(cosines, 4),
        "difference_std": round(float(passes[0].std()), 5),
        "agreement": round(float(both[0, 1]), 3),
    }


if __name__ == "__main__":
    main()
