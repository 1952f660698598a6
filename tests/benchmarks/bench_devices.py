"""What several processes cost: a step's callbacks and reductions, and the memory of a step whose weights are spread.

    python -m tests.benchmarks.bench_devices callbacks [--steps 60] [--rounds 3]
    python -m tests.benchmarks.bench_devices accumulation [--steps 60] [--rounds 3]
    python -m tests.benchmarks.bench_devices host [--steps 60] [--rounds 3] [--log_every 10]
    python -m tests.benchmarks.bench_devices memory [--layers 33] [--width 1280] [--heads 20] [--length 62]

``callbacks`` trains a tiny model on one and on two processes of this machine (gloo), in turns: without callbacks; with
budget, FLOPs, guard, throughput and checkpoint, whose numbers travel in one reduction; and with a reduction for each of
them, as it was before. Medians of a step's processor time in the first process, ratios within the run, and the tenth
percentile of the time that a step's sums take on the clock (the two processes wait for each other in the rest).

``accumulation`` trains the adapters of a small model that is spread over two processes (FSDP2), eight batches a step,
in turns: gradients reduced once a step, as they are, and at each batch. Medians of a batch's seconds on the clock.

``host`` trains it on one process, on batches of whole chains, whose shapes differ: mean and median of a step's
processor time without callbacks and with them, shapes that are counted included.

``memory`` takes one optimizer step (Adam, all weights, activation checkpointing) of a model of the architecture of
ESM2-650M with random weights, on one process and spread over two (FSDP2): peak resident memory of each process, what
the imports and the building of the model take included. One process needs 16 bytes a weight, 10.4 GB, and some more.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from contactlm import ContactDataModule, ContactModule
from contactlm.callbacks import FlopsMeter, SafeCheckpoint, TokenBudget
from contactlm.callbacks.guard import LossGuard
from contactlm.callbacks.memory import MemoryAdvice
from contactlm.callbacks.progress import ThroughputMeter
from contactlm.modules.sharded import ShardedStrategy
from tests.conftest import random_sequence, write_pdb
from tests.processes import run_ranks

SMALL = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


class Clock(L.Callback):
    """Seconds from one batch's start to the next one's: processor time of this process, or by another clock."""

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.starts: list[float] = []
        self.now = now

    def on_train_batch_start(self, *_: Any) -> None:
        """Look at the clock."""
        self.starts.append(self.now())


class Timed:
    """A way of summing that notes how long it takes."""

    def __init__(self, reduce: Any) -> None:
        self.reduce = reduce
        self.seconds: list[float] = []

    def __call__(self, trainer: L.Trainer, given: Any) -> list[list[int]]:
        """Sum."""
        began = time.perf_counter()
        sums = self.reduce(trainer, given)
        self.seconds.append(time.perf_counter() - began)
        return sums


def apart(trainer: L.Trainer, given: Any) -> list[list[int]]:
    """A reduction for each callback."""
    device = trainer.strategy.root_device
    tensors = [torch.as_tensor(own, dtype=torch.int64, device=device) for own in given]
    return [trainer.strategy.reduce(own, reduce_op="sum").tolist() for own in tensors]


def fit(module: L.LightningModule, folder: Path, steps: int, length: int, *callbacks: Any, **options: Any) -> None:
    """Train for a few steps."""
    of_data = {name: options.pop(name) for name in ("crop", "batch_tokens") if name in options}
    data = ContactDataModule(
        str(folder), crop_length=length, batch_size=2, read_workers=0, dev_fraction=0, min_length=10, **of_data
    )
    options |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options["default_root_dir"] = folder.parent  # checkpoints go where the rest does
    runner = L.Trainer(max_steps=steps, callbacks=list(callbacks), use_distributed_sampler=False, **options)
    runner.fit(module, data)


def steps_of(world: int, folder: Path, steps: int, rounds: int) -> dict[str, float]:
    """Median processor seconds of a step, by what is counted; and what is summed how fast."""
    ways, taken = (
        {"one reduction": Timed(steps._reduced), "a reduction each": Timed(apart)},
        dict[str, list[float]](),
    )
    strategy = {"strategy": "ddp", "devices": world} if world > 1 else {}
    for _ in range(rounds):
        for name in ("no callbacks", "one reduction", "a reduction each"):
            steps._reduced = ways.get(name, ways["one reduction"])
            saver = SafeCheckpoint(dirpath="kept", monitor=None, save_last=False, save_top_k=0, stop_on_signals=False)
            counting = [TokenBudget(None), FlopsMeter(), LossGuard(), ThroughputMeter(), saver]
            clock, own = Clock(), counting if name != "no callbacks" else []
            module = ContactModule(None, architecture=TINY)
            fit(module, folder, steps, 30, clock, *own, enable_checkpointing=bool(own), **strategy)
            later = clock.starts[5:]  # the first ones warm up
            taken.setdefault(name, []).extend(stop - start for start, stop in pairwise(later))
    sums = {f"{name}: sums": quantiles(way.seconds, n=10)[0] for name, way in ways.items() if way.seconds}
    return {name: median(seconds) for name, seconds in taken.items()} | sums


def accumulated(folder: Path, steps: int, rounds: int) -> dict[str, float]:
    """Median seconds of a batch, eight a step, by when gradients are reduced; of whole steps, since batches differ."""
    once, taken = ShardedStrategy.block_backward_sync, dict[str, list[float]]()
    for _ in range(rounds):
        for name, block in (("once a step", once), ("at each batch", lambda _: nullcontext())):
            ShardedStrategy.block_backward_sync = block  # type: ignore[method-assign,assignment]
            strategy = ModelParallelStrategy(2, 1)
            clock, module = Clock(time.perf_counter), ContactModule(None, architecture=SMALL)
            options = {"strategy": strategy, "devices": 2, "accumulate_grad_batches": 8, "max_epochs": -1}
            fit(module, folder, -(-steps // 8), 30, clock, enable_checkpointing=False, **options)
            every_eighth = clock.starts[8::8]  # the first step warms up
            taken.setdefault(name, []).extend((stop - start) / 8 for start, stop in pairwise(every_eighth))
    return {name: median(seconds) for name, seconds in taken.items()}


def accumulation(folder: Path, steps: int, rounds: int) -> None:
    """Print what reducing at each batch costs."""
    taken = run_ranks(accumulated, 2, folder, steps, rounds, folder=folder.parent, timeout=3600)[0]
    once = taken["once a step"]
    print("2 processes: " + ", ".join(f"{n} {1000 * each:.2f} ms ({each / once:.3f})" for n, each in taken.items()))


def peak_of_step(world: int, folder: Path, architecture: dict[str, int], length: int) -> float:
    """Peak resident memory of this process in one step, in GB."""
    strategy: dict[str, Any] = {}
    if world > 1:
        os.environ["CONTACTLM_CACHE"] = str(folder.parent / "cache")
        strategy = {"strategy": ModelParallelStrategy(world, 1), "devices": world}
    module = ContactModule(None, architecture=architecture, lora=None, activation_checkpointing=True)
    fit(module, folder, 1, length, LossGuard(), enable_checkpointing=False, **strategy)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def callbacks(folder: Path, steps: int, rounds: int) -> None:
    """Print the cost of a step's callbacks."""
    for world in (1, 2):
        taken = run_ranks(steps_of, world, world, folder, steps, rounds, folder=folder.parent, timeout=3600)[0]
        bare = taken["no callbacks"]
        told = ", ".join(f"{name} {1000 * seconds:.3f} ms ({seconds / bare:.3f})" for name, seconds in taken.items())
        print(f"{world} process{'es' if world > 1 else ''}: {told}")


def host(folder: Path, steps: int, rounds: int, log_every: int) -> None:
    """Print what callbacks and meters cost the host."""
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in ("no callbacks", "callbacks"):
            own = [TokenBudget(None), FlopsMeter(), LossGuard(), MemoryAdvice(), ThroughputMeter()]
            clock, module = Clock(), ContactModule(None, architecture=TINY)
            whole = {"crop": "whole", "batch_tokens": 300, "log_every_n_steps": log_every}
            fit(module, folder, steps, 30, *(own if name == "callbacks" else []), clock, **whole)
            taken.setdefault(name, []).extend(stop - start for start, stop in pairwise(clock.starts[3:]))
    bare = mean(taken["no callbacks"])
    for name, seconds in taken.items():
        print(
            f"{name}: mean {1000 * mean(seconds):.2f} ms ({mean(seconds) / bare:.2f}), "
            f"median {1000 * median(seconds):.2f}"
        )


def memory(folder: Path, architecture: dict[str, int], length: int) -> None:
    """Print the memory of a step."""
    for world in (1, 2):
        peaks = run_ranks(peak_of_step, world, world, folder, architecture, length, folder=folder.parent, timeout=3600)
        print(f"{world} process{'es' if world > 1 else ''}: " + ", ".join(f"{peak:.2f} GB" for peak in peaks))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("callbacks", "host", "accumulation", "memory"))
    for name, value in {
        "steps": 60,
        "rounds": 3,
        "log_every": 10,
        "layers": 33,
        "width": 1280,
        "heads": 20,
        "length": 62,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["CONTACTLM_CACHE"] = str(Path(temporary) / "cache")
        folder = Path(temporary) / "train"
        for i in range(40):
            length = 30 + 2 * i if given.what == "host" else max(40, given.length + 10)
            write_pdb(folder / f"t{i}.pdb", {"A": random_sequence(i, length)}, seed=i)
        if given.what == "host":
            host(folder, given.steps, given.rounds, given.log_every)
        elif given.what == "callbacks":
            callbacks(folder, given.steps, given.rounds)
        elif given.what == "accumulation":
            accumulation(folder, given.steps, given.rounds)
        else:
            sizes = {"num_hidden_layers": given.layers, "hidden_size": given.width, "num_attention_heads": given.heads}
            memory(folder, {**sizes, "intermediate_size": 4 * given.width}, given.length)


if __name__ == "__main__":
    main()
