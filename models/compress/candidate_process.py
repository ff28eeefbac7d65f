"""Makes, loads, scores and times a candidate beside the float32 model, in a separate process
with limits on time and memory.

A model file can end the process that runs it (ONNX Runtime raises SIGSEGV, SIGABRT and SIGFPE for
some), and a converter can take all memory: here that costs the candidate, not the engine. The child
is ``python -m models.compress.candidate_process JOB RESULT``: started anew, never forked from a
process with threads. It imports neither torch nor polars, so it starts in a moment.
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

import numpy as np
import psutil
from numpy.typing import NDArray

from engine.errors import first_line
from engine.system import atomic
from models.compress.quantize import Feed
from models.export.model_files import SCORE
from models.serving.session import active_provider, load

PROBE_ROWS = 1_024
NICENESS = 5
POLL_SECONDS = 0.02
STALL_SECONDS = 60.0
"""The seconds without CPU use after which a child counts as hanging."""
PROGRESS_SECONDS = 0.01
"""The least CPU time that counts as progress."""
WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The job of a candidate process.

    Attributes:
        make: import string of a function (float32 model, candidate's path, calibration feeds), or
            "" where the candidate is there.
        base, path: the float32 model and the candidate.
        calibration: feeds.
        judging: the rows to score.
        providers: to run on.
        rounds: pairs of runs to time.
        seconds: of processor time. Wall time would refuse a good candidate on a busy machine.
        memory: bytes.
    """

    make: str
    base: str
    path: str
    calibration: list[Feed]
    judging: Feed
    providers: tuple[str, ...]
    rounds: int
    seconds: float
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a candidate process.

    Attributes:
        scores: of the candidate, shape (n,) or (n, k).
        batch, single: seconds of pairs of runs, 1,024 rows and one, shape (rounds, 2): float32,
            candidate.
        provider: where the candidate ran.
    """

    scores: NDArray[np.float32]
    batch: NDArray[np.float64]
    single: NDArray[np.float64]
    provider: str


class CandidateFailed(Exception):
    """A candidate could not be made or run; the message says why."""


def run(job: Job) -> Result:
    """Try a candidate in a child process. Raises: CandidateFailed."""
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file, output_file = (
            Path(folder) / name for name in ("job", "result", "said")
        )
        job_file.write_bytes(pickle.dumps(job, protocol=5))
        paths = [path or str(Path.cwd()) for path in sys.path]
        with output_file.open("wb") as file:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "models.compress.candidate_process",
                    str(job_file),
                    str(result_file),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )
        try:
            _watch(child, job)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return _read(child.returncode, result_file, output_file.read_text(errors="replace"))


def _watch(child: subprocess.Popen[bytes], job: Job) -> None:
    """Wait for the child's end. Raises: CandidateFailed if it exceeds a limit."""
    process = psutil.Process(child.pid)
    used, moved = 0.0, time.monotonic()
    while True:
        try:
            child.wait(POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            pass
        try:
            with process.oneshot():
                held, times = process.memory_info().rss, process.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        now, spent = time.monotonic(), times.user + times.system
        if spent - used >= PROGRESS_SECONDS:
            used, moved = spent, now
        if held > job.memory:
            raise CandidateFailed(_too_much(job))
        if spent > job.seconds:
            raise CandidateFailed(f"took more than {job.seconds:g} s of processor time")
        if now - moved > STALL_SECONDS:  # whatever its limit: a busy machine may give it none
            raise CandidateFailed(f"hung: no progress for {STALL_SECONDS:g} s")


def _read(code: int, result_file: Path, output: str) -> Result:
    if result_file.exists():
        result = pickle.loads(result_file.read_bytes())
        if isinstance(result, str):
            raise CandidateFailed(result)
        result_value: Result = result
        return result_value
    lines = output.strip().splitlines()
    detail = f" ({lines[-1].strip()[:200]})" if lines else ""
    if code < 0:
        raise CandidateFailed(f"crashed with {signal.Signals(-code).name}{detail}")
    raise CandidateFailed(f"ended with exit code {code}{detail}")


def _too_much(job: Job) -> str:
    return f"took more than {job.memory / 2**20:,.0f} MiB of memory"


# ------------------------------------------------------------------------------------- in the child


def main(job_file: Path, result_file: Path) -> None:
    """Do the job; write a `Result`, or the reason why there is none."""
    job: Job = pickle.loads(job_file.read_bytes())
    _limit(job)
    try:
        result: Result | str = _run_job(job)
    except MemoryError:
        result = _too_much(job)
    except Exception as error:  # noqa: BLE001 - whatever a converter raises is the candidate's refusal
        result = first_line(error)
    atomic.write(result_file, pickle.dumps(result, protocol=5))


def _limit(job: Job) -> None:
    """Set limits besides those the parent watches: no core files, no memory between two checks,
    no life after the parent's."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if set(job.providers) <= {"CPUExecutionProvider"}:  # CUDA maps far more than it uses
            resource.setrlimit(resource.RLIMIT_DATA, (job.memory, job.memory))


def _run_job(job: Job) -> Result:
    path = Path(job.path)
    if job.make:
        module, _, name = job.make.partition(":")
        getattr(importlib.import_module(module), name)(Path(job.base), path, job.calibration)
    # One thread: then the time of the processor is the time of the run, whoever else runs.
    sessions = [load(p, job.providers, 1) for p in (Path(job.base), path)]
    provider = active_provider(sessions[1])
    clock = time.thread_time if provider.startswith("CPU") else time.perf_counter
    scores = sessions[1].run([SCORE], job.judging)[0]
    batch, single = (
        _pairs([_runner(s, _rows(job.judging, n)) for s in sessions], job.rounds, clock)
        for n in (PROBE_ROWS, 1)
    )
    return Result(scores=scores, batch=batch, single=single, provider=provider)


def _rows(feed: Feed, n: int) -> Feed:
    """Return n rows, repeated if there are fewer."""
    return {name: np.resize(array, n) for name, array in feed.items()}


def _runner(session: Any, feed: Feed) -> Callable[[], object]:
    return lambda: session.run([SCORE], feed)


def _pairs(
    runs: list[Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> NDArray[np.float64]:
    """Return pairs of seconds, measured A B B A A B ..., so that a drifting machine speed is
    fair to both."""
    seconds = np.empty((rounds + WARM_UP, len(runs)))
    for number in range(rounds + WARM_UP):
        order = range(len(runs)) if number % 2 else reversed(range(len(runs)))
        for at in order:
            start = clock()
            runs[at]()
            seconds[number, at] = clock() - start
    return seconds[WARM_UP:]


if __name__ == "__main__":
    # the job's classes are this module's by its name, not __main__'s
    import models.compress.candidate_process

    models.compress.candidate_process.main(Path(sys.argv[1]), Path(sys.argv[2]))

__all__ = ["CandidateFailed", "Job", "Result", "run"]
