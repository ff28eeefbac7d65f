"""Two topics joined by key within a time, on a real broker: what was written when they are read is
joined exactly, whatever transactions its partitions hold, and a later run goes on with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kafka import KafkaProducer

from engine.columnar.event_time import AGREE
from engine.config import Pipeline
from engine.run import Run
from tests.broker import Broker, shared_broker
from tests.forks import Command
from tests.pipelines.kafka.test_kafka_quiet import toml
from tests.waiting import HANG, until

N, PARTITIONS = 600, 3


class Topics:
    """The rows, the events and the results of one pipeline."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.rows, self.events = broker.topic(), broker.topic(PARTITIONS)
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
        self._in_transactions = KafkaProducer(
            bootstrap_servers=broker.bootstrap_servers, transactional_id=f"x-{self.events}"
        )
        self._in_transactions.init_transactions()
        self.no_rows = pl.DataFrame(schema={"n": pl.Int64, "who": pl.String, "at": pl.Datetime})
        self.folder = folder
        kafka = {"kind": "kafka", "bootstrap_servers": broker.bootstrap_servers}
        rows = {"n": "int64", "who": "string", "at": "datetime[ms]"}
        events = {"user": "string", "at": "datetime[ms]", "price": "int64"}
        self.table: dict[str, Any] = {
            "name": "joined",
            "folder": str(folder / "run"),
            "source": {**kafka, "topics": [self.rows], "stop": "end", "schema": rows},
            "scrub": {
                "clicks": {
                    "kind": "join", "by": {"who": "user"}, "time": "at", "within": "20s",
                    "wait": "5s", "source": {**kafka, "topics": [self.events], "schema": events},
                },
            },
            "loader": {"batch_rows": 50},
            "sink": {"kind": "files", "path": str(folder / "out")},
        }  # fmt: skip

    def write(self, rows: pl.DataFrame, clicks: pl.DataFrame) -> None:
        """Write both; the events in a transaction, and others in one that is aborted."""
        for line in rows.write_ndjson().splitlines():
            self._producer.send(self.rows, line.encode(), partition=0)
        self._producer.flush()
        for ends in ("commit_transaction", "abort_transaction"):
            self._in_transactions.begin_transaction()
            for click in clicks.iter_rows(named=True):
                price = click["price"] if ends == "commit_transaction" else -1
                value = json.dumps({**click, "at": click["at"].isoformat(), "price": price})
                partition = int(click["user"][1:]) % PARTITIONS
                self._in_transactions.send(self.events, value.encode(), partition=partition)
            getattr(self._in_transactions, ends)()

    def results(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "out" / "part-*.parquet").sort("n")

    def close(self) -> None:
        self._producer.close()
        self._in_transactions.close()


@pytest.fixture
def topics(tmp_path: Path) -> Iterator[Topics]:
    topics = Topics(shared_broker(), tmp_path)
    yield topics
    topics.close()


def streams() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and events of 30 users in the order of their times, which are different."""
    rng = np.random.default_rng(3)
    times = rng.permutation(2 * N) * 200
    users = [f"u{user}" for user in rng.integers(0, 30, 2 * N)]
    frame = pl.DataFrame({"user": users, "at": pl.Series(times).cast(pl.Datetime("ms"))})
    rows, clicks = frame[:N].sort("at"), frame[N:].sort("at")
    number = pl.int_range(pl.len(), dtype=pl.Int64)
    return rows.select(number.alias("n"), pl.col("user").alias("who"), "at"), clicks.select(
        "user", "at", number.alias("price")
    )


def expected(rows: pl.DataFrame, clicks: pl.DataFrame) -> list[int | None]:
    right = clicks.rename({"user": "who"})
    before = rows.join_asof(right, on="at", by="who", tolerance="20s")
    after = rows.join_asof(right, on="at", by="who", strategy="forward", tolerance="5s")
    return before["price"].fill_null(after["price"]).to_list()


def test_two_topics_are_joined_as_they_were_written(topics: Topics) -> None:
    rows, clicks = streams()
    half = rows["at"][N // 2 - 1] + pl.Series([5_000]).cast(pl.Duration("ms"))[0]
    topics.write(rows[: N // 2], clicks.filter(pl.col("at") <= half))
    first = Run(Pipeline.of(topics.table)).run()
    assert topics.results()["price"].to_list() == expected(rows, clicks)[: N // 2]
    topics.write(rows[N // 2 :], clicks.filter(pl.col("at") > half))
    second = Run(Pipeline.of(topics.table)).run()
    assert (first.resumed, second.resumed, second.totals.read) == (False, True, N)
    assert topics.results()["price"].to_list() == expected(rows, clicks)
    counts = second.totals.counts
    assert counts["clicks", "unmatched"] == topics.results()["price"].null_count() > 0
    odd = ("events_late", "events_missed", "events_forgotten", "late", "ahead", "unreadable")
    assert [counts["clicks", what] for what in odd] == [0] * len(odd)


def test_what_comes_between_two_runs_is_read_where_the_first_began_with_the_latest(
    topics: Topics,
) -> None:
    rows, clicks = streams()
    half = clicks["at"][N // 2]
    early, late = clicks.filter(pl.col("at") <= half), clicks.filter(pl.col("at") > half)
    topics.table["scrub"]["clicks"]["source"]["start"] = "latest"
    topics.write(rows[: N // 2], early)
    Run(Pipeline.of(topics.table)).run()
    assert topics.results()["price"].null_count() == N // 2
    topics.write(rows[N // 2 :], late)
    Run(Pipeline.of(topics.table)).run()
    assert topics.results()["price"].to_list()[N // 2 :] == expected(rows[N // 2 :], late)


def test_a_row_of_now_waits_until_the_events_have_come_that_far(
    topics: Topics, tmp_path: Path
) -> None:
    """An hour, unless newer events say that none comes; an engine that waits ends when told to."""
    source = {**topics.table["source"], "stop": "never"}
    join = {**topics.table["scrub"]["clicks"], "within": "2h", "wait": "1h"}
    table = {**topics.table, "source": source, "scrub": {"clicks": join}}
    file = tmp_path / "joined.toml"
    file.write_text(toml({**table, "checkpoint": {"interval_batches": 1}}))
    now = datetime.now(UTC).replace(tzinfo=None)
    later = [now + timedelta(minutes=1), *[now + timedelta(hours=2)] * AGREE]
    users = [f"u{user}" for user in range(PARTITIONS)]
    clicks = pl.DataFrame([(u, at) for at in later for u in users], ["user", "at"], orient="row")
    with Command(["run", str(file)]) as engine:
        topics.write(pl.DataFrame({"n": [0], "who": ["u1"], "at": [now]}), clicks[:0])
        topics.write(topics.no_rows, clicks.with_row_index("price"))
        until(lambda: list((tmp_path / "out").glob("part-*.parquet")), process=engine)
        topics.write(pl.DataFrame({"n": [1], "who": ["u1"], "at": [later[-1]]}), clicks[:0])
        engine.terminate()
        assert engine.wait(HANG) == 0
    assert topics.results().select("n", "who", "price").rows() == [(0, "u1", 1)]
