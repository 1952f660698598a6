"""Memory and time of fitting a contact head: as many attention maps as ESM2-650M has, chains of one length.

    python tests/benchmarks/bench_head_fit.py [--chains 20] [--length 300] [--strengths 0.03 0.3]

A random backbone of 33 layers of 20 heads, each 8 wide, so that features and solver weigh and not the model; bundles
of synthetic strands, with as many contacts as such have. Prints the peak resident set over the loaded model, which
has to stay below 2 GB, and processor time. A lower bound on the time of a real model: its layers come on top.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures
from contactlm.data.store import ChainStore
from contactlm.model.backbone import ContactBackbone, load_esm
from contactlm.modules.head_fit import HeadFitOptions, fit_head

sys.path.insert(0, str(Path(__file__).parent))
from bench_contact_attention import peak, reset_peak
from bundles import write_bundles

ARCHITECTURE = {"num_hidden_layers": 33, "hidden_size": 160, "num_attention_heads": 20, "intermediate_size": 320}
MOST = 2e9
HELD_OUT = 4


def stores(folder: Path, chains: int, length: int) -> list[ChainStore]:
    folders = write_bundles(folder, n_train=chains, n_test=HELD_OUT, min_length=length, max_length=length)
    cache = StructureCache(folder / "cache", workers=0)
    return [cache.load(find_structures(where))[0] for where in folders]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--length", type=int, default=300)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.03, 0.3])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    backbone = ContactBackbone(load_esm(None, ARCHITECTURE, seed=0)).eval()
    options = HeadFitOptions(given.chains, held_out=HELD_OUT, strengths=given.strengths)
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = stores(Path(folder), given.chains, given.length)
        loaded, start = reset_peak(), time.process_time()
        fit = fit_head(backbone, train, held_out, options)
        over = peak() - loaded
    print(f"{len(fit.head.weight)} maps, {len(fit.ids)} chains of {given.length}, pairs and contacts {fit.pairs}")
    print(f"{over / 1e9:.2f} GB over the loaded model (bound {MOST / 1e9:g} GB: {'met' if over < MOST else 'MISSED'})")
    print(f"{time.process_time() - start:.0f} s of processor time, {len(given.strengths)} strengths")


if __name__ == "__main__":
    main()
