"""The stream of training samples: which of them each process takes when, and how a run resumes with the next one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from contactlm.data.dataset import collate

log = logging.getLogger(__name__)


class EpochSampler(DistributedSampler):  # a DistributedSampler, so that Lightning does not take its own instead
    """Says what this process takes, and knows its progress: an epoch, and how many of its batches were trained on."""

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
        """Begin with a batch of an epoch; warn where an epoch had another number of batches in the run before."""
        self.epoch = epoch  # worker processes fetch ahead, before Lightning says which epoch it is
        self._skip = (epoch, batch)
        if batches not in (None, self.batches) and batch and self.rank == 0:
            log.warning(
                "the resumed run had %d batches an epoch and process, this one has %d (other data, size of "
                "batches or number of processes): chains of the interrupted epoch may repeat or be missed",
                batches,
                self.batches,
            )


class StreamSampler(EpochSampler):
    """Numbers of the samples this process takes, batch after batch.

    Batch b of epoch e, over all processes, holds the next ``world_size * batch_size`` numbers of the stream, so that
    two processes with batches of 8 see what one process with batches of 16 sees. Every batch is full: an epoch ends
    with the batch that completes the pass over the ``size`` chains, and the next continues from there. So does a run
    resumed with other processes or batches: its first sample is the one that the run before would have taken next.
    """

    batch_size: int

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(rank, world_size)
        self.size, self.batch_size = size, batch_size
        self.batches = -(-size // (batch_size * world_size))
        self._from = (0, 0, 0)  # an epoch, a batch of it, and the number of its first sample

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for batch in range(self.first_batch, self.batches):
            start = self._first_sample(self.epoch, batch) + self.rank * self.batch_size
            yield from range(start, start + self.batch_size)

    def _first_sample(self, epoch: int, batch: int) -> int:
        """Number of the first sample of a batch, over all processes."""
        known_epoch, known_batch, sample = self._from
        # an epoch that had more batches than it has now is over
        later = (epoch - known_epoch) * self.batches + batch - min(known_batch, self.batches)
        return sample + later * self.batch_size * self.num_replicas

    def place(self, epoch: int, batch: int) -> dict[str, Any]:
        """Where in the stream a batch stands, whatever the processes and batches."""
        how = {"processes": self.num_replicas, "batch_size": self.batch_size, "size": self.size}
        return {**super().place(epoch, batch), "sample": self._first_sample(epoch, batch), **how}

    def resume(self, epoch: int, batch: int, batches: int | None = None, **place: Any) -> None:
        """Begin with a batch, as :meth:`EpochSampler.resume` does, or with the sample that ``place`` names."""
        if "sample" not in place:  # of an older version
            super().resume(epoch, batch, batches)
            return
        super().resume(epoch, batch, self.batches if place["size"] == self.size else batches)
        self._from = (epoch, batch, place["sample"])
        if self.rank == 0 and (place["processes"], place["batch_size"]) != (self.num_replicas, self.batch_size):
            log.warning("%s", self._change(place))

    def _change(self, before: Mapping[str, int]) -> str:
        """Say what another number of processes, or another size of batches, changes."""
        had, has = f"{before['processes']} x {before['batch_size']}", f"{self.num_replicas} x {self.batch_size}"
        change = f"the resumed run had {had} samples a step (processes x batch_size), now {has}"
        if before["processes"] * before["batch_size"] == self.num_replicas * self.batch_size:
            return f"{change}: the same samples, step by step"
        return (
            f"{change}: it continues with sample {before['sample']}, but steps differ from here on "
            "(learning rate and schedule were set for the earlier ones)"
        )


class StreamLoader(DataLoader[Any]):
    """A loader of training batches whose progress through the stream is saved with the checkpoint.

    Lightning saves and restores it through ``state_dict`` and ``load_state_dict``. ``progress`` gives the epoch and how
    many of its batches were trained on, by the trainer: worker processes of the sampler fetch ahead of that.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochSampler,
        progress: Callable[[], tuple[int, int]] = lambda: (0, 0),
        **options: Any,
    ) -> None:
        options = {"collate_fn": collate, **options}
        super().__init__(dataset, sampler=sampler, batch_size=sampler.batch_size, **options)
        self.progress = progress

    def state_dict(self) -> dict[str, Any]:
        """Where in the stream the run stands, and how many batches an epoch has."""
        return self.sampler.place(*self.progress())  # type: ignore[attr-defined]  # an EpochSampler

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the saved run stood."""
        self.sampler.resume(**state_dict)  # type: ignore[attr-defined]  # an EpochSampler
