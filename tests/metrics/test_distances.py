"""Scores of distances against loops that say the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contactlm.metrics.distances import COLUMNS, DistanceScores, distance_lddt, distance_mae, trivial_distance
from contactlm.structure.distances import distance_map


def made(seed: int, length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances with errors, and C-betas, some of which are unresolved."""
    generator = torch.Generator().manual_seed(seed)
    cb = (3.5 * torch.randn(length, 3, generator=generator)).cumsum(0)
    noise = torch.randn(length, length, generator=generator)
    distance = (distance_map(cb).float() + noise + noise.T).clamp(min=0)
    cb[[2, 7]] = torch.nan
    return distance, cb


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_as_defined(seed: int) -> None:
    distance, cb = made(seed)
    true, L = distance_map(cb).numpy(), len(cb)
    errors = [abs(distance[i, j] - true[i, j]) for i in range(L) for j in range(i + 1, L) if true[i, j] < 22]
    assert float(distance_mae(distance, distance_map(cb))) == pytest.approx(float(np.mean(errors)), abs=1e-6)
    of_residues = []
    for i in range(L):
        off = [abs(float(distance[i, j]) - true[i, j]) for j in range(L) if j != i and true[i, j] < 15]
        if off:
            of_residues.append(np.mean([np.mean([error < limit for error in off]) for limit in (0.5, 1, 2, 4)]))
    assert float(distance_lddt(distance, distance_map(cb))) == pytest.approx(float(np.mean(of_residues)), abs=1e-6)


def test_perfect_distances_and_nothing_known() -> None:
    _, cb = made(0)
    true = distance_map(cb)
    assert float(distance_lddt(true.nan_to_num(), true)) == 1 and float(distance_mae(true.nan_to_num(), true)) == 0
    nothing = torch.full_like(true, torch.nan)
    assert torch.isnan(distance_lddt(true, nothing)) and torch.isnan(distance_mae(true, nothing))


def test_means_over_proteins_and_columns_of_rows() -> None:
    proteins = [made(seed, 20 + seed) for seed in range(3)]
    scores = DistanceScores()
    scores.update([], [])
    assert scores.compute() == {} and scores.with_columns([{"index": 0}]) == [{"index": 0}]
    scores.update([d for d, _ in proteins[:2]], [cb for _, cb in proteins[:2]], [0, 1])
    scores.update([proteins[2][0]], [proteins[2][1]], [2])
    found = scores.compute()
    assert tuple(found) == COLUMNS
    expected = [float(distance_mae(d, distance_map(cb))) for d, cb in proteins]
    assert found["distance_mae"] == pytest.approx(np.mean(expected), abs=1e-5)
    rows = scores.with_columns([{"index": 2}, {"index": 0}])
    assert [row["distance_mae"] for row in rows] == pytest.approx([expected[2], expected[0]], abs=1e-5)
    trivial = [float(distance_lddt(trivial_distance(len(cb)), distance_map(cb))) for _, cb in proteins]
    assert found["trivial_distance_lddt"] == pytest.approx(np.mean(trivial), abs=1e-5)
