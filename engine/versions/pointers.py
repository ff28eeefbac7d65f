"""The files that point to a version: to the one that serves, to the one in the shadow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.system import atomic
from engine.versions.version import TornVersion

HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """Which version serves.

    Attributes:
        number: of the version.
        held: somebody has set it, and publishing leaves it there.
    """

    number: int
    held: bool = False


class PointerFile:
    """A file that holds a pointer, and need not be there: "8", or "7 held".

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Pointer | None:
        """Return the pointer; None without a file. Raises: TornVersion if it is no number."""
        name = self._path.name
        try:
            words = self._path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TornVersion(f"the pointer '{name}' cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise TornVersion(f"the pointer '{name}' is no text") from None
        if not words or not words[0].isdecimal() or words[1:] not in ([], [HELD]):
            raise TornVersion(f"the pointer '{name}' names no version: '{' '.join(words)}'")
        return Pointer(number=int(words[0]), held=HELD in words)

    def read_or_none(self) -> Pointer | None:
        """Return the pointer; None if there is none, or it is damaged."""
        try:
            return self.read()
        except TornVersion:
            return None

    def write(self, pointer: Pointer) -> None:
        """Replace the file; a reader sees the pointer before or this one."""
        text = f"{pointer.number} {HELD}" if pointer.held else str(pointer.number)
        atomic.write(self._path, f"{text}\n")

    def delete(self) -> None:
        """Point to no version."""
        self._path.unlink(missing_ok=True)


__all__ = ["Pointer", "PointerFile"]
