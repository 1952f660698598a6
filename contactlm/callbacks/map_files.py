"""The files of predicted maps: what one protein gets, and ``index.html``, a table of all of them."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from contactlm.atomic import FileNames
from contactlm.callbacks.prediction_summary import by_reason
from contactlm.maps.contact_map import RR_PAIRS_PER_RESIDUE, WRITERS, ContactMap, thumbnail, write_npz, write_rr
from contactlm.pages.frame import escape, write_frame
from contactlm.types import ContactLMError, DataError, StructureError

log = logging.getLogger(__name__)

FORMATS = tuple(suffix.removeprefix(".") for suffix in WRITERS)
DEFAULT_FORMATS = ("npz", "rr", "png")
ON_STRUCTURES = frozenset(["pml", "cxc", "pdb"])  # cannot be without a structure
NUMBERED = ON_STRUCTURES | {"html", "csv"}  # show a structure's residue numbers where there is one
DRAWN = frozenset(["png", "html"])
DRAWING = threading.Lock()  # the libraries that draw promise nothing to several threads

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


class MapFiles:
    """Writes the files of maps to a folder, from any thread, where each map's name was given before.

    Arguments and errors are those of :class:`contactlm.callbacks.PredictionWriter`.
    """

    def __init__(
        self,
        out: Path,
        formats: Sequence[str] = DEFAULT_FORMATS,
        dtype: Literal["float16", "float32"] = "float32",
        pairs_per_residue: float | None = RR_PAIRS_PER_RESIDUE,
        structure: str | Path | None = None,
    ) -> None:
        if not formats or not set(formats) <= set(FORMATS):
            raise ContactLMError(f"formats: {list(formats)} given; choose from {', '.join(FORMATS)}")
        if pairs_per_residue is not None and not 0 < pairs_per_residue < math.inf:
            raise ContactLMError(f"pairs_per_residue: {pairs_per_residue} given; it must be positive (null: all pairs)")
        if structure is not None and not Path(structure).expanduser().is_file():
            raise ContactLMError(f"structure: {structure}: there is no such file")
        if "html" in formats:
            from contactlm.pages.library import load_bokeh

            load_bokeh()  # before anything is predicted
        self.out, self.formats = out, tuple(formats)
        self.dtype, self.pairs_per_residue = dtype, pairs_per_residue
        self.structure = None if structure is None else Path(structure).expanduser()
        self.names = FileNames()
        self.origins: Mapping[str, Path] = {}  # structure files of proteins that came from one, by id
        self.without: dict[str, str] = {}  # why a protein has no structure, by id

    def options(self) -> dict[str, Any]:
        """What decides a kind of file."""
        options: dict[str, Any] = {"dtype": self.dtype} if "npz" in self.formats else {}
        return options | ({"pairs_per_residue": str(self.pairs_per_residue)} if "rr" in self.formats else {})

    def path(self, name: str, kind: str) -> Path:
        """Where a protein's file is."""
        return self.out / f"{self.names.of(name)}.{kind}"

    def missing(self, line: Mapping[str, str]) -> list[str]:
        """The kinds that a protein lacks of those that it should have, by its line of the summary.

        Its ``formats`` tell which were written with it (none: whatever is there).
        """
        name = line["id"]
        written = line["formats"].split() if line.get("formats") else FORMATS
        has_structure = name in self.origins or self.structure is not None
        kinds = [kind for kind in self.formats if has_structure or kind not in ON_STRUCTURES]
        return [kind for kind in kinds if kind not in written or not self.path(name, kind).is_file()]

    def can_complete(self, line: Mapping[str, str]) -> bool:
        """Whether what is missing can be written without predicting: the ``.npz`` is there."""
        return "npz" in line.get("formats", "").split() and self.path(line["id"], "npz").is_file()

    def write(self, predicted: ContactMap, kinds: Sequence[str]) -> list[str]:
        """Write some kinds of file; those that were written.

        Raises:
            OSError: One cannot be written.
        """
        if NUMBERED & set(self.formats):  # also the .npz keeps the residues then
            self._find_structure(predicted)
        kinds = [kind for kind in kinds if kind not in ON_STRUCTURES or predicted.residues is not None]
        for kind in kinds:
            with DRAWING if kind in DRAWN else nullcontext():
                self._save(predicted, kind)
        return kinds

    def _save(self, predicted: ContactMap, kind: str) -> None:
        path = self.path(predicted.id, kind)
        if kind == "npz":
            write_npz(predicted, path, self.dtype)
        elif kind == "rr":
            write_rr(predicted, path, pairs_per_residue=self.pairs_per_residue)
        else:
            try:
                predicted.save(path)
            except StructureError as error:  # it fits no PDB file, say
                self.without[predicted.id] = str(error)

    def _find_structure(self, predicted: ContactMap) -> None:
        file = self.origins.get(predicted.id, self.structure)
        if file is None:
            if ON_STRUCTURES & set(self.formats):
                self.without[predicted.id] = "it came from no structure file, and --structure names none"
            return
        try:
            predicted.residues = predicted.on_structure(file).residues
        except StructureError as error:
            self.without[predicted.id] = str(error)

    def tell(self) -> None:
        """Name the proteins that could not be shown on a structure."""
        kinds = {"no": ON_STRUCTURES, "no residue numbers in": NUMBERED - ON_STRUCTURES}
        asked = {missing: [kind for kind in self.formats if kind in group] for missing, group in kinds.items()}
        what = ", and ".join(f"{missing} {', '.join(formats)}" for missing, formats in asked.items() if formats)
        for reason, number, names in by_reason(dict(sorted(self.without.items()))):
            log.warning("%s, of %d proteins (%s): %s", what, number, names, reason)


class PredictionIndex:
    """Collects thumbnails while maps are written, and writes ``index.html``: proteins, linked to their files."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._drawn: dict[str, str] = {}

    def thumbnail_of(self, predicted: ContactMap) -> str:
        """A map's thumbnail, in any thread; none where there are enough."""
        if len(self._drawn) >= MOST_THUMBNAILS:
            return ""
        with DRAWING:
            return thumbnail(predicted)

    def keep(self, name: str, drawn: str) -> None:
        """Keep the thumbnail of a protein."""
        if drawn:
            self._drawn[name] = drawn

    def write(self, lines: Mapping[str, Mapping[str, str]], files: MapFiles) -> None:
        """Write the page of the proteins in the folder's summary, whose lines are given by id."""
        thumbnails: dict[str, str] = {}
        if len(lines) <= MOST_THUMBNAILS:
            known = _earlier(self.out / INDEX) | self._drawn
            thumbnails = {name: known.get(name) or _from_npz(files.path(name, "npz")) for name in lines}
        body = BODY.format(about=escape(f"{len(lines):,} proteins in {self.out.absolute().name}"))
        tables = {"tables": [_table(lines, thumbnails, files)]}
        write_frame(self.out / INDEX, "Predicted contact maps", body, tables, ["tables"], library=False)


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
        there = [path for path in (files.path(name, kind) for kind in FORMATS) if path.is_file()]
        links = {path.suffix[1:]: quote(path.name) for path in there}
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
    value = float(text) if text else math.nan
    return None if math.isnan(value) else value
