"""Runs functions in processes of their own: some to talk to each other, some to be killed.

The processes are forked from a server that has imported everything once, so that one starts in a moment.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["contactlm.cli.main", "contactlm.cli.contact_cli", "tests.conftest"])
_inherited = ("CONTACTLM_CACHE",)


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], env: dict[str, str], folder: Path, name: str
) -> None:
    """In the new process: call the function; its result and what it prints go to files."""
    import torch

    gc.freeze()  # of a million imported objects, which it would look at again and again
    os.environ.update(env)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C
    with (folder / f"{name}.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    status = 1
    try:
        result = function(*arguments)
        (folder / f"{name}.result").write_bytes(pickle.dumps(result))
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 - shown by whoever waits for this process
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing of the test runner is to be torn down here


def start(
    function: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    name: str = "process",
    env: dict[str, str] | None = None,
) -> BaseProcess:
    """Start a function of some test module in a process of its own, in a folder."""
    inherited = {key: os.environ[key] for key in _inherited if key in os.environ}
    values = {"OMP_NUM_THREADS": "1", **inherited, **(env or {})}
    process = _context.Process(target=_run, args=(function, arguments, values, folder, name))
    process.start()
    return process


def finish(process: BaseProcess, folder: Path, name: str = "process", timeout: float = 240) -> Any:
    """Wait for a process and return the function's result; an AssertionError with its output when it failed."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, f"{name} ended with {process.exitcode}:\n{output(folder, name)}"
    return pickle.loads((folder / f"{name}.result").read_bytes())  # our own file


def command(*arguments: str) -> None:
    """To be started: ``contactlm`` with some arguments, which exits as the program does."""
    from contactlm.__main__ import main

    sys.argv = ["contactlm", *arguments]
    sys.exit(main())


def output(folder: Path, name: str = "process") -> str:
    """What a process has printed so far."""
    path = folder / f"{name}.log"
    return path.read_text(errors="replace") if path.is_file() else ""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def rank_env(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What Lightning, or torchrun, tells each of several processes on one machine."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**address, "NODE_RANK": "0", "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}


def run_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, folder: Path, timeout: float = 240
) -> list[Any]:
    """Run a function in several processes that form a group; its results by rank."""
    port = free_port()
    processes = [
        start(function, *arguments, folder=folder, name=f"rank{rank}", env=rank_env(rank, world_size, port))
        for rank in range(world_size)
    ]
    try:
        return [finish(process, folder, f"rank{rank}", timeout) for rank, process in enumerate(processes)]
    finally:
        for process in processes:
            process.kill()


def wait_until(holds: Callable[[], bool], process: BaseProcess, timeout: float = 200) -> None:
    """Wait for something that a running process brings about."""
    deadline = time.monotonic() + timeout
    while not holds() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert holds(), f"it did not happen; the process is {'alive' if process.is_alive() else 'gone'}"
