"""Memory of a step or a pass of a model, estimated without its numbers, and what fits.

The code that would run is run on tensors that have shapes and no data (PyTorch's ``FakeTensorMode``), and every piece
of memory that one of its operations asks for is counted from its making to its end. What an allocator holds back is not
counted. ``contactlm plan``, the message of an error for want of memory and the passes of an evaluation ask here.
"""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from contactlm.maps.windows import WindowOptions
from contactlm.model.backbone import ContactBackbone
from contactlm.model.blocks import block_bytes
from contactlm.model.frozen_weights import narrow
from contactlm.model.trunk import checkpoint_layers
from contactlm.types import ModelError

CHECKPOINTING, HALF = "model.activation_checkpointing true", "model.backbone_dtype bfloat16"
MIXED = "trainer.precision bf16-mixed"
PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # of products, by trainer.precision
ENOUGH = 64 * 1024**2  # token pairs and the cost of tokens: some ten thousand tokens keep any GPU busy
SHARE = 0.5  # of the free memory for passes: results wait there, and an allocator keeps pieces that fit nothing
_CAREFUL = 0.9  # of what there is for steps: an allocator holds some back
_SHORTER = (3 / 4, 1 / 2, 1 / 4, 1 / 8)
_INSIDE = ("streamed_attention", "fused_attention")  # operations that need room of their own
_COPIES = 4  # of their queries: what they hold in addition to arguments and results
_MANY_ROWS, _LONG = 4096, 1024  # of a pass that measures what each sequence takes
Make = Callable[[], Any]  # of a module; it must not read weights from files


@dataclass(frozen=True)
class StepCost:
    """Bytes, and floating point operations, of one training step."""

    weights: int  # and buffers, all of them
    gradients: int
    optimizer: int  # what it keeps
    activations: int  # left by the forward pass for the backward pass, the batch and the logits included
    passing: int  # what else is there at the moment when most is
    flops: int  # forward and backward; what is computed twice counts twice

    @property
    def total(self) -> int:
        """The most bytes at one time."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.passing

    @property
    def in_words(self) -> str:
        """Bytes by part, as text."""
        parts = ("weights", "gradients", "optimizer", "activations", "passing")
        return ", ".join(f"{part} {size_text(getattr(self, part))}" for part in parts)


class StorageMeter(TorchDispatchMode):
    """Counts the bytes that tensors made under it hold, and the most there were at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out what was there before: its views are made under the meter, its memory was not."""
        for tensor in tensors:
            self._count(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tensors_in(made):
            storage = leaf.untyped_storage()
            self._count(storage, storage.nbytes())
        if any(name in str(func) for name in _INSIDE):  # they need room of their own
            first = next(leaf for leaf in tensors_in(args) if leaf.ndim == 4)
            room = 2 * block_bytes(first.device) + _COPIES * first.numel() * first.element_size()
            self.peak = max(self.peak, self.now + room)
        return made

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)  # PyTorch hands out the same object for the same storage, while it lives
        if key in self._alive:
            return
        self._alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


@contextmanager
def without_numbers(make: Make, device: torch.device) -> Iterator[Any]:
    """A module whose weights are shapes alone, while tensors that are made have no data either."""
    with torch.device("meta"):  # adapters are moved to where the weights are, which those without data cannot be
        module = make()
    with FakeTensorMode():
        for part in module.modules():
            for name, given in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                setattr(part, name, _like(given, device))
        yield module


def step_cost(
    make: Make,
    batch: Mapping[str, Any],
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    count_flops: bool = True,
) -> StepCost:
    """What one training step costs, the optimizer's part included.

    Of a batch only shapes and dtypes count. ``precision`` is that of the large products, for mixed precision.
    """
    device = torch.device(device)
    with without_numbers(make, device) as module:
        module.log = lambda *_, **__: None  # there is no trainer to log to
        made: Any = module.configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        weights = [*module.parameters(), *module.buffers()]
        fake, meter = as_fake(batch, device), StorageMeter()
        meter.ignore(weights)

        def step() -> tuple[int, int]:  # bytes after the forward pass, and the most there were
            with torch.autocast(device.type, precision, enabled=precision is not None):
                loss = module.training_step(fake, 0)
            left = meter.now
            loss.backward()
            return left, meter.peak

        try:
            with meter:
                after_forward, peak = step()
        except DataDependentOutputException as error:
            raise ModelError(
                f"a step of {type(module).__name__} depends on the numbers in it ({error}): its cost cannot be "
                "estimated without them"
            ) from error
        gradients = _bytes(p.grad for p in module.parameters() if p.grad is not None)
        optimizer.step()
        state = _bytes(tensors_in(list(optimizer.state.values())))
        with FlopCounterMode(display=False) as counter:  # which keeps what is to go: not while memory is counted
            if count_flops:
                step()
    given = _bytes(tensors_in(fake))
    passing = max(peak - after_forward - gradients, 0)
    return StepCost(_bytes(weights), gradients, state, after_forward + given, passing, counter.get_total_flops())


def pass_cost(make: Make, rows: int, tokens: int, device: torch.device | str = "cpu") -> int:
    """The most bytes that a pass of an evaluation over ``rows`` sequences takes without the weights."""
    device = torch.device(device)
    # an evaluation may be running, in whose mode no weights are made
    with torch.inference_mode(False), without_numbers(make, device) as module, torch.no_grad():
        module.eval()
        meter = StorageMeter()
        meter.ignore([*module.parameters(), *module.buffers()])
        given = torch.empty(rows, tokens, dtype=torch.int64, device=device)
        with meter:
            module(given, torch.empty(rows, tokens, dtype=torch.bool, device=device)).sigmoid()
    return meter.peak


def pass_bytes(make: Make, most: int) -> tuple[int, int]:
    """Bytes a sequence takes in a pass for each token and each pair of tokens; ``most`` tokens is the longest."""
    long = min(_LONG, most)
    short = max(3, long // 8)
    of_short, of_long = (pass_cost(make, _MANY_ROWS, T) / (_MANY_ROWS * T) for T in (short, long))
    per_pair = max(1, round((of_long - of_short) / (long - short)))
    return max(0, round(of_long - per_pair * long)), per_pair


_known_passes: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()


def sized(windows: WindowOptions, network: Any, device: torch.device) -> WindowOptions:
    """Windows whose batches of passes fit the memory that is free on a CUDA device.

    Those with ``max_cost``, of other networks, and of one that is spread over processes stay.
    """
    if windows.max_cost is not None or device.type != "cuda" or not isinstance(network, ContactBackbone):
        return windows
    family = network.family
    if any(type(layer) is not family.layer_class for layer in family.layers(network.esm)):
        return windows
    if network not in _known_passes:
        reach = family.reach(network.esm.config) or _LONG
        _known_passes[network] = pass_bytes(twin(network), reach)  # on the CPU: as many bytes as anywhere
    per_token, per_pair = _known_passes[network]
    free = (memory_for(device) or 0) - torch.cuda.memory_allocated(device)
    room = SHARE * (free - 2 * block_bytes(device))
    return replace(windows, max_cost=max(1, min(ENOUGH, int(room / per_pair))), token_cost=per_token // per_pair)


@dataclass(frozen=True)
class Way:
    """A way to take a step: the options that make it differ from the given way (none: ""), and what they come to."""

    options: str
    make: Make
    precision: torch.dtype | None

    def takes(self, batch: Mapping[str, Any], device: torch.device) -> int:
        """Bytes of a step."""
        return step_cost(self.make, batch, device, self.precision, count_flops=False).total


def ways(make: Make, device: torch.device, precision: torch.dtype | None) -> list[Way]:
    """The way it is, and what makes a step smaller and is not done yet: one by one, and all together."""
    with torch.device("meta"):
        module = make()
    options = []
    if hasattr(module, "held"):  # on a language model
        if not any(getattr(layer, "checkpointed", False) for layer in module.family.layers(module.backbone.esm)):
            options.append(CHECKPOINTING)
        frozen = module.hparams.get("lora") is not None or module.hparams.get("freeze_backbone")
        options += [HALF] if frozen and not module.held else []
    found = [Way("", make, precision)] + [Way(option, _changed(make, [option]), precision) for option in options]
    if device.type == "cuda" and precision is None:
        found.append(Way(MIXED, make, torch.bfloat16))
        precision = torch.bfloat16
    if len(found) > 2:
        together = " and ".join(way.options for way in found[1:])
        found.append(Way(together, _changed(make, options), precision))
    return found


def _changed(make: Make, options: Sequence[str]) -> Make:
    """Makes modules with some options set that they were made without."""

    def changed() -> Any:
        module = make()
        if CHECKPOINTING in options:
            checkpoint_layers(module.family.layers(module.backbone.esm))
        if HALF in options:
            narrow(module.backbone.esm, "bfloat16", None)
        return module

    return changed


def most_rows(way: Way, batch: Mapping[str, Any], memory: float, device: torch.device) -> int:
    """How many sequences as long as those of a batch fit in one; 0: not one."""
    # memory grows evenly with their number: two sizes determine all others
    one, two = (way.takes(resized(batch, rows), device) for rows in (1, 2))
    return 1 + int((memory - one) // max(two - one, 1)) if one <= memory else 0


def shorter_crop(way: Way, batch: Mapping[str, Any], memory: float, device: torch.device) -> int | None:
    """Residues of shorter crops of which as large a batch fits; None: not even an eighth of the length."""
    rows, tokens = batch["tokens"].shape
    lengths = (int(part * (tokens - 2)) for part in _SHORTER)
    fitting = (L for L in lengths if L > 0 and way.takes(resized(batch, rows, L + 2), device) <= memory)
    return next(fitting, None)


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


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in nested mappings, lists and tuples, in their order."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return [leaf for value in values for leaf in tensors_in(value)]
    return [values] if isinstance(values, Tensor) else []


def as_fake(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch of the same shapes and dtypes, whose tensors have no data if they are made in a ``FakeTensorMode``."""
    return apply_to_collection(dict(batch), Tensor, _like, device)


def twin(module: nn.Module) -> Make:
    """What makes modules like one that there is already, without its numbers and its trainer."""

    def make() -> nn.Module:
        memo: dict[int, Any] = {}
        for tensor in [*module.parameters(), *module.buffers()]:
            memo[id(tensor)] = _like(tensor, torch.device("meta"))
        made = copy.copy(module)  # what makes optimizers may hold anything, and is left as it is
        for kind in ("_modules", "_parameters", "_buffers"):
            made.__dict__[kind] = copy.deepcopy(made.__dict__[kind], memo)
        if isinstance(made, LightningModule):
            made.trainer = None
        return made

    return make


def memory_for(device: torch.device) -> float | None:
    """Bytes that this process can have on a device, what it has of it included; None: nobody says."""
    if device.type == "cuda":
        return _CAREFUL * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    if device.type != "cpu" or not Path("/proc/meminfo").is_file():
        return None
    here: dict[str, str] = {}
    for path in ("/proc/meminfo", "/proc/self/status"):
        here |= dict(re.findall(r"(\w+):\s+(\d+) kB", Path(path).read_text(encoding="utf-8")))
    return _CAREFUL * 1024 * (int(here["MemAvailable"]) + int(here["VmRSS"]))


def size_text(value: float) -> str:
    """A size of memory, as text."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"


def _like(given: Tensor, device: torch.device) -> Tensor:
    """One of the same shape and kind, whose numbers mean nothing."""
    empty = torch.empty(given.shape, dtype=given.dtype, device=device)
    return nn.Parameter(empty, given.requires_grad) if isinstance(given, nn.Parameter) else empty


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())
