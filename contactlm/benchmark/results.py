"""What a benchmark found: means with their uncertainty as rows of its tables, and as a page of text."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.benchmark.check import FOUND, MISSING, REPLACED, CheckedChain, counts
from contactlm.benchmark.lists import WHOLE, AskedChain, BenchmarkSet, PublishedFigure
from contactlm.benchmark.score import SCORES, TUNED, Predictor, under
from contactlm.metrics.contracts import CONTRACTS, OURS
from contactlm.metrics.part_scores import TRAINING_STRATA, training_stratum
from contactlm.report.table import grid

PRECISIONS = ("p_at_L_long", "p_at_L2_long", "p_at_L5_long")
COMPARED = ("mcc_sep6", "p_at_L_long")  # scores of which models' differences are shown
NAMED = 20  # chains named with a reason; all are in chains_<set>.csv
_ATOMS = {"virtual-cb": "virtual C-beta", "ca": "C-alpha", "cb": "C-beta (C-alpha of glycine)"}
_LENGTHS = {"resolved": "resolved residues", "last-resolved": "last resolved residue", "full": "full sequence"}
RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 1_000  # resamples, which bounds memory
_MOST_KEPT = 4_000  # groups of which draws are kept: 160 MB
Row = dict[str, Any]


class Estimate(NamedTuple):
    """A mean over proteins and its uncertainty, which is NaN with fewer than two independent proteins."""

    mean: float  # NaN without any value
    error: float  # standard error
    low: float  # of the 95 % bootstrap interval
    high: float
    proteins: int  # that have a value

    def columns(self) -> dict[str, float]:
        """All of it by name."""
        return dict(zip(("mean", "error", "low", "high", "proteins"), self, strict=True))


def estimate_mean(values: Sequence[float], groups: Sequence[Hashable] = (), seed: int = 0) -> Estimate:
    """Estimate the mean over proteins; of the differences of two models on the same proteins, that of their difference.

    Proteins are drawn with replacement, 10,000 times; the interval runs from the 2.5th to the 97.5th percentile of the
    means. Proteins of one group, such as domains of one chain, are drawn together, and the standard error counts them
    as one.
    """
    kept = [(value, group) for value, group in zip(values, groups or range(len(values)), strict=True) if value == value]
    if not kept:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    mean = math.fsum(value for value, _ in kept) / len(kept)
    number: dict[Hashable, int] = {}
    of = np.array([number.setdefault(group, len(number)) for _, group in kept])
    sums = np.bincount(of, weights=[value for value, _ in kept]).astype(np.float64)
    counts = np.bincount(of).astype(np.float64)
    if (G := len(sums)) < 2:
        return Estimate(mean, math.nan, math.nan, math.nan, len(kept))
    spread = float(((sums - mean * counts) ** 2).sum())  # without groups: sd / sqrt(n)
    error = math.sqrt(spread * G / (G - 1)) / len(kept)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(_resampled(sums, counts, seed), [tail, 100 - tail])
    return Estimate(mean, error, float(low), float(high), len(kept))


def _resampled(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    draw = _drawn if len(sums) <= _MOST_KEPT else _drawn.__wrapped__
    means = []
    for block in range(RESAMPLES // _AT_ONCE):
        drawn = draw(len(sums), seed, block)
        means.append(drawn @ sums / (drawn @ counts))
    return np.concatenate(means)


@lru_cache(maxsize=RESAMPLES // _AT_ONCE)  # many scores of the same proteins are estimated one after another
def _drawn(G: int, seed: int, block: int) -> NDArray[np.float32]:
    """How often each of G groups is drawn in each of a block of resamples, (1000, G)."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, block])))
    return rng.multinomial(G, np.full(G, 1 / G), size=_AT_ONCE).astype(np.float32)


@dataclass(frozen=True, eq=False)
class SetResult:
    """What was found of a test set, and how predictors, models first, score on it.

    Predictors and remarks are added before any rows are asked for.
    """

    set: BenchmarkSet
    checked: Sequence[CheckedChain]
    figures: Sequence[PublishedFigure] = ()
    predictors: list[Predictor] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def found(self) -> list[CheckedChain]:
        """The chains that can be scored."""
        return [each for each in self.checked if each.state != MISSING]

    @property
    def contracts(self) -> list[str]:
        """Contracts of its published figures."""
        return sorted({figure.contract for figure in self.figures})

    @property
    def subsets(self) -> list[str]:
        """Parts that published figures are of, the whole first."""
        return [WHOLE, *dict.fromkeys(figure.subset for figure in self.figures if figure.subset != WHOLE)]

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of ``table.csv``: estimates of every predictor, and the published figures that belong with them."""
        rows: list[Row] = []
        for subset in self.subsets:
            chains = self.asked(subset)
            figures = [figure for figure in self.figures if figure.subset == subset]
            contracts = sorted({figure.contract for figure in figures})
            for predictor in self.predictors:
                names = [name for name in (*SCORES, TUNED) if any(name in row for row in predictor.rows.values())]
                scores = [(OURS.name, name) for name in names]
                scores += [(contract, name) for contract in contracts for name in PRECISIONS]
                for contract, name in scores:
                    estimate = _estimate(predictor, chains, under(contract, name))
                    rows.append(_row(self.set.name, subset, predictor.name, contract, name, estimate))
            if not self.gap(subset):
                rows += [_published(self.set.name, figure, len(chains)) for figure in figures]
        return rows

    @cached_property
    def strata(self) -> list[Row]:
        """Estimates by identity to the training chains, of models that know these; ``subset`` is the stratum."""
        rows = []
        for predictor in self.predictors:
            identity = predictor.identity
            if identity is None:
                continue
            for stratum in TRAINING_STRATA:
                chains = [each for each in self.asked(WHOLE) if training_stratum(identity[each.id]) == stratum]
                for name in COMPARED:
                    estimate = _estimate(predictor, chains, name)
                    rows.append(_row(self.set.name, stratum, predictor.name, OURS.name, name, estimate))
        return rows

    @cached_property
    def differences(self) -> list[Row]:
        """Differences between every two models on the same chains, each with a paired bootstrap interval."""
        rows, chains = [], self.asked(WHOLE)
        for one, other in combinations([each for each in self.predictors if each.is_model], 2):
            for name in COMPARED:
                values = [
                    one.rows[chain.id].get(name, math.nan) - other.rows[chain.id].get(name, math.nan)
                    for chain in chains
                ]
                estimate = estimate_mean(values, [chain.protein for chain in chains])
                about = {"set": self.set.name, "model": one.name, "minus": other.name, "score": name}
                rows.append({**about, **estimate.columns()})
        return rows

    def asked(self, subset: str) -> list[AskedChain]:
        """The chains of a part that were found."""
        return [each.asked for each in self.found if each.asked.belongs(subset)]

    def gap(self, subset: str) -> str:
        """Why published figures of a part cannot be compared with ours; empty: they can."""
        number = counts([each for each in self.checked if each.asked.belongs(subset)])
        faults = [f"{number[state]} {state}" for state in (MISSING, REPLACED) if number[state]]
        return f"of {number['asked']} chains {' and '.join(faults)}" if faults else ""


def score_rows(result: SetResult) -> list[Row]:
    """Scores of every predictor on every chain."""
    rows: list[Row] = []
    for each in result.predictors:
        for name in (chain.id for chain in result.asked(WHOLE)):
            identity = (each.identity or {}).get(name)
            rows.append({"id": name, "predictor": each.name, "training_identity": identity, **each.rows[name]})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def chain_rows(result: SetResult) -> list[Row]:
    """What became of every chain of the list."""
    rows = []
    for each in result.checked:
        file, chain = "" if each.path is None else each.path.name, "" if each.chain is None else each.chain.id
        found = {"id": each.asked.id, "state": each.state, "file": file, "chain": chain, "residues": len(each.sequence)}
        rows.append({**found, "identity": each.identity, "coverage": each.coverage, "reason": each.reason})
    return rows


def _estimate(predictor: Predictor, chains: Sequence[AskedChain], score: str) -> Estimate:
    values = [predictor.rows[chain.id].get(score, float("nan")) for chain in chains]
    return estimate_mean(values, [chain.protein for chain in chains])


def _row(name: str, subset: str, predictor: str, contract: str, score: str, estimate: Estimate) -> Row:
    about = {"set": name, "subset": subset, "predictor": predictor, "contract": contract, "score": score}
    return {**about, **estimate.columns(), "source": ""}


def _published(name: str, figure: PublishedFigure, proteins: int) -> Row:
    nan = float("nan")
    estimate = Estimate(figure.value, nan, nan, nan, proteins)
    predictor = f"published: {figure.model}, {figure.method}"
    row = _row(name, figure.subset, predictor, figure.contract, figure.score, estimate)
    return {**row, "source": figure.source}


def write_page(results: Sequence[SetResult]) -> str:
    """The page: a table of models and sets, then each set by itself."""
    intervals = "Means over proteins ± standard error, and the 95 % bootstrap interval over proteins. "
    parts = ["# Benchmark", intervals + "Without a contract's name: this package's own definition."]
    if len(results) > 1:
        parts += ["## Models and sets", *(f"`{score}`\n\n{_overview(results, score)}" for score in COMPARED)]
    for result in results:
        parts += [f"## {result.set.name}", *_set_parts(result)]
    return "\n\n".join(parts) + "\n"


def _overview(results: Sequence[SetResult], score: str) -> str:
    names = list(dict.fromkeys(predictor.name for result in results for predictor in result.predictors))
    cells = {
        (row["predictor"], row["set"]): _text(row)
        for result in results
        for row in result.rows
        if (row["subset"], row["contract"], row["score"]) == (WHOLE, OURS.name, score)
    }
    sets = [result.set.name for result in results]
    return grid(["", *sets], [[name, *(cells.get((name, each), "") for each in sets)] for name in names])


def _set_parts(result: SetResult) -> list[str]:
    number = counts(result.checked)
    numbers = (f"{number['asked']} chains asked", *(f"{number[state]} {state}" for state in (FOUND, MISSING, REPLACED)))
    parts = [f"{result.set.about}. Source: {result.set.source or 'unknown'}.", f"{', '.join(numbers)}."]
    reasons = [f"- {each.asked.id} {each.state}: {each.reason}" for each in result.checked if each.state != FOUND]
    if len(reasons) > NAMED:
        reasons[NAMED:] = [f"- … and {len(reasons) - NAMED} more, named in chains_….csv"]
    if reasons:
        parts.append("\n".join(reasons))
    parts += [f"Note: {remark}." for remark in result.remarks]
    if not result.found:
        return parts
    own = [row for row in result.rows if (row["subset"], row["contract"]) == (WHOLE, OURS.name)]
    parts.append(_wide(own, [*SCORES, *([TUNED] if any(row["score"] == TUNED for row in own) else [])]))
    for subset in result.subsets:
        parts += _contract_parts(result, subset)
    if result.strata:
        parts.append("By identity to the nearest chain that the model was trained on (proteins in brackets):")
        cells: dict[tuple[str, str], list[str]] = {}
        for row in result.strata:
            text = f"{_text(row)} ({row['proteins']})" if row["proteins"] else "(0)"
            cells.setdefault((row["predictor"], f"`{row['score']}`"), []).append(text)
        parts.append(grid(["", "score", *TRAINING_STRATA], [[*key, *texts] for key, texts in cells.items()]))
    if result.differences:
        parts.append("Differences of two models on the same proteins, paired bootstrap:")
        lines = [[f"{row['model']} − {row['minus']}", f"`{row['score']}`", _text(row)] for row in result.differences]
        parts.append(grid(["", "score", "difference"], lines))
    return parts


def _contract_parts(result: SetResult, subset: str) -> list[str]:
    parts = []
    for name in dict.fromkeys(figure.contract for figure in result.figures if figure.subset == subset):
        contract, gap = CONTRACTS[name], result.gap(subset)
        terms = f"{_ATOMS[contract.atom]} below {contract.cutoff:g} Å, L = {_LENGTHS[contract.length]}"
        part = "all chains" if subset == WHOLE else subset
        parts.append(f"Under the contract `{name}` ({terms}; {part}):")
        own = [row for row in result.rows if (row["subset"], row["contract"]) == (subset, name)]
        parts.append(_wide(own, PRECISIONS))
        if gap:
            parts.append(f"Published figures are of other chains and are not shown: {gap}.")
        else:
            sources = dict.fromkeys(row["source"] for row in own if row["source"])
            parts.append(f"Published figures: {'; '.join(sources)}.")
    return parts


def _wide(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> str:
    """A table with a line a predictor and a column a score."""
    lines = []
    for name in dict.fromkeys(row["predictor"] for row in rows):
        own = {row["score"]: row for row in rows if row["predictor"] == name}
        most = max(row["proteins"] for row in own.values())
        lines.append([name, str(most), *(_text(own[score]) if score in own else "" for score in scores)])
    return grid(["", "proteins", *scores], lines)


def _text(row: Mapping[str, Any]) -> str:
    """Such as ``0.412 ± 0.021 [0.371, 0.452]``; as much of it as there is."""
    if math.isnan(row["mean"]):
        return ""
    if math.isnan(row["error"]):
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} ± {row['error']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
