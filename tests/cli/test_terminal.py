"""What people see in a terminal: progress, tables, help, exit statuses."""

import fcntl
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from contactlm import ContactModule, __version__
from contactlm.callbacks import ContactEvaluation, TokenBudget
from contactlm.callbacks.progress import BudgetProgressBar
from contactlm.cli import commands
from contactlm.cli.arguments import resolve_arguments
from contactlm.cli.console import about_checkpoint, score_table
from contactlm.cli.head import head_parser
from contactlm.cli.main import main
from contactlm.runs.record_file import write_run
from contactlm.shipped import checkpoint_of
from contactlm.types import singular
from tests.callbacks.test_callbacks import ForeignModule, data_module, trainer
from tests.cli.parsing import parsed
from tests.cli.test_cli import SMALL, data_options

Folders = tuple[Path, Path]


class Terminal:
    """Standard error that says it is a terminal, and remembers what was drawn."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


class Clock:
    """Ten seconds pass with every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def fit(path: Path, tiny_esm: Path, folders: Folders, bar: BudgetProgressBar, tokens: int | None) -> L.Trainer:
    callbacks = [TokenBudget(tokens), ContactEvaluation(), bar]
    options = {"enable_progress_bar": True, "val_check_interval": 2, "check_val_every_n_epoch": None}
    limits = {"max_epochs": 1} if tokens is None else {}
    runner = trainer(path, *callbacks, **options, **limits)
    runner.fit(ContactModule(str(tiny_esm)), data_module(folders))
    return runner


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("contactlm.callbacks.progress.time.monotonic", clock)
    return clock


def test_a_terminal_shows_the_budget(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(tmp_path, tiny_esm, pdb_folders, BudgetProgressBar(), 6 * 128)
    drawn = [line for line in re.split(r"[\r\n]+", terminal.text) if line.startswith("Training ")]
    shares = [int(match[1]) for line in drawn if (match := re.match(r"Training +(\d+)%\|", line))]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 100 and 50 in shares
    assert "Epoch" not in terminal.text
    last = drawn[-1]
    assert re.search(r"loss \d\.\d{3}, dev mcc_sep6 -?\d\.\d{3}, [\d,]+ tokens/s, 00:00 left", last)
    assert "tokens/s" not in drawn[0]  # nothing is known yet


def test_time_left_is_that_to_the_end_of_the_budget(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = {"now": 0.0}
    monkeypatch.setattr("contactlm.callbacks.progress.time.monotonic", lambda: moments["now"])
    bar = BudgetProgressBar()
    runner = fit(tmp_path, tiny_esm, pdb_folders, bar, 128)
    assert runner.callbacks  # type: ignore[attr-defined]
    bar._budget, bar._limit = (budget := TokenBudget(1000)), 1000
    bar._began, budget.tokens, moments["now"] = (50.0, 100), 400, 80.0  # 300 tokens in 30 s: 600 more in 60 s
    assert bar.status().endswith("10 tokens/s, 01:00 left")


@pytest.mark.parametrize("disabled", [False, True])
def test_a_log_gets_lines_not_bars(
    tmp_path: Path,
    tiny_esm: Path,
    pdb_folders: Folders,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    disabled: bool,
) -> None:
    terminal = Terminal()
    if disabled:  # TQDM_DISABLE on a terminal
        monkeypatch.setenv("TQDM_DISABLE", "1")
        monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logging.getLogger("contactlm"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("contactlm"), "handlers", [])  # those of a command run before
    with caplog.at_level(logging.INFO, logger="contactlm.callbacks.progress"):
        fit(tmp_path, tiny_esm, pdb_folders, BudgetProgressBar(seconds_between_lines=60), 6 * 128)
    lines = [record.message for record in caplog.records if record.name == "contactlm.callbacks.progress"]
    assert re.fullmatch(
        r"Training: 100 % of 768 tokens; loss \d.\d{3}, dev mcc_sep6 -?\d.\d{3}, .* tokens/s, 00:00 left", lines[-1]
    )
    assert 2 <= len(lines) <= 5
    assert "Training" not in terminal.text and "Validation" not in terminal.text


def test_no_lines_where_none_are_wanted(
    tmp_path: Path,
    tiny_esm: Path,
    pdb_folders: Folders,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("contactlm"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="contactlm.callbacks.progress"):
        fit(tmp_path, tiny_esm, pdb_folders, BudgetProgressBar(seconds_between_lines=0), 3 * 128)
    assert not [record for record in caplog.records if record.name == "contactlm.callbacks.progress"]


def test_without_a_limit_epochs_are_shown(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(tmp_path, tiny_esm, pdb_folders, BudgetProgressBar(), None)
    assert "Epoch 0" in terminal.text
    loader: DataLoader = DataLoader(torch.ones(6, 4), batch_size=2)  # type: ignore[arg-type]
    runner = trainer(tmp_path, BudgetProgressBar(), max_epochs=1, enable_progress_bar=True)
    runner.fit(ForeignModule(), loader)


def test_the_table_of_scores() -> None:
    values = {"proteins": 40, "tuned_threshold": 0.3125, "mcc_sep6": 0.4124, "mcc_sep6_tuned": 0.45, "mcc": -0.0001}
    values |= {"trivial_mcc_sep6": 0.0, "trivial_mcc": 0.704, "p_at_L_long": float("nan")}
    lines = score_table("test", {f"test/{name}": value for name, value in values.items()}, ", best").splitlines()
    assert lines[0].split() == ["scores", "of", "40", "proteins,", "best", "at", "0.5", "at", "0.312", "(tuned)"]
    assert [line.split() for line in lines[1:]] == [
        ["test", "mcc_sep6", "0.412", "0.450", "(trivial", "0.000)"],
        ["test", "mcc", "0.000", "(trivial", "0.704)"],
        ["test", "ranking,", "without", "a", "threshold:"],
        ["test", "p_at_L_long", "–"],
    ]
    assert len({line.index("(trivial") for line in lines if "(trivial" in line}) == 1
    assert score_table("dev", {}) == "dev   not scored"


def test_help_of_the_package_names_every_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in commands.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", shown, re.MULTILINE)
    for status in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert f"\n  {status}" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert main([]) == 2 and main(["--version"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"contactlm {__version__}\n" and "commands:" in captured.err
    assert main(["tset"]) == 2
    assert "did you mean test?" in capsys.readouterr().err


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_every_command_is_readable(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["contactlm"])
    try:
        status: object = main([name, "--help"])
    except SystemExit as stop:
        status = stop.code
    assert status == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: contactlm {name}")
    if commands.COMMANDS[name].entry:
        return
    top = shown.splitlines()[:15]
    assert len(top[0]) < 100 and any(line.startswith(f"  contactlm {name} ") for line in top)
    assert shown.count("\n  contactlm ") >= 1
    assert shown.rstrip().endswith(commands.STATUSES.splitlines()[-1].strip())


@pytest.mark.parametrize(
    ("command", "wrong", "nearest"),
    [
        ("head fit", "--wrong", "--strengths"),
        ("head fit", "--data.crop_lenght", "--data.crop_length"),
        ("fit", "--crop_length", "--data.crop_length"),
        ("pack", "--cluster_progam", "--cluster_program"),
        ("index", "--struktures", "--structures"),
        ("report", "--outt", "--out"),
    ],
)
def test_an_unknown_option_is_one_line_with_the_nearest(
    command: str, wrong: str, nearest: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["contactlm"])
    needed = {
        "head fit": ["--model.pretrained=x", "--out=x"],
        "pack": ["--structures", "x", "--out=x"],
        "index": ["build", "--structures", "x", "--out=x"],
        "report": ["x"],
    }
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), *needed.get(command, []), wrong, "1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and f"error: unrecognized arguments: {wrong}" in line
    assert line.endswith(f"; the nearest option is {nearest}; see contactlm {command} --help")


SHORT = ("fit", "validate", "test", "predict")


@pytest.mark.parametrize("name", [*SHORT, "head"])
def test_the_short_help_is_short_and_true(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 60 and max(map(len, text.splitlines())) <= 120
    options = re.findall(r"^  --([\w.]+) +(\S*)(?: +(.*))?$", text, re.MULTILINE)
    assert 10 < len(options) <= 25 and len({option for option, *_ in options}) == len(options)
    values: Any
    if name == "head":
        values = head_parser().parse_args(["--model.pretrained=", "--out="]).as_dict()
        options = [each for each in options if each[0] not in ("model.pretrained", "out", "chain_ids")]
    else:
        values = parsed([name], ContactModule)
    for option, default, _ in options:
        if option == "config":
            continue
        value = values
        for part in option.split("."):
            value = value[part]
        assert (",".join(value) if option == "formats" else value) == yaml.safe_load(default), option


@pytest.mark.parametrize("name", ["fit", "predict"])
def test_the_whole_help_has_no_marks_of_programs(name: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["contactlm"])
    with pytest.raises(SystemExit) as stop:
        main([name, "--help", "all"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.count("\n") > 300 and "--data.leak_report" in text
    assert not re.search(r"<function|<class|:class:|:func:|:mod:| at 0x", text)


WAYS_TO_WRITE = [
    ("predict best.ckpt a.fasta b.cif dir/", "--ckpt_path best.ckpt --data.predict_paths a.fasta b.cif dir/"),
    ("predict --out maps a.fasta --overwrite b.cif", "--out maps --overwrite --data.predict_paths a.fasta b.cif"),
    ("predict --data.predict_paths a b --out c d", "--out c --data.predict_paths a b d"),
    ("predict --formats html,png a", '--formats ["html","png"] --data.predict_paths a'),
    ("predict --formats=html a", '--formats=["html"] --data.predict_paths a'),
    ("predict --formats [npz,rr] a", '--formats ["npz","rr"] --data.predict_paths a'),
    ("fit --budget.max_tokens 5M", "--budget.max_tokens 5000000"),
    ("fit --budget.max_tokens=2.5e6", "--budget.max_tokens=2500000"),
    (
        "fit --budget.max_tokens 5_000 --data.batch_tokens 8k",
        "--budget.max_tokens 5000 --data.batch_tokens 8000",
    ),
    ("fit --budget.max_tokens 0.5", "--budget.max_tokens 0.5"),
]


@pytest.mark.parametrize(("written", "meant"), WAYS_TO_WRITE)
def test_what_one_types_is_what_the_parser_takes(written: str, meant: str) -> None:
    command, *words = written.split()
    plain = [word.replace('", "', '","') for word in resolve_arguments([command, *words])]
    assert plain == [word.replace('", "', '","') for word in resolve_arguments([command, *meant.split()])]


def test_the_folder_of_a_run_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    for version in (0, 1):
        folder = tmp_path / "run" / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True)
        for name in ("best-step=7", "last"):
            (folder / f"{name}.ckpt").touch()
    best = str(tmp_path / "run" / "version_0" / "checkpoints" / "best-step=7.ckpt")
    assert checkpoint_of(str(tmp_path / "run" / "version_0")) == checkpoint_of(str(Path(best).parent)) == best
    newest = tmp_path / "run" / "version_1" / "checkpoints"
    os.utime(newest / "best-step=7.ckpt", (2e9, 2e9))
    assert checkpoint_of(str(tmp_path / "run")) == str(newest / "best-step=7.ckpt")
    assert resolve_arguments(["fit", "--ckpt_path", str(newest)])[-1] == str(newest / "last.ckpt")
    assert checkpoint_of("last") == "last" and checkpoint_of(best) == best
    assert checkpoint_of(str(tmp_path)) == str(tmp_path)
    assert _written_out("predict", str(tmp_path / "run"), "a.fasta") == [str(newest / "best-step=7.ckpt"), "a.fasta"]
    for best in (tmp_path / "run").rglob("best-*"):
        best.unlink()  # as in a run without a dev set
    assert Path(checkpoint_of(str(tmp_path / "run"))).name == "last.ckpt"


def _written_out(command: str, *given: str) -> list[str]:
    found = resolve_arguments([command, *given])
    return [found[found.index("--ckpt_path") + 1], *(json.loads(found[-1].partition("=")[2]))]


def test_a_run_that_was_interrupted_is_named(tmp_path: Path) -> None:
    path = tmp_path / "version_0" / "checkpoints" / "best-step=7.ckpt"
    path.parent.mkdir(parents=True)
    assert about_checkpoint(str(path), {"global_step": 1234}, False) == f"using {path}, of step 1,234"
    write_run(tmp_path / "version_0", {"status": "finished"})
    assert "interrupted" not in about_checkpoint(str(path), {}, False)
    write_run(tmp_path / "version_0", {"status": "running"})
    assert "its run was interrupted or still runs" in about_checkpoint(str(path), {}, False)
    assert about_checkpoint(str(path), {"global_step": 7}, True) == f"resuming {path}, of step 7"


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--model.attention", "fast", "give one of: auto, streamed, fused, plain"),
        ("--budget.max_tokens", "many", "give one of: a whole number, null"),
        ("--trainer.precision", "12", "bf16-mixed"),
        ("--data.batch_size", "1.5", "a whole number"),
        ("--model.optimizer", "Nope", "Nope"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_choices(
    option: str, value: str, told: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(["fit", option, value], ContactModule)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and told in line and value in line
    assert "Union" not in line and "<class" not in line and "typing" not in line


def test_one_is_not_counted_in_the_plural() -> None:
    assert singular("train_dir: 1 chains from 1 files") == "train_dir: 1 chain from 1 file"
    assert singular("a: 1 chains are copies of another") == "a: 1 chain is copies of another"
    assert singular("none of 1 dev chains has") == "none of 1 dev chain has"
    assert singular("21 chains, 1,001 files, 0.1 maps, 10 of 11 test chains") == (
        "21 chains, 1,001 files, 0.1 maps, 10 of 11 test chains"
    )


def test_a_model_far_below_copying_its_hits_is_remarked_on() -> None:
    scores = {"test/mcc_sep6": 0.2, "test/copy_mcc_sep6": 0.6}
    assert "far below copying its hits (mcc_sep6 0.200 against 0.600)" in score_table("test", scores)
    assert "far below" not in score_table("test", scores | {"test/mcc_sep6": 0.55})


@pytest.mark.slow
def test_examples_of_the_help_can_be_parsed() -> None:
    for command in SHORT:
        for example in re.findall(r"^  contactlm (.+)$", commands.short_help(command), re.MULTILINE):
            # without the checkpoint, which says of which class it is
            words = re.sub(r"--ckpt_path \S+|\S+\.ckpt|…", "", example).split()
            assert words[0] == command
            parsed(words, ContactModule)


def command_of(tiny_esm: Path, folders: Folders, *more: str) -> list[str]:
    options = [*data_options(folders), *SMALL, f"--model.pretrained={tiny_esm}", "--budget.max_tokens=600"]
    return [sys.executable, "-m", "contactlm", "fit", "--config=crop200", *options, *more]


@pytest.mark.slow
def test_a_run_says_what_matters_and_nothing_else(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command_of(tiny_esm, pdb_folders), cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    known = (
        *("train_dir:", "test_dir:", "training ", "Training: 100 %"),
        *("  ", "Reading structures", "Aligning"),
        r".*broken\.pdb",
        r"\d+ chains to train on",
        r"(none|\d+) of \d+ (dev|test) chains?",
    )
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    strangers = [line for line in lines if not any(re.match(start, line) for start in known)]
    assert not strangers
    assert [line.split()[0] for line in done.stdout.splitlines()].count("test") >= 6
    for start in ("scores of", "dev   mcc_sep6", "test  mcc_sep6", "map  ", "checkpoint  ", "logs  "):
        assert any(line.startswith(start) for line in done.stdout.splitlines()), start


@pytest.mark.slow
def test_a_run_under_a_real_terminal(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # rows and columns
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TQDM_DISABLE", None)
    options = ["--test_after_fit=false", "--trainer.val_check_interval=4"]
    process = subprocess.Popen(
        command_of(tiny_esm, pdb_folders, *options), cwd=tmp_path, stdout=subprocess.PIPE, stderr=child, env=environment
    )
    os.close(child)
    drawn = b""
    while True:
        try:
            drawn += os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
    out, _ = process.communicate()
    assert process.returncode == 0
    assert re.search(rb"Training 100%\|.*loss \d\.\d+", drawn)
    assert b"Training" not in out and b"dev   mcc_sep6" in out  # bars and results do not mix
