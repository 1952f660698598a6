"""Figures of runs: cost by optimizer step on the left, a score by tokens on the right. Without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from contactlm.atomic import atomic_path
from contactlm.report.compare import Spread, by_arm
from contactlm.report.read import Run
from contactlm.report.table import trivial_scores

FIGURES = {
    "mcc": "MCC, all pairs",
    "mcc_sep6": "MCC, |i − j| ≥ 6",
    "p_at_L_long": "P@L, long range (|i − j| ≥ 24)",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart (their yellow is too pale for a line), and grey
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
STYLES = ("-", "--", "-.", ":")
LEAST_RANGE = 0.1  # of a score's axis, so that small changes do not look large
LEAST_FACTOR = 10  # between the ends of the axis of costs
POINTS = 200  # at which curves of several seeds are averaged
Style = dict[str, Any]
CROSS: Style = {"marker": "X", "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.7, "zorder": 5}
TRIVIAL_LINE: Style = {"color": "#333333", "linewidth": 1.2, "linestyle": (0, (1, 2))}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_score(runs: Sequence[Run], score: str) -> Figure:
    """Draw a figure of runs that may be compared.

    Left: cumulative GFLOPs by optimizer step, log scale. Right: a score of :data:`FIGURES` on dev by tokens, with a
    cross for the test set at the end. Lines are means over seeds, bands ± 1 sd; the trivial predictor is a thin line.
    """
    arms = by_arm(runs)
    styles = arm_styles(list(arms))
    rows = -(-(len(arms) + 2) // 4)
    figure = Figure(figsize=(11, 4.3 + 0.25 * rows), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, members in arms.items():
        _draw_cost(left, members, styles[arm])
        _draw_score(right, members, score, styles[arm])
    trivial = trivial_scores(runs, "dev").get(score, trivial_scores(runs, "test").get(score))
    if trivial is not None:
        right.axhline(trivial, zorder=1, **TRIVIAL_LINE)
    _label(left, right, score)
    figure.legend(handles=_handles(arms, styles), loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, complete or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def arm_styles(arms: Sequence[str]) -> dict[str, Style]:
    """A colour and a line style for each arm, distinct in grey as well; the same in all figures of a report."""
    return {
        arm: {"color": COLORS[i % len(COLORS)], "linestyle": STYLES[(i + i // len(COLORS)) % len(STYLES)]}
        for i, arm in enumerate(arms)
    }


def mean_curve(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Average curves (x, y) of several seeds, x ascending, over what they share of the x axis.

    Returns:
        (x, mean, sd), each float64 (n,): at the points of the curves where all have the same, else at evenly spaced
        ones, linearly interpolated. The sd of one curve is 0.
    """
    first = curves[0][0]
    same = all(len(x) == len(first) and np.array_equal(x, first) for x, _ in curves)
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = first if same else np.linspace(start, max(start, end), POINTS)
    values = np.stack([np.interp(x, *curve) for curve in curves])
    return x, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(x)


def _curves(runs: Sequence[Run], rows: str, x: str, y: str) -> list[Curve]:
    points = [[(row[x], row[y]) for row in getattr(run, rows) if row.get(y) is not None] for run in runs]
    return [(np.array(each, dtype=float)[:, 0], np.array(each, dtype=float)[:, 1]) for each in points if each]


def _draw_cost(ax: Axes, runs: Sequence[Run], style: Style) -> None:
    curves = [(x, y / 1e9) for x, y in _curves(runs, "progress", "steps", "flops") if y[-1] > 0]
    if curves:
        x, mean, _ = mean_curve(curves)
        ax.plot(x, mean, linewidth=1.8, **style)
        ax.plot(x[-1], mean[-1], marker="o", markersize=4, color=style["color"])


def _draw_score(ax: Axes, runs: Sequence[Run], score: str, style: Style) -> None:
    curves = _curves(runs, "history", "tokens", score)
    if curves:
        x, mean, sd = mean_curve(curves)
        ax.plot(x, mean, linewidth=1.6, **style)
        ax.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)
    test = Spread.of(run.test.get(score) for run in runs)
    if test is not None:
        tokens = float(np.mean([run.record["tokens"] for run in runs if score in run.test]))
        ax.errorbar(tokens, test.mean, yerr=test.sd, color=style["color"], capsize=3, elinewidth=1, **CROSS)
        if not tokens:  # nothing was trained: there is no curve, and the score holds at any budget
            ax.axhline(test.mean, linewidth=1, **style)


def _label(left: Axes, right: Axes, score: str) -> None:
    left.set(yscale="log", xlabel="optimizer step", ylabel="cumulative GFLOPs (forward + backward)", xlim=(0, None))
    left.set_title("cost of training", fontsize="medium")
    low, high = left.get_ylim()
    left.set_ylim(min(low, high / LEAST_FACTOR), high)
    left.grid(which="major", color="#dddddd", linewidth=0.6)
    right.set(xlabel="training tokens", ylabel=FIGURES.get(score, score), xlim=(min(0, right.get_xlim()[0]), None))
    right.set_title("dev set by tokens, ± 1 sd over seeds; cross: test set", fontsize="medium")
    right.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = right.get_ylim()
    right.set_ylim(min(low, (low + high - LEAST_RANGE) / 2), max(high, (low + high + LEAST_RANGE) / 2))
    right.grid(color="#dddddd", linewidth=0.6)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_axisbelow(True)


def _handles(arms: dict[str, list[Run]], styles: dict[str, Style]) -> list[Line2D]:
    handles = []
    for arm, runs in arms.items():
        seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
        label = f"{arm} ({seeds if any(run.trained for run in runs) else 'nothing trained'})"
        handles.append(Line2D([], [], linewidth=1.8, label=label, **styles[arm]))
    cross = Line2D([], [], linestyle="none", color="#555555", label="test (± 1 sd over seeds)", **CROSS)
    return [*handles, cross, Line2D([], [], label="trivial: |i − j| ≤ 2, on dev", **TRIVIAL_LINE)]
