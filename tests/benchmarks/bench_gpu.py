"""Time and memory of contact logits on a GPU: fused, blockwise and plain, beside stock transformers and the trunk.

    python tests/benchmarks/bench_gpu.py --out DIR [--models 8M 650M] [--self-check]

Random weights, bfloat16 autocast over float32 weights; "step" is forward and backward with LoRA (r = 8) on queries and
keys and a trainable contact head, without the optimizer.
  stock      transformers' EsmModel with eager attention, predict_contacts, its autograd
  plain      contactlm with one layer's maps stored at a time
  blockwise  contactlm's streamed operation
  fused      contactlm's Triton kernels
  trunk      transformers' EsmModel with SDPA and no contacts; the loss is the sum of the last hidden state
First the fused operation is compared with the plain one in float64, values and all gradients: the exit status is 1
where they differ. Then every variant is timed by CUDA events until the medians of two rounds agree within 2 %. Peak
memory includes the weights. "Share of peak" is the trunk's FLOPs, which are the same work for every variant, over the
time, over what the card reaches in a large bfloat16 product here. Writes table.md/.csv and ratios.png to DIR, with the
card's name, and says which targets are met.

--self-check needs no GPU: models of one layer and 30 residues on the CPU, the kernels in Triton's interpreter, one
timing each. It checks that all variants run, that the fused operation gives the plain one's results, and that table and
plot are written. Its times say nothing about any GPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ARCHITECTURES = {  # layers, width, heads
    "8M": (6, 320, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
}
SELF_CHECK = {"check": (1, 64, 2)}
CASES = ((1, 1020), (2, 1020), (16, 200), (1, 4096))
VARIANTS = ("stock", "plain", "blockwise", "fused", "trunk")
ATTENTION = {"plain": "plain", "blockwise": "streamed", "fused": "fused"}
ROUND, MOST_ROUNDS, AGREE = 10, 20, 0.02
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
COLUMNS = ("model", "case", "pass", "variant", "ms", "over trunk", "peak MB", "tokens/s", "share of peak")
Row = dict[str, Any]


def build(variant: str, size: tuple[int, int, int], device: str) -> Callable[[Tensor], Tensor]:
    """Return a model with its ``forward`` as tokens -> scalar."""
    from contactlm.model.backbone import ContactBackbone, load_esm
    from contactlm.model.lora import LoraOptions, add_lora

    layers, width, heads = size
    architecture = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 8192,
    }
    esm = load_esm(None, architecture, seed=0)
    add_lora(esm, LoraOptions())
    if variant in ATTENTION:
        model = ContactBackbone(esm, ATTENTION[variant]).to(device)  # type: ignore[arg-type]  # one of its names
        return Run(model, model)
    esm.set_attn_implementation("eager" if variant == "stock" else "sdpa")
    esm = esm.to(device)
    if variant == "trunk":
        return Run(esm, lambda tokens: esm(tokens).last_hidden_state)
    return Run(esm, lambda tokens: esm.predict_contacts(tokens, (tokens != 1).long()))


class Run:
    """A model and how its output is made; called, it returns a loss."""

    def __init__(self, model: torch.nn.Module, output: Callable[[Tensor], Tensor]) -> None:
        self.model, self.output = model, output

    def __call__(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16) if tokens.device.type != "meta" else nullcontext():
            return self.output(tokens).float().sum()


def batch(samples: int, residues: int, device: str) -> Tensor:
    tokens = torch.randint(4, 24, (samples, residues + 2), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1] = 0, 2
    return tokens.to(device)


def once(run: Any, tokens: Tensor, step: bool) -> None:
    run.model.train(step)
    with torch.set_grad_enabled(step):
        loss = run(tokens)
    if step:
        loss.backward()
        run.model.zero_grad(set_to_none=True)


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Median time, after warm-up, once the medians of two rounds agree."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - start)
    before = None
    for _ in range(MOST_ROUNDS):
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(ROUND)]
        for start_mark, end_mark in marks:
            start_mark.record()
            work()
            end_mark.record()
        torch.cuda.synchronize()
        median = statistics.median(start_mark.elapsed_time(end_mark) for start_mark, end_mark in marks)
        if before is not None and abs(median - before) <= AGREE * before:
            return median
        before = median
    raise RuntimeError(f"medians of {ROUND} runs do not agree within {AGREE:.0%} after {MOST_ROUNDS} rounds")


def measure(variant: str, size: tuple[int, int, int], case: tuple[int, int], device: str) -> dict[bool, Row]:
    """Of both passes: milliseconds and peak megabytes, or the note that memory was short."""
    found: dict[bool, Row] = {}
    run, tokens = build(variant, size, device), batch(*case, device)
    for step in (False, True):
        try:
            if device != "cpu":
                once(run, tokens, step)  # compiles kernels and fills the allocator's cache
                torch.cuda.reset_peak_memory_stats()
            spent = milliseconds(lambda step=step: once(run, tokens, step), device)  # type: ignore[misc]
            peak = torch.cuda.max_memory_allocated() / 1e6 if device != "cpu" else float("nan")
            found[step] = {"ms": spent, "peak MB": peak}
        except torch.cuda.OutOfMemoryError:
            found[step] = {"ms": float("nan"), "peak MB": float("inf")}
    return found


def trunk_flops(size: tuple[int, int, int], case: tuple[int, int]) -> dict[bool, int]:
    """What the trunk computes in a forward pass and in a step, counted on tensors without data."""
    run: Any = build("trunk", size, "meta")
    flops = {}
    for step in (False, True):
        with FlopCounterMode(display=False) as counter:
            once(run, torch.empty(case[0], case[1] + 2, dtype=torch.int64, device="meta"), step)
        flops[step] = counter.get_total_flops()
    return flops


def product_rate(device: str) -> float:
    """FLOP/s of a large bfloat16 product."""
    n = 8192 if device != "cpu" else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * n**3 / milliseconds(lambda: torch.mm(a, b), device) * 1000


def differences(device: str) -> Iterable[tuple[str, float, float]]:
    """Compare the fused operation with the plain one: what, the largest relative difference, the most allowed."""
    from contactlm.model.blocks import TokenLayout
    from contactlm.model.contact_attention import contact_attention_plain
    from contactlm.model.fused.op import contact_attention_fused

    lengths, heads = ([300, 211, 77], 4) if device != "cpu" else ([40, 33], 2)
    tokens = torch.full((len(lengths), max(lengths)), 5)
    for row, n in zip(tokens, lengths, strict=True):
        row[0], row[n - 1], row[n:] = 0, 2, 1
    layout = TokenLayout.of(tokens.to(device), (tokens != 1).to(device))
    pairs = (layout.residue[:, :, None] & layout.residue[:, None]).double()
    for dtype in TOLERANCE:
        for width in (16, 24, 32, 64, 128) if device != "cpu" else (16, 24):
            generator = torch.Generator().manual_seed(width)
            shape = (len(lengths), heads, max(lengths), width)
            given = [torch.randn(shape, generator=generator) * width**-0.25 for _ in range(3)]
            given = [x.to(dtype) for x in given] + [torch.randn(heads, generator=generator)]
            found = []
            for operation, kind in ((contact_attention_fused, None), (contact_attention_plain, torch.float64)):
                leaves = [x.to(device, kind, copy=True).requires_grad_() for x in given]
                context, weighted, margins = operation(*leaves, layout)
                real = (tokens != 1).to(device)[:, None, :, None]
                outputs = [(context * real).double(), weighted.double() * pairs, margins.double()]
                total = sum((x * torch.linspace(-1, 1, x.numel(), device=device).view_as(x)).sum() for x in outputs)
                gradients = torch.autograd.grad(total, leaves)  # type: ignore[arg-type]
                found.append([x.detach().double() for x in (*outputs, *gradients)])
            worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in zip(*found, strict=True))
            yield f"{str(dtype).removeprefix('torch.')}, heads of {width}", worst, TOLERANCE[dtype]


def rows_of(name: str, size: tuple[int, int, int], case: tuple[int, int], device: str, rate: float) -> list[Row]:
    flops, found = trunk_flops(size, case), {}
    for variant in VARIANTS:
        found[variant] = measure(variant, size, case, device)
        if device != "cpu":
            torch.cuda.empty_cache()
    rows = []
    for step in (False, True):
        for variant in VARIANTS:
            spent = found[variant][step]["ms"]
            rows.append(
                {
                    "model": name,
                    "case": f"{case[0]} x {case[1]}",
                    "pass": "LoRA step" if step else "forward",
                    "variant": variant,
                    **found[variant][step],
                    "over trunk": spent / found["trunk"][step]["ms"],
                    "tokens/s": case[0] * (case[1] + 2) / spent * 1000,
                    "share of peak": flops[step] / spent * 1000 / rate,
                }
            )
    return rows


def targets(rows: list[Row]) -> Iterable[str]:
    """What the fused operation was built to reach, and what it reaches."""
    for row in rows:
        if row["variant"] != "fused":
            continue
        where, step = f"{row['model']}, {row['case']}, {row['pass']}", row["pass"] == "LoRA step"
        most = 1.10 if step else 1.15
        yield f"{where}: {row['over trunk']:.2f} x the trunk, at most {most:.2f} wanted"
        if row["model"] == "650M" and step:
            yield f"{where}: {row['tokens/s']:,.0f} tokens/s, 100,000 wanted on an H100"
            if row["case"] == "2 x 1020":
                yield f"{where}: {row['peak MB']:,.0f} MB, at most 12,000 wanted"


def write(rows: list[Row], title: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = [title, "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row[name]:,.3g}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    (out / "table.md").write_text("\n".join([*lines, ""]))
    plot(rows, title, out / "ratios.png")


def plot(rows: list[Row], title: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4), sharey=True, layout="constrained")
    for ax, kind in zip(axes, ("forward", "LoRA step"), strict=True):
        places = list(dict.fromkeys((row["model"], row["case"]) for row in rows))
        for shift, variant in enumerate(VARIANTS[:-1]):
            bars = {(row["model"], row["case"]): row["over trunk"] for row in rows
                    if (row["variant"], row["pass"]) == (variant, kind)}  # fmt: skip
            ax.bar([i + 0.2 * shift for i in range(len(places))], [bars[p] for p in places], 0.2, label=variant)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(title=kind, ylabel="time over the bare trunk", yscale="log")
        ax.set_xticks([i + 0.3 for i in range(len(places))], [f"{m}\n{c}" for m, c in places], fontsize=6)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_gpu"), help="output directory")
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--self-check", action="store_true", help="run every part on the CPU, at tiny sizes")
    given = parser.parse_args()
    if given.self_check:
        if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is imported, which torch may have done
            return subprocess.call([sys.executable, *sys.argv], env={**os.environ, "TRITON_INTERPRET": "1"})
        device, sizes, cases, card = "cpu", SELF_CHECK, ((2, 30),), "self-check on a CPU: no GPU was used"
    elif torch.cuda.is_available():
        device, cases, card = "cuda", CASES, torch.cuda.get_device_name()
        sizes = {name: ARCHITECTURES[name] for name in given.models}
    else:
        parser.error("no GPU here; --self-check runs every part without one")
    wrong = False
    for what, worst, most in differences(device):
        wrong |= not worst <= most
        print(f"fused against plain in float64, {what}: {worst:.1e}, at most {most:.0e} allowed", flush=True)
    rate, rows = product_rate(device), []
    for name, size in sizes.items():
        for case in cases:
            rows += rows_of(name, size, case, device, rate)
            write(rows, f"{card}, PyTorch {torch.__version__}, products at {rate / 1e12:.3g} TFLOP/s", given.out)
    print((given.out / "table.md").read_text())
    if not given.self_check:
        print("\n".join(targets(rows)))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
