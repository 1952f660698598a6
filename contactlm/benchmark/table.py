"""Means with their uncertainty, by test set, part of it, predictor, contract and score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from contactlm.benchmark.check import FOUND, MISSING, CheckedChain
from contactlm.benchmark.lists import WHOLE, AskedChain, BenchmarkSet, PublishedFigure
from contactlm.benchmark.score import SCORES, TUNED, Predictor, under
from contactlm.metrics.bootstrap import Estimate, estimate_mean
from contactlm.metrics.contracts import OURS
from contactlm.metrics.strata import TRAINING_STRATA, training_stratum

PRECISIONS = ("p_at_L_long", "p_at_L2_long", "p_at_L5_long")
COMPARED = ("mcc_sep6", "p_at_L_long")  # scores of which differences between models are told
PUBLISHED = "published: "


@dataclass(frozen=True, eq=False)
class SetResult:
    """What was found of a test set, and how predictors score on it.

    Attributes:
        set: The list.
        checked: What became of each of its chains.
        predictors: Models first.
        figures: Published figures of this set.
        remarks: What has to be known of it.
    """

    set: BenchmarkSet
    checked: Sequence[CheckedChain]
    predictors: Sequence[Predictor]
    figures: Sequence[PublishedFigure] = ()
    remarks: Sequence[str] = field(default_factory=list)

    @property
    def contracts(self) -> list[str]:
        """Contracts of its published figures."""
        return sorted({figure.contract for figure in self.figures})

    @property
    def subsets(self) -> list[str]:
        """Parts that published figures are of, the whole first."""
        return [WHOLE, *dict.fromkeys(figure.subset for figure in self.figures if figure.subset != WHOLE)]

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """What :func:`table_rows` gives."""
        return table_rows(self)

    def asked(self, subset: str) -> list[AskedChain]:
        """The chains of a part that were found."""
        return [each.asked for each in self.checked if each.state != MISSING and each.asked.belongs(subset)]

    def gap(self, subset: str) -> str:
        """Why published figures of a part do not belong beside ours; empty: they do."""
        part = [each for each in self.checked if each.asked.belongs(subset)]
        missing = sum(each.state == MISSING for each in part)
        replaced = len(part) - missing - sum(each.state == FOUND for each in part)
        faults = [f"{count} {what}" for count, what in ((missing, "missing"), (replaced, "replaced")) if count]
        return f"of {len(part)} chains {' and '.join(faults)}" if faults else ""


def table_rows(result: SetResult) -> list[dict[str, Any]]:
    """All rows of ``table.csv``: estimates of every predictor, and the published figures that belong beside them."""
    rows: list[dict[str, Any]] = []
    for subset in result.subsets:
        chains = result.asked(subset)
        for predictor in result.predictors:
            names = [name for name in (*SCORES, TUNED) if any(name in row for row in predictor.rows.values())]
            scores = [(OURS.name, name) for name in names]
            scores += [(contract, name) for contract in _contracts_of(result, subset) for name in PRECISIONS]
            for contract, name in scores:
                estimate = _estimate(predictor, chains, under(contract, name))
                rows.append(_row(result.set.name, subset, predictor.name, contract, name, estimate))
        rows += [_published(result, figure) for figure in result.figures if figure.subset == subset]
    return [row for row in rows if row]


def _contracts_of(result: SetResult, subset: str) -> list[str]:
    return sorted({figure.contract for figure in result.figures if figure.subset == subset})


def stratum_rows(result: SetResult) -> list[dict[str, Any]]:
    """Estimates by identity to the training chains, of models that these are known of; ``subset`` is the stratum."""
    rows = []
    for predictor in result.predictors:
        if predictor.identity is None:
            continue
        for stratum in TRAINING_STRATA:
            chains = [each for each in result.asked(WHOLE) if training_stratum(predictor.identity[each.id]) == stratum]
            for name in COMPARED:
                estimate = _estimate(predictor, chains, name)
                rows.append(_row(result.set.name, stratum, predictor.name, OURS.name, name, estimate))
    return rows


def difference_rows(result: SetResult) -> Iterator[dict[str, Any]]:
    """Differences between every two models on the same chains, each with a paired bootstrap interval."""
    chains = result.asked(WHOLE)
    for one, other in combinations([each for each in result.predictors if each.is_model], 2):
        for name in COMPARED:
            values = [one.rows[chain.id][name] - other.rows[chain.id][name] for chain in chains]
            estimate = estimate_mean(values, [chain.protein for chain in chains])
            yield {"set": result.set.name, "model": one.name, "minus": other.name, "score": name, **estimate.columns()}


def score_rows(result: SetResult) -> list[dict[str, Any]]:
    """Scores of every predictor on every chain."""
    rows: list[dict[str, Any]] = [
        {
            "id": chain.id,
            "predictor": predictor.name,
            "training_identity": (predictor.identity or {}).get(chain.id),
            **predictor.rows[chain.id],
        }
        for predictor in result.predictors
        for chain in result.asked(WHOLE)
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def chain_rows(result: SetResult) -> list[dict[str, Any]]:
    """What became of every chain of the list."""
    return [
        {
            "id": each.asked.id,
            "state": each.state,
            "file": "" if each.path is None else each.path.name,
            "chain": "" if each.chain is None else each.chain.id,
            "residues": len(each.sequence),
            "identity": each.identity,
            "coverage": each.coverage,
            "reason": each.reason,
        }
        for each in result.checked
    ]


def _estimate(predictor: Predictor, chains: Sequence[AskedChain], score: str) -> Estimate:
    values = [predictor.rows[chain.id].get(score, float("nan")) for chain in chains]
    return estimate_mean(values, [chain.protein for chain in chains])


def _row(name: str, subset: str, predictor: str, contract: str, score: str, estimate: Estimate) -> dict[str, Any]:
    about = {"set": name, "subset": subset, "predictor": predictor, "contract": contract, "score": score}
    return {**about, **estimate.columns(), "source": ""}


def _published(result: SetResult, figure: PublishedFigure) -> dict[str, Any]:
    """A published figure as a row; nothing where it is not of the chains that were found."""
    if result.gap(figure.subset):
        return {}
    name = f"{PUBLISHED}{figure.model}, {figure.method}"
    nan = float("nan")
    estimate = Estimate(figure.value, nan, nan, nan, len(result.asked(figure.subset)))
    row = _row(result.set.name, figure.subset, name, figure.contract, figure.score, estimate)
    return {**row, "source": figure.source}
