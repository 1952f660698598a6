"""Finding input files: in folders, or named in a text file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from contactlm.structure.files import KNOWN as STRUCTURE_NAMES
from contactlm.structure.files import MARKS, NOT_READ, is_structure_name, model_key
from contactlm.types import DataError

STRUCTURES = "a folder of structure files or a text file of their paths"
FASTA_SUFFIXES = (".fasta", ".fa", ".faa", ".fas", ".fsa")
KNOWN = f"FASTA ({' '.join(FASTA_SUFFIXES)}, each also .gz) or structure files ({STRUCTURE_NAMES})"
PREDICTABLE = f"{KNOWN}, or folders of them"
NAMED = 5  # so many entries that are left out are named; beyond, the rest is counted


def existing_path(source: str | Path, option: str, wanted: str) -> Path:
    """A path that is there."""
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{option}: {path} does not exist; give {wanted}")
    return path


class FoundFiles(list[Path]):
    """Files; ``passed_over`` names what looks like input and is none, by its path, with the reason."""

    def __init__(self, paths: Iterable[Path], passed_over: Mapping[str, str]) -> None:
        super().__init__(paths)
        self.passed_over = dict(passed_over)

    def remark(self) -> str:
        """What was skipped, in one line; empty when nothing was."""
        named = [f"{path} ({reason})" for path, reason in list(self.passed_over.items())[:NAMED]]
        more = len(self.passed_over) - len(named)
        many = "entries" if len(self.passed_over) > 1 else "entry"
        listed = ", ".join(named) + (f" and {more} more" if more else "")
        return f"{len(self.passed_over)} {many} skipped: {listed}" if named else ""


def is_fasta_file(path: Path) -> bool:
    """Whether the name ends like a FASTA file's: ``.fasta .fa .faa .fas .fsa``, each also ``.gz``."""
    return path.name.lower().removesuffix(".gz").endswith(FASTA_SUFFIXES)


def find_structures(source: str | Path, option: str = "train_dir") -> FoundFiles:
    """List the structure files of a folder (searched recursively), of a text file of paths, or a single file.

    A text file holds one path a line, relative to its folder; empty lines and those that start with ``#`` are left out.
    """
    path = existing_path(source, option, STRUCTURES)
    if path.is_dir():
        found = search_folder(path, is_structure_name)
    else:
        found = FoundFiles([path] if is_structure_name(path) else _read_list(path, option), {})
    if not found:
        others = f"; {found.remark()}" if found.passed_over else ""
        raise DataError(f"{option}: {path} holds no structure file ({STRUCTURE_NAMES}){others}")
    return found


def find_predictable(source: str) -> FoundFiles:
    """List the FASTA and structure files of a folder (searched recursively), or a single file."""
    path = existing_path(source, "predict_paths", PREDICTABLE)
    if path.is_dir():
        found = search_folder(path, _is_predictable)
        if not found:
            others = f"; {found.remark()}" if found.passed_over else ""
            raise DataError(f"predict_paths: {path} holds no {KNOWN}{others}")
        return found
    if not _is_predictable(path):
        raise DataError(f"predict_paths: {path} is of no known kind; give {KNOWN}")
    return FoundFiles([path], {})


def _is_predictable(path: Path) -> bool:
    return is_fasta_file(path) or is_structure_name(path)


def search_folder(folder: Path, is_wanted: Callable[[Path], bool]) -> FoundFiles:
    """Find the files of a folder and of all folders in it, links to folders included, each folder once; sorted by path.

    Hidden files are skipped (macOS leaves ``._x.pdb`` next to ``x.pdb``), as are dangling links, what is no
    regular file, structure files of formats that are not read, further files of one model, and folders that cannot be
    searched or were searched before. A folder is none, whatever its name.
    """
    found: list[Path] = []
    passed_over: dict[str, str] = {}
    searched: set[tuple[int, int]] = set()
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        searching = folders.popleft() if folders else links.popleft()  # what is no link comes first
        try:
            stat = searching.stat()
            if (stat.st_dev, stat.st_ino) in searched:
                passed_over[_below(folder, searching)] = "a link to a folder that is searched already"
                continue
            searched.add((stat.st_dev, stat.st_ino))
            with os.scandir(searching) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            passed_over[_below(folder, searching)] = f"cannot be searched: {error.strerror or error}"
            continue
        for entry in entries:
            path = searching / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and path.is_dir():
                links.append(path)
            elif is_wanted(path) or (entry.is_symlink() and not entry.name.startswith(".") and not path.exists()):
                if (reason := _fault(path)) is None:
                    found.append(path)
                else:
                    passed_over[_below(folder, path)] = reason
            elif entry.name.lower().removesuffix(".gz").endswith(NOT_READ):
                passed_over[_below(folder, path)] = "of a format that is not read; convert it to mmCIF"
    return FoundFiles(_each_model_once(folder, sorted(found), passed_over), passed_over)


def _each_model_once(folder: Path, found: list[Path], passed_over: dict[str, str]) -> list[Path]:
    """Of structure files of one name in one folder (``x.cif`` and ``x.pdb``) the first by format."""
    best: dict[tuple[Path, str], Path] = {}
    for path in (path for path in found if is_structure_name(path)):
        stem, rank = model_key(path)
        other = best.get((path.parent, stem))
        if other is None or rank < model_key(other)[1]:
            best[path.parent, stem] = path
    kept = []
    for path in found:
        chosen = best[path.parent, model_key(path)[0]] if is_structure_name(path) else path
        if chosen == path:
            kept.append(path)
        else:
            passed_over[_below(folder, path)] = f"the same model as {chosen.name}"
    return kept


def _fault(path: Path) -> str | None:
    """Why an entry is no input, or None."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_file():
        return None
    return "no regular file" if path.exists() else "a dangling link"


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def read_lines(path: Path, name: str) -> list[str]:
    """The lines of a text file in UTF-8, without a byte order mark."""
    content = path.read_bytes()
    if content.startswith(MARKS):
        raise DataError(f"{name} is text in UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{name} cannot be read as text ({error})") from error


def _read_list(path: Path, option: str) -> list[Path]:
    lines = read_lines(path, f"{option}: {path}")
    names = [line.strip() for line in lines]
    return [path.parent / Path(name).expanduser() for name in names if name and not name.startswith("#")]
