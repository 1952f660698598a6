"""Structure files from the Protein Data Bank: fetched once, in parallel, checked, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from urllib.parse import urlsplit

from contactlm.atomic import atomic_file, file_name
from contactlm.data.cache import progress_bar
from contactlm.data.rcsb.complete import CompleteFiles
from contactlm.data.rcsb.fetch import Fetcher, FetchError, is_complete
from contactlm.data.rcsb.ids import parse_id, read_id_list
from contactlm.types import DataError

__all__ = ["DownloadReport", "download_structures", "read_id_list"]

RCSB = "https://files.rcsb.org/download"
CHECK = "check the network and proxy settings (https_proxy)"
REMEDY = f"{CHECK}, or fetch the mmCIF files elsewhere and give a folder of them as train_dir or test_dir"
LOST_AFTER = 2  # entries a worker that fail in a row because there is no connection: the network went away
POLL_SECONDS = 0.1  # how long Ctrl-C may wait
LAST_WORDS_SECONDS = 1.0  # for threads to end; whoever still waits for the server then is left behind


@dataclass
class DownloadReport:
    """What came of a list of ids.

    Attributes:
        paths: Complete files, in the order of the ids, each entry once.
        problems: Reason for every entry that has no complete file, by entry.
        fetched: How many files came from the server now; the others were there.
    """

    paths: list[Path] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    fetched: int = 0


def download_structures(
    ids: Sequence[str],
    folder: str | Path,
    base_url: str = RCSB,
    workers: int = 4,
    retries: int = 5,
    timeout: float = 30,
    progress: bool = True,
    remedy: str = REMEDY,
) -> DownloadReport:
    """Fetch mmCIF files of PDB entries as ``<folder>/<id>.cif.gz``.

    Complete files that are there already are not asked for: a run that was ended goes on where it stopped. Every file
    is checked (all bytes came, the compressed data is whole, it begins as an mmCIF file does) before it gets its name,
    and once more only when its size or time of change has changed.

    Args:
        ids: PDB ids; ``1abc_A`` and ``1abc A`` name the entry ``1abc``. Entries named twice are fetched once.
        folder: Where the files go; made when missing.
        base_url: Server and path before ``/1ABC.cif.gz``.
        workers: Requests at a time.
        retries: How often a request that failed for a passing reason is repeated, after waits that double; a server
            that says how long to wait (Retry-After) is obeyed. An entry that does not exist is asked for once.
        timeout: Seconds without an answer or further data after which a request has failed.
        progress: Whether to show a progress bar.
        remedy: What to say can be done where the server cannot be reached.

    Returns:
        The files, and the entries that could not be had with the reason.

    Raises:
        DataError: An id is none; the server cannot be reached at all; or the folder cannot be written.
    """
    entries = list(dict.fromkeys(parse_id(text)[0] for text in ids))
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise DataError(f"base_url is {base_url!r}; it must begin with http:// or https:// and a server's name")
    for option, value, least in (("workers", workers, 1), ("retries", retries, 0), ("timeout", timeout, 0.001)):
        if not value >= least:
            raise DataError(f"{option} is {value}; it must be at least {least}")
    target = Path(folder).expanduser()
    with _writable(target):
        target.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(base_url, retries, timeout)
    report, complete = DownloadReport(), CompleteFiles(target, is_complete)
    obtain = partial(_obtain, folder=target, fetcher=fetcher, complete=complete)
    bar = progress_bar("Fetching structures", "file", len(entries), progress)
    with bar, _saved(complete), _Crew(entries, workers, obtain, fetcher.stop) as crew:
        lost = 0
        for entry, outcome in crew:
            if isinstance(outcome, FetchError):
                lost = lost + 1 if outcome.unreachable else 0
                if lost and (not fetcher.was_reached or lost > LOST_AFTER * workers):
                    raise DataError(f"{base_url} cannot be reached for {entry}: {outcome}; {remedy}")
                report.problems[entry] = str(outcome)
            elif outcome:
                lost = 0
                report.fetched += 1
            bar.update()
    report.paths = [_path(target, entry) for entry in entries if entry not in report.problems]
    return report


def _obtain(entry: str, folder: Path, fetcher: Fetcher, complete: CompleteFiles) -> bool:
    """Make sure that an entry's file is there and complete; whether it had to be fetched."""
    path = _path(folder, entry)
    with _writable(folder):
        if path in complete:
            return False
    body = fetcher.fetch(entry)
    with _writable(folder):
        with atomic_file(path) as handle:
            handle.write(body)
        complete.add(path)
    return True


@contextmanager
def _saved(complete: CompleteFiles) -> Iterator[None]:
    """Keep what is known of the files, however this ends."""
    try:
        yield
    finally:
        complete.save()


def _path(folder: Path, entry: str) -> Path:
    return folder / f"{file_name(entry)}.cif.gz"


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"structures cannot be kept in {folder} ({error}); name a folder that can be written"
        ) from error


class _Crew:
    """Threads that obtain entries, and what came of them, as it comes.

    The threads are daemons: unlike those of an executor they do not keep the program from ending on Ctrl-C while a
    server keeps them waiting.
    """

    def __init__(self, entries: Sequence[str], workers: int, obtain: Callable[[str], bool], stop: Event) -> None:
        self._left, self._obtain, self._stop = len(entries), obtain, stop
        self._waiting: SimpleQueue[str] = SimpleQueue()
        self._done: SimpleQueue[tuple[str, bool | FetchError | DataError]] = SimpleQueue()
        for entry in entries:
            self._waiting.put(entry)
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(min(workers, len(entries)))]

    def __enter__(self) -> _Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LAST_WORDS_SECONDS / len(self._threads))

    def __iter__(self) -> Iterator[tuple[str, bool | FetchError]]:
        while self._left:
            try:
                entry, outcome = self._done.get(timeout=POLL_SECONDS)
            except Empty:
                if self._done.empty() and not any(thread.is_alive() for thread in self._threads):
                    raise RuntimeError(f"{self._left} downloads ended without a result") from None
                continue
            if isinstance(outcome, DataError):
                raise outcome
            self._left -= 1
            yield entry, outcome

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                entry = self._waiting.get_nowait()
            except Empty:
                return
            try:
                self._done.put((entry, self._obtain(entry)))
            except (FetchError, DataError) as error:
                self._done.put((entry, error))
