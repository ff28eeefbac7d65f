"""The rules of a pipeline: what may not go together. One function per rule.

A mistake inside one table is reported when its part is built (`engine.assembly`). The rules here
look at several parts, before anything is read or written. Each raises UserError.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from engine.artifacts import OUTPUT_FILES
from engine.assembly.parts import Parts
from engine.assembly.saved_schema import resolved_folders
from engine.config import Pipeline, made_by
from engine.loading.sources.mix import SourceGroup
from engine.running.loop import Loop
from engine.running.reject_limit import TooManyRejects
from engine.system import atomic
from engine.types import (
    Learner,
    SharedSource,
    Sink,
    Source,
    Stage,
    UserError,
    type_name,
)
from engine.types.plural import counted
from engine.user_code.contract_checks import misspelt_members
from engine.versions.registry import require_registry

log = logging.getLogger("headrace.run")


def require_sections(pipeline: Pipeline) -> None:
    """Check for tables that need or exclude each other."""
    file = pipeline.file
    for section in ("train", "evaluation", "export"):
        if getattr(pipeline, section) is not None and pipeline.model is None:
            raise UserError(f"{_head(file, section)} needs a [model], which is not there.")
    if pipeline.registry is not None:
        require_registry(file)
    if pipeline.labels is not None and pipeline.model is None:
        raise UserError(f"{_head(file, 'labels')} needs a [model] that learns, which is not there.")
    first = (pipeline.sink or {}).get("answer") == "first"
    if first and pipeline.model is None and pipeline.infer is None:
        raise UserError(
            f"[sink] answer in {file} needs a [model] that answers, which is not there."
        )
    if pipeline.augment and pipeline.model is None:
        head = _head(file, "augment")
        raise UserError(f"{head} needs a [model] that learns, which is not there.")
    if pipeline.infer is not None and pipeline.train is not None and pipeline.base is None:
        maker = made_by(file, "train") or made_by(file, "infer")
        if maker is not None:
            raise UserError(f"{maker} a pipeline trains or serves; take it out.")
        raise UserError(
            f"{file} has both [train] and [infer]: a pipeline trains or serves; put [infer] in a "
            "file of its own with base = this file."
        )


def require_writable(parts: Parts) -> None:
    """Check that every output can be written, to a path of its own."""
    pipeline, endpoints = parts.pipeline, parts.endpoints
    folder = Path(pipeline.folder)
    atomic.require_folder(folder, "folder")
    atomic.require_folder(endpoints.checkpoints.folder, "[checkpoint] path")
    for name in OUTPUT_FILES:
        atomic.require_file(folder / name, "folder")
    if pipeline.exports:
        atomic.require_file(pipeline.model_path, "[export] path")
        atomic.require_folder(pipeline.versions_path, "[export] versions")
    folders = {"checkpoint": {endpoints.checkpoints.folder.resolve()}}
    folders |= {table: resolved_folders([sink]) for table, sink in endpoints.sinks.items()}
    for one, other in combinations(folders, 2):
        if both := folders[one] & folders[other]:
            raise UserError(
                f"[{one}] and [{other}] in {pipeline.file} both write to {both.pop()}: give each "
                "a path of its own."
            )


def require_no_feedback(parts: Parts) -> None:
    """Check that no output is read as input."""
    if parts.endpoints.replay:
        return
    source, file = parts.endpoints.source, parts.pipeline.file
    for table, sink in parts.endpoints.sinks.items():
        if (place := source.reads_output_of(sink)) is not None:
            raise UserError(
                f"[{table}] in {file} writes to {place}, and [source] reads it: every row would "
                "be read again, endlessly. Choose another one."
            )
    for setting, output in _outputs(parts):
        if source.reads_file(output):
            raise UserError(
                f"{setting} in {file} writes files such as '{output}', and [source] path leads to "
                "them: they would be read as input. Write to another folder, or make [source] path "
                "more specific."
            )


def _outputs(parts: Parts) -> Iterator[tuple[str, Path]]:
    """Yield the files a run writes, each with the setting that names it."""
    pipeline = parts.pipeline
    for name in OUTPUT_FILES:
        yield "folder", Path(pipeline.folder) / name
    yield "[checkpoint] path", parts.endpoints.checkpoints.folder / "checkpoint-00000001.hrc"
    for table, sink in parts.endpoints.sinks.items():
        for file in sink.files():
            yield f"[{table}]", file
    if pipeline.exports:
        yield "[export] path", pipeline.model_path
        yield "[export] path", pipeline.float_model_path
        yield "[export] versions", pipeline.versions_path / "1" / "model.onnx"


def require_static_member(parts: Parts) -> None:
    """Check that an engine with a state and shared partitions has a fixed name in its group."""
    source = parts.endpoints.source
    if not isinstance(source, SharedSource) or not source.shares_partitions:
        return
    if not source.tracks_owners and parts.keeps_state:
        raise UserError(
            f"{parts.pipeline.file} keeps a state (it trains, a stage learns, or its model carries "
            "one) and shares its partitions: give this engine a fixed name in its group, [source] "
            "group_instance_id."
        )


def require_shufflable(parts: Parts) -> None:
    """Check that only training shuffles, and only fixed partitions."""
    pipeline, source = parts.pipeline, parts.endpoints.source
    if not pipeline.loader.shuffle_rows:
        return
    if not pipeline.trains:
        raise UserError(
            f"[loader] shuffle_rows in {pipeline.file} is for training: expected a [train] "
            "section, or take it out; results keep the order of their rows."
        )
    if parts.model.features.state is not None:
        raise UserError(
            f"[loader] shuffle_rows in {pipeline.file} mixes rows, and [model.state] follows the "
            "rows of a key in their order: take one of them out."
        )
    if isinstance(source, SharedSource) and source.shares_partitions:
        raise UserError(
            f"[loader] shuffle_rows in {pipeline.file} needs fixed partitions, and [source] "
            "subscribe shares them: take one of them out."
        )


def require_late_labels(parts: Parts) -> None:
    """Check what labels that come later do not go with."""
    pipeline = parts.pipeline
    if pipeline.labels is None or pipeline.infer is not None:
        return
    head = f"[labels] in {pipeline.file}"
    if pipeline.loader.shuffle_rows:
        raise UserError(
            f"{head} joins rows in the order of their times, and [loader] shuffle_rows mixes them: "
            "take one of them out."
        )
    if parts.endpoints.replay:
        raise UserError(
            f"{head} joins rows with the labels that come up to a horizon later, and those of dead "
            "letters have come already: put the mended records into [source] and [labels.source]."
        )
    if parts.endpoints.source.epochs > 1:
        raise UserError(
            f"{head} learns each label once, and [source] epochs reads every row again: take it "
            "out."
        )
    if parts.model.features.state is not None:
        raise UserError(
            f"{head} learns rows when their labels come, and [model.state] follows the rows of a "
            "key in their order: take one of them out."
        )
    if parts.model.features.max_classes:
        raise UserError(
            f"{head} keeps the scores that rows have when they come, and more classes may appear "
            "before their labels do: name them all in [model] classes."
        )


def require_repeatable(parts: Parts) -> None:
    """Check that neither a stage nor the model takes the rows of a second epoch for later ones."""
    if parts.endpoints.source.epochs == 1:
        return
    if parts.pipeline.trains and parts.model.features.state is not None:
        raise UserError(
            f"[source] epochs in {parts.pipeline.file} reads every row again, and [model.state] "
            "would go on from the last rows of a key to its first ones: take one of them out."
        )
    for stage in parts.scrub.stages:
        if stage.single_pass:
            raise UserError(
                f"[source] epochs in {parts.pipeline.file} reads every row again, and "
                f"[scrub.{stage.name}] would treat it as a duplicate, as late or as its own past: "
                "write the cleaned rows first, with a pipeline that has no model, or leave the "
                "stage out."
            )


def require_exportable(parts: Parts) -> None:
    """Check what would fail only at the end, hours later."""
    export = parts.pipeline.export
    if export is None or not parts.pipeline.trains:
        return
    learner_class = parts.model.learner_class
    if learner_class.build is Learner.build:
        raise UserError(
            f"[export] in {parts.pipeline.file} needs a learner that writes ONNX, and "
            f"{learner_class.__name__} has no method 'build': take [export] out."
        )
    _ = parts.judging.compression


def require_free_names(parts: Parts) -> None:
    """Check that the data has no column that the model adds, before the model is built."""
    sink, pipeline, columns = parts.endpoints.sink, parts.pipeline, parts.pipeline.sink_columns
    own = {} if sink is None else parts.written_schema
    for name in own and _added_names(parts):
        if name in own and (columns is None or name in columns):
            raise UserError(
                f"[sink] in {pipeline.file} gets a column '{name}' from the model, and the data "
                "has one too: rename yours in a 'derive' stage, or leave it out of "
                "[source.schema] or [sink] columns."
            )


def _added_names(parts: Parts) -> Iterator[str]:
    """Yield the columns that the model adds, first what is known before rows are read for its
    classes."""
    if parts.pipeline.trains and len(parts.model.common_settings.targets) == 1:
        yield "prediction"
    yield from parts.model_columns


def require_sink_schema(parts: Parts) -> None:
    """Bind the sink to the columns it will get."""
    sink, pipeline = parts.endpoints.sink, parts.pipeline
    if sink is None:
        return
    own = parts.written_schema
    key = str((pipeline.sink or {}).get("key"))
    read_as = parts.scrub.source_schema.get(key)
    if read_as is not None and own.get(key, read_as) != read_as:
        log.warning(
            "[sink] key '%s' is %s after the stages of [scrub] and %s in the source: name a column "
            "that no stage changes.", key, type_name(own[key]), type_name(read_as),
        )  # fmt: skip
    if not parts.sink_schema:
        raise UserError(
            f"[sink] columns = [] in {pipeline.file} leaves nothing to write, for no model adds a "
            "column: name one, or take 'columns' out to write all."
        )
    sink.bind(parts.sink_schema)
    _ = parts.written_rows


def require_own_output(parts: Parts) -> None:
    """Check that a new run would delete only output of its own: what an earlier start wrote
    without saving a checkpoint."""
    endpoints = parts.endpoints
    if endpoints.checkpoints.exists():
        return
    own = set(map(Path, endpoints.saved_schema.writes))
    for sink in endpoints.sinks.values():
        foreign = resolved_folders([sink]) - own if sink.has_output() else None
        if foreign:
            raise UserError(
                f"{foreign.pop()} holds results already, and {endpoints.checkpoints.folder} "
                "has no checkpoint for them: name another folder, or replace them with --fresh."
            )


def require_learned(pipeline: Pipeline, loop: Loop) -> None:
    """Raises: TooManyRejects if the source ended and no row could be learned, even for reasons that
    are expected in single rows, such as a missing label."""
    totals = loop.totals
    allowed = pipeline.dead_letters.limit >= 1
    if not pipeline.trains or loop.stopped or allowed or totals.learned + totals.predicted:
        return
    if totals.waiting and not totals.expired:
        return  # their labels may still come
    if totals.expired:
        raise TooManyRejects(
            f"Ended: none of {counted(totals.read, 'row and label', 'rows and labels')} could be "
            f"learned: {totals.matched:,} labels found their row, {totals.expired:,} rows expired "
            f"without one, {totals.waiting:,} rows and labels wait, {totals.rejected:,} were "
            "rejected: compare the keys ([labels] by) and the times of both, and the horizon."
        )
    if totals.rejected:
        (stage, reason), n = max(totals.reasons.items(), key=lambda item: item[1])
        raise TooManyRejects(
            f"Ended: none of {counted(totals.read + totals.added, 'row')} could be learned "
            f"({stage}: {reason}, {n:,}): fix the input, the schema or [model]; the dead letters "
            "give the reason of each row."
        )


def _head(file: str, section: str) -> str:
    """Return how a sentence about a table begins: the file, or what set the table over it."""
    maker = made_by(file, section)
    return f"[{section}] in {file}" if maker is None else f"{maker} it"


def uncalled_members(parts: Parts) -> Iterator[str]:
    """Yield a sentence for each member of a user's own class that nothing calls."""
    endpoints, source = parts.endpoints, parts.endpoints.source
    sources = source.parts.values() if isinstance(source, SourceGroup) else (source,)
    of_contract: list[tuple[object, type]] = [(own, Source) for own in sources]
    of_contract += [(stage, Stage) for stage in parts.scrub.stages]
    of_contract += [(sink, Sink) for sink in endpoints.sinks.values()]
    if parts.pipeline.trains:
        of_contract.append((parts.model.learner.unwrapped, Learner))
    for component, contract in of_contract:
        yield from misspelt_members(type(component), contract)


def log_uncalled_members(parts: Parts) -> None:
    """Warn of `uncalled_members`: a misspelt snapshot loses its state on a resume."""
    for sentence in uncalled_members(parts):
        log.warning("%s", sentence)


__all__ = [
    "log_uncalled_members",
    "require_exportable",
    "require_free_names",
    "require_late_labels",
    "require_learned",
    "require_no_feedback",
    "require_own_output",
    "require_repeatable",
    "require_sections",
    "require_shufflable",
    "require_sink_schema",
    "require_static_member",
    "require_writable",
    "uncalled_members",
]
