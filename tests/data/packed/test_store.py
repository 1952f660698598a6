"""Packed sets as data: the same chains and samples as the folder, from a path or a URL, whatever goes wrong."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from contactlm import ContactDataModule
from contactlm.cli.console import file_trouble
from contactlm.data import leakage, split
from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures
from contactlm.data.packed import store as shards
from contactlm.data.packed.location import INDEX, MANIFEST
from contactlm.data.packed.pack import pack_structures
from contactlm.data.packed.store import ClusterRule, PackedStore, open_packed
from contactlm.data.split import select_chains
from contactlm.data.store import ChainStore, chain_sequences, join_chains
from contactlm.homology.relations import ClusterOptions
from contactlm.types import DataError
from tests.data.packed.made import module, pack, serving, write_folder

RULE = ClusterRule(min_length=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("in"))


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "packed"
    assert len(pack(folder, out, RULE).shards) > 3
    return out


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "own"))


def stores(folder: Path, packed: Path, cache: Path) -> tuple[tuple[ChainStore, Any], tuple[PackedStore, Any]]:
    plain = StructureCache(cache, workers=0, progress=False).load(find_structures(folder))
    return plain, open_packed(str(packed), cache, "seqres", "train_dir")


@pytest.mark.parametrize("complexes", [False, True])
def test_the_chains_are_those_of_the_folder(folder: Path, packed: Path, tmp_path: Path, complexes: bool) -> None:
    (plain, plain_report), (store, report) = stores(folder, packed, tmp_path)
    assert report.files == plain_report.files == 19
    assert list(report.problems.values()) == list(plain_report.problems.values()) and list(report.problems) == [
        "f05x.pdb"
    ]
    if complexes:
        plain, store = join_chains(plain), join_chains(store)  # type: ignore[assignment]  # of the kind that came
    expected, chosen = select_chains(plain, plain_report, 30), select_chains(store, report, 30)
    assert chosen.dropped == expected.dropped and chosen.summary() == expected.summary()
    assert list(chosen.store.ids) == expected.store.ids and chosen.store.ids == expected.store.ids
    assert chosen.store.chain_lengths == expected.store.chain_lengths
    np.testing.assert_array_equal(chosen.store.resolved_counts(), expected.store.resolved_counts())
    for i in range(len(expected.store)):
        np.testing.assert_array_equal(chosen.store.cb_of(i), expected.store.cb_of(i))
        assert chosen.store.sequence_of(i) == expected.store.sequence_of(i)
    assert chain_sequences(chosen.store)[0] == chain_sequences(expected.store)[0]


def samples(data: ContactDataModule, rank: int, world: int, batches: int) -> list[tuple[Any, ...]]:
    data._rank = lambda: (rank, world)  # type: ignore[method-assign]
    loader = data.train_dataloader()
    taken: list[tuple[Any, ...]] = []
    epoch = 0
    while len(taken) < batches:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # a sampler of ours
        taken += [
            (b["ids"], b["starts"].tolist(), b["tokens"].numpy().tobytes(), b["cb"].numpy().tobytes()) for b in loader
        ]
        epoch += 1
    return taken[:batches]


@pytest.mark.parametrize(
    ("options", "starts", "workers"),
    [
        ({"seed": 0, "crop_length": 30}, [(0, 1)], 0),
        ({"seed": 1, "crop_length": 30}, [(0, 2), (1, 2)], 0),
        ({"seed": 2, "crop_length": 50}, [(0, 1)], 2),
        ({"seed": 3, "crop_length": 30}, [(2, 3)], 0),
        ({"seed": 4, "crop_length": 24, "crop": "two_segments"}, [(0, 2)], 0),
        ({"seed": 5, "crop_length": 60, "assembly": "complex"}, [(0, 2), (1, 2)], 0),
        ({"seed": 6, "crop": "whole", "batch_tokens": 500}, [(1, 2)], 0),
        ({"seed": 7, "crop_length": 30, "weights": "cluster", "split": "random"}, [(0, 1)], 0),
    ],
    ids=str,
)
def test_the_samples_are_those_of_the_folder_in_the_same_order(
    folder: Path, packed: Path, tmp_path: Path, options: dict[str, Any], starts: list[tuple[int, int]], workers: int
) -> None:
    options = {**options, "num_workers": workers, "split_seed": options["seed"]}
    plain, data = module(folder, tmp_path, **options), module(packed, tmp_path, **options)
    for role in ("train", "dev"):
        assert data.chains[role].ids == plain.chains[role].ids
        assert isinstance(data.chains[role], PackedStore) and not isinstance(plain.chains[role], PackedStore)
    for start in starts:
        assert samples(data, *start, batches=12) == samples(plain, *start, batches=12)
    (evaluated, expected) = (next(iter(each.val_dataloader())) for each in (data, plain))
    assert evaluated["ids"] == expected["ids"] and evaluated["tokens"].equal(expected["tokens"])


def test_start_opens_no_shard_and_computes_no_clusters(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "cluster_sequences", lambda *_, **__: pytest.fail("clustered again"))
    monkeypatch.setattr(leakage, "best_identity", lambda *_: pytest.fail("compared dev with training"))
    monkeypatch.setattr(shards.PackedSet, "_opened", lambda *_: pytest.fail("a shard was opened"))
    data = module(packed, tmp_path)
    assert len(data.chains["train"]) > 10 and not data.identity["dev"].any()


@pytest.mark.parametrize(
    "options", [{"min_length": 41}, {"cluster": ClusterOptions(identity=0.95)}, {"assembly": "complex"}]
)
def test_clusters_of_another_rule_are_not_taken(
    folder: Path, packed: Path, tmp_path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="contactlm"):
        data = module(packed, tmp_path, **options)
    assert (
        "clusters of another rule (min_length 30, assembly chain" in caplog.text and "ClusterOptions" not in caplog.text
    )
    assert "--clusters" in caplog.text
    assert data.chains["dev"].ids == module(folder, tmp_path, **options).chains["dev"].ids


def test_recorded_clusters_of_complexes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(folder, tmp_path / "packed", ClusterRule(assembly="complex"))
    expected = [module(folder, tmp_path, assembly="complex", split_seed=seed).chains["dev"].ids for seed in range(3)]
    monkeypatch.setattr(split, "cluster_sequences", lambda *_, **__: pytest.fail("clustered again"))
    for seed in range(3):
        data = module(tmp_path / "packed", tmp_path, assembly="complex", split_seed=seed)
        assert data.chains["dev"].ids == expected[seed]


def test_dev_has_no_training_relative_when_clusters_are_split(folder: Path, packed: Path, tmp_path: Path) -> None:
    for seed in range(4):
        data = module(packed, tmp_path, split_seed=seed)
        dev, train = (chain_sequences(data.chains[role])[0] for role in ("dev", "train"))
        found = leakage.training_identity(dev, train, data.cluster, tmp_path)
        assert not found.any() and not data.identity["dev"].any()
    mixed = module(packed, tmp_path, split="random", split_seed=3, dev_fraction=0.5)
    expected = module(folder, tmp_path, split="random", split_seed=3, dev_fraction=0.5).identity["dev"]
    assert expected.any() and np.array_equal(mixed.identity["dev"], expected)


def test_long_leak_reports_are_skipped_loudly_and_had_on_demand(
    folder: Path, packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contactlm.data.leakage.MANY_PAIRS", 10)
    with caplog.at_level(logging.INFO, logger="contactlm"):
        assert "test" not in module(packed, tmp_path, test_dir=str(folder)).identity
    assert "leak report of the test set skipped" in caplog.text and "data.leak_report=always" in caplog.text
    assert module(packed, tmp_path, test_dir=str(folder), leak_report="always").identity["test"].max() == 1
    opened: list[int] = []
    monkeypatch.setattr(shards.PackedSet, "_opened", lambda self, number: opened.append(number))
    kept = module(packed, tmp_path, test_dir=str(folder))  # from the cache now, without a look at the training chains
    assert kept.identity["test"].max() == 1 and not opened
    assert "test" not in module(packed, tmp_path / "new", test_dir=str(folder), leak_report="never").identity


def test_residues_are_mapped_not_copied(packed: Path, tmp_path: Path) -> None:
    store, _ = open_packed(str(packed), tmp_path, "seqres", "train_dir")
    chosen = store.select(np.arange(len(store))[::-1]).select([3, 1])
    for array in (chosen.cb_of(0), chosen.tokens_of(1)):
        base: Any = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) and not array.flags.writeable
    assert chosen.ids == [store.ids[len(store) - 4], store.ids[len(store) - 2]]


def test_a_copy_for_another_process_leaves_the_shards_behind(packed: Path, tmp_path: Path) -> None:
    store, _ = open_packed(str(packed), tmp_path, "seqres", "train_dir")
    expected = [store.cb_of(i).tobytes() for i in range(len(store))]
    sent = pickle.dumps(store)
    assert len(sent) < 100 * len(store) + 8000 < sum(map(len, expected))
    again = pickle.loads(sent)
    assert [again.cb_of(i).tobytes() for i in range(len(store))] == expected


def test_few_shards_are_open_at_a_time(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = open_packed(str(packed), tmp_path, "seqres", "train_dir")
    expected = [store.cb_of(i).tobytes() for i in range(len(store))]
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    again, _ = open_packed(str(packed), tmp_path, "seqres", "train_dir")
    for i in np.random.default_rng(0).permutation(3 * len(store)) % len(store):
        assert again.cb_of(int(i)).tobytes() == expected[i]
        assert len(again.packed._open) <= 2


def use(location: object, cache: Path) -> list[bytes]:
    """Read everything."""
    store, _ = open_packed(str(location), cache, "seqres", "train_dir")
    return [store.cb_of(i).tobytes() + store.tokens_of(i).tobytes() for i in range(len(store))]


@pytest.mark.parametrize("scheme", ["file", "memory", "http"])
def test_urls(packed: Path, tmp_path: Path, scheme: str) -> None:
    expected = use(packed, tmp_path)
    if scheme == "file":
        (tmp_path / "a set").symlink_to(packed)
        assert use((tmp_path / "a set").as_uri(), tmp_path) == expected
        assert not (tmp_path / "shards").exists()  # what lies on this computer needs no copy
    elif scheme == "memory":
        files = fsspec.filesystem("memory")
        files.put(str(packed), "/sets/one", recursive=True)
        assert use("memory://sets/one/", tmp_path) == expected
        files.rm("/sets", recursive=True)
        with pytest.raises(DataError, match=r"memory://sets/one/manifest.json does not exist"):
            use("memory://sets/one", tmp_path)
    else:
        with serving(packed) as server:
            assert use(server.url, tmp_path) == expected
            assert module(server.url, tmp_path).chains["dev"].ids == module(packed, tmp_path).chains["dev"].ids


def test_shards_are_fetched_when_needed_and_once(packed: Path, tmp_path: Path) -> None:
    with serving(packed) as server:
        data = module(server.url, tmp_path)
        assert not server.shards_asked and server.asked[INDEX] == 1
        data.chains["train"].cb_of(0)
        assert server.shards_asked == [1]
        use(server.url, tmp_path)
        assert server.shards_asked == [1] * len(list(packed.glob("shard*")))
        use(server.url, tmp_path)
        assert set(server.shards_asked) == {1} and server.asked[INDEX] == 1
        use(f"{server.url}/", tmp_path / "other cache")
        assert set(server.shards_asked) == {2}


def test_several_processes_fetch_a_shard_once(packed: Path, tmp_path: Path) -> None:
    expected = use(packed, tmp_path)
    with serving(packed) as server:
        context = multiprocessing.get_context("fork")
        use_remote(server.url, tmp_path, 0)  # the parent has used the network before: children must not trip over that
        with context.Pool(4) as pool:
            results = pool.starmap(use_remote, [(server.url, tmp_path / "shared", i) for i in range(8)])
        assert results == [expected] * 8
        assert set(server.shards_asked) == {2}
    assert not list((tmp_path / "shared").rglob(".*.tmp"))


def use_remote(url: str, cache: Path, seed: int) -> list[bytes]:
    store, _ = open_packed(url, cache, "seqres", "train_dir")
    found = {}
    for i in np.random.default_rng(seed).permutation(len(store)).tolist():
        found[i] = store.cb_of(i).tobytes() + store.tokens_of(i).tobytes()
    return [found[i] for i in range(len(store))]


@pytest.mark.parametrize("fault", ["damaged", "short"])
@pytest.mark.parametrize("name", [INDEX, "shard-000002.chains"])
def test_a_damaged_download_is_fetched_again_once(
    packed: Path, tmp_path: Path, fault: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(packed) as server, caplog.at_level(logging.WARNING, logger="contactlm"):
        server.faults[name] = [fault]
        assert use(server.url, tmp_path / "a") == use(packed, tmp_path)
        assert server.asked[name] == 2 and "it is fetched again" in caplog.text
        server.faults[name] = [fault] * 9
        with pytest.raises(DataError, match=name) as caught:
            use(server.url, tmp_path / "b")
        assert server.asked[name] == 4 and server.url in str(caught.value)
        assert ("upload the set again" if fault == "damaged" else "check the network") in str(caught.value)
    assert not list((tmp_path / "b").rglob(".*.tmp"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_copy_that_rots_in_the_cache_is_fetched_again(packed: Path, tmp_path: Path) -> None:
    expected = use(packed, tmp_path)
    with serving(packed) as server:
        use(server.url, tmp_path)
        for path in (tmp_path / "shards").rglob("*.chains"):
            flip(path, -300)
        for path in (tmp_path / "shards").rglob("*chains.npz"):
            flip(path, -1)
        assert use(server.url, tmp_path) == expected
        assert set(server.shards_asked) == {2} and server.asked[INDEX] == 2


def test_every_damaged_residue_is_noticed_where_it_is_used(own: Path, tmp_path: Path) -> None:
    path = own / "shard-000001.chains"
    good, payload = path.read_bytes(), 13 * ChainStore.open(path).lengths.sum()
    for at in range(len(good) - payload, len(good), 97):
        flip(path, at)
        with pytest.raises(DataError, match=r"shard-000001\.chains: damaged.*copy it again"):
            use(own, tmp_path)
        path.write_bytes(good)
    flip(path, 3)
    with pytest.raises(DataError, match=r"shard-000001\.chains: damaged"):
        use(own, tmp_path)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_cannot_be_used_is_said_with_path_and_remedy(own: Path, folder: Path, tmp_path: Path) -> None:
    manifest, good = own / MANIFEST, (own / MANIFEST).read_bytes()

    def refused(message: str, location: object = own, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            use_all(module(location, tmp_path, **options))
        manifest.write_bytes(good)

    refused(r"packed with sequence=seqres.*asks for observed.*--sequence observed", sequence="observed")
    change(manifest, version=1)
    refused(r"manifest\.json: not a .*of version 1, not .* of version 2.*pack the structures or upload")
    change(manifest, format="something else")
    refused(r"not a packed set's manifest.*; give the folder or URL of a set written by `contactlm pack`")
    manifest.write_bytes(good[:-40])
    refused(r"manifest\.json: not a packed set's manifest.*pack the structures or upload the set again")
    change(manifest, index={"name": "../x", "size": 1, "sha256": "0" * 64, "chains": 1, "residues": 1})
    refused("damaged.*part")
    change(manifest, shards=[])
    refused("index and shards do not belong together")
    flip(own / INDEX, 50)
    refused(r"chains\.npz: damaged .*pack the structures again")
    flip(own / INDEX, 50)
    shard = own / "shard-000000.chains"
    kept = shard.read_bytes()
    shard.write_bytes(kept[:-5])
    refused(r"shard-000000\.chains: damaged .*copy it again")
    shard.unlink()
    refused(r"shard-000000\.chains: missing from the packed set.*copy the whole folder again")
    shard.write_bytes(kept)
    use_all(module(own, tmp_path))  # and all is well again
    manifest.unlink()
    (own / INDEX).unlink()
    with pytest.raises(DataError, match=r"unfinished packed set .*run the same `contactlm pack` again"):
        module(own, tmp_path)
    with pytest.raises(DataError, match=r"in/?\S*: not a packed set \(no manifest\.json"):
        module(f"file://{folder}", tmp_path)


def use_all(data: ContactDataModule) -> None:
    for store in data.chains.values():
        for i in range(len(store)):
            store.cb_of(i)


def test_no_network_and_no_such_scheme(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"http://127\.0\.0\.1:9/set/manifest\.json cannot be fetched.*check the network"
    ):
        module("http://127.0.0.1:9/set", tmp_path)
    with pytest.raises(DataError, match=r"nonsense://set/manifest\.json: .*copy the set to a local folder"):
        module("nonsense://set", tmp_path)
    with (
        serving(folder) as server,
        pytest.raises(DataError, match=r"not a packed set, or its upload is not complete"),
    ):
        module(server.url, tmp_path)


def test_a_cache_that_cannot_be_written(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(packed) as server, pytest.raises(NotADirectoryError) as error:
        use(server.url, tmp_path / "file")
    assert "cache_dir" in file_trouble(error.value)


def test_a_folder_with_a_manifest_of_something_else_is_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    (tmp_path / "in" / MANIFEST).write_text('{"name": "my web app"}')
    assert len(module(tmp_path / "in", tmp_path).chains["train"]) > 10


def test_another_version_of_the_reading_rules_is_told(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(own / MANIFEST, reader_version=0)
    with caplog.at_level(logging.WARNING, logger="contactlm"):
        use(own, tmp_path)
    assert "version 0 of the reading rules" in caplog.text


def test_unreadable_files_are_named_or_end_the_run(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="contactlm"):
        module(packed, tmp_path)
    assert "skipped f05x.pdb: " in caplog.text and "1 files that cannot be read" in caplog.text
    with pytest.raises(DataError, match=r"f05x\.pdb"):
        module(packed, tmp_path, on_bad_file="raise")


def test_real_structures(shared: Path, tmp_path: Path) -> None:
    """A list of real files, complexes and observed sequences included."""
    names = sorted((shared / "pdb" / "train").iterdir())[:12]
    (tmp_path / "list.txt").write_text("".join(f"{os.fspath(name)}\n" for name in names))
    for sequence, assemblies in (("seqres", ("chain", "complex")), ("observed", ("chain",))):
        out = tmp_path / sequence
        pack_structures([str(tmp_path / "list.txt")], out, 3000, sequence, workers=0, progress=False)
        for assembly in assemblies:
            options = {"sequence": sequence, "assembly": assembly, "crop_length": 100}
            plain, data = (module(location, tmp_path, **options) for location in (tmp_path / "list.txt", out))
            assert samples(data, 0, 1, 8) == samples(plain, 0, 1, 8)
