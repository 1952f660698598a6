"""Placing observed residues on full sequences: against known truth, and against Biopython's aligner."""

from __future__ import annotations

import time

import numpy as np
import pytest
from Bio.Align import PairwiseAligner

from contactlm.structure import align
from contactlm.structure.align import Observed, agreement, align_observed, merge

AMINO = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def observed(full: str, kept: np.ndarray, numbers: np.ndarray | None = None) -> Observed:
    """Residues of the full sequence at the kept positions, bonded where they are neighbours."""
    letters = "".join(full[i] for i in kept)
    return Observed(letters, kept + 1 if numbers is None else numbers, np.diff(kept) == 1)


def gapped(seed: int, length: int = 80) -> tuple[str, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    full = "".join(rng.choice(AMINO, length))
    missing = np.zeros(length, dtype=bool)
    for start in rng.integers(0, length, 4):
        missing[start : start + int(rng.integers(1, 9))] = True
    return full, np.flatnonzero(~missing), rng


@pytest.mark.parametrize("seed", range(20))
def test_gaps_are_found_with_any_shift_of_the_numbers(seed):
    full, kept, _ = gapped(seed)
    for shift in (0, -50, 900):
        assert np.array_equal(align_observed(observed(full, kept, kept + shift), full), kept)


@pytest.mark.parametrize("seed", range(20))
def test_gaps_are_found_when_the_numbers_ignore_them(seed):
    """Numbered 1 to M: only letters and bonds tell; where several places fit, the letters must still agree."""
    full, kept, _ = gapped(seed)
    given = observed(full, kept, np.arange(1, len(kept) + 1))
    found = align_observed(given, full)
    assert agreement(given.letters, full, found) == 1.0
    assert (np.diff(found) > 0).all()
    assert np.array_equal(np.diff(found)[given.linked], np.ones(given.linked.sum()))


def test_numbers_decide_where_letters_do_not():
    full = "MKTA" + "G" * 12 + "WYRK"
    kept = np.array([0, 1, 2, 3, 4, 5, 12, 13, 16, 17, 18])
    given = observed(full, kept)
    assert np.array_equal(align_observed(given, full), kept)
    # The same with a substitution, which only the alignment places.
    changed = Observed("F" + given.letters[1:], given.numbers, given.linked)
    assert np.array_equal(align_observed(changed, full), kept)


@pytest.mark.parametrize("seed", range(10))
def test_substitutions_are_placed_and_win(seed):
    full, kept, rng = gapped(seed)
    letters = list(observed(full, kept).letters)
    for i in rng.choice(len(kept), 5, replace=False):
        letters[i] = str(rng.choice(AMINO[letters[i] != AMINO]))
    given = Observed("".join(letters), kept + 7, np.diff(kept) == 1)
    positions = align_observed(given, full)
    assert np.array_equal(positions, kept)
    merged, where = merge(given.letters, full, positions)
    assert np.array_equal(where, kept)
    assert "".join(merged[i] for i in kept) == given.letters
    assert all(merged[i] == full[i] for i in set(range(len(full))) - set(kept.tolist()))
    assert agreement(given.letters, full, positions) == pytest.approx(1 - 5 / len(kept))


def test_observed_residues_beyond_the_full_sequence_are_inserted():
    full = "MKTAYIAKQRQISFVK"
    tagged = "HHHHHH" + full[:7] + "WWW" + full[7:12] + "PP"
    given = Observed(tagged, np.arange(1, len(tagged) + 1), np.ones(len(tagged) - 1, dtype=bool))
    merged, where = merge(tagged, full, align_observed(given, full))
    assert merged == tagged + full[14:]  # PP stands where SF is expected; the tag and WWW are not in it
    assert "".join(merged[i] for i in where) == tagged
    assert (np.diff(where) > 0).all()


def test_unknown_observed_residues_take_the_letter_of_the_full_sequence():
    full = "MKTAYIAKQR"
    given = Observed("MKXXYI", np.arange(1, 7), np.ones(5, dtype=bool))
    positions = align_observed(given, full)
    assert merge(given.letters, full, positions)[0] == full
    assert agreement(given.letters, full, positions) == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_alignment_score_is_that_of_biopython(seed):
    """Without breaks and with uninformative numbers the costs are those of an affine global alignment."""
    rng = np.random.default_rng(seed)
    full = "".join(rng.choice(AMINO[:6], 40))
    letters = "".join(rng.choice(AMINO[:6], 25))
    given = Observed(letters, np.zeros(25, dtype=np.int64), np.ones(24, dtype=bool))
    positions = align._by_alignment(given, full)
    aligner = PairwiseAligner(mode="global", match_score=5, mismatch_score=-4)
    # Skipped residues of full (the target) are gaps in the query; older releases of Biopython name them so.
    skipped, inserted = (
        ("deletion", "insertion") if hasattr(aligner, "open_insertion_score") else ("query_gap", "target_gap")
    )
    for step in ("open", "extend"):
        set_gap(aligner, step, "internal", skipped, -12 if step == "open" else 0)
        set_gap(aligner, step, "end", skipped, 0)
        for where in ("internal", "end"):
            set_gap(aligner, step, where, inserted, -10)
    assert score(positions, letters, full) == aligner.score(full, letters)


def set_gap(aligner: PairwiseAligner, step: str, where: str, kind: str, value: float) -> None:
    if kind.endswith("gap"):
        setattr(aligner, f"{kind.removesuffix('_gap')}_{where}_{step}_gap_score", value)
    else:
        setattr(aligner, f"{step}_{where}_{kind}_score", value)


def score(positions: np.ndarray, letters: str, full: str) -> float:
    total = 0.0
    consumed = None
    for one, at in zip(letters, positions.tolist(), strict=True):
        before = -1 - at if at < 0 else at
        total += -10.0 if at < 0 else 5.0 if full[at] == one else -4.0
        if consumed is not None and before != consumed:
            total -= 12.0
        consumed = before if at < 0 else at + 1
    return total


def test_a_repeat_is_not_taken_for_its_twin():
    unit = "MKTAYIAKQRQISFVK"
    full = unit * 4
    kept = np.arange(len(unit) + 3, 3 * len(unit) - 2)
    assert np.array_equal(align_observed(observed(full, kept), full), kept)


def test_ordinary_chains_of_any_size_need_no_alignment(monkeypatch):
    monkeypatch.setattr(align, "_by_alignment", None)
    rng = np.random.default_rng(0)
    full = "".join(rng.choice(AMINO, 30_000))
    kept = np.flatnonzero(rng.random(30_000) < 0.9)
    start = time.process_time()
    assert np.array_equal(align_observed(observed(full, kept, kept - 40), full), kept)
    assert time.process_time() - start < 2.0


def test_alignments_beyond_the_limit_are_refused():
    given = Observed("A" * 5000, np.arange(5000), np.ones(4999, dtype=bool))
    with pytest.raises(ValueError, match="5000 observed residues disagree with the 6000"):
        align_observed(given, "W" * 6000)
