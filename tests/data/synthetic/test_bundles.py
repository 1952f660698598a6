"""Long synthetic proteins: closed loops, no overlaps, and contacts at every range that the sequence foretells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from Bio.PDB import PDBParser
from Bio.SeqUtils import seq1

from contactlm.data.synthetic.fold import SyntheticProtein, backbone, c_beta, end_frame
from contactlm.structure.contacts import contact_map
from tests.benchmarks.bundles import (
    BUNDLE,
    LOOSE_BUNDLE,
    STRAND,
    _loop_library,
    bundle_protein,
    close_loops,
    nth_bundle,
    write_bundles,
)

pytestmark = pytest.mark.slow  # a protein takes seconds to make


@pytest.fixture(scope="module")
def bundles() -> list[SyntheticProtein]:
    return [bundle_protein(np.random.default_rng(seed), length) for seed, length in enumerate((150, 300, 450))]


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one - other, axis=-1)


@pytest.mark.parametrize("n", [6, 9, 14])
def test_closed_loops_meet_the_residue_they_were_sent_to(n: int) -> None:
    rng = np.random.default_rng(n)
    angles = rng.uniform(-150, -60, (2, n + 6))
    chain = backbone(angles[0], -angles[1])  # a loop to that place exists: this one
    head, anchor = chain[:2], chain[n + 2, :3]
    loops = close_loops(rng, end_frame(head), float(-angles[1, 1]), anchor, n, tries=60)
    assert len(loops) >= 3
    for loop in loops:
        assert loop.coords.shape == (n, 4, 3)
        n_atoms = np.concatenate([loop.coords[:, 0], anchor[None, 0]])
        c_atoms = np.concatenate([head[-1:, 2], loop.coords[:, 2]])
        np.testing.assert_allclose(_distance(c_atoms, n_atoms), 1.329, atol=3e-3)
        ca = np.concatenate([head[-1:, 1], loop.coords[:, 1], anchor[None, 1]])
        np.testing.assert_allclose(_distance(ca[:-1], ca[1:]), 3.81, atol=0.01)
        assert ((loop.phi < -170) | (loop.phi > -40)).sum() <= 2
    closest = min(_distance(a.coords, b.coords).max() for k, a in enumerate(loops) for b in loops[:k])
    assert closest > 0.1  # they are different loops


def test_a_place_out_of_reach_gives_no_loop() -> None:
    head = backbone(np.full(2, -120.0), np.full(2, 130.0))
    assert close_loops(np.random.default_rng(0), end_frame(head), 130.0, head[0, :3] + 60.0, 8, tries=20) == []


def test_bonds_angles_and_peptides_hold_across_strands_and_loops(bundles: list[SyntheticProtein]) -> None:
    for protein in bundles:
        n, ca, c, o = (protein.coords[:, atom] for atom in range(4))
        for bond, ideal in ((_distance(n, ca), 1.458), (_distance(ca, c), 1.525), (_distance(c, o), 1.231)):
            np.testing.assert_allclose(bond, ideal, atol=1e-6)
        np.testing.assert_allclose(_distance(c[:-1], n[1:]), 1.329, atol=3e-3)
        np.testing.assert_allclose(_distance(ca[:-1], ca[1:]), 3.81, atol=0.01)
        np.testing.assert_allclose(_distance(ca[:-1], n[1:]), 2.44, atol=0.02)  # angle CA-C-N
        np.testing.assert_allclose(_distance(o[:-1], n[1:]), 2.25, atol=0.03)  # the plane of the peptide


def test_nothing_runs_into_anything(bundles: list[SyntheticProtein]) -> None:
    for protein in bundles:
        L = len(protein.sequence)
        i, j = np.triu_indices(L, 2)
        assert _distance(protein.coords[i, 1], protein.coords[j, 1]).min() > 3.79
        atoms = _distance(protein.coords[i][:, :, None], protein.coords[j][:, None])
        assert atoms.min() > 2.49


def test_contacts_come_at_every_range_and_are_those_of_facing_strands(bundles: list[SyntheticProtein]) -> None:
    separations, foretold = [], []
    for protein in bundles:
        L = len(protein.sequence)
        i, j = np.nonzero(np.triu(contact_map(c_beta(protein.coords).astype(np.float32)) == 1, 6))
        separations += (j - i).tolist()
        ladder = np.zeros((L, L), dtype=bool)
        for a, b in protein.facing:
            ladder[max(a - 3, 0) : a + 4, max(b - 3, 0) : b + 4] = True
        foretold += ladder[i, j].tolist()
    assert np.mean(foretold) > 0.7
    counts, _ = np.histogram(separations, bins=[6, 12, 24, 100, 300, 700])
    assert counts.min() >= 100


def test_facing_residues_are_close_and_complementary(bundles: list[SyntheticProtein]) -> None:
    for protein in bundles:
        i, j = protein.facing.T
        ca = protein.coords[:, 1]
        assert _distance(ca[i], ca[j]).min() > 4.0 and _distance(ca[i], ca[j]).max() < 6.0
        letters = [(protein.sequence[a], protein.sequence[b]) for a, b in protein.facing]
        assert np.mean([BUNDLE.pairs[a] == b for a, b in letters]) > 0.8
        strands = [(first, stop) for kind, first, stop in protein.segments if kind == "strand"]
        assert all(stop - first == STRAND for first, stop in strands)
        assert len(protein.facing) == STRAND * len(strands) / 2
        assert sorted(np.concatenate([i, j])) == [r for first, stop in strands for r in range(first, stop)]


def test_strands_that_pair_can_be_told_from_those_that_do_not(bundles: list[SyntheticProtein]) -> None:
    right = []
    for protein in bundles:
        strands = [protein.sequence[first:stop] for kind, first, stop in protein.segments if kind == "strand"]
        start = {first: k for k, (_, first, _) in enumerate(s for s in protein.segments if s[0] == "strand")}
        partner = {start[i]: start[j - STRAND + 1] for i, j in protein.facing if i in start and j - STRAND + 1 in start}
        assert len(partner) == len(strands) / 2
        for one, other in partner.items():
            wanted = "".join(BUNDLE.pairs[letter] for letter in reversed(strands[one]))
            agree = [sum(a == b for a, b in zip(wanted, strand, strict=True)) for strand in strands]
            right.append(int(np.argmax(agree)) == other)
    assert np.mean(right) > 0.95  # a few addresses lose letters that matter


def test_a_bundle_is_a_pure_function_of_its_options(bundles: list[SyntheticProtein]) -> None:
    assert bundle_protein(np.random.default_rng(1), 300).sequence == bundles[1].sequence
    np.testing.assert_array_equal(bundle_protein(np.random.default_rng(1), 300).coords, bundles[1].coords)


@pytest.mark.slow
def test_another_style_shares_no_pair_of_letters_and_has_longer_loops() -> None:
    assert not set(BUNDLE.pairs.items()) & set(LOOSE_BUNDLE.pairs.items())
    loose = bundle_protein(np.random.default_rng(1), 300, LOOSE_BUNDLE)
    one_site_on = [{len(loop.phi) for loop in _loop_library(0, 1, 0, style.slack)} for style in (BUNDLE, LOOSE_BUNDLE)]
    assert max(one_site_on[0]) < min(one_site_on[1])
    letters = [(loose.sequence[a], loose.sequence[b]) for a, b in loose.facing]
    assert np.mean([LOOSE_BUNDLE.pairs[a] == b for a, b in letters]) > 0.8
    assert np.mean([BUNDLE.pairs.get(a) == b for a, b in letters]) < 0.1
    i, j = np.triu_indices(len(loose.sequence), 2)
    assert _distance(loose.coords[i][:, :, None], loose.coords[j][:, None]).min() > 2.49
    ca = loose.coords[:, 1]
    np.testing.assert_allclose(_distance(ca[:-1], ca[1:]), 3.81, atol=0.01)
    assert abs(len(loose.sequence) / 300 - 1) < 0.2


def test_bundles_are_written_and_read_back(tmp_path: Path) -> None:
    train, _ = write_bundles(tmp_path, n_train=1, n_test=1, min_length=300, max_length=400)
    expected = nth_bundle("bundle", "train", 0, 300, 400)
    residues = list(PDBParser(PERMISSIVE=False).get_structure("s", train / "train00000.pdb").get_residues())
    assert "".join(seq1(residue.resname) for residue in residues) == expected.sequence
    ca = np.array([residue["CA"].coord for residue in residues])
    np.testing.assert_allclose(
        _distance(ca[:, None], ca), _distance(expected.coords[:, None, 1], expected.coords[:, 1]), atol=5e-3
    )
