"""What the data side costs: a warm start of the cache, and a training batch.

    python tests/benchmarks/bench_data.py [--chains 10000] [--repeats 7]

Warm start: the time `StructureCache.load` takes for that many one-chain files whose content is in the cache, in a
process of its own, imports left out. Batch: 16 crops of 200 residues, collated, with labels, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LOAD = """
import sys, time
from pathlib import Path
from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures
begin = time.perf_counter()
store, report = StructureCache(sys.argv[2], progress=False).load(find_structures(sys.argv[1]))
print(len(store), report.parsed, time.perf_counter() - begin)
"""


def write_files(folder: Path, count: int) -> None:
    """Write small distinct PDB files: a real file's size does not matter once it is in the cache."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(count):
        atoms = np.cumsum(rng.normal(size=(200, 3)) * 2.2, axis=0) % 900
        lines = [
            f"ATOM  {3 * i + k + 1:5d} {atom} ALA A{i + 1:4d}    {x + k:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
            for i, (x, y, z) in enumerate(atoms)
            for k, atom in enumerate((" N  ", " CA ", " C  "))
        ]
        (folder / f"f{n:05d}.pdb").write_text("\n".join([*lines, "END\n"]))


def load(folder: Path, cache: Path) -> tuple[int, int, float]:
    """Load in a process of its own: chains, files parsed, seconds."""
    done = subprocess.run([sys.executable, "-c", LOAD, folder, cache], check=True, capture_output=True, text=True)
    chains, parsed, seconds = done.stdout.split()
    return int(chains), int(parsed), float(seconds)


def batch_milliseconds(repeats: int) -> list[float]:
    """Time making batches of 16 x 200 from a store of longer chains, labels included."""
    from contactlm.data.dataset import CropDataset, collate
    from contactlm.data.store import ChainStore
    from contactlm.structure.contacts import contact_labels

    rng = np.random.default_rng(0)
    lengths = rng.integers(201, 900, size=500)
    total = int(lengths.sum())
    cb = np.cumsum(rng.normal(size=(total, 3)) * 2.2, axis=0).astype(np.float32)
    tokens = rng.integers(4, 24, size=total).astype(np.uint8)
    store = ChainStore([f"c{i}" for i in range(500)], np.cumsum(lengths) - lengths, lengths, cb, tokens)
    dataset, times = CropDataset(store, 200), []
    for n in range(20 * repeats):
        begin = time.perf_counter()
        contact_labels(collate([dataset[16 * n + i] for i in range(16)])["cb"])
        times.append(1000 * (time.perf_counter() - begin))
    return times[20:]


def main() -> None:
    """Run both and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    times = batch_milliseconds(options.repeats)
    print(f"batch of 16 x 200: median {statistics.median(times):.2f} ms, slowest {max(times):.2f} ms of {len(times)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "in", Path(scratch) / "cache"
        write_files(folder, options.chains)
        chains, parsed, seconds = load(folder, cache)
        print(f"cold start: {chains} chains, {parsed} files parsed, {seconds:.1f} s")
        warm = [load(folder, cache) for _ in range(options.repeats)]
        median = statistics.median(seconds for _, _, seconds in warm)
        print(f"warm start: {warm[0][0]} chains, {warm[0][1]} files parsed, median {median:.2f} s")


if __name__ == "__main__":
    main()
