"""What a token buys: crops, segments and whole chains, each at the step size and learning rate that suit it.

    python tests/benchmarks/bench_samples.py PHASE --out DIR [--world bundle loose_bundle] [--runs FILE] [--most N]

Phases, in this order; each passes over what is done, so that a command that was killed can be given again:
  backbones  `contactlm fit` on synthetic_pretrain.yaml, seeds 0, 1, 2, exported merged to DIR/WORLD/backbone<seed>;
             that of world `bundle` and seed 0 is tests/benchmarks/backbone
  choose     every sample x samples a step x learning rate on backbone 0, 200,000 tokens, scored on dev only
  final      each sample at what dev chose, beside the shipped crop200 and full1020 and whole chains in batches by cost:
             3 backbones x 3 seeds, test scored at 100,000, 200,000 and 500,000 tokens of one run
  real       real proteins (--structures), the 8M architecture with random weights that all learn, 1 M tokens, 3 seeds
  seconds    100,000 tokens of every final arm on a quiet machine, without counting FLOPs: what `report` tells of time
  report     run directories of the final runs below DIR/report, `contactlm report` of them, and the verdict; also of
             `--world real`
  check      one run with the command line and one here: their scores must be the same

Worlds are sets of synthetic proteins: `bundle`, of 300 to 1,200 residues, on which all is chosen; `loose_bundle`, of
200 to 800 residues with another alphabet and longer loops, which only confirms or denies. Learning rates are constant:
at 100,000 tokens a run of 500,000 has the model that a run of 100,000 ends with (tests/cli/test_samples.py). Every run
is one line for each of its budgets in FILE (DIR/samples.csv unless given), with the checksum of the backbone and the
commit. `seconds` is time within training batches beside whatever else ran; only those of the phase seconds count.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from contactlm.cli.report import write_report
from contactlm.modules.contact import ContactModule
from contactlm.report.figure import save_figure
from contactlm.report.read import find_runs
from contactlm.report.table import grid
from contactlm.runs.record_file import read_run
from tests.benchmarks.bundles import write_bundles
from tests.benchmarks.sample_frontier import draw_frontier, equal_cost_table, frontier_points
from tests.benchmarks.sample_runs import BUDGETS, COLUMNS, SCORES, TODAY, Arm, World, train, write_records
from tests.benchmarks.sample_verdict import BUDGET, RIVALS, outcome_table, verdict_table

WORLDS = {
    "bundle": World("bundle", {"kind": "bundle", "min_length": 300, "max_length": 1200}),
    "loose_bundle": World("loose_bundle", {"kind": "loose_bundle", "min_length": 200, "max_length": 800}),
}
SAMPLES = {
    "crop200": ("random", 200),
    "crop384": ("random", 384),
    "twoseg200": ("two_segments", 200),
    "twoseg384": ("two_segments", 384),
    "whole": ("cut", 1020),
}
SHIPPED = (
    Arm("crop200", "crop200", "random", 200, 16, 1, TODAY),
    Arm("full1020", "whole", "cut", 1020, 2, 8, TODAY),
)
BACKBONE = Path(__file__).parent / "backbone"
STEP_SIZES = (4, 2, 8, 1, 16)  # samples a step
RATES = (TODAY, 1e-2, 1e-3)
EIGHT_M = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
# Real chains, trained from scratch: the shipped arms, and each sample at the steps of the other's.
REAL_RATE, REAL_BUDGETS = 1e-3, (400_000, 1_000_000)
REAL_ARMS = (
    Arm("crop200", "crop200", "random", 200, 16, 1, REAL_RATE),
    Arm("full1020", "whole", "cut", 1020, 2, 8, REAL_RATE),
    Arm("twoseg", "twoseg200", "two_segments", 200, 16, 1, REAL_RATE),
    Arm.of_step("whole-13", "whole", "cut", 1020, 13, REAL_RATE),  # about the steps of crop200
    Arm.of_step("crop200-24", "crop200", "random", 200, 24, REAL_RATE),  # about the steps of full1020
)
REAL = World("real", None, architecture=EIGHT_M, precision="bf16-mixed")
CHOICE_BUDGET, SEEDS = 200_000, (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=list(PHASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", nargs="+", default=["bundle"], choices=[*WORLDS, REAL.name])
    parser.add_argument("--structures", type=Path, help="real ones, for the phase real")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--most", type=int, default=sys.maxsize, help="runs of this command")
    given = parser.parse_args()
    given.out = given.out.resolve()
    given.runs = given.runs or given.out / "samples.csv"
    if REAL.name in given.world and given.phase != "report":
        parser.error(f"--world {REAL.name} is for the phase report: its runs are those of the phase real")
    for world in given.world:
        PHASES[given.phase](WORLDS.get(world, REAL), given)


def backbones(world: World, given: argparse.Namespace) -> None:
    for seed in SEEDS[: given.most]:
        make_backbone(world, given.out, seed)


def make_backbone(world: World, out: Path, seed: int) -> Path:
    """Train and export a backbone with the command line, unless it is there; one comes with the tests."""
    if (world.name, seed) == ("bundle", 0):
        return BACKBONE
    home, final = out / world.name, out / world.name / f"backbone{seed}"
    kind = (world.synthetic or {})["kind"]
    if not final.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        train, test = write_bundles(home / "runs" / "short-bundles", kind, 300, 20, 150, 300, seed=1)
        config = str(Path(__file__).parent / "synthetic_pretrain.yaml")
        fit = ["fit", "--config", config, "--name", f"pretrain{seed}", "--ckpt_path", "last"]
        fit += ["--seed_everything", str(seed), "--model.init_seed", str(seed)]
        fit += [f"--data.train_dir={train}", f"--data.test_dir={test}", f"--data.cache_dir={out / 'cache'}"]
        contactlm(fit, home)
        last = f"runs/pretrain{seed}/version_0/checkpoints/last.ckpt"
        contactlm(["export", "--merge", "--ckpt_path", last, "--out", str(final)], home)
    return final


def contactlm(arguments: list[str], folder: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "contactlm", *arguments], cwd=folder, check=True, env=os.environ | {"PYTHONPATH": paths}
    )


def choices(world: World, given: argparse.Namespace) -> Iterator[tuple[Arm, int, int]]:
    for rate in RATES:
        for size in STEP_SIZES:
            for name, (crop, length) in SAMPLES.items():
                yield Arm.of_step(f"{name}-{size}-{rate:g}", name, crop, length, size, rate), 0, 0


def finals(world: World, given: argparse.Namespace) -> Iterator[tuple[Arm, int, int]]:
    arms = final_arms(read_rows(given.runs))
    for turn in range(len(SEEDS)):
        for backbone in SEEDS:
            for arm in arms:
                yield arm, backbone, SEEDS[(backbone + turn) % len(SEEDS)]


def final_arms(rows: list[dict[str, str]]) -> list[Arm]:
    """Each sample at its best dev `mcc_sep6`, the arms as shipped, and whole chains in batches by cost."""
    best = best_on_dev(rows)
    missing = SAMPLES.keys() - best.keys()
    if missing:
        raise SystemExit(f"nothing is chosen for {', '.join(sorted(missing))}: run the phase choose first")
    arms = [
        Arm.of_step(f"{name}-{size}-{rate:g}", name, *SAMPLES[name], size, rate) for name, (size, rate) in best.items()
    ]
    size, rate = best["whole"]
    by_cost = Arm(f"whole-cost-{rate:g}", "whole chains", "whole", 1020, 1, 1, rate, batch_tokens=1024 * max(size, 2))
    kept = [arm for arm in SHIPPED if not any(arm.same_as(other) for other in arms)]
    return [*kept, *arms, by_cost]


def best_on_dev(rows: list[dict[str, str]]) -> dict[str, tuple[int, float]]:
    chosen: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["phase"] != "choose":
            continue
        before = chosen.get(row["sample"])
        if before is None or float(row["dev_mcc_sep6"]) > float(before["dev_mcc_sep6"]):
            chosen[row["sample"]] = row
    return {name: (int(row["samples_a_step"]), float(row["rate"])) for name, row in chosen.items()}


def choose(world: World, given: argparse.Namespace) -> None:
    if world.name != "bundle":
        raise SystemExit(f"world {world.name}: nothing is chosen there, it only confirms or denies")
    run_all("choose", world, choices(world, given), (CHOICE_BUDGET,), given)
    sys.stdout.write(f"{choice_table(read_rows(given.runs))}\n")


def final(world: World, given: argparse.Namespace) -> None:
    run_all("final", world, finals(world, given), BUDGETS, given)


def real(world: World, given: argparse.Namespace) -> None:
    if given.structures is None:
        raise SystemExit("phase real: give --structures, a folder with train/ and test/")
    world = replace(REAL, structures=given.structures.resolve())
    run_all("final", world, ((arm, -1, seed) for seed in SEEDS for arm in REAL_ARMS), REAL_BUDGETS, given)


def seconds(world: World, given: argparse.Namespace) -> None:
    todo = [(arm, 0, 0) for arm in final_arms(read_rows(given.runs))]
    run_all("seconds", world, todo, BUDGETS[:1], given)


def run_all(
    phase: str, world: World, todo: Iterable[tuple[Arm, int, int]], budgets: tuple[int, ...], given: argparse.Namespace
) -> None:
    left = given.most
    for arm, backbone_seed, seed in todo:
        backbone = None if world.architecture else make_backbone(world, given.out, backbone_seed)
        checksum = "random" if backbone is None else ContactModule(str(backbone)).backbone_checksum
        key = {"phase": phase, "world": world.name, "arm": arm.name, "backbone": str(checksum), "seed": str(seed)}
        if any(all(row[name] == value for name, value in key.items()) for row in read_rows(given.runs)):
            continue
        if left == 0:
            return
        left -= 1
        results = train(arm, world, backbone, seed, budgets, given.out, phase == "final", phase != "seconds")
        about = {**key, "backbone_seed": backbone_seed, "commit": commit(), **arm.columns()}
        append([{**about, **result} for result in results], given.runs)
        sys.stdout.write(f"{' '.join(key.values())}: {results[-1]}\n")
        sys.stdout.flush()


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def append(rows: list[dict[str, Any]], path: Path) -> None:
    """Add the lines of a run in one write, so that two processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not path.is_file():
        writer.writeheader()
    writer.writerows({name: plain(row.get(name)) for name in COLUMNS} for row in rows)
    with path.open("a", newline="", encoding="utf-8") as handle:
        handle.write(text.getvalue())


def plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def commit() -> str:
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()


def choice_table(rows: list[dict[str, str]]) -> str:
    """Dev `mcc_sep6` of every sample, step size and rate."""
    chosen = {(row["sample"], row["samples_a_step"], row["rate"]): row for row in rows if row["phase"] == "choose"}
    sizes, rates = sorted(STEP_SIZES), sorted(RATES)
    cells = [
        [name, f"{rate:g}", *(cell(chosen.get((name, str(size), f"{rate:g}"))) for size in sizes)]
        for name in SAMPLES
        for rate in rates
    ]
    return grid(["sample", "rate", *(f"{size} a step" for size in sizes)], cells)


def cell(row: dict[str, str] | None) -> str:
    return "" if row is None else f"{float(row['dev_mcc_sep6']):.3f}"


def check(world: World, given: argparse.Namespace) -> None:
    """Train crop200 for 20,000 tokens here and with the command line."""
    arm, budget, backbone = SHIPPED[0], 20_000, make_backbone(world, given.out, 0)
    (ours,) = train(arm, world, backbone, 0, (budget,), given.out, test=True)
    train_dir, test_dir = world.write(given.out)
    config = str(Path(__file__).parent / "synthetic_long.yaml")
    fit = ["fit", "--config", config, "--config", "crop200", "--name", "check"]
    fit += [f"--model.pretrained={backbone}", f"--budget.max_tokens={budget}", "--trainer.val_check_interval=1000"]
    fit += [f"--data.train_dir={train_dir}", f"--data.test_dir={test_dir}", f"--data.cache_dir={given.out / 'cache'}"]
    contactlm(fit, given.out / world.name)
    newest = max((given.out / world.name / "runs" / "check").glob("version_*"), key=lambda path: path.stat().st_mtime)
    theirs = read_run(newest)
    for name in SCORES:
        sys.stdout.write(f"{name}: here {ours[f'test_{name}']:.9g}, command line {theirs['test'][name]:.9g}\n")
    for name in ("tokens", "steps", "flops"):
        sys.stdout.write(f"{name}: here {ours[name]}, command line {theirs[name]}\n")


def report(world: World, given: argparse.Namespace) -> None:
    """Write run directories of the final runs, compare them, and say whether an arm is ahead of both shipped ones."""
    runs = write_records(read_rows(given.runs), world, given.out / "report" / world.name / "runs")
    sys.stdout.write("\n".join(write_report([runs], given.out / "report" / world.name)) + "\n\n")
    if world is not REAL:
        found = find_runs([runs]).runs
        save_figure(draw_frontier(frontier_points(found)[0]), given.out / "report" / world.name / "frontier.png")
        for cost in ("FLOPs", "seconds"):
            for reference in RIVALS:
                sys.stdout.write(f"{equal_cost_table(found, reference, BUDGET, cost)}\n\n")
        sys.stdout.write(f"{verdict_table(found)}\n\n{outcome_table(found)}\n")


PHASES = {
    "backbones": backbones,
    "choose": choose,
    "final": final,
    "real": real,
    "seconds": seconds,
    "report": report,
    "check": check,
}

if __name__ == "__main__":
    main()
