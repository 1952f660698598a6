"""What was read from structure files, kept so that the second start reads none.

Three kinds of file below the cache folder, each written atomically. None is needed: what is missing or damaged is
rebuilt.

* ``entries/ab/abcd….chains``: the chains of one structure file, or the reason why it has none. The name is a hash of
  the file's content and of everything else that decides what is read (name stem, suffix, reader settings, version).
  An entry made for a structure database holds secondary structure in its meta data as well.
* ``packs/….chains``: the entries of one list of files laid end to end; memory-mapped by every process.
* ``index/….json``: size and modification time of files whose hash is known, so that a start hashes only what changed.

Files are read in several processes, any of which may be killed. Then the files in hand are read again, each alone in a
process of its own. A file whose process dies once more is lost; the run is not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from contactlm.atomic import atomic_file, hash_file, if_it_can_be
from contactlm.data.store import ChainStore
from contactlm.homology.relations import processors
from contactlm.shipped import default_cache_dir
from contactlm.structure.parse import read_chains
from contactlm.types import DataError, StructureError

READER_VERSION = 3  # raise it whenever reading rules change: every entry is then read again
FILES_PER_TASK = 4  # enough to make the exchange between processes cheap, few enough for a lively progress bar
TASKS_AHEAD = 2  # tasks in hand for each process: none waits, and few are read again when one is killed
LOST = "its reader ran out of memory, or was killed"
"""The reason why a file was skipped that may be sound: no cache keeps it, so that the next start tries it again."""

Item = tuple[int, Path]
Result = tuple[int, ChainStore]
Task = Callable[[Sequence[Item]], list[Result]]
InHand = deque[tuple[Sequence[Item], Future[list[Result]]]]

log = logging.getLogger(__name__)


@dataclass
class ReadReport:
    """What happened to a list of files."""

    files: int = 0  # asked for
    parsed: int = 0  # that had to be parsed now; the rest came from the cache
    problems: dict[str, str] = field(default_factory=dict)  # skipped files with the reason
    read: list[Path] = field(default_factory=list)  # those that could be opened, which `file_of_chain` counts
    remark: str = ""  # on what else lay there


class StructureCache:
    """Reads structure files through a cache; where its folder cannot be written, a warning says so.

    ``sequence`` and ``models`` are those of :func:`contactlm.read_chains`. ``workers`` processes parse; 0 parses in
    this process, None takes one for each available processor. ``atom="ca"`` keeps C-alphas in place of C-betas.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        sequence: str = "seqres",
        workers: int | None = None,
        progress: bool = True,
        models: str = "first",
        atom: str = "cb",
    ) -> None:
        self.directory = Path(directory).expanduser() if directory else default_cache_dir()
        self.sequence, self.models, self.atom = sequence, models, atom
        self.workers = processors() if workers is None else workers
        self.progress = progress

    def load(self, paths: Sequence[Path]) -> tuple[ChainStore, ReadReport]:
        """Read all chains of some files (memory-mapped where the cache can be written), and report what happened."""
        keys, problems = self._keys(paths)
        readable = [path for path in paths if path in keys]
        joined_path = self.directory / "packs" / f"{_digest(*(keys[path] for path in readable))}.chains"
        joined, parsed = _open_or_none(joined_path), 0
        if joined is None:
            joined, parsed = self._join([(path, keys[path]) for path in readable])
            if LOST not in joined.meta["problems"]:
                self._try_write(joined, joined_path)
                joined = _open_or_none(joined_path) or joined
        problems |= {
            str(path): reason for path, reason in zip(readable, joined.meta["problems"], strict=True) if reason
        }
        return joined, ReadReport(len(paths), parsed, problems, readable)

    def _keys(self, paths: Sequence[Path]) -> tuple[dict[Path, str], dict[str, str]]:
        """Hash the files' contents; take the hash from the index where size and modification time are the same."""
        index_path = self.directory / "index" / f"{_digest(*sorted({str(p.parent.absolute()) for p in paths}))}.json"
        known = _read_index(index_path)
        seen: dict[str, list[object]] = {}
        keys: dict[Path, str] = {}
        problems: dict[str, str] = {}
        for path in paths:
            name = str(path.absolute())
            try:
                stat = path.stat()
                mark = [stat.st_size, stat.st_mtime_ns]
                entry = known.get(name)
                content = entry[2] if entry and list(entry[:2]) == mark else hash_file(path)
            except OSError as error:
                problems[str(path)] = f"cannot be read ({error.strerror or error})"
                continue
            seen[name] = [*mark, content]
            other = [] if self.atom == "cb" else [self.atom]
            keys[path] = _digest(str(content), path.name, self.sequence, self.models, str(READER_VERSION), *other)
        if any(known.get(name) != entry for name, entry in seen.items()):
            # other lists of the same folders share the index; what is gone is dropped
            now = _read_index(index_path).items()
            others = {name: entry for name, entry in now if name not in seen and Path(name).is_file()}
            self._try_write(json.dumps(others | seen).encode(), index_path)
        return keys, problems

    def _join(self, items: Sequence[tuple[Path, str]]) -> tuple[ChainStore, int]:
        """Lay the entries of all files end to end."""
        complete, parsed = self._entries(items)
        problems = [entry.meta["problem"] for entry in complete]
        files = [i for i, entry in enumerate(complete) for _ in range(len(entry))]
        return ChainStore.concatenate(complete, {"problems": problems, "file_of_chain": files}), parsed

    def _entries(self, items: Sequence[tuple[Path, str]]) -> tuple[list[ChainStore], int]:
        """Collect the entries of all files, and count those that had to be parsed."""
        # read, not mapped: ten thousand maps would be ten thousand open files
        entries = [_open_or_none(self._entry_path(key), memory_map=False) for _, key in items]
        missing = [i for i, entry in enumerate(entries) if entry is None or not self._suffices(entry)]
        for i, entry in self._parse([(i, items[i][0]) for i in missing]):
            if entry.meta["problem"] != LOST:
                self._try_write(entry, self._entry_path(items[i][1]))
            entries[i] = entry
        return [entry for entry in entries if entry is not None], len(missing)

    def _suffices(self, entry: ChainStore) -> bool:
        """Whether an entry holds all that is asked for; else its file is read again."""
        return True

    def _task(self) -> Task:
        """What reads some files, in this process or another."""
        return partial(parse_task, sequence=self.sequence, models=self.models, atom=self.atom)

    def _parse(self, items: Sequence[Item]) -> Iterator[Result]:
        """Parse files, with a progress bar that shows files, rate and failures."""
        if not items:
            return
        with progress_bar("Reading structures", "file", len(items), self.progress) as bar:
            failed = 0
            for i, entry in read_files(items, self._task(), self.workers):
                failed += entry.meta["problem"] is not None
                bar.set_postfix({"failed": failed} if failed else {}, refresh=False)
                bar.update()
                yield i, entry

    def _entry_path(self, key: str) -> Path:
        return self.directory / "entries" / key[:2] / f"{key}.chains"

    def _try_write(self, what: ChainStore | bytes, path: Path) -> None:
        """Write to a cache, a new one for its user only."""
        with if_it_can_be("chains", self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if isinstance(what, ChainStore):
                what.write(path)
            else:
                with atomic_file(path) as handle:
                    handle.write(what)


def progress_bar(what: str, unit: str, total: int, shown: bool = True, initial: int = 0) -> tqdm[Any]:
    """A bar on a terminal, cleared at the end; elsewhere, as in a log file, one line at the start."""
    hidden = {} if shown and sys.stderr.isatty() else {"disable": True}  # else TQDM_DISABLE decides
    if shown and hidden:
        log.info("%s: %d %ss", what, total, unit)
    return tqdm(total=total, initial=initial, desc=what, unit=unit, leave=False, dynamic_ncols=True, **hidden)


def parse_task(task: Sequence[Item], sequence: str, models: str = "first", atom: str = "cb") -> list[Result]:
    """Read some files; a file that cannot be read becomes an empty entry with the reason."""

    def read(path: Path) -> ChainStore:
        chains = read_chains(path, sequence=sequence, models=models)
        if atom == "ca":
            chains = [replace(chain, cb=chain.ca) for chain in chains]
        return ChainStore.from_chains(chains, {"problem": None})

    return [(i, entry_of(read, path)) for i, path in task]


def entry_of(read: Callable[[Path], ChainStore], path: Path) -> ChainStore:
    """What a file holds; an empty entry with the reason where it cannot be read."""
    try:
        return read(path)
    except StructureError as error:
        return ChainStore.from_chains([], {"problem": error.reason})
    except MemoryError:
        return ChainStore.from_chains([], {"problem": LOST})


def read_files(items: Sequence[Item], work: Task, processes: int) -> Iterator[Result]:
    """Read files in their order, in several processes where that pays.

    Of a file whose process was killed, also where it read nothing else, comes an empty store with the problem
    :data:`LOST`.
    """
    if processes <= 1 or len(items) <= FILES_PER_TASK:
        for item in items:
            yield from work([item])
        return
    tasks = deque(items[i : i + FILES_PER_TASK] for i in range(0, len(items), FILES_PER_TASK))
    while tasks:
        in_hand: InHand = deque()
        yield from _read_together(tasks, in_hand, work, processes)
        for task, future in in_hand:  # a process was killed
            if not future.cancelled() and future.exception() is None:
                yield from future.result()
            else:
                yield from (_read_alone(item, work) for item in task)


def _read_together(tasks: deque[Sequence[Item]], in_hand: InHand, work: Task, processes: int) -> Iterator[Result]:
    """Read files in their order; leaves in hand what was not read because a process was killed."""
    executor = ProcessPoolExecutor(processes, _context())
    try:
        while tasks or in_hand:
            while tasks and len(in_hand) < TASKS_AHEAD * processes:
                in_hand.append((tasks[0], executor.submit(work, tasks[0])))
                tasks.popleft()
            yield from in_hand[0][1].result()
            in_hand.popleft()
    except BrokenProcessPool:
        return
    finally:
        executor.shutdown(cancel_futures=True)


def _read_alone(item: Item, work: Task) -> Result:
    with ProcessPoolExecutor(1, _context()) as executor:
        try:
            return executor.submit(work, [item]).result()[0]
        except BrokenProcessPool:
            return item[0], ChainStore.from_chains([], {"problem": LOST})


def _context() -> BaseContext:
    # fork starts at once; the children only run numpy and Biopython, so threads of the parent do not matter
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:40]


def _open_or_none(path: Path, memory_map: bool = True) -> ChainStore | None:
    if not path.exists():
        return None
    try:
        return ChainStore.open(path, memory_map)
    except DataError as error:
        log.warning("%s; it is rebuilt.", error)
        return None


def _read_index(path: Path) -> dict[str, list[object]]:
    """An index that is missing or damaged is an empty one: files are then hashed again."""
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) and all(isinstance(v, list) and len(v) == 3 for v in index.values()) else {}
