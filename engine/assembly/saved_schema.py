"""What a run began with, beside its checkpoints: the columns that its source had."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from engine.system import atomic
from engine.types import Schema, Sink, Snapshot, parse_type, type_name

log = logging.getLogger("headrace.run")
SCHEMA_FILE = "schema.json"
"""Its name in the pipeline's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSchema:
    """The columns that a run began with, for the one that resumes it: whatever would be guessed
    from the rows that there are then.

    Attributes:
        declared: [source.schema] of then.
        columns: column -> name of its type.
        findings: `engine.types.Source.schema_state`.
        writes: folders with results of this run.
        classes: of the label, in their order, where the pipeline file leaves them out.
    """

    declared: Mapping[str, Any] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    findings: Mapping[str, Snapshot] = field(default_factory=dict)
    writes: Sequence[str] = ()
    classes: Sequence[str] = ()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` left there; nothing where there is no such file, or a damaged one."""
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
        """The columns, if these are the declared ones still; else none."""
        if self.declared != declared:
            return {}
        try:
            return {column: parse_type(name) for column, name in self.columns.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def write(self, folder: Path) -> None:
        """Write it into the folder; a warning where that cannot be, as a run can do without."""
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
    """Column -> name of its type."""
    return {column: type_name(dtype) for column, dtype in schema.items()}


def resolved_folders(sinks: Iterable[Sink]) -> set[Path]:
    """Folders that these sinks write to, each by its one path."""
    return {folder.resolve() for sink in sinks for folder in sink.folders()}


__all__ = ["SCHEMA_FILE", "SavedSchema", "resolved_folders", "type_names"]
