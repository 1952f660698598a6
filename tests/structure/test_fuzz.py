"""Damaged files give chains or a StructureError that names the file: never another exception, nor a hang."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from contactlm.alphabet import encode
from contactlm.structure.parse import read_chains
from contactlm.types import StructureError
from tests.structure.made import cif, modres, pdb_atoms, peptide, seqres, three

LETTERS = "MKTAYIAKQRQISFVKSHFS"
MAX_SECONDS = 5.0  # for one file; ordinary ones take milliseconds


def bases() -> dict[str, bytes]:
    """One file of each format with a bit of everything, larger than one chain so that splices mix things up."""
    residues = peptide(LETTERS, start=-3) + peptide("GASGWU", chain="B", origin=60.0)
    residues[4].number, residues[4].icode = 0, "A"
    residues[6].name, residues[6].hetero = "MSE", True
    residues[8].altloc, residues[8].occupancy = "A", 0.4
    full = {"A": ["ACE", *three(LETTERS), "GLY"], "B": three("GASGWUKK")}
    header = [modres("MSE", "A", 3, " ", "MET"), *seqres(full["A"], "A"), *seqres(full["B"], "B")]
    kept = residues[:10] + residues[13:]
    pdb = ["HEADER    TEST", *header, "MODEL        1", *pdb_atoms(kept), "TER", "ENDMDL", "END", ""]
    more = ["_struct.title 'a title'", "_struct.text", ";text", ";"]
    return {"a.pdb": "\n".join(pdb).encode(), "a.cif": cif(kept, full, more).encode()}


NASTY = [
    *(b"nan", b"inf", b"-inf", b"1e308", b"9999999.999", b"********", b"-", b"0x10", b"1_0", b"\xb2", b"\xd9\xa1"),
    *(b"\0", b"\n", b"\r", b"\r\n", b"\x85", b"\x0c", b"\t", b"'", b'"', b"#", b";", b"\n;", b"_", b"?", b"."),
    *(b"loop_", b"\nloop_\n", b"data_", b"\ndata_x\n", b"\n_atom_site.id\n", b"_entity_poly_seq.num", b"save_"),
    *(b"ATOM  ", b"\nHETATM", b"\nTER\n", b"\nMODEL 2\n", b"\nENDMDL\n", b"\nSEQRES", b"\nMODRES", b"ACE", b"A000"),
    *(b" " * 5000, b"A" * 100_000, b"9" * 5000, b"\n" * 5000, b"'" * 999),
]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one to five ways."""
    for _ in range(int(rng.integers(1, 6))):
        size = max(len(data), 1)
        at, other = (int(i) for i in rng.integers(0, size, 2))
        length = int(rng.integers(1, 400))
        way = int(rng.integers(0, 10))
        if way == 0:  # cut
            data = data[:at]
        elif way == 1:  # lose a piece
            data = data[:at] + data[at + length :]
        elif way == 2:  # copy a piece elsewhere
            data = data[:at] + data[other : other + length] + data[at:]
        elif way == 3:  # overwrite with random bytes
            data = data[:at] + rng.bytes(length % 30) + data[at + length % 30 :]
        elif way in (4, 5):  # insert, or overwrite by, something nasty
            piece = NASTY[int(rng.integers(len(NASTY)))]
            data = data[:at] + piece + data[at + (len(piece) if way == 5 else 0) :]
        elif way == 6:  # put one number everywhere
            digit, by = (str(int(i)).encode() for i in rng.integers(0, 10, 2))
            data = data.replace(digit, by)
        elif way == 7:  # shuffle lines
            lines = data.split(b"\n")
            data = b"\n".join(lines[int(i)] for i in rng.permutation(len(lines)))
        elif way == 8:  # repeat lines
            lines = data.split(b"\n")
            data = b"\n".join(lines[: len(lines) // 2] * int(rng.integers(2, 6)) + lines[len(lines) // 2 :])
        else:  # change the case, or shift a line
            data = data[:at] + (data[at : at + length].swapcase() if length % 2 else b" ") + data[at:]
    return data


def attempt(path: Path) -> bool:
    """Read one file; whether it gave chains, all of them sound."""
    start = time.process_time()
    try:
        chains = read_chains(path, "seqres")
    except StructureError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error)) < 1000
        return False
    finally:
        assert time.process_time() - start < MAX_SECONDS
    for chain in chains:
        assert len(encode(chain.sequence)) == len(chain) > 0
        assert chain.resolved.any()
        assert np.array_equal(chain.resolved, np.isfinite(chain.cb).all(axis=1))
        assert (np.abs(chain.cb[chain.resolved]) < 2e5).all()
    return True


def fuzz(folder: Path, count: int, first_seed: int, sources: dict[str, bytes]) -> int:
    read = 0
    for seed in range(first_seed, first_seed + count):
        rng = np.random.default_rng(seed)
        name = list(sources)[seed % len(sources)]
        data = mutated(sources[name], rng)
        if rng.random() < 0.2:
            name += ".gz"
            data = gzip.compress(data, mtime=0)
            if rng.random() < 0.7:
                data = mutated(data, rng)
        path = folder / name
        path.write_bytes(data)
        read += attempt(path)
    return read


def test_damaged_files(tmp_path, recwarn, capfd):
    read = fuzz(tmp_path, 300, 0, bases())
    assert 50 < read < 250  # neither all refused nor all accepted
    assert len(recwarn) == 0
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    assert 300 < fuzz(tmp_path, 2000, 1000, bases()) < 1700


@pytest.mark.slow
def test_damaged_real_files(tmp_path, shared):
    paths = [*sorted((shared / "pdb" / "edge").glob("*.pdb")), *sorted((shared / "pdb" / "edge").glob("*.cif"))]
    sources = {path.name: path.read_bytes() for path in paths if path.stat().st_size < 130_000}
    assert len(sources) > 40
    assert fuzz(tmp_path, 500, 5000, sources) > 50


def test_many_hetero_residues_linked_in_a_row(tmp_path):
    """Every residue but the first is a hetero group that only its bond to the next ties to the chain."""
    residues = peptide("A" * 3000)
    for r in residues[1:]:
        r.hetero = True
    for i, r in enumerate(residues):
        r.xyz = {atom: at - residues[0].xyz["CA"] for atom, at in r.xyz.items()}
        r.number = i % 10000
    lines = pdb_atoms([r.without("O", "CB") for r in residues])
    for text in ([*lines[:3], "TER", *lines[3:]], [*lines[:3], "TER", *reversed(lines[3:])]):
        (tmp_path / "a.pdb").write_text("\n".join(text))
        start = time.process_time()
        (chain,) = read_chains(tmp_path / "a.pdb")
        assert time.process_time() - start < MAX_SECONDS
        assert chain.resolved.sum() == 3000


def test_full_sequences_that_have_nothing_to_do_with_the_chain(tmp_path, caplog):
    lines = [*seqres(["TRP"] * 60), *pdb_atoms(peptide("GASG" * 8))]
    (tmp_path / "a.pdb").write_text("\n".join(lines))
    (chain,) = read_chains(tmp_path / "a.pdb")
    assert chain.sequence == "GASG" * 8
    assert "a_A: the full sequence in the file agrees in 0 %" in caplog.text


def test_full_sequences_too_long_to_align_are_refused(tmp_path):
    lines = [*seqres(["TRP"] * 9999), *pdb_atoms(peptide("GASG" * 600))]
    (tmp_path / "a.pdb").write_text("\n".join(lines))
    with pytest.raises(StructureError, match=r"chain 'A': 2400 observed residues disagree"):
        read_chains(tmp_path / "a.pdb")
