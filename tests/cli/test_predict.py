"""``contactlm predict`` as a process: killed, interrupted, run again."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactModule
from contactlm.callbacks.writer import PredictionWriter
from contactlm.cli.main import main
from contactlm.maps.contact_map import ContactMap
from contactlm.types import ContactLMError
from tests.conftest import random_sequence
from tests.modules.test_export import save_checkpoint

N = 60
NAMES = [f"p{i:02d}" for i in range(N)]
KINDS = ("npz", "rr", "png")


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "contactlm", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A test run in the background ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def stop(process: subprocess.Popen, number: signal.Signals, when: Callable[[], bool]) -> tuple[str, str]:
    """Send a signal as soon as something holds, and wait for the end."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not when() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    return process.communicate(timeout=60)


def predict(tiny_esm: Path, *more: str) -> list[str]:
    model = ["--model.pretrained", str(tiny_esm), "--trainer.accelerator", "cpu", "--data.eval_batch_size", "2"]
    return ["predict", *model, "--data.predict_paths", "a.fasta", "--out", "results", *more]


def write_fasta(folder: Path) -> Path:
    text = "".join(f">{name}\n{random_sequence(i, 40)}\n" for i, name in enumerate(NAMES))
    (folder / "a.fasta").write_text(text)
    return folder


def summary(results: Path) -> list[dict[str, str]]:
    with (results / "summary.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def stamps(results: Path) -> dict[str, int]:
    """When the files of every protein in the summary were written."""
    done = {row["id"] for row in summary(results)} if (results / "summary.csv").is_file() else set()
    return {path.name: path.stat().st_mtime_ns for path in results.iterdir() if path.stem in done}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, tiny_esm: Path) -> None:
    results = write_fasta(tmp_path) / "results"
    stop(start(tmp_path, *predict(tiny_esm)), signal.SIGKILL, lambda: len(list(results.glob("*.png"))) >= 5)
    before = stamps(results)
    assert 5 * len(KINDS) <= len(before) < N * len(KINDS)
    (results / f".{'0' * 32}.tmp").touch()  # what a kill in the middle of a write leaves
    with (results / "summary.csv").open("a") as handle:
        handle.write("p59,4")
    process = start(tmp_path, *predict(tiny_esm))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    kept = len(before) // len(KINDS)
    assert f"{N - kept} maps written to results, {kept} were there already" in out
    assert {name: stamp for name, stamp in stamps(results).items() if name in before} == before
    expected = {f"{name}.{kind}" for name in NAMES for kind in KINDS} | {"summary.csv"}
    assert {path.name for path in results.iterdir()} == expected
    assert sorted(row["id"] for row in summary(results)) == NAMES
    alone = ContactModule(str(tiny_esm)).predict_map(random_sequence(59, 40))
    np.testing.assert_allclose(ContactMap.load(results / "p59.npz").probability, alone.probability, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"a.fasta", "results"}


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_a_short_message(tmp_path: Path, tiny_esm: Path) -> None:
    results = write_fasta(tmp_path) / "results"
    process = start(tmp_path, *predict(tiny_esm))
    _, err = stop(process, signal.SIGINT, lambda: len(list(results.glob("*.png"))) >= 3)
    assert process.returncode not in (0, None)
    assert "Traceback" not in err and "maps written to results; the same command goes on from there" in err
    assert len(err.splitlines()) < 15
    assert not list(results.glob(".*"))
    assert {row["id"] for row in summary(results)} <= set(NAMES)


def test_ctrl_c_while_libraries_are_imported(tmp_path: Path) -> None:
    process = start(tmp_path, "predict", "--help")
    began = time.monotonic()
    out, err = stop(process, signal.SIGINT, lambda: time.monotonic() - began > 0.7)
    if process.returncode == 0:
        pytest.skip(f"too fast to be interrupted: {len(out)} characters of help")
    assert (process.returncode, err) == (130, "contactlm: interrupted\n")


def run(arguments: list[str], capsys: pytest.CaptureFixture, status: int = 0) -> str:
    assert main(arguments) == status
    captured = capsys.readouterr()
    return captured.err.splitlines()[-1] if status else captured.out


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    (tmp_path / "a.fasta").write_text("".join(f">{name}\n{random_sequence(i, 30)}\n" for i, name in enumerate("abc")))
    return tmp_path


def test_a_place_that_cannot_be_written(folder: Path, tiny_esm: Path, capsys) -> None:
    (folder / "file").touch()
    for out in ("file", "file/below"):
        message = run([*predict(tiny_esm), "--out", out], capsys, status=1)
        assert message.startswith(f"contactlm: error: out: {out} cannot be written") and "another folder" in message


def test_a_disk_that_fills_up(folder: Path, tiny_esm: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    save = ContactMap.save

    def full(self: ContactMap, path: Path) -> Path:
        if self.id == "c":
            raise OSError(28, "No space left on device")
        return save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(ContactMap, "save", full)
        message = run(predict(tiny_esm), capsys, status=1)
    assert "c cannot be written to results (No space left on device); 2 maps were written" in message
    assert "1 maps written to results, 2 were there already" in run(predict(tiny_esm), capsys)


def test_a_protein_has_one_line_in_the_summary(folder: Path, tiny_esm: Path, capsys) -> None:
    run(predict(tiny_esm, "--formats=[npz]"), capsys)
    (folder / "results" / "b.npz").unlink()
    run(predict(tiny_esm, "--formats=[npz]"), capsys)
    assert sorted(row["id"] for row in summary(folder / "results")) == ["a", "b", "c"]
    (folder / "a.fasta").write_text(f">d\n{random_sequence(4, 30)}\n>a\n{random_sequence(5, 31)}\n")
    run(predict(tiny_esm, "--formats=[npz]", "--overwrite"), capsys)
    rows = summary(folder / "results")
    assert sorted((row["id"], row["length"]) for row in rows) == [("a", "31"), ("b", "30"), ("c", "30"), ("d", "30")]


def test_only_own_temporary_files_are_removed(folder: Path, tiny_esm: Path, capsys) -> None:
    (folder / "results").mkdir()
    foreign = [".swp.tmp", "notes.tmp", ".0123.tmp"]
    for name in [*foreign, f".{'a1' * 16}.tmp"]:
        (folder / "results" / name).touch()
    run(predict(tiny_esm, "--formats=[rr]"), capsys)
    left = {path.name for path in (folder / "results").iterdir()}
    assert left == {*foreign, "summary.csv", "a.rr", "b.rr", "c.rr"}


def test_names_that_files_cannot_have(folder: Path, tiny_esm: Path, capsys) -> None:
    long = "x" * 400
    names = ["a/b", "a_b", long, f"{long}y", "..", "é"]
    (folder / "a.fasta").write_text("".join(f">{name}\n{random_sequence(0, 30)}\n" for name in names))
    run(predict(tiny_esm), capsys)
    maps = {ContactMap.load(path).id for path in (folder / "results").glob("*.npz")}
    assert maps == set(names) == {row["id"] for row in summary(folder / "results")}
    assert "0 maps written to results, 6 were there already" in run(predict(tiny_esm), capsys)


def test_a_summary_that_is_none(folder: Path, tiny_esm: Path) -> None:
    (folder / "results").mkdir()
    (folder / "results" / "summary.csv").write_bytes(b"\xff\xfe\x00")
    writer = PredictionWriter(folder / "results")

    class Data:
        chains = {"predict": type("Store", (), {"ids": ["a"]})}  # noqa: RUF012

        def leave_out(self, names: set[str]) -> None:
            raise AssertionError(names)

    trainer = type("Trainer", (), {"datamodule": Data(), "is_global_zero": True})
    with pytest.raises(ContactLMError, match="results cannot be"):
        writer.setup(trainer, None, "predict")


def test_the_tuned_threshold_travels_with_the_checkpoint(folder: Path, tiny_esm: Path, capsys) -> None:
    module = ContactModule(str(tiny_esm))
    with torch.no_grad():
        module.head_parameters()[0].normal_(std=30, generator=torch.Generator().manual_seed(0))
    module.tuned_threshold = 0.125
    save_checkpoint(module, folder / "run.ckpt")
    command = ["predict", "--ckpt_path=run.ckpt", "--data.predict_paths", "a.fasta", "--trainer.accelerator=cpu"]
    contacts = {}
    for name, more in (("tuned", []), ("half", ["--model.threshold=0.5"]), ("other", ["--model.threshold", "0.9"])):
        run([*command, "--out", name, "--formats=[npz]", *more], capsys)
        rows = summary(folder / name)
        assert {row["threshold"] for row in rows} == {{"tuned": "0.125", "half": "0.500", "other": "0.900"}[name]}
        maps = [ContactMap.load(folder / name / f"{row['id']}.npz") for row in rows]
        called = [np.triu(m.probability > m.threshold, k=6).sum() for m in maps]
        assert called == [int(row["contacts_sep6"]) for row in rows]
        contacts[name] = sum(called)
    assert contacts["tuned"] > contacts["half"] > contacts["other"]
    for merge, name in (([], "adapter"), (["--merge"], "merged")):
        assert main(["export", "--ckpt_path=run.ckpt", f"--out={name}", *merge]) == 0
    run(["predict", "--model.pretrained=merged", *command[2:], "--out=by_merged", "--formats=[npz]"], capsys)
    assert {row["threshold"] for row in summary(folder / "by_merged")} == {"0.125"}
    assert {row["contacts_sep6"] for row in summary(folder / "by_merged")} == {
        row["contacts_sep6"] for row in summary(folder / "tuned")
    }
