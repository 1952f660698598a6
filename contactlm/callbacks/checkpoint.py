"""SafeCheckpoint: the best weights, and the state of the run so that it can resume after whatever ended it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from contactlm.atomic import remove_temporaries
from contactlm.callbacks.steps import StepSums, find_callback, validation_follows
from contactlm.data import training_set
from contactlm.data.store import ChainStore
from contactlm.runs.checkpoint_io import outlast_full_disk
from contactlm.runs.signals import STOPPING, Stopped, StopSignals
from contactlm.types import ContactLMError

log = logging.getLogger(__name__)


class SafeCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose ``last.ckpt`` is the state of the run a short while ago.

    ``last.ckpt`` is written every few minutes, at the end of training, and when SIGTERM or Ctrl-C ask the run to end;
    always right after an optimizer step, so that a run resumed from it is the unbroken run, validation included. The
    process then ends with 128 + the signal's number: 143 for SIGTERM (pre-emption), 130 for Ctrl-C.

    Use it with :class:`contactlm.runs.checkpoint_io.AtomicCheckpointIO`: a checkpoint that cannot be written then
    leaves the older ones as they were, and the run continues. The training sequences of a ``ContactDataModule`` are
    kept with the checkpoints, in ``train.fasta.gz``: later tests report identities to them.

    Args:
        last_every_n_minutes: Minutes between two writes of ``last.ckpt``; null: no such writes.
        last_every_n_steps: Optimizer steps between two writes of ``last.ckpt``; null: no such writes.
        stop_on_signals: Save and stop on SIGTERM and Ctrl-C while training.
        options: Arguments of ``lightning.pytorch.callbacks.ModelCheckpoint``.

    Raises:
        ContactLMError: An interval that is not positive, or ``save_last="link"``.
    """

    def __init__(
        self,
        last_every_n_minutes: float | None = 5,
        last_every_n_steps: int | None = None,
        stop_on_signals: bool = True,
        **options: Any,
    ) -> None:
        if options.get("save_last") is None:
            options["save_last"] = True
        if options["save_last"] == "link":
            raise ContactLMError("checkpoint.save_last is 'link'; last.ckpt is a state of its own: give true or false")
        for name, value in (("minutes", last_every_n_minutes), ("steps", last_every_n_steps)):
            if value is not None and value <= 0:
                raise ContactLMError(f"checkpoint.last_every_n_{name} is {value}; it must be above 0 (null: never)")
        super().__init__(**options)
        self.last_every_n_minutes = last_every_n_minutes
        self.last_every_n_steps = last_every_n_steps
        self.stop_on_signals = stop_on_signals
        self._signals = StopSignals()
        self._stopping = 0  # the signal that all processes know of
        self._fitting = True
        self._to_flush = False
        self._validation_is_due = False
        self._step_before = 0
        self._heard = [0] * (len(STOPPING) + 1)  # processes that got each signal, and that find it is time to save
        self._tried_at = (-1, 0.0)  # step and time of the newest last.ckpt, written or not

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._fitting = stage == "fit"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over (Lightning has set its own handlers by now, and restores what was before them)."""
        super().on_train_start(trainer, pl_module)
        _begin_next_epoch(trainer)
        schedule = find_callback(trainer, GradientAccumulationScheduler)
        if schedule is not None:  # Lightning asks it when an epoch begins, not when one resumes
            trainer.accumulate_grad_batches = schedule.get_accumulate_grad_batches(trainer.current_epoch)
        if trainer.is_global_zero:
            # what killed runs left half written: here, and where the resumed run wrote
            for folder in (self.dirpath, Path(trainer.ckpt_path).parent if trainer.ckpt_path else None):
                if folder is not None and "://" not in str(folder):
                    remove_temporaries(Path(folder))
            self._keep_training(trainer)
        self._step_before = trainer.global_step
        self._tried_at = (trainer.global_step if trainer.ckpt_path else -1, time.monotonic())
        self._stopping = 0
        self._heard = [0] * (len(STOPPING) + 1)
        StepSums.of(trainer).join(self, self._give, self._take)
        self._signals = StopSignals(quiet=not trainer.is_global_zero)
        if self.stop_on_signals:
            self._signals.install()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave, when a signal came: the metrics of the last step are logged by now."""
        self._leave_if_asked(trainer)
        if self._to_flush and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
        self._to_flush = False
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *batch: Any) -> None:
        self._validation_is_due = validation_follows(trainer)
        super().on_train_batch_end(trainer, *batch)
        # at the end of training the last validation comes first
        self._save_if_due(trainer, _ends(trainer) and not self._validation_is_due)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave in the middle of a validation, which the resumed run begins again.

        Of several processes each has its own number of batches here: they leave together after the validation.
        """
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and trainer.world_size == 1:
            self._save_if_due(trainer, False)
            self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_is_due = False
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_if_due(trainer, _ends(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._leave_if_asked(trainer)
        self._signals.restore()

    def _save_if_due(self, trainer: L.Trainer, at_end: bool) -> None:
        """Write ``last.ckpt``, all processes or none, unless it holds this step already."""
        step, every = self._tried_at[0], self.last_every_n_steps
        if trainer.world_size == 1:
            self._heard = self._give()
        elif trainer.validating:
            StepSums.of(trainer).exchange(trainer)
        else:
            StepSums.of(trainer).settle(trainer)
        self._stopping = next((number for number, count in zip(STOPPING, self._heard, strict=False) if count), 0)
        due = self._heard[-1] or (every is not None and trainer.global_step - max(step, 0) >= every)
        if (self._stopping or due or at_end) and step != trainer.global_step and not self._is_trial(trainer):
            if _ends(trainer) and self._validation_is_due:
                return  # the last validation cannot be put off to a resumed run: that one would not train
            at = {"epoch": torch.tensor(trainer.current_epoch), "step": torch.tensor(trainer.global_step)}
            self._save_last_checkpoint(trainer, {**trainer.callback_metrics, **at})

    def _give(self) -> list[int]:
        """Which signal came, and whether it is time to save."""
        minutes, received = self.last_every_n_minutes, self._signals.received
        late = minutes is not None and time.monotonic() - self._tried_at[1] >= 60 * minutes
        return [*(int(number == received) for number in STOPPING), int(late)]

    def _take(self, sums: list[int]) -> None:
        self._heard = sums

    def _keep_training(self, trainer: L.Trainer) -> None:
        store = getattr(trainer.datamodule, "chains", {}).get("train")  # type: ignore[attr-defined]  # a connector sets it
        is_local = self.dirpath is not None and "://" not in str(self.dirpath)
        if not isinstance(store, ChainStore) or not is_local or self._is_trial(trainer):
            return
        with outlast_full_disk(Path(str(self.dirpath)) / training_set.NAME):
            training_set.keep_training(store, Path(str(self.dirpath)))

    def _is_trial(self, trainer: L.Trainer) -> bool:
        return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # a connector sets it

    def _leave_if_asked(self, trainer: L.Trainer) -> None:
        """End the run with the signal's exit status when the state of this step was saved, or could not be."""
        if not self._stopping or (self._tried_at[0] != trainer.global_step and not trainer.should_stop):
            return
        if trainer.is_global_zero:
            name, where = signal.Signals(self._stopping).name, self.last_model_path or trainer.ckpt_path
            advice = f"resume with --ckpt_path {where}" if where else "no checkpoint was written"
            log.warning("%s: stopped after step %d; %s", name, trainer.global_step, advice)
        # a launcher takes a child's status other than 0 for a crash, and kills the process that launched it
        raise Stopped(128 + self._stopping if trainer.is_global_zero else 0)

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Write ``last.ckpt``; not between optimizer steps, because accumulated gradients are not saved."""
        if trainer.global_step == self._step_before:
            return
        self._tried_at = (trainer.global_step, time.monotonic())
        self._to_flush = True
        believed = dict(vars(self))
        with self._taken_back_on_failure(trainer):
            super()._save_last_checkpoint(trainer, monitor_candidates)
        # All but paths: Lightning must still look whether this step is the best, and know that a last one is there.
        vars(self).update({name: value for name, value in believed.items() if not isinstance(value, str)})

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        with self._taken_back_on_failure(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    @contextmanager
    def _taken_back_on_failure(self, trainer: L.Trainer) -> Iterator[None]:
        """Go on believing what was so before, when a checkpoint could not be written."""
        before = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}
        plugin: Any = trainer.strategy.checkpoint_io
        failures = getattr(plugin, "failures", 0)  # that came in this process so far
        yield
        # one process writes, and all must know
        if trainer.strategy.broadcast(getattr(plugin, "failures", 0) > failures):
            vars(self).update(before)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note a validation that is due or under way: a resumed run then begins with it."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._validation_is_due:
            loops = checkpoint["loops"]["fit_loop"]
            for kind in ("total", "current"):
                batches = loops["epoch_loop.batch_progress"][kind]
                batches["completed"] = batches["processed"]
                # what Lightning takes for a validation that was left in its first batch
                left = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
                loops["epoch_loop.val_loop.batch_progress"][kind] = left

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember which checkpoints were best, also those in the folder of the run that is resumed.

        Not where one is only scored or predicted with: nothing is written then.
        """
        if not self._fitting:
            return
        if state_dict["dirpath"] == self.dirpath:
            self.last_model_path = state_dict["last_model_path"]
        kept = {path: score for path, score in state_dict["best_k_models"].items() if Path(path).exists()}
        if len(kept) < len(state_dict["best_k_models"]):
            log.warning("checkpoint: the best checkpoint of the resumed run is missing; only later ones count")
        if not kept:
            return
        best, worst = (max, min) if self.mode == "max" else (min, max)
        self.best_k_models = kept
        self.best_model_path = best(kept, key=kept.__getitem__)
        self.best_model_score = kept[self.best_model_path]
        self.kth_best_model_path = worst(kept, key=kept.__getitem__)
        self.kth_value = kept[self.kth_best_model_path]
        self.current_score = state_dict["current_score"]


def _begin_next_epoch(trainer: L.Trainer) -> None:
    """Count an epoch as begun that a run resumed at the end of the one before is about to run.

    Lightning closes the epoch before and does not open this one: a checkpoint from within it would lead back to the
    epoch's start, and batches would be trained on twice.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.total
    if loop.restarted_mid_epoch and epochs.processed == epochs.started:
        loop.epoch_progress.increment_ready()
        loop.epoch_progress.increment_started()


def _ends(trainer: L.Trainer) -> bool:
    """Whether training ends with this batch: stopped, or by ``max_steps`` or ``max_epochs``."""
    is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    ends_by_epochs = is_last and 0 < (trainer.max_epochs or 0) <= trainer.current_epoch + 1
    return trainer.should_stop or ends_by_epochs or 0 < trainer.max_steps <= trainer.global_step
