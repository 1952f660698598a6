"""Complexes: all chains of a file as one sample, from the store to the batch."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactDataModule, contact_map, read_chains
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.leakage import best_of_chains
from contactlm.data.split import join_groups
from contactlm.data.store import ChainStore, chain_sequences, join_chains
from contactlm.structure.contacts import contact_labels
from contactlm.types import CHAIN_JUMP, DataError, chain_numbers, residue_positions
from tests.conftest import random_sequence, write_pdb
from tests.data.test_store import make_chain

KEYS = {"ids", "tokens", "attention_mask", "cb", "lengths", "residue_count", "starts", "indices"}


def store_of(*files: tuple[int, ...]) -> ChainStore:
    """A store of made chains, given their lengths by file."""
    chains, file_of_chain = [], []
    for file, lengths in enumerate(files):
        for k, length in enumerate(lengths):
            chains.append(make_chain(f"f_{file}_{chr(65 + k)}", length, 10 * file + k))
            file_of_chain.append(file)
    return ChainStore.from_chains(chains, {"file_of_chain": file_of_chain})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two chains (alike but for the first two residues), of three with a short one, and of one."""
    root = tmp_path_factory.mktemp("complexes")
    for i in range(4):
        same = random_sequence(i, 20)
        write_pdb(root / f"d{i}.pdb", {"A": same, "B": same, "C": random_sequence(50 + i, 4)}, seed=i)
        write_pdb(root / f"m{i}.pdb", {"A": random_sequence(20 + i, 33)}, seed=20 + i)
    write_pdb(root / "tiny.pdb", {"A": "MK", "B": "GA"}, seed=9)
    return root


def module_of(folder: Path, **options: object) -> ContactDataModule:
    defaults: dict[str, object] = {"assembly": "complex", "min_length": 10, "read_workers": 0, "dev_fraction": 0.0}
    data = ContactDataModule(str(folder), **(defaults | options))  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_positions_leave_a_gap_between_chains() -> None:
    lengths = (3, 1, 2)
    assert chain_numbers(lengths).tolist() == [0, 0, 0, 1, 2, 2]
    first, second = 3 + CHAIN_JUMP, 4 + 2 * CHAIN_JUMP
    assert residue_positions(lengths).tolist() == [0, 1, 2, first, second, second + 1]
    assert residue_positions((7,)).tolist() == list(range(7))


def test_joining_keeps_every_residue_in_file_order() -> None:
    files = ((5, 9), (7,), (3, 1, 40))
    chains = store_of(*files)
    joined = join_chains(chains)
    assert joined.ids == ["f_0", "f_1_A", "f_2"]
    assert joined.chain_lengths == list(files) and joined.lengths.tolist() == [14, 7, 44]
    assert joined.meta["file_of_chain"] == [0, 1, 2]
    n = 0
    for i, lengths in enumerate(files):
        members = range(n, n + len(lengths))
        assert joined.sequence_of(i) == "".join(chains.sequence_of(k) for k in members)
        np.testing.assert_array_equal(joined.cb_of(i), np.concatenate([chains.cb_of(k) for k in members]))
        n += len(lengths)
    assert joined.cb is chains.cb
    assert joined.resolved_counts().sum() == chains.resolved_counts().sum()
    assert len(join_chains(ChainStore.from_chains([], {"file_of_chain": []}))) == 0


def test_chains_that_were_selected_before_cannot_be_joined() -> None:
    apart = store_of((5, 9, 4)).select([0, 2])
    with pytest.raises(ValueError, match="before any is left out"):
        join_chains(
            ChainStore(apart.ids, apart.starts, apart.lengths, apart.cb, apart.tokens, {"file_of_chain": [0, 0]})
        )


def test_chain_lengths_are_selected_written_and_laid_with_their_entries(tmp_path: Path) -> None:
    joined = join_chains(store_of((5, 9), (7,), (3, 1, 40)))
    chosen = joined.select([2, 0])
    assert (chosen.ids, chosen.chain_lengths) == (["f_2", "f_0"], [(3, 1, 40), (5, 9)])
    chosen.write(tmp_path / "s.chains")
    again = ChainStore.open(tmp_path / "s.chains")
    assert again.chain_lengths == chosen.chain_lengths and again.sequence_of(1) == joined.sequence_of(0)
    mixed = ChainStore.concatenate([store_of((6,)), chosen])
    assert mixed.chain_lengths == [(6,), (3, 1, 40), (5, 9)]
    plain = store_of((6, 2))
    plain.write(tmp_path / "p.chains")
    assert ChainStore.open(tmp_path / "p.chains").chain_lengths is None


def test_labels_across_chains_are_those_of_the_structure(folder: Path) -> None:
    data = module_of(folder)
    store = data.chains["train"]
    assert len(store) == 8
    for i, name in enumerate(store.ids):
        chains = read_chains(folder / f"{name.split('_')[0]}.pdb")
        assert store.sequence_of(i) == "".join(chain.sequence for chain in chains)
        batch = collate([CropDataset(store, 0, "whole", shuffle=False)[i]])
        expected = contact_map(np.concatenate([chain.cb for chain in chains]))
        np.testing.assert_array_equal(contact_labels(batch["cb"])[0].numpy(), expected)
        numbers = batch["chain_of"][0]
        across = expected[(numbers[:, None] != numbers).numpy()]
        assert (across == 1).any() == (len(chains) > 1)


@pytest.mark.parametrize("seed", range(20))
def test_crops_commute_with_labels_and_keep_positions_across_the_boundary(seed: int) -> None:
    lengths = (20, 15, 30)
    store = join_chains(store_of(lengths))
    sample = CropDataset(store, 25, seed=seed)[seed]
    batch = collate([sample])
    crop = slice(sample["start"], sample["start"] + 25)
    whole = contact_labels(torch.tensor(store.cb_of(0)))
    assert torch.equal(contact_labels(batch["cb"])[0], whole[crop, crop])
    numbers = [k for k, length in enumerate(lengths) for _ in range(length)][crop]
    assert batch["chain_of"].tolist() == [numbers]
    positions = batch["positions"][0]
    steps = [1 + CHAIN_JUMP * (b - a) for a, b in itertools.pairwise(numbers)]
    assert positions[0] == 0 and positions.diff().tolist() == [1, *steps, 1]


def test_a_batch_pads_positions_and_chain_numbers() -> None:
    dataset = CropDataset(join_chains(store_of((2, 1), (5,))), 0, "whole", shuffle=False)
    batch = collate([dataset[0], dataset[1]])
    assert batch["positions"].tolist() == [[0, 1, 2, 3 + CHAIN_JUMP, 4 + CHAIN_JUMP, 0, 0], [0, 1, 2, 3, 4, 5, 6]]
    assert batch["chain_of"].tolist() == [[0, 0, 1, -1, -1], [0, 0, 0, 0, 0]]
    assert batch["positions"].dtype == batch["chain_of"].dtype == torch.int64


def test_a_complex_of_one_chain_is_the_chain(folder: Path) -> None:
    plain = module_of(folder, assembly="chain").chains["train"]
    complexes = module_of(folder).chains["train"]
    ids = [f"m{i}_A" for i in range(4)]
    for name in ids:
        chain, alone = (
            collate([CropDataset(store, 0, "whole", shuffle=False)[store.ids.index(name)]])
            for store in (plain, complexes)
        )
        assert set(chain) == KEYS and set(alone) == KEYS | {"positions", "chain_of"}
        for key in ("tokens", "attention_mask", "cb", "lengths", "starts"):
            torch.testing.assert_close(alone[key], chain[key], rtol=0, atol=0, equal_nan=True)
        assert alone["positions"].tolist() == [list(range(35))]
        assert not alone["chain_of"].any()


def test_copies_and_short_chains_stay_and_short_complexes_go(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="contactlm"):
        data = module_of(folder)
    store = data.chains["train"]
    assert sorted(store.ids) == sorted([f"d{i}" for i in range(4)] + [f"m{i}_A" for i in range(4)])
    assert store.chain_lengths is not None and store.chain_lengths[store.ids.index("d0")] == (20, 20, 4)
    assert "8 complexes from 9 files" in caplog.text and "1 complexes shorter than 10 residues" in caplog.text
    with pytest.raises(DataError, match="9 complexes shorter than 100 residues"):
        module_of(folder, min_length=100)


def test_predicted_complexes_have_all_chains(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text(f">one\n{random_sequence(0, 12)}\n")
    sources = [str(folder / "d0.pdb"), str(tmp_path / "a.fasta")]
    data = ContactDataModule(predict_paths=sources, assembly="complex", read_workers=0)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["ids"] == ["one", "d0"]
    assert batch["chain_of"][1].bincount().tolist() == [20, 20, 4]
    assert (batch["chain_of"][0] >= 0).sum() == 12


def test_a_real_file_of_several_chains_is_one_sample(shared: Path, tmp_path: Path) -> None:
    path = shared / "pdb" / "train" / "1A2P.pdb.gz"
    if not path.is_file():
        pytest.skip("1A2P is not at hand")
    (tmp_path / "list.txt").write_text(f"{path}\n")
    data = module_of(tmp_path / "list.txt")
    chains = read_chains(path)
    assert [chain.id[-2:] for chain in chains] == ["_A", "_B", "_C"]
    store = data.chains["train"]
    assert store.chain_lengths == [tuple(len(chain) for chain in chains)]
    assert store.lengths.tolist() == [sum(len(chain) for chain in chains)]
    assert store.ids == [chains[0].id.removesuffix("_A")]
    labels = contact_labels(torch.tensor(store.cb_of(0)))
    numbers = torch.from_numpy(chain_numbers(store.chain_lengths[0]))
    assert (labels[numbers[:, None] != numbers] == 1).any()


@pytest.mark.parametrize("seed", range(10))
def test_complexes_that_share_a_group_of_chains_are_one_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    entries = np.sort(np.concatenate([np.arange(12), rng.integers(12, size=8)]))
    groups = rng.integers(14, size=20)
    got = join_groups(groups, entries)
    expected = connected_component_ids(12, entries.tolist(), groups.tolist())
    assert len(got) == 12
    for i in range(12):
        for j in range(12):
            assert (got[i] == got[j]) == (expected[i] == expected[j])
    assert sorted(set(got.tolist())) == list(range(got.max() + 1))
    assert join_groups(groups, np.arange(20)) is groups


def connected_component_ids(n: int, entries: list[int], groups: list[int]) -> list[int]:
    """By walking from each entry to all that share a group with one reached, the plain way."""
    members = [{g for e, g in zip(entries, groups, strict=True) if e == entry} for entry in range(n)]
    component = [-1] * n
    for start in range(n):
        reached = [start] if component[start] < 0 else []
        for entry in reached:
            component[entry] = start
            reached += [k for k in range(n) if component[k] < 0 and k not in reached and members[k] & members[entry]]
    return component


def test_chains_of_complexes_are_compared_one_by_one() -> None:
    plain = store_of((5, 9), (7,), (3, 1))
    sequences, entries = chain_sequences(join_chains(plain))
    assert sequences == [plain.sequence_of(i) for i in range(5)] and entries.tolist() == [0, 0, 1, 2, 2]
    assert chain_sequences(plain)[1].tolist() == list(range(5))
    values = np.array([0.1, 0.5, 0.2, 0.9, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(best_of_chains(values, entries), values[[1, 2, 3]])


def test_a_shared_chain_keeps_complexes_on_one_side_of_the_split(tmp_path: Path) -> None:
    shared_chain = random_sequence(99, 40)
    for i in range(6):
        write_pdb(tmp_path / f"s{i}.pdb", {"A": random_sequence(i, 45), "B": shared_chain}, seed=i)
        write_pdb(tmp_path / f"o{i}.pdb", {"A": random_sequence(20 + i, 45), "B": random_sequence(40 + i, 40)}, seed=i)
    for split in ("cluster", "random"):
        for seed in range(4):
            data = module_of(tmp_path, dev_fraction=0.4, split=split, split_seed=seed)
            sides = [{name for name in data.chains[role].ids if name[0] == "s"} for role in ("train", "dev")]
            assert sorted(map(len, sides)) == [0, 6]
            assert not data.identity["dev"].any() and len(data.identity["dev"]) == len(data.chains["dev"])
