"""Finding structure files: in folders, or named in a text file."""

from __future__ import annotations

from pathlib import Path

from contactlm.types import DataError

STRUCTURE_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
STRUCTURES = "a folder of structure files or a text file of their paths"


def existing_path(source: str | Path, option: str, wanted: str) -> Path:
    """A path that is there.

    Args:
        source: As the user gave it.
        option: The option's name, for messages.
        wanted: What to give, for messages.

    Raises:
        DataError: Nothing lies there, or it cannot be looked at.
    """
    path = Path(source).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{option}: {path} does not exist; give {wanted}") from None
    except OSError as error:
        raise DataError(f"{option}: {path} cannot be read ({error.strerror}); give {wanted}") from error
    return path


def is_structure_file(path: Path) -> bool:
    """Whether the name ends like a structure file's: ``.pdb .ent .cif .mmcif``, each also ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(STRUCTURE_SUFFIXES)


def find_structures(source: str | Path, option: str = "train_dir") -> list[Path]:
    """List the structure files of a folder (searched recursively), of a text file of paths, or a single file.

    Args:
        source: A folder; a structure file; or a text file with one path a line, relative to that file's folder (empty
            lines and lines that start with ``#`` are left out).
        option: The option's name, for messages.

    Returns:
        Sorted paths for a folder; the order of the lines for a text file.

    Raises:
        DataError: Nothing lies there, or no structure file is in it.
    """
    path = existing_path(source, option, STRUCTURES)
    if path.is_dir():
        found = sorted(
            file
            for file in path.rglob("*")
            if is_structure_file(file) and file.is_file() and not file.name.startswith(".")
        )
    elif is_structure_file(path):
        found = [path]
    else:
        found = _read_list(path, option)
    if not found:
        suffixes = " ".join(STRUCTURE_SUFFIXES)
        raise DataError(f"{option}: {path} holds no structure file ({suffixes}, each also .gz)")
    return found


def _read_list(path: Path, option: str) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option}: {path} cannot be read as a text file of paths ({error})") from error
    names = [line.strip() for line in lines]
    return [path.parent / Path(name).expanduser() for name in names if name and not name.startswith("#")]
