"""What known structures cost a training step: ``python tests/benchmarks/bench_retrieval.py [DIRECTORY_OF_A_BACKBONE]``.

One training step (forward, loss, backward, optimizer) of 16 crops of 200 residues, with LoRA on an ESM2-8M
architecture: plain; with 4 hits a query whose evidence comes with the batch, as loader processes make it; and with
evidence that the same process makes first, as without such processes. They take turns. Processor and wall time, the
medians; and what making evidence takes: of crops of known chains, and of a chain whose segments are known.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contactlm import ContactModule, RetrievalModule
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.store import ChainStore
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.exclude import Exclusion
from tests.conftest import random_sequence
from tests.retrieval.made import made_chain, mutated

ESM2_8M = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
CHAINS, LENGTH, HITS, STEPS, BATCH = 4, 300, 4, 3, 16


def write_database(folder: Path, queries: list[str]) -> Path:
    near = [mutated(query, 0.15 * n, n) for query in queries for n in range(1, HITS + 1)]
    store = ChainStore.from_chains([made_chain(f"{n}_A", sequence, n) for n, sequence in enumerate(near)])
    # segments of 8 residues, every third a loop: 25 a chain, as many as real chains of this length have
    states = np.tile(np.repeat([0, 1, 2], 8), len(store.tokens) // 24 + 1)[: len(store.tokens)].astype(np.uint8)
    StructureDatabase.write(folder, store, states, ["made"])
    return folder


def timed(step: Any) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return time.process_time() - processor, time.perf_counter() - wall


def main(pretrained: str | None) -> None:
    sequences = [random_sequence(n, LENGTH) for n in range(CHAINS)]
    store = ChainStore.from_chains([made_chain(f"q{n}_A", s, n) for n, s in enumerate(sequences)])
    dataset = CropDataset(store, 200)
    with tempfile.TemporaryDirectory() as folder:
        backbone: dict[str, Any] = {"pretrained": pretrained, "architecture": None if pretrained else ESM2_8M}
        plain = ContactModule(**backbone)
        index = write_database(Path(folder) / "db", sequences)
        retrieval = RetrievalModule(**backbone, index=str(index), cache_dir=folder)
        retrieval._stores = lambda: {"train": store}  # type: ignore[method-assign]
        batches: list[Any] = [collate([dataset[BATCH * b + n] for n in range(BATCH)]) for b in range(STEPS + 1)]
        times: dict[str, list[tuple[float, float]]] = {}
        modules = {"plain": plain, "retrieval": retrieval, "with evidence": retrieval}
        optimizers = {name: module.configure_optimizers() for name, module in modules.items()}
        loaded = [batch | {"evidence": retrieval.crop_evidence(batch)} for batch in batches]

        def step(name: str, number: int) -> None:
            module: Any = modules[name]
            batch = (loaded if name == "retrieval" else batches)[number]
            if name == "with evidence":
                batch = batch | {"evidence": module.crop_evidence(batch)}
            loss = module.loss(module.batch_scores(batch), module.training_labels(batch["cb"]))
            optimizers[name].zero_grad()  # type: ignore[union-attr]
            loss.backward()
            optimizers[name].step()  # type: ignore[union-attr]

        for number in range(len(batches)):
            for name in modules:
                taken = timed(lambda name=name, number=number: step(name, number))
                if number:  # the first one fills the caches
                    times.setdefault(name, []).append(taken)
        collected = [timed(lambda batch=batch: retrieval.crop_evidence(batch)) for batch in batches]
        anew = [timed(lambda source=source: source.of(["q"], sequences[:1], Exclusion.nothing()))
                for source in (pickle.loads(pickle.dumps(retrieval.evidence)) for _ in range(5))]  # fmt: skip
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    for name, (processor, wall) in medians.items():
        print(f"{name:14} {processor:.2f} s processor, {wall:.2f} s wall")
    for name in ("retrieval", "with evidence"):
        ratios = [a / b for a, b in zip(medians[name], medians["plain"], strict=True)]
        print(f"{name} over plain {ratios[0]:.2f} processor, {ratios[1]:.2f} wall; {torch.get_num_threads()} threads")
    print(f"evidence of the crops: {1000 * statistics.median(row[0] for row in collected):.1f} ms processor")
    print(f"evidence of a chain: {1000 * statistics.median(row[0] for row in anew):.1f} ms processor")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pretrained", nargs="?", help="Directory of a backbone; none: random weights.")
    main(parser.parse_args().pretrained)
