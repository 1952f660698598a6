"""Resuming: what a sampler has to know to go on where a run stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DistributedSampler

from contactlm.types import DataError

log = logging.getLogger(__name__)


class EpochSampler(DistributedSampler):  # a DistributedSampler, so that Lightning does not take its own instead
    """Says what this process takes, and knows its progress: an epoch, and how many of its batches were trained on.

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

    def place(self, epoch: int, batch: int) -> dict[str, Any]:
        """What a checkpoint keeps, for :meth:`resume`, of a run that comes to a batch of an epoch next."""
        return {"epoch": epoch, "batch": batch, "batches": self.batches}

    def resume(self, epoch: int, batch: int, batches: int | None = None, **_: Any) -> None:
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


def check_same_run(
    before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str | Path | None
) -> list[dict[str, Any]]:
    """Refuse to go on with a run of another seed or split: its steps would be counted, and reported, as those of this.

    Args:
        before: Options of the run that goes on, by name; as ``train`` its training chains (see
            :func:`contactlm.data.chain_sets.describe_chains`), and as ``trained_before`` the other sets that it was
            trained on. What its checkpoint does not say, or what this version does not know, is not checked.
        now: Those of this run.
        checkpoint: The file, for the message.

    Returns:
        All other sets of training chains that the run was trained on: structures may come and go, but chains
        of the dev and test sets, or relatives of theirs, may then have been trained on.

    Raises:
        DataError: An option is another.
    """
    for name in sorted(before.keys() & now.keys() - {"train", "trained_before"}):
        if now[name] != before[name]:
            option = "seed_everything" if name == "seed" else f"data.{name}"
            raise DataError(
                f"{option} is {now[name]}, but {before[name]} in the run to go on with ({checkpoint}): give --{option} "
                f"{before[name]}, or leave --ckpt_path out, which starts a run of its own"
            )
    others = [*before.get("trained_before", []), before.get("train", now["train"])]
    return [chains for n, chains in enumerate(others) if chains != now["train"] and chains not in others[:n]]


def other_chains(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> str:
    """Say that a run goes on with other training chains than it had."""
    had = " and ".join(f"{each['chains']} chains ({each['residues']} residues)" for each in before)
    same = "of other ids or lengths, " if any(each["chains"] == now["chains"] for each in before) else ""
    return (
        f"the run that goes on was trained on {had}, {same}and now has {now['chains']} ({now['residues']} residues): "
        "dev and test chains, or relatives of theirs, may have been trained on, and their scores flatter the model; "
        "run.json says so, and scores by identity know the chains of now alone. Leave --ckpt_path out to start anew"
    )
