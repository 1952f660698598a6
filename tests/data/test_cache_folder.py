"""The cache folder is its user's own, and clears itself."""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from contactlm.data.cache import StructureCache
from contactlm.data.cache_folder import DAYS_VARIABLE, TAG, open_cache_folder
from contactlm.homology.relations import keep_array, kept_array
from contactlm.types import DataError

DAY = 86_400


def aged(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def test_what_is_unused_goes_and_is_told_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    old = [aged(cache / "entries" / "ab" / "ab12.chains", 91), aged(cache / "segments" / "d-b" / "0" / "3.means", 100)]
    new = [aged(cache / "packs" / "cd34.chains", 89), aged(cache / "structures" / "1abc.cif.gz", 500)]
    left = aged(cache / "packs" / f".{'0' * 32}.tmp", 2)
    alive = aged(cache / "packs" / f".{'1' * 32}.tmp", 0.1)
    with caplog.at_level(logging.INFO, "contactlm"):
        open_cache_folder(cache)
    assert not any(path.exists() for path in [*old, left]) and all(path.exists() for path in [*new, alive])
    [line] = [record.getMessage() for record in caplog.records]
    assert "2 files unused for 90 days and 1 remains of killed processes removed" in line
    again = aged(cache / "entries" / "ab" / "ab12.chains", 91)
    open_cache_folder(cache)
    assert again.exists()  # until tomorrow


def test_a_file_that_was_read_lately_stays(tmp_path: Path) -> None:
    path = aged(tmp_path / "entries" / "ab" / "ab12.chains", 200)
    os.utime(path, (time.time() - DAY, time.time() - 200 * DAY))
    open_cache_folder(tmp_path)
    assert path.exists()


def test_what_lies_behind_a_list_that_is_used_stays(
    tmp_path: Path, pdb_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries of single files are not read again, nor does every file system note what was read."""
    paths, now = sorted(pdb_folders[1].iterdir()), time.time()
    clusters = tmp_path / "clusters" / f"{'a' * 40}.bin"

    def start() -> int:
        found = StructureCache(tmp_path, workers=0, progress=False).load(paths)[1].parsed
        if not clusters.exists():
            keep_array(np.arange(3), clusters)
        assert kept_array(clusters, np.int64, 3) is not None
        return found

    assert start() == 3
    kept = {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".chains", ".bin", ".json")}
    assert len(kept) == 3 + 1 + 1 + 1
    for path in kept:
        os.utime(path, (now - 80 * DAY,) * 2)
    assert start() == 0
    monkeypatch.setattr(time, "time", lambda: now + 60 * DAY)
    open_cache_folder(tmp_path)
    assert kept == {path for path in kept if path.exists()}
    monkeypatch.setattr(time, "time", lambda: now + 100 * DAY)
    open_cache_folder(tmp_path)
    assert not any(path.exists() for path in kept)
    assert start() == 3


@pytest.mark.parametrize(("given", "goes"), [("0", False), ("30", True), ("400", False)])
def test_how_long_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, goes: bool) -> None:
    monkeypatch.setenv(DAYS_VARIABLE, given)
    path = aged(tmp_path / "entries" / "ab" / "ab12.chains", 91)
    open_cache_folder(tmp_path)
    assert path.exists() is not goes


@pytest.mark.parametrize("given", ["-1", "soon", "nan"])
def test_a_wrong_number_of_days_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(DAYS_VARIABLE, given)
    with pytest.raises(DataError, match=DAYS_VARIABLE):
        open_cache_folder(tmp_path)


def test_a_folder_that_holds_other_things_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    mine = aged(tmp_path / "index" / "notes.json", 1000)
    open_cache_folder(tmp_path)
    assert mine.exists() and not (tmp_path / TAG).exists()


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_a_new_cache_is_its_users_only(tmp_path: Path, pdb_folders: tuple[Path, Path]) -> None:
    cache = tmp_path / "a" / "cache"
    StructureCache(cache, workers=0, progress=False).load(sorted(pdb_folders[0].iterdir())[:1])
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert (cache / TAG).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    given = tmp_path / "shared"
    given.mkdir(mode=0o755)
    open_cache_folder(given)
    assert stat.S_IMODE(given.stat().st_mode) == 0o755  # whoever made it decided
