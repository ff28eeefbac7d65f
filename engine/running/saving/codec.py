"""The content of a checkpoint file.

A magic line with the number of its layout, the length of a JSON header, the header (identity,
headrace's version, the files that the state counts on, its skeleton, a table of segments), the
segments (raw arrays, Arrow IPC frames), and a BLAKE2b digest over all of it. Nothing in it is
executed on loading.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from engine.types import HeadraceError, Snapshot

LAYOUT = 12
"""The version of the layout; increase it with every change to a state's keys or their meaning."""
NAMED = b"headrace checkpoint "
MAGIC = NAMED + b"%d\n" % LAYOUT
DIGEST_BYTES = 32
PLAIN = (bool, int, float, str, bytes, list, tuple, pl.DataFrame, pl.Series, type(None))
"""The types a state may consist of, beside dicts and arrays of numbers."""


class CorruptCheckpoint(Exception):
    """A file that is not a complete checkpoint, and why."""


class OtherLayout(Exception):
    """A checkpoint of another layout, and who wrote it."""


class _NotPlain(TypeError):
    """A value that no checkpoint can hold."""


class FileBeside(NamedTuple):
    """A file in the folder of the checkpoints, which a state that holds this counts on.

    Attributes:
        name: of the file.
        nbytes: its size.
    """

    name: str
    nbytes: int


class Saved(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        state: the parts, by name.
        identity: of the pipeline that it belongs to.
        version: of the headrace that wrote it.
    """

    state: dict[str, Snapshot]
    identity: dict[str, str]
    version: str


def encode(state: Snapshot, identity: Mapping[str, str]) -> list[bytes | memoryview]:
    """Return a checkpoint file's content, in parts to write in sequence (large arrays are not
    copied)."""
    segments: list[bytes | memoryview] = []
    table: list[int] = []

    def segment(data: bytes | memoryview) -> int:
        segments.append(data)
        table.append(memoryview(data).nbytes)
        return len(table) - 1

    try:
        skeleton = _flatten(state, segment)
    except _NotPlain:
        require_plain(state)
        raise
    header = json.dumps(
        {
            "version": running_version(),
            "identity": identity,
            "files": [file.name for file in files_beside(state)],
            "state": skeleton,
            "segments": table,
        }
    ).encode()
    parts = [MAGIC, len(header).to_bytes(8, "little"), header, *segments]
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


def decode(data: bytes) -> Saved:
    """Parse a checkpoint file's content. Raises: CorruptCheckpoint, OtherLayout."""
    line, _, _ = data.partition(b"\n")
    start = len(line) + 1 + 8
    if not data.startswith(NAMED) or not line[len(NAMED) :].isdigit() or len(data) < start:
        raise CorruptCheckpoint("it is no checkpoint, or cut short")
    body = memoryview(data)[:-DIGEST_BYTES]
    if hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != data[-DIGEST_BYTES:]:
        raise CorruptCheckpoint("it is cut short or damaged: its checksum differs")
    # The digest vouches for every length that is read from here on.
    size = int.from_bytes(body[start - 8 : start], "little")
    header = json.loads(bytes(body[start : start + size]))
    version = header.get("version")
    layout = int(line[len(NAMED) :])
    if layout != LAYOUT or not {"identity", "state", "segments"} <= set(header):
        whose = "an earlier headrace" if version is None else f"headrace {version}"
        raise OtherLayout(f"was written by {whose} in layout {layout}, and this one reads {LAYOUT}")
    segments, at = [], start + size
    for length in header["segments"]:
        segments.append(body[at : at + length])
        at += length
    return Saved(_unflatten(header["state"], segments), header["identity"], str(version))


def files_beside(value: Snapshot) -> Iterator[FileBeside]:
    """Yield the files that a state counts on."""
    if isinstance(value, FileBeside):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from files_beside(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from files_beside(item)


def names_beside(path: Path) -> set[str]:
    """Return the names of the files that a checkpoint counts on, from its header alone; none of one
    that is too damaged to be restored. Raises: OSError."""
    with path.open("rb") as file:
        line, size = file.readline(len(MAGIC) + 8), int.from_bytes(file.read(8), "little")
        if not line.startswith(NAMED) or size > path.stat().st_size:
            return set()
        try:
            return set(json.loads(file.read(size))["files"])
        except (ValueError, KeyError, TypeError):
            return set()


def require_plain(value: Snapshot, path: tuple[str, ...] = ()) -> None:
    """Check that a checkpoint can hold a state, or the part of one at this path.

    Raises: HeadraceError naming whose part it cannot hold.
    """
    odd = _odd(value)
    if odd is not None:
        raise HeadraceError(
            f"The state of {_owner(path)} holds {odd}{' in ' + '.'.join(path) if path else ''}, "
            "which a checkpoint cannot: expected None, bool, int, float, str, bytes, numpy arrays "
            "of numbers, polars frames, and lists, tuples and dicts of these with text as keys."
        )
    if isinstance(value, Mapping):
        for key, item in value.items():
            require_plain(item, (*path, key))
    elif isinstance(value, list | tuple):
        for item in value:
            require_plain(item, path)


def _odd(value: Snapshot) -> str | None:
    """Return the type of a value that a checkpoint cannot hold."""
    if isinstance(value, np.generic):
        return f"the numpy scalar {value!r}"
    if isinstance(value, np.ndarray):
        return "an array of objects" if value.dtype.hasobject else None
    if isinstance(value, Mapping):
        keys = [key for key in value if not isinstance(key, str)]
        return f"the key {keys[0]!r}" if keys else None
    return None if isinstance(value, PLAIN) else f"a value of type {type(value).__name__}"


def _owner(path: Sequence[str]) -> str:
    """Return how sentences name the component that a path of a state belongs to."""
    match path:
        case ["stages", name, *_]:
            return f"[scrub.{name}]"
        case ["work", "learner", *_]:
            return "[model]"
        case ["sink" | "dead_letters" as table, *_]:
            return f"[{table}]"
    return "the run"


def _flatten(value: Snapshot, segment: Any) -> Any:
    """Return the JSON skeleton of a plain value; arrays, bytes and frames become segments.

    Raises: _NotPlain; `require_plain` says why.
    """
    if isinstance(value, float) and value != value:
        return {"nan": struct.pack("<d", value).hex()}  # JSON knows one NaN, a float many
    if isinstance(value, np.generic):  # among them float64, which is a float as well
        raise _NotPlain
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_flatten(item, segment) for item in value]
    if isinstance(value, FileBeside):
        return {"file": list(value)}
    if isinstance(value, tuple):
        return {"tuple": [_flatten(item, segment) for item in value]}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise _NotPlain
        return {"dict": {key: _flatten(item, segment) for key, item in value.items()}}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise _NotPlain
        flat = np.ascontiguousarray(value).reshape(-1)
        data = flat.view(np.uint8).data if flat.size else b""
        return {"array": segment(data), "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, bytes):
        return {"bytes": segment(value)}
    if isinstance(value, pl.DataFrame):
        return {"frame": segment(_ipc(value))}
    if isinstance(value, pl.Series):
        return {"series": segment(_ipc(value.to_frame()))}
    raise _NotPlain


def _unflatten(value: Any, segments: list[memoryview]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, segments) for item in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: _unflatten(item, segments) for key, item in value["dict"].items()}
    if "nan" in value:
        return struct.unpack("<d", bytes.fromhex(value["nan"]))[0]
    if "file" in value:
        return FileBeside(*value["file"])
    if "tuple" in value:
        return tuple(_unflatten(item, segments) for item in value["tuple"])
    if "array" in value:
        flat = np.frombuffer(segments[value["array"]], np.dtype(value["dtype"]))
        return flat.reshape(value["shape"]).copy()
    if "bytes" in value:
        return bytes(segments[value["bytes"]])
    if "frame" in value:
        return pl.read_ipc(io.BytesIO(segments[value["frame"]]))
    return pl.read_ipc(io.BytesIO(segments[value["series"]])).to_series()


def _ipc(frame: pl.DataFrame) -> memoryview:
    buffer = io.BytesIO()
    frame.write_ipc(buffer)
    return buffer.getbuffer()


def running_version() -> str:
    """Return the version of headrace that runs."""
    try:
        return version_of("headrace")
    except PackageNotFoundError:
        return "of a source tree"


def size_of(value: Snapshot) -> int:
    """Return the bytes of the arrays, frames and texts of a plain value."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, pl.DataFrame | pl.Series):
        return int(value.estimated_size())
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, str | bytes) else 8


__all__ = [
    "LAYOUT",
    "CorruptCheckpoint",
    "FileBeside",
    "OtherLayout",
    "Saved",
    "decode",
    "encode",
    "files_beside",
    "names_beside",
    "require_plain",
    "running_version",
    "size_of",
]
