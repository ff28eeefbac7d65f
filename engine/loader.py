"""The asynchronous prefetching batch loader, as torchdata nodes::

    SourceNode -> PrefetchNode("raw") -> RebatchNode -> ScrubNode -> PrefetchNode("prepared") -> for
    batch in loader
    `---- fetch thread ----'            `------- prepare thread ------'                         `-
    your thread -'

State rides on the item: what a node has given is its state, what waits in a queue is not. So the
`Mark` of the batch in your hand is where to resume, whatever the threads have read ahead.

Shutdown and errors, in prose; a difference between this and the code is a bug in the code:

- An error anywhere (BaseException too) reaches the for-loop after the batches before it, and again
  on every later `next`. It is never swallowed, never waits, and never looks like the end of the
  stream; only a source's `EndOfStream` does.
- `close` (or leaving the ``with`` block) closes the queues, which wakes both threads wherever they
  wait, and joins them: a read takes at most `poll` seconds, a batch in preparation is finished and
  dropped. Afterwards no thread is left and the source is closed.
- A loader that is forgotten without `close` stops its threads when it is garbage-collected.

torchdata's own Prefetcher is not used here: it counts items, not bytes, turns a second look at a
failed source into an end of stream, and hangs on a BaseException.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
from torchdata.nodes import BaseNode
from torchdata.nodes import Loader as NodeLoader

from engine.budget import Budget
from engine.channel import Channel, Closed, Empty
from engine.config import LoaderSettings
from engine.deadline import Deadline
from engine.decoder import Decoder
from engine.metrics import Metrics
from engine.sizes import ends_of
from engine.times import Times
from engine.tuning import Depth, Threads
from engine.types import (
    Batch,
    EndOfStream,
    HeadraceError,
    Interruptible,
    Mark,
    Records,
    Schema,
    SharedSource,
    Source,
    Stage,
)

T = TypeVar("T")
JOIN_SECONDS = 10.0
"""How long `close` waits for a thread; more means that a source or stage broke its promise to
return."""
ITEM_BYTES = 2_048
"""What a queued item costs besides its data: objects, headers, the state beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Undecoded rows of one batch to be.

    Attributes:
        pieces: rows by partition, in the order they were read; may be empty.
        positions: partition -> next position, after all pieces.
        arrived: `time.monotonic` seconds when the oldest row was read.
        cut: `time.monotonic` seconds when it was closed.
        reason: why it was closed: ``full`` (of rows), ``bytes``, ``delay``, ``deadline``, ``drain``
            (end of stream) or ``idle``.
    """

    pieces: tuple[Records, ...]
    positions: dict[str, int]
    arrived: float
    cut: float
    reason: str

    @property
    def rows(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


class SourceNode(BaseNode[Records | None]):
    """Reads a source; None where nothing came within `poll` seconds. Ends when the source does.

    Args:
        source: is sought to the mark it is reset to.
        budget: bytes of the loader; one read takes at most an eighth of it.
    """

    def __init__(self, source: Source, settings: LoaderSettings, times: Times) -> None:
        super().__init__()
        self._source = source
        self._settings = settings
        self._max_bytes = max(1 << 16, int(settings.memory_budget) // 8)
        self._times = times
        self._positions: dict[str, int] = {}

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        mark = Mark(positions=initial_state or {})
        self._positions = dict(mark.positions)
        self._source.seek(mark)

    def next(self) -> Records | None:
        start, cpu = time.perf_counter(), time.thread_time()
        settings = self._settings
        try:
            records = self._source.read(settings.read_rows, self._max_bytes, settings.poll)
        except EndOfStream:
            raise StopIteration from None
        if records is None:
            self._times.idle(time.perf_counter() - start)
        else:
            self._times.add("fetch", start, cpu, len(records))
            self._positions = {**self._positions, records.partition: records.next}
        return records

    def get_state(self) -> dict[str, Any]:
        return self._positions

    @property
    def beat(self) -> Callable[[], None] | None:
        """What to call while the queue behind is full; None where nobody waits for it."""
        return self._source.beat if isinstance(self._source, SharedSource) else None

    def close(self) -> None:
        self._source.close()


class PrefetchNode(BaseNode[T], Generic[T]):
    """Runs the node before it in a thread, ahead of whoever asks, up to a number of bytes.

    Args:
        node: the node before; only the thread touches it from now on.
        channel: the queue in between, with its bound.
    """

    def __init__(self, node: Any, make_channel: Callable[[], Channel[Any]], name: str) -> None:
        super().__init__()
        self._node = node
        self._name = name
        self._make_channel = make_channel
        self._channel: Channel[Any] | None = None
        self._thread: threading.Thread | None = None
        self._state: dict[str, Any] | None = None

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        self._stop()
        super().reset(initial_state)
        self._state = initial_state
        self._channel = channel = self._make_channel()
        # The thread holds the node and the channel but not this object, so a forgotten loader can
        # be collected.
        self._thread = threading.Thread(
            target=_produce,
            args=(self._node, initial_state, channel),
            name=f"headrace-{self._name}",
            daemon=True,
        )
        weakref.finalize(self, channel.close)
        self._thread.start()

    def next(self) -> T:
        return self.within(None)

    def within(self, timeout: float | None) -> T:
        """The next item. Raises: Empty when it does not come within `timeout` seconds;
        StopIteration at the end."""
        assert self._channel is not None, "reset comes first"
        try:
            taken: tuple[T, dict[str, Any]] = self._channel.get(timeout)
        except EndOfStream:
            raise StopIteration from None
        item, self._state = taken
        return item

    def get_state(self) -> dict[str, Any] | None:
        return self._state

    @property
    def channel(self) -> Channel[Any] | None:
        return self._channel

    def interrupt(self) -> None:
        """Close this queue and all before it: their threads end soon. Any thread may call it."""
        if self._channel is not None:
            self._channel.close()
        if isinstance(self._node, RebatchNode | ScrubNode):
            self._node.interrupt()

    def halt(self) -> None:
        """End this thread and all before it, and wait for them; nothing is closed. Raises:
        HeadraceError if one does not end."""
        self._stop()
        if isinstance(self._node, RebatchNode | ScrubNode):
            self._node.halt()

    def close(self) -> None:
        """Halt, close the node before. Raises: HeadraceError if a thread does not end."""
        self.halt()
        self._node.close()

    def _stop(self) -> None:
        self.interrupt()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_SECONDS)
            if thread.is_alive():
                raise HeadraceError(
                    f"The {self._name} thread did not end within {JOIN_SECONDS:.0f} s: a source's "
                    "read or a stage's apply must return in bounded time."
                )


def _produce(node: Any, state: dict[str, Any] | None, channel: Channel[Any]) -> None:
    """The thread: everything the node gives goes into the channel, its end and its errors too."""
    try:
        node.reset(state)
        beat = getattr(node, "beat", None)
        while True:
            channel.await_room(beat)
            item = next(node)
            # "Nothing came" is news only to a consumer that has nothing else to do.
            if item is not None or not len(channel):
                channel.put((item, node.state_dict()), beat)
            del item  # or the last item's memory would stay while the next is awaited
    except StopIteration:
        channel.finish()
    except Closed:
        channel.close()
    except BaseException as error:  # noqa: BLE001 - an error must reach the for-loop, whatever it is
        channel.fail(error)


class RebatchNode(BaseNode[Raw]):
    """Cuts raw rows into batches: of `batch_rows`, or less where they are `batch_limit` bytes,
    where
    the oldest has waited `max_delay`, or where waiting longer would miss the deadline.

    Rows are cut while raw, because then a position is exact; stages later only shrink or grow what
    was cut. On an idle stream an empty batch comes every `idle` seconds, so that the loop behind
    can act (checkpoint, stop, beat).

    Args:
        budget: what it keeps of former items counts there, as ``rebatch``.
        deadline: says when a batch must go; None: only `max_delay` does.
    """

    idle = 0.5

    def __init__(
        self,
        node: PrefetchNode[Records | None],
        settings: LoaderSettings,
        budget: Budget,
        deadline: Deadline | None = None,
    ) -> None:
        super().__init__()
        self._node = node
        self._rows = settings.batch_rows
        self._bytes = settings.batch_limit
        self._delay = settings.max_delay
        self._deadline = deadline
        self._budget = budget
        self._account = budget.open("rebatch", flows=False)
        self._pieces: list[Records] = []
        self._rest: Records | None = None
        self._left = self._room = 0
        self._positions: dict[str, int] = {}
        self._ended = False

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self._pieces, self._rest, self._ended = [], None, False
        self._positions = dict(initial_state or {})
        self._node.reset(initial_state)

    def next(self) -> Raw:
        self._left, self._room, reason = self._rows, self._bytes, ""
        start = time.monotonic()
        while not reason:
            records = self._rest or self._wait(start)
            reason = records if isinstance(records, str) else self._add(records)
        if self._ended and not self._pieces:
            raise StopIteration
        return self._cut(start, reason)

    def get_state(self) -> dict[str, Any]:
        return self._positions

    def interrupt(self) -> None:
        self._node.interrupt()

    def halt(self) -> None:
        self._node.halt()
        self._pieces, self._rest = [], None
        self._budget.hold(self._account, 0)

    def close(self) -> None:
        self._node.close()

    def _cut(self, start: float, reason: str) -> Raw:
        pieces, self._pieces = tuple(self._pieces), []
        after = {piece.partition: piece.next for piece in pieces}
        self._positions = {**self._positions, **after}
        arrived = min((piece.arrived for piece in pieces), default=start)
        return Raw(
            pieces=pieces,
            positions=self._positions,
            arrived=arrived,
            cut=time.monotonic(),
            reason=reason if pieces or self._ended else "idle",
        )

    def _add(self, records: Records) -> str:
        """Put what fits into the batch and keep the rest; why it is full then, or nothing."""
        fit = records if len(records) <= self._left else records.slice(0, self._left)
        ends = ends_of(fit)
        n = int(np.searchsorted(ends, self._room, "right"))
        if not self._pieces:
            n = max(1, n)  # a record that is too large for any batch has one of its own
        if n:
            self._pieces.append(records if n == len(records) else records.slice(0, n))
            self._left -= n
            self._room -= int(ends[n - 1])
        self._rest = records.slice(n, len(records)) if n < len(records) else None
        return "bytes" if n < len(fit) or self._room <= 0 else "" if self._left else "full"

    def _wait(self, start: float) -> Records | str:
        """The next records, or why the batch must go without more."""
        while True:
            close, why = self._closes(start)
            timeout = None if close is None else max(0.0, close - time.monotonic())
            self._budget.hold(self._account, sum(piece.nbytes for piece in self._pieces))
            try:
                records = self._node.within(timeout)
            except Empty:
                return why
            except StopIteration:
                self._ended = True
                return "drain"
            if records is not None and len(records):
                return records
            # Nothing came, or a gap without rows: only its position counts.
            if records is not None:
                self._positions = {**self._positions, records.partition: records.next}
            if close is not None and time.monotonic() >= close:
                return why

    def _closes(self, start: float) -> tuple[float | None, str]:
        """When the batch is closed at the latest, and why."""
        if not self._pieces:
            return start + self.idle, "idle"
        arrived = self._pieces[0].arrived
        ends = []
        if self._delay is not None:
            ends.append((arrived + self._delay, "delay"))
        if self._deadline is not None:
            ends.append((self._deadline.close_at(arrived, self._rows - self._left), "deadline"))
        return min(ends, default=(None, "idle"))


class ScrubNode(BaseNode[Batch]):
    """Decodes, cleans and collates raw rows, and stamps the mark on the batch.

    Args:
        decoder: makes a frame of the raw rows.
        stages: in this order; bound already.
        collate: the last step, what the model takes; None for a pipeline that only cleans.
        keep_raw_from: index of the first stage that a model file contains: the rows before it are
            kept on the batch as `raw`. None keeps nothing.
        keep_records: keep the records on the batch, as `pieces`.
    """

    def __init__(
        self,
        node: RebatchNode,
        decoder: Decoder,
        stages: Sequence[Stage],
        collate: Callable[[Batch], Batch] | None,
        metrics: Metrics,
        times: Times,
        keep_raw_from: int | None = None,
        keep_records: bool = False,
    ) -> None:
        super().__init__()
        self._node = node
        self._keep_records = keep_records
        self._decoder = decoder
        self._stages = stages
        self._initial = {stage.name: stage.snapshot() for stage in stages}
        self._collate = collate
        self._keep_raw_from = keep_raw_from
        self._mark = Mark()
        self._releases = metrics.batch_release
        self._times = times

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        state = initial_state or {}
        self._mark = Mark(positions=state.get("positions", {}), stages=state.get("stages", {}))
        if isinstance(self._decoder.format, Interruptible):
            self._decoder.format.resume()
        for stage in self._stages:
            stage.restore(self._mark.stages.get(stage.name, self._initial[stage.name]))
        self._node.reset(dict(self._mark.positions))

    def next(self) -> Batch:
        raw = next(self._node)
        self._releases.labels(reason=raw.reason).inc()
        with self._times.timed("decode", raw.rows):
            batch = self._batch(raw)
        for index, stage in enumerate(self._stages):
            if index == self._keep_raw_from:
                batch = replace(batch, raw=batch.frame)
            batch = self._timed(stage.name, stage.apply, batch)
        if self._keep_raw_from == len(self._stages):
            batch = replace(batch, raw=batch.frame)
        if self._collate is not None:
            batch = self._timed("collate", self._collate, batch)
        snapshots = ((stage.name, stage.snapshot()) for stage in self._stages)
        stages = {name: value for name, value in snapshots if value is not None}
        self._mark = Mark(positions=raw.positions, stages=stages)
        return replace(batch, mark=self._mark, ready=time.monotonic())

    def get_state(self) -> dict[str, Any]:
        return {"positions": self._mark.positions, "stages": self._mark.stages}

    def interrupt(self) -> None:
        if isinstance(self._decoder.format, Interruptible):
            self._decoder.format.interrupt()
        self._node.interrupt()

    def halt(self) -> None:
        self._node.halt()
        self._decoder.close()

    def close(self) -> None:
        self._node.close()

    def _timed(self, name: str, work: Callable[[Any], Batch], value: Any) -> Batch:
        with self._times.timed(name):
            return work(value)

    def _batch(self, raw: Raw) -> Batch:
        frame, rejects = self._decoder.decode(raw.pieces)
        return Batch(
            frame=frame,
            mark=self._mark,
            arrived=raw.arrived,
            cut=raw.cut,
            raw_rows=raw.rows,
            raw_bytes=raw.nbytes,
            rejects=rejects,
            pieces=raw.pieces if self._keep_records else (),
        )


class BatchesNode(PrefetchNode[Batch]):
    """The last queue: whoever asks for a batch is done with the one before.

    Args:
        deadline: learns how long batches take.
    """

    def __init__(
        self,
        node: ScrubNode,
        make_channel: Callable[[], Channel[Any]],
        deadline: Deadline | None,
    ) -> None:
        super().__init__(node, make_channel, "prepare")
        self._deadline = deadline
        self._taken: tuple[int, float] | None = None

    def next(self) -> Batch:
        taken, self._taken = self._taken, None
        if taken is not None and self._deadline is not None:
            rows, cut = taken
            self._deadline.observe(rows, time.monotonic() - cut)
        batch = super().next()
        self._taken = (batch.raw_rows, batch.cut)
        return batch


class Loader(NodeLoader[Batch]):
    """Batches of a source, cleaned, ahead of you, within a number of bytes::

        collate = Collate(features).apply
        with Loader(source, schema=schema, stages=stages, collate=collate) as loader:
            for batch in loader:
                learner.learn(batch)

    `state_dict` is where to resume after the last batch you took, `load_state_dict` goes there
    (before the loop).
    Each ``for`` starts anew, from the start or the loaded state.

    Attributes:
        budget: who holds how many bytes.
        times: where the time goes.
        threads: how many decode together.

    Args:
        source: rows; closed with the loader.
        schema: columns to decode, as `source.schema` gave them.
        stages: bound stages, in order.
        collate: makes what the model takes (`Collate.apply`, `Predictor.collate`) in the thread
            that prepares; None leaves the batch as it is.
        settings: rows a batch, delay, bytes.
        metrics: where waits, sizes and times go; a private one unless given.
        keep_raw_from, keep_records: see `ScrubNode`.
        mark: where to start.

    Raises (in the loop): whatever source, format or a stage raised, unchanged.
    """

    def __init__(
        self,
        source: Source,
        *,
        schema: Schema,
        stages: Sequence[Stage] = (),
        collate: Callable[[Batch], Batch] | None = None,
        settings: LoaderSettings | None = None,
        metrics: Metrics | None = None,
        keep_raw_from: int | None = None,
        keep_records: bool = False,
        mark: Mark | None = None,
    ) -> None:
        settings = settings or LoaderSettings()
        metrics = metrics or Metrics()
        self.budget = Budget(int(settings.memory_budget))
        self.times = times = Times(metrics)
        channel = partial(_channel, self.budget, metrics, times, settings.prefetch_bytes)
        objective = settings.latency_objective
        deadline = None if objective is None else Deadline(objective)
        fetch: PrefetchNode[Records | None] = PrefetchNode(
            SourceNode(source, settings, times),
            # Half the budget, so that the raw queue cannot starve the prepared one.
            partial(channel, "raw", _raw_bytes, share=0.5, entry=True),
            "fetch",
        )
        self.threads = threads = Threads(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
            fixed=settings.decode_threads,
            on_change=metrics.decode_threads.set,
        )
        metrics.decode_threads.set(threads.count)
        scrub = ScrubNode(
            RebatchNode(fetch, settings, self.budget, deadline),
            Decoder(
                source.format,
                schema,
                threads=threads,
                largest=self.budget.total,
                waited=partial(times.waits, "prepared", "get"),
            ),
            stages,
            collate,
            metrics,
            times,
            keep_raw_from,
            keep_records,
        )
        prepared = partial(
            channel,
            "prepared",
            _batch_bytes,
            # With an objective, what arrives meanwhile is to join the next batch, not to wait
            # behind batches that are closed already.
            max_items=None if deadline is None else 1,
        )
        self._prepared = BatchesNode(scrub, prepared, deadline)
        super().__init__(self._prepared, restart_on_stop_iteration=False)
        if mark is not None:
            self.seek(mark)

    def seek(self, mark: Mark) -> None:
        """Start the next loop after `mark`."""
        state = {"positions": dict(mark.positions), "stages": dict(mark.stages)}
        self.load_state_dict({"root": state, "num_yielded": 0})

    def interrupt(self) -> None:
        """End the threads soon, without waiting for them; the loop raises `Closed`."""
        self._prepared.interrupt()

    def halt(self) -> None:
        """End the threads and wait for them; the source stays open, the next ``for`` starts anew.

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


def _channel(
    budget: Budget,
    metrics: Metrics,
    times: Times,
    fixed: int | None,
    name: str,
    size_of: Callable[[Any], int],
    share: float = 1.0,
    max_items: int | None = None,
    entry: bool = False,
) -> Channel[Any]:
    """A queue under the budget, seen by the metrics. No method: what a thread reaches must not
    reach the loader, or a forgotten one would never be collected."""
    resizes = metrics.queue_resizes
    depth = Depth(
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
        on_put_wait=times.waiter(name, "put"),
        on_get_wait=times.waiter(name, "get"),
    )
    metrics.watch(metrics.queue_bytes, lambda: channel.nbytes, queue=name)
    metrics.watch(metrics.queue_items, lambda: len(channel), queue=name)
    metrics.watch(metrics.queue_depth_bytes, lambda: depth.bytes, queue=name)
    return channel


def _raw_bytes(item: tuple[Records | None, Any]) -> int:
    return ITEM_BYTES + (0 if item[0] is None else item[0].nbytes)


def _batch_bytes(item: tuple[Batch, Any]) -> int:
    return ITEM_BYTES + item[0].nbytes


__all__ = ["BatchesNode", "Loader", "PrefetchNode", "Raw", "RebatchNode", "ScrubNode", "SourceNode"]
