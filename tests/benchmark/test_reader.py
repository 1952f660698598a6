"""Structure files are read once, and again when they change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from contactlm import read_chains
from contactlm.benchmark import reader
from contactlm.benchmark.reader import ChainReader
from tests.conftest import random_sequence, write_pdb


def same(found, path: Path) -> bool:
    expected = {chain.id[-1]: chain for chain in read_chains(path)}
    return found.keys() == expected.keys() and all(
        (one.id, one.sequence) == (expected[name].id, expected[name].sequence)
        and all(
            np.array_equal(getattr(one, array), getattr(expected[name], array), equal_nan=array != "resolved")
            for array in ("ca", "cb", "resolved")
        )
        for name, one in found.items()
    )


def test_what_is_kept_is_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pdb(tmp_path / "9xyz.pdb", {"A": random_sequence(1, 40), "B": random_sequence(2, 33)})
    assert same(ChainReader(tmp_path).chains(path), path)
    with monkeypatch.context() as patch:
        patch.setattr(reader, "read_chains", lambda _: pytest.fail("read again"))
        assert same(ChainReader(tmp_path).chains(path), path)
    [kept] = (tmp_path / "benchmark" / "chains").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: read again
    assert same(ChainReader(tmp_path).chains(path), path)
    write_pdb(path, {"A": random_sequence(3, 50)})
    os.utime(path, ns=(1, 1))
    assert same(ChainReader(tmp_path).chains(path), path)


def test_real_files_with_gaps_come_back(shared: Path, tmp_path: Path) -> None:
    path = shared / "pdb" / "edge" / "1A8O.cif"
    for _ in range(2):
        assert same(ChainReader(tmp_path).chains(path), path)


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    path = write_pdb(tmp_path / "9xyz.pdb", {"A": random_sequence(1, 40)})
    (tmp_path / "benchmark").write_text("in the way")
    assert same(ChainReader(tmp_path).chains(path), path)
