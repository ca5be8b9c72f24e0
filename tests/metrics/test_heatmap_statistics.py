import math

import pytest
import torch

from facessl.metrics.heatmap_statistics import (
    image_information,
    position_information,
    sharpness,
    usage_entropy,
    winning_regions,
)


@pytest.fixture
def heatmaps() -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).mul(2).softmax(1)


def test_numbers_agree_with_plain_loops(heatmaps: torch.Tensor) -> None:
    pixels = [heatmaps[b, :, y, x].tolist() for b in range(3) for y in range(5) for x in range(6)]
    share = [sum(p[n] for p in pixels) / len(pixels) for n in range(4)]
    wins = [sum(max(p) == p[n] for p in pixels) for n in range(4)]
    assert usage_entropy(heatmaps).item() == pytest.approx(math.exp(-sum(s * math.log(s) for s in share)), rel=1e-5)
    assert sharpness(heatmaps).item() == pytest.approx(sum(max(p) for p in pixels) / len(pixels), rel=1e-5)
    for least in (0.01, 0.25, 0.3):
        assert winning_regions(heatmaps, fraction=least).item() == sum(w >= least * len(pixels) for w in wins)


def entropy(shares: list[float]) -> float:
    return -sum(s * math.log(s) for s in shares)


def test_information_is_mutual_information_over_entropy(heatmaps: torch.Tensor) -> None:
    pixels = {(b, y, x): heatmaps[b, :, y, x].tolist() for b in range(3) for y in range(5) for x in range(6)}
    share = [sum(p[n] for p in pixels.values()) / len(pixels) for n in range(4)]
    for measured, group in ((image_information, lambda key: key[:1]), (position_information, lambda key: key[1:])):
        parts: dict[tuple[int, ...], list[list[float]]] = {}
        for key, pixel in pixels.items():
            parts.setdefault(group(key), []).append(pixel)
        joint = [[sum(p[n] for p in part) / len(pixels) for n in range(4)] for part in parts.values()]
        mutual = sum(q * math.log(q / (sum(row) * share[n])) for row in joint for n, q in enumerate(row))
        assert measured(heatmaps).item() == pytest.approx(mutual / entropy(share), rel=1e-3)


@pytest.mark.parametrize(
    ("winners", "by_image", "by_position"),
    [
        (torch.arange(4).view(4, 1, 1).expand(4, 2, 2), 1, 0),
        (torch.arange(4).view(1, 2, 2).expand(4, 2, 2), 0, 1),
        (torch.zeros(4, 2, 2, dtype=torch.long), 0, 0),
        (torch.tensor([[[0, 1], [2, 3]], [[3, 2], [1, 0]], [[1, 0], [3, 2]], [[2, 3], [0, 1]]]), 0, 0),
    ],
    ids=["image clusters", "fixed partition", "one region takes all", "regions follow the content"],
)
def test_information_tells_kinds_of_regions_apart(winners: torch.Tensor, by_image: int, by_position: int) -> None:
    maps = torch.eye(4)[winners].movedim(-1, 1)
    assert winning_regions(maps).item() == len(winners.unique())
    assert usage_entropy(maps).item() == pytest.approx(len(winners.unique()), rel=1e-5)
    assert image_information(maps).item() == pytest.approx(by_image, abs=1e-6)
    assert position_information(maps).item() == pytest.approx(by_position, abs=1e-6)
