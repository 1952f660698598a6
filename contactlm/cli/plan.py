"""``contactlm plan``: what a run costs, before it runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy

from contactlm.callbacks.budget import count_tokens
from contactlm.cli.arguments import plain_arguments, resolve_arguments
from contactlm.cli.contact_cli import ContactCLI
from contactlm.data.loaders import most_chains
from contactlm.model.loading import architecture_of
from contactlm.modules.base import MapModule
from contactlm.modules.memory import (
    PRECISIONS,
    StepCost,
    Way,
    most_rows,
    pass_cost,
    resized,
    shorter_crop,
    size_text,
    step_cost,
    ways,
)
from contactlm.types import ContactLMError, ModelError

SEEN = 200  # batches that are made to learn how large they are
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SPECIAL = 2  # <cls> and <eos>


def plan_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm plan``: the options of ``fit``, and ``--memory``."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--memory", nargs="?", const="")
    options, rest = own.parse_known_args(arguments)
    memory = None if options.memory is None else bytes_of(options.memory)
    command = PlanCLI(plain_arguments(resolve_arguments(["fit", *rest])))
    sys.stdout.write("\n".join(command.lines(memory)) + "\n")
    return 0


def bytes_of(size: str) -> int:
    """Read a size of memory.

    Examples:
        >>> bytes_of("12GB"), bytes_of("800M")
        (12000000000, 800000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", size.strip().lower())
    if match is None or not float(match[1]):
        raise ContactLMError(f"--memory {size!r}: give a size such as 12GB")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Seen:
    """What some training batches were like."""

    batches: int
    tokens: int
    largest: dict[str, Any]
    per_epoch: int


class PlanCLI(ContactCLI):
    """The command line of ``fit``, whose model is made without weights and which trains nothing."""

    new_module: partial[MapModule]  # makes the module, where tensors are made at the moment

    def instantiate_classes(self) -> None:
        """Make all but the backbone's weights: its sizes are enough."""
        model = self.config["fit"]["model"]
        if model["pretrained"] is not None:
            model["architecture"], model["pretrained"] = architecture_of(model["pretrained"]), None
        self.parser.add_instantiator(self._without_weights, MapModule, prepend=True)  # before Lightning's own
        super().instantiate_classes()

    def _without_weights(self, made: type[MapModule], *arguments: Any, **options: Any) -> MapModule:
        self.new_module = partial(made, *arguments, **options)
        with torch.device("meta"):
            return self.new_module()

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Make the trainer without a run's directory."""
        return self.make_trainer(logger=False, **options)

    def fit(self, **_: Any) -> None:
        """Nothing is run."""

    before_fit = after_fit = fit

    def lines(self, memory: int | None) -> list[str]:
        """The plan, as text."""
        if self.trainer.max_steps == 0:
            raise ModelError("plan: trainer.max_steps is 0: this fit trains nothing, and there is nothing to plan")
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        seen = self._look_at_batches()
        cost = step_cost(self.new_module, seen.largest, self._device, self._precision)
        lines = [*self._of_data(seen), *self._of_steps(seen, cost), *self._of_memory(seen, cost)]
        return lines if memory is None else lines + self._what_fits(seen, memory)

    @property
    def _device(self) -> torch.device:
        strategy: Strategy = self.trainer.strategy
        return strategy.root_device

    @property
    def _precision(self) -> torch.dtype | None:
        return PRECISIONS.get(str(self.trainer.precision))

    def _look_at_batches(self) -> Seen:
        loader: Any = self.datamodule.train_dataloader()
        tokens, count, largest = 0, 0, None
        for batch in islice(loader, SEEN):
            tokens, count = tokens + count_tokens(batch)[0], count + 1
            if largest is None or _weight(batch) > _weight(largest):
                largest = batch
        if largest is None:
            raise ModelError("plan: the training set gives no batch: see what was left out, above")
        return Seen(count, tokens, largest, len(loader))

    def _of_data(self, seen: Seen) -> list[str]:
        sets = ", ".join(f"{len(store):,} {name} chains" for name, store in self.datamodule.chains.items())
        rows, longest = seen.largest["tokens"].shape
        mean = seen.tokens / seen.batches
        of = f"the first {seen.batches:,} batches" if seen.batches < seen.per_epoch else "an epoch"
        return [
            f"data        {sets}",
            f"batches     {mean:,.0f} tokens on average of {of}; the largest {rows} x {longest}",
        ]

    def _of_steps(self, seen: Seen, cost: StepCost) -> list[str]:
        budget = self._made("budget").max_tokens
        processes = self.trainer.world_size
        a_batch = seen.tokens / seen.batches * processes
        accumulated = self.trainer.accumulate_grad_batches
        if budget is None:
            return [f"compute     {cost.flops / 1e9:,.1f} GFLOPs for the largest batch; no budget of tokens is set"]
        batches = max(1, -(-budget // a_batch))
        steps, gflops = batches / accumulated, cost.flops / 1e9 * budget / seen.largest["tokens"].numel()
        looks = self._looks(batches) if "dev" in self.datamodule.chains else 0
        epochs = batches / seen.per_epoch
        return [
            f"steps       about {steps:,.0f} optimizer steps to {budget:,} tokens ({epochs:,.1f} epochs), "
            f"{looks:,} looks at dev",
            f"compute     about {gflops:,.0f} GFLOPs (largest batch: {cost.flops / 1e9:,.1f})",
        ]

    def _looks(self, batches: float) -> int:
        every, share = self._given("trainer")["val_check_interval"], None
        if every is None:
            share = self._made("budget").look_every
            return round(1 / share) if share else 0
        return int(batches // every) if isinstance(every, int) else 0

    def _of_memory(self, seen: Seen, cost: StepCost) -> list[str]:
        rows, longest = seen.largest["tokens"].shape
        title = f"memory      {size_text(cost.total)} a step of {rows} x {longest} tokens on {self._device.type}"
        lines = [f"{title}, precision {self.trainer.precision}: {cost.in_words}"]
        if "dev" in self.datamodule.chains and len(self.datamodule.chains["dev"]):
            lines.append(f"            {self._of_evaluation(cost)}")
        return lines

    def _of_evaluation(self, cost: StepCost) -> str:
        longest = int(self.datamodule.chains["dev"].lengths.max())
        window = self.model.windows.window
        tokens = min(longest, window or longest) + _SPECIAL
        rows = max(1, min(most_chains(self.datamodule.evaluation_size, longest), self.model.windows.bound // tokens**2))
        most = pass_cost(self.new_module, rows, tokens, self._device)
        maps = 3 * 4 * longest**2  # probabilities, weights and labels
        whole = size_text(cost.weights + cost.optimizer + most + maps)
        return f"{whole} a look at dev, in passes of {rows} x {tokens} tokens"

    def _what_fits(self, seen: Seen, memory: int) -> list[str]:
        """The largest batch of this length in so much memory, as it is and with what makes it smaller."""
        every = ways(self.new_module, self._device, self._precision)
        found = {way: most_rows(way, seen.largest, memory, self._device) for way in every}
        ordered = sorted(found, key=lambda way: (bool(way.options), found[way]))  # as it is, then from small to large
        texts = [f"{f'with {way.options}' if way.options else 'as it is'}: " for way in ordered]
        most = [self._most(way, seen.largest, memory, found[way]) for way in ordered]
        titles = [f"fits {size_text(memory)}", *("" for _ in ordered[1:])]
        return [f"{title:<11} {how}{rows}" for title, how, rows in zip(titles, texts, most, strict=True)]

    def _most(self, way: Way, batch: dict[str, Any], memory: int, rows: int) -> str:
        longest = batch["tokens"].shape[1]
        if rows:
            return f"up to {rows} x {longest} tokens"
        one = resized(batch, 1)
        crop = shorter_crop(way, one, memory, self._device)
        instead = "" if crop is None else f"; one of data.crop_length {crop} fits"
        return f"not one sequence of {longest} ({size_text(way.takes(one, self._device))}){instead}"


def _weight(batch: dict[str, Any]) -> int:
    return int(batch["tokens"].numel() * batch["tokens"].shape[1])
