"""Accumulated gradients of a model whose weights are spread over two processes (FSDP2): the same, reduced when due."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy

from contactlm import ContactModule
from contactlm.model.lora import LoraOptions
from tests.callbacks.test_callbacks import data_module, trainer
from tests.devices.commands import Folders
from tests.processes import run_ranks

KINDS: dict[str, LoraOptions | None] = {"adapters": LoraOptions(dropout=0.0), "all weights": None}
LAYERS = 2
REDUCE = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"  # torch's name


class Reductions(L.Callback):
    """Counts, a batch, how often gradients are reduced."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self._reduce = getattr(dist, REDUCE)
        setattr(dist, REDUCE, self._noting)

    def on_train_end(self, trainer, pl_module) -> None:
        setattr(dist, REDUCE, self._reduce)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.counts.append(0)

    def _noting(self, *given: Any, **options: Any) -> Any:
        self.counts[-1] += 1
        return self._reduce(*given, **options)


def accumulate(tiny_esm: Path, folders: Folders, world: int) -> dict[str, tuple[list[int], dict[str, torch.Tensor]]]:
    """Reductions of each batch, and weights, after an epoch of three batches: a step of two and one of one."""
    results = {}
    for kind, lora in KINDS.items():
        reductions, options = Reductions(), dict[str, Any]()
        if world > 1:
            strategy = ModelParallelStrategy(world, 1, save_distributed_checkpoint=False)
            options = {"strategy": strategy, "devices": world, "use_distributed_sampler": False}
        runner = trainer(
            Path.cwd(), reductions, max_steps=2, limit_val_batches=0, accumulate_grad_batches=2,
            gradient_clip_val=1.0, num_sanity_val_steps=0, **options,
        )  # fmt: skip
        torch.manual_seed(0)
        module = ContactModule(str(tiny_esm), lora=lora, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5))
        runner.fit(module, data_module(folders, batch_size=4 // world))
        trained = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
        whole = {name: getattr(weight, "full_tensor", lambda w=weight: w)() for name, weight in trained.items()}
        results[kind] = (reductions.counts, whole)
    return results


@pytest.mark.slow
def test_adapters_gradients_are_reduced_once_a_step_and_those_of_all_weights_never_kept_whole(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = run_ranks(accumulate, 2, tiny_esm, pdb_folders, 2, folder=tmp_path)
    monkeypatch.chdir(tmp_path)
    one = accumulate(tiny_esm, pdb_folders, 1)
    for rank in ranks:
        assert rank["adapters"][0] == [0, LAYERS + 1, LAYERS + 1]  # the layers, and what is beside them
        assert rank["all weights"][0] == [LAYERS + 1] * 3
        for kind in KINDS:
            assert rank[kind][1].keys() == one[kind][1].keys()
            for name, weight in one[kind][1].items():
                torch.testing.assert_close(rank[kind][1][name], weight, atol=1e-5, rtol=1e-5)
