"""Residues as their structure file numbers them, beside Biopython's own reading of the file."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBParser import PDBParser

from contactlm import read_chains
from contactlm.structure.numbered import FileResidues, find_residues
from contactlm.structure.parse import read_numbered
from contactlm.types import StructureError
from tests.conftest import THREE_LETTERS, random_sequence, write_pdb

FILES = ("test/1AM7.pdb.gz", "test/1BOY.pdb.gz", "test/1CGI_l_u.pdb.gz", "train/*.cif.gz")


def with_insertions(path: Path, sequence: str) -> Path:
    """A chain numbered -2, -1, 0, 1, 1A, 1B, 2, 3 …."""
    write_pdb(path, {"A": sequence})
    numbers = ["  -2 ", "  -1 ", "   0 ", "   1 ", "   1A", "   1B", *(f"{k:4d} " for k in range(2, len(sequence)))]
    lines = path.read_text().splitlines()
    renamed = lambda line: line[:22] + numbers[int(line[22:26]) - 1] + line[27:]  # noqa: E731
    changed = [renamed(line) if line.startswith("ATOM") else line for line in lines]
    path.write_text("\n".join(changed) + "\n")
    return path


def test_insertion_codes_and_negative_numbers_are_kept(tmp_path: Path) -> None:
    sequence = random_sequence(0, 30)
    residues = find_residues(with_insertions(tmp_path / "x.pdb", sequence), sequence)
    assert residues.numbers[:8] == ["-2", "-1", "0", "1", "1A", "1B", "2", "3"]
    assert set(residues.chains) == {"A"} and residues.is_own
    assert residues.file == str((tmp_path / "x.pdb").absolute())


@pytest.mark.parametrize("pattern", FILES)
def test_every_number_is_that_of_a_residue_with_this_letter(shared: Path, pattern: str) -> None:
    path = min((shared / "pdb").glob(pattern))
    text = io.StringIO(gzip.decompress(path.read_bytes()).decode("latin-1"))
    parser = MMCIFParser(QUIET=True) if ".cif" in path.name else PDBParser(QUIET=True)
    model = parser.get_structure("", text)[0]
    known = {
        (chain.id.strip(), f"{residue.id[1]}{residue.id[2].strip()}"): residue for chain in model for residue in chain
    }
    for numbered in read_numbered(path):
        there = [number != "" for number in numbered.numbers]
        assert sum(there) >= numbered.chain.resolved.sum() > 10
        for at, number in enumerate(numbered.numbers):
            if numbered.chain.resolved[at]:
                residue = known[numbered.name, number]
                np.testing.assert_allclose(residue["CA"].coord, numbered.chain.ca[at], atol=2e-3)
                letter = numbered.chain.sequence[at]
                assert residue.resname == THREE_LETTERS.get(letter) or residue.id[0] != " " or letter == "X"


def test_a_named_copy_of_a_chain_is_taken_and_each_once(tmp_path: Path) -> None:
    one, other = random_sequence(0, 40), random_sequence(1, 50)
    path = write_pdb(tmp_path / "x.pdb", {"A": one, "B": one, "C": other})
    assert set(find_residues(path, one, name="x_B").chains) == {"B"}
    assert set(find_residues(path, one, name="x_B_2").chains) == {"B"}  # the second protein of that name
    assert set(find_residues(path, one, name="elsewhere").chains) == {"A"}
    joined = find_residues(path, one + one + other, [40, 40, 50])
    assert joined.chains == ["A"] * 40 + ["B"] * 40 + ["C"] * 50
    np.testing.assert_array_equal(joined.cb, np.concatenate([chain.cb for chain in read_chains(path)]))
    with pytest.raises(StructureError, match=r"no chain is related|it has 3 protein chains"):
        find_residues(path, one * 3 + other, [40, 40, 40, 50])


def test_a_relative_is_aligned_and_its_gaps_stay_empty(tmp_path: Path) -> None:
    known = random_sequence(0, 80)
    path = write_pdb(tmp_path / "x.pdb", {"A": known})
    asked = known[5:30] + "WW" + known[30:60]  # starts later, has an insertion, ends earlier
    residues = find_residues(path, asked)
    expected = [*map(str, range(6, 31)), "", "", *map(str, range(31, 61))]
    assert residues.numbers == expected and residues.identity == 1.0
    assert np.isnan(residues.cb[25:27]).all() and np.isfinite(residues.cb[:25]).all()
    assert residues.chains[25] == "" and residues.states[25] == "-"
    changed = "".join("A" if k % 2 and letter != "A" else letter for k, letter in enumerate(known))
    assert 0.4 < find_residues(path, changed).identity < 0.7 and not find_residues(path, changed).is_own
    with pytest.raises(StructureError, match="no chain is related to the sequence"):
        find_residues(path, "W" * 60)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"x\.pdb: 2 numbers, but chains, states and cb"):
        FileResidues("x.pdb", ["A", "A"], ["1", "2"], np.zeros((3, 3), np.float32), "--")
