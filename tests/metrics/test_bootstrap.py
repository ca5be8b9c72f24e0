import math
import time

import numpy as np
import pytest
import torch

from facessl.metrics.bootstrap import as_array, bootstrap, bootstrap_mean, bootstrap_sums, percentiles


def test_sums_and_index_bootstrap_agree_on_a_ratio() -> None:
    rng = np.random.default_rng(0)
    top, bottom = rng.random(150), 0.5 + rng.random(150)
    slow = bootstrap(lambda i: top[i].sum() / bottom[i].sum(), 150, samples=4000)
    fast = bootstrap_sums(np.stack([top, bottom], 1), lambda s: s[..., 0] / s[..., 1], samples=4000, seed=1)
    assert fast.value == pytest.approx(slow.value) == pytest.approx(top.sum() / bottom.sum())
    assert fast[1:] == pytest.approx(slow[1:], abs=0.01)


def test_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=0.015)


def test_images_without_a_value_do_not_count() -> None:
    found = bootstrap_mean(np.array([1.0, math.nan, 3.0]))
    assert found.value == 2
    assert 1 <= found.low < found.high <= 3
    assert all(math.isnan(x) for x in bootstrap_mean(np.array([math.nan, math.nan])))


def test_a_thousand_resamples_of_ten_thousand_images_take_less_than_a_second() -> None:
    start = time.process_time()
    bootstrap_mean(np.random.default_rng(0).random(10_000))
    assert time.process_time() - start < 1


def test_same_seed_same_interval_and_level_sets_the_width() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    assert percentiles(np.arange(101.0), level=0.5) == (25, 75)


def test_tensors_of_any_precision_are_read() -> None:
    assert as_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32
    assert as_array(torch.ones(2, dtype=torch.float64)).dtype == np.float64
    assert as_array(torch.arange(3)).dtype == np.int64
