"""The figures of a map's page, in Bokeh: axes, zoom, hover, chains, helices and strands. The page paints the cells.

In these axes residue i, counted from 0, is at i + 1, so that ticks fall on round numbers.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from contactlm.maps.contact_map import ContactMap

SIDE, SIDE_OF_TWO = 640, 600  # pixels of a map's side, alone and beside another
MARGIN = 0.022  # of the map's side, for helices and strands
HELIX_COLOR, STRAND_COLOR, PICKED = "#CC79A7", "#009E73", "#D55E00"
HOVER = """<div style="font: 13px/1.45 system-ui, sans-serif; padding: 1px 3px">
<b>@hover{pair}</b><br>@hover{probability}<br>@hover{where}</div>"""


def map_figures(contact_map: ContactMap, names: list[str]) -> Any:
    """A figure for each model, whose axes move together.

    Args:
        contact_map: The map; of it, length, chains and structure are drawn.
        names: What the models are called.

    Returns:
        A layout of Bokeh's. Its figures are called ``map0`` and ``map1``, the sources of their cells ``cells0`` and
        ``cells1``, and the picked pair ``picked``.
    """
    from bokeh.layouts import row
    from bokeh.models import ColumnDataSource, Range1d

    L = len(contact_map)
    margin = MARGIN * L if contact_map.residues is not None else 0.0
    ranges = Range1d(0.5 - margin, L + 0.5), Range1d(L + 0.5, 0.5 - margin)
    picked = ColumnDataSource({"x": [], "y": []}, name="picked")
    titles = names if len(names) > 1 else [""]
    return row(*(_figure(contact_map, number, title, ranges, picked) for number, title in enumerate(titles)))


def _figure(contact_map: ContactMap, number: int, title: str, ranges: Any, picked: Any) -> Any:
    from bokeh.models import BasicTicker, ColumnDataSource, CustomJSTickFormatter
    from bokeh.plotting import figure

    side = SIDE_OF_TWO if title else SIDE
    plot = figure(
        name=f"map{number}",
        title=title or None,
        x_range=ranges[0],
        y_range=ranges[1],
        frame_width=side,
        frame_height=side,
        tools="",
        background_fill_color=None,
        border_fill_color=None,
        toolbar_location="above",
        x_axis_location="above",
    )
    empty = {"image": [np.zeros((1, 1), np.uint32)], **{name: [0.5] for name in ("x", "y", "dw", "dh")}, "hover": [""]}
    cells = ColumnDataSource(empty, name=f"cells{number}")
    image = plot.image_rgba(image="image", x="x", y="y", dw="dw", dh="dh", source=cells)
    _draw_chains(plot, contact_map)
    _draw_states(plot, contact_map)
    plot.scatter("x", "y", source=picked, marker="square", size=13, line_width=2.2, line_color=PICKED, fill_color=None)
    _add_tools(plot, image)
    plot.grid.visible = False
    for axis in (plot.xaxis, plot.yaxis):
        axis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0, desired_num_ticks=8)
        axis.formatter = CustomJSTickFormatter(code="return self.contactlm ? self.contactlm.tick(tick) : String(tick)")
    return plot


def _add_tools(plot: Any, image: Any) -> None:
    from bokeh.models import (
        BoxZoomTool,
        CrosshairTool,
        CustomJSHover,
        HoverTool,
        PanTool,
        ResetTool,
        SaveTool,
        WheelZoomTool,  # fmt: skip
    )

    told = CustomJSHover(code="return self.contactlm.tell(format, special_vars.x, special_vars.y)")
    hover = HoverTool(renderers=[image], tooltips=HOVER, formatters={"@hover": told}, point_policy="follow_mouse")
    zoom, cross = WheelZoomTool(), CrosshairTool(line_alpha=0.35)
    plot.add_tools(PanTool(), zoom, BoxZoomTool(match_aspect=True), ResetTool(), SaveTool(), hover, cross)
    plot.toolbar.active_scroll = zoom
    plot.toolbar.logo = None


def _draw_chains(plot: Any, contact_map: ContactMap) -> None:
    from bokeh.models import Span

    L = len(contact_map)
    plot.segment([0.5], [0.5], [L + 0.5], [L + 0.5], line_color="#888888", line_width=1, line_alpha=0.8)
    style = {"line_color": "#888888", "line_dash": "dashed", "line_width": 1.4}
    for start in np.cumsum(contact_map.chain_lengths)[:-1]:
        for dimension in ("height", "width"):
            plot.add_layout(Span(location=float(start) + 0.5, dimension=dimension, **style))


def _draw_states(plot: Any, contact_map: ContactMap) -> None:
    """Helices and strands in the margin above and left of the map."""
    if contact_map.residues is None:
        return
    margin = MARGIN * len(contact_map)
    inner, outer = 0.5 - 0.15 * margin, 0.5 - 0.85 * margin
    start = 0
    for state, run in groupby(contact_map.residues.states):
        stop = start + len(list(run))
        if state in "HE":
            ends, color = (start + 0.5, stop + 0.5), HELIX_COLOR if state == "H" else STRAND_COLOR
            plot.quad(left=ends[0], right=ends[1], top=outer, bottom=inner, color=color, line_color=None)
            plot.quad(left=outer, right=inner, top=ends[0], bottom=ends[1], color=color, line_color=None)
        start = stop
