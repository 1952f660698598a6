"""Memory of a training step of large models: ours and stock, beside cards of 8, 12, 16 and 24 GB.

    python tests/benchmarks/bench_memory.py table --out DIR [--sizes 8M 35M] [--variants ours stock] [--cases 1x1020]
        [--threads 2] [--max_tflop 9] [--device cpu] [--mmap]
    python tests/benchmarks/bench_memory.py what [--sizes 650M] [--variants ours checkpointed] [--cases 2x1020]

Sizes of ESM2 with random weights, LoRA (r = 8, dropout 0.05) on queries and keys, and a trainable contact head:
  stock         transformers' EsmModel with eager attention, predict_contacts, PEFT; float32
  ours          contactlm, float32
  checkpointed  and activation checkpointing
  bfloat16      contactlm with backbone_dtype bfloat16, where this contactlm has it
  both          and activation checkpointing
``table`` takes one step (forward, loss, backward, Adam) of every case in a process of its own: on the CPU the peak
resident memory over the process before the model was made, ours as a run sets glibc
(contactlm/model/execution.py); on a GPU ``max_memory_allocated``. Beside it stands what
``contactlm plan`` says without a step. What takes more than ``--max_tflop``, more than 20 GB of a stock model, or more
than the machine has free, is told by the plan alone: 15B always. ``--mmap`` keeps glibc from holding on to memory that
was given back (MALLOC_MMAP_THRESHOLD_), so that plan and peak can be compared. Writes memory.md/.csv and memory.png.

``what`` takes no step: it lists what the forward pass leaves for the backward pass, by the part that made it and by
layer, of tensors without data; a batch's coordinates and the weights are left out.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contactlm import ContactModule, MapModule
from contactlm.model.execution import give_large_blocks_back
from contactlm.model.loading import load_esm
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.modules.memory import StepCost, StorageMeter, as_fake, step_cost, without_numbers

SIZES = {  # layers, width, heads
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
    "15B": (48, 5120, 40),
}
CHECKPOINTED, HALF = {"activation_checkpointing": True}, {"backbone_dtype": "bfloat16"}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "ours": {},
    "checkpointed": CHECKPOINTED,
    "bfloat16": HALF,
    "both": CHECKPOINTED | HALF,
}
HAS_HALF = "backbone_dtype" in inspect.signature(ContactModule).parameters
CASES = {"1x1020": (1, 1020), "2x1020": (2, 1020), "16x200": (16, 200)}
CARDS = (8, 12, 16, 24)  # GB
STOCK_MAX, NEVER_RUN, KEPT_FREE = 20e9, ("15B",), 1.5e9
LAYER = re.compile(r"\.layer\.(\d+)\b\.?")


class Stock(nn.Module):
    """predict_contacts, its probabilities made logits again: a loss on logits is what both are measured with."""

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.esm = load_esm(None, architecture)
        add_lora(self.esm, LoraOptions())
        self.esm.set_attn_implementation("eager")

    def forward(self, tokens: torch.Tensor, attention_mask: Any = None, positions: Any = None) -> torch.Tensor:
        return torch.logit(self.esm.predict_contacts(tokens, attention_mask.long()), 1e-6)


def maker(size: str, variant: str) -> Callable[[], MapModule]:
    layers, width, heads = SIZES[size]
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    sizes["intermediate_size"] = 4 * width
    options = VARIANTS[variant]
    if options is None:
        return lambda: MapModule(Stock(sizes))
    return partial(ContactModule, None, sizes, **options)


def batch(case: str) -> dict[str, torch.Tensor]:
    rows, residues = CASES[case]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 24, (rows, residues + 2), generator=generator)
    tokens[:, 0], tokens[:, -1] = 0, 2
    return {
        "tokens": tokens,
        "attention_mask": torch.ones(rows, residues + 2, dtype=torch.bool),
        "positions": torch.arange(residues + 2).repeat(rows, 1),
        "cb": torch.randn(rows, residues, 3, generator=generator) * 20,
    }


# -- one step, in a process of its own -------------------------------------------------------------------------------
def measure(size: str, variant: str, case: str, device: str) -> dict[str, float]:
    """Return the bytes of the model, those that a step adds at its peak, and the step's seconds."""
    before = resident(device)
    module = build(maker(size, variant), device)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    if device == "cpu" and variant != "stock":
        give_large_blocks_back(module)  # as a run does
    made: Any = module.configure_optimizers()
    once(module, made, {k: v[:1, :30] if k != "cb" else v[:1, :28] for k, v in batch(case).items()}, device)
    loaded = forget_peak(device)
    began = time.process_time()
    seconds = once(module, made, batch(case), device)
    processor = time.process_time() - began
    return {"model": loaded - before, "step": peak(device) - loaded, "seconds": seconds, "processor": processor}


def build(make: Callable[[], MapModule], device: str) -> MapModule:
    """Make a model with cheap random weights, never in more memory than it takes in the end."""
    with torch.device("meta"):
        module = make()
    module = module.to_empty(device=device)
    for given in [*module.parameters(), *module.buffers()]:
        with torch.no_grad():
            given.uniform_(-0.03, 0.03) if given.is_floating_point() else given.zero_()
    return module


def once(module: MapModule, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], device: str) -> float:
    there = {name: value.to(device) for name, value in batch.items()}
    start = time.perf_counter()
    module.training_step(there, 0).backward()
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident(device: str) -> float:
    return torch.cuda.memory_allocated() if device == "cuda" else of_process("VmRSS")


def peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() if device == "cuda" else of_process("VmHWM")


def forget_peak(device: str) -> float:
    """Set the peak to what there is, and return that."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def of_process(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found[1]) * 1024 if found else float("nan")


def in_own_process(request: list[str], threads: int, mmap: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "worker", *request, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if mmap:
        environment["MALLOC_MMAP_THRESHOLD_"] = "1048576"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{request}: exit status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- the table -------------------------------------------------------------------------------------------------------
def table(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in args.sizes:
        for variant in args.variants:
            for case in args.cases:
                rows.append(row_of(size, variant, case, args))
                print(rows[-1], flush=True)
                write(rows, args.out / "memory")
    plot(rows, args.out / "memory.png")


def row_of(size: str, variant: str, case: str, args: argparse.Namespace) -> dict[str, Any]:
    cost = step_cost(maker(size, variant), batch(case))
    step = cost.total - cost.weights
    planned = {"weights": cost.weights, "step by plan": step, "all by plan": cost.total, "tflop": cost.flops / 1e12}
    row: dict[str, Any] = {"size": size, "variant": variant, "case": case}
    row |= {name: round(value / (1 if name == "tflop" else 1e9), 2) for name, value in planned.items()}
    if reason := why_not(size, variant, cost, args):
        return row | dict.fromkeys(("step", "all", "seconds", "processor"), "") | {"not run": reason}
    seen = in_own_process([size, variant, case, args.device], args.threads, args.mmap)
    measured = {"step": seen["step"] / 1e9, "all": (seen["model"] + seen["step"]) / 1e9}
    measured |= {name: seen[name] for name in ("seconds", "processor")}
    return row | {name: round(value, 2) for name, value in measured.items()} | {"not run": ""}


def why_not(size: str, variant: str, cost: StepCost, args: argparse.Namespace) -> str:
    """Why a case is told by the plan alone; empty: it is run."""
    if size in NEVER_RUN:
        return "by the plan only"
    if variant == "stock" and cost.total > STOCK_MAX:
        return "over 20 GB"
    if cost.flops > args.max_tflop * 1e12:
        return f"over {args.max_tflop:g} TFLOP"
    free = torch.cuda.mem_get_info()[0] if args.device == "cuda" else available()
    spare = 1.0 if args.mmap or args.device == "cuda" else 1.4  # what the C library may hold on to
    if cost.weights + spare * (cost.total - cost.weights) + KEPT_FREE > free:
        return f"{free / 1e9:.0f} GB free"
    return ""


def available() -> float:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return float(found[1]) * 1024 if found else float("inf")


def write(rows: list[dict[str, Any]], path: Path) -> None:
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    sizes, variants = (list(dict.fromkeys(row[key] for row in rows)) for key in ("size", "variant"))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(4.5 * len(cases), 5), layout="constrained")
    for axes, case in zip(figure.subplots(1, len(cases), sharey=True, squeeze=False)[0], cases, strict=True):
        for number, variant in enumerate(variants):
            here = [row for row in rows if (row["case"], row["variant"]) == (case, variant)]
            where = [sizes.index(row["size"]) + 0.8 * (number + 0.5) / len(variants) - 0.4 for row in here]
            height = [row["all by plan"] if row["all"] == "" else row["all"] for row in here]
            made = axes.bar(where, height, 0.8 / len(variants), label=variant)
            for bar, row in zip(made, here, strict=True):
                bar.set_alpha(0.35 if row["all"] == "" else 1.0)
        for card in CARDS:
            axes.axhline(card, color="grey", linewidth=0.8, linestyle="--")
            axes.text(len(sizes) + 0.2, card, f"{card} GB", ha="right", va="bottom", fontsize="small", color="grey")
        axes.set(yscale="log", title=f"{case} residues", xlim=(-0.5, len(sizes) + 0.25))
        axes.set_xticks(range(len(sizes)), sizes)
    figure.axes[0].set_ylabel("model and step, GB (pale: by the plan)")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=150)


# -- what a step holds -----------------------------------------------------------------------------------------------
def what(args: argparse.Namespace) -> None:
    for size in args.sizes:
        for variant in args.variants:
            for case in args.cases:
                print(f"\n{size}, {variant}, {case}: MB that the forward pass leaves for the backward pass\n")
                print("\n".join(lines_of(held(maker(size, variant), case), SIZES[size][0])))


def held(make: Callable[[], MapModule], case: str) -> Counter[str]:
    """Bytes by what made them: ``part of the model: operation``."""
    with without_numbers(make, torch.device("cpu")) as module:
        module.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
        given = as_fake(batch(case), torch.device("cpu"))
        with inside(module) as path:
            meter = NamedMeter(path)
            meter.ignore([*module.parameters(), *module.buffers()])
            with meter:
                loss = module.training_step(given, 0)
                found = meter.held()
        loss.backward()
    return found


@contextmanager
def inside(module: nn.Module) -> Iterator[list[str]]:
    """Give the names of the parts that are being run, the innermost last."""
    path, names = ["loss"], {part: name for name, part in module.named_modules()}

    def enter(part: nn.Module, *_: Any) -> None:
        path.append(names.get(part, path[-1]))

    def leave(part: nn.Module, *_: Any) -> None:
        path.pop()

    hooks = [part.register_forward_pre_hook(enter) for part in names]
    hooks += [part.register_forward_hook(leave) for part in names]
    yield path
    for hook in hooks:
        hook.remove()


class NamedMeter(StorageMeter):
    """Knows what made the bytes there are."""

    def __init__(self, path: list[str]) -> None:
        super().__init__()
        self._path, self._operation, self._names = path, "", dict[int, str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operation = func.overloadpacket.__name__
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        if id(storage) not in self._alive:
            self._names[id(storage)] = f"{self._path[-1]}: {self._operation}"
        super()._count(storage, size)

    def held(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for key, size in self._alive.items():
            held[self._names[key]] += size
        return held


def lines_of(found: Counter[str], layers: int) -> list[str]:
    """A table: a row a kind, columns for the first layer, the ones between, the last, and all."""
    kinds: dict[str, dict[int | None, int]] = defaultdict(lambda: defaultdict(int))
    for name, size in found.items():
        layer = LAYER.search(name)
        kind = name if layer is None else "layer " + name[layer.end() :].removeprefix(": ")
        kinds[kind][None if layer is None else int(layer[1])] += size
    columns: dict[str, Callable[[int | None], bool]] = {
        "first layer": lambda n: n == 0,
        "second": lambda n: n == 1,
        "last": lambda n: n == layers - 1,
        "all": lambda n: True,
    }
    rows = {k: [sum(s for n, s in by.items() if keep(n)) / 1e6 for keep in columns.values()] for k, by in kinds.items()}
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    ordered = sorted((row for row in rows.items() if row[1][-1] >= 0.05), key=lambda row: -row[1][-1])
    lines = [f"| made by | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    return lines + [f"| {k} | {' | '.join(f'{v:,.1f}' for v in row)} |" for k, row in [*ordered, ("together", total)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(dest="command", required=True)
    variants = [name for name, options in VARIANTS.items() if HAS_HALF or "backbone_dtype" not in (options or {})]
    for name, sizes, chosen, cases in (
        ("table", [*SIZES], variants, [*CASES]),
        ("what", ["650M"], ["ours", "checkpointed"], ["2x1020"]),
    ):
        command = commands.add_parser(name)
        command.add_argument("--sizes", nargs="+", choices=SIZES, default=sizes)
        command.add_argument("--variants", nargs="+", choices=variants, default=chosen)
        command.add_argument("--cases", nargs="+", choices=CASES, default=cases)
        command.add_argument("--threads", type=int, default=2)
        if name == "table":
            command.add_argument("--out", type=Path, default=Path("bench_memory"), help="output directory")
            command.add_argument("--max_tflop", type=float, default=9, help="larger steps are told by the plan alone")
            command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
            command.add_argument("--mmap", action="store_true", help="on the CPU: give memory back at once")
    worker = commands.add_parser("worker")
    worker.add_argument("request", nargs=4)
    worker.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "worker":
        print(json.dumps(measure(*args.request)))
    elif args.command == "what":
        what(args)
    else:
        table(args)


if __name__ == "__main__":
    main()
