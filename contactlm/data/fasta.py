"""Reading protein sequences from FASTA files, plain or gzipped, one record at a time.

A record that cannot be used becomes a :class:`FastaProblem` that says why, and the records after it are read on. What
was changed in a record that can be used stands in its ``notes``.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from contactlm.alphabet import LETTERS, UNKNOWN_LETTER
from contactlm.types import DataError

MAX_RESIDUES = 100_000  # a contact map of more would take 40 GB; the longest known protein has 45,000 residues
GAPS = "-."
_PIECE = 65_536  # characters read at a time, however long a line is
_NUCLEOTIDES = frozenset("ACGTUN")
_ALLOWED = frozenset(LETTERS + GAPS)


@dataclass(frozen=True)
class FastaRecord:
    """One sequence.

    Attributes:
        id: The first word of its header; distinct within the file.
        sequence: L letters of the ESM alphabet, upper case.
        description: The header without ``>``.
        number: Its number in the file, from 1.
        notes: What was changed, in sentences.
    """

    id: str
    sequence: str
    description: str
    number: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class FastaProblem:
    """A record that cannot be used.

    Attributes:
        id: The first word of its header; distinct within the file.
        number: Its number in the file, from 1.
        line: The line of its header, from 1.
        reason: What is wrong with it, in one sentence.
    """

    id: str
    number: int
    line: int
    reason: str

    def __str__(self) -> str:
        return f"record {self.number}, {self.id} (line {self.line}): {self.reason}"


@dataclass
class _Raw:
    """A record as it stands in the file: sequence without white space, cut off beyond the limit."""

    header: str
    line: int
    sequence: str
    length: int


def read_fasta(path: str | Path, max_residues: int = MAX_RESIDUES) -> list[FastaRecord | FastaProblem]:
    """Read all records of a FASTA file, in their order; see :func:`iter_fasta`."""
    return list(iter_fasta(path, max_residues))


def iter_fasta(path: str | Path, max_residues: int = MAX_RESIDUES) -> Iterator[FastaRecord | FastaProblem]:
    """Read a FASTA file record by record, holding one record at a time in memory and at most ``max_residues`` of it.

    * Lower case is raised; white space inside a sequence and ``;`` comment lines are passed over.
    * Gaps (``-`` and ``.``) are removed: rows of an alignment are common input, a gap is no residue, and the map of
      the bare sequence is what its owner wants. One ``*`` at the end (a stop) is dropped. Both are noted.
    * Any other character, such as ``J``, a digit, or ``*`` inside, makes the record a problem, which names its position
      in the sequence as written (gaps counted). So does a record without residues, or with too many.
    * A name seen before gets ``_2``, ``_3``, … (the first one free), a record without a name is called after its
      number; both are noted.

    Args:
        path: The file; gzip is recognised by its content.
        max_residues: Longer sequences are problems.

    Raises:
        DataError: The file cannot be read, is empty, or is no FASTA file; the message names it.
    """
    taken: dict[str, int] = {}
    number = 0
    for number, raw in enumerate(_raw_records(Path(path).expanduser(), max_residues), start=1):
        words = raw.header.split(None, 1)
        name, notes = _distinct(words[0] if words else "", number, taken)
        reason = _fault(raw, max_residues)
        if reason is not None:
            yield FastaProblem(name, number, raw.line, reason)
            continue
        sequence, changes = _clean(raw.sequence)
        yield FastaRecord(name, sequence, raw.header, number, (*notes, *changes))
    if number == 0:
        raise DataError(f"{path}: the file is empty; expected FASTA records, '>name' and then the sequence")


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


def _fault(raw: _Raw, max_residues: int) -> str | None:
    """Why a record cannot be used, or None."""
    if raw.length > max_residues:
        return f"the sequence has {raw.length} characters, more than the {max_residues} allowed"
    written = raw.sequence.removesuffix("*")
    if strange := set(written) - _ALLOWED:
        position = min(written.index(letter) for letter in strange)
        return (
            f"position {position + 1} is {_character(written, position)!r}, not one of the letters {LETTERS}; "
            f"write unknown residues as {UNKNOWN_LETTER}"
        )
    return None if written.strip(GAPS) else "the record holds no residues"


def _character(written: str, position: int) -> str:
    """The character at a position, put together where UTF-8 takes several bytes for it."""
    for width in range(1, 5):
        try:
            return written[position : position + width].encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            continue
    return written[position]


def _clean(written: str) -> tuple[str, list[str]]:
    """The residues of a sequence that :func:`_fault` passed, and notes on what was taken out."""
    notes = []
    sequence = written.removesuffix("*")
    if sequence != written:
        notes.append("dropped the stop '*' at the end")
    bare = sequence.translate(dict.fromkeys(map(ord, GAPS)))
    if bare != sequence:
        notes.append(f"removed {len(sequence) - len(bare)} gap characters: residues are numbered without them")
    if len(bare) >= 20 and _NUCLEOTIDES.issuperset(bare):
        notes.append("only the letters A, C, G, T, U and N: this looks like nucleotides, and is read as a protein")
    return bare, notes


def _raw_records(path: Path, max_residues: int) -> Iterator[_Raw]:
    try:
        with path.open("rb") as file:
            yield from _split(_text(file), path, max_residues)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a FASTA file, plain or gzipped: {error}") from error


def _text(file: IO[bytes]) -> TextIO:
    """The file's text, unzipped where it is gzipped; one character a byte, and any kind of line end."""
    begin = file.read(2)
    file.seek(0)
    plain = gzip.GzipFile(fileobj=file) if begin == b"\x1f\x8b" else file
    return io.TextIOWrapper(plain, encoding="latin-1", newline=None)


def _split(text: TextIO, path: Path, max_residues: int) -> Iterator[_Raw]:
    """Take records apart, a piece of a line at a time."""
    current: _Raw | None = None
    parts: list[str] = []
    kind = ""  # of the line: a header, a comment, or else sequence
    for line, starts, piece in _pieces(text):
        kind = piece[:1] if starts else kind
        if kind == ">":
            if starts:
                if current is not None:
                    yield _finished(current, parts)
                current, parts = _Raw(_header(piece), line, "", 0), []
        elif kind != ";" and (letters := "".join(piece.split())):
            if current is None:
                raise DataError(
                    f"{path}: not a FASTA file: line {line} begins with {letters[:20]!r}, before any header; "
                    "a record is '>name' and then the sequence"
                )
            current.length += len(letters)
            if current.length <= max_residues:
                parts.append(_upper(letters))
    if current is not None:
        yield _finished(current, parts)


def _pieces(text: TextIO) -> Iterator[tuple[int, bool, str]]:
    """Line number, whether the line starts here, and at most 65,536 characters of it."""
    line, starts = 1, True
    while piece := text.readline(_PIECE):
        if line == 1 and starts:
            piece = piece.removeprefix("\xef\xbb\xbf")  # a byte order mark
        yield line, starts, piece
        starts = piece.endswith("\n")
        line += starts


def _finished(record: _Raw, parts: list[str]) -> _Raw:
    return _Raw(record.header, record.line, "".join(parts), record.length)


def _header(piece: str) -> str:
    raw = piece[1:].strip().encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _upper(letters: str) -> str:
    """Raise a-z only: other alphabets' letters must not turn into residues."""
    return letters.encode("latin-1").upper().decode("latin-1")
