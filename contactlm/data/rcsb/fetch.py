"""One file from a server: asked for again when that may help, and checked before it is believed."""

from __future__ import annotations

import gzip
import http.client
import io
import threading
import time
import urllib.error
import urllib.request
import zlib
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from random import SystemRandom

FIRST_WAIT = 0.5  # seconds before the first repetition, doubled for each further one
RETRIES_UNREACHED = 2  # while no request was ever answered: most likely there is no network
LONGEST_WAIT = 60.0  # seconds, when the server names no time
LONGEST_OBEYED = 600.0  # seconds: who is asked to wait longer gives the entry up and says so
PATIENCE = 10  # timeouts that a whole file may take, so that a trickle ends too
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
BLOCK = 1 << 16
BEGINNING = b"data_"


class FetchError(Exception):
    """A file that could not be had.

    Attributes:
        unreachable: Whether the server was never reached.
    """

    def __init__(self, reason: str, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


class _PassingError(Exception):
    """A request that failed for a reason that may pass; after how many seconds the server wants to be asked again."""

    def __init__(self, reason: str, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.unreachable = unreachable


class Fetcher:
    """Fetches mmCIF files; threads share one.

    Args:
        base_url: Server and path before ``/1ABC.cif.gz``.
        retries: Repetitions of a failed request.
        timeout: Seconds without data after which a request has failed.

    Attributes:
        stop: Set it to make all threads give up.
        was_reached: Whether the server ever answered.
    """

    def __init__(self, base_url: str, retries: int, timeout: float) -> None:
        self.base_url = base_url.rstrip("/")
        self.retries, self.timeout = retries, timeout
        self.stop = threading.Event()
        self.was_reached = False
        self._resume_at = 0.0  # a server that asks for a pause asks all threads

    def fetch(self, entry: str) -> bytes:
        """Fetch an entry's file.

        Args:
            entry: PDB id in lower case.

        Returns:
            The compressed file, checked by :func:`is_complete`.

        Raises:
            FetchError: It cannot be had.
        """
        name = entry if entry.startswith("pdb_") else entry.upper()
        tries = 0
        while True:
            self._pause(self._resume_at - time.monotonic())
            try:
                return self._request(f"{self.base_url}/{name}.cif.gz")
            except _PassingError as error:
                tries += 1
                self._wait_or_give_up(error, tries)

    def _wait_or_give_up(self, error: _PassingError, tries: int) -> None:
        allowed = self.retries if self.was_reached else min(self.retries, RETRIES_UNREACHED)
        if tries > allowed:
            raise FetchError(
                f"{error} (tried {tries} times)" if tries > 1 else str(error), error.unreachable
            ) from error
        if error.wait > LONGEST_OBEYED:
            raise FetchError(f"{error}; the server asks to wait {error.wait:.0f} s") from error
        if error.wait:
            self._resume_at = max(self._resume_at, time.monotonic() + error.wait)
        # spread, so that threads that failed together do not come back together; global generators stay untouched
        self._pause(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * SystemRandom().uniform(0.5, 1.0))

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise FetchError("ended before it was fetched")

    def _request(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"User-Agent": "contactlm", "Accept-Encoding": "identity"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                self.was_reached = True
                body = self._read(response)
                expected = response.headers.get("Content-Length", "")
        except urllib.error.HTTPError as error:
            self.was_reached = True
            raise _classify(error) from error
        except urllib.error.URLError as error:
            raise _PassingError(f"no connection ({error.reason})", unreachable=True) from error
        except TimeoutError as error:
            self.was_reached = True
            raise _PassingError(f"no data for {self.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.was_reached = True
            raise _PassingError(f"the connection broke ({error or type(error).__name__})") from error
        if expected.isdigit() and int(expected) != len(body):
            raise _PassingError(f"{len(body)} of {expected} bytes came")
        if not is_complete(body):
            raise _PassingError("what came is not a whole compressed mmCIF file")
        return body

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """Read all that comes; by blocks, so that a stop or a trickle ends it."""
        deadline = time.monotonic() + PATIENCE * self.timeout
        body = bytearray()
        while block := response.read1(BLOCK):
            body += block
            if self.stop.is_set():
                raise FetchError("ended before it was fetched")
            if time.monotonic() > deadline:
                raise _PassingError(f"not complete after {PATIENCE * self.timeout:g} s")
        return bytes(body)


def is_complete(body: bytes) -> bool:
    """Whether bytes are a whole gzip file (to the end, with a right checksum) of what begins as mmCIF does."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as stream:
            if stream.read(len(BEGINNING)) != BEGINNING:
                return False
            while stream.read(BLOCK):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True


def _classify(error: urllib.error.HTTPError) -> Exception:
    """Tell answers that may change from those that will not."""
    if error.code == 404:
        return FetchError("the server has no such entry (HTTP 404)")
    reason = f"HTTP {error.code} {error.reason}".rstrip()
    if error.code not in PASSING:
        return FetchError(reason)
    return _PassingError(reason, _seconds(error.headers.get("Retry-After", "")))


def _seconds(retry_after: str) -> float:
    """Read a Retry-After header: seconds, or a date (RFC 9110, 10.2.3); 0 when there is none or it is neither."""
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
