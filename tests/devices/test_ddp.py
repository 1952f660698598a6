"""Two processes in Python: what they draw at random, what they reduce in a step, and what they skip together."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy

from contactlm import ContactModule
from contactlm.callbacks import FlopsMeter, TokenBudget
from contactlm.callbacks.guard import LossGuard
from contactlm.callbacks.progress import ThroughputMeter
from contactlm.model.lora import LoraOptions
from tests.callbacks.test_callbacks import data_module, trainer
from tests.devices.commands import (
    Folders,
)
from tests.processes import run_ranks
from tests.runs.test_interruption import KeepAll

STEP = 2 * 2 * 32  # tokens of a batch of both processes


class Observer(L.Callback):
    """Notes, a batch: dropout masks, the global generator, reductions of whole numbers and of gradients."""

    def __init__(self) -> None:
        self.masks: list[list[bool]] = []
        self.generator_moved: list[bool] = []
        self.sums: list[int] = []
        self.gradients: list[int] = []
        self._count = [0, 0]

    def on_train_start(self, trainer, pl_module) -> None:
        dropout = pl_module.backbone.esm.encoder.layer[0].attention.self.query.lora_dropout["default"]
        dropout.register_forward_hook(lambda _, given, out: self.masks.append((out == 0).flatten()[:600].tolist()))
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(self, _mean_and_note)
            self._all_reduce, dist.all_reduce = dist.all_reduce, self._noting
        else:
            trainer.strategy.reduce = None  # an error if it is called

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.world_size > 1:
            dist.all_reduce = self._all_reduce
        else:
            del trainer.strategy.reduce

    def _noting(self, tensor: torch.Tensor, *more: Any, **options: Any) -> Any:
        self._count[0] += not tensor.is_floating_point() and tensor.numel() > 1  # of one: "is that file there?"
        return self._all_reduce(tensor, *more, **options)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._state, self._count = torch.get_rng_state(), [0, 0]

    def look(self) -> None:
        self.generator_moved.append(not torch.equal(self._state, torch.get_rng_state()))
        for numbers, count in zip((self.sums, self.gradients), self._count, strict=True):
            numbers.append(count)


def _mean_and_note(observer: Observer, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    observer._count[1] += 1
    sum_ = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return sum_.then(lambda done: done.value()[0] / dist.get_world_size())


def observe(tiny_esm: Path, folders: Folders, world: int, resume: Path | None = None, **options: Any) -> dict[str, Any]:
    observer, budget, flops = Observer(), TokenBudget(options.pop("tokens", 4 * STEP)), FlopsMeter()
    saver = KeepAll(dirpath="kept", monitor=None, last_every_n_steps=2)
    processes = {"strategy": "ddp", "devices": world, "use_distributed_sampler": False} if world > 1 else {}
    options = {"enable_checkpointing": True, "limit_val_batches": 0, "max_steps": 4, **processes, **options}
    counting = (LossGuard(), budget, flops, ThroughputMeter(), saver)
    look = L.pytorch.callbacks.LambdaCallback(on_train_batch_end=lambda *_: observer.look())  # when others are done
    runner = trainer(Path.cwd(), observer, *counting, look, **options)
    module = ContactModule(str(tiny_esm), lora=LoraOptions(dropout=0.5))
    runner.fit(module, data_module(folders, batch_size=2), ckpt_path=resume)
    seen = {name: getattr(observer, name) for name in ("masks", "generator_moved", "sums", "gradients")}
    return {**seen, "tokens": budget.tokens, "flops": flops.total, "shapes": flops.by_shape}


class OddInOneProcess(ContactModule):
    """The loss of batch 1 is not finite in the second process."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * (
            float("inf") if (self.global_rank, batch_idx) == (1, 1) else 1
        )


class Unchanged(L.Callback):
    """Notes after each batch whether this process's parts of the weights are as they were."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def _parts(self, module: L.LightningModule) -> list[torch.Tensor]:
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        assert all(hasattr(weight, "to_local") for weight in weights)
        return [weight.to_local().detach().clone() for weight in weights]  # type: ignore[operator]  # DTensors

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.before = self._parts(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(all(map(torch.equal, self.before, self._parts(pl_module))))


def guarded(tiny_esm: Path, folders: Folders) -> tuple[list[bool], int]:
    """Train with weights that are spread over both processes, one of which has a bad batch."""
    guard, unchanged = LossGuard(), Unchanged()
    strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
    options = {"max_steps": 3, "limit_val_batches": 0, "gradient_clip_val": 0.5, "use_distributed_sampler": False}
    runner = trainer(Path.cwd(), guard, unchanged, strategy=strategy, devices=2, **options)
    runner.fit(OddInOneProcess(str(tiny_esm)), data_module(folders, batch_size=2))
    return unchanged.seen, guard.skipped


def observe_all(tiny_esm: Path, folders: Folders) -> dict[str, dict[str, Any]]:
    torch.manual_seed(0)
    runs = {"whole": observe(tiny_esm, folders, 2)}
    torch.manual_seed(1)
    runs["resumed"] = observe(tiny_esm, folders, 2, Path("kept/2-batch.ckpt"))
    runs["accumulated"] = observe(tiny_esm, folders, 2, accumulate_grad_batches=2, tokens=2 * STEP)
    runs["unlimited"] = observe(tiny_esm, folders, 2, accumulate_grad_batches=2, max_steps=1, tokens=None)
    runs["whole"]["guarded"] = guarded(tiny_esm, folders)
    return runs


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path, pdb_folders: Folders
) -> list[dict[str, dict[str, Any]]]:
    return run_ranks(observe_all, 2, tiny_esm, pdb_folders, folder=tmp_path_factory.mktemp("observed"))


@pytest.mark.slow
def test_masks_follow_from_seed_step_and_process(observed: list[dict[str, dict[str, Any]]]) -> None:
    masks = [mask for rank in observed for mask in rank["whole"]["masks"]]
    assert len(masks) == 8 and all(0.4 < sum(mask) / len(mask) < 0.6 for mask in masks)
    for n, mask in enumerate(masks):
        for other in masks[:n]:  # independent: half of the places agree
            assert 0.35 < sum(a == b for a, b in zip(mask, other, strict=True)) / len(mask) < 0.65
    for rank in observed:
        assert rank["resumed"]["masks"] == rank["whole"]["masks"][2:]
        assert not any(moved for run in rank.values() for moved in run["generator_moved"])


@pytest.mark.slow
def test_a_step_has_one_reduction_of_what_is_counted(observed: list[dict[str, dict[str, Any]]]) -> None:
    for rank in observed:
        assert rank["whole"]["sums"] == [1, 1, 1, 1]
        assert rank["accumulated"]["sums"] == [1, 1]  # the budget must know at each batch whether it is the last
        assert rank["unlimited"]["sums"] == [0, 1]
        for name, run in rank.items():
            batches = 4 if name in ("whole", "resumed") else 2
            assert run["tokens"] == batches * STEP, name
            assert run["flops"] == batches * 2 * sum(run["shapes"].values()), name


@pytest.mark.slow
def test_accumulated_gradients_are_reduced_once_a_step(observed: list[dict[str, dict[str, Any]]]) -> None:
    for rank in observed:
        buckets = rank["whole"]["gradients"][0]
        assert buckets > 0 and rank["whole"]["gradients"] == [buckets] * 4
        assert rank["accumulated"]["gradients"] == rank["unlimited"]["gradients"] == [0, buckets]


def test_one_process_reduces_nothing(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for accumulate in (1, 2):
        seen = observe(tiny_esm, pdb_folders, 1, accumulate_grad_batches=accumulate, tokens=2 * STEP)
        assert seen["tokens"] == 2 * STEP and not any(seen["generator_moved"])
        assert seen["flops"] == 4 * sum(seen["shapes"].values())


@pytest.mark.slow
def test_all_processes_skip_what_is_not_finite_in_one_of_their_parts(
    observed: list[dict[str, dict[str, Any]]],
) -> None:
    assert [rank["whole"]["guarded"] for rank in observed] == [([False, True, False], 1)] * 2
