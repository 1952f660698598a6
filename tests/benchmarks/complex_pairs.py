"""Tables for --data.pairs: heavy and light chains of antibodies, or receptors and ligands of docking benchmarks.

    python tests/benchmarks/complex_pairs.py ../shared/antibodies/MANIFEST.csv > antibodies.csv
    python tests/benchmarks/complex_pairs.py ../shared/pdb/train ../shared/pdb/test > docking.csv

Names are stems of files: the first works with a chain a file, the second with --data.assembly complex.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path


def antibody_rows(manifest: Path) -> Iterator[str]:
    """Heavy, then light chain of each entry that has both."""
    entries: dict[str, dict[str, str]] = defaultdict(dict)
    for row in csv.DictReader(manifest.open()):
        entries[row["pdb_id"]][row["kind"]] = Path(row["path"]).name.removesuffix(".pdb.gz")
    for kinds in entries.values():
        if {"heavy", "light"} <= kinds.keys():
            yield f"{kinds['heavy']},{kinds['light']}"


def docking_rows(folder: Path) -> Iterator[str]:
    """Receptor and ligand of each complex whose unbound structures are both there, superposed on the complex."""
    stems = {path.name.removesuffix(".pdb.gz") for path in folder.glob("*_u.pdb.gz")}
    yield from (f"{stem},{stem[:-4]}_l_u" for stem in sorted(stems) if f"{stem[:-4]}_l_u" in stems and "_r_" in stem)


if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        print("\n".join(docking_rows(given) if given.is_dir() else antibody_rows(given)))
