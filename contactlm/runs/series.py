"""Series of runs: the command that starts a run passes over it once it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from contactlm.runs.checkpoint_io import runs_folder
from contactlm.runs.record_file import RUN_FILE, read_run
from contactlm.types import ContactLMError

CONFIG_FILE = "config.yaml"
FINISHED = "finished"
# Options that decide what a run comes to; others (devices, logging, progress bars) may differ.
DECISIVE = ("seed_everything", "model_class", "model", "data", "budget", "test_after_fit")
LIMITS = ("max_steps", "max_epochs", "max_time", "accumulate_grad_batches", "precision", "gradient_clip_val")


@dataclass(frozen=True)
class FinishedRun:
    """A run that is complete.

    Attributes:
        path: Its directory.
        record: What its ``run.json`` says.
    """

    path: Path
    record: Mapping[str, Any]

    def __str__(self) -> str:
        test, dev = (self.record.get(role) or {} for role in ("test", "dev"))
        scores = [f"{role} mcc_sep6 {each['mcc_sep6']:.3f}" for role, each in (("dev", dev), ("test", test))
                  if each.get("mcc_sep6") is not None]  # fmt: skip
        return ", ".join([f"{self.path} is finished: {self.record['tokens']:,} tokens", *scores])


def finished_run(config: Mapping[str, Any], seed: int | None) -> FinishedRun | None:
    """The newest run of a name and seed, if it is finished and came of the same options.

    Finished means: training came to its end, and the test set, if there is one, is scored. Where the budget or another
    option has changed since, there is still something to do.

    Args:
        config: All options of the command, as plain values.
        seed: Of the data.

    Returns:
        None: the run is to be started, or to go on.
    """
    try:
        folder, _ = runs_folder(config["trainer"], config["name"])
    except ContactLMError:
        return None  # of other loggers only a run itself knows where it is
    newest: FinishedRun | None = None
    for path in folder.expanduser().glob(f"*/{RUN_FILE}"):
        try:
            record = read_run(path.parent)
        except ContactLMError:
            continue  # a damaged record tells nothing: the run goes on, if it can
        if (record.get("command"), record.get("seed")) != ("fit", seed):
            continue
        if newest is None or str(record.get("written")) > str(newest.record.get("written")):
            newest = FinishedRun(path.parent, record)
    return newest if newest is not None and _is_complete(newest, config) else None


def _is_complete(run: FinishedRun, config: Mapping[str, Any]) -> bool:
    if run.record.get("status") != FINISHED:
        return False
    data = config["data"]
    tests = config["test_after_fit"] and bool(data["test_dir"] or data["test_ids"] or data["synthetic"])
    if tests and not run.record.get("test"):
        return False
    try:
        before = yaml.safe_load((run.path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(before, dict) and _decisive(before) == _decisive(config)


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    trainer = config.get("trainer") or {}
    return {name: config.get(name) for name in DECISIVE} | {name: trainer.get(name) for name in LIMITS}
