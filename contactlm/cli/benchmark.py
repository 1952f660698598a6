"""``contactlm benchmark``: models on public test sets, next to published figures of the same chains and contract."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from contactlm.benchmark.lists import load_set, published_figures, shipped_sets
from contactlm.cli.commands import SOME_SKIPPED, CommandParser, description
from contactlm.data.cache import default_cache_dir
from contactlm.data.rcsb.download import RCSB
from contactlm.metrics.contracts import CONTRACTS
from contactlm.shipped import checkpoint_of
from contactlm.types import ModelError

LIST = "list"
MORE = """\
A set is one of `contactlm benchmark list`, `smoke` (synthetic proteins, no network), or a CSV file of your own with the
columns pdb_id and chain and, where known, sequence. NAME:PART takes a part of it: dates FROM..TO, a role, a chain's id.
Structures are fetched from RCSB once and kept in the cache folder."""


def benchmark_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm benchmark``; the exit status is 3 when chains of a set are missing, which are named."""
    given = _parser().parse_args(arguments)
    if given.names == [LIST]:
        sys.stdout.write(f"{list_text()}\n")
        return 0
    from contactlm.benchmark.results import write_page  # torch and lightning take seconds, which the list needs not
    from contactlm.benchmark.run import REPORT, BenchmarkOptions, run_benchmark
    from contactlm.benchmark.structures import StructureSource
    from contactlm.cli.console import set_up_log

    set_up_log()

    cache_dir = given.cache_dir or default_cache_dir()
    source = StructureSource(
        given.download_dir or cache_dir / "structures", given.structures, given.offline, given.base_url
    )
    options = BenchmarkOptions(source, cache_dir, given.out, given.database, given.head)
    results = run_benchmark(given.names, _named(given), options)
    sys.stdout.write(f"{as_text(write_page(results))}\nwritten to {given.out / REPORT} and its tables\n")
    return SOME_SKIPPED if any(len(result.found) < len(result.checked) for result in results) else 0


def as_text(markdown: str) -> str:
    """A page for a terminal: tables in columns, headings and code without marks."""
    lines: list[str] = []
    for is_table, block in groupby(markdown.splitlines(), lambda line: line.startswith("| ")):
        if not is_table:
            lines += [
                line.lstrip("# ").replace("`", "") if line.startswith("#") else line.replace("`", "") for line in block
            ]
            continue
        rows = [line[2:-2].replace("`", "").split(" | ") for line in block if not line.startswith("| :--")]
        rows = [[cell.replace("\\|", "|") for cell in row] for row in rows]
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        for row in rows:
            cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def list_text() -> str:
    """The shipped sets, and the contracts of published figures."""
    lines = []
    for name, about in shipped_sets().items():
        figures = sum(figure.set == name for figure in published_figures())
        lines.append(
            f"{name:<18} {len(load_set(name).chains):>5} chains, {figures} published figures: {about['about']}"
        )
        age = f"; {about['age']} than ESM-2's pretraining data" if about["age"] else ""
        lines.append(f"{'':<18} source {about['source']}, licence {about['licence']}{age}")
    lines += ["smoke                  8 chains: synthetic proteins, without network", "", "contracts:"]
    for contract in CONTRACTS.values():
        lines.append(
            f"{contract.name:<18} {contract.atom} below {contract.cutoff:g} Å; L = {contract.length}; pairs at least "
            f"{contract.min_separation} apart, upper triangle ({contract.source})"
        )
    return "\n".join(lines)


def _named(given: argparse.Namespace) -> dict[str, str]:
    """The models of a command line, by distinct names."""
    odd = [path for path in given.ckpt_path if not path.endswith(".ckpt") and Path(path).is_file()]
    if odd:
        raise ModelError(f"ckpt_path: {odd[0]} does not end in .ckpt; give a checkpoint that `contactlm fit` wrote")
    locations = list(dict.fromkeys([*map(checkpoint_of, given.ckpt_path), *given.pretrained]))
    if given.head is not None and (given.ckpt_path or len(given.pretrained) != 1):
        raise ModelError(f"model.head: {given.head} goes on one backbone; give one --model.pretrained, no --ckpt_path")
    if not locations:
        raise ModelError(
            "no model is given: --ckpt_path FILE for checkpoints, --model.pretrained NAME for published models"
        )
    return dict(zip(short_names(locations), locations, strict=True))


def short_names(locations: Sequence[str]) -> list[str]:
    """The ends of some paths, as long as needed to be distinct.

    Examples:
        >>> short_names(["runs/a/version_0/checkpoints/last.ckpt", "runs/b/version_0/checkpoints/last.ckpt"])
        ['a/version_0/checkpoints/last.ckpt', 'b/version_0/checkpoints/last.ckpt']
        >>> short_names(["facebook/esm2_t6_8M_UR50D"])
        ['esm2_t6_8M_UR50D']
    """
    parts = [Path(location).parts for location in locations]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(locations)


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "contactlm benchmark",
        description=description("benchmark"),
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, where = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    several: dict[str, Any] = {"nargs": "+", "default": []}
    add("names", nargs="+", metavar="NAME", help="Test sets, or list: show the shipped ones.")
    add("--ckpt_path", **several, metavar="FILE", help="Checkpoints, folders of runs (the best) or of exports.")
    hub = "Published models by hub name or folder, with their own contact head."
    add("--model.pretrained", dest="pretrained", **several, metavar="NAME", help=hub)
    add("--model.head", dest="head", metavar="FILE", help="Contact head of `contactlm head fit`, for one of those.")
    files = "Folder of structure files, named by PDB id; no network."
    where("--structures", type=_folder, metavar="DIR", help=files)
    where("--offline", action="store_true", help="Download nothing; use cached structures.")
    copied = "Database of `contactlm index build`: also score copying its best hit."
    add("--database", type=_folder, metavar="DB", help=copied)
    add("--out", type=_folder, default="benchmark", help="Folder to write (default: benchmark).")
    add("--base_url", default=RCSB, help="Server of mmCIF files (default: %(default)s).")
    fetched = "Folder for downloaded structures; default: in the cache folder."
    add("--download_dir", type=_folder, metavar="DIR", help=fetched)
    cache = "Cache folder; default: $CONTACTLM_CACHE or ~/.cache/contactlm."
    add("--cache_dir", type=_folder, metavar="DIR", help=cache)
    return parser
