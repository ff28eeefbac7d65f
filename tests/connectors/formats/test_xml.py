"""XML: columns by path, one large document as rows, and what hostile people send."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from connectors.files.readers import xml
from connectors.formats.xml import Xml, XmlFields
from engine.types import HeadraceError, Mark, Schema, UserError
from tests.broker import shared_broker
from tests.connectors.conftest import decoded, drain, files, kafka_source, records, told
from tests.connectors.files.test_file_rows import folder, read
from tests.size import examples

ORDER = b"""<order id="7" xmlns:x="urn:x">
  <x:customer><name first="Ada">Lovelace</name><name>B</name></x:customer>
  <item price="1.5">nut<b>s</b></item><item price="2"/>
  <note/>
</order>"""


def one(raw: bytes, paths: Mapping[str, str]) -> dict[str, Any]:
    schema: Schema = dict.fromkeys(paths, pl.String())
    frame, rejects = Xml(paths).decode(records(raw), schema)
    assert rejects == []
    return frame.drop("_partition", "_position").row(0, named=True)


def test_columns_by_path() -> None:
    paths = {
        "id": "@id", "name": "customer/name", "other": "customer/name[1]", "none": "a/b/@c",
        "first": "x:customer/name/@first", "item": "item", "price": "item[1]/@price",
        "note": "note", "third": "item[2]",
    }  # fmt: skip
    assert one(ORDER, paths) == {
        "id": "7", "name": "Lovelace", "other": "B", "none": None, "first": "Ada", "item": "nuts",
        "price": "2", "note": None, "third": None,
    }  # fmt: skip
    link = b"<r xmlns:x='urn:x' href='plain' x:href='linked'/>"
    assert one(link, {"a": "@href", "b": "@xlink:href"}) == {"a": "plain", "b": "linked"}
    assert one(b"<a>1<!-- c -->2<![CDATA[<3>]]><?pi?>4</a>", {"text": "."}) == {"text": "12<3>4"}


def test_a_column_without_a_path_is_the_element_or_else_the_attribute() -> None:
    schema: Schema = {"a": pl.Int64(), "b": pl.Int64(), "c/d": pl.Int64()}
    frame, _ = Xml().decode(records(b'<r a="1" b="2"><b>3</b><c><d>4</d></c></r>'), schema)
    assert frame.row(0)[2:] == (1, 3, 4)


def test_values_are_cast_as_fields_of_csv_are() -> None:
    raw = b"<r><x> 1.5\n</x><t>2024-05-01T12:00:00Z</t><b>true</b></r>"
    schema: Schema = {"x": pl.Float64(), "t": pl.Datetime("us"), "b": pl.Boolean()}
    frame, rejects = Xml().decode(records(raw, b"<r><x>much</x></r>"), schema)
    assert [str(v) for v in frame.row(0)[2:]] == ["1.5", "2024-05-01 12:00:00", "True"]
    assert told(rejects)[0][:3] == (
        "wrong_type", 10, "Expected float64, got 'much' in column 'x'."
    )  # fmt: skip


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/@", "a[x]", "a b", "@a/b", "a[-1]", "../a"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(UserError, match="is no path in XML: expected names of elements"):
        Xml({"c": path})


def test_encodings() -> None:
    text = "<?xml version='1.0' encoding='{}'?><r><s>öß</s></r>"
    for name in ("utf-8", "utf-16", "iso-8859-1"):
        assert one(text.format(name).encode(name), {"s": "s"}) == {"s": "öß"}


# ----------------------------------------------------------------------------------------- hostile

LAUGHS = b"<!DOCTYPE r [<!ENTITY a0 'ha'>" + b"".join(
    b"<!ENTITY a%d '%s'>" % (i, b"&a%d;" % (i - 1) * 10) for i in range(1, 12)
)
HOSTILE = {
    "billion laughs": (LAUGHS + b"]><r><s>&a11;</s></r>", None),
    "billion laughs in an attribute": (LAUGHS + b"]><r s='&a11;'/>", None),
    "quadratic": (
        b"<!DOCTYPE r [<!ENTITY a '" + b"x" * 100_000 + b"'>]><r>" + b"&a;" * 50_000 + b"</r>",
        None,
    ),
    "a file": (b"<!DOCTYPE r [<!ENTITY a SYSTEM 'file://%s'>]><r><s>&a;</s></r>", "entity"),
    "a parameter": (b"<!DOCTYPE r [<!ENTITY %% a SYSTEM 'file://%s'> %%a;]><r/>", "entity"),
    "a table from outside": (b"<!DOCTYPE r SYSTEM 'file://%s'><r><s>x&a;y</s></r>", "entity"),
    "an inclusion": (
        b"<r xmlns:i='http://www.w3.org/2001/XInclude'><s><i:include href='file://%s'/></s></r>",
        "",
    ),
    "deep": (b"<a>" * 100_000 + b"</a>" * 100_000, "broken"),
    "open": (b"<a>" * 1_000_000, "broken"),
    "long": (b"<r><s>" + b"x" * 11_000_000 + b"</s></r>", "broken"),
    "many attributes": (
        b"<r " + b" ".join(b"a%d=''" % i for i in range(100_000)) + b"/>", "",
    ),
    "cut": (b"<r><s>x</s", "broken"),
    "no UTF-8": (b"<r>\xff</r>", "broken"),
    "no XML": (b'{"s": 1}', "broken"),
    "a control character": (b"<r>\x00</r>", "broken"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_cost_themselves(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("<!ENTITY a 'secret'>")
    raw, reason = HOSTILE[name]
    raw = raw.replace(b"%s", str(tmp_path / "outside").encode()).replace(b"%%", b"%")
    good = b"<r><s>good</s></r>"
    schema: Schema = {"s": pl.String()}
    frame, rejects = Xml().decode(records(good, raw, good), schema)
    texts = frame["s"].to_list()
    assert "secret" not in str(texts) + str(told(rejects))
    if reason == "":
        assert texts == ["good", None, "good"]
    else:
        assert texts == ["good", "good"]
        assert [(r, at) for r, at, _, _ in told(rejects)] == [(reason or told(rejects)[0][0], 10)]
        assert "XML_PARSE_HUGE" not in told(rejects)[0][2]


@pytest.mark.parametrize("name", [n for n, (_, why) in HOSTILE.items() if why and "table" not in n])
def test_hostile_files_end_in_one_sentence(name: str, tmp_path: Path) -> None:
    raw, _ = HOSTILE[name]
    path = tmp_path / "rows.xml"
    path.write_bytes(raw)
    source = files(path, row="r/s")
    source.schema({"s": pl.String()})
    with pytest.raises(HeadraceError, match=r"rows.xml") as caught:
        drain(source)
    assert "\n" not in str(caught.value)


def test_a_reference_to_nothing_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.xml"
    path.write_bytes(
        b"<!DOCTYPE r SYSTEM 'x.dtd'><r><s>a</s><s>b&nbsp;c</s><s>d</s></r>"
    )  # fmt: skip
    frame, rejects = read(files(path, row="r/s", paths={"s": "."}), {"s": pl.String()})
    assert frame["s"].to_list() == ["a", "d"]
    assert [(reason, at) for reason, at, _, _ in rejects] == [("entity", 1)]


# ------------------------------------------------------------------------------------ one document


def rows(n: int, junk: int = 0) -> bytes:
    more = b"<junk>" + b"<j>junk</j>" * junk + b"</junk>"
    body = b"".join(b"<row n='%d'><x>%d.5</x></row>%s" % (i, i, more) for i in range(n))
    return b"<rows>" + body + b"</rows>"


def test_columns_are_found(tmp_path: Path) -> None:
    path = tmp_path / "orders.xml"
    path.write_bytes(
        b"<orders><order id='1'><x>1.5</x><who><name>a</name></who></order>"
        b"<order id='2'><x>2</x><at>2024-01-01</at></order></orders>"
    )
    source = files(path, row="orders/order", paths={"n": "who/name"})
    schema = source.schema({})
    assert schema == {
        "id": pl.Int64(), "x": pl.Float64(), "who/name": pl.String(), "at": pl.Date(),
        "n": pl.String(),
    }  # fmt: skip
    frame, rejects = read(source)
    assert rejects == []
    assert [str(v) for v in frame.row(1)] == ["2", "2.0", "None", "2024-01-01", "None"]
    assert source.schema({"x": pl.Float32(), "*": pl.String()})["id"] == pl.String()


def test_documents_of_a_folder(tmp_path: Path) -> None:
    root = folder(
        tmp_path,
        {"a.xml": b"<r x='1'/>", "b.xml": b"<r", "c.xml.gz": gzip.compress(b"<r x='2'/>")},
    )
    frame, rejects = read(files(root))
    assert frame.to_dict(as_series=False) == {"x": [1, 2]}
    assert [reason for reason, *_ in rejects] == ["broken"]


@settings(max_examples=examples(25), deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.text("ab<&>'\"] ö\n", max_size=9), st.integers(0, 3)),
        max_size=30,
    ),
    st.integers(1, 200),
)
def test_rows_are_those_of_the_whole_tree(
    tmp_path_factory: pytest.TempPathFactory, content: list[tuple[int, str, int]], block: int
) -> None:
    """As lxml finds them with the whole document in memory, whatever lies between them."""
    root = etree.Element("a")
    for n, text, where in content:
        parent = [root, etree.SubElement(root, "b"), etree.SubElement(root, "row")][where % 3]
        row = etree.SubElement(
            etree.SubElement(parent, "b") if where == 3 else parent, "row", n=str(n)
        )
        etree.SubElement(row, "s").text = text
        etree.SubElement(etree.SubElement(row, "b"), "row").tail = text
    path = tmp_path_factory.mktemp("xml") / "a.xml"
    path.write_bytes(etree.tostring(root, encoding="utf-8"))
    expected = XmlFields(["n", "b", "s"], {}).frame(
        root.iterfind("b/row"), len(root.findall("b/row"))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xml, "BLOCK", block + 60)
        source = files(path, row="a/b/row")
        schema = source.schema(dict(expected.schema))
        pieces = drain(source, 3)
        if pieces:
            assert decoded(source, pieces, schema).equals(expected)
        else:
            assert expected.height == 0
        for i, piece in enumerate(pieces):
            again = files(path, row="a/b/row")
            again.schema(schema)
            again.seek(Mark(positions={piece.partition: piece.next}))
            rest = drain(again, 5)
            assert sum(map(len, rest)) == sum(map(len, pieces[i + 1 :]))
            if rest:
                assert decoded(again, rest, schema).equals(expected[piece.next :])


def test_a_large_document_is_never_in_memory(tmp_path: Path) -> None:
    """Neither its rows nor what lies between them; lxml's own trees are seen by the process."""
    import psutil

    path = tmp_path / "rows.xml"
    path.write_bytes(rows(2_000, junk=3_000))  # 66 MB, as a tree 1 GB
    source = files(path, row="rows/row")
    schema = source.schema({"n": pl.Int64(), "x": pl.Float64()})
    process = psutil.Process()
    before, most, n = process.memory_info().rss, 0, 0
    while n < 2_000:
        piece = source.read(100, 1 << 20, 0.0)
        assert piece is not None
        n += source.format.decode(piece, schema)[0].height
        most = max(most, process.memory_info().rss)
    assert most - before < 60 << 20


def test_a_row_without_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.xml"
    path.write_bytes(b"<rows><row><x>1</x></row><row>" + b"<x>1</x>" * 1_000_000)
    source = files(path, row="rows/row", max_record_bytes=3 << 20)
    source.schema({"x": pl.Int64()})
    with pytest.raises(UserError, match=r"at position 1 or behind, is longer than 3145728 bytes"):
        drain(source)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "cannot be read on as XML: "),
        (rows(3)[:-20], "cannot be read on as XML: .*cut short, damaged"),
        (rows(3) + b"<more/>", "Extra content at the end of the document"),
        (b"<shop></shop>", "row 'rows/row' begins at 'rows', but the root element .* is 'shop'"),
        (b"x,y\n1,2\n", "cannot be read on as XML: Start tag expected"),
    ],
)
def test_a_document_that_is_damaged_gives_the_rows_before(
    tmp_path: Path, raw: bytes, said: str
) -> None:
    path = tmp_path / "rows.xml"
    path.write_bytes(raw)
    source = files(path, row="rows/row")
    source.schema({"n": pl.Int64()})
    for _ in range(raw.count(b"</row>")):
        assert source.read(1, 1, 0.0) is not None
    with pytest.raises(HeadraceError, match=said):
        source.read(1, 1, 0.0)


def test_a_row_that_is_not_there_or_no_path(tmp_path: Path) -> None:
    path = tmp_path / "rows.xml"
    path.write_bytes(rows(3))
    with pytest.raises(UserError, match="row 'rows/rwo' leads to nothing in the first"):
        files(path, row="rows/rwo").schema({})
    with pytest.raises(UserError, match="row '//row' is no path"):
        files(path, row="//row").schema({})
    with pytest.raises(UserError, match=r"row is for xml, and format is 'csv'"):
        files(path, row="rows/row", format="csv")


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "rows.xml"
    path.write_bytes(rows(3))
    source = files(path, row="rows/row")
    source.schema({"n": pl.Int64()})
    source.seek(Mark(positions={str(path): 4}))
    with pytest.raises(HeadraceError, match="has 3 rows, fewer than 4, where to resume"):
        source.read(1, 1, 0.0)


def test_xml_from_a_topic() -> None:
    broker = shared_broker()
    topic = broker.topic()
    broker.produce(topic, [b'<r id="3"><s>a</s></r>', b"<r><s>b</s></r>"])
    source = kafka_source(broker, topic, format="xml", paths={"n": "@id"})
    schema = source.schema({"n": pl.Int64(), "s": pl.String()})
    assert decoded(source, drain(source), schema).rows() == [(3, "a"), (None, "b")]
    source.close()


def test_a_document_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.xml"
    schema: Schema = {"n": pl.Int64()}
    path.write_bytes(b"<rows></rows>")
    source = files(path, row="rows/row")
    source.schema(schema)
    assert drain(source) == []
    path.write_bytes(b"<rows>" + b"<rwo/>" * 1_000_000 + b"</rows>")
    source = files(path, row="rows/row", max_record_bytes=1 << 20)
    source.schema(schema)
    with pytest.raises(UserError, match=r"'rows/row' leads to nothing in the first 2,097,152 b"):
        source.read(1, 1, 0.0)
