"""A folder of numbered versions of a model, and the pointer to the one that serves.

    versions/
      7/model.onnx      the model
      7/version.json    what it is: digest, positions, time of its data
      7/READY           its digest again, written last: a copy without it is not complete
      8/...
      current           the number that serves: "8", or "7 held"
      shadow            the number that answers beside it, unseen; or no such file

A version is written under another name, synced and renamed, and only then the pointer is moved: a
reader sees a whole version or none, whenever the writer ends. The pointer is `held` while somebody
has set it back: publishing adds versions then, and leaves it where it is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from engine.errors import UserError
from engine.system import atomic
from engine.system.file_stamp import FileStamp, file_stamp
from engine.versions.pointers import Pointer, PointerFile
from engine.versions.version import Details, TornVersion, Version

MODEL_FILE, DETAILS_FILE, READY_FILE = "model.onnx", "version.json", "READY"
POINTER_FILE, SHADOW_FILE = "current", "shadow"
STAGING = ".next"
"""The folder in which a version is written before it has a number."""
CHUNK = 1 << 20
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
"""What a rename says where somebody else has taken the number."""


class Versions:
    """The versions in a folder, which need not be there yet.

    Args:
        folder: where they are.

    Attributes:
        pointer: to the version that serves.
        shadow: to the one in the shadow.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pointer = PointerFile(folder / POINTER_FILE)
        self.shadow = PointerFile(folder / SHADOW_FILE)

    @classmethod
    def named(cls, path: Path) -> Self | None:
        """Return the versions that a path names: their folder, or its pointer; None if it names
        neither."""
        if path.is_dir():
            return cls(path)
        return cls(path.parent) if path.name == POINTER_FILE else None

    # ----------------------------------------------------------------------------------- reading

    def numbers(self) -> list[int]:
        """Return the numbers of all complete versions, in order."""
        found = (int(p.name) for p in self._entries() if (p / READY_FILE).is_file())
        return sorted(found)

    def whole(self) -> list[int]:
        """Return the numbers of all versions that are as they were written, in order; reads every
        model file."""
        return [n for n in self.numbers() if isinstance(self.examined(n), Version)]

    def examined(self, number: int) -> Version | TornVersion:
        """Return what `verified` returns or raises."""
        try:
            return self.verified(number)
        except TornVersion as error:
            return error

    def current(self) -> Version:
        """Return the version that serves, whole. Raises: UserError if there is none."""
        try:
            pointer = self.pointer.read()
            if pointer is not None:
                return self.verified(pointer.number)
        except TornVersion as error:
            raise UserError(
                f"The versions in {self.folder} cannot serve: {error}; promote another one "
                f"('headrace versions {self.folder} --promote NUMBER'), or publish one."
            ) from None
        self._require_pointer(pointer)
        raise UserError(
            f"{self.folder} has no version of a model yet: a pipeline with [export] publishes one."
        )

    def _require_pointer(self, pointer: Pointer | None) -> None:
        if pointer is None and self.numbers():
            raise UserError(f"{self.folder}: {self.no_pointer()}.")

    def no_pointer(self) -> str:
        """Return what is wrong where the pointer is missing, as a part of a sentence."""
        return (
            f"the pointer '{POINTER_FILE}' is missing, so no version serves; "
            f"'headrace versions {self.folder} --promote NUMBER' writes it"
        )

    def require_shadow(self) -> None:
        """Raises: UserError if a version is named to be in the shadow and cannot be."""
        try:
            if (shadow := self.shadow.read()) is not None:
                self.verified(shadow.number)
        except TornVersion as error:
            raise UserError(
                f"The shadow of the versions in {self.folder} cannot answer: {error}; name "
                f"another one ('headrace versions {self.folder} --shadow NUMBER'), or none "
                "('--shadow')."
            ) from None

    def version(self, number: int) -> Version:
        """Return the details of a version. Its folder says its number: it may be a copy of another.
        Raises: TornVersion if it is not complete."""
        folder = self.path(number)
        if not folder.is_dir():
            raise TornVersion(f"there is no version {number}")
        if not (folder / READY_FILE).is_file():
            raise TornVersion(f"version {number} is not complete: it has no {READY_FILE}")
        return replace(Version.read(folder / DETAILS_FILE), number=number)

    def verified(self, number: int) -> Version:
        """Return the details of a version whose model file is what was written. Raises:
        TornVersion."""
        version = self.version(number)
        try:
            ready = (self.path(number) / READY_FILE).read_text(encoding="utf-8").strip()
            digest, size = _digest(self.model(number))
        except (OSError, UnicodeDecodeError) as error:
            raise TornVersion(f"version {number} cannot be read ({error})") from None
        if not digest == version.digest == ready:
            raise TornVersion(
                f"version {number} is damaged: its {MODEL_FILE} of {size:,} bytes does not have "
                "the digest with which it was written"
            )
        return version

    def path(self, number: int) -> Path:
        """Return the folder of a version."""
        return self.folder / str(number)

    def model(self, number: int) -> Path:
        """Return the model file of a version."""
        return self.path(number) / MODEL_FILE

    def signature(self, number: int) -> tuple[object, ...]:
        """Return what changes when the files of a version do."""
        return tuple(map(_stamp, (self.model(number), self.path(number) / READY_FILE)))

    # ----------------------------------------------------------------------------------- writing

    def add(self, model: Path, details: Details) -> Version:
        """Write a version, complete and synced, and return it; the pointer stays.

        Raises: OSError; nothing is left of it then.
        """
        staged = self.folder / STAGING
        _clear(staged)
        staged.mkdir(parents=True)
        try:
            digest, size = _copy(model, staged / MODEL_FILE)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            number = max((int(path.name) for path in self._entries()), default=0)
            while True:
                number += 1
                version = Version(
                    number=number, digest=digest, size=size, created=created, **_fields(details)
                )
                text = json.dumps(asdict(version), indent=2)
                atomic.write(staged / DETAILS_FILE, f"{text}\n")
                atomic.write(staged / READY_FILE, f"{digest}\n")
                try:
                    atomic.publish({staged: self.path(number)})
                except OSError as error:
                    if error.errno not in TAKEN:
                        raise
                else:
                    return version
        except BaseException:
            _clear(staged)
            raise

    def publish(self, model: Path, details: Details, *, keep: int) -> Version:
        """Add a version, point to it unless it is kept back or the pointer is held, and delete the
        oldest.

        Args:
            keep: how many stay; the one that serves stays in any case, the one before it, and the
                one in the shadow.

        Raises: OSError; the pointer is where it was then.
        """
        version = self.add(model, details)
        pointer = self.pointer.read_or_none()
        if pointer is None or not (version.kept_back or pointer.held):
            self.pointer.write(Pointer(number=version.number))
        self.prune(keep)
        return version

    def same(self, model_version: str, precision: str) -> Version | None:
        """Return the newest version if it is this model; None if it is another one, or torn."""
        numbers = self.numbers()
        try:
            newest = self.verified(numbers[-1]) if numbers else None
        except TornVersion:
            return None
        if newest is None or (newest.model_version, newest.precision) != (model_version, precision):
            return None
        return newest

    def promote(self, number: int | None = None) -> Version:
        """Point to a version: the newest, which later ones will follow, or an older one, which is
        held.

        Raises: UserError if it is not there, or damaged.
        """
        numbers = self.numbers()
        if not numbers:
            raise UserError(f"{self.folder} has no version of a model yet.")
        number = numbers[-1] if number is None else number
        version = self._required(number)
        self.pointer.write(Pointer(number=number, held=number != numbers[-1]))
        return version

    def put_into_shadow(self, number: int) -> Version:
        """Let a version answer beside the one that serves, unseen. Raises: UserError if it is not
        there, or damaged."""
        version = self._required(number)
        self.shadow.write(Pointer(number=number))
        return version

    def _required(self, number: int) -> Version:
        try:
            return self.verified(number)
        except TornVersion as error:
            whole = ", ".join(map(str, self.whole())) or "none"
            raise UserError(f"{self.folder}: {error}; complete ones are {whole}.") from None

    def rollback(self) -> Version:
        """Point to the newest version before the one that serves that was not kept back, and hold
        it. Raises: UserError if there is none, or the pointer does not say which one serves."""
        try:
            pointer = self.pointer.read()
        except TornVersion as error:
            raise UserError(f"{self.folder}: {error}; promote a version by its number.") from None
        self._require_pointer(pointer)
        before = None if pointer is None else self._before(pointer.number)
        if before is None:
            raise UserError(f"{self.folder} has no version before the one that serves.")
        return self.promote(before)

    def discard_unfinished(self) -> None:
        """Delete what a writer has left that was killed."""
        _clear(self.folder / STAGING)

    def prune(self, keep: int) -> None:
        """Delete the oldest versions; see `publish`. Raises: OSError."""
        numbers, pointer = self.numbers(), self.pointer.read_or_none()
        serving = max(numbers, default=0) if pointer is None else pointer.number
        shadow = self.shadow.read_or_none()
        needed = {serving, self._before(serving), None if shadow is None else shadow.number}
        for number in numbers[: max(0, len(numbers) - keep)]:
            if number not in needed:
                # Without READY first: a copy that is deleted half is no version any more.
                (self.path(number) / READY_FILE).unlink(missing_ok=True)
                shutil.rmtree(self.path(number), ignore_errors=True)

    def _before(self, number: int) -> int | None:
        """Return the newest version before one that was not kept back; None if there is none."""
        for before in reversed(self.numbers()):
            with suppress(TornVersion):
                if before < number and not self.version(before).kept_back:
                    return before
        return None

    def _entries(self) -> Iterator[Path]:
        if self.folder.is_dir():
            paths = ((path, path.name) for path in self.folder.iterdir())
            yield from (p for p, name in paths if name.isdecimal() and name == str(int(name)))


def _clear(staged: Path) -> None:
    shutil.rmtree(staged, ignore_errors=True)


def _fields(details: Details) -> dict[str, Any]:
    return {f.name: getattr(details, f.name) for f in fields(details)}


def _digest(path: Path) -> tuple[str, int]:
    """Return the digest and the size of a file."""
    digest, size = hashlib.sha256(), 0
    for part in _parts(path):
        digest.update(part)
        size += len(part)
    return digest.hexdigest(), size


def _copy(path: Path, target: Path) -> tuple[str, int]:
    """Copy a file, synced; return its digest and size."""
    digest, sizes = hashlib.sha256(), [0]

    def parts() -> Iterator[bytes]:
        for part in _parts(path):
            digest.update(part)
            sizes[0] += len(part)
            yield part

    atomic.write_parts(target, parts())
    return digest.hexdigest(), sizes[0]


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            yield part


def _stamp(path: Path) -> FileStamp | None:
    try:
        return file_stamp(path)
    except OSError:
        return None


__all__ = ["Versions"]
