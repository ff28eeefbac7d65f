"""Checkpoints: all state a restart needs, in one atomically written file; see
`engine.running.saving.codec` for its content.

Saving is `atomic`; older files are deleted only afterwards, and files of rows beside them that none
names any longer. Loading takes the newest valid file, and logs a warning if a newer one is damaged
or lacks a file that it names. A file of another layout is refused, not skipped,
because it holds learned state. So is a state whose keys differ from those of this version's parts.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from engine import types
from engine.running.saving.codec import (
    CorruptCheckpoint,
    OtherLayout,
    Saved,
    decode,
    encode,
    files_beside,
    names_beside,
    running_version,
)
from engine.running.saving.segment_files import SegmentFiles
from engine.system import atomic
from engine.types import Duration, HeadraceError, Name, Snapshot, UserError
from engine.types.changes import Free
from engine.user_code.calls import whose

log = logging.getLogger("headrace.checkpoint")

MAX_KEYS_NAMED = 3
"""The most keys a sentence names."""
NEW_STAGES = " 'headrace replay' goes on with stages that are new, and takes dead letters back."
CHECKPOINT_FILE = re.compile(r"checkpoint-(\d{8})\.hrc")


class Tolerated(str):
    """A part of an identity that may differ; the difference is logged."""

    __slots__ = ()


class CheckpointFailed(HeadraceError):
    """A checkpoint could not be written; earlier ones are unchanged."""


class Checkpoints:
    """A folder of numbered checkpoints that keeps the newest few.

    Args:
        settings: where, how many, how often.

    Attributes:
        segments: the files of rows beside the checkpoints, which these name.
        committed: the number of the newest one that is known to be committed; None before.
        changed: what the pipeline has set otherwise than the one that was restored.
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
        self.segments = SegmentFiles(self.folder, private=settings.private)
        self._place = atomic.Folder(self.folder, "[checkpoint] path")
        self._folder_replaced = False
        self.seconds = 0.0
        self.nbytes = 0
        self.committed: int | None = None
        self.changed: tuple[str, ...] = ()
        self._loaded = self._written_by = ""
        """The file that `load` returned, and who wrote it."""
        self._identities: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
        """What it was written with, and what the pipeline has."""
        self._writes = True

    def save(self, state: Mapping[str, Snapshot], identity: Mapping[str, str]) -> Path:
        """Write the next checkpoint; it is safe on disk when this returns.

        Raises: CheckpointFailed when the disk is full or the folder cannot be written.
        """
        start = time.perf_counter()
        parts = encode(dict(state), dict(identity))
        self._folder_replaced = self._folder_replaced or self._place.gone
        if self._folder_replaced and (lacking := self.segments.why_lacking(files_beside(state))):
            raise CheckpointFailed(f"The checkpoint would be of no use: {lacking}.")
        try:
            self._place.make()
            numbers = self._numbers()
            path = self.folder / f"checkpoint-{max(numbers, default=0) + 1:08d}.hrc"
            atomic.write_parts(path, parts, private=self.settings.private)
            for number in sorted(numbers)[: max(0, len(numbers) + 1 - self.settings.keep)]:
                if number != self.committed:
                    self._path(number).unlink()
            self._discard_unnamed()
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
        alone: bool = False,
    ) -> dict[str, Snapshot] | None:
        """Return the newest complete checkpoint's state; None if there is none.

        Args:
            counts: whether a state counts; one that does not is passed over. Not asked about the
                one that is known to be committed.
            mend: makes of a checkpoint what this pipeline may take.
            last: the number of the newest one that may count; None for any.
            alone: whether only what is learned counts: the files beside it may be missing, and a
                changed sink is not told.

        Raises: UserError when it belongs to another pipeline, schema or model, is of another
            layout, or when files are there but none is whole; HeadraceError when none ends at the
            committed offsets.
        """
        self._place.note()
        skipped: list[tuple[str, str]] = []
        passed = 0
        for number, read in self._newest_first(last, skipped, alone):
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
                    extra={"skipped": _told(skipped), "used": path.name},
                )
            self.committed = number
            self._identities = saved.identity, identity
            self._writes = not alone
            return state
        if passed:
            raise HeadraceError(
                f"No checkpoint in {self.folder} ends where the group's committed offsets are: "
                "were they reset, or is it another group? To go on from them, without what the "
                "checkpoints hold, set another [checkpoint] path; to start over, run with --fresh."
            )
        if skipped:
            raise UserError(
                f"No checkpoint in {self.folder} is whole: {_told(skipped)}; put back what is "
                "missing or damaged, or start over without it by --fresh."
            )
        return None

    def _newest_first(
        self, last: int | None, skipped: list[tuple[str, str]], alone: bool
    ) -> Iterator[tuple[int, Saved]]:
        """Yield the number and the content of each whole checkpoint, the newest first.

        Args:
            last: the number of the first one; None for the newest.
            skipped: gets the names of those that are not whole, and why.
            alone: see `load`.

        Raises: UserError for one of another layout.
        """
        numbers = (n for n in self._numbers() if last is None or n <= last)
        for number in sorted(numbers, reverse=True):
            path = self._path(number)
            try:
                saved = decode(path.read_bytes())
            except (CorruptCheckpoint, OSError) as error:
                skipped.append((path.name, str(error)))
            except OtherLayout as other:
                raise UserError(f"{path} {other}{_other_layout()}") from None
            else:
                lacking = None if alone else self.segments.why_lacking(files_beside(saved.state))
                if lacking is None:
                    yield number, saved
                else:
                    skipped.append((path.name, lacking))

    @contextmanager
    def restoring(
        self, state: Mapping[str, Snapshot], parts: Callable[[], Mapping[str, Snapshot]]
    ) -> Iterator[None]:
        """Check a restore: inside the block, the components receive what `load` returned. What
        they would save then must have the same keys at every level: a missing key was not
        restored, an additional one would be lost at the next save. What has changed since is
        logged.

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
        self._tell(*self._identities)  # no sooner: a part may refuse what has changed

    def _require_none(self, lost: Sequence[str], more: Sequence[str]) -> None:
        differences = [f"lacks {_few(lost)}"] * bool(lost) + [f"has {_few(more)} besides"] * bool(
            more
        )
        if differences:
            raise self._unreadable(" and ".join(differences))

    def _unreadable(self, what: str) -> UserError:
        """Return the error for a checkpoint that was loaded and does not fit."""
        todo = _other_layout()
        if self._written_by == running_version():
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
        """Delete all checkpoints and what they name, and no other file of the folder."""
        for number in self._numbers():
            self._path(number).unlink()
        self.segments.discard_all_but(())

    def discard_unnamed(self) -> None:
        """Remove the files of rows that no checkpoint names: a run that was killed has left them.

        Raises: HeadraceError if that cannot be done.
        """
        try:
            self._discard_unnamed()
        except OSError as error:
            raise HeadraceError(
                f"{self.folder} cannot be tidied: {error.strerror or error}; let the engine delete "
                "its files there, and start again."
            ) from error

    def _discard_unnamed(self) -> None:
        if self.segments.there():
            named = (names_beside(self._path(number)) for number in self._numbers())
            self.segments.discard_all_but(set().union(*named))

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
        every = _differing(written, here)
        changes = [each for each in every if self._writes or not each[0].startswith("[sink")]
        self.changed = tuple(part for part, _, _ in changes)
        for part, was, now in changes:
            now_is, was_is = _difference(now, was)
            log.warning(
                "%s has changed since the checkpoint in %s was written: %s now, %s before; it "
                "holds for what comes from here on.", part, self.folder, now_is, was_is,
            )  # fmt: skip


def _told(skipped: Iterable[tuple[str, str]]) -> str:
    """Return files with the reason of each, in words; each reason once."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped:
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(files)} ({reason})" for reason, files in names.items())


def _other_layout() -> str:
    """Return the end of a sentence on a checkpoint of another version."""
    return (
        f": this is headrace {running_version()}, whose checkpoints have another layout; go on "
        "with the one that wrote it, or start over with --fresh."
    )


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
    return f"{at}{_shown(a)}", f"{at}{_shown(b)}"


def _shown(value: Any) -> str:
    """Return a value as a pipeline file has it, which has no null."""
    return "not set" if value is None else json.dumps(value)


__all__ = ["CheckpointFailed", "Checkpoints", "Tolerated"]
