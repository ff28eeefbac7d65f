"""The contract for reading the rows of several files in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from connectors.files.fingerprint import Fingerprint
from engine.types import Records, Snapshot


class RowStream(ABC):
    """The rows of a source's files. The methods are those of `engine.types.Source`.

    Attributes:
        known: partition -> the fingerprint of its file at the start of the run.
    """

    def __init__(self) -> None:
        self.known: dict[str, Fingerprint] = {}

    @abstractmethod
    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """Return the next raw rows; None if none came in time."""

    @abstractmethod
    def seek(self, positions: Mapping[str, int]) -> None:
        """Go to the positions of a mark."""

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Match the current files to those of a checkpoint."""
        self.known = {name: Fingerprint.restore(value) for name, value in identities.items()}

    def identities(self, positions: Mapping[str, int]) -> dict[str, Snapshot]:
        """Return partition -> what identifies its file, for a mark."""
        return {name: known.snapshot() for name, known in self.known.items()}

    def lag(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Return partition -> bytes (text) or rows after the mark, as far as known."""
        return {}

    def progress(self, positions: Mapping[str, int]) -> float | None:
        """Return the share of all bytes before the mark; None for an endless stream."""
        return None

    def close(self) -> None:
        """Close all files."""
        return


__all__ = ["RowStream"]
