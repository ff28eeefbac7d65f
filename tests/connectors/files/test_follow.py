"""Files that are followed: what is added, what comes, and what is rotated is read once."""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.files.source import FilesSource
from connectors.files.streams.follow import follower, scan
from engine.types import HeadraceError, Mark, Rejects, Schema, Snapshot, UserError
from tests.connectors.files.test_fingerprint import arrow, avro, csv, lines, parquet, run
from tests.containers import SYNC, block, datum, header, record
from tests.size import examples

LOOKS = 4
"""Looks after which nothing more is awaited: two for what must not change between them, and two
more."""


class Reader:
    """A followed source, and the mark after what was read."""

    def __init__(
        self,
        path: str,
        positions: dict[str, int] | None = None,
        identities: dict[str, Snapshot] | None = None,
        schema: Schema | None = None,
        **own: Any,
    ) -> None:
        given = {"follow": True, "poll_interval": 1e-6, **own}
        self.source = FilesSource(FilesSource.Settings(path=path, **given))
        self.schema = self.source.schema(schema or {})
        self.positions = dict(positions or {})
        self.source.match_identities(identities or {})
        self.source.seek(Mark(positions=self.positions))

    def some(self) -> list[str]:
        """What one read gives."""
        records = self.source.read(2, 1 << 20, 0.0)
        if records is None:
            return []
        self.positions |= records.end_positions
        frame, rejects = self.source.format.decode(records, self.schema)
        assert not rejects
        return [str(v) for v in frame[next(iter(self.schema))]]

    def all(self) -> tuple[list[str], list[Rejects]]:
        """All that can be read now, and what is rejected."""
        values: list[str] = []
        rejects: list[Rejects] = []
        quiet = 0
        while quiet < LOOKS:
            records = self.source.read(1 << 20, 1 << 20, 0.0)
            quiet = quiet + 1 if records is None else 0
            if records is not None:
                self.positions |= records.end_positions
                frame, more = self.source.format.decode(records, self.schema)
                values += map(str, frame[next(iter(self.schema))])
                rejects += more
        return values, rejects

    def rows(self) -> list[str]:
        """All that can be read now."""
        values: list[str] = []
        quiet = 0
        while quiet < LOOKS:
            more = self.some()
            quiet = 0 if more else quiet + 1
            values += more
        return values

    def identities(self) -> dict[str, Snapshot]:
        """What a checkpoint knows of the files."""
        return dict(self.source.identities(Mark(positions=self.positions)))

    def again(self, **own: Any) -> Reader:
        """A new process, from the mark."""
        identities = self.identities()
        self.source.close()
        path = str(self.source.settings.path)
        return Reader(path, self.positions, identities, **own)


@contextmanager
def reading(path: str, **own: Any) -> Iterator[Reader]:
    reader = Reader(path, **own)
    yield reader
    reader.source.close()


def add(path: str, *numbers: int) -> None:
    with Path(path).open("a") as file:
        file.write(lines(*numbers))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()


def test_lines_that_are_added_and_files_that_come() -> None:
    add("d/a.ndjson", 1)
    with reading("d/*.ndjson") as reader:
        assert reader.source.unbounded()
        assert reader.rows() == ["1"]
        add("d/a.ndjson", 2, 3)
        assert reader.rows() == ["2", "3"]
        add("d/b.ndjson", 4)
        add("d/a.ndjson", 5)
        assert sorted(reader.rows()) == ["4", "5"]
        assert reader.rows() == []
        assert reader.source.progress(Mark(positions=reader.positions)) is None
        again = reader.again()
        assert again.rows() == []
        add("d/a.ndjson", 6)
        assert again.rows() == ["6"]
        again.source.close()


def test_lag_tells_what_is_not_read() -> None:
    add("d/a.ndjson", 1, 2, 3)
    add("d/b.ndjson", 4)
    with reading("d/*.ndjson") as reader:
        records = reader.source.read(1, 1 << 20, 0.0)
        assert records is not None
        one = len(lines(1))
        lag = reader.source.lag(Mark(positions=records.end_positions))
        assert lag == {"d/a.ndjson": 2 * one, "d/b.ndjson": one}
        reader.rows()
        assert set(reader.source.lag(Mark(positions=reader.positions)).values()) <= {0, 2 * one}


@pytest.mark.parametrize("kind", ["text", "csv", "ndjson"])
def test_an_unfinished_line_waits(kind: str) -> None:
    first, half, rest = {
        "text": ("alpha\n", "bra", "vo\n"),
        "csv": ("id\nalpha\n", "bra", "vo\n"),
        "ndjson": ('{"id": "alpha"}\n', '{"id": "bra', 'vo"}\n'),
    }[kind]
    path = Path("d/a.log")
    path.write_text(first + half)
    with reading("d/a.log", format=kind) as reader:
        assert reader.rows() == ["alpha"]
        again = reader.again(format=kind)
        assert again.rows() == []
        with path.open("a") as file:
            file.write(rest)
        assert again.rows() == ["bravo"]
        again.source.close()


def test_a_header_that_is_not_whole_waits() -> None:
    path = Path("d/a.csv")
    with reading("d/*.csv", format="csv", schema={"id": pl.Int64()}) as reader:
        path.write_text("i")
        assert reader.rows() == []
        with path.open("a") as file:
            file.write("d\n1\n")
        assert reader.rows() == ["1"]


ROTATIONS = ("rename", "copy", "gzip", "move away", "recreate")


def rotate(how: str, n: int) -> None:
    log = Path("d/log.ndjson")
    if how == "rename":
        log.rename(f"d/log.{n}.ndjson")
    elif how == "copy":
        shutil.copy(log, f"d/log.{n}.ndjson")
        os.truncate(log, 0)
    elif how == "gzip":
        log.rename(f"d/log.{n}.ndjson")
        with gzip.open(f"d/log.{n}.ndjson.gz", "wb") as file:
            file.write(Path(f"d/log.{n}.ndjson").read_bytes())
        Path(f"d/log.{n}.ndjson").unlink()
    elif how == "move away":
        log.rename(f"away.{n}")
    else:
        log.unlink()


@pytest.mark.parametrize("read", [True, False], ids=["between", "at the end"])
@pytest.mark.parametrize("how", ROTATIONS)
def test_rotated_files_are_read_once(how: str, read: bool) -> None:
    """The file is open when it goes: so it is read to its end, wherever it is."""
    add("d/log.ndjson", 0)
    with reading("d/log*") as reader:
        seen = reader.rows()
        for n in range(1, 4):
            add("d/log.ndjson", 10 * n, 10 * n + 1)
            rotate(how, n)
            add("d/log.ndjson", 10 * n + 2)
            if read or how in ("move away", "recreate"):
                seen += reader.rows()
        seen += reader.rows()
        assert sorted(map(int, seen)) == [0, 10, 11, 12, 20, 21, 22, 30, 31, 32]
        assert reader.again().rows() == []


STEPS = st.lists(
    st.sampled_from([*ROTATIONS[:3], "add", "read", "stop", "save", "kill"]), max_size=15
)


@settings(max_examples=examples(60), deadline=None)
@given(steps=STEPS)
def test_any_rotation_between_any_looks(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where the engine is not there, has read only a part, or goes back to an older mark."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "d").mkdir()
    os.chdir(folder)
    n = 0
    add("d/log.ndjson", n)
    reader = Reader("d/log*")
    seen: list[str] = []
    saved: tuple[dict[str, int], dict[str, Snapshot], int] = {}, {}, 0
    for number, step in enumerate(steps):
        if step == "add":
            add("d/log.ndjson", n + 1, n + 2)
            n += 2
        elif step == "read":
            seen += reader.some()
        elif step == "stop":
            reader = reader.again()
        elif step == "save":
            saved = dict(reader.positions), reader.identities(), len(seen)
        elif step == "kill":
            reader.source.close()
            reader = Reader("d/log*", saved[0], saved[1])
            seen = seen[: saved[2]]
        elif Path("d/log.ndjson").stat().st_size:
            rotate(step, number)
            n += 1
            add("d/log.ndjson", n)
    seen += reader.rows()
    reader.source.close()
    assert sorted(map(int, seen)) == list(range(n + 1))


def test_a_copy_waits_while_it_is_written_and_takes_over_when_the_first_goes() -> None:
    add("d/log.ndjson", *range(1_000))
    with reading("d/log*") as reader:
        assert len(reader.rows()) == 1_000
        whole = Path("d/log.ndjson").read_bytes()
        for part in (10, 5_000, len(whole)):  # cp writes in place
            Path("d/log.1.ndjson").write_bytes(whole[:part])
            assert reader.rows() == []
        add("d/log.1.ndjson", 1_000)  # what came just before the copy was taken
        os.truncate("d/log.ndjson", 0)
        add("d/log.ndjson", 1_001)
        assert sorted(map(int, reader.rows())) == [1_000, 1_001]


def test_a_file_that_goes_on_otherwise_is_no_copy() -> None:
    add("d/a.ndjson", 1, 2)
    with reading("d/*.ndjson") as reader:
        assert reader.rows() == ["1", "2"]
        add("d/b.ndjson", 1)
        assert reader.rows() == []
        add("d/b.ndjson", 3)
        assert reader.rows() == ["1", "3"]


def test_a_copy_that_stays_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scan, "SETTLE_SECONDS", 0.0)
    add("d/a.ndjson", 1, 2)
    with reading("d/*.ndjson") as reader:
        assert reader.rows() == ["1", "2"]
        add("d/b.ndjson", 1, 2)
        assert reader.rows() == []
        assert reader.rows() == []
        told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert told == [
            "d/b.ndjson has the content of d/a.ndjson, or the beginning of it, and counts as a "
            "copy: its rows are not read unless that file disappears or the contents differ."
        ]


def test_a_copy_that_is_held_back_when_the_run_ends_is_told_by_where_its_twin_is_now(
    caplog: pytest.LogCaptureFixture,
) -> None:
    add("d/a.ndjson", 1, 2)
    with reading("d/*.ndjson") as reader:
        assert reader.rows() == ["1", "2"]
        Path("d/a.ndjson").rename("d/old.ndjson")
        add("d/a.ndjson", 1)
        assert reader.rows() == []
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told == [
        "d/a.ndjson has the content of d/old.ndjson (read as d/a.ndjson), or the beginning of it, "
        "and counts as a copy: its rows are not read unless that file disappears or the contents "
        "differ."
    ]


@pytest.mark.parametrize("write", [parquet, arrow, avro])
def test_a_copy_that_is_read_again_is_told(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    suffix = write.__name__
    write(Path(f"d/a.{suffix}"), 1, 2)
    with reading(f"d/*.{suffix}") as reader:
        assert reader.rows() == ["1", "2"]
        Path("elsewhere").write_bytes(Path(f"d/a.{suffix}").read_bytes())
        Path("elsewhere").rename(f"d/b.{suffix}")
        assert reader.rows() == ["1", "2"]
    assert f"d/b.{suffix} has the same size, beginning and end as d/a.{suffix}" in caplog.text


@pytest.mark.parametrize("write", [parquet, arrow, avro, csv])
def test_whole_files_that_come(write: Any) -> None:
    suffix = write.__name__
    write(Path(f"d/a.{suffix}"), 1, 2)
    with reading(f"d/*.{suffix}") as reader:
        assert reader.rows() == ["1", "2"]
        write(Path("elsewhere"), 3)
        Path("elsewhere").rename(f"d/b.{suffix}")
        assert reader.rows() == ["3"]
        assert reader.again().rows() == []


def test_compressed_files_that_come() -> None:
    add("d/a.ndjson", 0)
    with reading("d/*") as reader:
        assert reader.rows() == ["0"]
        whole = gzip.compress(lines(*range(1, 5_000)).encode())
        Path("d/b.ndjson.gz").write_bytes(whole)
        assert len(reader.rows()) == 4_999
        assert reader.again().rows() == []


def damaged_footer(path: Path) -> None:
    parquet(path, 1, 2)
    os.truncate(path, path.stat().st_size - 9)


def damaged_page(path: Path) -> None:
    """Its second row group cannot be read."""
    pl.DataFrame({"id": range(4)}).write_parquet(path, row_group_size=2, compression="uncompressed")
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)


def damaged_batch(path: Path) -> None:
    arrow(path, 1, 2)
    os.truncate(path, path.stat().st_size // 2)


NUMBERS = record(id="long")


def damaged_block(path: Path) -> None:
    """Its second block does not end in the sync marker."""
    path.write_bytes(header(NUMBERS) + numbers(0, 1) + numbers(2, sync=SYNC[::-1]) + numbers(3))


def numbers(*values: int, sync: bytes = SYNC) -> bytes:
    """A block of Avro."""
    rows = b"".join(datum(NUMBERS, {"id": value}) for value in values)
    return block(rows, len(values), sync=sync)


def damaged_gzip(path: Path) -> None:
    """Beyond the first block of text."""
    long = "".join(f'{{"id": {n}, "t": "{"x" * 4_000}"}}\n' for n in range(1_500))
    whole = gzip.compress(long.encode(), 1)
    path.write_bytes(whole[: len(whole) * 9 // 10])


def damaged_from_the_start(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b\x08" + b"\xff" * 40)


@pytest.mark.parametrize(
    ("damage", "write", "suffix"),
    [
        (damaged_footer, parquet, "parquet"),
        (damaged_page, parquet, "parquet"),
        (damaged_batch, arrow, "arrow"),
        (damaged_block, avro, "avro"),
        (damaged_gzip, None, "ndjson.gz"),
        (damaged_from_the_start, None, "ndjson.gz"),
    ],
)
def test_a_damaged_file_is_a_dead_letter_and_the_others_go_on(
    damage: Any, write: Any, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what lies before the damage; once, also after a restart; and a file in its place is
    read."""

    def good(path: Path, *values: int) -> None:
        if write is None:
            path.write_bytes(gzip.compress(lines(*values).encode()))
        else:
            write(path, *values)

    monkeypatch.setattr(scan, "SETTLE_SECONDS", 0.0)
    schema: Schema = {"id": pl.Int64()}
    good(Path(f"d/a.{suffix}"), -1)
    with reading(f"d/*.{suffix}", schema=schema) as reader:
        assert reader.rows() == ["-1"]
        damage(Path("elsewhere"))
        Path("elsewhere").rename(f"d/b.{suffix}")
        read, rejects = reader.all()
        assert read == [str(i) for i in range(len(read))]
        assert (len(read) > 0) == (damage in (damaged_page, damaged_block, damaged_gzip))
        (reject,) = rejects
        assert reject.reason == "unreadable"
        (letter,) = reject.rows.to_dicts()
        assert letter["_partition"] == f"d/b.{suffix}"
        assert letter["value"] == f"d/b.{suffix}"
        assert f"d/b.{suffix} cannot be" in letter["detail"]
        assert not any(reader.source.lag(Mark(positions=reader.positions)).values())
        with reading(f"d/*.{suffix}", schema=schema) as checked:
            pieces = checked.source.sample(100, 1.0)
            found = [r.reason for p in pieces for r in checked.source.format.decode(p, schema)[1]]
        assert (len(pieces), found) == (2, ["unreadable"] if not read else [])
        good(Path(f"d/c.{suffix}"), -2)
        assert reader.rows() == ["-2"]
        later = reader.again(schema=schema)
        assert later.all() == ([], [])
        good(Path("elsewhere"), -3)
        Path("elsewhere").rename(f"d/b.{suffix}")
        assert later.rows() == ["-3"]
        later.source.close()


def test_blocks_that_are_added_to_avro_files(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row once, also across a restart; a block waits until it is whole, however long."""
    monkeypatch.setattr(scan, "SETTLE_SECONDS", 0.0)
    path, whole = Path("d/a.avro"), header(NUMBERS)
    with reading("d/*.avro", format="avro", schema={"id": pl.Int64()}) as reader:
        path.write_bytes(whole[:-5])
        assert reader.rows() == []
        path.write_bytes(whole)
        assert reader.rows() == []
        whole += numbers(1, 2, 3)
        path.write_bytes(whole)
        assert reader.rows() == ["1", "2", "3"]
        path.write_bytes(whole + numbers(4, 5)[:-1])
        assert reader.rows() == reader.rows() == []
        assert "d/a.avro is not read to its end yet: block 2, at byte" in caplog.text
        whole += numbers(4, 5)
        path.write_bytes(whole)
        assert reader.rows() == ["4", "5"]
        later = reader.again(schema={"id": pl.Int64()})
        assert later.rows() == []
        path.write_bytes(whole + numbers(6) + b"\x02")
        assert later.rows() == ["6"]
        again = later.again(schema={"id": pl.Int64()})
        path.write_bytes(header(NUMBERS) + numbers(*range(7, 99)))  # which begins otherwise
        assert again.rows()[:1] == ["7"]
        again.source.close()


def test_a_packed_file_that_is_renamed_between_the_look_and_its_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its path is another file's by then, as where logs are rotated often."""
    first, second = Path("d/a.ndjson.gz"), Path("d/b.ndjson.gz")
    growing = FilesSource._growing

    def renamed(source: FilesSource, path: Path, name: str) -> Any:
        if not second.exists():
            first.rename(second)
            first.write_bytes(gzip.compress(lines(3, 4, 5).encode()))
        return growing(source, path, name)

    monkeypatch.setattr(FilesSource, "_growing", renamed)
    first.write_bytes(gzip.compress(lines(1, 2).encode()))
    with reading("d/*.gz", schema={"id": pl.Int64()}) as reader:
        rows = [row for _ in range(4) for row in reader.rows()]
        assert sorted(rows) == ["1", "2", "3", "4", "5"]
        assert reader.again(schema={"id": pl.Int64()}).rows() == []


def test_a_damaged_file_may_be_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SETTLE_SECONDS", 0.0)
    damaged_footer(Path("d/a.parquet"))
    own = {"format": "parquet", "on_replaced": "fail"}
    with (
        reading("d/*.parquet", schema={"id": pl.Int64()}, **own) as reader,
        pytest.raises(HeadraceError, match=r"d/a\.parquet cannot be read as parquet at row 0"),
    ):
        reader.rows()


def test_a_file_that_is_cut_without_a_copy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "SETTLE_SECONDS", 0.0)
    caplog.set_level(logging.WARNING)
    add("d/a.ndjson", 1, 2, 3)
    with reading("d/a.ndjson") as reader:
        assert reader.rows() == ["1", "2", "3"]
        with Path("d/a.ndjson").open("a") as file:
            file.write('{"id": ')
        assert reader.rows() == []
        os.truncate("d/a.ndjson", 0)
        add("d/a.ndjson", 4)
        assert reader.rows() == ["4"]
        assert re.search("'d/a.ndjson', .* before it was read to its end: the rest is", caplog.text)


def test_a_file_that_was_read_and_is_written_anew(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is told, and is no loss."""
    monkeypatch.setattr(scan, "SETTLE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    path = Path("d/a.csv")
    path.write_text("id\n1\n2\n")
    with reading("d/*.csv") as reader:
        assert reader.rows() == ["1", "2"]
        path.write_text("id\n9\n")
        assert reader.rows() == ["9"]
    assert "d/a.csv was truncated or replaced: what it holds now is a new file" in caplog.messages
    assert "d/a.csv is gone; it was read to its end" in caplog.messages
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_a_loss_may_be_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SETTLE_SECONDS", 0.0)
    Path("d/a.ndjson").write_text(lines(1) + '{"id": ')
    sentence = "was truncated, replaced or deleted before it was read to its end: put it back"
    with reading("d/a.ndjson", on_replaced="fail") as reader:
        assert reader.rows() == ["1"]
        Path("d/a.ndjson").write_text(lines(2))
        with pytest.raises(UserError, match=sentence):
            reader.rows()


def test_more_files_than_are_kept_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "MAX_OPEN_FILES", 3)
    for i in range(20):
        add(f"d/{i}.ndjson", i)
    with reading("d/*.ndjson") as reader:
        assert len(reader.rows()) == 20
        for i in range(20):
            add(f"d/{i}.ndjson", 100 + i)
        assert sorted(map(int, reader.rows())) == list(range(100, 120))


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"order_by": ("id",)}, "leave order_by out"),
        ({"epochs": 2}, "leave epochs out"),
        ({"shuffle_files": True}, "leave shuffle_files out"),
        ({"shards": 2}, "leave shards out"),
        ({"format": "documents"}, "each file of format 'documents' is one"),
    ],
)
def test_what_cannot_be_followed(own: dict[str, Any], sentence: str) -> None:
    add("d/a.ndjson", 1)
    with pytest.raises(UserError, match=sentence):
        Reader("d", **own)


def test_files_are_waited_for() -> None:
    with pytest.raises(UserError, match="matches no file"):
        Reader("d/*.ndjson")
    with reading("d/*.ndjson", format="ndjson", schema={"id": pl.Int64()}) as reader:
        assert reader.rows() == []
        add("d/a.ndjson", 1)
        assert reader.rows() == ["1"]


def test_a_run_that_ended_is_followed_on() -> None:
    """A last line that was taken without its end has one by now."""
    Path("d/a.log").write_text("alpha\nbravo")
    values, (positions, identities) = run("d/a.log", format="text")
    assert values == ["alpha", "bravo"]
    with Path("d/a.log").open("a") as file:
        file.write("\ncharlie\n")
    reader = Reader("d/a.log", positions, identities, format="text")
    assert reader.rows() == ["charlie"]
    reader.source.close()
