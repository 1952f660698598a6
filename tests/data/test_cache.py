import io
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contactlm.data import cache as cache_module
from contactlm.data.cache import LOST, StructureCache, progress_bar
from contactlm.data.files import find_structures
from contactlm.data.packed.pack import pack_structures
from contactlm.retrieval import build as build_module
from contactlm.retrieval.build import BackboneCache
from contactlm.structure.parse import read_chains
from contactlm.types import DataError, StructureError
from tests.conftest import random_sequence, write_pdb


def folder_of(path: Path, count: int) -> list[Path]:
    return [write_pdb(path / f"f{i}.pdb", {"A": random_sequence(i, 20 + i)}, seed=i) for i in range(count)]


def cache_of(path: Path, **options: object) -> StructureCache:
    return StructureCache(path / "cache", workers=0, progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture
def no_parsing(monkeypatch: pytest.MonkeyPatch):
    def forbid() -> None:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError("a structure file was read")

        monkeypatch.setattr(cache_module, "read_chains", fail)

    return forbid


def test_the_second_start_reads_no_structure_file(tmp_path: Path, no_parsing, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = folder_of(tmp_path / "in", 5)
    (tmp_path / "in" / "bad.pdb").write_text("nothing\n")
    paths.append(tmp_path / "in" / "bad.pdb")
    first, report = cache_of(tmp_path).load(paths)
    assert report.parsed == 6 and list(report.problems) == [str(paths[-1])]
    no_parsing()
    monkeypatch.setattr(cache_module, "hash_file", lambda path: pytest.fail("a file was hashed"))
    second, report = cache_of(tmp_path).load(paths)
    assert report.parsed == 0 and list(report.problems) == [str(paths[-1])]
    assert second.ids == first.ids
    np.testing.assert_array_equal(second.cb, first.cb)
    assert isinstance(second.cb.base, np.memmap) or isinstance(second.cb, np.memmap)


def test_the_cache_gives_what_the_reader_gives(tmp_path: Path) -> None:
    paths = folder_of(tmp_path / "in", 4)
    store, _ = cache_of(tmp_path).load(paths)
    chains = [chain for path in paths for chain in read_chains(path)]
    assert store.ids == [chain.id for chain in chains]
    for i, chain in enumerate(chains):
        assert store.sequence_of(i) == chain.sequence
        np.testing.assert_array_equal(store.cb_of(i), chain.cb)


def test_one_changed_file_is_the_only_one_read_again(tmp_path: Path) -> None:
    paths = folder_of(tmp_path / "in", 5)
    cache_of(tmp_path).load(paths)
    write_pdb(paths[2], {"A": random_sequence(77, 33)}, seed=77)
    store, report = cache_of(tmp_path).load(paths)
    assert report.parsed == 1
    assert store.sequence_of(2) == random_sequence(77, 33)
    for path in paths:
        path.touch()  # same content, new time: hashed again, not parsed
    assert cache_of(tmp_path).load(paths)[1].parsed == 0


def test_settings_and_names_decide_what_an_entry_is(tmp_path: Path) -> None:
    paths = folder_of(tmp_path / "in", 1)
    cache_of(tmp_path).load(paths)
    assert cache_of(tmp_path, sequence="observed").load(paths)[1].parsed == 1
    renamed = paths[0].with_name("other.pdb")
    paths[0].rename(renamed)
    store, report = cache_of(tmp_path).load([renamed])
    assert report.parsed == 1 and store.ids == ["other_A"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
def test_damage_on_disk_never_gives_a_wrong_chain(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = folder_of(tmp_path / "in", 3)
    good, _ = cache_of(tmp_path).load(paths)
    expected = np.array(good.cb)
    del good
    for file in [file for file in (tmp_path / "cache").glob("*/**/*") if file.is_file()]:
        data = file.read_bytes()
        if damage == "delete":
            file.unlink()
        else:
            changed = {"truncate": data[:-9], "flip": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "empty": b""}
            file.write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING, logger="contactlm"):
        store, report = cache_of(tmp_path).load(paths)
    assert report.parsed == 3
    np.testing.assert_array_equal(store.cb, expected)
    assert ("rebuilt" in caplog.text) == (damage != "delete")


def test_a_cache_that_cannot_be_written_costs_time_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = folder_of(tmp_path / "in", 3)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="contactlm"):
        store, report = cache_of(tmp_path).load(paths)
    assert len(store) == 3 and report.parsed == 3
    assert caplog.text.count("cannot be kept") == 1


def test_parallel_reading_gives_the_same(tmp_path: Path) -> None:
    paths = folder_of(tmp_path / "in", 12)
    serial, _ = StructureCache(tmp_path / "a", workers=0, progress=False).load(paths)
    parallel, _ = StructureCache(tmp_path / "b", workers=2, progress=False).load(paths)
    assert parallel.ids == serial.ids
    np.testing.assert_array_equal(parallel.cb, serial.cb)


FILL = """
import sys
from pathlib import Path
from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures
store, report = StructureCache(sys.argv[2], workers=2, progress=False).load(find_structures(sys.argv[1]))
sys.stdout.write(f"{len(store)} {len(report.problems)}")
"""


@pytest.mark.slow
def test_killed_and_concurrent_fills_leave_a_readable_cache(tmp_path: Path) -> None:
    paths = folder_of(tmp_path / "in", 60)
    command = [sys.executable, "-c", FILL, str(tmp_path / "in"), str(tmp_path / "cache")]
    for delay in (0.3, 0.5, 0.7, 0.9, 1.1):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["60 0", "60 0"]
    store, report = cache_of(tmp_path).load(paths)
    assert report.parsed == 0
    fresh, _ = StructureCache(tmp_path / "fresh", workers=0, progress=False).load(paths)
    np.testing.assert_array_equal(store.cb, fresh.cb)


def test_files_are_found_in_folders_and_lists(tmp_path: Path) -> None:
    for name in ("b/x.pdb", "a.cif.gz", "c.ENT", "d.mmcif", "notes.txt", ".hidden.pdb"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    found = find_structures(tmp_path / "in")
    assert [path.name for path in found] == ["a.cif.gz", "x.pdb", "c.ENT", "d.mmcif"]
    listing = tmp_path / "list.txt"
    listing.write_text("# a comment\n\nin/d.mmcif\nin/b/x.pdb\n")
    assert [path.name for path in find_structures(listing)] == ["d.mmcif", "x.pdb"]


def test_missing_and_empty_folders_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_dir: .*nowhere does not exist"):
        find_structures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no structure file"):
        find_structures(tmp_path / "empty")


def test_a_structure_error_survives_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(StructureError("a.pdb", "is empty")))
    assert (str(error), error.path, error.reason) == ("a.pdb: is empty", "a.pdb", "is empty")


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_a_new_cache_is_its_users_only(tmp_path: Path) -> None:
    cache_of(tmp_path / "a").load(folder_of(tmp_path / "in", 1))
    assert stat.S_IMODE((tmp_path / "a" / "cache").stat().st_mode) == 0o700


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_a_bar_and_a_log_a_line(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for name, value in (("handlers", []), ("propagate", True)):  # whatever a command of an earlier test has set up
        monkeypatch.setattr(logging.getLogger("contactlm"), name, value)
    written = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with caplog.at_level("INFO", "contactlm"), progress_bar("Reading", "file", 8) as bar:
        for _ in range(8):
            bar.update()
    assert ("Reading:   0%" in written.getvalue()) == terminal and "\n" not in written.getvalue()
    assert caplog.messages == ([] if terminal else ["Reading: 8 files"])


forked = pytest.mark.skipif(sys.platform != "linux", reason="only forked processes see what a test replaces")
COUNT = 30


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_pdb(tmp_path / "in" / f"f{i:02d}.pdb", {"A": random_sequence(i, 20 + i)}, i) for i in range(COUNT)]


def two_readers(tmp_path: Path, workers: int = 2) -> StructureCache:
    return StructureCache(tmp_path / "cache", workers=workers, progress=False)


def fails_at(monkeypatch: pytest.MonkeyPatch, *names: str, how: Callable[[Path], None]) -> None:
    """Let readers fail at some files."""
    for module, name in ((cache_module, "read_chains"), (build_module, "read_backbones")):
        plain = getattr(module, name)

        def reader(path: Path, sequence: str, plain: Callable = plain, **options: str) -> object:
            if path.stem in names:
                how(path)
            return plain(path, sequence, **options)

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


@pytest.mark.slow
@forked
@pytest.mark.parametrize("names", [["f00"], ["f07"], ["f29"], ["f03", "f04", "f05", "f20"]])
def test_a_killed_reader_costs_its_file_only(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    with monkeypatch.context() as patched:
        fails_at(patched, *names, how=killed)
        store, report = two_readers(tmp_path).load(paths)
    assert report.problems == {str(path): LOST for path in paths if path.stem in names}
    assert list(store.ids) == [f"{path.stem}_A" for path in paths if path.stem not in names]
    # the next start tries these again, and no others
    store, report = two_readers(tmp_path).load(paths)
    assert (report.parsed, report.problems) == (len(names), {})
    fresh, _ = StructureCache(tmp_path / "fresh", workers=0, progress=False).load(paths)
    assert list(store.ids) == list(fresh.ids)
    np.testing.assert_array_equal(store.cb, fresh.cb)


@forked
def test_a_file_that_another_process_took_down_is_read(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(monkeypatch, "f02", how=killed_once)
    store, report = two_readers(tmp_path).load(paths)
    assert (len(store), report.problems) == (COUNT, {})


@forked
@pytest.mark.slow
def test_where_every_reader_is_killed_every_file_is_named(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths[:10]
    fails_at(monkeypatch, *(path.stem for path in paths), how=killed)
    store, report = two_readers(tmp_path).load(paths)
    assert len(store) == 0 and report.problems == dict.fromkeys(map(str, paths), LOST)


@forked
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_memory_does_not_suffice_for_is_skipped(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with monkeypatch.context() as patched:
        fails_at(patched, "f02", how=out_of_memory)
        store, report = two_readers(tmp_path, workers).load(paths)
        assert len(store) == COUNT - 1 and report.problems == {str(paths[2]): LOST}
        _, _, report = BackboneCache(tmp_path / "cache", workers=workers, progress=False).collect(paths)
        assert report.problems == {str(paths[2]): LOST}
    assert len(two_readers(tmp_path, workers).load(paths)[0]) == COUNT


@pytest.mark.slow
@forked
def test_readers_of_backbones_likewise(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, "f09", how=killed)
    store, states, report = BackboneCache(tmp_path / "cache", workers=2, progress=False).collect(paths)
    assert report.problems == {str(paths[9]): LOST}
    assert len(store) == COUNT - 1 and len(states) == store.lengths.sum()


@forked
def test_packing_names_the_file_and_goes_on(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails_at(monkeypatch, "f09", how=killed)
    manifest = pack_structures([str(tmp_path / "in")], tmp_path / "packed", workers=2, progress=False)
    assert (manifest.files, sum(shard.chains for shard in manifest.shards)) == (COUNT, COUNT - 1)
    assert f"f09.pdb: {LOST}" in caplog.text
