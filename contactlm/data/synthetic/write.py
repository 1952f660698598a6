"""Write a reproducible set of small synthetic proteins as PDB files: training data for a machine without network."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from Bio.Data.IUPACData import protein_letters_1to3
from tqdm.auto import tqdm

from contactlm.atomic import atomic_file
from contactlm.data.synthetic.fold import MIN_LENGTH, SyntheticProtein, synthetic_protein, with_cb
from contactlm.structure.files import is_structure_name
from contactlm.types import DataError

MANIFEST = "synthetic.json"
GENERATOR_VERSION = 1  # raise it whenever the same options give other proteins
MAX_PROTEINS = 20_000  # of a split: entry codes have three digits of base 36 for both

SPLITS = ("train", "test")
_THREE = {one: three.upper() for one, three in protein_letters_1to3.items()}

log = logging.getLogger(__name__)


@dataclass
class SyntheticOptions:
    """Which synthetic proteins to write, and where.

    Attributes:
        folder: Where the files go: ``train/`` and ``test/`` below it.
        n_train: Proteins to train on.
        n_test: Proteins to test on.
        min_length: Residues of the shortest protein, at least 30.
        max_length: Residues of the longest one.
        seed: Another seed, other proteins.
        kind: ``"hairpins"``, whose contacts are of short and medium range; there is no other kind.
    """

    folder: str
    n_train: int = 400
    n_test: int = 40
    min_length: int = 60
    max_length: int = 120
    seed: int = 0
    kind: str = "hairpins"

    def __post_init__(self) -> None:
        if self.kind != "hairpins":
            raise DataError(
                f"synthetic: kind is {self.kind!r}; the package makes hairpins alone. tests/benchmarks/bundles.py of a "
                "checkout writes bundles; give their folders as train_dir and test_dir"
            )
        if not MIN_LENGTH <= self.min_length <= self.max_length:
            raise DataError(
                f"synthetic: min_length is {self.min_length} and max_length {self.max_length}; "
                f"give {MIN_LENGTH} <= min_length <= max_length"
            )
        for name in ("n_train", "n_test"):
            if not 1 <= getattr(self, name) <= MAX_PROTEINS:
                raise DataError(f"synthetic: {name} is {getattr(self, name)}; give 1 to {MAX_PROTEINS}")
        if self.seed < 0:
            raise DataError(f"synthetic: seed is {self.seed}; give 0 or more")


def write_synthetic(options: SyntheticOptions) -> tuple[Path, Path]:
    """Write the proteins, or find them already written; the folders of the training and of the test files.

    Files that are there are kept, and missing ones (a killed run) are written; the manifest ``synthetic.json`` comes
    last. A DataError where the folder holds proteins of other options, or other structure files.
    """
    folder = Path(options.folder).expanduser()
    counts = dict(zip(SPLITS, (options.n_train, options.n_test), strict=True))
    expected = {folder / s / f"{s}{i:05d}.pdb": (s, i) for s, count in counts.items() for i in range(count)}
    _check_folder(options, folder, set(expected))
    missing = [path for path in expected if not path.exists()]
    if missing:
        log.info("writing %d synthetic proteins to %s", len(missing), folder)
    for path in tqdm(missing, "Writing proteins", unit="file", leave=False, dynamic_ncols=True, disable=None):
        protein = nth_protein(options, *expected[path])
        text = pdb_text(protein, *expected[path], options.seed, f"OPTIONS {_fingerprint(options)}")
        with atomic_file(path) as handle:
            handle.write(text.encode("ascii"))
    if missing or not (folder / MANIFEST).exists():
        with atomic_file(folder / MANIFEST) as handle:
            handle.write(json.dumps(_recipe(options), indent=1).encode("ascii"))
    return folder / "train", folder / "test"


def nth_protein(options: SyntheticOptions, split: str, index: int) -> SyntheticProtein:
    """Draw one protein of a set: a pure function of seed, split, index and the bounds of the length."""
    rng = rng_of(options.seed, split, index)
    return synthetic_protein(rng, int(rng.integers(options.min_length, options.max_length + 1)))


def rng_of(seed: int, split: str, index: int) -> np.random.Generator:
    """Where all chance of one protein of a set comes from."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, SPLITS.index(split), index))))


def _recipe(options: SyntheticOptions) -> dict[str, object]:
    """Everything that decides what is written."""
    recipe = asdict(options) | {"generator": GENERATOR_VERSION}
    return {name: value for name, value in recipe.items() if name != "folder"}


def _fingerprint(options: SyntheticOptions) -> str:
    return hashlib.sha256(json.dumps(_recipe(options), sort_keys=True).encode()).hexdigest()[:16].upper()


def _check_folder(options: SyntheticOptions, folder: Path, expected: set[Path]) -> None:
    """Refuse to mix these proteins with anything else."""
    remedy = "give synthetic.folder another folder, or delete this one"
    manifest = folder / MANIFEST
    is_whole = manifest.exists()
    if is_whole and manifest.read_text("utf-8", "replace") != json.dumps(_recipe(options), indent=1):
        raise DataError(f"synthetic: {folder} holds proteins of other options (see {MANIFEST} there); {remedy}")
    for path in sorted(path for split in SPLITS for path in (folder / split).rglob("*")):
        if not is_structure_name(path) or path.name.startswith("."):
            continue
        if path not in expected:
            raise DataError(f"synthetic: {path} is not one of the files to write there; {remedy}")
        if not is_whole and _fingerprint(options) not in path.read_text("utf-8", "replace"):
            raise DataError(f"synthetic: {path} was written with other options; {remedy}")


def pdb_text(protein: SyntheticProtein, split: str, index: int, seed: int, made_by: str) -> str:
    """One protein as a PDB file (format 3.3); N, CA, C, O and, but for glycine, CB of every residue of chain A."""
    names = [_THREE[letter] for letter in protein.sequence]
    code = "0" + np.base_repr(index * len(SPLITS) + SPLITS.index(split), 36).rjust(3, "0")
    lines = [
        f"HEADER    {'SYNTHETIC PROTEIN':<40}{'01-JAN-70':<9}   {code}",
        f"TITLE     SYNTHETIC PROTEIN {index} OF THE {split.upper()} SET, SEED {seed}",
        "EXPDTA    THEORETICAL MODEL",
        "REMARK   6",
        "REMARK   6 THIS STRUCTURE IS SYNTHETIC: A PROGRAM MADE UP SEQUENCE AND",
        "REMARK   6 COORDINATES. NO SUCH PROTEIN IS KNOWN AND NOTHING WAS MEASURED.",
        f"REMARK   6 MADE BY CONTACTLM, {made_by}.",
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
