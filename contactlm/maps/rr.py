"""The residue-residue format of CASP."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contactlm.atomic import atomic_path
from contactlm.maps.pairs import highest, listed_pairs
from contactlm.shipped import __version__

if TYPE_CHECKING:
    from contactlm.maps.contact_map import ContactMap

RANKED = "rank of a pair's score among all pairs of the map, between 0 and 1: no probability"
RR_LINE = 50  # letters of the sequence in a line, at most
RR_KEYWORDS = frozenset({"PFRMAT", "TARGET", "AUTHOR", "REMARK", "METHOD", "MODEL", "END"})
RR_MIN_SEPARATION = 6
RR_MIN_PROBABILITY = 0.01
RR_PAIRS_PER_RESIDUE = 20.0  # CASP scores at most 5 L; all pairs of 4,000 residues may take 171 MB


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
    i, j, p = listed_pairs(contact_map, min_separation, min_probability)
    remarks = [f"p is the {RANKED}"] if contact_map.is_ranked else []
    remarks += [f"pairs at least {min_separation} residues apart with p >= {min_probability:g}"]
    if pairs_per_residue is None:
        order = highest(p, len(p))
        remarks.append(f"all {len(p)} such pairs")
    else:
        most = math.ceil(pairs_per_residue * len(contact_map))
        order = highest(p, most)
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
