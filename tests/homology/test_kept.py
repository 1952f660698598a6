"""A clustering that was ended goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contactlm.homology.cluster import ClusterOptions, cluster_sequences
from contactlm.homology.relations import AlignmentSearch, find_relations, make_pool
from tests.homology.test_cluster import families

Search = Callable[[], np.ndarray]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequences whose partners were looked for; blocks are small."""
    monkeypatch.setattr(AlignmentSearch, "block", 5)
    found: list[int] = []
    partners = AlignmentSearch._partners
    monkeypatch.setattr(AlignmentSearch, "_partners", lambda self, i: found.append(i) or partners(self, i))
    return found


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch, run: Search) -> None:
    with monkeypatch.context() as patch:
        related, calls = AlignmentSearch.related, iter(range(10**6))

        def ended(self: AlignmentSearch, block: np.ndarray, bar: object) -> object:
            if next(calls) == number:
                raise KeyboardInterrupt
            return related(self, block, bar)  # type: ignore[arg-type]

        patch.setattr(AlignmentSearch, "related", ended)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_an_ended_clustering_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    sequences = families(5)
    expected, n = cluster_sequences(sequences), len(set(sequences))
    interrupt_at(3, monkeypatch, lambda: cluster_sequences(sequences, cache_dir=tmp_path))
    asked.clear()
    interrupt_at(1, monkeypatch, lambda: cluster_sequences(sequences, cache_dir=tmp_path))
    assert sorted(asked) == list(range(15, 20))
    asked.clear()
    np.testing.assert_array_equal(cluster_sequences(sequences, cache_dir=tmp_path), expected)
    assert sorted(asked) == list(range(20, n))  # each sequence once, in all three
    (left,) = (tmp_path / "clusters").iterdir()
    assert left.suffix == ".bin"  # the parts are gone
    asked.clear()
    cluster_sequences(sequences, cache_dir=tmp_path)
    assert not asked


def test_damaged_parts_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    pool = make_pool(families(6))
    expected = find_relations(pool, ClusterOptions(), keep_in=tmp_path)
    assert len(expected.first) > 20
    parts = sorted(tmp_path.iterdir())
    parts[1].write_bytes(parts[1].read_bytes()[:-5])
    parts[3].write_bytes(b"")
    asked.clear()
    again = find_relations(pool, ClusterOptions(), keep_in=tmp_path)
    assert sorted(asked) == [*range(5, 10), *range(15, 20)]
    for ours, theirs in zip(again, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_blocks_find_what_one_search_finds(asked: list[int]) -> None:
    pool = make_pool(families(7))
    by_blocks = find_relations(pool, ClusterOptions())
    AlignmentSearch.block = 1000  # the fixture puts it back
    for ours, theirs in zip(by_blocks, find_relations(pool, ClusterOptions()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_that_cannot_be_written_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: list[int]
) -> None:
    (tmp_path / "file").touch()
    pool = make_pool(families(6))
    found = find_relations(pool, ClusterOptions(), keep_in=tmp_path / "file" / "parts")
    assert len(found.first) > 20 and caplog.text.count("cannot be kept") == 1
