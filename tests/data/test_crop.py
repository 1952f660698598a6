from collections import Counter

import numpy as np
import pytest
import torch

from contactlm.alphabet import CLS, EOS, PAD
from contactlm.data.crop import Stream, crop_segments, epoch_order, generator
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.loaders import ShareSampler
from contactlm.data.split import group_identical, split_groups
from contactlm.data.store import ChainStore
from contactlm.data.stream import StreamSampler
from contactlm.structure.contacts import contact_labels
from contactlm.types import DataError
from tests.data.test_store import make_chain


def store_of(*lengths: int) -> ChainStore:
    return ChainStore.from_chains([make_chain(f"c{i}", length, i) for i, length in enumerate(lengths)])


def test_starts_are_uniform_over_all_positions_including_the_last() -> None:
    draws = 4000
    starts = Counter(crop_segments(25, 20, "random", generator(0, Stream.CROP, n, 3))[0][0] for n in range(draws))
    assert sorted(starts) == [0, 1, 2, 3, 4, 5]
    expected = draws / 6
    chi_square = sum((count - expected) ** 2 / expected for count in starts.values())
    assert chi_square < 20.5  # 5 degrees of freedom: p = 0.001


@pytest.mark.parametrize("length", [1, 19, 20])
def test_a_chain_not_longer_than_the_crop_is_taken_whole(length: int) -> None:
    sample = CropDataset(store_of(length), 20)[0]
    assert (sample["start"], len(sample["tokens"])) == (0, length)


def test_cut_takes_the_first_residues_and_whole_takes_all() -> None:
    store = store_of(50)
    assert [CropDataset(store, 20, "cut")[n]["start"] for n in range(5)] == [0] * 5
    assert len(CropDataset(store, 20, "whole")[0]["tokens"]) == 50


def test_a_sample_is_a_pure_function_of_seed_and_number() -> None:
    store = store_of(60, 70, 80, 30, 90)
    first, second = CropDataset(store, 20, seed=3), CropDataset(store, 20, seed=3)
    forward = [(first[n]["id"], first[n]["start"]) for n in range(40)]
    backward = [(second[n]["id"], second[n]["start"]) for n in reversed(range(40))][::-1]
    other = [(s["id"], s["start"]) for s in map(CropDataset(store, 20, seed=4).__getitem__, range(40))]
    assert forward == backward != other
    for epoch in range(8):
        assert sorted(name for name, _ in forward[5 * epoch : 5 * epoch + 5]) == ["c0", "c1", "c2", "c3", "c4"]
    assert len(set(forward)) > 30  # fresh crops each epoch


def test_orders_of_epochs_differ_and_hold_every_chain() -> None:
    orders = [tuple(epoch_order(0, epoch, 50)) for epoch in range(10)]
    assert len(set(orders)) == 10
    assert all(sorted(order) == list(range(50)) for order in orders)


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (16, 4), (3, 8)])
def test_two_processes_see_what_one_sees(size: int, batch: int) -> None:
    one = StreamSampler(size, 2 * batch)
    two = [StreamSampler(size, batch, rank, 2) for rank in range(2)]
    for epoch in range(3):
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        whole, parts = list(one), [list(sampler) for sampler in two]
        assert len(parts[0]) == len(parts[1]) == len(two[0])
        for b in range(one.batches):
            together = parts[0][b * batch : (b + 1) * batch] + parts[1][b * batch : (b + 1) * batch]
            assert together == whole[2 * b * batch : 2 * (b + 1) * batch]


def test_the_stream_has_no_gap_and_no_repetition_between_epochs() -> None:
    sampler = StreamSampler(10, 4)
    numbers = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        numbers += list(sampler)
    assert numbers == list(range(len(numbers)))


def test_resuming_goes_on_where_it_stopped() -> None:
    whole, resumed = StreamSampler(10, 4), StreamSampler(10, 4)
    whole.set_epoch(2)
    resumed.resume(2, 1)
    assert list(resumed) == list(whole)[4:]
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert list(resumed) == list(whole)


@pytest.mark.parametrize(("size", "world"), [(7, 2), (8, 3), (2, 4)])
def test_evaluation_deals_every_chain_once(size: int, world: int) -> None:
    store = store_of(*range(5, 5 + size))
    dealt = [n for rank in range(world) for batch in ShareSampler(store, 2, rank, world) for n in batch]
    assert sorted(dealt) == list(range(size))


def test_collate_pads_behind_eos() -> None:
    dataset = CropDataset(store_of(3, 5), 10, shuffle=False)
    batch = collate([dataset[0], dataset[1]])
    assert batch["tokens"].shape == (2, 7) and batch["cb"].shape == (2, 5, 3)
    assert batch["tokens"][0].tolist() == [CLS, *dataset[0]["tokens"].tolist(), EOS, PAD, PAD]
    assert batch["attention_mask"].sum(1).tolist() == [5, 7]
    assert batch["lengths"].tolist() == [3, 5]
    assert torch.isnan(batch["cb"][0, 3:]).all()


@pytest.mark.parametrize("seed", range(5))
def test_cropping_commutes_with_labelling(seed: int) -> None:
    store = store_of(60)
    dataset = CropDataset(store, 25, seed=seed)
    sample = dataset[seed]
    whole = contact_labels(torch.tensor(store.cb_of(0))[None])[0]
    cropped = contact_labels(collate([sample])["cb"])[0]
    crop = slice(sample["start"], sample["start"] + 25)
    assert torch.equal(cropped, whole[crop, crop])


def test_identical_sequences_are_never_on_both_sides_of_the_split() -> None:
    rng = np.random.default_rng(0)
    sequences = [str(rng.integers(30)) for _ in range(200)]
    groups = group_identical(sequences)
    for seed in range(20):
        dev = split_groups(groups, 0.1, seed)
        assert dev.any() and len(np.unique(groups[dev])) == 3
        assert not set(groups[dev]) & set(groups[~dev])
    assert (split_groups(groups, 0.1, 0) != split_groups(groups, 0.1, 1)).any()
    assert not split_groups(groups, 0.0, 0).any()


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="leaves nothing to train on"):
        split_groups(np.zeros(4, dtype=np.int64), 0.1, 0)
    with pytest.raises(DataError, match=r"dev_fraction is 1\.5"):
        split_groups(np.arange(4), 1.5, 0)


def take_batches(samplers: list[StreamSampler], count: int, epoch: int, batch: int) -> tuple[list[int], int, int]:
    """The numbers of the next batches of all processes, and where in the stream they end."""
    seen: list[int] = []
    while True:
        for sampler in samplers:
            sampler.set_epoch(epoch)
        size, lists = samplers[0].batch_size, [list(sampler) for sampler in samplers]
        steps = min(count, len(lists[0]) // size)
        seen += [n for step in range(steps) for own in lists for n in own[step * size : (step + 1) * size]]
        count -= steps
        if not count:
            return seen, epoch, batch + steps
        epoch, batch = epoch + 1, 0


@pytest.mark.parametrize("sizes", [[(1, 8), (2, 4), (1, 8)], [(1, 4), (2, 4), (3, 2)], [(2, 8), (1, 2), (4, 1)]])
def test_other_numbers_of_processes_go_on_with_the_next_sample(
    sizes: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    seen, place = list[int](), dict[str, int]()
    for world, batch in sizes:
        samplers = [StreamSampler(30, batch, rank, world) for rank in range(world)]
        for sampler in samplers if place else ():
            sampler.resume(**place)
        numbers, *where = take_batches(samplers, 7, place.get("epoch", 0), place.get("batch", 0))
        seen += numbers
        place = samplers[0].place(*where)
    assert seen == list(range(7 * sum(world * batch for world, batch in sizes)))
    assert all(f"had {world} x {batch} samples a step" in caplog.text for world, batch in sizes[:2])
    assert ("the same samples, step by step" in caplog.text) == (sizes[0] == (1, 8))


def test_a_checkpoint_without_sample_numbers_goes_on_too() -> None:
    whole, resumed = StreamSampler(10, 4), StreamSampler(10, 4)
    whole.set_epoch(2)
    place = whole.place(2, 1)
    assert place["sample"] == 2 * 3 * 4 + 4
    resumed.resume(**{name: place[name] for name in ("epoch", "batch", "batches")})
    assert list(resumed) == list(whole)[4:]
