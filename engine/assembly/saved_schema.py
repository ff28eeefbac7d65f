"""The schema file of a run: the columns its source had when it started."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from engine.system import atomic
from engine.types import Schema, Sink, Snapshot, UserError, parse_type, type_name

log = logging.getLogger("headrace.run")
SCHEMA_FILE = "schema.json"
"""The file name, in the pipeline's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSchema:
    """The columns a run started with. A resumed run keeps them, whatever types its rows suggest.

    Attributes:
        declared: [source.schema] at the start.
        columns: column -> type name, without the columns of a row's origin.
        findings: the `schema_state` of the source.
        writes: the folders with results of this run.
        classes: the inferred classes of the label, in order.
    """

    declared: Mapping[str, Any] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    findings: Mapping[str, Snapshot] = field(default_factory=dict)
    writes: Sequence[str] = ()
    classes: Sequence[str] = ()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the schema file; empty if it is missing or damaged."""
        try:
            saved = json.loads((folder / SCHEMA_FILE).read_text())
        except (OSError, ValueError):
            return cls()
        if not isinstance(saved, dict):
            return cls()
        classes = saved.get("classes", [])
        named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        return cls(
            declared=saved.get("declared"),
            columns=saved.get("columns", {}),
            findings=saved.get("findings", {}),
            writes=saved.get("writes", []),
            classes=tuple(classes) if named else (),
        )

    def schema(self, declared: Mapping[str, Any]) -> Schema:
        """Return the columns, or none if [source.schema] is another now."""
        if self.declared != declared:
            return {}
        try:
            return {column: parse_type(name) for column, name in self.columns.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def write(self, folder: Path) -> None:
        """Write the schema file; log a warning on failure, since a run can do without."""
        saved: dict[str, Any] = {
            "declared": self.declared,
            "columns": dict(self.columns),
            "findings": dict(self.findings),
            "writes": list(self.writes),
        }
        if self.classes:
            saved["classes"] = list(self.classes)
        text = json.dumps(saved, indent=2)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic.write(folder / SCHEMA_FILE, text)
        except OSError as error:
            log.warning("%s cannot be written: %s", folder / SCHEMA_FILE, error.strerror)


def type_names(schema: Schema) -> dict[str, str]:
    """Return column -> type name."""
    return {column: type_name(dtype) for column, dtype in schema.items()}


def parsed_types(names: Mapping[str, str], known: Schema) -> Schema:
    """Return the columns of `type_names`; `known` has those that no name says.

    Raises: UserError for an unknown type.
    """
    now = type_names(known)
    try:
        return {c: known[c] if now.get(c) == n else parse_type(n) for c, n in names.items()}
    except ValueError as error:
        raise UserError(f"The columns of the checkpoint cannot be read: {error}") from error


def resolved_folders(sinks: Iterable[Sink]) -> set[Path]:
    """Return the folders these sinks write to, resolved."""
    return {folder.resolve() for sink in sinks for folder in sink.folders()}


__all__ = ["SCHEMA_FILE", "SavedSchema", "parsed_types", "resolved_folders", "type_names"]
