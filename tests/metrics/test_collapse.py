import math

import pytest
import torch

from facessl.metrics.collapse import effective_rank, embedding_std


def test_embedding_std_agrees_with_plain_loops() -> None:
    z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).tolist()
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z]
    total = 0.0
    for c in range(5):
        column = [row[c] for row in unit]
        mean = sum(column) / 7
        total += math.sqrt(sum((v - mean) ** 2 for v in column) / 7)
    assert embedding_std(torch.tensor(z)).item() == pytest.approx(total / 5 * math.sqrt(5), rel=1e-5)


def test_embedding_std_is_one_on_a_filled_sphere_and_zero_when_collapsed() -> None:
    sphere = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert embedding_std(sphere).item() == pytest.approx(1, abs=0.02)
    # Equal directions of different lengths are a collapse too.
    assert embedding_std(sphere[:1] * torch.arange(1, 9)[:, None]).item() < 1e-3


def test_effective_rank_counts_equally_strong_directions() -> None:
    directions = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q[:5]
    z = directions.repeat(8, 1)  # 40 embeddings along 5 orthogonal directions
    assert effective_rank(z).item() == pytest.approx(5, rel=1e-3)
