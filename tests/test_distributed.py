"""Several processes do what one does: gloo on the CPU."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from contactlm import ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, TokenBudget
from contactlm.model.lora import LoraOptions
from tests.conftest import random_sequence, write_pdb
from tests.processes import run_ranks
from tests.test_callbacks import data_module, trainer

Folders = tuple[Path, Path]


class Watch(L.Callback):
    """Notes the gradients of each step, and the steps."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def processes(world_size: int) -> dict[str, Any]:
    return {"strategy": "ddp", "devices": world_size, "use_distributed_sampler": False} if world_size > 1 else {}


def train(
    world_size: int,
    tiny_esm: Path,
    folders: Folders,
    batch_size: int,
    tokens: int,
    model: dict[str, Any],
    **options: Any,
) -> dict[str, Any]:
    """Train in this process, one of ``world_size``; what came of it, as plain values."""
    torch.manual_seed(0)
    watch, budget, flops, evaluation = Watch(), TokenBudget(tokens), FlopsMeter(), ContactEvaluation()
    module = ContactModule(str(tiny_esm), optimizer=sgd, **model)
    data = data_module(folders, batch_size=batch_size)
    runner = trainer(
        Path.cwd(), watch, budget, flops, evaluation, val_check_interval=2, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, gradient_clip_val=1.0, **processes(world_size), **options,
    )  # fmt: skip
    runner.fit(module, data)
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    runner.test(module, data, verbose=False)
    return {
        "gradients": watch.gradients,
        "losses": watch.losses,
        "steps": runner.global_step,
        "tokens": budget.tokens,
        "residues": budget.residues,
        "flops": flops.total,
        "weights": {name: p.detach() for name, p in module.named_parameters() if p.requires_grad},
        "metrics": metrics | {name: float(value) for name, value in runner.callback_metrics.items()},
        "ids": sorted(row["id"] for row in evaluation.rows),
    }


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"lora": LoraOptions(dropout=0.0)}, {}),
    "all weights": ({"lora": None}, {}),
    "head": ({"lora": None, "freeze_backbone": True}, {}),
    "accumulated": ({"lora": LoraOptions(dropout=0.0)}, {"accumulate_grad_batches": 2}),
}


def nearly_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


def train_kinds(world_size: int, tiny_esm: Path, folders: Folders, batch_size: int) -> dict[str, dict[str, Any]]:
    tokens = 4 * 16 * 32  # four batches, of which an epoch has three: by twos, the budget ends within a window
    return {
        kind: train(world_size, tiny_esm, folders, batch_size, tokens, model, **options)
        for kind, (model, options) in KINDS.items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path) -> list[dict[str, Any]]:
    """What two processes with batches of 8 came to, and one with batches of 16."""
    folder = tmp_path_factory.mktemp("trained")
    folders = folder / "train", folder / "test"
    for i in range(40):
        write_pdb(folders[0] / f"t{i:02d}.pdb", {"A": random_sequence(i, 32 + i // 4)}, seed=i)
    for i in range(3):
        write_pdb(folders[1] / f"s{i}.pdb", {"A": random_sequence(100 + i, 40 + 9 * i)}, seed=100 + i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTACTLM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        ranks = run_ranks(train_kinds, 2, 2, tiny_esm, folders, 8, folder=folder)
        return [*ranks, train_kinds(1, tiny_esm, folders, 16)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_with_the_double_batch(trained: list[dict[str, Any]], kind: str) -> None:
    *ranks, one = (results[kind] for results in trained)
    for rank in ranks:
        for ours, theirs in zip(rank["gradients"], one["gradients"], strict=True):
            nearly_equal(ours, theirs)
        nearly_equal(rank["weights"], one["weights"])
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert rank["metrics"].keys() == one["metrics"].keys()
        assert rank["metrics"]["dev/auprc_sep6"] == pytest.approx(one["metrics"]["dev/auprc_sep6"], abs=0.01)
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(weight, ranks[1]["weights"][name]), name  # all processes hold the same
    assert len(one["gradients"][0]) == len(one["weights"])  # each gets one: DDP has to look for no unused ones


@pytest.mark.parametrize("kind", KINDS)
def test_budget_and_flops_are_sums_over_processes(trained: list[dict[str, Any]], kind: str) -> None:
    *ranks, one = (results[kind] for results in trained)
    assert one["steps"] == (3 if kind == "accumulated" else 4)  # the budget's last batch ends with a step
    assert one["tokens"] == 4 * 16 * 32 and one["flops"] > 0
    for rank in ranks:
        for name in ("steps", "tokens", "residues", "flops", "ids"):
            assert rank[name] == one[name], name


def evaluate(world_size: int, tiny_esm: Path, folders: list[Folders]) -> list[dict[str, Any]]:
    """Score several test sets, one after the other."""
    results = []
    module, evaluation = ContactModule(str(tiny_esm)), ContactEvaluation(write_rows=False)
    runner = trainer(Path.cwd(), evaluation, **processes(world_size))
    for each in folders:
        data = data_module(each, eval_batch_size=2)
        (logged,) = runner.test(module, data, verbose=False)
        results.append({"rows": sorted(evaluation.rows, key=lambda row: row["id"]), "logged": logged})
    return results


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_protein_is_scored_once_whatever_the_number_of_processes(
    tmp_path: Path, tiny_esm: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for size in (1, 2, 5, 7):  # fewer than processes, as many, and numbers that no one can share evenly
        for i in range(size):
            write_pdb(tmp_path / f"test{size}" / f"s{i}.pdb", {"A": random_sequence(i, 20 + 7 * i)}, seed=i)
        folders.append((tmp_path / f"test{size}", tmp_path / f"test{size}"))
    monkeypatch.chdir(tmp_path)
    ranks = run_ranks(evaluate, world_size, world_size, tiny_esm, folders, folder=tmp_path)
    for one, *others in zip(evaluate(1, tiny_esm, folders), *ranks, strict=True):
        for other in others:
            assert other["logged"] == pytest.approx(one["logged"], abs=1e-6, nan_ok=True)
            assert [row["id"] for row in other["rows"]] == [row["id"] for row in one["rows"]]
            for ours, theirs in zip(other["rows"], one["rows"], strict=True):
                assert ours["auprc_sep6"] == pytest.approx(theirs["auprc_sep6"], abs=1e-6, nan_ok=True)
