"""What a structure database costs, and how the programs that search it compare.

    python tests/benchmarks/bench_search.py PDB_FOLDER [--chains 100000]

PDB_FOLDER holds train/, test/, homologs/ and HOMOLOGS.csv (which chains are related). All times are processor seconds
of one thread, so that other work on the machine matters little. Three parts:

* build: a database of train and homologs, cold, and again when nothing has changed;
* recall: the listed relatives that each program finds at E <= 1e-3 (pyopal's E-value by Karlin and Altschul), test
  and train chains asking a database of train and homologs, and the time a query takes;
* scale: a database of that many chains, the real ones and random sequences of their composition and lengths, opened
  and searched.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contactlm.data.files import find_structures
from contactlm.data.store import ChainStore
from contactlm.homology.alignment import Aligner, WordIndex
from contactlm.retrieval.build import BackboneCache, build_database
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.search import Phmmer, StructureSearch

EVALUE = 1e-3
LAMBDA, K = 0.267, 0.041
Name = tuple[str, str]  # file below PDB_FOLDER, author chain id


def seconds(function: Callable[[], Any]) -> tuple[Any, float]:
    """Call a function; its result and the processor seconds it took."""
    begin = time.process_time()
    result = function()
    return result, time.process_time() - begin


class Opal:
    """Smith-Waterman on all targets, or on those that the k-mer prefilter passes."""

    def __init__(self, targets: Sequence[str], queries: Sequence[str], prefilter: bool) -> None:
        self.pool = list(dict.fromkeys([*targets, *queries]))
        self.numbers = {sequence: i for i, sequence in enumerate(self.pool)}
        self.targets, self.residues = len(targets), sum(map(len, targets))
        self.aligner, self.index = Aligner(self.pool), WordIndex(self.pool) if prefilter else None

    def find(self, query: str) -> set[int]:
        """Numbers of the targets below the E-value."""
        if self.index is None:
            targets = np.arange(self.targets)
        else:
            targets = self.index.candidates(self.numbers[query])
            targets = targets[targets < self.targets]
        bits = (LAMBDA * self.aligner.scores(query, targets) - np.log(K)) / np.log(2)
        return set(targets[len(query) * self.residues * 2.0**-bits <= EVALUE].tolist())


def find_all(opal: Opal, queries: Sequence[str]) -> list[set[int]]:
    """Ask for all queries."""
    return [opal.find(query) for query in queries]


def read(folder: Path, split: str, cache: BackboneCache) -> tuple[ChainStore, list[Name]]:
    """The chains of a folder and their names as in HOMOLOGS.csv."""
    files = find_structures(folder / split)
    store, _ = cache.load(files)
    owners = [files[i].name for i in store.meta["file_of_chain"]]
    chains = [name.rpartition("_")[2] or "_" for name in store.ids]
    return store, [(f"{split}/{file}", chain) for file, chain in zip(owners, chains, strict=True)]


def bench_build(folder: Path, scratch: Path, cache: BackboneCache) -> StructureDatabase:
    """Build, and build again."""
    sources, out = [folder / "train", folder / "homologs"], scratch / "db"
    seconds(lambda: build_database([folder / "homologs" / "1ACB.pdb.gz"], scratch / "first", cache))  # imports
    for when in ("cold", "nothing changed"):
        report, took = seconds(lambda: build_database(sources, out, cache))
        print(
            f"build, {when}: {report.parsed} of {report.files} files read, {report.chains} chains, "
            f"{report.residues} residues, {took:.1f} s; {1000 * took / report.chains:.1f} s per 1,000 chains"
        )
    return StructureDatabase.open(out)


def bench_recall(folder: Path, cache: BackboneCache) -> None:
    """Count the listed relatives that each program finds."""
    splits = {split: read(folder, split, cache) for split in ("train", "test", "homologs")}
    where = {n: s.sequence_of(i) for s, names in splits.values() for i, n in enumerate(names)}
    targets = sorted({where[n] for split in ("train", "homologs") for n in splits[split][1]})
    queries = sorted({where[n] for split in ("test", "train") for n in splits[split][1]})
    number = {sequence: i for i, sequence in enumerate(targets)}
    related: dict[tuple[str, int], float] = {}
    for row in csv.DictReader((folder / "HOMOLOGS.csv").open()):
        homolog = where[row["homolog_path"], row["homolog_chain"]]
        query = where[row["query_path"], row["query_chain"]]
        related[query, number[homolog]] = float(row["identity_over_pairs"])
    print(f"{len(queries)} queries, {len(targets)} targets, {len(related)} listed pairs")

    phmmer = Phmmer(targets, EVALUE, 1)
    programs: dict[str, Callable[[], list[set[int]]]] = {
        "phmmer": lambda: [set(found.target.tolist()) for found in phmmer.find(queries)]
    }
    for name, prefilter in (("pyopal behind the prefilter", True), ("pyopal, all pairs", False)):
        opal = Opal(targets, queries, prefilter)
        programs[name] = partial(find_all, opal, queries)
    for name, program in programs.items():
        found, took = seconds(program)
        answers = dict(zip(queries, found, strict=True))
        hit = {pair: pair[1] in answers[pair[0]] for pair in related}
        low = [hit[pair] for pair, identity in related.items() if identity < 0.4]
        print(
            f"{name}: {sum(hit.values())}/{len(hit)} found, below 40 % identity {sum(low)}/{len(low)}; "
            f"{sum(map(len, found))} hits in all; {1000 * took / len(queries):.1f} ms a query"
        )


def enlarged(database: StructureDatabase, chains: int) -> tuple[ChainStore, NDArray[np.uint8]]:
    """The database's chains and random ones, as many as asked for."""
    rng, real = np.random.default_rng(0), database.store
    lengths = np.concatenate([real.lengths, rng.choice(real.lengths, chains - len(real))])
    more = int(lengths[len(real) :].sum())
    tokens = np.concatenate([real.tokens, rng.choice(real.tokens, more)])
    cb = np.concatenate([real.cb, rng.normal(scale=15, size=(more, 3)).astype(np.float32)])
    ids = [*real.ids, *(f"random{i}_A" for i in range(chains - len(real)))]
    return ChainStore(ids, np.cumsum(lengths) - lengths, lengths, cb, tokens), rng.integers(0, 3, len(tokens), np.uint8)


def write_large(database: StructureDatabase, chains: int, folder: Path) -> None:
    """Write an enlarged database."""
    store, states = enlarged(database, chains)
    _, took = seconds(lambda: StructureDatabase.write(folder, store, states, []))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{chains} chains, {len(states)} residues: written and opened in {took:.1f} s, {size / 1e6:.0f} MB")


def resident() -> float:
    """Memory of this process at the moment, in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def search_large(folder: Path, program: str) -> None:
    """Open and search a database; in a process of its own, for its memory."""
    database, opened = seconds(lambda: StructureDatabase.open(folder))
    queries = list(dict.fromkeys(database.sequence_of(i) for i in range(0, 500, 20)))
    before = resident()
    find: Callable[[str], Any]
    if program == "phmmer":
        search, ready = seconds(lambda: StructureSearch(database, threads=1))
        find = lambda query: search.search([query])  # noqa: E731
    else:
        targets = list(dict.fromkeys(database.sequence_of(i) for i in range(len(database))))
        opal, ready = seconds(lambda: Opal(targets, queries, prefilter=True))
        find = opal.find
    _, first = seconds(lambda: find(queries[0]))
    _, rest = seconds(lambda: [find(query) for query in queries[1:]])
    print(
        f"{program}: database opened in {opened:.2f} s; ready in {ready + first:.1f} s (the first query in it), then "
        f"{1000 * rest / (len(queries) - 1):.0f} ms a query of {np.mean([len(q) for q in queries]):.0f} residues; "
        f"{resident() - before:.0f} MB beside the map"
    )


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chains", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        cache = BackboneCache(scratch / "cache", workers=0, progress=False)
        database = bench_build(options.folder, scratch, cache)
        sys.stdout.flush()
        bench_recall(options.folder, cache)
        sys.stdout.flush()
        write_large(database, options.chains, scratch / "large")
        sys.stdout.flush()
        for program in ("phmmer", "pyopal behind the prefilter"):
            arguments = (scratch / "large", program)
            child = multiprocessing.get_context("spawn").Process(target=search_large, args=arguments)
            child.start()
            child.join()


if __name__ == "__main__":
    main()
