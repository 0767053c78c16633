"""The HTTP endpoint: /metrics, /healthz and a page for people. It runs inside training processes.

One thread, which sleeps until a client comes: it reads all clients at once, so that slow and idle ones (a port
scanner, a scraper that died) cost a file descriptor each and hold up nobody, and it renders one scrape after the
other, so that scrapes at once do not take the interpreter from training for longer. Every client has TIMEOUT
seconds, and when all places are taken the oldest client goes. prometheus_client renders; its own server starts a
thread for each connection, without a cap and without timeouts.
"""

from __future__ import annotations

import contextlib
import html
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from .collectors.guard import Collect, Guard
from .version import __version__

log = logging.getLogger("paddle_exporter")

CONNECTIONS = 256
"""Clients at once; for one more, the oldest has to go."""
TIMEOUT = 5.0
"""Seconds a client has to send its request and to take the answer."""
REQUEST_BYTES = 16384
"""Longest request that is read."""

_TEXT = "text/plain; charset=utf-8"
_SCRAPER = b"x-prometheus-scrape-timeout-seconds"  # Prometheus and its kin send it; a person with a browser does not


class Endpoint:
    """Serves the metrics of ``collectors`` on ``address``, in a thread of its own.

    ``port`` is the first port to try, the next ``tries - 1`` follow it; 0 takes any free one. OSError if none is
    free. ``scraped`` is when the last scrape by a Prometheus began (monotonic seconds, 0 before the first),
    ``interval`` how long that was after the one before it (infinite before the second).
    """

    def __init__(
        self,
        collectors: Mapping[str, Collect],
        address: str,
        port: int,
        tries: int = 1,
        title: str = "paddle-exporter",
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Guard(collectors))
        self._title = title
        self._answered = threading.Condition()
        self.scraped = 0.0
        self.interval = float("inf")
        self._listener = _listen(address, port, tries)
        self.port: int = self._listener.getsockname()[1]
        self._waker, self._woken = socket.socketpair()
        self._closing = False
        self._refusing = False
        self._pid = os.getpid()
        self._clients: dict[socket.socket, _Client] = {}  # oldest first
        self._thread = threading.Thread(target=self._run, name="paddle-exporter", daemon=True)
        self._thread.start()

    def answer(self, request: bytes) -> tuple[bytes, bool]:
        """The whole response to a whole request, and whether that is a scrape by a Prometheus."""
        line, _, rest = request.partition(b"\r\n")
        words = line.decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, b"That is no HTTP request.\n"), False
        method, path = words[0], words[1].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"GET only.\n", extra="Allow: GET, HEAD\r\n"), False
        if path == "/metrics":
            response = self._metrics(_header(rest, b"accept"))
        elif path == "/healthz":
            response = _response(HTTPStatus.OK, b"ok\n")
        elif path == "/":
            response = _response(HTTPStatus.OK, self._landing(), "text/html; charset=utf-8")
        else:
            response = _response(HTTPStatus.NOT_FOUND, b"There are /metrics, /healthz and /.\n")
        if method == "HEAD":
            response = response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        return response, path == "/metrics" and _header(rest, _SCRAPER) != ""

    def wait_for_scrape(self, after: float, timeout: float) -> bool:
        """Wait until a scrape that began after ``after`` (monotonic) was answered; False if ``timeout`` came first."""
        with self._answered:
            return self._answered.wait_for(lambda: self.scraped > after, timeout)

    def abandon(self) -> None:
        """In a forked child: give up the parent's sockets, or the port would stay taken when the parent is gone."""
        for sock in (self._listener, self._waker, self._woken, *self._clients):
            with contextlib.suppress(OSError):
                sock.close()

    def close(self) -> None:
        """Stop serving; clients that wait for their answer lose it."""
        if os.getpid() == self._pid:
            self._closing = True
            self._waker.send(b"x")
            self._thread.join(TIMEOUT)
        self.abandon()

    # --- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing:
                try:
                    self._turn(selector)
                except Exception:
                    log.warning("serving metrics has trouble, and goes on", exc_info=True)
                    time.sleep(1.0)

    def _turn(self, selector: selectors.BaseSelector) -> None:
        """Wait for something to do, and do it."""
        oldest = next(iter(self._clients.values()), None)
        wait = None if oldest is None else max(oldest.deadline - time.monotonic(), 0.0)
        for key, _ in selector.select(wait):
            sock = key.fileobj
            if sock is self._listener:
                self._accept(selector)
            elif (
                isinstance(sock, socket.socket) and sock in self._clients and self._clients[sock].go_on(self, selector)
            ):
                self._drop(selector, sock)
        now = time.monotonic()
        for sock in [sock for sock, client in self._clients.items() if client.deadline <= now]:
            self._drop(selector, sock)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of file descriptors: make room, the client will come again
            if not self._refusing:
                log.warning("a client could not be accepted: %s (said once, until one is)", error)
            self._refusing = True
            if self._clients:
                self._drop(selector, next(iter(self._clients)))
            else:
                time.sleep(0.1)
            return
        self._refusing = False
        sock.setblocking(False)
        while len(self._clients) >= CONNECTIONS:
            self._drop(selector, next(iter(self._clients)))
        self._clients[sock] = _Client(sock, time.monotonic() + TIMEOUT)
        selector.register(sock, selectors.EVENT_READ)

    def _drop(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        del self._clients[sock]
        selector.unregister(sock)
        sock.close()

    def _metrics(self, accept: str) -> bytes:
        try:
            encode, content_type = choose_encoder(accept)
        except Exception:  # an Accept header that prometheus_client cannot read
            encode, content_type = choose_encoder("")
        try:
            return _response(HTTPStatus.OK, encode(self._registry), content_type)
        except Exception as error:  # a family that cannot be rendered
            log.warning("the metrics could not be rendered", exc_info=True)
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}\n".encode())

    def _landing(self) -> bytes:
        title = html.escape(self._title)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
            f"<p>paddle-exporter {__version__}</p>"
            '<p><a href="metrics">metrics</a>, <a href="healthz">healthz</a></p></html>\n'
        ).encode()

    def _scraped(self, began: float) -> None:
        with self._answered:
            if self.scraped:
                self.interval = began - self.scraped
            self.scraped = began
            self._answered.notify_all()


class _Client:
    """A connection: first its request comes in, then its answer goes out."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.deadline = deadline
        self._sock = sock
        self._request = b""
        self._response = memoryview(b"")
        self._began = 0.0  # of a scrape; stays 0 for anything else

    def go_on(self, endpoint: Endpoint, selector: selectors.BaseSelector) -> bool:
        """Read or write what can be; True when there is nothing left to do."""
        try:
            if not self._response:
                data = self._sock.recv(REQUEST_BYTES)
                self._request += data
                if not data:
                    return True
                if b"\r\n\r\n" in self._request:
                    began = time.monotonic()
                    response, scrape = endpoint.answer(self._request)
                    self._began = began if scrape else 0.0
                elif len(self._request) > REQUEST_BYTES:
                    response = _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"That request is too long.\n")
                else:
                    return False
                self._response = memoryview(response)
                selector.modify(self._sock, selectors.EVENT_WRITE)
            self._response = self._response[self._sock.send(self._response) :]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        if self._response:
            return False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        if self._began:
            endpoint._scraped(self._began)
        return True


def _listen(address: str, port: int, tries: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    last = min(port + tries, 65536) - 1 if port else 0
    trouble: OSError | None = None
    for candidate in range(port, last + 1):
        try:
            return _bind(family, address, candidate)
        except OSError as error:
            trouble = error
    raise OSError(f"no free port from {port} to {last} on {address}: {trouble}")


def _bind(family: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _header(lines: bytes, name: bytes) -> str:
    """The value of a header, or ""."""
    for line in lines.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode("latin-1")
    return ""


def _response(status: HTTPStatus, body: bytes, content_type: str = _TEXT, extra: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
