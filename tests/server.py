"""A program that runs beside the tests, for as long as it is needed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.waiting import HANG


class Server:
    """One on one folder of data; started again, it has what it had.

    Attributes:
        title: what a sentence calls it.
        folder: its data, its settings and its log.
    """

    title = "server"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Run it, and return when it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """In good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """At once, as a power cut does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Hang, as a machine that swaps or a paused container does: connections stay, nothing is
        answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        raise NotImplementedError

    def _run(self, command: Sequence[str], **settings: Any) -> None:
        file = self.folder / "server.log"
        with file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **settings
            )
        deadline = time.monotonic() + HANG
        while not self._answers():
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
            raise RuntimeError(f"The {self.title} did not come up: {file.read_text()[-2_000:]}")

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(HANG)


__all__ = ["Server"]
