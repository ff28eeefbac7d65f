"""Every metric of headrace, declared once; the only import of the Prometheus client.

To add one: a line in `METRICS` and its annotation in `Metrics`. Rules for names (a test holds
them): prefix ``headrace_``, base units, ``_total`` on counters, ``_info`` on metadata, timestamps
as timestamps and not ages, histograms and never summaries. A label set is small and bounded.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from engine.system import atomic
from engine.types import HeadraceError
from engine.types.arrays import Floats

log = logging.getLogger("headrace.metrics")

# Otherwise every counter and every histogram child brings a series that no panel reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

WORK_BUCKETS = (
    5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Buckets for work and waits, in seconds."""
LATENCY_BUCKETS = (
    1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    900.0, 3600.0,
)  # fmt: skip
"""Buckets for the age of a record, in seconds: from milliseconds for files to an hour for a
topic."""
ROW_BUCKETS = tuple(float(2**i) for i in range(18))
"""Buckets for batches, in rows: 1 to 131,072."""
DELAY_BUCKETS = (
    1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 1_209_600.0,
    2_592_000.0, 7_776_000.0,
)  # fmt: skip
"""Buckets for what happens after minutes or months, in seconds: to 90 days."""
RATIO_BUCKETS = (1e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Buckets for ratios."""

SLOW_SECONDS = 1e-3
"""A watched value that takes more of a core than this is remembered for a while."""
REST = 200.0
"""For how many times as long as it took: half a percent of the time at most goes into it."""
MAX_LABEL = 80
"""The most characters kept of a label value."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """The declaration of one metric.

    Attributes:
        kind: ``counter``, ``gauge``, ``histogram`` or ``info`` (a gauge whose one series is 1).
        help: one sentence.
        labels: label -> the values known beforehand. Where every label has some, all their series
            exist from the start (counters and histograms at 0). An empty tuple: the values come
            from the pipeline file, and whoever knows them calls `labels` once at the start.
        buckets: upper bounds, for a histogram.
    """

    kind: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


SWAP_OUTCOMES = (
    "swapped", "missing", "torn", "too_large", "unreadable", "other_schema", "non_finite", "slow",
)  # fmt: skip
"""What becomes of a version that the pointer comes to: it serves, or why not."""
_STAGES = (
    "fetch", "decode", "collate", "transfer", "learn", "predict", "clean", "write", "flush",
    "checkpoint", "commit",
)  # fmt: skip
_SPANS = ("fetch_to_ready", "ready_to_answered", "ready_to_done")

METRICS: Mapping[str, MetricSpec] = {
    # source
    "headrace_source_records_total": MetricSpec("counter", "Records read from the source."),
    "headrace_source_bytes_total": MetricSpec("counter", "Bytes read from the source."),
    "headrace_source_lag_records": MetricSpec(
        "gauge",
        "Records of a partition (bytes, of a text file) that are not done and committed yet.",
        {"partition": ()},
    ),
    "headrace_source_event_timestamp_seconds": MetricSpec(
        "gauge", "The newest record's own time, in seconds since the epoch, of what was done."
    ),
    "headrace_source_rebalances_total": MetricSpec(
        "counter", "Times that partitions came to this engine or went away."
    ),
    "headrace_source_skipped_records_total": MetricSpec(
        "counter", "Records that the source no longer had when it was their turn to be read."
    ),
    "headrace_source_commit_failures_total": MetricSpec(
        "counter", "Commits of positions that the source's group did not take."
    ),
    # scrub
    "headrace_added_records_total": MetricSpec(
        "counter", "Rows that stages added to what the source gave, such as by unpivoting."
    ),
    "headrace_rejected_records_total": MetricSpec(
        "counter", "Rows that left the stream.", {"stage": (), "reason": ()}
    ),
    "headrace_dead_letters_total": MetricSpec(
        "counter", "Rejected rows written to the dead letters.", {"reason": ()}
    ),
    "headrace_stage_events_total": MetricSpec(
        "counter", "What stages counted, such as late rows.", {"stage": (), "event": ()}
    ),
    "headrace_table_rows": MetricSpec(
        "gauge",
        "Rows of a table, or events of a join, that a stage keeps of a source of its own.",
        {"stage": ()},
    ),
    "headrace_table_lag_records": MetricSpec(
        "gauge", "Records of that source which the stage has not read yet.", {"stage": ()}
    ),
    "headrace_missing_values_total": MetricSpec(
        "counter", "Missing values that were filled, or that the served model lacked."
    ),
    "headrace_filled_before_learning_total": MetricSpec(
        "counter",
        "Missing values filled with 0, or nothing, before a value of their column was learned.",
    ),
    "headrace_duplicates_total": MetricSpec("counter", "Rows recognized as duplicates."),
    "headrace_clipped_values_total": MetricSpec("counter", "Values clipped to their bounds."),
    "headrace_truncated_values_total": MetricSpec(
        "counter", "Values of lists longer than [model] max_length that were cut off."
    ),
    "headrace_forgotten_keys_total": MetricSpec(
        "counter", "Keys whose past was forgotten because there were more than `keys` says."
    ),
    "headrace_expired_keys_total": MetricSpec(
        "counter", "Keys whose state was given up because they came again too late."
    ),
    # loader
    "headrace_stage_seconds": MetricSpec(
        "histogram", "Time a stage took for one batch.", {"stage": _STAGES}, WORK_BUCKETS
    ),
    "headrace_queue_bytes": MetricSpec(
        "gauge", "Bytes held by a queue, the item in its consumer's hand included.", {"queue": ()}
    ),
    "headrace_queue_depth_bytes": MetricSpec(
        "gauge", "Bytes that a queue may hold now.", {"queue": ()}
    ),
    "headrace_queue_resizes_total": MetricSpec(
        "counter",
        "Times that a queue's depth has followed what its sides wait for.",
        {"queue": ("raw", "prepared"), "direction": ("grow", "shrink")},
    ),
    "headrace_decode_threads": MetricSpec("gauge", "Threads that decode one batch together."),
    "headrace_queue_items": MetricSpec("gauge", "Items waiting in a queue.", {"queue": ()}),
    "headrace_queue_wait_seconds": MetricSpec(
        "histogram",
        "Time one side waited at a queue for one item: put for room, get for data.",
        {"queue": (), "side": ("put", "get")},
        WORK_BUCKETS,
    ),
    "headrace_busy_ratio": MetricSpec(
        "gauge",
        "Share of the last seconds that a part was at work, waits not counted.",
        {"part": ("source", "decode", "scrub", "transfer", "model", "sink", "checkpoint")},
    ),
    "headrace_bottleneck": MetricSpec(
        "gauge",
        "Whether the part is the bottleneck: 1 or 0; idle is 1 while the source is slower.",
        {"part": ("source", "decode", "scrub", "transfer", "model", "sink", "checkpoint", "idle")},
    ),
    "headrace_batch_rows": MetricSpec("histogram", "Rows of a batch.", buckets=ROW_BUCKETS),
    "headrace_batches_closed_total": MetricSpec(
        "counter",
        "Batches by why they were cut where they were.",
        {"reason": ("full", "bytes", "delay", "deadline", "drain", "idle")},
    ),
    # latency
    "headrace_record_latency_seconds": MetricSpec(
        "histogram",
        "Time a batch's oldest record spent in a part of its way; ready_to_answered where answers "
        "are written before their rows are learned.",
        {"span": _SPANS},
        LATENCY_BUCKETS,
    ),
    # train
    "headrace_learned_records_total": MetricSpec("counter", "Rows learned from."),
    "headrace_optimizer_steps_total": MetricSpec("counter", "Optimizer steps taken."),
    "headrace_skipped_steps_total": MetricSpec(
        "counter", "Batches from which nothing was learned.", {"reason": ("non_finite", "empty")}
    ),
    "headrace_augmented_records_total": MetricSpec(
        "counter",
        "Rows changed by augmentation before they were learned, kept ones learned again included.",
        {"augment": ()},
    ),
    "headrace_challenges_total": MetricSpec(
        "counter",
        "Challenges of the model by a new one, where its error rose or drift was detected.",
        {"outcome": ("begun", "won", "dropped")},
    ),
    "headrace_expert_load_ratio": MetricSpec(
        "gauge",
        "Share of the newest vectors that an expert was trained with.",
        {"layer": (), "expert": ()},
    ),
    "headrace_classes": MetricSpec(
        "gauge", "Classes that the model tells apart, where they appear while it learns."
    ),
    "headrace_classes_left_total": MetricSpec(
        "counter",
        "Classes forgotten because there were too many, or because they were not seen any more.",
        {"reason": ("max_classes", "idle")},
    ),
    "headrace_classes_waiting": MetricSpec(
        "gauge", "Labels that are no class before they have been seen more often."
    ),
    "headrace_loss": MetricSpec("gauge", "Mean training loss over the newest batch."),
    "headrace_quality": MetricSpec(
        "gauge",
        "Quality of predictions made before learning, over all rows or over the newest.",
        {"metric": (), "window": ()},
    ),
    "headrace_baseline_quality": MetricSpec(
        "gauge",
        "Quality of the best baseline, over all rows or over the newest.",
        {"metric": (), "window": ()},
    ),
    "headrace_waiting_rows": MetricSpec(
        "gauge",
        "Rows that wait for their label, and labels that wait for their row.",
        {"side": ("rows", "labels")},
    ),
    "headrace_waiting_disk_rows": MetricSpec(
        "gauge",
        "Of those that wait, rows and labels that are on disk.",
        {"side": ("rows", "labels")},
    ),
    "headrace_waiting_disk_bytes": MetricSpec(
        "gauge",
        "Size of the files with rows and labels that wait on disk.",
        {"side": ("rows", "labels")},
    ),
    "headrace_expired_records_total": MetricSpec(
        "counter", "Rows whose label did not come within the horizon."
    ),
    "headrace_matched_records_total": MetricSpec("counter", "Labels that found their row."),
    "headrace_label_delay_seconds": MetricSpec(
        "histogram",
        "Event time from a row to its label, where labels come later.",
        buckets=DELAY_BUCKETS,
    ),
    "headrace_drift_detections_total": MetricSpec(
        "counter",
        "Rows at which a stage found that a column had changed.",
        {"detector": ("adwin", "page_hinkley", "psi")},
    ),
    # infer
    "headrace_predicted_records_total": MetricSpec(
        "counter", "Rows predicted and not learned from."
    ),
    "headrace_cleaned_records_total": MetricSpec(
        "counter", "Rows passed on clean, without a model."
    ),
    "headrace_model_info": MetricSpec(
        "info",
        "The model that predicts.",
        {"version": (), "precision": (), "provider": (), "digest": ()},
    ),
    "headrace_model_versions_total": MetricSpec(
        "counter",
        "Versions of the model that were to be published while it learns; kept back: too bad.",
        {"outcome": ("published", "kept_back", "failed")},
    ),
    "headrace_registry_failures_total": MetricSpec(
        "counter", "Times that the model registry did not take the versions: tried again later."
    ),
    "headrace_model_swaps_total": MetricSpec(
        "counter",
        "Versions that the pointer came to, by what became of them: swapped in, or why refused.",
        {"outcome": SWAP_OUTCOMES},
    ),
    "headrace_model_event_timestamp_seconds": MetricSpec(
        "gauge",
        "The newest record's own time, in seconds since the epoch, of what the model has learned.",
    ),
    "headrace_model_freshness_seconds": MetricSpec(
        "histogram",
        "Age of the newest record that a version has learned, when it answers its first rows.",
        buckets=LATENCY_BUCKETS,
    ),
    "headrace_shadow_records_total": MetricSpec(
        "counter",
        "Rows that the version in the shadow was asked: compared unseen, served as a canary.",
        {"outcome": ("compared", "served", "unanswered")},
    ),
    "headrace_shadow_divergence_ratio": MetricSpec(
        "histogram",
        "How far its answers to the rows of a batch are from those of the version that serves.",
        buckets=RATIO_BUCKETS,
    ),
    # sink
    "headrace_sink_failed_records_total": MetricSpec(
        "counter", "Records the sink's destination did not accept; the run stops, and replays them."
    ),
    "headrace_transactions_total": MetricSpec(
        "counter",
        "Transactions that rows and positions were committed in, by their end.",
        {"outcome": ("committed", "aborted")},
    ),
    # state
    "headrace_checkpoint_seconds": MetricSpec(
        "histogram", "Time to save a checkpoint.", buckets=WORK_BUCKETS
    ),
    "headrace_checkpoint_bytes": MetricSpec("gauge", "Size of the newest checkpoint."),
    "headrace_checkpoint_timestamp_seconds": MetricSpec(
        "gauge", "When a checkpoint last held all that was done, in seconds since the epoch."
    ),
    "headrace_checkpoint_failures_total": MetricSpec(
        "counter", "Checkpoints that could not be saved."
    ),
    # memory
    "headrace_memory_bytes": MetricSpec(
        "gauge", "Memory that a component holds.", {"component": ()}
    ),
    "headrace_memory_budget_bytes": MetricSpec(
        "gauge", "Most bytes that all buffers may hold together."
    ),
    "headrace_device_memory_bytes": MetricSpec(
        "gauge",
        "Memory that PyTorch holds of a GPU.",
        {"device": (), "kind": ("allocated", "reserved")},
    ),
    # service
    "headrace_dropped_spans_total": MetricSpec(
        "counter", "Spans of [traces] that could not be sent to the collector."
    ),
    "headrace_build_info": MetricSpec("info", "What is running.", {"version": (), "python": ()}),
    "headrace_up": MetricSpec(
        "gauge", "Whether the loop runs: 1, or 0 before it starts and after it."
    ),
    "headrace_scrape_seconds": MetricSpec(
        "histogram", "Time to write one page of metrics.", buckets=WORK_BUCKETS
    ),
    "headrace_loop_stall_seconds": MetricSpec(
        "gauge", "Time since the loop last said that it makes progress."
    ),
}

_UNKNOWN_AT_FIRST = (
    "loss",
    "model_event_timestamp_seconds",
    "source_event_timestamp_seconds",
    "checkpoint_bytes",
    "checkpoint_timestamp_seconds",
)
"""Gauges that are NaN until they are set: 0 would be a value."""


def safe_label(value: object, limit: int = MAX_LABEL) -> str:
    """Return the text as a label value: one line of printable characters, at most `limit`.
    Longer text keeps its ends (a partition's number comes last) and a digest, so that two long
    names stay two series."""
    text = str(value)
    if len(text) > limit:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        kept = (limit - len(digest) - 2) // 2
        text = f"{text[:kept]}~{digest}~{text[-kept:]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class _Safe:
    """Makes label values safe, so that no caller can forget it."""

    def labels(self, *values: object, **named: object) -> Any:
        safe = {label: safe_label(value) for label, value in named.items()}
        return super().labels(*map(safe_label, values), **safe)  # type: ignore[misc]


class _Counter(_Safe, Counter):
    pass


class _Gauge(_Safe, Gauge):
    pass


class _Histogram(_Safe, Histogram):
    pass


class Metrics:
    """All metrics of `METRICS`, as attributes without ``headrace_``, ``_total`` and ``_info``.

    ``metrics.source_records.inc(n)``, ``metrics.stage_seconds.labels(stage="decode").observe(s)``,
    ``metrics.loss.set(x)``, ``metrics.model.labels(version=..., ...).set(1)``. Instruments may be
    used from every thread.

    Attributes:
        registry: what they are registered with, the process's own metrics included.
    """

    source_records: Counter
    source_bytes: Counter
    source_lag_records: Gauge
    source_event_timestamp_seconds: Gauge
    source_rebalances: Counter
    source_skipped_records: Counter
    source_commit_failures: Counter
    added_records: Counter
    rejected_records: Counter
    dead_letters: Counter
    stage_events: Counter
    table_rows: Gauge
    table_lag_records: Gauge
    missing_values: Counter
    filled_before_learning: Counter
    duplicates: Counter
    clipped_values: Counter
    truncated_values: Counter
    forgotten_keys: Counter
    expired_keys: Counter
    stage_seconds: Histogram
    queue_bytes: Gauge
    queue_depth_bytes: Gauge
    queue_resizes: Counter
    decode_threads: Gauge
    queue_items: Gauge
    queue_wait_seconds: Histogram
    busy_ratio: Gauge
    bottleneck: Gauge
    batch_rows: Histogram
    batches_closed: Counter
    record_latency_seconds: Histogram
    learned_records: Counter
    optimizer_steps: Counter
    augmented_records: Counter
    challenges: Counter
    skipped_steps: Counter
    expert_load_ratio: Gauge
    classes: Gauge
    classes_left: Counter
    classes_waiting: Gauge
    loss: Gauge
    quality: Gauge
    baseline_quality: Gauge
    waiting_rows: Gauge
    waiting_disk_rows: Gauge
    waiting_disk_bytes: Gauge
    expired_records: Counter
    matched_records: Counter
    label_delay_seconds: Histogram
    drift_detections: Counter
    predicted_records: Counter
    cleaned_records: Counter
    model: Gauge
    model_versions: Counter
    registry_failures: Counter
    model_swaps: Counter
    model_event_timestamp_seconds: Gauge
    model_freshness_seconds: Histogram
    shadow_records: Counter
    shadow_divergence_ratio: Histogram
    sink_failed_records: Counter
    transactions: Counter
    checkpoint_seconds: Histogram
    checkpoint_bytes: Gauge
    checkpoint_timestamp_seconds: Gauge
    checkpoint_failures: Counter
    memory_bytes: Gauge
    memory_budget_bytes: Gauge
    device_memory_bytes: Gauge
    dropped_spans: Counter
    build: Gauge
    up: Gauge
    scrape_seconds: Histogram
    loop_stall_seconds: Gauge

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """
        Args:
            registry: a new one unless given; one registry takes one `Metrics`.
        """
        self.registry = CollectorRegistry() if registry is None else registry
        for name, entry in METRICS.items():
            setattr(self, attribute(name), _instrument(name, entry, self.registry))
        for unknown in _UNKNOWN_AT_FIRST:
            getattr(self, unknown).set(float("nan"))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.build.labels(version=_version(), python=platform.python_version()).set(1)
        process = psutil.Process()
        self.watch_memory("process", lambda: process.memory_info().rss)

    def watch(self, gauge: Gauge, value: Callable[[], float], **labels: str) -> None:
        """Call `value` at every scrape, on the service's thread; less often if it takes long, such
        as the size of a large state. If it raises, the gauge is NaN, with one warning, and the rest
        of the page is unaffected."""
        child = gauge.labels(**labels) if labels else gauge
        child.set_function(_Guarded(value, f"{next(iter(gauge.describe())).name}{labels or ''}"))

    def watch_memory(self, component: str, nbytes: Callable[[], int]) -> None:
        """Export the bytes of `component` as ``headrace_memory_bytes{component=...}``."""
        self.watch(self.memory_bytes, nbytes, component=component)

    def exposition(self) -> tuple[bytes, str]:
        """Return the page in Prometheus' text format and its content type. The next page shows
        how long it took."""
        start = time.perf_counter()
        page = generate_latest(self.registry)
        self.scrape_seconds.observe(time.perf_counter() - start)
        return page, CONTENT_TYPE_PLAIN_0_0_4

    def columns(self) -> dict[str, Any]:
        """Return every metric of `METRICS` by its attribute's name, as JSON types: a number, null
        for NaN and infinity; with labels, equally long columns: one for each label, and ``value``.

        A histogram has ``sum`` and ``counts`` in place of ``value``: for each series the rows up to
        each bound of ``le``, the last of them all rows.
        """
        start = time.perf_counter()
        columns = {
            attribute(name): _columns(getattr(self, attribute(name)), spec)
            for name, spec in METRICS.items()
        }
        self.scrape_seconds.observe(time.perf_counter() - start)
        return columns

    def render_final(self, path: Path) -> None:
        """Write the page to a file atomically, as a record of a finished run.

        Raises: HeadraceError when it cannot be written.
        """
        page, _ = self.exposition()
        try:
            atomic.write(path, page)
        except OSError as error:
            raise HeadraceError(f"The metrics cannot be written to '{path}': {error}.") from error


class _Guarded:
    """A callback whose failure does not spoil the page, nor its slowness the loop."""

    def __init__(self, value: Callable[[], float], name: str) -> None:
        self._value = value
        self._name = name
        self._warned = False
        self._last = math.nan
        self._due = 0.0

    def __call__(self) -> float:
        if time.monotonic() < self._due:
            return self._last
        begun = time.thread_time()  # of this thread: another one may take the core
        self._last = self._ask()
        if (took := time.thread_time() - begun) > SLOW_SECONDS:
            self._due = time.monotonic() + REST * took
        return self._last

    def _ask(self) -> float:
        try:
            return float(self._value())
        except Exception as error:  # noqa: BLE001 - whatever it is, the page must not fail
            if not self._warned:
                self._warned = True
                log.warning("metric unknown", extra={"metric": self._name, "error": repr(error)})
            return float("nan")


def observe_all(histogram: Histogram, amounts: Floats) -> None:
    """Observe many amounts at once, shape (n,); one by one each takes a microsecond."""
    counts = np.bincount(np.searchsorted(histogram._upper_bounds, amounts))
    for bucket, n in zip(histogram._buckets, counts.tolist(), strict=False):
        bucket.inc(n)
    histogram._sum.inc(float(amounts.sum()))


def _columns(instrument: Counter | Gauge | Histogram, spec: MetricSpec) -> Any:
    """Return a metric's series as `Metrics.columns` has them."""
    if isinstance(instrument, Histogram):
        return _histogram_columns(instrument, spec)
    (family,) = instrument.collect()
    values = [_finite(sample.value) for sample in family.samples]
    if not spec.labels:
        return values[0]
    labels = {label: [sample.labels[label] for sample in family.samples] for label in spec.labels}
    return {**labels, "value": values}


def _histogram_columns(histogram: Histogram, spec: MetricSpec) -> dict[str, Any]:
    """Return a histogram's series. `collect` would make an object for each bucket of each."""
    series: dict[Sequence[str], Histogram] = {(): histogram}
    if spec.labels:
        with histogram._lock:
            series = cast("dict[Sequence[str], Histogram]", histogram._metrics.copy())
    return {
        **{label: [values[at] for values in series] for at, label in enumerate(spec.labels)},
        "le": spec.buckets,
        "counts": [
            list(itertools.accumulate(bucket.get() for bucket in one._buckets))
            for one in series.values()
        ],
        "sum": [_finite(one._sum.get()) for one in series.values()],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def attribute(name: str) -> str:
    """Return a metric's attribute of `Metrics`: ``headrace_optimizer_steps_total`` -> ``steps``."""
    return name.removeprefix("headrace_").removesuffix("_total").removesuffix("_info")


def _instrument(
    name: str, entry: MetricSpec, registry: CollectorRegistry
) -> Counter | Gauge | Histogram:
    instrument: Counter | Gauge | Histogram
    if entry.kind == "counter":
        instrument = _Counter(name, entry.help, tuple(entry.labels), registry=registry)
    elif entry.kind == "histogram":
        instrument = _Histogram(
            name, entry.help, tuple(entry.labels), registry=registry, buckets=entry.buckets
        )
    else:
        instrument = _Gauge(name, entry.help, tuple(entry.labels), registry=registry)
    if entry.labels and all(entry.labels.values()):
        for values in itertools.product(*entry.labels.values()):
            instrument.labels(*values)
    return instrument


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
