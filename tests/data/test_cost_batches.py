"""Training on batches of bounded cost: the command, resuming in mid-epoch, and what a protein counts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from contactlm import ContactModule
from contactlm.cli.main import main
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.loaders import collate_weighted
from tests.callbacks.test_callbacks import data_module
from tests.cli.test_cli import data_options
from tests.data.test_crop import store_of
from tests.runs.test_resume import run

OPTIONS: dict[str, Any] = {"crop": "whole", "batch_tokens": 130, "weights": "cluster"}


def budget_of(folders: tuple[Path, Path], steps: int) -> int:
    """Tokens of so many batches."""
    data = data_module(folders, **OPTIONS)
    data.setup("fit")
    loader = data.train_dataloader()
    sizes: list[int] = []
    for epoch in range(steps):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        sizes += [batch["tokens"].numel() for batch in loader]
    assert 3 < len(loader) < steps  # a run of so many steps ends in mid-epoch
    return sum(sizes[:steps])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_mid_epoch_gives_the_unbroken_run(
    tmp_path: Path, tiny_esm: Path, pdb_folders: tuple[Path, Path], workers: int
) -> None:
    steps = 9
    tokens = budget_of(pdb_folders, steps)
    whole, module, *_ = run(tmp_path / "whole", tiny_esm, pdb_folders, tokens, **OPTIONS)
    assert len(whole.losses) == steps and len({len(batch) for batch in whole.samples}) > 1
    for stop in (2, 6, 7) if workers == 0 else (5,):
        checkpoint = tmp_path / "whole" / f"step={stop}.ckpt"
        again, resumed, *_ = run(
            tmp_path / f"again{stop}", tiny_esm, pdb_folders, tokens, checkpoint, num_workers=workers, **OPTIONS
        )
        assert again.samples == whole.samples[stop:], f"resumed at step {stop}"
        assert again.losses == whole.losses[stop:], f"resumed at step {stop}"
        for name, weight in module.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], weight), name


def test_every_protein_counts_the_same(tiny_esm: Path) -> None:
    # no dropout, and float64: gradients of batches of other shapes are to be compared
    module = ContactModule(str(tiny_esm)).eval().double()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    dataset = CropDataset(store_of(30, 34, 38, 42, 60), 0, "whole", shuffle=False)
    samples = [dataset[n] for n in range(5)]
    module.training_step(dict(collate(samples)), 0).backward()
    expected = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    module.zero_grad()
    for part in (samples[:4], samples[4:]):
        (module.training_step(dict(collate_weighted(part, mean_size=2.5)), 0) / 2).backward()
    found = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-12)


@pytest.mark.slow
def test_fit_on_batches_of_bounded_cost(
    tmp_path: Path,
    tiny_esm: Path,
    pdb_folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    fit = ["fit", "--config=crop200", *data_options(pdb_folders), f"--model.pretrained={tiny_esm}"]
    more = ["--trainer.accelerator=cpu", "--trainer.val_check_interval=2", "--budget.max_tokens=500"]
    more.append("--dashboard.lengths=[]")
    wanted = ["--data.crop", "whole", "--data.batch_tokens", "3000", "--data.weights", "cluster"]
    assert main([*fit, *more, *wanted]) == 0
    shown = capsys.readouterr()
    assert "batches of at most 3000 tokens" in shown.err and "padding" in shown.err
    assert "an epoch is one chain of each of" in shown.err
    assert "mcc_sep6" in shown.out
    assert main([*fit, *more, "--data.batch_tokens=3000", "--data.batch_pairs=3000"]) == 1
    assert "give one of them" in capsys.readouterr().err
