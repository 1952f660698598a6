"""How fast training steps are alone and beside another job, by how idle threads wait and how many there are.

    python tests/benchmarks/bench_beside.py [--seconds 8] [--cases quickstart 8M-1x1020 8M-16x200 150M-1x400]
        [--settings plain spin1000 passive one]

Each run is a process of its own that trains the contact head and adapters on random tokens for some seconds. *Beside*
is the mean of two equal runs at once; *busy* is one beside a loop that never ends, on as many cores as there are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {  # layers, width, heads, samples, residues, whether all weights learn
    "quickstart": (4, 64, 4, 8, 120, True),
    "8M-1x1020": (6, 320, 20, 1, 1020, False),
    "8M-16x200": (6, 320, 20, 16, 200, False),
    "150M-1x400": (30, 640, 20, 1, 400, False),
}
SETTINGS: dict[str, dict[str, str]] = {
    "plain": {},
    "spin1000": {"GOMP_SPINCOUNT": "1000"},
    "spin300": {"GOMP_SPINCOUNT": "300"},
    "spin100": {"GOMP_SPINCOUNT": "100"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one": {"OMP_NUM_THREADS": "1"},
}
CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
BUSY = "while True: pass"


def work(case: str, start: float, seconds: float) -> None:
    """Train from ``start`` on, a time of the clock; print tokens a second."""
    import torch

    from contactlm import ContactModule

    layers, width, heads, samples, residues, everything = CASES[case]
    architecture = {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width,
    }  # fmt: skip
    module = ContactModule(None, architecture=architecture, **({"lora": None} if everything else {}))
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(4, 24, (samples, residues + 2))
    tokens[:, 0], tokens[:, -1] = 0, 2
    mask = torch.ones_like(tokens, dtype=torch.bool)
    done, begun = 0, 0.0
    while True:
        now = time.time()
        if not begun and now >= start:
            done, begun = 0, now
        if begun and now >= begun + seconds:
            break
        optimizer.zero_grad()
        module(tokens, mask).square().mean().backward()
        optimizer.step()
        done += tokens.numel()
    sys.stdout.write(f"{done / (time.time() - begun):.1f}\n")


def speeds(case: str, setting: str, runs: int, busy: bool, seconds: float) -> list[float]:
    """Tokens a second of some runs at once."""
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN} | SETTINGS[setting]
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    start = time.time() + 8 + 4 * (runs + busy - 1)  # once all have been imported and have warmed up
    command = [sys.executable, __file__, "work", case, str(start), str(seconds)]
    here = {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = [
        subprocess.Popen(command, env=kept | here, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(runs)
    ]
    found = [float(each.communicate()[0]) for each in started]
    for loop in loops:
        loop.kill()
    return found


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        return work(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()
    print("| case | setting | alone, tokens/s | beside | busy | beside / alone |\n|---|---|---|---|---|---|")
    for case in args.cases:
        for setting in args.settings:
            alone, beside, busy = (
                statistics.mean(speeds(case, setting, runs, loop, args.seconds))
                for runs, loop in ((1, False), (2, False), (1, True))
            )
            print(
                f"| {case} | {setting} | {alone:,.0f} | {beside:,.0f} | {busy:,.0f} | {beside / alone:.2f} |",
                flush=True,
            )
    return None


if __name__ == "__main__":
    main()
