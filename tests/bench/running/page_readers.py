"""Ten live pages and a scraper, as far as an engine sees them:

``python -m tests.bench.running.page_readers PORT``

Imports nothing heavy, so that it asks at once."""

from __future__ import annotations

import http.client
import sys
import time

PAGES, PAGE_SECONDS = 10, 2.0
SCRAPE_SECONDS = 10.0
"""As in deploy/prometheus/prometheus.yml."""


def read(port: int) -> None:
    """Ask as ten pages and a scraper do, for ever; a byte on stdout for each answer."""
    rhythms = [("/status.json", PAGE_SECONDS)] * PAGES + [("/metrics", SCRAPE_SECONDS)]
    start = time.monotonic()
    due = [start + n * period / len(rhythms) for n, (_, period) in enumerate(rhythms)]
    while True:
        turn = min(range(len(rhythms)), key=lambda at: due[at])
        time.sleep(max(0.0, due[turn] - time.monotonic()))
        path, period = rhythms[turn]
        due[turn] += period
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path)
        assert connection.getresponse().read()
        connection.close()
        sys.stdout.buffer.write(b".")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    read(int(sys.argv[1]))
