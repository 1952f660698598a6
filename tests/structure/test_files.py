"""File names, compression and what is no structure file at all."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from contactlm.structure import files
from contactlm.structure.parse import read_chains
from contactlm.types import StructureError
from tests.structure.made import cif, pdb_atoms, peptide

PDB = ("\n".join([*pdb_atoms(peptide("GASG")), "END", ""])).encode()
CIF = cif(peptide("GASG")).encode()


@pytest.mark.parametrize("suffix", [".pdb", ".ent", ".PDB", ".cif", ".mmcif", ".Cif"])
@pytest.mark.parametrize("gz", ["", ".gz", ".GZ"])
@pytest.mark.parametrize("stem", ["1abc", "a.b c_d", "pdb.pdb"])
def test_all_names(tmp_path, suffix, gz, stem):
    data = CIF if "cif" in suffix.lower() else PDB
    path = tmp_path / f"{stem}{suffix}{gz}"
    path.write_bytes(gzip.compress(data) if gz else data)
    (chain,) = read_chains(path)
    assert (chain.id, chain.sequence) == (f"{stem}_A", "GASG")
    assert read_chains(str(path))[0].id == chain.id


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no text")
def test_an_id_can_be_written_though_the_file_name_is_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"1\xff\xc3\xa9.pdb")
    path.write_bytes(PDB)
    (chain,) = read_chains(path)
    assert chain.id == "1\N{REPLACEMENT CHARACTER}\N{LATIN SMALL LETTER E WITH ACUTE}_A" and chain.id.encode()


@pytest.mark.parametrize("name", ["1abc", "1abc.txt", "1abc.pdb.zst", "1abc.mmtf", "1abc.gz"])
def test_other_names_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(PDB)
    with pytest.raises(StructureError, match=r"known are \.pdb \.pdb1 \.ent \.cif"):
        read_chains(tmp_path / name)


def test_compressed_in_several_members(tmp_path):
    path = tmp_path / "1abc.pdb.gz"
    path.write_bytes(gzip.compress(PDB[:700]) + gzip.compress(PDB[700:]) + b"\0" * 100)
    assert read_chains(path)[0].sequence == "GASG"


def test_many_members_take_time_by_their_number(tmp_path):
    """Each was once cut off the rest by a copy of the rest: eight times as many took 64 times as long."""
    seconds = []
    for members in (8000, 64_000):
        path = tmp_path / "1abc.pdb.gz"
        path.write_bytes(gzip.compress(PDB) + gzip.compress(b"REMARK 1\n") * members)
        start = time.process_time()
        assert read_chains(path)[0].sequence == "GASG"
        seconds.append(time.process_time() - start)
    assert seconds[1] < 20 * seconds[0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pdb.gz", PDB, "remove .gz"),
        ("a.pdb", gzip.compress(PDB, mtime=0), "add .gz"),
        ("a.pdb.gz", gzip.compress(PDB, mtime=0)[:-20], "damaged gzip data .it ends early"),
        ("a.pdb.gz", gzip.compress(PDB, mtime=0)[:-8] + b"12345678", "damaged gzip data .CRC check failed"),
        ("a.pdb.gz", gzip.compress(PDB, mtime=0) + b"garbage", "damaged gzip data"),
        ("a.pdb.gz", b"\x1f\x8b", "damaged gzip data"),
        ("a.pdb", CIF, "rename it to .cif"),
        ("a.cif", PDB, "rename it to .pdb"),
        ("a.pdb", b"", "the file is empty"),
        ("a.cif", b"", "the file is empty"),
        ("a.pdb", b"<html>404 Not found</html>", "it has no ATOM records"),
        ("a.pdb", b"\n\n  \n", "the file is empty"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StructureError, match=message) as caught:
        read_chains(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name) + ": ")


def test_missing_files_and_folders(tmp_path):
    (tmp_path / "folder.pdb").mkdir()
    for name, message in (("none.pdb", "No such file"), ("folder.pdb", "directory")):
        with pytest.raises(StructureError, match=message):
            read_chains(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pdb", "a.pdb.gz"])
def test_text_beyond_the_limit_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "MAX_BYTES", 100_000)
    for size, fits in ((100_000, True), (100_001, False)):
        data = PDB + b" " * (size - len(PDB))
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        if fits:
            assert read_chains(tmp_path / name)[0].sequence == "GASG"
        else:
            with pytest.raises(StructureError, match="more than 100,000 bytes"):
                read_chains(tmp_path / name)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """50 MB of zeros in 50 kB, against a limit of 1 MB: no more than about the limit is ever held."""
    import tracemalloc

    monkeypatch.setattr(files, "MAX_BYTES", 1_000_000)
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(b"\0" * 50_000_000) * 20)
    tracemalloc.start()
    with pytest.raises(StructureError, match="more than 1,000,000 bytes"):
        read_chains(tmp_path / "a.pdb.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000


def test_a_line_that_never_ends_is_refused(tmp_path):
    (tmp_path / "a.pdb").write_bytes(PDB + b"A" * 2_500_000)
    with pytest.raises(StructureError, match="a line of more than 1,048,576 characters"):
        read_chains(tmp_path / "a.pdb")


def models(kind: str, count: int, between: tuple[str, str] = ("MODEL     {:4d}", "ENDMDL")) -> bytes:
    """As many models of 1,250 atoms, all but the first 20 Å from it."""
    first = peptide("GASGKVLIED" * 25)
    moved = [replace(r, xyz=r.moved(20.0)) for r in first]
    if kind == "mmcif":
        text = cif(first).rstrip("#\n") + "\n"
        rows = cif(moved, model=2).rstrip("#\n") + "\n"
        rows = rows[rows.index("ATOM ") :]
        return (text + "".join(rows.replace(" 2\n", f" {i}\n") for i in range(2, count + 1))).encode()
    begin, end = between
    texts = ["\n".join(pdb_atoms(residues)) for residues in (first, moved)]
    return "".join(f"{begin.format(i + 1)}\n{texts[i > 0]}\n{end}\n" for i in range(count)).encode()


MODELS = {
    "a.pdb": ("pdb", {}),
    "a.cif": ("mmcif", {}),
    "end.pdb": ("pdb", {"between": ("REMARK {}", "END")}),  # as some programs write trajectories
}


@pytest.fixture(scope="module")
def many_models(tmp_path_factory):
    """Files of about 11 MB with 120 models, each plain and gzipped."""
    folder = tmp_path_factory.mktemp("models")
    for name, (kind, options) in MODELS.items():
        data = models(kind, 120, **options)
        assert len(data) > 10e6
        (folder / name).write_bytes(data)
        (folder / f"{name}.gz").write_bytes(gzip.compress(data, compresslevel=1))
    return folder


PEAK = """
import re, sys
from pathlib import Path
from contactlm.structure.parse import read_chains
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
read_chains(sys.argv[1])
before = peak()
(chain,) = read_chains(sys.argv[2])
sys.stdout.write(f"{len(chain)} {peak() - before} {chain.ca[0].tolist()}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", MODELS)
def test_of_many_models_one_is_held(many_models, tmp_path, name, suffix):
    """Memory beyond what one model takes, in a process of its own; reading all of it would take 50 to 95 MB."""
    one = tmp_path / name
    one.write_bytes(models(MODELS[name][0], 1))
    command = [sys.executable, "-c", PEAK, str(one), str(many_models / (name + suffix))]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    length, peak, first = answer.split(" ", 2)
    assert int(length) == 250
    assert np.allclose(json.loads(first), peptide("GA")[0].xyz["CA"])
    assert float(peak) < 20


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["a.pdb", "end.pdb"])
def test_nothing_is_read_beyond_the_first_model(many_models, monkeypatch, name, suffix):
    monkeypatch.setattr(files, "MAX_BYTES", 3_000_000)
    assert len(read_chains(many_models / (name + suffix))[0]) == 250


def test_what_follows_the_end_is_read_where_it_is_another_chain(tmp_path):
    """As where programs put files of two partners one after the other."""
    lines = [*pdb_atoms(peptide("GASG")), "END", *pdb_atoms(peptide("WKW", chain="B", origin=40.0)), "END", ""]
    (tmp_path / "a.pdb").write_text("\n".join(lines))
    assert [chain.sequence for chain in read_chains(tmp_path / "a.pdb")] == ["GASG", "WKW"]


def test_the_sequence_is_one_of_two(tmp_path):
    (tmp_path / "a.pdb").write_bytes(PDB)
    with pytest.raises(ValueError, match="'seqres' or 'observed'"):
        read_chains(tmp_path / "a.pdb", sequence="full")


def test_odd_chain_ids_are_kept(tmp_path):
    (tmp_path / "a.pdb").write_bytes(PDB.replace(b" A   ", b" /   "))
    assert read_chains(tmp_path / "a.pdb")[0].id == "a_/"


def test_reading_imports_no_torch():
    code = "import sys, contactlm.structure.parse as p; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_warnings_stay_inside(tmp_path, recwarn, capfd):
    lines = pdb_atoms(peptide("GASG"))
    lines = [line[:54] + " -0.50" if i % 2 else line[:54] for i, line in enumerate(lines)]
    (tmp_path / "a.pdb").write_text("\n".join([*lines, *lines, "NONSENSE"]))
    assert np.isfinite(read_chains(tmp_path / "a.pdb")[0].cb).all()
    assert len(recwarn) == 0
    assert capfd.readouterr() == ("", "")
