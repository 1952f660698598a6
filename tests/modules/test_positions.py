"""Positions: what the rotary embedding sees of crops, segments and true ends."""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from torch import Tensor

from contactlm import ContactModule
from contactlm.alphabet import CLS, EOS, encode
from contactlm.data.crop import Stream, crop_segments, generator
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.store import ChainStore
from contactlm.types import Chain
from tests.conftest import random_sequence, sharpened
from tests.data.test_store import make_chain

LENGTH = 40


@pytest.fixture(scope="module", params=["streamed", "plain"])
def module(request: pytest.FixtureRequest, tiny_esm) -> ContactModule:
    return sharpened(ContactModule(str(tiny_esm), lora=None, freeze_backbone=True, attention=request.param)).double()


def with_ends(residues: Tensor) -> Tensor:
    return torch.cat([torch.tensor([CLS]), residues.long(), torch.tensor([EOS])])[None]


@pytest.fixture(scope="module")
def chain() -> Tensor:
    return torch.from_numpy(encode(random_sequence(7, LENGTH)))


def logits(
    module: ContactModule, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
) -> Tensor:
    with torch.no_grad():
        return module.contact_logits(tokens, mask, positions)[0]


@pytest.mark.parametrize("offset", [1, 17, 800])
def test_one_constant_offset_changes_nothing(module: ContactModule, chain: Tensor, offset: int) -> None:
    tokens = with_ends(chain)
    positions = torch.arange(LENGTH + 2)[None]
    plain = logits(module, tokens)
    torch.testing.assert_close(logits(module, tokens, None, positions), plain, rtol=0, atol=1e-9)
    torch.testing.assert_close(logits(module, tokens, None, positions + offset), plain, rtol=0, atol=1e-5)


def test_true_ends_change_what_a_crop_sees(module: ContactModule, chain: Tensor) -> None:
    crop = with_ends(chain[10:22])
    true_ends = torch.tensor([0, *range(11, 23), LENGTH + 1])[None]
    assert (logits(module, crop, None, true_ends) - logits(module, crop)).abs().max() > 1e-2


@pytest.mark.parametrize("kept", [[(10, 22)], [(3, 11), (25, 36)], [(0, 5), (30, LENGTH)]])
def test_segments_at_true_positions_are_a_full_pass_with_the_rest_masked_out(
    module: ContactModule, chain: Tensor, kept: list[tuple[int, int]]
) -> None:
    residues = torch.cat([torch.arange(*segment) for segment in kept])
    mask = torch.zeros(1, LENGTH + 2, dtype=torch.bool)
    mask[0, 0] = mask[0, -1] = True
    mask[0, residues + 1] = True
    full = logits(module, with_ends(chain), mask)[residues][:, residues]
    positions = torch.cat([torch.tensor([0]), residues + 1, torch.tensor([LENGTH + 1])])[None]
    torch.testing.assert_close(logits(module, with_ends(chain[residues]), None, positions), full, rtol=0, atol=1e-6)


# -- what the data module hands over -------------------------------------------------------------------------------


def store_of(*lengths: int) -> ChainStore:
    return ChainStore.from_chains([make_chain(f"c{i}", length, i) for i, length in enumerate(lengths)])


def test_two_segments_are_uniform_over_all_places() -> None:
    draws = 6000
    found = Counter(
        tuple(start for start, _ in crop_segments(12, 9, "two_segments", generator(0, Stream.CROP, n, 3)))
        for n in range(draws)
    )
    possible = {(a, 4 + b) for a, b in combinations_with_replacement(range(4), 2)}
    assert set(found) == possible  # 10 positions
    expected = draws / len(possible)
    assert sum((count - expected) ** 2 / expected for count in found.values()) < 27.9  # 9 degrees, p = 0.001


@pytest.mark.parametrize("crop_length", [2, 9, 10])
def test_two_segments_hold_a_crop_of_different_residues(crop_length: int) -> None:
    for n in range(200):
        (a, b), (c, d) = crop_segments(23, crop_length, "two_segments", generator(1, Stream.CROP, n, 0))
        assert 0 <= a < b <= c < d <= 23
        assert (b - a) + (d - c) == crop_length
    assert crop_segments(10, 10, "two_segments", generator(1, Stream.CROP, 0, 0)) == [(0, 10)]


def test_a_batch_of_two_segments_keeps_true_distances() -> None:
    store = store_of(50, 8)
    batch = collate([CropDataset(store, 12, "two_segments", seed=5)[n] for n in range(2)])
    for row in range(2):
        length, chain = int(batch["lengths"][row]), int(batch["indices"][row])
        positions = batch["positions"][row, : length + 2]
        assert positions[0] == 0 and positions[1] == 1 and (positions.diff() > 0).all()
        residues = (positions[1:-1] - 1 + batch["starts"][row]).numpy()
        assert np.array_equal(store.tokens_of(chain)[residues], batch["tokens"][row, 1 : length + 1])
        np.testing.assert_array_equal(store.cb_of(chain)[residues], batch["cb"][row, :length])
        assert positions[-1] == positions[-2] + 1
    assert set(batch["lengths"].tolist()) == {12, 8}


@pytest.mark.parametrize("scheme", ["random", "two_segments", "cut", "whole"])
def test_true_ends_stand_at_the_ends_of_the_chain(scheme) -> None:
    store = store_of(50)
    for n in range(20):
        sample = CropDataset(store, 12, scheme, true_ends=True)[n]
        batch = collate([sample])
        positions = batch["positions"][0]
        assert (positions[0], positions[-1]) == (0, 51)
        assert positions[1] == sample["start"] + 1


def test_contacts_between_the_segments_are_labelled_by_distance() -> None:
    from contactlm.structure.contacts import contact_labels

    cb = np.zeros((30, 3), np.float32)
    cb[:, 0] = np.minimum(np.arange(30), np.arange(30)[::-1]) * 10  # a hairpin: i touches 29 − i
    chain = Chain("h_A", "A" * 30, cb, cb, np.ones(30, bool))
    dataset = CropDataset(ChainStore.from_chains([chain]), 10, "two_segments")
    seen = 0
    for n in range(300):
        batch = collate([dataset[n]])
        labels = contact_labels(batch["cb"])[0]
        residues = batch["positions"][0, 1:-1] - 1 + batch["starts"][0]
        mirrored = residues[:, None] + residues[None] == 29
        assert torch.equal(labels == 1, mirrored)
        seen += int((mirrored & ((residues[:, None] - residues).abs() >= 10)).sum())
    assert seen > 0  # contacts farther apart than the crop is long
