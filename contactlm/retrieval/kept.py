"""Results kept on disk, so that they are computed once."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

from contactlm.atomic import atomic_file, if_it_can_be

log = logging.getLogger(__name__)


class KeptFiles:
    """Results by file name, each with a checksum: a damaged one counts as missing. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, what: str) -> None:
        self.folder, self._what = folder, what

    def get(self, name: str) -> bytes | None:
        """Return what is kept under a name; None: nothing that can be used."""
        if self.folder is None or not (self.folder / name).is_file():
            return None
        checksum, _, body = (self.folder / name).read_bytes().partition(b"\n")
        if checksum == _checksum(body):
            return body
        log.warning("%s: damaged %s (its checksum does not fit); recomputing", self.folder / name, self._what)
        return None

    def put(self, name: str, body: bytes) -> None:
        """Keep a result."""
        if self.folder is None:
            return
        with if_it_can_be(f"{self._what}s", self.folder), atomic_file(self.folder / name) as handle:
            handle.write(_checksum(body) + b"\n" + body)


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)
