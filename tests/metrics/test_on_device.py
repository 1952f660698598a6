"""Scores as they are counted on an accelerator, where lists are filled up, against those counted on the processor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contactlm.callbacks.dashboard import PrecisionRecall
from contactlm.metrics import calibration, calibration_scores, ranked
from contactlm.metrics.calibration import Calibration
from contactlm.metrics.calibration_scores import CalibrationScores
from contactlm.metrics.classes import ContactScores
from contactlm.metrics.protein_states import KEY, RankedBatch
from contactlm.metrics.ranked import LengthRule, RankedMap, rank_map
from contactlm.metrics.scores import select_pairs

CASES = {  # residues, share of contacts, of unknown labels, residues of the first chain
    "plain": (70, 0.05, 0.0, 0),
    "unresolved": (60, 0.1, 0.3, 0),
    "complex": (60, 0.1, 0.2, 25),
    "no contact": (40, 0.0, 0.1, 0),
    "nothing known": (30, 0.0, 1.0, 0),
    "short": (4, 0.5, 0.0, 0),
    "one residue": (1, 0.0, 0.0, 0),
}


def protein(case: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    L, contacts, unknown, first = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    probability = (torch.rand(L, L, generator=generator) * 20).round() / 20  # with ties, 0 and 1
    labels = (torch.rand(L, L, generator=generator) < contacts).to(torch.int8)
    missing = torch.rand(L, generator=generator) < unknown
    labels[missing], labels[:, missing] = -1, -1
    labels.fill_diagonal_(-1)
    return probability, labels, (torch.arange(L) >= first).long() if first else None


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch):
    """Calls a function as if no tensor could be reached by NumPy."""

    def call(function, *arguments):
        with monkeypatch.context() as patched:
            for module in (ranked, calibration, calibration_scores):
                patched.setattr(module, "by_numpy", lambda _: False)
            return function(*arguments)

    return call


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", ["resolved", "last-resolved", "full"])
def test_the_same_pairs_are_put_in_order(case: str, length: LengthRule, pretended) -> None:
    probability, labels, chain_of = protein(case)
    here: RankedMap = rank_map(probability, labels, chain_of, length)
    there: RankedMap = pretended(rank_map, probability, labels, chain_of, length)
    assert torch.equal(here.near, there.near) and int(here.residues) == int(there.residues)
    for ours, theirs in zip(here.bands, there.bands, strict=True):
        assert torch.equal(ours.sizes, theirs.sizes) and len(ours.pairs) == ours.sizes[0] <= len(theirs.pairs)
        for part in (0, 1):
            assert torch.equal(ours[part], theirs[part][theirs[part] >= 0])


def counted(case: str, seed: int) -> list[dict[str, float]]:
    """Everything an evaluation counts."""
    probability, labels, chain_of = protein(case, seed)
    outputs = {"probability": [probability], "labels": [labels], "chain_of": None if chain_of is None else [chain_of]}
    fitted = Calibration("platt", (1.3, 0.8, 1.1, 0.9), (0.2, -0.1, 0.0, 0.3), 0.4, (1.2, -0.1))
    given, pairs = ([probability], [labels], ["a"], [0], outputs["chain_of"]), RankedBatch.of(outputs).maps
    scores = ContactScores(0.5, 0.35)
    scores.update(*given, ranked=pairs)
    curve, found = PrecisionRecall(), [scores.compute(), scores.rows[0]]
    curve.add(outputs)
    found.append({str(k): float(count) for k, count in enumerate(curve.called.flatten())})
    for kind in (None, fitted):
        reliability = CalibrationScores(kind)
        reliability.update(*given, pairs)
        histogram = reliability.gathered("histogram").flatten().tolist()
        found += [reliability.compute(), reliability.confidence_rows()[0], *reliability.reliability()]
        found.append({str(k): float(count) for k, count in enumerate(histogram)})
    return [{name: value for name, value in row.items() if isinstance(value, float)} for row in found]


@pytest.mark.parametrize("case", CASES)
def test_the_same_scores_are_counted(case: str, pretended) -> None:
    for seed in range(3):
        for ours, theirs in zip(counted(case, seed), pretended(counted, case, seed), strict=True):
            assert theirs == pytest.approx(ours, abs=1e-6, nan_ok=True)


def test_the_curve_counts_every_pair_at_the_thresholds_it_reaches() -> None:
    L = 300
    probability = torch.rand(L, L, generator=torch.Generator().manual_seed(1))
    thresholds = torch.arange(201) / 200
    probability[:201, 250], probability[:201, 251] = thresholds, torch.nextafter(thresholds, torch.tensor(0.0))
    labels = (torch.rand(L, L, generator=torch.Generator().manual_seed(2)) < 0.1).to(torch.int8)
    curve = PrecisionRecall()
    curve.add({"probability": [probability], "labels": [labels]})
    pairs = select_pairs(probability, labels).within(6)
    reaches = pairs.probability >= thresholds[:, None]
    assert torch.equal(curve.called, torch.stack([reaches.sum(1), (reaches & pairs.contact).sum(1)]))


def test_pairs_are_put_in_order_once_and_only_of_probabilities() -> None:
    probability, labels, _ = protein("plain")
    outputs = {"probability": [probability], "labels": [labels]}
    assert RankedBatch.of(outputs) is RankedBatch.of(outputs) is outputs[KEY]
    copied = RankedBatch.of(outputs).rank([1 - probability], [labels])[0]
    for ours, theirs in zip(copied.bands, rank_map(1 - probability, labels).bands, strict=True):
        assert torch.equal(ours.pairs, theirs.pairs) and torch.equal(ours.contacts, theirs.contacts)
    for bad in (probability * 2, torch.full_like(probability, math.nan)):
        with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\]"):
            RankedBatch.of({"probability": [probability, bad], "labels": [labels, labels]})
