"""The journeys of the command line, on tiny data: everything goes through `main`, as the installed command does."""

import csv
import errno
import gzip
import io
import json
import pickle
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest

from contactlm.cli.main import main
from contactlm.maps.contact_map import ContactMap
from contactlm.shipped import config_folder
from tests.conftest import Finished, make_tiny_esm, random_sequence, write_pdb
from tests.retrieval.made import made_database

CONFIGS = sorted(path.stem for path in config_folder().glob("*.yaml"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])


def data_options(folders: tuple[Path, Path]) -> list[str]:
    options = {"train_dir": folders[0], "test_dir": folders[1], "read_workers": 0, "min_length": 10}
    return [f"--data.{name}={value}" for name, value in options.items()]


SMALL = ["--data.crop_length=30", "--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.val_check_interval=2"]
SMALL.append("--dashboard.lengths=[]")


def test_the_shipped_configs_are_the_documented_ones() -> None:
    assert {"base", "crop200", "full1020", "quickstart", "random8m"} <= set(CONFIGS)


SLOW = ("retrieval_tokens",)  # runs as "retrieval" does: tests/cli/test_arms.py compares their options


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CONFIGS]
)
def test_every_shipped_config_runs(name: str, tmp_path: Path, tiny_esm: Path, pdb_folders: tuple[Path, Path]) -> None:
    arguments = ["fit", "--config", name, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
    if name == "quickstart":
        arguments += ["--data.synthetic.n_train=12", "--data.synthetic.n_test=2", "--data.read_workers=0"]
    elif name == "random8m":
        arguments += [*data_options(pdb_folders), *SMALL]
    else:
        arguments += [*data_options(pdb_folders), f"--model.pretrained={tiny_esm}"]
    if name.startswith("retrieval"):
        arguments.append(f"--model.index={made_database(tmp_path, {'1abc_A': random_sequence(3, 44)}).path}")
    assert main(arguments) == 0


def fit(tiny_esm: Path, folders: tuple[Path, Path], *more: str) -> int:
    return main(["fit", "--config=crop200", *data_options(folders), *SMALL, f"--model.pretrained={tiny_esm}", *more])


def scores_of(text: str, prefix: str) -> list[str]:
    """The words of the first line of scores; columns are as wide as the rest of the table needs."""
    return next(line.split() for line in text.splitlines() if line.startswith(prefix))


@pytest.mark.slow
def test_fit_test_resume_validate(
    tmp_path: Path, tiny_esm: Path, pdb_folders, finished: Finished, capsys: pytest.CaptureFixture
) -> None:
    printed = finished.printed
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / "crop200" / "version_0"
    assert "mcc_sep6" in scores_of(printed, "dev") and "(trivial" in scores_of(printed, "test")
    best = next((run / "checkpoints").glob("best-*.ckpt"))
    assert f"checkpoint  {best.relative_to(tmp_path)}" in printed
    assert list(run.glob("events.out.tfevents.*")) and (run / "config.yaml").is_file()
    assert len(list(csv.DictReader((run / "test_scores.csv").open()))) == 3
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert max(float(row["budget/tokens"] or 0) for row in rows) == 5 * 4 * 32
    for name in ("train/loss", "budget/fraction", "flops/total", "dev/mcc", "dev/mcc_sep6", "dev/mcc_long"):
        assert any(row[name] for row in rows), name
    for name in ("p_at_L_long", "p_at_L5_long", "auprc_sep6", "trivial_mcc", "mcc_sep6_pooled", "mcc_sep6_undefined"):
        assert any(row.get(f"test/{name}") for row in rows), name

    assert main(["test", f"--ckpt_path={best}", *data_options(pdb_folders), "--trainer.accelerator=cpu"]) == 0
    assert scores_of(capsys.readouterr().out, "test") == scores_of(printed, "test")
    assert main(["validate", f"--ckpt_path={best}", *data_options(pdb_folders), "--trainer.accelerator=cpu"]) == 0
    assert scores_of(capsys.readouterr().out, "dev") == scores_of(printed, "dev")
    for version in ("version_0", "version_1"):  # of the arm whose checkpoint it was
        assert json.loads((tmp_path / "runs" / "contactlm" / version / "run.json").read_text())["arm"] == "crop200"

    last = run / "checkpoints" / "last.ckpt"
    more = ["--budget.max_tokens=1000", "--trainer.log_every_n_steps=1"]
    assert fit(tiny_esm, pdb_folders, *more, f"--ckpt_path={last}") == 0
    rows = list(csv.DictReader((tmp_path / "runs" / "crop200" / "version_1" / "metrics.csv").open()))
    tokens = [float(row["budget/tokens"]) for row in rows if row["budget/tokens"]]
    assert min(tokens) == 6 * 128 and max(tokens) == 8 * 128  # went on after 5 batches, and ended with the 8th


@pytest.mark.slow
def test_predict_needs_nothing_but_a_checkpoint(tmp_path: Path, finished: Finished, capsys) -> None:
    best = shutil.copy(finished.best, tmp_path / "moved.ckpt")
    fasta = f">one\n{random_sequence(0, 40)}\n>bad\nMKJ\n>one\n{random_sequence(1, 30).lower()}*\n"
    (tmp_path / "a.fasta").write_text(fasta)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.fa.gz").write_bytes(gzip.compress(f">two/2\n{random_sequence(2, 25)}\n".encode()))
    write_pdb(tmp_path / "in" / "s.pdb", {"A": random_sequence(3, 35), "B": random_sequence(3, 35)})
    command = ["predict", f"--ckpt_path={best}", "--data.predict_paths=[a.fasta, in]", "--out=results"]
    command += ["--data.read_workers=0", "--trainer.accelerator=cpu"]
    assert main(command) == 3  # one record could not be used
    captured = capsys.readouterr()
    assert "4 maps written to results" in captured.out and "record 2 (bad)" in captured.err
    assert "best checkpoint" not in captured.err  # of the run that wrote it: of no concern here
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {f"{n}.{s}" for n in ("one", "one_2", "two_2", "s_A") for s in ("npz", "rr", "png")} | {
        "summary.csv",
        "index.html",
    }
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "results" / "summary.csv").open())}
    assert rows["s_A"]["mcc_sep6"] and not rows["one"]["mcc_sep6"]
    assert {name: int(row["length"]) for name, row in rows.items()} == {"one": 40, "one_2": 30, "two/2": 25, "s_A": 35}
    assert ContactMap.load(tmp_path / "results" / "one.npz").sequence == random_sequence(0, 40)

    stamp = (tmp_path / "results" / "s_A.npz").stat().st_mtime_ns
    (tmp_path / "results" / "one.rr").unlink()  # as a killed run leaves it
    assert main(command) == 3
    assert "0 maps written to results, 4 already present (1 in fewer formats)" in capsys.readouterr().out
    assert (tmp_path / "results" / "s_A.npz").stat().st_mtime_ns == stamp
    assert np.load(tmp_path / "results" / "one.npz")["probability"].dtype == np.float32
    assert main([*command, "--overwrite=true", "--dtype=float16"]) == 3
    assert np.load(tmp_path / "results" / "one.npz")["probability"].dtype == np.float16
    assert "4 maps written" in capsys.readouterr().out


def test_predict_without_a_checkpoint_uses_the_published_head(tmp_path: Path, tiny_esm: Path, capsys) -> None:
    (tmp_path / "a.fasta").write_text(f">one\n{random_sequence(0, 40)}\n")
    command = ["predict", f"--model.pretrained={tiny_esm}", "--data.predict_paths=[a.fasta]", "--formats=[npz]"]
    assert main([*command, "--trainer.accelerator=cpu"]) == 0
    assert "1 map written to predictions" in capsys.readouterr().out
    assert main([*command, "--trainer.accelerator=cpu"]) == 0
    assert "0 maps written to predictions, 1 already present" in capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_what_a_user_can_mend_is_one_clear_message(tmp_path: Path, tiny_esm: Path, pdb_folders, capsys) -> None:
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.pdb").write_text("nothing\n")
    for folder, message in (
        ("nowhere", "does not exist"),
        ("empty", "no structure file"),
        ("junk", "nothing left to use"),
    ):
        text = complaint(capsys, ["fit", f"--data.train_dir={folder}", *model])
        assert text.startswith("contactlm: error: train_dir") and message in text
    assert "train_dir is not given" in complaint(capsys, ["fit", *model])
    assert "test_dir is not given" in complaint(capsys, ["test", *model])
    text = complaint(capsys, ["fit", *data_options(pdb_folders), *model, "--model.window=20"])
    assert "crop_length is 200, longer than the window of 20" in text
    text = complaint(capsys, ["fit", *data_options(pdb_folders), "--model.pretrained=someone/esm2-nowhere"])
    assert "HF_HUB_OFFLINE forbids the download" in text and "give DIR" in text
    text = complaint(capsys, ["fit", *data_options(pdb_folders), *model, "--model.lora.init_lora_weights=pissa"])
    assert "pissa and its like" in text
    text = complaint(capsys, ["fit", *data_options(pdb_folders), *model, "--data.on_bad_file=raise"])
    assert "broken.pdb" in text
    assert "no such file" in complaint(capsys, ["fit", "--config=nowhere.yaml"])
    assert "does not exist" in complaint(capsys, ["test", "--ckpt_path=nowhere.ckpt", *model])
    (tmp_path / "a.ckpt").write_bytes(b"not a checkpoint")
    assert "not a readable checkpoint" in complaint(capsys, ["test", "--ckpt_path=a.ckpt", *model])
    with pytest.raises(SystemExit) as stop:
        main(["fit", *data_options(pdb_folders), *model, "--data.crop_size=30"])
    assert stop.value.code == 2 and "crop_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "train_dir is not given, and fit needs it"),
        (["validate"], "train_dir is not given, and validate needs it"),
        (["fit", "--data.train_dir=nowhere"], "train_dir: nowhere does not exist"),
        (["fit", "--data.train_dir=.", "--data.test_dir=nowhere/x"], "test_dir: nowhere/x does not exist"),
        (["fit", "--data.train_ids=nowhere.txt"], "nowhere.txt is not there; give another path"),
        (["test"], "test_dir is not given, and test needs it"),
        (["test", "--data.test_dir=nowhere"], "test_dir: nowhere does not exist"),
        (["predict"], "predict_paths is not given"),
        (["predict", "--data.predict_paths", "nowhere.fasta", "."], "predict_paths: nowhere.fasta does not exist"),
        (["fit", "--data.train_dir=.", "--budget.max_tokens=-5"], "budget.max_tokens is -5"),
        (["fit", "--data.train_dir=.", "--data.crop_length=0"], "crop_length is 0"),
        (["fit", "--data.train_dir=.", "--guard.max_skipped=0"], "guard.max_skipped is 0"),
        (["fit", "--data.train_dir=.", "--checkpoint.last_every_n_steps=-1"], "checkpoint.last_every_n_steps is -1"),
        (["fit", "--data.train_dir=.", "--dashboard.pictures=0"], "dashboard.pictures is [0]"),
        (["fit", "--data.train_dir=.", "--data.synthetic.folder=x"], "synthetic stands for train_dir and test_dir"),
        (["predict", "--data.predict_paths=.", "--pairs_per_residue=0"], "pairs_per_residue: 0.0 given"),
        (["predict", "--data.predict_paths=.", "--formats=[]"], "formats: [] given"),
    ],
)
def test_what_is_cheap_to_check_is_told_before_the_backbone_is_looked_for(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr("contactlm.modules.language_model.load_esm", lambda *given: looked.append(str(given)))
    assert message in complaint(capsys, arguments) and looked == []


def test_a_folder_that_cannot_be_written_is_one_clear_message(
    tmp_path: Path, tiny_esm: Path, pdb_folders, capsys
) -> None:
    (tmp_path / "runs").write_text("a file where the folder of all runs would be\n")
    arguments = ["fit", "--config=crop200", *data_options(pdb_folders), *SMALL, f"--model.pretrained={tiny_esm}"]
    text = complaint(capsys, arguments)
    assert text.startswith(f"contactlm: error: {tmp_path}/runs") and "cannot be written (Not a directory)" in text


def zip_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"\0" * 4000, "a file of zeros"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b">p1\nMKV\n", "a FASTA file"),
        (b"data_1ABC\n#\n", "an mmCIF file"),
        (b"trainer:\n  max_epochs: 3\n", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a Git LFS pointer"),
        (gzip.compress(b"x", mtime=0), "gzip data"),
        (zip_of("a.npy"), "a zip archive that is no checkpoint"),
        (zip_of("a.npy")[:60], "cut short"),
        (zip_of("archive/data.pkl"), "damaged, or holds Python objects"),
        (pickle.dumps({"state_dict": 1}), "a pickle"),
        ((40).to_bytes(8, "little") + b'{"a":' + b" " * 60, "a safetensors file"),
        (b"\xff\xfe\xfd" * 50, "of no kind that is known here"),
        (None, "is a folder; give a file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # archives hold the time they were made at
)
def test_a_checkpoint_that_is_none_is_called_what_it_is(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "a.ckpt"
    path.mkdir() if content is None else path.write_bytes(content)
    text = complaint(capsys, ["test", f"--ckpt_path={path}", "--data.test_dir=."])
    assert said in text and str(path) in text and "torch" not in text.replace("older versions of torch", "")
    assert "serialization" not in text and "weights_only" not in text


def test_what_cannot_be_read_is_not_said_to_be_unwritable(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"x")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # what a user who is not root meets
        patch.setattr("torch.load", denied)
        text = complaint(capsys, ["test", f"--ckpt_path={path}", "--data.test_dir=."])
        assert text == f"contactlm: error: ckpt_path: {path} cannot be read (Permission denied)"
        patch.setattr("contactlm.cli.contact_cli.chosen_class", denied)
        patch.setattr("os.access", lambda *_: False)
        text = complaint(capsys, ["test", "--data.test_dir=."])
        assert text.startswith(f"contactlm: error: {path} cannot be read (Permission denied): give files")
        path.unlink()
        assert "cannot be written" in complaint(capsys, ["test", "--data.test_dir=."])


def test_ctrl_c_while_scoring_is_no_error_of_the_user(
    tiny_esm: Path, pdb_folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("contactlm.ContactModule.test_step", interrupt)
    handler = signal.getsignal(signal.SIGINT)  # Lightning ignores further ones
    try:
        with pytest.raises(KeyboardInterrupt):  # `python -m contactlm` and the installed command end with 130
            main(["test", *data_options(pdb_folders), f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"])
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.slow
def test_a_checkpoint_for_another_backbone_is_refused(
    tmp_path: Path, tiny_esm: Path, pdb_folders, finished: Finished, capsys
) -> None:
    best = finished.best
    other = make_tiny_esm(tmp_path / "other", seed=1)
    command = ["test", f"--ckpt_path={best}", *data_options(pdb_folders), "--trainer.accelerator=cpu"]
    assert "trained on the backbone" in complaint(capsys, [*command, f"--model.pretrained={other}"])
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tiny_esm.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert main([*command, f"--model.pretrained={moved}"]) == 0
