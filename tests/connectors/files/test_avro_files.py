"""Avro container files as tables: all types and codecs, in one sentence where they are damaged."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from connectors.files.readers import avro
from connectors.files.readers.avro import AvroFile
from connectors.formats.walks import avro_blocks
from engine.types import HeadraceError, Mark, UserError
from tests.connectors.conftest import drain, files, told
from tests.containers import PACKERS, SYNC, block, container, datum, header, record, varint
from tests.size import examples

UTC = dt.UTC
ROW = record(n="long", s=["null", "string"])
ROWS = [{"n": n, "s": f"text {n}" if n % 3 else None} for n in range(50)]


def opened(raw: bytes, folder: Path, columns: list[str] | None = None, **own: Any) -> AvroFile:
    path = folder / "a.avro"
    path.write_bytes(raw)
    return AvroFile(path, "a.avro", columns, **own)


def logical(kind: str, logical_type: str, /, **own: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": logical_type, **own}


# -------------------------------------------------------------------------------------------- types

NOON = dt.datetime(2024, 1, 2, 12, 0, 0, 123_000)
INNER = record(a="int", b=["null", {"type": "array", "items": logical("int", "date")}])
INNER["name"] = "Inner"
PAIRS = pl.List(pl.Struct({"key": pl.String(), "value": pl.Float64()}))
TYPES: dict[str, tuple[Any, list[Any], pl.DataType, list[Any]]] = {
    "null": ("null", [None], pl.Null(), [None]),
    "boolean": ("boolean", [True, False], pl.Boolean(), [True, False]),
    "int": ("int", [-(2**31), 2**31 - 1], pl.Int32(), [-(2**31), 2**31 - 1]),
    "long": (["long", "null"], [-(2**63), None], pl.Int64(), [-(2**63), None]),
    "float": ("float", [0.1], pl.Float32(), [0.10000000149011612]),
    "double": ("double", [0.1, float("inf")], pl.Float64(), [0.1, float("inf")]),
    "bytes": ("bytes", [b"", b"\xff"], pl.Binary(), [b"", b"\xff"]),
    "string": ("string", ["", "öß\0"], pl.String(), ["", "öß\0"]),
    "fixed": ({"type": "fixed", "name": "F", "size": 2}, [b"ab"], pl.Binary(), [b"ab"]),
    "enum": (
        {"type": "enum", "name": "E", "symbols": ["A", "B"]}, ["B", "A"], pl.String(), ["B", "A"],
    ),
    "date": (
        logical("int", "date"), [dt.date(1900, 1, 1)], pl.Date(), [dt.date(1900, 1, 1)],
    ),
    "time-millis": (
        logical("int", "time-millis"), [dt.time(23, 59, 59, 999_000)], pl.Time(),
        [dt.time(23, 59, 59, 999_000)],
    ),
    "time-micros": (
        logical("long", "time-micros"), [dt.time(0, 0, 0, 1)], pl.Time(), [dt.time(0, 0, 0, 1)],
    ),
    "timestamp-millis": (
        logical("long", "timestamp-millis"), [NOON.replace(tzinfo=UTC)], pl.Datetime("ms", "UTC"),
        [NOON.replace(tzinfo=UTC)],
    ),
    "timestamp-nanos": (
        {"type": "long", "logicalType": "timestamp-nanos"}, [-1_500], pl.Datetime("ns", "UTC"),
        [dt.datetime(1969, 12, 31, 23, 59, 59, 999_998, UTC)],
    ),
    "local-timestamp-micros": (
        logical("long", "local-timestamp-micros"), [NOON], pl.Datetime("us"), [NOON],
    ),
    "decimal": (
        logical("bytes", "decimal", precision=9, scale=2), [Decimal("-1.05"), Decimal("0.07")],
        pl.Decimal(9, 2), [Decimal("-1.05"), Decimal("0.07")],
    ),
    "a decimal of 38 digits": (
        logical("fixed", "decimal", precision=38, scale=0, size=16, name="D"),
        [Decimal(10**37)], pl.Decimal(38, 0), [Decimal(10**37)],
    ),
    "a decimal of 40 digits": (
        logical("bytes", "decimal", precision=40, scale=1), [Decimal("1.5")], pl.String(), ["1.5"],
    ),
    "uuid": (
        logical("string", "uuid"), ["12345678-1234-5678-1234-567812345678"], pl.String(),
        ["12345678-1234-5678-1234-567812345678"],
    ),
    "a logical type that its type has not": (
        logical("string", "timestamp-millis"), ["x"], pl.String(), ["x"],
    ),
    "int or long": (["int", "long"], [1, 2**40], pl.Int64(), [1, 2**40]),
    "int or double": (["int", "null", "double"], [1, 1.5, None], pl.Float64(), [1.0, 1.5, None]),
    "long or text": (["long", "string"], [1, "x"], pl.String(), ["1", "x"]),
    "array": (
        {"type": "array", "items": ["null", "long"]}, [[1, None], []], pl.List(pl.Int64()),
        [[1, None], []],
    ),
    "array or null": (
        ["null", {"type": "array", "items": logical("bytes", "decimal", precision=4, scale=1)}],
        [None, [Decimal("1.5")]], pl.List(pl.Decimal(4, 1)), [None, [Decimal("1.5")]],
    ),
    "array of times": (
        {"type": "array", "items": logical("long", "timestamp-micros")},
        [[NOON.replace(tzinfo=UTC)]], pl.List(pl.Datetime("us", "UTC")),
        [[NOON.replace(tzinfo=UTC)]],
    ),
    "map": (
        {"type": "map", "values": "double"}, [{"a": 1.5}, {}], PAIRS,
        [[{"key": "a", "value": 1.5}], []],
    ),
    "record": (
        INNER, [{"a": 1, "b": None}, {"a": 2, "b": [dt.date(2024, 1, 1)]}],
        pl.Struct({"a": pl.Int32(), "b": pl.List(pl.Date())}),
        [{"a": 1, "b": None}, {"a": 2, "b": [dt.date(2024, 1, 1)]}],
    ),
    "record or null": (
        ["null", record(x=["null", "int"])], [None, {"x": None}, {"x": 3}],
        pl.Struct({"x": pl.Int32()}), [None, {"x": None}, {"x": 3}],
    ),
    "array of records": (
        {"type": "array", "items": record(x="int", y={"type": "map", "values": "int"})},
        [[{"x": 1, "y": {"k": 2}}]],
        pl.List(pl.Struct({
            "x": pl.Int32(), "y": pl.List(pl.Struct({"key": pl.String(), "value": pl.Int32()})),
        })),
        [[{"x": 1, "y": [{"key": "k", "value": 2}]}]],
    ),
    "record in itself": (
        {"type": "record", "name": "T", "fields": [
            {"name": "v", "type": "int"}, {"name": "next", "type": ["null", "T"]}]},
        [{"v": 1, "next": {"v": 2, "next": None}}],
        pl.Struct({"v": pl.Int32(), "next": pl.String()}),
        [{"v": 1, "next": '{"v": 2, "next": null}'}],
    ),
    "array of several types": (
        {"type": "array", "items": ["int", "string"]}, [[1, "x"]], pl.String(), ['[1, "x"]'],
    ),
    "a record without fields": (
        {"type": "record", "name": "None", "fields": []}, [{}], pl.String(), ["{}"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_every_type_has_a_column(name: str, tmp_path: Path) -> None:
    kind, given_values, dtype, expected = TYPES[name]
    schema = record(before="string", c=kind, after="string")
    if (isinstance(kind, dict) and kind.get("name") == "Row") or "Row" in str(kind):
        schema["name"] = "Outer"
    rows = [{"before": "b", "c": value, "after": "a"} for value in given_values]
    file = opened(container(schema, rows), tmp_path)
    whole = file.whole()
    assert dict(whole.schema) == file.schema
    assert whole.schema == {"before": pl.String(), "c": dtype, "after": pl.String()}
    assert whole["c"].to_list() == expected
    assert whole["after"].to_list() == ["a"] * len(rows)
    alone = opened(container(schema, rows), tmp_path, ["c"])
    assert_frame_equal(alone.whole(), whole[["c"]])


SCALARS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "boolean": ("boolean", st.booleans()),
    "int": ("int", st.integers(-(2**31), 2**31 - 1)),
    "long": ("long", st.integers(-(2**63), 2**63 - 1)),
    "float": ("float", st.floats(width=32, allow_nan=False)),
    "double": ("double", st.floats(allow_nan=False)),
    "string": ("string", st.text(max_size=9)),
    "bytes": ("bytes", st.binary(max_size=9)),
    "date": (logical("int", "date"), st.dates()),
    "moment": (
        logical("long", "timestamp-micros"), st.datetimes(timezones=st.just(UTC)),
    ),
    "array": ({"type": "array", "items": ["null", "long"]},
              st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3)),
}  # fmt: skip


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_a_file_is_what_polars_and_fastavro_read(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = data.draw(st.lists(st.sampled_from(list(SCALARS)), min_size=1, max_size=5))
    columns = {f"c{i}": SCALARS[name] for i, name in enumerate(names)}
    nullable = {c: data.draw(st.sampled_from([None, 0, 1])) for c in columns}
    kinds = {
        c: kind if (at := nullable[c]) is None else [kind, "null"] if at else ["null", kind]
        for c, (kind, _) in columns.items()
    }
    values = st.fixed_dictionaries(
        {c: v if nullable[c] is None else st.none() | v for c, (_, v) in columns.items()}
    )
    rows = data.draw(st.lists(values, min_size=1, max_size=12))
    codec = data.draw(st.sampled_from(["null", "deflate", "snappy"]))
    raw = container(record(**kinds), rows, codec, data.draw(st.integers(1, 5)))
    whole = opened(raw, tmp_path_factory.mktemp("a")).whole()
    assert_frame_equal(whole, pl.read_avro(io.BytesIO(raw)))
    assert whole.to_dicts() == list(fastavro.reader(io.BytesIO(raw)))


@pytest.mark.parametrize("codec", PACKERS)
def test_every_codec(codec: str, tmp_path: Path) -> None:
    file = opened(container(ROW, ROWS, codec, each=7), tmp_path)
    assert file.whole().to_dicts() == ROWS


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    schema = record(a="int")
    schema["fields"] *= 2
    with pytest.raises(UserError, match=r"^a\.avro has column 'a' twice: rename one of them"):
        opened(header(schema), tmp_path)


def test_a_codec_that_is_none(tmp_path: Path) -> None:
    raw = header(ROW, "lz4")
    with pytest.raises(UserError, match=r"^a\.avro has blocks of codec 'lz4': expected null, def"):
        opened(raw, tmp_path)


# ------------------------------------------------------------------------------ columns of a source


def test_values_that_their_type_does_not_hold_reject_their_rows(tmp_path: Path) -> None:
    schema = record(
        n="int", s="string", d=logical("bytes", "decimal", precision=3, scale=1),
        t=logical("int", "time-millis"), day=logical("int", "date"),
        many={"type": "array", "items": "string"},
    )  # fmt: skip

    def row(n: int, *own: bytes) -> bytes:
        good = [varint(1) + b"x", varint(1) + b"\x05", varint(5), varint(5), b"\x02\x02y\0"]
        return varint(n) + b"".join(b or g for b, g in itertools.zip_longest(own, good))

    good = b""
    rows = [
        row(0),
        row(1, varint(1) + b"\xff"),
        row(2, good, varint(2) + b"\x7f\xff"),
        row(3, good, good, varint(86_400_000)),
        row(4, good, good, good, varint(2**31 - 1)),
        row(5, good, good, good, good, b"\x02\x02\xff\0"),
        row(6),
    ]
    (tmp_path / "a.avro").write_bytes(header(schema) + block(b"".join(rows), len(rows)))
    source = files(tmp_path / "a.avro")
    columns = source.schema({})
    (piece,) = drain(source)
    frame, rejects = source.format.decode(piece, columns)
    assert frame["_position"].to_list() == frame["n"].to_list() == [0, 6]
    assert frame["many"].to_list() == [["y"], ["y"]]
    assert [(reason, at, said) for reason, at, said, _ in told(rejects)] == [
        ("bad_utf8", 1, "Column 's' holds bytes that are no UTF-8."),
        ("out_of_range", 2, "Column 'd' holds a value that decimal(3, 1) does not."),
        ("out_of_range", 3, "Column 't' holds a value that time does not."),
        ("out_of_range", 4, "Column 'day' holds 2147483647, a time beyond the calendar."),
        ("wrong_type", 5, "Column 'many' holds a value that cannot be read: bad text, or a time or "
         "a number that its type does not hold."),
    ]  # fmt: skip


DECLARED: dict[str, pl.DataType] = {
    "n": pl.Int8(), "x": pl.Int64(), "s": pl.Float64(), "t": pl.Date(), "m": pl.List(pl.Int8()),
}  # fmt: skip


def test_declared_types_are_cast_as_parquets(tmp_path: Path) -> None:
    schema = record(
        n=["null", "long"], x="double", s="string", t=logical("long", "timestamp-millis"),
        m={"type": "array", "items": "long"},
    )  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"n": n, "x": x, "s": s, "t": t, "m": m}
        for n, x, s, t, m in itertools.product(
            [1, 300, None], [1.0, 1.5], ["2.5", "x"], [dt.datetime(2024, 1, 1, tzinfo=UTC), NOON],
            [[1], [300]],
        )
    ]  # fmt: skip
    (tmp_path / "a.avro").write_bytes(container(schema, rows))
    AvroFile(tmp_path / "a.avro", "a").whole().write_parquet(tmp_path / "a.parquet")
    read = []
    for name in ("a.avro", "a.parquet"):
        source = files(tmp_path / name)
        assert source.schema(DECLARED) == DECLARED
        pieces = [source.format.decode(piece, DECLARED) for piece in drain(source)]
        rejects = [reject for _, more in pieces for reject in more]
        frame = pl.concat(frame for frame, _ in pieces).drop("_partition")
        read.append((frame.rows(), told(rejects)))
    assert read[0] == read[1]
    assert len(read[0][0]) == 2
    assert len(read[0][1]) == len(rows) - 2


def test_columns_are_those_of_all_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.avro").write_bytes(container(record(n="int", s="string"), [{"n": 1, "s": "a"}]))
    (tmp_path / "b.avro").write_bytes(container(record(n="long", x="float"), [{"n": 2, "x": 0.5}]))
    source = files(tmp_path / "*.avro")
    columns = source.schema({})
    assert columns == {"n": pl.Int64(), "s": pl.String(), "x": pl.Float32()}
    frames = [source.format.decode(piece, columns)[0] for piece in drain(source)]
    assert pl.concat(frames)["n", "s", "x"].rows() == [(1, "a", None), (2, None, 0.5)]
    assert "'x' in" in caplog.text


def test_paths_lead_into_records(tmp_path: Path) -> None:
    user = record(name="string", tags={"type": "array", "items": "string"})
    user["name"] = "User"
    schema = record(n="int", user=["null", user])
    rows: list[dict[str, Any]] = [
        {"n": 1, "user": {"name": "a", "tags": ["x", "y"]}},
        {"n": 2, "user": None},
    ]
    (tmp_path / "a.avro").write_bytes(container(schema, rows))
    source = files(tmp_path / "a.avro", paths={"who": "user.name", "second": "user.tags[1]"})
    columns = source.schema({})
    assert columns["who"] == columns["second"] == pl.String()
    (piece,) = drain(source)
    assert source.format.decode(piece, columns)[0]["who", "second"].rows() == [
        ("a", "y"), (None, None),
    ]  # fmt: skip


# -------------------------------------------------------------------------------- blocks and splits


@pytest.mark.parametrize("codec", ["null", "deflate"])
@pytest.mark.parametrize("each", [1, 4, 50])
def test_chunks_are_blocks_or_parts_of_them(
    codec: str, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position is a row's number, wherever reading begins."""
    monkeypatch.setattr(avro, "CHUNK_ROWS", 7)
    raw = container(ROW, ROWS, codec, each)
    file = opened(raw, tmp_path)
    assert max(b - a for a, b in itertools.pairwise(file.bounds.tolist())) <= 7
    for start in (0, 1, 6, 7, 8, 20, 49, 3):
        file.skip_to(start)
        rows: list[Any] = []
        while (records := file.read(5, 1 << 20)) is not None:
            assert records.positions.tolist() == list(range(records.next))[-len(records) :]
            assert isinstance(records.values, pl.DataFrame)
            rows += records.values.to_dicts()
        assert rows == ROWS[start:]


def test_shards_share_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro, "CHUNK_ROWS", 8)
    (tmp_path / "a.avro").write_bytes(container(ROW, ROWS, each=4))
    seen: list[int] = []
    for shard in range(3):
        source = files(tmp_path / "a.avro", shards=3, shard=shard)
        columns = source.schema({})
        seen += [n for p in drain(source) for n in source.format.decode(p, columns)[0]["n"]]
    assert sorted(seen) == list(range(50))


def test_blocks_without_records_and_no_blocks(tmp_path: Path) -> None:
    none = opened(header(ROW), tmp_path)
    assert (none.rows, none.read(1, 1), none.whole().schema) == (0, None, none.schema)
    middle = block(b"", 0) * 3
    some = opened(container(ROW, ROWS[:2]) + middle + container(ROW, ROWS[2:4])[len(header(ROW)) :],
                  tmp_path)  # fmt: skip
    assert some.whole().to_dicts() == ROWS[:4]


def test_blocks_that_were_added_are_read_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(container(ROW, ROWS[:30], each=7))
    first = files(path)
    pieces = drain(first)
    mark = Mark(positions={pieces[-1].partition: pieces[-1].next})
    identities = first.identities(mark)
    path.write_bytes(
        container(ROW, ROWS[:30], each=7) + container(ROW, ROWS[30:])[len(header(ROW)) :]
    )
    later = files(path)
    later.match_identities(identities)
    later.seek(mark)
    columns = later.schema({})
    read = [later.format.decode(piece, columns)[0] for piece in drain(later)]
    assert pl.concat(read)["n"].to_list() == list(range(30, 50))
    path.write_bytes(container(ROW, ROWS[10:50], each=7) * 2)
    with pytest.raises(UserError, match="has other content now"):
        files(path).match_identities(identities)


# ------------------------------------------------------------------------------------------- damage


def _text(data: bytes) -> bytes:
    return varint(len(data)) + data


LEVELS = 20_000
GOOD = block(b"".join(datum(ROW, row) for row in ROWS[:20]), 20)
DEEP = b'{"type":"record","name":"R","fields":[{"name":"a","type":%s"int"%s}]}' % (
    b'{"type":"array","items":' * LEVELS, b"}" * LEVELS,
)  # fmt: skip
DATA = b"".join(datum(ROW, row) for row in ROWS[20:40])
DAMAGED: dict[str, tuple[bytes, str]] = {
    "another sync marker": (block(DATA, 20, sync=SYNC[::-1]), "block 2 does not end in the sync"),
    "a larger count": (block(DATA, 21), "block 2, at byte [0-9,]+, is damaged: expected a whole A"),
    "a smaller count": (block(DATA, 19), "block 2, at byte [0-9,]+, is damaged: it has bytes behi"),
    "no count": (block(DATA, -1), "block 2, at byte [0-9,]+, has a count or a size that cannot be"),
    "too many": (block(DATA, 2**62), "block 2, at byte [0-9,]+, has a count or a size that cannot"),
    "no size": (block(DATA, 20, -5), "block 2, at byte [0-9,]+, has a count or a size that cannot"),
    "a number that does not end": (b"\xff" * 40, "block 2, at byte [0-9,]+, has a count or a size"),
    "2 GB": (block(DATA, 20, 2 << 30), "block 2, at byte [0-9,]+, is cut short"),
    "2^62 bytes": (block(DATA, 20, 2**62), "block 2, at byte [0-9,]+, is cut short"),
    "a length in it": (block(b"\xff" * len(DATA), 20), "block 2, at byte [0-9,]+, is damaged: exp"),
    "a branch in it": (block(b"\x02\x08", 1), "is damaged: expected an Avro record of its schema"),
    "its end": (block(DATA, 20)[:-1], "block 2, at byte [0-9,]+, is cut short"),
    "its beginning": (b"\x80", "block 2, at byte [0-9,]+, is cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_block_is_one_sentence(name: str, tmp_path: Path) -> None:
    harm, why = DAMAGED[name]
    with pytest.raises(HeadraceError, match=why) as error:
        opened(header(ROW) + GOOD + harm, tmp_path).whole()
    assert str(error.value).startswith("a.avro cannot be read as avro at row 0: block 2")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("codec", [codec for codec in PACKERS if codec != "null"])
def test_data_that_its_codec_did_not_write(codec: str, tmp_path: Path) -> None:
    packed = PACKERS[codec](DATA)
    for harm in (packed[:-1], packed[: len(packed) // 2], b"", b"\xff" * 50, packed[::-1]):
        raw = header(ROW, codec) + block(PACKERS[codec](DATA), 20) + block(harm, 20)
        with pytest.raises(HeadraceError, match=f"block 2 cannot be unpacked by codec '{codec}'"):
            opened(raw, tmp_path).whole()


def test_a_checksum_that_is_another(tmp_path: Path) -> None:
    packed = bytearray(PACKERS["snappy"](DATA))
    packed[-1] ^= 1
    with pytest.raises(HeadraceError, match="block 1 cannot be unpacked by codec 'snappy'"):
        opened(header(ROW, "snappy") + block(bytes(packed), 20), tmp_path).whole()


@pytest.mark.parametrize("codec", PACKERS)
def test_a_block_that_is_too_large_is_refused(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(avro_blocks, "MOST_BYTES", 1_000)
    rows = [{"n": n, "s": "x" * 50} for n in range(100)]
    with pytest.raises(HeadraceError, match=r"block 1 (has more than 0 MiB|cannot be unpacked)"):
        opened(container(ROW, rows, codec, each=100), tmp_path).whole()


def test_a_file_that_is_cut_anywhere(tmp_path: Path) -> None:
    raw = container(ROW, ROWS[:12], "deflate", each=4)
    ends = {len(container(ROW, ROWS[:n], "deflate", each=4)): n for n in (4, 8, 12)}
    ends[len(header(ROW, "deflate"))] = 0
    for size in range(len(raw) + 1):
        if size in ends:
            assert opened(raw[:size], tmp_path).rows == ends[size]
            continue
        with pytest.raises(HeadraceError, match=r"^a\.avro cannot be read as avro at row 0: ") as e:
            opened(raw[:size], tmp_path)
        assert "cut short" in str(e.value) or not size


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "its header is cut short"),
        (
            b"Obj\x01" + varint(1) + _text(b"avro.schema") + _text(DEEP) + b"\0" + SYNC,
            "its schema nests too deep|its schema is no Avro schema of records",
        ),
        (b"PAR1", "expected an Avro container, which begins with 'Obj' and byte 1"),
        (b"Obj\x01" + varint(0) + SYNC, "its header has no schema"),
        (b"Obj\x01" + b"\xff" * 30, "its header is damaged"),
        (b"Obj\x01" + varint(1) + varint(-2), "its header is damaged"),
        (b"Obj\x01" + varint(1) + varint(2**40) + b"x", "its header is cut short"),
        (header("long"), "its schema is no Avro schema of records"),
        (header({"type": "record"}), "its schema is no Avro schema of records"),
        (header({"type": "record", "name": "R", "fields": []}), "records without a field"),
        (header(record(f={"type": "fixed", "name": "F", "size": -8})), "its schema is no Avro sch"),
    ],
)
def test_a_header_that_is_none(raw: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match=why) as error:
        opened(raw, tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    file = opened(container(ROW, ROWS, "deflate", each=7), tmp_path)
    (tmp_path / "a.avro").write_bytes(container(ROW, ROWS, "deflate", each=7)[:-5])
    with pytest.raises(HeadraceError, match="block 8 has changed while it was read"):
        file.whole()


def test_a_list_of_nothing_without_end_is_damage(tmp_path: Path) -> None:
    """2**62 elements of no bytes, of which a reader would make objects."""
    schema = record(a={"type": "array", "items": "null"})
    raw = header(schema) + block(varint(2**62) + b"\0", 1)
    with pytest.raises(HeadraceError, match=r"block 1, at byte [0-9,]+, is damaged"):
        opened(raw, tmp_path).whole()
