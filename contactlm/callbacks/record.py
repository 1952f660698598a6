"""RunRecord: ``run.json``, what a run did and what it cost."""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.run_facts import (
    data_locations,
    equal_facts,
    machine_facts,
    module_facts,
    optimizer_facts,
    peak_memory,
    run_seed,
    scheme_facts,
)
from contactlm.callbacks.steps import find_callback
from contactlm.runs.checkpoint_io import outlast_full_disk
from contactlm.runs.directory import run_directory
from contactlm.runs.record_file import RUN_FILE, write_run
from contactlm.shipped import __version__

# Scores kept of every look at dev; the last look and the test keep all.
HISTORY = ("mcc", "mcc_sep6", "mcc_short", "mcc_medium", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
SPACING = 1.02  # optimizer steps between two rows of progress grow by this factor: a few hundred rows at any length


class RunRecord(L.Callback):
    """Writes ``run.json`` into the run directory, from which ``contactlm report`` compares runs.

    It holds the arm and seed; tokens, residues, optimizer steps and FLOPs; seconds and memory; dev scores by tokens,
    and test scores; and what should be equal in runs that are compared (budget, sets of chains, split, evaluation,
    precision, weights the training starts from). It is written at the start, after every look at dev and at the end,
    each time complete; a run that was killed is still called ``running``. Saved in checkpoints: a resumed run goes on
    with its sums and scores. Put it behind :class:`TokenBudget`, :class:`FlopsMeter` and :class:`ContactEvaluation`,
    whose results it takes. Without a logger nothing is written.

    Seconds are those of the first process. ``training`` is the time within training batches (forward, backward and
    optimizer), without evaluation, checkpoints and waiting for data; ``total`` is all from the start of ``fit``.
    Memory is in bytes, of the first process: ``training`` is the peak before the first look at dev, ``peak`` that of
    the whole process; on a GPU what tensors take, else resident memory.

    Args:
        arm: Name of the training scheme, shared by runs that differ in their seed only; None: that of the logger.
    """

    def __init__(self, arm: str | None = None) -> None:
        self.arm = arm
        self.training: dict[str, Any] = {
            **dict.fromkeys(("tokens", "residues", "steps", "flops", "forward_flops", "trained_parameters"), 0),
            "seconds": {"training": 0.0, "evaluation": 0.0, "total": 0.0},
            "memory": {"training": None, "peak": None},
        }
        self.dev: list[dict[str, Any]] = []
        self.progress: list[dict[str, int]] = []
        self._facts: dict[str, Any] = {}
        self._results: dict[str, Any] = {}
        self._began_with: dict[str, Any] = {}
        self._trained_with: int | None = None  # the seed of the run whose checkpoint is scored or goes on
        self._trained_as: str | None = None  # its arm
        self._folder: str | None = None
        self._fitted = False
        self._began = self._batch_began = self._look_began = 0.0
        self._seconds_before = 0.0

    # -- the course of a run -----------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, in all processes (it is broadcast)."""
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # a connector sets it
        wanted = stage in ("fit", "validate", "test") and trainer.loggers and not is_trial
        self._folder = run_directory(trainer) if wanted else None
        self._fitted &= stage != "fit"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather what is known before the first batch."""
        self._start(trainer, pl_module)
        parameters = [p.numel() for p in pl_module.parameters() if p.requires_grad]
        self.training["trained_parameters"] = sum(parameters)
        self._write(trainer, pl_module, "running")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of training."""
        self._batch_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the sums of the callbacks that count."""
        self.training["seconds"]["training"] += time.perf_counter() - self._batch_began
        self._count(trainer)
        steps = self.training["steps"]
        if steps and (not self.progress or steps >= math.ceil(self.progress[-1]["steps"] * SPACING + 0.001)):
            self.progress.append({name: self.training[name] for name in ("steps", "tokens", "flops", "forward_flops")})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of evaluation; what memory training took is known best before the first one."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._start_evaluation(trainer, pl_module)
        elif not trainer.sanity_checking:
            self._note_training_memory(pl_module)
        self._look_began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the dev scores with what was spent for them."""
        if trainer.sanity_checking:
            return
        self.training["seconds"]["evaluation"] += time.perf_counter() - self._look_began
        scores = _scores(trainer, "dev")
        self._results["dev"] = scores
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            spent = {name: self.training[name] for name in ("steps", "tokens", "flops", "forward_flops")}
            self.dev.append({**spent, **{name: scores[name] for name in HISTORY if name in scores}})
        self._write(trainer, pl_module, "running" if fitting else "finished")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training is over."""
        if self.training["tokens"]:
            self._note_training_memory(pl_module)
        last = {name: self.training[name] for name in ("steps", "tokens", "flops", "forward_flops")}
        if last["steps"] and (not self.progress or self.progress[-1] != last):
            self.progress.append(last)
        self._write(trainer, pl_module, "finished")
        self._fitted = True

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score what was trained here, or a checkpoint."""
        self._start_evaluation(trainer, pl_module)
        self._look_began = time.perf_counter()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the test scores."""
        self.training["seconds"]["evaluation"] += time.perf_counter() - self._look_began
        self._results["test"] = _scores(trainer, "test")
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say of a run that did not come to its end that it did not."""
        if self._facts:
            interrupted = isinstance(exception, (KeyboardInterrupt, SystemExit))  # signals end as SystemExit
            self._write(trainer, pl_module, "interrupted" if interrupted else f"failed: {type(exception).__name__}")

    # -- what is kept ------------------------------------------------------------------------------------------------
    def _start_evaluation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._fitted:
            self._start_clock()
        else:
            self._start(trainer, pl_module)
            self._count(trainer)  # what the checkpoint's callbacks say was spent

    def _start_clock(self) -> None:
        self._began, self._seconds_before = time.perf_counter(), self.training["seconds"]["total"]

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_clock()
        self._facts = {
            "arm": self._arm(trainer) or type(pl_module).__name__,
            "seed": run_seed(trainer) if self._trained_with is None else self._trained_with,
            "command": trainer.state.fn.value if trainer.state.fn is not None else None,
            "version": __version__,
            "module": type(pl_module).__name__,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "pretrained": pl_module.hparams.get("pretrained"),
            "init_seed": pl_module.hparams.get("init_seed"),
            "scheme": scheme_facts(trainer),
            "reads": module_facts(pl_module, "reads"),
            "optimizer": optimizer_facts(trainer),
            "data": data_locations(trainer),
            "machine": machine_facts(trainer, pl_module),
            "equal": equal_facts(trainer, pl_module),
        }
        self._facts["equal"] |= self._began_with  # a resumed run's weights are no longer those it began with
        self._results = {"dev": {}, "test": {}, "tested_at": None}

    def _arm(self, trainer: L.Trainer) -> str | None:
        """As it is called, or the run was that trained the checkpoint to be scored, or this one is."""
        name = trainer.loggers[0].name if trainer.loggers else None
        return self.arm or (None if trainer.state.fn == TrainerFn.FITTING else self._trained_as) or name

    def _count(self, trainer: L.Trainer) -> None:
        budget, meter = find_callback(trainer, TokenBudget), find_callback(trainer, FlopsMeter)
        if budget is not None:
            self.training |= {"tokens": budget.tokens, "residues": budget.residues}
        if meter is not None:
            self.training |= {"flops": meter.total, "forward_flops": getattr(meter, "forward", 0)}
        if trainer.state.fn == TrainerFn.FITTING:
            self.training["steps"] = trainer.global_step

    def _note_training_memory(self, pl_module: L.LightningModule) -> None:
        memory = self.training["memory"]
        if memory["training"] is None:
            memory["training"] = peak_memory(pl_module.device)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, status: str) -> None:
        self.training["seconds"]["total"] = self._seconds_before + time.perf_counter() - self._began
        peak = peak_memory(pl_module.device)
        self.training["memory"]["peak"] = max(filter(None, (peak, self.training["memory"]["peak"])), default=None)
        if trainer.is_global_zero and self._folder is not None:
            written = datetime.now(timezone.utc).isoformat(timespec="seconds")
            about = {**self._facts, "status": status, "written": written}
            history = {"dev_history": self.dev, "progress": self.progress}
            with outlast_full_disk(Path(self._folder) / RUN_FILE):  # the next write may find room
                write_run(self._folder, {**about, **self.training, **self._results, **history})

    def state_dict(self) -> dict[str, Any]:
        """Sums and scores so far."""
        seconds = dict(self.training["seconds"], total=self._seconds_before + time.perf_counter() - self._began)
        training = {**self.training, "seconds": seconds, "memory": dict(self.training["memory"])}
        began_with = {k: v for k, v in self._facts.get("equal", {}).items() if k in ("weights", "backbone")}
        history = {"dev": [dict(row) for row in self.dev], "progress": list(self.progress)}
        of_run = {name: self._facts.get(name) for name in ("seed", "arm")}
        return {"training": training, **history, "began_with": began_with, **of_run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; a test after ``fit`` only takes down which checkpoint it scores."""
        if self._fitted:
            at = state_dict["training"]
            self._results["tested_at"] = {name: at[name] for name in ("steps", "tokens", "flops")}
            return
        self.training, self.dev = state_dict["training"], list(state_dict["dev"])
        self.progress = list(state_dict["progress"])
        self._began_with = dict(state_dict.get("began_with", {}))
        self._trained_with, self._trained_as = state_dict.get("seed"), state_dict.get("arm")


def _scores(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """All scores of a set that were logged, by name."""
    logged = trainer.callback_metrics
    return {
        name.removeprefix(f"{prefix}/"): float(logged[name]) for name in sorted(logged) if name.startswith(f"{prefix}/")
    }
