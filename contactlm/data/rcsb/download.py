"""Structure files from the Protein Data Bank: fetched once, in parallel, checked, and kept."""

from __future__ import annotations

import gzip
import http.client
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from random import SystemRandom
from urllib.parse import urlsplit

from contactlm.atomic import atomic_file, file_name
from contactlm.data.cache import progress_bar
from contactlm.data.rcsb.ids import parse_id
from contactlm.types import DataError

RCSB = "https://files.rcsb.org/download"
CHECK = "check the network and proxy settings (https_proxy)"
REMEDY = f"{CHECK}, or fetch the mmCIF files elsewhere and give a folder of them as train_dir or test_dir"
WORKERS = 4  # requests at a time
TIMEOUT = 30.0  # seconds without an answer or further data
RETRIES, RETRIES_UNREACHED = 5, 2  # of a request that failed for a passing reason; where there is no connection
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a repetition: doubled for each further one
LONGEST_OBEYED = 600.0  # seconds: an entry whose server asks to wait longer is given up
LOST_AFTER = 2  # entries a worker that fail in a row because there is no connection: the network went away
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass
class DownloadReport:
    """What came of a list of ids."""

    paths: list[Path] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    fetched: int = 0


def download_structures(
    ids: Sequence[str],
    folder: str | Path,
    base_url: str = RCSB,
    progress: bool = True,
    remedy: str = REMEDY,
) -> DownloadReport:
    """Fetch mmCIF files of PDB entries as ``<folder>/<id>.cif.gz``, unless they are there.

    A file gets its name only when it came whole: the compressed data is complete and begins as an mmCIF file does.
    What fails for a passing reason is asked for again, after waits that double or as long as the server says
    (Retry-After, in seconds). ``remedy`` is what to say can be done where the server cannot be reached.
    """
    entries = list(dict.fromkeys(parse_id(text)[0] for text in ids))
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise DataError(f"base_url is {base_url!r}; it must begin with http:// or https:// and a server's name")
    target, report, lost = Path(folder).expanduser(), DownloadReport(), 0
    fetcher = _Fetcher(target, base_url.rstrip("/"))
    # its threads are daemons: on Ctrl-C they do not keep the program waiting for a silent server
    with progress_bar("Fetching structures", "file", len(entries), progress) as bar, ThreadPool(WORKERS) as pool:
        target.mkdir(parents=True, exist_ok=True)
        for entry, outcome in pool.imap_unordered(fetcher.obtain, entries):
            if isinstance(outcome, _FetchError):
                report.problems[entry] = str(outcome)
                lost = lost + 1 if outcome.unreachable else 0
                was_reached = report.fetched or len(report.problems) > lost
                if lost and (not was_reached or lost > LOST_AFTER * WORKERS):
                    raise DataError(f"{base_url} cannot be reached for {entry}: {outcome}; {remedy}")
            elif outcome:
                lost, report.fetched = 0, report.fetched + 1
            bar.update()
    report.paths = [_path(target, entry) for entry in entries if entry not in report.problems]
    return report


class _FetchError(Exception):
    """Why an entry cannot be had; whether that may pass, after how many seconds; whether there was no connection."""

    def __init__(self, reason: str, passing: bool = False, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.passing, self.wait, self.unreachable = passing, wait, unreachable


class _Fetcher:
    """Fetches files into a folder; threads share one."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self.folder, self.base_url = folder, base_url
        self._resume_at = 0.0  # a server that asks for a pause asks all threads

    def obtain(self, entry: str) -> tuple[str, bool | _FetchError]:
        """Make sure that an entry's file is there; whether it had to be fetched, or why it cannot be had."""
        path = _path(self.folder, entry)
        if path.is_file():
            return entry, False
        try:
            body = self._fetch(f"{self.base_url}/{entry if entry.startswith('pdb_') else entry.upper()}.cif.gz")
        except _FetchError as error:
            return entry, error
        with atomic_file(path) as handle:
            handle.write(body)
        return entry, True

    def _fetch(self, url: str) -> bytes:
        tries = 0
        while True:
            time.sleep(max(0.0, self._resume_at - time.monotonic()))
            try:
                return self._request(url)
            except _FetchError as error:
                tries += 1
                if not error.passing:
                    raise
                if tries > (RETRIES_UNREACHED if error.unreachable else RETRIES):
                    raise _FetchError(f"{error} (tried {tries} times)", unreachable=error.unreachable) from error
                self._resume_at = max(self._resume_at, time.monotonic() + error.wait)
            # spread, so that threads that failed together do not come back together
            time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * SystemRandom().uniform(0.5, 1.0))

    def _request(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"User-Agent": "contactlm", "Accept-Encoding": "identity"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            asked = error.headers.get("Retry-After", "").strip()
            wait = float(asked) if asked.isdigit() else 0.0
            reason = f"HTTP {error.code} {error.reason}".rstrip()
            if wait > LONGEST_OBEYED:
                raise _FetchError(f"{reason}; the server asks to wait {wait:.0f} s") from error
            raise _FetchError(reason, error.code in PASSING, wait) from error
        except urllib.error.URLError as error:
            raise _FetchError(f"no connection ({error.reason})", True, unreachable=True) from error
        except (OSError, http.client.HTTPException) as error:
            is_slow = isinstance(error, TimeoutError)
            reason = f"no data for {TIMEOUT:g} s" if is_slow else f"the connection broke ({error!r})"
            raise _FetchError(reason, True) from error
        if not is_complete(body):
            raise _FetchError("what came is not a whole compressed mmCIF file", True)
        return body


def is_complete(body: bytes) -> bool:
    """Whether bytes are a whole gzip file of what begins as mmCIF does."""
    try:
        return gzip.decompress(body).startswith(b"data_")
    except (EOFError, OSError, zlib.error):
        return False


def _path(folder: Path, entry: str) -> Path:
    return folder / f"{file_name(entry)}.cif.gz"
