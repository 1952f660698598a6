"""Time and memory of contact logits: streamed, against stock transformers, fair-esm and the bare trunk.

    python tests/benchmarks/bench_contact_attention.py --out DIR [--threads 2] [--repeats 5] [--quick]

The ESM2-8M architecture with random weights, LoRA (r = 8) on queries and keys and a trainable contact head, float32:
  stock     transformers' EsmModel with eager attention, predict_contacts, its autograd
  streamed  contactlm's ContactBackbone
  trunk     transformers' EsmModel with SDPA and no contacts; the loss is the sum of the last hidden state
  fair-esm  esm.model.esm2.ESM2.predict_contacts with the same LoRA, where fair-esm is installed
Every case is timed in a process of its own, its variants turn by turn, so that other load on the machine meets all of
them; medians are compared. Memory is the peak resident set over the loaded model, every variant in its own process.
Writes ratios.md/.csv, growth.md/.csv and growth.png to DIR.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ARCHITECTURE = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
VARIANTS = ("stock", "streamed", "trunk", "fair-esm")
CASES = {  # name: (samples, residues, backward), then the bounds: faster, less memory, against the trunk
    "forward 1x1020": ((1, 1020, False), (5.0, 15.0, 1.5)),
    "forward+backward 1x1020": ((1, 1020, True), (8.0, 12.0, 1.6)),
    "forward+backward 16x200": ((16, 200, True), (3.5, 4.0, 1.1)),
}
LONG_CHAIN = 4000
LONG_CHAIN_MB = 1500
GROWTH = (128, 256, 512, 1024, 2048, 4096)
STOCK_MAX = 1024


def build(variant: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return tokens -> a scalar loss, with the model's ``train`` as attribute ``model``."""
    from contactlm.model.backbone import ContactBackbone, load_esm
    from contactlm.model.lora import LoraOptions, add_lora

    if variant == "fair-esm":
        return build_fair_esm()
    esm = load_esm(None, ARCHITECTURE, seed=0)
    add_lora(esm, LoraOptions())
    if variant == "streamed":
        model: Any = ContactBackbone(esm)
        return Run(model, lambda tokens: model(tokens))
    esm.set_attn_implementation("eager" if variant == "stock" else "sdpa")
    if variant == "trunk":
        return Run(esm, lambda tokens: esm(tokens).last_hidden_state)
    return Run(esm, lambda tokens: esm.predict_contacts(tokens, (tokens != 1).long()))


def build_fair_esm() -> Callable[[torch.Tensor], torch.Tensor]:
    from esm.model.esm2 import ESM2
    from peft import LoraConfig, get_peft_model

    layers, width, heads = (ARCHITECTURE[k] for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    model = ESM2(layers, width, heads)
    targets = ["q_proj", "k_proj"]
    config = LoraConfig(r=8, lora_dropout=0.05, target_modules=targets, modules_to_save=["contact_head"])
    get_peft_model(model, config)
    return Run(model, lambda tokens: model.predict_contacts(tokens))


class Run:
    """A model and how its loss is made."""

    def __init__(self, model: torch.nn.Module, output: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.model, self.output = model, output

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(tokens).sum()


def batch(samples: int, residues: int) -> torch.Tensor:
    tokens = torch.randint(4, 24, (samples, residues + 2), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1] = 0, 2
    return tokens


def once(run: Run, tokens: torch.Tensor, backward: bool) -> float:
    run.model.train(backward)
    start = time.perf_counter()
    if backward:
        run(tokens).backward()
        run.model.zero_grad(set_to_none=True)
    else:
        with torch.no_grad():
            run(tokens)
    return time.perf_counter() - start


def measure_time(variants: list[str], case: tuple[int, int, bool], repeats: int) -> dict[str, list[float]]:
    samples, residues, backward = case
    runs, tokens = {name: build(name) for name in variants}, batch(samples, residues)
    for run in runs.values():
        once(run, batch(1, 16), backward)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(once(run, tokens, backward))
    return seconds


def measure_memory(variant: str, case: tuple[int, int, bool]) -> float:
    """Return the peak resident set over the loaded model in MB, of one run after a tiny one."""
    samples, residues, backward = case
    run, tokens = build(variant), batch(samples, residues)
    once(run, batch(1, 16), backward)
    loaded = reset_peak()
    once(run, tokens, backward)
    return max(0.0, peak() - loaded) / 1e6


def reset_peak() -> float:
    """Set the process's peak resident set to the present one where the kernel allows it; return that in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return peak()


def peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return float(lines[0].split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_own_process(request: dict[str, Any], threads: int) -> Any:
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{request}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_growth(variant: str, residues: int, repeats: int) -> dict[str, float]:
    """Return peak memory over the loaded model (MB) and the shortest time (s), of the forward pass, then of both."""
    run, tokens = build(variant), batch(1, residues)
    once(run, batch(1, 16), True)
    loaded, row = reset_peak(), {}
    for label, backward in (("forward", False), ("forward+backward", True)):
        seconds = [once(run, tokens, backward)]
        row[f"{label} {variant} MB"] = round((peak() - loaded) / 1e6)
        seconds += [once(run, tokens, backward) for _ in range(repeats - 1 if residues <= STOCK_MAX else 1)]
        row[f"{label} {variant} s"] = round(min(seconds), 4)
    return row


def memory_of(variant: str, case: tuple[int, int, bool], threads: int) -> float:
    return in_own_process({"what": "memory", "variants": [variant], "case": case}, threads)


def answer(request: dict[str, Any]) -> Any:
    case = tuple(request["case"])
    if request["what"] == "time":
        return measure_time(request["variants"], case, request["repeats"])
    if request["what"] == "growth":
        return measure_growth(request["variants"][0], case[1], request["repeats"])
    return measure_memory(request["variants"][0], case)


def ratios(threads: int, repeats: int, memory: bool) -> list[dict[str, Any]]:
    rows = []
    variants = [v for v in VARIANTS if v != "fair-esm" or importlib.util.find_spec("esm")]
    for name, (case, bounds) in CASES.items():
        times = in_own_process({"what": "time", "variants": variants, "case": case, "repeats": repeats}, threads)
        row: dict[str, Any] = {"case": name}
        seconds = {v: statistics.median(times[v]) for v in variants}
        row |= {f"{v} s": round(seconds[v], 3) for v in variants}
        row["faster than stock"] = round(seconds["stock"] / seconds["streamed"], 1)
        row["against trunk"] = round(seconds["streamed"] / seconds["trunk"], 2)
        verdict = [row["faster than stock"] >= bounds[0], row["against trunk"] <= bounds[2]]
        if memory:
            used = {v: memory_of(v, case, threads) for v in variants}
            row |= {f"{v} MB": round(used[v]) for v in variants}
            row["less memory than stock"] = round(used["stock"] / used["streamed"], 1)
            verdict.append(row["less memory than stock"] >= bounds[1])
        row["bounds"] = f">={bounds[0]:g}x, >={bounds[1]:g}x, <={bounds[2]:g}x: {'met' if all(verdict) else 'MISSED'}"
        print(row, flush=True)
        rows.append(row)
    return rows


def growth(threads: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for residues in GROWTH:
        row: dict[str, Any] = {"residues": residues}
        for variant in ("streamed", "trunk", *(["stock"] if residues <= STOCK_MAX else [])):
            request = {"what": "growth", "variants": [variant], "case": (1, residues, True), "repeats": repeats}
            row |= in_own_process(request, threads)
        print(row, flush=True)
        rows.append(row)
    return rows


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, unit in zip(figure.subplots(1, 2), ("s", "MB"), strict=True):
        for variant, marker in (("stock", "s"), ("trunk", "^"), ("streamed", "o")):
            for label, style in (("forward", "--"), ("forward+backward", "-")):
                points = [(r["residues"], r[key]) for r in rows if (key := f"{label} {variant} {unit}") in r]
                axes.plot(*zip(*points, strict=True), style, marker=marker, label=f"{variant}, {label}")
        axes.set(xscale="log", yscale="log", xlabel="residues", ylabel={"s": "time (s)", "MB": "memory (MB)"}[unit])
        axes.set_xticks(GROWTH, [str(n) for n in GROWTH])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.suptitle("Contact logits of one chain, ESM2-8M architecture, float32")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_contact_attention"), help="output directory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only the ratios of time, without memory and growth")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        print(json.dumps(answer(args.worker)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    write_table(ratios(args.threads, args.repeats, not args.quick), args.out / "ratios")
    if args.quick:
        return
    long = memory_of("streamed", (1, LONG_CHAIN, False), args.threads)
    verdict = "met" if long < LONG_CHAIN_MB else "MISSED"
    print(f"{LONG_CHAIN} residues in one pass: {long:.0f} MB (bound {LONG_CHAIN_MB}: {verdict})", flush=True)
    rows = growth(args.threads, args.repeats)
    write_table(rows, args.out / "growth")
    plot_growth(rows, args.out / "growth.png")


if __name__ == "__main__":
    main()
