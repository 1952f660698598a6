"""Scores of complexes: pairs within and between chains are told apart, and nothing is lost or counted twice."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, matthews_corrcoef
from torch import Tensor

from contactlm.metrics.part_scores import ComplexScores, inter_labels, intra_labels
from contactlm.metrics.ranked import predicted_counts, rank_map
from contactlm.metrics.scores import score_protein


def made(seed: int, *chain_lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probability, labels (a residue in ten unknown) and chain numbers of a made complex."""
    draw = torch.Generator().manual_seed(seed)
    L = sum(chain_lengths)
    probability = torch.rand(L, L, generator=draw)
    probability = (probability + probability.T) / 2
    labels = (torch.rand(L, L, generator=draw).triu(1) > 0.8).to(torch.int8)
    labels = labels + labels.T
    unknown = torch.rand(L, generator=draw) < 0.1
    labels[unknown] = -1
    labels[:, unknown] = -1
    labels.fill_diagonal_(-1)
    chain_of = torch.repeat_interleave(torch.arange(len(chain_lengths)), torch.tensor(chain_lengths))
    return probability, labels, chain_of


def computed(*complexes: tuple[Tensor, Tensor, Tensor], tuned: float | None = None) -> dict[str, float]:
    scores = ComplexScores(tuned_threshold=tuned)
    probability, labels, chain_of = (list(column) for column in zip(*complexes, strict=True))
    ids = [f"p{k}" for k in range(len(complexes))]
    scores.update(probability, labels, ids, list(range(len(ids))), chain_of)
    return scores.compute()


def counts_of(probability: torch.Tensor, labels: torch.Tensor, chain_of: torch.Tensor | None = None) -> torch.Tensor:
    return predicted_counts(rank_map(probability, labels, chain_of), [0.5])[0]


@pytest.mark.parametrize("seed", range(5))
def test_intra_and_inter_pairs_partition_the_known_ones(seed: int) -> None:
    probability, labels, chain_of = made(seed, 12, 1, 20)
    whole, intra, inter = (y >= 0 for y in (labels, intra_labels(labels, chain_of), inter_labels(labels, chain_of)))
    assert torch.equal(intra | inter, whole) and not (intra & inter).any()
    assert intra.any() and inter.any()
    parts = [counts_of(probability, of_part(labels, chain_of), chain_of) for of_part in (intra_labels, inter_labels)]
    assert torch.equal(sum(parts), counts_of(probability, labels, chain_of))  # type: ignore[arg-type]
    assert parts[1][:3].sum() == 0  # all pairs between chains are in the last band, wherever the chains meet


@pytest.mark.parametrize("seed", range(3))
def test_scores_between_chains_are_those_of_scikit_learn(seed: int) -> None:
    probability, labels, chain_of = made(seed, 15, 18, 9)
    pairs = [
        (float(probability[i, j]), int(labels[i, j]))
        for i in range(42)
        for j in range(i + 1, 42)
        if labels[i, j] >= 0 and chain_of[i] != chain_of[j]
    ]
    p, y = zip(*pairs, strict=True)
    scores = computed((probability, labels, chain_of), tuned=0.6)
    assert scores["inter_mcc"] == pytest.approx(matthews_corrcoef(y, [v > 0.5 for v in p]))
    assert scores["inter_mcc_tuned"] == pytest.approx(matthews_corrcoef(y, [v > 0.6 for v in p]))
    assert scores["inter_auprc"] == pytest.approx(average_precision_score(y, p), abs=1e-6)
    L = int((labels >= 0).any(0).sum())
    for k, name in ((1, "p_at_L"), (2, "p_at_L2"), (5, "p_at_L5")):
        best = sorted(pairs, reverse=True)[: L // k]
        assert scores[f"inter_{name}"] == pytest.approx(sum(contact for _, contact in best) / len(best), abs=1e-6)
    assert scores["inter_trivial_p_at_L"] == pytest.approx(sum(y) / len(y), abs=1e-6)


def test_scores_within_chains_use_their_own_separations() -> None:
    first, second = made(0, 30), made(1, 25)
    probability, labels = torch.block_diag(first[0], second[0]), torch.full((55, 55), 1, dtype=torch.int8)
    labels[:30, :30], labels[30:, 30:] = first[1], second[1]
    chain_of = torch.tensor([0] * 30 + [1] * 25)
    scores = computed((probability, labels, chain_of))
    both = sum(counts_of(p, y) for p, y, _ in (first, second))
    joined = counts_of(probability, intra_labels(labels, chain_of), chain_of)
    assert torch.equal(joined, both)  # type: ignore[arg-type]
    assert scores["intra_mcc_sep6"] == score_protein(probability, intra_labels(labels, chain_of))["mcc_sep6"]
    # every known pair between the chains is a contact and none was predicted
    assert (scores["inter_mcc"], scores["inter_mcc_undefined"]) == (0.0, 1.0)


def test_single_chains_and_complexes_without_a_known_pair_between_chains_are_left_out() -> None:
    alone, complete = made(0, 30), made(1, 20, 20)
    probability, labels, chain_of = made(2, 20, 20)
    labels[20:] = -1
    labels[:, 20:] = -1
    assert computed(alone) == {} and computed((probability, labels, chain_of)) == {}
    scores = computed(alone, complete, (probability, labels, chain_of))
    assert scores["inter_proteins"] == scores["intra_proteins"] == 1
    assert scores["inter_mcc"] == computed(complete)["inter_mcc"]


def test_rows_get_columns_only_where_there_are_complexes() -> None:
    rows = [{"id": "a", "index": 0, "mcc": 0.1}, {"id": "b", "index": 1, "mcc": 0.2}]
    none = ComplexScores()
    none.update([], [], [], None, None)
    assert none.compute() == {} and none.with_columns(rows) == rows
    some = ComplexScores()
    complexes = [made(0, 30), made(1, 20, 20)]
    some.update(*([c[k] for c in complexes] for k in (0, 1)), ["a", "b"], [0, 1], [c[2] for c in complexes])
    a, b = some.with_columns(rows)
    assert list(a) == list(b) and a["inter_mcc"] is None
    assert (b["mcc"], b["inter_mcc"]) == (0.2, some.compute()["inter_mcc"])
    assert not math.isnan(b["intra_mcc_sep6"])
