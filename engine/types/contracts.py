"""The contracts: Source, Format, Stage, Learner, Predictor, Sink.

A class inherits its contract. What every one must have is abstract; everything else has a default
here, so whoever calls a component calls its method and never asks whether it is there.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.errors import HeadraceError, UserError
from engine.types.batch import Batch
from engine.types.features import Features, KeyedState
from engine.types.records import EndOfStream, Mark, Records, Rejects, Snapshot
from engine.types.scale import Scales
from engine.types.schema import Schema
from engine.types.tensors import Tensors
from engine.types.transforms import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The result of learning one batch.

    Attributes:
        scores: the model's output for each row BEFORE it learned from it (test-then-train). Shape
            (n,) float64: the value (regression) or the probability of class 1 (binary); (n, k):
            class probabilities (multiclass), or the values of several targets or quantiles.
        loss: mean training loss of the steps on new rows; nan without a step.
        steps: optimizer steps taken, replay included; 0 while rows wait to fill one.
        skipped: why nothing was learned (``non_finite``, ``empty``), or None.
        not_learned: rows that cannot be learned (their loss is not finite), bool, shape (n,); None
            if there are none.
        scored_only: rows that were scored and deliberately not learned.
        augmented: name of an augment -> rows it changed before they were learned, replayed ones
            included.
        challenges: ``begun``, ``won`` or ``dropped`` -> number of challenges.
        baselines: each of `Learner.baselines` -> the class it predicts for each row before it was
            learned, -1 for none, shape (n,).
        counts: what else is counted, in words -> number.
    """

    scores: NDArray[np.float64]
    loss: float
    steps: int = 1
    skipped: str | None = None
    not_learned: NDArray[np.bool_] | None = None
    scored_only: int = 0
    augmented: Mapping[str, int] = field(default_factory=dict)
    challenges: Mapping[str, int] = field(default_factory=dict)
    baselines: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Step]) -> Step:
        """Return the step of a batch from those of its parts."""
        if len(parts) == 1:
            return parts[0]
        losses = [(part.loss, len(part.scores)) for part in parts if math.isfinite(part.loss)]
        rows = sum(rows for _, rows in losses)
        augmented: Counter[str] = Counter()
        challenges: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for part in parts:
            augmented.update(part.augmented)
            challenges.update(part.challenges)
            counts.update(part.counts)
        not_learned = np.concatenate([part.refused for part in parts])
        names = dict.fromkeys(name for part in parts for name in part.baselines)
        return cls(
            scores=np.concatenate([part.scores for part in parts]),
            loss=sum(loss * rows for loss, rows in losses) / rows if rows else math.nan,
            steps=sum(part.steps for part in parts),
            skipped="non_finite" if not_learned.all() else None,
            not_learned=not_learned if not_learned.any() else None,
            scored_only=sum(part.scored_only for part in parts),
            augmented=augmented,
            challenges=challenges,
            baselines={
                name: np.concatenate(
                    [part.baselines.get(name, np.full(len(part.scores), -1)) for part in parts]
                )
                for name in names
            },
            counts=counts,
        )

    @property
    def refused(self) -> NDArray[np.bool_]:
        """Which rows should have been learned but were not, shape (n,)."""
        if self.not_learned is not None:
            return self.not_learned
        return np.full(len(self.scores), self.skipped not in (None, "empty"))

    @classmethod
    def empty(cls, scores: NDArray[np.float64]) -> Step:
        """Return the result of a batch without rows, whose scores are these."""
        return cls(scores=scores, loss=math.nan, steps=0, skipped="empty")


SAMPLE_BYTES = 64 << 20
"""The most bytes of one piece of a sample."""


UNEXPLAINED = ""
"""The key of `Learner.attributions` for what no feature explains."""


class Source(ABC):
    """A place to read rows from. It gives bytes and positions; it neither decodes nor cleans.

    Built as ``Kind(settings)`` with its own nested ``Settings``. It leaves batching to the loader,
    retries of a decode to the format, and metrics to the loop. The loader's fetch thread calls it,
    except `commit`, `lag`, `progress` and `identities`, which the main thread calls.
    """

    settings: Any = None
    """Its ``Settings``."""
    format: Format
    """The format of its values; the prepare thread calls it."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def epochs(self) -> int:
        """The number of times every row is read."""
        return 1

    def keep_metadata(self) -> None:
        """Read records with their keys and headers from now on, if they have any, for dead
        letters. Called before the first read."""
        return

    def unbounded(self) -> bool:
        """Return whether rows may still come after any pause. If so, a batch does not wait
        indefinitely to fill."""
        return False

    def can_be_reread(self) -> bool:
        """Return whether rows can be read again, so that a check may read a sample."""
        return True

    @abstractmethod
    def schema(self, declared: Schema) -> Schema:
        """Return the columns a decode will give: `declared`, with ``"*"`` expanded to the
        columns it does not name; or, without declarations, the columns of the data (inferred
        from a sample, for text).

        Raises: UserError if a declared column is known to be missing before reading.
        """

    def schema_state(self) -> Mapping[str, Snapshot]:
        """Return what `schema` found besides types, as plain values, for a run that resumes this
        one."""
        return {}

    def found(self) -> str:
        """Return how rows were found to be written, as settings that are not set; empty if
        nothing was found. Called after `schema`."""
        return ""

    def remarks(self) -> Sequence[str]:
        """Return sentences for the end of a run, for instance what inferred types cost."""
        return ()

    def reads_output_of(self, sink: Sink) -> str | None:
        """Return, in words, where the sink writes that this source reads, which would make the
        run endless; None if it does not."""
        return None

    def reads_file(self, file: Path) -> bool:
        """Return whether it reads a file at this path, now or after a restart."""
        return False

    def origin_columns(self) -> Collection[str]:
        """Return the columns that name a row's origin, not its content: they differ between
        equal rows."""
        return ()

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        """Restore the `schema_state` of the first run; it takes precedence over what would be
        found now. Called before `schema` in a run that resumes."""
        return

    def parse_settings(self) -> Mapping[str, Any]:
        """Return how cells are parsed, besides their types, as plain values. A model file stores
        them, so that predictions parse rows like the training did."""
        return {}

    def use_parse_settings(self, parse_settings: Mapping[str, Any]) -> None:
        """Parse cells with the `parse_settings` of the source a model learned from. Its own
        settings take precedence; keys for other formats are ignored. Called before `schema`; may
        replace `format`."""
        return

    @abstractmethod
    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """Return the next rows of one partition: 1 to `max_rows`, of at most `max_bytes` (one
        larger row comes alone); None if nothing came within `timeout` seconds.

        Raises: EndOfStream after the last row of a bounded source; HeadraceError if reading cannot
        continue.
        """

    @abstractmethod
    def seek(self, mark: Mark) -> None:
        """Go to `mark.positions`, where the next `read` starts. Other partitions start at their
        beginning."""

    def sample(self, rows: int, timeout: float) -> Sequence[Records]:
        """Return about `rows` rows from all parts of the data, for a check; none if nothing
        comes within `timeout` seconds. The position afterwards is undefined: call `seek`."""
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
        """Return the values of settings that files or the environment decide when they are not
        set: name -> JSON value. A change of one counts as a changed setting; see
        `engine.types.changes`. Called after `schema`."""
        return {}

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return partition -> what identifies it besides its name, as plain values, for a
        checkpoint; for partitions on the mark."""
        return {}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Match the current partitions to the `identities` of a checkpoint: a renamed one keeps
        its partition; one with other content is new. Called before the `seek` of a resumed run.

        Raises: UserError if rows were lost or would be read twice.
        """
        return

    def commit(self, mark: Mark) -> bool:
        """Record outside the engine that everything before `mark` is done (a Kafka group's
        offsets); return whether it is, or will be, recorded."""
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Return partition -> records (or, for text files, bytes) after the mark, read ahead or
        not; empty if unknown."""
        return {}

    def lag_unit(self, partition: str) -> str:
        """Return what `lag` counts of a partition: records, rows or bytes."""
        return "records"

    def progress(self, mark: Mark) -> float | None:
        """Return the share (0-1) of a bounded source before `mark`; None for an endless one."""
        return None

    def close(self) -> None:
        """Release all resources. May be called twice."""
        return


class SharedSource(Source):
    """A source whose partitions come and go while it is read, for instance because it shares
    them with other engines. A move is a stop: what is in flight is dropped, finished work is
    saved and committed, and reading resumes with the current partitions from that mark.

    When `is_rebalancing`, the loop saves and commits (or, if `partitions_lost`, restores the last
    checkpoint), calls `release_partitions`, ends the loader's threads, calls
    `resume_after_rebalance` and starts them again.
    """

    @property
    @abstractmethod
    def shares_partitions(self) -> bool:
        """Whether other engines may read the remaining partitions."""

    @property
    @abstractmethod
    def tracks_owners(self) -> bool:
        """Whether `was_committed` is certain; required of an engine with state that shares
        partitions."""

    @abstractmethod
    def is_rebalancing(self) -> bool:
        """Return whether partitions came or went since the last `resume_after_rebalance`."""

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """Return why it cannot give records now, in a few words; None if it can."""

    @property
    @abstractmethod
    def partitions_lost(self) -> bool:
        """Whether partitions were lost before their rows could be committed; another engine
        reads them again."""

    @property
    @abstractmethod
    def is_revoking(self) -> bool:
        """Whether partitions must be released before they are moved."""

    @abstractmethod
    def release_partitions(self) -> None:
        """Release the partitions: none of their rows is in use any more."""

    @abstractmethod
    def resume_after_rebalance(self, mark: Mark) -> Mark:
        """Return the mark to resume from with the current partitions, naming each of them. No
        thread reads meanwhile. Also called before the first read, so that records which come to
        an unread partition belong to the next run."""

    @abstractmethod
    def reset_offsets(self) -> None:
        """Delete the committed offsets outside the engine (a group's). Called before anything
        else when the checkpoints are deleted."""

    @abstractmethod
    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        """Return whether a checkpoint that ends at these positions was committed, so that no
        other engine reads its rows again; None if unknown. Called after `match_identities`."""

    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Return totals for the metrics: records ``skipped`` because they were gone before they
        were read, commits that were ``refused``."""

    def unread(self, mark: Mark) -> Mapping[str, int]:
        """Return partition -> records after the mark that `read` will give, as far as known: 0
        where a partition has no more now. Called on the thread that reads."""
        return self.lag(mark)

    @abstractmethod
    def keep_alive(self) -> None:
        """Tell others that this engine is alive; return at once. Called about every second on
        the thread that reads, while it waits for room downstream."""


class Format(ABC):
    """Decodes bytes to columns. Stateless. A record that cannot be decoded is rejected alone;
    the rest of its batch is kept."""

    @abstractmethod
    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Return the columns of `schema` for the rows that fit, with the reserved columns
        `_partition` and `_position`; and the others as `Rejects` of stage ``decode``.
        ``frame.height + sum(len(r)) == len(records)``.

        Infinity and NaN are values; null is null. No value becomes null silently.
        """

    def schema(self, declared: Schema) -> Schema | None:
        """Return the columns of a decode, as `Source.schema`; None if the format does not decide
        them.

        Raises: UserError for columns it cannot give.
        """
        return None

    def interrupt(self) -> None:
        """Make a decode that waits for another service (a schema registry) end soon with an
        error, and wait no more until `resume`. Any thread may call it; a closing loader does."""
        return

    def resume(self) -> None:
        """Allow decodes to wait again. A starting loader calls it."""
        return


class Stage(ABC):
    """One step of scrubbing. A batch is transformed with what earlier batches taught, then
    learned from, so no row is changed by later rows. Learning and applying are different verbs.

    State is a value: `apply` replaces the state and never edits it, so `snapshot` is a reference.

    Built as ``Kind(name, settings)`` with its own nested ``Settings``.

    Attributes:
        name: in the pipeline file, in metrics and in marks.
        settings: its own.
        single_pass: it requires that rows come only once: read again, all would look like
            duplicates, late, or their own past.
        learns_by_batch: what it does to a row depends on batch boundaries.
        bound: the columns before and after it, as `bind` was given and returned them; set by the
            engine.
    """

    name: str
    settings: Any = None
    single_pass: ClassVar[bool] = False
    learns_by_batch: ClassVar[bool] = True
    bound: tuple[Schema, Schema] | None = None

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings

    @property
    def where(self) -> str:
        """How error sentences name the stage."""
        return f"[scrub.{self.name}]"

    def bind(self, schema: Schema) -> Schema:
        """Check that its columns exist with usable types; return the schema after the stage.

        Raises: UserError naming the column, the stage and the nearest existing column. Changes no
        state.
        """
        return schema

    @abstractmethod
    def apply(self, batch: Batch) -> Batch:
        """Return the batch after this stage; learn from the batch. Never edits its input in
        place."""

    def snapshot(self) -> Snapshot:
        """Return the state, in O(1); None for a stateless stage."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot` (perhaps of another process)."""
        assert value is None, "a stage without a state was given one"

    def transforms(self) -> Sequence[Transform] | None:
        """Return its current effect as transforms for a model file; None if that is impossible
        (it reads other rows or changes their number)."""
        return None

    @property
    def scaled(self) -> Sequence[str]:
        """The columns that it puts on a scale, which it records on the batch (`Batch.scales`)."""
        return ()

    @property
    def moving(self) -> Sequence[str]:
        """Those of `scaled` whose scale later rows may move."""
        return self.scaled

    def vocabulary_sizes(self) -> Mapping[str, int]:
        """Return column -> number of codes, for columns this stage encodes."""
        return {}

    def encoders(self) -> Mapping[str, Callable[[pl.Series], NDArray[np.int64]]]:
        """Return column of lists -> function that encodes single tokens as in the lists; 0 is
        unknown."""
        return {}

    def digest(self) -> str | None:
        """Return the digest of a file it reads; a checkpoint resumes only with the same one."""
        return None

    def remarks(self) -> Sequence[str]:
        """Return sentences for the end of a run."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphColumn:
    """An image, list or array column in a graph, by the names of its tensors.

    Attributes:
        values: images: (n, channels, height, width), uint8 or float32; lists: (n, length), int64
            ids or float32, 0 as padding; arrays: (n, length, width), float32, 0 for an absent row.
        mask: lists and arrays: (n, length), bool, true where there is a value; "" for images.
        dtype: of the values, as numpy calls it.
        length: lists and arrays: the length of all of them, if it is always the same.
    """

    values: str
    mask: str
    dtype: str
    length: int | None = None


class GraphBuilder(Protocol):
    """The builder with which a learner writes its nodes; see `models.export.onnx_graph.Graph`.
    Values are identified by name."""

    scope: str
    """The prefix of new names."""
    scales: Scales
    """What stages have scaled the numeric features with that the graph gets, as of now."""

    def constant(self, value: Any, hint: str = "const") -> str:
        """Add a constant tensor; return its name."""
        ...

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; return its name."""
        ...

    def ops(
        self, op_type: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs; return their names."""
        ...

    def column(self, name: str) -> GraphColumn:
        """Return an image, list or array column of the model."""
        ...

    def state_input(self, width: int) -> str:
        """Add the input with what each row's key carries, (n, width) float32; return its name."""
        ...

    def state_output(self, name: str) -> None:
        """Take a value, (n, width) float32, as what each row's key carries after it."""
        ...

    def vector_output(self, name: str) -> None:
        """Take a value, (n, width) float32, as the vector of each row, which is an output too."""
        ...

    def append(self, model: Any, inputs: Mapping[str, str]) -> list[str]:
        """Append the nodes of a whole ONNX model (`onnx.ModelProto`).

        Args:
            inputs: input of the model -> name of the value it gets.

        Returns: the names of its outputs.
        """
        ...


class Augmenter(Protocol):
    """The augmentation of a learner; see `models.augment.Augmentation`."""

    def __call__(
        self, tensors: Tensors, number: int, step: int = 0
    ) -> tuple[Tensors, dict[str, int]]:
        """Return the augmented rows, and how many rows each augment changed.

        Args:
            number: batches or rows learned before.
            step: within the batch.
        """
        ...


class Learner(ABC):
    """A model in training. Built as ``Kind(settings, training, features)`` with its own nested
    ``Settings`` and ``Training``.

    Attributes:
        settings: its own keys of ``[model]``.
        training: ``[train]``.
        features: the columns it reads.
        device: the device it computes on.
        soft_targets: it can learn targets between classes.
        learns_by_batch: its weights depend on batch boundaries.
        sets_threads: its Training has a key ``threads``.
        reads_inputs: its features are those of `named_inputs`, not those that the keys of
            ``[model]`` name.
        grows: whether it can learn classes that appear while it runs: ``never``, ``asked``
            (`classes` = "grow"), or ``always`` where no classes are given.
        predicts_several: whether it can learn several targets of a regression at once.
        baselines: names of what it compares itself with, for a task of classes.
    """

    settings: Any = None
    training: Any = None
    features: Features
    device: str = "cpu"
    soft_targets: ClassVar[bool] = False
    learns_by_batch: ClassVar[bool] = True
    sets_threads: ClassVar[bool] = False
    reads_inputs: ClassVar[bool] = False
    grows: ClassVar[Literal["never", "asked", "always"]] = "never"
    predicts_several: ClassVar[bool] = False
    baselines: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any, training: Any, features: Features) -> None:
        self.settings = settings
        self.training = training
        self.features = features

    @classmethod
    def lowest_label(cls, settings: Any, training: Any) -> float:
        """Return the smallest number that it can learn, of a regression."""
        return -math.inf

    @classmethod
    def deviance_power(cls, training: Any) -> float | None:
        """Return the power of the mean that the variance of the target follows (Tweedie; 1 is
        Poisson), if its predictions are means of counts or amounts; they are judged by that."""
        return None

    @classmethod
    def quantiles(cls, training: Any) -> tuple[float, ...]:
        """Return the quantiles that it predicts of a regression, as `Features.quantiles`; none if
        it predicts one value. The scores of a row rise with them."""
        return ()

    @classmethod
    def quantile(cls, training: Any) -> float | None:
        """Return the quantile that the one value of a regression is, as `Features.quantile`; None
        where it is a mean. `interpret` judges its calibration by that."""
        return None

    @classmethod
    def vector_width(cls, settings: Any, training: Any) -> int:
        """Return the numbers of the vector that it answers for each row beside its class, as
        `Features.vector_width`; 0 if it answers none."""
        return 0

    @classmethod
    def only_regression(cls, training: Any) -> bool:
        """Return whether its settings say that numbers are predicted, as a loss does that only a
        regression has: then no labels are looked at to find the task."""
        return False

    @classmethod
    def device_of(cls, training: Any) -> str:
        """Return the device of a learner with this ``[train]``: its key ``device``, or the
        class's own. Called before a learner is built."""
        return str(training.model_dump().get("device", cls.device))

    @classmethod
    def named_inputs(cls, settings: Any) -> Mapping[str, Sequence[str] | None]:
        """Return the inputs of a network -> their columns, names or globs; None: the column of that
        name, or those of ``[model] numeric`` or ``categories``. Called before a learner is built.

        Args:
            settings: its own keys of ``[model]``.
        """
        return {}

    @classmethod
    def named_state(cls, settings: Any, schema: Schema) -> KeyedState | None:
        """Return the state that it carries from row to row of a key, with names or globs of the
        key's columns; None if each row stands alone. Called before a learner is built.

        Args:
            settings: its own keys of ``[model]``.
            schema: the columns before the stages that a model file contains.
        """
        return None

    @abstractmethod
    def learn(self, batch: Batch) -> Step:
        """Score the rows, then learn from them. Requires `batch.tensors` with target. An empty
        batch is legal. Where it `scores_in_turn`, it only scores rows that `Tensors.learned`
        leaves out."""

    @abstractmethod
    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return scores like `Step.scores`, without learning."""

    @abstractmethod
    def state_dict(self) -> dict[str, Snapshot]:
        """Return everything a restart needs (weights, optimizer, replay, random state) as a
        plain value of numpy arrays (torch tensors become arrays)."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a state. Raises: UserError if it belongs to a model of another shape."""

    @property
    def scores_in_turn(self) -> bool:
        """Whether `learn` takes `Tensors.learned`: a row that is only scored gets the score of the
        model as it is at the row's place, and changes nothing. Others are given the rows to learn
        alone: where they learn by the batch, the rest is scored before it; else they are given
        the rows between two that are only scored."""
        return False

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        """Tell these classes apart from now on: `features.classes` are these, in this order. Called
        between batches, if it `grows`.

        Args:
            sources: for each class its number before, -1 for a new one. What was learned of a class
                that is not there is forgotten.
        """
        raise NotImplementedError(f"{type(self).__name__} grows and has no method 'set_classes'")

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph; return the name of the scores,
        float32, shape (n,) or (n, k).

        Args:
            numeric: name of a float32 tensor, shape (n, d).
            categories: name of an int64 tensor, shape (n, c).

        Raises: UserError if it cannot.
        """
        raise UserError(
            f"A model of {type(self).__name__} cannot be exported: it has no method 'build'."
        )

    def torch_body(self) -> Mapping[str, str] | None:
        """Return its network as properties of a model file, to be run by torch where `build` cannot
        write it as ONNX; None if that is impossible."""
        return None

    def attributions(self, tensors: Tensors) -> Mapping[str, NDArray[np.float64]]:
        """Return feature -> by how much it moves each row's score away from that of a mean row,
        shape (n,), and `UNEXPLAINED` -> what remains; {} if it cannot tell. Learns nothing.

        The score is the value (regression; of quantiles the median), the log odds of class 1
        (binary) or the log probability of the predicted class (multiclass).
        """
        return {}

    def augment_with(self, augmentation: Augmenter) -> None:
        """Learn from augmented rows from now on; score and keep the original rows.

        Raises: UserError if it cannot.
        """
        raise UserError(
            f"[augment] needs a learner that augments, and {type(self).__name__} has no method "
            "'augment_with': take [augment] out, or see models/README.md."
        )

    def memory(self) -> Mapping[str, int]:
        """Return component -> bytes, for /metrics; ``replay`` counts against the budget."""
        return {}

    def expert_loads(self) -> Mapping[str, Sequence[float]]:
        """Return layer -> each expert's share of the vectors it was trained with lately, for
        /metrics; empty without a mixture of experts."""
        return {}

    @property
    def replay_bytes(self) -> int:
        """The bytes of a full replay."""
        return 0

    @property
    def unwrapped(self) -> Learner:
        """The inner learner, if this one wraps another."""
        return self

    @property
    def parameters_count(self) -> int:
        """The number of weights."""
        return 0

    @property
    def score_rounding(self) -> float:
        """The rounding error of its scores, relative to the largest."""
        return 1e-5

    def remarks(self) -> Sequence[str]:
        """Return sentences for the end of a run."""
        return ()


class Predictor(ABC):
    """A model that serves: raw columns in, the same columns and the model's out.

    Attributes:
        stages: scrub stages that are inside the model file, so that serving leaves them out.
        before: scrub stages that it was trained behind and that no file holds.
        before_settings: such a stage -> its settings that decide what it returns.
        columns: column -> the type in which the model learned it.
        parse_settings: how cells were read when it learned; see `Source.parse_settings`.
        target: the column with the label in training; "" if unknown.
    """

    stages: tuple[str, ...] = ()
    target: str = ""
    before: tuple[str, ...] = ()
    before_settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    columns: Mapping[str, pl.DataType] = MappingProxyType({})
    parse_settings: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def answers(self) -> Schema:
        """The columns that it adds, once it is bound."""

    @abstractmethod
    def columns_read(self, schema: Schema) -> Sequence[str]:
        """Return the columns that it reads of these. Raises: UserError if that is not clear."""

    @abstractmethod
    def info(self) -> dict[str, str]:
        """Return the labels of ``headrace_model_info``: version, precision, provider, digest."""

    def interface(self) -> Mapping[str, Any]:
        """Return what another model must share to take its place between two batches, beside
        `answers`: a name for a sentence -> a value. Models that share it read the same feed."""
        return {
            "stages": self.stages,
            "stages before it": self.before,
            "settings of stages before it": self.before_settings,
            "columns": self.columns,
            "parse settings": self.parse_settings,
        }

    @abstractmethod
    def bind(self, schema: Schema) -> None:
        """Check the columns. Raises: UserError if one is missing or has an unsuitable type."""

    def collate(self, batch: Batch) -> Batch:
        """Return the batch with its `feed`. Called by the prepare thread, so that the predicting
        thread need not do it."""
        return batch

    @abstractmethod
    def predict(self, batch: Batch) -> Batch:
        """Return the batch with the model's columns, without rows that have no finite answer.
        Makes the feed if there is none."""

    @property
    def judged(self) -> Features | None:
        """The task, the classes and the threshold of the answer that a label is compared with, once
        it is bound; None if it has no such answer."""
        return None

    def scores(self, frame: pl.DataFrame) -> NDArray[np.floating[Any]]:
        """Return that answer for each row, like `Step.scores`; NaN where there is none.

        Raises: HeadraceError if `judged` is None.
        """
        raise HeadraceError(f"{type(self).__name__} has no answer to compare with a label.")

    @property
    def carries_state(self) -> bool:
        """Whether a row's answer depends on earlier rows, so that checkpoints have a `snapshot`."""
        return False

    def snapshot(self) -> Snapshot:
        """Return the state of the rows so far; None without one."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot` (perhaps of another process)."""
        assert value is None, "a predictor without a state was given one"

    def apart(self) -> Predictor:
        """Return one that predicts the same from a state of its own, so that it changes nothing
        here: to try it beside the rows of the stream, on any thread."""
        return self

    def take_state(self, other: Predictor) -> None:
        """Go on from the state of another one, which shares its `interface` and ends here."""
        return

    def memory(self) -> Mapping[str, int]:
        """Return component -> bytes, for /metrics."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """Commits results and positions together.

    Attributes:
        commit: commits the written rows and the mark; returns whether it succeeded.
        every: seconds between two commits.
    """

    commit: Callable[[Mark], bool]
    every: float


class Sink(ABC):
    """A place to write results. With `snapshot` and `restore`, output is exact together with
    checkpoints: `restore` truncates what was written after the last saved `snapshot`. Without
    them rows are written at least once: those after a checkpoint are repeated.

    Built as ``Kind(settings)`` with its own nested ``Settings``.
    """

    settings: Any = None
    """Its ``Settings``."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def transaction(self, source: Source) -> Transaction | None:
        """Return what commits its rows together with the source's positions; None if they are
        committed separately.

        Raises: UserError if it should, and the two have no transaction in common.
        """
        return None

    def join_transaction(self, sink: Sink | None) -> None:
        """Write within another sink's transactions, if it has any; dead letters do."""
        return

    def on_wait(self, keep_alive: Callable[[], object]) -> None:
        """Register a callback, before anything is written. A sink that waits for another
        service, within its own timeout, calls `keep_alive` every second meanwhile, on any
        thread, so that the wait does not count as a stall."""
        return

    def on_trace(self, traceparent: str) -> None:
        """Note the trace of the rows that the next `write` gets, as W3C's `traceparent`; called for
        batches that are traced. A sink whose records have headers writes it there."""
        return

    def bind(self, schema: Schema) -> None:
        """Refuse before the first row what can never be written.

        Raises: UserError for a column of an unsupported type, or a missing one.
        """
        return

    def probe(self) -> None:
        """Ask the destination whether it accepts rows, without writing one.

        Raises: UserError if it does not (a missing topic).
        """
        return

    def folders(self) -> Sequence[Path]:
        """Return folders that belong to it: a second engine that writes there is refused."""
        return ()

    def files(self) -> Sequence[Path]:
        """Return a path for each kind of file it writes."""
        return ()

    def has_output(self) -> bool:
        """Return whether there are results that `restore(None)` would delete."""
        return False

    @abstractmethod
    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> Rejects | None:
        """Take the rows, and return those the destination can never accept, as rejects. Rows may
        be buffered up to a limit; they are not safe yet. A frame of 0 rows is legal.

        Args:
            positions: the reserved columns of each row: where it was read.
        """

    @abstractmethod
    def flush(self) -> None:
        """Return when everything written so far is safe (for a file: renamed into place and
        synced to disk)."""

    def snapshot(self) -> Snapshot:
        """Return a cheap value that describes what is safe. Call after `flush`."""
        return None

    def require(self, value: Snapshot) -> None:
        """Check that `restore` could resume from the snapshot. Changes nothing.

        Raises: UserError if it could not, for instance because results are gone.
        """
        return

    def restore(self, value: Snapshot) -> None:
        """Truncate what was written after the snapshot; None deletes everything this pipeline
        wrote here."""
        return

    def close(self) -> None:
        """Release all resources without flushing; buffered rows are dropped. May be called
        twice."""
        return

    def counts(self) -> Mapping[str, int]:
        """Return totals for the metrics, by name."""
        return {}


class Buffered(ABC):
    """A component that buffers bytes in this process: a client that reads ahead, a sink that
    gathers rows. It counts against the pipeline's memory budget."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes held now. Any thread may ask; the call neither waits nor raises."""

    @abstractmethod
    def limit_memory(self, nbytes: int) -> None:
        """Hold at most that many bytes, unless its own settings give a number. Called once,
        before anything is read or written."""
