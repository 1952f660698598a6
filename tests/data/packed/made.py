"""Packed sets to test with, and a file server that hands one out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from contactlm import ContactDataModule
from contactlm.data.packed.pack import pack_structures
from contactlm.data.packed.store import ClusterRule, Manifest
from tests.conftest import random_sequence, write_pdb

SHARD = 400  # residues: several shards of a few chains each


def write_folder(folder: Path, files: int = 14) -> Path:
    """Files of one to three chains, some of them copies, some short; related files; and one that cannot be read."""
    for i in range(files):
        sequences = {"A": random_sequence(i, 40 + 7 * i)}
        if i % 3 == 0:
            sequences |= {"B": random_sequence(50 + i, 45), "C": random_sequence(i, 40 + 7 * i)}
        if i % 4 == 1:
            sequences |= {"B": random_sequence(70 + i, 12)}
        write_pdb(folder / f"f{i:02d}.pdb", sequences, seed=i)
    for i in range(4):
        write_pdb(folder / f"r{i}.pdb", {"A": random_sequence(i, 40 + 7 * i)[: 38 + 7 * i] + "MK"}, seed=90 + i)
    (folder / "f05x.pdb").write_text("<html>not found</html>\n")
    return folder


def pack(folder: Path, out: Path, rule: ClusterRule | None = None, residues: int = SHARD) -> Manifest:
    return pack_structures([str(folder)], out, residues, clusters=rule, workers=0, progress=False)


def module(location: object, cache: Path, **options: Any) -> ContactDataModule:
    """A data module that is set up to train on the structures of a folder, list or packed set."""
    options = {"cache_dir": str(cache), "read_workers": 0, "dev_fraction": 0.2, "batch_size": 3} | options
    data = ContactDataModule(str(location), **options)
    data.prepare_data()
    data.setup("fit")
    return data


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; of some of them, the first answers are damaged or cut short."""

    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        with self.server.lock:
            self.server.asked[name] += 1
            fault = self.server.faults.get(name, [])
            plan = fault.pop(0) if fault else "good"
        body = (Path(self.directory) / name).read_bytes() if (Path(self.directory) / name).is_file() else None
        if body is None:
            return self.send_error(404)
        if plan == "damaged":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if plan == "short" else body)
        self.close_connection = True
        return None

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def shards_asked(self) -> list[int]:
        return [count for name, count in sorted(self.asked.items()) if name.startswith("shard")]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
