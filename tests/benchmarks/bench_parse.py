"""Compare the speed of read_chains with that of plain Biopython parsers, interleaved file by file in one process.

Usage: python tests/benchmarks/bench_parse.py [folder] [--repeat 3]

The folder defaults to the training structures beside the checkout. mmCIF files are taken from the folder and from
``edge`` next to it. Compressed files are decompressed by either side's own means. The time of a file is the least of
the repeats; the ratio of a format is that of the sums.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBParser import PDBParser

from contactlm.structure.parse import read_chains
from contactlm.types import StructureError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "pdb"


def plain(path: Path) -> None:
    """Parse with Biopython as most scripts do."""
    parser = (PDBParser if ".pdb" in path.name else MMCIFParser)(QUIET=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="latin-1") as handle:
        parser.get_structure("", handle)


def seconds(function: Callable[[Path], object], path: Path) -> float:
    """Measure processor time; Biopython's structures are cyclic garbage, which the next one timed must not pay for."""
    gc.collect()
    start = time.process_time()
    function(path)
    return time.process_time() - start


def compare(label: str, paths: list[Path], repeat: int) -> None:
    totals = [0.0, 0.0]
    for path in paths:
        times = [(seconds(read_chains, path), seconds(plain, path)) for _ in range(repeat)]
        totals = [total + min(column) for total, column in zip(totals, zip(*times, strict=True), strict=True)]
    ours, theirs = (len(paths) / total for total in totals)
    print(
        f"{label}: {len(paths)} files, read_chains {ours:.1f} files/s, Biopython {theirs:.1f}, "
        f"ratio {ours / theirs:.2f}"
    )


def readable(path: Path) -> bool:
    try:
        read_chains(path)
        plain(path)
    except (StructureError, ValueError, KeyError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED / "train")
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    pdb = sorted(args.folder.glob("*.pdb.gz"))
    cif = [*sorted(args.folder.glob("*.cif.gz")), *sorted((args.folder.parent / "edge").glob("*.cif"))]
    compare("PDB", [path for path in pdb if readable(path)], args.repeat)
    compare("mmCIF", [path for path in cif if readable(path)], args.repeat)


if __name__ == "__main__":
    main()
