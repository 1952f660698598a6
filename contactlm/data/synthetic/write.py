"""Write a reproducible set of small synthetic proteins as PDB files: training data for a machine without network."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from Bio.Data.IUPACData import protein_letters_1to3

from contactlm.atomic import atomic_file
from contactlm.data.files import is_structure_file
from contactlm.data.synthetic import bundle, fold
from contactlm.data.synthetic.bundle import STYLES, bundle_protein
from contactlm.data.synthetic.fold import SyntheticProtein, synthetic_protein
from contactlm.data.synthetic.geometry import with_cb
from contactlm.types import DataError

MANIFEST = "synthetic.json"
GENERATOR_VERSION = 1  # raise it whenever the same options give other proteins
MAX_PROTEINS = 20_000  # of a split: entry codes have three digits of base 36 for both

_MIN_LENGTH = {"hairpins": fold.MIN_LENGTH, **dict.fromkeys(STYLES, bundle.MIN_LENGTH)}
_SPLITS = ("train", "test")
_THREE = {one: three.upper() for one, three in protein_letters_1to3.items()}

log = logging.getLogger(__name__)


@dataclass
class SyntheticOptions:
    """Which synthetic proteins to write, and where.

    Attributes:
        folder: Where the files go: ``train/`` and ``test/`` below it.
        n_train: Proteins to train on.
        n_test: Proteins to test on.
        min_length: Residues of the shortest protein, at least 30; a bundle's at least 150.
        max_length: Residues of the longest one. Bundles meet their length within about a tenth.
        seed: Another seed, other proteins.
        kind: ``"hairpins"`` have contacts of short and medium range. ``"bundle"`` makes long proteins (300 to 1,200
            residues, say) with contacts at every range; drawing one takes a second or two. ``"loose_bundle"``: the
            same with another alphabet, another order of letters and longer loops, to see whether a result holds.
    """

    folder: str
    n_train: int = 400
    n_test: int = 40
    min_length: int = 60
    max_length: int = 120
    seed: int = 0
    kind: Literal["hairpins", "bundle", "loose_bundle"] = "hairpins"

    def __post_init__(self) -> None:
        if self.kind not in _MIN_LENGTH:
            raise DataError(f"synthetic: kind is {self.kind!r}; give one of {', '.join(_MIN_LENGTH)}")
        shortest = _MIN_LENGTH[self.kind]
        if not shortest <= self.min_length <= self.max_length:
            raise DataError(
                f"synthetic: min_length is {self.min_length} and max_length {self.max_length}; "
                f"kind {self.kind!r} needs {shortest} <= min_length <= max_length"
            )
        for name in ("n_train", "n_test"):
            if not 1 <= getattr(self, name) <= MAX_PROTEINS:
                raise DataError(f"synthetic: {name} is {getattr(self, name)}; give 1 to {MAX_PROTEINS}")
        if self.seed < 0:
            raise DataError(f"synthetic: seed is {self.seed}; give 0 or more")


def write_synthetic(options: SyntheticOptions) -> tuple[Path, Path]:
    """Write the proteins, or find them already written.

    A set that is already there is kept, and one that is not complete (a killed run) is completed: a protein is a pure
    function of the options and its index. Every file, and at the end the manifest ``synthetic.json``, is written
    beside it and renamed.

    Args:
        options: What to write.

    Returns:
        The folders of the training and of the test files.

    Raises:
        DataError: The folder holds proteins of other options, or other structure files, or cannot be written.
    """
    folder = Path(options.folder).expanduser()
    expected = dict(_expected_files(options, folder))
    try:
        _check_folder(options, folder, set(expected))
        missing = [path for path in expected if not path.exists()]
        if missing:
            log.info("writing %d synthetic proteins to %s", len(missing), folder)
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as handle:
                handle.write(_pdb_text(options, *expected[path]).encode("ascii"))
        if missing or not (folder / MANIFEST).exists():
            with atomic_file(folder / MANIFEST) as handle:
                handle.write(json.dumps(_recipe(options), indent=1).encode("ascii"))
    except OSError as error:
        raise DataError(f"synthetic: {folder} cannot be written ({error}); give a folder that can") from error
    return folder / "train", folder / "test"


def nth_protein(options: SyntheticOptions, split: str, index: int) -> SyntheticProtein:
    """Draw one protein of a set: a pure function of kind, seed, split, index and the bounds of the length."""
    seed = np.random.SeedSequence((options.seed, _SPLITS.index(split), index))
    rng = np.random.Generator(np.random.Philox(seed))
    length = int(rng.integers(options.min_length, options.max_length + 1))
    style = STYLES.get(options.kind)
    return synthetic_protein(rng, length) if style is None else bundle_protein(rng, length, style)


def _expected_files(options: SyntheticOptions, folder: Path) -> Iterator[tuple[Path, tuple[str, int]]]:
    for split, count in zip(_SPLITS, (options.n_train, options.n_test), strict=True):
        for index in range(count):
            yield folder / split / f"{split}{index:05d}.pdb", (split, index)


def _recipe(options: SyntheticOptions) -> dict[str, object]:
    """Everything that decides what is written."""
    recipe = asdict(options) | {"generator": GENERATOR_VERSION}
    del recipe["folder"]
    return recipe


def _fingerprint(options: SyntheticOptions) -> str:
    return hashlib.sha256(json.dumps(_recipe(options), sort_keys=True).encode()).hexdigest()[:16].upper()


def _check_folder(options: SyntheticOptions, folder: Path, expected: set[Path]) -> None:
    """Refuse to mix these proteins with anything else."""
    remedy = "give synthetic.folder another folder, or delete this one"
    manifest = folder / MANIFEST
    if manifest.exists():
        found = manifest.read_text(encoding="utf-8", errors="replace")
        if found != json.dumps(_recipe(options), indent=1):
            raise DataError(
                f"synthetic: {folder} holds proteins of other options ({' '.join(found.split())}); {remedy}"
            )
    for split in _SPLITS:
        for path in sorted((folder / split).rglob("*")):
            if not is_structure_file(path) or path.name.startswith("."):
                continue
            if path not in expected:
                raise DataError(f"synthetic: {path} is not one of the files to write there; {remedy}")
            if not manifest.exists() and _fingerprint(options) not in path.read_text(
                encoding="utf-8", errors="replace"
            ):
                raise DataError(f"synthetic: {path} was written with other options; {remedy}")


# -- the PDB file ----------------------------------------------------------------------------------------------------


def _pdb_text(options: SyntheticOptions, split: str, index: int) -> str:
    """One protein as a PDB file (format 3.3); N, CA, C, O and, but for glycine, CB of every residue of chain A."""
    protein = nth_protein(options, split, index)
    names = [_THREE[letter] for letter in protein.sequence]
    code = "0" + np.base_repr(index * len(_SPLITS) + _SPLITS.index(split), 36).rjust(3, "0")
    lines = [
        f"HEADER    {'SYNTHETIC PROTEIN':<40}{'01-JAN-70':<9}   {code}",
        f"TITLE     SYNTHETIC PROTEIN {index} OF THE {split.upper()} SET, SEED {options.seed}",
        "EXPDTA    THEORETICAL MODEL",
        "REMARK   6",
        "REMARK   6 THIS STRUCTURE IS SYNTHETIC: A PROGRAM MADE UP SEQUENCE AND",
        "REMARK   6 COORDINATES. NO SUCH PROTEIN IS KNOWN AND NOTHING WAS MEASURED.",
        f"REMARK   6 MADE BY CONTACTLM, OPTIONS {_fingerprint(options)}.",
    ]
    for row, first in enumerate(range(0, len(names), 13), start=1):
        lines.append(f"SEQRES {row:3d} A {len(names):4d}  {' '.join(names[first : first + 13])}")
    lines += _atom_lines(protein, names)
    return "\n".join(f"{line:<80}" for line in [*lines, "END"]) + "\n"


def _atom_lines(protein: SyntheticProtein, names: list[str]) -> Iterator[str]:
    coords = with_cb(protein.coords - protein.coords.mean(axis=(0, 1)))
    serial = 0
    for number, (name, atoms) in enumerate(zip(names, coords, strict=True), start=1):
        for atom, (x, y, z) in zip(("N", "CA", "C", "O", "CB"), atoms, strict=True):
            if (name, atom) == ("GLY", "CB"):
                continue
            serial += 1
            yield (
                f"ATOM  {serial:5d}  {atom:<3} {name} A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
                f"{1.0:6.2f}{0.0:6.2f}          {atom[0]:>2}"
            )
    yield f"TER   {serial + 1:5d}      {names[-1]} A{len(names):4d}"
