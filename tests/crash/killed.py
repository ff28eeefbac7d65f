"""A command that is SIGKILLed at a fixed point: before the n-th call of a method.

``python -m tests.crash.killed MODULE:CLASS.METHOD N WORDS`` is ``headrace WORDS`` until then.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import runpy
import signal
import sys
from typing import Any

from tests.forks import Command


class Killed(Command):
    """Such a process; its words are those of the module."""

    module = "tests.crash.killed"


def kill_before(target: str, number: int) -> None:
    """Let this process be killed before the call of this number, from 1."""
    module, _, path = target.partition(":")
    owner, _, name = path.partition(".")
    kind = getattr(importlib.import_module(module), owner)
    method, calls = getattr(kind, name), itertools.count(1)

    @functools.wraps(method)
    def counted(*args: Any, **settings: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **settings)

    setattr(kind, name, counted)


if __name__ == "__main__":
    at, number, *words = sys.argv[1:]
    kill_before(at, int(number))
    sys.argv[1:] = words
    runpy.run_module("engine.commands.cli", run_name="__main__", alter_sys=True)
