"""What of a training step fits into so much memory: as it is, and with the options that make it smaller."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contactlm.model.families.registry import family_of
from contactlm.model.frozen_weights import narrow
from contactlm.model.trunk import checkpoint_layers
from contactlm.modules.base import MapModule
from contactlm.modules.language_model import LanguageModelModule
from contactlm.modules.step_cost import StepCost, step_cost

CHECKPOINTING, HALF = "model.activation_checkpointing true", "model.backbone_dtype bfloat16"
MIXED = "trainer.precision bf16-mixed"
_SHORTER = (3 / 4, 1 / 2, 1 / 4, 1 / 8)
_CAREFUL = 0.9  # of what there is: an allocator holds some back
Make = Callable[[], MapModule]


@dataclass(frozen=True)
class Way:
    """A way to take a step.

    Attributes:
        options: What makes it differ from the way it is taken now; empty: nothing.
        make: Makes the module.
        precision: Of the large products, for mixed precision; None: that of the weights.
    """

    options: str
    make: Make
    precision: torch.dtype | None


@dataclass(frozen=True)
class Fit:
    """What fits in one way.

    Attributes:
        way: The options of the way.
        one: Bytes of a step of a single sequence.
        rows: How many sequences of the length at hand fit in a batch; 0: not one.
    """

    way: str
    one: int
    rows: int


def ways(make: Make, device: torch.device, precision: torch.dtype | None) -> list[Way]:
    """The way it is, and what makes a step smaller and is not done yet: one by one, and all together."""
    with torch.device("meta"):
        changes = _changes(make())
    found = [Way("", make, precision)]
    found += [Way(option, _changed(make, [change]), precision) for option, change in changes.items()]
    if device.type == "cuda" and precision is None:
        found.append(Way(MIXED, make, torch.bfloat16))
        precision = torch.bfloat16
    if len(found) > 2:
        together = " and ".join(way.options for way in found[1:])
        found.append(Way(together, _changed(make, [*changes.values()]), precision))
    return found


def what_fits(way: Way, batch: Mapping[str, Any], memory: float, device: torch.device) -> Fit:
    """Find the largest batch of sequences as long as those of a batch.

    Memory grows evenly with their number: two sizes tell of all others.
    """
    one, two = (
        step_cost(way.make, resized(batch, rows), device, way.precision, count_flops=False).total for rows in (1, 2)
    )
    rows = 1 + int((memory - one) // max(two - one, 1)) if one <= memory else 0
    return Fit(way.options, one, rows)


def shorter_crop(way: Way, batch: Mapping[str, Any], memory: float, device: torch.device) -> int | None:
    """Residues of shorter crops of which as large a batch fits; None: not even of an eighth of the length."""
    rows, tokens = batch["tokens"].shape
    for part in _SHORTER:
        residues = int(part * (tokens - 2))
        if residues < 1:
            return None
        cost = step_cost(way.make, resized(batch, rows, residues + 2), device, way.precision, count_flops=False)
        if cost.total <= memory:
            return residues
    return None


def resized(batch: Mapping[str, Any], rows: int, tokens: int | None = None) -> dict[str, Any]:
    """A batch of so many sequences like the first, cut to so many tokens; its numbers mean nothing."""
    size, longest = batch["tokens"].shape
    shorter = {longest: tokens or longest, longest - 2: (tokens or longest) - 2}

    def of(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != size:
            return value
        shape = (rows, *(shorter.get(length, length) for length in value.shape[1:]))
        return torch.empty(shape, dtype=value.dtype, device="meta")

    return {name: of(value) for name, value in batch.items()}


def largest_batch(
    make: Make, crop_length: int, memory: float, device: torch.device, precision: torch.dtype | None
) -> tuple[int, StepCost]:
    """The largest batch of crops that fits, in eights beyond 8, and its cost; 0 and the cost of one: not one."""
    crops = crop_batch(1, crop_length)
    rows = what_fits(Way("", make, precision), crops, _CAREFUL * memory, device).rows
    while rows > 1:
        rows = rows - rows % 8 if rows > 8 else rows
        cost = step_cost(make, resized(crops, rows), device, precision, count_flops=False)
        if cost.total <= _CAREFUL * memory:
            return rows, cost
        rows -= 1
    return rows, step_cost(make, crops, device, precision, count_flops=False)


def crop_batch(rows: int, residues: int) -> dict[str, Tensor]:
    """A batch of crops as the data module makes it, without numbers."""
    with torch.device("meta"):
        return {
            "tokens": torch.empty(rows, residues + 2, dtype=torch.int64),
            "attention_mask": torch.empty(rows, residues + 2, dtype=torch.bool),
            "positions": torch.empty(rows, residues + 2, dtype=torch.int64),
            "cb": torch.empty(rows, residues, 3),
        }


def twin(module: MapModule) -> Make:
    """What makes modules like one that there is already, without its numbers and its trainer."""

    def make() -> MapModule:
        memo: dict[int, Any] = {}
        for tensor in [*module.parameters(), *module.buffers()]:
            empty: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            learns = tensor.requires_grad
            memo[id(tensor)] = nn.Parameter(empty, learns) if isinstance(tensor, nn.Parameter) else empty
        made = copy.copy(module)  # what makes optimizers may hold anything, and is left as it is
        for kind in ("_modules", "_parameters", "_buffers"):
            made.__dict__[kind] = copy.deepcopy(made.__dict__[kind], memo)
        made.trainer = None
        return made

    return make


def memory_for(device: torch.device) -> float | None:
    """Bytes that this process can have on a device, what it has of it included; None: nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return _CAREFUL * (free + torch.cuda.memory_reserved(device))
    if device.type != "cpu" or not Path("/proc/meminfo").is_file():
        return None
    here = dict(_kilobytes("/proc/meminfo")) | dict(_kilobytes("/proc/self/status"))
    return _CAREFUL * (here["MemAvailable"] + here["VmRSS"])


def told_size(value: float) -> str:
    """A size of memory, as text."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"


def _kilobytes(path: str) -> Iterator[tuple[str, float]]:
    for name, value in re.findall(r"(\w+):\s+(\d+) kB", Path(path).read_text(encoding="utf-8")):
        yield name, 1024.0 * int(value)


def _changes(module: MapModule) -> dict[str, Callable[[Any], None]]:
    """What would make a module's steps smaller and is not done yet, by the options that do it."""
    if not isinstance(module, LanguageModelModule):
        return {}
    found: dict[str, Callable[[Any], None]] = {}
    if not any(getattr(layer, "gradient_checkpointing", False) for layer in module.family.layers(module.backbone.esm)):
        found[CHECKPOINTING] = lambda esm: checkpoint_layers(family_of(esm.config).layers(esm))
    frozen = module.hparams.get("lora") is not None or module.hparams.get("freeze_backbone")
    if frozen and not module.held:
        found[HALF] = lambda esm: narrow(esm, "bfloat16", None)
    return found


def _changed(make: Make, changes: Sequence[Callable[[Any], None]]) -> Make:
    def changed() -> MapModule:
        module = make()
        for change in changes:
            change(module.backbone.esm)
        return module

    return changed
