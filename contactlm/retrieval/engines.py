"""The programs that find similar sequences: phmmer in the package, MMseqs2 where it is installed.

phmmer (Eddy 2011; the pyhmmer library) is the default. Chosen by measuring (tests/benchmarks/bench_search.py,
processor time of one core of a busy two-core machine): with the 455 distinct sequences of 564 chains as database and
440 sequences as queries, phmmer and Smith-Waterman (pyopal) behind the k-mer prefilter of
:mod:`contactlm.homology.alignment` both find all 131 listed pairs of relatives (30-95 % identity; 46 of them below 40
%) at E ≤ 1e-3, phmmer in 19 ms a query, pyopal in 2.4 ms. With 100,000 chains (20.5 million residues) phmmer is ready
in 1.7 s, takes 185 ms a query of 181 residues and 181 MB; pyopal 9.5 s, 445 ms and 986 MB. The large database is where
time matters; and phmmer's E-values allow for odd composition.

phmmer's filters pass matches of P ≤ 1e-5 only: in a database of fewer than 100 sequences the largest E-value of a hit
is therefore below 1e-3.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.homology.mmseqs import easy_search
from contactlm.types import MissingExtraError

if TYPE_CHECKING:
    from pyhmmer.easel import DigitalSequence

MMSEQS_COLUMNS = ("query", "target", "bits", "evalue")
# proteins; the most sensitive prefilter; all hits below the E-value; one thread's answer is that of many
MMSEQS_SETTINGS = ("--search-type", "1", "-s", "7.5", "--max-seqs", "100000")


class Found(NamedTuple):
    """What a program found for one query, best first.

    Attributes:
        target: Numbers of the target sequences, int64 (m,).
        bits: Bit scores, float64 (m,).
        evalue: E-values, float64 (m,).
    """

    target: NDArray[np.int64]
    bits: NDArray[np.float64]
    evalue: NDArray[np.float64]

    @classmethod
    def ranked(cls, rows: Sequence[tuple[int, float, float]]) -> Found:
        """Sort (target, bits, E-value), each target once: by E-value, then score, then number."""
        best: dict[int, tuple[float, float, int]] = {}
        for target, bits, evalue in rows:
            best[target] = min((evalue, -bits, target), best.get(target, (np.inf, 0.0, target)))
        order = sorted(best.values())
        return cls(
            np.array([target for *_, target in order], dtype=np.int64),
            np.array([-bits for _, bits, _ in order], dtype=np.float64),
            np.array([evalue for evalue, *_ in order], dtype=np.float64),
        )


class Engine(Protocol):
    """A program that searches a fixed set of target sequences. It may be asked from one thread at a time."""

    def find(self, queries: Sequence[str]) -> list[Found]:
        """Find all similar targets of each query, up to the largest E-value."""
        ...


def check_program(program: str) -> None:
    """Make sure that a program can be had, before anything is read for it.

    MMseqs2, which is no library, is looked for when it is needed.

    Raises:
        MissingExtraError: Its library is not installed.
    """
    if program != "phmmer":
        return
    try:
        import pyhmmer  # noqa: F401
    except ImportError as error:
        reason = f"{error}; there is none for Windows: install MMseqs2 there, and choose the program mmseqs"
        raise MissingExtraError("pyhmmer", "retrieval", reason if os.name == "nt" else str(error)) from error


class Phmmer:
    """HMMER's phmmer: each query as a profile with BLOSUM62's substitutions.

    Args:
        targets: n sequences of ESM letters.
        evalue: Largest E-value.
        threads: Threads that search.

    Raises:
        MissingExtraError: The library is not installed.
    """

    def __init__(self, targets: Sequence[str], evalue: float, threads: int) -> None:
        check_program("phmmer")
        from pyhmmer.easel import Alphabet, DigitalSequenceBlock

        self._evalue, self._threads = evalue, threads
        self._alphabet = Alphabet.amino()
        self._targets = DigitalSequenceBlock(self._alphabet, (self._digital(i, s) for i, s in enumerate(targets)))

    def find(self, queries: Sequence[str]) -> list[Found]:
        """Find all similar targets of each query, up to the largest E-value."""
        from pyhmmer.hmmer import phmmer

        asked = [
            i for i, query in enumerate(queries) if query.strip(UNKNOWN_LETTER)
        ]  # nothing is like unknown residues
        found = [Found.ranked([])] * len(queries)
        digital = [self._digital(i, queries[i]) for i in asked]
        for i, hits in zip(asked, phmmer(digital, self._targets, cpus=self._threads, E=self._evalue), strict=True):
            found[i] = Found.ranked([(int(hit.name), hit.score, hit.evalue) for hit in hits if hit.reported])
        return found

    def _digital(self, number: int, sequence: str) -> DigitalSequence:
        from pyhmmer.easel import TextSequence

        return TextSequence(name=str(number).encode(), sequence=sequence).digitize(self._alphabet)


class Mmseqs:
    """MMseqs2 (Steinegger & Söding 2017) at its highest sensitivity.

    Args:
        targets: n sequences of ESM letters.
        evalue: Largest E-value.
        threads: Threads of the program.
    """

    def __init__(self, targets: Sequence[str], evalue: float, threads: int) -> None:
        self._targets, self._evalue, self._threads = targets, evalue, threads

    def find(self, queries: Sequence[str]) -> list[Found]:
        """Find all similar targets of each query, up to the largest E-value.

        Raises:
            DataError: The program is not installed, fails, or writes what is not understood.
        """
        settings = (*MMSEQS_SETTINGS, "-e", repr(self._evalue))
        table = easy_search(queries, self._targets, MMSEQS_COLUMNS, settings, self._threads)
        rows: list[list[tuple[int, float, float]]] = [[] for _ in queries]
        for query, target, bits, evalue in zip(*(table[name].tolist() for name in MMSEQS_COLUMNS), strict=True):
            rows[int(query)].append((int(target), bits, evalue))
        return [Found.ranked(row) for row in rows]


ENGINES: dict[str, type[Phmmer] | type[Mmseqs]] = {"phmmer": Phmmer, "mmseqs": Mmseqs}
