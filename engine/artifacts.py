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
from engine.quality.threshold import MIN_ROWS, choose_threshold
from engine.running import error_plot
from engine.running.bottleneck import Bottleneck
from engine.running.loop import Loop
from engine.running.reject_limit import TooManyRejects
from engine.running.totals import Totals
from engine.running.work import report_quality
from engine.scrub.fusion import FILLED_BEFORE_LEARNING
from engine.system import atomic
from engine.types import HeadraceError, Learner, Mark, Stage, Transform, UserError
from engine.types.plural import counted

if TYPE_CHECKING:
    from models.compress.gate import GateReport

log = logging.getLogger("headrace.run")
REPORT_FILE, METRICS_FILE, COMPRESSION_FILE = "report.json", "metrics.prom", "compression.json"
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


def write_schema(parts: Parts) -> None:
    """Save the columns of this run and the inferred classes, for a resume."""
    pipeline, endpoints = parts.pipeline, parts.endpoints
    inferred = pipeline.trains and not parts.model.common_settings.classes
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
    compression, too_many = None, isinstance(failed, TooManyRejects)
    if pipeline.trains:
        files |= _write_report(parts, loop.totals)
        _catch_up(parts, loop.mark)
        if pipeline.export is not None and not (loop.stopped or too_many):
            files["model"] = export(parts, loop.mark)
            if pipeline.export.compress is not None:
                compression = compress(parts)
                files |= {
                    "served model": pipeline.model_path,
                    "compression": folder / COMPRESSION_FILE,
                }
                compression.to_json(files["compression"])
    files["metrics"] = folder / METRICS_FILE
    parts.metrics.render_final(files["metrics"])
    if pipeline.export is not None and (too_many or (loop.stopped and not failed)):
        _log_no_model(pipeline.file, too_many)
    return files, compression


def export(parts: Parts, mark: Mark, path: Path | None = None) -> Path:
    """Write the model with its scrub stages as float32 ONNX.

    Args:
        mark: the position that stages and learner have both reached.
        path: `Pipeline.float_model_path`, or, if it is not compressed, `model_path`.

    Raises: UserError if nothing is trained, or a stage cannot be exported.
    """
    from models.export.model import export as write_model

    pipeline, model = parts.pipeline, parts.model
    if not pipeline.trains:
        raise UserError(f"{pipeline.file} has no [model]: there is nothing to export.")
    uncompressed = pipeline.export is not None and pipeline.export.compress is None
    path = path or (pipeline.model_path if uncompressed else pipeline.float_model_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    transforms: list[Transform] = []
    for stage in parts.scrub.stages[parts.scrub.export_from :]:
        transforms += stage.transforms() or ()
    rows = None if model.holdout is None else model.holdout.frame()
    file = write_model(
        path, model.learner, transforms, _metadata(parts, mark), ranges=_ranges(rows)
    )
    if model.common_settings.threshold_settings.is_chosen:
        _annotate_threshold(parts, file, rows)
    return file


def compress(parts: Parts) -> GateReport:
    """Compress the exported model, if the gate accepts a candidate.

    Raises: UserError without an [export] section.
    """
    from models.compress.gate import Compression
    from models.compress.gate import compress as compress_model

    pipeline, holdout = parts.pipeline, parts.model.holdout
    if pipeline.export is None:
        raise UserError(
            f"{pipeline.file} holds out no rows to test a compressed model on: add an "
            "[export] section and run it again."
        )
    rows = None if holdout is None else holdout.frame()
    settings = parts.model.compression or Compression()
    return compress_model(pipeline.float_model_path, rows, settings, path=pipeline.model_path)


def _log_no_model(file: str, too_many: bool) -> None:
    log.log(
        logging.WARNING if too_many else logging.INFO,
        "No model is exported after a run %s. Its checkpoint is saved: 'headrace export %s' writes "
        "one.",
        "with so many rejected rows" if too_many else "that was stopped",
        file,
    )


def _places(parts: Parts, totals: Totals) -> dict[str, Path]:
    """Return what was written during the run."""
    pipeline = parts.pipeline
    files = {"checkpoints": Path(parts.endpoints.checkpoints.settings.path)}
    if pipeline.sink is not None and "path" in pipeline.sink:
        files["predictions" if pipeline.model else "rows"] = Path(pipeline.sink["path"])
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
    for remark in _early_fills(totals.counts, before):
        log.warning("%s", remark)


def _early_fills(counts: Counts, before: Counts) -> Iterator[str]:
    """Describe each stage that filled values in this run before it had learned any."""
    for (stage, name), n in counts.items():
        if name == FILLED_BEFORE_LEARNING and n > before.get((stage, name), 0):
            yield (
                f'[scrub.{stage}] filled {counted(n, "value")} with 0, "" or false, before it '
                "had seen a value of their columns: set 'value' in a 'missing' stage, or begin "
                "with complete rows."
            )


def _write_report(parts: Parts, totals: Totals) -> dict[str, Path]:
    """Write the evaluation's numbers and the stages' counts, and plot the error if there is a
    curve."""
    folder, evaluation = Path(parts.pipeline.folder), parts.model.evaluation
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


def _metadata(parts: Parts, mark: Mark) -> dict[str, str]:
    """Return the metadata of a model file."""
    scrub = parts.scrub
    outside, exported = scrub.stages[: scrub.export_from], scrub.stages[scrub.export_from :]
    positions = json.dumps(dict(mark.positions), sort_keys=True)
    return {
        "pipeline": parts.pipeline.name,
        "version": hashlib.sha256(positions.encode()).hexdigest()[:8],
        "stages": json.dumps([stage.name for stage in exported]),
        "before": json.dumps([stage.name for stage in outside if stage.transforms() != ()]),
        "columns": json.dumps(type_names(scrub.export_schema)),
        "parse_settings": json.dumps(parts.endpoints.source.parse_settings()),
        "mark": json.dumps(dict(mark.positions)),
    }


def _annotate_threshold(parts: Parts, file: Path, rows: pl.DataFrame | None) -> None:
    """Choose the threshold on the held-out rows, as the finished model scores them, and write it
    into the model file."""
    from models.export.model_files import annotate
    from models.serving.predictor import OnnxPredictor

    features, threshold = parts.model.features, None
    if rows is not None:
        label = pl.col(str(features.target)).cast(pl.String)
        rows = rows.filter(label.is_in(features.classes).fill_null(False))
        scores = OnnxPredictor(OnnxPredictor.Settings(model=str(file))).scores(rows)
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
    annotate(file, {"threshold": repr(0.5 if threshold is None else threshold)})


def _ranges(rows: pl.DataFrame | None) -> dict[str, tuple[float, float]]:
    """Return numeric column -> (minimum, maximum)."""
    if rows is None:
        return {}
    numeric = [
        c for c, dtype in rows.schema.items() if dtype.is_numeric() and not c.startswith("_")
    ]
    ends = rows.with_columns(pl.selectors.decimal().cast(pl.Float64)).select(
        pl.col(numeric).min().name.prefix("a"), pl.col(numeric).max().name.prefix("b")
    )
    row = ends.row(0, named=True)
    return {c: (row["a" + c], row["b" + c]) for c in numeric if row["a" + c] is not None}


__all__ = [
    "OUTPUT_FILES",
    "Summary",
    "compress",
    "export",
    "leave",
    "output_folders",
    "write_schema",
]
