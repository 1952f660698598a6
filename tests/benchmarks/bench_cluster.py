"""Measure the clustering: its cost by the number of chains, and what the prefilter loses.

Usage: python tests/benchmarks/bench_cluster.py [--chains 1000 2000] [--threads 1] [--exact]
       python tests/benchmarks/bench_cluster.py --mutated --program mmseqs --chains 20000 100000 --threads 2

The chains are those of the training and test structures beside the checkout. For more chains than those, unrelated
ones are added by shuffling their residues, so the cost of many families is not in the numbers. With ``--mutated`` the
others are relatives: copies of real chains that keep 50 to 95 % of their residues, with insertions and deletions, so
that of 100,000 chains each has about 160 relatives. ``--exact`` aligns all
pairs of the real chains as well and lists what the prefilter lost. ``--simulated`` asks the prefilter for pairs just
above the threshold: letters of real chains exchanged as BLOSUM62 has them exchanged, with insertions and deletions.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from Bio.Align import substitution_matrices

sys.path.insert(0, str(Path(__file__).parents[2]))
from contactlm.homology.alignment import Aligner, WordIndex, raw_score
from contactlm.homology.cluster import ClusterOptions, cluster_sequences
from contactlm.homology.relations import make_pool
from contactlm.structure.parse import read_chains
from tests.homology.pairs import related_pairs

SHARED = Path(__file__).resolve().parents[3] / "shared" / "pdb"
AMINO_ACIDS = "ARNDCQEGHILKMFPSTWYV"


def real_chains(*folders: str) -> list[str]:
    """Distinct sequences of 15 residues and more, as observed and in full."""
    files = [path for folder in folders for path in sorted((SHARED / folder).iterdir())]
    chains = [chain for path in files for rule in ("seqres", "observed") for chain in read_chains(path, sequence=rule)]
    return make_pool([chain.sequence for chain in chains if len(chain) >= 15])


def with_shuffled(real: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Take n chains: the real ones, then shuffled ones."""
    chosen = [real[i] for i in rng.integers(0, len(real), max(0, n - len(real)))]
    return [*real[:n], *("".join(rng.permutation(list(sequence))) for sequence in chosen)]


def with_mutated(real: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Take n chains: the real ones, then mutated copies of them by turns."""
    exchange = exchange_table().cumsum(axis=1)
    number = np.full(256, -1)
    number[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = range(20)
    letters = np.frombuffer(AMINO_ACIDS.encode(), np.uint8)

    def mutated(sequence: str) -> str:
        before = number[np.frombuffer(sequence.encode(), np.uint8)]
        other = (exchange[before] < rng.random((len(before), 1))).sum(axis=1).clip(max=19)
        after = letters[np.where(rng.random(len(before)) < rng.uniform(0.5, 0.95), before, other)]
        for _ in range(rng.poisson(len(before) / 100)):
            at, length = rng.integers(0, len(after)), 1 + rng.geometric(0.4)
            if rng.random() < 0.5:
                after = np.insert(after, at, letters[rng.integers(0, 20, length)])
            else:
                after = np.delete(after, slice(at, at + length))
        return after.tobytes().decode()

    known = [sequence for sequence in real if set(sequence) <= set(AMINO_ACIDS)]
    return [*real[:n], *(mutated(known[i % len(known)]) for i in range(max(0, n - len(real))))]


def spent() -> tuple[float, float, float]:
    """Seconds, processor seconds of this process and the programs it ran, and the largest memory of either in MB."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return time.perf_counter(), processor, max(usage.ru_maxrss for usage in usages) / 1024


def exchange_table() -> np.ndarray:
    """Probability of each other amino acid where one is exchanged, (20, 20), from BLOSUM62 and even frequencies."""
    scores = substitution_matrices.load("BLOSUM62")
    table = np.exp(0.318 * np.array([[scores[a][b] for b in AMINO_ACIDS] for a in AMINO_ACIDS]))
    np.fill_diagonal(table, 0)
    return table / table.sum(axis=1, keepdims=True)


def diverge(sequence: str, kept: float, table: np.ndarray, rng: np.random.Generator) -> str:
    """Exchange all residues but a share of ``kept``; insert or delete a few at one place in fifty residues."""
    letters = [
        a if rng.random() < kept or a not in AMINO_ACIDS else AMINO_ACIDS[rng.choice(20, p=table[AMINO_ACIDS.index(a)])]
        for a in sequence
    ]
    for _ in range(rng.poisson(len(sequence) / 50)):
        length, at = 1 + rng.geometric(0.4), rng.integers(0, len(letters))
        letters[at : at + length * rng.integers(0, 2)] = [AMINO_ACIDS[k] for k in rng.integers(0, 20, length)]
    return "".join(letters)


def simulated_pairs(real: list[str], n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Pairs that the rule calls related, at 30 to 35 % identity."""
    table = exchange_table()
    pool = [sequence for sequence in real if 40 <= len(sequence) <= 600]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < n:
        sequence = pool[rng.integers(len(pool))]
        other = diverge(sequence, rng.uniform(0.28, 0.42), table, rng)
        short, long = make_pool([sequence, other]) if sequence != other else (sequence, other)
        aligner, target = Aligner([long]), np.zeros(1, dtype=np.int64)
        identity, coverage = aligner.compare(short, target)
        if 0.3 <= identity[0] < 0.35 and coverage[0] >= 0.8 and aligner.scores(short, target)[0] >= raw_score(30):
            pairs.append((short, long))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, nargs="*", default=[1000, 2000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--program", choices=("auto", "builtin", "mmseqs"), default="builtin")
    parser.add_argument("--mutated", action="store_true")
    parser.add_argument(
        "--cache", type=Path, help="folder for finished blocks, from which a run that was ended goes on"
    )
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--simulated", type=int, default=0, help="number of simulated pairs to look for")
    args = parser.parse_args()
    rng, real = np.random.default_rng(0), real_chains("train", "test", "homologs")
    print(f"{len(real)} real chains, {np.mean([len(s) for s in real]):.0f} residues on average")
    if args.exact:
        options = ClusterOptions()
        seconds = time.process_time()
        fast = {pair[:2] for pair in related_pairs(real, options, args.threads)}
        between = time.process_time()
        exact = {pair[:2]: pair[2] for pair in related_pairs(real, replace(options, prefilter=False), args.threads)}
        print(f"prefilter {between - seconds:.2f} s, all pairs {time.process_time() - between:.2f} s of processor time")
        lost = [round(exact[pair], 3) for pair in exact if pair not in fast]
        remote = sum(identity < 0.4 for identity in exact.values())
        print(f"{len(exact)} related pairs, {remote} below 40 % identity, lost: {lost}")
    if args.simulated:
        pairs = simulated_pairs(real, args.simulated, rng)
        found = [1 in WordIndex(pair).candidates(0, 1) for pair in pairs]
        print(f"{len(pairs)} simulated pairs of 30 to 35 % identity, found {np.mean(found):.4f}")
    for n in args.chains:
        sequences = (with_mutated if args.mutated else with_shuffled)(real, n, rng)
        mean = np.mean([len(sequence) for sequence in sequences])
        began, busy, _ = spent()
        clusters = cluster_sequences(sequences, ClusterOptions(program=args.program), args.cache, args.threads)
        ended, worked, memory = spent()
        print(
            f"{n} chains, {mean:.0f} residues on average, {args.program}: {clusters.max() + 1} clusters in "
            f"{ended - began:.1f} s, {worked - busy:.1f} s of processor time, at most {memory:.0f} MB so far"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
