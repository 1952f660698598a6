"""``contactlm index build``: a structure database from structure files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from contactlm.cli.commands import SOME_SKIPPED, CommandParser
from contactlm.data.split import name_problems
from contactlm.retrieval.build import BackboneCache, build_database

log = logging.getLogger(__name__)


def index_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm index``; the exit status is 3 when files had to be left out, which are named."""
    parser = CommandParser(
        "contactlm index",
        description="Make a structure database, or bring it up to date: only new and changed files are read.",
    )
    parser.add_argument("task", choices=("build",), metavar="build", help="The only task.")
    parser.add_argument(
        "--structures",
        nargs="+",
        required=True,
        metavar="PATH",
        help="Folders of structure files (PDB, mmCIF, BinaryCIF, also compressed), single files, text files of paths.",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="The database.")
    parser.add_argument("--workers", type=int, help="Reader processes; default: one per core.")
    parser.add_argument("--cache_dir", help="Cache folder; by default $CONTACTLM_CACHE or ~/.cache/contactlm.")
    parser.add_argument(
        "--sequence",
        choices=("seqres", "observed"),
        default="seqres",
        help="Full sequences, or those of the resolved residues only.",
    )
    given = parser.parse_args(arguments)
    cache = BackboneCache(given.cache_dir, given.sequence, given.workers)
    report = build_database(given.structures, given.out, cache)
    name_problems(report.problems)
    left_out = f", {len(report.problems)} left out (named above)" if report.problems else ""
    state = "unchanged" if report.unchanged else "written"
    sys.stdout.write(
        f"{given.out} {state}: {report.chains} chains, {report.residues} residues from {report.files} files "
        f"({report.parsed} read now{left_out})\n"
    )
    return SOME_SKIPPED if report.problems else 0
