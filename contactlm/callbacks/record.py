"""RunRecord: ``run.json``, what a run did, what it cost, and what is known of it."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.evaluation import ContactEvaluation
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.steps import find_callback
from contactlm.data.training_set import describe_chains
from contactlm.runs.checkpoint_io import outlast_full_disk
from contactlm.runs.directory import run_directory
from contactlm.runs.record_file import RUN_FILE, write_run
from contactlm.shipped import __version__
from contactlm.types import ContactDefinition

# Scores kept of every look at dev; the last look and the test keep all.
HISTORY = ("mcc", "mcc_sep6", "mcc_short", "mcc_medium", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
SPENT = ("steps", "tokens", "flops", "forward_flops")
SPACING = 1.02  # optimizer steps between two rows of progress grow by this factor: a few hundred rows at any length
SYNTHETIC_MANIFEST = "synthetic.json"  # the generator writes it into its folder


class RunRecord(L.Callback):
    """Writes ``run.json`` into the run directory, from which ``contactlm report`` compares runs.

    It is written whole at the start, after every look at dev and at the end; a killed run is still called ``running``.
    Sums and scores are saved in checkpoints. Put it behind :class:`TokenBudget`, :class:`FlopsMeter` and
    :class:`ContactEvaluation`. Without a logger, it does nothing.

    Seconds and bytes of memory are those of the first process. ``training`` is the time within training batches,
    without evaluation, checkpoints and waiting for data; ``total`` is all from the start of ``fit``. As memory,
    ``training`` is the peak before the first look at dev, ``peak`` that of the whole process; on a GPU what tensors
    take, else resident memory.

    Args:
        arm: Name of the training scheme, shared by runs that differ only in their seed; None: the logger's name.
    """

    def __init__(self, arm: str | None = None) -> None:
        self.arm = arm
        self.training: dict[str, Any] = {
            **dict.fromkeys(("tokens", "residues", "steps", "flops", "forward_flops", "trained_parameters"), 0),
            "seconds": {"training": 0.0, "evaluation": 0.0, "total": 0.0},
            "memory": {"training": None, "peak": None},
        }
        self.dev: list[dict[str, Any]] = []
        self.progress: list[dict[str, int]] = []
        self._facts: dict[str, Any] = {}
        self._results: dict[str, Any] = {}
        self._before: dict[str, Any] = {}  # state of the run whose checkpoint is scored or resumed
        self._folder: str | None = None
        self._fitted = False
        self._began = self._batch_began = self._look_began = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # a connector sets it
        wanted = stage in ("fit", "validate", "test") and trainer.loggers and not is_trial
        self._folder = run_directory(trainer) if wanted else None  # a collective call
        self._fitted &= stage != "fit"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer, pl_module)
        self.training["trained_parameters"] = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self._write(trainer, pl_module, "running")

    def on_train_batch_start(self, *_: Any) -> None:
        self._batch_began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.training["seconds"]["training"] += time.perf_counter() - self._batch_began
        self._count(trainer)
        steps = self.training["steps"]
        if steps and (not self.progress or steps >= math.ceil(self.progress[-1]["steps"] * SPACING + 0.001)):
            self.progress.append(self._spent())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._began = time.perf_counter() - self.training["seconds"]["total"]
            if not self._fitted:
                self._start(trainer, pl_module)
                self._count(trainer)  # what the checkpoint's callbacks say was spent
        elif not trainer.sanity_checking:
            self._note_training_memory(pl_module)  # best known before the first look at dev
        self._look_began = time.perf_counter()

    on_test_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.training["seconds"]["evaluation"] += time.perf_counter() - self._look_began
        scores = self._results["dev"] = _scores(trainer, "dev")
        if trainer.state.fn == TrainerFn.FITTING:
            self.dev.append({**self._spent(), **{name: scores[name] for name in HISTORY if name in scores}})
        self._write(trainer, pl_module, "running" if trainer.state.fn == TrainerFn.FITTING else "finished")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.training["tokens"]:
            self._note_training_memory(pl_module)
        last = self._spent()
        if last["steps"] and (not self.progress or self.progress[-1] != last):
            self.progress.append(last)
        self._write(trainer, pl_module, "finished")
        self._fitted = True

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training["seconds"]["evaluation"] += time.perf_counter() - self._look_began
        self._results["test"] = _scores(trainer, "test")
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._facts:
            interrupted = isinstance(exception, (KeyboardInterrupt, SystemExit))  # signals end as SystemExit
            self._write(trainer, pl_module, "interrupted" if interrupted else f"failed: {type(exception).__name__}")

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.perf_counter() - self.training["seconds"]["total"]
        name = trainer.loggers[0].name if trainer.loggers else None
        scored = None if trainer.state.fn == TrainerFn.FITTING else self._before.get("arm")
        seed, on_gpu = self._before.get("seed"), pl_module.device.type == "cuda"
        self._facts = {
            "arm": self.arm or scored or name or type(pl_module).__name__,
            "seed": run_seed(trainer) if seed is None else seed,
            "command": trainer.state.fn.value if trainer.state.fn is not None else None,
            "version": __version__,
            "module": type(pl_module).__name__,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "pretrained": pl_module.hparams.get("pretrained"),
            "init_seed": pl_module.hparams.get("init_seed"),
            "scheme": scheme_facts(trainer),
            "reads": module_facts(pl_module, "reads"),
            "optimizer": optimizer_facts(trainer),
            "data": data_locations(trainer),
            "machine": {
                "device": pl_module.device.type,
                "device_name": torch.cuda.get_device_name(pl_module.device) if on_gpu else platform.machine(),
                "processes": trainer.world_size,
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": str(torch.__version__),
            },
            "equal": equal_facts(trainer, pl_module),
        }
        # a resumed run's weights are no longer those it began with
        self._facts["equal"] |= self._before.get("began_with", {})
        self._results = {"dev": {}, "test": {}, "tested_at": None}

    def _count(self, trainer: L.Trainer) -> None:
        budget, meter = find_callback(trainer, TokenBudget), find_callback(trainer, FlopsMeter)
        if budget is not None:
            self.training |= {"tokens": budget.tokens, "residues": budget.residues}
        if meter is not None:
            self.training |= {"flops": meter.total, "forward_flops": getattr(meter, "forward", 0)}
        if trainer.state.fn == TrainerFn.FITTING:
            self.training["steps"] = trainer.global_step

    def _spent(self) -> dict[str, int]:
        return {name: self.training[name] for name in SPENT}

    def _note_training_memory(self, pl_module: L.LightningModule) -> None:
        if self.training["memory"]["training"] is None:
            self.training["memory"]["training"] = peak_memory(pl_module.device)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, status: str) -> None:
        self.training["seconds"]["total"] = time.perf_counter() - self._began
        peak = peak_memory(pl_module.device)
        self.training["memory"]["peak"] = max(filter(None, (peak, self.training["memory"]["peak"])), default=None)
        if trainer.is_global_zero and self._folder is not None:
            written = datetime.now(timezone.utc).isoformat(timespec="seconds")
            about = {**self._facts, "status": status, "written": written}
            history = {"dev_history": self.dev, "progress": self.progress}
            with outlast_full_disk(Path(self._folder) / RUN_FILE):  # the next write may find room
                write_run(self._folder, {**about, **self.training, **self._results, **history})

    def state_dict(self) -> dict[str, Any]:
        seconds = {**self.training["seconds"], "total": time.perf_counter() - self._began}
        equal = self._facts.get("equal", {})
        began_with = {name: equal[name] for name in ("weights", "backbone") if name in equal}
        of_run = {name: self._facts.get(name) for name in ("seed", "arm")}
        history = {"training": {**self.training, "seconds": seconds}, "dev": self.dev, "progress": self.progress}
        return deepcopy({**history, "began_with": began_with, **of_run})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; a test after ``fit`` only takes down which checkpoint it scores."""
        if self._fitted:
            at = state_dict["training"]
            self._results["tested_at"] = {name: at[name] for name in ("steps", "tokens", "flops")}
            return
        self._before = state_dict
        self.training, self.dev, self.progress = (state_dict[name] for name in ("training", "dev", "progress"))


def _scores(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    own = sorted(name for name in trainer.callback_metrics if name.startswith(f"{prefix}/"))
    return {name.removeprefix(f"{prefix}/"): float(trainer.callback_metrics[name]) for name in own}


def _data_of(trainer: L.Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it


def _attributes(data: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(data, name) for name in names if hasattr(data, name)}


def equal_facts(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """What has to be equal in runs that are compared; what a run does not have (a test run: a budget) is left out."""
    data, evaluation = _data_of(trainer), find_callback(trainer, ContactEvaluation)
    windows, family = getattr(module, "windows", None), getattr(module, "family", None)
    contact = getattr(module, "contact", ContactDefinition())
    facts = {
        "test": chain_set(trainer, "test"),
        "synthetic": is_synthetic(trainer),
        "threshold": None if evaluation is None else evaluation.threshold,
        "window": getattr(windows, "window", None),
        "overlap": getattr(windows, "overlap", None),
        "assembly": getattr(data, "assembly", None),
        "min_length": getattr(data, "min_length", None),
        "precision": str(trainer.precision),
        **({} if family is None else {"family": family.name}),
        **({} if contact == ContactDefinition() else {"contact": str(contact)}),
        **weights_facts(module),
        **module_facts(module, "equal"),
    }
    if trainer.state.fn == TrainerFn.FITTING:
        budget = find_callback(trainer, TokenBudget)
        facts["budget"] = None if budget is None else budget.max_tokens
        facts |= _attributes(data, "split", "dev_fraction", "split_seed")
        facts |= {role: chain_set(trainer, role) for role in ("train", "dev")}
        facts["trained_before"] = getattr(data, "trained_before", None) or None
    return facts


def module_facts(module: L.LightningModule, kind: str) -> dict[str, Any]:
    """What a module says of itself in ``run_facts``: ``equal`` in compared runs, or ``reads`` besides the sequence."""
    return getattr(module, "run_facts", {}).get(kind, {})


def weights_facts(module: L.LightningModule) -> dict[str, Any]:
    """Which backbone a run starts from: pretrained weights by checksum, or random ones by architecture."""
    hparams = module.hparams
    if "pretrained" not in hparams:
        return {}
    if hparams["pretrained"] is None:  # the seed they are drawn with may go with the run's
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
    chains = getattr(_data_of(trainer), "chains", {}).get(role)
    return None if chains is None else describe_chains(chains.ids, chains.lengths)


def is_synthetic(trainer: L.Trainer) -> bool:
    """Whether the proteins are those of the package's generator: asked for, or in a folder that it wrote."""
    if getattr(_data_of(trainer), "synthetic", None) is not None:
        return True
    paths = [Path(location).expanduser() for location in data_locations(trainer).values()]
    return any((folder / SYNTHETIC_MANIFEST).is_file() for path in paths for folder in (path, path.parent))


def data_locations(trainer: L.Trainer) -> dict[str, str]:
    """Where the structures come from, as the user gave it."""
    data = _data_of(trainer)
    if getattr(data, "synthetic", None) is not None:
        return {"synthetic": str(data.synthetic.folder)}
    found = _attributes(data, "train_dir", "test_dir", "train_ids", "test_ids")
    given = {name: str(value) for name, value in found.items() if value}
    return {name: value for name, value in given.items() if name.endswith("dir")} or given


def scheme_facts(trainer: L.Trainer) -> dict[str, Any]:
    """What arms differ in: how training samples are cut and batched."""
    data = _data_of(trainer)
    facts = _attributes(data, "crop", "crop_length", "true_ends", "batch_size", "weights")
    if (bound := getattr(data, "bound", None)) is not None:
        facts |= {"batch_size": None, f"batch_{bound.unit}": bound.most}
    return facts | {"accumulate_grad_batches": trainer.accumulate_grad_batches}


def optimizer_facts(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Name and learning rate of every group of parameters when training starts; empty where nothing is trained."""
    groups = [(type(each).__name__, group["lr"]) for each in trainer.optimizers for group in each.param_groups]
    return [{"optimizer": name, "lr": float(lr)} for name, lr in groups]


def run_seed(trainer: L.Trainer) -> int | None:
    """The seed of the run: that of the data module, or the one given to ``seed_everything``."""
    seed, general = getattr(_data_of(trainer), "seed", None), os.environ.get("PL_GLOBAL_SEED")
    return int(general) if seed is None and general is not None else seed


def peak_memory(device: torch.device) -> int | None:
    """Most memory held so far, in bytes: by tensors on a GPU, else resident in this process; None: cannot be known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # it has no `resource`
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
