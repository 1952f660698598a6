import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from contactlm import ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, TokenBudget
from contactlm.types import DataError
from tests.callbacks.test_callbacks import data_module, trainer
from tests.conftest import random_sequence, write_pdb


class Record(L.Callback):
    """Notes what was trained on: samples and losses."""

    def __init__(self) -> None:
        self.samples: list[list[tuple[str, int]]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.samples.append(list(zip(batch["ids"], batch["starts"].tolist(), strict=True)))
        self.losses.append(float(outputs["loss"]))


def run(
    path: Path,
    tiny_esm: Path,
    folders: tuple[Path, Path],
    tokens: int,
    resume: Path | None = None,
    module_class: type[ContactModule] = ContactModule,
    **options,
):
    record, budget, flops = Record(), TokenBudget(tokens), FlopsMeter()
    torch.manual_seed(0 if resume is None else 1)  # a resumed run gets its random state from the checkpoint
    module = module_class(str(tiny_esm))
    saver = ModelCheckpoint(path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    data = data_module(folders, batch_size=3, **options)
    runner = trainer(
        path, record, budget, flops, saver, ContactEvaluation(), enable_checkpointing=True, val_check_interval=2,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    runner.fit(module, data, ckpt_path=resume)
    return record, module, budget, flops


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_at_any_step_gives_the_unbroken_run(tmp_path: Path, tiny_esm: Path, pdb_folders, workers: int) -> None:
    steps = 10  # an epoch has 4 batches: 11 chains, 3 a batch
    tokens = steps * 3 * 32
    whole, module, budget, flops = run(tmp_path / "whole", tiny_esm, pdb_folders, tokens)
    assert len(whole.losses) == steps
    for stop in (1, 3, 4, 6, 8) if workers == 0 else (6,):
        checkpoint = tmp_path / "whole" / f"step={stop}.ckpt"
        again, resumed, budget_2, flops_2 = run(
            tmp_path / f"again{stop}", tiny_esm, pdb_folders, tokens, checkpoint, num_workers=workers
        )
        assert again.samples == whole.samples[stop:], f"resumed at step {stop}"
        assert again.losses == whole.losses[stop:], f"resumed at step {stop}"
        assert (budget_2.tokens, flops_2.total) == (budget.tokens, flops.total)
        for name, weight in module.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("name", "value", "first"),
    [("seed", 7, 0), ("split_seed", 7, 0), ("dev_fraction", 0.5, 0.1), ("split", "random", "cluster")],
)
def test_a_run_does_not_go_on_under_another_seed_or_split(
    tmp_path: Path, tiny_esm: Path, pdb_folders, name: str, value: Any, first: Any
) -> None:
    other: dict[str, Any] = {name: value}
    run(tmp_path / "first", tiny_esm, pdb_folders, 2 * 3 * 32)
    checkpoint = tmp_path / "first" / "step=1.ckpt"
    with pytest.raises(DataError, match=rf"{name}\w* is {value}, but {first} in the run to resume .*step=1.ckpt"):
        run(tmp_path / "again", tiny_esm, pdb_folders, 2 * 3 * 32, checkpoint, **other)
    module, data = ContactModule(str(tiny_esm)), data_module(pdb_folders, **other)
    trainer(tmp_path / "test", ContactEvaluation()).test(module, data, ckpt_path=checkpoint, verbose=False)


@pytest.mark.slow
def test_a_run_that_goes_on_with_other_chains_says_so(
    tmp_path: Path, tiny_esm: Path, pdb_folders, caplog: pytest.LogCaptureFixture
) -> None:
    folders = shutil.copytree(pdb_folders[0], tmp_path / "train"), pdb_folders[1]
    run(tmp_path / "first", tiny_esm, folders, 2 * 3 * 32)
    checkpoint = tmp_path / "first" / "step=1.ckpt"
    run(tmp_path / "again", tiny_esm, folders, 2 * 3 * 32, checkpoint)
    assert "was trained on" not in caplog.text
    write_pdb(folders[0] / "t99.pdb", {"A": random_sequence(99, 50)}, seed=99)
    run(tmp_path / "more", tiny_esm, folders, 2 * 3 * 32, checkpoint)
    assert "was trained on 11 chains" in caplog.text and "and now has 12" in caplog.text
    # what was trained on other chains stays so
    caplog.clear()
    run(tmp_path / "on", tiny_esm, folders, 3 * 3 * 32, tmp_path / "more" / "step=2.ckpt")
    assert "was trained on 11 chains" in caplog.text
