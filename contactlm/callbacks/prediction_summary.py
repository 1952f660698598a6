"""``summary.csv``: a line for each predicted protein."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contactlm.atomic import atomic_path
from contactlm.maps.contact_map import ContactMap
from contactlm.metrics.calibration_scores import CONFIDENCE
from contactlm.types import residue_positions

SUMMARY = "summary.csv"
SCORES = ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
AGREEMENT = ("spearman_sep6", "shared_top_L")
COLUMNS = (
    *("id", "file", "length", "threshold", "contacts_sep6", "confidence", "hits", "seconds"),
    *(*SCORES, *AGREEMENT, CONFIDENCE),
    *("formats", "input", "model", "options"),
)


def summary_line(predicted: ContactMap, seconds: float) -> dict[str, Any]:
    """One protein's line: length, pairs above the threshold, seconds, and scores when truth is known.

    The pairs are those at |i − j| ≥ 6 or of different chains.
    """
    L = len(predicted)
    called = predicted.probability > predicted.threshold
    positions = residue_positions(predicted.chain_lengths)
    line: dict[str, Any] = {
        "id": predicted.id,
        "length": L,
        "threshold": f"{predicted.threshold:.3f}",
        "contacts_sep6": int(called[np.triu(positions - positions[:, None] >= 6)].sum()),
        "confidence": f"{confidence(predicted):.4f}" if L else "",
        "hits": " ".join("_".join(str(hit).split()) for hit in predicted.how.get("hits", [])),
        "seconds": f"{seconds:.3f}",
    }
    if CONFIDENCE in predicted.how:
        line[CONFIDENCE] = f"{predicted.how[CONFIDENCE]:.4f}"
    if predicted.labels is not None:
        scores = predicted.scores()
        line |= {name: f"{scores[name]:.4f}" for name in SCORES if not (predicted.is_ranked and "mcc" in name)}
    return line


def confidence(predicted: ContactMap) -> float:
    """The mean probability of the L most probable pairs, at |i − j| ≥ 6 or of different chains; NaN of none."""
    top = [pair.probability for pair in predicted.top()]
    return sum(top) / len(top) if top else float("nan")


def read_summary(path: Path) -> dict[str, dict[str, str]]:
    """Read the complete lines of a summary, by id; a line torn by a killed run is left out."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as handle:
        text = handle.read()
    complete = text[: text.rfind("\n") + 1].splitlines()
    rows = csv.DictReader(complete)
    return {row["id"]: row for row in rows if row.get("id") and None not in row.values()}


def write_summary(path: Path, lines: Iterable[dict[str, str]]) -> None:
    """Write a summary anew, at once."""
    with atomic_path(path) as temporary, temporary.open("x", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a protein's line to a summary, which is begun where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        if is_new:
            writer.writeheader()
        writer.writerow(line)
