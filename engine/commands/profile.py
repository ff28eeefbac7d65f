"""``headrace profile``: finds the bottleneck of a pipeline, shows its memory, and measures what
a setting gains.

The pipeline runs on a sample, with results, dead letters and checkpoints in a folder that is
removed afterwards; a topic is read without its group and never written to. Then it runs again with
each advised setting, over as many records, in turns with the first: what is said
of a setting was seen.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from rich.table import Table

from engine.config import Pipeline, detached_tables
from engine.observing.timing import TimingSnapshot
from engine.run import Run
from engine.running.bottleneck import Bottleneck, part_of
from engine.running.loop import Loop
from engine.system import atomic, signals
from engine.types import Batch, HeadraceError
from engine.types.plural import counted

WARM_UP_SHARE = 0.25
"""The part of a sample that warms up (compilation, files, connections) and is not counted."""
WARM_SECONDS, WARM_BATCHES = 1.0, 32
"""The least warm-up, if the sample's length is a time: compilation happens in the first batches."""
ROUNDS = 3
MIN_GAIN = 1.05
"""A smaller gain is none: so far apart are two equal samples."""
MEMORY_SAMPLE_SECONDS = 0.05
"""Seconds between two samples of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingTrial:
    """The measured effect of a setting.

    Attributes:
        setting: as ``--set`` takes it.
        rate: records a second with it, the median.
        gain: over the rate without it, of the same rounds.
    """

    setting: str
    rate: float
    gain: float

    @property
    def gains(self) -> bool:
        """Whether it is faster with the setting, beyond chance."""
        return self.gain > MIN_GAIN

    @property
    def sentence(self) -> str:
        """What was measured; no advice if nothing is gained."""
        times = f"{self.gain:.2f} times the records"
        if self.gains:
            return f"Measured: --set {self.setting} gives {times}."
        slower = "is slower" if self.gain < 1 / MIN_GAIN else "gains nothing"
        return f"Tried, and not advised: --set {self.setting} {slower}, {times}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The result of a profile.

    Attributes:
        records: of the sample.
        rate: records a second, the warm-up not counted.
        bottleneck: what holds the sample; None where it was too short to tell.
        ended: whether the source ended before the sample's time was over.
        calls, seconds: stage -> how often it worked, and for how long, after the warm-up.
        memory: holder -> most bytes that it had; ``process`` is all of it.
        peaks: stage -> most bytes that the process had at the end of its work.
        trials: settings that were tried.
        left_out: what was not looked at, in sentences.
    """

    records: int
    rate: float
    bottleneck: Bottleneck | None
    ended: bool = False
    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    trials: tuple[SettingTrial, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def _advised(self) -> Bottleneck | None:
        """The bottleneck without advice that was tried and gains nothing."""
        if self.bottleneck is None:
            return None
        in_vain = {trial.setting for trial in self.trials if not trial.gains}
        advice = [one for one in self.bottleneck.advice if one.setting not in in_vain]
        return replace(self.bottleneck, advice=tuple(advice))

    @property
    def _too_short(self) -> str:
        """The message if no bottleneck could be measured."""
        if self.ended:
            return "The source ended before a bottleneck could be measured: the run is short."
        return "The sample was too short to tell what holds it: give it more --seconds."

    def tables(self) -> Iterable[Table | str]:
        """Return tables for a terminal."""
        yield f"{counted(self.records, 'record')}, {self.rate:,.0f} a second"
        stages = Table(title="work by stage", title_justify="left")
        for name in ("stage", "part", "calls", "seconds", "process at its peak"):
            stages.add_column(name, justify="left" if name in ("stage", "part") else "right")
        for stage, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            peak = _mib(self.peaks.get(stage, 0))
            stages.add_row(stage, part_of(stage), str(self.calls[stage]), f"{seconds:.2f}", peak)
        yield stages
        memory = Table(title="memory at its peak", title_justify="left")
        memory.add_column("held by")
        memory.add_column("most", justify="right")
        for holder, nbytes in sorted(self.memory.items(), key=lambda item: -item[1]):
            memory.add_row(holder, _mib(nbytes))
        yield memory
        yield str(self._advised or self._too_short)
        for trial in self.trials:
            yield trial.sentence
        yield from self.left_out


def profile(
    pipeline: Pipeline,
    *,
    seconds: float = 5.0,
    trace: Path | None = None,
    trials: bool = True,
) -> Profile:
    """Run a sample, find its bottleneck, try the advised settings.

    Args:
        seconds: of the sample; a bounded source may end it sooner.
        trace: where to write what every thread did, as Chrome's trace events (Perfetto,
            chrome://tracing and TensorBoard open them).
        trials: whether to try settings; about six times as long.

    Raises: UserError for what makes the file unusable.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-profile-") as name:
        pipeline, left_out = _sandboxed(pipeline, Path(name))
        first = SampleRun(pipeline, seconds=seconds)
        first.run()
        if trace is not None:
            first.write_trace(trace)
        bottleneck = first.bottleneck
        advised = (
            [a.setting for a in bottleneck.advice if a.setting] if bottleneck and trials else []
        )
        return Profile(
            records=first.records,
            rate=first.rate,
            bottleneck=bottleneck,
            ended=not first.run_.loop.stopped,
            calls=first.calls,
            seconds=first.seconds,
            memory=first.memory,
            peaks=first.peaks,
            trials=tuple(_try(pipeline, setting, first.records) for setting in advised),
            left_out=tuple(left_out),
        )


class SampleRun:
    """One run of a pipeline over its first records.

    Args:
        seconds: after which it stops; or
        records: after so many.
    """

    def __init__(
        self, pipeline: Pipeline, *, seconds: float | None = None, records: int | None = None
    ) -> None:
        self._limits = (seconds, records)
        self._events: list[tuple[str, str, float, float]] = []
        self._process = psutil.Process()
        self._marks: list[tuple[float, int]] = []
        self.run_ = Run(pipeline, watch=self._watch)
        self.records = 0
        self.bottleneck: Bottleneck | None = None
        self.calls: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self.peaks: dict[str, int] = {}
        self._looked = self._begin = 0.0
        self._account: TimingSnapshot | None = None
        self._warm_at: int | None = None

    @property
    def rate(self) -> float:
        """The records per second after the warm-up."""
        last_time, last_count = self._marks[-1] if self._marks else (0.0, 0)
        seconds, _ = self._limits
        if seconds is None:
            warm = [mark for mark in self._marks if mark[1] >= WARM_UP_SHARE * last_count]
        else:
            warm = self._marks[self._warm_at or 0 :]
        first_time, first_count = warm[0] if len(warm) > 1 else (self._begin, 0)
        return (last_count - first_count) / max(last_time - first_time, 1e-9)

    def run(self) -> None:
        """Run the sample, fresh."""
        loop = self.run_.loop
        loop.loader.timer.listener = self._listen
        self._begin = time.perf_counter()
        summary = self.run_.run(fresh=True)
        if signals.stop_signal():
            signals.stop()
        self.records = summary.totals.read
        self.bottleneck = (
            loop.reporter.bottleneck(self._account) if self._account else summary.bottleneck
        )
        spent = loop.loader.timer.snapshot()
        for stage, taken in spent.since(self._account or TimingSnapshot()).stages.items():
            self.calls[stage], self.seconds[stage] = taken.calls, taken.wall

    def write_trace(self, path: Path) -> None:
        """Write everything the threads did as Chrome trace events; times in microseconds.

        Raises: HeadraceError if it cannot be written.
        """
        begin = min((start for *_, start, _ in self._events), default=0.0)
        events = [
            {
                "name": stage,
                "cat": part_of(stage),
                "ph": "X",
                "ts": round((start - begin) * 1e6, 1),
                "dur": round(wall * 1e6, 1),
                "pid": 1,
                "tid": thread,
            }
            for thread, stage, start, wall in self._events
        ]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, json.dumps({"traceEvents": events}))
        except OSError as error:
            raise HeadraceError(
                f"The trace cannot be written to '{path}': {error.strerror or error}."
            ) from error

    def _listen(self, stage: str, start: float, wall: float) -> None:
        self._events.append((threading.current_thread().name, stage, start, wall))
        now = int(self._process.memory_info().rss)
        self.peaks[stage] = max(self.peaks.get(stage, 0), now)

    def _watch(self, loop: Loop, batch: Batch) -> None:
        now = time.perf_counter()
        self._marks.append((now, loop.totals.read))
        if now - self._looked > MEMORY_SAMPLE_SECONDS:
            self._looked = now
            self._look(loop)
        seconds, records = self._limits
        if seconds is not None and self._account is None and self._is_warm(now, seconds):
            self._account, self._warm_at = loop.loader.timer.snapshot(), len(self._marks) - 1
        late = self._account is not None and now - self._account.at > (seconds or 0.0)
        if late or (records is not None and loop.totals.read >= records):
            loop.stop()

    def _is_warm(self, now: float, seconds: float) -> bool:
        enough = len(self._marks) >= WARM_BATCHES
        return enough and now - self._marks[0][0] >= max(WARM_SECONDS, WARM_UP_SHARE * seconds)

    def _look(self, loop: Loop) -> None:
        held = dict(loop.loader.budget.held())
        if self.run_.trains:
            memory = self.run_.learner.memory
            held |= memory()
        held["process"] = int(self._process.memory_info().rss)
        for holder, nbytes in held.items():
            self.memory[holder] = max(self.memory.get(holder, 0), nbytes)


def _try(pipeline: Pipeline, setting: str, records: int) -> SettingTrial:
    """Run with and without the setting, alternating, over equally many records."""
    other = _with(pipeline, setting)
    rates: dict[str, list[float]] = {"": [], setting: []}
    for _ in range(ROUNDS):
        for name, which in (("", pipeline), (setting, other)):
            sample = SampleRun(which, records=records)
            sample.run()
            rates[name].append(sample.rate)
    rate = statistics.median(rates[setting])
    gain = statistics.median(
        new / max(old, 1e-9) for old, new in zip(rates[""], rates[setting], strict=True)
    )
    return SettingTrial(setting=setting, rate=rate, gain=gain)


def _with(pipeline: Pipeline, setting: str) -> Pipeline:
    return Pipeline.of(pipeline.table(), [setting], where=pipeline.file)


def _sandboxed(pipeline: Pipeline, folder: Path) -> tuple[Pipeline, list[str]]:
    """Return the pipeline with all its outputs in `folder`, and what that leaves out."""
    table = pipeline.model_copy(update=detached_tables(pipeline, whole=False)).table()
    for section in ("service", "traces", "export", "dead_letters"):
        table.pop(section, None)
    left_out = []
    sink = table.get("sink")
    table |= {"folder": str(folder / "run"), "dead_letters": {"limit": 1.0}}
    table["checkpoint"] = {k: v for k, v in pipeline.checkpoint.items() if k != "path"}
    if sink is not None and "path" in sink:
        table["sink"] = {**sink, "path": str(folder / "rows")}
    elif sink is not None and sink.get("kind") == "kafka":
        del table["sink"]
        left_out.append("Not looked at: the sink, as a profile writes to no topic.")
    if pipeline.export is not None:
        left_out.append("Not looked at: the export at the end.")
    return Pipeline.of(table, where=pipeline.file), left_out


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.1f} MiB"


__all__ = ["Profile", "SampleRun", "SettingTrial", "profile"]
