"""``index.html``: all predicted proteins of a folder as a table with thumbnails, linked to their files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contactlm.callbacks.map_files import DRAWING, FORMATS, MapFiles
from contactlm.maps.contact_map import ContactMap
from contactlm.maps.thumbnail import thumbnail
from contactlm.pages.frame import escape, write_frame
from contactlm.types import DataError

INDEX = "index.html"
MOST_THUMBNAILS = 2000  # about 2 KB each
OPENED = ("html", "png")  # what a protein's name leads to, the first that there is
BODY = """\
<header>
  <div><h1>Predicted contact maps</h1><p class="quiet">{about}</p></div>
  <button id="theme" type="button">Light / dark</button>
</header>
<div class="row"><input type="search" class="grow" data-searches="proteins" placeholder="search"
  aria-label="Search the proteins"><span class="quiet" id="proteins-count"></span></div>
<div class="scroll tall" id="proteins"></div>"""
SCORES = {
    "mcc_sep6": ("MCC", "Matthews correlation, |i − j| ≥ 6"),
    "p_at_L_long": ("P@L long", "precision of the L most probable long-range pairs"),
    "p_at_L5_long": ("P@L/5 long", "precision of the L/5 most probable long-range pairs"),
}
CONFIDENCE = "mean probability of the L most probable pairs, |i − j| ≥ 6"


class PredictionIndex:
    """Collects thumbnails while maps are written, and writes the page.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._drawn: dict[str, str] = {}

    def draw(self, predicted: ContactMap) -> None:
        """Keep a map's thumbnail."""
        self.keep(predicted.id, self.thumbnail_of(predicted))

    def thumbnail_of(self, predicted: ContactMap) -> str:
        """A map's thumbnail, in any thread; none where there are enough."""
        if len(self._drawn) >= MOST_THUMBNAILS:
            return ""
        with DRAWING:
            return thumbnail(predicted)

    def keep(self, name: str, drawn: str) -> None:
        """Keep the thumbnail of a protein."""
        if drawn and len(self._drawn) < MOST_THUMBNAILS:
            self._drawn[name] = drawn

    def write(self, lines: Mapping[str, Mapping[str, str]], files: MapFiles) -> None:
        """Write the page.

        Args:
            lines: The lines of the folder's summary, by id.
            files: Names the files.
        """
        earlier = _earlier(self.out / INDEX)
        thumbnails = {name: self._drawn.get(name) or earlier.get(name) or "" for name in lines}
        shown = lines if len(lines) <= MOST_THUMBNAILS else {}
        for name in [name for name in shown if not thumbnails[name]]:
            thumbnails[name] = _from_npz(files.path(name, "npz"))
        table = _table(lines, thumbnails if shown else {}, files)
        about = f"{len(lines):,} proteins in {self.out.absolute().name}"
        body = BODY.format(about=escape(about))
        write_frame(self.out / INDEX, "Predicted contact maps", body, {"tables": [table]}, ["tables"], library=False)


def _from_npz(path: Path) -> str:
    """The thumbnail of a map that another process wrote; none where the map was not kept."""
    try:
        return thumbnail(ContactMap.load(path)) if path.is_file() else ""
    except DataError:  # it is told of when its map is needed
        return ""


def _earlier(path: Path) -> dict[str, str]:
    """Thumbnails of the page that is there, by id."""
    try:
        found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
        rows = json.loads(found[1])["tables"][0]["rows"] if found else []
        return {row[1]["value"]: row[0]["image"] for row in rows if isinstance(row[0], dict)}
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # missing, or of another version
        return {}


def _table(lines: Mapping[str, Mapping[str, str]], thumbnails: Mapping[str, str], files: MapFiles) -> dict[str, Any]:
    scores = {key: about for key, about in SCORES.items() if any(line.get(key) for line in lines.values())}
    has_hits = any(line.get("hits") for line in lines.values())
    columns: list[dict[str, Any]] = [
        {"title": "", "sort": False},
        {"title": "protein", "text": True, "long": True},
        {"title": "residues"},
        {"title": "contacts", "hint": "pairs above the threshold, |i − j| ≥ 6 or of different chains"},
        {"title": "confidence", "digits": 3, "hint": CONFIDENCE},
        *({"title": title, "digits": 3, "hint": hint} for title, hint in scores.values()),
        *([{"title": "structures read", "text": True, "long": True}] if has_hits else []),
        {"title": "seconds", "digits": 2},
        {"title": "files", "text": True, "sort": False},
    ]
    rows = []
    for name, line in sorted(lines.items()):
        there = [kind for kind in FORMATS if files.path(name, kind).is_file()]
        links = {kind: quote(files.path(name, kind).name) for kind in there}
        opened = next((links[kind] for kind in OPENED if kind in links), None)
        numbers = [_number(line.get(key)) for key in ("length", "contacts_sep6", "confidence", *scores)]
        rows.append(
            [
                {"value": name, "image": thumbnails[name], "alt": f"map of {name}"} if thumbnails.get(name) else "",
                {"value": name, **({"href": opened} if opened else {})},
                *numbers,
                *([line.get("hits", "").replace(" ", ", ")] if has_hits else []),
                _number(line.get("seconds")),
                {"value": " ".join(links), "links": [{"text": kind, "href": href} for kind, href in links.items()]},
            ]
        )
    return {"place": "proteins", "caption": "Predicted proteins", "columns": columns, "rows": rows}


def _number(text: str | None) -> float | None:
    """A number of the summary; None where it is empty or not defined."""
    value = float(text) if text else float("nan")
    return None if value != value else value
