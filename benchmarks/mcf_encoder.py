"""What leaving patches out saves: a masked ViT's passes against the same ViT's on every patch.

Both the training pass (forward and backward) and the forward pass alone, as of a momentum encoder, are measured.

Masked and whole passes alternate within one run, so that a busy machine slows both; the median of the ratios is the
result. On the CPU the seconds are CPU time, on a GPU wall time.

    python benchmarks/mcf_encoder.py --batch-size 8 --precision fp32 bf16 --threads 1

Prints JSON: date, hardware, versions, commit, seconds and ratio per precision and pass.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facessl.core import environment
from facessl.models.backbone import Backbone
from facessl.models.layers.masking import check_maskable, encode_visible, random_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--threads", type=int, default=environment.cores())
    parser.add_argument("--out", type=Path, help="file for the JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [measure(args, precision, backward) for precision in args.precision for backward in (True, False)]
    head = {"date": datetime.date.today().isoformat(), "benchmark": "mcf_encoder", "settings": vars(args)}
    text = json.dumps(head | {"environment": environment.describe(), "results": results}, default=str)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def measure(args: argparse.Namespace, precision: str, backward: bool) -> dict[str, Any]:
    """Median seconds of a pass with and without the mask, alternating, and their ratio."""
    device = torch.device(args.device)
    backbone = Backbone(args.backbone, image_size=args.image_size).to(device)
    check_maskable(backbone.model, args.backbone)
    x = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"whole": [], "masked": []}
    for turn in range(args.rounds + 1):  # the first round warms up
        for label, spent in seconds.items():
            began = clock()
            with torch.set_grad_enabled(backward):
                one_pass(backbone, x, args.mask_ratio if label == "masked" else None, precision)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                spent.append(clock() - began)
    ratios = [m / w for m, w in zip(seconds["masked"], seconds["whole"], strict=True)]
    return {
        "precision": precision,
        "passes": "forward and backward" if backward else "forward",
        "whole_seconds": round(statistics.median(seconds["whole"]), 4),
        "masked_seconds": round(statistics.median(seconds["masked"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def one_pass(backbone: Backbone, x: Tensor, mask_ratio: float | None, precision: str) -> None:
    """Forward, and backward where gradients are on; masks are drawn anew, as in training."""
    backbone.zero_grad(set_to_none=True)
    bf16 = torch.autocast(x.device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with bf16:
        if mask_ratio is None:
            tokens = backbone.model.forward_features(x)
        else:
            patches = backbone.model.patch_embed.num_patches
            keep = random_mask(torch.rand(len(x), patches, device=x.device), mask_ratio).keep
            tokens = encode_visible(backbone.model, x, keep)
        loss = tokens.float().square().mean()
    if loss.requires_grad:
        loss.backward()


if __name__ == "__main__":
    main()
