"""The options of runs, from their ``config.yaml`` and their records, and those in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from contactlm.report.read import Run

CONFIG = "config.yaml"
IN_RECORD = ("scheme", "reads", "equal", "machine")  # parts of a record that hold options and circumstances


def run_options(run: Run) -> dict[str, str]:
    """All options of a run as text, by dotted name: of its config where it has one, and of its record."""
    record = {name: run.record.get(name) for name in ("module", "version", "optimizer", *IN_RECORD)}
    return dict(_flat({"seed": run.seed, **record})) | dict(_flat(_config(run.path / CONFIG)))


def differing_options(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The options in which runs differ, by name: each run's value, empty where it has none."""
    options = [run_options(run) for run in runs]
    names = sorted(set().union(*options))
    values = {name: [each.get(name, "") for each in options] for name in names}
    return {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}


def _config(path: Path) -> Mapping[str, Any]:
    """A run's options; none where the file is missing or cannot be read: the record tells what bears on the scores."""
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return options if isinstance(options, Mapping) else {}


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
