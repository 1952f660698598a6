"""How much of a batch of whole chains is padding: bounded by cost, against random batches of the same mean size.

    python tests/benchmarks/bench_batches.py DIR [--epochs 10]

DIR holds structure files. For each bound: batches an epoch, chains a batch, the padded tokens' share (mean and largest
over the epochs), the same for random batches, how full batches are of their bound, and how long the processes of a
data-parallel run would wait for the one with the dearest batch, as a share of all steps.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from contactlm import ContactDataModule
from contactlm.data.batches import CostBound, CostSampler, padding
from contactlm.data.dataset import CropDataset

BOUNDS = [CostBound("tokens", most) for most in (1000, 3000, 8192)] + [CostBound("pairs", 10**6)]


def costs_of(sampler: CostSampler, epoch: int) -> NDArray[np.int64]:
    """Cost of each step's batch of each process, (steps, processes)."""
    size, lengths = len(sampler.stream), sampler.stream.residues_of(epoch)
    batches = [[lengths[numbers % size] for numbers in step] for step in sampler.plan(epoch)]
    return np.array([[len(own) * int(sampler.bound.of(own.max())) for own in step] for step in batches])


def at_random(lengths: NDArray[np.int64], size: int) -> float:
    """Padding of batches of ``size`` chains in the order given."""
    return padding(lengths, [(first, min(first + size, len(lengths))) for first in range(0, len(lengths), size)])


def report(dataset: CropDataset, bound: CostBound, epochs: int) -> str:
    """One row of the table."""
    sampler = CostSampler(dataset, bound)
    begin = time.perf_counter()
    own = [sampler.padding(epoch) for epoch in range(epochs)]
    milliseconds = 1000 * (time.perf_counter() - begin) / epochs
    size = max(1, round(sampler.mean_size))
    random = [at_random(dataset.residues_of(epoch), size) for epoch in range(epochs)]
    full = np.mean([costs_of(sampler, epoch).mean() for epoch in range(epochs)]) / bound.most
    waits = []
    for world in (2, 4, 8):
        costs = [costs_of(CostSampler(dataset, bound, 0, world), epoch) for epoch in range(epochs)]
        waits.append(1 - sum(c.mean(1).sum() for c in costs) / sum(c.max(1).sum() for c in costs))
    return (
        f"{bound.most:>8} {bound.unit:<6} {len(sampler):>7} {sampler.mean_size:>6.1f} {np.mean(own):>8.1%} "
        f"{max(own):>8.1%} {np.mean(random):>8.1%} {full:>6.0%} "
        + " ".join(f"{wait:>6.1%}" for wait in waits)
        + f" {milliseconds:>6.1f}"
    )


def main() -> None:
    """Print a table for all chains, and one for an epoch of one chain a cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    data = ContactDataModule(options.folder, dev_fraction=0.0, weights="cluster")
    data.prepare_data()
    data.setup("fit")
    store, weighted = data.chains["train"], data.train_dataloader().dataset
    assert isinstance(weighted, CropDataset)
    for name, groups in (("every chain", None), ("one chain a cluster", weighted.groups)):
        dataset = CropDataset(store, 0, "whole", groups=groups)
        print(f"{name}: {len(dataset)} of {len(store)} chains, {store.lengths.min()} to {store.lengths.max()} residues")
        print("   bound         batches  size  padding  largest   random  full  wait 2      4      8   ms")
        for bound in BOUNDS:
            print(report(dataset, bound, options.epochs))


if __name__ == "__main__":
    main()
