"""A run's place in its data: what a sampler has to know to go on where a run stopped."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler

from contactlm.data.store import ChainStore
from contactlm.types import DataError

log = logging.getLogger(__name__)


class EpochSampler(DistributedSampler):  # a DistributedSampler, so that Lightning does not put its own in its place
    """Says what this process takes, and knows its place: an epoch, and how many of its batches were trained on.

    Args:
        rank: This process.
        world_size: All processes.
    """

    batch_size: int | None  # None: what it yields are whole batches
    batches: int  # of one process, the same in every epoch

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.num_replicas = rank, world_size
        self.epoch = 0
        self._skip = (0, 0)  # (epoch, its batches that were trained on already)

    @property
    def first_batch(self) -> int:
        """The epoch's first batch that was not trained on yet."""
        return self._skip[1] if self._skip[0] == self.epoch else 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next (Lightning does)."""
        self.epoch = epoch

    def resume(self, epoch: int, batch: int, batches: int | None = None) -> None:
        """Begin with batch ``batch`` of epoch ``epoch``, because all before it were trained on already.

        Args:
            epoch: Pass over the data, from 0.
            batch: Batch of the epoch, from 0.
            batches: Batches an epoch had in the run that goes on; the user is told when it is another number now.
        """
        self.epoch = epoch  # worker processes fetch ahead, before Lightning says which epoch it is
        self._skip = (epoch, batch)
        if batches not in (None, self.batches) and batch and self.rank == 0:
            log.warning(
                "the run that goes on had %d batches an epoch and process, this one has %d (other data, size of "
                "batches or number of processes): chains of the epoch it stopped in may come twice or not at all",
                batches,
                self.batches,
            )


def chains_digest(store: ChainStore) -> dict[str, int]:
    """What tells one set of chains from another: number of chains and residues, and a checksum of ids and lengths."""
    lengths = np.ascontiguousarray(store.lengths, "<i8")
    checksum = zlib.crc32(lengths.tobytes(), zlib.crc32("\n".join(store.ids).encode()))
    return {"chains": len(store), "residues": int(lengths.sum()), "checksum": checksum}


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str | Path | None) -> None:
    """Refuse to go on with a run of another seed or split: its steps would be counted, and reported, as those of this.

    Other training chains are told: some structures may have come or gone, but the dev set may then hold chains that
    were trained on.

    Args:
        before: Options of the run that goes on, by name, and as ``train`` the digest of its training chains; what its
            checkpoint does not say is not checked.
        now: Those of this run.
        checkpoint: The file, for the message.

    Raises:
        DataError: An option is another.
    """
    options, chains = dict(before), dict(before.get("train", now["train"]))
    options.pop("train", None)
    for name, value in options.items():
        if now[name] != value:
            option = "seed_everything" if name == "seed" else f"data.{name}"
            raise DataError(
                f"{option} is {now[name]}, but {value} in the run to go on with ({checkpoint}): give --{option} "
                f"{value}, or leave --ckpt_path out, which starts a run of its own"
            )
    if chains != now["train"]:
        log.warning(
            "the run that goes on (%s) had other training chains: %d of %d residues, now %d of %d; dev chains may have "
            "been trained on, and their scores flatter the model",
            *(checkpoint, chains["chains"], chains["residues"], now["train"]["chains"], now["train"]["residues"]),
        )
