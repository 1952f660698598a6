"""Chains that break without a full sequence: unknown residues stand where the numbers leave some out."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from contactlm.structure.parse import MAX_JUMP, read_chains
from contactlm.types import Chain
from tests.structure.made import Res, cif, pdb_atoms, peptide, seqres, three

LETTERS = "MKTAYIAKQRQISFVKSHFSLGWDEN"


@pytest.fixture
def read(tmp_path: Path):
    def read_lines(lines: list[str], sequence: str = "seqres") -> Chain:
        (tmp_path / "1abc.pdb").write_text("\n".join([*lines, ""]))
        (chain,) = read_chains(tmp_path / "1abc.pdb", sequence)
        return chain

    return read_lines


@pytest.fixture
def read_cif(tmp_path: Path):
    def read_text(text: str, sequence: str = "seqres") -> Chain:
        (tmp_path / "1abc.cif").write_text(text)
        (chain,) = read_chains(tmp_path / "1abc.cif", sequence)
        return chain

    return read_text


def numbered(residues: list[Res], numbers: list[int]) -> list[Res]:
    for r, number in zip(residues, numbers, strict=True):
        r.number = number
    return residues


def pieces(*lengths: int) -> list[Res]:
    """Pieces of a chain, each far from the one before, numbered through."""
    residues: list[Res] = []
    for i, length in enumerate(lengths):
        residues += peptide("A" * length, start=len(residues) + 1, seed=i, origin=60.0 * i)
    for i, r in enumerate(residues):
        r.label = i + 1
    return residues


def test_the_residues_missing_at_a_break_are_unknown_ones(read):
    residues = peptide(LETTERS)
    kept = residues[:7] + residues[10:]
    chain = read(pdb_atoms(kept))
    assert chain.sequence == LETTERS[:7] + "XXX" + LETTERS[10:]
    assert np.flatnonzero(~chain.resolved).tolist() == [7, 8, 9]
    assert np.isnan(chain.cb[7:10]).all() and np.isnan(chain.ca[7:10]).all()
    assert np.array_equal(chain.ca[chain.resolved], np.array([r.xyz["CA"] for r in kept], dtype=np.float32))


def test_observed_residues_are_neighbours_as_before(read):
    residues = peptide(LETTERS)
    chain = read(pdb_atoms(residues[:7] + residues[10:]), "observed")
    assert chain.sequence == LETTERS[:7] + LETTERS[10:]
    assert chain.resolved.all()


@pytest.mark.parametrize("sequence", ["seqres", "observed"])
@pytest.mark.parametrize("seed", range(12))
def test_several_breaks_stand_where_the_full_sequence_puts_them(read, read_cif, seed, sequence):
    """With and without SEQRES, and in mmCIF without an entity table, the same residues at the same distances."""
    rng = np.random.default_rng(seed)
    residues = peptide(LETTERS, start=int(rng.integers(-5, 900)), seed=seed)
    missing = {int(i) for start in rng.integers(1, 22, 3) for i in range(start, start + int(rng.integers(1, 4)))}
    kept = [r for i, r in enumerate(residues) if i not in missing]
    whole = read([*seqres(three(LETTERS)), *pdb_atoms(kept)], sequence)
    for chain in (read(pdb_atoms(kept), sequence), read_cif(cif(kept), sequence)):
        assert np.array_equal(chain.resolved, whole.resolved)
        assert np.allclose(chain.cb, whole.cb, atol=5e-5, equal_nan=True)
        known = "".join(a if there else "X" for a, there in zip(whole.sequence, whole.resolved, strict=True))
        assert chain.sequence == known
        assert (len(chain) == len(LETTERS)) == (sequence == "seqres")


def test_numbers_that_jump_where_the_chain_is_bonded_leave_nothing_out(read, read_cif):
    """As where residues are numbered after a longer relative."""
    numbers = [*range(16, 30), *range(34, 40), *range(140, 146)]
    for residues in (peptide(LETTERS), [r.without("N", "C", "O", "CB") for r in peptide(LETTERS)]):
        assert read(pdb_atoms(numbered(residues, numbers))).sequence == LETTERS
        for r in residues:
            r.label = None
        assert read_cif(cif(residues)).sequence == LETTERS


@pytest.mark.parametrize(("jump", "unknown"), [(1, 0), (2, 1), (99, 98), (100, 99), (101, 99), (5000, 99)])
def test_what_is_put_in_is_limited(read, jump, unknown):
    residues = numbered(pieces(5, 4), [*range(1, 6), *range(5 + jump, 9 + jump)])
    chain = read(pdb_atoms(residues))
    assert chain.sequence == "A" * 5 + "X" * unknown + "A" * 4
    assert unknown < MAX_JUMP


@pytest.mark.parametrize("numbers", [[8, 9, 10, 3, 4, 5], [8, 9, 10, 10, 11, 12], [8, 9, 10, -7, -6, -5]])
def test_numbers_that_jump_backwards_or_stay_tell_nothing(read, numbers):
    residues = numbered(pieces(3, 3), numbers)
    for r in residues[3:]:
        r.icode = "A"
    assert read(pdb_atoms(residues)).sequence == "A" * 6


def test_backwards_and_then_on(read):
    """A second domain put into the middle, numbered from 1002 on: only what is numbered on after it breaks again."""
    residues = numbered(pieces(3, 3, 3), [5, 6, 7, 1002, 1003, 1004, 12, 13, 15])
    assert read(pdb_atoms(residues)).sequence == "AAA" + "X" * 99 + "AAAAAA"


def test_insertion_codes_do_not_count(read):
    residues = numbered(pieces(3, 3), [50, 51, 52, 52, 55, 56])
    residues[3].icode = "C"
    residues[3].xyz = residues[3].moved(200.0)  # a residue by itself: 52 -> 52C -> 55
    assert read(pdb_atoms(residues)).sequence == "AAAAXXAA"


def test_two_copies_interleaved_by_insertion_codes_stay_without_unknown_residues(read):
    one, two = peptide("GASGKV"), peptide("GASGKV", origin=60.0)
    for r in two:
        r.icode = "A"
    residues = [r for pair in zip(two, one, strict=True) for r in pair]
    assert read(pdb_atoms(residues)).sequence == "GGAASSGGKKVV"


def test_numbers_beyond_9999_count_on(read):
    residues = numbered(pieces(3, 3), ["9996", "9997", "9998", "A002", "A003", "A004"])  # type: ignore[list-item]
    assert read(pdb_atoms(residues)).sequence == "AAAXXXAAA"


def test_a_trace_breaks_where_its_residues_are_far_apart(read):
    residues = [r.without("N", "C", "O", "CB") for r in peptide(LETTERS)]
    assert read(pdb_atoms(residues[:7] + residues[10:])).sequence == LETTERS[:7] + "XXX" + LETTERS[10:]


def test_residues_without_coordinates_count_as_there(read):
    residues = peptide(LETTERS)
    residues[8] = residues[8].without("N", "CA", "C", "O")
    chain = read(pdb_atoms(residues[:7] + residues[8:]))
    assert chain.sequence == LETTERS[:7] + "X" + LETTERS[8:]
    assert np.flatnonzero(~chain.resolved).tolist() == [7, 8]


def test_breaks_are_filled_where_the_full_sequence_is_of_another_protein(read):
    residues = peptide(LETTERS)
    chain = read([*seqres(["TRP"] * 60), *pdb_atoms(residues[:7] + residues[10:])])
    assert chain.sequence == LETTERS[:7] + "XXX" + LETTERS[10:]


def test_numbers_in_the_polymer_come_before_those_of_the_author(read_cif):
    residues = numbered(pieces(5, 4), [*range(1, 6), *range(205, 209)])
    for r in residues[5:]:
        r.label = int(r.label or 0) + 7
    assert read_cif(cif(residues)).sequence == "A" * 5 + "X" * 7 + "A" * 4


def test_from_polymer_to_polymer_the_numbers_of_the_author_count(read_cif):
    first, second = peptide("GASG", chain="A"), peptide("WKW", chain="B", start=8, origin=50.0)
    text = cif([*first, *second]).replace(" B 1\n", " A 1\n")  # both of author chain A; label numbers begin anew
    assert read_cif(text).sequence == "GASGXXXWKW"


@pytest.mark.slow
def test_chains_of_real_files_keep_their_distances_without_full_sequences(shared, tmp_path):
    """Truth are the files' own SEQRES records, taken away."""
    breaks = right = 0
    for path in sorted((shared / "pdb").glob("t*/*.pdb.gz")):
        text = gzip.decompress(path.read_bytes()).decode("latin-1")
        if "\nSEQRES" not in text:
            continue
        (tmp_path / path.stem).write_text(re.sub("(?m)^SEQRES.*\n", "", text), encoding="latin-1")
        for whole, bare in zip(read_chains(path), read_chains(tmp_path / path.stem), strict=True):
            true, found = np.flatnonzero(whole.resolved), np.flatnonzero(bare.resolved)
            if len(true) != len(found):  # residues that SEQRES alone makes a part of the chain
                continue
            at_breaks = np.diff(true) > 1
            breaks += int(at_breaks.sum())
            right += int((np.diff(true) == np.diff(found))[at_breaks].sum())
    assert breaks > 20
    assert right >= breaks - 1  # one loop is cut out and its ends are linked
