"""``headrace check``: everything that can be known before a run, and a sample through the
stages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import polars as pl
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from engine import rules
from engine.artifacts import try_export
from engine.assembly.restoring import require_plain_state, try_resume
from engine.commands.output import console
from engine.config import detached_tables
from engine.explore.notation import decimal_of, hint, reads_null_values
from engine.loading.decoder import Decoder
from engine.loading.sources.labelled_source import is_of_labels
from engine.run import Run
from engine.running.labels import few_numbers, labels_of
from engine.running.work import joined_results
from engine.running.written_rows import SINK
from engine.scrub.base import FittedStage
from engine.scrub.features.derive import Derive
from engine.scrub.side_source import SideStage
from engine.types import (
    DROPPED,
    PARTITION,
    RESERVED,
    WILDCARD,
    Batch,
    HeadraceError,
    Mark,
    Rejects,
    Source,
    UserError,
    only_named,
    parse_schema,
)
from engine.types.plural import counted
from engine.types.toml import toml_key, toml_value
from engine.user_code import calls

LEARNED_ROWS = 32
"""Sampled rows the model learns: enough to try it."""
MAX_DETAILS = 3
"""Distinct values or details that a sentence shows."""
MAX_NAMES = 6
"""Columns that a sentence names."""
UNKNOWN_LABEL_SHARE = 0.01
"""The share of sampled rows with an unknown label above which the labels are wrong, not single
rows."""


class Answered(NamedTuple):
    """Rows for the sink, and the rows of the batch that they are from, n each."""

    rows: pl.DataFrame
    frame: pl.DataFrame


def preflight(run: Run, rows: int = 1_000) -> bool:
    """Print what the pipeline would do with a sample of `rows` records; return whether no
    problem was found.

    Writes nothing and saves nothing. Raises: UserError for what makes the file unusable.
    """
    out = console()
    checks: Sequence[Callable[[Run], Iterator[str]]]
    everywhere = (_check_service, _check_traces, _check_sinks)
    checks = (*everywhere, _check_members, _check_exportable, _check_resumable)
    if not run.source.can_be_reread():
        problems = list(_unread(run))
        knows_columns = run.parts.scrub.knows_columns
        checks = checks if knows_columns and not problems else everywhere
    else:
        with _closing(run.source), _closing(_detached_source(run)) as source:
            run.assemble()
            sample = _sample(run, source, rows)
            problems = list(_check_sample(run, sample, source))
            if sample is not None:
                problems += _empty_columns(run, sample, source, rows)
    for problem in checks:
        problems += problem(run)
    for sentence in dict.fromkeys(problems):
        out.print(Text(f"! {sentence}", style="yellow"), soft_wrap=True)
    if problems:
        out.print(f"{run.pipeline.file} is not ready to run: look at what is marked '!' above.")
    else:
        out.print(f"{run.pipeline.file} is ready to run.")
    return not problems


def _unread(run: Run) -> Iterator[str]:
    """Check a source that can be read only once, from its declared columns alone."""
    once = "What the source gives can be read only once, so no row of it is tried"
    declared = only_named(parse_schema(run.pipeline.source.get("schema", {})) | {WILDCARD: DROPPED})
    with _closing(run.source):
        if not declared:
            console().print(
                f"{once}; and [source.schema] names no columns, so stages, model and sink are "
                "untried as well: declare the columns to have them checked.",
                soft_wrap=True,
            )
            return
        run.parts.scrub.source_schema = declared
        try:
            run.assemble()
        except UserError as error:
            yield (
                f"With the columns of [source.schema] alone, and the others are not known before "
                f"the data comes: {error}"
            )
            return
        console().print(f"{once}: stages, model and sink fit the declared columns.", soft_wrap=True)


def _detached_source(run: Run) -> Source:
    """Return the source without its group: it joins nothing, commits nothing, and also sees
    records the group has finished."""
    detached = run.pipeline.model_copy(update=detached_tables(run.pipeline))
    return run.source if detached == run.pipeline else Run(detached).source


def _check_sample(run: Run, sample: Batch | None, source: Source) -> Iterator[str]:
    """Print what the stages do with the sample; return the problems found."""
    out = console()
    if sample is None:
        out.print("The source has no records yet, so its stages are untried: that is no mistake.")
        return
    for side in run.parts.scrub.sides.values():
        side.is_trial = True
    written: list[Answered] = []
    run.parts.work.on_answer(lambda batch, rows: written.append(Answered(rows, batch.frame)))
    table, batch = _steps(run, sample, written)
    sink = _chosen(run, table, written)
    out.print(table)
    if sample.labels is not None and not len(sample.labels):
        out.print("[labels.source] has no labels in the sample, so [labels] by is untried.")
    elif sample.labels is not None:
        matched = f"{len(batch):,} of {counted(len(sample.labels), 'sampled label')}"
        out.print(f"{matched} belong to a sampled row ([labels] by).", highlight=False)
    if names := _unfitted(run, batch):
        out.print(
            f"The sample is a first batch, and stages work with what batches before it taught: "
            f"{', '.join(names)} {'knows' if len(names) == 1 else 'know'} nothing yet, so "
            f"{' and '.join(dict.fromkeys(names.values()))}; in a run that is so in the first "
            "batch alone.",
            highlight=False,
            markup=False,
        )
    read = _read_by_stages(run, batch)
    words, decimal = reads_null_values(source), decimal_of(source)
    for column in sample.frame.get_columns():
        if (
            column.dtype == pl.String
            and column.name not in read
            and (sentence := hint(column.name, column, null_values=words, decimal=decimal))
        ):
            out.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if (sentence := _task(run, sample)) is not None:
        out.print(sentence, highlight=False, markup=False, soft_wrap=True)
    rejected = []
    for each in (batch,) if sink is None else (batch, sink):
        problems = list(_rejected(run, each))
        rejected += problems
        for sentence in () if problems else _lost_in_stages(run, each):
            out.print(sentence, highlight=False, markup=False, soft_wrap=True)
    yield from (*(rejected or _unreadable(run, sample)), *source.remarks(), *_labels(run, batch))
    for stage in run.stages:
        if isinstance(stage, SideStage) and stage.is_mostly_odd:
            yield from stage.remarks()
        elif isinstance(stage, SideStage) and stage.side is not None:
            for sentence in stage.remarks():
                out.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _empty_columns(run: Run, sample: Batch, source: Source, rows: int) -> Iterator[str]:
    """Print the columns without a value in the sample; describe those whose name is a path to one
    inside the records."""
    if sample.frame.is_empty():
        return
    given = {*RESERVED, *source.origin_columns()}
    empty = [
        column.name
        for column in sample.frame.get_columns()
        if column.name not in given and column.null_count() == len(column)
    ]
    nested = _nested(run, [name for name in empty if "." in name], rows)
    for name in nested:
        yield (
            f"No record of the sample has a value for '{name}', but some have one inside: "
            f"write [source.paths] {toml_key(name)} = {toml_value(name)}."
        )
    if others := [name for name in empty if name not in nested]:
        more = f" and {len(others) - MAX_NAMES:,} more" if len(others) > MAX_NAMES else ""
        console().print(
            f"No record of the sample has a value for {', '.join(map(repr, others[:MAX_NAMES]))}"
            f"{more}: leave the column out unless later records have one, or correct its name; "
            "values inside of records are read by [source.paths].",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _nested(run: Run, names: Sequence[str], rows: int) -> list[str]:
    """Return those of the names that are paths to values inside the sampled records."""
    if not names:
        return []
    table = detached_tables(run.pipeline)
    paths = {**table["source"].get("paths", {}), **{name: name for name in names}}
    table["source"] = {**table["source"], "paths": paths}
    schema = {name: run.parts.scrub.source_schema[name] for name in names}
    try:
        with _closing(Run(run.pipeline.model_copy(update=table)).source) as source:
            own = [p for p in calls.sample(source, rows, 10.0) if not is_of_labels(p)]
            frame, _ = Decoder(source.format, schema).decode(own)
    except HeadraceError:  # it has no paths
        return []
    return [name for name in names if frame.get_column(name).count()]


def _read_by_stages(run: Run, batch: Batch) -> set[str]:
    """Return text columns that stages replace by another type, or read with a cast."""
    after = batch.frame.schema
    replaced = {c for c, kind in after.items() if kind != pl.String}
    casts = (
        pl.sql_expr(sql).meta.root_names()
        for stage in run.stages
        if isinstance(stage, Derive)
        for sql in stage.settings.columns.values()
        if "CAST(" in sql.upper().replace(" ", "")
    )
    return replaced.union(*casts)


def _lost_in_stages(run: Run, batch: Batch) -> Iterator[str]:
    """Describe the sampled rows that a stage rejects, if a run would accept so few."""
    for reject in _by_reason(batch):
        if reject.reason not in run.pipeline.dead_letters.expected and len(reject):
            rows = f"{len(reject):,} of {counted(batch.raw_rows, 'sampled row')}"
            yield (
                f"{rows} {'is' if len(reject) == 1 else 'are'} rejected in {reject.stage} as "
                f"{reject.reason}: {_details(reject)}"
            )


def _task(run: Run, sample: Batch) -> str | None:
    """Describe the inferred task, if the labels may be classes."""
    if not run.trains:
        return None
    label = run.parts.model.label
    if not label.is_left_to_type or label.column not in sample.frame.columns:
        return None
    values = labels_of(sample.frame.get_column(label.column))
    return few_numbers(values, label.column, f"the {counted(len(sample.frame), 'sampled row')}")


@contextmanager
def _closing(source: Source) -> Iterator[Source]:
    """Close the source after the block; an error of it names it."""
    try:
        yield source
    finally:
        calls.close(source)


def _sample(run: Run, source: Source, rows: int) -> Batch | None:
    """Return some decoded records; None if there are none yet."""
    pieces = calls.sample(source, rows, 10.0)
    own = [piece for piece in pieces if not is_of_labels(piece)]
    if not own:
        return None
    frame, rejects = Decoder(run.source.format, run.parts.scrub.read_schema).decode(own)
    sample = Batch(
        frame=frame,
        mark=Mark(),
        arrived=pieces[0].arrived,
        raw_rows=sum(map(len, pieces)),
        raw_bytes=sum(piece.nbytes for piece in pieces),
        rejects=rejects,
    )
    if (labelled := run.parts.endpoints.labelled) is None:
        return sample
    late = [piece for piece in pieces if is_of_labels(piece)]
    labels, more = Decoder(run.source.format, labelled.label_schema).decode(late)
    return replace(sample, labels=labels, rejects=(*rejects, *more))


def _steps(run: Run, batch: Batch, written: list[Answered]) -> tuple[Table, Batch]:
    """Run the sample through every stage; return a table row for each, and the remaining rows; add
    those for the sink to `written`."""
    places = len({*_partitions(batch), *_lost(batch)})
    where = f" of {places:,} partitions" if places > 1 else ""
    records = f"{counted(batch.raw_rows, 'record')}{where}"
    table = Table(title=f"{escape(run.pipeline.name)}: {records} through the stages")
    for heading in ("stage", "rows", "rejected", "counted", "columns"):
        table.add_column(heading, justify="right" if heading in ("rows", "rejected") else "left")
    _row(table, "decode", batch, [])
    steps: list[tuple[str, Callable[[Batch], Batch]]] = [
        (stage.name, partial(calls.apply, stage)) for stage in run.stages
    ]
    if run.parts.collate is not None:
        steps.append(("collate", run.parts.collate))
    for at, (name, apply) in enumerate(steps):
        if at == run.parts.scrub.export_from:
            batch = replace(batch, raw=batch.frame)  # what is evaluated and held out
        before, seen = batch.frame.columns, len(batch.rejects)
        batch = apply(batch)
        _row(table, name, batch, before, seen)
    for name, rows in _augmented(run, batch).items():
        table.add_row(f"augment {escape(name)}", f"{len(batch):,}", "", f"changed {rows:,}", "")
    if run.trains and batch.labels is None:
        batch = _head(batch, LEARNED_ROWS)
    done = run.parts.work.process(batch)
    if (rest := run.parts.work.finish()) is not None:  # labels that came later
        done = joined_results(_emptied(done.batch), [done, rest])
    if done.rows is not None:
        written.append(Answered(done.rows, done.batch.frame))
    if run.pipeline.model is not None or run.pipeline.infer is not None:
        outcome, seen = "learned" if done.learned else "predicted", len(batch.rejects)
        batch = done.batch
        _row(
            table,
            run.parts.work.stage,
            batch.counted(run.parts.work.stage, **{outcome: len(batch)}),
            batch.frame.columns,
            seen,
        )
    require_plain_state(run.parts)
    return table, batch


def _emptied(batch: Batch) -> Batch:
    """Return a batch of nothing, of the same records."""
    return replace(batch, frame=batch.frame.clear(), rejects=(), counts={}, added=0)


def _chosen(run: Run, table: Table, written: Sequence[Answered]) -> Batch | None:
    """Try [sink] where on rows for the sink, and add a table row; return those on which it does not
    fail, and its rejects. None without a condition."""
    if (condition := run.parts.written_rows) is None:
        return None
    tried = [
        condition.choose(answered.rows, answered.frame[list(RESERVED)]) for answered in written
    ]
    rows = sum(len(answered.rows) for answered in written)
    rejects = [one.rejects for one in tried if one.rejects is not None]
    places = [answered.frame[list(RESERVED)] for answered in written]
    batch = Batch(
        frame=pl.concat(places).head(rows - sum(map(len, rejects))) if places else pl.DataFrame(),
        mark=Mark(),
        arrived=0.0,
        raw_rows=rows,
        rejects=tuple(rejects),
    )
    left = sum(one.left for one in tried)
    shown = batch.counted(SINK, not_written=left).with_frame(batch.frame.head(len(batch) - left))
    _row(table, SINK, shown, shown.frame.columns)
    return batch


def _head(batch: Batch, rows: int) -> Batch:
    """Return the first rows of a batch; the rejected ones stay."""
    rows = min(rows, len(batch))
    return replace(
        batch,
        frame=batch.frame[:rows],
        raw=None if batch.raw is None else batch.raw[:rows],
        tensors=None if batch.tensors is None else batch.tensors.slice(0, rows),
    )


def _rejected(run: Run, batch: Batch) -> Iterator[str]:
    """Describe rejects, if they are more than a run allows, or the whole sample."""
    settings = run.pipeline.dead_letters
    bad = sum(len(r) for r in batch.rejects if r.reason not in settings.expected)
    total = batch.raw_rows + batch.added
    some_left = len(batch) or batch.labels is not None  # rows may wait for their labels
    if not batch.rejects or (some_left and bad <= settings.limit * total):
        return
    left = f"and [dead_letters] limit allows {settings.limit:.1%}" if bad else "and none is left"
    worst = max(_by_reason(batch), key=len)
    n = sum(len(r) for r in batch.rejects)
    yield (
        f"{n:,} of {counted(total, 'sampled row')} {'is' if n == 1 else 'are'} rejected, {left}. "
        f"Most of them, {len(worst):,}, in {worst.stage} as {worst.reason}: {_details(worst)}"
    )


def _by_reason(batch: Batch) -> list[Rejects]:
    """Return the rejects, those of one stage and reason together."""
    rows: dict[tuple[str, str], list[pl.DataFrame]] = {}
    for reject in batch.rejects:
        rows.setdefault((reject.stage, reject.reason), []).append(reject.rows)
    return [
        Rejects(stage=stage, reason=reason, rows=pl.concat(frames))
        for (stage, reason), frames in rows.items()
    ]


def _unreadable(run: Run, sample: Batch) -> Iterator[str]:
    """Name the partitions, if not all, in which no sampled row could be decoded."""
    for name, reject in _lost(sample).items():
        if reject.reason not in run.pipeline.dead_letters.expected:
            yield (
                f"Every sampled row of {name} is rejected in {reject.stage}, most of them as "
                f"{reject.reason}: {_details(reject)}"
            )


def _lost(batch: Batch) -> dict[str, Rejects]:
    """Return partition -> what rejected most of its rows, for partitions that have none left."""
    left = _partitions(batch)
    worst: dict[str, Rejects] = {}
    for reject in sorted(batch.rejects, key=len):
        worst |= dict.fromkeys(_partitions_in(reject.rows) - left, reject)
    return worst


def _partitions(batch: Batch) -> set[str]:
    """Return the partitions of the rows, and of the labels that came apart from them."""
    frames = [batch.frame] if batch.labels is None else [batch.frame, batch.labels]
    return set[str]().union(*map(_partitions_in, frames))


def _partitions_in(frame: pl.DataFrame) -> set[str]:
    return set(frame.get_column(PARTITION).unique())


def _details(reject: Rejects) -> str:
    """Return the first distinct details or, without any, rows as text."""
    texts = reject.rows["detail"].drop_nulls()
    if texts.is_empty():
        texts = reject.rows["value"].drop_nulls().str.slice(0, 100)
    return " ".join(texts.unique(maintain_order=True).head(MAX_DETAILS))


def _labels(run: Run, batch: Batch) -> Iterator[str]:
    """Describe labels outside the classes, if they are too many for typing errors."""
    unknown = [r for r in batch.rejects if r.reason == "unknown_label"]
    rows = sum(len(r) for r in unknown)
    if not run.trains or rows < max(1.0, UNKNOWN_LABEL_SHARE * batch.raw_rows):
        return
    target = run.features.target
    seen = Counter(
        _label_text(json.loads(row).get(target)) for r in unknown for row in r.rows["value"]
    )
    shown = ", ".join(f"'{value}' ({n:,})" for value, n in seen.most_common(10))
    yield (
        f"[model] classes are {', '.join(map(repr, run.features.classes))}, and {rows:,} of "
        f"{counted(batch.raw_rows, 'sampled row')} {'has' if rows == 1 else 'have'} another label "
        f"in '{target}': {shown}. A run rejects such rows as unknown_label: add the labels to "
        "classes, correct them in a 'derive' stage, or choose another target."
    )


def _label_text(label: object) -> str:
    """Return a label as [model] classes spells it."""
    return label if isinstance(label, str) else json.dumps(label)


def _check_service(run: Run) -> Iterator[str]:
    """Describe a service that cannot listen."""
    if run.pipeline.service is None:
        return
    try:
        run.parts.service.probe()
    except HeadraceError as error:
        yield str(error)


def _check_traces(run: Run) -> Iterator[str]:
    """Describe traces that cannot be sent."""
    try:
        with run.parts.traces.opened():
            pass
    except HeadraceError as error:
        yield str(error)


def _check_sinks(run: Run) -> Iterator[str]:
    """Describe sinks that would not accept rows."""
    for place in (run.sink, run.parts.endpoints.dead_letters):
        try:
            if place is not None:
                place.probe()
        except HeadraceError as error:
            yield str(error)


def _check_members(run: Run) -> Iterator[str]:
    """Name members of a user's own classes that are never called."""
    return rules.uncalled_members(run.parts)


def _unfitted(run: Run, batch: Batch) -> dict[str, str]:
    """Return stages that learn and had no state to apply to a first batch -> what becomes of its
    values."""
    effects = {
        stage.name: stage.untaught
        for stage in run.stages
        if isinstance(stage, FittedStage) and stage.untaught and stage.snapshot() is not None
    }
    unknown = {
        stage.name: "new values are unknown"
        for stage in run.stages
        if stage.snapshot() is not None and batch.counts.get((stage.name, "unknown"))
    }
    return effects | unknown


def _augmented(run: Run, batch: Batch) -> dict[str, int]:
    """Count the rows each augment changes, in a separate pass: the model learns all rows."""
    if not run.trains or run.parts.model.augmentation is None or not len(batch):
        return {}
    _ = run.learner  # it binds them
    assert batch.tensors is not None, "a batch to learn from is collated"
    rows = batch.tensors
    if rows.target is not None and not rows.labelled.all():
        rows = rows.take(np.flatnonzero(rows.labelled))
    return run.parts.model.augmentation(rows, 0)[1]


def _row(table: Table, name: str, batch: Batch, before: list[str], seen: int = 0) -> None:
    rejects: dict[str, int] = {}
    for reject in batch.rejects[seen:]:
        rejects[reject.reason] = rejects.get(reject.reason, 0) + len(reject)
    counts = [
        f"{counter} {n:,}" for (stage, counter), n in batch.counts.items() if stage == name and n
    ]
    columns = [c for c in batch.frame.columns if c not in before and c not in RESERVED]
    shown = ", ".join(columns[:6]) + (f", ... ({len(columns)})" if len(columns) > 6 else "")
    table.add_row(
        escape(name),
        f"{len(batch):,}",
        escape(", ".join(f"{reason} {n:,}" for reason, n in rejects.items())),
        escape(", ".join(counts)),
        escape(shown),
    )


def _check_exportable(run: Run) -> Iterator[str]:
    """Describe a model that cannot be exported, and a feature changed by a stage that no model file
    can contain."""
    if run.pipeline.export is None or not run.trains:
        return
    try:
        try_export(run.parts)
    except HeadraceError as error:
        yield f"[export] would fail at the end: {error}"
    outside = run.stages[: run.parts.scrub.export_from]
    for stage in outside:
        if stage.transforms():
            later = next(
                s.name for s in outside[outside.index(stage) + 1 :] if s.transforms() is None
            )
            yield (
                f"Stage '{stage.name}' stands before '{later}', which no model file can contain, "
                f"so serving must run '{stage.name}' too, with its own statistics: move it behind "
                f"'{later}' if you can."
            )


def _check_resumable(run: Run) -> Iterator[str]:
    """Describe a checkpoint, or results of another pipeline, that a run would refuse."""
    try:
        rules.require_own_output(run.parts)
        try_resume(run.parts)
    except HeadraceError as error:
        yield str(error)


__all__ = ["preflight"]
