"""The base class of values whose snapshot is their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


class FieldsSnapshot:
    """A frozen dataclass that is saved and restored field by field."""

    __slots__ = ()

    def snapshot(self) -> dict[str, Any]:
        """Return the fields as plain values; nothing is copied, nothing ever changes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        """Return the value that gave this snapshot."""
        return cls(**value)


__all__ = ["FieldsSnapshot"]
