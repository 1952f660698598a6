"""Where the files of a packed set lie: in a local folder, or behind a URL, from which they come into the cache."""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import fsspec
from filelock import FileLock

from contactlm.atomic import atomic_file, file_name
from contactlm.data.packed.manifest import INDEX, JOURNAL, MANIFEST, Manifest, Part, hash_file
from contactlm.types import DataError

log = logging.getLogger(__name__)
TRIES = 2  # a file that comes damaged, or not whole, is asked for once more
# What file systems raise for a broken connection beside OSError. Only those that are loaded can have raised it.
_FOREIGN_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)


class LocalFolder:
    """A packed set in a folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            DataError: There is none, or it cannot be used.
        """
        try:
            raw = (self.folder / MANIFEST).read_bytes()
        except OSError as error:
            raise DataError(_without_manifest(self.folder, error)) from error
        return Manifest.from_bytes(raw, str(self.folder / MANIFEST))

    def path(self, part: Part) -> Path:
        """Path of a file of the set, which has the right size.

        Raises:
            DataError: It is missing, or has another size.
        """
        path = self.folder / part.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"{path}: missing from the packed set ({error.strerror or error}); copy the whole folder again, or "
                "pack the structures again"
            ) from error
        if size != part.size:
            raise DataError(
                f"{path}: {size} bytes, and {part.size} were packed; copy it again, or pack the structures again"
            )
        return path

    def renew(self, part: Part) -> Path:
        """Say that a file is damaged: there is no other copy to take.

        Raises:
            DataError: Always.
        """
        raise DataError(
            f"{self.folder / part.name}: damaged (its checksum does not fit); copy it again, or pack the structures "
            "again"
        )


class RemoteFolder:
    """A packed set behind a URL. Files are fetched when they are first needed and kept under their checksum.

    Several processes may ask for the same file: one fetches it, the others wait.

    Args:
        url: Of the folder, in a scheme that fsspec knows.
        cache_dir: The cache folder.
    """

    def __init__(self, url: str, cache_dir: Path) -> None:
        self.url, self.cache = url.rstrip("/"), cache_dir / "shards"

    def __str__(self) -> str:
        return self.url

    def manifest(self) -> Manifest:
        """Fetch the manifest.

        Raises:
            DataError: It cannot be fetched, or cannot be used.
        """
        url = f"{self.url}/{MANIFEST}"
        with _transport(url):
            try:
                files, remote = fsspec.url_to_fs(url)
                raw = files.cat_file(remote)
            except FileNotFoundError as error:
                raise DataError(
                    f"{url} does not exist: {self.url} is not a packed set, or its upload is not complete; give the "
                    "URL of a folder written by `contactlm pack`"
                ) from error
        return Manifest.from_bytes(raw, url)

    def path(self, part: Part) -> Path:
        """Path of a file's copy in the cache, fetched and compared with its checksum if it was not there.

        Raises:
            DataError: It cannot be fetched, comes damaged twice, or cannot be kept.
        """
        path = self._path(part)
        if not _has_size(path, part.size):
            self._fetch(part, path)
        return path

    def renew(self, part: Part) -> Path:
        """Fetch again a file whose copy in the cache is damaged.

        Raises:
            DataError: It cannot be fetched, comes damaged twice, or cannot be kept.
        """
        path = self._path(part)
        log.warning("%s: damaged copy of %s/%s; it is fetched again", path, self.url, part.name)
        with self._writing():
            path.unlink(missing_ok=True)
        return self.path(part)

    def _path(self, part: Part) -> Path:
        return self.cache / part.sha256[:2] / f"{part.sha256[:40]}-{file_name(part.name)}"

    def _fetch(self, part: Part, path: Path) -> None:
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(path.name + ".lock"))
            lock.acquire()
        try:
            if _has_size(path, part.size):  # another process was faster
                return
            log.info("fetching %s/%s (%.0f MB)", self.url, part.name, part.size / 1e6)
            for tries in range(1, TRIES + 1):
                if self._try_fetch(part, path, last=tries == TRIES):
                    return
        finally:
            lock.release()

    def _try_fetch(self, part: Part, path: Path, last: bool) -> bool:
        """Fetch once; False when it should be tried again."""
        url = f"{self.url}/{part.name}"
        try:
            with self._writing(), atomic_file(path) as handle:
                with _transport(url):
                    # made anew each time: a file system with a thread of its own does not survive a fork
                    files, remote = fsspec.url_to_fs(url)
                    files.get_file(remote, handle.name)
                if hash_file(Path(handle.name)) != part.sha256:
                    raise _DamagedError(
                        f"{url}: what came does not fit the manifest's checksum, {TRIES} times; pack or upload the set "
                        "again"
                    )
        except (_DamagedError, _LostError) as error:
            if last:
                raise
            log.warning("%s; it is fetched again", error)
            return False
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"files of {self.url} cannot be kept in {self.cache} ({error.strerror or error}); set cache_dir or "
                "CONTACTLM_CACHE to a folder that can be written and has room"
            ) from error


class _DamagedError(DataError):
    """A file that came, but not as it was packed."""


class _LostError(DataError):
    """A file that did not come; another time it may."""


@contextmanager
def _transport(url: str) -> Iterator[None]:
    """Turn what can go wrong on the way into one message."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist: the set there is not complete; pack or upload it again") from error
    except (ImportError, ValueError) as error:  # a scheme whose package is missing, or that no one knows
        raise DataError(f"{url}: {error}; copy the set to a local folder, or install what the scheme needs") from error
    except _transport_errors() as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # not the network's fault
        raise _LostError(
            f"{url} cannot be fetched ({error or type(error).__name__}); check the network, the URL and your access to "
            "it, or copy the set to a local folder and give that"
        ) from error


def _transport_errors() -> tuple[type[BaseException], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _FOREIGN_ERRORS)
    foreign: list[type[BaseException]] = [getattr(module, name) for module, name in loaded if hasattr(module, name)]
    return (OSError, asyncio.TimeoutError, *foreign)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _without_manifest(folder: Path, error: OSError) -> str:
    if (folder / JOURNAL).exists():
        return (
            f"{folder}: packing did not end here (no {MANIFEST}); run the same `contactlm pack` again, which goes on "
            "where it stopped"
        )
    return f"{folder}: not a packed set (no {MANIFEST}: {error.strerror or error})"


def is_packed(location: str) -> bool:
    """Whether a location must be a packed set: a URL, or a folder that has a manifest or was being packed."""
    if "://" in location:
        return True
    folder = Path(location).expanduser()
    # a folder of structures may have some other program's manifest.json
    return (folder / JOURNAL).is_file() or ((folder / MANIFEST).is_file() and (folder / INDEX).is_file())


def folder_at(location: str, cache_dir: Path) -> LocalFolder | RemoteFolder:
    """The folder at a path or URL; one of ``file://`` is local."""
    if location.startswith("file://"):
        return LocalFolder(Path(unquote(location.removeprefix("file://"))))
    return RemoteFolder(location, cache_dir) if "://" in location else LocalFolder(Path(location).expanduser())
