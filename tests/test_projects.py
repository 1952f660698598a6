"""The example projects of ``tests/projects``: users' code, run as it stands on tiny models and data."""

import importlib
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import lightning as L
import numpy as np
import pytest
import torch

from contactlm import ContactModule, contact_map
from contactlm.__main__ import main
from contactlm.data.synthetic import SyntheticOptions, write_synthetic
from tests.conftest import random_sequence

PROJECTS = Path(__file__).parent / "projects"
NAMES = sorted(path.stem for path in PROJECTS.glob("*.py"))
# Parts of libraries that no annotation of ours names; to read them, too, takes half a minute.
STRICT = """\
[mypy]
strict = True
[mypy-transformers.*,peft.*,sympy.*,torch._dynamo.*,torch._inductor.*,torch.distributed.*,torch.fx.*,torch.onnx.*]
follow_imports = skip
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of one's own, into which nothing but the project was copied."""
    (tmp_path / "project").mkdir()
    for name in NAMES:
        (tmp_path / "project" / f"{name}.py").write_bytes((PROJECTS / f"{name}.py").read_bytes())
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.syspath_prepend(tmp_path / "project")
    monkeypatch.setattr("sys.argv", ["contactlm"])
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def project(name: str) -> ModuleType:
    module = importlib.import_module(name)
    assert Path(str(module.__file__)).parent == Path.cwd()
    return module


@pytest.fixture(scope="module")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of synthetic proteins: to train on, to test on."""
    return write_synthetic(SyntheticOptions(str(tmp_path_factory.mktemp("proteins")), n_train=16, n_test=2))


def test_there_are_five_projects() -> None:
    assert NAMES == ["own_callbacks", "own_data", "own_loss", "own_module", "own_score"]


@pytest.mark.slow
def test_own_score_is_logged(tmp_path: Path, tiny_esm: Path, proteins: tuple[Path, Path]) -> None:
    data = [f"--data.train_dir={proteins[0]}", f"--data.test_dir={proteins[1]}", "--data.read_workers=0"]
    small = ["--data.crop_length=40", "--data.batch_size=4", "--budget.max_tokens=700", "--trainer.accelerator=cpu"]
    callback = f"--trainer.callbacks={json.dumps([{'class_path': 'own_score.Recall'}])}"
    sys.argv += ["fit", "--config=crop200", f"--model.pretrained={tiny_esm}", *data, *small, callback]
    assert main() == 0
    logged = (tmp_path / "project" / "runs" / "crop200" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert {"dev/recall", "test/recall"} <= set(logged.split(","))


def test_own_module_on_our_data(proteins: tuple[Path, Path]) -> None:
    trainer: L.Trainer = project("own_module").main(*map(str, proteins), max_epochs=12)
    # about one pair in twenty touches: who always says so has an entropy of 0.2, who knows nothing of 0.69
    assert trainer.callback_metrics["test/loss"] < 0.5
    assert trainer.current_epoch == 12 and trainer.global_step == 12 * 2  # 16 chains, less those held out: 8 a batch


def test_our_module_on_own_data(tiny_esm: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for n in range(12):
        sequence = random_sequence(n, 30 + n)
        arrays[f"p{n:02d}.sequence"] = np.array(sequence)
        arrays[f"p{n:02d}.cb"] = np.cumsum(rng.normal(scale=2, size=(len(sequence), 3)), axis=0).astype(np.float32)
    arrays["p00.cb"][3] = np.nan
    np.savez("proteins.npz", **arrays)
    own = project("own_data")
    trainer: L.Trainer = own.main("proteins.npz", ContactModule(str(tiny_esm)), max_tokens=900)
    dev = [name for name in trainer.callback_metrics if name.startswith("dev/")]
    assert "dev/mcc_sep6" in dev and trainer.callback_metrics["dev/proteins"] == 2  # p00 and p10
    seen = next(callback for callback in trainer.callbacks if type(callback).__name__ == "ContactEvaluation").rows
    assert {row["id"] for row in seen} == {"p00", "p10"}
    truth = contact_map(arrays["p00.cb"])
    assert next(row for row in seen if row["id"] == "p00")["residues"] == (truth >= 0).any(0).sum() == 29
    spent = next(callback for callback in trainer.callbacks if type(callback).__name__ == "TokenBudget")
    assert 900 <= spent.tokens < 900 + 4 * 43


@pytest.mark.slow
def test_our_callbacks_and_metrics_with_neither() -> None:
    trainer: L.Trainer = project("own_callbacks").main("maps", max_tokens=15_000)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics == {}  # predictions have none
    by_kind = {type(callback).__name__: callback for callback in trainer.callbacks}
    budget, meter = by_kind["TokenBudget"], by_kind["FlopsMeter"]
    steps = -(-15_000 // (8 * 60))
    assert (budget.tokens, budget.residues, trainer.global_step) == (steps * 480, steps * 480, steps)
    # a multiplication and an addition an entry: forward, and backward to the weight
    assert meter.total == steps * 2 * 2 * 8 * 60 * 60
    rows = by_kind["ContactEvaluation"].rows
    assert len(rows) == 10 and np.mean([row["mcc_sep6"] for row in rows]) > 0.5
    mine = trainer.lightning_module.mcc
    assert isinstance(mine, torch.nn.Module)
    assert sorted(path.name for path in Path("maps").glob("*.rr")) == [f"walk_{n}.rr" for n in range(80, 90)]


@pytest.mark.parametrize("name", ["own_callbacks", "own_data", "own_module"])
def test_what_a_project_says_to_type_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(f"{name}.py")
    command = re.search(rf"``python ({name}\.py.*?)``", file.read_text())
    assert command is not None
    given: list[tuple[object, ...]] = []
    start = file.read_text().rpartition("if __name__")
    file.write_text(
        f"{start[0]}import inspect\n\n{start[1]}{start[2].replace('main(', 'GIVEN(inspect.signature(main), ')}"
    )
    monkeypatch.setattr("sys.argv", command[1].split())
    take = lambda signature, *arguments: given.append(signature.bind(*arguments).args)  # noqa: E731
    runpy.run_path(str(file), {"GIVEN": take}, "__main__")
    assert given == [tuple(command[1].split()[1:])]


def test_metrics_by_hand_and_by_callback_agree() -> None:
    torch.manual_seed(0)
    own = project("own_callbacks")
    from contactlm.callbacks import ContactEvaluation

    trainer = L.Trainer(
        callbacks=[ContactEvaluation(write_rows=False)], logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    loader = torch.utils.data.DataLoader(own.Walks(range(6)), batch_size=4)
    (scores,) = trainer.validate(own.Cutoff(), loader, verbose=False)
    assert scores["my/mcc"] == pytest.approx(scores["dev/mcc_sep6"], abs=1e-6)
    assert 0 < scores["my/p_at_L5"] <= 1


def test_own_loss_in_python(tiny_esm: Path) -> None:
    own = project("own_loss")
    scores, labels = torch.randn(2, 9, 9), torch.randint(-1, 2, (2, 9, 9))
    plain = torch.nn.functional.binary_cross_entropy_with_logits(scores[labels >= 0], labels[labels >= 0].float())
    assert own.FocalModule(str(tiny_esm), gamma=0.0).loss(scores, labels).item() == pytest.approx(plain.item())
    right = scores.sigmoid().where(labels == 1, 1 - scores.sigmoid())[labels >= 0]
    focal = (-((1 - right) ** 2) * right.log()).mean()
    assert own.FocalModule(str(tiny_esm)).loss(scores, labels).item() == pytest.approx(focal.item(), rel=1e-5)


@pytest.mark.slow
def test_own_loss_by_the_command_line(
    tiny_esm: Path, proteins: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*arguments: str) -> int:
        """As the installed command does: the folder at hand is not where Python looks for modules by itself."""
        monkeypatch.setattr("sys.argv", ["contactlm", *arguments])
        monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
        return main()

    data = [f"--data.train_dir={proteins[0]}", f"--data.test_dir={proteins[1]}", "--data.read_workers=0"]
    chosen = ["--model_class=own_loss.FocalModule", "--trainer.accelerator=cpu"]
    small = [
        "--data.crop_length=40",
        "--data.batch_size=4",
        "--budget.max_tokens=700",
        "--trainer.val_check_interval=4",
        "--dashboard.lengths=[]",
    ]
    assert command("fit", *chosen, f"--model.pretrained={tiny_esm}", "--model.gamma=1.5", *data, *small) == 0
    best = next(Path().rglob("best-*.ckpt"))
    loaded = project("own_loss").FocalModule.load_from_checkpoint(best, weights_only=True)
    assert loaded.gamma == 1.5 and loaded.hparams["pretrained"] == str(tiny_esm)
    assert command("test", *chosen, f"--ckpt_path={best}", *data) == 0


@pytest.mark.slow
def test_users_code_is_checked_strictly(tmp_path: Path) -> None:
    """The package is typed, and installed elsewhere than the code that uses it."""
    from mypy import api

    Path("mypy.ini").write_text(STRICT)
    options = ["--config-file=mypy.ini", f"--cache-dir={tmp_path / 'cache'}"]
    report, errors, status = api.run([*options, *sorted(f"{n}.py" for n in NAMES)])
    assert (status, errors) == (0, ""), report
    Path("wrong.py").write_text("from contactlm import read_chains\n\nlength: str = len(read_chains('a.pdb')[0])\n")
    report, _, status = api.run([*options, "wrong.py"])
    assert status == 1 and "Incompatible types in assignment" in report  # it was not all Any
