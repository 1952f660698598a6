"""Which runs may be compared, what their scores are over seeds, and which arm wins."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contactlm.report.read import Run

SETS = ("train", "dev", "test")  # null: the run knows no such set
MOST_NAMED = 6  # directories in a line


@dataclass(frozen=True)
class Spread:
    """A quantity over the seeds of an arm.

    Attributes:
        mean: Mean.
        sd: Standard deviation over seeds, n − 1 in the denominator; None with one seed, 0 where nothing was trained.
        n: Number of seeds.
    """

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

    def text(self, digits: int = 3) -> str:
        """Mean ± sd, with the number of seeds where there is no sd."""
        mean = f"{self.mean:.{digits}f}"
        if self.n == 1:
            return f"{mean} (one seed)" if self.sd is None else f"{mean} (nothing trained)"
        return f"{mean} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Verdict:
    """Which arm scores best.

    Attributes:
        score: Name of the score.
        spreads: Each arm's spread, best mean first.
        rivals: Arms whose spread overlaps that of the best, or which have one seed or none to tell.
    """

    score: str
    spreads: dict[str, Spread]
    rivals: list[str]

    @property
    def best(self) -> str:
        """The arm with the highest mean."""
        return next(iter(self.spreads))

    @property
    def single(self) -> list[str]:
        """Arms of one seed, whose spread is not known."""
        return [arm for arm, spread in self.spreads.items() if spread.sd is None]


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


def judge(runs: Sequence[Run], score: str) -> Verdict | None:
    """Find the best arm by a test score.

    It wins when its mean − sd lies above every other arm's mean + sd. An arm of one seed has no spread: neither it
    nor an arm compared with it can be told apart.

    Args:
        runs: Runs of all arms.
        score: Such as ``mcc_sep6``.

    Returns:
        The verdict; None when no arm has the score.
    """
    spreads = {arm: arm_spread(members, lambda run: run.test.get(score)) for arm, members in by_arm(runs).items()}
    known = {arm: spread for arm, spread in spreads.items() if spread is not None}
    if not known:
        return None
    ordered = dict(sorted(known.items(), key=lambda item: -item[1].mean))
    best, *others = ordered
    return Verdict(score, ordered, [arm for arm in others if _overlap(ordered[best], ordered[arm])])


def _overlap(better: Spread, other: Spread) -> bool:
    if better.sd is None or other.sd is None:
        return True
    return better.mean - better.sd <= other.mean + other.sd


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
    order = {id(run): number for number, run in enumerate(runs)}
    return [sorted(group, key=lambda run: order[id(run)]) for group in sorted(groups, key=lambda g: -len(g))]


def differences(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Name what should be equal and is not: by option, each value with its runs."""
    return _unlike(runs, _facts)


def remarks(runs: Sequence[Run]) -> list[str]:
    """Name what may differ between arms or machines and bears on what the numbers say."""
    trained = [run for run in runs if run.trained]
    machines, rates = _unlike(trained, _machine), _unlike(trained, _rates)
    remarks = [f"machines differ in {option}: {describe(values)}" for option, values in machines.items()]
    remarks += [f"learning rates differ: {describe(values)}" for values in rates.values()]
    for arm, members in by_arm(runs).items():
        for option, values in _unlike(members, _scheme).items():
            remarks.append(f"runs of arm {arm} differ in {option}: {describe(values, arms=False)}")
    return remarks + _uneven(runs) + _underspent(runs)


def describe(values: dict[str, list[Run]], arms: bool = True) -> str:
    """Each value with the runs that have it: by arms, or by directories, of many only their number."""
    parts = []
    for value, runs in values.items():
        names = dict.fromkeys(run.arm if arms else str(run.path) for run in runs)
        told = ", ".join(names) if arms or len(names) <= MOST_NAMED else f"{len(runs)} runs"
        parts.append(f"{value} ({told})")
    return "; ".join(parts)


def _uneven(runs: Sequence[Run]) -> list[str]:
    seeds = {
        arm: sorted({str(run.seed) for run in members})
        for arm, members in by_arm(run for run in runs if run.trained).items()
    }
    if len({tuple(each) for each in seeds.values()}) < 2:
        return []
    return ["arms have different seeds: " + "; ".join(f"{arm}: {', '.join(each)}" for arm, each in seeds.items())]


def _underspent(runs: Sequence[Run]) -> list[str]:
    return [
        f"{run.path} ended after {run.record['tokens']:,} of {run.equal['budget']:,} tokens"
        for run in runs
        if run.trained and (run.equal.get("budget") or 0) > run.record["tokens"]
    ]


def _unlike(runs: Sequence[Run], facts: Callable[[Run], dict[str, str]]) -> dict[str, dict[str, list[Run]]]:
    seen: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        for name, value in facts(run).items():
            seen.setdefault(name, {}).setdefault(value, []).append(run)
    return {name: values for name, values in seen.items() if len(values) > 1}


def _facts(run: Run) -> dict[str, str]:
    return {name: _plain(value) for name, value in run.equal.items() if value is not None or name not in SETS}


def _machine(run: Run) -> dict[str, str]:
    return {name: _plain(value) for name, value in (run.record.get("machine") or {}).items()}


def _scheme(run: Run) -> dict[str, str]:
    facts = {
        **(run.record.get("scheme") or {}),
        **run.reads,
        "module": run.record.get("module"),
        "version": run.record.get("version"),
    }
    facts["trained parameters"] = run.record.get("trained_parameters")
    return {name: _plain(value) for name, value in facts.items()}


def _rates(run: Run) -> dict[str, str]:
    groups = run.record.get("optimizer") or []
    if not groups:  # it scored a checkpoint
        return {}
    return {"optimizer": " and ".join(f"{group['optimizer']} {group['lr']:g}" for group in groups)}


def _plain(value: Any) -> str:
    if isinstance(value, dict) and {"chains", "checksum"} <= value.keys():
        return f"{value['chains']} chains, {value['residues']:,} residues, checksum {value['checksum'][:8]}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
