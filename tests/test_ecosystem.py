"""The package as others meet it: as a wheel, under ``python -O``, in odd folders, with loggers of other packages."""

import ast
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import contactlm
from contactlm.cli.main import main
from contactlm.shipped import config_folder
from tests.cli.test_cli import SMALL, complaint, data_options

ROOT = Path(__file__).parents[1]
Folders = tuple[Path, Path]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist) of the checkout."""
    build = pytest.importorskip("hatchling.build")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the tests lie apart from the project")
    folder, before = tmp_path_factory.mktemp("dist"), Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / build.build_wheel(str(folder)), folder / build.build_sdist(str(folder))
    finally:
        os.chdir(before)


def test_the_wheel_holds_what_a_run_needs_and_no_more(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = set(wheel.namelist())
        about = next(name for name in names if name.endswith(".dist-info/METADATA"))
        assert f"\nVersion: {contactlm.__version__}\n" in wheel.read(about).decode()
        entries = wheel.read(about.replace("METADATA", "entry_points.txt")).decode()
    assert "contactlm = contactlm.__main__:main" in entries
    assert "contactlm/py.typed" in names and about.replace("METADATA", "licenses/LICENSE") in names
    configs = {path.relative_to(config_folder()) for path in config_folder().rglob("*") if path.is_file()}
    assert {f"contactlm/lightning_configs/{path}" for path in configs} <= names and len(configs) > 10
    lists = {f"contactlm/benchmark/lists/{path.name}" for path in (ROOT / "contactlm/benchmark/lists").iterdir()}
    assert lists <= names and len(lists) == 11
    assert {name.split("/")[0] for name in names} == {"contactlm", about.split("/")[0]}
    modules = {path.relative_to(ROOT) for path in (ROOT / "contactlm").rglob("*.py")}
    assert {Path(name) for name in names if name.endswith(".py")} == modules
    parts = {path.relative_to(ROOT) for kind in ("js", "css") for path in (ROOT / "contactlm").rglob(f"*.{kind}")}
    assert {Path(name) for name in names if name.endswith((".js", ".css"))} == parts and len(parts) >= 4  # of pages


def test_the_sdist_holds_the_project(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "contactlm/py.typed", "tests/test_ecosystem.py"}
    assert wanted <= names
    assert {f"lightning_configs/{path.name}" for path in (ROOT / "lightning_configs").glob("*.yaml")} <= names
    assert not {name for name in names if name.startswith(("runs/", ".git/", "dist/")) or "__pycache__" in name}


FIT_AND_PREDICT = """
import sys
from pathlib import Path
import contactlm
from contactlm.cli.main import main
print(contactlm.__file__)
options, sys.argv = sys.argv[1:], ["contactlm"]
assert main(["fit", "--config", "quickstart", *options]) == 0
best = next(Path("runs/quickstart/version_0/checkpoints").glob("best-*.ckpt"))
inputs = ["--data.predict_paths", "my protéins/test", "--out", "Karten für später", "--formats=[npz]"]
sys.exit(main(["predict", "--ckpt_path", str(best), *inputs]))
"""


@pytest.mark.slow
def test_the_wheel_runs_elsewhere_in_odd_folders(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """Outside the repository, where every path has spaces and letters beyond ASCII."""
    site, work = tmp_path / "sité päckages", tmp_path / "meine Läufe ÅÄ"
    work.mkdir()
    with zipfile.ZipFile(distributions[0]) as wheel:
        wheel.extractall(site)
    small = ["--data.synthetic.folder=my protéins", "--data.synthetic.n_train=20", "--data.synthetic.n_test=2"]
    small += ["--budget.max_tokens=3000", "--trainer.val_check_interval=4", "--data.read_workers=0"]
    environment = {**os.environ, "PYTHONPATH": str(site), "CONTACTLM_CACHE": str(work / "der Cache")}

    done = subprocess.run(
        [sys.executable, "-c", FIT_AND_PREDICT, *small], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{site}" in done.stdout.splitlines()[0]
    assert "test  mcc_sep6" in done.stdout and "The proteins are synthetic" in done.stdout
    run = work / "runs" / "quickstart" / "version_0"
    assert {"config.yaml", "run.json", "metrics.csv", "test_scores.csv"} <= {path.name for path in run.iterdir()}
    assert json.loads((run / "run.json").read_text())["tokens"] >= 3000
    assert len(list((work / "Karten für später").glob("*.npz"))) == 2


def test_nothing_hangs_on_asserts() -> None:
    """``python -O`` strips them."""
    package = Path(contactlm.__file__).parent
    found = {
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Name) and node.id == "__debug__")
    }
    assert found == set()


@pytest.mark.parametrize("name", ["crop200", "quickstart", "contrastive"])
def test_a_printed_config_is_a_config(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["fit", *arguments, "--print_config"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    text = printed("--config", name)
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    assert printed("--config", "my.yaml") == text
    assert yaml.safe_load(text)["budget"]["max_tokens"] == (750_000 if name == "quickstart" else 5_000_000)
    assert printed("--config", "my.yaml", "--budget.max_tokens", "7") == text.replace(
        f"max_tokens: {yaml.safe_load(text)['budget']['max_tokens']}", "max_tokens: 7"
    )


def loggers(path: Path, *entries: dict[str, object]) -> str:
    """A config that chooses loggers, and nothing else."""
    path.write_text(yaml.safe_dump({"trainer": {"logger": list(entries)}}))
    return f"--config={path}"


def json_logger(run: str) -> dict[str, object]:
    return {"class_path": "tests.foreign_logger.JsonLogger", "init_args": {"store": "store", "run": run}}


CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": "local"}}
FILES = {"config.yaml", "run.json", "test_scores.csv", "checkpoints"}


def fit(config: str, tiny_esm: Path, folders: Folders, *more: str) -> int:
    model = [f"--model.pretrained={tiny_esm}", "--budget.max_tokens=600"]
    return main(["fit", "--config=crop200", config, *model, *data_options(folders), *SMALL, *more])


@pytest.mark.slow
def test_a_logger_of_another_package_by_config_alone(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    for run in ("first", "second", "second"):  # the last as one goes on with a run of that name
        assert fit(loggers(tmp_path / f"{run}.yaml", json_logger(run)), tiny_esm, pdb_folders) == 0
    for run in ("first", "second"):
        folder = tmp_path / "shared-project" / run
        assert {path.name for path in folder.iterdir()} >= FILES
        kept = json.loads((tmp_path / "store" / f"{run}.json").read_text())
        assert {"train/loss", "budget/tokens", "dev/mcc_sep6", "test/mcc_sep6", "flops/total"} <= kept["metrics"].keys()
        assert kept["status"] == "success" and "pretrained" in kept["hparams"]
        assert json.loads((folder / "run.json").read_text())["arm"] == "shared-project"
        assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"] == [json_logger(run)]
    assert not FILES & {path.name for path in tmp_path.iterdir()}  # nothing that a second run would overwrite


@pytest.mark.slow
def test_beside_a_local_logger(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    config = loggers(tmp_path / "both.yaml", CSV, json_logger("beside"))
    assert fit(config, tiny_esm, pdb_folders) == 0
    assert {path.name for path in (tmp_path / "runs" / "local" / "version_0").iterdir()} >= FILES | {"metrics.csv"}
    assert "dev/mcc_sep6" in json.loads((tmp_path / "store" / "beside.json").read_text())["metrics"]
    assert not (tmp_path / "shared-project").exists()


def test_what_cannot_be_known_of_a_foreign_logger_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = loggers(tmp_path / "my.yaml", json_logger("any"))
    text = complaint(capsys, ["fit", config, "--ckpt_path=last"])
    assert "only a run itself knows where JsonLogger has its checkpoints" in text and "checkpoint.dirpath" in text


def test_another_runs_config_is_not_overwritten(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, capsys) -> None:
    chosen = {**CSV, "init_args": {"save_dir": "runs", "name": "local", "version": 7}}
    config = loggers(tmp_path / "fixed.yaml", chosen)
    (tmp_path / "runs" / "local" / "version_7").mkdir(parents=True)
    (tmp_path / "runs" / "local" / "version_7" / "config.yaml").write_text("mine: true\n")
    assert fit(config, tiny_esm, pdb_folders) == 1
    assert "is there already" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "runs" / "local" / "version_7" / "config.yaml").read_text() == "mine: true\n"


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"contactlm {contactlm.__version__}\n"
