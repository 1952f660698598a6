"""What a training step draws at random (dropout masks, pairs of residues), as a function of (seed, step, process)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch

from contactlm.data.crop import Stream, generator


@contextmanager
def drawn_from(seed: int, step: int, process: int, device: torch.device) -> Iterator[None]:
    """Let the global generators draw what belongs to one step of one process; afterwards they are as they were.

    So nothing of them need be saved: a run that goes on draws what the unbroken run draws.

    Args:
        seed: The run's seed, 0 or more.
        step: Batches that the process was given before.
        process: Its number in the run.
        device: Where the model is.
    """
    number = int(generator(seed, Stream.MASKS, step, process).integers(2**63))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(number)  # torch.manual_seed would reach all devices
        if on_gpu:
            torch.cuda.default_generators[device.index or 0].manual_seed(number)
        yield


def seed_of_run(trainer: L.Trainer) -> int:
    """The seed of the data module, or else of ``seed_everything``, or else of PyTorch's own generator."""
    seed = getattr(trainer.datamodule, "seed", None)  # type: ignore[attr-defined]  # a connector sets it
    if seed is None:
        seed = os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())
    return int(seed or 0) % 2**63
