"""Structure files on disk: their names, and their text as a stream, whether compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from contactlm.types import StructureError

MAX_BYTES = 1 << 30
"""Where more text than this would have to be read, after decompression, the file is refused (1 GiB; the largest real
entries have a few 100 MB, and of many models only the first is read)."""

FORMATS = {".pdb": "pdb", ".ent": "pdb", ".cif": "mmcif", ".mmcif": "mmcif", ".bcif": "bcif"}
KNOWN = ".pdb .pdb1 .ent .cif .mmcif .bcif, each also .gz, .bz2 or .xz"
NOT_READ = (".pdbx", ".mmtf", ".zst")
"""Suffixes of structure files that are not read: files of these names are named, not skipped in silence."""
MARKS = (b"\xff\xfe", b"\xfe\xff")  # of text in UTF-16
_BLOCK = 1 << 20  # characters read at a time, and more than any line of a structure file has
_REASON_LENGTH = 300
_NAME = re.compile(
    r"(?P<stem>.*?)(?P<suffix>\.pdb|\.ent|\.cif|\.mmcif|\.bcif)(?P<assembly>\d*)(?P<packed>\.gz|\.bz2|\.xz)?",
    re.IGNORECASE | re.DOTALL,
)


def split_name(path: str | Path) -> tuple[str, str, str]:
    """Take a structure file's name apart.

    Returns:
        The stem (``1abc`` of ``1abc.pdb.gz`` and ``1abc.pdb1``; bytes that are no UTF-8 as U+FFFD), the format
        (``pdb``, ``mmcif`` or ``bcif``) and the suffix of its compression; empty without one.
    """
    match = _NAME.fullmatch(Path(path).name)
    if match is None or not is_structure_name(path):
        raise StructureError(path, f"no structure file by its name; known are {KNOWN}")
    stem = os.fsencode(match["stem"]).decode("utf-8", "replace")  # ids are made of it, and written as text
    return stem, FORMATS[match["suffix"].lower()], (match["packed"] or "").lower()


def is_structure_name(path: str | Path) -> bool:
    """Whether the name ends like that of a structure file that can be read."""
    match = _NAME.fullmatch(Path(path).name)
    return match is not None and (not match["assembly"] or match["suffix"].lower() == ".pdb")


def model_key(path: str | Path) -> tuple[str, tuple[int, bool, str]]:
    """What files of one model share, and what of them comes first: mmCIF, BinaryCIF, PDB; uncompressed."""
    stem, kind, packed = split_name(path)
    return stem, (("mmcif", "bcif", "pdb").index(kind), bool(packed), Path(path).name)


def read_blocks(path: str | Path) -> Generator[str]:
    r"""Read a structure file as a stream, decompressing it when its name ends in ``.gz``, ``.bz2`` or ``.xz``.

    Any byte is accepted (latin-1): remarks in old files are not always UTF-8. Line ends of all kinds become ``\n``.
    Who needs no more of the file stops iterating: the rest is then neither read nor decompressed.

    Yields:
        Whole lines, about a million characters of them at a time.
    """
    with _opened(path) as stream:
        yield from _blocks(path, stream)


def read_bytes(path: str | Path) -> bytes:
    """Read a binary structure file whole, decompressed; raises what :func:`read_blocks` does."""
    with _opened(path) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise StructureError(path, f"holds more than {MAX_BYTES:,} bytes: too long for a structure file")
    return content


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    packed = split_name(path)[2]
    kind = {"": "gzip", ".gz": "gzip"}.get(packed, packed[1:])
    try:
        with Path(path).open("rb") as file:
            _refuse_wrong_suffix(path, packed, is_gzip=file.peek(2)[:2] == b"\x1f\x8b")
            yield _decompressed(file, packed)
    except EOFError as error:
        raise StructureError(path, f"damaged {kind} data (it ends early): fetch the file again") from error
    except (zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise StructureError(path, f"damaged {kind} data ({error}): fetch the file again") from error
    except OSError as error:
        if packed and error.errno is None:
            raise StructureError(path, f"damaged {kind} data ({error}): fetch the file again") from error
        raise StructureError(path, f"cannot be opened: {error.strerror or error}") from error


def _decompressed(file: IO[bytes], packed: str) -> IO[bytes]:
    if packed == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if packed == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(file))
    return cast(IO[bytes], lzma.LZMAFile(file)) if packed == ".xz" else file


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    """Take blocks apart into lines, each with its line end."""
    for block in blocks:
        yield from io.StringIO(block)


def brief(reason: str) -> str:
    """Cut a reason that quotes the file: a damaged file can have lines of any length."""
    return reason if len(reason) <= _REASON_LENGTH else reason[:_REASON_LENGTH] + "..."


def _refuse_wrong_suffix(path: str | Path, packed: str, is_gzip: bool) -> None:
    if is_gzip and packed != ".gz":
        raise StructureError(path, "gzip data, but the name does not say so: add .gz to the name")
    if packed == ".gz" and not is_gzip:
        raise StructureError(path, "not gzip data, though the name ends in .gz: remove .gz from the name")


def _without_mark(path: str | Path, block: str) -> str:
    """Leave a byte order mark out."""
    if block.startswith(tuple(mark.decode("latin-1") for mark in MARKS)):
        raise StructureError(path, "text in UTF-16: save it as UTF-8")
    return block.removeprefix("\xef\xbb\xbf")


def _blocks(path: str | Path, stream: IO[bytes]) -> Iterator[str]:
    room = MAX_BYTES
    with io.TextIOWrapper(stream, encoding="latin-1", newline=None) as text:
        first = True
        while block := text.read(_BLOCK):
            if first:
                block, first = _without_mark(path, block), False
            rest = "" if block.endswith("\n") else text.readline(_BLOCK)
            room -= len(block) + len(rest)
            if room < 0:
                raise StructureError(
                    path, f"holds more than {MAX_BYTES:,} bytes of text: too long for a structure file"
                )
            if len(rest) == _BLOCK and not rest.endswith("\n"):
                raise StructureError(path, f"has a line of more than {_BLOCK:,} characters: no structure file")
            yield block + rest
