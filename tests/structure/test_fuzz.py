"""Damaged files give chains or a StructureError that names the file: never another exception, nor a hang."""

from __future__ import annotations

import time

import pytest

from contactlm.structure.files import is_structure_name
from contactlm.structure.parse import read_chains
from contactlm.types import StructureError
from tests import fuzz as fuzzing
from tests.structure.made import pdb_atoms, peptide, seqres


def fuzz(count: int, first_seed: int, sources: dict[str, bytes]) -> int:
    """Read files of some seeds; how many gave chains."""
    found = fuzzing.fuzz(
        fuzzing.Target(1.0, sources, fuzzing.read_structure, zipped=True), range(first_seed, first_seed + count)
    )
    assert found.unexpected == {}
    return found.taken


def test_damaged_files(recwarn, capfd):
    read = fuzz(300, 0, fuzzing.structures())
    assert 50 < read < 250  # neither all refused nor all accepted
    assert len(recwarn) == 0
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_many_damaged_files():
    assert 300 < fuzz(2000, 1000, fuzzing.structures()) < 1700


@pytest.mark.slow
def test_damaged_real_files(shared):
    paths = [*sorted((shared / "pdb" / "edge").glob("*.pdb")), *sorted((shared / "pdb" / "edge").glob("*.cif"))]
    sources = {path.name: path.read_bytes() for path in paths if path.stat().st_size < 130_000}
    assert len(sources) > 40
    assert fuzz(500, 5000, sources) > 50


@pytest.mark.slow
def test_damaged_files_of_reported_kinds(shared):
    paths = [*(shared / "pdb" / "reports").iterdir(), shared / "pdb" / "edge" / "1gbt.bcif.gz"]
    sources = {path.name: path.read_bytes() for path in paths if is_structure_name(path)}
    assert len(sources) > 20
    assert fuzz(500, 20_000, sources) > 50


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
        assert time.process_time() - start < fuzzing.MAX_SECONDS
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
