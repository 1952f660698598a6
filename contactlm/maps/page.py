"""A map as a page: zoomed, hovered over, cut at any threshold, next to another model's; written as one file.

Maps travel as one byte a pair, of which counts at any threshold are still exact. Bokeh makes the figures: axes, zoom,
hover, chains, helices and strands; the page's script paints the cells. In these axes residue i, counted from 0, is at
i + 1, so that ticks fall on round numbers.
"""

from __future__ import annotations

import base64
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contactlm.maps.complexes import find_interfaces, residue_number
from contactlm.maps.pairs import LEAST_SEPARATION, OUTSIDE, THRESHOLD_KIND, MapValues, top_contacts, truth_of
from contactlm.metrics.calibration_scores import CONFIDENCE
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


def pack_distance(distance: NDArray[np.float32]) -> str:
    """The upper triangle of distances in Å as bytes, likewise: tenths of Å, at most 25."""
    return _packed(np.rint(10 * _upper(distance)).clip(0, STEPS).astype(np.uint8))


def pack_labels(labels: NDArray[np.int8]) -> str:
    """The upper triangle of labels as bytes, likewise: 0 unknown, 1 no contact, 2 contact."""
    return _packed((_upper(labels) + 1).astype(np.uint8))


def _upper(values: NDArray) -> NDArray:
    return values[np.triu(np.ones(values.shape, dtype=np.bool_), 1)]


def _packed(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9 if len(values) < 1 << 20 else 6)).decode()


SIDE, SIDE_OF_TWO = 640, 540  # pixels of a map's side, alone and next to another: both fit 1,280 pixels
PICKED = "#D55E00"
HOVER = """<div style="font: 13px/1.45 system-ui, sans-serif; padding: 1px 3px">
<b>@hover{pair}</b><br>@hover{probability}<br>@hover{where}</div>"""


@cache
def map_figures(titles: tuple[str, ...]) -> dict[str, Any]:
    """A layout of figures ``map0`` and ``map1`` for each model, whose axes move together, as JSON values.

    The page's script fills them: the sources of their cells are called ``cells0`` and ``cells1``, the picked pair
    ``picked``, lines between chains ``lines``, helices and strands ``states``. So all maps share what takes long.
    """
    from bokeh.layouts import row
    from bokeh.models import ColumnDataSource, Range1d

    ranges = Range1d(0.5, 1.5), Range1d(1.5, 0.5)
    names = {"picked": ("x", "y"), "lines": ("x0", "y0", "x1", "y1")}
    names["states"] = ("left", "right", "top", "bottom", "color")
    sources = {name: ColumnDataSource({key: [] for key in keys}, name=name) for name, keys in names.items()}
    return plot_item(row(*(_figure(number, title, ranges, sources) for number, title in enumerate(titles))))


def _figure(number: int, title: str, ranges: Any, sources: dict[str, Any]) -> Any:
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
    plot.segment([0.5], [0.5], [1e6], [1e6], line_color="#888888", line_width=1, line_alpha=0.8)
    dashes = {"line_color": "#888888", "line_dash": "dashed", "line_width": 1.4}
    plot.segment("x0", "y0", "x1", "y1", source=sources["lines"], **dashes)
    plot.quad("left", "right", "top", "bottom", fill_color="color", line_color=None, source=sources["states"])
    picked = {"marker": "square", "size": 13, "line_width": 2.2, "line_color": PICKED, "fill_color": None}
    plot.scatter("x", "y", source=sources["picked"], **picked)
    _add_tools(plot, image)
    plot.grid.visible = False
    for axis in (plot.xaxis, plot.yaxis):
        axis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0, desired_num_ticks=8)
        axis.formatter = CustomJSTickFormatter(code="return self.contactlm ? self.contactlm.tick(tick) : String(tick)")
    return plot


def _add_tools(plot: Any, image: Any) -> None:
    from bokeh.models import tools

    formatter = tools.CustomJSHover(code="return self.contactlm.tell(format, special_vars.x, special_vars.y)")
    hover = tools.HoverTool(
        renderers=[image], tooltips=HOVER, formatters={"@hover": formatter}, point_policy="follow_mouse"
    )
    zoom, cross = tools.WheelZoomTool(), tools.CrosshairTool(line_alpha=0.35)
    plot.add_tools(
        tools.PanTool(), zoom, tools.BoxZoomTool(match_aspect=True), tools.ResetTool(), tools.SaveTool(), hover, cross
    )
    plot.toolbar.active_scroll = zoom
    plot.toolbar.logo = None


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
    titles = tuple(names(maps)) if len(maps) > 1 else ("",)
    data = page_data(maps) | {"plot": map_figures(titles)}
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
        "distances": [None if each.distance is None else pack_distance(each.distance) for each in maps],
        "truth": None if truth is None else pack_labels(truth),
        "positions": None
        if residues is None
        else _packed(np.ascontiguousarray(residues.cb, "<f4").view(np.uint8).ravel()),
        "numbers": None if residues is None else residues.numbers,
        "chains": None if residues is None else residues.chains,
        "chainNames": first.chain_names,
        "states": None if residues is None else residues.states,
        "pairs": _pairs(maps),
        "notes": notes_of(maps),
    }


def _first_residues(maps: list[MapValues]) -> FileResidues | None:
    return next((each.residues for each in maps if each.residues is not None), None)


def _pairs(maps: list[MapValues]) -> list[list[float]]:
    """The L most probable pairs of the first map: i, j, and their probability in each map."""
    top = top_contacts(maps[0], len(maps[0]), LEAST_SEPARATION)
    return [[i, j, *(round(float(each.probability[i, j]), 4) for each in maps)] for i, j, _ in top]


def _about(contact_map: MapValues) -> str:
    lengths, kind = contact_map.chain_lengths, contact_map.how.get(THRESHOLD_KIND)
    parts = [f"{len(contact_map):,} residues" + (f" in {len(lengths)} chains" if len(lengths) > 1 else "")]
    parts.append(f"threshold {contact_map.threshold:.3f}" + (f" ({kind})" if kind else ""))
    if contact_map.residues is not None:
        parts.append(f"numbered as in {Path(contact_map.residues.file).name}")
    return " · ".join(parts)


def notes_of(maps: list[MapValues]) -> list[str]:
    """What the foot of a page says: how each map was made, and where truth and structure come from."""
    lead = "Model: " if len(maps) == 1 else ""
    notes = [f"{lead}{name}; {made_in_words(each)}" for name, each in zip(names(maps), maps, strict=True)]
    for each in find_interfaces(maps[0]):
        sides = zip(each.chains, each.residues, strict=True)
        called = "; ".join(f"{name} {' '.join(residue_number(maps[0], i) for i in own) or '-'}" for name, own in sides)
        notes.append(
            f"interface {'-'.join(each.chains)}: highest probability {each.highest:.3f}, {each.expected:.1f} contacts "
            f"expected, mean of the ten highest {each.top10:.3f}; residues above the threshold: {called}"
        )
    residues = _first_residues(maps)
    if residues is not None:
        kind = "the protein's own" if residues.is_own else f"a relative's ({residues.identity:.0%} the same residues)"
        notes.append(
            f"Structure: {Path(residues.file).name}, {kind}; helices and strands by its C-alpha trace (P-SEA)."
        )
    if all(each.labels is None for each in maps) and residues is not None:
        notes.append("Truth: the contacts in that structure.")
    return [*notes, "Probabilities of the map are shown to within 0.002; counts are exact at every threshold."]


def made_in_words(contact_map: MapValues) -> str:
    """How a map was made; numbers that only a program reads stay in its ``.npz``."""
    how, facts = contact_map.how, []
    passes = sum((how.get("passes") or {}).values())
    if passes:
        window = f"windows of {how['window']:,} residues" if how.get("window") and passes > 1 else "the whole sequence"
        facts.append(f"{passes:,} passes over {window}" if passes > 1 else "one pass over the whole sequence")
    if how.get("p"):
        facts.append(f"values are {how['p']}")
    if hits := how.get("hits"):
        facts.append(f"{len(hits)} known structures were read: {', '.join(map(str, hits))}")
    if how:
        facts.append("calibrated on the dev set" if "calibration" in how else "not calibrated")
    if CONFIDENCE in how:
        facts.append(f"expected long-range P@L {how[CONFIDENCE]:.2f}")
    if OUTSIDE in how:
        facts.append(f"outside what the dev set had ({how[OUTSIDE]}), so expectations may be far off")
    if "version" in how:
        facts.append(f"contactlm {how['version']}")
    return f"{'; '.join(facts) or 'how it was made is not known'}."
