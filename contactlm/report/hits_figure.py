"""A figure of test scores by identity to the best hit of known structure. Without pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contactlm.metrics.strata import HIT_STRATA, HIT_TITLES
from contactlm.report.hits import Strata, spread_of

PANELS = {"mcc_sep6": "test MCC, |i − j| ≥ 6", "p_at_L_long": "test P@L, long range (|i − j| ≥ 24)"}
MARKERS = "osv^<>pX"
COPY_FACES = ("#ffffff", "#aaaaaa", "#000000")
WIDTH = 0.7  # of a stratum that its arms share; strata are 1 apart


def draw_hits(strata: Strata, styles: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a figure: a panel a score, a column a stratum, a marker an arm (mean ± 1 sd over seeds).

    Args:
        strata: Scores of all arms by stratum.
        styles: Of each arm, as in the other figures; see :func:`contactlm.report.figure.arm_styles`.
    """
    rows = -(-len(strata.arms) // 4)
    figure = Figure(figsize=(11, 3.9 + 0.25 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, (score, title) in zip(panels, PANELS.items(), strict=True):
        _draw_panel(ax, strata, score, styles)
        ax.set_title(title, fontsize="medium")
    panels[0].set_ylabel("mean over proteins")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _draw_panel(ax: Axes, strata: Strata, score: str, styles: Mapping[str, Mapping[str, Any]]) -> None:
    arms = list(strata.arms)
    copies = [arm for arm in arms if arm not in styles]
    step = WIDTH / max(1, len(arms) - 1)
    for number, (arm, runs) in enumerate(strata.arms.items()):
        shift = step * (number - (len(arms) - 1) / 2)
        spreads = [spread_of(runs, stratum, score) for stratum in HIT_STRATA]
        known = [(x, spread) for x, spread in enumerate(spreads) if spread is not None]
        copying = arm not in styles
        ax.errorbar(
            [x + shift for x, _ in known],
            [spread.mean for _, spread in known],
            yerr=[math.nan if spread.sd is None else spread.sd for _, spread in known],
            label=arm,
            linestyle="none",
            capsize=3,
            elinewidth=1,
            marker="D" if copying else MARKERS[number % len(MARKERS)],
            markersize=6,
            markerfacecolor=COPY_FACES[copies.index(arm) % len(COPY_FACES)] if copying else None,
            color="#000000" if copying else styles[arm]["color"],
        )
    counts = strata.proteins.values()
    names = [f"{title}\n{n} protein{'s' * (n != 1)}" for title, n in zip(HIT_TITLES, counts, strict=True)]
    ax.set_xticks(range(len(names)), names, fontsize="small")
    ax.set_xlabel("identity to the best hit of known structure")
    for edge in range(1, len(names)):
        ax.axvline(edge - 0.5, color="#dddddd", linewidth=0.6)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
