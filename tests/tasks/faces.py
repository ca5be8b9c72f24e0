"""Synthetic faces with every member that a source can have."""

from typing import Any

import numpy as np

from facessl.core.types import Sample
from facessl.data.sources.synthetic import Synthetic


class Faces(Synthetic):
    """`Synthetic` with five points, a published subset and verification pairs."""

    provides = Synthetic.provides | {"five_points"}

    def __init__(self, path: str = "", **options: Any) -> None:
        super().__init__(path, **options)
        who = self.values("identity")
        every = np.stack(np.triu_indices(self.n, 1), 1)
        same = who[every[:, 0]] == who[every[:, 1]]
        order = np.argsort(np.arange(len(every)) % 7, kind="stable")
        chosen = np.concatenate([order[same[order]][:10], order[~same[order]][:10]])
        self.pairs, self.same = every[chosen], same[chosen]
        self.folds = np.arange(len(chosen)) % 10
        self.subsets = {"first": np.arange(5)}

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        points = sample.landmarks
        eyes = points[36:42].mean(0), points[42:48].mean(0)
        sample.five_points = np.stack([*eyes, points[30], points[48], points[54]]).astype(np.float32)
        return sample
