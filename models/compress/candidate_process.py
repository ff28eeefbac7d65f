"""Makes, loads, scores and times a candidate beside the float32 model, in a separate process
(`engine.system.limited_process`). Imports neither torch nor polars, so that it starts in a moment.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.system import limited_process
from engine.system.limited_process import Limits
from models.export.model_files import score_of
from models.serving.session import active_provider, load

if TYPE_CHECKING:  # the float32 model is run without what makes candidates
    from models.compress.quantize import Feed

PROBE_ROWS = 1_024
WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateJob:
    """The job of a candidate process.

    Attributes:
        make: import string of a function (float32 model, candidate's path, calibration feeds), or
            "" where the candidate is there.
        base, path: the float32 model and the candidate.
        calibration: feeds.
        judging: the rows to score.
        providers: to run on.
        rounds: pairs of runs to time.
    """

    make: str
    base: str
    path: str
    calibration: list[Feed]
    judging: Feed
    providers: tuple[str, ...]
    rounds: int


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


def run(job: CandidateJob, *, seconds: float, memory: int) -> Result:
    """Try a candidate in a child process.

    Raises: engine.system.limited_process.ProcessFailed.
    """
    on_cpu = set(job.providers) <= {"CPUExecutionProvider"}
    limits = Limits(seconds=seconds, memory=memory, allocations=on_cpu)
    result: Result = limited_process.call(f"{__name__}:run_job", job, limits)
    return result


# ------------------------------------------------------------------------------------- in the child


def run_job(job: CandidateJob) -> Result:
    """Make the candidate where it is not there, score and time it."""
    path = Path(job.path)
    if job.make:
        module, _, name = job.make.partition(":")
        getattr(importlib.import_module(module), name)(Path(job.base), path, job.calibration)
    # One thread: then the time of the processor is the time of the run, whoever else runs.
    sessions = [load(p, job.providers, 1) for p in (Path(job.base), path)]
    provider = active_provider(sessions[1])
    clock = time.thread_time if provider.startswith("CPU") else time.perf_counter
    scores = sessions[1].run([score_of(sessions[1])], job.judging)[0]
    batch, single = (
        _pairs([_runner(s, _rows(job.judging, n)) for s in sessions], job.rounds, clock)
        for n in (PROBE_ROWS, 1)
    )
    return Result(scores=scores, batch=batch, single=single, provider=provider)


def _rows(feed: Feed, n: int) -> Feed:
    """Return n rows, repeated if there are fewer."""
    return {name: np.resize(array, (n, *array.shape[1:])) for name, array in feed.items()}


def _runner(session: Any, feed: Feed) -> Callable[[], object]:
    name = score_of(session)
    return lambda: session.run([name], feed)


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


__all__ = ["CandidateJob", "Result", "run", "run_job"]
