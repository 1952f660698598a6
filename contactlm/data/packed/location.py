"""Where the files of a packed set lie: in a local folder, or behind a URL, from which they come into the cache."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import fsspec
from filelock import FileLock

from contactlm.atomic import atomic_file, file_name, hash_file
from contactlm.types import DataError

MANIFEST, INDEX, SHARD = "manifest.json", "chains.npz", "shard-{:06d}.chains"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A file of a packed set: its name, bytes and SHA-256 (hexadecimal), and the chains and residues in it."""

    name: str
    size: int
    sha256: str
    chains: int
    residues: int


class SetFolder:
    """The folder of a packed set. Files behind a URL are fetched when first needed and kept under their checksum."""

    def __init__(self, location: str, cache_dir: Path) -> None:
        if location.startswith("file://"):
            location = unquote(location.removeprefix("file://"))
        self.is_remote = "://" in location
        self.name = location.rstrip("/") if self.is_remote else str(Path(location).expanduser())
        self._cache = cache_dir / "shards"

    def manifest(self) -> bytes:
        """Read the manifest, or raise a DataError."""
        if self.is_remote:
            with _transport(f"{self.name}/{MANIFEST}") as (files, remote):
                return files.cat_file(remote)
        if Path(self.name, MANIFEST).is_file():
            return Path(self.name, MANIFEST).read_bytes()
        reason = f"not a packed set (no {MANIFEST})"
        if Path(self.name, SHARD.format(0)).exists():
            reason = f"unfinished packed set (no {MANIFEST}); run the same `contactlm pack` again to resume"
        raise DataError(f"{self.name}: {reason}")

    def path(self, part: Part) -> Path:
        """Path of a file; behind a URL, of its copy in the cache."""
        path = self.kept(part) if self.is_remote else Path(self.name, part.name)
        if not path.is_file():
            if not self.is_remote:
                raise DataError(f"{path}: missing from the packed set; copy the whole folder again")
            self._fetch(part, path)
        return path

    def renew(self, part: Part) -> Path:
        """Fetch a damaged file again; a DataError where it is a local one, of which there is no other copy."""
        path = self.path(part)
        if not self.is_remote:
            raise DataError(f"{path}: damaged (its checksum does not fit); copy it again, or pack the structures again")
        log.warning("%s: damaged copy of %s/%s; it is fetched again", path, self.name, part.name)
        path.unlink(missing_ok=True)
        return self.path(part)

    def kept(self, part: Part) -> Path:
        """Where a file that was fetched is kept."""
        return self._cache / part.sha256[:2] / f"{part.sha256[:40]}-{file_name(part.name)}"

    def _fetch(self, part: Part, path: Path) -> None:
        """Fetch a file; one process does, others wait. What comes damaged or not at all is asked for once more."""
        url = f"{self.name}/{part.name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            for is_last in (False, True):
                if path.is_file():
                    return
                log.info("fetching %s (%.0f MB)", url, part.size / 1e6)
                try:
                    with atomic_file(path) as handle:
                        with _transport(url) as (files, remote):
                            files.get_file(remote, handle.name)
                        if hash_file(Path(handle.name)) != part.sha256:
                            raise _LostError(f"{url}: its checksum does not fit; pack or upload the set again")
                except _LostError as error:
                    if is_last:
                        raise
                    log.warning("%s; it is fetched again", error)


class _LostError(DataError):
    """A file that did not come, or not as it was packed; another time it may."""


@contextmanager
def _transport(url: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """Give a URL's file system and path there, and turn what can go wrong on the way into one message."""
    from aiohttp import ClientError  # what comes with fsspec[http] takes long to import

    try:
        yield fsspec.url_to_fs(url)  # made each time: one with a thread of its own does not survive a fork
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist: this is not a packed set, or its upload is not complete") from error
    except (ImportError, ValueError) as error:  # a scheme whose package is missing, or that no one knows
        raise DataError(f"{url}: {error}; copy the set to a local folder, or install what the scheme needs") from error
    except (OSError, asyncio.TimeoutError, ClientError) as error:
        raise _LostError(
            f"{url} cannot be fetched ({error or type(error).__name__}); check the network, the URL and your access to "
            "it, or copy the set to a local folder and give that"
        ) from error


def is_packed(location: str) -> bool:
    """Whether a location must be a packed set: a URL, or a folder that was packed or was being packed."""
    return "://" in location or any(Path(location, name).expanduser().is_file() for name in (INDEX, SHARD.format(0)))
