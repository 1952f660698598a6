"""Time of predict_contacts over that of ``contactlm predict`` without its files, on the same sequences.

Usage: python tests/benchmarks/bench_predict.py [NUMBER_OF_SEQUENCES] [tiny|8M]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import numpy as np
import torch

from contactlm import ContactDataModule, ContactModule, predict_contacts

SIZES = {
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "8M": {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280},
}
LENGTH, ROUNDS = 150, 3


def main(number: int, size: str) -> None:
    """Take turns, and print the seconds of each and the median of their ratios."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), LENGTH)) for _ in range(number)]
    model = ContactModule(None, architecture=SIZES[size], lora=None)
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "a.fasta"
        fasta.write_text("".join(f">p{n}\n{sequence}\n" for n, sequence in enumerate(sequences)))
        ratios = []
        for _ in range(ROUNDS):
            seconds = []
            for run in (lambda: command(model, fasta, folder), lambda: predict_contacts(sequences, model, "cpu")):
                began = time.process_time()
                run()
                seconds.append(time.process_time() - began)
            ratios.append(seconds[1] / seconds[0])
            print(
                f"{size}, {number} x {LENGTH}: command {seconds[0]:.2f} s, predict_contacts {seconds[1]:.2f} s",
                flush=True,
            )
    print(f"{size}: median ratio {statistics.median(ratios):.3f} of processor time")


def command(model: ContactModule, fasta: Path, cache: str) -> None:
    """What the command does, apart from its files."""
    data = ContactDataModule(predict_paths=[str(fasta)], cache_dir=cache, read_workers=0)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.predict(model, datamodule=data, return_predictions=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", nargs="?", type=int, default=1000, help="Sequences.")
    parser.add_argument("size", nargs="?", choices=SIZES, default="tiny", help="Of the model.")
    main(**vars(parser.parse_args()))
