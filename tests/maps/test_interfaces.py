"""Interfaces: what a map says of two chains, and how well it says it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from contactlm.callbacks.prediction_files import INTERFACES, summary_line
from contactlm.maps.contact_map import ContactMap
from contactlm.metrics.part_scores import ComplexScores, inter_labels, interface_scores
from contactlm.metrics.ranked import rank_map

LENGTHS = [9, 14, 5]
CHAINS = torch.tensor(np.repeat([0, 1, 2], LENGTHS))


def random_map(seed: int) -> np.ndarray:
    p = np.random.default_rng(seed).random((28, 28)).astype(np.float32) ** 3
    return (p + p.T) / 2


def test_an_interface_is_what_lies_between_two_chains() -> None:
    made = ContactMap("x", "A" * 28, random_map(1), threshold=0.6, how={"chain_lengths": LENGTHS})
    found = made.interfaces()
    assert [each.chains for each in found] == [("A", "B"), ("A", "C"), ("B", "C")]
    starts = np.cumsum([0, *LENGTHS])
    for each, (a, b) in zip(found, [(0, 1), (0, 2), (1, 2)], strict=True):
        p = made.probability[starts[a] : starts[a + 1], starts[b] : starts[b + 1]]
        assert each.highest == p.max() and each.expected == pytest.approx(p.sum(), rel=1e-6)
        assert each.top10 == pytest.approx(np.sort(p.ravel())[-10:].mean(), rel=1e-6)
        pairs = {(i + starts[a], j + starts[b]) for i, j in np.argwhere(p > 0.6)}
        assert each.residues == (sorted({i for i, _ in pairs}), sorted({j for _, j in pairs}))
    line = summary_line(made, 1.0)
    assert line["inter_chains"] == "A-B A-C B-C" and len(line["inter_residues"].split()) == 3
    first = line["inter_residues"].split()[0]
    assert first == ",".join(
        f"{name}:{i - start + 1}"
        for name, start, side in zip("AB", starts, found[0].residues, strict=False)
        for i in side
    )
    assert not set(INTERFACES) & summary_line(ContactMap("x", "A" * 28, random_map(1)), 1.0).keys()


@pytest.mark.parametrize("seed", range(8))
def test_interface_scores_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = np.round(random_map(seed), 1)  # many ties
    labels = (rng.random((28, 28)) < 0.06).astype(np.int8)
    labels = np.maximum(labels, labels.T)
    labels[rng.integers(28)] = -1
    labels[labels.T == -1] = -1
    inter = inter_labels(torch.from_numpy(labels), CHAINS)
    ranked = rank_map(torch.from_numpy(p), inter, CHAINS)
    auc, top = interface_scores(torch.from_numpy(p), inter, ranked).tolist()
    known = inter.numpy() >= 0
    resolved = known.any(1)
    score = np.where(known, p, -1).max(1)[resolved]
    truth = (inter.numpy() == 1).any(1)[resolved]
    assert auc == pytest.approx(roc_auc_score(truth, score) if 0 < truth.sum() < len(truth) else np.nan, nan_ok=True)
    i, j = np.nonzero(np.triu(known, 1))
    order = [np.argsort(-p[i, j] + 1e-9 * rng.random(len(i))) for _ in range(300)]
    means = np.mean([(inter.numpy()[i, j][each[:10]] == 1).mean() for each in order])
    assert top == pytest.approx(means, abs=0.03)


def test_complexes_are_scored_beside_the_trivial_predictor() -> None:
    scores = ComplexScores()
    labels = torch.zeros(28, 28, dtype=torch.int8)
    labels[:9, 9:12] = labels[9:12, :9] = 1
    perfect = labels.float()
    scores.update([perfect, perfect], [labels, labels], ["a", "b"], None, [CHAINS, CHAINS])
    found = scores.compute()
    assert found["inter_interface_auc"] == 1 and found["inter_p_at_10"] == 1 and found["inter_p_at_L5"] == 1
    pairs = 9 * 14 + 9 * 5 + 14 * 5
    assert found["inter_trivial_p_at_L5"] == pytest.approx(27 / pairs)
    rows = scores.with_columns([{"id": "a", "index": -1}])
    assert rows[0]["inter_p_at_10"] == 1
