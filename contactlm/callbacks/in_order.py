"""Work for other threads, whose results are taken in the order in which the work was given."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")


class InOrder(Generic[Result]):
    """Threads that work while the giver goes on; the results come as if it had done the work itself.

    When a piece of work fails, or the taking of its result, then the results before it are still taken, none after it,
    and the giver gets the error when it gives more, or finishes.

    Args:
        take: Called with each result, in order, in one of the threads; never twice at once.
        threads: How many.
        most: Bound on the summed size of what was given and not yet taken; what is larger alone waits until all else
            is taken.
    """

    def __init__(self, take: Callable[[Result], None], threads: int, most: int) -> None:
        self._take, self._most = take, most
        self._pool = ThreadPoolExecutor(threads, "contactlm-files")
        self._turn = threading.Condition()
        self._given: deque[Future[None]] = deque()
        self._number = 0  # of the next piece of work
        self._next = 0  # whose result is taken next
        self._failed: int | None = None  # the first that failed
        self._waiting = 0  # summed size

    def give(self, work: Callable[[], Result], size: int) -> None:
        """Have something done, as soon as there is room for it.

        Args:
            work: Makes the result.
            size: What it counts towards ``most``.

        Raises:
            Exception: Whatever earlier work, or taking its result, has raised.
        """
        with self._turn:
            self._turn.wait_for(lambda: not self._waiting or self._waiting + size <= self._most)
            self._waiting += size
        self._tell(wait=False)
        self._given.append(self._pool.submit(self._do, self._number, work, size))
        self._number += 1

    def finish(self) -> None:
        """Wait until all is done and taken.

        Raises:
            Exception: Whatever work, or taking its result, has raised.
        """
        try:
            self._tell(wait=True)
        finally:
            self.close()

    def close(self, drop: bool = True) -> None:
        """Wait until what was begun is done and taken; what was not begun is dropped, or done as well.

        An error is no longer told.
        """
        self._pool.shutdown(wait=True, cancel_futures=drop)

    def _tell(self, wait: bool) -> None:
        while self._given and (wait or self._given[0].done()):
            self._given.popleft().result()

    def _do(self, number: int, work: Callable[[], Result], size: int) -> None:
        is_taken = False
        try:
            if self._is_over(number):
                return
            result = work()
            with self._turn:
                self._turn.wait_for(lambda: self._next == number or self._is_over(number))
                if not self._is_over(number):
                    self._take(result)
                    self._next += 1
                    is_taken = True
        finally:
            with self._turn:
                if not is_taken and not self._is_over(number):
                    self._failed = number
                self._waiting -= size
                self._turn.notify_all()

    def _is_over(self, number: int) -> bool:
        """Whether earlier work has failed."""
        return self._failed is not None and self._failed < number
