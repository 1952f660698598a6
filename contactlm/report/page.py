"""``report.html``: the report of some runs to open in a browser, in one file: figures, and tables that sort."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from contactlm.pages.frame import escape, write_frame
from contactlm.report.compare import by_arm, short
from contactlm.report.read import Run
from contactlm.report.summary import PAIRED_NOTE
from contactlm.report.table import COLUMNS, arm_rows, table_rows

PAGE = "report.html"
CONFIG = "config.yaml"
PROTEIN_SCORES = ("mcc_sep6", "p_at_L_long")
DIGITS = {"gflops": 1, "forward_gflops": 1, "training_seconds": 1, "total_seconds": 1}
FIRST = ("confounded", "note", "TRAINED", "PROTEINS", "ahead of", "nothing to compare")  # what must be seen at once
HEADER = """\
<header><div><h1>{title}</h1></div><button id="theme" type="button">Light / dark</button></header>
<p class="outcome">{outcome}</p>
<ul class="statements">{statements}</ul>
"""
SECTION = """\
<h2>{title}</h2>
<div class="row"><input type="search" data-searches="{place}" placeholder="search" aria-label="Search: {title}">
  <span class="quiet" id="{place}-count"></span></div>
<div class="scroll" id="{place}"></div>
"""
PLAIN = """<h2>{title}</h2>\n<p class="quiet">{note}</p><div class="scroll" id="{place}"></div>\n"""
FOLDED = "<details><summary>{title}</summary>{body}</details>\n"
Paired = tuple[str, list[list[str]]]  # title, and cells with their head first


def write_page(
    runs: Sequence[Run], statements: Sequence[str], figures: Sequence[Path], path: Path, paired: Sequence[Paired] = ()
) -> None:
    """Write the page of some runs that may be compared, with PNG files and what the report says, line by line."""
    rows = table_rows(runs)
    tables = {
        "arms": _texts("arms", "Arms: test scores, mean ± sd over seeds; cost, mean", arm_rows(runs)),
        **_paired_tables(paired),
        "options": _table("options", "Options in which the runs differ", *_options(runs)),
        "means": _table("means", "All means and sds", *_scores([row for row in rows if row["row"] != "run"], "row")),
        "each": _table("each", "Every run", *_scores([row for row in rows if row["row"] == "run"], "run")),
        "proteins": _table("proteins", "Protein by protein: test scores, means over seeds", *_proteins(runs)),
    }
    tables = {place: table for place, table in tables.items() if table["rows"]}
    sections = {place: SECTION.format(title=table["caption"], place=place) for place, table in tables.items()}
    shown = {place: _plain(table) for place, table in tables.items() if place == "arms" or "note" in table}
    images = (base64.b64encode(figure.read_bytes()).decode() for figure in figures)
    body = _header(f"Report of {len(runs)} runs", statements, outcome_of(statements)) + shown.pop("arms", "")
    for figure, image in zip(figures, images, strict=True):
        body += f'<p><img class="figure" src="data:image/png;base64,{image}" alt="{escape(figure.stem)}"></p>\n'
    body += "".join(shown.values()) + _folded_statements(statements)
    folded = {"options": "What differs between the runs", "means": "All means", "each": "Every run"}
    folded["proteins"] = "Protein by protein"
    body += "".join(FOLDED.format(title=name, body=sections[at]) for at, name in folded.items() if at in sections)
    write_frame(path, f"Report of {len(runs)} runs", body, {"tables": [*tables.values()]}, ["tables"], library=False)


def _plain(table: Mapping[str, Any]) -> str:
    return PLAIN.format(title=escape(table["caption"]), note=table.get("note", ""), place=table["place"])


def _paired_tables(paired: Sequence[Paired]) -> dict[str, dict[str, Any]]:
    return {
        f"paired{at}": {**_texts(f"paired{at}", title, cells), "note": PAIRED_NOTE}
        for at, (title, cells) in enumerate(paired)
    }


def write_overview(
    statements: Sequence[str], sets: Mapping[str, tuple[str, str]], path: Path, paired: Sequence[Paired] = ()
) -> None:
    """Write a page that leads to those of groups of runs, by folder next to it: what they share, and their outcome."""
    links = "".join(
        f'<li><a href="{quote(folder)}/{PAGE}">{escape(name)}</a>: {escape(outcome)}</li>'
        for folder, (name, outcome) in sets.items()
    )
    tables = _paired_tables(paired)
    # what is true of some groups alone is on their pages
    of_all = [line for line in statements if not line.startswith("TRAINED") or statements.count(line) == len(sets)]
    body = _header("Report of runs", of_all, statements[0])
    body += f"<h2>Groups of runs that may be compared</h2>\n<ul>{links}</ul>" + "".join(map(_plain, tables.values()))
    body += _folded_statements(statements)
    write_frame(path, "Report of runs", body, {"tables": list(tables.values())}, ["tables"], library=False)


def _folded_statements(statements: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in statements)
    return FOLDED.format(title="All statements", body=f'<ul class="statements">{items}</ul>') if items else ""


def outcome_of(statements: Sequence[str]) -> str:
    """What was found, in a sentence."""
    line = next((line for line in statements if line.startswith("test ")), "")
    return line[:1].upper() + line[1:]


def _header(title: str, statements: Sequence[str], outcome: str) -> str:
    """The outcome, and what must be known with it."""
    first = [line for line in dict.fromkeys(statements) if line.startswith(FIRST)]
    shown = "".join(f"<li>{escape(line)}</li>" for line in first)
    return HEADER.format(title=escape(title), outcome=escape(outcome), statements=shown)


def _texts(place: str, caption: str, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A table of texts; the first column holds names, and numbers sort as such."""
    columns = [{"title": title, "text": at == 0} for at, title in enumerate(cells[0])]
    rows = [
        [{"value": _leading(cell) if at else cell, "text": cell} for at, cell in enumerate(row)] for row in cells[1:]
    ]
    return {"place": place, "caption": caption, "columns": columns, "rows": rows}


def _leading(text: str) -> float | str:
    number = re.match(r"[+-]?[\d,]+(\.\d+)?", text)
    return float(number[0].replace(",", "")) if number else text


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
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
            yield f"{prefix}{name}", short(text)


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
                values = [table[key][score] for table in tables if score in table.get(key, {})]
                known = [value for value in values if not math.isnan(value)]
                row.append(float(np.mean(known)) if known else None)
    return columns, rows
