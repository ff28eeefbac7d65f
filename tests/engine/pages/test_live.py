"""The live page in a real browser: the figures of a running service, hostile names, a day on its
own clock, colours, widths and keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.observing.metrics import Metrics
from engine.observing.service import Service
from engine.running.bottleneck import Advice, Bottleneck
from engine.running.notes import Notes
from engine.types import PARTITION, POSITION, Rejects
from tests.chromium import DARK, HOSTILE, LIGHT, Tab, tab

OUTLINE = {
    "name": "fraud",
    "work": "learns",
    "endpoints": {
        "source": {"kind": "kafka", "topics": "payments", "group_id": "fraud"},
        "sink": {"kind": "files", "path": "runs/fraud/predictions"},
        "dead_letters": {"kind": "files", "path": "runs/fraud/dead_letters"},
    },
    "stages": ["missing", "standardize"],
    "model": {"kind": "tabular", "task": "binary", "target": "is_fraud"},
    "checkpoints": "runs/fraud/checkpoints",
}
STILL = "window.feed ??= take; take = () => {};"
"""From here on the test feeds the page, not the service, whose next answer may be on its way."""
SHOWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
DAY = 86_400


class Engine:
    """What a page looks at: metrics and notes, and the service in front of them."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.notes = Notes(OUTLINE)
        self.service = Service(self.metrics, Service.Settings(port=0), facts=self.notes.facts)

    def reject(self, rows: int, *, stage: str, reason: str, value: str) -> None:
        """Reject rows of one reason."""
        frame = pl.DataFrame(
            {
                PARTITION: ["payments-3"] * rows,
                POSITION: range(81_723, 81_723 + rows),
                "detail": ["Expected a number in 'amount'."] * rows,
                "value": [value] * rows,
            }
        )
        self.notes.rejected(Rejects(stage=stage, reason=reason, rows=frame))
        self.metrics.rejected_records.labels(stage=stage, reason=reason).inc(rows)

    def status(self, at: float, **changes: Any) -> dict[str, Any]:
        """A status as the service would give it at a time."""
        well = {"ok": True, "reason": "ok"}
        facts = self.notes.facts(True)
        of_service = {"at": at, "started": 1.0e9, "live": well, "ready": well}
        return {**of_service, **facts, "metrics": self.metrics.columns(), **changes}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def engine(page: Tab) -> Iterator[Engine]:
    made = Engine()
    page.said.clear()
    page.show()
    with made.service:
        yield made
        page.open("about:blank")


def feed(page: Tab, *statuses: Mapping[str, Any]) -> None:
    """Give the page statuses as if the service had, and wait until they are shown."""
    page.run(f"{STILL} for (const status of {json.dumps(statuses)}) feed(status); {SHOWN}")


def text(page: Tab, selector: str) -> str:
    found = page.run(f"document.querySelector({json.dumps(selector)}).innerText")
    return " ".join(str(found).split())


# ---------------------------------------------------------------------------------- live figures


def test_the_figures_of_a_running_service_are_on_the_page(page: Tab, engine: Engine) -> None:
    metrics = engine.metrics
    metrics.up.set(1)
    metrics.source_records.inc(1_234)
    metrics.source_lag_records.labels(partition="payments-0").set(41)
    metrics.source_lag_records.labels(partition="payments-1").set(1)
    engine.notes.diagnosed(
        Bottleneck(
            part="model",
            stage="learn",
            resource="CPU",
            share=0.61,
            limit=2.4,
            advice=(Advice(setting="loader.batch_rows=4096", why="larger batches"),),
        )
    )
    page.open(engine.service.url)
    page.until("document.body.innerText.includes('1,234 records')")
    assert text(page, "h1") == "fraud"
    assert text(page, "#state") == "Running"
    assert text(page, "#flow").startswith("Reads payments kafka, group fraud Cleans 2 stages")
    assert "Learns 'is_fraud', binary" in text(page, "#flow")
    assert text(page, "#bottleneck code") == "--set loader.batch_rows=4096"
    assert text(page, "#lags") == "payments-0 41 records payments-1 1 records"
    metrics.source_records.inc(1_000)  # and it follows without being asked
    page.until("document.body.innerText.includes('2,234 records')")
    page.until("/[1-9][0-9,.]* rows.s/.test(document.querySelector('.tile').innerText)")
    assert page.said == []


def test_the_lag_of_a_mix_is_shown_in_each_unit(page: Tab, engine: Engine) -> None:
    """Rows, records and bytes have no sum."""
    lags = {"new:p/0": (40, "records"), "new:p/1": (2, "records"), "old:a.csv": (2_048, "bytes")}
    engine.notes.lags({name: unit for name, (_, unit) in lags.items()})
    for name, (n, _) in lags.items():
        engine.metrics.source_lag_records.labels(partition=name).set(n)
    page.open(engine.service.url)
    feed(page, engine.status(2_000_000_000.0), engine.status(2_000_000_004.0))
    tile = "#tiles section:nth-of-type(4)"
    assert text(page, f"{tile} .big") == "42 records"
    assert text(page, f"{tile} .foot") == "not done and committed yet, and 2 KiB"
    assert text(page, "#lags") == "old:a.csv 2 KiB new:p/0 40 records new:p/1 2 records"


def test_rates_quantiles_and_quality_are_those_of_the_interval(page: Tab, engine: Engine) -> None:
    metrics = engine.metrics
    page.open(engine.service.url)
    first = engine.status(2_000_000_000.0)
    metrics.source_records.inc(5_000)
    metrics.learned_records.inc(4_000)
    engine.reject(1_000, stage="decode", reason="wrong_type", value="x")
    for seconds in [0.004] * 98 + [0.9] * 2:
        metrics.record_latency_seconds.labels(span="ready_to_done").observe(seconds)
        metrics.stage_seconds.labels(stage="learn").observe(seconds)
    for name, value in (("mae", 32.25), ("r2", 0.9)):
        metrics.quality.labels(metric=name, window="window").set(value)
        metrics.quality.labels(metric=name, window="all").set(2 * value)
    metrics.baseline_quality.labels(metric="mae", window="window").set(30.5)
    feed(page, first, engine.status(2_000_000_010.0))
    tiles = [" ".join(tile.split()) for tile in page.run(
        "[...document.querySelectorAll('.tile')].map((tile) => tile.innerText)"
    )]  # fmt: skip
    assert tiles[0].startswith("Read 500 rows/s 5,000 records")
    assert tiles[1].startswith("Learned 400 rows/s 4,000 rows")
    assert tiles[2].startswith("Rejected 100 rows/s 1,000 rows, 20 % of all")
    assert tiles[3].startswith("Lag –")
    assert tiles[4].startswith("Latency, 99 % 750 ms")  # between 0.5 and 1 s, half of them
    assert text(page, "#measures") == "MAE 32.3 30.5 64.5 R² 0.9000 – 1.8000"
    assert text(page, "#stages").startswith("learn 22 ms 750 ms 21.9 %")
    known = text(page, "#trouble")
    assert "20 % of the rows were rejected in the last minute." in known
    assert "A baseline is better than the model on the newest rows: 30.5 against 32.3." in known
    assert page.said == []


def test_rows_that_are_only_predicted_are_not_said_to_be_learned(page: Tab, engine: Engine) -> None:
    page.open(engine.service.url)
    first = engine.status(2_000_000_000.0)
    engine.metrics.learned_records.inc(2_877)
    engine.metrics.predicted_records.inc(63)
    feed(page, first, engine.status(2_000_000_010.0))
    tile = page.run("document.querySelectorAll('.tile')[1].innerText")
    assert " ".join(tile.split()) == "Learned 288 rows/s 2,877 rows, 63 only predicted"


def test_a_version_is_seen_since_the_page_saw_it(page: Tab, engine: Engine) -> None:
    page.open(engine.service.url)
    served = {"precision": "float32", "provider": "CPU", "digest": "d"}
    engine.metrics.model.labels(version="1", **served).set(1)
    first = engine.status(2_000_000_000.0)
    engine.metrics.model.clear()
    engine.metrics.model.labels(version="2", **served).set(1)
    feed(page, first, engine.status(2_000_000_010.0))
    assert text(page, "#model").count("seen since") == 2
    assert "serves since" not in text(page, "#model")


def test_what_is_wrong_is_said_first(page: Tab, engine: Engine) -> None:
    page.open(engine.service.url)
    stalled = {"ok": False, "reason": "no progress for 61 s; 60 s are allowed"}
    before, metrics = engine.status(2_000_000_000.0), engine.metrics
    metrics.checkpoint_failures.inc()
    metrics.model_swaps.labels(outcome="non_finite").inc()
    feed(page, before, engine.status(2_000_000_002.0, live=stalled, ready=stalled))
    assert text(page, "#state") == "Stands still"
    assert page.run("document.title") == "Stands still: fraud"
    assert text(page, "#trouble").startswith(
        "The loop stands still: no progress for 61 s; 60 s are allowed. "
        "A checkpoint could not be saved"
    )
    assert "A version of the model was refused" in text(page, "#trouble")
    feed(page, engine.status(2_000_000_100.0))
    assert page.run("document.getElementById('trouble').hidden")


def test_an_engine_that_has_ended_is_said_to_be_gone(page: Tab, engine: Engine) -> None:
    engine.metrics.up.set(1)
    page.open(engine.service.url)
    page.until("document.getElementById('state').innerText.includes('Running')")
    engine.service.stop()
    page.until("document.getElementById('state').innerText.startsWith('No answer since')")


# --------------------------------------------------------------------------- rejected and hostile


def test_hostile_names_and_rows_are_text(page: Tab, engine: Engine) -> None:
    names = {"name": HOSTILE, "stages": [HOSTILE], "model": {"target": HOSTILE, "task": "binary"}}
    engine.notes = Notes({**OUTLINE, **names})
    metrics = engine.metrics
    metrics.source_lag_records.labels(partition=HOSTILE).set(9)
    metrics.stage_seconds.labels(stage=HOSTILE).observe(0.1)
    metrics.model.labels(version=HOSTILE, precision="int8", provider="CPU", digest=HOSTILE).set(1)
    metrics.watch_memory(HOSTILE, lambda: 1 << 20)
    metrics.quality.labels(metric=HOSTILE, window="window").set(1)
    page.open(engine.service.url)
    before = engine.status(2_000_000_000.0)
    engine.reject(2, stage=HOSTILE, reason="constructor", value=HOSTILE)
    metrics.stage_seconds.labels(stage=HOSTILE).observe(0.1)
    feed(page, before, engine.status(2_000_000_002.0))
    page.run("document.querySelector('details').open = true")
    feed(page, engine.status(2_000_000_004.0))
    assert text(page, "#rejects pre") == HOSTILE
    assert text(page, "h1") == HOSTILE
    for part in ("#flow", "#lags", "#stages", "#model", "#memory", "#measures", "#rejects"):
        assert HOSTILE[:20] in text(page, part)
    assert page.run("document.images.length + document.scripts.length") == 1
    assert page.said == []


def test_values_that_may_not_be_shown_are_not(page: Tab, engine: Engine) -> None:
    engine.reject(1, stage="decode", reason="wrong_type", value="secret row")
    page.open(engine.service.url)
    feed(page, engine.status(2_000_000_000.0, samples=None))
    page.run("document.querySelector('details').open = true")
    feed(page, engine.status(2_000_000_002.0, samples=None))
    assert "[service] samples = true" in text(page, "#rejects")
    assert "secret row" not in text(page, "body")


# ------------------------------------------------------------------------------------- a long day


def test_a_day_does_not_grow_the_page(page: Tab, engine: Engine) -> None:
    """43,200 statuses on the page's own clock, with new versions and reasons all day long. Its
    charts are full after the day before."""
    page.open(engine.service.url)
    for number in range(40):
        engine.metrics.source_lag_records.labels(partition=f"payments-{number}").set(number)
    engine.reject(3, stage="decode", reason="wrong_type", value="x" * 250)
    status = engine.status(2_000_000_000.0)
    play = """((from, until) => {
        for (let at = from; at < until; at += 2) {
            const model = {version: [`v${Math.floor(at / 600)}`], digest: ["d"], value: [1]};
            const lags = {...day.metrics.source_lag_records};
            lags.value = lags.value.map((n) => (n * at) % 1000);
            const rejected = {...day.metrics.rejected_records, value: [at]};
            feed({...day, at: day.at + at,
                samples: day.samples.map((row) => ({...row, position: at})),
                metrics: {...day.metrics, source_records: 500 * at, model,
                    source_lag_records: lags, rejected_records: rejected}});
            if (at % 1200 === 0) show();
        }
    })"""
    feed(page, status)
    page.run(f"window.day = {json.dumps(status)}; window.play = {play}; 0")
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.run(f"play(2, {DAY})")
    heaps, counts = [], []
    for day in (1, 2, 3):
        heap, nodes = page.memory()
        heaps.append(heap)
        counts.append(nodes)
        if day < 3:
            page.run(f"play({day * DAY}, {(day + 1) * DAY})")
    assert page.run("recent.at(-1).at - day.at") == 3 * DAY - 2
    assert page.run("rings.map((ring) => ring.columns.read.length)") == [181] * 3
    assert page.run("[...rings[2].columns.read].slice(-170).every((n) => n === 500)")
    assert page.run("rings[2].columns.read.filter((n) => !Number.isNaN(n)).length") > DAY / 480 - 3
    assert max(counts) <= counts[0] + 10
    # What is kept of each status grows every day; what the browser compiled of the page, once.
    assert min(after - before for before, after in pairwise(heaps)) < 200_000
    assert page.said == []


# -------------------------------------------------------------------------- how it looks and works


def fill(page: Tab, engine: Engine) -> None:
    """A page with lines in every chart."""
    metrics, statuses = engine.metrics, []
    metrics.memory_budget_bytes.set(1 << 28)
    engine.reject(1, stage="decode", reason="wrong_type", value="0123456789" * 30)
    for number in range(20):
        metrics.source_records.inc(1_000 + number)
        metrics.learned_records.inc(1_000)
        for span in ("fetch_to_ready", "ready_to_done"):
            metrics.record_latency_seconds.labels(span=span).observe(0.01)
        metrics.stage_seconds.labels(stage="a_stage_with_a_very_long_name").observe(0.5)
        metrics.quality.labels(metric="mae", window="window").set(30 - number / 9)
        metrics.baseline_quality.labels(metric="mae", window="window").set(40)
        metrics.source_lag_records.labels(partition="a-topic." * 9 + "0").set(number)
        statuses.append(engine.status(2_000_000_000.0 + 2 * number))
    page.open(engine.service.url)
    feed(page, *statuses)


@pytest.mark.parametrize(
    ("width", "dark"), [(1240, False), (1240, True), (390, False), (320, True)]
)
def test_it_has_its_colours_and_fits_any_width(
    page: Tab, engine: Engine, tmp_path: Path, width: int, dark: bool
) -> None:
    page.show(dark=dark, size=(width, 1_600))
    fill(page, engine)
    page.run("document.querySelector('details').open = true; redraw()")
    page.run(SHOWN)
    seen = page.picture(tmp_path / "page.png")
    theme = DARK if dark else LIGHT
    assert seen.corner == theme["paper"]
    assert seen.count(theme["mark"]) > 50
    wide = "[...document.querySelectorAll('main *')].filter((each) => each.getBoundingClientRect()"
    assert page.run(f"{wide}.right > {width} + 0.5).map((each) => each.outerHTML)") == []
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.said == []


def test_keys_reach_the_ranges_the_charts_and_the_rows(page: Tab, engine: Engine) -> None:
    fill(page, engine)
    reached = []
    for _ in range(12):
        page.press("Tab")
        reached.append(
            page.run("document.activeElement.className || document.activeElement.tagName")
        )
        if reached[-1] == "INPUT":
            page.press("ArrowRight")
            page.run(SHOWN)
            assert text(page, ".ends") == "1 h ago now"
            page.press("ArrowLeft")
        if reached[-1] == "plot tall":
            page.press("ArrowLeft")
            page.run(SHOWN)
            assert text(page, ".ends") == "2 s ago"
            label = page.run("document.activeElement.getAttribute('aria-label')")
            assert label == "model 28.0, best baseline 40.0"
        if reached[-1] == "SUMMARY":
            page.press("Enter")
            page.run(SHOWN)
            assert "position 81,723" in text(page, "#rejects")
            break
    assert [each for each in reached if each != "plot"] == ["INPUT", "plot tall", "SUMMARY"]
    assert page.said == []
