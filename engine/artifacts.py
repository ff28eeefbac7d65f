"""The artifacts of a run: model files, report, plot, metrics and summary."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from engine.assembly.parts import Parts
from engine.assembly.saved_schema import SCHEMA_FILE, SavedSchema, resolved_folders, type_names
from engine.assembly.served import TABLE, result_settings, trusted_network
from engine.config import Pipeline
from engine.quality import error_plot
from engine.quality.threshold import MIN_ROWS, choose_threshold
from engine.running.bottleneck import Bottleneck
from engine.running.loop import Loop
from engine.running.reject_limit import TooManyRejects
from engine.running.totals import Totals
from engine.running.work import report_quality
from engine.scrub.fusion import FILLED_BEFORE_LEARNING
from engine.system import atomic
from engine.types import HeadraceError, Learner, Mark, Settings, Stage, UserError
from engine.types.plural import counted

if TYPE_CHECKING:  # an engine that only cleans or serves imports neither
    from engine.versions.store import Versions
    from engine.versions.version import Version
    from models.compress.gate import GateReport
    from models.serving.predictor import Network

log = logging.getLogger("headrace.run")
REPORT_FILE, METRICS_FILE, COMPRESSION_FILE = "report.json", "metrics.prom", "compression.json"
TRIED_ROWS = 1_024
"""The held-out rows that a version must score before it is published."""
OUTPUT_FILES = (SCHEMA_FILE, REPORT_FILE, *error_plot.FILES, METRICS_FILE, COMPRESSION_FILE)
"""The files a run writes into the pipeline's folder."""
Counts = Mapping[tuple[str, str], int]
"""(stage, counter) -> count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of a run.

    Attributes:
        totals: the outcome of every record, restarts included.
        seconds: the duration of this run.
        resumed: whether it started from a checkpoint.
        stopped: whether a signal ended it.
        report: the evaluation's numbers; {} without training.
        compression: the report of the compression gate, or None.
        bottleneck: the bottleneck, or None if nothing was done.
        remarks: the source's, see `engine.types.Source.remarks`.
        files: name -> file or folder it left.
    """

    totals: Totals
    seconds: float
    resumed: bool
    stopped: bool
    report: Mapping[str, Any] = field(default_factory=dict)
    compression: GateReport | None = None
    bottleneck: Bottleneck | None = None
    remarks: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


def output_folders(parts: Parts) -> Iterator[Path]:
    """Yield the folders a run writes to. It also deletes there (results after a checkpoint, old
    checkpoints), so no other run may share them."""
    yield Path(parts.pipeline.folder)
    yield parts.endpoints.checkpoints.folder
    for sink in parts.endpoints.sinks.values():
        yield from sink.folders()
    export = parts.pipeline.export
    if parts.pipeline.exports and export is not None and export.versions is not None:
        yield parts.pipeline.versions_path  # its own is in the folder


def nothing_left(parts: Parts, loop: Loop, read: int) -> Iterator[str]:
    """Describe a resumed run that found nothing more to read: what it did not do, and what to do.

    Args:
        read: the records read before this run.
    """
    if not loop.resumed or loop.stopped or loop.totals.read > read:
        return
    if parts.endpoints.replay:
        yield (
            "Nothing was left to replay: each dead letter was replayed before, and one that is "
            "rejected again is a new one."
        )
        return
    changed = ", ".join(parts.endpoints.checkpoints.changed)
    untried = f", so what has changed since ({changed}) applied to none" if changed else ""
    yield (
        f"Nothing was left to read: the source has no record after the checkpoint{untried}. To "
        "start over from its first record, run with --fresh."
    )


def write_schema(parts: Parts) -> None:
    """Save the columns of this run and the inferred classes, for a resume."""
    pipeline, endpoints = parts.pipeline, parts.endpoints
    inferred = pipeline.trains and not parts.model.common_settings.given_classes
    saved = SavedSchema(
        declared=pipeline.source.get("schema", {}),
        columns=type_names(parts.scrub.content_schema),
        findings=endpoints.source.schema_state(),
        writes=sorted(map(str, resolved_folders(endpoints.sinks.values()))),
        classes=parts.model.features.classes if inferred else (),
    )
    saved.write(Path(pipeline.folder))


def leave(
    parts: Parts, loop: Loop, before: Counts, failed: Exception | None = None
) -> tuple[dict[str, Path], GateReport | None]:
    """Write the artifacts of a finished run and log the remarks of its parts.

    Args:
        before: the counts of stages when the run started.
        failed: the error that ended it. No model is written after a stop or too many rejects.

    Returns: name -> file, and the report of the compression gate.

    Raises: `failed`, which is the one to report, or HeadraceError, if they cannot be written.
    """
    try:
        return _leave(parts, loop, before, failed)
    except (OSError, HeadraceError) as error:
        folder = parts.pipeline.folder
        reason = (isinstance(error, OSError) and error.strerror) or error
        if failed is not None:
            log.warning("The artifacts of the run cannot be written to %s: %s", folder, reason)
            raise failed from error
        if isinstance(error, HeadraceError):
            raise
        raise HeadraceError(
            f"The artifacts of the run cannot be written to {folder}: {reason}; its checkpoint is "
            "saved: free some space and start again."
        ) from error


def _leave(
    parts: Parts, loop: Loop, before: Counts, failed: Exception | None
) -> tuple[dict[str, Path], GateReport | None]:
    pipeline, folder = parts.pipeline, Path(parts.pipeline.folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = _places(parts, loop.totals)
    _log_remarks(parts, loop.totals, before)
    too_many = isinstance(failed, TooManyRejects)
    knows = pipeline.trains and knows_something(parts, loop.totals.learned)
    compression: GateReport | None = None
    try:
        if pipeline.trains:
            files |= _write_report(parts, loop.totals)
            _catch_up(parts, loop.mark)
            if pipeline.export is not None and knows and not (loop.stopped or too_many):
                compression = _write_model(parts, loop, files)
    finally:
        files["metrics"] = folder / METRICS_FILE
        parts.metrics.render_final(files["metrics"])
    exports = pipeline.trains and pipeline.export is not None
    if exports and not knows:
        log.warning("No model is exported: no row has been learned so far.")
    elif exports and (too_many or (loop.stopped and not failed)):
        _log_no_model(pipeline.file, too_many)
    return files, compression


def knows_something(parts: Parts, learned: int) -> bool:
    """Return whether a model that has learned so many rows is worth a file: if any, or if it began
    with weights from elsewhere."""
    first = parts.module is not None or (parts.pipeline.model or {}).get("weights") is not None
    return learned > 0 or first


def _write_model(parts: Parts, loop: Loop, files: dict[str, Path]) -> GateReport | None:
    """Export the finished model, compress it, and publish it as a version; add what is written to
    `files`."""
    pipeline = parts.pipeline
    assert pipeline.export is not None, "asked before"
    try:
        files["model"] = export(parts, loop.mark)
        log_outside(parts, files["model"])
    except UserError as error:
        raise HeadraceError(
            "The model is trained and its checkpoint is saved, but no model file is written: "
            f"{error} Then 'headrace export {pipeline.file}' writes it from the checkpoint."
        ) from None
    compression = None if pipeline.export.compress is None else compress(parts)
    if compression is not None:
        files |= {
            "served model": pipeline.model_path,
            "compression": Path(pipeline.folder) / COMPRESSION_FILE,
        }
        compression.to_json(files["compression"])
    if pipeline.model_path.is_file():  # a pipe has been read by somebody by now
        from engine.versions.publishing import log_version
        from engine.versions.registry import job_of, register
        from engine.versions.store import Versions

        versions = Versions(pipeline.versions_path)
        before = versions.numbers()
        added = add_version(parts, rows=loop.totals.learned, data_time=loop.reporter.event_time)
        if added.number in before:
            log.info("version %d is this model already: no other is published", added.number)
        else:
            log_version(added)
        files[f"version {added.number}"] = versions.path(added.number)
        if (job := job_of(pipeline)) is not None:
            register(job, parts.metrics)
    return compression


def export_path(pipeline: Pipeline) -> Path:
    """Return where a model goes as float32: where it is served from, if nothing compresses it."""
    uncompressed = pipeline.export is not None and pipeline.export.compress is None
    return pipeline.model_path if uncompressed else pipeline.float_model_path


def export(parts: Parts, mark: Mark, path: Path | None = None) -> Path:
    """Write the model with its scrub stages as float32 ONNX.

    Args:
        mark: the position that stages and learner have both reached.
        path: `export_path` unless given.

    Raises: UserError if nothing is trained, or the model cannot be exported.
    """
    from models.export.model import export as write_model

    pipeline, model = parts.pipeline, parts.model
    if not pipeline.trains:
        raise UserError(f"{pipeline.file} has no [model]: there is nothing to export.")
    seen = model.learner.features.classes
    if model.features.max_classes and len(seen) < 2:
        raise UserError(
            f"{pipeline.file} has seen {counted(len(seen), 'class', 'classes')}, and a model file "
            "tells two at least apart: train on rows of more."
        )
    path = path or export_path(pipeline)
    path.parent.mkdir(parents=True, exist_ok=True)
    holdout = parts.judging.holdout
    rows = None if holdout is None else holdout.frame()
    file = write_model(
        path,
        model.learner,
        parts.scrub.transforms,
        _metadata(parts, mark),
        ranges=_ranges(rows),
        schema=parts.scrub.export_schema,
        scales=parts.scrub.scales,
        rows=rows,
    )
    if model.common_settings.threshold_settings.is_chosen:
        _annotate_threshold(parts, file, rows)
    return file


def try_export(parts: Parts) -> None:
    """Make the model file of the untrained model, without writing it: what fails here would fail
    after hours of training.

    Raises: UserError if it cannot be exported.
    """
    from models.export.model import make

    scrub = parts.scrub
    schema, scales = scrub.export_schema, scrub.scales
    make(parts.model.learner, scrub.transforms, {}, schema=schema, scales=scales)


def compress(parts: Parts) -> GateReport:
    """Compress the exported model, if the gate accepts a candidate.

    Raises: UserError without an [export] section.
    """
    from models.compress.gate import Compression
    from models.compress.gate import compress as compress_model

    pipeline, holdout = parts.pipeline, parts.judging.holdout
    if pipeline.export is None:
        raise UserError(
            f"{pipeline.file} holds out no rows to test a compressed model on: add an "
            "[export] section and run it again."
        )
    rows = None if holdout is None else holdout.frame()
    settings = parts.judging.compression or Compression()
    return compress_model(pipeline.float_model_path, rows, settings, path=pipeline.model_path)


def add_version(parts: Parts, *, rows: int, data_time: float | None) -> Version:
    """Publish the exported model as a version, if it gives the held-out rows a score; it serves if
    it is not surely worse on them than the version that serves. The same model is no other version.

    Args:
        rows: learned so far.
        data_time: the newest time of a record, in seconds since the epoch; None if unknown.

    Raises: HeadraceError if it gives none a finite score; OSError. The pointer stays then.
    """
    from engine.versions.store import Versions
    from engine.versions.version import Details
    from models.export.model_files import metadata

    pipeline = parts.pipeline
    assert pipeline.export is not None
    _require_scores(parts)
    properties = metadata(pipeline.model_path)
    versions = Versions(pipeline.versions_path)
    same = versions.same(properties["version"], properties["precision"])
    if same is not None:
        return same
    details = Details(
        model_version=properties["version"],
        rows=rows,
        data_time=data_time,
        precision=properties["precision"],
        positions=json.loads(properties["mark"]),
        kept_back=_worse(parts, versions),
    )
    return versions.publish(pipeline.model_path, details, keep=pipeline.export.keep)


def _worse(parts: Parts, versions: Versions) -> str:
    """Return by how much the exported model is surely worse than the version that serves; "" if it
    is not, or there is none to compare it with."""
    from models.compress.successor import surely_worse

    pipeline, holdout = parts.pipeline, parts.judging.holdout
    rows = None if holdout is None else holdout.frame()
    assert pipeline.export is not None
    try:
        current = versions.current()
    except UserError:  # none is there, or it is torn
        return ""
    if rows is None or not rows.height:
        return ""
    allowed = pipeline.export.max_quality_loss
    model = versions.model(current.number)
    network = _own_network(parts)
    worse = surely_worse(pipeline.model_path, model, rows, allowed=allowed, network=network)
    return f"beside version {current.number}, {worse}" if worse else ""


def _require_scores(parts: Parts) -> None:
    """Check that the exported model gives some held-out row a finite score."""
    from models.serving.predictor import OnnxPredictor

    holdout = parts.judging.holdout
    rows = None if holdout is None else holdout.frame()
    if rows is None or not rows.height:
        return
    model = str(parts.pipeline.model_path)
    settings = OnnxPredictor.Settings(model=model, threads=1)
    scores = OnnxPredictor(settings, network=_own_network(parts)).scores(rows.tail(TRIED_ROWS))
    if not np.isfinite(scores).any():
        raise HeadraceError(
            f"The model in {model} gives none of {counted(len(scores), 'held-out row')} a finite "
            "score: no version of it is published."
        )


def _own_network(parts: Parts) -> Network | None:
    """Return what makes the pipeline's own network from a model file, where torch runs it."""
    return trusted_network((parts.pipeline.model or {}).get("module"))


def _log_no_model(file: str, too_many: bool) -> None:
    log.log(
        logging.WARNING if too_many else logging.INFO,
        "No model is exported after a run %s. Its checkpoint is saved: 'headrace export %s' writes "
        "the float32 file, 'headrace compress' smaller ones; [export] every = \"10m\" publishes "
        "versions while a run goes on.",
        "with so many rejected rows" if too_many else "that was stopped",
        file,
    )


def _places(parts: Parts, totals: Totals) -> dict[str, Path]:
    """Return what was written during the run."""
    pipeline = parts.pipeline
    files = {"checkpoints": Path(parts.endpoints.checkpoints.settings.path)}
    if pipeline.sink is not None and "path" in pipeline.sink:
        files["predictions" if pipeline.model or pipeline.infer else "rows"] = Path(
            pipeline.sink["path"]
        )
    if totals.rejected and pipeline.dead_letters.kind == "files":
        files["dead letters"] = pipeline.dead_letters_path
    return files


def _log_remarks(parts: Parts, totals: Totals, before: Counts) -> None:
    """Log the remarks of stages and learner, if the run read anything."""
    remarking: list[Stage | Learner] = [*parts.scrub.stages]
    if parts.pipeline.trains:
        remarking.append(parts.model.learner)
    for part in remarking if totals.read else ():
        for remark in part.remarks():
            log.warning("%s", remark)
    for remark in (*_early_fills(totals.counts, before), *_waiting(totals), *_only_assumed(totals)):
        log.warning("%s", remark)


def _waiting(totals: Totals) -> Iterator[str]:
    """Describe rows and labels that wait, where none have found each other so far."""
    if totals.waiting and not (totals.matched or totals.learned or totals.expired):
        yield (
            f"Nothing is learned yet: {counted(totals.waiting, 'row or label', 'rows and labels')} "
            "wait for each other in the checkpoint, and a run with more of them goes on there. If "
            "labels of these rows have come, compare the keys ([labels] by) of both."
        )


def _only_assumed(totals: Totals) -> Iterator[str]:
    """Describe labels that are all assumed: a report on them shows nothing of the model."""
    assumed = totals.counts.get(("labels", "on_missing"), 0)
    if assumed and not totals.matched:
        yield (
            f"No label has come: all {counted(assumed, 'row')} took that of [labels] on_missing, "
            "so the figures say nothing of the model. See that [labels.source] has labels, and "
            "compare the keys ([labels] by) of both."
        )


def _early_fills(counts: Counts, before: Counts) -> Iterator[str]:
    """Describe each stage that filled values in this run before it had learned any."""
    for (stage, name), n in counts.items():
        if name == FILLED_BEFORE_LEARNING and n > before.get((stage, name), 0):
            yield (
                f'[scrub.{stage}] filled {counted(n, "value")} with 0, "" or false, before it '
                "had learned a value of their columns: set 'value' in a 'missing' stage, or begin "
                "with complete rows."
            )


def _write_report(parts: Parts, totals: Totals) -> dict[str, Path]:
    """Write the evaluation's numbers and the stages' counts, and plot the error if there is a
    curve."""
    folder, evaluation = Path(parts.pipeline.folder), parts.judging.evaluation
    numbers = evaluation.report()
    report_quality(parts.metrics, numbers)
    by_stage: dict[str, dict[str, int]] = {}
    for (stage, name), n in totals.counts.items():
        by_stage.setdefault(stage, {})[name] = n
    files = {"report": folder / REPORT_FILE}
    text = json.dumps({**numbers, "counted": by_stage}, indent=2, default=str)
    atomic.write(files["report"], text)
    history = evaluation.history()
    if history.height > 1:
        try:
            files["picture"] = error_plot.write(history, folder, title=parts.pipeline.name)
        except Exception as error:  # noqa: BLE001 - no picture is worth a run
            log.warning("The error plot cannot be written to %s: %s", folder, error)
    return files


def _catch_up(parts: Parts, mark: Mark) -> None:
    """Restore the stages as of the last batch: the prepare thread may have run ahead."""
    for stage in parts.scrub.stages:
        if stage.name in mark.stages:
            stage.restore(mark.stages[stage.name])


def log_outside(parts: Parts, model: Path) -> None:
    """Say which stages a model file lacks, so that who serves it needs them too."""
    if outside := [stage.where for stage in _outside(parts)]:
        those = "that stage" if len(outside) == 1 else "those stages"
        log.info(
            "%s does not contain %s: a pipeline with [infer], and 'headrace predict', need %s too, "
            "or rows that went through.", model, " and ".join(outside), those,
        )  # fmt: skip


def _outside(parts: Parts) -> list[Stage]:
    """Return the stages that change rows and that no model file of the pipeline contains."""
    stages = parts.scrub.stages[: parts.scrub.export_from]
    return [stage for stage in stages if stage.transforms() != ()]


def _metadata(parts: Parts, mark: Mark) -> dict[str, str]:
    """Return the metadata of a model file."""
    scrub, outside = parts.scrub, _outside(parts)
    exported = scrub.stages[scrub.export_from :]
    return {
        "pipeline": parts.pipeline.name,
        "stages": json.dumps([stage.name for stage in exported]),
        "before": json.dumps([stage.name for stage in outside]),
        "before_settings": json.dumps(
            {
                stage.name: {**result_settings(stage), TABLE: _table(parts, stage)}
                for stage in outside
            }
        ),
        "columns": json.dumps(type_names(scrub.export_schema)),
        "parse_settings": json.dumps(parts.endpoints.source.parse_settings()),
        "mark": json.dumps(dict(mark.positions)),
    }


def _table(parts: Parts, stage: Stage) -> dict[str, Any]:
    """Return a stage's table as a pipeline file has it, without what is a default, or a secret."""
    kind = (parts.pipeline.scrub.get(stage.name) or {}).get("kind", stage.name)
    named = {} if kind == stage.name else {"kind": kind}
    settings = stage.settings
    if not isinstance(settings, Settings):  # a user's stage need not keep any
        return named
    given = settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {**named, **{key: value for key, value in given.items() if value is not None}}


def _annotate_threshold(parts: Parts, file: Path, rows: pl.DataFrame | None) -> None:
    """Choose the threshold on the held-out rows, as the finished model scores them, and write it
    into the model file."""
    from models.export.model_files import annotate, metadata
    from models.serving.predictor import OnnxPredictor

    features, threshold = parts.model.features, None
    if features.state is not None:  # held-out rows by themselves lack the rows before them
        threshold = parts.judging.threshold.value
    elif rows is not None:
        label = pl.col(str(features.target)).cast(pl.String)
        rows = rows.filter(label.is_in(features.classes).fill_null(False))
        own = OnnxPredictor.Settings(model=str(file))
        scores = OnnxPredictor(own, network=_own_network(parts)).scores(rows)
        codes = label.cast(pl.Enum(features.classes)).to_physical().cast(pl.Int64)
        target = rows.select(codes).to_series().to_numpy()
        finite = np.isfinite(scores)
        settings = parts.model.common_settings.threshold_settings
        threshold = choose_threshold(settings, target[finite], scores[finite].astype(np.float64))
    if threshold is None:
        log.warning(
            "[model] threshold needs at least %d held-out rows of each class, and there are fewer: "
            "it stays 0.5. Train longer, or raise [export] holdout.",
            MIN_ROWS,
        )
    if threshold is not None:  # another threshold answers other classes: another version
        version = f"{metadata(file)['version']} {threshold!r}".encode()
        chosen = {"threshold": repr(threshold), "version": hashlib.sha256(version).hexdigest()[:8]}
        annotate(file, chosen)


def _ranges(rows: pl.DataFrame | None) -> dict[str, tuple[float, float]]:
    """Return numeric column -> (minimum, maximum)."""
    if rows is None:
        return {}
    numeric = [
        c for c, dtype in rows.schema.items() if dtype.is_numeric() and not c.startswith("_")
    ]
    if not numeric:
        return {}
    ends = rows.with_columns(pl.selectors.decimal().cast(pl.Float64)).select(
        pl.col(numeric).min().name.prefix("a"), pl.col(numeric).max().name.prefix("b")
    )
    row = ends.row(0, named=True)
    return {c: (row["a" + c], row["b" + c]) for c in numeric if row["a" + c] is not None}


__all__ = [
    "OUTPUT_FILES",
    "Summary",
    "add_version",
    "compress",
    "export",
    "knows_something",
    "leave",
    "log_outside",
    "nothing_left",
    "output_folders",
    "try_export",
    "write_schema",
]
