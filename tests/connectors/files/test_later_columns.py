"""Columns that come later, which a run does not read, are told: on resume and while following."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from connectors.files.source import FilesSource
from engine.types import DROPPED, WILDCARD, EndOfStream, Mark, Schema

Write = Callable[[pl.DataFrame, Path], None]
WRITERS: dict[str, Write] = {
    "csv": lambda frame, path: frame.write_csv(path),
    "ndjson": lambda frame, path: frame.write_ndjson(path),
    "ndjson.gz": lambda frame, path: _zip(frame, path),
    "parquet": lambda frame, path: frame.write_parquet(path),
    "arrow": lambda frame, path: frame.write_ipc(path),
}
OLD = pl.DataFrame({"a": [1, 2], "b": [3, 4]})
NEW = pl.DataFrame({"a": [5, 6], "b": [7, 8], "c": [9, 10]})
TOLD = (
    "d/{}.{} has 1 column with which the run did not begin, and which is not read: 'c'; to read "
    "more, declare it in [source.schema] or start over with --fresh."
)


def _zip(frame: pl.DataFrame, path: Path) -> None:
    path.write_bytes(gzip.compress(frame.write_ndjson().encode()))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()


class Run:
    """A run over all there is; `again` resumes it."""

    def __init__(self, declared: Schema, before: Run | None = None, **own: Any) -> None:
        self.own = own
        self.positions: dict[str, int] = {} if before is None else dict(before.positions)
        self.source = FilesSource(FilesSource.Settings(path="d/*", **own))
        if before is None:
            self.schema = self.source.schema(declared)
            return
        self.source.restore_schema_state(before.source.schema_state())
        self.schema = self.source.schema({**before.schema, WILDCARD: DROPPED})
        mark = Mark(positions=before.positions)
        self.source.match_identities(before.source.identities(mark))
        self.source.seek(mark)

    def read(self) -> int:
        """Read what there is; return the number of rows."""
        rows = 0
        for _ in range(20):
            try:
                records = self.source.read(100, 1 << 20, 0.0)
            except EndOfStream:
                break
            if records is not None:
                self.positions |= records.end_positions
                rows += len(records)
        return rows

    def again(self) -> Run:
        return Run({}, before=self, **self.own)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [r.getMessage() for r in caplog.records if "did not begin" in r.getMessage()]
    caplog.clear()
    return told


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_column_of_a_file_that_comes_between_two_runs(
    suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    write = WRITERS[suffix]
    write(OLD, Path(f"d/a.{suffix}"))
    write(OLD + 10, Path(f"d/b.{suffix}"))
    run = Run({})
    assert (run.read(), warnings(caplog)) == (4, [])
    write(NEW, Path(f"d/c.{suffix}"))
    write(NEW + 10, Path(f"d/e.{suffix}"))
    run = run.again()
    assert (run.read(), warnings(caplog)) == (4, [TOLD.format("c", suffix)])
    run = run.again()
    assert (run.read(), warnings(caplog)) == (0, [])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_column_of_a_file_that_comes_while_it_is_followed(
    suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    write = WRITERS[suffix]
    write(OLD, Path(f"d/a.{suffix}"))
    run = Run({}, follow=True, poll_interval=1e-6, format=suffix.partition(".")[0])
    assert (run.read(), warnings(caplog)) == (2, [])
    write(NEW, Path("new"))
    Path("new").rename(f"d/b.{suffix}")
    assert (run.read(), warnings(caplog)) == (2, [TOLD.format("b", suffix)])
    write(NEW + 1, Path("new"))
    Path("new").rename(f"d/c.{suffix}")
    run = run.again()
    assert (run.read(), warnings(caplog)) == (2, [TOLD.format("c", suffix)])


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_that_were_chosen_are_no_news(
    suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    write = WRITERS[suffix]
    write(OLD, Path(f"d/a.{suffix}"))
    run = Run({"a": pl.Int64(), WILDCARD: DROPPED})
    assert run.read() == 2
    write(NEW, Path(f"d/b.{suffix}"))
    run = run.again()
    assert (run.read(), warnings(caplog)) == (2, [])
