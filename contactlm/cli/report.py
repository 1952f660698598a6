"""``contactlm report``: a folder of figures and tables from run directories."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contactlm.atomic import atomic_path, write_csv
from contactlm.report.compare import by_arm, group_equal
from contactlm.report.confounds import confounds
from contactlm.report.figure import FIGURES, arm_styles, draw_score, save_figure
from contactlm.report.frontier import draw_frontier, frontier_points, frontier_rows, whole_experiments
from contactlm.report.hits import hit_markdown, hit_rows, hit_strata
from contactlm.report.hits_figure import draw_hits
from contactlm.report.page import PAGE, write_overview, write_page
from contactlm.report.paired import (
    ahead_line,
    check_reference,
    choose_reference,
    difference_rows,
    difference_tables,
    paired_differences,
)
from contactlm.report.read import Run, find_runs
from contactlm.report.series import missing_lines
from contactlm.report.summary import RULE, group_lines, left_out_lines, summarize
from contactlm.report.table import curve_rows, markdown, table_rows
from contactlm.types import ContactLMError, MissingExtraError

ABOUT = """\
Compare runs: figures, tables and a statement of which arm wins, from the run.json that `contactlm fit` and
`contactlm test` write. Runs of one arm (the run's name) that differ in their seed are averaged.
Runs that differ in what should be equal (budget, chains, split, evaluation, precision, weights the training starts
from) are named and reported apart, in set1/, set2/, ...; --mixed puts them into one table all the same.
Runs of several budgets, backbones and seeds are compared pair by pair, at equal tokens, FLOPs and time.
"""
EXAMPLE = """\
example:
  for seed in 0 1 2; do
    contactlm fit --config crop200  --seed_everything $seed
    contactlm fit --config full1020 --seed_everything $seed
  done
  contactlm report runs/crop200 runs/full1020 --out report
"""
REPORT = "report.md"
HITS = "hits"  # of arms that read known structures
FRONTIER, PAIRED = "frontier", "paired"  # over budgets and backbones


def report_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm report``.

    Returns:
        The exit status, 0. Arguments that cannot be parsed end the process with 2.

    Raises:
        ContactLMError: A path without runs, nothing to report, or a folder that cannot be written.
    """
    parser = argparse.ArgumentParser(
        "contactlm report", description=ABOUT, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="Run directory, or a folder with some below it.")
    parser.add_argument("--out", default="report", help="Folder to write (default: report).")
    parser.add_argument("--mixed", action="store_true", help="One table for all runs, also where they are not equal.")
    parser.add_argument(
        "--reference",
        metavar="ARM",
        help="What arms are compared with, pair by pair (default: crop200, where it is).",
    )
    given = parser.parse_args(arguments)
    lines = write_report(given.runs, given.out, given.mixed, given.reference)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def write_report(
    paths: Sequence[str | Path], out: str | Path, mixed: bool = False, reference: str | None = None
) -> list[str]:
    """Write figures (``mcc.png``, ``mcc_sep6.png``, ``p_at_L_long.png``), tables, curves and ``report.html`` of runs.

    Args:
        paths: Run directories, and folders with some below them.
        out: Folder to write; made when it is not there. Groups of runs that must not be mixed get folders below it.
        mixed: Put all runs into one group.
        reference: Arm that the others are compared with, pair by pair; None: ``crop200``, if it is there.

    Returns:
        What is to be told, line by line: the statements of ``report.md``.

    Raises:
        ContactLMError: A path without runs, nothing to report, no run of the reference, or a folder that cannot be
            written.
    """
    found = find_runs(paths)
    check_reference(found.runs, reference)
    groups = [found.runs] if mixed else group_equal(found.runs)
    folder = Path(out).expanduser()
    lines = group_lines(groups)
    text = ["# Report of runs", *lines]
    try:
        _clear_sets(folder)
        for number, group in enumerate(groups, start=1):
            into = folder if len(groups) == 1 else folder / f"set{number}"
            summary = summarize(group)
            tables = _write_group(group, into)
            without_page = _write_page(group, summary, into / PAGE)
            lines += [*([f"set{number}:"] if len(groups) > 1 else []), *summary]
            text += [*([f"## set{number}"] if len(groups) > 1 else []), *_bullets(summary), tables]
        for number, experiment in enumerate(whole_experiments(found.runs), start=1):
            name = "" if number == 1 else str(number)
            told, compared = _write_experiment(experiment, folder, name, reference)
            lines += told
            text += [f"## {FRONTIER}{name}", *_bullets(told), *compared]
        last = [*missing_lines(found), *left_out_lines(found.left_out), RULE, *without_page]
        if len(groups) > 1 and not without_page:
            write_overview([*lines, *last], [f"set{number}" for number in range(1, len(groups) + 1)], folder / PAGE)
        with atomic_path(folder / REPORT) as temporary:
            temporary.write_text("\n\n".join([*text, *last]) + "\n", encoding="utf-8")
    except OSError as error:
        raise ContactLMError(f"out: {folder} cannot be written ({error.strerror}); give another folder") from error
    return [*lines, *last, f"report written to {folder}"]


def _bullets(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line.replace('|', chr(92) + '|')}" for line in lines)]


def _write_group(runs: Sequence[Run], folder: Path) -> str:
    """Write figures and tables of runs that may be compared; the tables as Markdown."""
    for score in FIGURES:
        save_figure(draw_score(runs, score), folder / f"{score}.png")
    write_csv(folder / "table.csv", table_rows(runs))
    if curves := curve_rows(runs):
        write_csv(folder / "curves.csv", curves)
    tables = markdown(runs)
    if strata := hit_strata(runs):
        save_figure(draw_hits(strata, arm_styles(list(by_arm(runs)))), folder / f"{HITS}.png")
        write_csv(folder / f"{HITS}.csv", hit_rows(strata))
        tables += "\n\n" + hit_markdown(strata)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(tables + "\n", encoding="utf-8")
    return tables


def _write_experiment(
    runs: Sequence[Run], folder: Path, number: str, wanted: str | None
) -> tuple[list[str], list[str]]:
    """Write the frontier of an experiment and its paired differences; what is to be told, and tables."""
    reference = choose_reference(runs, wanted)
    points, lines = frontier_points(runs)
    if points:
        save_figure(draw_frontier(points), folder / f"{FRONTIER}{number}.png")
        write_csv(folder / f"{FRONTIER}{number}.csv", frontier_rows(points))
    found = paired_differences(runs, reference)
    lines += confounds(runs, reference)
    if not found:
        return [*lines, f"nothing to compare with {reference}: no arm shares a backbone and a seed with it"], []
    write_csv(folder / f"{PAIRED}{number}.csv", difference_rows(found, reference))
    return [ahead_line(found, reference), *lines], [difference_tables(found, reference)]


def _write_page(runs: Sequence[Run], statements: Sequence[str], path: Path) -> list[str]:
    """Write the page to open in a browser; why there is none, where its library is not installed."""
    try:
        write_page(runs, [*statements, RULE], path)
    except MissingExtraError as error:
        return [f"no {PAGE}: {error}"]
    return []


def _clear_sets(folder: Path) -> None:
    """Remove what an earlier report wrote: its groups may have been others."""
    names = [*(f"{name}.png" for name in (*FIGURES, HITS)), *(f"{name}.csv" for name in ("table", "curves", HITS))]
    names += ["table.md", PAGE]
    if not (folder / REPORT).is_file():
        return
    for path in folder.iterdir():
        if path.stem.rstrip("0123456789") in (FRONTIER, PAIRED) and path.suffix in (".csv", ".png"):
            path.unlink()
    for own in (folder, *folder.glob("set*/")):
        for name in names:
            (own / name).unlink(missing_ok=True)
        if own != folder and not any(own.iterdir()):
            own.rmdir()
