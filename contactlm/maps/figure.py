"""Drawing a contact map, without pyplot: nothing global changes, and no display is needed."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from contactlm.maps.pairs import THRESHOLD_KIND, MapValues
from contactlm.maps.picture import (
    BELOW,
    BOUNDARY,
    COLORS,
    CONTACT,
    DIAGONAL,
    LINE,
    NO_CONTACT,
    UNKNOWN,
    block_maximum,
    block_size,
    title,
)

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
    ax.plot([0.5, L + 0.5], [0.5, L + 0.5], color=DIAGONAL, linewidth=0.6)
    for start in np.cumsum(contact_map.chain_lengths)[:-1]:
        for draw_line in (ax.axvline, ax.axhline):
            draw_line(start + 0.5, color=BOUNDARY, linewidth=0.9, linestyle=(0, (5, 3)))
    ax.set(xlim=(0.5, L + 0.5), ylim=(L + 0.5, 0.5), aspect="equal", ylabel="residue")
    ax.set_xlabel("residue" if contact_map.labels is None else f"residue\n{BELOW}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if 1 <= value <= L else ""))
    ax.set_title(title(contact_map).replace("$", r"\$"), fontsize="medium")
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02, aspect=25)
    kind = contact_map.how.get(THRESHOLD_KIND)
    caption = f"threshold {contact_map.threshold:.3f}" + (f", {kind}" if kind else "")
    bar.set_label(f"contact probability (red line: {caption})")
    bar.ax.axhline(contact_map.threshold, color=LINE, linewidth=1.2)
    return ax
