"""Related sequences found by MMseqs2 (Steinegger & Söding 2017), for sets too large to align here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.types import DataError

COLUMNS = ("query", "target", "nident", "alnlen", "qstart", "qend", "qlen", "tstart", "tend", "tlen", "bits")
# full alignments; the most sensitive prefilter; nothing masked or corrected; no hit dropped that the rule may keep
SETTINGS = (
    *("--search-type", "1", "--alignment-mode", "3", "-a", "-s", "7.5", "--max-seqs", "100000", "-e", "100000"),
    *("--gap-open", "11", "--gap-extend", "1", "--comp-bias-corr", "0", "--mask", "0"),
)
LAST_LINES = 5  # of the program's messages, when it fails


class Hits(NamedTuple):
    """Alignments of m pairs.

    Attributes:
        first: Number of the one sequence, int64 (m,).
        second: Number of the other, int64 (m,).
        identity: Identical columns / all columns, float64 (m,).
        coverage: Share of the shorter sequence inside the alignment, float64 (m,).
        bits: Bit score, float64 (m,).
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    identity: NDArray[np.float64]
    coverage: NDArray[np.float64]
    bits: NDArray[np.float64]

    @classmethod
    def join(cls, parts: Sequence[Hits]) -> Hits:
        """Lay the alignments of several searches end to end."""
        whole, real = np.zeros(0, np.int64), np.zeros(0, np.float64)
        columns: Any = zip(cls(whole, whole, real, real, real), *parts, strict=True)
        return cls(*(np.concatenate(column) for column in columns))


def search(queries: Sequence[str], targets: Sequence[str], threads: int) -> Hits:
    """Search every query among the targets with ``mmseqs easy-search``.

    Args:
        queries: Sequences; ``first`` of the hits counts them.
        targets: Sequences; ``second`` of the hits counts them.
        threads: Threads of the program.

    Raises:
        DataError: The program is not installed, fails, or writes what is not understood.
    """
    if not queries or not targets:
        return Hits.join([])
    return _hits(easy_search(queries, targets, COLUMNS, SETTINGS, threads))


def easy_search(
    queries: Sequence[str], targets: Sequence[str], columns: Sequence[str], settings: Sequence[str], threads: int
) -> dict[str, NDArray[np.float64]]:
    """Run ``mmseqs easy-search``; queries and targets are called by their numbers.

    Args:
        queries: Sequences, at least one.
        targets: Sequences, at least one.
        columns: What to ask of each hit; all numbers.
        settings: Further arguments of the program.
        threads: Threads of the program.

    Returns:
        By column its values, float64 (hits,).

    Raises:
        DataError: The program is not installed, fails, or writes what is not understood.
    """
    program = shutil.which("mmseqs")
    if program is None:
        raise DataError(
            "mmseqs is asked for, but no program of that name is on the PATH; install MMseqs2, or take the program "
            "that is built in"
        )
    with tempfile.TemporaryDirectory(prefix="contactlm-mmseqs-") as folder:
        names = [str(Path(folder) / name) for name in ("queries.fasta", "targets.fasta", "hits.tsv", "tmp")]
        for name, sequences in zip(names, (queries, targets), strict=False):
            Path(name).write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences) if s), encoding="ascii")
        output = ("--format-output", ",".join(columns), "--threads", str(threads))
        done = subprocess.run([program, "easy-search", *names, *settings, *output], capture_output=True, text=True)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
            raise DataError(f"{program} failed with exit status {done.returncode}: {said}")
        return _read(Path(names[2]), columns)


def _read(path: Path, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="ascii").splitlines()]
        table = np.array(rows, dtype=np.float64).reshape(-1, len(columns))
    except (OSError, ValueError) as error:
        raise DataError(f"mmseqs wrote a table that is not understood ({error})") from error
    return dict(zip(columns, table.T, strict=True))


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
