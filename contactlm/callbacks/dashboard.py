"""TensorBoardDashboard: what TensorBoard shows of a run beyond scalars by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.dashboard_layout import BY_TOKENS, GFLOPS, HPARAM_METRICS, custom_layout, run_hparams
from contactlm.callbacks.dashboard_maps import CURVE_POINTS, LENGTHS, Exhibits, PrecisionRecall, draw
from contactlm.callbacks.evaluation import ContactEvaluation
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.run_facts import find_callback
from contactlm.types import ContactLMError

SCORES = ("mcc", "mcc_sep6", "mcc_short", "mcc_medium", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
OVER_TOKENS = (*SCORES, "mcc_sep6_tuned", "trivial_mcc", "trivial_p_at_L_long")
OVER_PROTEINS = ("mcc_sep6", "mcc", "p_at_L_long", "auprc_sep6")


class TensorBoardDashboard(L.Callback):
    """Fills TensorBoard's tabs; without a :class:`TensorBoardLogger` it does nothing.

    - **Scalars**: the dev scores once more as ``by_tokens/dev/…``, with the tokens trained on as the step, so that
      runs of different batch size lie over one another; ``flops/cumulative_gflops``.
    - **Custom scalars**: cumulative GFLOPs by step, dev MCC by tokens, and others.
    - **Images**: predicted (above the diagonal) against true maps of the same few dev proteins, as ``dev/maps/<id>``;
      at the first look at dev and at most ``pictures`` times more, evenly over the budget (without a budget at looks
      1, 2, 4, 8, …). On several processes the proteins are chosen from those of the first.
    - **PR curves**: all pairs with |i − j| ≥ 6 of all proteins, of all processes.
    - **Histograms** and **Distributions**: scores over proteins.
    - **HParams**: the options that tell runs apart, beside ``dev/mcc_sep6`` and ``test/mcc_sep6``.

    It reads what validation and test steps return as :class:`ContactEvaluation` does, and :class:`TokenBudget`,
    :class:`FlopsMeter` and :class:`ContactEvaluation` where the trainer has them, in any order. It draws no random
    number. A picture takes 0.1 to 0.3 s of a CPU core; the rest of a look about 2 ms a protein of 300 residues.

    Args:
        lengths: Residues; for each of these lengths the dev protein nearest to it is drawn. Empty: no pictures.
        pictures: How often they are drawn, at most, over a budget of tokens.

    Raises:
        ContactLMError: A length or number below 1.
    """

    def __init__(self, lengths: Sequence[int] = LENGTHS, pictures: int = 9) -> None:
        for name, values in (("lengths", lengths), ("pictures", [pictures])):
            if any(value < 1 for value in values):
                raise ContactLMError(f"dashboard.{name} is {list(values)}; every value must be at least 1")
        self.lengths, self.pictures = tuple(lengths), pictures
        self._looks = self._parts = 0  # looks at dev, and ``pictures`` parts of the budget spent when last drawn
        self._step = -1
        self._described: set[str] = set()  # run directories
        self._exhibits: Exhibits | None = None
        self._curve = PrecisionRecall()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put down charts and options."""
        self._looks = self._parts = 0
        for logger in _loggers(trainer):
            logger.experiment.add_custom_scalars(custom_layout())
        self._write_hparams(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the FLOPs so far in units that can be read."""
        meter = find_callback(trainer, FlopsMeter)
        step, before = trainer.global_step, self._step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it
        self._step = step
        if meter is not None and step != before and step % every == 0:
            for logger in _loggers(trainer):
                logger.experiment.add_scalar(GFLOPS, meter.total / 1e9, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the proteins of the look before."""
        self._curve = PrecisionRecall()
        self._exhibits = None
        if not trainer.sanity_checking:
            self._looks += 1
            if _has_logger(trainer) and self._is_time_to_draw(trainer):
                self._exhibits = Exhibits(self.lengths)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the dev proteins; a test without training has options of its own."""
        self._curve, self._exhibits = PrecisionRecall(), None
        self._write_hparams(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the batch's proteins; those of a test are not drawn."""
        if _has_logger(trainer) and not trainer.sanity_checking and _are_maps(outputs):
            self._curve.add(outputs)
            if self._exhibits is not None and trainer.is_global_zero:
                self._exhibits.add(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what this look at dev has shown."""
        if trainer.sanity_checking or not _has_logger(trainer):
            return
        self._write_distributions(trainer, "dev")
        budget = find_callback(trainer, TokenBudget)
        if budget is not None and trainer.state.fn == TrainerFn.FITTING:
            for name in OVER_TOKENS:
                if (value := trainer.callback_metrics.get(f"dev/{name}")) is not None:
                    for logger in _loggers(trainer):
                        logger.experiment.add_scalar(f"{BY_TOKENS}dev/{name}", float(value), budget.tokens)
        if self._exhibits is not None:
            self._write_maps(trainer, getattr(pl_module, "call_threshold", 0.5))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what the test has shown."""
        if _has_logger(trainer):
            self._write_distributions(trainer, "test")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the files be complete before whatever comes after training."""
        for logger in _loggers(trainer):
            logger.experiment.flush()

    def _is_time_to_draw(self, trainer: L.Trainer) -> bool:
        budget = find_callback(trainer, TokenBudget)
        if not self.lengths:
            return False
        if budget is None or budget.max_tokens is None:
            return self._looks & (self._looks - 1) == 0  # 1, 2, 4, 8, …
        before, self._parts = self._parts, math.floor(budget.fraction * self.pictures)
        return self._looks == 1 or self._parts > before

    def _write_hparams(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from torch.utils.tensorboard.summary import hparams

        for logger in _loggers(trainer):
            if logger.log_dir in self._described:
                continue
            self._described.add(logger.log_dir)
            metrics = dict.fromkeys(HPARAM_METRICS, 0.0)  # their values are the last scalars of these names
            for summary in hparams(run_hparams(trainer, pl_module), metrics):
                logger.experiment._get_file_writer().add_summary(summary)

    def _write_distributions(self, trainer: L.Trainer, prefix: str) -> None:
        """Curve and histograms. On several processes a collective call."""
        histogram = self._curve.histogram.to(trainer.strategy.root_device)
        curve = self._curve.curve(trainer.strategy.reduce(histogram, reduce_op="sum"))
        evaluation = find_callback(trainer, ContactEvaluation)
        rows = [] if evaluation is None else evaluation.rows
        step = trainer.global_step
        for logger in _loggers(trainer):
            writer = logger.experiment
            tag = f"{prefix}/precision_recall_sep6"
            writer.add_pr_curve_raw(tag, **curve, global_step=step, num_thresholds=CURVE_POINTS)
            for name in OVER_PROTEINS:
                values = np.array([row[name] for row in rows if math.isfinite(row[name])])
                if len(values):
                    bins = np.linspace(-1, 1, 81) if name.startswith("mcc") else np.linspace(0, 1, 41)
                    writer.add_histogram(f"{prefix}/proteins/{name}", values, step, bins=bins)

    def _write_maps(self, trainer: L.Trainer, threshold: float) -> None:
        exhibits, self._exhibits = self._exhibits, None
        writers = [logger.experiment for logger in _loggers(trainer)]
        if exhibits is None or not writers:
            return
        for exhibit in exhibits.chosen():
            picture = draw(exhibit, threshold)
            for writer in writers:
                writer.add_image(f"dev/maps/{exhibit.id}", picture, trainer.global_step, dataformats="HWC")


def _has_logger(trainer: L.Trainer) -> bool:
    """Whether there is something to write to; the same in all processes."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def _are_maps(outputs: Any) -> bool:
    return isinstance(outputs, Mapping) and {"ids", "probability", "labels"} <= outputs.keys()


def _loggers(trainer: L.Trainer) -> list[Any]:
    """The TensorBoard loggers to write to; in the first process only."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
