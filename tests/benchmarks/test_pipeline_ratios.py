"""How much faster the views are than a torchvision and Pillow pipeline: ratios of CPU time in one process, with slack.

benchmarks/pipeline.py measures; docs/performance.md has the figures, which are about twice these.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import pytest
import torch

from tests.helpers import script

pipeline = script("pipeline")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    yield
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


def test_views_stay_several_times_faster_than_torchvision() -> None:
    parts = pipeline.Parts(pipeline.jpegs(8, 256), 224)
    works = {name: getattr(parts, name) for name in ("reference", "worker", "loader", "complete")}
    spent = pipeline.alternate(works, rounds=5, least=0.03)
    # The best of the rounds on either side: what a busy machine adds is left out as far as it can be.
    best = {name: min(seconds) for name, seconds in spent.items()}
    ratios = {name: round(best["reference"] / best[name], 1) for name in ("worker", "loader", "complete")}
    assert ratios["worker"] > 10, ratios
    assert ratios["loader"] > 8, ratios
    assert ratios["complete"] > 2.5, ratios
