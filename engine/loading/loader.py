"""The asynchronous prefetching batch loader, made of nodes with torchdata's protocol::

    SourceNode -> PrefetchNode("raw") -> RebatchNode -> DecodeNode -> ScrubNode -> BatchesNode ->
    for
    `---------- fetch thread --------'   `---------------- prepare thread -----------------'
    `-your-'

With `shuffle_rows` a ShuffleNode stands in place of RebatchNode and DecodeNode.

State rides on the item: what a node has given is its state, what waits in a queue is not. So the
`Mark` of the batch in your hand is where to resume, whatever the threads have read ahead.

Shutdown and errors, in prose; a difference between this and the code is a bug in the code:

- An error anywhere (BaseException too) reaches the for-loop after the batches before it, and again
  on every later `next`. It is never swallowed, never waits, and never looks like the end of the
  stream; only a source's `EndOfStream` does.
- `close` (or leaving the ``with`` block) closes the queues, which wakes both threads wherever they
  wait, and joins them: a read takes at most `poll_timeout` seconds, a batch in preparation is
  finished and dropped. Afterwards no thread is left and the source is closed.
- A loader that is forgotten without `close` stops its threads when it is garbage-collected.

torchdata's own Prefetcher is not used here: it counts items, not bytes, turns a second look at a
failed source into an end of stream, and hangs on a BaseException.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

import polars as pl

from engine.columnar.batch_group import BatchGroup, StepFailed, slices
from engine.config import LoaderSettings
from engine.loading.autotune import DecodeThreads, QueueDepth
from engine.loading.budget import Budget
from engine.loading.channel import Channel
from engine.loading.collate import Collate
from engine.loading.deadline import Deadline, Demand
from engine.loading.decoder import Decoder
from engine.loading.nodes import Items, Node
from engine.loading.prefetch import PrefetchNode
from engine.loading.rebatch import RawBatch, RebatchNode
from engine.loading.shuffle import SHUFFLE_STATE, ShuffleNode
from engine.loading.sources.labelled_source import is_of_labels
from engine.observing.metrics import Metrics
from engine.observing.timing import StageTimer
from engine.observing.traces import Traces
from engine.scrub.base import restore, snapshots
from engine.scrub.fusion import FusedStages, fuse
from engine.scrub.side_source import sides_of
from engine.system.environment import collect_as_usual, cores
from engine.types import (
    Batch,
    EndOfStream,
    Mark,
    Records,
    Rejects,
    Schema,
    SharedSource,
    Snapshot,
    Source,
    Stage,
    TimedWork,
)
from engine.user_code import calls

ITEM_BYTES = 2_048
"""The bytes of a queued item besides its data: objects, headers, state."""
THREAD_BYTES = 1 << 17
"""The bytes of a thread: the stack it touches, its part of the allocator."""


class SourceNode(Node[Records | None]):
    """Reads a source; gives None if nothing came within `poll_timeout` seconds. Ends with the
    source.

    Args:
        source: is sought to the mark it is reset to.
        budget: bytes of the loader; one read takes at most an eighth of it.
    """

    def __init__(self, source: Source, settings: LoaderSettings, timer: StageTimer) -> None:
        super().__init__()
        self._source = source
        self._settings = settings
        self._max_bytes = max(1 << 16, int(settings.memory_budget) // 8)
        self._timer = timer
        self._positions: dict[str, int] = {}
        self._read_started: float | None = None

    @property
    def read_started(self) -> float:
        """When the unanswered read of the source began, in `time.monotonic` seconds; now, if
        there is none. Any thread may ask."""
        return self._read_started or time.monotonic()

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        mark = Mark(positions=initial_state or {})
        self._positions = dict(mark.positions)
        with calls.Calling("source", self._source):
            self._source.seek(mark)

    def next(self) -> Records | None:
        start, cpu = time.perf_counter(), time.thread_time()
        settings = self._settings
        self._read_started = time.monotonic()
        try:
            records = calls.read(
                self._source,
                settings.read_rows,
                self._max_bytes,
                settings.poll_timeout,
                marked=self._positions,
            )
        except EndOfStream:
            raise StopIteration from None
        finally:
            self._read_started = None
        if records is None:
            self._timer.idle(time.perf_counter() - start)
        else:
            self._timer.add("fetch", start, cpu, len(records))
            self._positions = {**self._positions, **records.end_positions}
        return records

    def get_state(self) -> dict[str, Any]:
        return self._positions

    @property
    def keep_alive(self) -> Callable[[], None] | None:
        """Return the callback for the time the next queue is full; None if the source needs
        none."""
        return self._source.keep_alive if isinstance(self._source, SharedSource) else None

    def close(self) -> None:
        calls.close(self._source)


class DecodeNode(Node[BatchGroup]):
    """Turns raw rows into batches with the mark after their last row.

    Args:
        decoder: makes a frame of them.
        keep_records: keep the records on the batch, as `pieces`.
        labels: makes a frame of the records that are labels; None if there are none.
    """

    def __init__(
        self,
        node: RebatchNode,
        decoder: Decoder,
        metrics: Metrics,
        timer: StageTimer,
        keep_records: bool = False,
        labels: Decoder | None = None,
    ) -> None:
        super().__init__()
        self._node = node
        self._decoder = decoder
        self._labels = labels
        self._releases = metrics.batches_closed
        self._timer = timer
        self._keep_records = keep_records
        self._waiting: deque[RawBatch] = deque()
        """Batches to decode one by one, because some of their rows are bad."""
        self._positions: Mapping[str, int] = {}

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self._waiting.clear()
        self._positions = (initial_state or {}).get("positions", {})
        for decoder in self._decoders:
            decoder.resume()
        self._node.reset(dict(self._positions))

    def next(self) -> BatchGroup:
        if not self._waiting:
            raw = next(self._node)
            self._releases.labels(reason=raw.reason).inc(raw.batches)
            batch_group = self._decode(raw)
            if batch_group is not None:
                self._positions = raw.positions
                return batch_group
            self._waiting.extend(raw.split())
        raw = self._waiting.popleft()
        batch_group = self._decode(raw)
        assert batch_group is not None
        self._positions = raw.positions
        return batch_group

    def _decode(self, raw: RawBatch) -> BatchGroup | None:
        """Return the batches; None if there are several with bad rows among them."""
        if self._labels is not None and raw.batches > 1:
            return None  # one by one, as labels are no rows of a group
        with self._timer.timed("decode", raw.rows, raw.batches):
            frame, rejects, labels = self._decode_pieces(raw.pieces)
        if raw.batches == 1:
            return BatchGroup.of(replace(self._batch(raw, frame, rejects), labels=labels))
        if rejects or frame.height != raw.rows:
            return None
        parts = raw.split()
        ends = list(accumulate((part.rows for part in parts), initial=0))
        frames = slices(frame, ends)
        batches = (self._batch(part, own) for part, own in zip(parts, frames, strict=True))
        return BatchGroup(batches=tuple(batches), frame=frame)

    def _decode_pieces(
        self, pieces: Sequence[Records]
    ) -> tuple[pl.DataFrame, tuple[Rejects, ...], pl.DataFrame | None]:
        """Return the rows, the rejects, and the labels, if they come apart from their rows."""
        if self._labels is None:
            return (*self._decoder.decode(pieces), None)
        frame, rejects = self._decoder.decode([p for p in pieces if not is_of_labels(p)])
        labels, more = self._labels.decode([p for p in pieces if is_of_labels(p)])
        return frame, (*rejects, *more), labels

    def _batch(
        self, raw: RawBatch, frame: pl.DataFrame, rejects: tuple[Rejects, ...] = ()
    ) -> Batch:
        return Batch(
            frame=frame,
            mark=Mark(positions=raw.positions),
            arrived=raw.arrived,
            cut=raw.cut,
            raw_rows=raw.rows,
            raw_bytes=raw.nbytes,
            rejects=rejects,
            pieces=raw.pieces if self._keep_records else (),
        )

    def get_state(self) -> dict[str, Any]:
        return {"positions": self._positions}

    def interrupt(self) -> None:
        for decoder in self._decoders:
            decoder.interrupt()
        self._node.interrupt()

    def halt(self) -> None:
        self._node.halt()
        for decoder in self._decoders:
            decoder.close()

    def close(self) -> None:
        self._node.close()

    @property
    def _decoders(self) -> list[Decoder]:
        return [self._decoder] if self._labels is None else [self._decoder, self._labels]


class ScrubNode(Node[Batch]):
    """Cleans and collates batches, and stamps the mark on them.

    Args:
        node: decoded batches, whose marks have positions and the node's own state.
        stages: in this order; bound already.
        collate: the last step, what the model takes; None for a pipeline that only cleans.
        transfer: copies what collate made to the model's device; None leaves it here.
        keep_raw_from: index of the first stage that a model file contains: the rows before it are
            kept on the batch as `raw`. None keeps nothing.
        budget: batches that are done and not asked for yet count there, as ``batch_group``.
        traces: hear what is done with batches.
    """

    def __init__(
        self,
        node: DecodeNode | ShuffleNode,
        stages: Sequence[Stage],
        collate: Callable[[Batch], Batch] | None,
        timer: StageTimer,
        budget: Budget,
        traces: Traces,
        keep_raw_from: int | None = None,
        transfer: Callable[[Batch], Batch] | None = None,
    ) -> None:
        super().__init__()
        self._node = node
        self._traces = traces
        self._group_work: list[TimedWork] = []
        self._stages = stages
        self._initial = {stage.name: stage.snapshot() for stage in stages}
        self._collate = collate
        self._transfer = transfer
        self._keep_raw = keep_raw_from is not None
        self._steps_before_raw = list(fuse(stages[:keep_raw_from]))
        self._sides = list(sides_of(stages).values())
        self._steps_after_raw = [] if keep_raw_from is None else list(fuse(stages[keep_raw_from:]))
        self._mark = Mark()
        self._timer = timer
        self._budget = budget
        self._account = budget.open("batch_group", drains=False)
        self._done: deque[Batch] = deque()
        self._error: BaseException | None = None
        """The error to raise after the waiting batches."""

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self._drop()
        for side in self._sides:
            side.resume()
        state = initial_state or {}
        self._mark = Mark(positions=state.get("positions", {}), stages=state.get("stages", {}))
        for stage in self._stages:
            stage.restore(self._mark.stages.get(stage.name, self._initial[stage.name]))
        self._node.reset({"positions": self._mark.positions, "stages": self._mark.stages})

    def restore(self, stages: Mapping[str, Snapshot]) -> None:
        """Restore the stage states from a mark. No thread may be running. Raises: KeyError and
        the like for states of another layout."""
        if stages:
            restore(self._stages, stages)
        if stages and isinstance(self._node, ShuffleNode):
            self._node.restore(stages[SHUFFLE_STATE])

    def snapshots(self) -> dict[str, Snapshot]:
        """Return the stage states in the form a mark stores."""
        of_node = self._node.snapshots() if isinstance(self._node, ShuffleNode) else {}
        return {**of_node, **snapshots(self._stages)}

    def next(self) -> Batch:
        if not self._done:
            if self._error is not None:
                raise self._error
            node: Node[Any] = self._node
            with self._traces.heard() as self._group_work:
                item: BatchGroup | Batch = next(node)
                batch_group = item if isinstance(item, BatchGroup) else BatchGroup.of(item)
                self._done.extend(self._scrub(batch_group))
        batch = self._done.popleft()
        self._update_budget()
        with self._traces.heard() as own:
            if self._transfer is not None:
                batch = self._timed("transfer", self._transfer, batch)
        self._mark = batch.mark
        work = self._traces.sampled(batch, self._group_work, own)
        return replace(batch, ready=time.monotonic(), work=work)

    def get_state(self) -> dict[str, Any]:
        return {"positions": self._mark.positions, "stages": self._mark.stages}

    def on_wait(self, keep_alive: Callable[[], object]) -> None:
        """Call this while stages read what they need before the first batch."""
        for side in self._sides:
            side.keep_alive = keep_alive

    def interrupt(self) -> None:
        for side in self._sides:
            side.interrupt()
        self._node.interrupt()

    def halt(self) -> None:
        self._node.halt()
        self._drop()

    def close(self) -> None:
        self._node.close()
        for side in self._sides:
            side.close()

    def _drop(self) -> None:
        self._done.clear()
        self._error = None
        self._update_budget()

    def _update_budget(self) -> None:
        """Charge the finished batches to the budget, assuming equal sizes within a group."""
        each = self._done[0].nbytes if self._done else 0
        self._budget.hold(self._account, each * len(self._done))

    def _scrub(self, batch_group: BatchGroup) -> tuple[Batch, ...]:
        marks = [batch.mark for batch in batch_group.batches]
        states: list[dict[str, Any]] = [{} for _ in marks]
        for step in self._steps_before_raw:
            batch_group = self._run_step(partial(self._apply_step, step, states), batch_group)
        if self._keep_raw:
            batch_group = batch_group.map(
                lambda batch: replace(batch, raw=batch.frame), batch_group.frame
            )
        for step in self._steps_after_raw:
            batch_group = self._run_step(partial(self._apply_step, step, states), batch_group)
        batch_group = self._run_step(self._collate_group, batch_group)
        snapshots = zip(batch_group.batches, marks, states, strict=False)
        return tuple(
            replace(batch, mark=Mark(positions=mark.positions, stages={**mark.stages, **state}))
            for batch, mark, state in snapshots
        )

    def _run_step(
        self, step: Callable[[BatchGroup], BatchGroup], batch_group: BatchGroup
    ) -> BatchGroup:
        """Run a step on a group. If it fails, the batches before the failure continue; the error
        follows them."""
        try:
            return step(batch_group)
        except StepFailed as stopped:
            self._error = stopped.__cause__
            return stopped.done

    def _apply_step(
        self, step: Stage | FusedStages, states: Sequence[dict[str, Any]], batch_group: BatchGroup
    ) -> BatchGroup:
        """Apply one or several stages; `states` gets their state after each batch."""
        stages: Sequence[Any] = step.stages if isinstance(step, FusedStages) else (step,)
        left = iter(states)

        def learned() -> None:
            next(left).update(snapshots(stages))

        if isinstance(step, FusedStages):
            return step.apply(batch_group, self._timer.record, learned)

        def applied(batch: Batch) -> Batch:
            done = self._timed(step.name, partial(calls.apply, step), batch)
            learned()
            return done

        return batch_group.map(applied)

    def _collate_group(self, batch_group: BatchGroup) -> BatchGroup:
        if isinstance(self._collate, Collate):
            with self._timer.timed("collate", batches=len(batch_group)):
                return self._collate.apply_group(batch_group)
        if self._collate is None:
            return batch_group
        return batch_group.map(partial(self._timed, "collate", self._collate))

    def _timed(self, name: str, work: Callable[[Any], Batch], value: Any) -> Batch:
        with self._timer.timed(name):
            return work(value)


class BatchesNode(PrefetchNode[Batch]):
    """The output queue. Asking for a batch releases the previous one.

    Args:
        deadline: learns how long batches take.
        demand: is told when batches are asked for.
    """

    def __init__(
        self,
        node: ScrubNode,
        make_channel: Callable[[], Channel[Any]],
        deadline: Deadline | None,
        demand: Demand | None,
    ) -> None:
        super().__init__(node, make_channel, "prepare")
        self._deadline = deadline
        self._demand = demand
        self._in_use: tuple[int, float] | None = None

    def next(self) -> Batch:
        taken, self._in_use = self._in_use, None
        if taken is not None and self._deadline is not None:
            rows, cut = taken
            self._deadline.observe(rows, time.monotonic() - cut)
        if self._demand is not None:
            self._demand.ask()
        batch = super().next()
        if self._demand is not None and batch.raw_rows:
            self._demand.take(batch.ready - batch.cut)
        self._in_use = (batch.raw_rows, batch.cut)
        return batch


class Loader(Items[Batch]):
    """Prefetches clean batches from a source within a byte budget::

        collate = Collate(features).apply
        with Loader(source, schema=schema, stages=stages, collate=collate) as loader:
            for batch in loader:
                learner.learn(batch)

    `state_dict` is where to resume after the last batch you took, `load_state_dict` goes there
    (before the loop).
    Each ``for`` starts anew, from the start or the loaded state.

    Attributes:
        budget: who holds how many bytes.
        timer: where the time goes.
        threads: how many decode together.

    Args:
        source: rows; closed with the loader.
        schema: columns to decode, as `source.schema` gave them.
        stages: bound stages, in order.
        collate: makes what the model takes (`Collate.apply`, `Predictor.collate`) in the thread
            that prepares; None leaves the batch as it is.
        transfer: then copies it to the model's device (`Transfer.apply`), in the same thread.
        settings: rows a batch, delay, bytes.
        metrics: where waits, sizes and times go; a private one unless given.
        keep_raw_from, keep_records: see `ScrubNode` and `DecodeNode`.
        labels: columns of labels that come apart from their rows, from a `LabelledSource`.
        mark: where to start.
        traces: None traces nothing.

    Raises (in the loop): whatever source, format or a stage raised, unchanged.
    """

    def __init__(
        self,
        source: Source,
        *,
        schema: Schema,
        stages: Sequence[Stage] = (),
        collate: Callable[[Batch], Batch] | None = None,
        transfer: Callable[[Batch], Batch] | None = None,
        settings: LoaderSettings | None = None,
        metrics: Metrics | None = None,
        keep_raw_from: int | None = None,
        keep_records: bool = False,
        labels: Schema | None = None,
        mark: Mark | None = None,
        traces: Traces | None = None,
    ) -> None:
        settings = (settings or LoaderSettings()).of(unbounded=source.unbounded())
        metrics = metrics or Metrics()
        self.budget = _budget(settings)
        self.timer = timer = StageTimer(metrics)
        traces = traces or Traces()
        timer.listener = traces if traces.enabled else None
        channel = partial(_channel, self.budget, metrics, timer, settings.prefetch_bytes)
        objective = settings.latency_objective
        deadline = None if objective is None else Deadline(objective)
        demand = Demand() if settings.answers_soon else None
        self._fetching = SourceNode(source, settings, timer)
        fetch: PrefetchNode[Records | None] = PrefetchNode(
            self._fetching,
            # Half the budget, so that the raw queue cannot starve the prepared one.
            partial(channel, "raw", _raw_bytes, share=0.5, entry=True),
            "fetch",
        )
        self.threads = _decode_threads(settings, metrics)
        decoder_of = partial(Decoder, source.format, largest=self.budget.total)
        waited = partial(timer.waited_seconds, "prepared", "get")
        decoder = decoder_of(schema, threads=self.threads, waited=waited)
        node: DecodeNode | ShuffleNode
        if settings.shuffle_rows:
            node = ShuffleNode(fetch, decoder, settings, self.budget, metrics, timer)
        else:
            rebatch = RebatchNode(fetch, settings, self.budget, deadline, demand)
            late = None if labels is None else decoder_of(labels)
            node = DecodeNode(rebatch, decoder, metrics, timer, keep_records, late)
        self._scrub = scrub = ScrubNode(
            node, stages, collate, timer, self.budget, traces, keep_raw_from, transfer
        )
        prepared = partial(
            channel,
            "prepared",
            _batch_bytes,
            max_items=1 if settings.answers_soon else None,
        )
        self._prepared = BatchesNode(scrub, prepared, deadline, demand)
        super().__init__(self._prepared)
        collect_as_usual()  # from here on batches are made
        if mark is not None:
            self.seek(mark)

    @property
    def read_started(self) -> float:
        """The time of the unanswered read; see `SourceNode.read_started`."""
        return self._fetching.read_started

    def seek(self, mark: Mark) -> None:
        """Start the next loop after `mark`."""
        state = {"positions": dict(mark.positions), "stages": dict(mark.stages)}
        self.load_state_dict(state)

    def restore(self, mark: Mark) -> None:
        """Restore the stages from a checkpoint's mark before anything is read, so that a
        mismatch is known at once. Raises: KeyError and the like for states of another layout."""
        self._scrub.restore(mark.stages)

    def snapshots(self) -> Mapping[str, Snapshot]:
        """Return the stage states in the form a mark stores."""
        return self._scrub.snapshots()

    def on_wait(self, keep_alive: Callable[[], object]) -> None:
        """Call this while stages read what they need before the first batch: it is progress."""
        self._scrub.on_wait(keep_alive)

    def torchdata(self) -> Any:
        """Return the loader as torchdata's (`torchdata.nodes.Loader`); imports torch."""
        from engine.loading.interop import torchdata_loader

        return torchdata_loader(self.root)

    def interrupt(self) -> None:
        """Ask the threads to end, without waiting for them; the loop raises `Closed`."""
        self._prepared.interrupt()

    def halt(self) -> None:
        """End the threads and wait for them; the source stays open, the next ``for`` starts
        anew.

        Raises: HeadraceError when a source or stage keeps its thread for more than 10 s.
        """
        self._prepared.halt()

    def close(self) -> None:
        """End the threads and wait for them, close the source. May be called twice.

        Raises: HeadraceError when a source or stage keeps its thread for more than 10 s.
        """
        self._prepared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _budget(settings: LoaderSettings) -> Budget:
    """Return the memory budget, less what the threads take."""
    budget = Budget(int(settings.memory_budget))
    # The consumer's, one that reads, one that prepares, one that decodes with it; less of a
    # budget so small that this would be felt.
    budget.acquire("threads", min(4 * THREAD_BYTES, budget.total // 64))
    return budget


def _decode_threads(settings: LoaderSettings, metrics: Metrics) -> DecodeThreads:
    threads = DecodeThreads(
        cores(), fixed=settings.decode_threads, on_change=metrics.decode_threads.set
    )
    metrics.decode_threads.set(threads.count)
    return threads


def _channel(
    budget: Budget,
    metrics: Metrics,
    timer: StageTimer,
    fixed: int | None,
    name: str,
    size_of: Callable[[Any], int],
    share: float = 1.0,
    max_items: int | None = None,
    entry: bool = False,
) -> Channel[Any]:
    """Make a queue under the budget, with metrics. A function, because a thread must not refer
    to the loader: an abandoned loader would never be collected."""
    resizes = metrics.queue_resizes
    depth = QueueDepth(
        max(1, int(budget.total * share)),
        fixed=fixed,
        on_change=lambda _, direction: resizes.labels(queue=name, direction=direction).inc(),
        name=name,
    )
    channel: Channel[Any] = Channel(
        name,
        budget,
        size_of,
        max_items,
        depth=depth,
        entry=entry,
        on_put_wait=timer.wait_recorder(name, "put"),
        on_get_wait=timer.wait_recorder(name, "get"),
    )
    metrics.watch(metrics.queue_bytes, lambda: channel.nbytes, queue=name)
    metrics.watch(metrics.queue_items, lambda: len(channel), queue=name)
    metrics.watch(metrics.queue_depth_bytes, lambda: depth.bytes, queue=name)
    return channel


def _raw_bytes(item: tuple[Records | None, Any]) -> int:
    return ITEM_BYTES + (0 if item[0] is None else item[0].nbytes)


def _batch_bytes(item: tuple[Batch, Any]) -> int:
    return ITEM_BYTES + item[0].nbytes


__all__ = ["BatchesNode", "DecodeNode", "Loader", "ScrubNode", "SourceNode"]
