"""Makes compressed candidates of a model file, tests each on rows it was not trained on, and
keeps the best.

A candidate is accepted only where quality, speed and size all say so, and quality surely; a refusal
gives its numbers. The engine never runs a candidate itself: see
`models.compress.candidate_process`.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import ByteSize, Field
from rich.markup import escape
from rich.table import Table

from engine import types
from engine.system.limited_process import ProcessFailed
from engine.types import HeadraceError, UserError, class_indexes
from engine.types.arrays import Floats
from engine.types.plural import counted
from models.compress import candidate_process
from models.compress.comparison import (
    Figure,
    Rules,
    compare_classes,
    compare_quantiles,
    compare_regression,
    compare_targets,
    speed,
)
from models.compress.quantize import CANDIDATES
from models.export.model_files import metadata, put
from models.export.onnx_inputs import Feed, OnnxInputs
from models.export.properties import Properties
from models.serving.session import available_providers, runtime_version

CALIBRATION_BATCH = 512
MIN_CALIBRATION, MIN_JUDGED = 10, 100
"""The least labelled rows to calibrate or judge."""


class Compression(types.Settings):
    """``[export.compress]``

    Attributes:
        candidates: of int8, int8_dynamic, float16; tried in this order.
        max_quality_loss: accepted loss of every measure over all held-out rows: percent of the
            float32 model's MAE and RMSE for a regression; for classes points (of 100) of accuracy,
            AUC and average precision, and of log loss in units of the classes' entropy.
        max_slice_loss: accepted loss of the worst slice: points of a class's recall; percent of the
            MAE of a range of the target, or of the largest errors.
        confidence: of the intervals; a loss passes where the upper end of its interval does.
        min_speedup: accepted speed: float32's time over the candidate's, at batches of 1,024 rows.
            The lower end of its interval must reach it.
        max_size_ratio: accepted size: the candidate's file over float32's.
        calibration [share]: share of the held-out rows, the oldest, that calibrate; the others
            evaluate.
        rounds: how often each model runs in turn for its latency.
        providers: ONNX Runtime's providers, as in [infer].
        max_seconds [seconds]: of processor time for a candidate, to make and to try it.
        max_memory: for a candidate; unless given, 2 GiB and eight times the model's file.
    """

    candidates: tuple[str, ...] = ("int8", "int8_dynamic", "float16")
    max_quality_loss: float = Field(0.5, ge=0)
    max_slice_loss: float = Field(2.0, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    min_speedup: float = Field(1.1, gt=0)
    max_size_ratio: float = Field(1.0, gt=0)
    calibration: float = Field(0.3, gt=0, lt=1)
    rounds: int = Field(60, ge=3)
    providers: tuple[str, ...] = ()
    max_seconds: float = Field(300.0, gt=0)
    max_memory: ByteSize | None = Field(None, gt=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model and its figures.

    Attributes:
        error: MAE of a regression, 1 - accuracy of classes, on the judging rows.
        loss: by how much that is worse than float32, in percent of it (regression) or points of 100
            (classes).
        figures: every measure that is judged, with its interval; that of `error` first, the worst
            slice last.
        divergence: largest difference of a score from float32's.
        batch_ms, single_ms: median time of 1,024 rows and of one on one core, milliseconds;
            batch_p99_ms the 99th percentile.
        speedup: float32's batch_ms over this one's, pair by pair in turn, median; its interval is
            speedup_low to speedup_high.
        size: bytes of the file.
        refusal: why it was not accepted, or None.
    """

    name: str
    path: str
    error: float
    loss: float
    figures: tuple[Figure, ...]
    divergence: float
    batch_ms: float
    batch_p99_ms: float
    single_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    size: int
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The report of the compression gate.

    Attributes:
        candidates: float32 first; empty if there were too few rows.
        failed: candidate -> why it could not be made or run.
        chosen: the name of the model that serves: the fastest accepted, or float32.
        rows: the number of rows for evaluation.
        calibration: the number of rows for calibration.
        which: which rows these are.
        confidence: of the intervals.
        measure: what `error` is.
        provider: where latency was measured.
        remark: why no candidate was evaluated, or None.
    """

    candidates: tuple[Candidate, ...]
    failed: dict[str, str]
    chosen: str
    rows: int
    calibration: int
    which: str
    confidence: float
    measure: str
    provider: str
    remark: str | None = None

    def tables(self) -> list[Table | str]:
        """Return tables for people: every measure of every model; one row per candidate, with
        the reasons for rejection; or the remark."""
        if self.remark is not None:
            return [self.remark]
        return [self._quality(), self.table()]

    def table(self) -> Table:
        """Return one row per candidate, and the reasons for rejection."""
        table = Table(
            title=f"compression, judged on {counted(self.rows, 'held-out row')} ({self.provider})",
            title_justify="left",
        )
        table.add_column("model")
        for column in (self.measure, "loss", "1,024 rows", "1 row", "speed", "size", "result"):
            table.add_column(column, justify="left" if column == "result" else "right")
        unit = " pt" if self.measure == "error" else " %"
        for c in self.candidates:
            result = "serves" if c.name == self.chosen else c.refusal or "accepted"
            table.add_row(
                c.name, f"{c.error:.4g}", f"{c.loss:+.2f}{unit}", f"{c.batch_ms:.2f} ms",
                f"{c.single_ms * 1000:.0f} us", f"{c.speedup:.2f}x", f"{c.size / 1024:.0f} kB",
                f"[bold green]{result}[/]" if c.name == self.chosen else result,
            )  # fmt: skip
        for name, reason in self.failed.items():
            table.add_row(name, "", "", "", "", "", "", f"refused: {escape(reason)}")
        return table

    def _quality(self) -> Table:
        base, *others = self.candidates
        table = Table(
            title=f"{counted(self.rows, 'row')}, {self.which}; intervals of {self.confidence:.0%}",
            title_justify="left",
        )
        table.add_column("held-out rows")
        for c in self.candidates:
            table.add_column(c.name, justify="right")
        for at, figure in enumerate(base.figures[:-1]):
            table.add_row(
                figure.name,
                f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})",
                *(_loss(c.figures[at]) for c in others),
            )
        worst = [f"{_loss(c.figures[-1])}, {c.figures[-1].name}" for c in others]
        table.add_row("worst slice", "", *worst)
        return table

    def to_json(self, path: Path) -> None:
        """Write all figures as JSON, with what they were measured on."""
        document = {
            **asdict(self, dict_factory=_finite),
            "machine": {
                "cpu": _cpu(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
            },
            "versions": {name: version(name) for name in ("onnx", "numpy", "polars")}
            | {"onnxruntime": runtime_version()},
        }
        put(json.dumps(document, indent=2).encode(), path)


def compress(
    model: Path, rows: pl.DataFrame | None, settings: Compression, *, path: Path
) -> GateReport:
    """Make the candidates beside `path`, evaluate them, and put the chosen model at `path`. With
    too few rows, that is the float32 model, and the report says so.

    Args:
        model: the exported float32 model.
        rows: held-out raw rows with the target, oldest first; the oldest calibrate, the newest
            evaluate. None if no row was held out.

    Raises: UserError for a candidate's name that is none; HeadraceError where the model itself does
        not run.
    """
    unknown = [name for name in settings.candidates if name not in CANDIDATES]
    if unknown:
        raise UserError(
            f"[export.compress] candidates expects names of {', '.join(CANDIDATES)}, "
            f"got '{unknown[0]}'."
        )
    held_out = _Gate(model, rows, settings)
    provider = available_providers(settings.providers)[0]
    if held_out.remark is None:
        try:
            base = held_out.run_candidate("", model)
        except ProcessFailed as error:
            raise HeadraceError(f"{model} cannot serve: the model {error}.") from None
        provider = base.provider
        held_out.set_baseline(base.scores)
    if held_out.remark is not None:
        put(model.read_bytes(), path)
        return held_out.report((), {}, "float32", provider)
    candidates = [held_out.candidate("float32", model, base, model.stat().st_size)]
    failed: dict[str, str] = {}
    for name in settings.candidates:
        candidate_path = path.with_name(f"{path.stem}.{name}.onnx")
        function = CANDIDATES[name]
        try:
            result = held_out.run_candidate(
                f"{function.__module__}:{function.__qualname__}", candidate_path
            )
        except ProcessFailed as error:
            failed[name] = str(error)
            candidate_path.unlink(missing_ok=True)
            continue
        candidates.append(held_out.candidate(name, candidate_path, result, candidates[0].size))
    chosen = _choose([c for c in candidates if c.refusal is None])
    put(Path(chosen.path).read_bytes(), path)
    return held_out.report(tuple(candidates), failed, chosen.name, provider)


class _Gate:
    """The held-out rows, split: some calibrate, the others evaluate.

    Attributes:
        remark: why they are too few, or None.
    """

    def __init__(self, model: Path, rows: pl.DataFrame | None, settings: Compression) -> None:
        properties = Properties.read(metadata(model), model)
        self._model, self._settings = model, settings
        self._inputs = OnnxInputs.of(properties)
        self._classes = properties.classes
        self._threshold = properties.threshold
        self._regression = properties.task == "regression"
        self._rules = Rules(
            max_loss=settings.max_quality_loss,
            max_slice_loss=settings.max_slice_loss,
            confidence=settings.confidence,
        )
        self._memory = int(settings.max_memory or 2**31 + 8 * model.stat().st_size)
        self._quantiles = properties.quantiles
        self._targets = properties.targets or (properties.target,)
        self._old, self._new = self._split(rows)
        self.remark = self._short(self._new.height)
        if properties.body == "torch":
            self.remark = (
                "The network of the model could not become ONNX, so torch runs it, and there is "
                "nothing to compress: float32 serves."
            )
        if properties.state is not None:
            self.remark = (
                "The model carries a state per key, and held-out rows stand alone, so that they "
                "say nothing of smaller numbers: float32 serves."
            )

    def run_candidate(self, make: str, path: Path) -> candidate_process.Result:
        """Make and run a model in its own process. Raises: ProcessFailed."""
        job = candidate_process.CandidateJob(
            make=make,
            base=str(self._model),
            path=str(path),
            calibration=self._calibration() if make else [],
            judging=self._inputs.feed(self._new),
            providers=available_providers(self._settings.providers),
            rounds=self._settings.rounds,
        )
        return candidate_process.run(job, seconds=self._settings.max_seconds, memory=self._memory)

    def set_baseline(self, scores: Any) -> None:
        """Take the float32 model's scores; rows without a score are rejected in serving, so they
        do not count here."""
        self._finite = _finite_rows(scores)
        self._base = np.asarray(scores[self._finite], np.float64)
        self._target = self._labels()[self._finite]
        self.remark = self._short(len(self._target))

    def candidate(
        self, name: str, path: Path, result: candidate_process.Result, size: int
    ) -> Candidate:
        """Return a model's figures, with the reason for rejection if one is out of bounds."""
        scores = np.asarray(result.scores[self._finite], np.float64)
        figures = self._compare(scores)
        times, rate = (
            1000 * result.batch[:, 1],
            speed(result.batch[:, 0], result.batch[:, 1], self._rules),
        )
        if name == "float32":
            rate = (1.0, 1.0, 1.0)
        candidate = Candidate(
            name=name,
            path=str(path),
            error=figures[0].value,
            loss=figures[0].loss,
            figures=figures,
            divergence=float(np.abs(scores - self._base).max(initial=0.0)),
            batch_ms=float(np.median(times)),
            batch_p99_ms=float(np.quantile(times, 0.99)),
            single_ms=1000 * float(np.median(result.single[:, 1])),
            speedup=rate[0],
            speedup_low=rate[1],
            speedup_high=rate[2],
            size=path.stat().st_size,
        )
        lost = int((~_finite_rows(scores)).sum())
        return (
            candidate if name == "float32" else _with_refusal(candidate, size, lost, self._settings)
        )

    def report(
        self, candidates: tuple[Candidate, ...], failed: dict[str, str], chosen: str, provider: str
    ) -> GateReport:
        """Return the report on rows and models."""
        return GateReport(
            candidates=candidates,
            failed=failed,
            chosen=chosen,
            rows=len(self._target) if candidates else 0,
            calibration=self._old.height,
            which="the newest of those held out by a hash of the row (where equal rows are common, "
            "of its place), never learned",
            confidence=self._settings.confidence,
            measure=self._measure,
            provider=provider,
            remark=self.remark,
        )

    def _split(self, rows: pl.DataFrame | None) -> tuple[pl.DataFrame, pl.DataFrame]:
        if rows is None:
            return pl.DataFrame(), pl.DataFrame()
        if self._regression:  # rows without a label are rejected before they are learned
            labels = (pl.col(name).cast(pl.Float64).is_finite() for name in self._targets)
            known = pl.any_horizontal(*labels)
        else:
            numbers = class_indexes(rows.get_column(self._targets[0]), self._classes)
            known = pl.lit(pl.Series(numbers >= 0))
        rows = rows.filter(known.fill_null(False))
        cut = int(rows.height * self._settings.calibration)
        return rows.head(cut), rows.slice(cut)

    def _short(self, judged: int) -> str | None:
        """Return the remark for too few rows, or None."""
        old = self._old.height
        if old >= MIN_CALIBRATION and judged >= MIN_JUDGED:
            return None
        return (
            f"No compressed model was judged, and float32 serves: there "
            f"{'is' if old == 1 else 'are'} {counted(old, 'held-out row')} with a label and a "
            f"score to calibrate and {judged:,} to judge with, and "
            f"{MIN_CALIBRATION} and {MIN_JUDGED} are needed. Train longer, or raise [export] "
            "holdout."
        )

    def _calibration(self) -> list[Feed]:
        """Yield feeds of the older rows."""
        size = CALIBRATION_BATCH
        parts = range(0, self._old.height, size)
        return [self._inputs.feed(self._old.slice(start, size)) for start in parts]

    def _labels(self) -> Any:
        """Return the target as numbers, or as class numbers, shape (n,); of several targets (n, k),
        NaN where there is none."""
        if self._regression:
            columns = self._new.select(pl.col(list(self._targets)).cast(pl.Float64)).to_numpy()
            return columns if len(self._targets) > 1 else columns[:, 0]
        return class_indexes(self._new.get_column(self._targets[0]), self._classes)

    @property
    def _measure(self) -> str:
        """What the first of the figures is."""
        if self._quantiles:
            return "pinball loss"
        return "MAE" if self._regression else "error"

    def _compare(self, scores: Floats) -> tuple[Figure, ...]:
        if len(self._targets) > 1:
            return compare_targets(self._target, self._base, scores, self._rules, self._targets)
        if self._quantiles:
            return compare_quantiles(self._target, self._base, scores, self._rules, self._quantiles)
        if self._regression:
            return compare_regression(self._target, self._base, scores, self._rules)
        return compare_classes(
            self._target, self._base, scores, self._rules,
            names=self._classes, threshold=self._threshold,
        )  # fmt: skip


def _finite_rows(scores: Any) -> Any:
    """Return which rows have only finite scores, shape (n,)."""
    return np.isfinite(scores).reshape(len(scores), -1).all(axis=1)


def _with_refusal(c: Candidate, size: int, lost: int, settings: Compression) -> Candidate:
    """Return the candidate, with the reason for rejection if a figure is out of bounds."""
    reasons = [f.refusal for f in c.figures if f.refusal is not None]
    if lost:
        reasons = [counted(lost, "row gets no finite score", "rows get no finite score")]
    if not c.speedup_low >= settings.min_speedup:
        low, high = c.speedup_low, c.speedup_high
        said = f"{c.speedup:.2f}x ({low:.2f} to {high:.2f})"
        needed = f"{settings.min_speedup:g}x"
        near = c.speedup >= settings.min_speedup
        reasons.append(
            f"speed not surely {needed}: {said}" if near else f"speed {said}, needed {needed}"
        )
    if c.size > settings.max_size_ratio * size:
        reasons.append(
            f"size {_apart(c.size / size, settings.max_size_ratio)} of float32, allowed "
            f"{settings.max_size_ratio:g}"
        )
    return replace(c, refusal=f"refused: {'; '.join(reasons)}") if reasons else c


def _apart(value: float, limit: float) -> str:
    """Return a number with two digits, or as many as tell it from a limit."""
    shown = (f"{value:.{digits}f}" for digits in range(2, 10))
    return next((text for text in shown if float(text) != limit), f"{value:g}")


def _choose(accepted: Sequence[Candidate]) -> Candidate:
    """Choose the fastest candidate; among those not significantly slower, the smallest."""
    fastest = max(accepted, key=lambda c: c.speedup)
    return min((c for c in accepted if c.speedup_high >= fastest.speedup_low), key=lambda c: c.size)


def _loss(figure: Figure) -> str:
    """Return the loss and its interval as text."""
    unit = " %" if figure.unit == "%" else " pt"
    loss, low, high = (
        f"{round(value, 2) + 0.0:+.2f}"  # never -0.00
        for value in (figure.loss, figure.loss_low, figure.loss_high)
    )
    return f"{loss}{unit} ({low} to {high})"


def _finite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Replace non-finite numbers by null, for JSON."""
    plain = ((k, None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in pairs)
    return dict(plain)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


__all__ = ["Candidate", "Compression", "GateReport", "compress"]
