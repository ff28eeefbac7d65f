"""What a source, a format, a stage, a learner, a predictor and a sink must offer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    runtime_checkable,
)  # fmt: skip

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass
from engine.types.batch import Batch
from engine.types.features import Features
from engine.types.records import EndOfStream, Mark, Records, Rejects, Snapshot
from engine.types.schema import Schema
from engine.types.tensors import Tensors
from engine.types.transforms import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a learner did with one batch.

    Attributes:
        scores: what the model said of each row BEFORE it learned from it (test-then-train). Shape
            (n,) float64: the value (regression) or the probability of class 1 (binary); (n, k):
            class probabilities (multiclass).
        loss: mean training loss of the steps on new rows, nan where none was taken.
        steps: optimizer steps taken (replay included); 0 where the rows wait for more, to fill one.
        skipped: None, or why nothing was learned (``non_finite``, ``empty``).
        not_learned: rows that nothing can be learned from (their loss is not finite), bool, shape
            (n,); None where there are none.
        scored_only: how many of the rows were scored and not learned from, on purpose.
        augmented: name of an augment -> rows that it changed before they were learned, those
            learned again included.
        challenges: ``begun``, ``won`` or ``dropped`` -> challenges of the model by a new one.
    """

    scores: NDArray[np.float64]
    loss: float
    steps: int = 1
    skipped: str | None = None
    not_learned: NDArray[np.bool_] | None = None
    scored_only: int = 0
    augmented: Mapping[str, int] = field(default_factory=dict)
    challenges: Mapping[str, int] = field(default_factory=dict)


SAMPLE_BYTES = 64 << 20
"""Bytes of one piece of a sample, at most."""


@runtime_checkable
class Source(Protocol):
    """A place rows come from. Bytes and positions only: it neither decodes nor cleans. A class that
    inherits it gets the defaults of the methods that have one.

    Built as ``Kind(settings)`` with its own nested ``Settings``. Leaves out: batching by rows (the
    loader's), retries of a decode (the format's), metrics (the loop's). Called from one thread, the
    loader's fetch thread, but for `commit`, `lag`, `progress` and `identities`, which the main
    thread calls.
    """

    format: Format
    """How its values are decoded; the prepare thread calls it."""

    def unbounded(self) -> bool:
        """Whether rows may come at any time, however long none has come: a batch then does not wait
        for ever to fill."""
        return False

    def can_be_reread(self) -> bool:
        """Whether what is read can be read again, by a look before a run."""
        return True

    def schema(self, declared: Schema) -> Schema:
        """The columns a decode will give: `declared`, with ``"*"`` spread over the columns it does
        not name, or, where nothing is declared, what the files say of themselves (a sample, for
        text).

        Raises: UserError when a declared column is not in the data, as far as that can be known
        before reading.
        """
        ...

    def schema_state(self) -> Mapping[str, Snapshot]:
        """What `schema` found beside the types, for the run that resumes this one; plain values."""
        return {}

    def remarks(self) -> Sequence[str]:
        """What should be said of it when a run ends, each a sentence: what guesses have cost."""
        return ()

    def reads_output_of(self, sink: Sink) -> str | None:
        """Where the sink writes that this source reads, in words: what is written would come again,
        without an end. None where that cannot be."""
        return None

    def reads_file(self, file: Path) -> bool:
        """Whether it would read a file of this path, now or when it is started again."""
        return False

    def origin_columns(self) -> Collection[str]:
        """Columns that say where a row comes from, not what it is: of an equal row that comes again
        they are others."""
        return ()

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        """Before `schema`, in a run that resumes: what `schema_state` said in the first one; it
        holds, whatever would be found now."""
        return

    def parse_settings(self) -> Mapping[str, Any]:
        """How it reads cells, besides their types, as plain values: a model file keeps it, so that
        rows are read for predictions as those were that it learned."""
        return {}

    def use_parse_settings(self, parse_settings: Mapping[str, Any]) -> None:
        """Before `schema`: read cells as `parse_settings` of a source that a model learned from
        said. What this one's settings say, or what is not for its format, holds all the same."""
        return

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """The next rows of one partition: at least 1 and at most `max_rows`, of `max_bytes` or less
        (one larger row comes alone); None when nothing came within `timeout` seconds.

        Raises: EndOfStream after the last row of a bounded source; HeadraceError for what cannot be
        read on.
        """
        ...

    def seek(self, mark: Mark) -> None:
        """Go to `mark.positions`: the next `read` starts there. Partitions not in it start at their
        beginning."""
        ...

    def sample(self, rows: int, timeout: float) -> Sequence[Records]:
        """About so many rows, from all over what there is, for a look before a run; none where
        nothing comes within `timeout` seconds. Where it is read next is undefined: `seek`.
        """
        self.seek(Mark())
        pieces: list[Records] = []
        left, until = rows, time.monotonic() + timeout
        while left > 0 and time.monotonic() < until:
            try:
                records = self.read(left, SAMPLE_BYTES, min(timeout, 1.0))
            except EndOfStream:
                break
            if records is None and pieces:
                break
            if records is not None and len(records):
                pieces.append(records)
                left -= len(records)
        return pieces

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Settings that the files, or the environment, decide where they are left out: name ->
        value, as JSON has it. A change of one of these is a change; see `engine.types.changes`.
        Called after `schema`."""
        return {}

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Partition -> what it is known by beside its name, for a checkpoint; of those on the mark,
        as plain values."""
        return {}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Before the `seek` of a resumed run: what `identities` said. What has another name now
        keeps its partition, what has other content is none that was read.

        Raises: UserError where rows were lost, or would be read twice.
        """
        return

    def commit(self, mark: Mark) -> bool:
        """Note outside that everything before `mark` is done (a Kafka group's offsets); whether it
        is, or will be, noted. Files: nothing to do."""
        ...

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Partition -> records (or, for text files, bytes) behind the mark, read ahead or not;
        empty where unknown."""
        ...

    def progress(self, mark: Mark) -> float | None:
        """Share (0-1) of a bounded source that lies before `mark`; None for an endless one."""
        ...

    def close(self) -> None:
        """Release what is open. May be called twice."""
        ...


@runtime_checkable
class SharedSource(Source, Protocol):
    """A source whose partitions come and go while it is read, for instance because it shares them
    with other engines. A move is a stop: what is in flight is dropped, what is done is saved and
    committed, and reading goes on with the partitions that there are now, from that mark.

    The loop, on its own thread: when `is_rebalancing`, save and commit (unless `partitions_lost`:
    then go back to what was saved last), `release_partitions`, end the loader's threads,
    `resume_after_rebalance`, start them again.
    """

    @property
    def shares_partitions(self) -> bool:
        """Whether other engines may read what this one leaves."""
        ...

    @property
    def tracks_owners(self) -> bool:
        """Whether `was_committed` can tell: an engine with a state needs that where it shares."""
        ...

    def is_rebalancing(self) -> bool:
        """Whether partitions came or went since the last `resume_after_rebalance`."""
        ...

    def unavailable_reason(self) -> str | None:
        """Why it cannot give records now, in a few words; None where it can."""
        ...

    @property
    def partitions_lost(self) -> bool:
        """Whether partitions went before what was read of them could be committed: somebody else
        reads it again."""
        ...

    @property
    def is_revoking(self) -> bool:
        """Whether partitions wait to go until they are released."""
        ...

    def release_partitions(self) -> None:
        """Nothing of what was read is in use any more: the partitions may go."""
        ...

    def resume_after_rebalance(self, mark: Mark) -> Mark:
        """Where to go on with the partitions that there are now, each of them named. No thread
        reads meanwhile. Called before the first read too: what comes to a partition that nothing
        was read of is then the next run's."""
        ...

    def reset_offsets(self) -> None:
        """Forget where others say that this engine is (a group's offsets). Called before anything
        else, where the checkpoints are forgotten."""
        ...

    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        """Whether a checkpoint that ends at these positions was committed, so that nobody reads
        again what it contains; None where that cannot be told (any more). `match_identities` comes
        before."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Totals for the metrics: records ``skipped`` because they were gone before they were read,
        commits that were ``refused``."""
        ...

    def keep_alive(self) -> None:
        """Called about every second, on the thread that reads, while it waits for room downstream:
        says to others that this engine is alive. Returns at once."""
        ...


@runtime_checkable
class Format(Protocol):
    """Bytes to columns. Stateless. A poison record costs its own row, never the batch."""

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Columns of `schema` for the rows that fit, with the reserved columns `_partition` and
        `_position`; and the rows that do not, as `Rejects` of stage ``decode``. ``frame.height +
        sum(len(r)) == len(records)``.

        Infinity and NaN are values here; null is null. Nothing becomes null in silence.
        """
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A format that may wait for somebody else (a schema registry that is down)."""

    def interrupt(self) -> None:
        """Let a decode that waits end soon, with an error, and wait no more until `resume`. Any
        thread may call it; a loader that ends does."""
        ...

    def resume(self) -> None:
        """Decodes may wait again: a loader that starts says so."""
        ...


class Stage(Protocol):
    """One step of scrubbing. Learning and applying are different verbs, in this order: a batch is
    transformed with what was learned from the batches before it, then learned from. So no row is
    changed by rows that come after it.

    State is a value: `apply` makes a new one and rebinds it, never edits the old, so that
    `snapshot` is a reference.
    """

    name: str
    """Name in the pipeline file, in metrics and in marks."""

    def bind(self, schema: Schema) -> Schema:
        """Check that the columns it needs are there with types it can use; the schema after it.

        Raises: UserError naming the column, the stage and the nearest column that exists. Changes
        no state.
        """
        ...

    def apply(self, batch: Batch) -> Batch:
        """The batch after this stage; learns from the batch. Never edits its input in place."""
        ...

    def snapshot(self) -> Snapshot:
        """The state, O(1), or None for a stateless stage."""
        ...

    def restore(self, value: Snapshot) -> None:
        """Go back to a state that `snapshot` gave (perhaps in another process)."""
        ...

    def transforms(self) -> Sequence[Transform] | None:
        """What it does now, as transforms to write into a model file; None where it cannot be
        written so (it looks at other rows or changes their number)."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A model, first face."""

    features: Features

    def learn(self, batch: Batch) -> Step:
        """Score the rows, then learn from them. `batch.tensors` with target is required. An empty
        batch is legal."""
        ...

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Scores as in `Step.scores`, without learning."""
        ...

    def state_dict(self) -> dict[str, Snapshot]:
        """Everything a restart needs, weights, optimizer, replay and random state, as a plain value
        of numpy arrays (torch tensors become arrays)."""
        ...

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError when the state belongs to a model of another shape."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """A model, second face: raw columns in, the same columns and the model's out."""

    def bind(self, schema: Schema) -> None:
        """Raises: UserError when a column is not there, or not of a type that fits."""
        ...

    def collate(self, batch: Batch) -> Batch:
        """The batch with its `feed`. Called by the thread that prepares, so that the one which
        predicts need not."""
        ...

    def predict(self, batch: Batch) -> Batch:
        """The batch with the model's columns, without the rows that it cannot answer. Makes the
        feed where there is none."""
        ...


@runtime_checkable
class Sink(Protocol):
    """A place results go. Exactly once together with a checkpoint: what was written after the last
    `snapshot` that was saved is taken away again by `restore`.

    A sink may have `counts() -> Mapping[str, int]`, totals for the metrics. A class that inherits
    it gets the defaults of the methods that have one."""

    def on_wait(self, keep_alive: Callable[[], object]) -> None:
        """Called once, before anything is written. A sink that waits for somebody else, within a
        limit of its own, calls `keep_alive` every second meanwhile, on any thread: that is no
        stall."""
        return

    def bind(self, schema: Schema) -> None:
        """Say before the first row what could never be taken.

        Raises: UserError for a column that is of a type it cannot hold, or is not there.
        """
        return

    def probe(self) -> None:
        """Ask the place whether it would take rows, without writing one.

        Raises: UserError where it would not (a topic that is not there).
        """
        return

    def folders(self) -> Sequence[Path]:
        """Folders that are its own while it is used: a second engine that would write there is
        refused."""
        return ()

    def files(self) -> Sequence[Path]:
        """A path of each kind of file that it writes."""
        return ()

    def has_output(self) -> bool:
        """Whether there are results already that `restore(None)` would take away."""
        return False

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> Rejects | None:
        """Take the rows. They may be buffered, up to a bound; they are not safe yet. A frame of 0
        rows is legal. Rows that the place can never take are given back.

        Args:
            positions: where each row was read: the reserved columns, as many rows.
        """
        ...

    def flush(self) -> None:
        """Return only when everything written so far is safe (for a file: renamed into place and on
        the disk)."""
        ...

    def snapshot(self) -> Snapshot:
        """Cheap value that says what is safe. Call after `flush`."""
        ...

    def require(self, value: Snapshot) -> None:
        """Look whether `restore` could go on from that snapshot, and change nothing.

        Raises: UserError where it could not, as where results are gone.
        """
        return

    def restore(self, value: Snapshot) -> None:
        """Take away what lies after that snapshot; None takes away everything this pipeline wrote
        here."""
        ...

    def close(self) -> None:
        """Flush nothing, release what is open; what was not flushed is gone. May be called
        twice."""
        ...


@runtime_checkable
class Buffered(Protocol):
    """A component that keeps bytes in this process: a client that reads ahead, a sink that gathers
    rows. It counts in the one budget of the pipeline."""

    @property
    def nbytes(self) -> int:
        """What it holds now. Any thread may ask; neither waits nor raises."""
        ...

    def limit_memory(self, nbytes: int) -> None:
        """Hold no more than that, unless the settings say a number of their own. Called once,
        before anything is read or written."""
        ...
