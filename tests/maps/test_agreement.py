"""How far two maps agree: SciPy's rank correlation, and sets counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from tests.benchmarks.agreement import agreement


def symmetric(L: int, seed: int, steps: int | None = None) -> torch.Tensor:
    values = torch.rand(L, L, generator=torch.Generator().manual_seed(seed))
    values = values if steps is None else (values * steps).floor() / steps
    return torch.triu(values, 1) + torch.triu(values, 1).T


@pytest.mark.parametrize("steps", [None, 4])
def test_spearman_is_scipys_and_the_top_is_counted(steps: int | None) -> None:
    for seed in range(4):
        L = 20 + seed
        one, noise = symmetric(L, seed, steps), symmetric(L, seed + 10, steps)
        other = (one + noise) / 2
        i, j = torch.triu_indices(L, L, 6)
        found = agreement(one, other)
        assert found["spearman_sep6"] == pytest.approx(spearmanr(one[i, j], other[i, j]).statistic, abs=1e-9)
        first, second = (
            set(sorted(range(len(i)), key=lambda k: (-float(own[i[k], j[k]]), k))[:L]) for own in (one, other)
        )
        assert found["shared_top_L"] == len(first & second) / L


def test_a_map_agrees_with_its_ranks_and_opposes_its_negative() -> None:
    one = symmetric(15, 0)
    assert agreement(one, torch.exp(9 * one)) == {"spearman_sep6": pytest.approx(1), "shared_top_L": 1.0}
    assert agreement(one, -one)["spearman_sep6"] == pytest.approx(-1)


def test_pairs_between_chains_count() -> None:
    one, other = symmetric(8, 0), symmetric(8, 1)
    positions = torch.arange(8) + 100 * (torch.arange(8) >= 4)
    i, j = torch.cartesian_prod(torch.arange(4), torch.arange(4, 8)).T
    expected = spearmanr(one[i, j], other[i, j]).statistic
    assert agreement(one, other, positions)["spearman_sep6"] == pytest.approx(expected, abs=1e-9)


def test_too_little_to_compare() -> None:
    one = symmetric(5, 0)
    assert all(math.isnan(value) for value in agreement(one, one).values())
    flat = torch.zeros(9, 9)
    assert math.isnan(agreement(flat, symmetric(9, 1))["spearman_sep6"])
    with pytest.raises(ValueError, match="shapes"):
        agreement(one, flat)
