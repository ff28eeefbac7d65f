"""What every sink promises: after a checkpoint rows are safe, `restore` takes away what came
later."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from connectors.files.sink import FileDeadLetterSink, FilesSink
from connectors.kafka.sink import KafkaSink
from connectors.memory import MemorySink
from engine.types import Mark, Records, Sink, Source, UserError, parse_schema
from tests.broker import shared_broker
from tests.connectors.conftest import ROWS, SCHEMA, drain, files, kafka_source, sink_of
from tests.connectors.conftest import decoded as decoded_of
from tests.size import examples

Make = Callable[[], Sink]
Read = Callable[[], pl.DataFrame]
KINDS = ("parquet", "ndjson", "csv", "arrow")


@pytest.fixture
def safe(make_sink: Make, tmp_path: Path, request: pytest.FixtureRequest) -> Read:
    """What a reader of the sink's place sees now."""
    kind = request.node.callspec.params["make_sink"]

    def read() -> pl.DataFrame:
        topics = tmp_path / "topics"
        if topics.exists():
            return decoded(kafka_source(shared_broker(), topics.read_text().split()[0]))
        if kind != "memory":
            return seen(tmp_path)
        sink = make_sink()
        assert isinstance(sink, MemorySink)
        return sink.frame if sink.flushed else ROWS.clear()

    return read


def seen(folder: Path) -> pl.DataFrame:
    """The rows of all parts, by headrace's own source."""
    if not list((folder / "out").glob("part-*[0-9].*[!p]")):
        return ROWS.clear()
    return decoded(files([str(folder / "out" / "part-*[0-9].*[!p]")]))


def decoded(source: Source) -> pl.DataFrame:
    """All rows of a source."""
    schema = source.schema(SCHEMA)
    frames = [ROWS.clear()]
    for piece in drain(source):
        frame, rejects = source.format.decode(piece, schema)
        assert not rejects
        frames.append(frame.drop("_partition", "_position"))
    source.close()
    return pl.concat(frames)


def keep(sink: Sink) -> None:
    """What the engine does at a checkpoint."""
    sink.flush()
    if isinstance(sink, KafkaSink):
        assert sink.commit(Mark())


def test_kept_rows_are_safe_in_their_order(make_sink: Make, safe: Read) -> None:
    sink = make_sink()
    sink.write(ROWS[:20])
    sink.write(ROWS[20:30])
    assert safe().is_empty()
    keep(sink)
    assert_frame_equal(safe(), ROWS[:30])
    sink.write(ROWS[30:])
    keep(sink)
    sink.close()
    assert_frame_equal(safe(), ROWS)


def test_restore_takes_away_what_came_after_the_snapshot(make_sink: Make, safe: Read) -> None:
    sink = make_sink()
    sink.write(ROWS[:20])
    keep(sink)
    saved = sink.snapshot()
    sink.write(ROWS[20:25])
    sink.flush()
    sink.write(ROWS[25:27])
    again = make_sink()
    again.restore(saved)
    assert_frame_equal(safe(), ROWS[:20])
    again.write(ROWS[20:])
    keep(again)
    assert_frame_equal(safe(), ROWS)


def test_restore_to_the_start_takes_all_away(make_sink: Make, safe: Read) -> None:
    sink = make_sink()
    sink.write(ROWS)
    sink.flush()
    sink.restore(None)
    assert safe().is_empty()
    sink.write(ROWS[:3])
    keep(sink)
    assert_frame_equal(safe(), ROWS[:3])


def test_closing_drops_what_was_not_kept(make_sink: Make, safe: Read) -> None:
    sink = make_sink()
    sink.write(ROWS[:5])
    keep(sink)
    sink.write(ROWS[5:9])
    sink.close()
    sink.close()
    assert_frame_equal(safe(), ROWS[:5])


def test_empty_writes_and_flushes_change_nothing(make_sink: Make, safe: Read) -> None:
    sink = make_sink()
    sink.flush()
    sink.write(ROWS.clear())
    sink.flush()
    assert safe().is_empty()
    sink.write(ROWS[:2])
    keep(sink)
    keep(sink)
    assert_frame_equal(safe(), ROWS[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_beyond_the_buffer_wait_on_the_disk_unseen(kind: str, tmp_path: Path) -> None:
    sink = FilesSink(
        FilesSink.Settings(path=str(tmp_path / "out"), format=kind, max_buffer_bytes=1)
    )
    sink.write(ROWS[:20])
    sink.write(ROWS[20:])
    assert len(list((tmp_path / "out").glob("*.tmp"))) == 2
    assert seen(tmp_path).is_empty()
    sink.flush()
    assert_frame_equal(seen(tmp_path), ROWS)


def test_parts_of_another_format_are_results(tmp_path: Path) -> None:
    """A start over takes them away: the folder would hold every row twice."""
    frame = pl.DataFrame({"x": [1, 2]})
    for format in ("csv", "ndjson", "arrow", "parquet"):
        sink = FilesSink(FilesSink.Settings(path=str(tmp_path), format=format))
        assert sink.has_output() == (format != "csv")
        sink.restore(None)
        sink.write(frame)
        sink.flush()
        sink.close()
        assert [path.name for path in tmp_path.iterdir()] == [f"part-00000000.{format}"]


def test_files_of_other_names_stay(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    others = ["part-1.parquet", "part-00000000.txt", "notes.txt"]
    for name in others:
        (tmp_path / "out" / name).write_text("mine")
    sink = sink_of("parquet", tmp_path)
    sink.write(ROWS)
    sink.flush()
    sink.restore(None)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("harm", ["gone", "cut", "grown"])
def test_parts_that_are_not_as_they_were_written_are_told(
    kind: str, harm: str, tmp_path: Path
) -> None:
    sink = sink_of(kind, tmp_path)
    for start in (0, 10, 20):
        sink.write(ROWS[start : start + 10])
        sink.flush()
    saved = sink.snapshot()
    part = tmp_path / "out" / f"part-00000001.{kind}"
    data = part.read_bytes()
    again = sink_of(kind, tmp_path)
    again.restore(saved)  # all there
    part.unlink()
    if harm != "gone":
        part.write_bytes(data[:-1] if harm == "cut" else data + b"x")
    what = "1 of 3 parts is gone, part-00000001" if harm == "gone" else "bytes, and .* were written"
    with pytest.raises(UserError, match=rf"\[sink\] path .* no longer has .*{what}.*--fresh"):
        sink_of(kind, tmp_path).restore(saved)
    again = FilesSink(
        FilesSink.Settings(path=str(tmp_path / "out"), format=kind, verify_parts=False)
    )
    again.restore(saved)
    again.restore(None)
    assert seen(tmp_path).is_empty()


def test_dead_letters_are_no_sink_and_may_be_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"\[dead_letters\] path .* cannot be a folder"):
        FileDeadLetterSink(FileDeadLetterSink.Settings(path=str(tmp_path / "file")))
    letters = FileDeadLetterSink(FileDeadLetterSink.Settings(path=str(tmp_path / "out")))
    letters.write(ROWS[:5])
    letters.flush()
    saved = letters.snapshot()
    next((tmp_path / "out").iterdir()).unlink()
    letters.restore(saved)
    letters.write(ROWS[5:9])
    letters.flush()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00000001.ndjson"]


def test_private_parts_are_their_owners(tmp_path: Path) -> None:
    for private, mode in ((True, 0o600), (False, 0o666 & ~umask())):
        folder = tmp_path / str(private)
        sink = FilesSink(FilesSink.Settings(path=str(folder), private=private))
        sink.write(ROWS)
        sink.flush()
        (part,) = folder.iterdir()
        assert stat.S_IMODE(part.stat().st_mode) == mode


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
VALUES = {
    pl.Float64(): st.floats(allow_nan=False, allow_infinity=False),
    pl.Int64(): st.integers(-(2**63), 2**63 - 1),
    pl.Boolean(): st.booleans(),
    pl.String(): TEXT,
    pl.Date(): st.dates(),
    pl.Datetime("us"): st.datetimes(),
}


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    """Rows of any type with nulls."""
    height = draw(st.integers(1, 12))
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4))
    return pl.DataFrame(
        [
            pl.Series(
                f"c{i}",
                draw(st.lists(st.none() | VALUES[kind], min_size=height, max_size=height)),
                dtype=kind,
            )
            for i, kind in enumerate(kinds)
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(frame=frames())
def test_what_a_sink_wrote_a_source_reads(kind: str, tmp_path: Path, frame: pl.DataFrame) -> None:
    sink = sink_of(kind, tmp_path)
    sink.restore(None)
    sink.write(frame)
    sink.flush()
    source = files(str(tmp_path / "out" / f"part-00000000.{kind}"))
    schema = source.schema(dict(frame.schema))
    pieces: list[Records] = drain(source, 5)
    decoded = [source.format.decode(piece, schema) for piece in pieces]
    assert not [reject for _, rejects in decoded for reject in rejects]
    read = pl.concat([rows for rows, _ in decoded]).drop("_partition", "_position")
    assert_frame_equal(read, frame)


@pytest.mark.parametrize("kind", ["ndjson", "csv"])
def test_times_are_written_so_that_they_are_read_as_times(kind: str, tmp_path: Path) -> None:
    moments = [datetime(2025, 3, 1), datetime(2025, 3, 1, 7, 8, 9, 123456), None]
    frame = pl.DataFrame(
        {
            "at": pl.Series(moments, dtype=pl.Datetime("us")),
            "zoned": pl.Series(moments, dtype=pl.Datetime("us")).dt.replace_time_zone(
                "Europe/Berlin"
            ),
            "day": [date(2025, 3, 1), None, date(1999, 1, 2)],
            "took": [timedelta(days=1, seconds=2), None, timedelta(microseconds=5)],
            "n": [1, 2, 3],
        }
    )
    sink = sink_of(kind, tmp_path)
    sink.restore(None)
    sink.write(frame)
    sink.flush()
    path = tmp_path / "out" / f"part-00000000.{kind}"
    assert "2025-03-01T00:00:00+00:00" in path.read_text()
    assert "2025-03-01T00:00:00+01:00" in path.read_text()
    source = files(str(path))
    schema = source.schema(parse_schema({"took": "duration", "*": "guess"}))
    assert schema["at"] == schema["zoned"] == pl.Datetime("us")
    assert schema["day"] == pl.Date()
    read = decoded_of(source, drain(source), schema)
    assert read["at"].to_list() == moments
    assert read["zoned"].to_list() == (
        frame["zoned"].dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_list()
    )
    assert read["took"].to_list() == frame["took"].to_list()
