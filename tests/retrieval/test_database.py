"""The structure database: what a build reads, what lies on disk, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from contactlm.cli.main import main
from contactlm.data.cache import StructureCache
from contactlm.retrieval import build as build_module
from contactlm.retrieval.build import build_database
from contactlm.retrieval.database import StructureDatabase
from contactlm.structure.parse import read_backbones
from contactlm.structure.secondary import find_segments, secondary_structure
from contactlm.types import Chain, DataError
from tests.conftest import random_sequence, write_pdb
from tests.retrieval.made import cache_of, made_database

COMMAND = r"contactlm index build --structures .* --out .*db"


def folder_of(path: Path, count: int = 4) -> Path:
    for i in range(count):
        write_pdb(path / f"{i}abc.pdb", {"A": random_sequence(i, 30 + i), "B": random_sequence(50 + i, 25)}, seed=i)
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_database_holds_what_the_reader_gives(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in")
    report = build_database([source], tmp_path / "db", cache_of(tmp_path))
    database = StructureDatabase.open(tmp_path / "db")
    read = [pair for path in sorted(source.iterdir()) for pair in read_backbones(path)]
    assert (report.chains, report.files, report.parsed, len(database)) == (8, 4, 4, 8)
    for i, (chain, backbone) in enumerate(read):
        states = secondary_structure(backbone, chain.sequence)
        assert database.id_of(i) == chain.id and database.sequence_of(i) == chain.sequence
        np.testing.assert_array_equal(database.cb_of(i), chain.cb)
        np.testing.assert_array_equal(database.states_of(i), states)
        assert database.segments_of(i) == find_segments(states)
    assert isinstance(database.states, np.memmap)


def test_real_structures_have_helices_and_strands(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "pdb" / "homologs").glob("1*.gz"))[:3]
    build_database(files, tmp_path / "db", cache_of(tmp_path))
    database = StructureDatabase.open(tmp_path / "db")
    for i in range(len(database)):
        resolved = np.isfinite(database.cb_of(i)[:, 0])
        assert not database.states_of(i)[~resolved].any()
        assert all(resolved[segment.start : segment.stop].all() for segment in database.segments_of(i))
    assert {segment.kind for i in range(len(database)) for segment in database.segments_of(i)} == {1, 2}


def test_a_build_reads_only_what_is_new_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = folder_of(tmp_path / "in"), tmp_path / "db"
    first = build_database([source], out, cache_of(tmp_path))
    before, written = snapshot(out), (out / "manifest.json").stat().st_mtime_ns
    again = build_database([source], out, cache_of(tmp_path))
    assert (first.parsed, again.parsed, again.unchanged) == (4, 0, True) and snapshot(out) == before
    assert (out / "manifest.json").stat().st_mtime_ns == written  # nothing was written for nothing

    read: list[str] = []

    def noted(path: Path, sequence: str) -> list[tuple[Chain, NDArray[np.float32]]]:
        read.append(path.name)
        return read_backbones(path, sequence)

    monkeypatch.setattr(build_module, "read_backbones", noted)
    write_pdb(source / "1abc.pdb", {"A": random_sequence(77, 44)})
    write_pdb(source / "9new.pdb", {"A": random_sequence(78, 45)})
    (source / "0abc.pdb").unlink()
    changed = build_database([source], out, cache_of(tmp_path))
    assert sorted(read) == ["1abc.pdb", "9new.pdb"] and changed.parsed == 2 and not changed.unchanged
    database = StructureDatabase.open(out)
    assert database.store.ids == ["1abc_A", "2abc_A", "2abc_B", "3abc_A", "3abc_B", "9new_A"]
    assert database.sequence_of(0) == random_sequence(77, 44)
    assert len(list(out.iterdir())) == 3  # the files of the old one are gone


def test_build_and_training_share_one_cache(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in")
    paths = sorted(source.iterdir())
    plain = StructureCache(tmp_path / "cache", workers=0, progress=False)
    assert plain.load(paths[:2])[1].parsed == 2
    assert build_database([source], tmp_path / "db", cache_of(tmp_path)).parsed == 4  # two lack secondary structure
    store, report = plain.load(paths)
    assert report.parsed == 0 and len(store) == 8


def test_processes_give_what_one_gives(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 9)
    build_database([source], tmp_path / "db1", cache_of(tmp_path / "a"))
    cache = cache_of(tmp_path / "b")
    cache.workers = 2
    build_database([source], tmp_path / "db2", cache)
    assert snapshot(tmp_path / "db1").keys() == snapshot(tmp_path / "db2").keys()  # data files are named by content


def test_the_fingerprint_tells_any_change(tmp_path: Path) -> None:
    base = {"1abc_A": random_sequence(1, 40), "2abc_A": random_sequence(2, 40)}
    prints = {made_database(tmp_path / "a", base).fingerprint, made_database(tmp_path / "b", base).fingerprint}
    assert len(prints) == 1
    for other in ({**base, "1abc_A": random_sequence(3, 40)}, dict(reversed(base.items())), {"3abc_A": base["1abc_A"]}):
        prints.add(made_database(tmp_path / "c", other).fingerprint)
    assert len(prints) == 4


def test_bad_files_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_of(tmp_path / "in", 2)
    (source / "bad.pdb").write_text("<html>\n")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{source / '0abc.pdb'}\n{source / 'bad.pdb'}\n{source / 'gone.pdb'}\n")
    options = ["--out", str(tmp_path / "db"), "--workers", "0", "--cache_dir", str(tmp_path / "cache")]
    assert main(["index", "build", "--structures", str(listed), *options]) == 3
    told = capsys.readouterr()
    assert "bad.pdb: it has no ATOM records" in told.err and "gone.pdb: cannot be read (No such file" in told.err
    assert "2 chains" in told.out and "from 3 files" in told.out and "2 left out" in told.out
    assert main(["index", "build", "--structures", str(source / "0abc.pdb"), *options]) == 0
    assert "(0 read now)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("structures", "message"),
    [("gone", "does not exist"), ("empty", "holds no structure file"), ("bad", "none of 1 files has a chain")],
)
def test_nothing_to_index_is_an_error(
    tmp_path: Path, structures: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.pdb").write_text("nothing\n")
    arguments = ["--structures", str(tmp_path / structures), "--out", str(tmp_path / "db"), "--workers", "0"]
    assert main(["index", "build", *arguments]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "db").exists()


def test_a_foreign_folder_is_not_written_to(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 1)
    with pytest.raises(DataError, match="is there, and is no structure database"):
        build_database([source], source, cache_of(tmp_path))
    assert [path.name for path in source.iterdir()] == ["0abc.pdb"]


def test_no_database_is_an_error_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"there is no structure database.*{COMMAND}"):
        StructureDatabase.open(tmp_path / "db")
    (tmp_path / "db").mkdir()
    with pytest.raises(DataError, match=f"no manifest.json.*{COMMAND}"):
        StructureDatabase.open(tmp_path / "db")


def test_another_format_is_refused_with_the_command_and_made_again(tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 1), tmp_path / "db"
    build_database([source], out, cache_of(tmp_path))
    about = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**about, "version": 0}))
    with pytest.raises(
        DataError, match=rf"of format version 0; this contactlm reads version 1.*--structures {source} "
    ):
        StructureDatabase.open(out)
    assert build_database([source], out, cache_of(tmp_path)).parsed == 0
    assert len(StructureDatabase.open(out)) == 2
    (out / "manifest.json").write_text('{"format": "contactlm packed set"}')
    with pytest.raises(DataError, match="not that of a structure database"):
        StructureDatabase.open(out)


def test_an_empty_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"(cannot be opened|holds no chain).*{COMMAND}"):
        made_database(tmp_path, {})


def test_every_damage_is_noticed_and_mended_by_a_build(tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 1), tmp_path / "db"
    build_database([source], out, cache_of(tmp_path))
    good = snapshot(out)
    assert len(good) == 3
    for name, data in good.items():
        for at in range(0, len(data), 5):
            (out / name).write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            with pytest.raises(DataError, match=COMMAND):
                StructureDatabase.open(out)
        for length in (0, 1, len(data) // 2, len(data) - 1):
            (out / name).write_bytes(data[:length])
            with pytest.raises(DataError, match=COMMAND):
                StructureDatabase.open(out)
        (out / name).unlink()
        with pytest.raises(DataError, match=COMMAND):
            StructureDatabase.open(out)
        assert build_database([source], out, cache_of(tmp_path)).parsed == 0
        assert snapshot(out) == good


def test_what_killed_builds_left_is_deleted_in_the_end(tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 1), tmp_path / "db"
    build_database([source], out, cache_of(tmp_path))
    young, old = out / f"{'a' * 32}.chains", out / f"{'b' * 32}.states"
    for file in (young, old):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    write_pdb(source / "9new.pdb", {"A": random_sequence(78, 45)})
    build_database([source], out, cache_of(tmp_path))
    assert young.exists() and not old.exists() and len(StructureDatabase.open(out)) == 3


def test_a_failed_write_leaves_the_old_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = folder_of(tmp_path / "in", 2), tmp_path / "db"
    build_database([source], out, cache_of(tmp_path))
    before = StructureDatabase.open(out).fingerprint
    write_pdb(source / "9new.pdb", {"A": random_sequence(78, 45)})
    replace = Path.replace

    def full_disk(self: Path, target: Path) -> Path:
        if target.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            build_database([source], out, cache_of(tmp_path))
    assert StructureDatabase.open(out).fingerprint == before
