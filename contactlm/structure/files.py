"""Structure files on disk: their names, and their text whether compressed or not."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

from contactlm.types import StructureError

MAX_BYTES = 1 << 30
"""Text longer than this, after decompression, is refused (1 GiB; the largest real entries have a few 100 MB)."""

FORMATS = {".pdb": "pdb", ".ent": "pdb", ".cif": "mmcif", ".mmcif": "mmcif"}
_REASON_LENGTH = 300
_NAME = re.compile(r"(?P<stem>.*?)(?P<suffix>\.pdb|\.ent|\.cif|\.mmcif)(?P<gz>\.gz)?", re.IGNORECASE | re.DOTALL)


def split_name(path: str | Path) -> tuple[str, str, bool]:
    """Take a structure file's name apart.

    Returns:
        The stem (``1abc`` of ``1abc.pdb.gz``; bytes that are no UTF-8 as U+FFFD), the format (``pdb`` or ``mmcif``)
        and whether it is compressed.

    Raises:
        StructureError: The name ends in no known suffix.
    """
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        known = " ".join(FORMATS)
        raise StructureError(path, f"no structure file by its name; known are {known}, each also with .gz")
    stem = os.fsencode(match["stem"]).decode("utf-8", "replace")  # ids are made of it, and written as text
    return stem, FORMATS[match["suffix"].lower()], match["gz"] is not None


def read_text(path: str | Path) -> str:
    """Read a structure file, decompressing it when its name ends in ``.gz``.

    Any byte is accepted (latin-1): remarks in old files are not always UTF-8.

    Raises:
        StructureError: The file cannot be read or decompressed, or is longer than :data:`MAX_BYTES`.
    """
    compressed = split_name(path)[2]
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise StructureError(path, f"cannot be opened: {error.strerror or error}") from error
    is_gzip = data.startswith(b"\x1f\x8b")
    if is_gzip and not compressed:
        raise StructureError(path, "gzip data, but the name does not say so: add .gz to the name")
    if compressed and not is_gzip:
        raise StructureError(path, "not gzip data, though the name ends in .gz: remove .gz from the name")
    if compressed:
        try:
            data = _decompressed(data)
        except (EOFError, zlib.error) as error:
            raise StructureError(path, f"damaged gzip data ({error}): fetch the file again") from error
    if len(data) > MAX_BYTES:
        raise StructureError(path, f"holds more than {MAX_BYTES:,} bytes of text: too long for a structure file")
    return data.decode("latin-1")


def brief(reason: str) -> str:
    """Cut a reason that quotes the file: a damaged file can have lines of any length."""
    return reason if len(reason) <= _REASON_LENGTH else reason[:_REASON_LENGTH] + "..."


def _decompressed(data: bytes) -> bytes:
    """Decompress one or more gzip members, stopping one byte beyond :data:`MAX_BYTES`."""
    parts = []
    room = MAX_BYTES + 1
    while data and room:
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        parts.append(member.decompress(data, room))
        room -= len(parts[-1])
        if room and not member.eof:
            raise EOFError("it ends early")
        data = member.unused_data.lstrip(b"\0")  # padding after the last member is allowed
    return b"".join(parts)
