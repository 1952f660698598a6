"""Reading protein sequences from FASTA files, plain or gzipped, one record at a time."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from Bio.SeqIO.FastaIO import SimpleFastaParser

from contactlm.alphabet import LETTERS, UNKNOWN_LETTER
from contactlm.types import SEPARATOR, DataError, split_chains

MAX_RESIDUES = 100_000  # a contact map of more would take 40 GB; the longest known protein has 45,000 residues
GAPS = "-."
_NUCLEOTIDES = frozenset("ACGTUN")
_ALLOWED = frozenset(LETTERS + LETTERS.lower() + GAPS)


@dataclass(frozen=True)
class FastaRecord:
    """One sequence.

    Attributes:
        id: The first word of its header; distinct within the file.
        sequence: L letters of the ESM alphabet, upper case.
        description: The header without ``>``.
        number: Its number in the file, from 1.
        notes: What was changed, in sentences.
        chain_lengths: Of a complex, residues of each chain; None: a single chain.
    """

    id: str
    sequence: str
    description: str
    number: int
    notes: tuple[str, ...] = ()
    chain_lengths: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class FastaProblem:
    """A record that cannot be used."""

    id: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"record {self.number}, {self.id}: {self.reason}"


def iter_fasta(path: str | Path, max_residues: int = MAX_RESIDUES) -> Iterator[FastaRecord | FastaProblem]:
    """Read a FASTA file record by record.

    * Lower case is raised; white space inside a sequence and ``;`` comment lines are left out.
    * Gaps (``-`` and ``.``) are removed: rows of an alignment are common input, a gap is no residue, and the map of
      the bare sequence is what its owner wants. One ``*`` at the end (a stop) is dropped. Both are noted.
    * Any other character, such as ``J``, a digit, or ``*`` inside, makes the record a problem, which names its position
      in the sequence as written (gaps counted). So does a record without residues, or with too many.
    * A complex is written ``SEQ1:SEQ2:…``, on one line or several.
    * A repeated name gets ``_2``, ``_3``, … (the first one free), a record without a name is called after its
      number; both are noted.
    """
    taken: dict[str, int] = {}
    number = 0
    try:
        with Path(path).expanduser().open("rb") as file:
            for number, (header, written) in enumerate(SimpleFastaParser(_lines(file, path)), start=1):
                words = header.split(None, 1)
                name, notes = _distinct(words[0] if words else "", number, taken)
                written = "".join(written.split())
                if (reason := _fault(written, max_residues)) is not None:
                    yield FastaProblem(name, number, reason)
                    continue
                parts = [_clean(part) for part in written.split(SEPARATOR)]
                sequence, lengths = split_chains(SEPARATOR.join(part for part, _ in parts))
                noted = dict.fromkeys((*notes, *(change for _, changes in parts for change in changes)))
                chain_lengths = None if lengths is None else tuple(lengths)
                yield FastaRecord(name, sequence, header.strip(), number, tuple(noted), chain_lengths)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a FASTA file, plain or gzipped: {error}") from error
    if number == 0:
        raise DataError(f"{path}: the file is empty; expected FASTA records, '>name' and then the sequence")


def _lines(file: IO[bytes], path: str | Path) -> Iterator[str]:
    """Lines of the file from the first header on, without comments; each is UTF-8, or else Latin-1."""
    begin = file.read(2)
    file.seek(0)
    plain = gzip.GzipFile(fileobj=file) if begin == b"\x1f\x8b" else file
    inside = False
    for number, raw in enumerate(io.TextIOWrapper(plain, encoding="latin-1", newline=None), start=1):
        line = raw.removeprefix("\xef\xbb\xbf") if number == 1 else raw  # a byte order mark
        with suppress(UnicodeDecodeError):
            line = line.encode("latin-1").decode("utf-8")
        inside = inside or line.startswith(">")
        if not inside and line.strip() and not line.startswith(";"):
            raise DataError(
                f"{path}: not a FASTA file: line {number} begins with {line.strip()[:20]!r}, before any header; "
                "a record is '>name' and then the sequence"
            )
        if inside and not line.startswith(";"):
            yield line


def _distinct(word: str, number: int, taken: dict[str, int]) -> tuple[str, list[str]]:
    """A name that no earlier record has, and notes on why it is not the header's first word.

    ``taken`` holds every name given so far, and the highest number appended to it: a name that a million records
    share must not be searched from ``_2`` on a million times.
    """
    wanted = word or f"record_{number}"
    name, copy = wanted, taken.get(wanted, 1)
    while name in taken:
        copy += 1
        name = f"{wanted}_{copy}"
    taken[wanted] = copy
    taken.setdefault(name, 1)
    if not word:
        return name, [f"the header holds no name: called {name}"]
    return name, [] if name == word else [f"the name {word} was taken by an earlier record: called {name}"]


def _fault(written: str, max_residues: int) -> str | None:
    """Why a record cannot be used, or None."""
    if len(written) > max_residues:
        return f"the sequence has {len(written)} characters, more than the {max_residues} allowed"
    parts = written.split(SEPARATOR)
    if len(parts) > 1:
        faults = ((number, _fault(part, max_residues)) for number, part in enumerate(parts, start=1))
        return next((f"chain {number} of {len(parts)}: {fault}" for number, fault in faults if fault), None)
    written = written.removesuffix("*")
    if strange := set(written) - _ALLOWED:
        position = min(written.index(letter) for letter in strange)
        letter = written[position].upper() if written[position].isascii() else written[position]
        return (
            f"position {position + 1} is {letter!r}, not one of the letters {LETTERS}; "
            f"write unknown residues as {UNKNOWN_LETTER}"
        )
    return None if written.strip(GAPS) else "the record holds no residues"


def _clean(written: str) -> tuple[str, list[str]]:
    """The residues of a sequence that :func:`_fault` passed, and notes on what was taken out."""
    notes = []
    sequence = written.upper().removesuffix("*")
    if len(sequence) < len(written):
        notes.append("dropped the stop '*' at the end")
    bare = sequence.translate(dict.fromkeys(map(ord, GAPS)))
    if bare != sequence:
        notes.append(f"removed {len(sequence) - len(bare)} gap characters: residues are numbered without them")
    if len(bare) >= 20 and _NUCLEOTIDES.issuperset(bare):
        notes.append("only the letters A, C, G, T, U and N: this looks like nucleotides, and is read as a protein")
    return bare, notes
