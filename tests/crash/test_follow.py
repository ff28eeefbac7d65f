"""A log that is appended to, rotated by renaming, by copying and cutting, and compressed, while an
engine follows it and is killed: every line is in the results once.

What copytruncate can lose in principle is not here to be lost: the writer is also who rotates, so
nothing is appended between the last byte copied and the cut. Bounded here; ``make crash`` writes
for 60 seconds and kills ten times."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import IO

import pytest

from tests.crash.kit import Engine
from tests.waiting import until

FULL = os.environ.get("HEADRACE_CRASH") == "full"
KILLS = 10 if FULL else 3
SECONDS = 60.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]

PIPELINE = """
name = "follow"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/log/app.log*"
format = "ndjson"
follow = true
poll_interval = "50ms"
[source.schema]
n = "int64"
[loader]
batch_rows = 100
[checkpoint]
interval = 0.3
[sink]
kind = "files"
format = "csv"
path = "{folder}/out"
"""


class Writer:
    """A program that logs and what rotates its log, in one.

    Attributes:
        n: lines that were written whole.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.n = 0
        self.done: Counter[str] = Counter()
        self._path = folder / "app.log"
        self._random = random.Random(seed)
        folder.mkdir()
        self._log = self._path.open("ab", buffering=0)

    def step(self) -> None:
        """A few lines, now and then half of one first, or a rotation."""
        how = self._random.choices(
            [self._append, self._rename, self._copy, self._compress], [60, 2, 2, 3]
        )[0]
        how()
        self.done[how.__name__] += 1

    def close(self) -> None:
        """Nothing comes after this."""
        self._log.close()

    def _append(self, log: IO[bytes] | None = None) -> None:
        rows = range(self.n, self.n + self._random.randint(1, 40))
        raw = b"".join(b'{"n": %d, "text": "%s"}\n' % (n, b"x" * (n % 90)) for n in rows)
        cut = self._random.randrange(len(raw)) if self._random.random() < 0.3 else 0
        for part in (raw[:cut], raw[cut:]):
            (log or self._log).write(part)
        self.n = rows.stop

    def _shift(self) -> None:
        """As logrotate: what was 1 is 2."""
        for path in sorted(self._rotated(), reverse=True):
            number = int(path.suffixes[1][1:])
            path.rename(str(self._path) + "".join([f".{number + 1:03}", *path.suffixes[2:]]))

    def _rotated(self) -> list[Path]:
        return list(self._path.parent.glob("app.log.*"))

    def _rename(self) -> None:
        self._shift()
        self._path.rename(f"{self._path}.001")
        with self._log as old:
            self._append(old)  # a program writes on until it is told to open the new one
            self._log = self._path.open("ab", buffering=0)

    def _copy(self) -> None:
        self._shift()
        shutil.copy(self._path, f"{self._path}.001")
        self._log.truncate(0)

    def _compress(self) -> None:
        """In place, under the last name, as gzip does."""
        plain = [path for path in self._rotated() if path.suffix != ".gz"]
        if not plain:
            return
        path = self._random.choice(plain)
        with gzip.open(f"{path}.gz", "wb") as packed, path.open("rb") as file:
            shutil.copyfileobj(file, packed, 4096)
        path.unlink()


def results(folder: Path) -> Counter[int]:
    """How often each line is there."""
    found: Counter[int] = Counter()
    for part in (folder / "out").glob("part-*.csv"):
        try:
            lines = part.read_text().splitlines()
        except FileNotFoundError:  # taken back: the engine starts
            continue
        column = lines[0].split(",").index("n")
        found.update(int(line.split(",")[column]) for line in lines[1:])
    return found


def test_every_line_once(tmp_path: Path) -> None:
    file = tmp_path / "follow.toml"
    file.write_text(PIPELINE.format(folder=tmp_path))
    writer = Writer(tmp_path / "log", seed=7)
    engine = Engine(file, [], tmp_path / "engine.log")
    (_full if FULL else _bounded)(writer, engine, tmp_path)
    writer.close()
    engine.start()
    until(lambda: len(results(tmp_path)) >= writer.n, process=engine.process)
    assert engine.stop() == 0
    found = results(tmp_path)
    doubled = {n: times for n, times in found.items() if times > 1}
    print(f"{writer.n} lines, {dict(writer.done)}, {engine.starts} starts")  # noqa: T201 - its figure
    assert set(found) == set(range(writer.n))
    assert not doubled
    assert min(writer.done.values()) > 0
    assert engine.starts == KILLS + 1


def _bounded(writer: Writer, engine: Engine, folder: Path) -> None:
    """Killed in the middle of what was just written, while more comes."""
    for _ in range(KILLS):
        for _ in range(60):
            writer.step()
        engine.start()
        before = len(results(folder))
        until(lambda: len(results(folder)) > before, process=engine.process)  # noqa: B023
        for _ in range(60):
            writer.step()
        engine.kill()
        for _ in range(60):
            writer.step()


def _full(writer: Writer, engine: Engine, folder: Path) -> None:
    """Killed at any moment, while the writer goes on."""
    end = threading.Event()

    def write() -> None:
        while not end.wait(0.005):
            writer.step()

    thread = threading.Thread(target=write)
    rng = random.Random(3)
    engine.start()
    thread.start()
    for _ in range(KILLS):
        end.wait(SECONDS / KILLS * rng.uniform(0.5, 1.5))
        engine.kill()
        engine.start()
    end.set()
    thread.join()
