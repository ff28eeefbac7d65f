"""The one document that feeds the live page: what it holds, who sees what, and how often it is
made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from engine.observing.metrics import METRICS, Metrics, attribute
from engine.observing.service import Service
from engine.observing.status import FRESH_SECONDS, Health, Status, is_address, is_loopback


def well() -> Health:
    return Health(True)


def no_facts(_: bool) -> Mapping[str, Any]:
    return {}


def nobody(_: str) -> bool:
    return False


def strict(document: bytes) -> Any:
    """The document, without NaN and Infinity, which JSON does not have."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(document, parse_constant=refuse)


def document(metrics: Metrics) -> Any:
    return strict(Status(metrics, well, well, no_facts, nobody).document("localhost"))


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(a sample's name, its labels) -> value, as a scraper reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition()[0].decode())
        for sample in family.samples
        if sample.name.startswith("headrace_")
    }


def series_of(columns: Mapping[str, Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The same of the document."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for name, spec in METRICS.items():
        table = columns[attribute(name)]
        if not isinstance(table, dict):
            found[name, ()] = math.nan if table is None else table
            continue
        labels = [
            tuple(sorted((label, table[label][row]) for label in spec.labels))
            for row in range(len(table["sum" if spec.kind == "histogram" else "value"]))
        ]
        for row, own in enumerate(labels):
            if spec.kind != "histogram":
                found[name, own] = math.nan if (v := table["value"][row]) is None else v
                continue
            found[f"{name}_sum", own] = table["sum"][row]
            found[f"{name}_count", own] = table["counts"][row][-1]
            bounds = [*map(float, table["le"]), math.inf]
            for bound, n in zip(bounds, table["counts"][row], strict=True):
                le = floatToGoString(bound)  # type: ignore[no-untyped-call]
                found[f"{name}_bucket", tuple(sorted((*own, ("le", le))))] = n
    return found


def same(ours: float, theirs: float) -> bool:
    return ours == theirs or (math.isnan(ours) and math.isnan(theirs))


# ------------------------------------------------------------------------------------ the columns


def test_an_empty_engine_has_every_metric_and_null_for_what_is_unknown() -> None:
    shown = document(Metrics())
    assert set(shown["metrics"]) == {attribute(name) for name in METRICS}
    assert shown["metrics"]["source_records"] == 0
    assert shown["metrics"]["loss"] is None
    assert shown["metrics"]["source_lag_records"] == {"partition": [], "value": []}
    assert shown["live"] == shown["ready"] == {"ok": True, "reason": "ok"}
    assert shown["at"] >= shown["started"] > 1.7e9


def test_the_columns_are_what_a_scraper_reads() -> None:
    """One account: both pages say the same, series by series."""
    metrics = Metrics()
    metrics.source_records.inc(12)
    metrics.rejected_records.labels(stage="decode", reason="wrong_type").inc(3)
    metrics.rejected_records.labels(stage="decode", reason="not_json").inc()
    metrics.loss.set(float("inf"))
    metrics.quality.labels(metric="mae", window="all").set(1e300)
    for seconds in (0.00004, 0.003, 0.003, 7.0):
        metrics.record_latency_seconds.labels(span="ready_to_done").observe(seconds)
        metrics.checkpoint_seconds.observe(seconds)
    ours, theirs = series_of(metrics.columns()), series(metrics)
    theirs["headrace_loss", ()] = math.nan  # infinity is no JSON
    theirs["headrace_memory_bytes", (("component", "process"),)] = math.nan  # moves meanwhile
    ours["headrace_memory_bytes", (("component", "process"),)] = math.nan
    ours = {key: value for key, value in ours.items() if "scrape_seconds" not in key[0]}
    theirs = {key: value for key, value in theirs.items() if "scrape_seconds" not in key[0]}
    assert ours.keys() == theirs.keys()
    assert [key for key, value in ours.items() if not same(value, theirs[key])] == []


def test_many_partitions_of_hostile_names_are_columns_of_one_length() -> None:
    metrics = Metrics()
    names = [f"<script>alert({i})</script>\u2028\x00\ud800\"'&" for i in range(256)]
    for i, name in enumerate(names):
        metrics.source_lag_records.labels(partition=name).set(i)
    table = document(metrics)["metrics"]["source_lag_records"]
    assert len(set(table["partition"])) == len(table["value"]) == 256
    assert table["value"] == list(range(256))
    assert all(name.isprintable() for name in table["partition"])
    assert table["partition"][7] == "<script>alert(7)</script>???\"'&"


# -------------------------------------------------------------------------------- one for everybody


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_is_built_once_a_second_for_all_who_ask() -> None:
    asked: list[bool] = []

    def facts(samples: bool) -> Mapping[str, Any]:
        asked.append(samples)
        return {"outline": {"name": "fraud"}}

    clock, metrics = Clock(), Metrics()
    status = Status(metrics, well, well, facts, lambda host: host == "localhost", clock=clock)
    first = status.document("elsewhere")
    assert strict(first)["outline"] == {"name": "fraud"}
    metrics.source_records.inc()
    clock.now = FRESH_SECONDS * 0.99
    assert [status.document("elsewhere") for _ in range(10)] == [first] * 10
    assert asked == [False]
    clock.now = FRESH_SECONDS
    assert strict(status.document("elsewhere"))["metrics"]["source_records"] == 1
    assert asked == [False, False]
    status.document("localhost")  # who may see rows has a document of their own
    assert asked == [False, False, True]


def test_a_check_that_raises_leaves_the_document_whole(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Health:
        raise OSError("no network")

    status = Status(Metrics(), broken, well, no_facts, nobody)
    shown = strict(status.document(""))
    assert shown["live"] == {
        "ok": False,
        "reason": "the check itself failed: OSError('no network')",
    }
    assert shown["ready"]["ok"]
    assert "health check failed" in caplog.messages


# ------------------------------------------------------------------------------ who may see rows


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:9108", True),
        ("localhost:9108", True),
        ("[::1]:9108", True),
        ("192.0.2.7:80", True),
        ("evil.example:9108", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("[::1", False),
        ("[]", False),
        ("", False),
        (":9108", False),
        ("127.0.0.1:9108:9", False),
    ],
)
def test_a_name_of_the_web_is_no_address(host: str, local: bool) -> None:
    """A site whose name is made to lead to this machine would read the page as its own."""
    assert is_address(host) == local


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.7", False),
        ("engine.example", False),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("settings", "asked_as", "seen"),
    [
        ({}, "127.0.0.1:9108", True),
        ({}, "evil.example:9108", False),
        ({"host": "0.0.0.0"}, "127.0.0.1:9108", False),
        ({"host": "0.0.0.0", "samples": True}, "engine.example", True),
        ({"samples": True}, "proxy.example", True),
        ({"samples": False}, "localhost", False),
    ],
)
def test_rows_are_seen_on_this_machine_or_where_the_file_says_so(
    settings: dict[str, Any], asked_as: str, seen: bool
) -> None:
    assert Service.Settings(**settings).may_see_rows(asked_as) == seen
