"""A table from a topic: list of records and rows in, list of rows out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka.reading.decoding import TopicDecoding
from connectors.kafka.reading.settings import KafkaSourceSettings
from engine.scrub.features.lookup import Lookup
from engine.scrub.side_source import SideSource
from engine.types import (
    Batch,
    EndOfStream,
    HeadraceError,
    Mark,
    Records,
    Schema,
    Snapshot,
    Source,
    UserError,
    Values,
)
from tests.scrub.conftest import batch_of, schema_of
from tests.size import examples

TOMBSTONE = None
Item = tuple[int, str | None, bytes | None]
"""A record of a log: offset, key, value."""
SCHEMA: Schema = {"id": pl.String(), "x": pl.Int64()}


class Log:
    """The log of a partition, written a record a millisecond; `compact` does what a broker does."""

    def __init__(
        self, items: Sequence[Item] = (), *, partition: str = "t/0", begun: int = 0
    ) -> None:
        self.items = list(items)
        self.partition, self.begun = partition, begun
        self.end = max((at for at, *_ in items), default=-1) + 1
        self.id = "first"

    def write(self, key: str | None, value: Any) -> None:
        """Append a record: an object, bytes as they are, or a tombstone."""
        plain = value is None or isinstance(value, bytes)
        self.items.append((self.end, key, value if plain else json.dumps(value).encode()))
        self.end += 1

    def compact(self) -> None:
        """Keep the newest record of each key, and no tombstone."""
        newest = {key: at for at, key, _ in self.items}
        self.items = [i for i in self.items if newest[i[1]] == i[0] and i[2] is not None]


class Topic(Source):
    """Logs as a source of topics reads them, one after the other, a few records at a time."""

    def __init__(self, logs: Sequence[Log], *, whole: bool, each: int) -> None:
        super().__init__(None)
        self._logs, self._whole, self._each = logs, whole, each
        self._decoding = TopicDecoding(KafkaSourceSettings(topics=("t",)))
        self.format = self._decoding.format
        self._known: Mapping[str, Snapshot] = {}

    def unbounded(self) -> bool:
        return not self._whole

    def schema(self, declared: Schema) -> Schema:
        return self._decoding.schema(declared)

    def seek(self, mark: Mark) -> None:
        if any(self._known.get(log.partition, log.id) != log.id for log in self._logs):
            raise HeadraceError("[source] Topic 't' was deleted and created again.")
        self._next = {log.partition: mark.positions.get(log.partition, 0) for log in self._logs}
        self._end = {log.partition: log.end for log in self._logs}

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        for log in self._logs:
            end = self._end[log.partition] if self._whole else log.end
            items = [i for i in log.items if self._next[log.partition] <= i[0] < end]
            if items:
                return self._records(log, items[: self._each])
        if self._whole:
            raise EndOfStream
        return None

    def _records(self, log: Log, items: Sequence[Item]) -> Records:
        self._next[log.partition] = items[-1][0] + 1
        positions = np.array([at for at, *_ in items])
        return Records(
            partition=log.partition,
            positions=positions,
            next=self._next[log.partition],
            values=values_of([value for *_, value in items], b"\n"),
            keys=values_of([None if key is None else key.encode() for _, key, _ in items]),
            timestamps=log.begun + positions,
            arrived=time.monotonic(),
        )

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {log.partition: log.end - mark.positions.get(log.partition, 0) for log in self._logs}

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        return {log.partition: log.id for log in self._logs}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        self._known = identities


def values_of(values: Sequence[bytes | None], tail: bytes = b"") -> Values:
    texts = [(value or b"") + tail for value in values]
    null = np.array([value is None for value in values])
    return Values(
        data=np.frombuffer(b"".join(texts), np.uint8),
        bounds=np.cumsum([0, *map(len, texts)]),
        null=null if null.any() else None,
        tail=len(tail),
    )


def stage_of(
    log: Log | Sequence[Log], frame: pl.DataFrame, *, each: int = 3, **options: Any
) -> Lookup:
    """A bound lookup of the table of a log, or of several; `schema` is that of its records."""
    logs = [log] if isinstance(log, Log) else log
    schema = options.pop("schema", SCHEMA)
    stage = Lookup("s", Lookup.Settings(source={"kind": "kafka"}, **{"by": ["id"], **options}))
    stage.side = SideSource(
        "scrub.s.source", lambda whole: Topic(logs, whole=whole, each=each), schema
    )
    stage.side.poll_interval = 0.0
    stage.bind(schema_of(frame))
    return stage


def ids(*keys: str | None) -> pl.DataFrame:
    return pl.DataFrame({"id": list(keys)}, schema={"id": pl.String})


def looked_up(stage: Lookup, *keys: str | None) -> list[Any]:
    return stage.apply(batch_of(ids(*keys))).frame["x"].to_list()


def counts(batch: Batch) -> dict[str, int]:
    return {what: n for (_, what), n in batch.counts.items() if n}


# ------------------------------------------------------------------------------------------ changes


def test_it_is_read_to_its_end_before_the_first_row_and_then_as_it_changes() -> None:
    log = Log()
    for i in range(10):
        log.write(f"k{i % 4}", {"id": f"k{i % 4}", "x": i})
    stage = stage_of(log, ids("a"))
    assert looked_up(stage, "k0", "k1", "k2", "k3", "k4", None) == [8, 9, 6, 7, None, None]
    log.write("k1", {"id": "k1", "x": 20})
    log.write("k2", TOMBSTONE)
    log.write("k4", {"id": "k4", "x": 22})
    done = stage.apply(batch_of(ids("k0", "k1", "k2", "k4")))
    assert done.frame["x"].to_list() == [8, 20, None, 22]
    assert counts(done) == {"changed": 3, "unmatched": 1}
    assert stage.rows == 4


def test_a_record_replaces_that_of_the_same_record_key_whatever_its_row_says() -> None:
    log = Log()
    log.write("r", {"id": "a", "x": 1})
    stage = stage_of(log, ids("a"))
    assert looked_up(stage, "a", "b") == [1, None]
    log.write("r", {"id": "b", "x": 2})
    assert looked_up(stage, "a", "b") == [None, 2]
    log.write("r", TOMBSTONE)
    assert looked_up(stage, "a", "b") == [None, None]


def test_without_record_keys_the_key_of_the_row_says_what_is_replaced() -> None:
    log = Log()
    for x in (1, 2):
        log.write(None, {"id": "a", "x": x})
    stage = stage_of(log, ids("a"))
    assert looked_up(stage, "a") == [2]
    log.write(None, {"id": "a", "x": 3})
    assert looked_up(stage, "a") == [3]


def test_two_record_keys_of_one_key_are_told_and_the_newest_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log()
    log.write("r1", {"id": "a", "x": 1})
    stage = stage_of(log, ids("a"))
    assert looked_up(stage, "a") == [1]
    log.write("r2", {"id": "a", "x": 2})
    done = stage.apply(batch_of(ids("a")))
    assert (done.frame["x"].to_list(), counts(done)) == ([2], {"changed": 1, "shared": 1})
    assert "has 1 record whose key another record has, too, first in 't/0'" in caplog.text
    log.write("r2", TOMBSTONE)
    assert looked_up(stage, "a") == [1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_a_key_in_two_partitions_the_newest_counts_however_they_are_read(
    order: tuple[int, int],
) -> None:
    """As when partitions were added, so that the key has moved: a restart reads them in any
    order."""
    old, new = Log(), Log(partition="t/1", begun=100)
    for key in ("a", "b"):
        old.write(key, {"id": key, "x": 1})
    new.write("a", {"id": "a", "x": 2})
    stage = stage_of([(old, new)[i] for i in order], ids("a"))
    assert looked_up(stage, "a", "b") == [2, 1]
    new.write("b", {"id": "b", "x": 3})
    old.write("c", {"id": "c", "x": 4})
    assert looked_up(stage, "a", "b", "c") == [2, 3, 4]


@pytest.mark.parametrize("bad", [b'{"id": "a", "x": "many"}', b"{", b'{"id": null, "x": 3}'])
def test_a_record_that_cannot_be_used_takes_its_key_out_and_is_told(
    bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """As compaction would, which leaves no other record of the key."""
    log = Log()
    log.write("a", {"id": "a", "x": 1})
    stage = stage_of(log, ids("a"))
    assert looked_up(stage, "a") == [1]
    log.write("a", bad)
    done = stage.apply(batch_of(ids("a")))
    assert done.frame["x"].to_list() == [None]
    assert counts(done) == {"changed": 1, "unreadable": 1, "unmatched": 1}
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert said.startswith("[scrub.s.source] has 1 ")
    assert "first at 1 of 't/0'" in said
    assert any("[scrub.s.source] had 1 " in remark for remark in stage.remarks())
    log.compact()
    assert looked_up(stage_of(log, ids("a")), "a") == [None]


KEYS = st.sampled_from("abcd")
WRITES = st.lists(st.tuples(KEYS, st.none() | st.integers(0, 9)), max_size=40)


@given(
    writes=WRITES,
    cuts=st.lists(st.integers(0, 40), max_size=5),
    each=st.integers(1, 7),
    compacted=st.booleans(),
)
@settings(max_examples=examples(60), deadline=None)
def test_it_is_what_compaction_leaves_however_it_is_read(
    writes: list[tuple[str, int | None]], cuts: list[int], each: int, compacted: bool
) -> None:
    log, expected = Log(), dict.fromkeys("abcd")
    stage = stage_of(log, ids("a"), each=each)
    for n, (key, x) in enumerate(writes):
        if n in cuts:
            assert looked_up(stage, *"abcd") == list(expected.values())
        log.write(key, None if x is None else {"id": key, "x": x})
        expected[key] = x
    assert looked_up(stage, *"abcd") == list(expected.values())
    if compacted:
        log.compact()
    assert looked_up(stage_of(log, ids("a")), *"abcd") == list(expected.values())


def test_many_changes_leave_few_runs_and_the_same_table() -> None:
    rng = np.random.default_rng(0)
    log, expected = Log(), dict[str, int]()
    stage = stage_of(log, ids("a"), each=50)
    for _ in range(60):
        for key, x in zip(rng.integers(0, 300, 40), rng.integers(0, 1_000, 40), strict=True):
            log.write(f"k{key}", {"id": f"k{key}", "x": int(x)})
            expected[f"k{key}"] = int(x)
        stage.apply(batch_of(ids("k0")))
    assert looked_up(stage, *expected) == list(expected.values())
    assert stage.rows == len(expected)
    assert len(stage._table._runs._runs) <= 4  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------- as of


TIMED: Schema = {**SCHEMA, "since": pl.Int64(), "heard": pl.Int64()}
AS_OF: dict[str, Any] = {"time": "at", "as_of": "since", "columns": ["x"], "schema": TIMED}


def at(*rows: tuple[str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"id": pl.String, "at": pl.Int64}, orient="row")


def test_rows_that_came_later_do_not_hide_those_that_were_valid_before() -> None:
    log = Log()
    stage = stage_of(log, at(), **AS_OF)
    for since, x in ((10, 1), (20, 2), (20, 3), (15, 4)):
        log.write("a", {"id": "a", "x": x, "since": since, "heard": 0})
        stage.apply(batch_of(at()))
    done = stage.apply(batch_of(at(*(("a", t) for t in (9, 10, 14, 15, 19, 20, 99)))))
    assert done.frame["x"].to_list() == [None, 1, 1, 4, 4, 3, 3]
    log.write("a", TOMBSTONE)
    log.write("a", {"id": "a", "x": 5, "since": 30, "heard": 0})
    done = stage.apply(batch_of(at(("a", 20), ("a", 30))))
    assert done.frame["x"].to_list() == [None, 5]


@given(
    writes=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 9)) | KEYS, max_size=25
    ),
    cuts=st.lists(st.integers(0, 25), max_size=4),
    most=st.none() | st.integers(1, 5),
)
@settings(max_examples=examples(60), deadline=None)
def test_as_of_is_a_search_through_what_was_written(
    writes: list[Any], cuts: list[int], most: int | None
) -> None:
    log: Log = Log()
    stage = stage_of(log, at(), each=4, known="heard", max_age=most, **AS_OF)
    versions: dict[tuple[str, int], tuple[int, int]] = {}
    for n, write in enumerate(writes):
        if n in cuts:
            stage.apply(batch_of(at()))
        if isinstance(write, str):
            log.write(write, TOMBSTONE)
            versions = {at: own for at, own in versions.items() if at[0] != write}
        else:
            key, since, heard = write
            log.write(key, {"id": key, "x": n, "since": since, "heard": heard})
            versions[key, since] = heard, n
    asked = [(key, t) for key in "ab" for t in range(11)]
    expected: list[int | None] = []
    for key, t in asked:
        fit = [
            (since, x)
            for (own, since), (heard, x) in versions.items()
            if own == key and since <= t and heard <= t
        ]
        since, x = max(fit, default=(-99, -1))
        expected.append(x if fit and (most is None or t - since <= most) else None)
    assert stage.apply(batch_of(at(*asked))).frame["x"].to_list() == expected


# ------------------------------------------------------------------------------------------- memory


def test_of_too_many_keys_those_that_changed_longest_ago_are_forgotten_and_counted() -> None:
    log = Log()
    for i in range(40):
        log.write(f"k{i}", {"id": f"k{i}", "x": i})
    log.write("k0", {"id": "k0", "x": 99})
    stage = stage_of(log, ids("a"), each=1_000, keys=32)
    done = stage.apply(batch_of(ids(*(f"k{i}" for i in range(40)))))
    kept = [i for i, x in enumerate(done.frame["x"].to_list()) if x is not None]
    assert kept == [0, *range(11, 40)]
    assert counts(done) == {"forgotten": 10, "unmatched": 10}
    assert stage.rows == 30


def test_versions_that_a_later_one_has_replaced_are_forgotten_first() -> None:
    log = Log()
    log.write("old", {"id": "old", "x": 0, "since": 0, "heard": 0})
    for since in range(20):
        log.write("hot", {"id": "hot", "x": since, "since": since, "heard": 0})
    stage = stage_of(log, at(), keys=16, **AS_OF)
    done = stage.apply(batch_of(at(("old", 50), ("hot", 50), ("hot", 0))))
    assert done.frame["x"].to_list() == [0, 19, None]


# -------------------------------------------------------------------------------------- a restart


def test_a_run_that_resumes_reads_at_least_what_the_run_before_had_read() -> None:
    log = Log()
    for i in range(5):
        log.write(f"k{i}", {"id": f"k{i}", "x": i})
    first = stage_of(log, ids("a"))
    assert first.snapshot() is None
    looked_up(first, "k0")
    saved = first.snapshot()
    assert saved == {"positions": {"t/0": 5}, "identities": {"t/0": "first"}}
    log.write("k0", {"id": "k0", "x": 10})
    log.compact()
    second = stage_of(log, ids("a"))
    second.restore(saved)
    assert second.snapshot() == saved
    assert looked_up(second, "k0", "k4") == [10, 4]
    second.restore(saved)  # a rebalance goes back; what is known stays
    assert looked_up(second, "k0", "k4") == [10, 4]


def test_a_log_that_lost_records_which_were_read_is_refused() -> None:
    log = Log()
    for i in range(5):
        log.write(f"k{i}", {"id": f"k{i}", "x": i})
    first = stage_of(log, ids("a"))
    looked_up(first, "k0")
    shorter = stage_of(Log(log.items[:3]), ids("a"))
    shorter.restore(first.snapshot())
    with pytest.raises(UserError) as refused:
        looked_up(shorter, "k0")
    assert str(refused.value).startswith(
        "[scrub.s.source] partition 't/0' ends at 3, and the checkpoint has read it to 5"
    )


def test_another_topic_of_the_same_name_is_refused_under_the_name_of_its_table() -> None:
    log = Log()
    log.write("a", {"id": "a", "x": 1})
    first = stage_of(log, ids("a"))
    looked_up(first, "a")
    log.id = "second"
    second = stage_of(log, ids("a"))
    second.restore(first.snapshot())
    with pytest.raises(HeadraceError, match=r"^\[scrub.s.source\] Topic 't' was deleted"):
        looked_up(second, "a")


def test_bad_records_are_counted_once_over_all_restarts() -> None:
    log = Log()
    log.write("a", b"{")
    first = stage_of(log, ids("a"))
    assert counts(first.apply(batch_of(ids("a"))))["unreadable"] == 1
    log.write("b", b"{")
    second = stage_of(log, ids("a"))
    second.restore(first.snapshot())
    assert counts(second.apply(batch_of(ids("a"))))["unreadable"] == 1


def test_a_first_read_that_is_interrupted_begins_anew() -> None:
    log = Log()
    for i in range(9):
        log.write(f"k{i}", {"id": f"k{i}", "x": i})
    stage = stage_of(log, ids("a"))
    assert stage.side is not None
    stage.side.keep_alive = stage.side.interrupt
    with pytest.raises(HeadraceError, match="was interrupted"):
        looked_up(stage, "k0")
    stage.side.keep_alive = lambda: None
    stage.side.resume()
    assert looked_up(stage, "k0", "k8") == [0, 8]


# ----------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("options", "schema", "sentence"),
    [
        ({"by": ["name"]}, SCHEMA, "[scrub.s.source] needs column 'name', which is not there"),
        ({}, {"id": pl.Int64()}, "[scrub.s.source] expects string in its key column 'id'"),
        ({}, {"id": pl.String()}, "[scrub.s.source] has no column beside its keys"),
        ({}, {}, 'name every column that the pipeline uses in [scrub.s.source.schema]'),
        ({"reload": "1m"}, SCHEMA, "[scrub.s] 'reload' is for a file"),
        ({"path": "t.csv"}, SCHEMA, "[scrub.s] expects a table in a file, 'path', or from a"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_one_sentence(
    options: dict[str, Any], schema: Schema, sentence: str
) -> None:
    frame = pl.DataFrame({"id": ["a"], "name": ["b"]})
    with pytest.raises(UserError) as refused:
        stage_of(Log(), frame, schema=schema, **options)
    assert sentence in str(refused.value)
