"""Runs that go on with more processes or fewer, by whole commands: the next samples, and the same budget."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contactlm import ContactModule
from contactlm.data.batches import CostBound, CostSampler
from contactlm.data.dataset import CropDataset
from tests.callbacks.test_callbacks import data_module
from tests.devices.commands import (
    KINDS,
    SHARDED,
    Folders,
    checkpoint,
    fits,
    load_file,
    run_commands,
    run_of,
    same_state,
    start_ranks,
)
from tests.processes import output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DDP = ["--trainer.strategy=ddp", "--trainer.devices=2"]
Samples = list[tuple[str, int]]  # ids, and where crops start


def run_noting(commands: list[list[str]], signal_at: int | None = None, number: int = signal.SIGKILL) -> None:
    """Commands, as :func:`run_commands` runs them; each batch that is trained on leaves a line in ``seen-<rank>``."""
    step = ContactModule.training_step

    def noting(self: ContactModule, batch: dict[str, Any], batch_idx: int) -> Any:
        samples = list(zip(batch["ids"], batch["starts"].tolist(), strict=True))
        with Path(f"seen-{self.global_rank}").open("a") as handle:
            handle.write(f"{json.dumps([self.global_step, samples])}\n")
        return step(self, batch, batch_idx)

    ContactModule.training_step = noting  # type: ignore[method-assign]
    run_commands(commands, signal_at, number)


def seen(folder: Path) -> list[Samples]:
    """What was trained on, a list a step, the first process's samples first."""
    steps: dict[int, Samples] = {}
    for path in sorted(folder.glob("seen-*")):
        for line in path.read_text().splitlines():
            step, samples = json.loads(line)
            steps.setdefault(step, []).extend((name, start) for name, start in samples)
    assert sorted(steps) == list(range(len(steps)))
    return [steps[step] for step in sorted(steps)]


def go_on(folder: Path, commands: list[list[list[str]]], processes: list[int], steps: list[int | None]) -> list[str]:
    """Runs one after the other, all but the last killed after their steps; what the first process of each printed."""
    folder.mkdir()
    ended, expected = [], []
    for n, (own, world, after) in enumerate(zip(commands, processes, steps, strict=True)):
        at = None if after is None else after + 1  # killed in the step after that
        ranks = start_ranks(own, folder, f"run{n}-", [at] * world, signal.SIGKILL, run_noting)
        for process in ranks:
            process.join(100)
        ended.append([process.exitcode for process in ranks])
        expected.append([0 if after is None else -signal.SIGKILL] * world)
    texts = [output(folder, f"run{n}-0") for n in range(len(commands))]
    assert ended == expected, texts
    return texts


def spread(processes: int) -> list[str]:
    sizes = [f"--trainer.strategy.data_parallel_size={processes}", f"--trainer.devices={processes}"]
    return [*SHARDED, *sizes]


WAYS: dict[str, list[tuple[int, list[str]]]] = {  # processes, and how they are told of each other
    "replicated": [(1, []), (2, DDP), (1, [])],
    "spread": [(1, []), (2, spread(2)), (1, [])],
}


@pytest.mark.parametrize("way", WAYS)
def test_runs_on_other_processes_are_the_unbroken_run(
    one: Path, work: Path, tiny_esm: Path, pdb_folders: Folders, way: str
) -> None:
    processes = [world for world, _ in WAYS[way]]
    own = [[f"--data.batch_size={6 // world}", "--ckpt_path=last", *options] for world, options in WAYS[way]]
    commands = [fits(tiny_esm, pdb_folders, {"lora": KINDS["lora"]}, *options) for options in own]
    folder = work / f"other-{way}"
    texts = go_on(folder, commands, processes, [1, 2, None])
    same_state(load_file(checkpoint(run_of(folder, version=2))), load_file(checkpoint(run_of(one))))
    data = data_module(pdb_folders, batch_size=6)
    data.setup("fit")
    loader, expected = data.train_dataloader(), list[Samples]()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        expected += [list(zip(batch["ids"], batch["starts"].tolist(), strict=True)) for batch in loader]
    assert seen(folder) == expected[:5]  # what one process takes, in its order
    changed = "had {} x {} samples a step (processes x batch_size), now {} x {}: the same samples, step by step"
    assert "samples a step" not in texts[0]
    for text, before, now in zip(texts[1:], processes, processes[1:], strict=False):
        assert changed.format(before, 6 // before, now, 6 // now) in text


def test_batches_by_cost_go_on_with_what_is_left(work: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    bounded = ["--data.crop=whole", "--data.batch_tokens=128", "--budget.max_tokens=2400", "--ckpt_path=last"]
    (sized,) = fits(tiny_esm, pdb_folders, {"lora": KINDS["lora"]}, *bounded)
    alone = [[option for option in sized if not option.startswith("--data.batch_size")]]
    shared = [[*alone[0], *DDP]]
    folder = work / "by-cost"
    texts = go_on(folder, [alone, shared, alone], [1, 2, 1], [5, 3, None])
    data = data_module(pdb_folders)
    data.setup("fit")
    dataset = CropDataset(data.chains["train"], 0, "whole")
    samplers = [CostSampler(dataset, CostBound("tokens", 128), 0, world) for world in (1, 2)]
    assert samplers[0].batches > 5 > samplers[1].batches  # the trainer's epoch is over where it goes on amid the pass
    steps, size = seen(folder), len(dataset)
    names = [name for step in steps for name, _ in step]
    passes = len(names) // size
    assert passes >= 3
    for n in range(passes):  # pass after pass, each chain once
        assert set(Counter(names[n * size : (n + 1) * size]).values()) == {1}
    saved = load_file(checkpoint(run_of(folder, version=2)))
    lengths = dict(zip(dataset.store.ids, dataset.store.lengths.tolist(), strict=True))
    assert saved["callbacks"]["TokenBudget"]["residues"] == sum(lengths[name] for name in names)
    assert 2400 - 128 < saved["callbacks"]["TokenBudget"]["tokens"] <= 2400 + 128
    left = size - sum(map(len, steps[:5]))
    assert (
        f"of at most 128 tokens in 1 processes, now of at most 128 tokens in 2: "
        f"it finishes the epoch with the remaining {left} s" in texts[1]
    )
    assert "128 tokens in 2 processes, now of at most 128 tokens in 1: " in texts[2]
    assert "the resumed run had" not in texts[0]
