"""The experiment of tests/benchmarks/bench_samples.py: its runs are those of the command line, at every budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from contactlm.cli.main import main
from contactlm.runs.record_file import read_run
from tests.benchmarks.bundles import write_bundles
from tests.benchmarks.sample_runs import SCORES, Arm, World, train

OPTIONS = {"n_train": 24, "n_test": 3, "min_length": 60, "max_length": 90}
HAIRPINS = World("hairpins", OPTIONS)
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
FROM_SCRATCH = World("hairpins", OPTIONS, architecture=TINY)  # where the head has a rate of its own
CROPS = Arm("crops", "crop40", "random", 40, 4, 1, 3e-3)
WHOLE = Arm("whole", "whole", "cut", 1020, 1, 4, 3e-3)
BUDGETS = (1_000, 1_200, 2_400)
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BACKBONE, LONG = BENCHMARKS / "backbone", BENCHMARKS / "synthetic_long.yaml"
CHECKSUM = "86ba6e12239633e1db613da187b6c221cc7a0d2604586aade772fd1d56b0a5c7"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "world"), [(CROPS, HAIRPINS), (WHOLE, HAIRPINS), (WHOLE, FROM_SCRATCH)], ids=["crops", "whole", "scratch"]
)
def test_one_run_gives_the_scores_of_every_smaller_budget(
    arm: Arm, world: World, tiny_esm: Path, tmp_path: Path
) -> None:
    """Also where a budget ends within an accumulated step, which is then taken with what there is."""
    backbone = None if world is FROM_SCRATCH else tiny_esm
    at_once = train(arm, world, backbone, 1, BUDGETS, tmp_path, test=True)
    for budget, row in zip(BUDGETS, at_once, strict=True):
        (alone,) = train(arm, world, backbone, 1, (budget,), tmp_path, test=True)
        same = [name for name in row if name != "seconds"]
        assert {name: alone[name] for name in same} == {name: row[name] for name in same}
    assert len({row["test_auprc_sep6"] for row in at_once}) == len(BUDGETS)
    if arm is WHOLE:
        chains = [
            (row["tokens"] - row["residues"]) // 2 for row in at_once
        ]  # each has two special tokens, none padding
        assert any(row["steps"] * arm.accumulate > n for row, n in zip(at_once, chains, strict=True))


@pytest.mark.slow
def test_a_run_is_that_of_the_command_line(tiny_esm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ours,) = train(CROPS, HAIRPINS, tiny_esm, 1, (1_000,), tmp_path, test=True)
    monkeypatch.chdir(tmp_path)
    options = {
        "seed_everything": 1,
        "data.train_dir": HAIRPINS.folder(tmp_path) / "train",
        "data.test_dir": HAIRPINS.folder(tmp_path) / "test",
        "data.crop_length": CROPS.crop_length,
        "data.batch_size": CROPS.batch_size,
        "data.cache_dir": tmp_path / "cache",
        "model.pretrained": tiny_esm,
        "budget.max_tokens": 1_000,
        "trainer.val_check_interval": 1_000,
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    assert main(["fit", f"--config={LONG}", "--config=crop200", *given]) == 0
    theirs = read_run(tmp_path / "runs" / "crop200" / "version_0")
    for name in ("tokens", "steps", "flops"):
        assert ours[name] == theirs[name]
    for role in ("dev", "test"):
        assert {n: ours[f"{role}_{n}"] for n in SCORES} == pytest.approx({n: theirs[role][n] for n in SCORES}, abs=1e-7)


@pytest.mark.slow
def test_the_shipped_backbone_gives_the_scores_it_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerances are for other machines: sums in another order lead the training a little elsewhere."""
    monkeypatch.chdir(tmp_path)
    write_bundles(Path("bundles"), n_train=10, n_test=3, max_length=450)
    data = ["--data.train_dir=bundles/train", "--data.test_dir=bundles/test"]
    data += [f"--model.pretrained={BACKBONE}", "--data.cache_dir=cache", "--trainer.val_check_interval=1000"]
    assert main(["fit", f"--config={LONG}", "--config=crop200", "--budget.max_tokens=30000", *data]) == 0
    run = read_run(tmp_path / "runs" / "crop200" / "version_0")
    assert run["equal"]["backbone"] == CHECKSUM and run["steps"] == 10
    assert run["test"]["mcc_sep6"] == pytest.approx(0.276, abs=0.03)
