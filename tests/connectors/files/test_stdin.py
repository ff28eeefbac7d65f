"""Standard input: read once, as it comes, to its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from connectors.files.readers import stdin
from connectors.files.source import FilesSource
from engine.types import EndOfStream, HeadraceError, Mark, Schema, UserError
from tests.connectors.conftest import drain
from tests.forks import Command


class Pipe:
    """What a program writes to an engine."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()

    def write(self, text: str) -> None:
        """Add to it."""
        os.write(self._write_end, text.encode())

    def end(self) -> None:
        """Nothing comes any more."""
        os.close(self._write_end)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    made = Pipe()
    monkeypatch.setattr(stdin, "DESCRIPTOR", made.read_end)
    yield made
    os.close(made.read_end)


def source(format: str = "ndjson", **own: Any) -> FilesSource:
    return FilesSource(FilesSource.Settings(path="-", format=format, **own))


def rows(made: FilesSource, schema: Schema) -> list[tuple[Any, ...]]:
    frames = [made.format.decode(records, schema)[0] for records in drain(made)]
    return pl.concat(frames).drop("_partition", "_position").rows()


TEXTS = {
    "csv": "id,x\n1,a\n2,b\n3,c",
    "ndjson": '{"id": 1, "x": "a"}\n{"id": 2, "x": "b"}\n{"id": 3, "x": "c"}',
}


@pytest.mark.parametrize("format", TEXTS)
@pytest.mark.parametrize("end", ["", "\n"])
def test_columns_are_guessed_and_nothing_is_taken(pipe: Pipe, format: str, end: str) -> None:
    pipe.write(TEXTS[format] + end)
    pipe.end()
    made = source(format)
    assert made.unbounded()
    schema = made.schema({})
    assert schema == {"id": pl.Int64(), "x": pl.String()}
    made.seek(Mark())
    assert rows(made, schema) == [(1, "a"), (2, "b"), (3, "c")]
    with pytest.raises(EndOfStream):
        made.read(1, 1_000, 0.0)


def test_rows_come_as_they_are_written(pipe: Pipe) -> None:
    pipe.write("alpha\n")
    made = source("text")
    schema = made.schema({"value": pl.String()})
    made.seek(Mark())
    seen = []
    for text, count in (("", 1), ("bra", 0), ("vo\ncharlie\nde", 2), ("lta", 0)):
        pipe.write(text)
        while (records := made.read(10, 1_000, 0.01)) is not None:
            seen += [(r.partition, len(r)) for r in [records]]
            count -= len(records)
        assert count == 0
    pipe.end()
    (last,) = drain(made)
    assert made.format.decode(last, schema)[0]["value"].to_list() == ["delta"]
    assert {name for name, _ in seen} == {"-"}


def test_rows_that_were_looked_at_come_though_nothing_follows(pipe: Pipe) -> None:
    """A program may write its first rows and then wait for what comes of them."""
    pipe.write("id,x\n1,a\n2,b\n")
    made = source("csv")
    schema = made.schema({})
    made.seek(Mark())
    records = made.read(10, 1 << 20, 0.0)
    assert records is not None
    assert made.format.decode(records, schema)[0]["id"].to_list() == [1, 2]
    assert made.read(10, 1 << 20, 0.0) is None
    pipe.end()


def test_more_than_is_looked_at(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdin, "PEEK", 20)
    pipe.write("id\n" + "".join(f"{n}\n" for n in range(1_000)))
    pipe.end()
    made = source("csv")
    schema = made.schema({})
    made.seek(Mark())
    assert rows(made, schema) == [(n,) for n in range(1_000)]
    with pytest.raises(HeadraceError, match="can be read only once"):
        made.schema({})


def test_what_comes_after_a_restart_is_new(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    pipe.write("alpha\n")
    pipe.end()
    made = source("text")
    made.match_identities({})
    made.seek(Mark(positions={"-": 100}))
    (records,) = drain(made)
    assert records.partition == "-#2"
    assert "is read as new input" in caplog.text


@pytest.mark.parametrize(
    ("format", "own", "sentence"),
    [
        (None, {}, "has no extension that says what it holds: set .* format"),
        ("parquet", {}, "reads lines of text, not 'parquet'"),
        ("csv", {"follow": True}, "leave follow out"),
        ("csv", {"epochs": 2}, "leave epochs out"),
        ("csv", {"order_by": ("a",)}, "leave order_by out"),
    ],
)
def test_what_standard_input_cannot_be(
    pipe: Pipe, format: str, own: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        source(format, **own)
    pipe.end()


def test_a_run_reads_it_and_a_check_does_not(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        f'name = "p"\nfolder = "{tmp_path}/run"\n[source]\nkind = "files"\npath = "-"\n'
        f'format = "csv"\n[sink]\nkind = "files"\nformat = "csv"\npath = "{tmp_path}/out"\n'
    )
    data = tmp_path / "data.csv"
    data.write_text("id\n1\n2\n")
    with subprocess.Popen(["cat", data], stdout=subprocess.PIPE) as pipe:
        for command in ("check", "run"):
            with Command([command, str(file)], stdin=pipe.stdout) as process:
                assert process.wait() == 0
    (part,) = (tmp_path / "out").glob("part-*.csv")
    assert pl.read_csv(part)["id"].to_list() == [1, 2]
