"""Runs by arm, their scores over seeds, and what else differs between runs that are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contactlm.report.read import Run

SETS = ("train", "dev", "test")  # null: the run knows no such set
MOST_NAMED = 6  # directories in a line
SAME_STEPS = 0.05  # share by which optimizer steps may differ and still be called the same
OF_A_STEP = ("batch_size", "batch_tokens", "batch_pairs", "accumulate_grad_batches")  # of the scheme
Values = dict[str, list[Run]]  # runs by a value they have


@dataclass(frozen=True)
class Spread:
    """A quantity over n seeds of an arm; the sd (n − 1) is None with one seed, 0 where nothing was trained."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of the values that are known; None when none is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, len(known))

    def number(self) -> str:
        """Mean ± sd, where there is one."""
        mean = f"{round(self.mean, 3) + 0.0:.3f}"
        return mean if self.n == 1 else f"{mean} ± {self.sd:.3f}"

    def text(self) -> str:
        """The same, with why there is no sd."""
        return self.number() + ("" if self.n > 1 else " (one seed)" if self.sd is None else " (nothing trained)")


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by arm, in order of appearance."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def arm_spread(runs: Sequence[Run], value: Callable[[Run], float | None]) -> Spread | None:
    """The spread of a quantity over the runs of one arm; what was not trained does not depend on a seed."""
    spread = Spread.of(value(run) for run in runs)
    if spread is not None and spread.n == 1 and not any(run.trained for run in runs):
        return Spread(spread.mean, 0.0, 1)
    return spread


def group_equal(runs: Sequence[Run], but: Collection[str] = ()) -> list[list[Run]]:
    """Sort runs into groups whose members are equal in everything that should be equal, but what is named.

    What a run does not have (a test run: a budget) agrees with everything: a run that trained nothing stands in every
    group it agrees with, for comparison.
    """
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: -len(_facts(run))):  # those that say most decide
        fitting = [group for group in groups if not differences([*group, run]).keys() - set(but)]
        if run.trained and fitting:
            fitting = [max(fitting, key=len)]
        for group in fitting:
            group.append(run)
        if not fitting:
            groups.append([run])
    return [sorted(group, key=runs.index) for group in sorted(groups, key=lambda group: -len(group))]


def differences(runs: Sequence[Run]) -> dict[str, Values]:
    """Name what should be equal and is not: by option, each value with its runs."""
    return _unlike(runs, _facts)


def describe(values: Values, arms: bool = True) -> str:
    """Each value with the runs that have it: by arms, or by directories, of many only their number."""
    parts = []
    for value, runs in values.items():
        names = dict.fromkeys(run.arm if arms else str(run.path) for run in runs)
        named = ", ".join(names) if arms or len(names) <= MOST_NAMED else f"{len(runs)} runs"
        parts.append(f"{value} ({named})")
    return "; ".join(parts)


def remarks(runs: Sequence[Run]) -> list[str]:
    """Name what may differ between arms or machines and bears on what the numbers say."""
    trained = [run for run in runs if run.trained]
    machines = _unlike(trained, lambda run: _texts(run.record.get("machine") or {}))
    lines = [f"machines differ in {option}: {describe(values)}" for option, values in machines.items()]
    lines += [f"learning rates differ: {describe(values)}" for values in _unlike(trained, _optimizers).values()]
    for arm, members in by_arm(runs).items():
        for option, values in _unlike(members, _scheme).items():
            lines.append(f"runs of arm {arm} differ in {option}: {describe(values, arms=False)}")
    seeds = {arm: sorted({str(run.seed) for run in members}) for arm, members in by_arm(trained).items()}
    if len({tuple(each) for each in seeds.values()}) > 1:
        lines.append("arms have different seeds: " + "; ".join(f"{arm}: {', '.join(s)}" for arm, s in seeds.items()))
    return lines + [
        f"{run.path} ended after {run.record['tokens']:,} of {run.equal['budget']:,} tokens"
        for run in trained
        if (run.equal.get("budget") or 0) > run.record["tokens"]
    ]


def confounds(runs: Sequence[Run], reference: str) -> list[str]:
    """A line for every arm that differs from the reference in optimizer steps, samples a step or rate as well.

    Arms of which the step or the rate is all that differs are no such: these test just that. The trained runs of the
    largest budget that an arm shares with the reference are compared.
    """
    arms = by_arm(runs)
    lines = []
    for arm, members in arms.items():
        shared = {run.budget for run in members} & {run.budget for run in arms[reference]}
        if arm == reference or not shared:
            continue
        ours, theirs = ([r for r in each if r.budget == max(shared)] for each in (members, arms[reference]))
        one, other = _tested(ours[0]), _tested(theirs[0])
        tested = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
        also = _also(ours, theirs)
        if tested and also:
            lines.append(
                f"confounded: {arm} and {reference} differ in {', '.join(tested)}, and also: {'; '.join(also)}"
            )
    return lines


def samples_a_step(run: Run) -> str:
    """Samples of an optimizer step, over all processes; batches by cost hold as many as fit."""
    scheme = run.record.get("scheme") or {}
    if any(scheme.get(name) for name in ("batch_tokens", "batch_pairs")):
        return "as many as fit"
    if scheme.get("batch_size") is None:
        return "unknown"
    processes = (run.record.get("machine") or {}).get("processes") or 1
    return f"{scheme['batch_size'] * (scheme.get('accumulate_grad_batches') or 1) * processes:,}"


def _tested(run: Run) -> dict[str, Any]:
    """What an arm does, apart from steps and rates."""
    scheme = {name: value for name, value in (run.record.get("scheme") or {}).items() if name not in OF_A_STEP}
    if scheme.get("crop") == "whole":
        scheme.pop("crop_length", None)
    own = {"module": run.record.get("module"), "trained parameters": run.record.get("trained_parameters")}
    return {name: value for name, value in {**scheme, **run.reads, **own}.items() if value is not None}


def _also(ours: Sequence[Run], theirs: Sequence[Run]) -> list[str]:
    steps = [float(np.mean([run.record["steps"] for run in runs])) for runs in (ours, theirs)]
    samples = [samples_a_step(runs[0]) for runs in (ours, theirs)]
    groups = [runs[0].record.get("optimizer") or [] for runs in (ours, theirs)]
    rates = [" and ".join(dict.fromkeys(f"{group['lr']:g}" for group in each)) or "unknown" for each in groups]
    found = []
    if abs(steps[0] - steps[1]) > SAME_STEPS * max(steps):
        found.append(f"{steps[0]:,.0f} steps against {steps[1]:,.0f}")
    for name, (one, other) in {"samples a step": samples, "learning rate": rates}.items():
        if one != other:
            found.append(f"{name} {one} against {other}")
    return found


def _unlike(runs: Sequence[Run], facts: Callable[[Run], dict[str, str]]) -> dict[str, Values]:
    seen: dict[str, Values] = {}
    for run in runs:
        for name, value in facts(run).items():
            seen.setdefault(name, {}).setdefault(value, []).append(run)
    return {name: values for name, values in seen.items() if len(values) > 1}


def _facts(run: Run) -> dict[str, str]:
    return _texts({name: value for name, value in run.equal.items() if value is not None or name not in SETS})


def _scheme(run: Run) -> dict[str, str]:
    own = {name: run.record.get(name) for name in ("module", "version")}
    trained = run.record.get("trained_parameters")
    return _texts({**(run.record.get("scheme") or {}), **run.reads, **own, "trained parameters": trained})


def _optimizers(run: Run) -> dict[str, str]:
    groups = run.record.get("optimizer") or []  # none where it scored a checkpoint
    text = " and ".join(f"{group['optimizer']} {group['lr']:g}" for group in groups)
    return {"optimizer": text} if groups else {}


def _texts(facts: dict[str, Any]) -> dict[str, str]:
    return {name: _plain(value) for name, value in facts.items()}


def _plain(value: Any) -> str:
    if isinstance(value, dict) and {"chains", "checksum"} <= value.keys():
        return f"{value['chains']} chains, {value['residues']:,} residues, checksum {value['checksum'][:8]}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return short(value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def short(text: str) -> str:
    """Text whose checksums have eight digits, which distinguish any two; an architecture as its depth and width."""
    sizes = dict(re.findall(r'"(num_hidden_layers|hidden_size)": (\d+)', text))
    if text.startswith("{") and text.count("{") == 1 and len(sizes) == 2:
        return f"{sizes['num_hidden_layers']} layers of width {sizes['hidden_size']}"
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b", r"\1", text)
