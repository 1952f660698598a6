"""``contactlm predict`` as a process: killed, interrupted, run again."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactModule
from contactlm.callbacks.writer import PredictionWriter
from contactlm.cli.main import main
from contactlm.maps.contact_map import ContactMap
from contactlm.types import ContactLMError, singular
from tests.conftest import make_tiny_esm, random_sequence, write_pdb
from tests.modules.test_export import save_checkpoint
from tests.processes import command, output, start, wait_until

N = 60
NAMES = [f"p{i:02d}" for i in range(N)]
KINDS = ("npz", "rr", "png")


def stop(process: BaseProcess, number: signal.Signals, when: Callable[[], bool]) -> int | None:
    """Send a signal as soon as something holds, and wait for the end; the exit status."""
    wait_until(when, process, 120)
    assert process.pid is not None and process.exitcode is None
    os.kill(process.pid, number)
    process.join(120)
    return process.exitcode


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


def written(results: Path) -> int:
    return len(summary(results)) if (results / "summary.csv").is_file() else 0


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, tiny_esm: Path) -> None:
    results = write_fasta(tmp_path) / "results"
    killed = start(command, *predict(tiny_esm), folder=tmp_path, name="killed")
    assert stop(killed, signal.SIGKILL, lambda: written(results) >= 5) == -signal.SIGKILL
    before = stamps(results)
    assert 5 * len(KINDS) <= len(before) < N * len(KINDS)
    (results / f".{'0' * 32}.tmp").touch()  # what a kill in the middle of a write leaves
    with (results / "summary.csv").open("a") as handle:
        handle.write("p59,4")
    process = start(command, *predict(tiny_esm), folder=tmp_path)
    process.join(120)
    assert process.exitcode == 0, output(tmp_path)
    kept = len(before) // len(KINDS)
    assert f"{N - kept} maps written to results, {kept} already present" in output(tmp_path)
    assert {name: stamp for name, stamp in stamps(results).items() if name in before} == before
    expected = {f"{name}.{kind}" for name in NAMES for kind in KINDS} | {"summary.csv", "index.html"}
    assert {path.name for path in results.iterdir()} == expected
    assert sorted(row["id"] for row in summary(results)) == NAMES
    alone = ContactModule(str(tiny_esm)).predict_map(random_sequence(59, 40))
    np.testing.assert_allclose(ContactMap.load(results / "p59.npz").probability, alone.probability, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"a.fasta", "results", "killed.log", "process.log"}


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_a_short_message(tmp_path: Path, tiny_esm: Path) -> None:
    results = write_fasta(tmp_path) / "results"
    process = start(command, *predict(tiny_esm), folder=tmp_path)
    assert stop(process, signal.SIGINT, lambda: len(list(results.glob("*.png"))) >= 3) == 130
    said = output(tmp_path)
    assert "Traceback" not in said and "maps written to results; run the same command again to resume" in said
    assert len(said.splitlines()) < 15
    assert not list(results.glob(".*"))
    assert {row["id"] for row in summary(results)} <= set(NAMES)


TELL = """
import pathlib, sys

class Tell:
    def find_spec(self, name, *_):
        if name == "lightning":
            pathlib.Path("importing").touch()

sys.meta_path.insert(0, Tell())
"""


@pytest.mark.slow
def test_ctrl_c_while_libraries_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(TELL)  # no clock tells how far a busy computer is
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    process = subprocess.Popen(
        [sys.executable, "-m", "contactlm", "predict", "--help"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not (tmp_path / "importing").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
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
        assert message.startswith(f"contactlm: error: {out}") and "cannot be written" in message


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
    assert "1 map written to results, 2 already present" in run(predict(tiny_esm), capsys)


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
    assert left == {*foreign, "summary.csv", "index.html", "a.rr", "b.rr", "c.rr"}


@pytest.mark.slow
def test_names_that_files_cannot_have(folder: Path, tiny_esm: Path, capsys) -> None:
    long = "x" * 400
    names = ["a/b", "a_b", long, f"{long}y", "..", "é"]
    (folder / "a.fasta").write_text("".join(f">{name}\n{random_sequence(0, 30)}\n" for name in names))
    run(predict(tiny_esm), capsys)
    maps = {ContactMap.load(path).id for path in (folder / "results").glob("*.npz")}
    assert maps == set(names) == {row["id"] for row in summary(folder / "results")}
    assert "0 maps written to results, 6 already present" in run(predict(tiny_esm), capsys)


def test_a_summary_that_is_none(folder: Path, tiny_esm: Path) -> None:
    (folder / "results").mkdir()
    (folder / "results" / "summary.csv").write_bytes(b"\xff\xfe\x00")
    writer = PredictionWriter(folder / "results")

    class Data:
        chains = {"predict": type("Store", (), {"ids": ["a"]})}  # noqa: RUF012

        def leave_out(self, finished: object) -> None:
            raise AssertionError(finished)

    trainer = type("Trainer", (), {"datamodule": Data(), "is_global_zero": True})
    with pytest.raises(ContactLMError, match=r"summary\.csv is no summary"):
        writer.setup(trainer, None, "predict")


@pytest.mark.slow
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


# --- results that are there already ---


def predict_all(tiny_esm: Path, *more: str) -> list[str]:
    return predict(tiny_esm, "--formats=[npz]", *more)


def told(arguments: list[str], capsys: pytest.CaptureFixture, written: int, kept: int) -> list[str]:
    """Run a prediction and return what it says of earlier results; so many maps must be written and kept."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    expected = f"{written} maps written to results" + (f", {kept} already present" if kept else "")
    assert captured.out.splitlines()[-1] == f"{singular(expected)}; open results/index.html"
    return [line for line in captured.err.splitlines() if "recomputing" in line]


@pytest.mark.slow
def test_another_sequence_of_the_same_name_is_predicted(folder: Path, tiny_esm: Path, capsys) -> None:
    assert told(predict_all(tiny_esm), capsys, 3, 0) == []
    sequences = [random_sequence(0, 30), random_sequence(8, 30), random_sequence(2, 30)]
    (folder / "a.fasta").write_text("".join(f">{name}\n{s}\n" for name, s in zip("abc", sequences, strict=True)))
    (line,) = told(predict_all(tiny_esm), capsys, 1, 2)
    reason = "made from another sequence or structure: 1 protein (b)"
    assert line == f"results: recomputing: the existing result was {reason}"
    maps = [ContactMap.load(folder / "results" / f"{name}.npz") for name in "abc"]
    assert [predicted.sequence for predicted in maps] == sequences
    assert told(predict_all(tiny_esm), capsys, 0, 3) == []


def test_other_coordinates_of_the_same_name_are_predicted(folder: Path, tiny_esm: Path, capsys) -> None:
    sequences = {"A": random_sequence(3, 35), "B": random_sequence(4, 33)}
    command = [*predict_all(tiny_esm), "--data.predict_paths", "s.pdb", "--data.read_workers=0"]
    write_pdb(folder / "s.pdb", sequences, seed=1)
    told(command, capsys, 5, 0)  # those of the FASTA file as well
    first = {row["id"]: row["mcc"] for row in summary(folder / "results")}
    write_pdb(folder / "s.pdb", sequences, seed=2)
    (line,) = told(command, capsys, 2, 3)
    assert line.endswith("another sequence or structure: 2 proteins (s_A, s_B)")
    second = {row["id"]: row["mcc"] for row in summary(folder / "results")}
    assert {name for name in first if first[name] != second[name]} <= {"s_A", "s_B"}


@pytest.mark.slow
def test_another_model_predicts_again(folder: Path, tiny_esm: Path, capsys) -> None:
    told(predict_all(tiny_esm), capsys, 3, 0)
    other = make_tiny_esm(folder / "other", seed=1)
    (line,) = told(predict_all(other), capsys, 3, 0)
    assert re.search(r"was made from another model \(checksum \w{16}, now \w{16}\): 3 proteins", line)
    assert told(predict_all(make_tiny_esm(folder / "copy", seed=1)), capsys, 0, 3) == []  # by weights, not by name
    command = ["predict", "--data.predict_paths", "a.fasta", "--out=results", "--formats=[npz]"]
    command += ["--trainer.accelerator=cpu"]
    checksums = {summary(folder / "results")[0]["model"]}
    for name, seed in (("one", 1), ("two", 2)):
        module = ContactModule(str(other))
        with torch.no_grad():  # the same backbone, and another adapter
            for weight in module.parameters():
                if weight.requires_grad:
                    weight.normal_(generator=torch.Generator().manual_seed(seed))
        save_checkpoint(module, folder / f"{name}.ckpt")
        assert "another model" in told([*command, f"--ckpt_path={name}.ckpt"], capsys, 3, 0)[0]
        saved = ContactMap.load(folder / "results" / "a.npz")
        expected = ContactModule.load_from_checkpoint(folder / f"{name}.ckpt").predict_map(saved.sequence)
        np.testing.assert_allclose(saved.probability, expected.probability, atol=1e-6)
        checksums.add(saved.how["model_checksum"])
    assert len(checksums) == 3
    assert told([*command, "--ckpt_path=two.ckpt"], capsys, 0, 3) == []


@pytest.mark.slow
def test_other_options_predict_again(folder: Path, tiny_esm: Path, capsys) -> None:
    told(predict_all(tiny_esm), capsys, 3, 0)
    for option, shown in (
        ("--model.window=20", r"overlap=511, now 10, window=1022, now 20"),
        ("--model.threshold=0.25", r"overlap=10, now 511, threshold=0.5, now 0.25, window=20, now 1022"),
        ("--trainer.precision=bf16-mixed", r"precision=32-true, now bf16-mixed, threshold=0.25, now 0.5"),
        ("--dtype=float16", "dtype=float32, now float16, precision=bf16-mixed, now 32-true"),
    ):
        (line,) = told(predict_all(tiny_esm, option), capsys, 3, 0)
        assert line.endswith(f"made from other options ({shown}): 3 proteins (a, b, c)")
        assert told(predict_all(tiny_esm, option), capsys, 0, 3) == []
    told(predict(tiny_esm, "--overwrite", "--formats=[rr]", "--pairs_per_residue=1"), capsys, 3, 0)
    assert told(predict(tiny_esm, "--formats=[rr]", "--pairs_per_residue=1"), capsys, 0, 3) == []
    (line,) = told(predict(tiny_esm, "--formats=[rr]", "--pairs_per_residue=null"), capsys, 3, 0)
    assert "pairs_per_residue=1.0, now None" in line
    pairs = [line for line in (folder / "results" / "a.rr").read_text().splitlines() if " 0 8 " in line]
    assert len(pairs) == 24 * 25 / 2  # all of 30 residues at |i - j| >= 6


def test_results_that_do_not_say_what_they_are_of_are_made_again(folder: Path, tiny_esm: Path, capsys) -> None:
    told(predict_all(tiny_esm), capsys, 3, 0)
    rows = summary(folder / "results")
    with (folder / "results" / "summary.csv").open("w", newline="") as handle:  # as version 0.1 wrote it
        writer = csv.DictWriter(handle, ["id", "length", "threshold", "seconds"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (line,) = told(predict_all(tiny_esm), capsys, 3, 0)
    reason = "does not record its input: 3 proteins (a, b, c)"
    assert line == f"results: recomputing: the existing result {reason}"
    assert [row["id"] for row in summary(folder / "results")] == [row["id"] for row in rows]


@pytest.mark.slow
def test_names_that_differ_in_case_only_share_no_file(folder: Path, tiny_esm: Path, capsys) -> None:
    """Also of two runs into one folder: some file systems take 1abc_A.npz and 1abc_a.npz for the same file."""
    records = {name: f">{name}\n{random_sequence(n, 30)}\n" for n, name in enumerate(["1abc_A", "1abc_a", "1ABC_A"])}
    for record in records.values():
        (folder / "a.fasta").write_text(record)
        told(predict_all(tiny_esm), capsys, 1, 0)
    files = {row["id"]: row["file"] for row in summary(folder / "results")}
    assert set(files) == set(records) and files["1abc_A"] == "1abc_A"
    assert len({name.lower() for name in files.values()}) == 3
    for n, name in enumerate(records):
        predicted = ContactMap.load(folder / "results" / f"{files[name]}.npz")
        assert (predicted.id, predicted.sequence) == (name, random_sequence(n, 30))
    (folder / "a.fasta").write_text("".join(list(records.values())[::-1]))
    assert told(predict_all(tiny_esm), capsys, 0, 3) == []


# --- formats that are missing ---


@pytest.mark.slow
def test_a_missing_format_is_written_from_the_npz(folder: Path, tiny_esm: Path, capsys, monkeypatch) -> None:
    write_pdb(folder / "s.pdb", {"A": random_sequence(3, 35), "B": random_sequence(4, 33)})
    (folder / "a.fasta").unlink()
    command = ["predict", "--model.pretrained", str(tiny_esm), "--trainer.accelerator=cpu", "--out=results"]
    command += ["--data.predict_paths", "s.pdb", "--data.read_workers=0", "--data.assembly=complex"]
    run([*command, "--formats=[npz]"], capsys)
    before = (folder / "results" / "s.npz").stat().st_mtime_ns
    with monkeypatch.context() as patch:  # nothing is predicted
        patch.setattr(ContactModule, "predict_step", lambda *_: pytest.fail("predicted again"))
        out = run([*command, "--formats=[html,csv,pml,cxc,pdb,rr]"], capsys)
    assert "0 maps written to results, 1 already present (1 in fewer formats)" in out
    kinds = {"npz", "html", "csv", "pml", "cxc", "pdb", "rr"}
    assert {path.name for path in (folder / "results").iterdir()} == {f"s.{kind}" for kind in kinds} | {
        "summary.csv",
        "index.html",
    }
    assert (folder / "results" / "s.npz").stat().st_mtime_ns == before
    (row,) = summary(folder / "results")
    assert set(row["formats"].split()) == kinds and "pairs_per_residue" in row["options"] and "dtype" in row["options"]
    with (folder / "results" / "s.csv").open(newline="") as handle:
        assert {row["chain_j"] for row in csv.DictReader(handle)} == {"A", "B"}
    assert "0 maps written to results, 1 already present" in run([*command, "--formats=[npz,html]"], capsys)


def test_a_format_that_one_protein_cannot_have_costs_no_other_file(folder: Path, tiny_esm: Path, capsys) -> None:
    """ChimeraX's commands cannot name the first file: it has both kinds of quotes."""
    (folder / "a.fasta").unlink()
    for n, name in enumerate(('it\'s "x".pdb', "p.pdb", "q.pdb")):
        write_pdb(folder / name, {"A": random_sequence(n, 35)})
    command = ["predict", "--model.pretrained", str(tiny_esm), "--trainer.accelerator=cpu", "--out=results"]
    command += ["--data.predict_paths", str(folder), "--data.read_workers=0", "--formats=[npz,cxc,rr]"]
    for counted in ("3 maps written", "0 maps written to results, 3 already present"):
        assert main(command) == 0
        captured = capsys.readouterr()
        assert counted in captured.out and 'no cxc, of 1 protein (it\'s "x"_A): ' in captured.err
        files = [path.suffix for path in (folder / "results").iterdir()]
        assert [files.count(kind) for kind in (".npz", ".rr", ".cxc", ".html")] == [3, 3, 2, 1]
        formats = {row["id"]: row["formats"] for row in summary(folder / "results")}
        assert formats == {'it\'s "x"_A': "npz rr", "p_A": "npz cxc rr", "q_A": "npz cxc rr"}


def test_the_chain_of_an_assembly_has_a_name_in_chimerax(shared: Path, folder: Path, tiny_esm: Path, capsys) -> None:
    names = ("04_a_assembly_chain", "06_four_letter_termini")
    files = [str(next((shared / "pdb" / "reports").glob(f"{name}.*"))) for name in names]
    command = ["predict", "--model.pretrained", str(tiny_esm), "--trainer.accelerator=cpu", "--out=results"]
    command += ["--data.predict_paths", *files, "--data.read_workers=0", "--formats=[npz,cxc]"]
    assert "2 maps written" in run([*command, "--data.assembly=complex"], capsys)
    for name, chain in zip(names, ('::chain_id=="A-2"@CA', "#1/A:"), strict=True):
        (script,) = (folder / "results").glob(f"{name}*.cxc")
        assert chain in script.read_text()
    assert (folder / "results" / "index.html").is_file()


@pytest.mark.slow
def test_files_of_an_older_model_are_not_taken_for_the_new_ones(folder: Path, tiny_esm: Path, capsys) -> None:
    run(predict(tiny_esm, "--formats=[npz,csv]"), capsys)
    old = (folder / "results" / "a.csv").read_text()
    other = make_tiny_esm(folder / "other", seed=1)
    told(predict(other, "--formats=[rr]"), capsys, 3, 0)
    assert (folder / "results" / "a.csv").read_text() == old
    told(predict(other, "--formats=[csv]"), capsys, 3, 0)  # neither the table nor the .npz is of this model
    assert (folder / "results" / "a.csv").read_text() != old


def test_a_damaged_npz_is_predicted_again(folder: Path, tiny_esm: Path, capsys) -> None:
    run(predict_all(tiny_esm), capsys)
    (folder / "results" / "b.npz").write_bytes(b"PK")
    assert "1 map written to results, 2 already present (2 in fewer formats)" in run(
        predict(tiny_esm, "--formats=[npz,csv]"), capsys
    )
    assert ContactMap.load(folder / "results" / "b.npz").id == "b"
