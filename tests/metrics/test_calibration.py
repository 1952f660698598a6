"""Reliability and calibrations, beside scikit-learn's."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, matthews_corrcoef

from contactlm.metrics import ContactScores
from contactlm.metrics.calibration import Calibration, bands_of, fit_logistic, logit
from contactlm.metrics.calibration_scores import BINS, CalibrationScores
from contactlm.metrics.scores import score_protein, threshold_grid
from tests.processes import run_ranks

RANGES = {"sep6": (6, None), "short": (6, 11), "medium": (12, 23), "long": (24, None)}
Proteins = list[tuple[torch.Tensor, torch.Tensor]]


def made(seed: int, count: int = 6, slope: float = 0.5, bias: float = -1.0) -> Proteins:
    """Maps whose true log-odds are slope · logit(p) + bias, and labels drawn by them, some unknown."""
    rng, proteins = np.random.default_rng(seed), []
    for _ in range(count):
        L = int(rng.integers(50, 110))
        odds = rng.normal(-2.0, 2.0, (L, L))
        odds = np.triu(odds, 1) + np.triu(odds, 1).T
        drawn = rng.random((L, L)) < 1 / (1 + np.exp(-(slope * odds + bias)))
        labels = np.triu(drawn, 1) + np.triu(drawn, 1).T
        labels = labels.astype(np.int8)
        gone = rng.random(L) < 0.1
        labels[gone], labels[:, gone] = -1, -1
        np.fill_diagonal(labels, -1)
        proteins.append((torch.from_numpy(1 / (1 + np.exp(-odds))).float(), torch.from_numpy(labels)))
    return proteins


def scored(proteins: Proteins, calibration: Calibration | None = None) -> CalibrationScores:
    scores = CalibrationScores(calibration)
    for k, (probability, labels) in enumerate(proteins):
        scores.update([probability], [labels], [f"p{k}"], [k])
    return scores


def pairs_of(proteins: Proteins, low: int, high: int | None) -> tuple[np.ndarray, np.ndarray]:
    p, y = [], []
    for probability, labels in proteins:
        i, j = np.triu_indices(len(labels), low)
        kept = (labels.numpy()[i, j] >= 0) & (j - i <= (high or 10**6))
        p.append(probability.numpy()[i, j][kept])
        y.append(labels.numpy()[i, j][kept])
    return np.concatenate(p), np.concatenate(y)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed: int, name: str) -> None:
    proteins = made(seed)
    scores = scored(proteins)
    values, rows = scores.compute(), [row for row in scores.reliability() if row["range"] == name]
    p, y = pairs_of(proteins, *RANGES[name])
    assert values[f"brier_{name}"] == pytest.approx(brier_score_loss(y, p), rel=1e-5)
    assert values[f"log_loss_{name}"] == pytest.approx(log_loss(y, p), rel=1e-5)
    share, mean = calibration_curve(y, p, n_bins=BINS)
    assert [row["contacts"] for row in rows] == pytest.approx(share.tolist(), rel=1e-5)
    assert [row["mean_probability"] for row in rows] == pytest.approx(mean.tolist(), rel=1e-5)
    counted = np.histogram(p, np.linspace(0, 1, BINS + 1))[0]
    weights = counted[counted > 0] / len(p)
    assert values[f"ece_{name}"] == pytest.approx(float((weights * abs(share - mean)).sum()), rel=1e-4)


def test_a_probability_on_an_edge_is_where_scikit_learn_puts_it() -> None:
    L = 20
    edges = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])
    probability = edges[torch.arange(L * L).reshape(L, L) % len(edges)]
    probability = torch.triu(probability, 1) + torch.triu(probability, 1).T
    labels = (torch.rand(L, L, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.int8)
    labels = torch.triu(labels, 1) + torch.triu(labels, 1).T
    rows = [row for row in scored([(probability, labels)]).reliability() if row["range"] == "sep6"]
    p, y = pairs_of([(probability, labels)], 6, None)
    share, mean = calibration_curve(y, p.astype(np.float64), n_bins=BINS)
    assert [row["contacts"] for row in rows] == pytest.approx(share.tolist())
    assert [row["mean_probability"] for row in rows] == pytest.approx(mean.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_platt_is_logistic_regression_of_each_range(seed: int) -> None:
    proteins = made(seed)
    fitted = scored(proteins).fit()
    assert fitted is not None
    for band, (low, high) in enumerate([(1, 5), *list(RANGES.values())[1:]]):
        p, y = pairs_of(proteins, low, high)
        theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
            logit(torch.from_numpy(p)).numpy()[:, None], y
        )
        assert fitted.slope[band] == pytest.approx(float(theirs.coef_[0, 0]), abs=0.01)
        assert fitted.bias[band] == pytest.approx(float(theirs.intercept_[0]), abs=0.01)


def test_a_calibration_of_dev_makes_test_reliable() -> None:
    true = {"slope": 0.5, "bias": -1.0}
    fitted = scored(made(1, 30, **true)).fit()
    assert fitted is not None and fitted.kind == "platt"
    assert fitted.slope[3] == pytest.approx(0.5, abs=0.02) and fitted.bias[3] == pytest.approx(true["bias"], abs=0.05)
    test = made(2, 30, **true)
    before, after = scored(test).compute(), scored(test, fitted).compute()
    for name in RANGES:
        assert after[f"ece_{name}"] < 0.2 * before[f"ece_{name}"]
        assert after[f"log_loss_{name}"] < before[f"log_loss_{name}"]


def test_maps_and_pairs_are_calibrated_alike_and_ranks_stay() -> None:
    calibration = Calibration("platt", (1.0, 0.5, 2.0, 1.5), (0.0, -1.0, 0.3, 1.0))
    probability = made(3, 1)[0][0]
    calibrated = calibration.apply_map(probability)
    separation = (torch.arange(len(probability))[:, None] - torch.arange(len(probability))).abs()
    for band, (low, high) in enumerate([(0, 5), (6, 11), (12, 23), (24, 10**6)]):
        chosen = (separation >= low) & (separation <= high)
        assert (bands_of(separation[chosen]) == band).all()
        z = calibration.slope[band] * np.log(probability / (1 - probability)) + calibration.bias[band]
        torch.testing.assert_close(calibrated[chosen], torch.sigmoid(z)[chosen], atol=1e-5, rtol=1e-4)
        in_order = calibrated[chosen][probability[chosen].argsort()]
        assert (in_order.diff() >= -1e-6 * in_order[1:]).all()  # neighbours may come out equal, or swap by rounding
    torch.testing.assert_close(calibrated, calibrated.T)
    two_chains = torch.tensor([0] * 30 + [1] * (len(probability) - 30))
    between = two_chains[:, None] != two_chains
    of_complex = calibration.apply_map(probability, two_chains)
    torch.testing.assert_close(of_complex[~between], calibrated[~between])
    torch.testing.assert_close(
        of_complex[between], torch.sigmoid(1.5 * logit(probability[between]) + 1.0), atol=1e-5, rtol=1e-4
    )


def test_threshold_is_the_best_of_calibrated_maps() -> None:
    proteins = made(4, 8)
    fitted = scored(proteins).fit()
    assert fitted is not None
    calibrated = [(fitted.apply_map(p), y) for p, y in proteins]

    def mean(threshold: float) -> float:
        return float(np.mean([score_protein(p, y, threshold)["mcc_sep6"] for p, y in calibrated]))

    assert mean(fitted.threshold) > max(map(mean, threshold_grid()[::40].tolist())) - 0.003


def test_mcc_of_calibrated_maps_is_scikit_learns() -> None:
    proteins = made(5, 4)
    fitted = scored(proteins).fit()
    assert fitted is not None
    expected = []
    for probability, labels in proteins:
        p, y = pairs_of([(fitted.apply_map(probability), labels)], 6, None)
        expected.append(matthews_corrcoef(y, p > 0.5))
    assert scored(proteins, fitted).mcc_rows() == pytest.approx(expected, abs=1e-9)


def test_confidence_follows_what_the_top_pairs_reached() -> None:
    """Proteins of differing difficulty: the mean probability of the top L tells their precision after fitting."""
    rng = np.random.default_rng(0)

    def of(seed: int) -> Proteins:
        return [made(seed * 100 + k, 1, 0.6, float(rng.normal(-1, 0.3)))[0] for k in range(25)]

    fitted = scored(of(1)).fit()
    assert fitted is not None and fitted.confidence is not None
    test = of(2)
    scores = scored(test, fitted)
    told = scores.confidence_scores()
    assert abs(told["confidence_bias"]) < 0.04 and told["confidence_error"] < 0.1
    raw = scores.gathered("top")
    assert abs(float((raw[:, 0] - raw[:, 1]).mean())) > 0.1  # the probabilities themselves say too much
    for (probability, labels), row in zip(test, scores.confidence_rows(), strict=True):
        assert row["p_at_L_long"] == pytest.approx(score_protein(probability, labels)["p_at_L_long"], abs=1e-6)
        assert row["predicted_p_at_L_long"] == pytest.approx(fitted.predicted_precision(probability), abs=1e-6)


def test_a_map_outside_what_dev_had_is_told() -> None:
    proteins = made(0, 6)
    fitted = scored(proteins).fit()
    assert fitted is not None and fitted.lengths is not None and fitted.called is not None
    resolved = [int((labels >= 0).any(0).sum()) for _, labels in proteins]
    assert fitted.lengths == (min(resolved), max(resolved))
    assert Calibration.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    shares = []
    for probability, labels in proteins:
        known = (labels >= 0) & torch.ones_like(labels, dtype=torch.bool).triu(6)
        shares.append(float((fitted.apply_map(probability)[known] > fitted.threshold).float().mean()))
    assert fitted.called == pytest.approx((min(shares), max(shares)), abs=0.01)  # counted in bins of log-odds
    L = round(fitted.lengths[1])
    far = torch.ones(L, L).triu(6).nonzero()
    called, middling = round(len(far) * float(np.mean(fitted.called))), torch.zeros(L, L)
    middling[far[:called, 0], far[:called, 1]] = 1.0
    assert fitted.outside(middling) == ""
    assert "0.00% of pairs called, dev had" in fitted.outside(torch.zeros(L, L))
    told = fitted.outside(torch.zeros(1058, 1058))
    assert told.startswith(f"1,058 residues, dev had {min(resolved)} to {max(resolved)}; 0.00% of pairs")
    older = Calibration(fitted.kind, fitted.slope, fitted.bias, fitted.threshold, fitted.confidence)
    assert older.outside(torch.zeros(1058, 1058)) == ""


def test_few_proteins_give_no_confidence_and_one_kind_of_pair_no_change() -> None:
    few = scored(made(0, 4)).fit()
    assert few is not None and few.confidence is None
    assert few.predicted_precision(made(0, 1)[0][0]) is None
    L = 40
    none_touch = torch.full((L, L), 0.3), torch.zeros((L, L), dtype=torch.int8)
    fitted = scored([none_touch]).fit()
    assert fitted is not None and fitted.slope == (1.0,) * 4 and fitted.bias == (0.0,) * 4
    unknown = torch.full((L, L), 0.3), torch.full((L, L), -1, dtype=torch.int8)
    assert scored([unknown]).fit() is None and scored([]).fit() is None
    assert math.isnan(scored([unknown]).compute()["brier_sep6"])


def test_what_separates_perfectly_or_backwards_stays_within_bounds() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    apart = fit_logistic(x, (x > 0).double(), (x <= 0).double())
    assert 1 < apart[0] <= 20 and math.isfinite(apart[1])
    backwards = fit_logistic(x, 100 * (x < 0).double(), 100 * (x >= 0).double())
    assert backwards[0] == 0.05  # a calibration never turns a ranking around


def test_proteins_seen_twice_count_once() -> None:
    proteins = made(0, 3)
    once, twice = scored(proteins), scored(proteins)
    twice.update([proteins[1][0]], [proteins[1][1]], ["p1"], [1])
    assert once.compute() == twice.compute() and once.fit() == twice.fit()


def fitted_by_a_rank() -> tuple[int, Calibration | None, dict[str, float], list[dict[str, float]]]:
    """Rank 1 has two proteins, one of them rank 0's as well."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    proteins, scores = made(0), CalibrationScores()
    for k in [[0, 1, 2, 3, 4], [5, 0]][rank]:
        scores.update([proteins[k][0]], [proteins[k][1]], [f"p{k}"], [k])
    found = scores.fit(), scores.compute(), scores.reliability()
    torch.distributed.destroy_process_group()
    return rank, *found


@pytest.mark.slow
def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    whole = scored(made(0))
    for _, fitted, values, rows in run_ranks(fitted_by_a_rank, 2, folder=tmp_path):
        assert fitted == whole.fit() and rows == whole.reliability()
        assert values == pytest.approx(whole.compute(), rel=1e-12)


def test_rows_of_proteins_without_numbers_are_found_by_their_names() -> None:
    proteins = made(5, 4)
    fitted = scored(proteins).fit()
    plain, calibrated = ContactScores(), CalibrationScores(fitted)
    for scores in (plain, calibrated):
        for k, (probability, labels) in enumerate(proteins):
            scores.update([probability], [labels], [f"q{7 - k}"])
    for row in calibrated.with_columns(plain.rows):
        probability, labels = proteins[7 - int(row["id"][1:])]
        expected = score_protein(fitted.apply_map(probability), labels)["mcc_sep6"]
        assert row["mcc_sep6_calibrated"] == pytest.approx(expected, abs=1e-9)


def test_plain_values_come_back_and_others_are_refused() -> None:
    calibration = Calibration("temperature", (1.0, 0.5, 2.0, 1.5), (0.0,) * 4, 0.31, (1.1, -0.2))
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    plain = calibration.to_dict()
    for name, value in {
        "kind": "isotonic", "slope": [1.0], "bias": "0000", "threshold": 2.0, "confidence": [math.nan, 0.0], "more": 1,
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match="no calibration"):
            Calibration.from_dict({**plain, name: value})
    with pytest.raises(ValueError, match="no calibration"):
        Calibration.from_dict({**plain, "slope": [1.0, -0.5, 2.0, 1.5]})
