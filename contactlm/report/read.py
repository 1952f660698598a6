"""Finding run directories and reading what they say of their runs."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contactlm.runs.record_file import RUN_FILE, read_run
from contactlm.types import ContactLMError

FINISHED = "finished"
METRICS = "metrics.csv"
PROTEINS = "test_scores.csv"
Pair = tuple[str, int | None]  # what a run starts from, its backbone and its seed


@dataclass(frozen=True, eq=False)
class Run:
    """A run's directory, what its ``run.json`` says, and where another run scored it on test."""

    path: Path
    record: dict[str, Any]
    tested_in: Path | None = None

    @property
    def arm(self) -> str:
        """Name of the training scheme."""
        return str(self.record["arm"])

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self.record.get("seed")

    @property
    def equal(self) -> dict[str, Any]:
        """What has to be equal in runs that are compared."""
        return self.record["equal"]

    @property
    def budget(self) -> int:
        """Tokens that the run was given; without a limit, those it took."""
        return self.equal.get("budget") or self.record["tokens"]

    @property
    def pair(self) -> Pair:
        """What runs of two arms share that are compared one with one: the backbone by checksum, and the seed."""
        return str(self.equal.get("backbone")), self.seed

    @property
    def reads(self) -> dict[str, Any]:
        """Input of the model in addition to the sequence; empty for most."""
        return self.record.get("reads") or {}

    @property
    def test(self) -> dict[str, float]:
        """Test scores by name; those that are not defined are left out."""
        return _defined(self.record.get("test") or {})

    @property
    def dev(self) -> dict[str, float]:
        """Dev scores of the checkpoint that was tested; of the last look where none was."""
        tested = (self.record.get("tested_at") or {}).get("steps")
        rows = [row for row in self.history if row["steps"] == tested] or self.history[-1:]
        scores = self.record.get("dev") or {}
        return _defined(scores) | (_defined(rows[0]) if rows else {})

    @property
    def history(self) -> list[dict[str, Any]]:
        """Dev scores in the course of training, with ``steps``, ``tokens``, ``flops`` and ``forward_flops``."""
        return self.record.get("dev_history") or []

    @property
    def progress(self) -> list[dict[str, int]]:
        """``steps``, ``tokens``, ``flops`` and ``forward_flops`` in the course of training."""
        return self.record.get("progress") or []

    def proteins(self) -> dict[tuple[str, str], dict[str, float]]:
        """Scores of each test protein by id and index, NaN where empty; none where the file is missing or damaged."""
        path = (self.tested_in or self.path) / PROTEINS
        try:
            with path.open(newline="", encoding="utf-8") as handle:
                rows = list(csv.DictReader(handle))
            keys = [(row.pop("id"), row.pop("index")) for row in rows]
            values = [{name: float("nan" if text == "" else text) for name, text in row.items()} for row in rows]
            return dict(zip(keys, values, strict=True))
        except (OSError, ValueError, TypeError, KeyError, csv.Error):
            return {}

    @property
    def trained(self) -> bool:
        """Whether anything was trained."""
        return bool(self.record["tokens"])


@dataclass
class Found:
    """Finished runs with scores, in order of arm, seed and path; and directories that are not used, with the reason."""

    runs: list[Run] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


def find_runs(paths: Sequence[str | Path]) -> Found:
    """Read runs from run directories and from folders that hold some, at any depth."""
    found = Found()
    for path in paths:
        _find_below(Path(path).expanduser(), found)
    _leave_out_repeated(found)
    found.runs.sort(key=lambda run: (run.arm, -1 if run.seed is None else run.seed, str(run.path)))
    if not found.runs:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in found.left_out.items())
        raise ContactLMError(f"nothing to report: {reasons}")
    return found


def _find_below(path: Path, found: Found) -> None:
    if not path.is_dir():
        raise ContactLMError(f"{path}: there is no such directory; give run directories, or folders that hold some")
    if (path / RUN_FILE).is_file():
        _add(path, found)
        return
    folders = [Path(folder) for folder, _, names in os.walk(path) if {RUN_FILE, METRICS} & set(names)]
    if not any((folder / RUN_FILE).is_file() for folder in folders):
        raise ContactLMError(
            f"{path}: not a run directory, and none below it: no {RUN_FILE}, which `contactlm fit` and `contactlm "
            "test` write"
        )
    for folder in sorted(folders):
        if not (folder / RUN_FILE).is_file():
            found.left_out[folder] = f"has {METRICS} but no {RUN_FILE}: written by another version or program"
            continue
        try:
            _add(folder, found)
        except ContactLMError as error:
            found.left_out[folder] = str(error)


def _add(folder: Path, found: Found) -> None:
    if any(run.path.resolve() == folder.resolve() for run in found.runs):
        return
    record = read_run(folder)
    missing = [name for name in ("arm", "status", "equal", "tokens", "steps", "flops") if name not in record]
    if missing:
        raise ContactLMError(f"{folder / RUN_FILE}: the record lacks {', '.join(missing)}; it may have been edited")
    run = Run(folder, record)
    if record["status"] != FINISHED:
        budget = run.equal.get("budget")
        spent = f"{record['tokens']:,} tokens" + (f" of {budget:,}" if budget else "")
        found.left_out[folder] = f"not finished ({record['status']}, {spent})"
    elif not run.test and not run.history and not run.dev:
        found.left_out[folder] = "no scores, neither on dev nor on test"
    else:
        found.runs.append(run)


def _leave_out_repeated(found: Found) -> None:
    """Keep the newest of runs of one arm, seed and command on equal terms: a copy would narrow the spread."""
    newest: dict[str, Run] = {}
    for run in sorted(found.runs, key=lambda run: (run.record.get("written") or "", str(run.path))):
        key = repr((run.arm, run.seed, run.record.get("command"), run.trained, sorted(run.equal.items()), run.reads))
        if key in newest:
            found.left_out[newest[key].path] = f"same arm and seed as the later run {run.path}"
        newest[key] = run
    found.runs = _join_evaluations(list(newest.values()), found.left_out)


def _join_evaluations(runs: Sequence[Run], left_out: dict[Path, str]) -> list[Run]:
    """Let scores of a checkpoint stand with the run that trained it, as those of one seed and not of two."""
    kept = [run for run in runs if run.record.get("command") == "fit" or not run.trained]
    others = [run for run in runs if run not in kept]
    for run in others:
        at = next((n for n, fit in enumerate(kept) if fit.trained and _is_checkpoint_of(run, fit)), None)
        if at is None:
            kept.append(run)
            continue
        fit = kept[at]
        unlike = [
            f"{name} {v}, there {fit.reads[name]}" for name, v in run.reads.items() if fit.reads.get(name, v) != v
        ]
        if unlike:
            reason = f"scores a checkpoint of {fit.path} with other options: {', '.join(unlike)}"
            reason += "; give it a name of its own with --record.arm NAME to list it separately"
        elif run.test and not fit.test:
            tested_at = {name: run.record[name] for name in ("steps", "tokens", "flops")}
            record = {**fit.record, "test": run.record["test"], "tested_at": tested_at}
            kept[at] = Run(fit.path, record, run.path)
            reason = f"its test scores stand with those of {fit.path}, which trained the checkpoint"
        elif run.test:
            reason = f"scores a checkpoint of the same arm and seed as {fit.path}"
        else:
            reason = f"scores a checkpoint of {fit.path} on dev, where that run has scores of its own"
        left_out[run.path] = reason
    return kept


def _is_checkpoint_of(run: Run, fit: Run) -> bool:
    """Whether a run that trained nothing itself is on equal terms with one of its arm and seed that did."""
    shared = [name for name, value in run.equal.items() if value is not None and fit.equal.get(name) is not None]
    return (run.arm, run.seed) == (fit.arm, fit.seed) and all(run.equal[name] == fit.equal[name] for name in shared)


def _defined(scores: dict[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items() if value is not None}
