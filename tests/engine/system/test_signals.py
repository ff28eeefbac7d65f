"""A signal at a moment at which nothing can be raised. Real signals to real commands are in
tests/pipelines/runs/test_process.py."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import polars as pl
import pytest
from kafka.future import Future
from kafka.net.selector import NetworkSelector
from llvmlite.binding.ffi import OutputString

from engine.system import signals
from tests.waiting import until


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_what_polars_calls_back_is_done_first(number: signal.Signals) -> None:
    """It panics where that raises, with a traceback and exit code 1."""
    done: list[int] = []

    def called_back(value: int) -> int:
        if value == 1:
            signal.raise_signal(number)
        done.append(value)
        return value

    with pytest.raises(signals.StopRequested), signals.handling(signals.stop):  # noqa: PT012
        pl.Series(range(3)).map_elements(called_back, return_dtype=pl.Int64)
        until(lambda: False, what="the signal")
    assert done == [0, 1, 2]


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_what_llvmlite_makes_is_whole(number: signal.Signals) -> None:
    """Python deletes half of an object with a traceback."""
    done: list[str] = []

    class Signalled(OutputString):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_owned":
                signal.raise_signal(number)
            super().__setattr__(name, value)
            done.append(name)

    with pytest.raises(signals.StopRequested), signals.handling(signals.stop):  # noqa: PT012
        Signalled(owned=False)
        until(lambda: False, what="the signal")
    assert "_owned" in done


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_step_of_kafkas_loop_is_done_first(number: signal.Signals) -> None:
    """Where it is raised in a task, the loop drops both, and what awaits the task waits for ever:
    so an engine hung that was stopped while it connected."""
    loop, done = NetworkSelector(), Future()

    async def connected() -> None:
        signal.raise_signal(number)
        done.success(None)

    async def connecting() -> None:
        loop.call_soon(connected)
        await done
        await Future()  # an answer that does not come

    loop.call_later(600, lambda: None)  # a time limit: the loop waits for that long
    with pytest.raises(signals.StopRequested), signals.handling(signals.stop):
        loop.run(connecting)
    assert done.succeeded()


SECOND = """
import signal, sys, time
from engine.system import signals
signals.install()
with signals.handling(lambda: print("stop")):
    signal.raise_signal(signal.SIGTERM)
    now = time.monotonic()
    time.monotonic = lambda: now + float(sys.argv[1])
    signal.raise_signal(signal.SIGINT)
    print("went on")
"""


@pytest.mark.parametrize(
    ("later", "code", "said"),
    [
        (0.1, 0, ""),
        (2.0, 130, "headrace: ended at once by a second signal (SIGINT); what was saved stays.\n"),
    ],
)
def test_two_signals_together_are_one(later: float, code: int, said: str) -> None:
    """`timeout` sends one to the command and one to its group; so do some shells and launchers."""
    command = [sys.executable, "-c", SECOND, str(later)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)
    assert done.stdout.splitlines() == ["stop", "went on"][: 1 + (not code)]
