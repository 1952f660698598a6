"""Scores by how near a known structure is: strata, copied contacts, and that every protein keeps its own numbers."""

from __future__ import annotations

import math

import pytest

from contactlm.metrics import ContactScores
from contactlm.metrics.part_scores import HitScores, hit_stratum
from tests.metrics.test_complex_scores import made

IDENTITY = [0.4, math.nan, 0.5, 0.1, 0.3, 0.95, math.nan]
EXPECTED = ["hit30-50", "nohit", "hit>=50", "hit<30", "hit30-50", "hit>=50", "nohit"]


def both() -> tuple[ContactScores, HitScores, list[dict[str, float]]]:
    """Scores of a model and of copying, and copying's by protein from metrics that saw it alone."""
    model, hits, alone = ContactScores(), HitScores(), []
    for n, identity in enumerate(IDENTITY):
        probability, labels, _ = made(n, 40 + n)
        copied, _, _ = made(n + 100, 40 + n)
        own = ContactScores()
        own.update([copied], [labels], "x", [n])
        alone.append(own.compute())
        model.update([probability], [labels], [f"p{n}"], [n])
        hits.update([copied], [labels], [f"p{n}"], [n], nearest=[(identity, identity / 2)])
    return model, hits, alone


def test_every_protein_keeps_its_identity_and_what_copying_reaches() -> None:
    model, hits, alone = both()
    rows = hits.with_columns(model.rows)
    for row, identity, own, plain in zip(rows, IDENTITY, alone, model.rows, strict=True):
        assert row["hit_identity"] is None if math.isnan(identity) else row["hit_identity"] == pytest.approx(identity)
        assert row["hit_coverage"] is None if math.isnan(identity) else row["hit_coverage"] == row["hit_identity"] / 2
        assert row["copy_mcc_sep6"] == pytest.approx(own["mcc_sep6"])
        assert row["copy_p_at_L_long"] == pytest.approx(own["p_at_L_long"], nan_ok=True)
        assert {name: row[name] for name in plain} == plain
    assert hits.compute()["copy_mcc_sep6"] == pytest.approx(sum(own["mcc_sep6"] for own in alone) / len(alone))


def test_strata_are_means_of_their_own_proteins() -> None:
    model, hits, _ = both()
    rows = hits.with_columns(model.rows)
    scores = hits.by_stratum(rows)
    assert [hit_stratum(identity) for identity in IDENTITY] == EXPECTED and hit_stratum(None) == "nohit"
    for stratum in set(EXPECTED):
        members = [row for row, own in zip(rows, EXPECTED, strict=True) if own == stratum]
        assert scores[f"proteins@{stratum}"] == len(members)
        for name in ("mcc_sep6", "copy_mcc_sep6"):
            assert scores[f"{name}@{stratum}"] == pytest.approx(sum(row[name] for row in members) / len(members))


def test_a_protein_seen_again_counts_once() -> None:
    """Processes see proteins twice to even out their numbers; merged states come in another order, too."""
    model, hits, _ = both()
    again = HitScores()
    for n in (5, 2, 0, 2, 1, 6, 4, 3, 0):
        _, labels, _ = made(n, 40 + n)
        copied, _, _ = made(n + 100, 40 + n)
        again.update([copied], [labels], [f"p{n}"], [n], nearest=[(IDENTITY[n], IDENTITY[n] / 2)])
    assert again.with_columns(model.rows) == hits.with_columns(model.rows) and again.compute() == hits.compute()


def test_models_that_know_no_hits_get_no_columns() -> None:
    model, _, _ = both()
    hits = HitScores()
    hits.update(None, [], [])
    assert hits.compute() == {} and hits.by_stratum(model.rows) == {}
    assert hits.with_columns(model.rows) == model.rows


def test_numbers_that_do_not_fit_are_refused() -> None:
    probability, labels, _ = made(0, 30)
    with pytest.raises(ValueError, match="got 0 rows of notes, and 1 ids with 2 notes each"):
        HitScores().update([probability], [labels], ["p"])
