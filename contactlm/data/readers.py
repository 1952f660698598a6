"""Structure files read in several processes, any of which may be killed: that costs the file it was at, not the run.

When a process of a pool is gone, nothing of the pool goes on. So each process notes which file it begins and ends; the
files that were begun are then read again, each alone in a process of its own, and the others by a new pool. A file
whose process dies once more is lost.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from pathlib import Path

from contactlm.data.store import ChainStore

FILES_PER_TASK = 4  # enough to make the exchange between processes cheap, few enough for a lively progress bar
LOST = "its reader ran out of memory, or was killed"
"""The reason why a file was skipped that may be sound: no cache keeps it, so that the next start tries it again."""

Item = tuple[int, Path]
Result = tuple[int, ChainStore]
Task = Callable[[Sequence[Item]], list[Result]]

_BEGUN, _ENDED = 1, 2
_marks: MutableSequence[int] = []  # in a reader process: what became of each item; shared with the process that asks


def read_files(items: Sequence[Item], work: Task, processes: int, ahead: int | None = None) -> Iterator[Result]:
    """Read files, in several processes where that pays.

    Args:
        items: Files, each with a number that comes back with what it holds.
        work: Reads some of them.
        processes: How many read; with 0 or 1, and for a few files, this process reads.
        ahead: Most tasks of :data:`FILES_PER_TASK` files that each process has in hand; None: all at once.

    Yields:
        What the files hold, in their order; of a file whose process was killed, also where it read nothing else, an
        empty store with the problem :data:`LOST`.
    """
    if processes > 1 and len(items) > FILES_PER_TASK:
        yield from _read_in_processes(items, work, processes, len(items) if ahead is None else ahead * processes)
    else:
        for item in items:
            yield from work([item])


def _read_in_processes(items: Sequence[Item], work: Task, processes: int, ahead: int) -> Iterator[Result]:
    at, alone = 0, set[int]()
    while at < len(items):
        begin = at
        if begin in alone:
            yield _read_alone(items[begin], work)
            at += 1
            continue
        stop = min((i for i in alone if i > begin), default=len(items))
        marks: MutableSequence[int] = _context().RawArray("b", stop - begin)
        for result in _read_together(items[begin:stop], work, processes, ahead, marks):
            yield result
            at += 1
        if at < stop:
            alone |= {i for i, mark in enumerate(marks, start=begin) if mark == _BEGUN and i >= at} or {at}


def _read_together(
    items: Sequence[Item], work: Task, processes: int, ahead: int, marks: MutableSequence[int]
) -> Iterator[Result]:
    """Read files in their order, up to where a process was killed."""
    tasks = deque(range(0, len(items), FILES_PER_TASK))
    running: deque[Future[list[Result]]] = deque()
    executor = ProcessPoolExecutor(processes, _context(), _begin, (marks,))
    try:
        while tasks or running:
            while tasks and len(running) < ahead:
                first = tasks.popleft()
                running.append(executor.submit(_work, first, items[first : first + FILES_PER_TASK], work))
            yield from running.popleft().result()
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


def _begin(marks: MutableSequence[int]) -> None:
    global _marks
    _marks = marks


def _work(first: int, items: Sequence[Item], work: Task) -> list[Result]:
    """Read the files of one task, and note which is at hand."""
    results = []
    for row, item in enumerate(items, start=first):
        _marks[row] = _BEGUN
        results += work([item])
        _marks[row] = _ENDED
    return results


def _context() -> BaseContext:
    # fork starts at once; the children only run numpy and Biopython, so threads of the parent do not matter
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
