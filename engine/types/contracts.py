"""What a source, a format, a stage, a learner, a predictor and a sink are.

A class inherits its contract. What every one must have is abstract; everything else has a default
here, so whoever calls a component calls its method and never asks whether it is there.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.errors import UserError
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


class Source(ABC):
    """A place rows come from. Bytes and positions only: it neither decodes nor cleans.

    Built as ``Kind(settings)`` with its own nested ``Settings``. Leaves out: batching by rows (the
    loader's), retries of a decode (the format's), metrics (the loop's). Called from one thread, the
    loader's fetch thread, but for `commit`, `lag`, `progress` and `identities`, which the main
    thread calls.
    """

    settings: Any = None
    """Its own ``Settings``."""
    format: Format
    """How its values are decoded; the prepare thread calls it."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def epochs(self) -> int:
        """How often every row is read."""
        return 1

    def keep_metadata(self) -> None:
        """Read records with their keys and headers from now on, where they have any: dead letters
        hold them. Called before the first read."""
        return

    def unbounded(self) -> bool:
        """Whether rows may come at any time, however long none has come: a batch then does not wait
        for ever to fill."""
        return False

    def can_be_reread(self) -> bool:
        """Whether what is read can be read again, by a look before a run."""
        return True

    @abstractmethod
    def schema(self, declared: Schema) -> Schema:
        """The columns a decode will give: `declared`, with ``"*"`` spread over the columns it does
        not name, or, where nothing is declared, what the files say of themselves (a sample, for
        text).

        Raises: UserError when a declared column is not in the data, as far as that can be known
        before reading.
        """

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

    @abstractmethod
    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """The next rows of one partition: at least 1 and at most `max_rows`, of `max_bytes` or less
        (one larger row comes alone); None when nothing came within `timeout` seconds.

        Raises: EndOfStream after the last row of a bounded source; HeadraceError for what cannot be
        read on.
        """

    @abstractmethod
    def seek(self, mark: Mark) -> None:
        """Go to `mark.positions`: the next `read` starts there. Partitions not in it start at their
        beginning."""

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
        is, or will be, noted."""
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Partition -> records (or, for text files, bytes) behind the mark, read ahead or not;
        empty where unknown."""
        return {}

    def progress(self, mark: Mark) -> float | None:
        """Share (0-1) of a bounded source that lies before `mark`; None for an endless one."""
        return None

    def close(self) -> None:
        """Release what is open. May be called twice."""
        return


class SharedSource(Source):
    """A source whose partitions come and go while it is read, for instance because it shares them
    with other engines. A move is a stop: what is in flight is dropped, what is done is saved and
    committed, and reading goes on with the partitions that there are now, from that mark.

    The loop, on its own thread: when `is_rebalancing`, save and commit (unless `partitions_lost`:
    then go back to what was saved last), `release_partitions`, end the loader's threads,
    `resume_after_rebalance`, start them again.
    """

    @property
    @abstractmethod
    def shares_partitions(self) -> bool:
        """Whether other engines may read what this one leaves."""

    @property
    @abstractmethod
    def tracks_owners(self) -> bool:
        """Whether `was_committed` can tell: an engine with a state needs that where it shares."""

    @abstractmethod
    def is_rebalancing(self) -> bool:
        """Whether partitions came or went since the last `resume_after_rebalance`."""

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """Why it cannot give records now, in a few words; None where it can."""

    @property
    @abstractmethod
    def partitions_lost(self) -> bool:
        """Whether partitions went before what was read of them could be committed: somebody else
        reads it again."""

    @property
    @abstractmethod
    def is_revoking(self) -> bool:
        """Whether partitions wait to go until they are released."""

    @abstractmethod
    def release_partitions(self) -> None:
        """Nothing of what was read is in use any more: the partitions may go."""

    @abstractmethod
    def resume_after_rebalance(self, mark: Mark) -> Mark:
        """Where to go on with the partitions that there are now, each of them named. No thread
        reads meanwhile. Called before the first read too: what comes to a partition that nothing
        was read of is then the next run's."""

    @abstractmethod
    def reset_offsets(self) -> None:
        """Forget where others say that this engine is (a group's offsets). Called before anything
        else, where the checkpoints are forgotten."""

    @abstractmethod
    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        """Whether a checkpoint that ends at these positions was committed, so that nobody reads
        again what it contains; None where that cannot be told (any more). `match_identities` comes
        before."""

    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Totals for the metrics: records ``skipped`` because they were gone before they were read,
        commits that were ``refused``."""

    @abstractmethod
    def keep_alive(self) -> None:
        """Called about every second, on the thread that reads, while it waits for room downstream:
        says to others that this engine is alive. Returns at once."""


class Format(ABC):
    """Bytes to columns. Stateless. A poison record costs its own row, never the batch."""

    @abstractmethod
    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Columns of `schema` for the rows that fit, with the reserved columns `_partition` and
        `_position`; and the rows that do not, as `Rejects` of stage ``decode``. ``frame.height +
        sum(len(r)) == len(records)``.

        Infinity and NaN are values here; null is null. Nothing becomes null in silence.
        """

    def schema(self, declared: Schema) -> Schema | None:
        """The columns that a decode is to give, as `Source.schema`; None where the format has no
        say about them.

        Raises: UserError for columns it cannot give.
        """
        return None

    def interrupt(self) -> None:
        """Let a decode that waits for somebody else (a schema registry that is down) end soon, with
        an error, and wait no more until `resume`. Any thread may call it; a loader that ends
        does."""
        return

    def resume(self) -> None:
        """Decodes may wait again: a loader that starts says so."""
        return


class Stage(ABC):
    """One step of scrubbing. Learning and applying are different verbs, in this order: a batch is
    transformed with what was learned from the batches before it, then learned from. So no row is
    changed by rows that come after it.

    State is a value: `apply` makes a new one and rebinds it, never edits the old, so that
    `snapshot` is a reference.

    Built as ``Kind(name, settings)`` with its own nested ``Settings``.

    Attributes:
        name: in the pipeline file, in metrics and in marks.
        settings: its own.
        single_pass: it makes sense only of rows that come once: read again, all would look like
            copies, or late.
    """

    name: str
    settings: Any = None
    single_pass: ClassVar[bool] = False

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings

    @property
    def where(self) -> str:
        """How error sentences name the stage."""
        return f"[scrub.{self.name}]"

    def bind(self, schema: Schema) -> Schema:
        """Check that the columns it needs are there with types it can use; the schema after it.

        Raises: UserError naming the column, the stage and the nearest column that exists. Changes
        no state.
        """
        return schema

    @abstractmethod
    def apply(self, batch: Batch) -> Batch:
        """The batch after this stage; learns from the batch. Never edits its input in place."""

    def snapshot(self) -> Snapshot:
        """The state, O(1), or None for a stateless stage."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Go back to a state that `snapshot` gave (perhaps in another process)."""
        assert value is None, "a stage without a state was given one"

    def transforms(self) -> Sequence[Transform] | None:
        """What it does now, as transforms to write into a model file; None where it cannot be
        written so (it looks at other rows or changes their number)."""
        return None

    @property
    def scaled(self) -> Sequence[str]:
        """Columns that it puts on a scale which moves with what it learns: it notes that scale on
        the batch (`Batch.scales`)."""
        return ()

    def vocabulary_sizes(self) -> Mapping[str, int]:
        """Column -> how many codes it has, of those that this stage encodes."""
        return {}

    def encoders(self) -> Mapping[str, Callable[[pl.Series], NDArray[np.int64]]]:
        """Column of lists -> what numbers its single tokens, as in the lists; 0 is unknown."""
        return {}

    def digest(self) -> str | None:
        """Of a file that it reads: a checkpoint goes on with the same one only."""
        return None

    def remarks(self) -> Sequence[str]:
        """What should be said of it when a run ends, each a sentence."""
        return ()


class GraphBuilder(Protocol):
    """What a learner writes its nodes with; see `models.export.onnx_graph.Graph`. A value is known
    by its name."""

    scope: str
    """Put before the names of what is made from now on."""

    def constant(self, value: Any, hint: str = "const") -> str:
        """A constant tensor."""
        ...

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output."""
        ...

    def ops(
        self, op_type: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node with several outputs."""
        ...


class Augmenter(Protocol):
    """What a learner learns from in place of the rows; see `models.augment.Augmentation`."""

    def __call__(
        self, tensors: Tensors, number: int, step: int = 0
    ) -> tuple[Tensors, dict[str, int]]:
        """The rows to learn from, and how many each augment changed.

        Args:
            number: of what was learned before, in batches or rows.
            step: within the batch.
        """
        ...


class Learner(ABC):
    """A model, first face. Built as ``Kind(settings, training, features)`` with its own nested
    ``Settings`` and ``Training``.

    Attributes:
        settings: its own keys of ``[model]``.
        training: ``[train]``.
        features: what it reads.
        device: where it computes.
        soft_targets: it learns targets between classes.
        learns_by_batch: what it learns depends on how rows come in batches.
        sets_threads: its Training has ``threads``, of the arithmetic.
    """

    settings: Any = None
    training: Any = None
    features: Features
    device: str = "cpu"
    soft_targets: ClassVar[bool] = False
    learns_by_batch: ClassVar[bool] = True
    sets_threads: ClassVar[bool] = False

    def __init__(self, settings: Any, training: Any, features: Features) -> None:
        self.settings = settings
        self.training = training
        self.features = features

    @classmethod
    def device_of(cls, training: Any) -> str:
        """Where a learner with this ``[train]`` computes: its key ``device``, or the class's own.
        Asked before there is one."""
        return str(training.model_dump().get("device", cls.device))

    @abstractmethod
    def learn(self, batch: Batch) -> Step:
        """Score the rows, then learn from them. `batch.tensors` with target is required. An empty
        batch is legal."""

    @abstractmethod
    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Scores as in `Step.scores`, without learning."""

    @abstractmethod
    def state_dict(self) -> dict[str, Snapshot]:
        """Everything a restart needs, weights, optimizer, replay and random state, as a plain value
        of numpy arrays (torch tensors become arrays)."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError when the state belongs to a model of another shape."""

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write what `predict` does into an ONNX graph; the name of the scores, float32, shape (n,)
        or (n, k).

        Args:
            numeric: name of a float32 tensor, shape (n, d).
            categories: name of an int64 tensor, shape (n, c).

        Raises: UserError where it cannot.
        """
        raise UserError(
            f"A model of {type(self).__name__} cannot be exported: it has no method 'build'."
        )

    def augment_with(self, augmentation: Augmenter) -> None:
        """Learn from what this makes of the rows, from now on; score and keep the rows themselves.

        Raises: UserError where it cannot.
        """
        raise UserError(
            f"[augment] needs a learner that augments, and {type(self).__name__} has no method "
            "'augment_with': take [augment] out, or see models/README.md."
        )

    def memory(self) -> Mapping[str, int]:
        """Component -> bytes, for /metrics; ``replay`` is counted within the budget."""
        return {}

    @property
    def replay_bytes(self) -> int:
        """Bytes of the rows it keeps to learn again, once they are all there."""
        return 0

    @property
    def unwrapped(self) -> Learner:
        """The learner inside, where this one stands around another."""
        return self

    @property
    def parameters_count(self) -> int:
        """Number of weights."""
        return 0

    def remarks(self) -> Sequence[str]:
        """What should be said of it when a run ends, each a sentence."""
        return ()


class Predictor(ABC):
    """A model, second face: raw columns in, the same columns and the model's out."""

    @abstractmethod
    def bind(self, schema: Schema) -> None:
        """Raises: UserError when a column is not there, or not of a type that fits."""

    def collate(self, batch: Batch) -> Batch:
        """The batch with its `feed`. Called by the thread that prepares, so that the one which
        predicts need not."""
        return batch

    @abstractmethod
    def predict(self, batch: Batch) -> Batch:
        """The batch with the model's columns, without the rows that it cannot answer. Makes the
        feed where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """Results and positions, committed together.

    Attributes:
        commit: commit what was written, and that everything before the mark is done; whether it
            was.
        every: seconds from one commit to the next.
    """

    commit: Callable[[Mark], bool]
    every: float


class Sink(ABC):
    """A place results go. Exactly once together with a checkpoint, where `snapshot` and `restore`
    say so: what was written after the last `snapshot` that was saved is taken away again by
    `restore`. Without them rows come at least once: those after a checkpoint stand there again.

    Built as ``Kind(settings)`` with its own nested ``Settings``.
    """

    settings: Any = None
    """Its own ``Settings``."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def transaction(self, source: Source) -> Transaction | None:
        """What commits its rows together with the positions of the source; None where each commits
        by itself.

        Raises: UserError where it should, and the two have no transaction in common.
        """
        return None

    def join_transaction(self, sink: Sink | None) -> None:
        """Write within the transactions of another sink, where it has any; dead letters do."""
        return

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

    @abstractmethod
    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> Rejects | None:
        """Take the rows. They may be buffered, up to a bound; they are not safe yet. A frame of 0
        rows is legal. Rows that the place can never take are given back.

        Args:
            positions: where each row was read: the reserved columns, as many rows.
        """

    @abstractmethod
    def flush(self) -> None:
        """Return only when everything written so far is safe (for a file: renamed into place and on
        the disk)."""

    def snapshot(self) -> Snapshot:
        """Cheap value that says what is safe. Call after `flush`."""
        return None

    def require(self, value: Snapshot) -> None:
        """Look whether `restore` could go on from that snapshot, and change nothing.

        Raises: UserError where it could not, as where results are gone.
        """
        return

    def restore(self, value: Snapshot) -> None:
        """Take away what lies after that snapshot; None takes away everything this pipeline wrote
        here."""
        return

    def close(self) -> None:
        """Flush nothing, release what is open; what was not flushed is gone. May be called
        twice."""
        return

    def counts(self) -> Mapping[str, int]:
        """Totals for the metrics, by name."""
        return {}


class Buffered(ABC):
    """A component that keeps bytes in this process: a client that reads ahead, a sink that gathers
    rows. It counts in the one budget of the pipeline."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What it holds now. Any thread may ask; neither waits nor raises."""

    @abstractmethod
    def limit_memory(self, nbytes: int) -> None:
        """Hold no more than that, unless the settings say a number of their own. Called once,
        before anything is read or written."""
