"""What a benchmark found, as a page of text: ``report.md``, which the command prints as well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from contactlm.benchmark.check import FOUND, CheckedChain, counts
from contactlm.benchmark.lists import WHOLE
from contactlm.benchmark.score import SCORES, TUNED
from contactlm.benchmark.table import (
    COMPARED,
    PRECISIONS,
    SetResult,
    difference_rows,
    stratum_rows,
)
from contactlm.metrics.contracts import CONTRACTS, OURS
from contactlm.metrics.strata import TRAINING_STRATA

NAMED = 20  # chains named with a reason; all are in chains_<set>.csv
_ATOMS = {"virtual-cb": "virtual C-beta", "ca": "C-alpha", "cb": "C-beta (C-alpha of glycine)"}
_LENGTHS = {"resolved": "resolved residues", "last-resolved": "last resolved residue", "full": "full sequence"}
Row = Mapping[str, Any]


def write_page(results: Sequence[SetResult]) -> str:
    """The page: a table of models and sets, then each set by itself."""
    parts = ["# Benchmark", INTERVALS]
    if len(results) > 1:
        parts += ["## Models and sets", *(f"`{score}`\n\n{_overview(results, score)}" for score in COMPARED)]
    for result in results:
        parts += [f"## {result.set.name}", *_set_parts(result)]
    return "\n\n".join(parts) + "\n"


INTERVALS = (
    "Means over proteins ± standard error, and the 95 % bootstrap interval over proteins. Without a contract's name: "
    "this package's own definition."
)


def _overview(results: Sequence[SetResult], score: str) -> str:
    names = list(dict.fromkeys(predictor.name for result in results for predictor in result.predictors))
    cells: dict[tuple[str, str], str] = {}
    for result in results:
        for row in result.table:
            if (row["subset"], row["contract"], row["score"]) == (WHOLE, OURS.name, score):
                cells[row["predictor"], row["set"]] = _text(row)
    sets = [result.set.name for result in results]
    return _grid(["", *sets], [[name, *(cells.get((name, each), "") for each in sets)] for name in names])


def _set_parts(result: SetResult) -> list[str]:
    number = counts(result.checked)
    about = f"{result.set.about}. Source: {result.set.source or 'not said'}."
    found = (
        f"{number['asked']} chains asked, {number['found']} found, {number['missing']} missing, "
        f"{number['replaced']} replaced."
    )
    parts = [about, found, *_reasons(result.checked), *(f"Note: {remark}." for remark in result.remarks)]
    if not number["found"]:
        return parts
    rows = result.table
    names = [*SCORES, *([TUNED] if any(row["score"] == TUNED for row in rows) else [])]
    parts.append(_wide([row for row in rows if (row["subset"], row["contract"]) == (WHOLE, OURS.name)], names))
    for subset in result.subsets:
        parts += _contract_parts(result, subset, rows)
    parts += _strata(result)
    differences = list(difference_rows(result))
    if differences:
        parts.append("Differences of two models on the same proteins, paired bootstrap:")
        cells = [[f"{row['model']} − {row['minus']}", f"`{row['score']}`", _text(row)] for row in differences]
        parts.append(_grid(["", "score", "difference"], cells))
    return parts


def _reasons(checked: Sequence[CheckedChain]) -> list[str]:
    told = [f"- {each.asked.id} {each.state}: {each.reason}" for each in checked if each.state != FOUND]
    more = [f"- … and {len(told) - NAMED} more, named in chains_….csv"] if len(told) > NAMED else []
    return ["\n".join([*told[:NAMED], *more])] if told else []


def _contract_parts(result: SetResult, subset: str, rows: Sequence[Row]) -> list[str]:
    parts = []
    for name in dict.fromkeys(figure.contract for figure in result.figures if figure.subset == subset):
        contract, gap = CONTRACTS[name], result.gap(subset)
        terms = f"{_ATOMS[contract.atom]} below {contract.cutoff:g} Å, L = {_LENGTHS[contract.length]}"
        part = "all chains" if subset == WHOLE else subset
        parts.append(f"Under the contract `{name}` ({terms}; {part}):")
        own = [row for row in rows if (row["subset"], row["contract"]) == (subset, name)]
        parts.append(_wide(own, PRECISIONS))
        if gap:
            parts.append(f"Published figures are of other chains and are not shown: {gap}.")
        else:
            sources = dict.fromkeys(row["source"] for row in own if row["source"])
            parts.append(f"Published figures: {'; '.join(sources)}.")
    return parts


def _strata(result: SetResult) -> list[str]:
    rows = stratum_rows(result)
    if not rows:
        return []
    cells = [
        [predictor, f"`{score}`"]
        + [_with_number(row) for row in rows if (row["predictor"], row["score"]) == (predictor, score)]
        for predictor in dict.fromkeys(row["predictor"] for row in rows)
        for score in COMPARED
    ]
    title = "By identity to the nearest chain that the model was trained on (proteins in brackets):"
    return [title, _grid(["", "score", *TRAINING_STRATA], cells)]


def _wide(rows: Sequence[Row], scores: Sequence[str]) -> str:
    """A table with a line a predictor and a column a score."""
    lines = []
    for name in dict.fromkeys(row["predictor"] for row in rows):
        own = {row["score"]: row for row in rows if row["predictor"] == name}
        most = max(row["proteins"] for row in own.values())
        lines.append([name, str(most), *(_text(own[score]) if score in own else "" for score in scores)])
    return _grid(["", "proteins", *scores], lines)


def _with_number(row: Row) -> str:
    return f"{_text(row)} ({row['proteins']})" if row["proteins"] else "(0)"


def _text(row: Row) -> str:
    """Such as ``0.412 ± 0.021 [0.371, 0.452]``; as much of it as there is."""
    if math.isnan(row["mean"]):
        return ""
    if math.isnan(row["error"]):
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} ± {row['error']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = (header, [":--", *["--:"] * (len(header) - 1)], *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
