"""Runs of bench_samples.py: what one is, how it is trained and scored, and what `contactlm report` reads of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import seed_everything

from contactlm import ContactDataModule, ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, LossGuard, RunRecord, TokenBudget
from contactlm.data.synthetic import SyntheticOptions, write_synthetic
from contactlm.data.training_set import describe_chains
from contactlm.runs.record_file import write_run
from tests.benchmarks.bundles import write_bundles

TODAY = 3e-3  # the learning rate of synthetic_long
CLIP = 1.0  # the largest norm of a gradient, as in base.yaml
BUDGETS = (100_000, 200_000, 500_000)
SCORES = ("mcc_sep6", "mcc_long", "p_at_L_long", "auprc_sep6")
COLUMNS = [
    *("phase", "world", "backbone", "backbone_seed", "seed", "arm", "sample", "crop", "crop_length", "samples_a_step"),
    *("batch_size", "accumulate", "batch_tokens", "rate", "budget", "tokens", "residues", "steps", "flops", "seconds"),
    *(f"{role}_{name}" for role in ("dev", "test") for name in SCORES),
    *("train_set", "test_set", "threads", "commit"),
]


@dataclass(frozen=True)
class World:
    """Proteins to train and test on, and what a run starts from.

    Attributes:
        name: Of the world.
        synthetic: Options of `write_bundles`, or without a kind of `SyntheticOptions`; None: real structures.
        structures: Folder of real structures, with train/ and test/.
        architecture: Of random weights, all of which learn; None: a trained backbone with LoRA.
        precision: Of the trainer.
    """

    name: str
    synthetic: dict[str, Any] | None
    structures: Path | None = None
    architecture: dict[str, Any] | None = None
    precision: Any = "32-true"

    def sources(self, out: Path) -> dict[str, Any]:
        """Where the data module finds the proteins."""
        if self.structures is not None:
            return {"train_dir": str(self.structures / "train"), "test_dir": str(self.structures / "test")}
        train, test = self.write(out)
        return {"train_dir": str(train), "test_dir": str(test), "split": "random"}

    def module(self, backbone: Path | None, seed: int, rate: float) -> ContactModule:
        """The model before the first step."""
        adam = partial(torch.optim.Adam, lr=rate)
        if backbone is not None:
            return ContactModule(str(backbone), optimizer=adam)
        return ContactModule(
            None, architecture=self.architecture, lora=None, head_lr_factor=10.0, init_seed=seed, optimizer=adam
        )

    def folder(self, out: Path) -> Path:
        return out / self.name / "runs" / "long-bundles"

    def write(self, out: Path) -> tuple[Path, Path]:
        """Write the proteins that are not there yet."""
        options = {"n_train": 160, "n_test": 24, **(self.synthetic or {})}
        if "kind" in options:
            return write_bundles(self.folder(out), **options)
        return write_synthetic(SyntheticOptions(str(self.folder(out)), **options))


@dataclass(frozen=True)
class Arm:
    """A training scheme: what a sample is, how many make an optimizer step, and the learning rate."""

    name: str
    sample: str
    crop: Any  # a CropScheme
    crop_length: int
    batch_size: int
    accumulate: int
    rate: float
    batch_tokens: int | None = None

    @classmethod
    def of_step(cls, name: str, sample: str, crop: str, length: int, size: int, rate: float) -> Arm:
        """Parts in one batch, whole chains one by one: so no sample is padded, whatever the size of a step."""
        batch = (1, size) if crop == "cut" else (size, 1)
        return cls(name, sample, crop, length, *batch, rate)

    def same_as(self, other: Arm) -> bool:
        return self.columns() == other.columns()

    def columns(self) -> dict[str, Any]:
        step = None if self.batch_tokens else self.batch_size * self.accumulate
        names = ("sample", "crop", "crop_length", "batch_size", "accumulate", "batch_tokens")
        return {**{name: getattr(self, name) for name in names}, "samples_a_step": step, "rate": f"{self.rate:g}"}


class Snapshots(L.Callback):
    """Keeps the weights that runs of smaller budgets would end with; put it last.

    A run that spends its budget in the middle of an accumulated step takes that step with what it has. So does a
    snapshot, and then everything is put back.
    """

    def __init__(self, budgets: Sequence[int]) -> None:
        self.budgets = list(budgets)
        self.taken: dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}
        self._stepped = False

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._stepped = False

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._stepped = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        spent = spending(trainer)
        while self.budgets and spent["tokens"] >= self.budgets[0]:
            budget = self.budgets.pop(0)
            if self._stepped:
                self.taken[budget] = trained_weights(pl_module), spent
            else:
                weights = weights_after_a_step(trainer, pl_module)
                self.taken[budget] = weights, {**spent, "steps": spent["steps"] + 1}


def trained_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def weights_after_a_step(trainer: L.Trainer, module: L.LightningModule) -> dict[str, torch.Tensor]:
    """What the optimizer would make of the gradients that have come together so far; nothing is changed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    before = [(p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in parameters]
    (optimizer,) = trainer.optimizers
    plain = torch.optim.Adam([dict(group) for group in optimizer.param_groups])
    plain.load_state_dict(copied(optimizer.state_dict()))
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    plain.step()
    after = trained_weights(module)
    with torch.no_grad():
        for parameter, (value, gradient) in zip(parameters, before, strict=True):
            parameter.copy_(value)
            parameter.grad = gradient
    return after


def copied(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state


def spending(trainer: L.Trainer) -> dict[str, Any]:
    """What a run has spent so far."""
    found = {type(callback): callback for callback in trainer.callbacks}  # type: ignore[attr-defined]
    budget, record = found[TokenBudget], found[RunRecord]
    seconds = record.training["seconds"]["training"]
    spent = {"tokens": budget.tokens, "residues": budget.residues, "steps": trainer.global_step}
    return {**spent, "flops": found[FlopsMeter].total if FlopsMeter in found else None, "seconds": seconds}


def train(
    arm: Arm,
    world: World,
    backbone: Path | None,
    seed: int,
    budgets: Sequence[int],
    out: Path,
    test: bool,
    meter: bool = True,
) -> list[dict[str, Any]]:
    """Train as `contactlm fit --config synthetic_long` does, with one look at dev, in the end.

    Args:
        arm: The scheme.
        world: The proteins.
        backbone: Folder of the weights to start from; None: random ones of the run's seed.
        seed: Of the run.
        budgets: Tokens, ascending; the last one ends the run.
        out: Where proteins and cache are.
        test: Whether to score the test set, once at each budget.
        meter: Whether to count FLOPs, which takes time where batches are of many shapes.

    Returns:
        A line for each budget: what was spent, and the scores; dev of the last one only.
    """
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(seed, verbose=False)
    data = data_module(arm, world, seed, out)
    snapshots = Snapshots(budgets[:-1])
    trainer = make_trainer(arm, world, budgets[-1], [FlopsMeter()] if meter else [], snapshots)
    module = world.module(backbone, seed, arm.rate)
    trainer.fit(module, datamodule=data)
    dev = {f"dev_{name}": float(trainer.callback_metrics[f"dev/{name}"]) for name in SCORES}
    ends = {**snapshots.taken, budgets[-1]: (trained_weights(module), spending(trainer))}
    rows = []
    for budget, (weights, spent) in sorted(ends.items()):
        row = {"budget": budget, **spent, **(dev if budget == budgets[-1] else {})}
        if test:
            module.load_state_dict(weights, strict=False)
            trainer.test(module, datamodule=data, verbose=False)
            row |= {f"test_{name}": float(trainer.callback_metrics[f"test/{name}"]) for name in SCORES}
        rows.append({**row, **set_facts(data), "threads": torch.get_num_threads()})
    return rows


def data_module(arm: Arm, world: World, seed: int, out: Path) -> ContactDataModule:
    return ContactDataModule(
        **world.sources(out),
        crop=arm.crop,
        crop_length=arm.crop_length,
        batch_size=arm.batch_size,
        batch_tokens=arm.batch_tokens,
        seed=seed,
        cache_dir=str(out / "cache"),
        leak_report="never",
    )


def make_trainer(arm: Arm, world: World, budget: int, meters: list[L.Callback], snapshots: Snapshots) -> L.Trainer:
    evaluation = ContactEvaluation(write_rows=False, calibration=None)
    return L.Trainer(
        accelerator="cpu",
        precision=world.precision,
        max_epochs=-1,
        min_epochs=0,
        check_val_every_n_epoch=None,
        val_check_interval=10**9,
        num_sanity_val_steps=0,
        gradient_clip_val=CLIP,
        accumulate_grad_batches=arm.accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TokenBudget(budget), *meters, LossGuard(), evaluation, RunRecord(arm.name), snapshots],
    )


def set_facts(data: ContactDataModule) -> dict[str, str]:
    """Chains, residues and checksum of the sets that were trained and tested on."""
    stores = {role: data.chains[role] for role in ("train", "test")}
    sets = {role: describe_chains(store.ids, store.lengths) for role, store in stores.items()}
    return {f"{role}_set": " ".join(str(value) for value in about.values()) for role, about in sets.items()}


def write_records(rows: Sequence[Mapping[str, str]], world: World, folder: Path) -> Path:
    """Write what `contactlm report` reads: a run directory for every budget of the final runs.

    Seconds are those of the phase seconds, by tokens; those taken beside other work are left out.
    """
    paces = {
        row["arm"]: float(row["seconds"]) / int(row["tokens"])
        for row in rows
        if (row["phase"], row["world"]) == ("seconds", world.name)
    }
    for row in rows:
        if (row["phase"], row["world"]) == ("final", world.name):
            name = f"{row['arm']}/backbone{row['backbone_seed']}-seed{row['seed']}-{row['budget']}"
            write_run(folder / name, record_of(row, world, paces.get(row["arm"])))
    return folder


def record_of(row: Mapping[str, str], world: World, pace: float | None) -> dict[str, Any]:
    """A line of the table as the record of a run; `pace` is in seconds a token."""
    numbers = {name: int(row[name]) for name in ("tokens", "residues", "steps", "flops")}
    spent = {name: numbers[name] for name in ("steps", "tokens", "flops")}
    scores = {
        role: {name: float(row[f"{role}_{name}"]) for name in SCORES if row[f"{role}_{name}"]}
        for role in ("dev", "test")
    }
    batch_tokens = int(row["batch_tokens"]) if row["batch_tokens"] else None
    return {
        "arm": row["arm"],
        "seed": int(row["seed"]),
        "command": "fit",
        "status": "finished",
        "written": row["commit"],
        "module": "ContactModule",
        "pretrained": f"backbone{row['backbone_seed']} of {row['world']}",
        "scheme": {
            "crop": row["crop"],
            "crop_length": int(row["crop_length"]),
            "batch_size": int(row["batch_size"]),
            "accumulate_grad_batches": int(row["accumulate"]),
            "batch_tokens": batch_tokens,
        },
        "optimizer": [{"optimizer": "Adam", "lr": float(row["rate"])}],
        "machine": {"device": "cpu", "threads": int(row["threads"])},
        "equal": {
            "budget": int(row["budget"]),
            **{role: chain_set(row[f"{role}_set"]) for role in ("train", "test")},
            "precision": world.precision,
            "family": "ESM2",
            "weights": "random" if world.architecture else "pretrained",
            "backbone": row["backbone"],
            "synthetic": world.synthetic is not None,
        },
        **numbers,
        "seconds": {"training": None if pace is None else pace * numbers["tokens"]},
        **scores,
        "tested_at": spent,
        "dev_history": [spent | scores["dev"]] if scores["dev"] else [],
        "progress": [spent],
    }


def chain_set(text: str) -> dict[str, Any]:
    chains, residues, checksum = text.split()
    return {"chains": int(chains), "residues": int(residues), "checksum": checksum}
