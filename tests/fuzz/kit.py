"""Processes that read damaged inputs, and what became of them."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.forks import Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one input may cost. Time is that of the processor, so that a busy machine changes
    nothing; `stuck` is of any time, for a process that waits.

    Attributes:
        seconds, stuck: on one input.
        nbytes: that a process holds.
    """

    seconds: float = 60.0
    stuck: float = 600.0
    nbytes: int = 4 << 30


@dataclass(slots=True)
class Outcome:
    """What a number of mutations came to.

    Attributes:
        read: gave rows or dead letters (a model, a pipeline: worked).
        refused: were one sentence.
        findings: number of a mutation -> what was wrong: a signal, a panic, a traceback, a hang,
            memory that is not the input's.
    """

    read: int = 0
    refused: int = 0
    findings: dict[int, str] = field(default_factory=dict)


class Worker(Command):
    """A process that reads damaged inputs."""

    module = "tests.fuzz.worker"


def fuzz(
    target: str,
    mutations: int,
    folder: Path,
    *,
    start: int = 0,
    step: int = 1,
    limits: Limits | None = None,
) -> Outcome:
    """Read mutations `start`, `start + step`, ... below `mutations` of a target, each in a process
    that may die of it."""
    outcome = Outcome()
    folder.mkdir(parents=True, exist_ok=True)
    number = start
    while number < mutations:
        number = _process(
            target, range(number, mutations, step), folder, outcome, limits or Limits()
        )
    return outcome


def _process(target: str, numbers: range, folder: Path, outcome: Outcome, limits: Limits) -> int:
    """One process; the number to go on with."""
    first, last, step = numbers.start, numbers.stop, numbers.step
    at = folder / "at"
    at.write_bytes(first.to_bytes(16, "little"))
    words = [target, str(first), str(last), str(step), str(folder)]
    out, err = folder / "out", folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = Worker(words, stdout=stdout, stderr=stderr)
        try:
            killed = _watched(process, at, limits)
        finally:
            process.kill()
            process.wait()
    for line in out.read_text().splitlines():
        said = json.loads(line)
        if "number" in said:
            outcome.findings[said["number"]] = said["what"]
        else:
            outcome.read += said["read"]
            outcome.refused += said["refused"]
    if process.returncode == 0:
        return last
    number = _at(at)
    why = killed or _ended(process.returncode)
    tail = err.read_text(errors="replace").strip().splitlines()[-1:]
    outcome.findings[number] = " ".join([why, *tail])
    # It cannot say any more which of those before were refused.
    outcome.read += sum(n not in outcome.findings for n in range(first, number, step))
    return number + step


def _watched(process: Worker, at: Path, limits: Limits) -> str:
    """Wait for its end; why it was killed, or ""."""
    number, spent, since = -1, 0.0, time.monotonic()
    while True:
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
        else:
            return ""
        try:
            one = psutil.Process(process.pid)
            times, held = one.cpu_times(), one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        used = times.user + times.system
        if (now := _at(at)) != number:
            number, spent, since = now, used, time.monotonic()
        why = ""
        if held > limits.nbytes:
            why = f"memory: {held >> 20} MiB"
        elif used - spent > limits.seconds or time.monotonic() - since > limits.stuck:
            why = "a hang"
        if why:
            return why


def _at(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def _ended(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"ended with {code}"


__all__ = ["Limits", "Outcome", "fuzz"]
