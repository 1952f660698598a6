"""Entries of the Protein Data Bank by name: single ones, and lists of them in text files."""

from __future__ import annotations

import re
from pathlib import Path

from contactlm.data.files import read_lines
from contactlm.types import DataError

_PATTERN = re.compile(r"(?P<entry>[1-9][a-z0-9]{3}|pdb_[a-z0-9]{8})(?:[_\s]+(?P<chain>[a-z0-9]{1,8}))?", re.IGNORECASE)
ALLOWED = "a PDB id such as 1abc or pdb_00001abc, with a chain (1abc_A, 1abc A) or without"


def parse_id(text: str) -> tuple[str, str | None]:
    """Entry (lower case) and chain (None: none is named) of ``1abc``, ``1abc_A`` or ``1abc A``, or an extended id."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{text!r} is not {ALLOWED}")
    return match["entry"].lower(), match["chain"]


def read_id_list(path: str | Path) -> list[tuple[str, str | None]]:
    """Entry (lower case) and chain (None: all) of each line of a file; what follows a ``#`` is left out."""
    lines = read_lines(Path(path).expanduser(), f"{path}: a list of PDB ids")
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.split("#", 1)[0].strip()
        if text:
            try:
                found.append(parse_id(text))
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
    if not found:
        raise DataError(f"{path}: holds no PDB id; expected one a line: {ALLOWED}")
    return found
