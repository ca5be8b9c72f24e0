"""Seconds of a linear probe: features once, then a whole path of penalties.

The path is fitted to random features of the size that is asked for, with the spectrum of a trained network (the
variance of direction i falls as 1 / i) and classes that overlap, because that is where the solvers work hardest; its
scores mean nothing. Extraction is measured on synthetic faces that are in memory, so its images per second are those of
the network and of no decoding. `seconds` is wall time, which a busy machine stretches; `cpu_seconds` is the time of all
threads together.

    python benchmarks/linear.py --images 20000 --dimensions 2048 --classes 7 --threads 2

Prints JSON: date, hardware, versions, commit, images per second of the extraction, seconds per solver.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from typing import Any

import numpy as np
import torch

from facessl.core import environment
from facessl.data.sources.synthetic import Synthetic
from facessl.evaluation.features import features
from facessl.evaluation.protocols import _solvers as solvers
from facessl.evaluation.protocols.linear import LAMBDAS
from facessl.models.backbone import Backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--attributes", type=int, default=40)
    parser.add_argument("--solver", nargs="+", default=["lbfgs", "ridge"], choices=["lbfgs", "ridge", "attributes"])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--extract", type=int, default=96, help="images that are passed through the network; 0: none")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--threads", type=int, default=environment.cores())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"extraction": extraction(args)} if args.extract else {}
    x, y, z, truth = drawn(args)
    for name in args.solver:
        results[name] = sweep(args, name, x, y, z, truth)
    head = {"date": datetime.date.today().isoformat(), "benchmark": "linear", "settings": vars(args)}
    print(json.dumps(head | {"environment": environment.describe(), "results": results}))


def extraction(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second through the backbone, and the time that all images of the probe would take."""
    source = Synthetic(n=args.extract, size=args.image_size)
    for i in range(len(source)):
        source[i]  # drawn once, and kept
    backbone = Backbone(args.backbone, image_size=args.image_size).to(args.device, memory_format=torch.channels_last)
    features(backbone, source, cache=False, batch_size=32, precision=args.precision)
    found = features(backbone, source, cache=False, batch_size=32, precision=args.precision)
    rate = len(found) / found.seconds
    return {"images_per_second": round(rate, 1), f"seconds_for_{args.images}": round(args.images / rate)}


def drawn(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training features (N, D) and classes (N,), and a tenth as many held-out ones."""
    rng = np.random.default_rng(args.seed)
    N, D = args.images + args.images // 10, args.dimensions
    turn = torch.linalg.qr(torch.from_numpy(rng.normal(size=(D, D)).astype(np.float32))).Q.numpy()
    spread = (np.arange(1, D + 1) ** -0.5).astype(np.float32)
    x = rng.standard_normal((N, D), np.float32) * spread
    logits = x @ (rng.standard_normal((D, args.classes), np.float32) * 0.7)
    y = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    x = np.maximum(x @ turn + 0.05, 0)  # pooled features of a ResNet are not negative
    return x[: args.images], y[: args.images], x[args.images :], y[args.images :]


def sweep(
    args: argparse.Namespace, name: str, x: np.ndarray, y: np.ndarray, z: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """Seconds of the whole path with its scores on the held-out features."""
    loss: solvers.Loss = "attributes" if name == "attributes" else "classes"
    lambdas = LAMBDAS["ridge" if name == "ridge" else "lbfgs"]
    if loss == "attributes":
        rng = np.random.default_rng(args.seed)
        groups = rng.integers(0, 2, (args.classes, args.attributes))
        y, truth = groups[y], groups[truth]
    began, worked = time.perf_counter(), time.process_time()
    if name == "ridge":
        path = solvers.ridge(x, 2 * np.eye(args.classes)[y] - 1, lambdas, device=args.device)
    else:
        path = solvers.logistic(x, y, lambdas, loss=loss, device=args.device)
    outputs = path.outputs(z)
    answers = [(o >= 0 if loss == "attributes" else o.argmax(1)) == truth for o in outputs]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),
        "penalties": len(lambdas),
        "scores": {f"{value:.3g}": round(float(a.mean()), 4) for value, a in zip(lambdas, answers, strict=True)},
    }


if __name__ == "__main__":
    main()
