"""Secondary structure: ideal geometry, real oxygens, and what depositors wrote into HELIX and SHEET records."""

from __future__ import annotations

import gzip
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from contactlm.structure import secondary
from contactlm.structure.parse import read_backbones
from contactlm.structure.secondary import (
    HELIX,
    LOOP,
    MIN_LENGTH,
    STRAND,
    Segment,
    carbonyl_oxygens,
    find_segments,
    secondary_structure,
)
from tests.structure.made import _C, _CA, _N, follow

FILES = 10  # of the real files that have HELIX and SHEET records


def ideal(length: int, phi: float = -57.8, psi: float = -47.0) -> NDArray[np.float64]:
    """Backbone of constant dihedrals; by default an alpha helix."""
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([1.458, 0.0, 0.0]), np.array([2.0, 1.42, 0.0])]
    for _ in range(length - 1):
        for (bond, angle), dihedral in ((_N, np.deg2rad(psi)), (_CA, np.pi), (_C, np.deg2rad(phi))):
            atoms.append(follow(atoms[-3], atoms[-2], atoms[-1], bond, angle, dihedral))
    return np.array(atoms).reshape(length, 3, 3)


def states_text(backbone: NDArray, sequence: str | None = None) -> str:
    states = secondary_structure(backbone, sequence or "A" * len(backbone))
    assert states.dtype == np.uint8 and states.shape == (len(backbone),)
    return "".join("-HE"[state] for state in states)


def test_an_ideal_helix_is_one_but_for_its_ends() -> None:
    assert states_text(ideal(20)) == "-" + "H" * 18 + "-"  # turns are about the residues between their ends


def test_an_extended_chain_alone_is_no_strand() -> None:
    assert states_text(ideal(20, -120, 130)) == "-" * 20


def test_the_trace_alone_tells_a_helix() -> None:
    trace = ideal(20)
    trace[:, [0, 2]] = np.nan
    assert states_text(trace) == "-" + "H" * 18 + "-"
    trace[10:12] = np.nan
    text = states_text(trace)
    assert text[10:12] == "--" and text[:10].count("H") >= 6 and text[12:].count("H") >= 4


def test_proline_gives_no_hydrogen_bond() -> None:
    assert "H" not in states_text(ideal(20), "P" * 20)


def test_a_gap_breaks_segments_whether_or_not_the_sequence_shows_it() -> None:
    helix = ideal(30)
    unresolved = helix.copy()
    unresolved[14:16] = np.nan
    assert states_text(unresolved)[14:16] == "--"
    cut = np.concatenate([helix[:12], helix[18:]])  # the residues between left no trace
    assert [segment.kind for segment in find_segments(secondary_structure(cut, "A" * 24))] == [HELIX, HELIX]
    trace = cut.copy()
    trace[:, [0, 2]] = np.nan
    assert all(s.stop <= 12 or s.start >= 12 for s in find_segments(secondary_structure(trace, "A" * 24)))


@pytest.mark.parametrize("length", range(1, 9))
def test_short_and_empty_chains_are_assigned(length: int) -> None:
    assert len(states_text(ideal(length))) == length
    assert states_text(np.full((length, 3, 3), np.nan)) == "-" * length


def test_position_and_orientation_do_not_matter() -> None:
    backbone = ideal(40, -70, -35)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    moved = backbone @ rotation.T + 3000.0
    assert states_text(backbone) == states_text(moved)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 3, 3\); expected \(5, 3, 3\)"):
        secondary_structure(ideal(4), "AAAAA")


@pytest.mark.parametrize("seed", range(20))
def test_segments_are_the_maximal_runs(seed: int) -> None:
    states = np.random.default_rng(seed).choice([LOOP, HELIX, HELIX, STRAND], 200).astype(np.uint8)
    states = np.repeat(states, np.random.default_rng(seed).integers(0, 5, 200))
    expected, start = [], 0
    for state, run in groupby(states.tolist()):
        length = len(list(run))
        if state != LOOP and length >= MIN_LENGTH[state]:
            expected.append(Segment(state, start, start + length))
        start += length
    assert find_segments(states) == expected
    assert find_segments(states[:0]) == []


class RealChain:
    """A chain of a real PDB file with what its text says, residue by residue of the resolved ones."""

    def __init__(self, sequence: str, backbone: NDArray, oxygen: NDArray, records: NDArray, counted: NDArray) -> None:
        self.sequence, self.backbone, self.oxygen = sequence, backbone, oxygen
        self.records, self.counted = records, counted
        self.states = secondary_structure(backbone, sequence)


def read_text(path: Path) -> tuple[dict[tuple[str, str], tuple[int, NDArray]], dict[str, list[tuple[int, int, int]]]]:
    """Residue number and O of every C-alpha by chain and coordinate columns; records by chain."""
    oxygens: dict[str, NDArray] = {}
    alphas: list[tuple[str, str, str]] = []
    records: dict[str, list[tuple[int, int, int]]] = {}
    for line in gzip.decompress(path.read_bytes()).decode("latin1").splitlines():
        if line.startswith("HELIX "):
            records.setdefault(line[19], []).append((HELIX, int(line[21:25]), int(line[33:37])))
        elif line.startswith("SHEET "):
            records.setdefault(line[21], []).append((STRAND, int(line[22:26]), int(line[33:37])))
        elif line.startswith("ATOM  ") and line[12:16] == " O  ":
            oxygens.setdefault(line[16:27], np.array([float(line[i : i + 8]) for i in (30, 38, 46)]))
        elif line.startswith("ATOM  ") and line[12:16] == " CA ":
            alphas.append((line[16:27], line[21], line[30:54]))
        elif line.startswith("ENDMDL"):
            break
    known = {(chain, xyz): (int(key[6:10]), oxygens[key]) for key, chain, xyz in alphas if key in oxygens}
    return known, records


@pytest.fixture(scope="module")
def real_chains(shared: Path) -> list[RealChain]:
    chains: list[RealChain] = []
    files = 0
    for path in sorted((shared / "pdb" / "train").glob("*.pdb.gz")):
        known, records = read_text(path)
        if not records or files == FILES:
            continue
        files += 1
        for chain, backbone in read_backbones(path):
            letter = chain.id.rpartition("_")[2] or " "
            oxygen, numbers = np.full((len(chain), 3), np.nan), np.full(len(chain), -(10**6))
            for i in np.flatnonzero(chain.resolved):
                if found := known.get((letter, "".join(f"{x:8.3f}" for x in chain.ca[i]))):
                    numbers[i], oxygen[i] = found
            states = np.zeros(len(chain), dtype=np.uint8)
            for kind, first, last in records.get(letter, []):
                states[(numbers >= first) & (numbers <= last)] = kind
            counted = np.isfinite(oxygen[:, 0])
            chains.append(RealChain(chain.sequence, backbone, oxygen, states, counted))
    assert files == FILES and sum(chain.counted.sum() for chain in chains) > 2000
    return chains


def agreement(chains: list[RealChain], first: list[NDArray], second: list[NDArray]) -> float:
    same = sum(int((a == b)[c.counted].sum()) for c, a, b in zip(chains, first, second, strict=True))
    return same / sum(int(c.counted.sum()) for c in chains)


@pytest.mark.slow
def test_built_oxygens_decide_as_real_ones(real_chains: list[RealChain], monkeypatch: pytest.MonkeyPatch) -> None:
    built = [chain.states for chain in real_chains]
    apart = np.concatenate([np.linalg.norm(carbonyl_oxygens(c.backbone) - c.oxygen, axis=1) for c in real_chains])
    assert np.nanmean(apart) < 0.07 and np.nanquantile(apart, 0.99) < 0.3
    real = []
    for chain in real_chains:
        monkeypatch.setattr(secondary, "carbonyl_oxygens", lambda _, oxygen=chain.oxygen: oxygen)
        real.append(secondary_structure(chain.backbone, chain.sequence))
    assert agreement(real_chains, built, real) > 0.99  # 99.6 % of the residues of 80 files


@pytest.mark.slow
def test_states_agree_with_the_records_of_the_depositors(real_chains: list[RealChain]) -> None:
    states = [chain.states for chain in real_chains]
    agreeing = agreement(real_chains, states, [chain.records for chain in real_chains])
    assert agreeing > 0.81  # 82.7 % in these files, 87.7 % in 80
    confused = [
        (a == HELIX) & (chain.records == STRAND) | (a == STRAND) & (chain.records == HELIX)
        for a, chain in zip(states, real_chains, strict=True)
    ]
    assert sum(c.sum() for c in confused) < 0.01 * sum(len(c) for c in confused)


def test_the_trace_tells_most_of_what_hydrogen_bonds_tell(real_chains: list[RealChain]) -> None:
    traces = [np.where(np.array([False, True, False])[:, None], chain.backbone, np.nan) for chain in real_chains]
    by_trace = [secondary_structure(t, chain.sequence) for t, chain in zip(traces, real_chains, strict=True)]
    assert agreement(real_chains, by_trace, [chain.states for chain in real_chains]) > 0.74  # 78.3 % in 60 files
