"""JacobianModule: the same numbers as stock transformers, calibrated on dev, kept from process to process."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import EsmForMaskedLM, EsmModel

from contactlm import ContactMap, ContactModule, JacobianModule, predict_contacts
from contactlm.alphabet import CLS, EOS, encode
from contactlm.callbacks.prediction_files import read_summary
from contactlm.cli.main import main
from contactlm.maps.contact_map import RANKED
from contactlm.maps.jacobian import categorical_jacobian
from contactlm.modules.export import export_adapter
from contactlm.modules.jacobian import LOGISTIC, Logistic, fit_logistic, ranks
from contactlm.types import ModelError
from tests.conftest import random_sequence
from tests.devices.commands import SHARDED
from tests.maps.test_jacobian import published
from tests.processes import run_ranks, start, wait_until

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
NEVER_READ = ("contact_head", "pooler")


@pytest.fixture
def module(tiny_esm: Path) -> JacobianModule:
    return JacobianModule(str(tiny_esm)).eval()


def tokens_of(sequence: str) -> torch.Tensor:
    return torch.from_numpy(encode(sequence)).long()


def test_esm2_in_float64_is_the_double_loop(tiny_esm: Path) -> None:
    module = JacobianModule(str(tiny_esm)).double().eval()
    tokens = tokens_of(random_sequence(0, 15) + "XUB")
    (made,) = module.chain_maps(["a"], [tokens], module.windows, None)

    def one(row, mask, positions):  # the referee indexes a whole vocabulary
        logits = torch.zeros(*row.shape, 33, dtype=torch.float64)
        logits[..., 4:24] = module.backbone(row, mask, positions)
        return logits

    with torch.no_grad():
        expected = published(one, tokens)
    np.testing.assert_allclose(made.scores.numpy(), expected, rtol=0, atol=1e-10)


def test_stock_transformers_gives_the_same_scores(tiny_esm: Path, module: JacobianModule) -> None:
    """Whose attention, activation and whole vocabulary are its own, in float32."""
    stock = EsmForMaskedLM.from_pretrained(tiny_esm).eval()
    sequence = random_sequence(1, 20)

    def logits(row, mask, positions):
        return stock(row, mask.long()).logits

    expected = categorical_jacobian(logits, tokens_of(sequence))
    (made,) = module.chain_maps(["a"], [tokens_of(sequence)], module.windows, None)
    torch.testing.assert_close(made.scores, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    module.score_fit = Logistic(2.0, -1.0)
    probability = module.predict_map(sequence).probability
    wanted = torch.sigmoid(2 * made.scores - 1).fill_diagonal_(0).numpy()
    np.testing.assert_allclose(probability, wanted, atol=1e-6)


def test_contact_logits_are_those_of_the_maps_padding_aside(module: JacobianModule) -> None:
    sequences = [random_sequence(2, 12), random_sequence(3, 9)]
    rows = torch.full((2, 14), 1)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence) + 2] = torch.cat([torch.tensor([CLS]), tokens_of(sequence), torch.tensor([EOS])])
    for calibration in (None, Logistic(3.0, -2.0)):
        module.score_fit = calibration
        logits = module.contact_logits(rows)
        assert logits.shape == (2, 12, 12) and not logits[1, 9:].any() and not logits[1, :, 9:].any()
        for own, sequence in zip(logits, sequences, strict=True):
            n = len(sequence)
            off = ~torch.eye(n, dtype=torch.bool)
            expected = torch.from_numpy(module.predict_map(sequence).probability)[off]
            torch.testing.assert_close(own[:n, :n].sigmoid()[off], expected, rtol=0, atol=2e-6)


def test_ranks_until_it_is_calibrated(module: JacobianModule, tmp_path: Path) -> None:
    sequence = random_sequence(4, 30)
    first = module.predict_map(sequence, id="a")
    assert first.how["p"] == RANKED and first.is_ranked
    upper = first.probability[np.triu_indices(30, 1)]
    np.testing.assert_allclose(np.sort(upper), (np.arange(435) + 0.5) / 435, atol=1e-6)
    far = first.probability[np.triu_indices(30, 6)]
    assert (far > first.threshold).sum() == 30
    text = first.save(tmp_path / "a.rr").read_text()
    assert f"REMARK p is the {RANKED}\n" in text
    module.score_fit = Logistic(5.0, -1.0)
    second = module.predict_map(sequence, id="a")
    assert not second.is_ranked and second.threshold == 0.5
    assert "REMARK p is" not in second.save(tmp_path / "b.rr").read_text()
    order = np.argsort(upper, kind="stable")
    assert (np.diff(second.probability[np.triu_indices(30, 1)][order]) >= 0).all()


def test_ranks_share_ties() -> None:
    scores = torch.tensor([[0.0, 3, 1], [3, 0, 1], [1, 1, 0]])
    expected = torch.tensor([[0, 5 / 6, 2 / 6], [5 / 6, 0, 2 / 6], [2 / 6, 2 / 6, 0]])
    torch.testing.assert_close(ranks(scores), expected)
    assert torch.equal(ranks(torch.zeros(1, 1)), torch.zeros(1, 1))


def test_the_fit_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for shift, scale, slope in ((0.0, 1.0, 2.0), (5.0, 0.01, 300.0), (-3.0, 40.0, -0.1)):
        x = rng.normal(shift, scale, 4000)
        y = rng.random(4000) < 1 / (1 + np.exp(-(slope * (x - shift) - 2)))
        fit = fit_logistic(torch.from_numpy(x), torch.from_numpy(y))
        assert fit is not None
        referee = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit((x[:, None] - shift) / scale, y)
        expected = referee.predict_proba((x[:, None] - shift) / scale)[:, 1]
        np.testing.assert_allclose(fit.of(torch.from_numpy(x)).numpy(), expected, atol=1e-4)
        np.testing.assert_allclose(fit.of(torch.from_numpy(x)).numpy().mean(), y.mean(), atol=1e-5)


def test_processes_fit_together_what_one_would_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, generator=generator)
    y = torch.rand(900, generator=generator) < torch.sigmoid(2 * x - 1)
    alone = fit_logistic(x, y)
    shares = [slice(0, 0), slice(0, 700), slice(700, 900)]  # one process has none
    import threading

    barrier, sums, fits = threading.Barrier(3), [None] * 3, [None] * 3

    def run(rank: int) -> None:
        def total(own):
            sums[rank] = own
            barrier.wait()
            whole = torch.stack(list(sums)).sum(0)
            barrier.wait()
            return whole

        fits[rank] = fit_logistic(x[shares[rank]], y[shares[rank]], total)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fits[0] == fits[1] == fits[2]
    np.testing.assert_allclose(fits[0], alone, rtol=1e-6)


def test_a_fit_needs_both_classes_and_stands_separation() -> None:
    x = torch.linspace(-1, 1, 50)
    assert fit_logistic(x, x > 2) is None and fit_logistic(x, x < 2) is None
    assert fit_logistic(x[:0], x[:0] > 0) is None
    fit = fit_logistic(x, x > 0)
    assert fit is not None and np.isfinite(fit).all() and fit.slope > 10


# --- options and checkpoints ---


def test_what_cannot_be_is_refused(tiny_esm: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trains nothing"):
        JacobianModule(str(tiny_esm), lora={"r": 4})
    for options in ({"symmetrise": "after"}, {"masked": True}, {"substitutions": 9}):
        with pytest.raises(ModelError, match="takes all substitutions, symmetric before the norm"):
            JacobianModule(str(tiny_esm), **options)
    EsmModel.from_pretrained(tiny_esm, add_pooling_layer=False).save_pretrained(tmp_path / "headless")
    with pytest.raises(ModelError, match=r"headless: no language-model head \(lm_head.bias, .*EsmForMaskedLM"):
        JacobianModule(str(tmp_path / "headless"))


def test_a_random_backbone_will_do() -> None:
    first, again, other = (JacobianModule(None, TINY, init_seed=seed).predict_map("MKTAYIAKQR") for seed in (0, 0, 1))
    assert np.array_equal(first.probability, again.probability)
    assert not np.array_equal(first.probability, other.probability)
    (made,) = predict_contacts(["MKTAYIAKQR"], JacobianModule(None, TINY))
    assert np.array_equal(made.probability, first.probability)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path, pdb_folders: tuple[Path, Path]) -> Path:
    """A fit of no steps by the command line. To be read, not written."""
    folder = tmp_path_factory.mktemp("jacobian")
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--data.read_workers=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["contactlm"])
        patch.setenv("CONTACTLM_CACHE", str(folder / "cache"))
        assert main(["fit", "--config=jacobian", *data, *model]) == 0
        assert main(["test", "--config=jacobian", *data, *model, "--name=raw"]) == 0
    return folder


def scored(run: Path) -> set[str]:
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return {key for row in rows for key, value in row.items() if value}


@pytest.mark.slow
def test_fit_calibrates_on_dev_and_test_reports_what_means_something(flow: Path) -> None:
    run = flow / "runs" / "jacobian" / "version_0"
    fitted = {"dev/mcc_sep6", "test/mcc_sep6", "test/mcc_sep6_tuned", "test/p_at_L_long", "test/auprc_sep6"}
    assert fitted <= scored(run) and "train/loss" not in scored(run)
    raw = scored(flow / "runs" / "raw" / "version_0")
    assert {"test/p_at_L_long", "test/auprc_sep6", "test/trivial_mcc"} <= raw
    assert not [name for name in raw if "mcc" in name and "trivial" not in name] and "test/tuned_threshold" not in raw
    header = (flow / "runs" / "raw" / "version_0" / "test_scores.csv").read_text().splitlines()[0].split(",")
    assert "auprc_sep6" in header and not [name for name in header if "mcc" in name and "trivial" not in name]


@pytest.mark.slow
def test_it_is_an_arm_of_the_report_beside_others(
    flow: Path, tiny_esm: Path, pdb_folders, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    monkeypatch.setenv("CONTACTLM_CACHE", str(flow / "cache"))
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--data.read_workers=0"]
    assert main(["fit", "--config=zeroshot", *data, *model]) == 0
    assert main(["report", "runs", str(flow / "runs"), "--out=report"]) == 0
    with Path("report/table.csv").open() as handle:
        rows = {row["arm"]: row for row in csv.DictReader(handle) if row["row"] == "run"}
    assert rows.keys() == {"jacobian", "raw", "zeroshot"}
    assert all(row["test_p_at_L_long"] and row["test_auprc_sep6"] for row in rows.values())
    assert {arm for arm, row in rows.items() if row["test_mcc_sep6"]} == {"jacobian", "zeroshot"}
    assert rows["jacobian"]["test_mcc_sep6_tuned"] and not rows["raw"]["test_mcc_sep6_tuned"]


@pytest.mark.slow
def test_a_checkpoint_keeps_the_two_numbers(flow: Path) -> None:
    (path,) = flow.rglob("*.ckpt")
    loaded = JacobianModule.load_from_checkpoint(path, weights_only=True)
    kept = torch.load(path, weights_only=True)["state_dict"]
    assert loaded.score_fit == tuple(kept["slope_and_intercept"].tolist())
    assert set(kept) == {"slope_and_intercept"}  # no weights of the backbone
    sequence = random_sequence(8, 20)
    made = predict_contacts(sequence, path)
    assert not made.is_ranked and made.how["p"] == LOGISTIC
    np.testing.assert_allclose(made.probability, loaded.predict_map(sequence).probability, atol=1e-5)
    with pytest.raises(ModelError, match=r"reads its maps from a language-model head, .* give its checkpoint"):
        export_adapter(loaded, path.parent / "adapter")
    with pytest.raises(ModelError, match="holds a language-model head"):
        ContactModule.load_from_checkpoint(path, weights_only=True)


@pytest.mark.slow
def test_a_checkpoint_of_before_that_names_how_is_read(flow: Path, tmp_path: Path) -> None:
    (path,) = flow.rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] |= {"symmetrise": None, "masked": False, "substitutions": None}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    old, new = (JacobianModule.load_from_checkpoint(each, weights_only=True) for each in (tmp_path / "old.ckpt", path))
    assert old.score_fit == new.score_fit is not None


@pytest.mark.slow
def test_predict_with_and_without_a_fit(flow: Path, tiny_esm: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    Path("q.fasta").write_text(f">a\n{random_sequence(5, 25)}\n")
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--data.predict_paths=q.fasta"]
    (checkpoint,) = flow.rglob("*.ckpt")
    assert main(["predict", "--config=jacobian", *model, "--out=raw"]) == 0
    assert main(["predict", *model, f"--ckpt_path={checkpoint}", "--out=fitted"]) == 0
    raw, fitted = (ContactMap.load(f"{out}/a.npz") for out in ("raw", "fitted"))
    assert raw.is_ranked and "logistic" in fitted.how["p"] and raw.how["symmetrise"] == "before"
    models = [read_summary(Path(f"{out}/summary.csv"))["a"]["model"] for out in ("raw", "fitted")]
    assert models[0] != models[1]  # so that ranks are not taken for what a fit would give


def test_training_it_is_refused(tiny_esm: Path, pdb_folders, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    data = [f"--data.train_dir={pdb_folders[0]}", "--data.min_length=10", f"--model.pretrained={tiny_esm}"]
    assert main(["fit", "--config=jacobian", *data, "--trainer.accelerator=cpu", "--trainer.max_steps=5"]) == 1
    assert "the categorical Jacobian trains nothing: give --trainer.max_steps 0" in capsys.readouterr().err


def predict_two(pretrained: str, cache: str) -> None:
    module = JacobianModule(pretrained, cache_dir=cache)
    for seed in (5, 6):
        module.predict_map(random_sequence(seed, 60))


@pytest.mark.slow
def test_a_killed_prediction_loses_the_protein_at_hand(tiny_esm: Path, tmp_path: Path) -> None:
    """SIGKILL after the first of two proteins; the next process runs the second alone."""
    process = start(predict_two, str(tiny_esm), str(tmp_path), folder=tmp_path)
    wait_until(lambda: len(list(tmp_path.rglob("*.norms.npy"))) >= 1, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = 2 - len(list(tmp_path.rglob("*.norms.npy")))
    module, count = JacobianModule(str(tiny_esm), cache_dir=str(tmp_path)).eval(), 0

    def counted(_module, arguments, _output) -> None:
        nonlocal count
        count += len(arguments[0])

    module.backbone.register_forward_hook(counted)
    for seed in (5, 6):
        module.predict_map(random_sequence(seed, 60))
    assert count == left * (1 + 19 * 60)


STRATEGIES = {  # by name: processes, and how they are told of each other
    "one": (1, []),
    "spread": (2, SHARDED),
}


def fit_and_predict(several: list[str], data: list[str], fasta: str) -> tuple[list[float], dict[str, float]]:
    """By the command line, one of some processes: the two numbers, and the test scores.

    Each has a cache of its own, so that the map that is drawn at last is there for the one that scored it alone.
    """
    from contactlm.runs.record_file import read_run

    data = [*data, f"--model.cache_dir=cache{os.environ['LOCAL_RANK']}"]
    sys.argv = ["contactlm"]
    assert main(["fit", "--config=jacobian", *data, *several]) == 0
    run = Path("runs/jacobian/version_0")
    checkpoint = str(run / "checkpoints" / "calibrated.ckpt")
    assert main(["predict", "--out=maps", f"--ckpt_path={checkpoint}", fasta, *data[-3:], *several]) == 0
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    return kept["slope_and_intercept"].tolist(), read_run(run)["test"]


@pytest.mark.slow
def test_two_processes_share_proteins_and_fit_the_same(tiny_esm: Path, pdb_folders, tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text("".join(f">p{n}\n{random_sequence(n % 3, 20)}\n" for n in range(5)))
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    data += ["--data.dev_fraction=0.3", "--data.read_workers=0"]
    data += [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"]
    results = {}
    for name, (devices, strategy) in STRATEGIES.items():
        folder = tmp_path / name
        folder.mkdir()
        fasta = f"--data.predict_paths={tmp_path / 'a.fasta'}"
        results[name] = run_ranks(fit_and_predict, devices, strategy, data, fasta, folder=folder)
    (alone,), *several = results.values()
    for calibration, scores in (each for processes in several for each in processes):
        np.testing.assert_allclose(calibration, alone[0], rtol=1e-3)
        assert scores == pytest.approx(alone[1], abs=1e-3, nan_ok=True)
    for n in range(5):
        one, *others = (ContactMap.load(tmp_path / name / f"maps/p{n}.npz").probability for name in STRATEGIES)
        for other in others:
            np.testing.assert_allclose(one, other, atol=1e-3)
