"""Contracts, each against a computation that shares no code with it: loops over the atoms that were written."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from Bio.PDB.vectors import Vector, calc_angle, calc_dihedral, rotaxis2m

from contactlm import contact_map, read_chains
from contactlm.benchmark.check import beta_carbons
from contactlm.metrics import ContactScores
from contactlm.metrics.contracts import CONTRACTS, OURS, contract_scores
from contactlm.metrics.scores import score_protein
from tests.conftest import THREE_LETTERS, random_sequence

NAMES = {"p_at_L_long": 1, "p_at_L2_long": 2, "p_at_L5_long": 5}
L = 95
GONE = {*range(40, 46), *range(L - 7, L)}  # residues without coordinates, in the middle and at the end
Atoms = dict[str, np.ndarray]


def made(seed: int) -> tuple[str, list[Atoms | None]]:
    """A compact random chain, with C-beta atoms that are not where virtual ones are."""
    rng = np.random.default_rng(seed)
    sequence, position, atoms = random_sequence(seed, L), np.zeros(3), []
    for i in range(L):
        step = rng.normal(size=3) - 0.1 * position
        position = position + 3.8 * step / np.linalg.norm(step)
        around = {"N": (-1.2, 0.7, 0.1), "CA": (0, 0, 0), "C": (1.1, 0.9, -0.3), "CB": rng.normal(size=3)}
        own = {name: np.round(position + offset, 3) for name, offset in around.items()}
        if sequence[i] == "G":
            del own["CB"]
        atoms.append(None if i in GONE else own)
    return sequence, atoms


def written(folder: Path, sequence: str, atoms: list[Atoms | None]) -> Path:
    lines = []
    for start in range(0, L, 13):
        names = " ".join(THREE_LETTERS[letter] for letter in sequence[start : start + 13])
        lines.append(f"SEQRES{start // 13 + 1:4d} A{L:5d}  {names}")
    for number, (letter, own) in enumerate(zip(sequence, atoms, strict=True), start=1):
        for atom, (x, y, z) in (own or {}).items():
            lines.append(
                f"ATOM  {len(lines):5d}  {atom:<3s} {THREE_LETTERS[letter]} A{number:4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {atom[0]}"
            )
    path = folder / "9xyz.pdb"
    path.write_text("\n".join([*lines, "TER", "END", ""]))
    return path


def turned(atoms: Atoms) -> np.ndarray:
    """The virtual C-beta by two rotations of the bond from CA to N, checked by Biopython's angles."""
    n, ca, c = (Vector(*atoms[name]) for name in ("N", "CA", "C"))
    bond = (n - ca).normalized()
    axis = (c - n) ** bond  # of the plane C, N, CA
    for angle in (1.927, -1.927):
        for dihedral in (2.143, -2.143):
            way = bond.left_multiply(rotaxis2m(angle, axis)).left_multiply(rotaxis2m(dihedral, bond))
            cb = Vector(*(ca.get_array() + 1.522 * way.get_array()))
            right_angle = math.isclose(calc_angle(n, ca, cb), 1.927, abs_tol=1e-6)
            if right_angle and math.isclose(calc_dihedral(c, n, ca, cb), -2.143, abs_tol=1e-6):
                return cb.get_array()
    raise AssertionError("no rotation has the angles of a virtual C-beta")


PLACES = {
    "ours": turned,
    "esm": turned,
    "ca8": lambda atoms: atoms["CA"],
    "cb8-full": lambda atoms: atoms.get("CB", atoms["CA"]),
}
LENGTHS = {"ours": L - len(GONE), "esm": L - 7, "ca8": L, "cb8-full": L}


def by_hand(name: str, probability: np.ndarray, atoms: list[Atoms | None]) -> dict[str, float]:
    places = [None if own is None else PLACES[name](own) for own in atoms]
    ranked = sorted(
        (-float(probability[i, j]), float(np.linalg.norm(places[i] - places[j])) < 8.0)
        for i, j in combinations(range(L), 2)
        if j - i >= 24 and places[i] is not None and places[j] is not None
    )
    taken = {score: LENGTHS[name] // k for score, k in NAMES.items()}
    return {score: sum(hit for _, hit in ranked[:count]) / count for score, count in taken.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CONTRACTS)
def test_contract_is_what_a_loop_over_the_atoms_gives(tmp_path: Path, name: str, seed: int) -> None:
    sequence, atoms = made(seed)
    path = written(tmp_path, sequence, atoms)
    [chain] = read_chains(path)
    assert chain.sequence == sequence and chain.resolved.sum() == L - len(GONE)
    upper = np.triu(np.random.default_rng(seed).permutation(L * L).reshape(L, L) / (L * L), 1).astype(np.float32)
    probability = upper + upper.T
    coordinates = {"virtual-cb": chain.cb, "ca": chain.ca, "cb": beta_carbons(path, chain)}[CONTRACTS[name].atom]
    expected = by_hand(name, upper, atoms)
    assert contract_scores(CONTRACTS[name], probability, coordinates) == pytest.approx(expected, abs=1e-12)
    lower_is_other = upper + np.random.default_rng(9).random((L, L), dtype=np.float32) * np.tri(L, k=-1)
    assert contract_scores(CONTRACTS[name], lower_is_other.astype(np.float32), coordinates) == pytest.approx(expected)


def test_contracts_differ_on_the_same_map(tmp_path: Path) -> None:
    sequence, atoms = made(0)
    path = written(tmp_path, sequence, atoms)
    upper = np.triu(np.random.default_rng(0).random((L, L), dtype=np.float32), 1)
    values = {name: tuple(by_hand(name, upper, atoms).values()) for name in CONTRACTS}
    assert len(set(values.values())) == len(CONTRACTS)
    [chain] = read_chains(path)
    assert np.isfinite(beta_carbons(path, chain)[chain.resolved]).all()


def test_evaluation_has_our_contract(tmp_path: Path) -> None:
    [chain] = read_chains(written(tmp_path, *made(1)))
    probability = np.random.default_rng(1).random((L, L), dtype=np.float32)
    labels = torch.from_numpy(contact_map(chain.cb))
    ours = contract_scores(OURS, probability, chain.cb)
    scores = ContactScores()
    scores.update(torch.from_numpy(probability), labels, "9xyz_A")
    by_class, by_function = scores.compute(), score_protein(torch.from_numpy(probability), labels)
    for name, value in ours.items():
        assert by_function[name] == pytest.approx(value, abs=1e-12)
        assert by_class[name] == pytest.approx(value, abs=1e-7)


def test_tied_pairs_count_by_expectation_and_missing_ones_as_the_contract_says() -> None:
    cb = np.zeros((30, 3))
    cb[28:] = 100.0  # of the 21 pairs at least 24 apart, those with residues 28 and 29 are no contacts
    flat = np.full((30, 30), 0.5, dtype=np.float32)
    far = [(i, j) for i, j in combinations(range(30), 2) if j - i >= 24]
    share = sum(j < 28 for _, j in far) / len(far)
    assert contract_scores(OURS, flat, cb)["p_at_L_long"] == pytest.approx(share)
    assert contract_scores(CONTRACTS["esm"], flat, cb)["p_at_L_long"] == pytest.approx(share * len(far) / 30)
    assert contract_scores(CONTRACTS["esm"], flat, cb)["p_at_L2_long"] == pytest.approx(share)


def test_beta_carbon_is_that_of_the_same_alternate_location(tmp_path: Path) -> None:
    rows = [
        ("N", " ", "ALA", 0.0, 1.0), ("CA", "A", "ALA", 1.0, 0.4), ("CA", "B", "ALA", 2.0, 0.6),
        ("C", " ", "ALA", 3.0, 1.0), ("CB", "A", "ALA", 4.0, 0.4), ("CB", "B", "ALA", 5.0, 0.6),
    ]  # fmt: skip
    lines = [
        f"ATOM  {k:5d}  {atom:<3s}{altloc}{name} A   1    {x:8.3f}{1.5:8.3f}{k % 2:8.3f}{occupancy:6.2f}  0.00"
        for k, (atom, altloc, name, x, occupancy) in enumerate(rows)
    ]
    path = tmp_path / "alt.pdb"
    path.write_text("\n".join([*lines, "END", ""]))
    [chain] = read_chains(path)
    assert chain.ca[0, 0] == 2.0 and beta_carbons(path, chain)[0, 0] == 5.0


def test_beta_carbons_of_real_files_lie_near_the_virtual_ones(shared: Path) -> None:
    for name in ("edge/1A8O.cif", "edge/1A8O.pdb", "edge/1aki.pdb"):
        for chain in read_chains(shared / "pdb" / name):
            real = beta_carbons(shared / "pdb" / name, chain)
            other = chain.resolved & np.isfinite(real[:, 0]) & (np.array(list(chain.sequence)) != "G")
            assert other.sum() > 0.8 * chain.resolved.sum()
            assert np.linalg.norm(real - chain.cb, axis=1)[other].max() < 0.5
