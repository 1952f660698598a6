"""Batches by cost: what holds in every epoch, on made lengths and on real files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from contactlm import ContactDataModule
from contactlm.data.batches import CostBound, CostSampler, cut, padding, split
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.loaders import WholeBatches, collate_weighted
from contactlm.data.store import ChainStore, join_chains
from contactlm.data.stream import StreamLoader
from contactlm.types import DataError
from tests.conftest import random_sequence, write_pdb
from tests.data import test_complex

TOKENS, PAIRS = CostBound("tokens", 2000), CostBound("pairs", 300_000)


def store_of(lengths: NDArray[np.int64]) -> ChainStore:
    """Chains of these lengths; their residues are all the same ones, since only lengths matter here."""
    residues = int(lengths.max())
    return ChainStore(
        [f"c{i}" for i in range(len(lengths))],
        np.zeros(len(lengths), np.int64),
        lengths,
        np.zeros((residues, 3), np.float32),
        np.full(residues, 5, np.uint8),
    )


def made_lengths(n: int, seed: int) -> NDArray[np.int64]:
    """Lengths spread like those of proteins: log-normal, about 30 to 1,200."""
    return np.random.default_rng(seed).lognormal(5.2, 0.6, n).clip(30, 1200).astype(np.int64)


def made(n: int = 150, seed: int = 0, groups: NDArray[np.int64] | None = None) -> CropDataset:
    return CropDataset(store_of(made_lengths(n, seed)), 0, "whole", seed, groups=groups)


def flat(plan: list[list[NDArray[np.int64]]]) -> list[list[int]]:
    return [batch.tolist() for step in plan for batch in step]


@pytest.mark.parametrize("seed", range(8))
def test_cutting_sorted_costs_takes_as_few_batches_as_can_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.integers(1, 60, 12))[::-1].tolist()
    parts = cut(costs, 60)
    assert [n for part in parts for n in range(*part)] == list(range(12))
    assert all((stop - start) * max(costs[start:stop]) <= 60 for start, stop in parts)
    # all ways to cut: a batch of neighbours in order is never worse than one of any others
    fewest = min(
        len(ends) + 1
        for k in range(12)
        for ends in itertools.combinations(range(1, 12), k)
        if all((b - a) * costs[a] <= 60 for a, b in itertools.pairwise([0, *ends, 12]))
    )
    assert len(parts) == fewest


def test_what_costs_more_than_the_bound_is_alone() -> None:
    assert cut([70, 20, 20, 20, 61, 5], 60) == [(0, 1), (1, 4), (4, 5), (5, 6)]
    assert cut([], 60) == []


@pytest.mark.parametrize("seed", range(8))
def test_a_split_is_where_it_saves_most_padding(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(30, 400, 15)
    options = [[(0, k), (k, 15)] for k in range(1, 15)]
    assert padding(lengths, split([(0, 15)], lengths, count=2)) == min(padding(lengths, both) for both in options)
    shares = [padding(lengths, split([(0, 15)], lengths, count)) for count in range(1, 16)]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0
    wanted = split([(0, 15)], lengths, most_padding=0.1)
    assert padding(lengths, wanted) <= 0.1 < padding(lengths, split([(0, 15)], lengths, len(wanted) - 1))


def test_batches_of_one_length_are_split_evenly() -> None:
    assert split([(0, 8)], np.full(8, 50), count=4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert split([(0, 2)], np.full(2, 50), count=9) == [(0, 1), (1, 2)]  # more there cannot be


@pytest.mark.parametrize("bound", [TOKENS, PAIRS, CostBound("tokens", 600), CostBound("pairs", 10**9)], ids=str)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_an_epoch_is_every_sample_once_in_bounded_batches(bound: CostBound, world: int) -> None:
    groups = np.random.default_rng(5).integers(0, 60, 150)
    for dataset in (made(), made(groups=groups), CropDataset(made().store, 200, "random")):
        sampler = CostSampler(dataset, bound, 0, world)
        size = len(dataset)
        assert sampler.samples == size
        for epoch in range(6):
            plan = sampler.plan(epoch)
            assert len(plan) == sampler.batches and {len(step) for step in plan} == {world}
            numbers = [n for batch in flat(plan) for n in batch]
            assert sorted(numbers) == list(range(epoch * size, (epoch + 1) * size))
            for batch in flat(plan):
                longest = max(len(dataset[n]["tokens"]) for n in batch)
                assert batch and (len(batch) == 1 or len(batch) * bound.of(np.array(longest)) <= bound.most)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_share_the_plan_which_is_a_function_of_seed_and_epoch(seed: int) -> None:
    ranks = [CostSampler(made(seed=seed), TOKENS, rank, 2) for rank in range(2)]
    forward = []
    for epoch in range(4):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        dealt = [list(sampler) for sampler in ranks]
        assert len(dealt[0]) == len(dealt[1]) == len(ranks[0])
        forward.append([list(step) for step in zip(*dealt, strict=True)])
    again = CostSampler(made(seed=seed), TOKENS, 0, 2)
    for epoch in (3, 1, 0, 2):
        assert [[batch.tolist() for batch in step] for step in again.plan(epoch)] == forward[epoch]
    other = CropDataset(made(seed=seed).store, 0, "whole", seed + 1)
    assert flat(CostSampler(other, TOKENS, 0, 2).plan(0)) != flat(again.plan(0))


def test_epochs_differ_in_company_and_order_and_are_not_sorted() -> None:
    dataset = made()
    sampler = CostSampler(dataset, TOKENS)
    companies, orders, met = set(), set(), [set() for _ in range(150)]  # type: ignore[var-annotated]
    for epoch in range(8):
        batches = [dataset.chains_of(epoch)[np.array(batch) % 150] for batch in flat(sampler.plan(epoch))]
        companies.add(frozenset(frozenset(batch.tolist()) for batch in batches))
        longest = tuple(int(dataset.store.lengths[batch].max()) for batch in batches)
        assert list(longest) not in (sorted(longest), sorted(longest, reverse=True))
        orders.add(longest)
        for batch in batches:
            for chain in batch:
                met[chain] |= set(batch.tolist())
    assert len(companies) == len(orders) == 8
    once = np.mean([len(batch) for batch in batches for _ in batch])
    assert np.mean([len(others) for others in met]) > 1.5 * once  # sorting alone would keep the same company


@pytest.mark.parametrize("unit", ["tokens", "pairs"])
def test_padding_is_little_and_processes_wait_little(unit: str) -> None:
    dataset = made(2000)
    bound = CostBound("tokens", 4096) if unit == "tokens" else CostBound("pairs", 1_000_000)
    sampler = CostSampler(dataset, bound, 0, 4)
    for epoch in range(3):
        plan, lengths = sampler.plan(epoch), dataset.residues_of(epoch)
        costs = np.array([[len(b) * int(bound.of(lengths[b % 2000].max())) for b in step] for step in plan])
        assert costs.max(1).sum() < 1.025 * costs.mean(1).sum()  # a step takes as long as its dearest batch
        assert costs.mean() > 0.75 * bound.most
        assert sampler.padding(epoch) < 0.05


@pytest.mark.parametrize("scheme", ["random", "cut", "two_segments", "whole"])
def test_padding_is_that_of_collated_batches(scheme: str) -> None:
    dataset = CropDataset(made(60).store, 150, scheme)  # type: ignore[arg-type]
    sampler = CostSampler(dataset, TOKENS)
    sampler.set_epoch(2)
    masks = [collate([dataset[n] for n in batch])["attention_mask"] for batch in sampler]
    expected = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert sampler.padding(2) == pytest.approx(expected, abs=1e-12)
    assert max(mask.numel() for mask in masks) <= 2000


@pytest.mark.parametrize(("n", "world"), [(3, 2), (5, 8), (1, 4), (9, 4)])
def test_with_fewer_samples_than_batches_some_are_taken_twice_and_none_is_lost(n: int, world: int) -> None:
    sampler = CostSampler(made(n), CostBound("tokens", 10), 0, world)  # every sample is alone
    extra = -n % world
    for epoch in range(4):
        numbers = [k for batch in flat(sampler.plan(epoch)) for k in batch]
        assert len(numbers) == n + extra and set(numbers) == set(range(epoch * n, (epoch + 1) * n))
        assert max(numbers.count(k) for k in numbers) <= -(-(n + extra) // n)
    assert ("twice" in sampler.describe()) == bool(extra)
    assert f"{n} samples above the limit" in sampler.describe()


def test_two_workers_and_a_resumed_loader_give_the_same_batches() -> None:
    def loader(workers: int) -> StreamLoader:
        dataset = CropDataset(made(40).store, 100, "random")
        sampler = CostSampler(dataset, TOKENS, 1, 2)
        return StreamLoader(WholeBatches(dataset), sampler, num_workers=workers)

    whole = []
    plain = loader(0)
    for epoch in range(2):
        plain.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        whole.append([(batch["ids"], batch["starts"].tolist()) for batch in plain])
    assert len(whole[0]) == len(whole[1]) == len(plain)
    for workers, start in ((0, (0, 3)), (0, (1, 1)), (2, (1, 2))):
        again = loader(workers)
        again.load_state_dict({"epoch": start[0], "batch": start[1]})
        assert [(b["ids"], b["starts"].tolist()) for b in again] == whole[start[0]][start[1] :]


def test_weighted_batches_make_the_mean_over_proteins() -> None:
    dataset = made(80)
    sampler = CostSampler(dataset, TOKENS, 0, 2)
    of_protein = {name: float(value) for name, value in zip(dataset.store.ids, np.random.rand(80), strict=True)}  # noqa: NPY002
    steps = []
    for step in sampler.plan(0):
        batches = [collate_weighted([dataset[n] for n in numbers], sampler.mean_size) for numbers in step]
        means = [torch.tensor([of_protein[name] for name in batch["ids"]]).mean() for batch in batches]
        steps += [float(b["loss_weight"] * mean) for b, mean in zip(batches, means, strict=True)]
    assert np.mean(steps) == pytest.approx(np.mean(list(of_protein.values())), rel=1e-6)


def test_chains_of_a_cluster_take_turns() -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 1, 2, 3, 4, 6, 12]
    groups = rng.permutation(np.repeat(np.arange(7) * 10, sizes))  # numbers need not be 0 … G − 1
    dataset = made(len(groups), groups=groups)
    counts = np.zeros(len(groups))
    epochs = 120  # a multiple of every size
    orders = set()
    for epoch in range(epochs):
        chains = dataset.chains_of(epoch)
        assert sorted(groups[chains]) == [0, 10, 20, 30, 40, 50, 60]
        orders.add(tuple(groups[chains]))
        counts[chains] += 1
    np.testing.assert_array_equal(counts, epochs / np.array([sizes[g // 10] for g in groups]))  # 1 / cluster size
    assert len(orders) > 100
    again = made(len(groups), groups=groups)
    for epoch in (7, 3, 100):
        np.testing.assert_array_equal(again.chains_of(epoch), made(len(groups), groups=groups).chains_of(epoch))
    assert [again[9 * 7 + k]["index"] for k in range(7)] == again.chains_of(9).tolist()
    first = {tuple(sorted(CropDataset(again.store, 0, "whole", seed, groups=groups).chains_of(0))) for seed in range(9)}
    assert len(first) > 5


def test_the_longest_an_epoch_can_have() -> None:
    groups = np.array([0, 1, 0, 1, 2])
    store = store_of(np.array([50, 90, 70, 40, 300]))
    assert sorted(CropDataset(store, 0, "whole", groups=groups).longest()) == [70, 90, 300]
    assert sorted(CropDataset(store, 80, groups=groups).longest()) == [70, 80, 80]
    assert sorted(CropDataset(store, 80).longest()) == [40, 50, 70, 80, 80]


def family(root: Path) -> Path:
    """Four relatives in files of their own and with a partner chain, and three chains without relatives."""
    parent = random_sequence(0, 60)
    for i in range(4):
        write_pdb(root / f"r{i}.pdb", {"A": parent[:-1] + "ACDE"[i], "B": random_sequence(40 + i, 50)}, seed=i)
    for i in range(3):
        write_pdb(root / f"x{i}.pdb", {"A": random_sequence(10 + i, 70)}, seed=10 + i)
    return root


@pytest.mark.parametrize("split_by", ["cluster", "random"])
@pytest.mark.parametrize(("assembly", "clusters", "entries"), [("chain", 8, 11), ("complex", 4, 7)])
def test_data_module_weighs_clusters_of_chains_and_of_complexes(
    tmp_path: Path, split_by: str, assembly: str, clusters: int, entries: int
) -> None:
    options = {"assembly": assembly, "split": split_by, "weights": "cluster", "dev_fraction": 0.0, "read_workers": 0}
    data = ContactDataModule(str(family(tmp_path)), crop="whole", batch_size=2, **options)  # type: ignore[arg-type]
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    assert isinstance(dataset, CropDataset) and len(data.chains["train"]) == entries
    for epoch in range(8):
        names = [data.chains["train"].ids[i] for i in dataset.chains_of(epoch)]
        relatives = [name for name in names if name in {f"r{k}_A" for k in range(4)} | {f"r{k}" for k in range(4)}]
        assert len(names) == clusters and len(relatives) == 1
    # of the held out there are none among the weighted
    held = ContactDataModule(str(tmp_path), **(options | {"dev_fraction": 0.2}))  # type: ignore[arg-type]
    held.setup("fit")
    train = held.train_dataloader().dataset
    assert isinstance(train, CropDataset) and len(train) < clusters + (split_by == "random")
    assert set(train.chains_of(0)) <= set(range(len(held.chains["train"])))


def test_joined_complexes_are_bounded_by_their_whole_length() -> None:
    store = join_chains(test_complex.store_of((60, 40), (90,), (30, 30, 30), (20, 100)))
    sampler = CostSampler(CropDataset(store, 0, "whole"), CostBound("tokens", 210))
    for batch in sampler:
        collated = collate([sampler.stream[n] for n in batch])
        assert collated["tokens"].numel() <= 210 and "chain_of" in collated


def test_options_of_the_data_module() -> None:
    with pytest.raises(DataError, match="batch_tokens is 9 and batch_pairs 8: give one of them"):
        ContactDataModule(batch_tokens=9, batch_pairs=8)
    with pytest.raises(DataError, match="batch_pairs is 0; it must be at least 1"):
        ContactDataModule(batch_pairs=0)
    assert ContactDataModule().bound is None
    assert ContactDataModule(batch_pairs=8).bound == CostBound("pairs", 8)


@pytest.fixture(scope="module")
def real_chains(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ContactDataModule:
    folder = shared / "pdb" / "train"
    cache = str(tmp_path_factory.mktemp("cache"))
    data = ContactDataModule(str(folder), dev_fraction=0.0, weights="cluster", cache_dir=cache, read_workers=0)
    data.setup("fit")
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    "bound", [CostBound("tokens", m) for m in (1500, 3000, 8192)] + [PAIRS, CostBound("pairs", 10**6)]
)
def test_padding_on_real_files(real_chains: ContactDataModule, bound: CostBound) -> None:
    weighted = real_chains.train_dataloader().dataset
    assert isinstance(weighted, CropDataset)
    for groups in (None, weighted.groups):
        dataset = CropDataset(real_chains.chains["train"], 0, "whole", groups=groups)
        for world in (1, 4):
            sampler = CostSampler(dataset, bound, 0, world)
            assert max(sampler.padding(epoch) for epoch in range(3)) < 0.05
        size = round(CostSampler(dataset, bound).mean_size)
        lengths = dataset.residues_of(0)  # the order of an epoch is random
        at_random = padding(lengths, [(a, min(a + size, len(lengths))) for a in range(0, len(lengths), size)])
        assert at_random > 0.30


@pytest.mark.slow
def test_clusters_of_real_files_are_visited_once_an_epoch(real_chains: ContactDataModule) -> None:
    dataset = real_chains.train_dataloader().dataset
    assert isinstance(dataset, CropDataset) and dataset.groups is not None
    groups = dataset.groups
    sizes = np.bincount(groups)
    assert len(sizes) == len(dataset) < len(groups) and sizes.max() > 2
    counts = np.zeros(len(groups))
    epochs = int(np.lcm.reduce(np.unique(sizes)))
    for epoch in range(min(epochs, 120)):
        chains = dataset.chains_of(epoch)
        assert (np.bincount(groups[chains]) == 1).all()
        counts[chains] += 1
    expected = min(epochs, 120) / sizes[groups]
    assert np.abs(counts - expected).max() < 1


def test_a_loader_of_workers_sees_no_more_than_its_share() -> None:
    dataset = made(50)
    seen = []
    for rank in range(2):
        loader: DataLoader[int] = StreamLoader(
            WholeBatches(dataset), CostSampler(dataset, TOKENS, rank, 2), num_workers=2
        )
        seen += [name for batch in loader for name in batch["ids"]]
    assert sorted(seen) == sorted(dataset.store.ids)


WAYS: list[tuple[CostBound, int]] = [(TOKENS, 1), (CostBound("tokens", 1000), 2), (PAIRS, 3), (TOKENS, 1)]


def taken_by(samplers: list[CostSampler], epoch: int, batch: int, steps: int) -> tuple[list[list[list[int]]], int, int]:
    """What processes take in some steps from a batch of an epoch on, as a trainer asks them; and where they end."""
    taken: list[list[list[int]]] = []
    while len(taken) < steps:
        for sampler in samplers:
            sampler.set_epoch(epoch)
        some = [list(step) for step in zip(*samplers, strict=True)][: steps - len(taken)]
        taken += some
        batch = samplers[0].first_batch + len(some)
        epoch, batch = (epoch + 1, 0) if batch >= samplers[0].batches else (epoch, batch)
    return taken, epoch, batch


def resumed(dataset: CropDataset, way: tuple[CostBound, int], place: dict[str, Any]) -> list[CostSampler]:
    samplers = [CostSampler(dataset, way[0], rank, way[1]) for rank in range(way[1])]
    for sampler in samplers:
        sampler.resume(**json.loads(json.dumps(place)))
    return samplers


@pytest.mark.parametrize("seed", range(6))
def test_with_other_processes_and_bounds_each_sample_of_a_pass_is_still_taken_once(seed: int) -> None:
    rng, size = np.random.default_rng(seed), 60
    groups = rng.permutation(np.repeat(np.arange(size), 2))
    dataset = made(2 * size, seed, groups) if seed % 2 else made(size, seed)
    samplers, epoch, batch, numbers = [CostSampler(dataset, TOKENS)], 0, 0, list[int]()
    for n, way in enumerate([*WAYS, *WAYS[1:]]):
        if n:
            samplers = resumed(dataset, way, samplers[0].place(epoch, batch))
        steps, epoch, batch = taken_by(samplers, epoch, batch, int(rng.integers(1, samplers[0].batches + 3)))
        for each in (each for step in steps for each in step):
            longest = max(len(dataset[number]["tokens"]) for number in each)
            assert each and (len(each) == 1 or len(each) * way[0].of(np.array(longest)) <= way[0].most)
        numbers += [number for step in steps for each in step for number in each]
    whole = len(numbers) // size * size
    assert whole >= 2 * size and sorted(numbers[:whole]) == list(range(whole))  # pass after pass, and each sample once
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("seed", range(3))
def test_what_goes_on_among_as_many_is_the_unbroken_run_also_after_a_change(seed: int) -> None:
    dataset = made(60, seed)
    for before, way in itertools.permutations(WAYS[:3], 2):
        first = [CostSampler(dataset, before[0], rank, before[1]) for rank in range(before[1])]
        _, epoch, batch = taken_by(first, 0, 0, 3)
        changed = resumed(dataset, way, first[0].place(epoch, batch))
        whole, *_ = taken_by(changed, epoch, batch, 2 * changed[0].batches)
        for steps in (1, 4, changed[0].batches, changed[0].batches + 2):  # amid what was left, and amid a pass
            _, then, at = taken_by(changed, epoch, batch, steps)
            again = resumed(dataset, way, changed[0].place(then, at))
            assert taken_by(again, then, at, len(whole) - steps)[0] == whole[steps:]


def test_going_on_with_another_number_of_batches_is_told(caplog: pytest.LogCaptureFixture) -> None:
    dataset = made(40)
    loaders = [StreamLoader(WholeBatches(dataset), CostSampler(dataset, b), lambda: (1, 2)) for b in (TOKENS, PAIRS)]
    state = loaders[0].state_dict()
    old = {"epoch": 1, "batch": 2, "batches": len(loaders[0])}  # as older checkpoints have it
    assert state == old | {"size": 40, "pass": 1, "taken": [["tokens", 2000, 1, 2]]}
    with caplog.at_level("WARNING", logger="contactlm"):
        loaders[0].load_state_dict(state)
        loaders[1].load_state_dict(old | {"batch": 0})  # between epochs nothing comes twice
        loaders[1].load_state_dict({"epoch": 1, "batch": 2})  # as still older ones have it
        assert not caplog.records
        loaders[1].load_state_dict(state)
        left = sum(map(len, flat(loaders[0].sampler.plan(1)[2:])))  # type: ignore[attr-defined]
        assert (
            f"2000 tokens in 1 processes, now of at most 300000 pairs in 1: "
            f"it finishes the epoch with the remaining {left} s" in caplog.text
        )
        loaders[1].load_state_dict(old)
        assert f"had {len(loaders[0])} batches an epoch and process, this one has {len(loaders[1])}" in caplog.text
        caplog.clear()
        loaders[1].load_state_dict(state | {"size": 39})
    assert "this one has" in caplog.text
