"""Steps that would do harm are left out: non-finite losses and gradients, and batches that teach nothing."""

from __future__ import annotations

import copy
import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from contactlm import ContactModule
from contactlm.callbacks import LossGuard, TokenBudget
from contactlm.cli.main import main
from contactlm.model.losses import contact_loss
from contactlm.modules import optimization
from contactlm.types import ContactLMError, TrainingError
from tests.callbacks.test_callbacks import data_module, trainer

NAN, INF = float("nan"), float("inf")


class Foreign(L.LightningModule):
    """A module that knows nothing of this package; the batch holds the factor that its loss is multiplied by.

    Its optimizer is fused as it was made, or by itself: as `fuse` does it, so that Lightning clips gradients.
    """

    def __init__(
        self, lr: float = 0.1, scheduled: bool = False, fused: bool | None = None, by_itself: bool = False
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.lr, self.scheduled, self.fused, self.by_itself = lr, scheduled, fused, by_itself

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("loss", 0.0)
        return self.layer(torch.ones(2)).sum() * batch.sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1, fused=self.fused)
        if self.by_itself:
            optimizer.param_groups[0]["fused"] = True
        if not self.scheduled:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def state_of(module: L.LightningModule) -> dict[str, Any]:
    optimizer = module.optimizers()
    assert not isinstance(optimizer, list)
    states = {i: copy.deepcopy(s) for i, s in optimizer.state_dict()["state"].items()}
    return {"weights": copy.deepcopy(module.state_dict()), "optimizer": states}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


class Watch(L.Callback):
    """For every batch, whether weights and optimizer state are what they were before it."""

    def __init__(self) -> None:
        self.unchanged: list[bool] = []
        self.before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = state_of(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.unchanged.append(same(self.before, state_of(pl_module)))


def batches(factors: list[float]) -> DataLoader[Any]:
    return DataLoader(torch.tensor(factors), batch_size=1)  # type: ignore[arg-type]  # a tensor is a data set


def run(
    path: Path, factors: list[float], module: L.LightningModule | None = None, **options: Any
) -> tuple[LossGuard, Watch, Any, L.Trainer]:
    guard, watch = options.pop("guard", None) or LossGuard(), Watch()
    module = module or Foreign()
    callbacks = options.pop("callbacks", [])
    runner = trainer(path, guard, watch, *callbacks, max_epochs=1, **options)
    runner.fit(module, batches(factors))
    return guard, watch, module, runner


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_of_a_loss_that_is_not_finite_changes_nothing(tmp_path: Path, bad: float, clip: float | None) -> None:
    guard, watch, module, runner = run(tmp_path, [1, bad, 1, bad, bad, 1], gradient_clip_val=clip)
    assert watch.unchanged == [False, True, False, True, True, False]
    assert (guard.skipped, guard.consecutive, guard.empty) == (3, 0, 0)
    assert float(runner.callback_metrics["train/skipped_steps"]) == 3
    _, _, without, _ = run(tmp_path, [1, 1, 1], gradient_clip_val=clip)
    assert not same(module.state_dict(), without.state_dict())  # other initial weights: the comparison can tell


def test_the_run_is_that_without_the_bad_batches(tmp_path: Path) -> None:
    start = Foreign()
    _, _, with_bad, _ = run(tmp_path, [1, NAN, 2, INF, 3], copy.deepcopy(start))
    _, _, without, _ = run(tmp_path, [1, 2, 3], copy.deepcopy(start))
    assert same(with_bad.state_dict(), without.state_dict())
    assert not same(without.state_dict(), start.state_dict())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_gradient_that_is_not_finite_is_found_before_clipping(tmp_path: Path, algorithm: str) -> None:
    module, calls = Foreign(), [0]

    def poison(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return gradient * (INF if calls[0] == 2 else 1)

    module.layer.bias.register_hook(poison)
    guard, watch, _, _ = run(tmp_path, [1, 1, 1], module, gradient_clip_val=1.0, gradient_clip_algorithm=algorithm)
    assert watch.unchanged == [False, True, False]
    assert guard.skipped == 1


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_takes_the_good_steps_alone(tmp_path: Path, clip: float | None, algorithm: str) -> None:
    start, clipping = Foreign(by_itself=True), {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
    guard, watch, with_bad, _ = run(tmp_path, [1, NAN, 2, 0, INF, 3], copy.deepcopy(start), **clipping)
    assert watch.unchanged == [False, True, False, True, True, False]
    assert (guard.skipped, guard.consecutive, guard.empty) == (2, 0, 1)
    _, _, without, runner = run(tmp_path, [1, 2, 3], copy.deepcopy(start), **clipping)
    assert same(with_bad.state_dict(), without.state_dict())
    (optimizer,) = runner.optimizers
    assert all(state["step"] == 3 for state in optimizer.state.values())


def test_adam_is_fused_on_a_gpu_unless_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    def groups_of(kind: type[torch.optim.Optimizer], **options: Any) -> list[Any]:
        optimizer = kind([nn.Parameter(torch.ones(2))], **options)
        optimization.fuse(optimizer)
        return [group.get("fused") for group in optimizer.param_groups]

    assert groups_of(torch.optim.Adam) == [None]  # on a CPU
    monkeypatch.setattr(optimization, "goes_on", lambda device: True)
    assert groups_of(torch.optim.Adam) == groups_of(torch.optim.AdamW, weight_decay=0.1) == [True]
    assert groups_of(torch.optim.Adam, foreach=False) == groups_of(torch.optim.Adam, differentiable=True) == [None]
    assert groups_of(torch.optim.AdamW, fused=False) == [False]
    assert groups_of(torch.optim.SGD, lr=0.1) == [None]


def test_an_infinite_loss_with_finite_gradients_is_skipped_too(tmp_path: Path) -> None:
    class Odd(Foreign):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + (INF if batch_idx == 1 else 0)

    guard, watch, _, _ = run(tmp_path, [1, 1, 1], Odd())
    assert watch.unchanged == [False, True, False] and guard.skipped == 1


def test_without_the_guard_one_bad_batch_ends_in_nan(tmp_path: Path) -> None:
    module = Foreign()
    trainer(tmp_path, max_epochs=1).fit(module, batches([1.0, NAN, 1.0]))
    assert not module.layer.weight.isfinite().all()


def test_of_accumulated_batches_the_bad_one_is_named_and_the_whole_step_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "contactlm"):
        guard, watch, _, _ = run(tmp_path, [1, 1, NAN, 1, 1, 1, 1], accumulate_grad_batches=2)
    # steps after batches 1, 3, 5 and the last
    assert watch.unchanged == [True, False, True, True, True, False, False]
    assert guard.skipped == 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("step 1: the loss is not finite (loss nan)") and warning.endswith("proteins: batch 2")


class OddInOneProcess(Foreign):
    """Loss of batch 1 infinite, though with finite gradients, and of batch 3 not a number; in the second process."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == 1:
            loss = loss + (INF if batch_idx == 1 else 0)
            loss = loss * (NAN if batch_idx == 3 else 1)
        return loss


def train_in_one_of_two_processes() -> tuple[list[bool], int, list[str], list[float]]:
    """For ``tests/test_distributed.py``, where tests of several processes share what these import."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("contactlm.callbacks.guard").addHandler(handler)
    guard, watch, module, _ = run(
        Path.cwd(), [1] * 5, OddInOneProcess(), strategy="ddp", devices=2, use_distributed_sampler=False
    )
    return watch.unchanged, guard.skipped, messages, module.layer.weight.flatten().tolist()


def test_the_schedule_and_the_steps_go_on(tmp_path: Path) -> None:
    _, _, module, runner = run(tmp_path, [1, NAN, 1], Foreign(lr=0.8, scheduled=True))
    assert runner.global_step == 3
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("limits", "factors", "message"),
    [
        ({"max_consecutive": 3}, [NAN, NAN, 1, NAN, NAN, NAN, 1], "3 optimizer steps in a row"),
        ({"max_consecutive": None, "max_skipped": 3}, [NAN, 1, NAN, 1, 1, NAN, 1], "3 optimizer steps in all"),
    ],
)
def test_at_a_limit_training_stops(tmp_path: Path, limits: dict[str, Any], factors: list[float], message: str) -> None:
    guard, watch = LossGuard(**limits), Watch()
    with pytest.raises(TrainingError, match=message) as error:
        trainer(tmp_path, guard, watch, max_epochs=1).fit(Foreign(), batches(factors))
    assert "batch 5" in str(error.value) and "lower the learning rate" in str(error.value)
    assert len(watch.unchanged) == 5  # the sixth batch came to no end


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    guard, _, _, _ = run(tmp_path, [NAN] * 15, guard=LossGuard(None))
    assert guard.skipped == guard.consecutive == 15


@pytest.mark.parametrize("option", ["max_consecutive", "max_skipped"])
def test_a_limit_that_is_not_positive_is_refused(option: str) -> None:
    with pytest.raises(ContactLMError, match=rf"guard\.{option} is 0"):
        LossGuard(**{option: 0})  # type: ignore[arg-type]


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    _, _, _, runner = run(tmp_path, [1, NAN, NAN])
    runner.save_checkpoint(tmp_path / "a.ckpt")
    guard = LossGuard(max_consecutive=3)
    again = trainer(tmp_path, guard, max_epochs=2)
    with pytest.raises(TrainingError, match="3 optimizer steps in a row"):
        again.fit(Foreign(), batches([NAN, 1.0]), ckpt_path=tmp_path / "a.ckpt")
    assert (guard.skipped, guard.consecutive) == (3, 0)


def scaled(growth: float = 65536.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=growth))


class Overflowing(Foreign):
    """Its gradients overflow when the scale is above a limit, as float16 gradients do."""

    def __init__(self, most: float, **options: Any) -> None:
        super().__init__(**options)
        self.layer.weight.register_hook(lambda gradient: gradient * (INF if gradient.abs().max() > most else 1))


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_scalers_own_skipping_is_left_to_it(tmp_path: Path, fused: bool) -> None:
    plugin = scaled()
    module = Overflowing(20000.0, fused=fused)
    guard, watch, _, _ = run(tmp_path, [1] * 5, module, plugins=[plugin], guard=LossGuard(max_consecutive=1))
    # scales 65536, 32768, 16384; a fused optimizer makes its state, zeros, in the first step, taken or not
    assert watch.unchanged == [not fused, True, False, False, False]
    assert (guard.skipped, guard.empty) == (0, 0)
    assert plugin.scaler is not None and plugin.scaler.get_scale() == 16384


@pytest.mark.parametrize("fused", [False, True])
def test_a_bad_loss_counts_once_under_the_gradient_scaler(tmp_path: Path, fused: bool) -> None:
    guard, watch, module, _ = run(tmp_path, [1, NAN, 1], Foreign(fused=fused), plugins=[scaled(256.0)])
    assert watch.unchanged == [False, True, False]
    assert guard.skipped == 1
    assert module.layer.weight.isfinite().all()


def test_a_gradient_that_no_scale_mends_meets_the_limit(tmp_path: Path) -> None:
    guard, watch = LossGuard(max_consecutive=2), Watch()
    with pytest.raises(TrainingError, match="2 optimizer steps in a row"):
        runner = trainer(tmp_path, guard, watch, max_epochs=1, plugins=[scaled(8.0)])
        runner.fit(Overflowing(0.0), batches([1.0] * 9))
    assert len(watch.unchanged) == 4 and all(watch.unchanged)  # at scales 8, 4, 2, then counted at 1 and 0.5


def test_a_gradient_of_zero_leaves_momentum_alone(tmp_path: Path) -> None:
    guard, watch, _, _ = run(tmp_path, [1, 0, 1, 0])
    assert watch.unchanged == [False, True, False, True]
    assert (guard.skipped, guard.empty) == (0, 2)
    again = LossGuard()
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict() == {"skipped": 0, "consecutive": 0, "empty": 2}


def test_what_is_not_resolved_contributes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 9, generator=generator, requires_grad=True)
    labels = torch.randint(-1, 2, (3, 9, 9), generator=generator, dtype=torch.int8)
    labels[1] = -1
    contact_loss(logits, labels).backward()
    assert logits.grad is not None and (logits.grad[1] == 0).all() and (logits.grad[[0, 2]] != 0).any()
    others = logits.detach()[[0, 2]].requires_grad_()
    contact_loss(others, labels[[0, 2]]).backward()
    assert others.grad is not None
    torch.testing.assert_close(others.grad, logits.grad[[0, 2]], rtol=0, atol=1e-8)
    loss = contact_loss(logits, torch.full_like(labels, -1))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss) == 0 and not gradient.any()


class Unresolved(L.Callback):
    """Takes the coordinates of a batch away."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.batches:
            batch["cb"].fill_(NAN)


class Poisoned(ContactModule):
    """Gives a loss that is not a number for some batches."""

    bad: Callable[[int], bool] = staticmethod(lambda batch_idx: False)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * NAN if self.bad(batch_idx) else loss


def test_contacts_a_bad_batch_is_named_and_costs_its_tokens(
    tmp_path: Path, pdb_folders: tuple[Path, Path], tiny_esm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, guard, watch, budget = Poisoned(str(tiny_esm)), LossGuard(), Watch(), TokenBudget(4 * 128)
    module.bad = lambda batch_idx: batch_idx == 1
    named: list[str] = []

    class Names(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1 and not named:
                pairs = zip(batch["ids"], batch["starts"].tolist(), strict=True)
                named.extend(f"{name} from residue {start + 1}" for name, start in pairs)

    data = data_module(pdb_folders)
    with caplog.at_level(logging.WARNING, "contactlm.callbacks"):
        runner = trainer(tmp_path, Names(), Unresolved(2), guard, watch, budget, gradient_clip_val=1.0)
        runner.fit(module, data)
    assert watch.unchanged[:3] == [False, True, True] and budget.tokens == 4 * 128
    assert (guard.skipped, guard.empty) == (1, 1)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "contactlm.callbacks.guard"]
    assert len(named) == 4 and "; ".join(named) in warning


@pytest.mark.slow
def test_cli_ends_with_one_message_and_resumes(
    tmp_path: Path,
    tiny_esm: Path,
    pdb_folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    arguments = ["fit", f"--data.train_dir={pdb_folders[0]}", "--data.min_length=10", "--data.read_workers=0"]
    arguments += [
        "--data.crop_length=30",
        "--data.batch_size=4",
        "--trainer.accelerator=cpu",
        "--budget.max_tokens=1000",
        "--dashboard.lengths=[]",
    ]
    arguments += ["--trainer.val_check_interval=2", f"--model.pretrained={tiny_esm}", "--guard.max_consecutive=2"]
    arguments += ["--trainer.log_every_n_steps=1"]
    intact = ContactModule.loss
    calls = [0]

    def poisoned(self: ContactModule, logits: Tensor, labels: Tensor) -> Tensor:
        calls[0] += 1
        return intact(self, logits, labels) * (NAN if calls[0] > 2 else 1)

    monkeypatch.setattr(ContactModule, "loss", poisoned)
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("contactlm: error: training stopped: 2 optimizer steps in a row")
    assert "_A from residue" in error
    (metrics,) = tmp_path.rglob("metrics.csv")
    rows = [row["train/skipped_steps"] for row in csv.DictReader(metrics.open()) if row["train/skipped_steps"]]
    assert [float(row) for row in rows] == [0, 0, 1]
    (saved,) = tmp_path.rglob("last.ckpt")
    state = torch.load(saved, weights_only=True)
    assert state["callbacks"]["LossGuard"].keys() == {"skipped", "consecutive", "empty"}
    assert all(bool(weight.isfinite().all()) for weight in state["state_dict"].values())
    monkeypatch.setattr(ContactModule, "loss", intact)
    assert main([*arguments, f"--ckpt_path={saved}"]) == 0
