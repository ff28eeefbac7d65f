"""Checkpoints: all state a restart needs, in one atomically written file.

A file is: a magic line with the number of its layout, the length of a JSON header, the header
(identity, headrace's version, the state's skeleton, a table of segments), the segments (raw arrays,
Arrow IPC frames), and a BLAKE2b digest over all of it. Nothing in it is executed on loading.

Saving is `atomic`; older files are deleted only afterwards. Loading takes the newest valid file,
and logs a warning if a newer one is damaged. A file of another layout is refused, not skipped,
because it holds learned state. So is a state whose keys differ from those of this version's parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from engine import types
from engine.system import atomic
from engine.types import Duration, HeadraceError, Name, Snapshot, UserError
from engine.types.changes import Free
from engine.user_code.calls import whose

log = logging.getLogger("headrace.checkpoint")

LAYOUT = 5
"""The version of the layout; increase it with every change to a state's keys or their meaning."""
NAMED = b"headrace checkpoint "
MAGIC = NAMED + b"%d\n" % LAYOUT
DIGEST_BYTES = 32
PLAIN = (bool, int, float, str, bytes, list, tuple, pl.DataFrame, pl.Series, type(None))
"""The types a state may consist of, beside dicts and arrays of numbers."""
MAX_KEYS_NAMED = 3
"""The most keys a sentence names."""
NEW_STAGES = " 'headrace replay' goes on with stages that are new, and takes dead letters back."
CHECKPOINT_FILE = re.compile(r"checkpoint-(\d{8})\.hrc")


class Tolerated(str):
    """A part of an identity that may differ; the difference is logged."""

    __slots__ = ()


class CheckpointFailed(HeadraceError):
    """A checkpoint could not be written; earlier ones are unchanged."""


class CorruptCheckpoint(Exception):
    """A file that is not a complete checkpoint, and why."""


class OtherLayout(Exception):
    """A checkpoint of another layout, and who wrote it."""


class _NotPlain(TypeError):
    """A value that no checkpoint can hold."""


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


class Checkpoints:
    """A folder of numbered checkpoints that keeps the newest few.

    Args:
        settings: where, how many, how often.

    Attributes:
        committed: the number of the newest one that is known to be committed; None before.
        changed: what the pipeline has set otherwise than the one that `load` returned.
    """

    class Settings(types.Settings):
        """``[checkpoint]``

        Attributes:
            path: the folder; ``<folder>/checkpoints`` unless given. Made at the first save.
            keep: how many of the newest checkpoints stay.
            interval: time between two checkpoints.
            interval_batches [batches]: batches between saves, instead of the time.
            private: whether only the user who runs headrace may read them (mode 0600).
        """

        path: Free[Name] = Field("", validate_default=False)
        keep: Free[int] = Field(3, ge=1)
        interval: Free[Duration] = Field(10.0, gt=0)
        interval_batches: Free[int | None] = Field(None, ge=1)
        private: Free[bool] = False

    def __init__(self, settings: Checkpoints.Settings) -> None:
        self.settings = settings
        self.folder = Path(settings.path)
        self._place = atomic.Folder(self.folder, "[checkpoint] path")
        self._folder_replaced = False
        self.seconds = 0.0
        self.nbytes = 0
        self.committed: int | None = None
        self.changed: tuple[str, ...] = ()
        self._loaded = self._written_by = ""
        """The file that `load` returned, and who wrote it."""

    def save(self, state: Mapping[str, Snapshot], identity: Mapping[str, str]) -> Path:
        """Write the next checkpoint; it is safe on disk when this returns.

        Raises: CheckpointFailed when the disk is full or the folder cannot be written.
        """
        start = time.perf_counter()
        parts = encode(dict(state), dict(identity))
        self._folder_replaced = self._folder_replaced or self._place.gone
        try:
            self._place.make()
            numbers = self._numbers()
            path = self.folder / f"checkpoint-{max(numbers, default=0) + 1:08d}.hrc"
            atomic.write_parts(path, parts, private=self.settings.private)
            for number in sorted(numbers)[: max(0, len(numbers) + 1 - self.settings.keep)]:
                if number != self.committed:
                    self._path(number).unlink()
        except OSError as error:
            raise CheckpointFailed(
                f"The checkpoint cannot be written to {self.folder}: {error.strerror or error}; "
                f"{'the last good one stays' if self._has_any() else 'there is no other'}."
            ) from error
        self.seconds = time.perf_counter() - start
        self.nbytes = sum(memoryview(part).nbytes for part in parts)
        return path

    def load(
        self,
        identity: Mapping[str, str],
        counts: Callable[[Mapping[str, Any]], bool] | None = None,
        mend: Callable[[Saved], Saved] | None = None,
        *,
        last: int | None = None,
    ) -> dict[str, Snapshot] | None:
        """Return the newest complete checkpoint's state; None if there is none.

        Args:
            counts: whether a state counts; one that does not is passed over. Not asked about the
                one that is known to be committed.
            mend: makes of a checkpoint what this pipeline may take.
            last: the number of the newest one that may count; None for any.

        Raises: UserError when it belongs to another pipeline, schema or model, or is of another
            layout; HeadraceError when files are there but none is whole.
        """
        self._place.note()
        skipped: list[str] = []
        passed = 0
        for number, read in self._newest_first(last, skipped):
            saved, path = read if mend is None else mend(read), self._path(number)
            state, self._written_by = saved.state, saved.version
            self._loaded = f"{path}, written by headrace {saved.version},"
            self._require_identity(saved.identity, identity)
            known = number == self.committed
            if counts is not None and not known and not counts(state):
                log.info("checkpoint was not committed", extra={"checkpoint": path.name})
                if number == 1:
                    return None
                passed += 1
                continue
            if skipped:
                log.warning(
                    "checkpoint is not whole; the one before it is used",
                    extra={"skipped": ", ".join(skipped), "used": path.name},
                )
            self.committed = number
            self._tell(saved.identity, identity)
            return state
        if passed:
            raise HeadraceError(
                f"No checkpoint in {self.folder} ends where the group's committed offsets are: "
                "were they reset, or is it another group? To go on from them, without what the "
                "checkpoints hold, set another [checkpoint] path; to start over, run with --fresh."
            )
        if skipped:
            raise HeadraceError(
                f"No checkpoint in {self.folder} is whole: {', '.join(skipped)}; to start over "
                "without them, run with --fresh."
            )
        return None

    def _newest_first(self, last: int | None, skipped: list[str]) -> Iterator[tuple[int, Saved]]:
        """Yield the number and the content of each whole checkpoint, the newest first.

        Args:
            last: the number of the first one; None for the newest.
            skipped: gets the names of those that are not whole, and why.

        Raises: UserError for one of another layout.
        """
        numbers = (n for n in self._numbers() if last is None or n <= last)
        for number in sorted(numbers, reverse=True):
            path = self._path(number)
            try:
                saved = decode(path.read_bytes())
            except (CorruptCheckpoint, OSError) as error:
                skipped.append(f"{path.name} ({error})")
            except OtherLayout as other:
                raise UserError(f"{path} {other}{_other_layout()}") from None
            else:
                yield number, saved

    @contextmanager
    def restoring(
        self, state: Mapping[str, Snapshot], parts: Callable[[], Mapping[str, Snapshot]]
    ) -> Iterator[None]:
        """Check a restore: inside the block, the components receive what `load` returned. What
        they would save then must have the same keys at every level: a missing key was not
        restored, an additional one would be lost at the next save.

        Args:
            parts: what the parts would save now.

        Raises: UserError for a state of another layout; what parts say of their own accord.
        """
        before = parts()
        self._require_none(*_strays(state, before, _columns))
        try:
            yield
        except (HeadraceError, OSError, MemoryError):
            raise
        except Exception as error:
            self._require_none(_strays(state, before, _keys)[0], ())
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            by = f" by {who}" if (who := whose(error)) else ""
            raise self._unreadable(f"cannot be restored{by} ({reason})") from error
        self._require_none(*_strays(state, parts(), _keys))

    def _require_none(self, lost: Sequence[str], more: Sequence[str]) -> None:
        differences = [f"lacks {_few(lost)}"] * bool(lost) + [f"has {_few(more)} besides"] * bool(
            more
        )
        if differences:
            raise self._unreadable(" and ".join(differences))

    def _unreadable(self, what: str) -> UserError:
        """Return the error for a checkpoint that was loaded and does not fit."""
        todo = _other_layout()
        if self._written_by == _version():
            todo = (
                ": let a class of your own restore what it saved, in each part of it, or start "
                "over with --fresh."
            )
        return UserError(f"{self._loaded} {what}{todo}")

    def mark_committed(self) -> None:
        """Mark the newest checkpoint as committed; it is kept until a later one is committed."""
        self.committed = max(self._numbers(), default=None)

    def require(self) -> None:
        """Raises: HeadraceError if the folder was taken away while the engine ran; what it has
        come to is saved in a new one."""
        if self._folder_replaced:
            raise HeadraceError(
                f"[checkpoint] path '{self.folder}' was removed or replaced while the engine ran: "
                "a new checkpoint is saved there; start again to go on from it."
            )

    def exists(self) -> bool:
        """Whether there is any checkpoint, complete or not."""
        return bool(self._numbers())

    def delete_all(self) -> None:
        """Delete all checkpoints, and no other file of the folder."""
        for number in self._numbers():
            self._path(number).unlink()

    def _has_any(self) -> bool:
        """Return whether an earlier checkpoint is there."""
        try:
            return bool(self._numbers())
        except OSError:
            return False

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = (CHECKPOINT_FILE.fullmatch(path.name) for path in self.folder.iterdir())
        return [int(match[1]) for match in names if match]

    def _path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:08d}.hrc"

    def _require_identity(self, written: Mapping[str, str], here: Mapping[str, str]) -> None:
        for part, was, now in _differing(written, here):
            if not isinstance(now, Tolerated):
                now_is, was_is = _difference(now, was)
                raise UserError(
                    f"The checkpoint in {self.folder} was written with another {part}: {now_is} "
                    f"now, {was_is} when it was written; take another folder, or start over with "
                    "--fresh." + (NEW_STAGES if part == "scrub" else "")
                )

    def _tell(self, written: Mapping[str, str], here: Mapping[str, str]) -> None:
        changes = list(_differing(written, here))
        self.changed = tuple(part for part, _, _ in changes)
        for part, was, now in changes:
            now_is, was_is = _difference(now, was)
            log.warning(
                "%s has changed since the checkpoint in %s was written: %s now, %s before; it "
                "holds for what comes from here on.", part, self.folder, now_is, was_is,
            )  # fmt: skip


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
        {"version": _version(), "identity": identity, "state": skeleton, "segments": table}
    ).encode()
    parts = [MAGIC, len(header).to_bytes(8, "little"), header, *segments]
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


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


def _other_layout() -> str:
    """Return the end of a sentence on a checkpoint of another version."""
    return (
        f": this is headrace {_version()}, whose checkpoints have another layout; go on with the "
        "one that wrote it, or start over with --fresh."
    )


def _version() -> str:
    try:
        return version_of("headrace")
    except PackageNotFoundError:
        return "of a source tree"


def _strays(
    saved: Snapshot, here: Snapshot, keys: Callable[[Snapshot], Collection[str]], at: str = ""
) -> tuple[list[str], list[str]]:
    """Return the paths of keys that are only in `here`, and only in `saved`. If one of two is
    None, as for a component that was added or removed, nothing is missing."""
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        inner = {f"{at}.{key}".lstrip("."): (saved[key], here[key]) for key in here if key in saved}
    elif isinstance(saved, list | tuple) and isinstance(here, list | tuple):
        inner = {f"{at}[{i}]": pair for i, pair in enumerate(zip(saved, here, strict=False))}
    else:
        inner = {}
    a, b = keys(saved), keys(here)
    both = bool(a) and bool(b)
    lost = [f"'{at}.{key}'".replace("'.", "'") for key in b if both and key not in a]
    more = [f"'{at}.{key}'".replace("'.", "'") for key in a if both and key not in b]
    for path, (x, y) in inner.items():
        of_x, of_y = _strays(x, y, keys, path)
        lost += of_x
        more += of_y
    return lost, more


def _keys(value: Snapshot) -> Collection[str]:
    return list(value) if isinstance(value, Mapping) else ()


def _columns(value: Snapshot) -> Collection[str]:
    return value.columns if isinstance(value, pl.DataFrame) else ()


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_KEYS_NAMED:,} more" if len(names) > MAX_KEYS_NAMED else ""
    return ", ".join(names[:MAX_KEYS_NAMED]) + more


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


def _differing(
    written: Mapping[str, str], here: Mapping[str, str]
) -> Iterator[tuple[str, str | None, str | None]]:
    """Return the differences of two identities: name, then, now. A setting, ``[table] key``,
    that only one of them has belongs to another kind, which differs itself, or to another
    version of headrace."""
    for part in {**here, **written}:
        was, now = written.get(part), here.get(part)
        if was != now and not (part.startswith("[") and None in (was, now)):
            yield part, was, now


def _difference(now: str | None, was: str | None) -> tuple[str, str]:
    """Return where two JSON texts first differ; or the texts themselves."""
    try:
        a, b, path = json.loads(now or "null"), json.loads(was or "null"), ""
    except ValueError:
        return f"'{now}'", f"'{was}'"
    while isinstance(a, dict) and isinstance(b, dict):
        differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        if not differing:
            return "the keys in the same order", "another order"
        key = differing[0]
        a, b, path = a.get(key), b.get(key), f"{path}.{key}" if path else key
    at = f"{path} = " if path else ""
    return f"{at}{json.dumps(a)}", f"{at}{json.dumps(b)}"


__all__ = [
    "CheckpointFailed",
    "Checkpoints",
    "CorruptCheckpoint",
    "Tolerated",
    "decode",
    "encode",
    "require_plain",
    "size_of",
]
