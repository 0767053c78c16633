"""The endpoint, as Prometheus, people and strangers meet it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from paddle_exporter import serve
from paddle_exporter.serve import Endpoint

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
A_MOMENT = 3.0  # seconds; far below TIMEOUT, far above what an answer takes here


def gauge(value=1.0):
    family = GaugeMetricFamily("a_gauge", "Help.", labels=["who"])
    family.add_metric(["me"], value)
    return family


@pytest.fixture
def serving():
    """Start endpoints; they are closed afterwards."""
    endpoints = []

    def begin(collectors=None, **options):
        arguments = {"address": "127.0.0.1", "port": 0, **options}
        endpoints.append(Endpoint(collectors or {"one": lambda: [gauge()]}, **arguments))
        return endpoints[-1]

    yield begin
    for endpoint in endpoints:
        with contextlib.suppress(OSError):  # some tests close theirs
            endpoint.close()


@pytest.fixture
def connected():
    """Open connections; they are closed afterwards."""
    with contextlib.ExitStack() as stack:
        yield lambda endpoint: stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=10))


def until_closed(connection):
    """All that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while True:
            data = connection.recv(65536)
            if not data:
                break
            received += data
    return received


def talk(endpoint, request):
    """(status line, headers, body) of the answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return status, {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}, body


def get(endpoint, path="/metrics", method="GET", **headers):
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return talk(endpoint, f"{method} {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode("latin-1"))


def scraped(endpoint):
    """Whether a scrape is answered in a moment."""
    before = time.monotonic()
    status, _, body = get(endpoint)
    assert time.monotonic() - before < A_MOMENT
    return status == "HTTP/1.1 200 OK" and b"a_gauge" in body


# --- what is asked for --------------------------------------------------------------------------------------


def test_text_by_default(serving):
    status, headers, body = get(serving())
    assert status == "HTTP/1.1 200 OK"
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert int(headers["content-length"]) == len(body)
    assert next(f.name for f in parse_text(body.decode())) == "a_gauge"


@pytest.mark.parametrize("accept", [PROMETHEUS, "application/openmetrics-text; version=1.0.0"])
def test_openmetrics_on_request(serving, accept):
    _, headers, body = get(serving(), Accept=accept)
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert next(f.name for f in parse_openmetrics(body.decode())) == "a_gauge"


@pytest.mark.parametrize(
    "accept",
    [
        "",
        ",",
        ";",
        ";;;=,=;",
        "application/openmetrics-text",
        "application/openmetrics-text;version",
        "application/openmetrics-text;version=",
        "application/openmetrics-text;version=abc",
        "application/openmetrics-text;version=1.0.0.0.0.0",
        "application/openmetrics-text;version=99",
        "application/openmetrics-text;version=1.0.0;escaping=nonsense",
        "text/plain;version=1.0.0;escaping=",
        "text/plain;version=x;escaping=underscores",
        "text/plain;version=\xff",
        "x" * 5000,
    ],
)
def test_any_accept_header_is_answered_at_once_and_leaves_no_trouble(serving, caplog, accept):
    endpoint = serving()
    before = time.monotonic()
    status, _, body = get(endpoint, Accept=accept)
    assert status == "HTTP/1.1 200 OK"
    assert b"a_gauge" in body
    assert scraped(endpoint)
    assert time.monotonic() - before < A_MOMENT / 2
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_query_does_not_matter(serving):
    assert get(serving(), "/metrics?name[]=x")[0] == "HTTP/1.1 200 OK"


def test_the_landing_page_leads_to_the_metrics(serving):
    status, headers, body = get(serving(title="my run"), "/")
    assert status == "HTTP/1.1 200 OK"
    assert headers["content-type"].startswith("text/html")
    assert b'href="metrics"' in body
    assert b"my run" in body


def test_a_title_is_no_markup(serving):
    _, _, body = get(serving(title="<script>alert(1)</script>"), "/")
    assert b"<script" not in body
    assert b"&lt;script" in body


@pytest.mark.parametrize("path", ["/metrics", "/", "/healthz", "/none"])
def test_head_is_get_without_the_body(serving, path):
    endpoint = serving({"one": list})
    full, head = get(endpoint, path), get(endpoint, path, "HEAD")
    assert head[2] == b""
    assert head[0] == full[0]
    assert head[1].keys() == full[1].keys()
    assert path == "/metrics" or head[1] == full[1]


@pytest.mark.parametrize("path", ["/none", "/metrics/", "/metric", "/../metrics", "//", "/%2e%2e/etc/passwd", "*"])
def test_other_paths_are_not_found(serving, path):
    assert get(serving(), path)[0].split()[1] in ("404", "400")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "X" * 100])
def test_other_methods_are_refused(serving, method):
    status, _, _ = get(serving(), method=method)
    assert status.split()[1] in ("405", "501", "400")


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
        b"\xff" * 1000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X" * 100_000,
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
    ],
    ids=range(9),
)
def test_garbage_is_refused_and_the_next_scrape_served(serving, request_):
    endpoint = serving()
    status, _, body = talk(endpoint, request_)
    assert status[:10] in ("", "HTTP/1.1 4")  # nothing, where the rest of the request met a closed connection
    assert b"a_gauge" not in body
    assert scraped(endpoint)


def test_a_request_in_single_bytes_is_answered(serving, connected):
    connection = connected(serving())
    for byte in b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n":
        connection.sendall(bytes([byte]))
    assert b"a_gauge" in until_closed(connection)


def test_a_client_that_closed_its_side_is_answered(serving, connected):
    connection = connected(serving())
    connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)
    assert b"a_gauge" in until_closed(connection)


def test_a_large_answer_arrives_whole(serving):
    def many():
        family = GaugeMetricFamily("a_gauge", "Help.", labels=["who"])
        for i in range(50_000):
            family.add_metric([f"{i:0100d}"], i)
        yield family

    _, headers, body = get(serving({"many": many}))
    assert len(body) == int(headers["content-length"]) > 5_000_000


# --- clients that hinder others -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [40, 400])
def test_idle_connections_do_not_block_a_scrape(serving, connected, count):
    endpoint = serving()
    for _ in range(count):
        connected(endpoint)
    assert scraped(endpoint)


def test_clients_that_stop_in_the_middle_of_a_request_do_not_block_a_scrape(serving, connected):
    endpoint = serving()
    for _ in range(100):
        connected(endpoint).sendall(b"GET /metrics HTTP/1.1\r\nHos")
    assert scraped(endpoint)


def test_clients_that_do_not_read_do_not_block_a_scrape(serving, connected):
    big = GaugeMetricFamily("big", "x" * 8_000_000)
    endpoint = serving({"big": lambda: [big], "one": lambda: [gauge()]})
    for _ in range(3):
        connected(endpoint).sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    before = time.monotonic()
    assert get(endpoint, "/healthz")[2] == b"ok\n"
    assert time.monotonic() - before < A_MOMENT


def test_clients_that_go_away_do_not_block_a_scrape(serving, connected):
    endpoint = serving()
    for _ in range(100):
        connection = connected(endpoint)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        connection.close()  # with a reset
    assert scraped(endpoint)


def test_a_client_has_a_limited_time_in_all(serving, connected, monkeypatch):
    monkeypatch.setattr(serve, "TIMEOUT", 0.3)
    connection = connected(serving())
    connection.settimeout(0.05)
    before = time.monotonic()
    closed = False
    while not closed and time.monotonic() - before < 5.0:
        try:
            connection.sendall(b"G")  # never a pause longer than the limit
            closed = connection.recv(1) == b""
        except socket.timeout:
            pass
        except ConnectionError:
            closed = True
    assert closed
    assert time.monotonic() - before < 2.0


def test_a_silent_client_is_sent_away_after_its_time(serving, connected, monkeypatch):
    monkeypatch.setattr(serve, "TIMEOUT", 0.3)
    connection = connected(serving())
    before = time.monotonic()
    assert until_closed(connection) == b""
    assert 0.2 < time.monotonic() - before < 2.0


def test_connections_leave_no_open_file(serving):
    endpoint = serving()
    scraped(endpoint)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        get(endpoint, "/none")
        talk(endpoint, b"\xff\r\n\r\n")
    deadline = time.monotonic() + 5.0
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        pass
    assert len(os.listdir("/proc/self/fd")) <= before


def test_connections_leave_no_thread(serving):
    endpoint = serving()
    before = threading.active_count()
    for _ in range(50):
        scraped(endpoint)
    assert threading.active_count() <= before + 1


def test_an_idle_endpoint_uses_no_time(serving):
    serving()
    before = time.process_time()
    threading.Event().wait(1.0)
    assert time.process_time() - before < 0.1


def test_no_free_file_descriptor_is_no_flood_of_warnings_and_serving_goes_on(child):
    process = child(
        "import logging, os, resource, socket, sys, time, threading\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from paddle_exporter.serve import Endpoint\n"
        "endpoint = Endpoint({}, '127.0.0.1', 0)\n"
        "first, client = socket.create_connection(('127.0.0.1', endpoint.port)), socket.socket()\n"
        "first.sendall(b'GET /healthz HTTP/1.1\\r\\n\\r\\n')\n"
        "while first.recv(4096): pass\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "taken = []\n"
        "try:\n"
        "    while True: taken.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "client.connect(('127.0.0.1', endpoint.port))\n"
        "threading.Event().wait(2.0)\n"
        "for fd in taken: os.close(fd)\n"
        "client.settimeout(5)\n"
        "client.sendall(b'GET /healthz HTTP/1.1\\r\\n\\r\\n')\n"
        "print(client.recv(12))\n"
    )
    out, err = process.communicate(timeout=30)
    assert "HTTP/1.1 200" in out
    assert err.count("WARNING") <= 2


# --- collectors -----------------------------------------------------------------------------------------------


def test_scrapes_at_once_are_all_answered_and_render_one_by_one(serving):
    inside, most = [], []

    def slow():
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.05)
        inside.pop()
        return [gauge()]

    endpoint = serving({"slow": slow})
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(get(endpoint))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"a_gauge" in body for _, _, body in answers] == [True] * 8
    assert max(most) == 1


def test_a_collector_that_raises_costs_only_itself(serving):
    def broken():
        yield gauge()
        raise OSError("lost")

    endpoint = serving({"broken": broken, "one": lambda: [GaugeMetricFamily("other", "Help.", value=2)]})
    status, _, body = get(endpoint)
    assert status == "HTTP/1.1 200 OK"
    assert b"other 2.0" in body
    assert b"a_gauge" not in body
    assert b'collector_success{collector="broken"} 0.0' in body
    assert b'collector_success{collector="one"} 1.0' in body


def test_families_that_cannot_be_rendered_do_not_stop_the_endpoint(serving, caplog):
    bad = GaugeMetricFamily("a_gauge", "Help.", labels=["who"])
    bad.add_metric(["me"], "no number")
    families = [bad]
    endpoint = serving({"one": lambda: families})
    before = time.monotonic()
    status, _, _ = get(endpoint)
    assert status.startswith("HTTP/1.1 5")
    families[:] = [gauge()]
    assert scraped(endpoint)
    assert time.monotonic() - before < A_MOMENT


# --- ports and the end ------------------------------------------------------------------------------------------


@pytest.fixture
def taken():
    """A port that is taken and whose successors are most likely free."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_the_next_free_port_is_taken(serving, taken):
    assert taken < serving(port=taken, tries=32).port <= taken + 31


def test_a_taken_port_without_another_try_is_an_error_that_names_it(serving, taken):
    with pytest.raises(OSError, match=str(taken)):
        serving(port=taken, tries=1)


def test_ports_end_at_65535(serving):
    with contextlib.suppress(OSError):
        assert serving(port=65535, tries=100).port == 65535


@pytest.mark.parametrize("address", ["203.0.113.1", "no-such-host.invalid", "a..b", "1.2.3"])
def test_an_address_that_is_not_ours_is_an_os_error(serving, address):
    with pytest.raises(OSError):
        serving(address=address)


def test_ipv6(serving):
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6")
    endpoint = serving(address="::1")
    with socket.create_connection(("::1", endpoint.port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert b"200" in until_closed(connection)


def test_a_closed_endpoint_gives_its_port_back_at_once(serving):
    endpoint = serving()
    scraped(endpoint)
    before = time.monotonic()
    endpoint.close()
    assert time.monotonic() - before < 0.3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=5)
    assert serving(port=endpoint.port).port == endpoint.port


def test_closing_does_not_wait_for_clients(serving, connected):
    endpoint = serving()
    for _ in range(10):
        connected(endpoint)
    scraped(endpoint)
    before = time.monotonic()
    endpoint.close()
    assert time.monotonic() - before < 0.5


def test_waiting_for_a_scrape_ends_when_it_comes(serving):
    endpoint = serving()
    now = time.monotonic()
    result = []
    thread = threading.Thread(target=lambda: result.append(endpoint.wait_for_scrape(now, 30.0)))
    thread.start()
    get(endpoint, X_Prometheus_Scrape_Timeout_Seconds="10")
    thread.join(5.0)
    assert result == [True]


def test_waiting_for_a_scrape_ends_after_its_time(serving):
    endpoint = serving()
    get(endpoint, X_Prometheus_Scrape_Timeout_Seconds="10")
    before = time.monotonic()
    assert not endpoint.wait_for_scrape(before, 0.2)
    assert 0.15 < time.monotonic() - before < A_MOMENT


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics"])
def test_what_is_not_prometheus_is_not_waited_for(serving, path):
    endpoint = serving()
    get(endpoint, path)
    assert endpoint.scraped == 0.0
