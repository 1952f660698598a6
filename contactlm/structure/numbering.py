"""Residue numbers beyond 9999 in the four columns that the PDB format has for them (hybrid-36)."""

from __future__ import annotations

_WIDTH = 4
_DECIMALS = 10**_WIDTH
_LETTERS = 26 * 36 ** (_WIDTH - 1)  # numbers that begin with one of 26 letters
_FIRST_PAGE = 0xF0000  # a private plane of Unicode: no file has these characters


def decode_number(columns: str) -> int:
    """Decode a residue number: decimal, or hybrid-36 (``A000`` is 10000, ``a000`` follows ``ZZZZ``).

    Raises:
        ValueError: It is neither.
    """
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
