"""What a version of a model is: the details that stand beside its model file."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError


class TornVersion(Exception):
    """A version that is not as it was written; says why, as a part of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a model.

    Attributes:
        number: its place in the order in which they were published.
        model_version: what the rows carry that it has answered.
        digest: SHA-256 of the model file.
        size: bytes of the model file.
        created: when it was published, in ISO 8601.
        rows: the rows that it has learned.
        data_time: the newest time of its records, in seconds since the epoch; None if they have
            none.
        precision: float32, or that of the candidate that the gate accepted.
        positions: partition -> the next to read.
        kept_back: why it was not to serve when it was published, as a part of a sentence; "" if
            it was.
    """

    number: int
    model_version: str
    digest: str
    size: int
    created: str
    rows: int = 0
    data_time: float | None = None
    precision: str = "float32"
    positions: Mapping[str, int] = field(default_factory=dict)
    kept_back: str = ""

    @classmethod
    def read(cls, path: Path) -> Version:
        """Read the details of a version. Raises: TornVersion."""
        where = f"{path.parent.name}/{path.name}"
        try:
            given = json.loads(path.read_bytes())
        except OSError as error:
            raise TornVersion(f"{where} cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise TornVersion(f"{where} is damaged ({error})") from None
        needed = [f.name for f in fields(cls) if f.default is MISSING is f.default_factory]
        lacking = [name for name in needed if not isinstance(given, dict) or name not in given]
        if lacking:
            raise TornVersion(f"{where} is damaged (it lacks {', '.join(lacking)})")
        known = {f.name: given[f.name] for f in fields(cls) if f.name in given}
        try:
            return _reader().validate_python(known)
        except ValidationError as error:
            name, said = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
            raise TornVersion(f"{where} is damaged ({name}: {said})") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a publisher knows of a version; see `Version`."""

    model_version: str
    rows: int = 0
    data_time: float | None = None
    precision: str = "float32"
    positions: Mapping[str, int] = field(default_factory=dict)
    kept_back: str = ""


@functools.cache
def _reader() -> TypeAdapter[Version]:
    """Return what checks the fields. Made once: that takes as long as opening a model, and holds
    the interpreter's lock while others answer."""
    return TypeAdapter(Version)


__all__ = ["Details", "TornVersion", "Version"]
