"""Find the bottleneck of a run: the part, the resource it is bound by, and the setting to change.

Three threads work at the same time, so the run is as slow as the one that takes longest for a
record. In it, the stage that takes most is the culprit; a run cannot get faster by changing
anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.loading.decoder import ROWS_PER_THREAD
from engine.observing.timing import StageTime, TimingSnapshot

PARTS = ("source", "decode", "scrub", "transfer", "model", "sink", "checkpoint", "idle")
"""The parts that can be the bottleneck; ``idle``: none, the source is slower than the pipeline."""
LOOP_STAGES = {
    "learn": "model",
    "predict": "model",
    "clean": "model",
    "write": "sink",
    "flush": "sink",
    "checkpoint": "checkpoint",
    "commit": "checkpoint",
}
"""Stage on the loop's own thread -> part."""
PART_OF_STAGE = {"fetch": "source", "decode": "decode", "transfer": "transfer"}
"""Stage with a part of its own -> part; all others belong to scrub."""
IDLE_SHARE = 0.5
"""Below this share of the time the busiest thread is not a bottleneck, if records come slowly."""
MIN_SECONDS = 1.0
"""A shorter sample shows compilation and the opening of files rather than the bottleneck."""
MIN_ROWS = 100
"""Of fewer rows each part has done too little: waits and fixed costs are all that shows."""
COMPILING_SHARE = 0.1
"""The share of the time in which loops were compiled above which a sample shows nothing else."""
RUN_SECONDS = 3.0
"""The least seconds of a whole run, its start included, to be diagnosed."""
CONTENDED_SHARE = 0.5
"""The share of its off-CPU time that a thread waited for a core, above which other processes
take the cores."""
MIN_FACTOR_SHOWN = 1.1
"""A factor below it is nothing to gain, and is not told."""
MAX_FACTOR_SHOWN = 20.0
"""Above this speed-up the figure says nothing more."""
CPU_BOUND_SHARE = 0.4
"""The share of a stage's time on the CPU above which it is CPU-bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A setting that should help.

    Attributes:
        setting: key and value, as ``--set`` takes them; empty where only words help.
        why: a few words.
    """

    setting: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """The bottleneck of a run.

    Attributes:
        part: one of `PARTS`.
        stage: the stage in it that takes most.
        resource: ``CPU``, ``contended CPU`` (others take the cores), ``GPU`` or ``I/O``: what the
            stage works on, or waits for.
        share: part (0-1) of the time that the stage takes.
        limit: the run would be so many times as fast if the stage took no time; no change of it can
            give more.
        seconds: part -> seconds of work.
        wall: seconds looked at.
        advice: settings to try, the best first.
    """

    part: str
    stage: str
    resource: str
    share: float
    limit: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    wall: float = 0.0
    advice: tuple[Advice, ...] = ()

    @property
    def bound(self) -> str:
        """What the part waits for, in words: ``CPU-bound``."""
        return self.resource if " " in self.resource else f"{self.resource}-bound"

    def __str__(self) -> str:
        """Return two or three sentences."""
        if self.part == "idle":
            return "No bottleneck: the source is slower than the pipeline."
        where = "" if self.stage == self.part else f" ('{self.stage}')"
        text = f"Bottleneck: {self.part}{where}, {self.share:.0%} of the time, {self.bound}"
        if self.limit >= MIN_FACTOR_SHOWN:
            text += f"; without it the run would be {_times(self.limit)} as fast"
        text += "."
        if self.advice:
            first = self.advice[0]
            words = first.why[0].upper() + first.why[1:]
            try_ = f"Try --set {first.setting}: {first.why}" if first.setting else words
            text += f" {try_}."
        return text


def diagnose(
    timing: TimingSnapshot, *, settings: Mapping[str, Any], device: str = "cpu", cores: int = 1
) -> Bottleneck | None:
    """Diagnose the bottleneck from the times; None if nothing was done, or too little to tell.

    Args:
        timing: what `TimingSnapshot.since` gave: `at` is the length in seconds.
        settings: ``batch_rows``, ``read_rows``, ``decode_threads`` and ``interval`` as they
            are now; ``threads``: the setting of the model's threads where that may be lowered, or
            ""; ``costs``: what another ``batch_rows`` costs, in a few words, or "".
        device: the model's.
    """
    work = {name: stage_time for name, stage_time in timing.stages.items() if stage_time.wall > 0}
    if timing.at < MIN_SECONDS or timing.compiling > COMPILING_SHARE * timing.at:
        return None
    if max((stage_time.rows for stage_time in work.values()), default=0) < MIN_ROWS:
        return None
    threads: dict[str, dict[str, StageTime]] = {"fetch": {}, "prepare": {}, "main": {}}
    for name, stage_time in work.items():
        threads["fetch" if name == "fetch" else "main" if name in LOOP_STAGES else "prepare"][
            name
        ] = stage_time
    busy = {
        thread: sum(stage_time.wall for stage_time in stages.values())
        for thread, stages in threads.items()
    }
    # By the record: one thread may be far ahead of another.
    cost = {thread: busy[thread] / _rows(threads[thread]) for thread in threads}
    slowest = max(cost, key=lambda thread: cost[thread])
    stage = max(threads[slowest], key=lambda name: threads[slowest][name].wall)
    part = part_of(stage)
    if busy[slowest] < IDLE_SHARE * timing.at and timing.idle > IDLE_SHARE * timing.at:
        part, stage = "idle", "idle"
    stage_time = work.get(stage, StageTime())
    others = [each for thread, each in cost.items() if thread != slowest]
    left = cost[slowest] * (1 - stage_time.wall / busy[slowest])
    bound = max(left, *others, 0.01 * cost[slowest])
    seconds = dict.fromkeys(PARTS[:-1], 0.0)
    for name, each in work.items():
        seconds[part_of(name)] += each.wall
    resource = _resource(part, stage_time, timing, device)
    return Bottleneck(
        part=part,
        stage=stage,
        resource=resource,
        share=stage_time.wall / timing.at,
        limit=cost[slowest] / bound,
        seconds=seconds,
        wall=timing.at,
        advice=tuple(_advice(part, stage, resource, settings, cores)),
    )


def part_of(stage: str) -> str:
    """Return the part of a stage."""
    return LOOP_STAGES.get(stage) or PART_OF_STAGE.get(stage) or "scrub"


def _rows(stages: Mapping[str, StageTime]) -> int:
    return max((stage_time.rows for stage_time in stages.values()), default=0) or 1


def _resource(part: str, stage_time: StageTime, timing: TimingSnapshot, device: str) -> str:
    if part in ("model", "transfer") and device != "cpu":
        return "GPU"
    own = stage_time.cpu / stage_time.wall if stage_time.wall else 0.0
    # Work that polars or torch do on threads of their own is on the process's account only.
    everybody = timing.cpu / timing.at
    shared = part not in ("source", "sink", "checkpoint") and everybody > 2 * CPU_BOUND_SHARE
    away = max(stage_time.wall - stage_time.cpu, 1e-9)
    if away > 0.2 * stage_time.wall and timing.queued > CONTENDED_SHARE * away:
        return "contended CPU"
    return "CPU" if own > CPU_BOUND_SHARE or shared else "I/O"


def _advice(
    part: str, stage: str, resource: str, settings: Mapping[str, Any], cores: int
) -> Iterable[Advice]:
    rows = 4 * int(settings["batch_rows"])
    batches = Advice(
        setting=f"loader.batch_rows={rows}",
        why="larger batches spread their fixed cost" + _caveat(settings),
    )
    contended = resource == "contended CPU"
    if contended and part == "model" and settings.get("threads"):
        yield Advice(
            setting=f"{settings['threads']}=1",
            why="other processes take the cores, and threads that share a step wait for each other",
        )
    elif contended:
        yield Advice(
            setting="",
            why="other processes take the cores: give it cores of its own, or run fewer beside it",
        )
    if part == "source":
        reads = 4 * int(settings["read_rows"])
        yield Advice(
            setting=f"loader.read_rows={reads}",
            why="larger reads spread their fixed cost",
        )
    elif part == "decode":
        threads = int(settings["decode_threads"]) + 1
        if int(settings["batch_rows"]) < threads * ROWS_PER_THREAD:
            yield batches
        elif resource == "I/O" or (threads <= cores and not contended):
            yield Advice(
                setting=f"loader.decode_threads={threads}", why="they decode a batch together"
            )
        yield Advice(
            setting="",
            why="fewer columns in [source.schema] are less to decode, if the model can do without",
        )
    elif part in ("scrub", "transfer"):
        yield batches
        yield Advice(
            setting="",
            why=f"fewer columns in [scrub.{stage}] are less work, if the model can do without",
        )
    elif part == "model":
        yield batches
        yield Advice(
            setting="", why="a smaller or compressed model is less to compute, and may know less"
        )
    elif stage == "write":
        yield batches
        yield Advice(setting="", why="fewer [sink] columns are less to write")
    elif part in ("sink", "checkpoint"):
        seconds = 6 * float(settings["interval"])
        yield Advice(
            setting=f"checkpoint.interval={seconds:g}",
            why="results and state are made safe less often; a restart repeats more",
        )


def _times(limit: float) -> str:
    return (
        f"{limit:.1f} times"
        if limit < MAX_FACTOR_SHOWN
        else f"{MAX_FACTOR_SHOWN:.0f} times or more"
    )


def _caveat(settings: Mapping[str, Any]) -> str:
    costs = settings.get("costs", "")
    return f" ({costs})" if costs else ""


__all__ = ["PARTS", "RUN_SECONDS", "Advice", "Bottleneck", "diagnose", "part_of"]
