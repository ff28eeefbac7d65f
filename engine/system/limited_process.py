"""Calls a function in a fresh child process with limits on time and memory.

A model file can end the process that runs it (ONNX Runtime raises SIGSEGV, SIGABRT and SIGFPE for
some), and a converter can take all memory: here that costs the call, not the engine. The child is
started anew, never forked from a process with threads. It imports from where its parent does, and
no more than the function needs.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.errors import first_line
from engine.system import atomic

NICENESS = 5
POLL_SECONDS = 0.02
STALL_SECONDS = 60.0
"""The seconds without CPU use after which a child counts as hanging."""
PROGRESS_SECONDS = 0.01
"""The least CPU time that counts as progress."""
ROOT = Path(__file__).parents[2]
BEGIN = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from engine.system.limited_process import main; main(*sys.argv[2:])"
)
"""What the child runs. It takes its parent's paths later, in their order: as PYTHONPATH they would
stand before Python's own, and a user's module `queue` would be everybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a child process.

    Attributes:
        seconds: of processor time. Wall time would refuse honest work on a busy machine.
        memory: bytes.
        allocations: also fail the allocation that goes beyond `memory`, between two checks of the
            parent. CUDA maps far more than it uses, so not with it.
    """

    seconds: float
    memory: int
    allocations: bool = True


class ProcessFailed(Exception):
    """A child raised, crashed, hung or exceeded a limit; the message says which, without a
    subject: "took more than 512 MiB of memory"."""


def never() -> bool:
    """Return False: nobody stops the call."""
    return False


def call(
    function: str, argument: Any, limits: Limits, *, stopped: Callable[[], bool] = never
) -> Any:
    """Return ``function(argument)``, as a child process has computed it.

    Args:
        function: import string.
        argument: anything that can be pickled; so must the result be. Both files are private and
            live as long as the call.
        stopped: whether the result is no longer wanted; the child ends at once then.

    Raises: ProcessFailed.
    """
    with tempfile.TemporaryDirectory() as folder:
        argument_file, result_file, output_file = (
            Path(folder) / name for name in ("argument", "result", "output")
        )
        paths = [path or str(Path.cwd()) for path in sys.path]
        # The argument by itself: its classes may be the user's, found once the paths are set.
        argument_file.write_bytes(pickle.dumps((paths, pickle.dumps(argument, protocol=5))))
        child_limits = (str(limits.memory), str(int(limits.allocations)))
        with output_file.open("wb") as file:
            child = subprocess.Popen(
                [
                    sys.executable, "-P", "-c", BEGIN, str(ROOT),
                    function, str(argument_file), str(result_file), *child_limits,
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )  # fmt: skip
        try:
            _watch(child, limits, stopped)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return _read(child.returncode, result_file, output_file.read_text(errors="replace"))


def _watch(child: subprocess.Popen[bytes], limits: Limits, stopped: Callable[[], bool]) -> None:
    """Wait for the child's end. Raises: ProcessFailed if it exceeds a limit, or is stopped."""
    process = psutil.Process(child.pid)
    used, moved = 0.0, time.monotonic()
    while True:
        try:
            child.wait(POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            pass
        if stopped():
            raise ProcessFailed("was stopped")
        try:
            with process.oneshot():
                held, times = process.memory_info().rss, process.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        now, spent = time.monotonic(), times.user + times.system
        if spent - used >= PROGRESS_SECONDS:
            used, moved = spent, now
        if held > limits.memory:
            raise ProcessFailed(_too_much(limits.memory))
        if spent > limits.seconds:
            raise ProcessFailed(f"took more than {limits.seconds:g} s of processor time")
        if now - moved > STALL_SECONDS:  # whatever its limit: a busy machine may give it none
            raise ProcessFailed(f"hung: no progress for {STALL_SECONDS:g} s")


def _read(code: int, result_file: Path, output: str) -> Any:
    if result_file.exists():
        value, reason = pickle.loads(result_file.read_bytes())
        if reason is not None:
            raise ProcessFailed(reason)
        return value
    lines = output.strip().splitlines()
    detail = f" ({lines[-1].strip()[:200]})" if lines else ""
    if code < 0:
        raise ProcessFailed(f"crashed with {signal.Signals(-code).name}{detail}")
    raise ProcessFailed(f"ended with exit code {code}{detail}")


def _too_much(memory: int) -> str:
    return f"took more than {memory / 2**20:,.0f} MiB of memory"


# ------------------------------------------------------------------------------------- in the child


def main(function: str, argument_file: str, result_file: str, memory: str, hard: str) -> None:
    """Call the function; write its result, or the reason why there is none."""
    _limit(int(memory), hard == "1")
    value, reason = None, None
    try:
        module, _, name = function.partition(":")
        sys.path[:], argument = pickle.loads(Path(argument_file).read_bytes())
        value = getattr(importlib.import_module(module), name)(pickle.loads(argument))
    except MemoryError:
        reason = _too_much(int(memory))
    except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
        reason = first_line(error)
    atomic.write(Path(result_file), pickle.dumps((value, reason), protocol=5))


def _limit(memory: int, hard: bool) -> None:
    """Set limits besides those the parent watches: no core files, no memory between two checks,
    no life after the parent's."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if hard:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


__all__ = ["Limits", "ProcessFailed", "call"]
