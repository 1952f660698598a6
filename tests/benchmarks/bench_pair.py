"""What a pair head brings and costs, beside the contact head at its best rate.

    python tests/benchmarks/bench_pair.py step [--lengths 2 384] [--K 1 4 16 32] [--blocks 0 3 6]
    python tests/benchmarks/bench_pair.py choose|final|growth --out DIR [--world bundle] [--structures DIR]
        [--backbones DIR …] [--budgets 100000 200000] [--seeds 0 1 2] [--rate 3e-3] [--arms whole1 twoseg384]
        [--pair_rates 1 3 10] [--weights 0.1 1]
    python tests/benchmarks/bench_pair.py report --out DIR

  step    seconds and memory of a training step of the 8M architecture: contact head, then pair heads, in turns in one
          process, medians; and of the operation alone
  choose  rates of the contact head (`head_lr_factor` 1, 10, 30, 100) and of the pair head (`pair.lr_factor`), on dev
  final   `whole1` and `twoseg384`, contact head and pair head, each at the rate that dev chose: every backbone x seed
  growth  read-outs 1, 4, 16, 32 and blocks 0, 3, 6, 12, one backbone
  report  means, and paired differences of pair and contact head with their standard errors, of all four scores

Runs are lines of DIR/pair.csv; a command that was killed goes on. Worlds: `bundle` and `loose_bundle` are synthetic;
`--world NAME --structures DIR` takes DIR/train and DIR/test; without `--backbones` weights are random and all learn.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from contactlm import ContactModule
from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import contact_attention
from contactlm.model.pair_head import PairOptions
from contactlm.modules.memory import size_text, step_cost, twin
from tests.benchmarks.sample_runs import SCORES, Arm, World, train

SYNTHETIC = {
    "bundle": {"kind": "bundle", "min_length": 300, "max_length": 1200},
    "loose_bundle": {"kind": "loose_bundle", "min_length": 200, "max_length": 800},
}
ARCHITECTURE = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
STEPS = {"whole1": ("whole", "cut", 1020, 1), "twoseg384": ("twoseg384", "two_segments", 384, 2)}
HEAD_RATES = (1.0, 10.0, 30.0, 100.0)
KEYS = ("phase", "world", "backbone", "seed", "arm", "head_rate", "read_outs", "blocks", "pair_rate", "distance_weight")
COLUMNS = (*KEYS, "budget", "tokens", "steps", "flops", "seconds")
ALL = (*COLUMNS, *(f"{role}_{name}" for role in ("dev", "test") for name in SCORES))


@dataclass(frozen=True)
class PairWorld(World):
    """A world whose model has a contact head of a rate and, if asked, a pair head."""

    head_rate: float = 1.0
    pair: PairOptions | None = None

    def module(self, backbone: Path | None, seed: int, rate: float) -> ContactModule:
        options: dict[str, Any] = {"optimizer": partial(torch.optim.Adam, lr=rate), "pair": self.pair}
        options |= {"head_lr_factor": self.head_rate, "init_seed": seed}
        if backbone is not None:
            return ContactModule(str(backbone), **options)
        return ContactModule(None, architecture=self.architecture, lora=None, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def run(
    given: Any, phase: str, arm: str, backbone: Path | None, seed: int, head: float, pair: PairOptions | None
) -> None:
    """Train and score one model, unless its line is there."""
    key = {"phase": phase, "world": given.world, "backbone": str(backbone), "seed": seed, "arm": arm, "head_rate": head}
    own = {} if pair is None else asdict(pair)
    key |= {"read_outs": own.get("read_outs", 0), "blocks": own.get("blocks", 0)}
    key |= {"pair_rate": own.get("lr_factor", 0.0), "distance_weight": own.get("distance_weight", 0.0)}
    path = given.out / "pair.csv"
    if any(all(row[name] == str(key[name]) for name in KEYS) for row in rows_of(path)):
        return
    synthetic = SYNTHETIC.get(given.world)
    world = PairWorld(given.world, synthetic, given.structures, ARCHITECTURE, head_rate=head, pair=pair)
    scheme = Arm.of_step(arm, *STEPS[arm], rate=given.rate)
    found = train(scheme, world, backbone, seed, given.budgets, given.out, test=phase != "choose")
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, ALL, restval="", extrasaction="ignore")
        if is_new:
            writer.writeheader()
        writer.writerows({**row, **key} for row in found)


def chosen(given: Any, arm: str) -> tuple[float, PairOptions]:
    """What dev says: the contact head's rate, and the pair head."""
    rows = [row for row in rows_of(given.out / "pair.csv") if (row["phase"], row["world"]) == ("choose", given.world)]
    scored = [row for row in rows if row["arm"] == arm and row["dev_mcc_sep6"]]
    if not scored:
        raise SystemExit(f"nothing is chosen yet for {arm}: run the phase choose first")
    best = [max((r for r in scored if (int(r["read_outs"]) > 0) == pair), key=score) for pair in (False, True)]
    pair = PairOptions(lr_factor=float(best[1]["pair_rate"]), distance_weight=float(best[1]["distance_weight"]))
    return float(best[0]["head_rate"]), pair


def score(row: dict[str, str]) -> float:
    return float(row["dev_mcc_sep6"])


def choose(given: Any) -> None:
    backbone = given.backbones[0] if given.backbones else None
    for arm in given.arms:
        for head in HEAD_RATES:
            run(given, "choose", arm, backbone, 0, head, None)
        for rate, weight in product(given.pair_rates, given.weights):
            run(given, "choose", arm, backbone, 0, 10.0, PairOptions(lr_factor=rate, distance_weight=weight))


def final(given: Any) -> None:
    for arm, backbone, seed in product(given.arms, given.backbones or [None], given.seeds):
        head, pair = chosen(given, arm)
        run(given, "final", arm, backbone, seed, head, None)
        run(given, "final", arm, backbone, seed, 10.0, pair)


def growth(given: Any) -> None:
    arm, backbone = "twoseg384", given.backbones[0] if given.backbones else None
    _, pair = chosen(given, arm)
    sizes = [(K, 3) for K in (1, 4, 16, 32)] + [(16, blocks) for blocks in (0, 6, 12)]
    for (K, blocks), seed in product(sizes, given.seeds):
        run(given, "growth", arm, backbone, seed, 10.0, replace(pair, read_outs=K, blocks=blocks))


def report(given: Any) -> None:
    """Paired by backbone and seed."""
    rows = [row for row in rows_of(given.out / "pair.csv") if row["phase"] == "final"]
    for world, arm, budget in sorted({(r["world"], r["arm"], int(r["budget"])) for r in rows}):
        own = [r for r in rows if (r["world"], r["arm"], r["budget"]) == (world, arm, str(budget))]
        runs: dict[tuple[str, str], dict[bool, dict[str, str]]] = {}
        for row in own:
            runs.setdefault((row["backbone"], row["seed"]), {})[row["read_outs"] != "0"] = row
        both = [pair for pair in runs.values() if len(pair) == 2]
        if not both:
            continue
        for name in SCORES:
            of = {kind: [float(pair[kind][f"test_{name}"]) for pair in both] for kind in (False, True)}
            gaps = [b - a for a, b in zip(of[False], of[True], strict=True)]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            means = statistics.mean(of[False]), statistics.mean(of[True])
            gap = statistics.mean(gaps)
            sys.stdout.write(
                f"{world} {arm} {budget:,} {name}: {means[0]:.3f} {means[1]:.3f} ({gap:+.3f} ± {error:.3f})\n"
            )


def timed(steps: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Median seconds of each, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def a_batch(B: int, L: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 24, (B, L + 2), generator=generator)
    tokens[:, 0], tokens[:, -1] = 0, 2
    positions = torch.arange(L + 2).expand(B, -1).clone()
    positions[:, L // 2 + 1 :] += 150
    cb = (3 * torch.randn(B, L, 3, generator=generator)).cumsum(1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return {"tokens": tokens, "attention_mask": mask, "positions": positions, "cb": cb}


def step(given: Any) -> None:
    B, L = given.lengths
    batch = a_batch(B, L)
    sizes = [(K, given.blocks[-1]) for K in given.K] + [(given.K[-1], blocks) for blocks in given.blocks[:-1]]
    kinds = {"contact head": None, **{f"K {K}, {n} blocks": PairOptions(K, n) for K, n in sizes}}
    modules = {name: ContactModule(None, architecture=ARCHITECTURE, pair=pair) for name, pair in kinds.items()}

    def one(module: ContactModule) -> None:
        module.zero_grad()
        module.training_step(batch, 0).backward()

    for module in modules.values():
        module.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    found = timed({name: partial(one, module) for name, module in modules.items()}, given.turns)
    for name, seconds in found.items():
        cost = step_cost(twin(modules[name]), batch)
        ratio = seconds / found["contact head"]
        sys.stdout.write(
            f"{name:<18} {seconds:.3f} s ({ratio:.2f} x)  {size_text(cost.total)}  {cost.flops / 1e9:.1f} GFLOPs\n"
        )
    operation = {f"operation, K {K}": partial(attend, B, L + 2, K) for K in (0, *given.K)}
    found = timed(operation, given.turns)
    for name, seconds in found.items():
        sys.stdout.write(f"{name:<18} {seconds:.4f} s ({seconds / found['operation, K 0']:.2f} x)\n")


def attend(B: int, T: int, K: int) -> None:
    """Forward and backward of one layer of 20 heads of 16; K 0: the contact head alone."""
    tokens = torch.full((B, T), 5)
    tokens[:, 0], tokens[:, -1] = 0, 2
    layout = TokenLayout.of(tokens, tokens != 1)
    q, k, v = (torch.randn(B, 20, T, 16, requires_grad=True) for _ in range(3))
    weight = torch.randn(*([K] if K else []), 20, requires_grad=True)
    shares = contact_attention(q, k, v, weight, layout)
    torch.autograd.backward([x for x in shares if x is not None], [torch.ones_like(x) for x in shares if x is not None])


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--out", type=Path, default=Path("runs/pair-comparison"))
    parser.add_argument("--world", default="bundle")
    parser.add_argument("--structures", type=Path)
    parser.add_argument("--backbones", type=Path, nargs="*", default=[])
    parser.add_argument("--budgets", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--pair_rates", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 1.0], help="of the distances in the loss")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--lengths", type=int, nargs=2, default=[2, 384])
    parser.add_argument("--K", type=int, nargs="+", default=[1, 4, 32, 16])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 6, 3])
    parser.add_argument("--turns", type=int, default=7)
    return parser.parse_args()


PHASES: dict[str, Callable[[Any], None]] = {
    "step": step, "choose": choose, "final": final, "growth": growth, "report": report
}  # fmt: skip


def main(given: Any) -> None:
    PHASES[given.phase](given)


if __name__ == "__main__":
    main(arguments())
