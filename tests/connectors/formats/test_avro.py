"""Avro datums to columns, and the registry that knows who wrote them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import fastavro
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from connectors.formats.avro import NO_HEADER, Avro, UnknownSchema, columns, parsed, schema_file
from connectors.kafka.schema_registry import Registry
from connectors.kafka.source import KafkaSource
from engine.types import POSITION, HeadraceError, Schema, UserError
from tests.connectors.conftest import records, told
from tests.registry import own_registry, shared_registry
from tests.size import examples
from tests.waiting import HANG, until

Fields = list[dict[str, Any]]


def record(*fields: dict[str, Any], name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


def datum(schema: Any, row: Any) -> bytes:
    """As fastavro writes it."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


def read(schema: Any, row: Any, kind: pl.DataType, **settings: Any) -> Any:
    """The value of column ``v`` of one record."""
    made = Avro(parsed(json.dumps(schema)), **settings)
    frame, rejects = made.decode(records(datum(schema, row)), {"v": kind})
    assert told(rejects) == []
    return frame["v"][0]


class Versions:
    """A registry in memory: one subject, versions numbered from 1, their numbers from 101."""

    def __init__(self, *schemas: Any) -> None:
        self.schemas = [parsed(json.dumps(schema)) for schema in schemas]

    def by_id(self, number: int) -> Any:
        return self.version("", number - 100)

    def latest(self, topic: str, *, retry: bool = True) -> Any | None:
        return self.schemas[-1] if self.schemas else None

    def version(self, topic: str, version: int | str, *, retry: bool = True) -> Any:
        if not 1 <= int(version) <= len(self.schemas):
            raise UnknownSchema(f"Expected a schema that the registry knows, got {version}.")
        return self.schemas[int(version) - 1]

    def versions(self, topic: str, *, retry: bool = True) -> list[int]:
        return list(range(1, len(self.schemas) + 1))

    def interrupt(self) -> None:
        """Nothing waits."""

    def resume(self) -> None:
        """Nothing waits."""


def wire(number: int, schema: Any, row: Any) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + datum(schema, row)


# ------------------------------------------------------------------------------------------- values

WIDE = record(
    field("flag", "boolean"),
    field("i", "int"),
    field("l", ["null", "long"]),
    field("skipped", {"type": "array", "items": {"type": "map", "values": ["null", "R"]}}),
    field("f", "float"),
    field("d", ["double", "null"]),
    field("s", "string"),
    field("y", ["null", "bytes"]),
    field("e", {"type": "enum", "name": "E", "symbols": ["red", "green"]}),
    field("again", ["null", "E"]),
    field("fixed", {"type": "fixed", "name": "F", "size": 3}),
    field(
        "inner", record(field("x", ["null", "double"]), field("deep", ["null", "In"]), name="In")
    ),
    field("last", "long"),
)
LONG = st.integers(-(2**63), 2**63 - 1)


def rows(*, deep: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    deeper = st.none() | st.just({"x": 1.0, "deep": None})
    inner = st.fixed_dictionaries({"x": st.none() | st.floats(allow_nan=False), "deep": deeper})
    below: st.SearchStrategy[Any] = st.nothing()
    if deep:
        below = st.dictionaries(st.text(max_size=2), st.none() | rows(deep=False), max_size=2)
    return st.fixed_dictionaries(
        {
            "flag": st.booleans(),
            "i": st.integers(-(2**31), 2**31 - 1),
            "l": st.none() | LONG,
            "skipped": st.lists(below, max_size=2) if deep else st.just([]),
            "f": st.floats(width=32, allow_nan=False),
            "d": st.none() | st.floats(allow_nan=False),
            "s": st.text(max_size=4),
            "y": st.none() | st.binary(max_size=4),
            "e": st.sampled_from(["red", "green"]),
            "again": st.none() | st.sampled_from(["red", "green"]),
            "fixed": st.binary(min_size=3, max_size=3),
            "inner": inner,
            "last": LONG,
        }
    )


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(rows(), max_size=5))
def test_columns_are_what_fastavro_reads(made: list[dict[str, Any]]) -> None:
    schema = columns(parsed(json.dumps(WIDE)))
    schema = {c: kind for c, kind in schema.items() if c not in ("skipped", "inner")}
    schema |= {"x": pl.Float64(), "deep": pl.Float64()}
    paths = {"x": "inner.x", "deep": "inner.deep.x"}
    avro = Avro(parsed(json.dumps(WIDE)), paths=paths)
    frame, rejects = avro.decode(records(*(datum(WIDE, row) for row in made)), schema)
    assert rejects == []
    expected = [
        {
            **{c: row[c] for c in schema if c in row},
            "x": row["inner"]["x"],
            "deep": (row["inner"]["deep"] or {"x": None})["x"],
        }
        for row in made
    ]
    assert frame.drop("_partition", "_position").to_dicts() == expected


@settings(max_examples=examples(80), deadline=None)
@given(rows(), st.integers(0, 200), st.binary(max_size=2))
def test_a_damaged_record_moves_no_other(row: dict[str, Any], cut: int, more: bytes) -> None:
    """Cut short or with bytes behind: it is rejected, or (cut 0, none behind) whole."""
    raw = datum(WIDE, row)
    damaged = raw[: len(raw) - cut % len(raw)] + more
    schema: Schema = {"i": pl.Int64(), "last": pl.Int64()}
    frame, rejects = Avro(parsed(json.dumps(WIDE))).decode(records(raw, damaged, raw), schema)
    kept = frame["_position"].to_list()
    assert frame.select("i", "last").rows()[::2] == [(row["i"], row["last"])] * len(kept[::2])
    assert kept in ([0, 20], [0, 10, 20])
    assert [at for _, at, _, _ in told(rejects)] == ([10] if len(kept) == 2 else [])
    if cut % len(raw) and not more:
        assert [(reason, at) for reason, at, _, _ in told(rejects)] == [("broken", 10)]


@pytest.mark.parametrize(
    ("kind", "value", "column", "expected"),
    [
        ("int", 5, pl.Int64(), 5),
        ("int", 5, pl.Float64(), 5.0),
        ("long", 2**40, pl.Float32(), 2.0**40),
        ("float", 0.5, pl.Float64(), 0.5),
        ("double", 3.0, pl.Int32(), 3),
        ("string", "7", pl.Int64(), 7),
        ("int", 7, pl.String(), "7"),
        ("bytes", b"ab", pl.String(), "ab"),
        ("string", "ab", pl.Binary(), b"ab"),
        ("null", None, pl.Int64(), None),
        ({"type": "int", "logicalType": "date"}, date(2024, 2, 29), pl.Date(), date(2024, 2, 29)),
        ({"type": "long", "logicalType": "timestamp-millis"},
         datetime(2024, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC), pl.Datetime("us"),
         datetime(2024, 1, 2, 3, 4, 5, 678_000)),
        ({"type": "long", "logicalType": "timestamp-micros"},
         datetime(1960, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC), pl.Datetime("us"),
         datetime(1960, 1, 2, 3, 4, 5, 678_901)),
        ({"type": "long", "logicalType": "local-timestamp-micros"},
         datetime(2024, 1, 2, 3), pl.Datetime("us"), datetime(2024, 1, 2, 3)),
        ({"type": "long", "logicalType": "timestamp-nanos"}, 1_234_567, pl.Datetime("us"),
         datetime(1970, 1, 1, 0, 0, 0, 1_234)),
        ({"type": "int", "logicalType": "time-millis"}, 5, pl.Int64(), 5),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
         Decimal("-1.05"), pl.String(), "-1.05"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
         Decimal("0.07"), pl.Float64(), 0.07),
        ({"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 3},
         Decimal("-123456789012345678901234567.89"), pl.String(),
         "-123456789012345678901234567.890"),
        ({"type": "fixed", "name": "D", "size": 5, "logicalType": "decimal", "precision": 9},
         Decimal(-12), pl.Float64(), -12.0),
        ({"type": "string", "logicalType": "uuid"}, UUID(int=5), pl.String(), str(UUID(int=5))),
        ({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}, UUID(int=9).bytes,
         pl.String(), str(UUID(int=9))),
        (["null", "long", "string", "double"], "t", pl.String(), "t"),
        (["null", "long", "string", "double"], 5, pl.String(), "5"),
        (["int", "double"], 2.5, pl.Float64(), 2.5),
        ({"type": "array", "items": "int"}, [1, 2], pl.String(), "[1, 2]"),
        ({"type": "map", "values": "bytes"}, {"ö": b"\x01"}, pl.String(), '{"ö": "01"}'),
        (["null", record(field("a", "int"), name="A")], {"a": 1}, pl.String(), '{"a": 1}'),
    ],
)  # fmt: skip
def test_types_and_logical_types(kind: Any, value: Any, column: pl.DataType, expected: Any) -> None:
    assert read(record(field("v", kind)), {"v": value}, column) == expected


@pytest.mark.parametrize(
    ("kind", "value", "column", "reason", "detail"),
    [
        ("string", "abc", pl.Int64(), "wrong_type", "Expected int64, got 'abc' in column 'v'."),
        ("double", 1.5, pl.Int64(), "wrong_type", "Expected int64, got '1.5' in column 'v'."),
        ("long", 2**40, pl.Int32(), "out_of_range", "Expected int32, got '1099511627776' in"),
        ("boolean", True, pl.Date(), "wrong_type", "Expected date, got 'true' in column 'v'."),
        (
            {"type": "array", "items": "int"},
            [1],
            pl.Float64(),
            "wrong_type",
            "Expected float64, got",
        ),
        (
            "bytes",
            b"\xff",
            pl.String(),
            "wrong_type",
            r"Expected string, got '\xff' in column 'v'.",
        ),
    ],
)
def test_a_value_of_another_type_costs_its_row(
    kind: Any, value: Any, column: pl.DataType, reason: str, detail: str
) -> None:
    schema = record(field("v", ["null", kind]))
    raw = records(datum(schema, {"v": None}), datum(schema, {"v": value}))
    frame, rejects = Avro(parsed(json.dumps(schema))).decode(raw, {"v": column})
    assert frame.rows() == [("p", 0, None)]
    ((why, at, said, _),) = told(rejects)
    assert (why, at) == (reason, 10)
    assert said.startswith(detail)


def test_text_that_is_none_costs_its_row() -> None:
    schema = record(field("v", "string"), field("w", {"type": "map", "values": "string"}))
    good = datum(schema, {"v": "ab", "w": {"k": "cd"}})
    raw = records(good, good.replace(b"ab", b"\xff\xff"), good.replace(b"cd", b"\xff\xff"), good)
    kinds: Schema = {"v": pl.String(), "w": pl.String()}
    frame, rejects = Avro(parsed(json.dumps(schema))).decode(raw, kinds)
    assert frame["_position"].to_list() == [0, 30]
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [
        ("bad_utf8", 10), ("wrong_type", 20),
    ]  # fmt: skip


def test_a_path_through_another_value_costs_its_row() -> None:
    schema = record(field("u", ["null", "long", record(field("x", "int"), name="In")]))
    raw = records(*(datum(schema, {"u": u}) for u in (None, {"x": 3}, 5)))
    made = Avro(parsed(json.dumps(schema)), paths={"x": "u.x"})
    frame, rejects = made.decode(raw, {"x": pl.Int64()})
    assert frame["x"].to_list() == [None, 3]
    assert [(reason, at, said) for reason, at, said, _ in told(rejects)] == [
        ("wrong_type", 20, "Expected a record on the way to column 'x', got another value.")
    ]


def test_values_nested_without_end_are_broken() -> None:
    schema = record(field("next", ["null", "R"]), field("v", "int"))
    made = Avro(parsed(json.dumps(schema)))
    raw = records(b"\x00\x02", b"\x02" * 10_000, b"\x02\x00\x04\x06")
    frame, rejects = made.decode(raw, {"v": pl.Int64()})
    assert frame["v"].to_list() == [1, 3]
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [("broken", 10)]


def test_lists_without_end_are_passed_over() -> None:
    """2**62 elements of no bytes each, in blocks with and without their size."""
    schema = record(field("a", {"type": "array", "items": "null"}), field("v", "int"))
    many = b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"
    raw = records(many + b"\x00\x02", b"\x03\x00\x00\x02", b"\x01")
    frame, rejects = Avro(parsed(json.dumps(schema))).decode(raw, {"v": pl.Int64()})
    assert frame["v"].to_list() == [1, 1]
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [("broken", 20)]


def test_a_list_of_nothing_without_end_that_is_kept_costs_its_row() -> None:
    """Each element would become an object."""
    schema = record(field("a", {"type": "array", "items": "null"}))
    raw = records(b"\x04\x00", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x00", b"\x00")
    frame, rejects = Avro(parsed(json.dumps(schema))).decode(raw, {"a": pl.String()})
    assert frame["a"].to_list() == ["[null, null]", "[]"]
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [("broken", 10)]


def test_nanoseconds_stay_where_they_are_declared() -> None:
    schema = record(field("t", {"type": "long", "logicalType": "timestamp-nanos"}))
    raw = records(datum(schema, {"t": -1_234_567}))
    frame, _ = Avro(parsed(json.dumps(schema))).decode(raw, {"t": pl.Datetime("ns")})
    assert frame["t"].to_physical().to_list() == [-1_234_567]
    frame, _ = Avro(parsed(json.dumps(schema))).decode(raw, {"t": pl.Datetime("us")})
    assert frame["t"].to_physical().to_list() == [-1_235]


def test_a_size_that_cannot_be_is_no_schema() -> None:
    schema = record(field("f", {"type": "fixed", "name": "F", "size": -8}))
    with pytest.raises(ValueError, match=r"^'F' has a size that cannot be$"):
        parsed(json.dumps(schema))


# ---------------------------------------------------------------------------------------- evolution

OLD = record(field("id", "int"), field("amt", "int"), field("gone", "string"))
MIDDLE = record(field("amt", "long"), field("id", "long"))
NEW = record(
    field("id", "long"), field("amount", "double", aliases=["amt"]),
    field("country", ["null", "string"], default=None), field("level", "int", default=3),
    field("mark", "bytes", default="\u00ff"),
    field("day", {"type": "int", "logicalType": "date"}, default=1),
    field("tags", {"type": "array", "items": "int"}, default=[7]),
)  # fmt: skip
READ: Schema = {
    "id": pl.Int64(), "amount": pl.Float64(), "country": pl.String(), "level": pl.Int64(),
    "mark": pl.Binary(), "day": pl.Date(), "gone": pl.String(), "tags": pl.String(),
}  # fmt: skip


def test_schemas_of_several_writers_in_one_batch() -> None:
    later = {"country": None, "level": 3, "mark": b"\xff", "day": date(1970, 1, 2), "tags": "[7]"}
    new = {"id": 3, "amount": 1.5, "country": "it", "level": 4, "mark": b"", "day": date.max,
           "tags": [1]}  # fmt: skip
    raw = records(
        wire(103, NEW, new),
        wire(101, OLD, {"id": 1, "amt": 10, "gone": "g"}),
        wire(999, OLD, {"id": 1, "amt": 10, "gone": "g"}),
        wire(102, MIDDLE, {"id": 2**40, "amt": 20}),
        wire(101, OLD, {"id": 4, "amt": 40, "gone": "h"}),
        b'{"id":5}',
        wire(103, NEW, new)[:-1],
    )
    made = Avro(Versions(OLD, MIDDLE, NEW), topics=["t"])
    frame, rejects = made.decode(raw, READ)
    assert frame["_position"].to_list() == [0, 10, 30, 40]
    assert frame.drop("_partition", "_position").to_dicts() == [
        {**new, "gone": None, "tags": "[1]"},
        {"id": 1, "amount": 10.0, "gone": "g", **later},
        {"id": 2**40, "amount": 20.0, "gone": None, **later},
        {"id": 4, "amount": 40.0, "gone": "h", **later},
    ]
    assert [(reason, at, said) for reason, at, said, _ in told(rejects)] == [
        ("unknown_schema", 20, "Expected a schema that the registry knows, got 899."),
        ("broken", 50, NO_HEADER),
        ("broken", 60, "Expected a whole Avro record, got one that ends too early."),
    ]  # fmt: skip


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.integers(0, 5), max_size=15))
def test_a_mixture_is_as_each_alone(picks: list[int]) -> None:
    kinds = [
        wire(101, OLD, {"id": 1, "amt": 10, "gone": "g"}), wire(102, MIDDLE, {"id": 2, "amt": 3}),
        wire(102, MIDDLE, {"id": 2**40, "amt": 3}), b"",
        wire(7, OLD, {"id": 1, "amt": 1, "gone": ""}),
        wire(101, OLD, {"id": 1, "amt": 10, "gone": "g"}) + b"\0",
    ]  # fmt: skip
    made = Avro(Versions(OLD, MIDDLE), topics=["t"])
    schema: Schema = {"id": pl.Int32(), "gone": pl.String()}
    parts = [kinds[pick] for pick in picks]
    frame, rejects = made.decode(records(*parts), schema)
    alone = [made.decode(records(part), schema) for part in parts]
    frames = [
        one.with_columns(_position=pl.lit(10 * i, pl.Int64)) for i, (one, _) in enumerate(alone)
    ]
    assert frame.equals(pl.concat([frame.clear(), *frames]))
    expected = [(r, 10 * i, d, v) for i, (_, bad) in enumerate(alone) for r, _, d, v in told(bad)]
    assert told(rejects) == expected


def test_columns_of_the_newest_schema() -> None:
    assert Avro(Versions(OLD, NEW), topics=["t"]).schema({}) == {
        "id": pl.Int64(), "amount": pl.Float64(), "country": pl.String(), "level": pl.Int32(),
        "mark": pl.Binary(), "day": pl.Date(), "tags": pl.String(),
    }  # fmt: skip
    everything = Avro(Versions(OLD), topics=["t"]).schema({"id": pl.Int64(), "*": pl.String()})
    assert everything == {"id": pl.Int64(), "amt": pl.String(), "gone": pl.String()}


def test_a_column_of_an_older_schema_may_be_declared() -> None:
    made = Avro(Versions(OLD, NEW), topics=["t"])
    assert made.schema({"gone": pl.String()}) == {"gone": pl.String()}


def test_a_column_of_no_schema_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"column 'amout', which no version.*Did you mean 'amount'"):
        Avro(Versions(OLD, NEW), topics=["t"]).schema({"amout": pl.Float64()})


def test_no_columns_and_no_schema() -> None:
    with pytest.raises(UserError, match=r"no schema of subject t-value: declare the columns"):
        Avro(Versions(), topics=["t"]).schema({})


# ------------------------------------------------------------------------------------ schema files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no Avro schema of a record"),
        ('{"type":"enum","name":"E","symbols":[]}', "it is no record"),
        ('{"type":"record","name":"R","fields":[{"name":"a","type":"Foo"}]}', "Foo"),
        ('{"type":"record","fields":[]}', "is no Avro schema of a record"),
    ],
)
def test_what_is_no_schema_file(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "x.avsc").write_text(text)
    with pytest.raises(UserError) as caught:
        schema_file(str(tmp_path / "x.avsc"))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"format": "avro"}, "needs the address of a schema registry"),
        ({"format": "avro", "registry": "http://r", "schema_file": "x"}, "one of them"),
        ({"registry": "http://r"}, "registry is for avro, and format is 'ndjson'"),
        (
            {"format": "text", "paths": {"a": "b.c"}},
            "paths is for ndjson, avro and xml, and format is 'text'",
        ),
        ({"format": "avro", "registry": "localhost:8081"}, "'localhost:8081' is no address"),
        ({"format": "avro", "registry": "http://u:p@r"}, "set registry_user and registry_password"),
        (
            {"format": "avro", "registry": "http://r", "paths": {"a": "b[0]"}},
            "through records only",
        ),
    ],
)
def test_settings_that_do_not_go_together(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        KafkaSource(KafkaSource.Settings(topics=("t",), **more))
    assert said in str(caught.value)


# --------------------------------------------------------------------------------- a real registry


def test_a_registry_is_asked_once_for_a_number(tmp_path: Path) -> None:
    """What it said holds when it is gone; and it keeps what it had when it is back."""
    server = own_registry(tmp_path).start()
    client = Registry(server.url, retry_timeout=0.0)
    try:
        number = client.register("t", MIDDLE)
        assert client.register("t", MIDDLE) == number
        assert client.by_id(number)["name"] == "R"
        assert client.versions("t") == [1]
        server.stop()
        assert client.by_id(number)["name"] == "R"
        with pytest.raises(HeadraceError, match=r"does not answer: .*refused.*; is it up"):
            client.latest("t")
        server.start()
        latest = client.latest("t")
        assert latest is not None
        assert columns(latest) == {"amt": pl.Int64(), "id": pl.Int64()}
    finally:
        server.kill()


def test_a_registry_that_knows_nothing() -> None:
    client, topic = Registry(shared_registry().url), f"t-{uuid4()}"
    assert client.latest(topic) is None
    assert client.versions(topic) == []
    for _ in range(2):
        with pytest.raises(UnknownSchema, match="Expected a schema that the registry knows, got"):
            client.by_id(2**31 - 1)


def test_a_column_taken_from_a_real_registry() -> None:
    client, topic = Registry(shared_registry().url), f"t-{uuid4()}"
    number = client.register(topic, NEW)
    made = Avro(client, topics=[topic])
    assert list(made.schema({}))[:2] == ["id", "amount"]
    row = {"id": 3, "amount": 1.5, "country": "it", "level": 4, "mark": b"", "day": 5, "tags": []}
    frame, _ = made.decode(records(wire(number, NEW, row), partition=f"{topic}/0"), READ)
    assert frame.select("id", "amount", "gone").rows() == [(3, 1.5, None)]


# -------------------------------------------------------------------------- a registry with faults

Answer = Callable[[str], tuple[int, Any] | None]


class Server:
    """HTTP on a free port: answers by a function of the path and counts; None answers never."""

    def __init__(self, answer: Answer) -> None:
        self.paths: list[str] = []
        self.headers: list[Any] = []
        self.ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                outer.headers.append(self.headers)
                said = answer(self.path)
                if said is None:
                    outer.ended.wait(HANG)
                    return
                body = said[1] if isinstance(said[1], bytes) else json.dumps(said[1]).encode()
                self.send_response(said[0])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    made: list[Server] = []

    def start(answer: Answer) -> Server:
        made.append(Server(answer))
        return made[-1]

    yield start
    for server in made:
        server.close()


KNOWN = {"schema": json.dumps(MIDDLE)}


def test_it_is_asked_again_until_it_answers(
    serve: Callable[[Answer], Server], caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([(503, {}), (200, b"<html>"), (429, {}), (200, KNOWN)])
    server = serve(lambda path: next(answers))
    assert Registry(server.url).by_id(5)["name"] == "R"
    assert server.paths == ["/schemas/ids/5"] * 4
    warnings = [r.getMessage() for r in caplog.records if r.name == "headrace.registry"]
    assert warnings == ["schema registry does not answer, asking again"]


def test_its_patience_ends(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda path: (500, {"message": "no disk"}))
    with pytest.raises(
        HeadraceError, match=r"does not answer: 500 .*no disk.*; is it up"
    ) as caught:
        Registry(server.url, retry_timeout=0.3).by_id(5)
    assert not isinstance(caught.value, UserError)
    assert len(server.paths) > 1


def test_at_the_start_it_is_asked_once(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda path: (500, {}))
    with pytest.raises(HeadraceError, match="does not answer"):
        Avro(Registry(server.url), topics=["t"]).schema({})
    assert server.paths == ["/subjects/t-value/versions/latest"]


def test_one_that_never_answers(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda path: None)
    with pytest.raises(HeadraceError, match=r"does not answer: .*timed out"):
        Registry(server.url, timeout=0.2, retry_timeout=0.0).by_id(5)


def test_who_waits_can_be_woken(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda path: (500, {}))
    made = Avro(Registry(server.url, retry_timeout=2 * HANG), topics=["t"])
    said: list[HeadraceError] = []

    def decode() -> None:
        try:
            made.decode(records(b"\0\0\0\0\5x"), {"id": pl.Int64()})
        except HeadraceError as error:
            said.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    until(lambda: server.paths, what="a question")
    made.interrupt()
    thread.join(HANG)
    assert not thread.is_alive()
    assert len(said) == 1


@pytest.mark.parametrize("code", [401, 403])
def test_a_password_that_is_refused(serve: Callable[[Answer], Server], code: int) -> None:
    server = serve(lambda path: (code, {}))
    client = Registry(server.url, user="me", password=SecretStr("hidden"))
    with pytest.raises(UserError, match=r"set registry_user and registry_password") as caught:
        client.by_id(5)
    assert "hidden" not in str(caught.value)
    assert [h["Authorization"] for h in server.headers] == ["Basic bWU6aGlkZGVu"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"schema": "syntax = ...", "schemaType": "PROTOBUF"}, "got schema 5, which is PROTOBUF."),
        ({"schema": "{"}, "Expected an Avro record's schema, got schema 5: "),
        (
            {"schema": '"string"'},
            "record's schema, got schema 5: it is no record.",
        ),
    ],
)
def test_a_schema_that_is_none(serve: Callable[[Answer], Server], answer: Any, said: str) -> None:
    made = Avro(Registry(serve(lambda path: (200, answer)).url), topics=["t"])
    frame, rejects = made.decode(records(b"\0\0\0\0\5x"), {"id": pl.Int64()})
    assert frame.height == 0
    ((reason, _, detail, _),) = told(rejects)
    assert reason == "unknown_schema"
    assert said in detail


def test_a_schema_that_refers_to_another(serve: Callable[[Answer], Server]) -> None:
    other = record(field("x", "int"), name="Other")
    whole = record(field("v", "long"), field("o", "Other"))
    answers = {
        "/schemas/ids/5": {
            "schema": json.dumps(whole),
            "references": [{"name": "Other", "subject": "other s", "version": 2}],
        },
        "/subjects/other%20s/versions/2": {"schema": json.dumps(other)},
    }
    server = serve(lambda path: (200, answers[path]) if path in answers else (404, {}))
    made = Avro(Registry(server.url), topics=["t"], paths={"x": "o.x"})
    raw = records(b"\0\0\0\0\5\x02\x04")
    frame, rejects = made.decode(raw, {"v": pl.Int64(), "x": pl.Int64()})
    assert (frame.select("v", "x").rows(), rejects) == ([(1, 2)], [])


def test_microseconds_beyond_the_calendar_reject_their_record() -> None:
    timed = record(field("m", {"type": "long", "logicalType": "timestamp-micros"}))
    values = [1, 2**63 - 1, 95_000_000 * 86_400 * 10**6 + 1, -(2**63), 3]
    raw = [datum(record(field("m", "long")), {"m": value}) for value in values]
    avro = Avro(parsed(json.dumps(timed)))
    for kind in (pl.Datetime("ms"), pl.Datetime("ns"), pl.Datetime("us", "UTC"), pl.String()):
        frame, rejects = avro.decode(records(*raw), {"m": kind})
        assert frame.get_column(POSITION).to_list() == [0, 40]
        assert [row[0] for row in told(rejects)] == ["out_of_range"] * 3


def test_a_time_beyond_the_calendar_rejects_its_record() -> None:
    plain = record(field("d", "int"), field("m", "long"))
    timed = record(
        field("d", {"type": "int", "logicalType": "date"}),
        field("m", {"type": "long", "logicalType": "timestamp-millis"}),
    )
    values = [(1, 2), (2_000_000_000, 2), (1, 8_300_000_000_000_000), (1, 2**63 - 1), (3, 4)]
    raw = [datum(plain, {"d": d, "m": m}) for d, m in values]
    avro = Avro(parsed(json.dumps(timed)))
    for kind in (pl.Datetime("ms"), pl.Datetime("us"), pl.String()):
        frame, rejects = avro.decode(records(*raw), {"d": pl.Date(), "m": kind})
        assert frame.get_column(POSITION).to_list() == [0, 40]
        details = [row for reject in rejects for row in reject.rows.get_column("detail")]
        assert sorted(details) == [
            "Column 'd' holds 2000000000, a time beyond the calendar.",
            "Column 'm' holds 8300000000000000, a time beyond the calendar.",
            "Column 'm' holds 9223372036854775807, a time beyond the calendar.",
        ]
