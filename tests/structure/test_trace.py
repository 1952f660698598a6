"""Secondary structure of C-alpha traces: as the biotite library assigns it, and what geometry alone tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from contactlm.structure.parse import read_chains
from contactlm.structure.polymer import MAX_CA_DISTANCE
from contactlm.structure.secondary import helices_and_strands
from tests.structure.test_secondary import ideal

FILES = 40


def text(ca: NDArray, is_linked: NDArray | None = None) -> str:
    if is_linked is None:
        is_linked = np.linalg.norm(np.diff(ca, axis=0), axis=1) < MAX_CA_DISTANCE
    helix, strand = helices_and_strands(ca, is_linked)
    assert helix.shape == strand.shape == (len(ca),) and not (helix & strand).any()
    return "".join("E" if e else "H" if h else "-" for h, e in zip(helix, strand, strict=True))


def by_biotite(ca: NDArray) -> str:
    """Breaks are jumps of its residue numbers; unresolved residues are left out."""
    structure = pytest.importorskip("biotite.structure", reason="the referee, biotite 1, is not installed")
    if int(pytest.importorskip("biotite").__version__.split(".")[0]) > 1:
        pytest.skip("biotite 2 finds nothing in a trace")
    there = np.isfinite(ca[:, 0])
    apart = np.linalg.norm(np.diff(ca, axis=0), axis=1)
    numbers = np.arange(len(ca)) + 10 * np.concatenate([[0], np.cumsum(~(apart < MAX_CA_DISTANCE))])
    atoms = structure.AtomArray(int(there.sum()))
    atoms.coord, atoms.res_id = ca[there].astype(np.float32), numbers[there]
    for name, value in (("chain_id", "A"), ("res_name", "ALA"), ("atom_name", "CA"), ("element", "C")):
        atoms.set_annotation(name, np.full(len(atoms), value))
    states = np.full(len(ca), "-")
    states[there] = [{"a": "H", "b": "E"}.get(state, "-") for state in structure.annotate_sse(atoms)]
    return "".join(states)


def test_real_chains_are_assigned_as_by_biotite(shared: Path) -> None:
    counts = dict.fromkeys("-HE", 0)
    for path in sorted((shared / "pdb" / "train").iterdir())[:FILES]:
        for chain in read_chains(path):
            states = text(chain.ca)
            assert states == by_biotite(chain.ca)
            counts = {state: count + states.count(state) for state, count in counts.items()}
    assert min(counts.values()) > 2000


@pytest.mark.parametrize("seed", range(20))
def test_any_chain_is_assigned_as_by_biotite(seed: int) -> None:
    """Pieces of helix and strand with noise, laid on each other so that short strands have contacts; with gaps."""
    rng = np.random.default_rng(seed)
    pieces = [
        ideal(int(rng.integers(3, 12)), *rng.choice([(-57.8, -47.0), (-120, 130), (-75, 145), (60, 40)]))[:, 1]
        for _ in range(12)
    ]
    ca = np.concatenate([piece - piece.mean(axis=0) + rng.normal(size=3, scale=4.0) for piece in pieces])
    ca += rng.normal(size=ca.shape, scale=0.15)
    ca[rng.choice(len(ca), 4, replace=False)] = np.nan
    ca = ca.astype(np.float32)
    states = text(ca)
    assert states == by_biotite(ca)
    assert {"H", "E"} & set(states)


def test_an_ideal_helix_and_an_ideal_strand_are_such() -> None:
    assert text(ideal(20)[:, 1]) == "-" + "H" * 18 + "-"
    assert text(ideal(20, -120, 130)[:, 1]) == "-" + "E" * 17 + "--"


def test_a_strand_of_three_needs_contacts() -> None:
    strand = ideal(6, -120, 130)[:, 1]  # of six residues three have all measures
    assert text(strand) == "-" * 6
    away = np.array([0.0, 0.0, 0.0])
    away[np.argmin(np.ptp(strand, axis=0))] = 4.8
    beside = np.concatenate([strand, strand + away, strand - away])
    assert text(beside).count("E") >= 9
    assert "E" not in text(np.concatenate([strand, strand + 3 * away]))


def test_no_segment_spans_a_break() -> None:
    helix = ideal(24)[:, 1]
    linked = np.ones(23, dtype=np.bool_)
    linked[11] = False
    assert text(helix, linked)[11] == text(helix, linked)[12] == "-"
    assert text(helix[:5]) == "-" * 5


@pytest.mark.parametrize("length", range(1, 7))
def test_short_and_unresolved_chains(length: int) -> None:
    assert text(ideal(length)[:, 1]) == "-" * length
    assert text(np.full((length, 3), np.nan)) == "-" * length
