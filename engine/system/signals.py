"""SIGINT and SIGTERM, from the first line of a command to its last.

The first one asks to stop; who is `handling` says how: a run finishes its batch, and what has no
order of its own raises `StopRequested`. The second ends the process at once, with 128 and its
number, unless it comes together with the first: what starts a command often sends on what its
terminal or its own group has sent already. Nothing that was saved is lost either way: every file
is there whole or not at all.

An exception cannot be raised everywhere: inside an import it leaves a module half made, and what
is called back from C drops it. There the first signal ends the process at once, too, with 0. Polars
panics where what it calls back raises, and half-made objects of llvmlite cannot be deleted: there
the answer waits until these have returned. kafka-python's loop, where it runs on the main thread,
drops what its tasks raise, and what awaits them waits for ever: there the answer waits until the
loop itself waits.

Imports nothing heavy: a command is safe from its first moment on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"
"""The terminal code that shows the cursor again, which a progress bar hides."""
WAITED_FOR = ("polars", "llvmlite.binding")
"""The packages in which nothing may be raised; they return soon."""
LOOP = ("kafka/net/selector.py", "_poll_once")
"""A turn of kafka-python's loop: nothing may be raised in it, except where it waits."""
LOOP_WAITS = "selectors.py", "select"
AGAIN_SECONDS = 0.005
"""The seconds after which a signal that came at a bad moment is answered."""
TOGETHER_SECONDS = 0.5
"""The seconds within which two signals are one."""

_handlers: list[Callable[[], None]] = []
"""The handlers, the innermost last."""
_asked: signal.Signals | None = None
_asked_at = 0.0
_again = False
"""Whether the first signal is to come once more."""
_resumes = False


class StopRequested(BaseException):
    """A signal asked to stop. A BaseException, so that no handler takes it for a failure."""


def stop_signal() -> str | None:
    """Return the name of the signal that asked to stop, or None."""
    return None if _asked is None else _asked.name


def stop() -> None:
    """Stop at once, for code without a stop order of its own. Raises: StopRequested."""
    raise StopRequested


def ignore() -> None:
    """Ignore the signal, for code that ends in a moment anyway, or polls `stop_signal`."""


@contextlib.contextmanager
def handling(answer: Callable[[], None]) -> Iterator[None]:
    """Call `answer` (in the main thread) when the first signal comes inside the block, or at
    once if one came before. In other threads do nothing."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _handlers.append(answer)
    _install()
    try:
        if _asked is not None:
            answer()
        yield
    finally:
        _handlers.pop()
        if not _handlers:
            for number, handler in before.items():
                signal.signal(number, handler)
            _asked = None


def install() -> None:
    """Install the handlers for a process that is one command: signals are handled from here to
    its end, by `ignore` by default."""
    _handlers.append(ignore)
    _install()
    sys.unraisablehook = _unraisable
    # The interpreter puts the defaults back while it ends: with those, a signal changes the code.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in SIGNALS])


def write_line(sentence: str) -> None:
    """Write one line to stderr, from a signal handler."""
    with contextlib.suppress(OSError):
        cursor = SHOW_CURSOR if os.isatty(2) else b""
        os.write(2, cursor + f"headrace: {sentence}\n".encode())


def set_resumable(resumes: bool) -> None:
    """Set whether the command resumes from what it saved when it is called again."""
    global _resumes
    _resumes = resumes


def stop_message() -> str:
    """Return the sentence of a stopped command."""
    if not _resumes:
        return f"stopped by {stop_signal()} before it was done."
    return (
        f"stopped by {stop_signal()}; what was saved stays, and the same command goes on from "
        f"there."
    )


def _install() -> None:
    for number in SIGNALS:
        signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at, _again
    if _asked is not None and not _again:
        if time.monotonic() - _asked_at < TOGETHER_SECONDS:
            return
        name = signal.Signals(number).name
        write_line(f"ended at once by a second signal ({name}); what was saved stays.")
        _end(128 + number)
    _asked, _asked_at, _again = signal.Signals(number), time.monotonic(), False
    try:
        _handlers[-1]()
    except StopRequested:
        if _is_within("<frozen importlib", "", frame):
            write_line(stop_message())
            _end(0)
        packages = [sys.modules[name] for name in WAITED_FOR if name in sys.modules]
        in_turn = _is_within(*LOOP, frame) and not _is_within(*LOOP_WAITS, frame)
        if not in_turn and not any(_is_within(one.__path__[0], "", frame) for one in packages):
            raise
        _again = True
        main = threading.main_thread().ident
        timer = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, number))
        timer.daemon = True
        timer.start()


def _is_within(place: str, function: str, frame: FrameType | None) -> bool:
    """Return whether code whose file has this in its name is running, or has called what is.

    Args:
        function: the name of the code's function; "" for any.
    """
    while frame is not None:
        code = frame.f_code
        if place in code.co_filename and function in ("", code.co_name):
            return True
        frame = frame.f_back
    return False


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Handle an exception that was dropped: if it was ours, end the process."""
    if issubclass(unraisable.exc_type, StopRequested):
        write_line(stop_message())
        _end(0)
    sys.__unraisablehook__(unraisable)


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, broken, or in the middle of a write
            stream.flush()
    os._exit(code)


__all__ = [
    "StopRequested",
    "handling",
    "ignore",
    "install",
    "set_resumable",
    "stop",
    "stop_message",
    "stop_signal",
    "write_line",
]
