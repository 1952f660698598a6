"""A model whose weights are spread over processes: the strategy, its checkpoints, and evaluation in lockstep.

Every layer of such a model is gathered from all processes whenever it is run, so that a pass of one process is a pass
of all. In evaluation each has chains of its own, and more passes or fewer than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from contactlm.alphabet import CLS, EOS, UNKNOWN_LETTER, VOCABULARY
from contactlm.types import ModelError

USE_SHARDED = (
    "to spread weights over all DEVICES (devices x nodes), give trainer.strategy: {class_path: "
    "lightning.pytorch.strategies.ModelParallelStrategy, init_args: {data_parallel_size: DEVICES, "
    "tensor_parallel_size: 1}}; where they fit one device, ddp"
)
SHORTEST = (CLS, VOCABULARY.index(UNKNOWN_LETTER), EOS)  # what an idle process shows the model


# --- strategies that cannot work, refused with the one that does ---


def check_strategy_options(trainer: Mapping[str, Any]) -> None:
    """Refuse a strategy, in a trainer's options as a config has them, that cannot work, before Lightning makes it."""
    strategy = trainer.get("strategy")
    given: Any = strategy if hasattr(strategy, "get") else {"class_path": strategy if isinstance(strategy, str) else ""}
    name, options = given.get("class_path", "").rpartition(".")[2].lower(), given.get("init_args") or {}
    accelerator, devices, nodes = (trainer.get(option) for option in ("accelerator", "devices", "num_nodes"))
    if accelerator in (None, "auto") and not torch.accelerator.is_available():
        accelerator = "cpu"
    if "deepspeed" in name and find_spec("deepspeed") is None:
        raise ModelError(f"trainer.strategy: {name} needs the package deepspeed, which is not installed; {USE_SHARDED}")
    if "fsdp" in name and accelerator == "cpu":
        raise ModelError(f"trainer.strategy: {name} (FSDP 1) does not run on a CPU; {USE_SHARDED}")
    if name == "modelparallelstrategy":
        data, nodes = options.get("data_parallel_size", "auto"), int(nodes or 1)
        processes = int(str(devices)) * nodes if str(devices).isdigit() else 0  # 0: known when devices are looked at
        check_sizes(nodes if data == "auto" else data, options.get("tensor_parallel_size", "auto"), processes)


def check_sizes(data: int | str, tensor: int | str, processes: int) -> None:
    """Refuse a ``ModelParallelStrategy`` that splits layers, or whose sizes are not those of a run of ``processes``."""
    given = f"ModelParallelStrategy: data_parallel_size {data}, tensor_parallel_size {tensor}"
    if tensor != 1:
        why = " (auto: the devices of a node)" if tensor == "auto" else ""
        why += ": layers are not split here (tensor parallel), only spread"
    elif processes and data != processes:
        why = f" (auto: the number of nodes), but the run has {processes} processes"
    else:
        return
    raise ModelError(f"trainer.strategy: {given}{why}; {USE_SHARDED}")


# --- training and checkpoints ---


def adopt(trainer: Trainer) -> None:
    """Make a :class:`ShardedStrategy` of a ``ModelParallelStrategy``, which is what a user names."""
    if type(trainer.strategy) is ModelParallelStrategy:
        trainer.strategy.__class__ = ShardedStrategy
    # weights that were gathered in inference mode cannot be trained with
    loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    for loop in loops:
        loop.inference_mode = False


class ShardedStrategy(ModelParallelStrategy):
    """Saves and loads the trained weights of a model that is spread over processes, and the optimizers' state.

    A checkpoint is the file that a run of one process would write: weights are gathered one by one, and the first
    process writes. When it is loaded, each process copies its own part of a weight.
    """

    lightning_restore_optimizer = True  # as every other strategy has it

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within it gradients are summed in this process, where those of what is trained are no more than its share."""
        from torch.distributed.fsdp import FSDPModule  # not in every build of torch

        weights = [] if self.model is None else list(self.model.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        # summed, all gradients would be whole in every process, which spreading is to avoid
        trains_little = trained * self.world_size <= sum(weight.numel() for weight in weights)
        parts = self.model.modules() if self.model is not None and trains_little else ()
        spread = [part for part in parts if isinstance(part, FSDPModule)]
        for part in spread:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in spread:
                part.set_requires_gradient_sync(True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights that a checkpoint holds, in the first process; a collective call."""
        module: Any = self.lightning_module
        if module is None or self.model is None:
            return {}
        names = module.saved_names() if hasattr(module, "saved_names") else set(module.state_dict())
        return self._gathered({name: weight for name, weight in self.model.state_dict().items() if name in names})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state in the first process, weights counted as it counts them; a collective call."""
        state: dict[str, Any] = Strategy.optimizer_state(self, optimizer)
        gathered = {weight: self._gathered(dict(sorted(own.items()))) for weight, own in sorted(state["state"].items())}
        return {**state, "state": gathered}

    def _gathered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by name, of which those that are spread are made whole, for the first process alone."""
        kept = {}
        for name, value in values.items():
            if not hasattr(value, "full_tensor"):
                kept[name] = value
                continue
            whole = value.detach().full_tensor()
            if self.is_global_zero:
                kept[name] = whole.cpu()
        return kept

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, in the first process."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Open a checkpoint; its weights stay on the disk until they are looked at."""
        path = Path(self.broadcast(checkpoint_path))
        return torch.load(path, weights_only=weights_only is not False, mmap=True, map_location="cpu")

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy each process's part of the weights; which there are was checked by the module."""
        own = {} if self.model is None else self.model.state_dict()
        with torch.no_grad():
            for name, weight in checkpoint["state_dict"].items():
                local = own[name].to_local() if hasattr(own[name], "to_local") else own[name]
                local.copy_(local_part(weight, own[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each optimizer the state of this process's parts."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            spread = {
                number: {name: _spread(value, weight) for name, value in state["state"][number].items()}
                for number, weight in zip(numbers, weights, strict=True)
                if number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": spread})


def local_part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor (n, …): the whole one where the tensor it is for, ``like``, is not spread."""
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


# --- evaluation: the same number of forward passes in all processes ---


class Lockstep:
    """Lets the processes of an evaluation agree, before every pass of a network, that one of them has a chain to show.

    ``idle`` runs one pass whose result nobody wants.
    """

    def __init__(self, network: nn.Module, trainer: Callable[[], Trainer], idle: Callable[[], object]) -> None:
        self._trainer, self._idle = trainer, idle
        self._counts = False
        network.register_forward_pre_hook(self._before_pass, prepend=True)

    @contextmanager
    def step(self, is_last: bool) -> Iterator[None]:
        """Count the passes of a step; after this process's last one, continue as long as another has some."""
        if self._counts:
            yield
            return
        self._counts = True
        try:
            yield
        finally:
            self._counts = False
        while is_last and self._someone_goes_on(False):
            self._idle()

    def _before_pass(self, network: nn.Module, arguments: Any) -> None:
        if self._counts:
            self._someone_goes_on(True)

    def _someone_goes_on(self, this_one: bool) -> bool:
        strategy = self._trainer().strategy
        wish = torch.tensor(int(this_one), device=strategy.root_device)
        return bool(strategy.reduce(wish, reduce_op="max"))


def is_last_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch of an evaluation is the last one of this process."""
    if trainer.sanity_checking:
        batches = trainer.num_sanity_val_batches
    elif trainer.testing:
        batches = trainer.num_test_batches
    elif trainer.predicting:
        batches = trainer.num_predict_batches
    else:
        batches = trainer.num_val_batches
    return batch_idx + 1 >= (batches if isinstance(batches, int | float) else batches[-1])


def idle_tokens(device: torch.device) -> torch.Tensor:
    """The shortest sequence there is: int64 (1, 3)."""
    return torch.tensor([SHORTEST], device=device)
