"""What a run leaves in `run.json`, and that the same command leaves the same."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from contactlm import ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, RunRecord, TokenBudget
from contactlm.callbacks.flops import flop_counter
from contactlm.callbacks.record import scheme_facts, weights_facts
from contactlm.cli.main import main
from contactlm.data.batches import CostBound
from contactlm.data.training_set import fingerprint
from contactlm.runs.record_file import read_run, write_run
from contactlm.types import ContactLMError
from tests.callbacks.test_callbacks import data_module, trainer

Folders = tuple[Path, Path]
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
BATCH = 4 * 32  # tokens


def fit(
    path: Path,
    tiny_esm: Path,
    folders: Folders,
    tokens: int,
    *more: L.Callback,
    ckpt: Path | None = None,
    **options: Any,
) -> tuple[L.Trainer, dict[str, Any]]:
    """A run with a record: (the trainer, its record as it was written)."""
    record = RunRecord()
    torch.manual_seed(0)
    logger = CSVLogger(path, name="arm", version=0)
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0} | options
    counters = (TokenBudget(tokens), FlopsMeter(), ContactEvaluation())
    runner = trainer(path, *counters, record, *more, logger=logger, **options)
    runner.fit(ContactModule(str(tiny_esm)), data_module(folders), ckpt_path=ckpt)
    return runner, read_run(path / "arm" / "version_0")


def test_sums_scores_and_history(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    runner, written = fit(tmp_path, tiny_esm, pdb_folders, 5 * BATCH, accumulate_grad_batches=2)
    assert (written["status"], written["arm"], written["seed"]) == ("finished", "arm", 0)
    assert (written["tokens"], written["residues"]) == (5 * BATCH, 5 * 4 * 30)
    assert written["steps"] == runner.global_step
    assert [row["tokens"] for row in written["dev_history"]] == [2 * BATCH, 4 * BATCH, 5 * BATCH]
    assert written["dev_history"][-1]["mcc_sep6"] == float(runner.callback_metrics["dev/mcc_sep6"])
    assert written["progress"][-1]["tokens"] == 5 * BATCH
    seconds, memory = written["seconds"], written["memory"]
    assert seconds["training"] > 0 and seconds["evaluation"] > 0
    assert seconds["training"] + seconds["evaluation"] < seconds["total"]
    assert 2**26 < memory["training"] <= memory["peak"] < 2**40  # bytes: a process with torch takes 64 MiB at least
    module = ContactModule(str(tiny_esm))
    assert written["trained_parameters"] == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert written["optimizer"] == [{"optimizer": "Adam", "lr": 1e-4}]

    runner.test(runner.lightning_module, datamodule=runner.datamodule, verbose=False)  # type: ignore[attr-defined]  # a connector sets it
    tested = read_run(tmp_path / "arm" / "version_0")
    assert tested["test"]["mcc_sep6"] == float(runner.callback_metrics["test/mcc_sep6"])
    assert tested["test"]["trivial_mcc"] == float(runner.callback_metrics["test/trivial_mcc"])
    assert tested["tokens"] == 5 * BATCH and tested["dev_history"] == written["dev_history"]


def test_looks_at_a_model_that_was_not_trained_belong_to_its_run(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders
) -> None:
    runner, untrained = fit(tmp_path, tiny_esm, pdb_folders, BATCH, max_steps=0)
    assert (untrained["tokens"], untrained["flops"], untrained["memory"]["training"]) == (0, 0, None)
    data = runner.datamodule  # type: ignore[attr-defined]  # a connector sets it
    runner.validate(runner.lightning_module, datamodule=data, verbose=False)
    runner.test(runner.lightning_module, datamodule=data, verbose=False)
    written = read_run(tmp_path / "arm" / "version_0")
    assert (written["command"], written["equal"]) == ("fit", untrained["equal"])
    assert written["equal"]["budget"] == BATCH and written["equal"]["train"]["chains"] > 0
    assert written["dev"]["proteins"] and written["test"]["proteins"] == 3
    assert 0 < written["seconds"]["evaluation"] <= written["seconds"]["total"]


def test_forward_flops_are_those_of_the_forward_pass(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    _, written = fit(tmp_path, tiny_esm, pdb_folders, 3 * BATCH)
    module = ContactModule(str(tiny_esm))
    with flop_counter() as counter:
        module.contact_logits(torch.randint(4, 24, (4, 32)))
    assert written["forward_flops"] == 3 * counter.get_total_flops()
    assert written["flops"] > 2 * counter.get_total_flops()


def test_a_resumed_run_goes_on_with_sums_and_history(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    runner, first = fit(tmp_path / "first", tiny_esm, pdb_folders, 4 * BATCH)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    _, resumed = fit(tmp_path / "again", tiny_esm, pdb_folders, 6 * BATCH, ckpt=tmp_path / "a.ckpt")
    _, whole = fit(tmp_path / "whole", tiny_esm, pdb_folders, 6 * BATCH)
    for name in ("tokens", "residues", "steps", "flops", "forward_flops", "progress"):
        assert resumed[name] == whole[name], name
    assert [row["tokens"] for row in resumed["dev_history"]] == [row["tokens"] for row in whole["dev_history"]]
    assert resumed["dev_history"][: len(first["dev_history"])] == first["dev_history"]
    assert resumed["equal"] == whole["equal"]
    assert resumed["seconds"]["training"] > first["seconds"]["training"]


def test_scores_of_a_checkpoint_are_those_of_the_seed_it_was_trained_with(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders
) -> None:
    options: dict[str, Any] = {"logger": CSVLogger(tmp_path, name="arm", version=1)}
    counters = (TokenBudget(2 * BATCH), FlopsMeter(), ContactEvaluation())
    first = trainer(tmp_path, *counters, RunRecord(), **options)
    first.fit(ContactModule(str(tiny_esm)), data_module(pdb_folders, seed=7))
    first.save_checkpoint(tmp_path / "a.ckpt")
    options["logger"] = CSVLogger(tmp_path, name="arm", version=2)
    second = trainer(tmp_path, *counters, RunRecord(), **options)
    second.test(ContactModule(str(tiny_esm)), data_module(pdb_folders), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    fitted, tested = (read_run(tmp_path / "arm" / f"version_{version}") for version in (1, 2))
    assert (fitted["seed"], tested["seed"]) == (7, 7)
    assert tested["tokens"] == fitted["tokens"] == 2 * BATCH


class Break(L.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 3:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("full"), "failed: RuntimeError"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_breaks_off_says_so(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, error: BaseException, status: str
) -> None:
    with pytest.raises((type(error), SystemExit)):  # Lightning ends the process after Ctrl-C
        fit(tmp_path, tiny_esm, pdb_folders, 9 * BATCH, Break(error))
    written = read_run(tmp_path / "arm" / "version_0")
    assert (written["status"], written["tokens"]) == (status, 3 * BATCH)
    assert len(written["dev_history"]) == 1


def test_what_should_be_equal_shows_what_was_changed(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    def terms(name: str, window: int = 1022, tokens: int = BATCH, **data: Any) -> dict[str, Any]:
        record = RunRecord()
        runner = trainer(tmp_path, TokenBudget(tokens), record, logger=CSVLogger(tmp_path, name=name, version=0))
        runner.fit(ContactModule(str(tiny_esm), window=window), data_module(pdb_folders, **data))
        return read_run(tmp_path / name / "version_0")["equal"]

    plain = terms("plain")
    assert plain == terms("other_crops", crop_length=20, batch_size=2)  # arms may differ in these
    changed: dict[str, tuple[dict[str, Any], set[str]]] = {
        "dev split": ({"split_seed": 1}, {"split_seed", "train", "dev"}),
        "budget": ({"tokens": 2 * BATCH}, {"budget"}),
        "window": ({"window": 500}, {"window"}),
        "chains": ({"min_length": 45}, {"min_length", "train", "dev", "test"}),
    }
    for name, (options, names) in changed.items():
        other = terms(name, **options)
        assert {key for key in plain if plain[key] != other[key]} <= names, name
        assert any(plain[key] != other[key] for key in names), name


def test_the_fingerprint_of_a_set_does_not_depend_on_its_order() -> None:
    pairs = [("a", 10), ("b", 20), ("c", 30)]
    assert fingerprint(pairs) == fingerprint(pairs[::-1])
    assert len({fingerprint(p) for p in (pairs, pairs[:2], [("a", 11), *pairs[1:]], [("d", 10), *pairs[1:]])}) == 4


def test_records_are_plain_json_and_damage_is_told(tmp_path: Path) -> None:
    path = write_run(tmp_path, {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": None}})
    assert json.loads(path.read_text()) == {"format": 1, "a": None, "b": [1.5, None], "c": {"d": None}}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ContactLMError, match="cannot be read"):
        read_run(tmp_path)
    path.write_text('{"format": 99}')
    with pytest.raises(ContactLMError, match="format 99"):
        read_run(tmp_path)
    path.unlink()
    with pytest.raises(ContactLMError, match="not a run directory"):
        read_run(tmp_path)


def test_weights_that_no_one_has_trained_are_called_random(tmp_path: Path, tiny_esm: Path) -> None:
    module = ContactModule(str(tiny_esm))  # a directory as any other, of weights as they are initialised
    assert weights_facts(module)["weights"] == "random"
    assert weights_facts(ContactModule(None, SMALL))["weights"] == "random"
    for layer in module.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.normal_(layer.bias)
            break
    assert weights_facts(module) == {"weights": "pretrained", "backbone": module.backbone_checksum}


def test_a_resumed_run_still_says_what_it_began_with(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    written = []
    for part, ckpt in (("a", None), ("b", tmp_path / "a.ckpt")):
        record = RunRecord()
        runner = trainer(tmp_path, TokenBudget(BATCH), record, logger=CSVLogger(tmp_path, name=part, version=0))
        module = ContactModule(str(tiny_esm), lora=None)  # all weights are trained
        runner.fit(module, data_module(pdb_folders), ckpt_path=ckpt)
        runner.save_checkpoint(tmp_path / "a.ckpt")
        written.append(read_run(tmp_path / part / "version_0")["equal"])
    assert weights_facts(module)["weights"] == "pretrained"  # as it would seem from the weights by now
    assert written[0] == written[1] and written[1]["weights"] == "random"


def losses(path: Path) -> list[str]:
    with path.open(newline="") as handle:
        return [row["train/loss"] for row in csv.DictReader(handle) if row["train/loss"]]


@pytest.mark.slow
def test_the_same_command_and_seed_give_the_same_curves(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    command = ["fit", "--config=crop200", f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}"]
    command += ["--data.read_workers=0", "--data.min_length=10", "--data.crop_length=30", "--data.batch_size=4"]
    command += [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--trainer.val_check_interval=3"]
    command += [f"--budget.max_tokens={8 * BATCH}", "--dashboard.lengths=[]", "--trainer.log_every_n_steps=1"]
    for seed in (5, 5, 6):
        assert main([*command, f"--seed_everything={seed}"]) == 0
    runs = [tmp_path / "runs" / "crop200" / f"version_{i}" for i in range(3)]
    first, second, other = (losses(run / "metrics.csv") for run in runs)
    assert len(first) == 8 and first == second and first != other  # every digit, as text
    records = [read_run(run) for run in runs]
    for name in ("dev_history", "progress", "test", "equal"):
        assert records[0][name] == records[1][name], name
    assert records[0]["equal"] == records[2]["equal"]
    assert [record["seed"] for record in records] == [5, 5, 6]
    assert records[0]["tested_at"]["tokens"] in [row["tokens"] for row in records[0]["dev_history"]]


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, record: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    warnings: list[str] = []
    monkeypatch.setattr("contactlm.callbacks.record.write_run", full)
    monkeypatch.setattr(
        "contactlm.runs.checkpoint_io.log.warning", lambda text, *values: warnings.append(text % values)
    )
    record = RunRecord()
    record._folder = tmp_path
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    for _ in range(3):
        record._write(SimpleNamespace(is_global_zero=True), module, "running")  # type: ignore[arg-type]
    text = f"{tmp_path / 'run.json'} cannot be written (No space left on device); the run continues without it"
    assert warnings == [text] * 3  # the next write may find room


def test_batches_by_cost_are_told_by_their_bound() -> None:
    data = SimpleNamespace(crop="whole", crop_length=200, batch_size=16, bound=CostBound("tokens", 2048))
    facts = scheme_facts(SimpleNamespace(datamodule=data, accumulate_grad_batches=1))  # type: ignore[arg-type]  # that is all it looks at
    assert facts["batch_tokens"] == 2048 and facts["batch_size"] is None
    data.bound = None
    facts = scheme_facts(SimpleNamespace(datamodule=data, accumulate_grad_batches=1))  # type: ignore[arg-type]  # likewise
    assert facts["batch_size"] == 16 and "batch_tokens" not in facts
