"""Where two arms differ in more than in what they test, so that a difference in score has more than one reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from contactlm.report.compare import by_arm
from contactlm.report.read import Run

STEP = 0.05  # by which optimizer steps may differ and still be called the same
OF_A_STEP = ("batch_size", "batch_tokens", "batch_pairs", "accumulate_grad_batches")  # of the scheme


def confounds(runs: Sequence[Run], reference: str) -> list[str]:
    """A line for every arm that differs from the reference in optimizer steps, samples a step or rate as well.

    Arms of which the step or the rate is all that differs are no such: these test just that.

    Args:
        runs: Trained runs; those of the largest budget that an arm shares with the reference are looked at.
        reference: Arm to compare with.
    """
    arms = by_arm(runs)
    lines = []
    for arm, members in arms.items():
        shared = {run.budget for run in members} & {run.budget for run in arms[reference]}
        if arm == reference or not shared:
            continue
        ours, theirs = ([r for r in each if r.budget == max(shared)] for each in (members, arms[reference]))
        tested, also = _tested(ours[0], theirs[0]), _also(ours, theirs)
        if tested and also:
            lines.append(
                f"confounded: {arm} and {reference} differ in {', '.join(tested)}, and also: {'; '.join(also)}"
            )
    return lines


def _tested(one: Run, other: Run) -> list[str]:
    """Names of what the arms of two runs do differently, apart from steps and rates."""
    ours, theirs = _facts(one), _facts(other)
    return [name for name in dict.fromkeys((*ours, *theirs)) if ours.get(name) != theirs.get(name)]


def _facts(run: Run) -> dict[str, Any]:
    scheme = {k: v for k, v in (run.record.get("scheme") or {}).items() if k not in OF_A_STEP and v is not None}
    if scheme.get("crop") == "whole":
        scheme.pop("crop_length", None)
    parameters = run.record.get("trained_parameters")
    others = {"module": run.record.get("module"), "trained parameters": parameters}
    return {**scheme, **run.reads, **{name: value for name, value in others.items() if value is not None}}


def _also(ours: Sequence[Run], theirs: Sequence[Run]) -> list[str]:
    steps = [float(np.mean([run.record["steps"] for run in runs])) for runs in (ours, theirs)]
    samples, rates = ([value(runs[0]) for runs in (ours, theirs)] for value in (samples_a_step, _rate))
    found = []
    if abs(steps[0] - steps[1]) > STEP * max(steps):
        found.append(f"{steps[0]:,.0f} steps against {steps[1]:,.0f}")
    if samples[0] != samples[1]:
        found.append(f"samples a step {samples[0]} against {samples[1]}")
    if rates[0] != rates[1]:
        found.append(f"learning rate {rates[0]} against {rates[1]}")
    return found


def samples_a_step(run: Run) -> str:
    """Samples of an optimizer step, over all processes; batches by cost hold as many as fit."""
    scheme = run.record.get("scheme") or {}
    if any(scheme.get(name) for name in ("batch_tokens", "batch_pairs")):
        return "as many as fit"
    if scheme.get("batch_size") is None:
        return "unknown"
    processes = (run.record.get("machine") or {}).get("processes") or 1
    return f"{scheme['batch_size'] * (scheme.get('accumulate_grad_batches') or 1) * processes:,}"


def _rate(run: Run) -> str:
    groups = run.record.get("optimizer") or []
    return " and ".join(dict.fromkeys(f"{group['lr']:g}" for group in groups)) or "unknown"
