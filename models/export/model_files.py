"""Model files on disk: written atomically, and verified when read.

A file ends with a digest of what stands before it, as a property of the model: protobuf reads a
message that comes in two pieces as one, so any ONNX reader takes the file as it is. ONNX Runtime is
only given files whose digest holds: a flipped bit in a graph can end its process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, Json, ValidationError, model_validator

from engine.system import atomic
from engine.types import UserError

if TYPE_CHECKING:  # an engine that serves runs without onnx, 20 MiB of it
    import onnx

FORMAT = "headrace/1"
SCORE = "score"
"""The name of a model's output."""
DIGEST = "digest"
SEAL = b"rJ\n\x06" + DIGEST.encode() + b"\x12@"
"""What stands before the 64 digits of a digest: field 14 of a ModelProto, a property of 74 bytes
whose key has 6 bytes and whose value has 64."""


class Properties(BaseModel):
    """The properties of a model file.

    Attributes:
        inputs: column -> its kind in the graph.
        task, classes, threshold, target: as in [model].
        stages: scrub stages that are inside the file.
        before: scrub stages of its pipeline that are not: rows come as those leave them.
        columns: column -> name of the type in which it was learned.
        parse_settings: how cells were read, see `engine.types.Source.parse_settings`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    inputs: Json[dict[str, Literal["double", "string", "int64"]]]
    task: Literal["regression", "binary", "multiclass"]
    classes: Json[tuple[str, ...]]
    threshold: FiniteFloat = 0.5
    target: str = ""
    stages: Json[tuple[str, ...]] = ()
    before: Json[tuple[str, ...]] = ()
    columns: Json[dict[str, str]] = {}
    parse_settings: Json[dict[str, str | tuple[str, ...] | dict[str, str]]] = {}

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if not _fits(self.task, len(self.classes)):
            raise ValueError(f"{len(self.classes)} classes do not fit task {self.task}")
        return self

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> Self:
        """Parse a file's metadata. Raises: UserError if it is damaged."""
        try:
            return cls.model_validate(dict(metadata))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = str((*first["loc"], "classes")[0])
            raise UserError(
                f"The model file {path} is damaged: its property '{key}' is "
                f"{metadata.get(key, 'not there')[:100]!r} ({first['msg']}); export it again."
            ) from None


def _fits(task: str, classes: int) -> bool:
    if task == "binary":
        return classes == 2
    return classes >= 2 if task == "multiclass" else classes == 0


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Write the model as a file that ends with its digest. Raises: OSError."""
    import onnx

    kept = {prop.key: prop.value for prop in model.metadata_props if prop.key != DIGEST}
    onnx.helper.set_model_props(model, kept)
    content = model.SerializeToString()
    return put(content + _seal(content), path)


def whole(data: bytes) -> bool:
    """Return whether a file's content is exactly what `write` wrote."""
    size = len(_seal(b""))
    return data[-size:] == _seal(data[:-size])


def _seal(content: bytes) -> bytes:
    return SEAL + hashlib.sha256(content).hexdigest().encode()


def put(data: bytes, path: Path) -> Path:
    """Write a model file's content atomically. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic.write(path, data)


def metadata(path: Path) -> dict[str, str]:
    """Return a model file's properties without running it. Raises: OSError; ValueError if it is
    not an ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    if not model.ir_version:
        raise ValueError("it names no version of ONNX")
    return {prop.key: prop.value for prop in model.metadata_props}


def annotate(path: Path, properties: Mapping[str, str]) -> Path:
    """Add properties to a model file. Raises: OSError."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {**metadata(path), **properties})
    return write(model, path)


__all__ = ["FORMAT", "SCORE", "Properties", "annotate", "metadata", "put", "whole", "write"]
