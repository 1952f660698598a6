"""Packing: deterministic, in bounded memory, and going on where it was killed."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contactlm.cli.main import main
from contactlm.cli.pack import pack_command
from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures
from contactlm.data.packed import pack as pack_module
from contactlm.data.packed.location import MANIFEST
from contactlm.data.packed.pack import PackedWriter, pack_structures
from contactlm.data.packed.store import ClusterRule, Manifest, open_packed
from contactlm.data.split import select_chains
from contactlm.data.store import ChainStore
from contactlm.homology.cluster import cluster_sequences
from contactlm.homology.relations import AlignmentSearch
from contactlm.types import DataError
from tests.conftest import random_sequence, write_pdb
from tests.data.packed.made import SHARD, pack, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("in"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def clean(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed packing writes, by name."""
    out = tmp_path_factory.mktemp("clean") / "packed"
    pack(folder, out, ClusterRule())
    return bytes_of(out)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_files_give_the_same_bytes_wherever_they_lie(
    folder: Path, tmp_path: Path, clean: dict[str, bytes], workers: int
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)  # with other times
    pack_structures([str(copy)], tmp_path / "packed", SHARD, clusters=ClusterRule(), workers=workers, progress=False)
    assert bytes_of(tmp_path / "packed") == clean


def test_shards_are_bounded_and_hold_whole_files(clean: dict[str, bytes], tmp_path: Path, folder: Path) -> None:
    manifest = Manifest.from_bytes(clean[MANIFEST], "")
    assert len(manifest.shards) > 3 and all(0 < shard.residues <= SHARD for shard in manifest.shards)
    for name in clean:
        (tmp_path / name).write_bytes(clean[name])
    files = [ChainStore.open(tmp_path / shard.name).ids for shard in manifest.shards]  # each is a store by itself
    stems = [{name.split("_")[0] for name in ids} for ids in files]
    assert not any(a & b for a, b in itertools.combinations(stems, 2))
    larger = pack(folder, tmp_path / "one", residues=10)
    assert len(larger.shards) == 18  # a file that does not fit has a shard of its own


def test_recorded_clusters_are_those_of_the_sequences(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed", ClusterRule())
    store, report = open_packed(str(tmp_path / "packed"), tmp_path, "seqres", "train_dir")
    chosen = select_chains(store, report, 30).store
    plain, plain_report = StructureCache(tmp_path, workers=0, progress=False).load(find_structures(folder))
    expected = select_chains(plain, plain_report, 30).store
    clusters = cluster_sequences([expected.sequence_of(i) for i in range(len(expected))])
    assert clusters.max() < len(clusters) - 1  # some are related
    assert chosen.recorded_groups(ClusterRule())[0].tolist() == clusters.tolist()  # type: ignore[attr-defined]
    assert (store.packed.index["clusters"] == -1).sum() == len(store) - len(chosen)


def kill_at(number: int, *arguments: object) -> bool:
    """Pack in a child process that is killed when it is about to give the ``number``-th file its name."""
    child = os.fork()
    if child == 0:
        replace, count = Path.replace, itertools.count()

        def counted(self: Path, target: Path) -> Path:
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = counted  # type: ignore[method-assign,assignment]
        try:
            pack(*arguments)  # type: ignore[arg-type]
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_packing_killed_while_it_clusters_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, compared, deadly = write_folder(tmp_path / "in"), tmp_path / "compared", [-1]
    monkeypatch.setattr(AlignmentSearch, "block", 4)
    partners = AlignmentSearch._partners

    def noted(self: AlignmentSearch, i: int) -> object:
        with compared.open("a") as handle:
            handle.write(f"{i}\n")
        if i == deadly[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return partners(self, i)

    monkeypatch.setattr(AlignmentSearch, "_partners", noted)
    arguments = ["--structures", str(folder), "--out", str(tmp_path / "out"), "--clusters", "--workers", "0"]
    arguments += ["--shard_residues", str(SHARD)]
    for deadly[0] in (9, 14):
        if not (child := os.fork()):
            pack_command(arguments)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    deadly[0] = -1
    assert pack_command(arguments) == 0
    seen = [int(line) for line in compared.read_text().split()]
    assert set(seen) == set(range(max(seen) + 1)) and max(seen) > 16
    assert all(seen.count(i) == 1 for i in (*range(8), *range(16, max(seen))))  # finished blocks are kept
    pack(folder, tmp_path / "clean", ClusterRule())
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "clean")


def test_a_killed_packing_is_noticed_and_goes_on(tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "in", files=3), tmp_path / "packed"
    pack(folder, tmp_path / "clean", ClusterRule())
    clean, kills = bytes_of(tmp_path / "clean"), 0
    for number in itertools.count():  # every file that is written, one after the other
        killed = kill_at(number, folder, out, ClusterRule())
        if not killed:
            break
        kills += 1
        assert not (out / MANIFEST).exists()
        if (out / "shard-000000.chains").exists():
            with pytest.raises(DataError, match="unfinished packed set"):
                open_packed(str(out), tmp_path, "seqres", "train_dir")
        pack(folder, out, ClusterRule())
        assert bytes_of(out) == clean
        shutil.rmtree(out)
    assert kills == len(clean) > 3
    assert bytes_of(out) == clean


def test_what_is_packed_is_not_read_again(
    folder: Path, tmp_path: Path, clean: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = shutil.copytree(folder, tmp_path / "in"), tmp_path / "packed"
    shards = len(Manifest.from_bytes(clean[MANIFEST], "").shards)
    read: list[str] = []
    parse = pack_module.parse_task

    def watched(task: list[tuple[int, Path]], sequence: str) -> list[tuple[int, ChainStore]]:
        read.extend(path.name for _, path in task)
        return parse(task, sequence)

    monkeypatch.setattr(pack_module, "parse_task", watched)
    assert kill_at(shards - 1, copy, out, ClusterRule())
    pack(copy, out, ClusterRule())
    assert 0 < len(read) < 8 and bytes_of(out) == clean
    # a file that has changed, and a shard that is damaged, are read again, and all that come after them
    for damage in ("file", "shard"):
        shutil.rmtree(out)
        assert kill_at(shards - 1, copy, out, ClusterRule())
        read.clear()
        if damage == "file":
            write_pdb(copy / "f06.pdb", {"A": random_sequence(200, 33)}, 7)
        else:
            (out / "shard-000001.chains").write_bytes(b"CLMSTOR1")
        pack(copy, out, ClusterRule())
        assert 8 < len(read) < 19 and "f00.pdb" not in read
        store, _ = open_packed(str(out), tmp_path, "seqres", "train_dir")
        assert "f06_B" not in list(store.ids) and store.sequence_of(store.ids.index("f06_A")) == random_sequence(
            200, 33
        )


def made_store(residues: int, seed: int) -> ChainStore:
    rng = np.random.default_rng(seed)
    cb, tokens = rng.normal(size=(residues, 3)).astype(np.float32), rng.integers(4, 24, residues).astype(np.uint8)
    return ChainStore([f"m{seed}_A"], np.zeros(1, np.int64), np.array([residues]), cb, tokens)


def test_memory_while_packing_does_not_grow_with_the_set(tmp_path: Path) -> None:
    peaks = []
    for count in (10, 120):
        tracemalloc.start()
        writer = PackedWriter(tmp_path / str(count), shard_residues=20_000)
        for seed in range(count):
            writer.add(f"m{seed}", made_store(10_000, seed))
        writer.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 120 * 130_000 / 5


def test_what_cannot_be_packed_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    with pytest.raises(DataError, match="shard_residues is 0"):
        pack(folder, out, residues=0)
    with pytest.raises(DataError, match="nowhere does not exist"):
        pack(tmp_path / "nowhere", out)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.pdb").write_text("nothing")
    with pytest.raises(DataError, match=r"nothing to pack: 1 of 1 files cannot be read; the first: x\.pdb: "):
        pack(tmp_path / "bad", tmp_path / "none")
    kill_at(3, folder, out)
    with pytest.raises(DataError, match=r"unfinished packed set of other settings; .*or delete the folder"):
        pack(folder, out, residues=SHARD + 1)
    pack(folder, out)
    with pytest.raises(DataError, match="holds a packed set already; give another folder"):
        pack(folder, out)
    with pytest.raises(DataError, match="is not empty; give another folder"):
        pack(folder, tmp_path)
    (tmp_path / "file").write_text("")
    arguments = ["pack", "--structures", str(folder), "--out", str(tmp_path / "file" / "packed")]
    assert main(arguments) == 1
    assert "file/packed cannot be written" in capsys.readouterr().err


def test_the_command(folder: Path, tmp_path: Path, clean: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pack", "--structures", str(folder), "--out", str(tmp_path / "packed"), "--workers", "0"]
    assert main([*arguments, "--shard_residues", str(SHARD), "--clusters"]) == 0
    said = capsys.readouterr()
    assert "of 19 files packed into" in said.out and "skipped f05x.pdb: " in said.err
    assert bytes_of(tmp_path / "packed") == clean
    assert main(arguments) == 1 and "contactlm: error: out: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pack", "--help"])
    assert "contactlm fit --config crop200 --data.train_dir my/train-packed" in capsys.readouterr().out


def test_training_from_a_packed_set_is_training_from_the_folder(folder: Path, tmp_path: Path) -> None:
    import lightning as L

    from contactlm import ContactDataModule, ContactModule

    pack(folder, tmp_path / "packed", ClusterRule())
    architecture = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    weights = []
    for location in (folder, tmp_path / "packed"):
        data = ContactDataModule(str(location), crop_length=30, batch_size=4, cache_dir=str(tmp_path), read_workers=0)
        module = ContactModule(None, architecture, lora=None)
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        L.Trainer(max_steps=6, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet).fit(
            module, data
        )
        weights.append({name: value.numpy().tobytes() for name, value in module.state_dict().items()})
    assert weights[0] == weights[1]
