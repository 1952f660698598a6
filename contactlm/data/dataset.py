"""Chains as model input: samples, batches, and the order in which they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from contactlm.alphabet import CLS, EOS, PAD
from contactlm.data.crop import ClusterTurns, CropScheme, Segments, Stream, crop_segments, epoch_order, generator
from contactlm.data.store import ChainStore
from contactlm.types import CHAIN_JUMP, chain_numbers, residue_positions


class PositionedSample(TypedDict, total=False):
    """What only samples have whose residues do not simply follow one another."""

    positions: NDArray[np.int64]  # (L',): of each residue in its chain, or in its complex (contactlm.types)
    residues: NDArray[np.int64]  # (L',): number of each in its chain, where they do not follow one another
    end: int  # position after the chain's last residue, where <eos> stays at the real end
    chain_of: NDArray[np.int64]  # (L',), number of each residue's chain, of complexes only


class Sample(PositionedSample):
    """L' residues of a chain, or of a complex."""

    id: str
    tokens: NDArray[np.uint8]  # (L',)
    cb: NDArray[np.float32]  # (L', 3), Å
    start: int  # first residue of the crop in the chain
    index: int  # the chain's number in its store


class PositionedBatch(TypedDict, total=False):
    """What only some batches have: those of samples with positions, those of a bounded cost."""

    positions: Tensor  # int64 (B, T): what the rotary embedding sees, <cls> at 0; 0 on <pad>
    residues: Tensor  # int64 (B, L): each residue's number in its chain, of crops with gaps; 0 at padding
    chain_of: Tensor  # int64 (B, L): number of each residue's chain, of complexes only; −1 at padding
    loss_weight: Tensor  # float32 (): what the batch's mean loss counts, where batches differ in size


class Batch(PositionedBatch):
    """What the model gets: B samples padded to the longest, T = L + 2 tokens."""

    ids: list[str]
    tokens: Tensor  # int64 (B, T): <cls>, residues, <eos>, <pad> …
    attention_mask: Tensor  # bool (B, T): False on <pad>
    cb: Tensor  # float32 (B, L, 3), Å; NaN where unresolved or padded
    lengths: Tensor  # int64 (B,): residues
    starts: Tensor  # int64 (B,): first residue of each crop in its chain
    indices: Tensor  # int64 (B,): each chain's number in its store
    residue_count: int  # the sum of lengths, known without asking the device


class CropDataset(Dataset[Sample]):
    """An endless stream of crops; its n-th sample is a pure function of (seed, n).

    Args:
        store: The chains.
        crop_length: Residues of a crop, L'.
        scheme: ``"random"``, ``"cut"`` (the first L' residues), ``"two_segments"`` or ``"whole"`` (whole chains).
        seed: Seed of order and crops.
        shuffle: False takes the chains in the order of the store, every epoch.
        true_ends: Keep ``<cls>`` and ``<eos>`` at the positions of the chain's real ends, however far from the crop.
        groups: Cluster number of each chain, int64 (n,): an epoch is then one chain of each cluster, so that a chain
            has the weight 1 / cluster size. None: an epoch is all chains.
        jump: Positions left free between the chains of a complex.
    """

    def __init__(
        self,
        store: ChainStore,
        crop_length: int,
        scheme: CropScheme = "random",
        seed: int = 0,
        shuffle: bool = True,
        true_ends: bool = False,
        groups: NDArray[np.int64] | None = None,
        jump: int = CHAIN_JUMP,
    ) -> None:
        self.store = store
        self.jump = jump
        self.crop_length = crop_length
        self.scheme = scheme
        self.seed = seed
        self.shuffle = shuffle
        self.true_ends = true_ends
        self.groups = groups
        self._turns = None if groups is None else ClusterTurns(groups, seed)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Samples of one epoch (their numbers continue beyond it)."""
        return len(self.store) if self._turns is None else len(self._turns)

    def chains_of(self, epoch: int) -> NDArray[np.int64]:
        """The chain of each sample of an epoch, int64 (len(self),)."""
        if self._order[0] != epoch:
            size = len(self)
            order = epoch_order(self.seed, epoch, size) if self.shuffle else np.arange(size)
            self._order = (epoch, order if self._turns is None else self._turns.chains(epoch)[order])
        return self._order[1]

    def residues_of(self, epoch: int) -> NDArray[np.int64]:
        """Residues of each sample of an epoch, int64 (len(self),)."""
        return self._residues()[self.chains_of(epoch)]

    def longest(self) -> NDArray[np.int64]:
        """Residues of the longest samples an epoch can have, int64 (len(self),); in no order."""
        return self._residues() if self._turns is None else self._turns.largest(self._residues())

    def _residues(self) -> NDArray[np.int64]:
        """Residues of a sample of each chain, int64 (n,)."""
        lengths = self.store.lengths
        return lengths if self.scheme == "whole" else np.minimum(lengths, self.crop_length)

    def __getitem__(self, n: int) -> Sample:
        """Make the n-th sample of the run."""
        epoch, number = divmod(n, len(self))
        index = int(self.chains_of(epoch)[number])
        tokens, cb = self.store.tokens_of(index), self.store.cb_of(index)
        rng = generator(self.seed, Stream.CROP, epoch, index)
        segments = crop_segments(len(tokens), self.crop_length, self.scheme, rng)
        sample = Sample(
            id=self.store.ids[index],
            tokens=_taken(tokens, segments),
            cb=_taken(cb, segments),
            start=segments[0][0],
            index=index,
        )
        self._add_positions(sample, segments, len(tokens))
        return sample

    def _add_positions(self, sample: Sample, segments: Segments, length: int) -> None:
        """Add positions where those of one contiguous crop would not do."""
        of_chains = None if self.store.chain_lengths is None else self.store.chain_lengths[sample["index"]]
        if of_chains is None and self.scheme != "two_segments" and not self.true_ends:
            return
        positions = np.arange(length) if of_chains is None else residue_positions(of_chains, self.jump)
        sample["positions"] = _taken(positions, segments)
        if len(segments) > 1:
            sample["residues"] = _taken(np.arange(length), segments)
        if self.true_ends:
            sample["end"] = int(positions[-1]) + 1
        if of_chains is not None:
            sample["chain_of"] = _taken(chain_numbers(of_chains), segments)


def _taken(values: NDArray[Any], segments: Segments) -> NDArray[Any]:
    """The rows of the segments; a view of one, a copy of two."""
    parts = [values[start:stop] for start, stop in segments]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples to the longest and add ``<cls>`` and ``<eos>``; all of chains, or all of complexes."""
    lengths = [len(sample["tokens"]) for sample in samples]
    B, L = len(samples), max(lengths)
    tokens = np.full((B, L + 2), PAD, dtype=np.int64)
    cb = np.full((B, L, 3), np.nan, dtype=np.float32)
    tokens[:, 0] = CLS
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        tokens[row, 1 : length + 1] = sample["tokens"]
        tokens[row, length + 1] = EOS
        cb[row, :length] = sample["cb"]
    batch = Batch(
        ids=[sample["id"] for sample in samples],
        tokens=torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(tokens != PAD),
        cb=torch.from_numpy(cb),
        lengths=torch.tensor(lengths),
        starts=torch.tensor([sample["start"] for sample in samples]),
        indices=torch.tensor([sample["index"] for sample in samples]),
        residue_count=sum(lengths),
    )
    if "positions" in samples[0]:
        batch["positions"] = _positions(samples, L)
    if any("residues" in sample for sample in samples):
        batch["residues"] = torch.zeros((B, L), dtype=torch.int64)
        for row, sample in enumerate(samples):
            followed = np.arange(sample["start"], sample["start"] + lengths[row])
            batch["residues"][row, : lengths[row]] = torch.from_numpy(sample.get("residues", followed))
    if "chain_of" in samples[0]:
        batch["chain_of"] = torch.full((B, L), -1)
        for row, sample in enumerate(samples):
            batch["chain_of"][row, : lengths[row]] = torch.from_numpy(sample["chain_of"])
    return batch


def _positions(samples: Sequence[Sample], L: int) -> Tensor:
    """Positions (B, L + 2): ``<cls>`` is 0, right before the first residue shown (with true ends, the chain's)."""
    positions = torch.zeros(len(samples), L + 2, dtype=torch.int64)
    for row, sample in enumerate(samples):
        own = torch.from_numpy(sample["positions"])
        length = len(own)
        first, end = (0, sample["end"]) if "end" in sample else (own[0], own[-1] + 1)
        positions[row, 1 : length + 1] = own - first + 1
        positions[row, length + 1] = end - first + 1
    return positions
