"""Progress of long work: a bar on a terminal; in a log file a line at the start and one at the end."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import TracebackType

from tqdm.auto import tqdm

log = logging.getLogger(__name__)
OFF = ("", "0", "false", "no")  # values of TQDM_DISABLE that do not


def has_terminal() -> bool:
    """Whether bars can be drawn: standard error is a terminal, and TQDM_DISABLE is not set."""
    return sys.stderr.isatty() and os.environ.get("TQDM_DISABLE", "").lower() in OFF


class Progress:
    """What is done of some work, as a context.

    Args:
        what: What is being done, such as ``Reading structures``.
        unit: What is counted.
        total: How many there are.
        shown: False: say nothing.
        initial: How many were done before.
    """

    def __init__(self, what: str, unit: str, total: int, shown: bool = True, initial: int = 0) -> None:
        self.what, self.unit, self.total, self.failed = what, unit, total, 0
        draws = shown and has_terminal()
        self._writes = shown and not draws
        self._began = time.monotonic()
        self._bar = tqdm(
            total=total, initial=initial, desc=what, unit=unit, disable=not draws, leave=False, file=sys.stderr,
            dynamic_ncols=True,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._writes:
            log.info("%s: %d %ss", self.what, self.total, self.unit)
        return self

    def update(self, done: int = 1, failed: int = 0) -> None:
        """Count what was done, and what of it failed."""
        self.failed += failed
        if self.failed:
            self._bar.set_postfix(failed=self.failed, refresh=False)
        self._bar.update(done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writes:
            ended = "done" if error is None else "broken off"
            failed = f", {self.failed} failed" if self.failed else ""
            log.info("%s: %s after %.1f s%s", self.what, ended, time.monotonic() - self._began, failed)
