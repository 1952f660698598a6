"""``contactlm pack``: structure files as a packed set, for more chains than a folder should hold."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contactlm.cli.commands import CommandParser, description
from contactlm.data.cache import default_cache_dir
from contactlm.data.packed.pack import SHARD_RESIDUES, pack_structures
from contactlm.data.packed.store import ClusterRule
from contactlm.homology.relations import ClusterOptions
from contactlm.types import DataError

MORE = """\
A run can train on a packed set instead of the folder, from a local path or a URL, and draws the same samples.
Run an interrupted command again to resume it."""
DEFAULTS = ClusterOptions()
PROGRAMS = ("auto", "builtin", "mmseqs")


def pack_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm pack``; the exit status is 0; files that could not be read are counted, named and recorded."""
    given = _parser().parse_args(arguments)
    if given.workers is not None and given.workers < 0:
        raise DataError(f"--workers is {given.workers}; give 0 (this process reads) or more")
    options = ClusterOptions(given.identity, given.coverage, program=given.cluster_program)
    manifest = pack_structures(
        given.structures,
        given.out,
        given.shard_residues,
        given.sequence,
        ClusterRule(options, given.min_length, given.assembly) if given.clusters else None,
        given.workers,
        cache_dir=Path(given.cache_dir).expanduser() if given.cache_dir else default_cache_dir(),
    )
    index, size = manifest.index, sum(part.size for part in (manifest.index, *manifest.shards))
    sys.stdout.write(
        f"{index.chains} chains of {manifest.files} files packed into {len(manifest.shards)} shards in {given.out}: "
        f"{index.residues} residues, {size / index.residues:.2f} bytes each\n"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "contactlm pack",
        description=description("pack"),
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--structures", nargs="+", required=True, metavar="PATH", help="Folders, structure files, or lists of paths.")
    add("--out", required=True, help="Folder of the set.")
    add(
        "--shard_residues", type=int, default=SHARD_RESIDUES,
        help="Maximum residues per shard, 13 bytes each (default %(default)s).",
    )  # fmt: skip
    add("--sequence", choices=("seqres", "observed"), default="seqres", help="As data.sequence of the run.")
    add("--workers", type=int, help="Reader processes; default: one per core.")
    clusters = parser.add_argument_group(
        "sequence clusters",
        "A run with the same options uses the stored clusters: data.min_length, data.assembly and data.cluster.",
    )
    add = clusters.add_argument
    add("--clusters", action="store_true", help="Compute and store clusters.")
    add("--min_length", type=int, default=30, help="As data.min_length (default %(default)s).")
    add("--assembly", choices=("chain", "complex"), default="chain", help="As data.assembly.")
    add("--identity", type=float, default=DEFAULTS.identity, help="As data.cluster.identity (default %(default)s).")
    add("--coverage", type=float, default=DEFAULTS.coverage, help="As data.cluster.coverage (default %(default)s).")
    add("--cluster_program", choices=PROGRAMS, default=DEFAULTS.program, help="As data.cluster.program.")
    add(
        "--cache_dir",
        help="Cache folder, also for interrupted clusterings; default: $CONTACTLM_CACHE or ~/.cache/contactlm.",
    )
    return parser
