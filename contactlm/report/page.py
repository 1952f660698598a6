"""``report.html``: the report of some runs to open in a browser, in one file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contactlm.atomic import file_name
from contactlm.pages.frame import escape, write_frame
from contactlm.pages.library import load_bokeh, plot_item
from contactlm.report.compare import by_arm
from contactlm.report.figure import arm_styles
from contactlm.report.options import differing_options
from contactlm.report.page_figure import protein_figure, run_figures, two_a_row
from contactlm.report.read import Run
from contactlm.report.table import COLUMNS, TEST_SCORES, table_rows
from contactlm.types import ContactLMError

PAGE = "report.html"
OPTION = "option"  # title of a column
MAPS = "maps"  # folder of a run's maps, as `contactlm predict --out` writes them
MAP_SUFFIXES = (".html", ".png")  # what a point leads to, the first that there is
DIGITS = {"gflops": 1, "forward_gflops": 1, "training_seconds": 1, "total_seconds": 1}
BODY = """\
<header>
  <div><h1>{title}</h1></div>
  <button id="theme" type="button">Light / dark</button>
</header>
<ul class="statements">{statements}</ul>
<h2>Runs</h2>
<div class="row" id="runs" role="group" aria-label="Runs in the figures"></div>
<div id="figures"></div>
<h2>Arms: mean and sd over seeds</h2>
<div class="scroll" id="arms"></div>
<h2>Every run</h2>
<div class="row"><input type="search" data-searches="each" placeholder="search" aria-label="Search the runs">
  <span class="quiet" id="each-count"></span></div>
<div class="scroll" id="each"></div>
<h2>Options in which the runs differ</h2>
<div class="row"><input type="search" data-searches="options" placeholder="search" aria-label="Search the options">
  <span class="quiet" id="options-count"></span></div>
<div class="scroll" id="options"></div>
<section id="by-protein" hidden>
<h2>Protein by protein: who wins where</h2>
<div class="row"><label>across <select id="arm-x"></select></label><label>up <select id="arm-y"></select></label>
  <label>score <select id="score"></select></label><output id="wins"></output></div>
<div class="columns">
  <div id="scatter"></div>
  <div class="side wide"><div class="row"><input type="search" class="grow" id="find-protein" placeholder="search"
    aria-label="Search the proteins"></div><div class="scroll" id="pairs"></div>
    <p class="quiet small">Click a point to see its row. Maps are linked where a run has a folder <code>maps</code>
    that <code>contactlm predict</code> wrote.</p></div>
</div>
</section>"""


OVERVIEW = """\
<header><div><h1>Report of runs</h1></div><button id="theme" type="button">Light / dark</button></header>
<ul class="statements">{statements}</ul>
<h2>Groups of runs that may be compared</h2>
<ul>{links}</ul>"""


def write_page(runs: Sequence[Run], statements: Sequence[str], path: Path) -> None:
    """Write the page.

    Args:
        runs: Runs that may be compared.
        statements: What the report says of them, line by line.
        path: The file.

    Raises:
        MissingExtraError: Bokeh is not installed.
    """
    load_bokeh()
    names, differing = run_names(runs), differing_options(runs)
    styles, figures = arm_styles(list(by_arm(runs))), run_figures(runs, names, differing)
    data = {
        "figures": len(figures),
        "plot": plot_item(two_a_row(figures)),
        "scatter": plot_item(protein_figure()),
        "runs": [{"name": name, "color": styles[run.arm]["color"]} for name, run in zip(names, runs, strict=True)],
        "tables": [_arms(runs), _each(runs), _options(names, differing)],
        "proteins": protein_scores(runs, path.parent),
    }
    title = f"Report of {len(runs)} runs"
    body = BODY.format(title=escape(title), statements="".join(f"<li>{escape(line)}</li>" for line in statements))
    write_frame(path, title, body, data, ["tables", "report"], library=True)


def write_overview(statements: Sequence[str], sets: Sequence[str], path: Path) -> None:
    """Write a page that leads to those of several groups of runs.

    Args:
        statements: What the report says, line by line.
        sets: The folders of the groups, beside the page.
        path: The file.
    """
    links = "".join(f'<li><a href="{quote(name)}/{PAGE}">{escape(name)}</a></li>' for name in sets)
    lines = "".join(f"<li>{escape(line)}</li>" for line in statements)
    body = OVERVIEW.format(statements=lines, links=links)
    write_frame(path, "Report of runs", body, {"tables": []}, ["tables"], library=False)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Arm and seed of each run; with the directory where that is not enough."""
    names = [f"{run.arm}, seed {run.seed}" for run in runs]
    return [f"{name}, {run.path}" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]


def protein_scores(runs: Sequence[Run], folder: Path) -> dict[str, Any] | None:
    """Each arm's test scores of every protein, means over its seeds, and where its maps are.

    Args:
        runs: Runs with one test set.
        folder: Of the page, which links start from.

    Returns:
        ``ids``; ``scores``: by arm and name, a value or None for each id; ``links``: by arm, likewise. None where fewer
        than two arms have scores of proteins.
    """
    arms = {arm: [table for run in members if (table := _proteins(run))] for arm, members in by_arm(runs).items()}
    arms = {arm: tables for arm, tables in arms.items() if tables}
    if len(arms) < 2:
        return None
    keys = list(dict.fromkeys(key for tables in arms.values() for table in tables for key in table))
    scores = {
        arm: {name: [_mean([table.get(key, {}).get(name) for table in tables]) for key in keys] for name in TEST_SCORES}
        for arm, tables in arms.items()
    }
    for of_arm in scores.values():
        for name in [name for name, values in of_arm.items() if not any(value is not None for value in values)]:
            del of_arm[name]
    links = {arm: _links([key[0] for key in keys], members, folder) for arm, members in by_arm(runs).items()}
    return {"ids": [key[0] for key in keys], "scores": scores, "links": {arm: links[arm] for arm in arms}}


def _proteins(run: Run) -> Mapping[tuple[str, str], Mapping[str, float]]:
    """A run's scores by protein; none where its file cannot be read, which the report's tables say."""
    try:
        return run.proteins() if run.test else {}
    except ContactLMError:
        return {}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return round(sum(known) / len(known), 4) if known else None


def _links(ids: Sequence[str], runs: Sequence[Run], folder: Path) -> list[str | None]:
    """Where the maps of an arm are, of the first run that has each, as the page links to them."""
    places = [place / MAPS for run in runs for place in (run.path, run.tested_in) if place is not None]
    named = {place: _file_names(place) for place in places if place.is_dir()}
    links: list[str | None] = []
    for name in ids:
        files = (p / f"{given.get(name, file_name(name))}{s}" for p, given in named.items() for s in MAP_SUFFIXES)
        found = next((file for file in files if file.is_file()), None)
        links.append(None if found is None else quote(Path(relpath(found, folder)).as_posix()))
    return links


def _file_names(folder: Path) -> dict[str, str]:
    """What `summary.csv` there says: names of files by id."""
    try:
        with (folder / "summary.csv").open(newline="", encoding="utf-8") as handle:
            return {row["id"]: row["file"] for row in csv.DictReader(handle) if row.get("id") and row.get("file")}
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}


def _arms(runs: Sequence[Run]) -> dict[str, Any]:
    rows = [row for row in table_rows(runs) if row["row"] != "run"]
    used = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    columns = [{"title": "arm", "text": True}, {"title": "row", "text": True}, {"title": "seeds"}, *map(_column, used)]
    cells = [[row["arm"], row["row"], row["seed"], *(_plain(row[name]) for name in used)] for row in rows]
    return {"place": "arms", "caption": "Arms", "columns": columns, "rows": cells}


def _each(runs: Sequence[Run]) -> dict[str, Any]:
    rows = [row for row in table_rows(runs) if row["row"] == "run"]
    used = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    columns = [{"title": "arm", "text": True}, {"title": "seed"}, *map(_column, used), {"title": "run", "text": True}]
    cells = [[row["arm"], row["seed"], *(_plain(row[name]) for name in used), row["run"]] for row in rows]
    return {"place": "each", "caption": "Every run", "columns": columns, "rows": cells}


def _options(names: Sequence[str], differing: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    columns = [{"title": title, "text": True, "long": title != OPTION} for title in (OPTION, *names)]
    rows = [[name, *values] for name, values in differing.items()]
    return {"place": "options", "caption": "Options in which the runs differ", "columns": columns, "rows": rows}


def _column(name: str) -> dict[str, Any]:
    is_score = name.startswith(("test_", "dev_"))
    digits = 3 if is_score else DIGITS.get(name, 0)
    return {"title": name.replace("_", " ", 1) if is_score else name.replace("_", " "), "digits": digits}


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
