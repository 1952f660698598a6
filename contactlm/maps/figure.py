"""Drawing a contact map, without pyplot: nothing global changes, and no display is needed."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from contactlm.maps.pairs import MapValues

COLORS = "Blues"
UNKNOWN, NO_CONTACT, CONTACT = "#e4e1dc", "#ffffff", "#b2182b"
BOUNDARY = "#555555"  # between chains
MAX_CELLS = 1600  # a larger map is drawn in blocks, each with its highest value
PIXELS_PER_INCH = 150
MAP_SHARE = 0.72  # of the figure's width, what the axes leave to the map at least


def make_figure(contact_map: MapValues) -> Figure:
    """A figure of one map, sized so that a residue takes a pixel or more (a block of residues above 1,600)."""
    inches = min(max(6.4, 6.4 * len(contact_map) / 700), 10.0)
    cells = -(-len(contact_map) // block_size(contact_map))
    dpi = max(PIXELS_PER_INCH, math.ceil(cells / (MAP_SHARE * inches)))
    figure = Figure(figsize=(inches, inches * 0.95), dpi=dpi, layout="compressed")
    draw_map(contact_map, figure.add_subplot())
    return figure


def draw_map(contact_map: MapValues, ax: Axes | None = None) -> Axes:
    """Draw probability above the diagonal and the truth below; see :meth:`contactlm.ContactMap.plot`."""
    if ax is None:
        return make_figure(contact_map).axes[0]
    L, block = len(contact_map), block_size(contact_map)
    probability = block_maximum(contact_map.probability, block)
    end = 0.5 + block * len(probability)
    edges = (0.5, end, end, 0.5)  # residue 1 at the top left
    lower = np.tri(len(probability), k=-1, dtype=bool)
    if contact_map.labels is not None:
        truth = np.ma.masked_where(~lower, block_maximum(contact_map.labels, block))
        colors = ListedColormap([UNKNOWN, NO_CONTACT, CONTACT])
        ax.imshow(truth, cmap=colors, vmin=-1, vmax=1, extent=edges, interpolation="nearest")
        probability = np.ma.masked_where(lower, probability)
    image = ax.imshow(probability, cmap=COLORS, vmin=0, vmax=1, extent=edges, interpolation="nearest")
    ax.plot([0.5, L + 0.5], [0.5, L + 0.5], color="#777777", linewidth=0.6)
    for start in np.cumsum(contact_map.chain_lengths)[:-1]:
        for draw_line in (ax.axvline, ax.axhline):
            draw_line(start + 0.5, color=BOUNDARY, linewidth=0.9, linestyle=(0, (5, 3)))
    halves = "above the diagonal: probability; below: true contacts (grey: unknown)"
    ax.set(xlim=(0.5, L + 0.5), ylim=(L + 0.5, 0.5), aspect="equal", ylabel="residue")
    ax.set_xlabel("residue" if contact_map.labels is None else f"residue\n{halves}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if 1 <= value <= L else ""))
    ax.set_title(title(contact_map), fontsize="medium")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02, aspect=25)
    bar.set_label("contact probability")
    bar.ax.axhline(contact_map.threshold, color="#b2182b", linewidth=1.2)
    return ax


def block_size(contact_map: MapValues) -> int:
    """Residues to a side of what is drawn as one cell; 1 up to 1,600 residues."""
    return max(1, math.ceil(len(contact_map) / MAX_CELLS))


def block_maximum(values: NDArray, block: int) -> NDArray:
    """The largest value in each block of ``block`` × ``block`` residues; the last ones may be smaller."""
    starts = np.arange(0, len(values), block)
    return np.maximum.reduceat(np.maximum.reduceat(values, starts, axis=0), starts, axis=1) if block > 1 else values


def title(contact_map: MapValues) -> str:
    """Id and length; in a second line the scores, where the truth is known."""
    name = contact_map.id if len(contact_map.id) <= 48 else f"{contact_map.id[:47]}…"
    text = f"{name}  ({len(contact_map)} residues)".replace("$", r"\$")
    if contact_map.labels is None:
        return text
    scores = contact_map.scores()
    shown = {"MCC (|i − j| ≥ 6)": "mcc_sep6", "long-range P@L": "p_at_L_long", "P@L/5": "p_at_L5_long"}
    parts = [f"{label}: {scores[key]:.2f}" for label, key in shown.items() if not math.isnan(scores[key])]
    return f"{text}\n{'   '.join(parts)}"
