"""What a step of a model costs, told without its numbers: memory by part, of the code that would run.

The step runs on tensors that have shapes and no data (PyTorch's ``FakeTensorMode``), and every piece of memory that one
of its operations asks for is counted from its making to its end. So the answer needs neither memory nor weights, and
whatever the model is made of is in it. What an allocator holds back beside that is not.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from contactlm.model.blocks import block_bytes
from contactlm.modules.base import MapModule
from contactlm.types import ModelError

_INSIDE = ("streamed_attention", "fused_attention")  # operations that need room of their own
_COPIES = 4  # of their queries: what they put beside their arguments and results


@dataclass(frozen=True)
class StepCost:
    """Bytes, and floating point operations, of one training step.

    Attributes:
        weights: All weights and buffers.
        trained: The gradients, as large as the weights that learn.
        optimizer: What the optimizer keeps.
        activations: What the forward pass leaves for the backward pass, the batch and the logits included.
        passing: What else is there at the moment when most is.
        flops: Of the forward and the backward pass; what is computed twice counts twice.
    """

    weights: int
    trained: int
    optimizer: int
    activations: int
    passing: int
    flops: int

    @property
    def total(self) -> int:
        """The most bytes at one time."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, as they are told."""
        return {
            "weights": self.weights,
            "gradients": self.trained,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "passing": self.passing,
        }


class StorageMeter(TorchDispatchMode):
    """Counts the bytes that tensors made under it hold, each storage once, and the most there were at one time.

    Args:
        name: Names what an operation makes, given the operation; for :meth:`held`.
    """

    def __init__(self, name: Callable[[Any], str] = str) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._name = name
        self._alive: dict[int, tuple[int, str]] = {}

    def held(self) -> Counter[str]:
        """The bytes there are now, by what made them."""
        held: Counter[str] = Counter()
        for size, name in self._alive.values():
            held[name] += size
        return held

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out what was there before: its views are made under the meter, its memory was not."""
        for tensor in tensors:
            self._count(tensor.untyped_storage(), 0, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._count(storage, storage.nbytes(), self._name(func))
        if any(name in str(func) for name in _INSIDE):
            first = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.ndim == 4)
            room = 2 * block_bytes(first.device) + _COPIES * first.numel() * first.element_size()
            self.peak = max(self.peak, self.now + room)
        return made

    def _count(self, storage: torch.UntypedStorage, size: int, name: str) -> None:
        key = id(storage)  # PyTorch hands out the same object for the same storage, while it lives
        if key in self._alive:
            return
        self._alive[key] = size, name
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key, (0, ""))[0]


@contextmanager
def without_numbers(make: Callable[[], MapModule], device: torch.device) -> Iterator[MapModule]:
    """A module whose weights are shapes alone, while tensors that are made have no data either."""
    with torch.device("meta"):  # adapters are moved to where the weights are, which those without data cannot be
        module = make()
    with FakeTensorMode():
        _forget_numbers(module, device)
        yield module


def _forget_numbers(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for name, given in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            fake = torch.empty(given.shape, dtype=given.dtype, device=device)
            setattr(part, name, nn.Parameter(fake, given.requires_grad) if isinstance(given, nn.Parameter) else fake)


def step_cost(
    make: Callable[[], MapModule],
    batch: Mapping[str, Any],
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    count_flops: bool = True,
) -> StepCost:
    """Tell what one training step costs, the optimizer's part included.

    Args:
        make: Makes the module; it must not read weights from files.
        batch: As the data module gives it; only shapes and dtypes of its tensors count.
        device: Where the step would run; a device this PyTorch was built without cannot be asked about.
        precision: Of the large products, for mixed precision; None: that of the weights.
        count_flops: Whether to take a second step for them; else there are 0.

    Raises:
        ModelError: What a step does depends on its numbers, as what a contrastive loss draws.
    """
    device = torch.device(device)
    with without_numbers(make, device) as module:
        module.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer to log to
        optimizer = _optimizer(module)
        weights = [*module.parameters(), *module.buffers()]
        fake = as_fake(batch, device)
        meter = StorageMeter()
        meter.ignore(weights)

        def step() -> tuple[int, int]:  # bytes after the forward pass, and the most there were
            mixed = torch.autocast(device.type, precision, enabled=precision is not None)
            with mixed:
                loss = module.training_step(fake, 0)
            left = meter.now
            loss.backward()
            return left, meter.peak

        try:
            with meter:
                after_forward, peak = step()
        except DataDependentOutputException as error:
            raise ModelError(
                f"a step of {type(module).__name__} depends on the numbers in it ({error}): its cost cannot be told "
                "without them; contactlm plan --measure takes real steps"
            ) from error
        gradients = _bytes(p.grad for p in module.parameters() if p.grad is not None)
        optimizer.step()
        state = _bytes(leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor))
        with FlopCounterMode(display=False) as counter:  # which keeps what is to go: not while memory is counted
            if count_flops:
                step()
    given = _bytes(leaf for leaf in tree_leaves(fake) if isinstance(leaf, Tensor))
    passing = max(peak - after_forward - gradients, 0)
    return StepCost(_bytes(weights), gradients, state, after_forward + given, passing, counter.get_total_flops())


def pass_cost(make: Callable[[], MapModule], rows: int, tokens: int, device: torch.device | str = "cpu") -> int:
    """The most bytes that a pass of an evaluation takes beside the weights.

    Args:
        make: As of :func:`step_cost`.
        rows: Sequences in the pass.
        tokens: Their length, special tokens included.
        device: Where it would run.
    """
    device = torch.device(device)
    with without_numbers(make, device) as module, torch.no_grad():
        module.eval()
        meter = StorageMeter()
        meter.ignore([*module.parameters(), *module.buffers()])
        given = torch.empty(rows, tokens, dtype=torch.int64, device=device)
        with meter:
            module.contact_logits(given, torch.empty(rows, tokens, dtype=torch.bool, device=device)).sigmoid()
    return meter.peak


def _optimizer(module: MapModule) -> torch.optim.Optimizer:
    made: Any = module.configure_optimizers()
    return made["optimizer"] if isinstance(made, dict) else made


def as_fake(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch of the same shapes and dtypes, whose tensors have no data if they are made in a ``FakeTensorMode``."""

    def fake(leaf: Any) -> Any:
        return torch.empty(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, Tensor) else leaf

    return {name: tree_map(fake, value) for name, value in batch.items()}


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())
