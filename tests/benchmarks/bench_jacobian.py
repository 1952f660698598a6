"""The categorical Jacobian: time and memory against the published loop.

    python tests/benchmarks/bench_jacobian.py [--lengths 100 300] [--threads 2] [--positions 25] [--repeats 3]

The ESM2-8M architecture with random weights, float32, one protein of random residues:
  loop      the published script (20 sequences at a time, one position after another, the whole vocabulary, everything
            stored), on transformers' EsmForMaskedLM: with eager attention, as fair-esm has, on which it was published,
            and with fused attention (sdpa)
  fair-esm  the same loop on fair-esm's ESM2, where it is installed
  ours      contactlm's MaskedLanguageModel and categorical_jacobian: in float32, and in bfloat16 (autocast) with how
            far its map agrees with the first
  trunk     transformers' EsmModel with fused attention on the same sequences, no head, nothing kept
  products  the matrix products of the 19 sequences a position that an exact Jacobian needs, and nothing else: what is
            left when attention, norms and activations cost nothing
Variants run turn by turn in one process, over the same number of positions (--positions, 0: all). Processor time
counts, so that other work on the machine matters little, and the shortest of some rounds; seconds are those of the
whole protein, by the share of its positions. Memory is the peak resident set over the loaded model, of the whole
protein, each variant in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ARCHITECTURE = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
LOOPS = ("loop eager", "loop sdpa", "loop fair-esm")
OURS = ("ours", "ours bf16")
EACH = 19  # sequences a position
VARIANTS = (*LOOPS, *OURS, "trunk", "products")
FASTER = 2.0
Done = tuple[Tensor | None, float]  # the scores, None where positions are left out; and the share that was run
Maps = Callable[[Tensor, int], Done]


def stock_model(attention: str) -> Any:
    from transformers import EsmForMaskedLM

    from contactlm.model.loading import load_esm

    esm = load_esm(None, ARCHITECTURE, seed=0)
    model = EsmForMaskedLM(esm.config)
    model.esm = esm
    model.set_attn_implementation(attention)
    return model.eval()


def build(variant: str) -> Maps:
    """Return (residue tokens, number of positions) -> scores and share run."""
    if variant == "loop fair-esm":
        from esm.model.esm2 import ESM2

        layers, width, heads = (ARCHITECTURE[k] for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
        model = ESM2(layers, width, heads).eval()
        return lambda tokens, positions: published(lambda rows: model(rows)["logits"], tokens, positions)
    if variant.startswith("loop"):
        stock = stock_model(variant.removeprefix("loop "))
        return lambda tokens, positions: published(lambda rows: stock(rows).logits, tokens, positions)
    if variant == "trunk":
        return trunk()
    if variant == "products":
        return products
    return ours(variant == "ours bf16")


def published(logits: Callable[[Tensor], Tensor], tokens: Tensor, positions: int) -> Done:
    """The paper's script, up to the map; stops after some positions."""
    with torch.no_grad():
        L = len(tokens)
        x = torch.cat([torch.tensor([0]), tokens, torch.tensor([2])])[None]
        f = lambda rows: logits(rows)[..., 1 : L + 1, 4:24].numpy()  # noqa: E731 - as published
        fx = f(x)[0]
        x = torch.tile(x, [20, 1])
        fx_h = np.zeros((L, 20, L, 20), dtype=np.float32)
        for n in range(positions):
            x_h = torch.clone(x)
            x_h[:, n + 1] = torch.arange(4, 24)
            fx_h[n] = f(x_h)
    if positions < L:
        return None, positions / L
    jac = fx_h - fx
    for i in range(4):
        jac -= jac.mean(i, keepdims=True)
    jac = (jac + jac.transpose(2, 3, 0, 1)) / 2
    contacts = np.sqrt(np.square(jac).sum((1, 3)))
    np.fill_diagonal(contacts, 0)
    contacts -= contacts.sum(0, keepdims=True) * contacts.sum(1, keepdims=True) / contacts.sum()
    np.fill_diagonal(contacts, 0)
    return torch.from_numpy(contacts), 1.0


class EnoughError(Exception):
    """Some positions are done."""


def ours(autocast: bool) -> Maps:
    from contactlm.maps.jacobian import AMINO_ACIDS, categorical_jacobian
    from contactlm.model.encoder import MaskedLanguageModel, load_language_model_head
    from contactlm.model.loading import load_esm

    esm = load_esm(None, ARCHITECTURE, seed=0)
    model = MaskedLanguageModel(esm, load_language_model_head(esm, None), AMINO_ACIDS).eval()

    def run(tokens: Tensor, positions: int) -> Done:
        sequences = 0

        def logits(*batch: Any) -> Tensor:
            nonlocal sequences
            if sequences >= positions * EACH + 1:
                raise EnoughError
            sequences += len(batch[0])
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return model(*batch)

        try:
            return categorical_jacobian(logits, tokens, logits_of=AMINO_ACIDS), 1.0
        except EnoughError:  # batches do not end where positions do
            return None, sequences / (len(tokens) * EACH + 1)

    return run


def trunk() -> Maps:
    esm = stock_model("sdpa").esm

    def run(tokens: Tensor, positions: int) -> Done:
        row = torch.cat([torch.tensor([0]), tokens, torch.tensor([2])])
        with torch.no_grad():
            for _ in range(positions):
                esm(row.expand(20, -1))
        return None, positions / len(tokens)

    return run


def products(tokens: Tensor, positions: int) -> Done:
    """By torch's linear layers, in batches as ours are."""
    from contactlm.maps.jacobian import CPU_COST

    E, inner, T = ARCHITECTURE["hidden_size"], ARCHITECTURE["intermediate_size"], len(tokens) + 2
    shapes = [*([(E, E)] * 4 + [(inner, E), (E, inner)]) * ARCHITECTURE["num_hidden_layers"], (E, E), (20, E)]
    weights = [torch.randn(shape) for shape in shapes]
    sequences, batch = positions * EACH, max(1, CPU_COST // T**2)
    given = {width: torch.randn(batch, T, width) for width in (E, inner)}
    with torch.no_grad():
        for start in range(0, sequences, batch):
            some = min(batch, sequences - start)
            for weight in weights:
                torch.nn.functional.linear(given[weight.shape[1]][:some], weight)
    return None, positions / len(tokens)


def peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_memory(variant: str, length: int) -> float:
    """MB over the loaded model, of a whole protein."""
    run = build(variant)
    run(protein(8), 8)
    Path("/proc/self/clear_refs").write_text("5") if Path("/proc/self/clear_refs").exists() else None
    loaded = peak()
    run(protein(length), length)
    return max(0.0, peak() - loaded) / 1e6


def protein(length: int) -> Tensor:
    return torch.randint(4, 24, (length,), generator=torch.Generator().manual_seed(1))


def memory_of(variant: str, length: int, threads: int) -> float:
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", json.dumps([variant, length])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{variant}, {length} residues: {done.stderr}")
    return float(done.stdout.splitlines()[-1])


def measure_time(runs: dict[str, Maps], length: int, positions: int, repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(protein(length), 1)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            _, share = run(protein(length), positions)
            seconds[name].append((time.process_time() - start) / share)
    return {name: min(own) for name, own in seconds.items()}


def error_of(run: Maps, exact: Maps, length: int) -> str:
    from tests.benchmarks.agreement import agreement

    one, other = (each(protein(length), length)[0] for each in (run, exact))
    assert one is not None and other is not None
    return ", ".join(f"{name} {value:.4f}" for name, value in agreement(one, other).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", type=int, default=25, help="timed of each protein; 0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--no-error", action="store_true", help="of what is not exact, which takes three whole proteins"
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        print(measure_memory(*args.worker))
        return
    variants = [name for name in VARIANTS if name != "loop fair-esm" or importlib.util.find_spec("esm")]
    runs = {name: build(name) for name in variants}
    for length in args.lengths:
        seconds = measure_time(runs, length, min(args.positions or length, length), args.repeats)
        print(f"{length} residues, {args.threads} threads")
        for name in variants:
            memory = "" if name == "products" or args.no_memory else f", {memory_of(name, length, args.threads):.0f} MB"
            print(f"  {name:<14} {seconds[name]:8.1f} s{memory}", flush=True)
        for name in OURS:
            ratios = ", ".join(f"{seconds[loop] / seconds[name]:.2f} x {loop}" for loop in LOOPS if loop in seconds)
            # a loop runs 20 sequences a position, ours 19: the native one is the wild type
            share = seconds["trunk"] / 20 / (seconds[name] / EACH)
            verdict = (
                "met" if min(seconds[loop] / seconds[name] for loop in LOOPS if loop in seconds) >= FASTER else "MISSED"
            )
            print(f"  {name}: {ratios} (bound {FASTER:g}: {verdict}); {share:.0%} of the trunk's forwards a second")
        most = ", ".join(f"{seconds[loop] / seconds['products']:.2f} x {loop}" for loop in LOOPS if loop in seconds)
        print(f"  were all but the products free: {most}", flush=True)
        if not args.no_error:
            for name in OURS[1:]:
                print(f"  {name} against ours: {error_of(runs[name], runs['ours'], length)}", flush=True)


if __name__ == "__main__":
    main()
