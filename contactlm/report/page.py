"""``report.html``: the report of some runs to open in a browser, in one file: figures, and tables that sort."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from contactlm.pages.frame import escape, write_frame
from contactlm.report.compare import by_arm
from contactlm.report.read import Run
from contactlm.report.table import COLUMNS, table_rows

PAGE = "report.html"
CONFIG = "config.yaml"
PROTEIN_SCORES = ("mcc_sep6", "p_at_L_long")
DIGITS = {"gflops": 1, "forward_gflops": 1, "training_seconds": 1, "total_seconds": 1}
HEADER = """\
<header><div><h1>{title}</h1></div><button id="theme" type="button">Light / dark</button></header>
<ul class="statements">{statements}</ul>
"""
SECTION = """\
<h2>{title}</h2>
<div class="row"><input type="search" data-searches="{place}" placeholder="search" aria-label="Search: {title}">
  <span class="quiet" id="{place}-count"></span></div>
<div class="scroll" id="{place}"></div>
"""


def write_page(runs: Sequence[Run], statements: Sequence[str], figures: Sequence[Path], path: Path) -> None:
    """Write the page of some runs that may be compared, with PNG files and what the report says, line by line."""
    rows = table_rows(runs)
    tables = [
        _table("arms", "Arms: mean and sd over seeds", *_scores([row for row in rows if row["row"] != "run"], "row")),
        _table("each", "Every run", *_scores([row for row in rows if row["row"] == "run"], "run")),
        _table("options", "Options in which the runs differ", *_options(runs)),
        _table("proteins", "Protein by protein: test scores, means over seeds", *_proteins(runs)),
    ]
    tables = [table for table in tables if table["rows"]]
    body = _header(f"Report of {len(runs)} runs", statements)
    for figure in figures:
        image = base64.b64encode(figure.read_bytes()).decode()
        body += (
            f'<p><img src="data:image/png;base64,{image}" alt="{escape(figure.stem)}" style="max-width: 100%"></p>\n'
        )
    body += "".join(SECTION.format(title=table["caption"], place=table["place"]) for table in tables)
    write_frame(path, f"Report of {len(runs)} runs", body, {"tables": tables}, ["tables"], library=False)


def write_overview(statements: Sequence[str], sets: Sequence[str], path: Path) -> None:
    """Write a page that leads to those of several groups of runs, in the folders ``sets`` beside it."""
    links = "".join(f'<li><a href="{quote(name)}/{PAGE}">{escape(name)}</a></li>' for name in sets)
    body = f"{_header('Report of runs', statements)}<h2>Groups of runs that may be compared</h2>\n<ul>{links}</ul>"
    write_frame(path, "Report of runs", body, {"tables": []}, ["tables"], library=False)


def _header(title: str, statements: Sequence[str]) -> str:
    return HEADER.format(title=escape(title), statements="".join(f"<li>{escape(line)}</li>" for line in statements))


def _table(place: str, caption: str, columns: list[dict[str, Any]], rows: list[list[Any]]) -> dict[str, Any]:
    cells = [[None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows]
    return {"place": place, "caption": caption, "columns": columns, "rows": cells}


def _scores(rows: Sequence[Mapping[str, Any]], last: str) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    used = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    columns: list[dict[str, Any]] = [{"title": "arm", "text": True}, {"title": "seed"}]
    for name in used:
        is_score = name.startswith(("test_", "dev_"))
        title = name.replace("_", " ", 1) if is_score else name.replace("_", " ")
        columns.append({"title": title, "digits": 3 if is_score else DIGITS.get(name, 0)})
    columns.append({"title": last, "text": True})
    return columns, [[row[name] for name in ("arm", "seed", *used, last)] for row in rows]


def _options(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    names = [f"{run.arm}, seed {run.seed}" for run in runs]
    names = [f"{name}, {run.path}" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    columns = [{"title": title, "text": True, "long": title != "option"} for title in ("option", *names)]
    return columns, [[name, *values] for name, values in differing_options(runs).items()]


def differing_options(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The options in which runs differ, by dotted name: each run's value as text, empty where it has none."""
    options = [run_options(run) for run in runs]
    values = {name: [each.get(name, "") for each in options] for name in sorted(set().union(*options))}
    return {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}


def run_options(run: Run) -> dict[str, str]:
    """All options of a run as text, by dotted name: of its record, and of its config where that can be read."""
    parts = ("module", "version", "optimizer", "scheme", "reads", "equal", "machine")
    record = {"seed": run.seed, **{name: run.record.get(name) for name in parts}}
    try:
        config = yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        config = None
    return dict(_flat(record)) | dict(_flat(config if isinstance(config, Mapping) else {}))


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _proteins(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Each arm's test scores of every protein; no row where fewer than two arms have some."""
    arms = {arm: [table for run in own if (table := run.proteins())] for arm, own in by_arm(runs).items()}
    arms = {arm: tables for arm, tables in arms.items() if tables}
    if len(arms) < 2:
        return [], []
    keys = dict.fromkeys(key for tables in arms.values() for table in tables for key in table)
    columns = [{"title": "protein", "text": True}]
    rows: list[list[Any]] = [[key[0]] for key in keys]
    for score in PROTEIN_SCORES:
        for arm, tables in arms.items():
            columns.append({"title": f"{arm} {score}", "digits": 3})
            for key, row in zip(keys, rows, strict=True):
                known = [
                    table[key][score] for table in tables if not math.isnan(table.get(key, {}).get(score, math.nan))
                ]
                row.append(float(np.mean(known)) if known else None)
    return columns, rows
