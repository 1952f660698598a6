"""A predicted contact map, and the files it is written to: ``.npz``, CASP ``.rr``, ``.png``.

Every writer is atomic: it writes a temporary file beside the target and renames it, so that a killed run leaves either
the old file or the new one.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.atomic import atomic_path
from contactlm.metrics.ranked import check_probability
from contactlm.metrics.scores import score_protein
from contactlm.shipped import __version__
from contactlm.structure.assembly import chain_numbers
from contactlm.types import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANKED = "rank of a pair's score among all pairs of the map, between 0 and 1: no probability"
RR_LINE = 50  # letters of the sequence in a line, at most
RR_KEYWORDS = frozenset({"PFRMAT", "TARGET", "AUTHOR", "REMARK", "METHOD", "MODEL", "END"})
RR_MIN_SEPARATION = 6
RR_MIN_PROBABILITY = 0.01
RR_PAIRS_PER_RESIDUE = 20.0  # CASP scores at most 5 L; all pairs of 4,000 residues may take 171 MB


@dataclass(eq=False, repr=False)
class ContactMap:
    """The contact map of one sequence.

    Attributes:
        id: The sequence's name.
        sequence: L one-letter codes.
        probability: float32 (L, L) in [0, 1], symmetric: that virtual C-betas are less than 8 Å apart.
        labels: int8 (L, L), the truth where it is known: 1 contact, 0 none, -1 unknown; or None.
        threshold: The probability above which a pair is called a contact.
        how: How the map was made, in JSON values: window, overlap, passes, model, version; of a complex also
            ``chain_lengths``, the residues of each chain, whose sequences follow one another in ``sequence``.

    Raises:
        ValueError: Shapes, values or symmetry are not as above, or ``how`` holds something JSON cannot.
    """

    id: str
    sequence: str
    probability: NDArray[np.float32]
    labels: NDArray[np.int8] | None = None
    threshold: float = 0.5
    how: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.probability = np.ascontiguousarray(self.probability, dtype=np.float32)
        shapes = {"probability": self.probability.shape}
        if self.labels is not None:
            self.labels = np.ascontiguousarray(self.labels, dtype=np.int8)
            shapes["labels"] = self.labels.shape
        L = len(self.sequence)
        for name, shape in shapes.items():
            if shape != (L, L):
                raise ValueError(
                    f"{self.id}: {name} is {shape}, but the sequence has {L} residues: expected ({L}, {L})"
                )
        check_probability(torch.from_numpy(self.probability))
        if L and (difference := float(np.abs(self.probability - self.probability.T).max())) > 1e-4:
            raise ValueError(f"{self.id}: the map is not symmetric: mirrored pairs differ by up to {difference:.2g}")
        _as_json(self.how)

    def __len__(self) -> int:
        return len(self.sequence)

    def __repr__(self) -> str:
        known = "" if self.labels is None else ", with labels"
        return f"ContactMap({self.id!r}, {len(self)} residues{known})"

    @property
    def chain_lengths(self) -> list[int]:
        """Residues of each chain: of one, unless the map is that of a complex."""
        return self.how.get("chain_lengths", [len(self)])

    @property
    def is_ranked(self) -> bool:
        """Whether its probabilities are ranks of scores that nothing was calibrated on."""
        return self.how.get("p") == RANKED

    def scores(self) -> dict[str, float]:
        """The map's scores against its labels, at its threshold; see :func:`contactlm.metrics.scores.score_protein`.

        Pairs between chains of a complex count as long-range ones.

        Raises:
            ValueError: The map has no labels.
        """
        if self.labels is None:
            raise ValueError(f"{self.id}: no labels to score the map against")
        maps = torch.from_numpy(self.probability), torch.from_numpy(self.labels)
        return score_protein(*maps, self.threshold, torch.from_numpy(chain_numbers(self.chain_lengths)))

    def save(self, path: str | Path) -> Path:
        """Write the map; the suffix chooses the format, ``.npz``, ``.rr`` or ``.png``.

        Folders that are missing are made. :func:`write_npz`, :func:`write_rr` and :func:`write_png` have options.

        Returns:
            The path.

        Raises:
            ValueError: Another suffix.

        Examples:
            >>> import numpy as np
            >>> from contactlm import ContactMap
            >>> predicted = ContactMap("mine", "MKVLA", np.full((5, 5), 0.25))
            >>> [predicted.save(f"maps/mine{suffix}").name for suffix in (".npz", ".rr", ".png")]
            ['mine.npz', 'mine.rr', 'mine.png']
            >>> ContactMap.load("maps/mine.npz")
            ContactMap('mine', 5 residues)
        """
        path = Path(path).expanduser()
        writer = WRITERS.get(path.suffix.lower())
        if writer is None:
            known = ", ".join(WRITERS)
            raise ValueError(f"{path}: cannot tell the format from the suffix {path.suffix!r}; use one of {known}")
        writer(self, path)
        return path

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
                )
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: cannot be read as a contact map (.npz) of contactlm: {error}") from error


def write_npz(contact_map: ContactMap, path: str | Path, dtype: str = "float32") -> None:
    """Write ``probability``, ``sequence``, ``id``, ``threshold``, ``how`` (JSON) and ``labels`` where there are any.

    Args:
        contact_map: The map.
        path: The file.
        dtype: ``float32`` keeps every bit; ``float16`` takes half the space and rounds by at most 0.00025.

    Raises:
        ValueError: Another dtype.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}: a map is saved as 'float16' or 'float32'")
    arrays: dict[str, Any] = {
        "probability": contact_map.probability.astype(dtype),
        "sequence": np.array(contact_map.sequence),
        "id": np.array(contact_map.id),
        "threshold": np.array(contact_map.threshold),
        "how": np.array(_as_json(contact_map.how)),
    }
    if contact_map.labels is not None:
        arrays["labels"] = contact_map.labels
    with atomic_path(Path(path).expanduser()) as temporary, temporary.open("xb") as handle:
        np.savez_compressed(handle, **arrays)


def write_rr(
    contact_map: ContactMap,
    path: str | Path,
    min_separation: int = RR_MIN_SEPARATION,
    min_probability: float = RR_MIN_PROBABILITY,
    pairs_per_residue: float | None = RR_PAIRS_PER_RESIDUE,
) -> None:
    """Write the residue-residue format of CASP (predictioncenter.org, format RR), most probable pairs first.

    One line ``i j 0 8 p`` per pair, i < j counted from 1, p with five decimals; pairs of equal p by i, then j. By
    default pairs less than 6 residues apart (local, which CASP leaves out) and those less probable than 0.01 are not
    listed, and of the others the 20 L most probable; REMARKs say so. In a complex, residues are counted through all
    chains, and pairs between chains are listed whatever |i - j| is. The AUTHOR record, in CASP a registration code,
    holds the package's name.

    Args:
        contact_map: The map; whitespace in its id becomes ``_``.
        path: The file.
        min_separation: Least |i - j| listed within a chain, at least 1.
        min_probability: Least p listed.
        pairs_per_residue: Most pairs listed, in units of L; None: all.

    Raises:
        ValueError: ``min_separation`` is below 1, or ``pairs_per_residue`` not positive.
    """
    if min_separation < 1:
        raise ValueError(f"min_separation is {min_separation}: a residue has no contact with itself, use 1 or more")
    if pairs_per_residue is not None and not 0 < pairs_per_residue < math.inf:
        raise ValueError(f"pairs_per_residue is {pairs_per_residue}: give a positive number, or None for all pairs")
    i, j, p = _rr_pairs(contact_map, min_separation, min_probability)
    remarks = [f"p is the {RANKED}"] if contact_map.is_ranked else []
    remarks += [f"pairs at least {min_separation} residues apart with p >= {min_probability:g}"]
    if pairs_per_residue is None:
        order = _highest(p, len(p))
        remarks.append(f"all {len(p)} such pairs")
    else:
        most = math.ceil(pairs_per_residue * len(contact_map))
        order = _highest(p, most)
        limit = f"at most {pairs_per_residue:g} L = {most}"
        remarks.append(f"the {len(order)} most probable of {len(p)} such pairs: {limit}")
    with (
        atomic_path(Path(path).expanduser()) as temporary,
        temporary.open("x", encoding="utf-8", newline="\n") as handle,
    ):
        handle.writelines(f"{line}\n" for line in _rr_header(contact_map, remarks))
        for a, b, value in zip(i[order] + 1, j[order] + 1, p[order], strict=True):
            handle.write(f"{a} {b} 0 8 {value:.5f}\n")
        handle.write("END\n")


def _rr_pairs(
    contact_map: ContactMap, min_separation: int, min_probability: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Residues i < j, from 0, and p of all pairs that may be listed, by i, then j."""
    i, j = np.triu_indices(len(contact_map), k=1)
    p, chain = contact_map.probability[i, j], chain_numbers(contact_map.chain_lengths)
    listed = (p >= np.float32(min_probability)) & ((j - i >= min_separation) | (chain[i] != chain[j]))
    return i[listed], j[listed], p[listed]


def _highest(p: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Indices of the ``most`` highest values, the highest first, of equals the first first."""
    indices = np.arange(len(p))
    if most < len(p):  # a map of 4,000 residues has eight million pairs: sorting them all takes seconds
        indices = np.flatnonzero(p >= np.partition(p, -most)[-most])
    return indices[np.argsort(-p[indices], kind="stable")][:most]


def _rr_header(contact_map: ContactMap, remarks: Iterable[str]) -> Iterator[str]:
    yield "PFRMAT RR"
    yield f"TARGET {'_'.join(contact_map.id.split()) or 'unnamed'}"
    yield "AUTHOR contactlm"
    yield from (f"REMARK {remark}" for remark in remarks)
    yield f"METHOD contactlm {__version__}"
    for key, value in contact_map.how.items():
        yield f"METHOD {key}: {json.dumps(value)}"
    yield "MODEL 1"
    yield from _rr_sequence(contact_map.sequence)


def _rr_sequence(sequence: str) -> list[str]:
    """Lines of at most 50 letters, none of which reads like a keyword (Glu-Asn-Asp is a fine last line, but END)."""
    for width in range(RR_LINE, 0, -1):
        lines = [sequence[start : start + width] for start in range(0, len(sequence), width)]
        if RR_KEYWORDS.isdisjoint(lines):
            break
    return lines


def write_png(contact_map: ContactMap, path: str | Path) -> None:
    """Draw the map (see :meth:`ContactMap.plot`), with at least one pixel per residue up to 1,600 residues."""
    from contactlm.maps.figure import make_figure

    figure = make_figure(contact_map)
    with atomic_path(Path(path).expanduser()) as temporary:
        figure.savefig(temporary, format="png")


WRITERS: dict[str, Callable[[ContactMap, Path], None]] = {".npz": write_npz, ".rr": write_rr, ".png": write_png}


def _as_json(how: dict[str, Any]) -> str:
    try:
        return json.dumps(how)
    except TypeError as error:
        raise ValueError(f"how must hold plain JSON values: {error}") from error
