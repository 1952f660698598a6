"""Lightning's callbacks that freeze and unfreeze: what a checkpoint holds does not follow from the moment."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning

from contactlm import ContactModule, ContrastiveModule
from contactlm.callbacks import TokenBudget
from contactlm.model.lora import LoraOptions
from contactlm.modules.base import MapModule
from tests.callbacks.test_callbacks import data_module, trainer
from tests.runs.test_interruption import KeepAll

Folders = tuple[Path, Path]
TOKENS = 6 * 4 * 32  # two epochs of three batches


class Warm(BaseFinetuning):
    """Trains the head alone for an epoch, and then what the module was made to train."""

    def freeze_before_training(self, pl_module) -> None:
        self.names = [
            n for n, weight in pl_module.named_parameters() if weight.requires_grad and "contact_head" not in n
        ]
        for name in self.names:
            pl_module.get_parameter(name).requires_grad_(False)

    def finetune_function(self, pl_module, epoch: int, optimizer) -> None:
        if epoch == 1:
            weights = [pl_module.get_parameter(name).requires_grad_(True) for name in self.names]
            optimizer.add_param_group({"params": weights, "lr": 0.01})


class Thaw(Warm):
    """Trains all query weights from the second epoch on, those under the adapters, too."""

    def freeze_before_training(self, pl_module) -> None:
        self.names = [name for name, _ in pl_module.named_parameters() if name.endswith("query.base_layer.weight")]


def fit(module: MapModule, callback: Any, folders: Folders, path: Path, resume: Path | None = None) -> MapModule:
    saver = KeepAll(dirpath=path, monitor=None, last_every_n_steps=1)
    options = {"num_sanity_val_steps": 0, "limit_val_batches": 0, "enable_checkpointing": True}
    runner = trainer(path, TokenBudget(TOKENS), callback, saver, **options)
    torch.manual_seed(0)
    runner.fit(module, data_module(folders), ckpt_path=resume)
    return module


CASES = {
    "contrastive": (lambda esm: ContrastiveModule(esm, lora=None), lambda: BackboneFinetuning(1, lambda epoch: 1.0)),
    "all weights": (lambda esm: ContactModule(esm, lora=None), Warm),
    "adapters": (lambda esm: ContactModule(esm, lora=LoraOptions()), Warm),
    "thawed": (lambda esm: ContactModule(esm, lora=LoraOptions()), Thaw),
}


@pytest.mark.parametrize("case", CASES)
def test_frozen_and_unfrozen_weights_are_saved_and_loaded(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, case: str
) -> None:
    make, callback = CASES[case][0], CASES[case][1]
    trained = fit(make(str(tiny_esm)), callback(), pdb_folders, tmp_path / "whole")
    saved = [torch.load(tmp_path / "whole" / f"{step}-batch.ckpt", weights_only=True) for step in (2, 6)]
    frozen, last = (checkpoint["state_dict"] for checkpoint in saved)
    fresh = make(str(tiny_esm))
    more = {"contrastive": "contact_head", "thawed": "query.base_layer.weight"}.get(case, "-")  # unfrozen beyond that
    assert fresh.saved_names() == {name for name in last if more not in name} < last.keys() | {"-"}
    before, after = fresh.state_dict(), trained.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in last if "head" not in name)
    if case != "thawed":
        assert frozen.keys() == fresh.saved_names()
        held = [name for name in frozen if "head" not in name and "projection" not in name]
        assert held and all(torch.equal(frozen[name], before[name]) for name in held)  # no word of the second epoch yet
    loaded = type(fresh).load_from_checkpoint(tmp_path / "whole/6-batch.ckpt")
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, after[name]), name


def test_a_run_that_was_frozen_goes_on(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    make, callback = CASES["contrastive"]
    whole = fit(make(str(tiny_esm)), callback(), pdb_folders, tmp_path / "whole")
    for step in (2, 5):
        path = tmp_path / "whole" / f"{step}-batch.ckpt"
        again = fit(make(str(tiny_esm)), callback(), pdb_folders, tmp_path / f"again{step}", path)
        for name, weight in whole.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight), (step, name)
