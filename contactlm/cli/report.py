"""``contactlm report``: a folder of figures and tables from run directories."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contactlm.atomic import atomic_path, write_csv
from contactlm.cli.commands import CommandParser, description
from contactlm.report.compare import by_arm, confounds, group_equal
from contactlm.report.figure import FIGURES, draw_score, save_figure
from contactlm.report.page import PAGE, Paired, outcome_of, write_overview, write_page
from contactlm.report.read import Run, find_runs
from contactlm.report.summary import (
    RULE,
    check_reference,
    group_lines,
    group_names,
    paired_markdown,
    paired_rows,
    paired_table,
    summarize,
    whole_experiments,
)
from contactlm.report.table import curve_rows, markdown, table_rows

MORE = """\
Figures, tables and a statement of which arm wins, from the run.json that `contactlm fit` and `contactlm test` write.
Runs of one arm (the run's name) that differ in their seed are averaged. Runs that differ in budget, chains, split,
evaluation, precision or starting weights are named and reported separately, in set1/, set2/, ... Runs of several
budgets, backbones and seeds are compared pair by pair, at equal tokens."""
REPORT, PAIRED, USUAL_REFERENCE = "report.md", "paired", "crop200"
FILES = (*(f"{name}.png" for name in FIGURES), "table.csv", "table.md", "curves.csv", PAGE)


def report_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm report``; arguments that cannot be parsed end the process with 2."""
    parser = CommandParser(
        "contactlm report",
        description=description("report"),
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="Run directory, or a folder of run directories.")
    add("--out", default="report", help="Folder to write (default: report).")
    add("--mixed", action="store_true", help="One table for all runs, even if they are not comparable.")
    add("--reference", metavar="ARM", help="Arm that the others are compared with (default: crop200).")
    sys.stdout.write("\n".join(write_report(**vars(parser.parse_args(arguments)))) + "\n")
    return 0


def write_report(
    runs: Sequence[str | Path], out: str | Path, mixed: bool = False, reference: str | None = None
) -> list[str]:
    """Write figures, tables, curves and ``report.html`` of run directories, and of folders with some below them.

    Groups of runs that must not be mixed get folders of their own, unless ``mixed``. The arm ``reference`` is what
    others are compared with, pair by pair; None: ``crop200``, if it is there.

    Returns:
        The statements of ``report.md``, line by line.
    """
    found, folder = find_runs(runs), Path(out).expanduser()
    check_reference(found.runs, reference)
    groups = [found.runs] if mixed else group_equal(found.runs)
    sets = [f"set{number}" for number in range(1, len(groups) + 1)] if len(groups) > 1 else []
    titles = dict(zip(sets, group_names(groups), strict=False))
    outcomes: dict[str, tuple[str, str]] = {}
    last = [*(f"left out: {path}: {reason}" for path, reason in found.left_out.items()), RULE]
    lines = group_lines(groups)
    text = ["# Report of runs", *lines]
    _clear(folder)
    compared, paired, paired_text = _write_experiments(whole_experiments(found.runs), folder, reference)
    for name, group in zip(sets or [""], groups, strict=True):
        more = [] if sets else [*compared, *last]
        summary, tables = _write_group(group, folder / name, more, [] if sets else paired)
        outcomes[name] = (titles.get(name, ""), outcome_of(summary))
        lines += [*([f"{name} ({titles[name]}):"] if name else []), *summary]
        text += [*([f"## {name}: {titles[name]}"] if name else []), _bullets(summary), tables]
    lines, text = [*lines, *compared], [*text, *paired_text]
    if sets:
        write_overview([*lines, *last], outcomes, folder / PAGE, paired)
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text("\n\n".join([*text, *last]) + "\n", encoding="utf-8")
    return [*lines, *last, f"report written to {folder}: open {folder / PAGE}"]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line.replace('|', chr(92) + '|')}" for line in lines)


def _write_group(
    runs: Sequence[Run], folder: Path, more: Sequence[str], paired: Sequence[Paired]
) -> tuple[list[str], str]:
    """Write figures and tables of runs that may be compared; statements, and the tables as Markdown."""
    summary, tables = summarize(runs), markdown(runs)
    figures = [folder / f"{score}.png" for score in FIGURES]
    for path in figures:
        save_figure(draw_score(runs, path.stem), path)
    write_csv(folder / "table.csv", table_rows(runs))
    if curves := curve_rows(runs):
        write_csv(folder / "curves.csv", curves)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(tables + "\n", encoding="utf-8")
    write_page(runs, [*summary, *(more or [RULE])], figures, folder / PAGE, paired)
    return summary, tables


def _write_experiments(
    experiments: Sequence[Sequence[Run]], folder: Path, wanted: str | None
) -> tuple[list[str], list[Paired], list[str]]:
    """Write the paired differences of each; statements, tables, and both as parts of a Markdown text."""
    lines: list[str] = []
    tables: list[Paired] = []
    text: list[str] = []
    for number, runs in enumerate(experiments, start=1):
        name, arms = PAIRED if number == 1 else f"{PAIRED}{number}", list(by_arm(runs))
        reference = next((arm for arm in (wanted, USUAL_REFERENCE) if arm in arms), arms[0])
        rows, own = paired_rows(runs, reference), confounds(runs, reference)
        if rows:
            write_csv(folder / f"{name}.csv", rows)
            ahead, title, cells = paired_table(rows)
            own = [ahead, *own]
            tables.append((title, cells))
        else:
            own.append(f"nothing to compare with {reference}: no arm shares a backbone and a seed with it")
        lines += own
        text += [f"## {name}", _bullets(own), *([paired_markdown(title, cells)] if rows else [])]
    return lines, tables, text


def _clear(folder: Path) -> None:
    """Remove what an earlier report wrote: its groups may have been others."""
    if (folder / REPORT).is_file():
        for name in (*FILES, f"{PAIRED}*.csv"):
            for path in (*folder.glob(name), *folder.glob(f"set*/{name}")):
                path.unlink()
        for own in folder.glob("set*/"):
            if not any(own.iterdir()):
                own.rmdir()
