"""Reliability diagrams of a test, as a table and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contactlm.atomic import atomic_path, write_csv
from contactlm.metrics.calibration_scores import CONFIDENCE, SCORED, CalibrationScores
from contactlm.runs.checkpoint_io import outlast_full_disk

TABLE, FIGURE = "reliability.csv", "reliability.png"
STATES = ("as predicted", "calibrated")


def write_reliability(folder: Path, scores: Sequence[CalibrationScores]) -> None:
    """Write ``reliability.csv`` and ``reliability.png``; nothing where there is no pair to judge.

    Args:
        folder: The run directory.
        scores: Of the probabilities as they are, and of calibrated ones where there are any.
    """
    rows = [
        {"probabilities": state, **row}
        for state, each in zip(STATES, scores, strict=False)
        for row in each.reliability()
    ]
    if not rows:
        return
    with outlast_full_disk(folder / TABLE):
        write_csv(folder / TABLE, rows)
    with outlast_full_disk(folder / FIGURE), atomic_path(folder / FIGURE) as temporary:
        make_figure(rows, scores[-1].confidence_rows()).savefig(temporary, format="png")


def make_figure(rows: Sequence[dict[str, Any]], proteins: Sequence[dict[str, float]]) -> Any:
    """Draw a panel a range, and one of predicted precisions where there are any."""
    from matplotlib.figure import Figure  # slow to import, and most commands draw nothing

    told = [row for row in proteins if not math.isnan(row[CONFIDENCE])]
    figure = Figure(figsize=(3 * (len(SCORED) + bool(told)), 3.2), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(SCORED) + bool(told), squeeze=False)[0]
    for ax, name in zip(axes, SCORED, strict=False):
        for state in STATES:
            own = [row for row in rows if (row["range"], row["probabilities"]) == (name, state)]
            points = [row["mean_probability"] for row in own], [row["contacts"] for row in own]
            if own:
                ax.plot(*points, marker="o", markersize=3, label=state)
        ax.set(title=name, xlabel="mean probability")
    axes[0].set_ylabel("share of contacts")
    axes[0].legend(fontsize="small")
    if told:
        axes[-1].plot([row[CONFIDENCE] for row in told], [row["p_at_L_long"] for row in told], "o", markersize=3)
        axes[-1].set(title="proteins", xlabel="predicted long-range P@L", ylabel="long-range P@L")
    for ax in axes:
        ax.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", zorder=0)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure
