"""The last scrape of a rank that fails, while the launcher already ends it."""

from __future__ import annotations

import signal
import urllib.request

SCRIPT = """
import paddle_exporter

run = paddle_exporter.start(linger=60)
run.step(loss=1.0)
print(run.url, flush=True)
input()
raise RuntimeError("a peer is gone")
"""


def failed(url, **headers):
    """Whether a scrape says so; with its header, it is one of Prometheus."""
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        (line,) = [line for line in answer.read().decode().splitlines() if 'state="failed"' in line]
    return line.endswith(" 1.0")


def test_a_sigterm_waits_for_the_scrape_of_the_end_and_then_kills(child):
    process = child(SCRIPT)
    url = process.stdout.readline().strip()
    prometheus = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}
    assert not failed(url, **prometheus)
    process.stdin.write("\n")
    process.stdin.flush()
    while not failed(url):
        pass
    process.send_signal(signal.SIGTERM)
    assert failed(url, **prometheus)
    _, err = process.communicate(timeout=60)
    assert "a peer is gone" in err
    assert process.returncode == -signal.SIGTERM
