"""Complexes made of chains that lie in records or files of their own, as a table of pairs names them."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from contactlm.data.files import existing_path, read_lines
from contactlm.data.store import ChainStore
from contactlm.types import SEPARATOR, DataError

OPTION = "pairs"
TABLE = "a CSV file with a line for each complex: the ids of its chains, such as 1abc_H,1abc_L"


def read_pairs(path: str | Path) -> dict[str, list[str]]:
    """The ids of each complex's chains, by line; empty lines and those that start with ``#`` are left out.

    Raises:
        DataError: The file cannot be read, or a line names a single chain.
    """
    table = existing_path(path, OPTION, TABLE)
    rows: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(table, f"{OPTION}: {table}"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        names = [name.strip() for name in next(csv.reader([line]))]
        if len(names) < 2 or "" in names:
            raise DataError(f"{OPTION}: {table}, line {number}: {line.strip()!r} names no two chains; give {TABLE}")
        rows[f"{OPTION}: {table}, line {number}"] = names
    if not rows:
        raise DataError(f"{OPTION}: {table} is empty; give {TABLE}")
    return rows


def assemble(
    store: ChainStore, rows: dict[str, list[str]], keeps_coordinates: bool
) -> tuple[ChainStore, dict[str, str]]:
    """Make an entry of the chains of each row, called ``first:second``; a chain may be in several.

    Args:
        store: Chains or complexes; ``file_of_chain`` in its meta data becomes the row's number.
        rows: Ids by line, as :func:`read_pairs` gives them; a file's only chain may be named by the file's stem.
        keeps_coordinates: Whether coordinates of different files are in one frame; else the complex has none.

    Returns:
        The complexes; and by line, why there is none.
    """
    stems = Counter(name.rpartition("_")[0] for name in store.ids)
    number_of = {stem: n for n, name in enumerate(store.ids) if stems[stem := name.rpartition("_")[0]] == 1}
    number_of |= {name: number for number, name in enumerate(store.ids)}
    found, problems = list[list[int]](), dict[str, str]()
    for line, names in rows.items():
        missing = [name for name in names if name not in number_of]
        if missing:
            problems[line] = f"no chain is called {', '.join(missing)}"
        else:
            found.append([number_of[name] for name in names])
    laid = store.select([number for row in found for number in row])
    each = [(int(length),) for length in laid.lengths] if laid.chain_lengths is None else laid.chain_lengths
    laid = ChainStore.concatenate([replace(laid, chain_lengths=None)])
    ends = np.cumsum([0, *(len(row) for row in found)]).tolist()
    spans = [slice(*ends[k : k + 2]) for k in range(len(found))]
    joined = replace(
        laid,
        ids=[SEPARATOR.join(store.ids[number] for number in row) for row in found],
        starts=laid.starts[ends[:-1]],
        lengths=np.array([laid.lengths[span].sum() for span in spans], dtype=np.int64),
        cb=laid.cb if keeps_coordinates else np.full_like(laid.cb, np.nan),
        meta={**store.meta, "file_of_chain": list(range(len(found)))},
        chain_lengths=[tuple(length for part in each[span] for length in part) for span in spans],
    )
    return joined, problems


def rows_of(rows: dict[str, list[str]], store: ChainStore) -> dict[str, list[str]]:
    """The rows that name a chain of a store: those of other sets are no mistake."""
    known = {*store.ids, *(name.rpartition("_")[0] for name in store.ids)}
    return {line: row for line, row in rows.items() if known & set(row)}
