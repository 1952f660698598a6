"""What predictions leave in a folder: files of each map, ``summary.csv``, and ``index.html``, a table of all maps."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.atomic import FileNames, write_csv
from contactlm.callbacks.record import module_facts
from contactlm.maps.complexes import Interface, residue_number
from contactlm.maps.contact_map import RR_PAIRS_PER_RESIDUE, WRITERS, ContactMap, write_npz, write_rr
from contactlm.maps.pairs import OUTSIDE
from contactlm.maps.restraints import TOOLS, RestraintOptions, write_restraints
from contactlm.metrics.calibration_scores import CONFIDENCE
from contactlm.pages.frame import escape, write_frame
from contactlm.types import CHAIN_JUMP, ContactDefinition, ContactLMError, DataError, StructureError, singular

log = logging.getLogger(__name__)

SUMMARY = "summary.csv"
SCORES = ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
INTERFACES = ("inter_chains", "inter_highest", "inter_expected", "inter_top10", "inter_residues")
COLUMNS = (
    *("id", "file", "length", "threshold", "contacts_sep6", "confidence", "hits", "seconds"),
    *(*SCORES, CONFIDENCE, OUTSIDE, *INTERFACES, "formats", "input", "model", "options"),
)
FILE_OPTIONS = frozenset(["dtype", "pairs_per_residue", "restraints"])  # decide no map but files that may be lacking
DIGITS = 16  # hexadecimal, of a checksum
NAMED = 5  # proteins that a message names
FORMATS = (*(suffix.removeprefix(".") for suffix in WRITERS), *TOOLS)
DEFAULT_FORMATS = ("npz", "rr", "png")
ON_STRUCTURES = frozenset(["pml", "cxc", "pdb"])  # cannot be without a structure
NUMBERED = ON_STRUCTURES | {"html", "csv", "haddock"}  # show a structure's residue numbers where there is one
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
SHOWN_SCORES = {
    "mcc_sep6": ("MCC", "Matthews correlation, |i − j| ≥ 6"),
    "p_at_L_long": ("P@L long", "precision of the L most probable long-range pairs"),
    "p_at_L5_long": ("P@L/5 long", "precision of the L/5 most probable long-range pairs"),
}
CONFIDENCE_HINT = "mean probability of the L most probable pairs, |i − j| ≥ 6"


def summary_line(predicted: ContactMap, seconds: float) -> dict[str, Any]:
    """One protein's line; its contacts are the pairs at |i − j| ≥ 6 or of different chains."""
    line: dict[str, Any] = {
        "id": predicted.id,
        "length": len(predicted),
        "threshold": f"{predicted.threshold:.3f}",
        "contacts_sep6": len(predicted.contacts()),
        "confidence": f"{confidence(predicted):.4f}" if len(predicted) else "",
        "hits": " ".join("_".join(str(hit).split()) for hit in predicted.how.get("hits", [])),
        "seconds": f"{seconds:.3f}",
        OUTSIDE: predicted.how.get(OUTSIDE, ""),
    }
    if CONFIDENCE in predicted.how:
        line[CONFIDENCE] = f"{predicted.how[CONFIDENCE]:.4f}"
    found = predicted.interfaces()
    rows = [("-".join(one.chains), *(f"{v:.4f}" for v in one[1:4]), _residues_of(predicted, one)) for one in found]
    line |= {name: " ".join(values) for name, values in zip(INTERFACES, zip(*rows, strict=True), strict=False)}
    if predicted.labels is not None:
        scores = predicted.scores()
        line |= {name: f"{scores[name]:.4f}" for name in SCORES if not (predicted.is_ranked and "mcc" in name)}
    return line


def _residues_of(predicted: ContactMap, interface: Interface) -> str:
    """The residues of an interface in one word, such as ``A:52A,A:99,B:3``."""
    sides = zip(interface.chains, interface.residues, strict=True)
    return ",".join(f"{chain}:{residue_number(predicted, i)}" for chain, own in sides for i in own) or "-"


def confidence(predicted: ContactMap) -> float:
    """The mean probability of the L most probable pairs, at |i − j| ≥ 6 or of different chains; NaN of none."""
    top = [pair.probability for pair in predicted.top()]
    return sum(top) / len(top) if top else float("nan")


def read_summary(path: Path) -> dict[str, dict[str, str]]:
    """Read the complete lines of a summary, by id; a line torn by a killed run is left out."""
    if not path.is_file():
        return {}
    raw = path.read_bytes()
    try:
        text = (raw[: raw.rfind(b"\n") + 1] or raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ContactLMError(f"out: {path} is no summary ({error}); give another folder, or remove the file") from error
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return {row["id"]: row for row in rows if row.get("id") and None not in row.values()}


def write_summary(path: Path, lines: Iterable[dict[str, str]]) -> None:
    """Write a summary anew, at once."""
    write_csv(path, [{name: line.get(name, "") for name in COLUMNS} for line in lines], COLUMNS)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a protein's line to a summary, which is begun where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        if is_new:
            writer.writeheader()
        writer.writerow(line)


@dataclass(frozen=True)
class Maker:
    """What makes all maps of a run: results are kept only where all of it is the same."""

    model: str  # checksum of all weights, those of adapters and heads included
    options: str  # what else decides a map and its files, as `name=value` with spaces between


def find_maker(trainer: L.Trainer, module: L.LightningModule, more: Mapping[str, Any]) -> Maker:
    """Look up what predicts, with further options of files; a collective call where weights are spread out."""
    windows, fitted = getattr(module, "windows", None), getattr(module, "applied_calibration", None)
    contact = getattr(module, "contact", ContactDefinition())
    options = {
        "window": getattr(windows, "window", None),
        "overlap": getattr(windows, "least_overlap", None),
        "threshold": getattr(module, "call_threshold", None),
        "calibration": None if fitted is None else _hash_of(fitted.to_dict()).hexdigest()[:DIGITS],
        "precision": str(trainer.precision),
        "contact": None if contact == ContactDefinition() else str(contact).replace(" ", ""),
        "chain_jump": jump if (jump := getattr(module, "chain_jump", CHAIN_JUMP)) != CHAIN_JUMP else None,
        "structures": module_facts(module, "equal").get("structures", {}).get("checksum"),
        **module_facts(module, "reads"),
        **more,
    }
    words = {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in options.items()
        if value is not None
    }
    return Maker(weights_checksum(module), _as_text(words))


def _hash_of(value: Any) -> Any:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode())


def weights_checksum(module: torch.nn.Module) -> str:
    """A checksum of names, types, shapes and values of all weights and buffers that a state dict holds."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        digest.update(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]


def input_checksum(
    sequence: str, chain_lengths: Sequence[int] | None = None, cb: NDArray[np.float32] | None = None
) -> str:
    """A checksum of what is predicted, and of the C-beta (L, 3) that it is scored against, where these are known."""
    digest = _hash_of([sequence, list(chain_lengths or [len(sequence)])])
    if cb is not None and np.isfinite(cb).any():
        digest.update(np.ascontiguousarray(cb, "<f4").data)
    return digest.hexdigest()[:DIGITS]


def what_differs(line: Mapping[str, str], maker: Maker, made_from: str) -> str | None:
    """Why the result of a line cannot be kept, if it would be made by `maker` from `made_from` now; None: it can."""
    if not all(line.get(name) for name in ("input", "model", "options")):
        return "does not record its input"
    reasons = []
    if line["input"] != made_from:
        reasons.append("another sequence or structure")
    if line["model"] != maker.model:
        reasons.append(f"another model (checksum {line['model']}, now {maker.model})")
    old, new = _as_options(line["options"]), _as_options(maker.options)
    one_sided = FILE_OPTIONS & (old.keys() ^ new.keys())
    names = [name for name in sorted((old.keys() | new.keys()) - one_sided) if old.get(name) != new.get(name)]
    if names:
        changes = (f"{name}={old.get(name, 'none')}, now {new.get(name, 'none')}" for name in names)
        reasons.append(f"other options ({', '.join(changes)})")
    return f"was made from {' and '.join(reasons)}" if reasons else None


def join_options(before: str, now: str) -> str:
    """All options of two results of one map, those of now where both have one."""
    return _as_text(_as_options(before) | _as_options(now))


def _as_text(options: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))


def _as_options(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split())


def by_reason(reasons: Mapping[str, str]) -> Iterator[tuple[str, int, str]]:
    """For each reason of some proteins, given by id: (the reason, how many, the first few of their ids)."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, own in reasons.items() if own == reason]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield reason, len(names), ", ".join(names[:NAMED]) + more


@dataclass(eq=False)
class MapFiles:
    """Writes the files of maps to a folder, from any thread, where each map's name was given before."""

    out: Path
    formats: Sequence[str] = DEFAULT_FORMATS
    dtype: Literal["float16", "float32"] = "float32"
    pairs_per_residue: float | None = RR_PAIRS_PER_RESIDUE
    structure: str | Path | None = None
    restraints: RestraintOptions = field(default_factory=RestraintOptions)
    names: FileNames = field(default_factory=FileNames)
    origins: Mapping[str, Path] = field(default_factory=dict)  # structure files of proteins that came from one, by id
    without: dict[str, str] = field(default_factory=dict)  # why a protein has no structure, by id
    outside: dict[str, str] = field(default_factory=dict)  # in what a protein lies outside what dev had, by id
    failed: dict[str, dict[str, str]] = field(default_factory=dict)  # why a protein has no file, by kind and id

    def __post_init__(self) -> None:
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise ContactLMError(f"formats: {list(self.formats)} given; choose from {', '.join(FORMATS)}")
        most = self.pairs_per_residue
        if most is not None and not 0 < most < math.inf:
            raise ContactLMError(f"pairs_per_residue: {most} given; it must be positive (null: all pairs)")
        if self.structure is not None and not Path(self.structure).expanduser().is_file():
            raise ContactLMError(f"structure: {self.structure}: there is no such file")
        self.structure = self.structure and Path(self.structure).expanduser()
        if "html" in self.formats:
            from contactlm.pages.library import load_bokeh

            load_bokeh()  # before anything is predicted

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"dtype": self.dtype} if "npz" in self.formats else {}
        if TOOLS.keys() & set(self.formats):
            options["restraints"] = "/".join(f"{value:g}" for value in vars(self.restraints).values())
        return options | ({"pairs_per_residue": str(self.pairs_per_residue)} if "rr" in self.formats else {})

    def paths(self, name: str, kind: str) -> list[Path]:
        """The files of a kind: programs may want two."""
        return [self.out / f"{self.names.of(name)}{ending}" for ending in TOOLS.get(kind, (f".{kind}",))]

    def missing(self, line: Mapping[str, str]) -> list[str]:
        """The kinds that a protein lacks of those that it should have, by its line of the summary."""
        name = line["id"]
        written = line["formats"].split() if line.get("formats") else FORMATS
        has_structure = name in self.origins or self.structure is not None
        kinds = [kind for kind in self.formats if has_structure or kind not in ON_STRUCTURES]
        return [kind for kind in kinds if kind not in written or not self.paths(name, kind)[0].is_file()]

    def can_complete(self, line: Mapping[str, str]) -> bool:
        """Whether what is missing can be written without predicting: the ``.npz`` is there."""
        return "npz" in line.get("formats", "").split() and self.paths(line["id"], "npz")[0].is_file()

    def write(self, predicted: ContactMap, kinds: Sequence[str]) -> list[str]:
        """Write some kinds of file; those that were written."""
        if reason := predicted.how.get(OUTSIDE):
            self.outside[predicted.id] = reason
        if NUMBERED & set(self.formats):  # also the .npz keeps the residues then
            self._find_structure(predicted)
        kinds = [kind for kind in kinds if kind not in ON_STRUCTURES or predicted.residues is not None]
        return [kind for kind in kinds if self._save(predicted, kind)]

    def _save(self, predicted: ContactMap, kind: str) -> bool:
        """Write one file; False where this kind cannot hold the map, which does not end the run."""
        paths = self.paths(predicted.id, kind)
        try:
            with DRAWING if kind in DRAWN else nullcontext():
                if kind == "npz":
                    write_npz(predicted, paths[0], self.dtype)
                elif kind == "rr":
                    write_rr(predicted, paths[0], pairs_per_residue=self.pairs_per_residue)
                elif kind in TOOLS:
                    for path, ending in zip(paths, TOOLS[kind], strict=True):
                        write_restraints(predicted, path, ending, self.restraints)
                else:
                    predicted.save(paths[0])
        except (DataError, StructureError) as error:  # it fits no PDB file, say
            self.failed.setdefault(kind, {})[predicted.id] = str(error)
            return False
        return True

    def _find_structure(self, predicted: ContactMap) -> None:
        file = self.origins.get(predicted.id, self.structure)
        if file is None:
            if ON_STRUCTURES & set(self.formats):
                self.without[predicted.id] = "sequence-only input; pass --structure"
            return
        try:
            predicted.residues = predicted.on_structure(file).residues
        except StructureError as error:
            self.without[predicted.id] = str(error)

    def report(self) -> None:
        """Name the proteins that could not be shown on a structure, or written in a format."""
        if self.outside:
            first = next(iter(self.outside))
            effect = "their calibrated probabilities and expected long-range P@L may be far off"
            count, reason = len(self.outside), self.outside[first]
            log.warning("outside the range of the dev set: %d proteins (%s: %s): %s", count, first, reason, effect)
        kinds = {"no": ON_STRUCTURES, "no residue numbers in": NUMBERED - ON_STRUCTURES}
        asked = {missing: [kind for kind in self.formats if kind in group] for missing, group in kinds.items()}
        what = ", and ".join(f"{missing} {', '.join(formats)}" for missing, formats in asked.items() if formats)
        for missing, reasons in [(what, self.without), *((f"no {kind}", own) for kind, own in self.failed.items())]:
            for reason, number, names in by_reason(dict(sorted(reasons.items()))):
                log.warning("%s, of %d proteins (%s): %s", missing, number, names, reason)


def write_index(files: MapFiles, lines: Mapping[str, Mapping[str, str]], thumbnails: Mapping[str, str]) -> None:
    """Write ``index.html``: a table of proteins, whose lines of the summary are given by id, with links to files."""
    body = BODY.format(about=escape(singular(f"{len(lines):,} proteins in {files.out.absolute().name}")))
    tables = {"tables": [_table(lines, thumbnails, files)]}
    write_frame(files.out / INDEX, "Predicted contact maps", body, tables, ["tables"], library=False)


def _table(lines: Mapping[str, Mapping[str, str]], thumbnails: Mapping[str, str], files: MapFiles) -> dict[str, Any]:
    scores = {key: about for key, about in SHOWN_SCORES.items() if any(line.get(key) for line in lines.values())}
    has_hits = any(line.get("hits") for line in lines.values())
    columns: list[dict[str, Any]] = [
        {"title": "", "sort": False},
        {"title": "protein", "text": True, "long": True},
        {"title": "residues"},
        {"title": "contacts", "hint": "pairs above the threshold, |i − j| ≥ 6 or of different chains"},
        {"title": "confidence", "digits": 3, "hint": CONFIDENCE_HINT},
        *({"title": title, "digits": 3, "hint": hint} for title, hint in scores.values()),
        *([{"title": "structures read", "text": True, "long": True}] if has_hits else []),
        {"title": "seconds", "digits": 2},
        {"title": "files", "text": True, "sort": False},
    ]
    rows = []
    for name, line in sorted(lines.items()):
        there = [path for kind in FORMATS for path in files.paths(name, kind) if path.is_file()]
        links = {path.name[len(files.names.of(name)) + 1 :]: quote(path.name) for path in there}
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
