"""Each rejected record is replayed once, however often its letter is in the topic."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from connectors.formats.kernels.rows import values
from connectors.kafka.record_batches import encode_headers
from connectors.kafka.replayed_letters import ReplayedLetters
from engine.types import PARTITION, POSITION, Records

TOPIC = "letters/0"


def letters(parents: list[int], start: int, stop: int, replayed: str | None = None) -> Records:
    """Letters of records of 'orders/0', those from start to stop of a topic."""
    own = pl.Series(parents[start:stop], dtype=pl.Int64)
    n = len(own)
    columns = {
        "topic": pl.Series(["orders"] * n, dtype=pl.String),
        "partition": pl.Series(["0"] * n, dtype=pl.String),
        "offset": own.cast(pl.String),
        "timestamp": pl.Series(["1000"] * n, dtype=pl.String),
        "replayed": pl.Series([replayed] * n, dtype=pl.String),
    }
    return Records(
        partition=TOPIC,
        positions=np.arange(start, stop),
        next=stop,
        values=values(pl.Series([b"x"] * n, dtype=pl.Binary)),
        arrived=0.0,
        headers=encode_headers(n, [], {f"headrace.{name}": c for name, c in columns.items()}),
    )


def taken(tracker: ReplayedLetters, records: Records) -> list[int]:
    """The positions of the letters that are replayed; all pieces together end where they do."""
    pieces = list(tracker.unwrapped(records))
    assert pieces[-1].next == records.next
    for piece in pieces:
        assert piece.origins is not None
        assert piece.origins[PARTITION].to_list() == ["orders/0"] * len(piece)
        assert piece.origins[POSITION].len() == len(piece)
    return [int(at) for piece in pieces for at in piece.positions]


@given(
    st.lists(st.integers(0, 5), max_size=30),
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9)), max_size=12),
)
def test_every_parent_once_wherever_the_replay_is_killed(
    parents: list[int], steps: list[tuple[int, int]]
) -> None:
    """A step reads so many letters; a kill goes back so many, to a checkpoint of the same run."""
    tracker, at, checkpoint = ReplayedLetters(), 0, 0
    tracker.begin({TOPIC: 0})
    done: dict[int, int] = {}
    for size, back in [*steps, (len(parents), 0)]:
        stop = min(at + size, len(parents))
        if stop > at:
            done |= {i: parents[i] for i in taken(tracker, letters(parents, at, stop))}
            at = stop
        if back:
            at = checkpoint = max(checkpoint, at - back)
            known = tracker.snapshot({TOPIC: at})
            tracker = ReplayedLetters()
            tracker.restore(known)
            tracker.begin({TOPIC: at})
            done = {i: parent for i, parent in done.items() if i < at}
    assert done == {parents.index(parent): parent for parent in set(parents)}


def test_a_letter_of_what_is_yet_to_be_read_is_left_out() -> None:
    """A record after the checkpoint, or a letter that this replay reads itself."""
    tracker = ReplayedLetters()
    tracker.begin({TOPIC: 4, "orders/0": 7})
    assert taken(tracker, letters([6, 7, 8], 0, 3)) == [0]
    assert taken(tracker, letters([5], 0, 1, replayed=f"{TOPIC}/4")) == []
    assert taken(tracker, letters([5], 0, 1, replayed=f"{TOPIC}/3")) == [0]
    assert (tracker.early, tracker.repeats) == (3, 0)


def test_what_headrace_did_not_write_is_always_replayed() -> None:
    tracker = ReplayedLetters()
    tracker.begin({TOPIC: 0})
    for _ in range(2):
        foreign = letters([1], 0, 1)
        plain = Records(
            partition=TOPIC, positions=foreign.positions, next=1, values=foreign.values,
            arrived=0.0, headers=values(pl.Series([None], dtype=pl.Binary)),
        )  # fmt: skip
        (piece,) = tracker.unwrapped(plain)
        assert len(piece) == 1
