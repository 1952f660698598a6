"""Structure files to protein chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contactlm.structure.align import place
from contactlm.structure.bonds import bonded
from contactlm.structure.contacts import virtual_cbeta
from contactlm.structure.files import read_text, split_name
from contactlm.structure.pdb import read_pdb
from contactlm.structure.polymer import polymer
from contactlm.structure.residues import CAPS, RawChain, letter
from contactlm.types import Chain, StructureError

SEQUENCES = ("seqres", "observed")


def read_chains(path: str | Path, sequence: str = "seqres") -> list[Chain]:
    """Read the protein chains of a structure file."""
    if sequence not in SEQUENCES:
        raise ValueError(f"sequence={sequence!r} is not one of {', '.join(SEQUENCES)}")
    stem, kind, _ = split_name(path)
    text = read_text(path)
    if kind == "pdb":
        raw = read_pdb(path, text)
    else:
        from contactlm.structure.mmcif import read_mmcif

        raw = read_mmcif(path, text)
    chains = []
    for chain_id, raw_chain in raw.chains.items():
        chain = _chain(f"{stem}_{chain_id}", raw_chain, raw.parents, sequence == "seqres")
        if chain is not None:
            chains.append(chain)
    if not chains:
        raise StructureError(path, "no protein chain")
    return chains


def _chain(name: str, raw: RawChain, parents: dict[str, str], use_full: bool) -> Chain | None:
    residues, xyz = polymer(raw)
    resolved = ~np.isnan(xyz[:, 1]).any(axis=1)
    if not resolved.any():
        return None
    observed = "".join(r.letter for r in residues)
    cb = virtual_cbeta(xyz[:, 0], xyz[:, 1], xyz[:, 2])
    ca = xyz[:, 1].astype(np.float32)
    if not use_full:
        seq = "".join(a for a, ok in zip(observed, resolved) if ok)
        return Chain(name, seq, ca[resolved], cb[resolved], resolved[resolved])
    full = "".join(letter(n, parents.get(n, "")) for n in raw.full if n not in CAPS)
    if full:
        numbers = np.array([r.number for r in residues])
        at = place(observed, numbers, bonded(xyz), full)
        if at is not None:
            L = len(full)
            ca_, cb_ = np.full((L, 3), np.nan, "f"), np.full((L, 3), np.nan, "f")
            ok = np.zeros(L, bool)
            ca_[at], cb_[at], ok[at] = ca, cb, resolved
            return Chain(name, full, ca_, cb_, ok)
    return Chain(name, observed, ca, cb, resolved)
