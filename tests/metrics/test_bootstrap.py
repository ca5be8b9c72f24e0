import math

import numpy as np
import pytest
import torch

from facessl.metrics.bootstrap import Interval, as_array, bootstrap_mean, resampled_sums, with_intervals
from tests.helpers import drawn_intervals


def test_resampled_sums_are_those_of_drawing_images() -> None:
    rng = np.random.default_rng(0)
    top, bottom = rng.random(150), 0.5 + rng.random(150)
    slow = drawn_intervals(lambda i: top[i].sum() / bottom[i].sum(), 150, samples=4000)
    sums = resampled_sums(np.stack([top, bottom], 1), samples=4000, seed=1)
    assert np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5]) == pytest.approx(slow, abs=0.01)


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


def test_what_is_undefined_is_null_in_json() -> None:
    assert with_intervals({"a": Interval(1.0, 0.5, 2.0), "b": Interval(math.nan, math.nan, math.nan), "c": None}) == {
        **{"a": 1, "a_interval": [0.5, 2], "b": None, "b_interval": [None, None], "c": None, "c_interval": None}
    }


def test_tensors_of_any_precision_are_read() -> None:
    assert as_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32
    assert as_array(torch.ones(2, dtype=torch.float64)).dtype == np.float64
    assert as_array(torch.arange(3)).dtype == np.int64
