"""Columns of PDB files that programs use in ways of their own: large residue numbers, chains that share a letter."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field

from contactlm.structure.polymer import MAX_CA_DISTANCE, MAX_PEPTIDE_BOND

_WIDTH = 4
_DECIMALS = 10**_WIDTH
_LETTERS = 26 * 36 ** (_WIDTH - 1)  # numbers that begin with one of 26 letters
_FIRST_PAGE = 0xF0000  # a private plane of Unicode: no file has these characters
_FIRST_PART = 0x100000  # another private plane: ids of chains that share a letter
_MOST_LINES = 100  # of a residue


def decode_number(columns: str) -> int:
    """Decode a residue number: decimal, or hybrid-36 (``A000`` is 10000, ``a000`` follows ``ZZZZ``)."""
    text = columns.strip()
    if len(text) == _WIDTH and text.isascii() and text.isalnum() and text[0].isalpha():
        if text == text.upper():
            return _DECIMALS + int(text, 36) - 10 * 36 ** (_WIDTH - 1)
        if text == text.lower():
            return _DECIMALS + _LETTERS + int(text, 36) - 10 * 36 ** (_WIDTH - 1)
    return int(text)


def to_columns(number: int, icode: str) -> str:
    """Write a number beyond 9999 as four decimal columns and an insertion code that carries the rest.

    Biopython's parser takes decimal numbers only, but any character as insertion code.
    """
    page, rest = divmod(number, _DECIMALS)
    return f"{rest:{_WIDTH}d}{chr(_FIRST_PAGE + 256 * page + ord(icode))}"


def from_columns(number: int, icode: str) -> tuple[int, str]:
    """Undo :func:`to_columns`; an ordinary number and insertion code stay as they are."""
    page, rest = divmod(ord(icode) - _FIRST_PAGE, 256)
    return (number, icode) if page < 0 else (number + _DECIMALS * page, chr(rest))


@dataclass(slots=True)
class _Part:
    """A chain as far as its lines were seen: of several of one letter the latest."""

    chain_id: str
    segid: str
    last: int  # where the lines of its last residue begin
    ended: bool = False  # a TER record followed
    seen: dict[str, int] = field(default_factory=dict)  # by residue number, where its lines begin


class ChainParts:
    """Separates chains of one letter: molecular dynamics programs reuse letters, or leave them out.

    A chain of the same letter begins where the segment id changes, after a TER record, or where the residue numbers
    begin again elsewhere, provided that the previous chain cannot continue there: no peptide bond links the two, and
    their segment ids or numbers differ, or they are farther apart than the numbers allow.
    """

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._latest: dict[str, _Part] = {}
        self._parts: dict[str, list[_Part]] = {}

    def open(self, at: int) -> str:
        """Take the first line of a residue; returns the id of its chain, one character."""
        line = self._lines[at]
        letter, segid = line[21:22], line[72:76].strip()
        part = self._latest.get(letter)
        number, is_atom = line[22:27], line.startswith("ATOM")
        may_begin = part is None or segid != part.segid or part.ended or number in part.seen
        if part is None or (is_atom and may_begin and self._begins_anew(part, at, segid)):
            chain_id = letter if part is None else chr(_FIRST_PART + sum(map(len, self._parts.values())))
            part = self._latest[letter] = _Part(chain_id, segid, at)
            self._parts.setdefault(letter, []).append(part)
        if is_atom:
            part.last, part.ended = at, False
            part.seen.setdefault(number, at)
        return part.chain_id

    def end(self, letter: str) -> str:
        """Note a TER record; returns the id of the chain that it ends."""
        if letter not in self._latest:
            return letter
        self._latest[letter].ended = True
        return self._latest[letter].chain_id

    def names(self) -> dict[str, str]:
        """Chain ids by those of :meth:`open`, of letters that several chains share: with segment ids, else numbered."""
        names: dict[str, str] = {}
        for letter, parts in self._parts.items():
            segids = [part.segid for part in parts]
            marks = segids if all(segids) and len(set(segids)) == len(segids) else range(1, len(parts) + 1)
            if len(parts) > 1:
                names |= {p.chain_id.strip(): f"{letter}-{m}".strip(" -") for p, m in zip(parts, marks, strict=True)}
        return names

    def letter(self, chain_id: str) -> str:
        """The letter in the file of an id of :meth:`open`."""
        if len(chain_id) == 1 and ord(chain_id) >= _FIRST_PART:
            return next(k.strip() for k, parts in self._parts.items() if any(p.chain_id == chain_id for p in parts))
        return chain_id

    def _begins_anew(self, part: _Part, at: int, segid: str) -> bool:
        line, last = self._lines[at], self._lines[part.last]
        other_segment = segid != part.segid and bool(segid and part.segid)
        again = part.seen.get(line[22:27])
        if not (other_segment or part.ended or (again is not None and line[16:17] == " ")):
            return False
        here, before = self._atoms(at), self._atoms(part.last)
        apart = _distance(before.get("CA"), here.get("CA"))
        bond = _distance(before.get("C"), here.get("N"))
        if bond < MAX_PEPTIDE_BOND or (math.isnan(bond) and apart < MAX_CA_DISTANCE):
            return False
        try:
            step = decode_number(line[22:26]) - decode_number(last[22:26])
        except ValueError:
            return False  # complained of where the line is read
        if other_segment:
            return True
        if part.ended:
            return step <= 0 or apart > MAX_CA_DISTANCE * step
        return (
            step < 0 and again is not None and _distance(self._atoms(again).get("CA"), here.get("CA")) > MAX_CA_DISTANCE
        )

    def _atoms(self, at: int) -> dict[str, tuple[float, ...]]:
        """Backbone positions of the residue whose lines begin here."""
        residue, atoms = self._lines[at][17:27], dict[str, tuple[float, ...]]()
        for line in self._lines[at : at + _MOST_LINES]:
            if line[17:27] != residue or not line.startswith(("ATOM", "HETATM")):
                break
            with suppress(ValueError):
                atoms.setdefault(line[12:16].strip(), tuple(float(line[i : i + 8]) for i in (30, 38, 46)))
        return atoms


def _distance(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> float:
    return math.nan if one is None or other is None else math.dist(one, other)
