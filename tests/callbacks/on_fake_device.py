"""Train with a Trainer and its callbacks on an accelerator that is not there; tell what would have waited for it.

    python -m tests.callbacks.on_fake_device

prints a JSON object: the operations that wait in the steps between two logs, each with the place in the code that asked
for it. What the accelerator is, and how it is watched, is told in :mod:`tests.model.on_fake_device`.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loops import fit_loop
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from torch._subclasses.fake_tensor import FakeTensorMode
from torchmetrics import metric

import contactlm
from contactlm import ContactModule
from contactlm.callbacks import FlopsMeter, LossGuard, MemoryAdvice, TokenBudget
from contactlm.callbacks.progress import BudgetProgressBar, ThroughputMeter
from contactlm.modules import optimization
from tests.model.on_fake_device import TINY, Watch, accelerator, moved

PACKAGE = Path(contactlm.__file__).parent
FIRST, LAST = 2, 6  # the steps that are watched, of which none is logged


class Imagined(CPUAccelerator):
    """An accelerator of any device."""

    def setup_device(self, device):
        pass


class Seen(Exception):  # noqa: N818 - it is no error
    """All that was to be seen."""


class Staying(SingleDeviceStrategy):
    """Leaves a module where it is: tensors without data cannot be moved."""

    def model_to_device(self):
        self.lightning_module._device = self.root_device

    def teardown(self):
        pass


class Module(ContactModule):
    """Begins without a look at its contact head, which has no numbers."""

    def setup(self, stage):
        super(ContactModule, self).setup(stage)


class Batches:
    """What Lightning takes for a loader, whose iterator draws no number."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Watched(L.Callback):
    """Watches steps from the end of one to the end of another."""

    def __init__(self):
        self.watch, self.seen = Placed(), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == FIRST:
            self.watch.__enter__()
        elif batch_idx + 1 == LAST:
            self.watch.__exit__(None, None, None)
            self.seen = self.watch.waits
            raise Seen  # what Lightning does at the end of an epoch needs numbers


class Placed(Watch):
    """Names with an operation that waits the function that asked for it: ours, else Lightning's."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        before = len(self.waits)
        results = super().__torch_dispatch__(operation, types, args, kwargs)
        if len(self.waits) > before:
            frames = traceback.extract_stack()
            places = [x for x in frames if PACKAGE in Path(x.filename).parents or "/lightning/" in x.filename]
            self.waits[before:] = [f"{self.waits[before]} in {places[-1].name}"]
        return results


def put(logged, device):
    """Make what Lightning adds logged values up in."""
    for name, x in list(vars(logged).items()):
        if isinstance(x, torch.Tensor):
            setattr(logged, name, torch.empty(x.shape, dtype=x.dtype, device=device))
    return logged


class Guard(LossGuard):
    """Looks at losses and gradients, from which no number can be had."""

    looks = 0

    def _look(self, *given):
        self.looks += super()._look(*given).device.type != "cpu"
        return [0, 0, 1]  # all is well


def run():
    device = accelerator()
    module = Module(None, TINY, attention="fused", optimizer=partial(torch.optim.Adam, lr=0.1))
    B, T = 2, 42
    warnings.filterwarnings("ignore")
    fit_loop.has_len_all_ranks = lambda *_: True  # asks the device when training starts
    optimization.goes_on = lambda where: where.type == device  # as a GPU does
    _ResultMetric.to = put  # numbers that are known cannot be moved to where there are none
    metric.deepcopy = lambda x: x.clone() if isinstance(x, torch.Tensor) else deepcopy(x)  # which copies storages
    with FakeTensorMode():
        moved(module, device)
        batches = [
            {
                "tokens": torch.empty(B, T + 2 * (n % 2), dtype=torch.int64),  # of two shapes
                "attention_mask": torch.empty(B, T + 2 * (n % 2), dtype=torch.bool),
                "cb": torch.empty(B, T - 2 + 2 * (n % 2), 3),
                "residue_count": B * (T - 2),
            }
            for n in range(20)
        ]
        watched, guard = Watched(), Guard()
        callbacks = [TokenBudget(10_000), FlopsMeter(), guard, MemoryAdvice(), ThroughputMeter(), watched]
        trainer = L.Trainer(
            accelerator=Imagined(), strategy=Staying(device=torch.device(device)), max_steps=LAST + 1,
            callbacks=[*callbacks, BudgetProgressBar()], logger=False, enable_checkpointing=False,
            enable_model_summary=False, gradient_clip_val=1.0, log_every_n_steps=10,
        )  # fmt: skip
        with suppress(Seen):
            trainer.fit(module, Batches(batches))
    return {"device": device, "waits": Counter(watched.seen), "steps": LAST - FIRST, "looks": guard.looks}


if __name__ == "__main__":
    json.dump(run(), sys.stdout)
