"""A map as a page: zoomed, hovered over, cut at any threshold, beside another model's; written as one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contactlm.maps.packed import STEPS, pack_labels, pack_positions, pack_probability
from contactlm.maps.page_figure import map_figures
from contactlm.maps.pairs import LEAST_SEPARATION, top_contacts, truth_of
from contactlm.metrics.ranked import BAND_STARTS
from contactlm.pages.frame import escape, write_frame
from contactlm.pages.library import load_bokeh, plot_item
from contactlm.types import DataError

if TYPE_CHECKING:
    from contactlm.maps.contact_map import ContactMap

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


def write_page(contact_map: ContactMap, path: str | Path, beside: ContactMap | None = None) -> None:
    """Write the page.

    Args:
        contact_map: The map.
        path: The file.
        beside: Another model's map of the same sequence.

    Raises:
        DataError: ``beside`` is of another sequence.
        MissingExtraError: Bokeh is not installed.
    """
    load_bokeh()
    if beside is not None and (beside.sequence, beside.chain_lengths) != (
        contact_map.sequence,
        contact_map.chain_lengths,
    ):
        raise DataError(
            f"beside: {beside.id} is another sequence ({len(beside)} residues) than {contact_map.id} "
            f"({len(contact_map)}): give two maps of one protein"
        )
    maps = [contact_map] if beside is None else [contact_map, beside]
    body = BODY.format(
        title=escape(contact_map.id),
        about=escape(_about(contact_map)),
        kind="one" if beside is None else "two",
        steps=STEPS - 1,
        top=len(_pairs(maps)),
    )
    data = page_data(maps) | {"plot": plot_item(map_figures(contact_map, names(maps)))}
    write_frame(path, f"{contact_map.id} – contact map", body, data, ["map"], library=True)


def _what(contact_map: ContactMap) -> tuple[str, list[int]]:
    return contact_map.sequence, list(contact_map.chain_lengths)


def names(maps: list[ContactMap]) -> list[str]:
    """What the models are called in the page: by what made them, with letters where that is the same."""
    called = [str(each.how.get("name") or each.how.get("model") or "model") for each in maps]
    short = [name if len(name) <= 40 else f"…{name[-39:]}" for name in called]
    if len(maps) == 1:
        return short
    return [f"{letter}: {name}" for letter, name in zip("AB", short, strict=True)]


def page_data(maps: list[ContactMap]) -> dict[str, Any]:
    """What the page's script reads; maps are packed as :mod:`contactlm.maps.packed` says."""
    first = maps[0]
    truth = next((found for each in maps if (found := truth_of(each)) is not None), None)
    residues = next((each.residues for each in maps if each.residues is not None), None)
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
        "positions": None if residues is None else pack_positions(residues.cb),
        "numbers": None if residues is None else residues.numbers,
        "chains": None if residues is None else residues.chains,
        "pairs": _pairs(maps),
        "notes": _notes(maps),
    }


def _pairs(maps: list[ContactMap]) -> list[list[float]]:
    """The L most probable pairs of the first map: i, j, and their probability in each map."""
    top = top_contacts(maps[0], len(maps[0]), LEAST_SEPARATION)
    return [[i, j, *(round(float(each.probability[i, j]), 4) for each in maps)] for i, j, _ in top]


def _about(contact_map: ContactMap) -> str:
    lengths = contact_map.chain_lengths
    parts = [f"{len(contact_map):,} residues" + (f" in {len(lengths)} chains" if len(lengths) > 1 else "")]
    parts.append(f"threshold {contact_map.threshold:.3g}")
    if contact_map.residues is not None:
        parts.append(f"numbered as in {Path(contact_map.residues.file).name}")
    return " · ".join(parts)


def _notes(maps: list[ContactMap]) -> list[str]:
    notes = []
    for name, each in zip(names(maps), maps, strict=True):
        how = {key: value for key, value in each.how.items() if key != "chain_lengths"}
        told = ", ".join(f"{key.replace('_', ' ')} {_word(value)}" for key, value in how.items() if value)
        notes.append(f"{name}: {told or 'not said how'}")
    residues = next((each.residues for each in maps if each.residues is not None), None)
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
