"""Columns that come later, which a run does not read, are told: on resume and while following."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from connectors.files.source import FilesSource
from connectors.formats.walks.json_scan import twice
from engine.types import DROPPED, WILDCARD, EndOfStream, Mark, Schema, UserError

Write = Callable[[pl.DataFrame, Path], None]
WRITERS: dict[str, Write] = {
    "csv": lambda frame, path: frame.write_csv(path),
    "ndjson": lambda frame, path: frame.write_ndjson(path),
    "ndjson.gz": lambda frame, path: _zip(frame, path),
    "parquet": lambda frame, path: frame.write_parquet(path),
    "arrow": lambda frame, path: frame.write_ipc(path),
    "avro": lambda frame, path: frame.write_avro(path),
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


def _xml(path: str, *columns: str) -> None:
    cells = "".join(f"<{c}>1</{c}>" for c in columns)
    Path(path).write_text(f"<rows><row>{cells}</row></rows>")


def _tar(path: str, *extensions: str) -> None:
    with tarfile.open(path, "w") as tar:
        for extension in extensions:
            Path("member").write_text("1")
            tar.add("member", f"0.{extension}")


@pytest.mark.parametrize(
    ("write", "suffix", "own"),
    [(_xml, "xml", {"row": "rows/row"}), (_tar, "tar", {"format": "webdataset"})],
)
def test_columns_of_files_after_the_first_whose_content_names_them(
    write: Callable[..., None], suffix: str, own: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A run begins with the columns of the first file: those of the others are told, too."""
    write(f"d/a.{suffix}", "a", "b")
    write(f"d/b.{suffix}", "a", "b", "c")
    run = Run({}, **own)
    assert (run.read(), warnings(caplog)) == (2, [TOLD.format("b", suffix)])
    write(f"d/e.{suffix}", "b", "d")
    run = run.again()
    told = TOLD.format("e", suffix).replace("'c'", "'d'")
    assert (run.read(), warnings(caplog)) == (1, [told])


def test_members_that_paths_name_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    own: dict[str, Any] = {"format": "webdataset", "paths": {"label": "cls;txt"}}
    _tar("d/a.tar", "cls", "a")
    _tar("d/b.tar", "txt", "a")
    assert (Run({}, **own).read(), warnings(caplog)) == (2, [])


def test_a_file_of_another_delimiter_is_refused_while_following(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where columns were chosen: its rows would be null in all of them."""
    monkeypatch.setattr("connectors.files.streams.follow.scan.SETTLE_SECONDS", 0.1)
    text = "Order;Umsatz\nA1;5,5\n"
    Path("d/a.csv").write_text(text)
    chosen: Schema = {"Umsatz": pl.Float64(), WILDCARD: DROPPED}
    for declared in ({}, chosen):
        run = Run(declared, follow=True, poll_interval=0.01)
        assert run.read() == 1
        Path("d/b.csv").write_text("Order,Umsatz\nA2,6.5\n")
        with pytest.raises(UserError, match=r"d/b\.csv has no column of d/a\.csv: .* between \","):
            read_until_it_fails(run)
        Path("d/b.csv").unlink()


def read_until_it_fails(run: Run) -> None:
    for _ in range(1_000):  # a file that may be half written is tried again for a while
        run.source.read(100, 1 << 20, 0.1)


def test_columns_that_a_later_file_lacks_are_told(caplog: pytest.LogCaptureFixture) -> None:
    OLD.write_csv("d/a.csv")
    run = Run({}, follow=True, poll_interval=0.01)
    assert run.read() == 2
    OLD.rename({"b": "B"}).write_csv("d/b.csv")
    for _ in range(100):
        if run.source.read(100, 1 << 20, 0.1) is not None:
            break
    lacks, has = (line for line in caplog.messages if line.startswith("d/b.csv "))
    assert lacks == "d/b.csv lacks 1 column that the run reads, null in its rows: 'b'."
    assert "with which the run did not begin" in has


@pytest.mark.parametrize("write", [WRITERS[kind] for kind in ("csv", "parquet", "arrow", "avro")])
def test_a_file_without_a_column_of_the_others_is_refused(write: Write) -> None:
    write(OLD, Path("d/a"))
    write(NEW.select("c", "a"), Path("d/b"))
    write(NEW.select(x="a", y="c"), Path("d/c"))
    format = {id(one): name for name, one in WRITERS.items()}[id(write)]
    with pytest.raises(
        UserError,
        match=r"^d/c has no column of d/a: expected 'a', 'b', 'c', got 'x', 'y': correct its",
    ):
        Run({}, format=format)


def test_a_file_of_objects_without_a_key_of_the_others_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may hold events of another kind, so it is read."""
    for name, line in {"a": '{"a": 1, "b": 2}', "b": '{"b": 3}', "c": '{"A": 1, "B": 2}'}.items():
        Path(f"d/{name}.ndjson").write_text(f"{line}\n")
    Run({}, format="ndjson")
    (said,) = (message for message in caplog.messages if "no key" in message)
    assert said.startswith(
        "d/c.ndjson has no key of the files before it: expected 'a', 'b', got 'A', 'B'; those are "
    )


@pytest.mark.timeout(120)
def test_a_line_with_200_000_keys_is_refused() -> None:
    """In a second, where each key was compared with each other."""
    many = json.dumps({f"k{i}": i for i in range(200_000)})
    Path("d/a.ndjson").write_text(f'{{"id": 1}}\n{many}\n')
    with pytest.raises(UserError, match=r"^d/a\.ndjson has 200,001 columns, .* are not guessed: "):
        Run({}, format="ndjson")


def test_keys_that_come_twice_are_found_in_any_order() -> None:
    keys = [f"k{i}" for i in range(2_000)]
    rows = [keys, keys[::-1], [*keys, "k7"], ["k0", "k0"], ["none"], ["k\\u0037", "k7"], []]
    texts = ["{" + ", ".join(f'"{key}": 1' for key in row) + "}\n" for row in rows]
    bounds = np.cumsum([0, *map(len, texts)])
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    assert twice(data, bounds, keys).tolist() == [False, False, True, True, False, True, False]
    assert not twice(data, bounds, []).any()


@pytest.mark.parametrize("delimiters", [";,", ",;", "\t|"])
def test_files_of_different_delimiters_are_refused(delimiters: str) -> None:
    for name, delimiter in zip("ab", delimiters, strict=True):
        Path(f"d/{name}.csv").write_text("x-y\n1-2\n".replace("-", delimiter))
    ours, other = (repr(d).replace("'", '"') for d in delimiters)
    with pytest.raises(UserError) as raised:
        Run({})
    assert str(raised.value) == (
        f"d/b.csv has no column of d/a.csv: expected 'x', 'y', got 'x{delimiters[1]}y'. Its "
        f"columns stand between {other}, and the files are read with delimiter {ours}: read it "
        "apart from the others, or convert it."
    )


def test_a_renamed_column_is_told_with_its_files(caplog: pytest.LogCaptureFixture) -> None:
    OLD.write_csv("d/a.csv")
    OLD.rename({"b": "B"}).write_csv("d/b.csv")
    OLD.rename({"b": "B"}).write_csv("d/c.csv")
    Run({})
    (said,) = (line for line in caplog.messages if "not in all of" in line)
    assert said.startswith(
        "2 columns are not in all of 3 files, and null where they are not: 'b' in d/b.csv, "
        "d/c.csv; 'B' in d/a.csv; [source] missing_columns"
    )
