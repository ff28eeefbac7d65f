"""Make compressed candidates of a model file, prove each on rows it was not trained on, and keep
the best.

A candidate is accepted only where quality, latency and size all say so; a refusal gives its
numbers.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from rich.table import Table

from engine import atomic, types
from engine.types import Features, UserError
from models.export import SCORE, put
from models.feed import Feed, Inputs
from models.predictor import available, runs_on, runtime_version, session
from models.quantize import CANDIDATES

CALIBRATION_BATCH = 512
PROBE_ROWS = 1_024


class Compression(types.Settings):
    """``[export.compress]``

    Attributes:
        candidates: of int8, int8_dynamic, float16; tried in this order.
        max_quality_loss: accepted rise of the error: percent of the float32 model's MAE for a
            regression, points (of 100) of accuracy for classes.
        min_speedup: accepted latency: float32's over the candidate's, at batches of 1,024 rows.
        max_size_ratio: accepted size: the candidate's file over float32's.
        calibration: share of the held-out rows, the oldest, that calibrate; the others judge.
        rounds: how often each model runs in turn for its latency.
        providers: as for serving.
    """

    candidates: tuple[str, ...] = ("int8", "int8_dynamic", "float16")
    max_quality_loss: float = Field(0.5, ge=0)
    min_speedup: float = Field(1.1, gt=0)
    max_size_ratio: float = Field(1.0, gt=0)
    calibration: float = Field(0.3, gt=0, lt=1)
    rounds: int = Field(60, ge=3)
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model and its figures.

    Attributes:
        error: MAE of a regression, 1 - accuracy of classes, on the judging rows.
        loss: by how much that is worse than float32, in percent of it (regression) or points of 100
            (classes).
        divergence: largest difference of a score from float32's.
        batch_ms, single_ms: median latency of 1,024 rows and of one, milliseconds; batch_p99_ms the
            99th percentile.
        speedup: float32's batch_ms over this one's, pair by pair in turn, median.
        size: bytes of the file.
        refusal: why it was not accepted, or None.
    """

    name: str
    path: str
    error: float
    loss: float
    divergence: float
    batch_ms: float
    batch_p99_ms: float
    single_ms: float
    speedup: float
    size: int
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found.

    Attributes:
        candidates: float32 first.
        failed: candidate -> why it could not be made.
        chosen: the name of the model that serves: the fastest accepted, or float32.
        rows: how many rows judged.
        measure: what `error` is.
        provider: where latency was measured.
    """

    candidates: tuple[Candidate, ...]
    failed: dict[str, str]
    chosen: str
    rows: int
    measure: str
    provider: str

    def table(self) -> Table:
        """For people: a row a candidate, and the refusals in words."""
        made = Table(
            title=f"compression, judged on {self.rows:,} held-out rows ({self.provider})",
            title_justify="left",
        )
        made.add_column("model")
        for column in (self.measure, "loss", "1,024 rows", "1 row", "speed", "size", "verdict"):
            made.add_column(column, justify="left" if column == "verdict" else "right")
        unit = " %" if self.measure == "MAE" else " pt"
        for c in self.candidates:
            verdict = "serves" if c.name == self.chosen else c.refusal or "accepted"
            made.add_row(
                c.name, f"{c.error:.4g}", f"{c.loss:+.2f}{unit}", f"{c.batch_ms:.2f} ms",
                f"{c.single_ms * 1000:.0f} us", f"{c.speedup:.2f}x", f"{c.size / 1024:.0f} kB",
                f"[bold green]{verdict}[/]" if c.name == self.chosen else verdict,
            )  # fmt: skip
        for name, reason in self.failed.items():
            made.add_row(name, "", "", "", "", "", "", f"failed: {reason}")
        return made

    def to_json(self, path: Path) -> None:
        """For machines: all figures, with what they were measured on."""
        made = {
            **asdict(self, dict_factory=_finite),
            "machine": {
                "cpu": _cpu(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
            },
            "versions": {name: version(name) for name in ("onnx", "numpy", "polars")}
            | {"onnxruntime": runtime_version()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, json.dumps(made, indent=2))


def compress(model: Path, rows: pl.DataFrame, settings: Compression, *, path: Path) -> Verdict:
    """Make the candidates beside `path`, judge them, and put the chosen model at `path`.

    Args:
        model: the exported float32 model.
        rows: held-out raw rows with the target, oldest first; the oldest calibrate, the newest
            judge.

    Raises: UserError for a candidate's name that is none, or too few rows with a label.
    """
    unknown = [name for name in settings.candidates if name not in CANDIDATES]
    if unknown:
        raise UserError(
            f"[export.compress] candidates expects names of {', '.join(CANDIDATES)}, "
            f"got '{unknown[0]}'."
        )
    provider = available(settings.providers)
    first = session(model, provider)
    bench = _Bench(first, rows, settings)
    paths = {"float32": model}
    failed: dict[str, str] = {}
    for name in settings.candidates:
        made = path.with_name(f"{path.stem}.{name}.onnx")
        try:
            CANDIDATES[name](model, made, bench.calibration())
            session(made, provider)
        except Exception as error:  # noqa: BLE001 - a candidate that cannot be made is refused, not fatal
            failed[name] = (str(error).splitlines() or [type(error).__name__])[0]
            made.unlink(missing_ok=True)
            continue
        paths[name] = made
    candidates = _judge(bench, paths, settings, provider)
    accepted = [c for c in candidates if c.refusal is None]
    chosen = max(accepted, key=lambda c: c.speedup)
    put(Path(chosen.path).read_bytes(), path)
    return Verdict(
        candidates=tuple(candidates),
        failed=failed,
        chosen=chosen.name,
        rows=bench.judged,
        measure=bench.measure,
        provider=runs_on(first),
    )


class _Bench:
    """The held-out rows, split: some calibrate, the others judge."""

    def __init__(self, first: Any, rows: pl.DataFrame, settings: Compression) -> None:
        metadata = first.get_modelmeta().custom_metadata_map
        self.inputs = Inputs(json.loads(metadata["inputs"]))
        self._task = metadata["task"]
        self._classes = tuple(json.loads(metadata["classes"]))
        self.measure = "MAE" if self._task == "regression" else "error"
        target = metadata["target"]
        rows = rows.filter(pl.col(target).is_not_null())
        cut = int(rows.height * settings.calibration)
        self._old, new = rows.head(cut), rows.slice(cut)
        if cut < 10 or new.height < 10:
            raise UserError(
                "A compressed model needs 10 held-out rows with a label or more to calibrate and "
                f"10 to judge, got {cut} and {new.height}: train longer, or lower [export] "
                "holdout_every."
            )
        self.judged = new.height
        self.feed = self.inputs.feed(new)
        self._labels = new.get_column(target)

    def calibration(self) -> list[Feed]:
        """Feeds of the older rows."""
        size = CALIBRATION_BATCH
        parts = range(0, self._old.height, size)
        return [self.inputs.feed(self._old.slice(start, size)) for start in parts]

    def error(self, scores: NDArray[np.float32]) -> float:
        """MAE, or the share of wrong classes."""
        if self._task == "regression":
            target = self._labels.cast(pl.Float64).to_numpy()
            return float(np.abs(scores - target).mean())
        features = Features(numeric=(), task=self._task, classes=self._classes)
        said = features.answers(scores)[0]
        return float((said != self._labels.cast(pl.String)).mean())  # type: ignore[arg-type]

    def loss(self, error: float, base: float) -> float:
        """Percent of float32's error, or points of accuracy."""
        if self._task == "regression":
            return 100 * (error - base) / base if base else 0.0
        return 100 * (error - base)

    def part(self, n: int) -> Feed:
        """n rows, repeated where there are fewer."""
        return {name: np.resize(array, n) for name, array in self.feed.items()}


def _judge(
    bench: _Bench, paths: dict[str, Path], settings: Compression, provider: tuple[str, ...]
) -> list[Candidate]:
    sessions = {name: session(path, provider) for name, path in paths.items()}
    scores = {name: s.run([SCORE], bench.feed)[0] for name, s in sessions.items()}
    batch, single = bench.part(PROBE_ROWS), bench.part(1)
    runs = {name: _runner(s, batch) for name, s in sessions.items()}
    wide = _in_turn(runs, settings.rounds)
    thin = _in_turn({name: _runner(s, single) for name, s in sessions.items()}, settings.rounds)
    base = bench.error(scores["float32"])
    size = paths["float32"].stat().st_size
    made = []
    for name, path in paths.items():
        error = bench.error(scores[name])
        candidate = Candidate(
            name=name,
            path=str(path),
            error=error,
            loss=bench.loss(error, base),
            divergence=float(np.abs(scores[name] - scores["float32"]).max()),
            batch_ms=1000 * float(np.median(wide[name])),
            batch_p99_ms=1000 * float(np.quantile(wide[name], 0.99)),
            single_ms=1000 * float(np.median(thin[name])),
            speedup=float(np.median(wide["float32"] / wide[name])),
            size=path.stat().st_size,
        )
        made.append(_gated(candidate, size, settings))
    return made


def _gated(c: Candidate, size: int, settings: Compression) -> Candidate:
    """The candidate, with its refusal where a figure is out of bounds."""
    if c.name == "float32":
        return c
    reasons = []
    if not c.loss <= settings.max_quality_loss:
        reasons.append(f"error rises by {c.loss:.2f}, allowed {settings.max_quality_loss:g}")
    if not c.speedup >= settings.min_speedup:
        reasons.append(f"speed {c.speedup:.2f}x, needed {settings.min_speedup:g}x")
    if c.size > settings.max_size_ratio * size:
        reasons.append(f"size {c.size / size:.2f} of float32, allowed {settings.max_size_ratio:g}")
    if not reasons:
        return c
    return Candidate(**{**asdict(c), "refusal": f"refused: {'; '.join(reasons)}"})


def _runner(made: Any, feed: Feed) -> Callable[[], object]:
    return lambda: made.run([SCORE], feed)


def _in_turn(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of each, A B C A B C ..., so that a machine whose speed drifts is fair to all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 3:  # the first ones warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def _finite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON has no word for what is not a finite number but null."""
    plain = ((k, None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in pairs)
    return dict(plain)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


__all__ = ["Candidate", "Compression", "Verdict", "compress"]
