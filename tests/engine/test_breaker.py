"""Too many rejected rows end a run, of few rows as of many."""

from __future__ import annotations

import polars as pl
import pytest

from engine.config import DeadLetterSettings
from engine.loop import Breaker, Flood
from engine.types import Rejects


def rejects(reason: str, n: int) -> Rejects:
    return Rejects(stage="decode", reason=reason, rows=pl.DataFrame({"_position": range(n)}))


def breaker(**settings: object) -> Breaker:
    return Breaker(DeadLetterSettings.model_validate(settings))


@pytest.mark.parametrize(("bad", "floods"), [(0, False), (2, False), (3, True), (10, True)])
def test_a_few_rows_are_judged_at_the_end(bad: int, floods: bool) -> None:
    judge = breaker(limit=0.2)
    judge.check(10, (rejects("broken", bad),) if bad else ())
    if not floods:
        judge.finish()
        return
    with pytest.raises(Flood, match=rf"Ended: {bad * 10:.1f}% of 10 rows .*decode: broken"):
        judge.finish()


def test_the_sentence_names_the_worst_reason_of_all_batches() -> None:
    judge = breaker()
    judge.check(10, (rejects("broken", 4),))
    judge.check(10, (rejects("wrong_type", 3), rejects("broken", 1)))
    judge.check(10, (rejects("wrong_type", 3),))
    with pytest.raises(
        Flood, match=r"36.7% of 30 rows were rejected \(decode: wrong_type, 6 of 11"
    ):
        judge.finish()


def test_expected_reasons_do_not_count() -> None:
    judge = breaker()
    judge.check(10, (rejects("duplicate", 9),))
    judge.finish()


def test_nothing_read_is_nothing_rejected() -> None:
    breaker().finish()


def test_dead_letters_read_again_are_judged_by_a_full_window_only() -> None:
    judge = Breaker(DeadLetterSettings(window=100), few=False)
    judge.check(99, (rejects("broken", 99),))
    judge.finish()
    with pytest.raises(Flood, match=r"Stopped: 100.0% of the last 100 rows"):
        judge.check(1, (rejects("broken", 1),))
