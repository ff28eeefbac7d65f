"""The stream of standard input."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from connectors.files.fingerprint import unique_name
from connectors.files.readers.stdin import STDIN, StdinRows
from connectors.files.streams.row_stream import RowStream
from engine.types import Records

log = logging.getLogger("headrace.files")


class StdinStream(RowStream):
    """The rows of standard input, which can be read only once."""

    def __init__(self, rows: StdinRows) -> None:
        super().__init__()
        self._rows = rows

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        return self._rows.read(max_rows, max_bytes, timeout)

    def seek(self, positions: Mapping[str, int]) -> None:
        name = unique_name(STDIN, positions)
        if name != STDIN:
            log.warning(
                "Standard input is read as new input, '%s': earlier input is not read again.", name
            )
        self._rows.start(name)


__all__ = ["StdinStream"]
