"""A file server on this computer that misbehaves in every way a real one may."""

from __future__ import annotations

import gzip
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


def body_of(name: str) -> bytes:
    """A file of about 100 kB that does not compress, so that cuts fall inside."""
    noise = random.Random(name).randbytes(50_000).hex()
    return gzip.compress(f"data_{name}\n# {noise}\n".encode(), mtime=0)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/files/").removesuffix(".cif.gz")
        with self.server.lock:
            self.server.asked[name] += 1
            self.server.times.append(time.monotonic())
            self.server.busy += 1
            plan = self.server.plans.get(name, [])
            answer = plan.pop(0) if len(plan) > 1 else plan[0] if plan else good
        try:
            answer(self)
        except (BrokenPipeError, ConnectionResetError):
            pass  # who asked has gone
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def send(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    @property
    def name(self) -> str:
        return self.path.removeprefix("/files/").removesuffix(".cif.gz")

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plans: dict[str, list[Answer]] = {}
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.busy = 0  # a little longer than clients wait
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files"

    def handle_error(self, *_: object) -> None:
        pass


def good(handler: Handler) -> None:
    handler.send(body_of(handler.name))


def status(code: int, **headers: str) -> Answer:
    return lambda handler: handler.send(b"no", code, **headers)


def stall(handler: Handler) -> None:
    handler.send(body_of(handler.name)[:1000], length=100_000)
    handler.server.ended.wait(5)


def silent(handler: Handler) -> None:
    handler.server.ended.wait(60)


def truncated(handler: Handler) -> None:
    body = body_of(handler.name)
    handler.send(body[:-2000], length=len(body))


def truncated_without_length(handler: Handler) -> None:
    handler.send(body_of(handler.name)[:-2000], length=-1)


def flipped(handler: Handler) -> None:
    body = bytearray(body_of(handler.name))
    body[len(body) // 2] ^= 0xFF
    handler.send(bytes(body))


def garbage(handler: Handler) -> None:
    handler.send(b"<html>Please sign in to the hotel's network</html>")


def compressed_garbage(handler: Handler) -> None:
    handler.send(gzip.compress(b"<html>"))


def reset(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\nabc")
    handler.wfile.flush()
    handler.connection.close()


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
