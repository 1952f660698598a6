"""Work whose results lie in a cache folder, shared out among the processes that see that folder."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer


def own_share(trainer: Trainer, folder: Path) -> tuple[int, int]:
    """Which part of the work this process does; a collective call.

    Where all nodes see one cache folder, each of all processes does a part. Where a node has a folder of its own, its
    processes do the whole work among them.

    Args:
        trainer: Whose processes.
        folder: The cache folder.

    Returns:
        The number of the part, and of how many.
    """
    if trainer.world_size == 1:
        return 0, 1
    mark = folder / trainer.strategy.broadcast(f".{uuid.uuid4().hex}.tmp")
    if trainer.is_global_zero:
        with suppress(OSError):  # then no process sees it
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    trainer.strategy.barrier()
    shared = trainer.strategy.reduce_boolean_decision(mark.exists(), all=True)
    if trainer.is_global_zero:
        mark.unlink(missing_ok=True)
    return (trainer.global_rank, trainer.world_size) if shared else (trainer.local_rank, trainer.num_devices)
