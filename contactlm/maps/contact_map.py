"""A predicted contact map, and the files it is written to.

Every writer is atomic: it writes a temporary file next to the target and renames it, so that a killed run leaves either
the old file or the new one.
"""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.atomic import atomic_path
from contactlm.maps.complexes import Interface, find_interfaces
from contactlm.maps.pairs import (
    LEAST_SEPARATION,
    RANKED,
    RR_PAIRS_PER_RESIDUE,
    Contact,
    MapValues,
    pair_columns,
    ranked_pairs,
    top_contacts,
    write_pairs,
    write_rr,
)
from contactlm.maps.restraints import RESTRAINTS, write_restraints
from contactlm.metrics.ranked import check_probability
from contactlm.pages.frame import escape
from contactlm.structure.distances import BINS
from contactlm.structure.numbered import FileResidues, find_residues
from contactlm.types import ContactLMError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = ["RANKED", "RR_PAIRS_PER_RESIDUE", "WRITERS", "ContactMap", "write_npz", "write_png", "write_rr"]


@dataclass(eq=False, repr=False)
class ContactMap(MapValues):
    """The contact map of one sequence.

    Attributes:
        id: The sequence's name.
        sequence: L one-letter codes.
        probability: float32 (L, L) in [0, 1], symmetric: that virtual C-betas are less than 8 Å apart, unless ``how``
            says otherwise.
        labels: int8 (L, L), the truth where it is known: 1 contact, 0 none, -1 unknown; or None.
        threshold: The probability above which a pair is called a contact.
        how: How the map was made, in JSON values: window, overlap, passes, model, version; of a complex also
            ``chain_lengths``, the residues of each chain, whose sequences follow one another in ``sequence``.
        residues: The residues' numbers, positions and secondary structure in a structure file, where there is one.
        distance: float32 (L, L), expected distances of virtual C-betas in Å, symmetric, 0 on the diagonal; None where
            the model predicts none.
        distance_bins: float16 (L, L, 21), how probable each bin of that distance is, before any calibration: below 3 Å,
            then of 1 Å each up to 22 Å, and beyond; None unless the model was asked (``distance_bins=True``).

    Raises:
        ValueError: Shapes, values or symmetry are not as above, or ``how`` holds something JSON cannot.
    """

    def __post_init__(self) -> None:
        self.probability = np.ascontiguousarray(self.probability, dtype=np.float32)
        if self.labels is not None:
            self.labels = np.ascontiguousarray(self.labels, dtype=np.int8)
        if self.distance is not None:
            self.distance = np.array(self.distance, dtype=np.float32)
            if self.distance.ndim == 2 and len(self.distance) == self.distance.shape[1]:
                np.fill_diagonal(self.distance, 0)
        if self.distance_bins is not None:
            self.distance_bins = np.asarray(self.distance_bins, dtype=np.float16)
        L = len(self.sequence)
        if self.residues is not None and len(self.residues.numbers) != L:
            raise ValueError(f"{self.id}: {L} residues, but {len(self.residues.numbers)} of {self.residues.file}")
        for name in ("probability", "labels", "distance", "distance_bins"):
            values, expected = getattr(self, name), (L, L, *([BINS] if name == "distance_bins" else []))
            if values is not None and values.shape != expected:
                raise ValueError(
                    f"{self.id}: {name} is {values.shape}, but the sequence has {L} residues: expected {expected}"
                )
        check_probability(torch.from_numpy(self.probability))
        if L and (difference := float(np.abs(self.probability - self.probability.T).max())) > 1e-4:
            raise ValueError(f"{self.id}: the map is not symmetric: mirrored pairs differ by up to {difference:.2g}")
        try:
            json.dumps(self.how)
        except TypeError as error:
            raise ValueError(f"how must hold plain JSON values: {error}") from error

    def __repr__(self) -> str:
        known = "" if self.labels is None else ", with labels"
        return f"ContactMap({self.id!r}, {len(self)} residues{known})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and dtype not in (None, self.probability.dtype):
            raise ValueError(f"{self.id}: probabilities are float32: another dtype takes a copy")
        return self.probability.astype(dtype or self.probability.dtype, copy=bool(copy))

    def top(self, n: int | None = None, min_separation: int = LEAST_SEPARATION) -> list[Contact]:
        """The most probable pairs, the most probable first.

        Args:
            n: How many; None: as many as there are residues.
            min_separation: Least |i - j| within a chain; pairs of different chains are listed whatever it is.

        Examples:
            >>> import numpy as np
            >>> from contactlm import ContactMap
            >>> p = np.zeros((9, 9))
            >>> p[1, 8] = p[8, 1] = 0.5
            >>> ContactMap("mine", "MKVLAGGVL", p).top(1)
            [Contact(i=1, j=8, probability=0.5)]
        """
        return top_contacts(self, len(self) if n is None else n, min_separation)

    def contacts(self, threshold: float | None = None, min_separation: int = LEAST_SEPARATION) -> list[Contact]:
        """The pairs above a threshold, the most probable first; None: the map's own. Otherwise as :meth:`top`."""
        least = self.threshold if threshold is None else threshold
        pairs = top_contacts(self, None, min_separation, least)
        return [pair for pair in pairs if np.float32(pair.probability) > np.float32(least)]

    def interfaces(self, threshold: float | None = None) -> list[Interface]:
        """What the map says of every two chains of a complex; None: residues are in pairs above the map's threshold.

        Examples:
            >>> import numpy as np
            >>> from contactlm import ContactMap
            >>> p = np.zeros((6, 6))
            >>> p[1, 5] = p[5, 1] = 0.75
            >>> found = ContactMap("two", "MKVLAG", p, how={"chain_lengths": [3, 3]}).interfaces()
            >>> found[0].chains, found[0].highest, found[0].residues
            (('A', 'B'), 0.75, ([1], [5]))
        """
        return find_interfaces(self, threshold)

    def to_pandas(self, min_separation: int = LEAST_SEPARATION) -> DataFrame:
        """All pairs as a pandas data frame, with the columns of ``.csv`` files, the most probable pair first.

        Raises:
            ContactLMError: pandas is not installed.
        """
        try:
            from pandas import DataFrame  # a library of the user's own
        except ImportError as error:
            raise ContactLMError(f"to_pandas needs pandas ({error}): pip install pandas") from error

        return DataFrame(pair_columns(self, *ranked_pairs(self, None, min_separation)))

    def on_structure(self, path: str | Path) -> ContactMap:
        """The same map with its residues found in a structure file: of the protein itself, or of a relative.

        Args:
            path: A structure file; the chains of the same sequence are taken, else those that align best.

        Raises:
            StructureError: The file cannot be read, or has no chain that is related to the sequence.
        """
        return replace(
            self, residues=find_residues(path, self.sequence, self.chain_lengths, self.id, self.contact.atom)
        )

    def save(self, path: str | Path, *, beside: ContactMap | None = None, structure: str | Path | None = None) -> Path:
        """Write the map; the suffix chooses the format.

        ``.npz`` (everything, to be read again), ``.rr`` (CASP), ``.png``, ``.html`` (a page for the browser), ``.csv``
        (the pairs as a table), ``.pml`` and ``.cxc`` (scripts that draw the pairs on the structure in PyMOL and
        ChimeraX), ``.pdb`` (the structure, with each residue's predicted number of contacts as B-factor). Folders that
        are missing are made. Restraints for other programs: ``.boltz.yaml``, ``.chai.fasta``, ``.chai.restraints``,
        ``.protenix.json``, ``.unambig.tbl`` and ``.ambig.tbl`` (HADDOCK3), ``.cst`` (Rosetta), ``.pairs.json``
        (Helico); see :mod:`contactlm.maps.restraints`. :func:`write_npz`, :func:`write_rr` and :func:`write_png` have
        options.

        Args:
            path: The file.
            beside: For ``.html``: another model's map of the same sequence, shown next to this one and as a difference.
            structure: A structure file to take residue numbers and positions from, as :meth:`on_structure` does; None:
                those the map has already.

        Returns:
            The path.

        Raises:
            ValueError: Another suffix, or ``beside`` with one that shows one map.
            DataError: ``beside`` is of another sequence, or a structure is needed and not known.
            StructureError: The structure cannot be used.
            MissingExtraError: A page is to be written, and its library is not installed.

        Examples:
            >>> import numpy as np
            >>> from contactlm import ContactMap
            >>> predicted = ContactMap("mine", "MKVLA", np.full((5, 5), 0.25))
            >>> [predicted.save(f"maps/mine{suffix}").name for suffix in (".npz", ".rr", ".png", ".csv")]
            ['mine.npz', 'mine.rr', 'mine.png', 'mine.csv']
            >>> ContactMap.load("maps/mine.npz")
            ContactMap('mine', 5 residues)
        """
        path = Path(path).expanduser()
        for_tool = next((ending for ending in RESTRAINTS if path.name.lower().endswith(ending)), None)
        if for_tool is not None and beside is None:
            write_restraints(self if structure is None else self.on_structure(structure), path, for_tool)
            return path
        writer = WRITERS.get(path.suffix.lower())
        if writer is None:
            known = ", ".join((*WRITERS, *RESTRAINTS))
            raise ValueError(f"{path}: cannot tell the format from the suffix {path.suffix!r}; use one of {known}")
        contact_map = self if structure is None else self.on_structure(structure)
        if beside is not None and path.suffix.lower() != ".html":
            raise ValueError(f"{path}: beside is given, but only pages (.html) show two maps")
        writer(contact_map, path, *([] if beside is None else [beside]))
        return path

    def _repr_png_(self) -> bytes:
        """What notebooks show: the map drawn."""
        from contactlm.maps.picture import png_of

        return png_of(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the map: probability above the diagonal, true contacts (or else the mirrored probability) below.

        Args:
            ax: Where to draw; None makes a figure of its own (``ax.figure``), which pyplot does not know.
        """
        from contactlm.maps.figure import draw_map  # matplotlib is slow to import, and most runs draw nothing

        return draw_map(self, ax)

    @classmethod
    def load(cls, path: str | Path) -> ContactMap:
        """Read what :func:`write_npz` wrote.

        Raises:
            DataError: The file is missing, damaged, or not a contact map.
        """
        try:
            with np.load(Path(path).expanduser(), allow_pickle=False) as data:
                return cls(
                    id=str(data["id"]),
                    sequence=str(data["sequence"]),
                    probability=data["probability"],
                    labels=data.get("labels"),
                    threshold=float(data["threshold"]),
                    how=json.loads(str(data["how"])),
                    residues=_residues(data) if "residues_file" in data else None,
                    distance=data.get("distance"),
                    distance_bins=data.get("distance_bins"),
                )
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: cannot be read as a contact map (.npz) of contactlm: {error}") from error


def _residues(data: Any) -> FileResidues:
    """What the keys ``residues_…`` of an ``.npz`` file hold."""
    return FileResidues(
        file=str(data["residues_file"]),
        chains=[str(name) for name in data["residues_chains"]],
        numbers=[str(number) for number in data["residues_numbers"]],
        cb=np.asarray(data["residues_cb"], dtype=np.float32),
        states=str(data["residues_states"]),
        identity=float(data["residues_identity"]),
    )


def write_npz(contact_map: ContactMap, path: str | Path, dtype: str = "float32") -> None:
    """Write ``probability``, ``sequence``, ``id``, ``threshold``, ``how`` (JSON).

    If any, also ``labels``, ``distance``, ``distance_bins`` and, of a structure file, ``residues_…``.

    Args:
        contact_map: The map.
        path: The file.
        dtype: ``float32`` keeps every bit; ``float16`` takes half the space and rounds by at most 0.00025.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}: a map is saved as 'float16' or 'float32'")
    arrays: dict[str, Any] = {
        "probability": contact_map.probability.astype(dtype),
        "sequence": np.array(contact_map.sequence),
        "id": np.array(contact_map.id),
        "threshold": np.array(contact_map.threshold),
        "how": np.array(json.dumps(contact_map.how)),
    }
    if contact_map.distance is not None:
        arrays["distance"] = contact_map.distance.astype(dtype)
    if contact_map.distance_bins is not None:
        arrays["distance_bins"] = contact_map.distance_bins
    if contact_map.labels is not None:
        arrays["labels"] = contact_map.labels
    if contact_map.residues is not None:
        arrays |= {f"residues_{key}": np.array(value) for key, value in vars(contact_map.residues).items()}
    with atomic_path(Path(path).expanduser()) as temporary, temporary.open("xb") as handle:
        np.savez_compressed(handle, **arrays)


def write_png(contact_map: ContactMap, path: str | Path) -> None:
    """Draw the map as :meth:`ContactMap.plot` does, with at least one pixel per residue up to 1,600 residues."""
    from contactlm.maps.picture import png_of

    with atomic_path(Path(path).expanduser()) as temporary:
        temporary.write_bytes(png_of(contact_map))


def _late(module: str, name: str) -> Callable[..., None]:
    """A writer whose module needs libraries that most runs do not: imported when it is used."""

    def write(contact_map: ContactMap, path: Path, *beside: ContactMap) -> None:
        getattr(import_module(f"contactlm.maps.{module}"), name)(contact_map, path, *beside)

    return write


WRITERS: dict[str, Callable[..., None]] = {
    ".npz": write_npz,
    ".rr": write_rr,
    ".png": write_png,
    ".html": _late("page", "write_page"),
    ".csv": write_pairs,
    ".pml": _late("scripts", "write_pymol"),
    ".cxc": _late("scripts", "write_chimerax"),
    ".pdb": _late("scripts", "write_bfactors"),
}


SIDE = 56  # pixels
MOST_SHOWN = 60  # maps of a list


def thumbnail(contact_map: ContactMap) -> str:
    """The map as a PNG of at most 56 × 56 pixels in a ``data:`` URL, each pixel the highest value of its block."""
    from contactlm.maps.picture import thumbnail_png

    return f"data:image/png;base64,{base64.b64encode(thumbnail_png(contact_map, SIDE)).decode()}"


class ContactMaps(list["ContactMap"]):
    """A list of contact maps that shows itself in a notebook, as thumbnails with names."""

    def _repr_html_(self) -> str:
        """What notebooks show."""
        style = "display:inline-block; margin:6px; width:130px; vertical-align:top; overflow-wrap:anywhere"
        cells = [
            f'<div style="{style}"><img src="{thumbnail(each)}" alt="" style="width:120px; image-rendering:pixelated">'
            f"<br>{escape(each.id)}<br>{len(each)} residues</div>"
            for each in self[:MOST_SHOWN]
        ]
        more = f"<p>and {len(self) - MOST_SHOWN} more</p>" if len(self) > MOST_SHOWN else ""
        return f"<div>{''.join(cells)}{more}</div>"
