"""The processes of a run, which end together: one message when one fails or is killed, and no hang.

A collective operation waits for a process that will never come: with NCCL for minutes, with gloo until a connection
breaks, which is told in words that help nobody. Here every process has a thread that beats every half second in a
small store of the first process (its own connection, its own port), and looks whether the others do.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import lightning as L
from torch.distributed import DistError, TCPStore

log = logging.getLogger(__name__)

BEAT = 0.5  # seconds
LOST_AFTER = 60.0  # seconds without a beat; longer than anything that holds Python's lock
SUSPECT_AFTER = 3.0  # the same where a broken connection was seen
_HOW: dict[str, Any] = {"wait_for_workers": False, "timeout": timedelta(seconds=20)}
FAILED, KNOWS, DONE = "failed", "knows", "done"  # keys in the store
BROKEN = ("Connection", "connection", "Socket", "Broken pipe", "NCCL")  # in what a collective says of a lost process


def watch_peers(peers: Peers, trainer: L.Trainer) -> None:
    """Let a trainer's processes watch each other from the moment they can talk.

    Those of a strategy that starts them from within Python (``ddp_spawn``, ``ddp_fork``) watch each other already.
    """
    if getattr(trainer.strategy, "_start_method", "popen") != "popen":
        return
    set_up: Callable[[], None] = trainer.strategy.setup_environment

    def set_up_and_watch() -> None:
        set_up()
        peers.start(trainer)

    trainer.strategy.setup_environment = set_up_and_watch  # type: ignore[method-assign]  # of this one trainer


@contextmanager
def ended_together() -> Iterator[Peers]:
    """Let the other processes know how this one ends."""
    peers = Peers()
    try:
        yield peers
    except BaseException:
        peers.fail()
        raise
    peers.finish()


class Peers:
    """What a process knows of the others; nothing on one process."""

    def __init__(self) -> None:
        self.rank, self._processes = 0, 1
        self._store: TCPStore | None = None
        self._ends = threading.Event()
        self._suspects = False
        self._tells = True  # whether this process speaks when the first one is gone
        self._names: dict[int, str] = {}

    def start(self, trainer: L.Trainer) -> None:
        """Meet the others; a collective call. Once is enough for several fits and tests."""
        if trainer.world_size == 1 or self._store is not None:
            return
        strategy = trainer.strategy
        self.rank, self._processes = trainer.global_rank, trainer.world_size
        self._tells = self.rank == 1 or trainer.local_rank == 0
        host = strategy.cluster_environment.main_address  # type: ignore[attr-defined]  # of one with several processes
        store = TCPStore(host, 0, is_master=True, **_HOW) if self.rank == 0 else None
        port = strategy.broadcast(0 if store is None else store.port)
        try:
            store = TCPStore(host, port, is_master=False, **_HOW) if store is None else store
            store.set(f"name/{self.rank}", f"process {self.rank} ({socket.gethostname()}, pid {os.getpid()})")
        except DistError as error:  # a firewall is no reason not to train
            log.warning("%s, port %d: cannot be reached (%s): the process is not watched", host, port, error)
            store = None
        strategy.barrier()
        if store is not None:
            there = [rank for rank in range(self._processes) if store.check([f"name/{rank}"])]
            self._names = {rank: store.get(f"name/{rank}").decode() for rank in there}
            self._store = store
            threading.Thread(target=self._watch, args=(store,), name="peers", daemon=True).start()

    # -- what this process has to say --------------------------------------------------------------------------------
    def fail(self) -> bool:
        """Let the others end, because this process does; whether it is the first to, and says why."""
        if self._store is None or self._ends.is_set():
            return True
        self._ends.set()
        try:
            first = self._store.compare_set(FAILED, "", str(self.rank)).decode() == str(self.rank)
            self._store.set(f"{KNOWS}/{self.rank}", "")
            self._wait_for_others(self._store, 8 * BEAT)
        except DistError:  # the first process is gone
            return True
        return first

    def tell_error(self, text: str) -> int:
        """Say what is wrong, unless another process has said why all end; the exit status."""
        if self.fail():
            sys.stderr.write(f"contactlm: error: {text}\n")
        return 1

    def finish(self) -> None:
        """End without a word; the first process, which keeps the store, when all others know."""
        if self._store is None or self._ends.is_set():
            return
        self._ends.set()
        with suppress(DistError):
            self._store.set(f"{DONE}/{self.rank}", "")
            self._store.set(f"{KNOWS}/{self.rank}", "")
            self._wait_for_others(self._store, LOST_AFTER)

    def _wait_for_others(self, store: TCPStore, patience: float) -> None:
        """In the first process: wait until every other one knows what this one says, or has ended."""
        deadline = time.monotonic() + patience
        keys = [f"{KNOWS}/{rank}" for rank in self._names] if self.rank == 0 else []
        while keys and not store.check(keys) and time.monotonic() < deadline:
            time.sleep(BEAT / 10)

    def explain(self, error: BaseException) -> None:
        """Wait for the reason where an error says that another process is gone: the thread tells it, and ends this one.

        Returns where it is another kind of error.
        """
        broken = isinstance(error, DistError) or any(sign in str(error) for sign in BROKEN)
        if self._store is not None and broken:
            self._suspects = True
            time.sleep(SUSPECT_AFTER + 8 * BEAT)

    # -- the thread --------------------------------------------------------------------------------------------------
    def _watch(self, store: TCPStore) -> None:
        last = {rank: (-1, 0) for rank in self._names if rank > 0 and self.rank == 0}
        try:
            while not self._ends.wait(BEAT):
                store.add(f"beat/{self.rank}", 1)
                if store.check([FAILED]):
                    store.set(f"{KNOWS}/{self.rank}", "")
                    self._wait_for_others(store, 8 * BEAT)
                    self._end_process()
                if self.rank and store.check([f"{DONE}/0"]):
                    store.set(f"{KNOWS}/{self.rank}", "")
                    return
                for rank in last:
                    self._look_at(store, rank, last)
        except DistError:
            if not self._ends.is_set():
                self._end_process(self._names[0] if self._tells else None)

    def _look_at(self, store: TCPStore, rank: int, last: dict[int, tuple[int, int]]) -> None:
        """In the first process: end the run when another one has not beaten for too long.

        Looks are counted, and not seconds: a run that is suspended as a whole goes on.
        """
        beats, looks = store.add(f"beat/{rank}", 0), last[rank][1] + 1
        if beats != last[rank][0] or store.check([f"{DONE}/{rank}"]):
            looks = 0
        last[rank] = beats, looks
        if looks * BEAT > (SUSPECT_AFTER if self._suspects else LOST_AFTER) and not self._ends.is_set():
            store.set(FAILED, str(rank))
            store.set(f"{KNOWS}/{rank}", "")
            store.set(f"{KNOWS}/0", "")
            self._wait_for_others(store, 8 * BEAT)
            self._end_process(self._names[rank])

    def _end_process(self, gone: str | None = None) -> None:
        """End this process at once, in the middle of whatever it waits for."""
        if gone is not None:
            sys.stderr.write(
                f"contactlm: error: {gone} is gone: it was killed (memory?), or its machine cannot be reached; the run "
                "ends, and --ckpt_path last goes on with it\n"
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
