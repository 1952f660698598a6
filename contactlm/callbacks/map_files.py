"""The files of a predicted map: which there are, and which one protein gets."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from contactlm.atomic import FileNames
from contactlm.maps.contact_map import RR_PAIRS_PER_RESIDUE, WRITERS, ContactMap, write_npz, write_rr
from contactlm.types import ContactLMError, StructureError

log = logging.getLogger(__name__)

FORMATS = tuple(suffix.removeprefix(".") for suffix in WRITERS)
DEFAULT_FORMATS = ("npz", "rr", "png")
ON_STRUCTURES = frozenset(["pml", "cxc", "pdb"])  # cannot be without a structure
NUMBERED = ON_STRUCTURES | {"html", "csv"}  # show a structure's residue numbers where there is one
NAMED = 5  # proteins named in a warning
DRAWN = frozenset(["png", "html"])
DRAWING = threading.Lock()  # the libraries that draw promise nothing to several threads


class MapFiles:
    """Writes the files of maps to a folder, from any thread, where each map's name was given before.

    Args:
        out: The folder.
        formats: What to write of each protein.
        dtype: Of the probabilities in ``.npz`` files.
        pairs_per_residue: Most pairs in an ``.rr`` file, in units of L; None: all that are at all probable.
        structure: A structure file to show maps on that came from none.

    Raises:
        ContactLMError: An unknown format, none, a page without its library, or options that cannot be.
    """

    def __init__(
        self,
        out: Path,
        formats: Sequence[str] = DEFAULT_FORMATS,
        dtype: Literal["float16", "float32"] = "float32",
        pairs_per_residue: float | None = RR_PAIRS_PER_RESIDUE,
        structure: str | Path | None = None,
    ) -> None:
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
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
        """The kinds that a protein lacks of those that it should have.

        Args:
            line: Its line of the summary; ``formats`` tells which were written with it (none: whatever is there).
        """
        name = line["id"]
        written = line["formats"].split() if line.get("formats") else FORMATS
        return [kind for kind in self.kinds(name) if kind not in written or not self.path(name, kind).is_file()]

    def can_complete(self, line: Mapping[str, str]) -> bool:
        """Whether what is missing can be written without predicting: the ``.npz`` is there."""
        return "npz" in line.get("formats", "").split() and self.path(line["id"], "npz").is_file()

    def kinds(self, name: str) -> list[str]:
        """The kinds that a protein should have."""
        has_structure = name in self.origins or self.structure is not None
        return [kind for kind in self.formats if has_structure or kind not in ON_STRUCTURES]

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
        return list(kinds)

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
        for reason in sorted(set(self.without.values())):
            names = sorted(name for name, why in self.without.items() if why == reason)  # in any order they came
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            shown = ", ".join(names[:NAMED]) + more
            log.warning("%s, of %d proteins (%s): %s", what, len(names), shown, reason)
