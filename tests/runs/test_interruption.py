"""Runs that are killed, asked to end, or run out of disk: what is left, and whether it goes on as if nothing was."""

import csv
import errno
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from contactlm import ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, SafeCheckpoint, TokenBudget
from contactlm.runs.checkpoint_io import AtomicCheckpointIO, find_last
from tests.callbacks.test_callbacks import data_module, trainer
from tests.processes import finish, output, start, wait_until

Folders = tuple[Path, Path]
STEPS = 10  # an epoch has 4 batches: 11 chains, 3 a batch
TOKENS = STEPS * 3 * 32


class History(L.Callback):
    """Notes losses, dev scores, learning rates and samples by step."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, float, list[str]]] = {}
        self.dev: dict[int, float] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.steps[trainer.fit_loop.total_batch_idx + 1] = (float(outputs["loss"]), rate, batch["ids"])

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.dev[trainer.fit_loop.total_batch_idx + 1] = float(trainer.callback_metrics["dev/auprc_sep6"])


class KeepAll(SafeCheckpoint):
    """Keeps a copy of every ``last.ckpt``, named by what was done when it was written."""

    def _save_last_checkpoint(self, trainer, monitor_candidates) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        where = "validation" if trainer.validating else "batch"
        written = Path(self.last_model_path)
        if written.is_file():
            shutil.copy(written, written.with_name(f"{trainer.global_step}-{where}.ckpt"))


class Again(KeepAll):
    """Writes ``last.ckpt`` in the middle and at the end of every validation, too."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._tried_at = (-1, 0.0)
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        source = Path(str(self.dirpath)) / f"{trainer.global_step}-validation.ckpt"
        if source.exists():  # not between two optimizer steps
            source.rename(source.with_name(f"{trainer.global_step}-within.ckpt"))
        self._tried_at = (-1, 0.0)

    def on_validation_end(self, trainer, pl_module) -> None:
        super().on_validation_end(trainer, pl_module)
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=30)


def run(folder: Path, tiny_esm: Path, folders: Folders, resume: Path | None = None, **options: Any) -> dict[str, Any]:
    """Train, or go on; what came of it."""
    torch.manual_seed(0 if resume is None else 1)  # a resumed run gets its random state from the checkpoint
    history, budget, flops = History(), TokenBudget(TOKENS, look_every=0.25), FlopsMeter()
    saver = Again(dirpath=folder, monitor="dev/auprc_sep6", mode="max", filename="best-{step}", last_every_n_steps=1)
    module = ContactModule(str(tiny_esm), scheduler=scheduler)
    defaults = {"val_check_interval": 3, "check_val_every_n_epoch": None, "enable_checkpointing": True}
    runner = trainer(
        folder, history, budget, flops, ContactEvaluation(), saver, plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0, **(defaults | options),
    )  # fmt: skip
    runner.fit(module, data_module(folders, batch_size=3), ckpt_path=resume)
    return {
        "steps": history.steps,
        "dev": history.dev,
        "tokens": budget.tokens,
        "flops": flops.total,
        "weights": {name: weight.clone() for name, weight in module.state_dict().items()},
        "optimizer": runner.optimizers[0].state_dict()["state"],
        "best": (saver.best_model_path and Path(saver.best_model_path).name, saver.best_model_score),
    }


@pytest.mark.slow
@pytest.mark.parametrize("end", [{"max_steps": 6}, {"max_epochs": 2}, {"max_epochs": 2, "check_val_every_n_epoch": 2}])
def test_last_is_the_state_in_which_the_run_ended(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, end: dict[str, int]
) -> None:
    """Also where its last look at dev was not the best: here the first is."""

    def fit(folder: Path, resume: Path | None = None, **options: Any) -> tuple[int, dict[str, torch.Tensor]]:
        torch.manual_seed(0)  # of the adapters' first values and dropout
        module = ContactModule(str(tiny_esm))
        saver = SafeCheckpoint(dirpath=folder, monitor="budget/tokens", mode="min", filename="best-{step}")
        parts = (TokenBudget(), ContactEvaluation(), saver)
        runner = trainer(folder, *parts, **{"enable_checkpointing": True, "num_sanity_val_steps": 0, **options})
        runner.fit(module, data_module(pdb_folders, batch_size=3), ckpt_path=resume)
        return torch.load(folder / "last.ckpt", weights_only=True)["global_step"], module.state_dict()

    steps, _ = fit(tmp_path / "first", **end)
    assert steps == end.get("max_steps", 8)  # an epoch has 4 batches
    looks = {name: every for name, every in end.items() if name.startswith("check_val")}  # a look draws a random number
    again, resumed = fit(tmp_path / "again", tmp_path / "first" / "last.ckpt", max_steps=11, **looks)
    whole, unbroken = fit(tmp_path / "whole", max_steps=11, **looks)
    assert again == whole == 11
    for name, weight in unbroken.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def after(whole: dict[int, Any], steps: int) -> dict[int, Any]:
    return {step: value for step, value in whole.items() if step > steps}


def place(checkpoint: dict[str, Any]) -> tuple[Any, ...]:
    """Where in the data a checkpoint stands."""
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_progress"]["current"]
    return loops["state_dict"], progress["ready"], progress["started"]


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "looks"), [(1, [3, 6, 9, STEPS]), (2, [3, 6, 9, STEPS]), (1, [3, 5, 8, STEPS])])
def test_every_checkpoint_leads_to_the_unbroken_run(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, accumulate: int, looks: list[int]
) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    if 5 in looks:  # by share of the budget
        options |= {"val_check_interval": None, "check_val_every_n_epoch": 1}
    whole = run(tmp_path / "whole", tiny_esm, pdb_folders, **options)
    assert sorted(whole["steps"]) == list(range(1, STEPS + 1)) and sorted(whole["dev"]) == looks
    checkpoints = sorted((tmp_path / "whole").glob("*-*.ckpt"))
    checkpoints = [path for path in checkpoints if not path.name.startswith("best")]
    assert {path.stem.split("-")[1] for path in checkpoints} == {"batch", "within", "validation"}
    for path in checkpoints if accumulate == 1 else checkpoints[::3]:
        loops = torch.load(path, weights_only=True)["loops"]["fit_loop"]
        done = loops["epoch_loop.batch_progress"]["total"]["processed"]
        if done == STEPS:
            continue  # the budget is spent
        again = run(tmp_path / "again", tiny_esm, pdb_folders, path, **options)
        looked = done if "validation" in path.stem else done - 1
        for name, steps in (("steps", done), ("dev", looked)):
            assert again[name] == after(whole[name], steps), f"{name} after {path.name}"
        for name in ("tokens", "flops", "best"):
            assert again[name] == whole[name], f"{name} after {path.name}"
        for name, weight in whole["weights"].items():
            assert torch.equal(again["weights"][name], weight), f"{name} after {path.name}"
        for number, state in whole["optimizer"].items():
            assert all(torch.equal(value, again["optimizer"][number][key]) for key, value in state.items())
        for later in (tmp_path / "again").glob("[0-9]*-batch.ckpt"):  # which leads on as the unbroken run's does
            ours, theirs = (torch.load(each, weights_only=True) for each in (later, tmp_path / "whole" / later.name))
            assert place(ours) == place(theirs), f"{later.name} after {path.name}"
        shutil.rmtree(tmp_path / "again")


# --- through the command line ---


def command(tiny_esm: Path, folders: Folders, *more: str) -> list[str]:
    data = {"train_dir": folders[0], "test_dir": folders[1], "read_workers": 0, "min_length": 10, "crop_length": 30}
    options = [f"--data.{name}={value}" for name, value in {**data, "batch_size": 3}.items()]
    options += ["--trainer.accelerator=cpu", "--trainer.val_check_interval=3", "--trainer.enable_progress_bar=false"]
    options += ["--dashboard.lengths=[]", "--trainer.log_every_n_steps=1"]
    options += [f"--model.pretrained={tiny_esm}", f"--budget.max_tokens={TOKENS}", "--test_after_fit=false"]
    return ["fit", "--config=crop200", *options, "--checkpoint.last_every_n_steps=1", *more]


def call(arguments: list[str], step: int | None = None, write: int | None = None, full_from: int | None = None) -> int:
    """The command line, in this process: killed at a training step or amid a write, or with a full disk from one on."""
    from contactlm.cli.main import main
    from contactlm.runs import checkpoint_io

    sys.argv, calls = ["contactlm"], iter(range(1, 1_000_000))
    if step is not None:
        ContactModule.training_step = _counted(ContactModule.training_step, step, _kill)  # type: ignore[method-assign]
    if write is not None:
        checkpoint_io.os.fsync = _counted(os.fsync, write, _kill)  # type: ignore[attr-defined]
    if full_from is not None:
        fsync = os.fsync
        checkpoint_io.os.fsync = lambda handle: _full() if next(calls) >= full_from else fsync(handle)  # type: ignore[attr-defined]
    status = main(arguments)
    if status:
        sys.exit(status)
    return status


def _counted(function: Any, number: int, act: Any) -> Any:
    """A function that does something else first when it is called for the n-th time."""
    calls = iter(range(1, 1_000_000))

    def counted(*arguments: Any) -> Any:
        if next(calls) == number:
            act()
        return function(*arguments)

    return counted


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def losses(folder: Path) -> dict[int, set[str]]:
    """The losses of each optimizer step, over all runs of a name: one of each where all agree."""
    found: dict[int, set[str]] = {}
    for path in sorted((folder / "runs" / "crop200").glob("version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get("train/loss"):
                found.setdefault(int(float(row["budget/tokens"])) // (3 * 32), set()).add(row["train/loss"])
    return found


def last_state(folder: Path) -> dict[str, Any]:
    path, _ = find_last(
        {"logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": folder / "runs", "name": "crop200"}}]},
        "contactlm",
    )
    assert path is not None
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_again_and_again_is_the_unbroken_run(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    arguments = command(tiny_esm, pdb_folders, "--ckpt_path=last")
    assert finish(start(call, arguments, folder=whole), whole) == 0
    assert "no last.ckpt in runs/crop200 and below: starting a new run" in output(whole)
    leftovers: list[int] = []
    # Each write of a checkpoint forces two things to disk, the file and then its folder: an odd call is amid a write.
    for kill in ({"step": 3}, {"write": 3}, {"step": 4}):
        process = start(call, arguments, *(kill.get(name) for name in ("step", "write")), folder=broken)
        process.join(200)
        assert process.exitcode == -signal.SIGKILL, output(broken)
        leftovers.append(len(list(broken.rglob(".*.tmp"))))
    assert leftovers == [0, 1, 0]  # the kill amid a write leaves one, and the next run removes it
    assert finish(start(call, arguments, folder=broken), broken) == 0
    expected, found = last_state(whole), last_state(broken)
    assert expected["global_step"] == found["global_step"] == STEPS
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    for key in ("loops", "lr_schedulers"):
        assert found[key] == expected[key]
    for key in ("TokenBudget", "FlopsMeter"):
        assert found["callbacks"][key] == expected["callbacks"][key]
    for number, state in expected["optimizer_states"][0]["state"].items():
        assert all(torch.equal(v, found["optimizer_states"][0]["state"][number][k]) for k, v in state.items())
    once = losses(whole)
    assert sorted(once) == list(range(1, STEPS + 1)) and all(len(values) == 1 for values in once.values())
    assert {step: once[step] for step in losses(broken)} == losses(broken) and STEPS in losses(broken)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_and_ends_it(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, number: signal.Signals, status: int
) -> None:
    endless = [*command(tiny_esm, pdb_folders), "--budget.max_tokens=100000000", "--checkpoint.last_every_n_steps=null"]
    process = start(call, endless, folder=tmp_path)
    metrics = tmp_path / "runs" / "crop200" / "version_0" / "checkpoints"
    wait_until(lambda: any(metrics.glob("*.ckpt")), process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(200)
    assert process.exitcode == status, output(tmp_path)
    (line,) = (line for line in output(tmp_path).splitlines() if line.startswith(number.name))
    path = tmp_path / line.rpartition("--ckpt_path ")[2]
    assert path.name == "last.ckpt" and "Traceback" not in output(tmp_path)
    saved = torch.load(path, weights_only=True)
    assert f"stopped after step {saved['global_step']};" in line
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["ready"] == progress["processed"] == saved["global_step"]
    assert saved["callbacks"]["TokenBudget"]["tokens"] == 3 * 32 * saved["global_step"]
    assert sorted(losses(tmp_path)) == list(range(1, saved["global_step"] + 1))  # no metric is lost either


@pytest.mark.slow
def test_a_full_disk_costs_no_older_checkpoint_and_not_the_run(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders
) -> None:
    more = ["--checkpoint.monitor=budget/tokens", "--checkpoint.last_every_n_steps=3"]  # every look is a new best
    arguments = command(tiny_esm, pdb_folders, *more)
    assert finish(start(call, arguments, None, None, 7, folder=tmp_path), tmp_path) == 0
    folder = tmp_path / "runs" / "crop200" / "version_0" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best-step=3.ckpt", "last.ckpt", "train.fasta.gz"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    text = output(tmp_path)
    warnings = [line for line in text.splitlines() if "cannot be written" in line]
    assert warnings and all("older checkpoints are kept" in line and "No space left" in line for line in warnings)
    assert [f"failure {n + 1} of this run" in line for n, line in enumerate(warnings)] == [True] * len(warnings)
    assert "best-step=3.ckpt" in text.splitlines()[-2], "the best that exists is the best"


def test_last_is_the_newest_of_the_same_seed(tmp_path: Path) -> None:
    trainer = {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": ""}}}
    for version, about in enumerate([{"seed": 0}, {"seed": 1}, None]):
        path = tmp_path / f"version_{version}" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        model = dict.fromkeys(("backbone", "backbone_checksum", "tuned_threshold"))
        data = {} if about is None else {"ContactDataModule": about}
        torch.save({"contactlm": model, "state_dict": {}, **data}, path)
        os.utime(path, ns=(version, version))
        paths = {seed: find_last(trainer, "contactlm", None, seed)[0] for seed in (None, 0, 1)}
        expected = {0: {None: 0, 0: 0}, 1: {None: 1, 0: 0, 1: 1}, 2: {None: 2, 0: 2, 1: 2}}[version]
        found = {seed: int(path.parent.parent.name[-1]) for seed, path in paths.items() if path is not None}
        assert found == expected  # the last one does not say its seed
