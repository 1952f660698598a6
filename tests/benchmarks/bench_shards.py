"""Packed sets at a size that a folder should not have: start, memory, and what a batch costs.

    python tests/benchmarks/bench_shards.py [--chains 50000] [--batches 400] [--shuffle] [--keep DIR]

The chains are those of the training structures beside the checkout, repeated under new ids and written by the pack
writer itself (reading so many files would measure the reader). Copies have the sequences of their originals, so that
there are few distinct ones; ``--shuffle`` permutes each copy's residues instead, which makes them distinct and
unrelated: every one is then given a cluster of its own without asking the aligner. Clusters are recorded in the set.

  pack    seconds of processor time and bytes a residue, peak memory of the packing process
  start   prepare_data and setup("fit") of the data module, in a process of its own, imports left out; without a test
          set, and with the test structures (their leak report computed, then taken from the cache)
  batch   16 x 200: making it from the packed set and from the same chains in one chain store, turn by turn, beside a
          training step of ESM2-8M (LoRA, forward, backward, Adam) in the same process; medians of processor time
  memory  anonymous and file-backed resident memory over ten times the batches, loader only: the file-backed part is
          the mapped shards' pages, which all processes share and the system takes back when it needs them

Further: ``--reader N`` measures how fast N files are read and packed by one process (processor time); ``--grid 0.01``
counts the labels that would change if coordinates were rounded to that grid (Å); ``--index N`` times opening an index
of N chains.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).resolve().parents[3] / "shared" / "pdb"
BATCH, LENGTH = 16, 200


def resident() -> dict[str, float]:
    """Anonymous and file-backed resident memory, MB."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {fields[0][3:-1]: int(fields[1]) / 1024 for fields in lines if fields[0] in ("RssAnon:", "RssFile:")}


def real_files(cache: str, role: str = "train") -> list[Any]:
    """The chains of each readable file, as a store each."""
    from contactlm.data.cache import StructureCache
    from contactlm.data.files import find_structures

    store, _ = StructureCache(cache).load(find_structures(SHARED / role))
    files = np.asarray(store.meta["file_of_chain"])
    return [store.select(np.flatnonzero(files == file)) for file in np.unique(files)]


def copies(originals: list[Any], chains: int, shuffle: bool) -> Iterator[tuple[str, Any]]:
    """Copies of files until there are enough chains."""
    rng, made, turn = np.random.default_rng(0), 0, 0
    while made < chains:
        for number, original in enumerate(originals):
            if made >= chains:
                return
            made += len(original)
            name = f"c{turn:05d}n{number:03d}"
            copy = replace(original, ids=[f"{name}_{i}" for i in range(len(original))])
            if shuffle:
                tokens = np.concatenate([rng.permutation(original.tokens_of(i)) for i in range(len(original))])
                cb = np.concatenate([original.cb_of(i) for i in range(len(original))])
                copy = replace(copy, starts=np.cumsum(copy.lengths) - copy.lengths, cb=cb, tokens=tokens)
            yield name, copy
        turn += 1


def pack(out: Path, cache: str, chains: int, shuffle: bool) -> None:
    """Write the set, and print what it took."""
    from contactlm.data.packed import pack as pack_writer
    from contactlm.data.packed.store import ClusterRule
    from contactlm.data.split import group_identical

    originals = real_files(cache)
    if shuffle:
        pack_writer.cluster_sequences = lambda sequences, *_, **__: group_identical(sequences)
    begin = time.process_time()
    writer = pack_writer.PackedWriter(out)
    writer.resume([])
    for name, store in copies(originals, chains, shuffle):
        writer.add(name, store)
    between = time.process_time()
    manifest = writer.finish(ClusterRule())
    residues, size = (sum(getattr(shard, name) for shard in manifest.shards) for name in ("residues", "size"))
    print(
        f"pack: {chains} chains, {residues} residues, {len(manifest.shards)} shards: {between - begin:.1f} s of "
        f"processor time, clusters and index {time.process_time() - between:.1f} s; {size / residues:.3f} bytes a "
        f"residue in shards, {(size + manifest.index.size) / residues:.3f} with the index; peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )


def start(location: str, cache: str, test: bool) -> None:
    """Time a start of the data module."""
    from contactlm import ContactDataModule

    data = ContactDataModule(location, str(SHARED / "test") if test else None, cache_dir=cache)
    begin, spent, before = time.perf_counter(), time.process_time(), resident()
    data.prepare_data()
    data.setup("fit")
    seconds, after = time.perf_counter() - begin, resident()
    known = {role: len(values) for role, values in data.identity.items()}
    sizes = {role: len(store) for role, store in data.chains.items()}
    grown = {name: round(after[name] - before[name]) for name in after}
    spent = time.process_time() - spent
    print(
        f"start: {seconds:.2f} s ({spent:.2f} s of processor time), {sizes}, identities of {known}, "
        f"memory grew by {grown} MB"
    )


def batches(location: str, cache: str, count: int) -> None:
    """Time batches of the packed set against one store, and both against a training step; watch memory.

    Processor time on one thread: beside other jobs the clock on the wall would flatter the short of two times.
    """
    import torch

    from contactlm import ContactDataModule, ContactModule
    from contactlm.data.dataset import CropDataset, collate
    from contactlm.data.store import ChainStore
    from contactlm.structure.contacts import contact_labels

    torch.set_num_threads(1)
    data = ContactDataModule(location, cache_dir=cache)
    data.prepare_data()
    data.setup("fit")
    packed = data.chains["train"]
    flat = ChainStore.concatenate([packed.select(range(min(len(packed), 5000)))])
    sets = {"packed": CropDataset(packed, LENGTH), "store": CropDataset(flat, LENGTH)}
    architecture = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
    module = ContactModule(None, architecture).train()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 1e-4)
    times: dict[str, list[float]] = {name: [] for name in (*sets, "step")}
    for n in range(count):
        for name, dataset in sets.items():
            begin = time.process_time()
            batch = collate([dataset[BATCH * n + i] for i in range(BATCH)])
            times[name].append(time.process_time() - begin)
        if n % 25 == 0:
            begin = time.process_time()
            scores = module.pair_scores(batch["tokens"], batch["attention_mask"], None)
            module.loss(scores, contact_labels(batch["cb"])).backward()
            optimizer.step()
            optimizer.zero_grad()
            times["step"].append(time.process_time() - begin)
    middle = {name: 1000 * statistics.median(values) for name, values in times.items()}
    print(
        f"processor time, medians: batch of {BATCH} x {LENGTH}: packed {middle['packed']:.2f} ms, one store "
        f"{middle['store']:.2f} ms, training step {middle['step']:.0f} ms ({len(times['step'])} steps): packed takes "
        f"{100 * middle['packed'] / middle['step']:.2f} % of the step; slowest {1000 * max(times['packed']):.1f} ms"
    )


def memory(location: str, cache: str, count: int) -> None:
    """Watch memory while batches are made, and nothing else."""
    from contactlm import ContactDataModule
    from contactlm.data.dataset import CropDataset, collate

    data = ContactDataModule(location, cache_dir=cache)
    data.prepare_data()
    data.setup("fit")
    dataset, rows = CropDataset(data.chains["train"], LENGTH), []
    for n in range(count):
        collate([dataset[BATCH * n + i] for i in range(BATCH)])
        if n % max(1, count // 10) == 0 or n == count - 1:
            rows.append(resident())
    said = ", ".join(f"{row['Anon']:.1f}+{row['File']:.0f}" for row in rows)
    print(f"memory over {count} batches, anonymous + file-backed, MB: {said}")


def reader(files: int) -> None:
    """Read and pack files by one process."""
    from contactlm.data.files import find_structures
    from contactlm.data.packed.pack import pack_structures

    with tempfile.TemporaryDirectory() as scratch:
        chosen = find_structures(SHARED / "train")[:files]
        (Path(scratch) / "list.txt").write_text("".join(f"{path}\n" for path in chosen))
        begin = time.process_time()
        manifest = pack_structures([f"{scratch}/list.txt"], Path(scratch) / "out", workers=0, progress=False)
        seconds = time.process_time() - begin
    residues, chains = (sum(getattr(shard, name) for shard in manifest.shards) for name in ("residues", "chains"))
    size = sum(path.stat().st_size for path in chosen)
    print(
        f"reader: {manifest.files} files ({size / 1e6:.0f} MB compressed), {chains} chains, {residues} residues in "
        f"{seconds:.1f} s of processor time: {manifest.files / seconds:.1f} files/s, "
        f"{residues / seconds:.0f} residues/s"
    )


def grid(cache: str, step: float) -> None:
    """Count the labels that rounding the coordinates changes."""
    from contactlm.structure.contacts import contact_map

    pairs = contacts = changed = touched = chains = 0
    for original in real_files(cache):
        for i in range(len(original)):
            cb = original.cb_of(i)
            before, after = contact_map(cb), contact_map((np.round(cb / step) * step).astype(np.float32))
            different = int((before != after).sum()) // 2
            pairs, contacts = pairs + int((before >= 0).sum()) // 2, contacts + int((before == 1).sum()) // 2
            changed, touched, chains = changed + different, touched + bool(different), chains + 1
    print(
        f"grid {step} Å: {changed} of {pairs} pairs ({contacts} contacts) decided differently, in {touched} of "
        f"{chains} chains"
    )


def index(chains: int) -> None:
    """Write an index of so many made-up chains, then time opening and selecting from it."""
    from contactlm.atomic import hash_file
    from contactlm.data.packed.location import INDEX, Part, SetFolder
    from contactlm.data.packed.store import COLUMNS, PackedSet, PackedStore

    columns: dict[str, Any] = {name: np.arange(chains) for name in COLUMNS if name != "ids"}
    columns |= {"ids": np.array([f"c{i:09d}".encode() for i in range(chains)]), "lengths": np.full(chains, 230)}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / INDEX
        np.savez(path, **columns)
        begin = time.perf_counter()
        hash_file(path)
        hashed = time.perf_counter()
        with np.load(path) as archive:
            read = {name: archive[name] for name in COLUMNS}
        shard = Part("shard-000000.chains", 0, "", chains, 230 * chains)
        opened = PackedStore.of(PackedSet(SetFolder(scratch, Path(scratch)), [shard], read))
        ids = opened.select(np.random.default_rng(0).permutation(len(opened))).ids
        total = int(opened.packed.starts[-1])
        print(
            f"index of {chains} chains, {path.stat().st_size / chains:.0f} bytes each: hashed {hashed - begin:.2f} s, "
            f"opened and permuted {time.perf_counter() - hashed:.2f} s ({total} residues, {len(ids)} ids)"
        )


def apart(*arguments: object) -> None:
    """Run one part in a process of its own."""
    code = f"import bench_shards; bench_shards.{arguments[0]}(*{json.dumps(arguments[1:])!s})"
    code = code.replace("true", "True").replace("false", "False")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=50_000)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--keep", help="folder for the set and the cache; used again when it is there")
    parser.add_argument("--reader", type=int)
    parser.add_argument("--grid", type=float, nargs="*", default=[])
    parser.add_argument("--index", type=int, nargs="*", default=[])
    options = parser.parse_args()
    scratch = Path(options.keep or tempfile.mkdtemp())
    cache, out = (
        str(scratch / "cache"),
        scratch / f"packed-{options.chains}-{'shuffled' if options.shuffle else 'copies'}",
    )
    try:
        if options.reader or options.grid or options.index:
            if options.reader:
                reader(options.reader)
            for step in options.grid:
                grid(cache, step)
            for chains in options.index:
                index(chains)
            return
        if not out.exists():
            code = f"from pathlib import Path; import bench_shards; bench_shards.pack(Path({str(out)!r}), {cache!r}, "
            code += f"{options.chains}, {options.shuffle})"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
        for test in (False, False, True, True):
            apart("start", str(out), cache, test)
        apart("batches", str(out), cache, options.batches)
        apart("memory", str(out), cache, 10 * options.batches)
    finally:
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
