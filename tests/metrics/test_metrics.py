"""Scores against scikit-learn and brute force, batch by batch, over seeds, and over ranks."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, matthews_corrcoef

from contactlm.metrics import ContactScores, PrecisionAtL, ProteinMCC
from contactlm.metrics.ranked import (
    Ranked,
    average_precision,
    precision_at,
    predicted_counts,
    rank_map,
    trivial_counts,
)
from contactlm.metrics.scores import (
    GRID,
    MCC_NAMES,
    RANKING_NAMES,
    confusion,
    mcc,
    mean_scores,
    score_protein,
    select_pairs,
    threshold_grid,
    trivial_probability,
    tune_threshold,
)
from contactlm.types import DataError
from tests.processes import run_ranks

LIMITS = {"": (1, None), "sep6": (6, None), "short": (6, 11), "medium": (12, 23), "long": (24, None)}
SEEDS = range(4)


def make_protein(seed: int, L: int, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric map of probabilities, and labels with unresolved residues."""
    g = torch.Generator().manual_seed(seed)
    probability = torch.rand(L, L, generator=g)
    probability = (probability + probability.T) / 2
    if ties:
        probability = (probability * 5).round() / 5
    labels = (torch.rand(L, L, generator=g) < 0.1 + 0.3 * (probability > 0.6)).to(torch.int8)
    labels = labels.triu(1) + labels.triu(1).T
    unresolved = torch.rand(L, generator=g) < 0.1
    labels[unresolved] = -1
    labels[:, unresolved] = -1
    return probability, labels.fill_diagonal_(-1)


def reference_pairs(probability: torch.Tensor, labels: torch.Tensor, name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The pairs of a range by a plain loop: probabilities, truth, number of resolved residues."""
    low, high = LIMITS[name]
    L = len(labels)
    p, y = [], []
    for i, j in itertools.combinations(range(L), 2):
        if labels[i, j] >= 0 and j - i >= low and (high is None or j - i <= high):
            p.append(float(probability[i, j]))
            y.append(int(labels[i, j]))
    resolved = sum(any(labels[i, j] >= 0 for j in range(L)) for i in range(L))
    return np.array(p, dtype=np.float32), np.array(y, dtype=int), resolved


def reference_mcc(p: np.ndarray, y: np.ndarray, threshold: float = 0.5) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only: scikit-learn gives 0 as we do, but says so
        return float(matthews_corrcoef(y, p > threshold)) if len(y) else 0.0


def reference_scores(probability: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Expected values from scikit-learn and numpy; probabilities must be distinct for the precisions."""
    scores = {}
    for name in LIMITS:
        p, y, resolved = reference_pairs(probability, labels, name)
        scores[f"mcc_{name}".rstrip("_")] = reference_mcc(p, y)
        if name:
            scores[f"auprc_{name}"] = float(average_precision_score(y, p)) if y.any() else math.nan
        if name in ("short", "medium", "long"):
            best_first = y[np.argsort(-p)]
            for k in (1, 2, 5):
                top = best_first[: resolved // k]
                scores[f"p_at_L{k if k > 1 else ''}_{name}"] = float(top.mean()) if len(top) else math.nan
            scores[f"r_precision_{name}"] = float(best_first[: y.sum()].mean()) if y.any() else math.nan
    return scores


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("L", [5, 20, 45])
def test_scores_equal_scikit_learn(seed: int, L: int) -> None:
    probability, labels = make_protein(seed, L)
    scores = score_protein(probability, labels)
    expected = reference_scores(probability, labels)
    assert set(expected) == set(MCC_NAMES) | set(RANKING_NAMES)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    assert scores["residues"] == reference_pairs(probability, labels, "")[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_average_precision_groups_ties_as_scikit_learn_does(seed: int) -> None:
    probability, labels = make_protein(seed, 30, ties=True)
    p, y, _ = reference_pairs(probability, labels, "sep6")
    assert len(set(p.tolist())) < 10
    assert score_protein(probability, labels)["auprc_sep6"] == pytest.approx(average_precision_score(y, p))
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(seed))
    shuffled = average_precision([Ranked.of(torch.from_numpy(p)[order], torch.from_numpy(y)[order].bool())])
    assert shuffled == average_precision([Ranked.of(torch.from_numpy(p), torch.from_numpy(y).bool())])


def test_precision_among_ties_is_the_mean_over_all_orders() -> None:
    probability = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    contact = torch.tensor([True, True, False, False, True, True])
    for count in range(1, 7):
        orders = []
        for tied in itertools.permutations(range(1, 5)):
            order = [0, *tied, 5][:count]
            orders.append(contact[order].float().mean().item())
        assert float(precision_at([Ranked.of(probability, contact)], [count])) == pytest.approx(np.mean(orders))


def test_precision_with_too_few_pairs_and_with_none() -> None:
    probability, contact = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([True, True, False])
    band, none = Ranked.of(probability, contact), Ranked.of(probability[:0], contact[:0])
    assert precision_at([band], [50, 0, 1])[0].tolist() == pytest.approx([2 / 3, math.nan, 1], nan_ok=True)
    assert precision_at([none, band], [5, 0]).isnan().tolist() == [[True, True], [False, True]]
    # 26 residues have 3 long-range pairs, fewer than 26 // 5.
    probability, labels = make_protein(0, 26)
    labels = torch.zeros_like(labels).fill_diagonal_(-1)
    labels[0, 24] = labels[24, 0] = 1
    scores = score_protein(probability, labels)
    assert scores["p_at_L_long"] == scores["p_at_L5_long"] == pytest.approx(1 / 3)
    # 20 residues have none: undefined, and not zero.
    scores = score_protein(probability[:20, :20], labels[:20, :20])
    assert math.isnan(scores["p_at_L_long"]) and math.isnan(scores["auprc_long"])
    assert scores["mcc_long"] == 0 and scores["mcc_long_undefined"] == 1
    # Contacts there are none: a precision of 0 and no recall.
    assert scores["p_at_L_short"] == 0 and math.isnan(scores["auprc_short"])


def test_precision_floors_the_number_of_pairs() -> None:
    L = 49  # 49 // 5 = 9
    labels = torch.zeros(L, L, dtype=torch.int8).fill_diagonal_(-1)
    probability = torch.zeros(L, L)
    for rank, i in enumerate(range(20)):
        probability[i, i + 24] = 0.9 - rank / 100
        labels[i, i + 24] = 1 if rank < 9 else 0
    scores = score_protein(probability, labels)
    assert scores["p_at_L5_long"] == 1
    assert scores["p_at_L2_long"] == pytest.approx(9 / 24)


def test_only_the_upper_triangle_and_known_pairs_count() -> None:
    probability, labels = make_protein(3, 40)
    expected = score_protein(probability, labels)
    lower = torch.ones(40, 40).tril().bool()
    assert score_protein(probability.masked_fill(lower, 1.0), labels) == expected
    assert score_protein(probability.masked_fill(labels < 0, 0.987), labels) == expected
    padded_p, padded_y = torch.full((55, 55), 0.5), torch.full((55, 55), -1, dtype=torch.int8)
    padded_p[:40, :40], padded_y[:40, :40] = probability, labels
    assert score_protein(padded_p, padded_y) == expected


def test_mcc_of_degenerate_perfect_and_opposite_counts() -> None:
    degenerate = torch.tensor([[[5, 0], [3, 0]], [[0, 4], [0, 2]], [[9, 0], [0, 0]], [[0, 0], [0, 0]]])
    values, undefined = mcc(degenerate)
    assert values.tolist() == [0, 0, 0, 0] and undefined.all()
    values, undefined = mcc(torch.tensor([[[7, 0], [0, 3]], [[0, 7], [3, 0]]]))
    assert values.tolist() == [1, -1] and not undefined.any()


def test_mcc_of_huge_counts_does_not_overflow() -> None:
    small = torch.tensor([[90, 7], [4, 20]])
    truth, prediction = np.repeat([0, 0, 1, 1], [90, 7, 4, 20]), np.repeat([0, 1, 0, 1], [90, 7, 4, 20])
    value, undefined = mcc(small * 10**12)
    assert float(value) == pytest.approx(matthews_corrcoef(truth, prediction)) and not undefined


def test_a_pair_at_the_threshold_is_no_contact() -> None:
    labels = torch.tensor([[-1, 1, 0], [1, -1, 1], [0, 1, -1]], dtype=torch.int8)
    pairs = select_pairs(torch.full((3, 3), 0.5), labels)
    assert confusion(pairs, 0.5).tolist() == [[1, 0], [2, 0]]
    assert confusion(pairs, 0.49).tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_logits_are_refused(value: float) -> None:
    probability, labels = make_protein(0, 12)
    probability[2, 9] = value
    for call in (score_protein, ProteinMCC().update, PrecisionAtL().update):
        with pytest.raises(ValueError, match="logits"):
            call(probability, labels)
    with pytest.raises(ValueError, match="logits"):
        ContactScores().update(probability, labels, "a")


def test_wrong_shapes_and_options_are_refused() -> None:
    probability, labels = make_protein(0, 12)
    with pytest.raises(ValueError, match=r"\(12, 12\) and labels \(11, 11\)"):
        score_protein(probability, labels[:11, :11])
    with pytest.raises(ValueError, match="floating-point"):
        score_protein(labels, labels)
    with pytest.raises(ValueError, match="2 probability maps and 1 label"):
        ProteinMCC().update([probability, probability], labels)
    with pytest.raises(ValueError, match="threshold is 2"):
        score_protein(probability, labels, threshold=2.0)
    with pytest.raises(ValueError, match="max_separation 3"):
        ProteinMCC(6, 3)
    with pytest.raises(ValueError, match="k is 0"):
        PrecisionAtL(k=0)
    with pytest.raises(ValueError, match="1 maps, 2 ids"):
        ContactScores().update(probability, labels, ["a", "b"])


def test_trivial_predictor() -> None:
    trivial = trivial_probability(7)
    for i, j in itertools.product(range(7), repeat=2):
        assert trivial[i, j] == float(abs(i - j) <= 2)
    assert trivial.dtype == torch.float32


@pytest.mark.parametrize("seed", SEEDS)
def test_threshold_counts_equal_counts_at_each_threshold(seed: int) -> None:
    probability, labels = make_protein(seed, 40)
    if seed % 2:  # probabilities that lie on the thresholds themselves
        probability = threshold_grid()[(probability * 998).long()]
    pairs = select_pairs(probability, labels).within(6)
    counts = predicted_counts(rank_map(probability, labels), GRID)[:, 1:].sum(1)
    assert counts.shape == (999, 2, 2)
    for k in (0, 1, 99, 332, 499, 500, 700, 997, 998):
        assert torch.equal(counts[k], confusion(pairs, (k + 1) / 1000)), k


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("L", [0, 1, 3, 7, 24, 25, 60])
def test_a_ranked_map_holds_the_pairs_of_the_map(seed: int, L: int) -> None:
    probability, labels = make_protein(seed, L, ties=bool(seed % 2))
    chain_of = torch.arange(L) // 13 if seed % 3 == 0 else None
    pairs, ranked = select_pairs(probability, labels, chain_of), rank_map(probability, labels, chain_of)
    assert ranked.residues == pairs.residues
    trivial = pairs._replace(probability=(pairs.separation <= 2).float())
    counts = [*predicted_counts(ranked, [0.3, 0.5]), trivial_counts(ranked)]
    for k, (low, high) in enumerate([(1, 5), (6, 11), (12, 23), (24, None)]):
        inside = pairs.within(low, high)
        assert ranked.bands[k].pairs.tolist() == sorted(inside.probability.tolist())
        assert ranked.bands[k].contacts.tolist() == sorted(inside.probability[inside.contact].tolist())
        expected = [confusion(inside, 0.3), confusion(inside, 0.5), confusion(trivial.within(low, high), 0.5)]
        assert [part[k].tolist() for part in counts] == [part.tolist() for part in expected]


def test_tuned_threshold_is_the_best_by_brute_force() -> None:
    proteins = [make_protein(seed, 40) for seed in SEEDS]
    metric = ContactScores()
    for number, (p, y) in enumerate(proteins):
        metric.update(p, y, f"protein{number}")
    threshold, best = metric.tune_threshold()
    pairs = [select_pairs(p, y).within(6) for p, y in proteins]
    means = {k / 1000: np.mean([float(mcc(confusion(q, k / 1000))[0]) for q in pairs]) for k in range(1, 1000)}
    assert best == pytest.approx(max(means.values()), abs=1e-6)
    assert means[threshold] == pytest.approx(max(means.values()), abs=1e-6)
    again = ContactScores(tuned_threshold=threshold)
    again.update([p for p, _ in proteins], [y for _, y in proteins], [str(i) for i in SEEDS])
    result = again.compute()
    assert result["mcc_sep6_tuned"] == pytest.approx(best, abs=1e-6)
    assert result["mcc_sep6_tuned"] > result["mcc_sep6"]


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken() -> None:
    assert tune_threshold(torch.zeros(3, 999)) == (0.5, 0.0)
    curves = torch.zeros(2, 999)
    curves[:, [99, 639, 899]] = 1.0
    assert tune_threshold(curves) == (0.64, 1.0)
    with pytest.raises(ValueError, match="no protein"):
        tune_threshold(torch.zeros(0, 999))


def make_batches(seed: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Three batches of proteins of several lengths, with degenerate ones among them."""
    empty = make_protein(seed + 90, 35)[0], torch.zeros(35, 35, dtype=torch.int8).fill_diagonal_(-1)
    unresolved = make_protein(seed + 91, 9)[0], torch.full((9, 9), -1, dtype=torch.int8)
    proteins = [make_protein(seed * 10 + n, L) for n, L in enumerate((30, 44, 18, 51))]
    return [[proteins[0], empty], [proteins[1]], [unresolved, proteins[2], proteins[3]]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("low", "high"), [(1, None), (6, None), (12, 23), (24, None)])
def test_classes_equal_functions_equal_scikit_learn(seed: int, low: int, high: int | None) -> None:
    name = next(name for name, limits in LIMITS.items() if limits == (low, high))
    protein_mcc, at_l = ProteinMCC(low, high), PrecisionAtL(2, low, high)
    mccs, precisions, all_p, all_y = [], [], [], []
    for batch in make_batches(seed):
        one_mcc, one_p = [], []
        for p, y, resolved in (reference_pairs(*protein, name) for protein in batch):
            one_mcc.append(reference_mcc(p, y))
            top = y[np.argsort(-p)][: resolved // 2]
            one_p.append(top.mean() if len(top) else math.nan)
            all_p.append(p)
            all_y.append(y)
        # forward() gives the batch's own value and goes on accumulating.
        maps, labels = [p for p, _ in batch], [y for _, y in batch]
        assert float(protein_mcc(maps, labels)) == pytest.approx(np.mean(one_mcc), abs=1e-6)
        assert float(at_l(maps, labels)) == pytest.approx(nanmean(one_p), abs=1e-6, nan_ok=True)
        mccs += one_mcc
        precisions += one_p
    assert float(protein_mcc.compute()) == pytest.approx(np.mean(mccs), abs=1e-6)
    assert float(at_l.compute()) == pytest.approx(nanmean(precisions), abs=1e-6)
    assert at_l.undefined == np.isnan(precisions).sum() >= 1
    pooled = reference_mcc(np.concatenate(all_p), np.concatenate(all_y))
    assert protein_mcc.pooled == pytest.approx(pooled, abs=1e-9)
    one_class = [len(set(y)) < 2 or len(set(p > 0.5)) < 2 for p, y in zip(all_p, all_y, strict=True)]
    assert protein_mcc.undefined == sum(one_class) >= 2


def nanmean(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def test_a_padded_batch_equals_single_maps() -> None:
    proteins = [make_protein(seed, L) for seed, L in enumerate((20, 33, 50))]
    probability, labels = torch.zeros(3, 50, 50), torch.full((3, 50, 50), -1, dtype=torch.int8)
    for n, (p, y) in enumerate(proteins):
        probability[n, : len(p), : len(p)], labels[n, : len(p), : len(p)] = p, y
    batch, single = ContactScores(), ContactScores()
    batch.update(probability, labels, ["a", "b", "c"])
    for name, (p, y) in zip("abc", proteins, strict=True):
        single.update(p, y, name)
    assert_same(batch.compute(), single.compute())
    assert batch.rows[1]["id"] == "b"
    mcc_batch = ProteinMCC()
    mcc_batch.update(probability, labels)
    assert float(mcc_batch.compute()) == pytest.approx(batch.compute()["mcc_sep6"], abs=1e-7)


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=1e-12, nan_ok=True) if name != "id" else two[name] == value, name


def test_contact_scores_equal_the_functions() -> None:
    proteins = [protein for batch in make_batches(1) for protein in batch]
    metric = ContactScores()
    ids = [f"ünit_{n}" for n in range(len(proteins))]
    metric.update([p for p, _ in proteins], [y for _, y in proteins], ids)
    result = metric.compute()
    rows = [score_protein(p, y) for p, y in proteins]
    for name, value in mean_scores(rows).items():
        assert result[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    assert [row["id"] for row in metric.rows] == ids
    for ours, row in zip(metric.rows, rows, strict=True):
        for name, value in row.items():
            assert ours[name] == pytest.approx(value, abs=1e-6, nan_ok=True)
    trivial = mean_scores([score_protein(trivial_probability(len(y)), y) for _, y in proteins])
    for name in ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6"):
        assert result[f"trivial_{name}"] == pytest.approx(trivial[name], abs=1e-6), name
    assert result["trivial_mcc_sep6"] == 0 and result["trivial_auprc_sep6"] > 0
    for name, limits in (("mcc_pooled", ""), ("mcc_sep6_pooled", "sep6")):
        p, y = (np.concatenate(v) for v in list(zip(*(reference_pairs(*q, limits) for q in proteins), strict=True))[:2])
        assert result[name] == pytest.approx(reference_mcc(p, y))
    assert result["proteins"] == len(proteins) and result["mcc_sep6_undefined"] == 2
    metric.reset()
    metric.update(*proteins[0], "only")
    assert [row["id"] for row in metric.rows] == ["only"]


def test_trivial_mcc_on_contacts_of_near_neighbours_is_one() -> None:
    labels = trivial_probability(30).to(torch.int8).fill_diagonal_(-1)
    metric = ContactScores()
    metric.update(torch.full((30, 30), 0.2), labels, "near")
    result = metric.compute()
    assert result["trivial_mcc"] == 1 and result["trivial_mcc_pooled"] == 1
    assert result["mcc"] == 0 and result["mcc_undefined"] == 1


def test_no_protein_at_all_gives_nan_not_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = ContactScores().compute()
        assert math.isnan(float(ProteinMCC().compute())) and math.isnan(float(PrecisionAtL().compute()))
    assert result["proteins"] == 0 and math.isnan(result["mcc_sep6"])
    filled = ContactScores()
    filled.update(*make_protein(0, 30), "a")
    assert filled.compute().keys() == result.keys()


def test_a_protein_seen_twice_counts_once() -> None:
    one, other = make_protein(0, 30), make_protein(1, 40)
    metric = ContactScores()
    metric.update(*one, "a", [0])
    metric.update(*other, "a", [1])
    expected = metric.compute()
    metric.update(*one, "a", [0])
    result = metric.compute()
    assert result.pop("duplicates") == 1 and expected.pop("duplicates") == 0
    assert_same(result, expected)
    nameless = ContactScores()
    nameless.update(*one, "a")
    nameless.update(*other, "a")
    with pytest.raises(DataError, match="two different proteins are called a"):
        nameless.compute()


def make_metrics() -> tuple[ProteinMCC, PrecisionAtL, ContactScores]:
    return ProteinMCC(), PrecisionAtL(), ContactScores(tuned_threshold=0.6)


def feed(metrics: tuple[Any, ...], numbers: list[int]) -> None:
    proteins = [protein for batch in make_batches(2) for protein in batch]
    for n in numbers:
        for metric in metrics[:2]:
            metric.update(*proteins[n])
        metrics[2].update(*proteins[n], f"protein{n}", [n])


@pytest.mark.parametrize("split", [([0, 1, 2], [3, 4, 5]), ([4, 0], [5, 3, 2, 1])])
def test_merged_states_of_two_ranks_equal_one(split: tuple[list[int], list[int]]) -> None:
    whole, first, second = make_metrics(), make_metrics(), make_metrics()
    feed(whole, list(range(6)))
    feed(first, split[0])
    feed(second, split[1])
    for one, a, b in zip(whole, first, second, strict=True):
        a.merge_state(b)
        merged, expected = a.compute(), one.compute()
        if isinstance(one, ContactScores):
            assert_same(merged, expected)
            for row, expected_row in zip(a.rows, one.rows, strict=True):
                assert_same(row, expected_row)
        else:
            assert float(merged) == pytest.approx(float(expected), abs=1e-12)


def scores_of_a_rank() -> tuple[int, tuple[Any, ...], dict[str, float], list[str]]:
    """First rank 1 has no protein at all; then it repeats two of rank 0's."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    metrics = make_metrics()
    feed(metrics, [[0, 1, 2, 3, 4, 5], []][rank])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compute before update, on rank 1
        values = [float(metrics[0].compute()), float(metrics[1].compute()), metrics[2].compute()]
    kept = len(metrics[0].gathered("counts"))
    first = (values, metrics[0].pooled, metrics[2].rows, metrics[2].tune_threshold(), kept)
    feed((ProteinMCC(), PrecisionAtL(), metrics[2]), [[], [4, 0]][rank])
    metrics[2]._computed = None  # what an update does; rank 0 had none
    repeated = metrics[2].compute(), [row["id"] for row in metrics[2].rows]
    torch.distributed.destroy_process_group()
    return rank, first, *repeated


@pytest.mark.slow
def test_two_processes_equal_one_even_when_one_has_no_protein_or_repeats_some(tmp_path: Path) -> None:
    got = run_ranks(scores_of_a_rank, 2, folder=tmp_path)
    whole = make_metrics()
    feed(whole, list(range(6)))
    ids = [f"protein{n}" for n in range(6)]
    assert sorted(answer[0] for answer in got) == [0, 1]
    for rank, (values, pooled, rows, tuned, kept), repeated, repeated_ids in got:
        assert values[0] == pytest.approx(float(whole[0].compute()), abs=1e-7)
        assert values[1] == pytest.approx(float(whole[1].compute()), abs=1e-7)
        assert_same(values[2], whole[2].compute())
        assert pooled == whole[0].pooled and tuned == whole[2].tune_threshold()
        assert [row["id"] for row in rows] == repeated_ids == ids
        assert kept == (6 if rank == 0 else 0)  # gathering leaves each rank its own states
        assert repeated.pop("duplicates") == 2
        assert_same(repeated, {k: v for k, v in whole[2].compute().items() if k != "duplicates"})


def test_half_precision_maps_are_scored() -> None:
    probability, labels = make_protein(4, 40)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = probability.to(dtype)
        assert score_protein(rounded, labels) == score_protein(rounded.float(), labels)
