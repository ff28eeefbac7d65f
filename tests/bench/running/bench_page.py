"""What watching costs: rows a second of a loop while ten live pages and a scraper are open, beside
those of the same loop while nobody looks.

``python -m tests.bench page``

One run, which learns from small batches, so that the loop needs Python's lock all the time; in
every other span of it the readers ask, each in its own rhythm, from a process of their own. What
the service's thread takes of a core is the most that the loop can lose to it; rows a second also
lose the core that the readers themselves need, which is a browser's elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from operator import truediv
from typing import IO, Any

from engine.config import Pipeline
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from tests.bench.measure import median, report

SETTLING = 0.25
"""The share of a span that is not counted: the readers begin or end in it."""
TABLE: dict[str, Any] = {
    "source": {"kind": "tests.pipelines.slow:Source", "rows": 10**10},
    "loader": {"batch_rows": 1_024},
    "scrub": {"standardize": {"columns": ["a"]}},
    "model": {"kind": "linear", "target": "y", "numeric": ["a"]},
    "service": {"port": 0},
}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/page.json``."""
    rounds, seconds = (3, 0.4) if quick else (20, 4.0)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline.of({"name": "page", "folder": folder, **TABLE})
        watched = _Watched(rounds, seconds)
        watched.run = Run(pipeline, watch=watched.look)
        try:
            watched.run.run()
        finally:
            watched.readers.stop()
    alone, read = watched.rates["alone"], watched.rates["watched"]
    figures = {
        "rows/s, alone": median(alone),
        "rows/s, watched": median(read),
        "lost while watched, percent": 100 * (1 - median([*map(truediv, read, alone)])),
        "service's thread, watched, percent of a core": 100 * median(watched.busy["watched"]),
        "service's thread, alone, percent of a core": 100 * median(watched.busy["alone"]),
        "answers a second": median(watched.answers["watched"]),
    }
    report("page", figures, seconds=watched.rates, goal="less than 1 percent lost")


class _Watched:
    """Lets readers come and go in turns while a run goes on, and takes its figures."""

    run: Run

    def __init__(self, rounds: int, seconds: float) -> None:
        self.readers = _Readers()
        self.rates: dict[str, list[float]] = {"alone": [], "watched": []}
        self.busy: dict[str, list[float]] = {"alone": [], "watched": []}
        self.answers: dict[str, list[float]] = {"alone": [], "watched": []}
        self._rounds, self._seconds = rounds, seconds
        self._warm = False
        self._begun = time.perf_counter()
        self._from: _Figures | None = None

    def look(self, loop: Loop, batch: Batch) -> None:
        """Called after every batch."""
        now = time.perf_counter()
        if self._from is None and now - self._begun >= SETTLING * self._seconds:
            self._from = self._figures(loop)
        if self._from is None or now - self._begun < self._seconds:
            return
        if self._warm:
            self._add(self._from, self._figures(loop))
        self._warm = True  # the first span compiles
        if len(self.rates["watched"]) == self._rounds:
            loop.stop()
            self.readers.stop()
        elif self.readers.reading:
            self.readers.stop()
        elif self.rates["alone"]:
            self.readers.start(self.run.parts.service.port)
        self._begun, self._from = time.perf_counter(), None

    def _add(self, before: _Figures, now: _Figures) -> None:
        name, seconds = "watched" if self.readers.reading else "alone", now.at - before.at
        self.rates[name].append((now.rows - before.rows) / seconds)
        self.busy[name].append((now.service - before.service) / seconds)
        self.answers[name].append((now.answers - before.answers) / seconds)

    def _figures(self, loop: Loop) -> _Figures:
        (thread,) = [each for each in threading.enumerate() if each.name == "headrace-service"]
        assert thread.ident is not None
        return _Figures(
            at=time.perf_counter(),
            rows=loop.totals.read,
            service=time.clock_gettime(time.pthread_getcpuclockid(thread.ident)),
            answers=self.readers.answers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """What has been done by a moment.

    Attributes:
        service: seconds that the service's thread was on a core.
        answers: what the readers got.
    """

    at: float
    rows: int
    service: float
    answers: int


class _Readers:
    """Ten pages and a scraper in a process of their own, which writes a byte for each answer."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._counter: threading.Thread | None = None
        self.answers = 0

    @property
    def reading(self) -> bool:
        """Whether they read now."""
        return self._process is not None

    def start(self, port: int) -> None:
        """Let them read."""
        command = [sys.executable, "-m", "tests.bench.running.page_readers", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._counter = threading.Thread(target=self._count, args=(self._process.stdout,))
        self._counter.start()

    def stop(self) -> None:
        """Let them end."""
        if self._process is None or self._counter is None:
            return
        self._process.kill()
        self._process.wait()
        self._counter.join()
        self._process = None

    def _count(self, pipe: IO[bytes]) -> None:
        while pipe.read(1):
            self.answers += 1
        pipe.close()


if __name__ == "__main__":
    main()
