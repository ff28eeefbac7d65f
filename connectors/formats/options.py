"""What a format may be made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors.formats.dialect import Dialect
from connectors.formats.values.casts import Coerce


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatOptions:
    """What a format may be made with; each takes what is its own.

    Attributes:
        paths: column -> where its value is.
        coerce: what is taken for what.
        lines: whether a record is a line of a file; else the value of a message, or a file.
        lenient: whether what a CSV's cells may say is found, not declared.
        headers: partition -> names of the fields, of CSV.
        dialect: how a CSV is written.
        schemas: what knows Avro schemas, see `connectors.formats.avro.Avro`.
        topics: whose newest schema says the columns.
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    coerce: Coerce = "lossless"
    lines: bool = False
    lenient: bool = False
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)
    schemas: Any = None
    topics: Sequence[str] = ()


__all__ = ["FormatOptions"]
