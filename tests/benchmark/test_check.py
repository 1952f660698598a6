"""Chains that are found, replaced or missing, and the residues that are scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contactlm import read_chains
from contactlm.benchmark.check import FOUND, MISSING, REPLACED, CheckedChain, check_chains, counts, place
from contactlm.benchmark.lists import AskedChain
from contactlm.benchmark.structures import StructureSource, entry_in, obtain_structures
from tests.conftest import random_sequence, write_pdb

WHOLE = random_sequence(1, 80)


def checked(folder: Path, asked: AskedChain) -> CheckedChain:
    source = StructureSource(folder / "cache", folder)
    [one] = check_chains([asked], obtain_structures([asked], source, folder))
    return one


def asking(sequence: str | None = WHOLE, chain: str = "A", **options) -> AskedChain:
    return AskedChain(f"9xyz_{chain}", "9xyz", chain, sequence=sequence, **options)


def test_a_domain_has_the_coordinates_of_its_residues(tmp_path: Path) -> None:
    [chain] = read_chains(write_pdb(tmp_path / "9XYZ.pdb", {"A": WHOLE}))
    found = checked(tmp_path, asking(WHOLE[10:60]))
    assert (found.state, found.identity, found.coverage) == (FOUND, 1.0, 1.0)
    np.testing.assert_array_equal(found.coordinates("ca"), chain.ca[10:60])
    np.testing.assert_array_equal(found.coordinates("virtual-cb"), chain.cb[10:60])
    two_parts = WHOLE[5:35] + WHOLE[50:78]
    found = checked(tmp_path, asking(two_parts))
    np.testing.assert_array_equal(found.coordinates("ca"), np.concatenate([chain.ca[5:35], chain.ca[50:78]]))


def test_residues_that_the_file_lacks_are_unresolved(tmp_path: Path) -> None:
    [chain] = read_chains(write_pdb(tmp_path / "9xyz.pdb", {"A": WHOLE[4:]}))
    found = checked(tmp_path, asking())
    assert found.state == FOUND and found.coverage == pytest.approx(76 / 80)
    assert np.isnan(found.coordinates("ca")[:4]).all()
    np.testing.assert_array_equal(found.coordinates("ca")[4:], chain.ca)


@pytest.mark.parametrize("seed", range(5))
def test_place_finds_mutated_and_shortened_sequences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    there = random_sequence(seed, 150)
    cut = int(rng.integers(60, 90))
    kept = [*range(20, cut), *range(cut + 12, 130)]
    letters = [there[i] for i in kept]
    letters[10] = "A" if letters[10] != "A" else "C"
    letters[40] = "X"  # not known: neither identical nor different
    positions, identity, coverage = place("".join(letters), there)
    agreeing = np.mean(positions == np.array(kept))
    assert agreeing > 0.95 and coverage == 1.0 and identity == pytest.approx(1 - 1 / (len(kept) - 1), abs=0.03)


def test_another_sequence_is_missing(tmp_path: Path) -> None:
    write_pdb(tmp_path / "9xyz.pdb", {"A": random_sequence(2, 80)})
    found = checked(tmp_path, asking())
    assert found.state == MISSING and "chain 9xyz_A has another sequence" in found.reason
    shorter = checked(write_pdb(tmp_path / "cut" / "9xyz.pdb", {"A": WHOLE[:60]}).parent, asking())
    assert shorter.state == MISSING and "75% of the list's residues, 100% of these identical" in shorter.reason
    by_length = checked(tmp_path, asking(None, length=200))
    assert by_length.state == MISSING and "has 80 residues, the list says 200" in by_length.reason
    assert checked(tmp_path, asking(None, length=82)).state == FOUND


def test_another_chain_of_that_sequence_is_named_as_a_replacement(tmp_path: Path) -> None:
    write_pdb(tmp_path / "9xyz.pdb", {"C": random_sequence(2, 70), "B": WHOLE})
    found = checked(tmp_path, asking())
    assert found.state == REPLACED and found.chain is not None and found.chain.id == "9xyz_B"
    assert "no chain A (auth id), but 'C', 'B'; chain B has its sequence" in found.reason
    unknown = checked(tmp_path, asking(None))
    assert unknown.state == MISSING and "no chain A" in unknown.reason
    assert counts([found, unknown]) == {"asked": 2, "found": 1, "replaced": 1, "missing": 1}


def test_the_file_of_another_entry_is_named_as_a_replacement(tmp_path: Path) -> None:
    path = write_pdb(tmp_path / "9xyz.pdb", {"A": WHOLE})
    header = f"HEADER    {'PROTEIN':<40}{'01-JAN-24':<12}8ABC\n"
    path.write_text(header + path.read_text())
    assert entry_in(path) == "8abc"
    found = checked(tmp_path, asking())
    assert found.state == REPLACED and "the file of 9xyz says that it is entry 8abc" in found.reason
    path.write_text(header.replace("8ABC", "9XYZ") + path.read_text())
    assert checked(tmp_path, asking()).state == FOUND


def test_too_few_residues(tmp_path: Path) -> None:
    path = write_pdb(tmp_path / "9xyz.pdb", {"A": WHOLE})
    lines = path.read_text().splitlines()
    seqres = [
        f"SEQRES{k // 13 + 1:4d} A{len(WHOLE):5d}  " + " ".join(_three(letter) for letter in WHOLE[k : k + 13])
        for k in range(0, len(WHOLE), 13)
    ]
    path.write_text("\n".join([*seqres, *(line for line in lines if line[22:26].strip() in map(str, range(1, 31)))]))
    found = checked(tmp_path, asking())
    assert found.state == MISSING and found.reason == "too few residues: 30 of 80 have coordinates"


def _three(letter: str) -> str:
    from tests.conftest import THREE_LETTERS

    return THREE_LETTERS[letter]


def test_unreadable_absent_and_unscorable_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "9xyz.pdb").write_text("<html>not found</html>\n")
    assert "it has no ATOM records" in checked(tmp_path, asking()).reason
    assert checked(tmp_path, AskedChain("8xyz_A", "8xyz", "A")).reason == "no file of that entry is there"
    assert "cannot be scored" in checked(tmp_path, asking(facts={"scorable": "0"})).reason
    assert (
        "label id, which only mmCIF files have"
        in checked(write_pdb(tmp_path / "pdb" / "9xyz.pdb", {"A": WHOLE}).parent, asking(naming="label")).reason
    )


def test_label_ids_of_a_real_file(shared: Path, tmp_path: Path) -> None:
    file = shared / "pdb" / "edge" / "1igy.cif"
    (tmp_path / "1igy.cif").symlink_to(file)
    chains = {chain.id: chain for chain in read_chains(file)}
    from Bio.PDB.MMCIF2Dict import MMCIF2Dict

    table = MMCIF2Dict(file)
    pairs = dict(zip(table["_atom_site.label_asym_id"], table["_atom_site.auth_asym_id"], strict=True))
    label, author = next((label, author) for label, author in pairs.items() if f"1igy_{author}" in chains)
    found = checked(tmp_path, AskedChain("1igy_x", "1igy", label, "label", chains[f"1igy_{author}"].sequence))
    assert found.state == FOUND and found.chain is not None and found.chain.id == f"1igy_{author}"
    assert entry_in(file) == "1igy"
