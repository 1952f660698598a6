"""Fetching structures from a server that misbehaves; killed and resumed; without a network."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contactlm.data.rcsb import download
from contactlm.data.rcsb.download import download_structures, is_complete
from contactlm.types import DataError
from tests.data.faulty_server import (
    Answer,
    Handler,
    Server,
    body_of,
    compressed_garbage,
    flipped,
    garbage,
    good,
    hang_up,
    reset,
    silent,
    stall,
    status,
    truncated,
    truncated_without_length,
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_WAIT", 0.01)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.ended.set()
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_come_whole_and_a_second_run_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    ids = ["1ABC", "2xyz_A", "2XYZ B", "pdb_00003ABC", "1abc", "PDB_00003abc_C"]
    report = download_structures(ids, tmp_path / "new" / "folder", server.url, progress=False)
    assert [path.name for path in report.paths] == ["1abc.cif.gz", "2xyz.cif.gz", "pdb_00003abc.cif.gz"]
    assert report.problems == {} and report.fetched == 3
    assert server.asked == {"1ABC": 1, "2XYZ": 1, "pdb_00003abc": 1}
    assert report.paths[0].read_bytes() == body_of("1ABC")
    again = download_structures(ids, tmp_path / "new" / "folder", server.url, progress=False)
    assert (again.paths, again.problems, again.fetched) == (report.paths, {}, 0)
    assert server.asked.total() == 3


@pytest.mark.parametrize(
    "bad",
    [
        *(status(500), status(503), status(408), stall, pytest.param(silent, marks=pytest.mark.slow)),
        *(truncated, truncated_without_length),
        *(flipped, garbage, compressed_garbage, reset, hang_up),
    ],
)
def test_what_may_pass_is_tried_again(
    server: Server, tmp_path: Path, bad: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plans["1ABC"] = [bad, bad, good]
    if bad in (stall, silent):  # a busy computer must not be taken for a server that is silent
        monkeypatch.setattr(download, "TIMEOUT", 0.8)
    report = download_structures(["1abc"], tmp_path, server.url, progress=False)
    assert report.problems == {}
    assert server.asked["1ABC"] == 3
    assert report.paths[0].read_bytes() == body_of("1ABC")
    assert names(tmp_path) == ["1abc.cif.gz"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (status(500), r"HTTP 500 Internal Server Error \(tried 3 times\)"),
        pytest.param(stall, r"no data for 0.8 s \(tried 3 times\)", marks=pytest.mark.slow),
        (truncated, r"the connection broke \(IncompleteRead.*\(tried 3 times\)"),
        (garbage, r"not a whole compressed mmCIF file \(tried 3 times\)"),
        (hang_up, r"the connection broke .*\(tried 3 times\)"),
    ],
)
def test_what_does_not_pass_is_a_problem_of_that_entry(
    server: Server, tmp_path: Path, bad: Answer, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "RETRIES", 2)
    if bad is stall:
        monkeypatch.setattr(download, "TIMEOUT", 0.8)
    server.plans["1ABC"] = [bad]
    report = download_structures(["1abc", "2abc"], tmp_path, server.url, progress=False)
    assert server.asked == {"1ABC": 3, "2ABC": 1}
    assert report.problems.keys() == {"1abc"}
    assert re.search(reason, report.problems["1abc"])
    assert names(tmp_path) == ["2abc.cif.gz"]


@pytest.mark.parametrize("code", [400, 403, 404, 410])
def test_final_answers_are_not_questioned(server: Server, tmp_path: Path, code: int) -> None:
    server.plans["1ABC"] = [status(code)]
    report = download_structures(["1abc", "2abc"], tmp_path, server.url, progress=False)
    assert server.asked == {"1ABC": 1, "2ABC": 1}
    assert f"HTTP {code}" in report.problems["1abc"]
    assert [path.name for path in report.paths] == ["2abc.cif.gz"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every pause, as they are asked for; they take longer where the computer is busy."""
    asked: list[float] = []
    pause = time.sleep

    def noting(seconds: float) -> None:
        asked.append(seconds)
        pause(seconds)

    monkeypatch.setattr(time, "sleep", noting)
    return asked


@pytest.mark.slow
def test_a_pause_the_server_asks_for_holds_back_the_others(
    server: Server, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(handler: Handler) -> None:
        while max(pauses) < 0.5 and not handler.server.ended.wait(0.01):
            pass  # the other one does not pause yet
        good(handler)

    server.plans = {"1ABC": [status(429, Retry_After="1"), good], "2ABC": [late]}
    ids = ["1abc", "2abc", "3abc", "4abc"]
    monkeypatch.setattr(download, "WORKERS", 2)
    report = download_structures(ids, tmp_path, server.url, progress=False)
    assert report.problems == {} and max(pauses) <= 1
    assert min(server.times[2:]) - min(server.times[:2]) >= 0.9


def test_too_long_a_pause_is_a_problem(server: Server, tmp_path: Path) -> None:
    server.plans["1ABC"] = [status(503, Retry_After="86400")]
    report = download_structures(["1abc"], tmp_path, server.url, progress=False)
    assert "the server asks to wait 86400 s" in report.problems["1abc"]
    assert server.asked["1ABC"] == 1


def test_requests_are_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WORKERS", 3)
    # not the server's count: who is answered may ask before that goes down
    three, lock, waiting = threading.Barrier(3), threading.Lock(), [0, 0]  # now, and at most

    def slow(handler: Handler) -> None:
        with lock:
            waiting[:] = waiting[0] + 1, max(waiting[1], waiting[0] + 1)
        three.wait(60)
        time.sleep(0.03)  # for a fourth one to come
        with lock:
            waiting[0] -= 1
        good(handler)

    ids = [f"{i}abc" for i in range(1, 10)] + [f"{i}xyz" for i in range(1, 10)]
    server.plans = {name.upper(): [slow] for name in ids}
    assert len(download_structures(ids, tmp_path, server.url, progress=False).paths) == 18
    assert waiting == [0, 3]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_network_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_WAIT", 0.01)
    ids = [f"{i}abc" for i in range(1, 10)]
    with pytest.raises(
        DataError, match=r"http://127.*cannot be reached for .abc: no connection .*\(tried 3 times\)"
    ) as e:
        download_structures(ids, tmp_path, f"http://127.0.0.1:{free_port()}/files", progress=False)
    assert "give a folder of them as train_dir" in str(e.value)
    assert sum(pauses) < 3
    assert names(tmp_path) == []


def test_a_complete_folder_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "1abc.cif.gz").write_bytes(gzip.compress(b"data_1ABC\n"))
    report = download_structures(["1abc"], tmp_path, f"http://127.0.0.1:{free_port()}", progress=False)
    assert [path.name for path in report.paths] == ["1abc.cif.gz"]


def test_a_network_that_goes_away_ends_the_run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WORKERS", 1)
    monkeypatch.setattr(download, "RETRIES", 1)

    def last(handler: Handler) -> None:
        with contextlib.suppress(OSError):  # not everywhere: what listens is not connected
            handler.server.socket.shutdown(socket.SHUT_RDWR)
        handler.server.socket.close()
        good(handler)  # after that, who is answered could ask once more

    server.plans["2ABC"] = [last]
    ids = [f"{i}abc" for i in range(1, 10)] * 1 + [f"{i}xyz" for i in range(1, 10)]
    with pytest.raises(DataError, match="cannot be reached"):
        download_structures(ids, tmp_path, server.url, progress=False)
    assert names(tmp_path) == ["1abc.cif.gz", "2abc.cif.gz"]
    assert server.asked.total() == 2


def test_a_folder_that_cannot_be_written_is_a_clear_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file"):
        download_structures(["1abc"], tmp_path / "file", server.url, progress=False)
    (tmp_path / "1abc.cif.gz").mkdir()  # rename onto it fails
    with pytest.raises(IsADirectoryError, match="1abc"):
        download_structures(["1abc", "2abc"], tmp_path, server.url, progress=False)


@pytest.mark.parametrize("base_url", ["ftp://x", "https:"])
def test_what_is_no_server_is_an_error(tmp_path: Path, base_url: str) -> None:
    with pytest.raises(DataError, match=r"base_url .*must begin"):
        download_structures(["1abc"], tmp_path, base_url, progress=False)


RUN = """
import sys
import contactlm.data.rcsb.download as download
sys.stdout.write("started\\n")
sys.stdout.flush()
ids = [f"{i}ab{letter}" for i in range(1, 10) for letter in "cdef"]
download.WORKERS = 2
report = download.download_structures(ids, sys.argv[1], sys.argv[2], progress=False)
sys.stdout.write(f"{len(report.paths)} {report.fetched}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on(server: Server, tmp_path: Path, how: signal.Signals) -> None:
    if sys.platform == "win32":
        pytest.skip("signals")
    server.plans = {f"{i}AB{letter}": [silent] for i in range(5, 10) for letter in "CDEF"}  # waits for 30 s
    command = [sys.executable, "-c", RUN, str(tmp_path), server.url]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A test run in the background ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while server.busy < 2 or len(names(tmp_path)) < 16:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, how)
    start = time.monotonic()
    _, errors = process.communicate()
    assert time.monotonic() - start < 20
    if how == signal.SIGINT:
        assert errors.splitlines()[-1] == "KeyboardInterrupt"
    server.plans.clear()
    asked = server.asked.copy()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "36 20"
    assert set(server.asked - asked) == {f"{i}AB{letter}" for i in range(5, 10) for letter in "CDEF"}
    assert (server.asked - asked).total() == 20


def test_a_file_is_complete_only_as_a_whole() -> None:
    body = body_of("1ABC")
    assert is_complete(body)
    assert not any(is_complete(body[:n]) for n in (0, 1, 10, 5000, len(body) - 8, len(body) - 1))
    damaged = [bytearray(body) for _ in range(20)]
    for i, copy in enumerate(damaged):
        copy[20 + i * 2500] ^= 1
    assert not any(is_complete(bytes(copy)) for copy in damaged)
    assert not is_complete(body + b"and more")
    assert not is_complete(gzip.compress(b"data"))


def test_the_generators_of_others_are_left_alone(server: Server, tmp_path: Path) -> None:
    server.plans["1ABC"] = [status(500), good]
    before = random.getstate()
    assert download_structures(["1abc"], tmp_path, server.url, progress=False).fetched == 1
    assert random.getstate() == before
