"""Run directories with known numbers, as `contactlm fit` and `contactlm test` leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from contactlm.atomic import write_csv
from contactlm.runs.record_file import write_run

SCORES = ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
IDENTITY = [None, 0.2, 0.35, 0.45, 0.5, 0.9, None, 0.6]
COPIED = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.0, 0.85]
STEPS_PER_LOOK, LOOKS, TOKENS_PER_STEP = 20, 5, 3232


def chains(number: int, checksum: str) -> dict[str, Any]:
    return {"chains": number, "residues": 100 * number, "checksum": checksum * 4}


def equal_terms(**other: Any) -> dict[str, Any]:
    terms = {
        "budget": 323_200,
        "train": chains(90, "aaaa"),
        "dev": chains(10, "bbbb"),
        "test": chains(20, "cccc"),
        "split": "cluster",
        "window": 1022,
        "overlap": None,
        "precision": "32-true",
        "family": "ESM2",
        "weights": "pretrained",
        "backbone": "bbb1303468ee",
        "synthetic": False,
    }
    return terms | other


def make_run(folder: Path, arm: str, seed: int, score: float, **other: Any) -> Path:
    """Write a run that took 100 steps and reached ``score`` on test in ``mcc_sep6``, 0.1 more in ``mcc``.

    Its dev score rises linearly to what it has on test.
    """
    at = lambda steps: {"steps": steps, "tokens": steps * TOKENS_PER_STEP, "flops": steps * 10**9 * (seed + 1)}  # noqa: E731
    spent = [at(STEPS_PER_LOOK * look) for look in range(1, LOOKS + 1)]
    test = dict.fromkeys(SCORES, score) | {"mcc": score + 0.1}
    trivial = {"trivial_mcc": 0.57, "trivial_mcc_sep6": 0.0, "trivial_mcc_long": 0.0, "trivial_p_at_L_long": 0.02}
    history = [
        {**row, **{name: value * (look + 1) / LOOKS for name, value in test.items()}} for look, row in enumerate(spent)
    ]
    record: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "command": "fit",
        "status": "finished",
        "written": f"2026-01-0{seed + 1}T00:00:00+00:00",
        "module": "ContactModule",
        "pretrained": "facebook/esm2_t6_8M_UR50D",
        "scheme": {"crop": "random", "crop_length": 200, "batch_size": 16, "accumulate_grad_batches": 1},
        "optimizer": [{"optimizer": "Adam", "lr": 1e-4}],
        "machine": {"device": "cpu", "threads": 1},
        "equal": equal_terms(),
        **spent[-1],
        "residues": 320_000,
        "forward_flops": 4 * 10**10,
        "trained_parameters": 2057,
        "seconds": {"training": 100.0 + seed, "evaluation": 20.0, "total": 130.0},
        "memory": {"training": 2**29, "peak": 2**30},
        "dev": {**test, **trivial},
        "test": {**test, **trivial},
        "tested_at": at(STEPS_PER_LOOK * 4),
        "dev_history": history,
        "progress": [at(steps) for steps in (1, 2, 5, 10, 20, 50, 100)],
    }
    write_run(folder, record | other)
    return folder


def make_untrained(folder: Path, score: float, **other: Any) -> Path:
    """Write what `contactlm test` leaves of a model that was not trained."""
    nothing = dict.fromkeys(("steps", "tokens", "residues", "flops", "forward_flops", "trained_parameters"), 0)
    terms = {name: value for name, value in equal_terms().items() if name not in ("budget", "train", "dev", "split")}
    none: dict[str, Any] = {
        "dev_history": [],
        "progress": [],
        "dev": {},
        "tested_at": None,
        "command": "test",
        "equal": terms,
    }
    return make_run(folder, "zeroshot", 0, score, **nothing, **none, **other)


def add_proteins(folder: Path, seed: int, knows_hits: bool, copied: list[float] | None = None) -> list[float]:
    """Write test_scores.csv; the scores of each protein."""
    scores = np.random.default_rng(seed).random(len(IDENTITY)).tolist()
    rows = [
        {"id": f"p{n}", "index": n, "mcc_sep6": score, "p_at_L_long": "nan" if n == 3 else score / 2}
        for n, score in enumerate(scores)
    ]
    if knows_hits:
        for row, identity, copy in zip(rows, IDENTITY, copied or COPIED, strict=True):
            row |= {"hit_identity": identity, "copy_mcc_sep6": copy, "copy_p_at_L_long": copy}
    write_csv(folder / "test_scores.csv", rows)
    return scores
