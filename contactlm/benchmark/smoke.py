"""A test set that needs no network: a few synthetic proteins. It shows that the command works, not biology."""

from __future__ import annotations

from pathlib import Path

from contactlm.atomic import atomic_path, write_csv
from contactlm.benchmark.lists import BenchmarkSet, read_list
from contactlm.data.synthetic import SyntheticOptions, write_synthetic
from contactlm.structure.parse import read_chains

SMOKE = "smoke"
PROTEINS = 8


def smoke_set(folder: Path) -> tuple[BenchmarkSet, Path]:
    """Write the set, or find it written.

    Args:
        folder: Where it goes.

    Returns:
        The set, and the folder of its structures.
    """
    test = write_synthetic(SyntheticOptions(str(folder / "made"), n_train=1, n_test=PROTEINS, seed=22))[1]
    rows = []
    for number, path in enumerate(sorted(test.glob("*.pdb"))):
        entry = f"9s{number:02d}"  # files are called as entries are
        with atomic_path(folder / "structures" / f"{entry}.pdb") as temporary:
            temporary.write_bytes(path.read_bytes())
        [chain] = read_chains(path)
        rows.append({"pdb_id": entry, "chain": "A", "length": len(chain), "sequence": chain.sequence})
    write_csv(folder / "smoke.csv", rows)
    about = "SYNTHETIC proteins: scores say nothing about real ones"
    return BenchmarkSet(
        SMOKE, read_list(folder / "smoke.csv"), about, "contactlm.data.synthetic"
    ), folder / "structures"
