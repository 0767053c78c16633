"""The last scrape of a rank that fails, while the launcher already ends it."""

from __future__ import annotations

import signal

SCRIPT = """
import os, signal, threading, urllib.request, paddle_exporter

run = paddle_exporter.start(linger=20)
run.step(loss=1.0)

def scrape():
    request = urllib.request.Request(run.url, headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
    return urllib.request.urlopen(request, timeout=10).read().decode()

scrape()

def launcher():
    failed = ""
    while not failed.endswith(" 1.0"):  # not a scrape of Prometheus: the end goes on waiting
        page = urllib.request.urlopen(run.url, timeout=10).read().decode()
        (failed,) = [line for line in page.splitlines() if 'state="failed"' in line]
    os.kill(os.getpid(), signal.SIGTERM)
    print([line for line in scrape().splitlines() if 'state="failed"' in line], flush=True)

threading.Thread(target=launcher, daemon=True).start()
raise RuntimeError("a peer is gone")
"""


def test_a_sigterm_waits_for_the_scrape_of_the_end_and_then_kills(child):
    process = child(SCRIPT)
    out, err = process.communicate(timeout=60)
    assert out.strip().endswith("1.0']")
    assert "a peer is gone" in err
    assert process.returncode == -signal.SIGTERM
