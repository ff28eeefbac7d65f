"""Calls of components: an exception names its component and never looks like the end of a stream;
return values are checked against the contract, once per batch.

A class of the user's is trusted no further than its contract: a bare ``next(iterator)`` in it
raises StopIteration, by which nodes end; rows that it loses would be missing in the account.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl

from engine.types import (
    PARTITION,
    POSITION,
    RESERVED,
    Batch,
    EndOfStream,
    Features,
    Format,
    HeadraceError,
    Learner,
    Records,
    Rejects,
    Schema,
    Sink,
    Source,
    Stage,
    Step,
    Tensors,
    type_name,
)
from engine.types.plural import counted
from engine.user_code.contract_checks import require_attributes
from engine.user_code.records_checks import is_number, records_mistake, rejects_mistake, shown

T = TypeVar("T")
OURS = ("engine", "connectors", "models")
ENDS = (StopIteration, StopAsyncIteration, GeneratorExit, EndOfStream)
"""Exceptions that end an iteration; raised by a component, they are errors."""
RAISED = "raised by "
"""The beginning of the note added to an error."""
LEAVES = (
    "a stage that takes rows out returns batch.reject(keep, stage=self.name, reason=...), one that "
    "adds rows batch.with_frame(frame, added=rows_added)"
)
PLACED = (
    f"'{PARTITION}' and '{POSITION}' say where a row came from: pass them on as they are, those of "
    "a row that was added are those of the row it was made of"
)
PROMISED = "the columns after the stage are those that its bind returns, in their types"

STEP_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "loss": (is_number, "a number, nan without a step"),
    "steps": (is_number, "a number"),
    "scored_only": (is_number, "a number"),
    "skipped": (lambda why: isinstance(why, str | None), "a word, or None"),
    "augmented": (lambda rows: isinstance(rows, Mapping), "name -> rows"),
    "challenges": (lambda times: isinstance(times, Mapping), "outcome -> number"),
    "counts": (lambda times: isinstance(times, Mapping), "what was counted -> number"),
}
"""Value of a Step, besides arrays -> what it must be, also in words."""


class Calling:
    """A block that calls a component::

        with Calling("scrub.mine", stage):
            done = stage.apply(batch)

    An error of it leaves with a note that names the component (see `whose`); one that would look
    like the end of a stream becomes a HeadraceError.

    Args:
        section, key: where the pipeline file names it.
        component: an instance or a class.
        may_end: whether EndOfStream is its right: a source's read.
    """

    __slots__ = ("_component", "_key", "_may_end", "_section")

    def __init__(
        self, section: str, component: object, *, key: str = "kind", may_end: bool = False
    ) -> None:
        self._section = section
        self._component = component
        self._key = key
        self._may_end = may_end

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, HeadraceError):
            return
        if self._may_end and isinstance(error, EndOfStream):
            return
        who = named(self._section, self._component, self._key)
        if isinstance(error, ENDS):
            raise HeadraceError(
                f"{who} raised {type(error).__name__}{_place(traceback)}, which would pass for the "
                "end of the data: raise another error, or handle it there; a bare next(iterator) "
                "raises it where next(iterator, None) does not."
            ) from error
        if whose(error) is None:
            error.add_note(f"{RAISED}{who}")


def whose(error: BaseException) -> str | None:
    """Return the component that raised the error; None if unknown."""
    # Python makes the list with the first note.
    for note in getattr(error, "__notes__", ()):
        if note.startswith(RAISED):
            return str(note.removeprefix(RAISED))
    return None


def is_custom(component: object) -> bool:
    """Return whether the component's class is the user's."""
    return _kind(component).__module__.partition(".")[0] not in OURS


def named(section: str, component: object, key: str = "kind") -> str:
    """Return how sentences name a component: its table, and a user's class."""
    component_class = _kind(component)
    own = (
        f" {key} '{component_class.__module__}:{component_class.__qualname__}'"
        if is_custom(component)
        else ""
    )
    return f"[{section}]{own}"


@contextmanager
def naming(section: str) -> Iterator[None]:
    """Let an error of a source in another table than [source] name its own one."""
    try:
        yield
    except HeadraceError as error:
        text = str(error).replace("[source]", f"[{section}]")
        if not section.startswith("source."):  # the sources of a mix share [source.schema]
            text = text.replace("[source.", f"[{section}.")
        if text == str(error):
            raise
        raise type(error)(text) from error


def construct(section: str, cls: type[T], contract: type, *given: object) -> T:
    """An instance of a component's class.

    Raises: UserError if its ``__init__`` leaves out what the contract's sets.
    """
    with Calling(section, cls):
        component = cls(*given)
    require_attributes(component, contract, section)
    return component


def bind(stage: Stage, schema: Schema) -> Schema:
    """Return the schema after a stage. Raises: UserError as the stage does; HeadraceError if it
    returns no schema."""
    section = f"scrub.{stage.name}"
    with Calling(section, stage):
        after: Any = stage.bind(schema)
    _require(_schema_mistake(after, "bind"), section, stage)
    stage.bound = schema, after
    return cast(Schema, after)


def apply(stage: Stage, batch: Batch) -> Batch:
    """Return the batch after a stage.

    Raises: HeadraceError if rows are missing or too many, or have lost their positions, or have
        other columns than `bind` has returned.
    """
    section = f"scrub.{stage.name}"
    with Calling(section, stage):
        done = stage.apply(batch)
    strict = is_custom(stage)
    if done is not batch:
        _require(_batch_mistake(batch, done, strict=strict), section, stage)
    if strict and stage.bound is not None:
        _require(
            _columns_mistake(batch.frame.schema, done.frame.schema, *stage.bound), section, stage
        )
    return done


def schema(source: Source, declared: Schema, section: str = "source") -> Schema:
    """Return the columns of a source. Raises: UserError as the source does; HeadraceError if it
    returns no schema."""
    with Calling(section, source):
        columns: Any = source.schema(declared)
    _require(_schema_mistake(columns, "schema"), section, source)
    return cast(Schema, columns)


def read(
    source: Source,
    max_rows: int,
    max_bytes: int,
    timeout: float,
    section: str = "source",
    *,
    marked: Mapping[str, int] = MappingProxyType({}),
) -> Records | None:
    """Return what a source reads.

    Args:
        marked: partition -> the next position, by its last read or the mark it was to go to.

    Raises: EndOfStream; HeadraceError for a value that is not Records, or where rows would be
        lost or read twice.
    """
    with Calling(section, source, may_end=True):
        records = source.read(max_rows, max_bytes, timeout)
    if records is not None and is_custom(source):
        _require(records_mistake(records, max_rows, marked), section, source)
    return records


def sample(source: Source, rows: int, timeout: float) -> Sequence[Records]:
    """Return a sample of a source's records. Raises: HeadraceError as `read` does."""
    with Calling("source", source):
        pieces = source.sample(rows, timeout)
    if not is_custom(source):
        return pieces
    in_sequence = type(source).sample is Source.sample  # by `read`, from the start
    marked: dict[str, int] = {}
    for records in pieces:
        most = rows if in_sequence else sys.maxsize
        _require(records_mistake(records, most, marked), "source", source)
        if in_sequence:
            marked |= records.end_positions
    return pieces


def close(component: Source | Sink, section: str = "source") -> None:
    """Close a source or sink."""
    with Calling(section, component):
        component.close()


def decode(
    format: Format, records: Records, schema: Schema, section: str = "source"
) -> tuple[pl.DataFrame, list[Rejects]]:
    """Return the records as decoded by a format.

    Raises: HeadraceError if rows are missing or too many, or have other columns or positions.
    """
    with Calling(section, format, key="format"):
        decoded = format.decode(records, schema)
    wrong = _decode_mistake(records, schema, decoded, strict=is_custom(format))
    _require(wrong, section, format, "format")
    return decoded


def quantiles(learner_class: type[Learner], training: Any) -> tuple[float, ...]:
    """Return the quantiles that learners of a class predict, as in `engine.types.Features`.

    Raises: HeadraceError unless they rise, 0.5 among them.
    """
    with Calling("model", learner_class):
        shares = tuple(learner_class.quantiles(training))
    rising = all(low < high for low, high in pairwise((0.0, *shares, 1.0)))
    wrong = (
        f"returned {shares} from quantiles: expected shares between 0 and 1 that rise, 0.5 "
        "among them"
    )
    _require(None if not shares or (rising and 0.5 in shares) else wrong, "model", learner_class)
    return shares


def quantile(learner_class: type[Learner], training: Any) -> float | None:
    """Return the quantile that the one value of learners of a class is, as in
    `engine.types.Features`.

    Raises: HeadraceError unless it is between 0 and 1.
    """
    with Calling("model", learner_class):
        share = learner_class.quantile(training)
        fits = share is None or 0 < share < 1
    wrong = f"returned {share!r} from quantile: expected a share between 0 and 1, or None"
    _require(None if fits else wrong, "model", learner_class)
    return share


def vector_width(learner_class: type[Learner], settings: Any, training: Any) -> int:
    """Return the numbers of the vector that learners of a class answer, as in
    `engine.types.Features`.

    Raises: HeadraceError unless it is 0, or 2 or more.
    """
    with Calling("model", learner_class):
        width = learner_class.vector_width(settings, training)
        fits = width == 0 or width >= 2
    wrong = f"returned {width!r} from vector_width: expected 2 numbers or more, or 0 for none"
    _require(None if fits else wrong, "model", learner_class)
    return width


def learn(learner: Learner, batch: Batch) -> Step:
    """Return a learner's step for a batch. Raises: HeadraceError unless each row has a score."""
    with Calling("model", learner):
        step = learner.learn(batch)
    _require(_step_mistake(step, len(batch), learner.features), "model", learner)
    return step


def predict(learner: Learner, tensors: Tensors) -> Any:
    """Return scores, as in `engine.types.Step`. Raises: HeadraceError unless each row has one."""
    with Calling("model", learner):
        scores = learner.predict(tensors)
    wrong = _scores_mistake(scores, len(tensors), learner.features)
    _require(wrong and f"predicted {wrong}", "model", learner)
    return scores


def state_dict(learner: Learner) -> dict[str, Any]:
    """Return a learner's state. Raises: HeadraceError if it is none."""
    with Calling("model", learner):
        state: Any = learner.state_dict()
    if not isinstance(state, Mapping):
        wrong = f"returned {shown(state)} from state_dict: expected a dict, name -> plain value"
        _require(wrong, "model", learner)
    return cast(dict[str, Any], state)


def write(sink: Sink, rows: pl.DataFrame, places: pl.DataFrame) -> Rejects | None:
    """Write rows to a sink; return those it can never take. Raises: HeadraceError if the sink
    breaks its contract."""
    with Calling("sink", sink):
        not_learned = sink.write(rows, places)
    if not_learned is None:
        return None
    if not isinstance(cast(object, not_learned), Rejects) or len(not_learned) > len(rows):
        wrong = (
            f"returned {shown(not_learned)} from write of {counted(len(rows), 'row')}: expected "
            "None, or engine.types.Rejects of rows it can never take"
        )
        _require(wrong, "sink", sink)
    if is_custom(sink):
        _require(rejects_mistake([not_learned]), "sink", sink)
    return not_learned


# ----------------------------------------------------------------------------------------- mistakes


def _require(wrong: str | None, section: str, component: object, key: str = "kind") -> None:
    if wrong:
        raise HeadraceError(f"{named(section, component, key)} {wrong}.")


def _batch_mistake(before: Batch, after: Any, *, strict: bool) -> str | None:
    """Return what is wrong with a stage's result for a batch; None if nothing.

    Args:
        strict: look at columns and positions, too.
    """
    if not isinstance(after, Batch):
        return f"returned {shown(after)} from apply: expected an engine.types.Batch, as " + (
            "batch.with_frame(frame) makes one"
        )
    frame: object = after.frame
    if not isinstance(frame, pl.DataFrame):
        hint = ": collect() it" if isinstance(frame, pl.LazyFrame) else ""
        return f"returned a batch whose frame is {shown(frame)}, expected a polars.DataFrame{hint}"
    if strict and (wrong := rejects_mistake(after.rejects)):
        return wrong
    added = after.added - before.added
    rejected = _height(after.rejects) - _height(before.rejects)
    extra = len(after) + rejected - len(before) - added
    if extra or added < 0 or after.raw_rows != before.raw_rows:
        much = counted(abs(extra), "row is", "rows are")
        what = f": {much} {'too many' if extra > 0 else 'missing'}" if extra else ""
        return (
            f"was given {counted(len(before), 'row')} and returned {len(after):,}, with "
            f"{rejected:,} rejected and {added:,} added{what}. Expected an account that balances: "
            f"{LEAVES}"
        )
    if after.raw is not None and len(after.raw) != len(after):
        return (
            f"returned {counted(len(after), 'row')} beside {len(after.raw):,} as they were before: "
            f"{LEAVES}"
        )
    return _places_mistake(before, after, added) if strict else None


def _places_mistake(before: Batch, after: Batch, added: int) -> str | None:
    for column in RESERVED:
        there, dtype = after.frame.schema.get(column), before.frame.schema[column]
        if there != dtype:
            what = f"whose '{column}' is {there}"
            if there is None:
                what = f"without the column '{column}'"
            return f"returned rows {what}, expected {dtype}: {PLACED}"
    rejected = [reject.rows for reject in after.rejects[len(before.rejects) :]]
    if _same_places(before.frame, after.frame, rejected, several=added > 0):
        return None
    return f"returned rows with other positions than it was given: {PLACED}"


def _columns_mistake(
    before: Mapping[str, Any], after: Mapping[str, Any], given: Schema, promised: Schema
) -> str | None:
    """Return what is wrong with the columns of a stage's result; None if nothing.

    Args:
        before, after: the columns of the batch, which lacks those that nothing reads.
        given, promised: all columns before and after the stage, by its `bind`.
    """
    for column, dtype in promised.items():
        if column in given and column not in before:
            continue
        if column not in after:
            return f"returned no column '{column}', which its bind returned: {PROMISED}"
        if after[column] != dtype:
            return (
                f"returned column '{column}' as {type_name(after[column])}, and its bind returned "
                f"{type_name(dtype)}: {PROMISED}"
            )
    for column in after:
        if column not in promised and (column in given or column not in before):
            return f"returned column '{column}', which its bind did not return: {PROMISED}"
    return None


def _same_places(
    before: pl.DataFrame, after: pl.DataFrame, rejected: list[pl.DataFrame], *, several: bool
) -> bool:
    """Return whether the rows, in any order, have the positions they had before, each once or, with
    `several`, at least once."""
    if all(after.get_column(c).equals(before.get_column(c)) for c in RESERVED):
        return True  # in the same order, as nearly always
    given, kept = before.select(RESERVED), after.select(RESERVED)
    kept = pl.concat([kept, *(rows.select(RESERVED) for rows in rejected)])
    if several:
        given, kept = given.unique(), kept.unique()
    by = (POSITION, PARTITION)  # whole numbers first: a fifth of the time of text first
    return len(given) == len(kept) and given.sort(by).equals(kept.sort(by))


def _decode_mistake(records: Records, schema: Schema, decoded: Any, *, strict: bool) -> str | None:
    """Return what is wrong with a format's result for records; None if nothing. `strict` also
    checks columns and positions."""
    if not (isinstance(decoded, tuple) and len(decoded) == 2):
        return f"decoded {shown(decoded)}: expected a polars.DataFrame and a list of Rejects"
    frame, rejects = decoded
    if not isinstance(frame, pl.DataFrame):
        return f"decoded {shown(frame)}: expected a polars.DataFrame"
    if strict and (wrong := rejects_mistake(rejects)):
        return wrong
    rejected = _height(rejects)
    if frame.height + rejected != len(records):
        return (
            f"was given {counted(len(records), 'record')} and decoded "
            f"{counted(frame.height, 'row')}, with {rejected:,} rejected: expected one row or one "
            "reject for each record; a record that cannot be read goes into Rejects"
        )
    if not strict:
        return None
    for column, kind in {PARTITION: pl.String(), POSITION: pl.Int64(), **schema}.items():
        if (there := frame.schema.get(column)) != kind:
            what = f"no column '{column}'" if there is None else f"column '{column}' as {there}"
            return f"decoded {what}, expected {kind}"
    places = pl.concat([part.select(RESERVED) for part in (frame, *(r.rows for r in rejects))])
    positions = places[POSITION].to_numpy()
    same = np.array_equal(positions, records.positions) or np.array_equal(
        np.sort(positions), np.sort(records.positions)
    )
    if same and (places[PARTITION] == records.partition).all():
        return None
    return (
        f"decoded rows whose '{PARTITION}' and '{POSITION}' are not those of their records: take "
        "them from records.partition and records.positions"
    )


def _step_mistake(step: Any, rows: int, features: Features) -> str | None:
    """Return what is wrong with a learner's step for so many rows; None if nothing."""
    if not isinstance(step, Step):
        return f"returned {shown(step)} from learn: expected an engine.types.Step"
    if wrong := _scores_mistake(step.scores, rows, features):
        return f"returned a Step with {wrong}"
    if step.not_learned is not None and not _is_mask(step.not_learned, rows):
        return (
            f"returned a Step whose not_learned is {_array(step.not_learned)}: expected a numpy "
            f"array of bool of the shape ({rows},), or None"
        )
    for name, (fits, expected) in STEP_VALUES.items():
        if not fits(value := getattr(step, name)):
            return f"returned a Step whose {name} is {shown(value)}: expected {expected}"
    if not 0 <= step.scored_only <= rows:
        return f"returned a Step with {step.scored_only} of {counted(rows, 'row')} unlearned"
    return None


def _scores_mistake(scores: Any, rows: int, features: Features) -> str | None:
    """Return what is wrong with the scores of so many rows; None if nothing."""
    shape = features.score_shape(rows)
    if isinstance(scores, np.ndarray) and scores.dtype.kind in "fiu" and scores.shape == shape:
        return None
    return (
        f"scores that are {_array(scores)}: expected a numpy array of float64 of the shape "
        f"{shape}, what the model says of each row before it learns from it"
    )


def _schema_mistake(columns: Any, method: str) -> str | None:
    """Return what is wrong with the columns that a method returned; None if nothing."""
    if not isinstance(columns, Mapping):
        return f"returned {shown(columns)} from {method}: expected its columns, name -> type"
    for column, dtype in columns.items():
        if not isinstance(column, str):
            return f"returned {shown(column)} as a column's name from {method}: expected text"
        if not (isinstance(dtype, pl.DataType | pl.datatypes.DataTypeClass)):
            return (
                f"returned {dtype!r} as the type of column '{column}' from {method}: expected a "
                "polars type, such as polars.Int64()"
            )
    return None


def _is_mask(mask: Any, rows: int) -> bool:
    return isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (rows,)


def _array(value: Any) -> str:
    """Return how sentences name what should be an array."""
    is_array = isinstance(value, np.ndarray)
    return f"{value.dtype} of the shape {value.shape}" if is_array else shown(value)


def _height(rejects: Any) -> int:
    return sum(map(len, rejects))


def _kind(component: object) -> type:
    return component if isinstance(component, type) else type(component)


def _place(traceback: TracebackType | None) -> str:
    """Return `` (file.py:7)``: the last line of the traceback in the component's own code."""
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f" ({Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno})"


__all__ = [
    "Calling",
    "apply",
    "bind",
    "close",
    "construct",
    "decode",
    "is_custom",
    "learn",
    "named",
    "naming",
    "predict",
    "quantile",
    "quantiles",
    "read",
    "sample",
    "schema",
    "state_dict",
    "vector_width",
    "whose",
    "write",
]
