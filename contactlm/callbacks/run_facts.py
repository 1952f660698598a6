"""What is to be known of a run: its data, evaluation, model and machine, as plain values for ``run.json``."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.evaluation import ContactEvaluation
from contactlm.data.chain_sets import describe_chains

SYNTHETIC_MANIFEST = "synthetic.json"  # the generator writes it into its folder
Found = TypeVar("Found", bound=L.Callback)


def find_callback(trainer: L.Trainer, kind: type[Found]) -> Found | None:
    """The trainer's first callback of a kind, if it has one."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def equal_facts(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """What has to be equal in runs that are compared; what a run does not have (a test run: a budget) is left out."""
    facts = {
        "test": chain_set(trainer, "test"),
        "synthetic": is_synthetic(trainer),
        **_evaluation_facts(trainer, module),
    }
    facts |= {"precision": str(trainer.precision), **family_facts(module), **weights_facts(module)}
    facts |= module_facts(module, "equal")
    if trainer.state.fn == TrainerFn.FITTING:
        budget = find_callback(trainer, TokenBudget)
        facts |= {"budget": None if budget is None else budget.max_tokens, **_split_facts(trainer)}
        facts |= {role: chain_set(trainer, role) for role in ("train", "dev")}
        facts["trained_before"] = getattr(trainer.datamodule, "trained_before", None) or None  # type: ignore[attr-defined]  # a connector sets it
    return facts


def module_facts(module: L.LightningModule, kind: str) -> dict[str, Any]:
    """What a module says of itself, if it has an attribute ``run_facts``.

    Of kind ``equal``: what runs that are compared must share; ``reads``: what it is given beside the sequence.
    """
    return getattr(module, "run_facts", {}).get(kind, {})


def _split_facts(trainer: L.Trainer) -> dict[str, Any]:
    data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
    names = ("split", "dev_fraction", "split_seed")
    return {name: getattr(data, name) for name in names if hasattr(data, name)}


def _evaluation_facts(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    evaluation, windows = find_callback(trainer, ContactEvaluation), getattr(module, "windows", None)
    data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
    return {
        "threshold": None if evaluation is None else evaluation.threshold,
        "window": getattr(windows, "window", None),
        "overlap": getattr(windows, "overlap", None),
        "assembly": getattr(data, "assembly", None),
        "min_length": getattr(data, "min_length", None),
    }


def family_facts(module: L.LightningModule) -> dict[str, str]:
    """Which family of language models a run is of; nothing where it has none."""
    family = getattr(module, "family", None)
    return {} if family is None else {"family": family.name}


def weights_facts(module: L.LightningModule) -> dict[str, Any]:
    """Which backbone a run starts from: pretrained weights by checksum, or random ones by architecture.

    A directory may hold weights that no one has trained: these are called random too.
    """
    hparams = module.hparams
    if "pretrained" not in hparams:
        return {}
    if hparams.get("pretrained") is None:
        # the seed they are drawn with may go with the run's
        return {"weights": "random", "backbone": json.dumps(hparams.get("architecture"), sort_keys=True)}
    backbone = getattr(module, "backbone_checksum", None) or str(hparams["pretrained"])
    return {"weights": "random" if is_as_initialised(module) else "pretrained", "backbone": backbone}


def is_as_initialised(module: torch.nn.Module) -> bool:
    """Whether no layer norm has moved from weight 1 and bias 0, which the first steps of any training change."""
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.LayerNorm) and layer.elementwise_affine]
    biases = [layer.bias for layer in norms if layer.bias is not None]  # some families' norms have none
    moved = [bool((layer.weight != 1).any()) for layer in norms] + [bool((bias != 0).any()) for bias in biases]
    return bool(norms) and not any(moved)


def chain_set(trainer: L.Trainer, role: str) -> dict[str, Any] | None:
    """A set of chains by number, residues and a checksum of its sorted (id, length) pairs; None: no such set."""
    chains = getattr(trainer.datamodule, "chains", {}).get(role)  # type: ignore[attr-defined]  # a connector sets it
    if chains is None:
        return None
    return describe_chains(chains.ids, chains.lengths)


def is_synthetic(trainer: L.Trainer) -> bool:
    """Whether the proteins are those of the package's generator: asked for, or in a folder that it wrote."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
    if getattr(data, "synthetic", None) is not None:
        return True
    paths = [Path(location).expanduser() for location in data_locations(trainer).values()]
    return any((folder / SYNTHETIC_MANIFEST).is_file() for path in paths for folder in (path, path.parent))


def data_locations(trainer: L.Trainer) -> dict[str, str]:
    """Where the structures come from, as the user gave it."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
    if getattr(data, "synthetic", None) is not None:
        return {"synthetic": str(data.synthetic.folder)}
    roles = [
        kind for kind in ("dir", "ids") if getattr(data, f"train_{kind}", None) or getattr(data, f"test_{kind}", None)
    ]
    names = [f"{role}_{kind}" for kind in roles[:1] for role in ("train", "test")]
    return {name: str(getattr(data, name)) for name in names if getattr(data, name)}


def scheme_facts(trainer: L.Trainer) -> dict[str, Any]:
    """What arms differ in: how training samples are cut and batched."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
    names = ("crop", "crop_length", "true_ends", "batch_size", "weights")
    facts = {name: getattr(data, name) for name in names if hasattr(data, name)}
    if (bound := getattr(data, "bound", None)) is not None:
        facts |= {"batch_size": None, f"batch_{bound.unit}": bound.most}
    return facts | {"accumulate_grad_batches": trainer.accumulate_grad_batches}


def optimizer_facts(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Name and learning rate of every group of parameters when training starts; empty where nothing is trained."""
    return [
        {"optimizer": type(optimizer).__name__, "lr": float(group["lr"])}
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
    ]


def run_seed(trainer: L.Trainer) -> int | None:
    """The seed of the run: that of the data module, or the one given to ``seed_everything``."""
    seed = getattr(trainer.datamodule, "seed", None)  # type: ignore[attr-defined]  # a connector sets it
    if seed is None and "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return seed


def machine_facts(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Device, processes, threads and versions."""
    on_gpu = module.device.type == "cuda"
    return {
        "device": module.device.type,
        "device_name": torch.cuda.get_device_name(module.device) if on_gpu else platform.machine(),
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def peak_memory(device: torch.device) -> int | None:
    """Most memory held so far, in bytes: by tensors on a GPU, else resident in this process; None: cannot be known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # it has no `resource`
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
