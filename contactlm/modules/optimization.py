"""What a module learns by: its optimizer, the learning rates of its parts, and their schedule."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau, SequentialLR

from contactlm.maps.copies import goes_on
from contactlm.types import TrainingError

Parts = Sequence[tuple[list[nn.Parameter], float]]  # parameters with a learning rate of their own, over the others'
DEV = "dev/"
BEST_SCORE, LOSS = "dev/mcc_sep6", "train/loss"  # what torch's own ReduceLROnPlateau monitors, with mode max and min
FRESH_HEAD_LR_FACTOR = 10.0  # head_lr_factor of a contact head that starts from nothing, unless one is given
NEVER = sys.maxsize  # steps between two of Lightning's


def adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Adam with a learning rate of 1e-4, the default of the reference experiments."""
    return torch.optim.Adam(parameters, lr=1e-4)


class CosineWithWarmup(SequentialLR):
    """A linear warm-up, then half a cosine down to 0: torch's two schedulers one after the other."""

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> None:
        if not 0 < warmup_steps < total_steps:
            raise TrainingError(
                f"scheduler: warmup_steps is {warmup_steps} and total_steps {total_steps}; give 0 < warmup < total"
            )
        rise = LinearLR(optimizer, start_factor=1e-3, total_iters=warmup_steps)
        super().__init__(optimizer, [rise, CosineAnnealingLR(optimizer, total_steps - warmup_steps)], [warmup_steps])


def make_optimizer(
    make: OptimizerCallable, trainable: Sequence[nn.Parameter], parts: Parts = ()
) -> torch.optim.Optimizer:
    """Make an optimizer of all that learns, with a group for each part that has a learning rate of its own."""
    optimizer = make(trainable)
    if not parts:
        return optimizer
    lr = optimizer.defaults["lr"]
    factor_of = {id(parameter): factor for own, factor in parts for parameter in own}
    groups: list[Any] = [{"params": [p for p in trainable if id(p) not in factor_of]}]
    for own, factor in parts:
        of_part = {id(parameter) for parameter in own}
        groups.append({"params": [p for p in trainable if id(p) in of_part], "lr": lr * factor})
    return make([group for group in groups if group["params"]])


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam and AdamW take their step on a GPU in one operation, unless somebody chose how.

    Made with ``fused=True`` an optimizer would claim to unscale gradients, and Lightning would not clip them.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    groups = optimizer.param_groups
    chosen = any(group["differentiable"] or (group["fused"], group["foreach"]) != (None, None) for group in groups)
    if not chosen and all(goes_on(weight.device) for group in groups for weight in group["params"]):
        for group in groups:
            group["fused"] = True


def schedule(make: LRSchedulerCallable, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Make a learning rate scheduler that Lightning steps after every optimizer step.

    :func:`step_plateaus` steps a ``ReduceLROnPlateau`` on a dev score: once a look, or steps would spend its patience.
    """
    scheduler = make(optimizer)
    entry: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
    if not isinstance(scheduler, ReduceLROnPlateau):
        return entry
    monitor = getattr(scheduler, "monitor", None) or (BEST_SCORE if scheduler.mode == "max" else LOSS)
    frequency = NEVER if monitor.startswith(DEV) else 1
    return {**entry, "reduce_on_plateau": True, "monitor": monitor, "frequency": frequency}


def step_plateaus(trainer: L.Trainer) -> None:
    """Show schedulers that wait for a plateau of a dev score the score of a look at dev, whose scores are logged."""
    for config in trainer.lr_scheduler_configs:
        if not config.reduce_on_plateau or config.frequency != NEVER:
            continue
        scores = trainer.callback_metrics
        if config.monitor not in scores:
            raise TrainingError(
                f"scheduler: ReduceLROnPlateau monitors {config.monitor}, which no look at the dev set gives; it gives "
                f"{', '.join(sorted(name for name in scores if name.startswith(DEV)))}"
            )
        config.scheduler.step(float(scores[config.monitor]))  # type: ignore[arg-type]  # a plateau's takes a score
