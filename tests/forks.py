"""The command in a process of its own that starts at once: a fork of one that has loaded the
libraries.

Most of what a start costs is imports, 2.5 s of a core; each process that runs tests pays them once,
in a child that waits. What comes of it is a child of the test like any other: its own memory,
signals, files and exit code. Tests of the start itself start the real command.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "scipy.linalg", "pyarrow.compute", "pyarrow.parquet", "torch.export", "pydantic_settings",
    "kafka", "starlette.applications", "uvicorn", "prometheus_client", "rich.live",
    "matplotlib.pyplot", "onnxruntime", "onnx",
)  # fmt: skip
"""What commands import when they come to it."""
PACKAGES = ("engine", "connectors", "models")
APART = ("engine.commands.cli", "engine.loading.interop")
"""The command itself, which is run as a file, and what needs torchdata."""
CHILD_SUBREAPER = 36
"""Of prctl: processes below whose parent has ended become this one's children."""
_STARTING = threading.Lock()
"""One at a time: two threads would make two processes to fork, and one of them would stop adopting
while the other's child is still without a parent; what is not our child cannot be ended."""


class Command(subprocess.Popen[Any]):
    """``headrace WORDS``, with the settings of `subprocess.Popen`."""

    module = "engine.commands.cli"
    """Which is run; another one in a subclass. It ends by `sys.exit`."""

    def _execute_child(  # in Popen, what makes a process of words and pipes
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
        env: Any, startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int,
        c2pread: int, c2pwrite: int, errread: int, errwrite: int, *_: Any,
    ) -> None:  # fmt: skip
        ends = [0 if p2cread < 0 else p2cread, 1 if c2pwrite < 0 else c2pwrite]
        ends.append(2 if errwrite < 0 else errwrite)
        request = {
            "module": self.module, "words": args, "cwd": str(cwd or Path.cwd()),
            "env": dict(env or os.environ),
        }  # fmt: skip
        with _STARTING:
            self.pid = _starter().start(request, ends)
        self._child_created = True
        for end, other in ((p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)):
            if end >= 0 and other >= 0:  # a pipe; a file is its owner's
                os.close(end)


class _Starter:
    """The process that is forked, seen from a test."""

    def __init__(self) -> None:
        self._channel, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with inside:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(inside.fileno())],
                pass_fds=[inside.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self._end)

    def start(self, request: dict[str, Any], ends: list[int]) -> int:
        """A child of this process; its number."""
        _adopt(True)
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], ends)
            reply = self._channel.recv(64)
        finally:
            _adopt(False)
        if not reply:
            raise RuntimeError("the process that is forked has ended")
        return int(reply)

    def _end(self) -> None:
        self._channel.close()
        self._process.wait()


@functools.cache
def _starter() -> _Starter:
    return _Starter()


def _adopt(on: bool) -> None:
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, int(on), 0, 0, 0)


def main(channel: socket.socket) -> None:
    """Start a command for each message that comes, until there is no test any more."""
    for name in (*LIBRARIES, *_modules()):
        importlib.import_module(name)
    _see_no_pool()
    registry = importlib.import_module("numba.core.registry").cpu_target
    registry.typing_context.refresh()
    registry.target_context.refresh()
    gc.collect()
    gc.freeze()  # or the collector of each fork would copy all pages
    while True:
        message, ends, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            break
        answer, inside = os.pipe()
        if (between := os.fork()) == 0:
            if number := os.fork():
                os.write(inside, str(number).encode())
                os._exit(0)  # and the test takes in the child that has no parent now
            channel.close()
            os.close(answer)
            os.close(inside)
            _run(json.loads(message), ends)
            break
        for end in (*ends, inside):
            os.close(end)
        reply = os.read(answer, 64)
        os.close(answer)
        os.waitpid(between, 0)
        channel.send(reply)


def _modules() -> Iterator[str]:
    """All of headrace's."""
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        names = (module.name for module in pkgutil.walk_packages(path, f"{package}."))
        yield from (name for name in names if name not in APART)


def _see_no_pool() -> None:
    """A pool of threads that polars has begun would not be there in a fork, and be waited for."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    if any(name.startswith("polars-0") for name in names):
        raise RuntimeError("a module of headrace's makes polars work while it is imported")


def _run(request: dict[str, Any], ends: list[int]) -> None:
    """As ``python -m MODULE`` does."""
    for number, end in enumerate(ends):
        os.dup2(end, number)
        os.close(end)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    importlib.import_module("engine.system.environment").prepare()
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["words"]
    random.seed()
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> None:
    """As Python ends, without taking apart what is loaded: that would copy all pages, 0.5 s of a
    core."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
