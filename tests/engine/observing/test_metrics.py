"""One list of names, linted; a page that promtool accepts and that nothing from outside breaks."""

from __future__ import annotations

import itertools
import logging
import math
import re
import threading
import time
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from engine.observing.metrics import (
    LATENCY_BUCKETS,
    METRICS,
    ROW_BUCKETS,
    SLOW_SECONDS,
    WORK_BUCKETS,
    Metrics,
    MetricSpec,
    attribute,
    safe_label,
)
from engine.running.work import report_quality
from engine.types import HeadraceError
from tests.promtool import promtool
from tests.size import examples
from tests.waiting import HANG

UNITS = ("seconds", "bytes", "records", "values", "rows", "items", "steps", "ratio", "keys")
UNITLESS = {
    "headrace_dead_letters_total",
    "headrace_drift_detections_total",
    "headrace_model_swaps_total",
    "headrace_model_versions_total",
    "headrace_registry_failures_total",
    "headrace_challenges_total",
    "headrace_classes",
    "headrace_classes_left_total",
    "headrace_classes_waiting",
    "headrace_filled_before_learning_total",
    "headrace_duplicates_total",
    "headrace_stage_events_total",
    "headrace_dropped_spans_total",
    "headrace_source_rebalances_total",
    "headrace_source_commit_failures_total",
    "headrace_queue_resizes_total",
    "headrace_decode_threads",
    "headrace_transactions_total",
    "headrace_batches_closed_total",
    "headrace_bottleneck",
    "headrace_loss",
    "headrace_quality",
    "headrace_baseline_quality",
    "headrace_model_info",
    "headrace_checkpoint_failures_total",
    "headrace_build_info",
    "headrace_up",
}
OTHER_UNITS = (
    r"_(ms|milliseconds|minutes|hours|kb|mb|kilobytes|megabytes|percent|count|sum|bucket)(_|$)"
)
KINDS = {"counter": Counter, "gauge": Gauge, "info": Gauge, "histogram": Histogram}


def page(metrics: Metrics) -> str:
    return metrics.exposition()[0].decode()


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(sample's name, sorted labels) -> value, as a scraper reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page(metrics))
        for sample in family.samples
    }


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(("name", "entry"), METRICS.items())
def test_every_name_follows_the_rules(name: str, entry: MetricSpec) -> None:
    assert re.fullmatch(r"headrace(_[a-z]+)+", name)
    assert name.endswith("_total") == (entry.kind == "counter")
    assert name.endswith("_info") == (entry.kind == "info")
    assert not re.search(OTHER_UNITS, name)
    stem = name.removesuffix("_total")
    assert stem.endswith(UNITS) or name in UNITLESS
    if "timestamp" in name:
        assert stem.endswith("_timestamp_seconds")


@pytest.mark.parametrize(("name", "entry"), METRICS.items())
def test_every_entry_is_complete(name: str, entry: MetricSpec) -> None:
    assert entry.kind in KINDS
    assert re.fullmatch(r"[A-Z][^\n]*[^.]\.", entry.help)
    assert len(entry.labels) <= 4
    assert all(re.fullmatch(r"[a-z]+", label) for label in entry.labels)
    assert not {"le", "quantile", "job", "instance"} & set(entry.labels)
    assert all(len(set(values)) == len(values) <= 12 for values in entry.labels.values())
    assert bool(entry.buckets) == (entry.kind == "histogram")
    assert list(entry.buckets) == sorted(set(entry.buckets))


def test_buckets_are_those_of_the_rules() -> None:
    assert (WORK_BUCKETS[0], WORK_BUCKETS[-1], len(WORK_BUCKETS)) == (50e-6, 5.0, 16)
    steps = {round(high / low, 6) for low, high in itertools.pairwise(WORK_BUCKETS)}
    assert steps == {2.0, 2.5}
    assert {high / low for low, high in itertools.pairwise(ROW_BUCKETS)} == {2.0}
    assert {0.1, 3600.0} <= set(LATENCY_BUCKETS)


def test_the_list_the_annotations_and_the_attributes_agree() -> None:
    hints = get_type_hints(Metrics)
    assert set(hints) == {attribute(name) for name in METRICS}
    metrics = Metrics()
    for name, entry in METRICS.items():
        instrument = getattr(metrics, attribute(name))
        assert hints[attribute(name)] is KINDS[entry.kind]
        assert isinstance(instrument, KINDS[entry.kind])


def test_the_page_shows_every_name_and_no_other() -> None:
    shown = set(re.findall(r"^# TYPE (headrace_\w+) (?:\w+)$", page(Metrics()), re.MULTILINE))
    assert shown == set(METRICS)


def test_promtool_accepts_the_page() -> None:
    metrics = Metrics()
    for name, entry in METRICS.items():
        if entry.labels:
            getattr(metrics, attribute(name)).labels(**dict.fromkeys(entry.labels, 'x\n"\\'))
    assert promtool("check", "metrics", page=metrics.exposition()[0]) == ""


# ------------------------------------------------------------------------------------ first values


def test_known_label_values_start_at_zero() -> None:
    values = samples(Metrics())
    for name, entry in METRICS.items():
        if entry.kind not in ("counter", "histogram") or not all(entry.labels.values()):
            continue
        suffix = "_count" if entry.kind == "histogram" else ""
        for combination in itertools.product(*entry.labels.values()):
            labels = tuple(sorted(zip(entry.labels, combination, strict=True)))
            assert values[name + suffix, labels] == 0 or name == "headrace_scrape_seconds"


def test_what_is_not_known_yet_is_not_a_number() -> None:
    values = samples(Metrics())
    for name in ("loss", "checkpoint_bytes", "checkpoint_timestamp_seconds"):
        assert math.isnan(values[f"headrace_{name}", ()])
    assert values["headrace_up", ()] == 0


def test_the_build_and_the_process_are_told() -> None:
    values = samples(Metrics())
    build = [dict(labels) for (name, labels) in values if name == "headrace_build_info"]
    assert build[0].keys() == {"version", "python"}
    assert values["headrace_memory_bytes", (("component", "process"),)] > 1e6
    assert values["process_resident_memory_bytes", ()] > 1e6
    assert ("python_gc_collections_total", (("generation", "0"),)) in values


def test_a_passed_registry_is_used_and_two_metrics_are_apart() -> None:
    registry = CollectorRegistry()
    first, second = Metrics(registry), Metrics()
    assert first.registry is registry
    first.optimizer_steps.inc(3)
    assert registry.get_sample_value("headrace_optimizer_steps_total") == 3
    assert samples(second)["headrace_optimizer_steps_total", ()] == 0


# ----------------------------------------------------------------------------------------- watching


def test_watched_values_are_asked_at_every_scrape() -> None:
    metrics = Metrics()
    held = [10]
    metrics.watch_memory("replay", lambda: held[0])
    metrics.watch(metrics.queue_items, lambda: len(held), queue="raw")
    metrics.watch(metrics.loop_stall_seconds, lambda: 1.5)
    assert samples(metrics)["headrace_memory_bytes", (("component", "replay"),)] == 10
    held[:] = [20, 0]
    values = samples(metrics)
    assert values["headrace_memory_bytes", (("component", "replay"),)] == 20
    assert values["headrace_queue_items", (("queue", "raw"),)] == 2
    assert values["headrace_loop_stall_seconds", ()] == 1.5


def test_a_watched_value_that_raises_leaves_the_page_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    metrics.watch_memory("gone", lambda: [][0])
    metrics.watch_memory("strange", lambda: "many")  # type: ignore[arg-type,return-value]
    metrics.optimizer_steps.inc()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            values = samples(metrics)
    assert math.isnan(values["headrace_memory_bytes", (("component", "gone"),)])
    assert math.isnan(values["headrace_memory_bytes", (("component", "strange"),)])
    assert values["headrace_optimizer_steps_total", ()] == 1
    assert [record.message for record in caplog.records] == ["metric unknown"] * 2


def test_a_watched_value_that_takes_long_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a large state must not cost the loop more because somebody looks."""
    asked: list[float] = []

    def slow() -> float:
        begun = time.thread_time()
        while time.thread_time() - begun < 2 * SLOW_SECONDS:
            pass
        asked.append(begun)
        return float(len(asked))

    def value() -> float:
        return samples(metrics)["headrace_memory_bytes", (("component", "state"),)]

    metrics = Metrics()
    monkeypatch.setattr("engine.observing.metrics.REST", 1e9)
    metrics.watch(metrics.memory_bytes, slow, component="state")
    assert [value() for _ in range(3)] == [1, 1, 1]
    monkeypatch.setattr("engine.observing.metrics.REST", 0.0)
    metrics.watch(metrics.memory_bytes, slow, component="state")
    assert [value() for _ in range(2)] == [2, 3]


# ---------------------------------------------------------------------------------- hostile labels


@settings(max_examples=examples(100), deadline=None)
@given(st.text() | st.text(alphabet='\n\r"\\{}\ud800\u2028 =1', max_size=200))
def test_a_label_value_is_one_bounded_printable_line(value: str) -> None:
    safe = safe_label(value)
    assert safe.isprintable()
    assert len(safe) <= 80
    if value.isprintable() and len(value) <= 80:
        assert safe == value


@pytest.mark.parametrize("name", ["t" * 249 + "/{}", "{}" + "t" * 300, "t" * 99 + "{}" + "t" * 99])
def test_long_labels_that_differ_stay_apart(name: str) -> None:
    assert len({safe_label(name.format(number)) for number in range(12)}) == 12


@settings(max_examples=examples(20), deadline=None)
@given(st.text(alphabet='\n\r"\\{}\ud800\x00 #ab=1', max_size=100))
def test_hostile_labels_cannot_forge_lines(value: str) -> None:
    metrics = Metrics()
    before = len(page(metrics).splitlines())
    metrics.rejected_records.labels(stage=value, reason=f'x"}} 1\nheadrace_up 9\n{value}').inc()
    metrics.dead_letters.labels("y" * 1_000_000).inc()
    text = page(metrics)
    assert len(text.splitlines()) == before + 2
    values = samples(metrics)
    assert values["headrace_up", ()] == 0
    (labels,) = (labels for (name, labels) in values if name == "headrace_dead_letters_total")
    assert labels == (("reason", safe_label("y" * 1_000_000)),)


# ---------------------------------------------------------------------------------------- the page


def test_the_page_times_itself() -> None:
    metrics = Metrics()
    _, kind = metrics.exposition()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(metrics)["headrace_scrape_seconds_count", ()] == 1
    assert samples(metrics)["headrace_scrape_seconds_count", ()] == 2


def test_scraping_while_others_write_loses_nothing() -> None:
    metrics = Metrics()

    def work(name: str) -> None:
        for _ in range(500):
            metrics.source_records.inc(2)
            metrics.stage_seconds.labels(stage=name).observe(0.001)

    threads = [threading.Thread(target=work, args=(f"stage{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        page(metrics)
    for thread in threads:
        thread.join(HANG)
    values = samples(metrics)
    assert values["headrace_source_records_total", ()] == 3_000
    assert values["headrace_stage_seconds_count", (("stage", "stage1"),)] == 500


def test_the_final_page_is_written_whole(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.learned_records.inc(41)
    target = tmp_path / "metrics.prom"
    target.write_text("old")
    metrics.render_final(target)
    assert "headrace_learned_records_total 41.0\n" in target.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]


def test_a_final_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    target = tmp_path / "metrics.prom"
    target.mkdir()
    (target / "file").touch()
    with pytest.raises(HeadraceError, match=r"The metrics cannot be written to '.*metrics.prom':"):
        Metrics().render_final(target)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]


def test_quality_and_its_baseline_are_over_the_same_rows() -> None:
    """Alerts compare them: what was easy long ago is no measure of today."""
    metrics = Metrics()
    baselines = {"last value": {"mae": 5.0}, "yesterday": {"mae": 9.0}}
    turned = {"last value": {"mae": 8.0}, "yesterday": {"mae": 7.0}}
    report_quality(
        metrics,
        {
            "all": {"mae": 2.0, "baselines": baselines, "rows": 9},
            "window": {"mae": 6.0, "baselines": turned},
        },
    )
    page = metrics.exposition()[0].decode()
    for line in (
        'headrace_quality{metric="mae",window="all"} 2.0',
        'headrace_baseline_quality{metric="mae",window="all"} 5.0',
        'headrace_quality{metric="mae",window="window"} 6.0',
        'headrace_baseline_quality{metric="mae",window="window"} 7.0',
    ):
        assert line in page
