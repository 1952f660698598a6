"""ShardedStrategy: Lightning's FSDP2 strategy, with checkpoints that hold what was trained and go onto any strategy."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from contactlm.atomic import remove_temporaries
from contactlm.modules.sharded_file import INDEX, PARTS, STATES, ShardedFile, is_sharded, take_parts

PART = "part-{token}-{rank}.pt"


def adopt(strategy: Strategy) -> None:
    """Make a :class:`ShardedStrategy` of a ``ModelParallelStrategy``, which is what a user names."""
    if type(strategy) is ModelParallelStrategy:
        strategy.__class__ = ShardedStrategy


class ShardedStrategy(ModelParallelStrategy):
    """Saves and loads the trained weights of a model that is spread over processes, and the optimizers' state.

    With ``save_distributed_checkpoint=False`` one process writes the file that a run of one process would write;
    weights are gathered one by one. With ``True`` each writes its part into a folder (see
    :mod:`contactlm.modules.sharded_file`), which all processes must see. Both go onto any number of processes and any
    strategy; each process copies its own part of a weight, and no more than one weight is whole at a time.
    """

    lightning_restore_optimizer = True  # as every other strategy has it

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within it gradients are summed in this process, for the batch that ends with a step to reduce them.

        Only where what is trained, whole, is no more than this process's share of all weights (adapters, heads): a
        process that summed the gradients of all weights would hold them whole, which is what spreading is to avoid.
        """
        spread = _spread_parts(self.model) if self._trains_little() else []
        for part in spread:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in spread:
                part.set_requires_gradient_sync(True, recurse=False)

    def _trains_little(self) -> bool:
        weights = [] if self.model is None else list(self.model.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        return trained * self.world_size <= sum(weight.numel() for weight in weights)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights that a checkpoint holds; a collective call."""
        module: Any = self.lightning_module
        if module is None or self.model is None:
            return {}
        names = module.saved_names() if hasattr(module, "saved_names") else set(module.state_dict())
        weights = self.model.state_dict()
        return {name: found for name in weights if name in names and (found := self._saved(weights[name])) is not None}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state, weights counted as it counts them; a collective call."""
        state: dict[str, Any] = Strategy.optimizer_state(self, optimizer)
        kept: dict[int, dict[str, Any]] = {}
        for weight in sorted(state["state"]):
            values = {name: self._saved(value) for name, value in sorted(state["state"][weight].items())}
            kept[weight] = {name: value for name, value in values.items() if value is not None}
        return {**state, "state": kept}

    def _saved(self, value: Any) -> Any:
        """What this process saves of a value: None, nothing."""
        if self._save_distributed_checkpoint or not hasattr(value, "full_tensor"):
            return value
        whole = value.detach().full_tensor()
        return whole.cpu() if self.is_global_zero else None

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, a file or a folder; a collective call."""
        if not self._save_distributed_checkpoint:
            Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)
            return
        folder, token = self.broadcast((Path(filepath), uuid.uuid4().hex[:8]))
        names = [PART.format(token=token, rank=rank) for rank in range(self.world_size)]
        if self.is_global_zero:
            _make_folder(folder)
        self.barrier()
        io: Any = self.checkpoint_io
        failures = getattr(io, "failures", 0)
        written = self._write(take_parts(checkpoint), folder / names[self.global_rank])
        all_written = bool(self.reduce(torch.tensor(int(written), device=self.root_device), reduce_op="min"))
        if self.is_global_zero:
            all_written = all_written and self._write({**checkpoint, PARTS: names}, folder / INDEX)
            _remove_parts(folder, keep=all_written, names=names)
            if written and not all_written and getattr(io, "failures", 0) == failures:
                io.failures = failures + 1  # another process could not write its part, and said so
        self.barrier()

    def _write(self, values: dict[Any, Any], path: Path) -> bool:
        """Write a file; whether that could be done."""
        failures = getattr(self.checkpoint_io, "failures", 0)
        self.checkpoint_io.save_checkpoint(values, path)
        return getattr(self.checkpoint_io, "failures", 0) == failures

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Open a checkpoint; its weights stay on the disk until they are looked at."""
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            return ShardedFile(path).checkpoint(lazy=True)
        return torch.load(
            path, weights_only=True if weights_only is None else weights_only, mmap=True, map_location="cpu"
        )

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy each process's part of the weights; which there are was checked by the module."""
        own = {} if self.model is None else self.model.state_dict()
        with torch.no_grad():
            for name, weight in checkpoint["state_dict"].items():
                part = local_part(weight, own[name])
                local = own[name].to_local() if hasattr(own[name], "to_local") else own[name]
                local.copy_(part)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each optimizer the state of this process's parts."""
        for optimizer, state in zip(self.optimizers, checkpoint[STATES], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            spread = {
                number: {name: _spread(value, weight) for name, value in state["state"][number].items()}
                for number, weight in zip(numbers, weights, strict=True)
                if number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": spread})


def _spread_parts(model: Any) -> list[Any]:
    """The parts of a model whose weights are gathered, and gradients reduced, together."""
    from torch.distributed.fsdp import FSDPModule  # not in every build of torch

    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def local_part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor: the whole one where the tensor it is for is not spread.

    Args:
        whole: All of it, (n, …).
        like: What it is for, of the same shape.
    """
    if not hasattr(like, "device_mesh"):
        return whole
    parts = whole.chunk(like.device_mesh.size())  # as FSDP2 cuts along the first dimension; there may be fewer
    rank = like.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def _spread(value: Any, like: Any) -> Any:
    """A weight's moments as parts; steps and the like are the same everywhere."""
    if not isinstance(value, Tensor) or not hasattr(like, "device_mesh") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor

    part = local_part(value, like).contiguous().clone().to(like.device)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _make_folder(folder: Path) -> None:
    """Make room for a sharded checkpoint where a plain one may lie."""
    if folder.is_file():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _remove_parts(folder: Path, keep: bool, names: list[str]) -> None:
    """Remove the parts of the checkpoint before, or of the one that could not be written whole."""
    remove_temporaries(folder)
    for path in folder.glob(PART.format(token="*", rank="*")):
        if (path.name in names) != keep:
            path.unlink(missing_ok=True)
