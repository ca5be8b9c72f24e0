"""What the meters of the tasks share: rows by image, and their breakdown by subset and group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facessl.batch import Batch
from facessl.data.source import Source, trait
from facessl.metrics.fairness import by_group
from facessl.metrics.intervals import bootstrap_mean


class Collected:
    """Arrays with one row per image, in the order in which the images came."""

    def __init__(self, source: Source) -> None:
        """
        Args:
            source: what is scored; its `subsets` and `group_names` give the breakdowns.
        """
        self.source = source
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, batch: Batch, **columns: Tensor | np.ndarray | None) -> None:
        """Rows of one batch; a column that is None is left out."""
        for name, values in {"index": batch.index, "group": batch.group, **columns}.items():
            if values is not None:
                array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
                self._parts.setdefault(name, []).append(array)

    def get(self, name: str) -> np.ndarray | None:
        """A column, or None where no image had it."""
        return self[name] if name in self._parts else None

    def __getitem__(self, name: str) -> np.ndarray:
        """(N, ...) rows of a column."""
        return np.concatenate(self._parts[name])

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts.get("index", []))

    def breakdown(self, values: Mapping[str, np.ndarray], better: str = "higher") -> dict[str, Any]:
        """`subsets` (mean and interval of each published subset) and `groups` (each group, the gap, the worst).

        Args:
            values: name -> (N,) number of each image.
            better: "higher" or "lower".

        Returns:
            Empty where the source has neither subsets nor groups.
        """
        found: dict[str, Any] = {}
        index = self["index"]
        for subset, positions in trait(self.source, "subsets").items():
            rows = np.isin(index, positions)
            if rows.any():
                scores: dict[str, Any] = {}
                for name, numbers in values.items():
                    value, low, high = bootstrap_mean(numbers[rows])
                    scores |= {name: value, f"{name}_interval": [low, high]}
                found.setdefault("subsets", {})[subset] = {"images": int(rows.sum()), **scores}
        names = trait(self.source, "group_names")
        groups = self.get("group")
        if names and groups is not None:
            found["groups"] = {
                name: by_group(numbers, groups, names, larger_is_better=better == "higher").summary()
                for name, numbers in values.items()
            }
        return found
