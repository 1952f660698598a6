"""Lists and structure files of the tests' own."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.conftest import random_sequence, write_pdb


def write_list(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def made_set(folder: Path, count: int = 6, shortest: int = 50) -> tuple[Path, Path]:
    """(list, folder of structures): chains 9a00 A, 9a01 A, … with sequences."""
    rows = []
    for k in range(count):
        sequence = random_sequence(700 + k, shortest + 7 * k)
        write_pdb(folder / "structures" / f"9a{k:02d}.pdb", {"A": sequence}, seed=700 + k)
        rows.append({"pdb_id": f"9A{k:02d}", "chain": "A", "sequence": sequence})
    return write_list(folder / "mine.csv", rows), folder / "structures"


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
