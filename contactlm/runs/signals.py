"""Signals that end a run: noted when they come, acted on where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Ends a run that a signal asked to end, after its state was saved.

    Its ``code`` is what the process ends with: 128 + the signal's number, as shells have it (143 for SIGTERM, 130 for
    Ctrl-C).
    """


class StopSignals:
    """Takes SIGTERM and Ctrl-C while it is installed, and remembers that one came.

    A handler runs in the middle of whatever the process is doing: saving there would save half a step. So the first
    signal is noted only; a second Ctrl-C interrupts at once.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.received: int | None = None  # the signal that came first
        self._before: dict[int, object] = {}

    def install(self) -> None:
        """Take the signals over; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            if signal.getsignal(number) == signal.SIG_IGN and number == signal.SIGINT:
                continue  # a background job of a shell: Ctrl-C is not meant for it
            self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned before
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not self.quiet:
            # neither print nor logging may be called while the main program is in the middle of them
            os.write(2, b"\ncontactlm: Ctrl-C: the run ends after this step; press it again to end at once\n")
        self.received = self.received or number
