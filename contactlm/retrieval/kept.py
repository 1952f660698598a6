"""Results kept on disk, so that they are computed once."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

from contactlm.atomic import atomic_file

log = logging.getLogger(__name__)


class KeptFiles:
    """Results by file name, each with a checksum: a damaged one counts as missing.

    Args:
        folder: Where the files go; None: nothing is kept. A folder that cannot be written costs time only.
        what: What the files hold, for warnings.
    """

    def __init__(self, folder: Path | None, what: str) -> None:
        self.folder, self._what = folder, what
        self._warned = False

    def get(self, name: str) -> bytes | None:
        """Return what is kept under a name; None: nothing that can be used."""
        if self.folder is None:
            return None
        try:
            checksum, _, body = (self.folder / name).read_bytes().partition(b"\n")
            if checksum != _checksum(body):
                raise ValueError("its checksum does not fit")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s: damaged %s (%s); recomputing", self.folder / name, self._what, error)
            return None
        return body

    def put(self, name: str, body: bytes) -> None:
        """Keep a result."""
        if self.folder is None:
            return
        try:
            with atomic_file(self.folder / name) as handle:
                handle.write(_checksum(body) + b"\n" + body)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("%s cannot be kept in %s (%s)", self._what, self.folder, error.strerror or error)


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)
