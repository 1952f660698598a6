"""Means, standard errors and intervals, beside scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, sem

from contactlm.benchmark.results import estimate_mean


@pytest.mark.parametrize("seed", range(4))
def test_mean_error_and_interval_are_scipys(seed: int) -> None:
    values = np.random.default_rng(seed).beta(2, 5, size=40)
    found = estimate_mean(values.tolist(), seed=seed)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=seed)
    assert found.mean == pytest.approx(values.mean()) and found.error == pytest.approx(sem(values))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)
    assert found == estimate_mean(values.tolist(), seed=seed)


def test_paired_differences_are_surer_than_the_models_are() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0.4, 0.2, size=60)  # proteins differ much, the models by little
    one, other = hardness + rng.normal(0.02, 0.01, 60), hardness + rng.normal(0, 0.01, 60)
    difference = estimate_mean((one - other).tolist())
    assert difference.low > 0 and difference.error < estimate_mean(one.tolist()).error / 5
    assert estimate_mean((other - one).tolist()).mean == pytest.approx(-difference.mean)


def test_groups_are_drawn_together() -> None:
    values = [0.1, 0.5, 0.9, 0.3]
    repeated = [value for value in values for _ in range(5)]
    groups = [k for k in range(4) for _ in range(5)]
    apart, together = estimate_mean(values), estimate_mean(repeated, groups)
    assert together.mean == pytest.approx(apart.mean) and together.error == pytest.approx(apart.error)
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high))
    assert together.proteins == 20 and estimate_mean(repeated).error < 0.5 * together.error


def test_undefined_values_are_left_out_and_one_protein_has_no_error() -> None:
    assert estimate_mean([0.5, math.nan, 0.7]).proteins == 2
    one = estimate_mean([math.nan, 0.5])
    assert one.mean == 0.5 and math.isnan(one.error) and math.isnan(one.low)
    assert estimate_mean([]).proteins == 0 and math.isnan(estimate_mean([math.nan]).mean)
