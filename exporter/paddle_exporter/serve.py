"""The HTTP endpoint: /metrics, a landing page, /healthz. Small on purpose; it runs inside training processes.

prometheus_client renders. Its own server is not used: it starts a thread for each connection without a cap, and
has no timeouts.
"""

from __future__ import annotations

import contextlib
import html
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from .collectors.guard import Collect, Guard
from .version import __version__

log = logging.getLogger("paddle_exporter")

CONNECTIONS = 16
"""Connections served at once; one more is answered 503."""
TIMEOUT = 5.0
"""Seconds a client may take for its request, and for taking the answer."""


class Endpoint:
    """Serves the metrics of ``collectors`` on ``address``, in threads of its own.

    ``port`` is the first port to try, the next ``tries - 1`` follow it; 0 takes any free one. OSError if all are
    taken. ``scraped`` and ``interval`` tell when the last scrape ended, and how long the one before it was ago.
    """

    def __init__(
        self, collectors: Mapping[str, Collect], address: str, port: int, tries: int = 1, title: str = "paddle-exporter"
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Guard(collectors))
        self._title = title
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._rendering = threading.Lock()
        self.scraped = 0.0
        self.scrapes = threading.Condition()
        self._server = self._listen(address, port, tries)
        self.port: int = self._server.server_address[1]
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._server.serve_forever, name="paddle-exporter", daemon=True)
        self._thread.start()

    def _listen(self, address: str, port: int, tries: int) -> _Server:
        trouble: OSError | None = None
        for candidate in range(port, min(port + tries, 65536)) if port else [0]:
            try:
                return _Server(self, address, candidate)
            except OSError as error:
                trouble = error
        last = min(port + tries, 65536) - 1
        raise OSError(f"no free port from {port} to {last} on {address}: {trouble}")

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition that a client's Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        with self._rendering:  # one at a time: scrapes at once must not take the interpreter from training longer
            return encode(self._registry), content_type

    def landing(self) -> bytes:
        """A page for people who open the port in a browser."""
        title = html.escape(self._title)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<h1>{title}</h1><p>paddle-exporter {__version__}</p>"
            '<ul><li><a href="metrics">metrics</a></li><li><a href="healthz">healthz</a></li></ul></html>\n'
        ).encode()

    def wait_for_scrape(self, after: float, timeout: float) -> bool:
        """Wait until a scrape that began after ``after`` (monotonic) was answered; False if ``timeout`` came first."""
        deadline = time.monotonic() + timeout
        with self.scrapes:
            while self.scraped < after:
                if not self.scrapes.wait(max(deadline - time.monotonic(), 0.0)) and time.monotonic() >= deadline:
                    return False
        return True

    def abandon(self) -> None:
        """In a forked child: give up the parent's socket, or it would stay open when the parent is gone."""
        with contextlib.suppress(OSError):
            self._server.socket.close()

    def close(self) -> None:
        """Stop listening."""
        if os.getpid() != self._pid:
            self.abandon()
            return
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, endpoint: Endpoint, address: str, port: int) -> None:
        self.endpoint = endpoint
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(TIMEOUT)
        if self.endpoint._room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.endpoint._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("a client went away", exc_info=True)  # noqa: LOG014 - called while it is handled


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT
    server_version = "paddle-exporter"
    sys_version = ""

    def do_GET(self) -> None:
        endpoint = self.server.endpoint
        path = self.path.partition("?")[0]
        if path == "/metrics":
            began = time.monotonic()
            body, content_type = endpoint.render(self.headers.get("Accept", ""))
            self._answer(200, body, content_type)
            with endpoint.scrapes:
                endpoint.scraped = began
                endpoint.scrapes.notify_all()
        elif path == "/healthz":
            self._answer(200, b"ok\n", "text/plain; charset=utf-8")
        elif path == "/":
            self._answer(200, endpoint.landing(), "text/html; charset=utf-8")
        else:
            self._answer(404, b"There is /metrics, /healthz and /.\n", "text/plain; charset=utf-8")

    do_HEAD = do_GET  # noqa: N815 - http.server finds it by this name

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
