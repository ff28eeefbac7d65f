"""What the loop notes for the live page: bounded, without secrets, and never in the loop's way."""

from __future__ import annotations

import json

import polars as pl

from engine.observing.logs import hide
from engine.running.bottleneck import Advice, Bottleneck
from engine.running.notes import MAX_REASONS, MAX_TEXT, SAMPLE_SECONDS, SAMPLES, Notes
from engine.types import PARTITION, POSITION, Rejects


def rejects(
    *positions: int, reason: str = "wrong_type", value: str | None = "{}", stage: str = "decode"
) -> Rejects:
    rows = pl.DataFrame(
        {
            PARTITION: ["payments-0"] * len(positions),
            POSITION: list(positions),
            "detail": [None] * len(positions),
            "value": [value] * len(positions),
        },
        schema={
            PARTITION: pl.String,
            POSITION: pl.Int64,
            "detail": pl.String,
            "value": pl.String,
        },
    )
    return Rejects(stage=stage, reason=reason, rows=rows)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def positions(notes: Notes) -> list[int]:
    return [row["position"] for row in notes.facts(True)["samples"]]


def test_nothing_is_noted_at_first() -> None:
    assert Notes().facts(True) == {
        "outline": {}, "bottleneck": None, "lag_units": {}, "samples": [],
    }  # fmt: skip


def test_the_newest_rows_of_a_reason_are_kept_one_batch_a_second() -> None:
    clock = Clock()
    notes = Notes(clock=clock)
    notes.rejected(rejects(1))
    notes.rejected(rejects(2))
    assert positions(notes) == [1]
    clock.now += SAMPLE_SECONDS
    notes.rejected(rejects(3, 4))
    assert positions(notes) == [3, 4, 1]
    clock.now += SAMPLE_SECONDS
    notes.rejected(rejects(*range(10, 20)))
    assert positions(notes) == [10, 11, 12]
    assert len(positions(notes)) == SAMPLES
    (row, *_) = notes.facts(True)["samples"]
    assert row == {
        "stage": "decode",
        "reason": "wrong_type",
        "at": clock.now,
        "partition": "payments-0",
        "position": 10,
        "detail": "",
        "value": "{}",
    }


def test_no_rows_are_no_sample() -> None:
    notes = Notes()
    notes.rejected(rejects())
    notes.rejected(rejects(5))
    assert positions(notes) == [5]


def test_reasons_and_texts_are_bounded() -> None:
    notes = Notes()
    for number in range(3 * MAX_REASONS):
        notes.rejected(rejects(number, reason=f"reason{number}", value="x" * 100_000))
    samples = notes.facts(True)["samples"]
    assert len(samples) == MAX_REASONS
    assert {row["value"] for row in samples} == {"x" * MAX_TEXT + " ..."}
    assert len(json.dumps(samples)) < MAX_REASONS * (MAX_TEXT + 300)


def test_rows_are_only_for_who_may_see_them() -> None:
    notes = Notes()
    notes.rejected(rejects(1, value="private"))
    assert notes.facts(False)["samples"] is None
    assert "private" not in json.dumps(notes.facts(False))


def test_secrets_are_hidden_also_where_a_text_is_cut() -> None:
    secret = "correct-horse-battery"
    hide(secret)
    notes = Notes({"endpoints": {"source": {"path": f"db?password={secret}"}}})
    notes.rejected(rejects(1, value=f"token {secret}"))
    notes.rejected(rejects(2, value="y" * (MAX_TEXT - 10) + secret, reason="other"))
    facts = json.dumps(notes.facts(True))
    assert "correct" not in facts
    assert "token ***" in facts
    assert "password=***" in facts


def test_the_newest_bottleneck_comes_with_its_advice() -> None:
    clock = Clock()
    notes = Notes(clock=clock)
    advice = Advice(setting="loader.batch_rows=4096", why="larger batches spread their fixed cost")
    bottleneck = Bottleneck(
        part="model", stage="learn", resource="CPU", share=0.5, limit=2.0, advice=(advice,)
    )
    notes.diagnosed(bottleneck)
    shown = json.loads(json.dumps(notes.facts(False)["bottleneck"]))
    assert shown["at"] == clock.now
    assert shown["text"] == str(bottleneck)
    assert (shown["part"], shown["share"]) == ("model", 0.5)
    assert shown["advice"] == [{"setting": advice.setting, "why": advice.why}]
