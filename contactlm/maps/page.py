"""A map as a page: zoomed, hovered over, cut at any threshold, beside another model's; written as one file.

Maps travel as one byte a pair, of which counts at any threshold are still exact. Bokeh makes the figures: axes, zoom,
hover, chains, helices and strands; the page's script paints the cells. In these axes residue i, counted from 0, is at
i + 1, so that ticks fall on round numbers.
"""

from __future__ import annotations

import base64
import json
import zlib
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contactlm.maps.complexes import find_interfaces, residue_number
from contactlm.maps.pairs import LEAST_SEPARATION, MapValues, top_contacts, truth_of
from contactlm.metrics.ranked import BAND_STARTS
from contactlm.pages.frame import escape, write_frame
from contactlm.pages.library import load_bokeh, plot_item
from contactlm.structure.numbered import FileResidues
from contactlm.types import DataError

STEPS = 250  # thresholds k / STEPS at which a page counts: a pair's byte is how many of them its probability is above


def pack_probability(probability: NDArray[np.float32]) -> str:
    """The upper triangle of a map (L, L), row by row, as bytes q, compressed (zlib, base64).

    q > k where p > k / 250, compared in float32 as scores are. A probability is then known to within 0.004.
    """
    thresholds = (np.arange(STEPS) / STEPS).astype(np.float32)
    steps = np.searchsorted(thresholds, _upper(probability), side="left")
    return _packed(steps.astype(np.uint8))


def pack_labels(labels: NDArray[np.int8]) -> str:
    """The upper triangle of labels as bytes, likewise: 0 unknown, 1 no contact, 2 contact."""
    return _packed((_upper(labels) + 1).astype(np.uint8))


def _upper(values: NDArray) -> NDArray:
    return values[np.triu(np.ones(values.shape, dtype=np.bool_), 1)]


def _packed(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9 if len(values) < 1 << 20 else 6)).decode()


SIDE, SIDE_OF_TWO = 640, 600  # pixels of a map's side, alone and beside another
MARGIN = 0.022  # of the map's side, for helices and strands
HELIX_COLOR, STRAND_COLOR, PICKED = "#CC79A7", "#009E73", "#D55E00"
HOVER = """<div style="font: 13px/1.45 system-ui, sans-serif; padding: 1px 3px">
<b>@hover{pair}</b><br>@hover{probability}<br>@hover{where}</div>"""


def map_figures(contact_map: MapValues, names: list[str]) -> Any:
    """A layout of figures ``map0`` and ``map1`` for each model, whose axes move together.

    The sources of their cells are called ``cells0`` and ``cells1``, the picked pair ``picked``.
    """
    from bokeh.layouts import row
    from bokeh.models import ColumnDataSource, Range1d

    L = len(contact_map)
    margin = MARGIN * L if contact_map.residues is not None else 0.0
    ranges = Range1d(0.5 - margin, L + 0.5), Range1d(L + 0.5, 0.5 - margin)
    picked = ColumnDataSource({"x": [], "y": []}, name="picked")
    titles = names if len(names) > 1 else [""]
    return row(*(_figure(contact_map, number, title, ranges, picked) for number, title in enumerate(titles)))


def _figure(contact_map: MapValues, number: int, title: str, ranges: Any, picked: Any) -> Any:
    from bokeh.models import BasicTicker, ColumnDataSource, CustomJSTickFormatter
    from bokeh.plotting import figure

    size = dict.fromkeys(("frame_width", "frame_height"), SIDE_OF_TWO if title else SIDE)
    above = dict.fromkeys(("toolbar_location", "x_axis_location"), "above")
    clear = dict.fromkeys(("background_fill_color", "border_fill_color"))
    about = {"name": f"map{number}", "title": title or None, "x_range": ranges[0], "y_range": ranges[1]}
    plot = figure(**about, **size, tools="", **clear, **above)
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
    from bokeh.models import tools

    told = tools.CustomJSHover(code="return self.contactlm.tell(format, special_vars.x, special_vars.y)")
    hover = tools.HoverTool(renderers=[image], tooltips=HOVER, formatters={"@hover": told}, point_policy="follow_mouse")
    zoom, cross = tools.WheelZoomTool(), tools.CrosshairTool(line_alpha=0.35)
    plot.add_tools(
        tools.PanTool(), zoom, tools.BoxZoomTool(match_aspect=True), tools.ResetTool(), tools.SaveTool(), hover, cross
    )
    plot.toolbar.active_scroll = zoom
    plot.toolbar.logo = None


def _draw_chains(plot: Any, contact_map: MapValues) -> None:
    from bokeh.models import Span

    L = len(contact_map)
    plot.segment([0.5], [0.5], [L + 0.5], [L + 0.5], line_color="#888888", line_width=1, line_alpha=0.8)
    style = {"line_color": "#888888", "line_dash": "dashed", "line_width": 1.4}
    for start in np.cumsum(contact_map.chain_lengths)[:-1]:
        for dimension in ("height", "width"):
            plot.add_layout(Span(location=float(start) + 0.5, dimension=dimension, **style))


def _draw_states(plot: Any, contact_map: MapValues) -> None:
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


BODY = """\
<header>
  <div><h1>{title}</h1><p class="quiet">{about}</p></div>
  <button id="theme" type="button">Light / dark</button>
</header>
<main class="columns">
<div>
  <div id="plot" tabindex="0" role="group"
    aria-label="Contact map. Arrow keys move, plus and minus zoom, 0 shows all."></div>
  <p class="legend" id="legend"></p>
  <p class="quiet small screen">Drag to move, wheel to zoom, click a pair to pick it. Keys: arrows, +, −, 0.</p>
</div>
<div class="side {kind}">
  <section aria-label="What is shown">
    <div class="panel">
      <div class="row">
        <label for="threshold">threshold</label>
        <input class="grow" id="threshold" type="range" min="0" max="{steps}" step="1">
        <output id="at" for="threshold"></output>
      </div>
      <div class="row"><label for="lower">below the diagonal</label><select id="lower"></select>
        <label><input type="checkbox" id="called"> only above the threshold</label></div>
      <div class="row" id="ranges" role="group" aria-label="Ranges: residues apart"></div>
      <div id="scores"></div>
    </div>
  </section>
  <section aria-label="Most probable pairs">
    <div class="row">
      <h2 class="grow">Top {top} pairs</h2>
      <input type="search" id="search" placeholder="search" aria-label="Search the pairs">
      <button type="button" id="csv">Download CSV</button>
    </div>
    <div class="scroll" id="pairs"></div>
  </section>
</div>
</main>
<footer class="quiet small" id="notes"></footer>"""


def write_page(contact_map: MapValues, path: str | Path, beside: MapValues | None = None) -> None:
    """Write the page."""
    load_bokeh()
    maps = [contact_map] if beside is None else [contact_map, beside]
    if contact_map.contact != maps[-1].contact:
        raise DataError(
            f"beside: {maps[-1].id} is of contacts {maps[-1].contact}, but this map of {contact_map.contact}"
        )
    if any((each.sequence, each.chain_lengths) != (maps[0].sequence, maps[0].chain_lengths) for each in maps):
        raise DataError(
            f"beside: {maps[1].id} is another sequence ({len(maps[1])} residues) than {contact_map.id} "
            f"({len(contact_map)}): give two maps of one protein"
        )
    shown = {"title": escape(contact_map.id), "about": escape(_about(contact_map)), "steps": STEPS - 1}
    body = BODY.format(**shown, kind=("one", "two")[len(maps) - 1], top=len(_pairs(maps)))
    data = page_data(maps) | {"plot": plot_item(map_figures(contact_map, names(maps)))}
    write_frame(path, f"{contact_map.id} – contact map", body, data, ["map"], library=True)


def names(maps: list[MapValues]) -> list[str]:
    """What the models are called in the page: by what made them, with letters where that is the same."""
    called = [str(each.how.get("name") or each.how.get("model") or "model") for each in maps]
    short = [name if len(name) <= 40 else f"…{name[-39:]}" for name in called]
    return short if len(maps) == 1 else [f"{letter}: {name}" for letter, name in zip("AB", short, strict=True)]


def page_data(maps: list[MapValues]) -> dict[str, Any]:
    """What the page's script reads."""
    first, residues = maps[0], _first_residues(maps)
    truth = next((found for each in maps if (found := truth_of(each)) is not None), None)
    return {
        "id": first.id,
        "sequence": first.sequence,
        "chainLengths": list(first.chain_lengths),
        "steps": STEPS,
        "bandStarts": list(BAND_STARTS),
        "threshold": first.threshold,
        "names": names(maps),
        "maps": [pack_probability(each.probability) for each in maps],
        "truth": None if truth is None else pack_labels(truth),
        "positions": None
        if residues is None
        else _packed(np.ascontiguousarray(residues.cb, "<f4").view(np.uint8).ravel()),
        "numbers": None if residues is None else residues.numbers,
        "chains": None if residues is None else residues.chains,
        "chainNames": first.chain_names,
        "pairs": _pairs(maps),
        "notes": _notes(maps),
    }


def _first_residues(maps: list[MapValues]) -> FileResidues | None:
    return next((each.residues for each in maps if each.residues is not None), None)


def _pairs(maps: list[MapValues]) -> list[list[float]]:
    """The L most probable pairs of the first map: i, j, and their probability in each map."""
    top = top_contacts(maps[0], len(maps[0]), LEAST_SEPARATION)
    return [[i, j, *(round(float(each.probability[i, j]), 4) for each in maps)] for i, j, _ in top]


def _about(contact_map: MapValues) -> str:
    lengths = contact_map.chain_lengths
    parts = [f"{len(contact_map):,} residues" + (f" in {len(lengths)} chains" if len(lengths) > 1 else "")]
    parts.append(f"threshold {contact_map.threshold:.3g}")
    if contact_map.residues is not None:
        parts.append(f"numbered as in {Path(contact_map.residues.file).name}")
    return " · ".join(parts)


def _notes(maps: list[MapValues]) -> list[str]:
    notes = []
    for name, each in zip(names(maps), maps, strict=True):
        how = {key: value for key, value in each.how.items() if key != "chain_lengths"}
        told = ", ".join(f"{key.replace('_', ' ')} {_word(value)}" for key, value in how.items() if value)
        notes.append(f"{name}: {told or 'not said how'}")
    for each in find_interfaces(maps[0]):
        sides = zip(each.chains, each.residues, strict=True)
        told = "; ".join(f"{name} {' '.join(residue_number(maps[0], i) for i in own) or '-'}" for name, own in sides)
        notes.append(
            f"interface {'-'.join(each.chains)}: highest probability {each.highest:.3f}, {each.expected:.1f} contacts "
            f"expected, mean of the ten highest {each.top10:.3f}; residues above the threshold: {told}"
        )
    residues = _first_residues(maps)
    if residues is not None:
        kind = "the protein's own" if residues.is_own else f"a relative's ({residues.identity:.0%} the same residues)"
        notes.append(f"structure: {Path(residues.file).name}, {kind}; helices and strands by its C-alpha trace (P-SEA)")
    if all(each.labels is None for each in maps) and residues is not None:
        notes.append("truth: the contacts in that structure")
    notes.append("Probabilities of the map are shown to within 0.002; counts are exact at every step of the threshold.")
    return notes


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return " + ".join(f"{count} {name}".replace("_", " ") for name, count in value.items() if count)
    return value if isinstance(value, str) else json.dumps(value)
