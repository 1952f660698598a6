"""Strategies that cannot work here, refused with the one that does."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from contactlm.types import ModelError

SHARDED = (
    "trainer.strategy: {class_path: lightning.pytorch.strategies.ModelParallelStrategy, init_args: "
    "{data_parallel_size: DEVICES, tensor_parallel_size: 1, save_distributed_checkpoint: false}}"
)
USE_SHARDED = f"to spread weights over all DEVICES (devices x nodes), give {SHARDED}; where they fit one device, ddp"


def check_strategy_options(trainer: Mapping[str, Any]) -> None:
    """Refuse a strategy before Lightning makes it.

    Args:
        trainer: Options of a trainer, as a config has them; the strategy is a name, or ``class_path`` with
            ``init_args``.

    Raises:
        ModelError: It cannot work, for a reason that is told.
    """
    name, options = _name_and_options(trainer.get("strategy"))
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
        _check_sizes(nodes if data == "auto" else data, options.get("tensor_parallel_size", "auto"), processes)


def check_strategy(strategy: Strategy, processes: int) -> None:
    """Refuse a strategy that cannot work with a model of this package, before it is set up.

    Args:
        strategy: The trainer's.
        processes: All of the run.

    Raises:
        ModelError: It splits layers (tensor parallel), or its sizes do not fit the number of processes.
    """
    if isinstance(strategy, ModelParallelStrategy):
        _check_sizes(strategy._data_parallel_size, strategy._tensor_parallel_size, processes)


def _name_and_options(strategy: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(strategy, str):
        return strategy.lower(), {}
    path = strategy.get("class_path", "") if hasattr(strategy, "get") else ""
    return path.rpartition(".")[2].lower(), (strategy.get("init_args") or {}) if path else {}


def _check_sizes(data: int | str, tensor: int | str, processes: int) -> None:
    given = f"ModelParallelStrategy: data_parallel_size {data}, tensor_parallel_size {tensor}"
    if tensor != 1:
        why = " (auto: the devices of a node)" if tensor == "auto" else ""
        raise ModelError(
            f"trainer.strategy: {given}{why}: layers are not split here (tensor parallel), only spread; {USE_SHARDED}"
        )
    if processes and data != processes:
        raise ModelError(
            f"trainer.strategy: {given} (auto: the number of nodes), but the run has {processes} processes; "
            f"{USE_SHARDED}"
        )
