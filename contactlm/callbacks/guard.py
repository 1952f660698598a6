"""LossGuard: leave out optimizer steps that would do harm, and name the proteins behind them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from contactlm.callbacks.steps import StepSums, is_time_to_log
from contactlm.types import ContactLMError, TrainingError

log = logging.getLogger(__name__)

NOTHING = (0, 0, 0)  # a bad loss, a bad gradient, a gradient that is not zero
Names = Callable[[Any], Sequence[str]]
Backward = tuple[Any, int, Tensor]  # a batch, its number, and its loss, a scalar on the device
_NAMED = 16  # proteins in an error; the warnings before it name all
ADVICE = (
    "lower the learning rate (model.optimizer.init_args.lr), clip gradients (trainer.gradient_clip_val: 1.0), train "
    "with trainer.precision bf16-mixed or 32-true, or look at these proteins' structures; guard.max_consecutive and "
    "guard.max_skipped set the limits"
)


def name_samples(batch: Any) -> list[str]:
    """Name the proteins of a batch of ``ContactDataModule``, with each crop's first residue; [] of other batches."""
    if not isinstance(batch, Mapping) or "ids" not in batch:
        return []
    if batch.get("starts") is None:
        return [str(name) for name in batch["ids"]]
    pairs = zip(batch["ids"], batch["starts"].tolist(), strict=True)
    return [f"{name} from residue {start + 1}" for name, start in pairs]


class LossGuard(L.Callback):
    """Skips the optimizer step when a loss or a gradient is not finite, and stops after too many such steps.

    A skipped step leaves weights and optimizer state as they are, to the last bit; all gradients accumulated for it are
    dropped. Everything that counts batches continues: learning rate scheduler, ``global_step``, token budget. All
    processes decide alike. A step whose gradients are all exactly zero, as of a batch of which no pair is known, is
    skipped too (momentum would move the weights); it is counted apart, in ``empty``, and meets no limit. A step costs
    one norm over all gradients and one transfer from the device, for which it waits.

    With a gradient scaler (``16-mixed``), a gradient that overflows while the loss is finite is left to the scaler,
    until its scale is down to 1.

    Logs ``train/skipped_steps``; the counts are saved in checkpoints. Works in any Lightning project.

    Args:
        max_consecutive: Skipped steps in a row after which training stops with an error; None: no limit.
        max_skipped: Skipped steps in all after which training stops with an error; None: no limit.
        names: Names the samples of a batch; the default reads batches of ``ContactDataModule``.

    Raises:
        ContactLMError: A limit is not positive.
    """

    def __init__(
        self, max_consecutive: int | None = 10, max_skipped: int | None = None, names: Names = name_samples
    ) -> None:
        for option, value in (("max_consecutive", max_consecutive), ("max_skipped", max_skipped)):
            if value is not None and value < 1:
                raise ContactLMError(f"guard.{option} is {value}; it must be at least 1 (null: no limit)")
        self.max_consecutive, self.max_skipped, self.names = max_consecutive, max_skipped, names
        self.skipped = self.consecutive = self.empty = 0
        self._batch: tuple[Any, ...] = (None, 0)
        self._waiting: list[Backward] = []  # passes that wait for their optimizer step
        self._clip: float | None = None  # the trainer's gradient_clip_val, while it is put aside
        self._found: Sequence[int] | Tensor = NOTHING  # in the current step, by this process
        self._verdict = list(NOTHING)  # in how many processes

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._found = NOTHING
        StepSums.of(trainer).join(self, self._give, self._take)

    def _give(self) -> Sequence[int] | Tensor:
        found, self._found = self._found, NOTHING
        return found

    def _take(self, sums: list[int]) -> None:
        self._verdict = sums

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._waiting.clear()  # what an interrupted epoch left behind
        self._clip_again(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Remember the loss; looking at it now would wait for the device."""
        self._waiting.append((self._batch[0], self._batch[1], loss.detach()))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Decide whether the step is taken; gradients are unscaled here, and not clipped yet."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return  # the training step returned no loss
        self._found = self._look(pl_module.device, waiting, optimizer)
        StepSums.of(trainer).exchange(trainer)
        bad_loss, bad_gradient, moves = map(bool, self._verdict)
        is_bad = bad_loss or bad_gradient
        if is_bad or not moves:
            self._drop_gradients(trainer, optimizer)
        scaler = _scaler(trainer)
        if scaler is not None and bad_gradient and not bad_loss and scaler.get_scale() > 1:
            return
        if is_bad:
            self._count(trainer.global_step, waiting, bad_loss)
        elif moves:
            self.consecutive = 0
        else:
            self.empty += 1

    def _look(self, device: torch.device, waiting: Sequence[Backward], optimizer: Optimizer) -> Tensor:
        """Whether a loss is not finite, a gradient is not finite, some gradient is not zero: int64 (3,)."""
        parts = [part.to_local() if hasattr(part, "to_local") else part for part in _gradients(optimizer)]
        own = [part for part in parts if part.numel()]  # of weights spread over processes some parts are empty here
        largest = get_total_norm(own, norm_type=torch.inf).to(device)
        losses = torch.stack([loss.to(device).isfinite().all() for _, _, loss in waiting]).all()
        return torch.stack([~losses, ~largest.isfinite(), largest != 0]).long()

    def _count(self, number: int, backwards: Sequence[Backward], bad_loss: bool) -> None:
        """Count a step that is left out; log its proteins, and stop at a limit."""
        self.skipped += 1
        self.consecutive += 1
        culprits = [each for each in backwards if not (bad_loss and bool(each[2].isfinite()))]  # on this process
        proteins = [name for batch, index, _ in culprits for name in list(self.names(batch)) or [f"batch {index}"]]
        if culprits:
            what, losses = "the loss" if bad_loss else "a gradient", [f"{float(loss):.4g}" for _, _, loss in culprits]
            log.warning(
                f"step {number}: {what} is not finite (loss {', '.join(losses)}): the optimizer step is skipped, "
                f"{self.consecutive} in a row, {self.skipped} in all; proteins: {'; '.join(proteins)}"
            )
        self._stop_at_limit(proteins)

    def _drop_gradients(self, trainer: L.Trainer, optimizer: Optimizer) -> None:
        """Make the coming step do nothing: optimizers pass over parameters without a gradient."""
        if _scaler(trainer) is not None and all(group.get("fused") for group in optimizer.param_groups):
            for gradient in _gradients(optimizer):  # a fused optimizer looks for infinities itself: let it find some
                gradient.fill_(torch.inf)
            return
        optimizer.zero_grad(set_to_none=True)
        # Clipping by value breaks off where there is nothing to clip.
        self._clip, trainer.gradient_clip_val = trainer.gradient_clip_val, None

    def _clip_again(self, trainer: L.Trainer) -> None:
        if self._clip is not None:
            self._clip, trainer.gradient_clip_val = None, self._clip

    def _stop_at_limit(self, proteins: Sequence[str]) -> None:
        in_a_row = self.max_consecutive is not None and self.consecutive >= self.max_consecutive
        if not in_a_row and (self.max_skipped is None or self.skipped < self.max_skipped):
            return
        count = f"{self.consecutive} optimizer steps in a row" if in_a_row else f"{self.skipped} optimizer steps in all"
        self.consecutive = 0  # a run resumed from here gets a new chance
        more = f"; and {len(proteins) - _NAMED} more, named above" if len(proteins) > _NAMED else ""
        last = "; ".join(proteins[:_NAMED]) + more if proteins else "on another process"
        raise TrainingError(
            f"training stopped: {count} were skipped because a loss or a gradient was not finite; the weights are "
            f"those of the last good step. The last skipped step had the proteins: {last}. What to try: {ADVICE}"
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._clip_again(trainer)
        if is_time_to_log(trainer):
            pl_module.log("train/skipped_steps", torch.tensor(float(self.skipped)))  # on the CPU: no copy to the device

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "consecutive": self.consecutive, "empty": self.empty}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped, self.consecutive = state_dict["skipped"], state_dict["consecutive"]
        self.empty = state_dict["empty"]


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [weight.grad for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]


def _scaler(trainer: L.Trainer) -> Any:
    """The gradient scaler of float16 training; None without one."""
    return getattr(trainer.precision_plugin, "scaler", None)
