"""Decodes XML: columns by their path in an element, of possibly hostile documents."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from lxml import etree

from connectors.formats.custom import require_declared
from connectors.formats.kernels.rows import BROKEN, make_rejects
from connectors.formats.options import FormatOptions
from connectors.formats.values.casts import conform
from engine.types import Format, Records, Rejects, Schema, UserError, Values, nearest

ENTITY = "entity"
SAFE: Mapping[str, Any] = {
    "resolve_entities": False,
    "no_network": True,
    "huge_tree": False,
    "load_dtd": False,
    "remove_comments": True,
    "remove_pis": True,
}
"""A parser that expands no entity, fetches nothing, and keeps libxml2's limits: 256 levels, 10
MB of text."""
STEP = r"(?:[^/@\[\]\s.][^/@\[\]\s]*(?:\[\d+\])?)"
PATH = re.compile(rf"\.|@[^/@\[\]\s]+|{STEP}(?:/{STEP})*(?:/@[^/@\[\]\s]+)?")
ROW = re.compile(r"[^/@\[\]\s]+(?:/[^/@\[\]\s]+)*")
ElementPath = tuple[tuple[tuple[str, int], ...], str | None]
"""The names and indexes of the elements on the way, and the attribute's name (after a colon if
it has a namespace), or None for the text."""


def parse_place(path: str, column: str) -> ElementPath:
    """Parse a path. Raises: UserError if it is invalid."""
    if not PATH.fullmatch(path):
        raise UserError(
            f"[source] paths: '{path}' of column '{column}' is no path in XML: expected names of "
            "elements with slashes in between, indexes from 0 in brackets, and perhaps an "
            "attribute, as in 'address/city', 'items/item[0]/@price', '@id', or '.' for the text."
        )
    elements, at, attribute = path.partition("@")
    steps = []
    for step in elements.rstrip("/").split("/"):
        if step not in ("", "."):
            name, _, index = step.rstrip("]").partition("[")
            steps.append((local(name), int(index or 0)))
    of_namespace = ":" if attribute != local(attribute) else ""
    return tuple(steps), of_namespace + local(attribute) if at else None


def local(name: str) -> str:
    """Return a name without its namespace, ``{uri}`` or ``prefix:``."""
    return name.rpartition("}")[2].rpartition(":")[2]


class _Node:
    """What is read of an element: column numbers, and child elements by name.

    Attributes:
        leaves: name -> column that is the text of the first element of that name, the usual case;
            those are not in `below` any more when the tree is done.
    """

    __slots__ = ("attributes", "below", "leaves", "text")

    def __init__(self) -> None:
        self.text: list[int] = []
        self.attributes: list[tuple[str, int]] = []
        self.below: dict[str, dict[int, _Node]] = {}
        self.leaves: dict[str, int] = {}

    def done(self) -> None:
        for name, nodes in list(self.below.items()):
            for node in nodes.values():
                node.done()
            only = nodes.get(0) if len(nodes) == 1 else None
            if only and len(only.text) == 1 and not (only.attributes or only.below or only.leaves):
                self.leaves[name] = only.text[0]
                del self.below[name]


class XmlFields:
    """The columns of a schema as places in an element.

    Names are local names, in any namespace; an attribute that has one is written with a prefix, any
    or none, ``@xlink:href`` or ``@:href``. A column without a path is the element of its own name,
    or, where there is none, the attribute; its name may be a path itself. Of several equal elements
    the first counts, unless the path has an index. What is absent or empty is null. The text of an
    element is all text in it.

    Args:
        columns: their names.
        paths: column -> where its value is.

    Raises: UserError for a path that is none, or is of no column.
    """

    def __init__(self, columns: Sequence[str], paths: Mapping[str, str]) -> None:
        for column in paths:
            if column not in columns:
                raise UserError(
                    f"[source] paths names column '{column}', which [source.schema] does not."
                    f"{nearest(column, columns)}"
                )
        self.columns = list(columns)
        self._root = _Node()
        self._either: list[tuple[str, int]] = []
        for number, column in enumerate(self.columns):
            steps, attribute = parse_place(paths.get(column, column), column)
            node = self._root
            for name, index in steps:
                node = node.below.setdefault(name, {}).setdefault(index, _Node())
            if attribute is not None:
                node.attributes.append((attribute, number))
            else:
                node.text.append(number)
            if column not in paths and attribute is None and len(steps) == 1:
                self._either.append((steps[0][0], number))
        self._root.done()

    def frame(self, elements: Iterable[etree._Element], rows: int) -> pl.DataFrame:
        """Return the columns as text, one row per element.

        Args:
            elements: may be parsed as they are asked for: none is kept.
            rows: how many they are, at most.
        """
        out: list[list[str | None]] = [[None] * rows for _ in self.columns]
        row = -1
        for row, element in enumerate(elements):
            _fill(self._root, element, row, out)
            for name, number in self._either:
                if out[number][row] is None:
                    out[number][row] = _attribute(element, name)
        for values in out:
            del values[row + 1 :]
        columns = [pl.Series(c, v, pl.String) for c, v in zip(self.columns, out, strict=True)]
        return pl.DataFrame([column.set(column == "", None) for column in columns])


def _fill(node: _Node, element: etree._Element, row: int, out: list[list[str | None]]) -> None:
    """Fill the columns, as deep as the paths, not the document. An empty element is empty text:
    it exists, so no later one is taken for it."""
    if node.text:
        text = _text(element)
        for number in node.text:
            out[number][row] = text
    for name, number in node.attributes:
        out[number][row] = _attribute(element, name)
    leaves, below = node.leaves, node.below
    if not leaves and not below:
        return
    seen: dict[str, int] = {}
    for child in element:
        tag = child.tag
        if not isinstance(tag, str):
            continue
        if tag[0] == "{":
            tag = tag.rpartition("}")[2]
        leaf = leaves.get(tag)
        if leaf is not None:
            values = out[leaf]
            if values[row] is None:
                values[row] = _text(child) if len(child) else child.text or ""
            continue
        wanted = below.get(tag)
        if wanted is None:
            continue
        seen[tag] = index = seen.get(tag, -1) + 1
        inner = wanted.get(index)
        if inner is not None:
            _fill(inner, child, row, out)


def _text(element: etree._Element) -> str:
    return "".join(element.itertext()) if len(element) else element.text or ""


def _attribute(element: etree._Element, name: str) -> str | None:
    """Return an attribute without listing all of them from Python: lxml needs quadratic time for
    that."""
    value = OF_NAMESPACE(element, name=name[1:]) if name[0] == ":" else element.get(name)
    return None if value is None else str(value)


OF_NAMESPACE = etree.XPath("string(@*[namespace-uri() != '' and local-name() = $name])")


def leaves(element: etree._Element) -> Iterator[tuple[str, str]]:
    """Return paths and texts of the attributes, and of the elements without children."""
    ways = [(element, "")]
    while ways:
        node, way = ways.pop()
        for name in map(str, node.keys()):
            yield f"{way}@{':' if name[0] == '{' else ''}{local(name)}", ""
        below = [child for child in node if isinstance(child.tag, str)]
        if not below:
            yield way.rstrip("/") or ".", node.text or ""
        ways += [(child, f"{way}{local(str(child.tag))}/") for child in reversed(below)]


def columns_of(elements: Sequence[etree._Element]) -> list[str]:
    """Return the columns of these elements, named by their paths; an attribute of the element
    itself without its sign, if no element has that name."""
    paths = dict.fromkeys(p for e in elements for p, text in leaves(e) if p != "." or text.strip())
    return [p[1:] if p[0] == "@" and p[1:] not in paths else p for p in paths]


def documents(records: Records) -> list[etree._Element]:
    """Return the roots of valid documents, for a sample."""
    assert isinstance(records.values, Values)
    parser = etree.XMLParser(**SAFE)
    roots = []
    for raw in records.values.take(np.arange(len(records))):
        with contextlib.suppress(etree.XMLSyntaxError, EntityError):
            roots.append(parsed(raw or b"", parser))
    return roots


def declares_entities(element: etree._Element) -> bool:
    """Return whether the element's document declares entities, which are never expanded."""
    table = element.getroottree().docinfo.internalDTD
    return table is not None and next(iter(table.iterentities()), None) is not None


def refers_to_entities(element: etree._Element) -> bool:
    """Return whether text is missing in the element because an entity stands for it."""
    return next(element.iter(etree.Entity), None) is not None


REFUSED = "Expected XML without entities of its own, got some: they are never expanded."


class Xml(Format):
    """Decodes XML, one document per record; its columns are text that is cast, see `XmlFields`.
    Invalid XML, and documents beyond libxml2's limits, are ``broken``; a document with entities
    is rejected as ``entity``.

    Args:
        paths: column -> where its value is, from the document's root element.
    """

    def __init__(self, paths: Mapping[str, str] | None = None) -> None:
        """Raises: UserError for a text that is no path."""
        self._paths = dict(paths or {})
        for column, path in self._paths.items():
            parse_place(path, column)

    def schema(self, declared: Schema) -> Schema:
        """Return the columns, which must be declared. Raises: UserError if they and the paths do
        not fit together."""
        XmlFields(list(require_declared(declared, "XML documents")), self._paths)
        return declared

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Return one row or one reject per document."""
        values = records.values
        assert isinstance(values, Values)
        parser = etree.XMLParser(**SAFE)
        fields = XmlFields(list(schema), {c: p for c, p in self._paths.items() if c in schema})
        bad: dict[int, tuple[str, str]] = {}

        def roots() -> Iterator[etree._Element]:
            """Yield one tree at a time: they are many times as large as their text."""
            for row in range(len(values)):
                raw = values.data[values.bounds[row] : values.bounds[row + 1]].tobytes()
                try:
                    yield parsed(raw, parser)
                except etree.XMLSyntaxError as error:
                    bad[row] = BROKEN, f"Expected an XML document: {parser_message(error)}."
                except EntityError:
                    bad[row] = ENTITY, REFUSED

        frame = fields.frame(roots(), len(values))
        good = np.delete(np.arange(len(values)), list(bad))
        result, rejects = conform(frame, records, schema, good)
        for reason in dict.fromkeys(reason for reason, _ in bad.values()):
            rows = [row for row in bad if bad[row][0] == reason]
            detail = pl.Series([bad[row][1] for row in rows], dtype=pl.String)
            rejects.append(make_rejects(records, np.array(rows, np.int64), reason, detail))
        return result, rejects


class EntityError(Exception):
    """A document with entities."""


def parsed(raw: bytes, parser: etree.XMLParser) -> etree._Element:
    """Return the root of a document. Raises: XMLSyntaxError, EntityError."""
    root = etree.fromstring(raw, parser)
    if root.getroottree().docinfo.internalDTD is not None and (
        declares_entities(root) or refers_to_entities(root)
    ):
        raise EntityError
    return root


def parser_message(error: etree.XMLSyntaxError) -> str:
    """Return libxml2's error, without its advice to lift the limits."""
    text = str(error).partition(" (<string>")[0].replace("\n", "")
    return re.sub(r",? (?:use|try) XML_PARSE_HUGE(?: option)?", "", text)


def make(options: FormatOptions) -> Xml:
    """Return the format; called by `connectors.formats.registry`."""
    return Xml(options.paths)


__all__ = [
    "ENTITY",
    "REFUSED",
    "ROW",
    "SAFE",
    "EntityError",
    "Xml",
    "XmlFields",
    "columns_of",
    "declares_entities",
    "documents",
    "local",
    "parse_place",
    "parsed",
    "parser_message",
    "refers_to_entities",
]  # fmt: skip
