"""Reader processes that are killed cost the file they were at, not the run."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contactlm.data import cache as cache_module
from contactlm.data.cache import StructureCache
from contactlm.data.packed.pack import pack_structures
from contactlm.data.readers import LOST
from contactlm.retrieval import build as build_module
from contactlm.retrieval.build import BackboneCache
from tests.conftest import random_sequence, write_pdb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only forked processes see what a test replaces")
COUNT = 30


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_pdb(tmp_path / "in" / f"f{i:02d}.pdb", {"A": random_sequence(i, 20 + i)}, i) for i in range(COUNT)]


def cache_of(tmp_path: Path, workers: int = 2) -> StructureCache:
    return StructureCache(tmp_path / "cache", workers=workers, progress=False)


def fails_at(monkeypatch: pytest.MonkeyPatch, *names: str, how: Callable[[Path], None]) -> None:
    """Let readers fail at some files."""
    for module, name in ((cache_module, "read_chains"), (build_module, "read_backbones")):
        plain = getattr(module, name)

        def reader(path: Path, sequence: str, plain: Callable = plain) -> object:
            if path.stem in names:
                how(path)
            return plain(path, sequence)

        monkeypatch.setattr(module, name, reader)


MAIN = os.getpid()


def killed(path: Path) -> None:
    assert os.getpid() != MAIN
    os.kill(os.getpid(), signal.SIGKILL)


def killed_once(path: Path) -> None:
    mark = path.with_suffix(".killed")
    if not mark.exists():
        mark.touch()
        killed(path)


def out_of_memory(path: Path) -> None:
    raise MemoryError


@pytest.mark.parametrize("names", [["f00"], ["f07"], ["f29"], ["f03", "f04", "f05", "f20"]])
def test_a_killed_reader_costs_its_file_only(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    with monkeypatch.context() as patched:
        fails_at(patched, *names, how=killed)
        store, report = cache_of(tmp_path).load(paths)
    assert report.problems == {str(path): LOST for path in paths if path.stem in names}
    assert list(store.ids) == [f"{path.stem}_A" for path in paths if path.stem not in names]
    # the next start tries these again, and no others
    store, report = cache_of(tmp_path).load(paths)
    assert (report.parsed, report.problems) == (len(names), {})
    fresh, _ = StructureCache(tmp_path / "fresh", workers=0, progress=False).load(paths)
    assert list(store.ids) == list(fresh.ids)
    np.testing.assert_array_equal(store.cb, fresh.cb)


def test_a_file_that_another_process_took_down_is_read(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(monkeypatch, "f02", "f11", how=killed_once)
    store, report = cache_of(tmp_path).load(paths)
    assert (len(store), report.problems) == (COUNT, {})


@pytest.mark.slow
def test_where_every_reader_is_killed_every_file_is_named(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths[:10]
    fails_at(monkeypatch, *(path.stem for path in paths), how=killed)
    store, report = cache_of(tmp_path).load(paths)
    assert len(store) == 0 and report.problems == dict.fromkeys(map(str, paths), LOST)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_memory_does_not_suffice_for_is_skipped(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with monkeypatch.context() as patched:
        fails_at(patched, "f02", how=out_of_memory)
        store, report = cache_of(tmp_path, workers).load(paths)
        assert len(store) == COUNT - 1 and report.problems == {str(paths[2]): LOST}
        _, _, report = BackboneCache(tmp_path / "cache", workers=workers, progress=False).collect(paths)
        assert report.problems == {str(paths[2]): LOST}
    assert len(cache_of(tmp_path, workers).load(paths)[0]) == COUNT


def test_readers_of_backbones_likewise(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, "f09", how=killed)
    store, states, report = BackboneCache(tmp_path / "cache", workers=2, progress=False).collect(paths)
    assert report.problems == {str(paths[9]): LOST}
    assert len(store) == COUNT - 1 and len(states) == store.lengths.sum()


def test_packing_names_the_file_and_goes_on(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails_at(monkeypatch, "f09", how=killed)
    manifest = pack_structures([str(tmp_path / "in")], tmp_path / "packed", workers=2, progress=False)
    assert (manifest.files, sum(shard.chains for shard in manifest.shards)) == (COUNT, COUNT - 1)
    assert f"f09.pdb: {LOST}" in caplog.text
