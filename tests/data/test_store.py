import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from contactlm.data.dataset import CropDataset, collate
from contactlm.data.store import ChainStore
from contactlm.types import Chain, DataError
from tests.conftest import random_sequence


def make_chain(name: str, length: int, seed: int) -> Chain:
    coordinates = np.random.default_rng(seed).normal(size=(length, 3)).astype(np.float32)
    resolved = np.random.default_rng(seed).random(length) > 0.3
    coordinates[~resolved] = np.nan
    return Chain(name, random_sequence(seed, length), coordinates, coordinates, resolved)


def make_store() -> tuple[list[Chain], ChainStore]:
    chains = [make_chain(f"c{i}", length, i) for i, length in enumerate((5, 1, 40))]
    return chains, ChainStore.from_chains(chains, {"note": "ä"})


@pytest.mark.parametrize("memory_map", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, memory_map: bool) -> None:
    chains, store = make_store()
    store.write(tmp_path / "s.chains")
    again = ChainStore.open(tmp_path / "s.chains", memory_map)
    assert again.ids == ["c0", "c1", "c2"] and again.meta == {"note": "ä"}
    for i, chain in enumerate(chains):
        assert again.sequence_of(i) == chain.sequence
        np.testing.assert_array_equal(again.cb_of(i), chain.cb)
        assert again.resolved_counts()[i] == chain.resolved.sum()


def test_selection_keeps_order_and_is_written_compactly(tmp_path: Path) -> None:
    chains, store = make_store()
    picked = store.select([2, 0])
    assert picked.cb is store.cb
    picked.write(tmp_path / "s.chains")
    again = ChainStore.open(tmp_path / "s.chains")
    assert again.ids == ["c2", "c0"] and len(again.tokens) == 45
    np.testing.assert_array_equal(again.cb_of(1), chains[0].cb)


def test_thirteen_bytes_a_residue(tmp_path: Path) -> None:
    chain = make_chain("c", 10_000, 0)
    ChainStore.from_chains([chain]).write(tmp_path / "s.chains")
    assert 13 * 10_000 <= (tmp_path / "s.chains").stat().st_size < 13 * 10_000 + 512


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.chains"
    make_store()[1].write(path)
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(DataError, match=r"s\.chains"):
            ChainStore.open(path)
    for length in (0, 5, 24, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(DataError, match=r"s\.chains"):
            ChainStore.open(path)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = make_store()
    store.write(tmp_path / "s.chains")
    before = (tmp_path / "s.chains").read_bytes()

    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.select([0]).write(tmp_path / "s.chains")
    assert (tmp_path / "s.chains").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.chains"]


def mapped_store(path: Path, length: int = 50_000) -> ChainStore:
    ChainStore.from_chains([make_chain(f"c{i}", length, i) for i in range(3)]).write(path)
    return ChainStore.open(path)


def test_a_mapped_store_travels_as_its_path(tmp_path: Path) -> None:
    store = mapped_store(tmp_path / "s.chains")
    for picked in (store, store.select([2, 0])):
        sent = pickle.dumps(picked)
        assert len(sent) < 2000  # and 13 bytes a residue otherwise: 1.9 MB
        again = pickle.loads(sent)
        assert again.ids == picked.ids and isinstance(again.cb, np.memmap)
        for i in range(len(picked)):
            np.testing.assert_array_equal(again.cb_of(i), picked.cb_of(i))
            np.testing.assert_array_equal(again.tokens_of(i), picked.tokens_of(i))
    in_memory = pickle.loads(pickle.dumps(make_store()[1]))
    np.testing.assert_array_equal(in_memory.cb, make_store()[1].cb)


def test_a_store_whose_file_is_gone_travels_by_value_or_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.chains"
    store = mapped_store(path, 1000)
    on_its_way = pickle.dumps(store)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"s\.chains: \d+ bytes, and \d+ when it was opened"):
        pickle.loads(on_its_way)
    path.unlink()
    with pytest.raises(DataError, match=r"s\.chains: went away"):
        pickle.loads(on_its_way)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).tokens, store.tokens)


@pytest.mark.slow
def test_processes_that_are_not_forked_make_the_same_batches(tmp_path: Path) -> None:
    dataset = CropDataset(mapped_store(tmp_path / "s.chains", 300), 40)
    context = multiprocessing.get_context("forkserver")
    loader = DataLoader(dataset, 2, num_workers=1, collate_fn=collate, multiprocessing_context=context)
    for ours, theirs in zip(loader, DataLoader(dataset, 2, collate_fn=collate), strict=True):
        assert ours["ids"] == theirs["ids"]
        np.testing.assert_array_equal(ours["cb"], theirs["cb"])
