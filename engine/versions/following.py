"""Follows the pointers of a folder of versions: what they name is made ready to serve, or put into
the shadow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from engine.errors import first_line
from engine.types import Predictor
from engine.versions.canary import Canary
from engine.versions.candidates import Candidates, RefusedVersion, ServedVersion
from engine.versions.recent_rows import RecentRows
from engine.versions.shadow import Shadow
from engine.versions.store import Versions
from engine.versions.succession import Succession
from engine.versions.version import TornVersion

log = logging.getLogger("headrace.versions")


class VersionFollower:
    """Looks at the pointers, and prepares what they name. A version is refused once, until its
    files or the pointer change.

    Args:
        versions: the folder.
        candidates: makes a version ready.
        rows: to try it on; without any a new version waits.
        succession: gets the version that is ready.
        shadow, canary: get the version in the shadow; None where there is none.
    """

    def __init__(
        self,
        versions: Versions,
        candidates: Candidates,
        rows: RecentRows,
        succession: Succession,
        *,
        shadow: Shadow | None,
        canary: Canary | None,
    ) -> None:
        self._versions = versions
        self._candidates = candidates
        self._rows = rows
        self._succession = succession
        # A canary answers for real, so it is tried like a version that is to serve.
        make: Callable[[int, ServedVersion], ServedVersion] = candidates.prepared
        self._make = candidates.compared if canary is None else make
        self._beside = [one for one in (shadow, canary) if one is not None]
        self._seen = self._key(succession.now.version.number)
        self._shadow_seen: tuple[object, ...] = ()
        self._pointer_failed = ""

    def follow(self, done: threading.Event, poll: float) -> None:
        """Look every `poll` seconds until `done`. Runs in a thread of its own."""
        while not done.wait(poll):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, this version serves on
                self._succession.refuse(RefusedVersion("unreadable", first_line(error)))

    def look(self) -> None:
        """Look at the pointers once."""
        self._succession.retired.clear()  # here, as the end of a session takes a while
        self._look_at_pointer()
        if self._beside:
            self._look_at_shadow()

    def _look_at_pointer(self) -> None:
        succession = self._succession
        try:
            pointer = self._versions.pointer.read()
            if pointer is None:
                raise TornVersion(self._versions.no_pointer())
        except TornVersion as error:
            if self._pointer_failed != str(error):
                succession.refuse(RefusedVersion("missing", str(error)))
            self._pointer_failed = str(error)
            return
        self._pointer_failed = ""
        if self._key(pointer.number) == self._seen:
            return
        now, kept = succession.now, succession.kept
        numbers = [one.version.number for one in (now, *kept)]
        if not self._rows.are_there and pointer.number not in numbers:
            return  # nobody waits for it, and it cannot be tried
        self._seen = self._key(pointer.number)
        try:
            succession.ready = self._candidates.prepared(pointer.number, now, *kept)
        except RefusedVersion as refusal:
            succession.ready = None
            succession.refuse(refusal)

    def _look_at_shadow(self) -> None:
        pointer = self._versions.shadow.read_or_none()
        key = () if pointer is None else self._key(pointer.number)
        if key == self._shadow_seen or not self._rows.are_there:
            return
        self._shadow_seen = key
        self._put_beside(None)
        if pointer is None:
            log.info("no version is in the shadow any more")
            return
        try:
            self._put_beside(self._make(pointer.number, self._succession.now).predictor)
        except RefusedVersion as refusal:
            self._succession.refuse(refusal)
        else:
            log.info("version %d is in the shadow", pointer.number)

    def _put_beside(self, predictor: Predictor | None) -> None:
        for one in self._beside:
            one.predictor = predictor

    def _key(self, number: int) -> tuple[object, ...]:
        """Return what changes when the pointer or the files of its version do."""
        return (number, *self._versions.signature(number))


__all__ = ["VersionFollower"]
