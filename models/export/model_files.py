"""Model files on disk: written atomically, and verified when read.

A file ends with a digest of what stands before it, as a property of the model: protobuf reads a
message that comes in two pieces as one, so any ONNX reader takes the file as it is. ONNX Runtime is
only given files whose digest holds: a flipped bit in a graph can end its process. Imports neither
polars nor pydantic: a candidate's process starts in a moment.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.system import atomic
from models.export.onnx_file import parsed

if TYPE_CHECKING:  # an engine that serves runs without onnx, 20 MiB of it
    import onnx

FORMAT = "headrace/1"
SCORE = "score"
"""The name of a model's output, its first; see `score_of`."""
VECTOR = "vector"
"""The name of the output with a vector for each row, the second of a model that answers one; see
`vector_of`."""
STATE_BEFORE, STATE_AFTER = "state/before", "state/after"
"""The names of the input and the output with what a row's key carries, of a model with a state."""
DIGEST = "digest"
SEAL = b"rJ\n\x06" + DIGEST.encode() + b"\x12@"
"""What stands before the 64 digits of a digest: field 14 of a ModelProto, a property of 74 bytes
whose key has 6 bytes and whose value has 64."""


def score_of(session: Any) -> str:
    """Return the name of the output with the scores, of a session of ONNX Runtime: `SCORE`, unless
    a column has that name."""
    return str(session.get_outputs()[0].name)


def vector_of(session: Any) -> str:
    """Return the name of the output with the vectors: `VECTOR`, unless a column has that name."""
    return str(session.get_outputs()[1].name)


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


def is_sealed(path: Path) -> bool:
    """Return whether a file ends like one that `write` wrote; `whole` says whether it still is."""
    size = len(_seal(b""))
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(-min(size, file.tell()), os.SEEK_END)
        return file.read().startswith(SEAL)


def _seal(content: bytes) -> bytes:
    return SEAL + hashlib.sha256(content).hexdigest().encode()


def put(data: bytes, path: Path) -> Path:
    """Write a model file's content atomically. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic.write(path, data)


def metadata(path: Path) -> dict[str, str]:
    """Return a model file's properties without running it. Raises: as `parsed`."""
    return {prop.key: prop.value for prop in parsed(path).metadata_props}


def annotate(path: Path, properties: Mapping[str, str]) -> Path:
    """Add properties to a model file. Raises: OSError."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {**metadata(path), **properties})
    return write(model, path)


__all__ = [
    "FORMAT",
    "SCORE",
    "STATE_AFTER",
    "STATE_BEFORE",
    "VECTOR",
    "annotate",
    "is_sealed",
    "metadata",
    "put",
    "score_of",
    "vector_of",
    "whole",
    "write",
]
