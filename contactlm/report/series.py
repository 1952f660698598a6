"""Which runs of a series, every arm with every seed, are missing."""

from __future__ import annotations

from collections.abc import Sequence

from contactlm.report.compare import by_arm
from contactlm.report.read import FINISHED, Found, Run
from contactlm.runs.record_file import read_run
from contactlm.types import ContactLMError


def missing_lines(found: Found) -> list[str]:
    """A line for every arm and seed without a finished run, where other arms have that seed; and why.

    Arms that train nothing are the same with every seed: of these nothing is missing.
    """
    finished = {arm: {run.seed for run in runs} for arm, runs in by_arm(_trained(found.runs)).items()}
    unfinished = _unfinished(found)
    arms = sorted({*finished, *(arm for arm, _ in unfinished)})
    seeds = sorted({seed for each in finished.values() for seed in each if seed is not None}
                   | {seed for _, seed in unfinished})  # fmt: skip
    missing = [(arm, seed) for arm in arms for seed in seeds if seed not in finished.get(arm, set())]
    lines = [f"missing of the series: {arm}, seed {s}: {unfinished.get((arm, s), 'no run')}" for arm, s in missing]
    if lines:
        lines.append(f"the series has {len(arms)} arms and the seeds {', '.join(map(str, seeds))}")
    return lines


def _trained(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.trained]


def _unfinished(found: Found) -> dict[tuple[str, int], str]:
    """Where and why runs did not come to their end, by arm and seed."""
    reasons = {}
    for path, reason in found.left_out.items():
        try:
            record = read_run(path)
        except ContactLMError:
            continue  # it says of itself why it is left out
        if record.get("status") != FINISHED and record.get("command") == "fit" and record.get("seed") is not None:
            reasons[str(record["arm"]), int(record["seed"])] = f"{path}: {reason}"
    return reasons
