"""FASTA files: against Biopython on good ones, and what is said about the others."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser

from contactlm.alphabet import LETTERS, decode, encode
from contactlm.data.fasta import FastaProblem, FastaRecord, iter_fasta
from contactlm.types import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_fasta(path: Path, max_residues: int = 100_000) -> list[FastaRecord | FastaProblem]:
    return list(iter_fasta(path, max_residues))


def one(path: Path, content: str | bytes) -> FastaRecord | FastaProblem:
    (record,) = read_fasta(write(path / "one.fasta", content))
    return record


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_good_files_are_read_as_biopython_reads_them(tmp_path: Path, seed: int, zipped: bool, newline: str) -> None:
    rng = np.random.default_rng(seed)
    text = ""
    for n in range(20):
        sequence = "".join(rng.choice(list(LETTERS), rng.integers(1, 400)))
        width = int(rng.integers(1, 100))
        text += f">protein_{n} of seed {seed}\n"
        text += "".join(sequence[i : i + width] + "\n" for i in range(0, len(sequence), width))
        text += "\n" * int(rng.integers(0, 3))
    plain = write(tmp_path / "plain.fasta", text)
    with plain.open() as handle:
        expected = list(SimpleFastaParser(handle))
    # The name need not tell that the file is gzipped.
    content = text.rstrip().replace("\n", newline).encode()
    records = read_fasta(write(tmp_path / "file.fasta", gzip.compress(content) if zipped else content))
    assert [(r.description, r.sequence) for r in records if isinstance(r, FastaRecord)] == expected
    assert [r.number for r in records] == list(range(1, 21))
    for record in records:
        assert isinstance(record, FastaRecord) and record.notes == () and len(record) == len(record.sequence)
        assert record.id == record.description.split()[0] and decode(encode(record.sequence)) == record.sequence


@pytest.mark.parametrize(
    ("written", "sequence", "notes"),
    [
        ("mkvLAx", "MKVLAX", []),
        ("MKV*", "MKV", ["stop"]),
        ("MK-V..LA-", "MKVLA", ["removed 4 gap"]),
        ("--MKV*\n", "MKV", ["stop", "removed 2 gap"]),
        ("MKV LAA\tGGS", "MKVLAAGGS", []),
        ("MKV\n;a comment with J and 7\nLAA", "MKVLAA", []),
        ("MKV\rLAA", "MKVLAA", []),
        ("ACGT" * 10, "ACGT" * 10, ["nucleotides"]),
        ("BUZOX", "BUZOX", []),
    ],
)
def test_what_is_changed_in_a_sequence_is_noted(tmp_path: Path, written: str, sequence: str, notes: list[str]) -> None:
    record = one(tmp_path, f">p\n{written}")
    assert isinstance(record, FastaRecord) and record.sequence == sequence
    assert len(record.notes) == len(notes)
    for word, note in zip(notes, record.notes, strict=True):
        assert word in note


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("MKVJLA", "position 4 is 'J'"),
        ("MK\nVj", "position 4 is 'J'"),
        ("MK--V7", "position 6 is '7'"),
        ("MKV:LA7", "chain 2 of 2: position 3 is '7'"),
        ("MKV:", "chain 2 of 2: the record holds no residues"),
        ("MK*VL", r"position 3 is '\*'"),
        ("MKV**", r"position 4 is '\*'"),
        ("MKVé", "position 4 is 'é'"),
        ("MKVıL", "position 4 is 'ı'"),
        ("MKVßL", "position 4 is 'ß'"),
        ("MKV\x00", r"position 4 is '\\x00'"),
        ("", "no residues"),
        ("\n \n", "no residues"),
        ("*", "no residues"),
        ("-..-", "no residues"),
    ],
)
def test_a_bad_record_is_a_problem_and_the_others_go_on(tmp_path: Path, written: str, reason: str) -> None:
    records = read_fasta(write(tmp_path / "a.fasta", f">first\nMKV\n>bad one\n{written}\n>last\nGGS\n"))
    assert [type(r) for r in records] == [FastaRecord, FastaProblem, FastaRecord]
    problem = records[1]
    assert isinstance(problem, FastaProblem)
    assert (problem.id, problem.number) == ("bad", 2)
    assert re.search(reason, str(problem)), str(problem)
    assert str(problem).startswith("record 2, bad: ")
    assert [r.id for r in records] == ["first", "bad", "last"]


def test_an_empty_record_at_the_end_is_a_problem(tmp_path: Path) -> None:
    records = read_fasta(write(tmp_path / "a.fasta", ">a\nMKV\n>b"))
    assert isinstance(records[1], FastaProblem) and records[1].id == "b"


def test_names_are_made_distinct_and_said_so(tmp_path: Path) -> None:
    text = ">a x\nMKV\n>a y\nGGS\n>a_2\nAAA\n>\nLLL\n>   \nVVV\n>a\nJ\n>b\nMMM"
    records = read_fasta(write(tmp_path / "a.fasta", text))
    assert [r.id for r in records] == ["a", "a_2", "a_2_2", "record_4", "record_5", "a_3", "b"]
    notes = [r.notes for r in records if isinstance(r, FastaRecord)]
    assert [len(n) for n in notes] == [0, 1, 1, 1, 1, 0]
    assert "called a_2" in notes[1][0] and "name a " in notes[1][0]
    assert "no name" in notes[3][0]
    assert [r.description for r in records[:2] if isinstance(r, FastaRecord)] == ["a x", "a y"]


@pytest.mark.slow
def test_a_name_shared_by_many_records_costs_no_search(tmp_path: Path) -> None:
    records = read_fasta(write(tmp_path / "a.fasta", ">a\nMKV\n" * 100_000))
    assert [r.id for r in records] == ["a", *(f"a_{n}" for n in range(2, 100_001))]


def test_headers_in_utf8_latin1_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert one(tmp_path, ">protéine\nMKV").id == "protéine"
    assert one(tmp_path, ">protéine\nMKV".encode("latin-1")).id == "protéine"
    record = one(tmp_path, b"\xef\xbb\xbf>a\r\nMKV\r\n")
    assert isinstance(record, FastaRecord) and (record.id, record.sequence) == ("a", "MKV")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n  \n", "empty"),
        (b"MKVLAAGGS\n", "line 1 begins with 'MKVLAAGGS'"),
        (b"\n# list\n>a\nMKV", "line 2"),
        (b"HEADER    HYDROLASE\nATOM      1\n", "not a FASTA file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a FASTA file"),
        (">a\nMKV\n".encode("utf-16"), "not a FASTA file"),
        (gzip.compress(b">a\nMKV\n" * 1000, mtime=0)[:-20], "gzipped"),
        (b"\x1f\x8bnonsense", "gzipped"),
    ],
)
def test_what_is_no_fasta_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "strange.fasta", content)
    with pytest.raises(DataError, match=message) as error:
        read_fasta(path)
    assert str(path) in str(error.value)


def test_missing_files_and_folders_are_errors_that_name_them(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.fasta", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_fasta(path)


def test_long_lines_are_read_whole_and_too_long_sequences_are_problems(tmp_path: Path) -> None:
    long = "MKVLAAGGS" * 11_000  # 99,000 residues in one line
    header = "a " + "word " * 40_000
    path = write(tmp_path / "a.fasta", f">{header}\n{long}\n>b\n{long}{'G' * 1001}\n>c\nMKV\n")
    first, second, third = read_fasta(path)
    assert isinstance(first, FastaRecord) and first.sequence == long and first.id == "a"
    assert isinstance(second, FastaProblem) and "100001 characters" in second.reason
    assert isinstance(third, FastaRecord) and third.sequence == "MKV"
    assert isinstance(read_fasta(path, max_residues=98_999)[0], FastaProblem)


def test_records_come_one_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fasta.gz", gzip.compress(b">a\nMKV\n>b\nGGS\n" * 20_000, 0)[:-2000])
    records = iter_fasta(path)
    assert next(records).id == "a"
    with pytest.raises(DataError, match="gzipped"):
        list(records)


def test_a_record_may_hold_the_chains_of_a_complex(tmp_path: Path) -> None:
    record = one(tmp_path, ">p\nmk-V:\nGG\nS*:A\n")
    assert isinstance(record, FastaRecord)
    assert (record.sequence, record.chain_lengths) == ("MKVGGSA", (3, 3, 1))
    assert [word in note for word, note in zip(("gap", "stop"), record.notes, strict=True)] == [True, True]
    single = one(tmp_path, ">p\nMKV")
    assert isinstance(single, FastaRecord) and single.chain_lengths is None
