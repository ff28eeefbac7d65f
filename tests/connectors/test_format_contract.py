"""What holds for every format, a user's own included."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.formats.avro import Avro, UnknownSchema, parsed
from connectors.formats.csv import Csv
from connectors.formats.custom import load_custom
from connectors.formats.kernels.rows import make_rejects, with_position_columns
from connectors.formats.ndjson import Ndjson
from connectors.formats.text import RawText
from connectors.formats.values.casts import conform
from connectors.formats.values.columns import Columns
from connectors.formats.xml import Xml
from connectors.kafka.source import KafkaSource
from engine.types import Format, Records, Rejects, Schema, UserError
from tests.broker import shared_broker
from tests.connectors.conftest import decoded, drain, files, kafka_source, records, told
from tests.size import examples

SCHEMA: Schema = {"n": pl.Int64(), "s": pl.String()}
SQUARES: Schema = {"n": pl.Int64(), "s": pl.Int64()}
WRITER = {
    "type": "record", "name": "R",
    "fields": [{"name": "n", "type": ["null", "long"]}, {"name": "s", "type": ["null", "string"]}],
}  # fmt: skip


class Squares(Format):
    """A user's own format: a number a record, and its square beside it."""

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        text, rejects = RawText().decode(records, {"value": pl.String()})
        n = text["value"].str.strip_chars().cast(pl.Int64, strict=False)
        bad = np.searchsorted(records.positions, text["_position"].filter(n.is_null()))
        if len(bad):
            rejects.append(make_rejects(records, bad, "no_number", "Expected a number."))
        at = np.searchsorted(records.positions, text["_position"].filter(n.is_not_null()))
        return with_position_columns(
            pl.DataFrame({"n": n.drop_nulls(), "s": n.drop_nulls() ** 2}), records, at
        ), rejects


class Numbered:
    """A registry of the one schema, number 3."""

    def by_id(self, number: int) -> Any:
        if number != 3:
            raise UnknownSchema(f"Expected a schema that the registry knows, got schema {number}.")
        return parsed(json.dumps(WRITER))

    def latest(self, topic: str, *, retry: bool = True) -> Any:
        return self.by_id(3)

    def version(self, topic: str, version: int | str, *, retry: bool = True) -> Any:
        return self.by_id(3)

    def versions(self, topic: str, *, retry: bool = True) -> list[int]:
        return [1]

    def interrupt(self) -> None:
        """Nothing waits."""

    def resume(self) -> None:
        """Nothing waits."""


def datum(n: int | None, s: str | None) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, WRITER, {"n": n, "s": s})
    return out.getvalue()


def _avro(head: bytes) -> dict[bytes, tuple[int | None, str | None]]:
    rows = [(1, "a"), (None, None), (-(2**40), "ö\n")]
    return {head + datum(n, s): (n, s) for n, s in rows}


@dataclass(frozen=True)
class Case:
    """A format, and records with the row that each is, or None where it is poison."""

    format: Format
    values: dict[bytes, tuple[Any, ...] | None]
    schema: Schema


HEAD = b"\0\0\0\0\3"
CASES = {
    "ndjson": Case(
        Ndjson(),
        {b'{"n":1,"s":"a"}\n': (1, "a"), b'{ "n":\n2}': (2, None), b"{}": (None, None), b"": None,
         b"{": None, b'{"n":"x"}\n': None, b'{"s":"\xff"}': None, b"[]\n": None},
        SCHEMA,
    ),
    "ndjson, paths": Case(
        Ndjson({"n": "a.b[1]"}),
        {b'{"a":{"b":[0,1]},"s":"a"}\n': (1, "a"), b'{"a":null}': (None, None), b'{"a":5}': None,
         b'{"a":{"b":[0,"x"]}}': None, b'{"a":{"b":[1.5,2]}}': (2, None)},
        SCHEMA,
    ),
    "csv": Case(
        Csv(defaultdict(lambda: ["n", "s"])),
        {b"1,a\n": (1, "a"), b",\n": (None, None), b'2,"x,y"\n': (2, "x,y"), b"1\n": None,
         b"x,a\n": None, b"1,\xff\n": None},
        SCHEMA,
    ),
    "xml": Case(
        Xml({"n": "@id"}),
        {b'<r id="1"><s>a</s></r>': (1, "a"), b'<?xml version="1.0"?>\n<r s="b"/>\n': (None, "b"),
         b"<r><s/></r>": (None, None), b'<o:r xmlns:o="u"><o:s>x<i>y</i></o:s></o:r>': (None, "xy"),
         b"": None, b"<r>": None, b'<r id="x"/>': None, b"<r/><r/>": None, b"<r>\xff</r>": None,
         b'<!DOCTYPE r [<!ENTITY e "x">]><r><s>&e;</s></r>': None, b"<r><s>&e;</s></r>": None},
        SCHEMA,
    ),
    "text": Case(
        RawText(),
        {b"a": ("a",), b"": ("",), "ö".encode(): ("ö",), b"\xff": None},
        {"value": pl.String()},
    ),
    "bytes": Case(
        RawText(), {b"a": (b"a",), b"": (b"",), b"\xff": (b"\xff",)}, {"value": pl.Binary()}
    ),
    "avro, file": Case(
        Avro(parsed(json.dumps(WRITER))),
        {**_avro(b""), b"": None, datum(1, "a")[:-1]: None, datum(1, "a") + b"x": None,
         b"\x02\x02\x02\x02\xff": None, b"\x07": None},
        SCHEMA,
    ),
    "avro, registry": Case(
        Avro(Numbered(), topics=["t"]),
        {**_avro(HEAD), b"": None, HEAD: None, b"{}": None, b"\0\0\0\0\4" + datum(1, "a"): None,
         HEAD + datum(1, "a")[:-1]: None, HEAD + datum(1, "a") + b"x": None},
        SCHEMA,
    ),
    "own": Case(Squares(), {b"3": (3, 9), b"-1\n": (-1, 1), b"x": None, b"\xff": None},
                SQUARES),
}  # fmt: skip


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def check(case: Case, parts: Sequence[bytes], raw: Records) -> None:
    """Every row once, in the frame or as a reject, in its place."""
    frame, rejects = case.format.decode(raw, case.schema)
    positions = raw.positions.tolist()
    good = [i for i, part in enumerate(parts) if case.values[part] is not None]
    assert frame.drop("_partition", "_position").rows() == [case.values[parts[i]] for i in good]
    assert frame["_position"].to_list() == [positions[i] for i in good]
    assert set(frame["_partition"]) <= {raw.partition}
    gone = sorted(p for reject in rejects for p in reject.rows["_position"])
    assert gone == [positions[i] for i in range(len(parts)) if i not in good]
    assert frame.height + len(gone) == len(raw)
    assert frame.columns == ["_partition", "_position", *case.schema]
    for reject in rejects:
        assert reject.stage == "decode"
        assert reject.rows.columns == ["_partition", "_position", "detail", "value"]
        assert reject.rows["detail"].str.ends_with(".").all()


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data())
def test_every_row_once_in_its_place(case: Case, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.sampled_from(list(case.values)), max_size=20))
    check(case, parts, records(*parts))


@settings(max_examples=examples(20), deadline=None)
@given(data=st.data())
def test_a_slice_is_its_rows(case: Case, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.sampled_from(list(case.values)), min_size=1, max_size=12))
    start = data.draw(st.integers(0, len(parts)))
    stop = data.draw(st.integers(start, len(parts)))
    check(case, parts[start:stop], records(*parts).slice(start, stop))


def test_nothing_gives_nothing(case: Case) -> None:
    frame, rejects = case.format.decode(records(), case.schema)
    assert (frame.height, rejects) == (0, [])
    assert dict(frame.schema) == {"_partition": pl.String(), "_position": pl.Int64(), **case.schema}


def test_nothing_but_poison(case: Case) -> None:
    parts = [part for part, row in case.values.items() if row is None]
    check(case, parts, records(*parts))


def test_a_source_is_no_format_and_columns_are_one() -> None:
    assert isinstance(Columns(), Format)
    frame = pl.DataFrame({"n": [1, None], "s": ["a", None]})
    raw = Records(partition="p", positions=np.array([4, 9]), next=10, values=frame, arrived=0.0)
    made, rejects = Columns().decode(raw, SCHEMA)
    assert (made["_position"].to_list(), rejects) == ([4, 9], [])


# ---------------------------------------------------------------------------------- a user's own

OWN = f"{__name__}:Squares"


def test_an_own_format_reads_files(tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("3\n\n4\n")
    source = files(tmp_path / "numbers.txt", format=OWN)
    schema = source.schema(SQUARES)
    assert decoded(source, drain(source), schema).rows() == [(3, 9), (4, 16)]


def test_an_own_format_reads_a_topic() -> None:
    broker = shared_broker()
    topic = broker.topic()
    broker.produce(topic, [b"3", b"4"])
    source = kafka_source(broker, topic, format=OWN)
    schema = source.schema(SQUARES)
    assert decoded(source, drain(source), schema).rows() == [(3, 9), (4, 16)]
    source.close()


def test_an_own_format_needs_declared_columns(tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("3\n")
    source = files(tmp_path / "numbers.txt", format=OWN)
    with pytest.raises(UserError, match=r"must name every column of text in a format of your own"):
        source.schema({})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package.x:Y", "cannot be imported: ModuleNotFoundError: No module named"),
        ("connectors.formats.text:Txt", "has no attribute 'Txt'"),
        ("connectors.formats.text:RawTxt", "Did you mean 'RawText'?"),
        ("pathlib:Path", "does not inherit engine.types.Format"),
    ],
)
def test_what_is_no_format(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_custom(name)
    assert said in str(caught.value)


def test_a_format_that_is_none_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n\n1\n")
    with pytest.raises(UserError, match=r"format 'ndjsn' is none of .*Did you mean 'ndjson'"):
        files(tmp_path / "a.csv", format="ndjsn")
    with pytest.raises(UserError, match=r"format 'arvo' is none of .*Did you mean 'avro'"):
        KafkaSource(KafkaSource.Settings(topics=("t",), format="arvo"))


def test_the_readmes_format_works() -> None:
    """The ten lines in connectors/formats/README.md."""
    text = (Path(__file__).parents[2] / "connectors" / "formats" / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    known: dict[str, Any] = {
        "Format": Format,
        "RawText": RawText,
        "np": np,
        "pl": pl,
        "conform": conform,
    }
    exec(code, known)
    raw = records(b"3|red", b"x|blue", b"\xff", b"4", b"5|a|b")
    schema: Schema = {"n": pl.Int64(), "colour": pl.String()}
    frame, rejects = known["Pipes"]().decode(raw, schema)
    assert frame.select("_position", "n", "colour").rows() == [
        (0, 3, "red"), (30, 4, None), (40, 5, "a"),
    ]  # fmt: skip
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [
        ("wrong_type", 10), ("bad_utf8", 20),
    ]  # fmt: skip
