"""Too many rejected rows end a run, of few rows as of many."""

from __future__ import annotations

import polars as pl
import pytest

from engine.config import DeadLetterSettings
from engine.running.reject_limit import RejectLimit, TooManyRejects
from engine.running.totals import Totals
from engine.types import Rejects


def rejects(reason: str, n: int) -> Rejects:
    return Rejects(stage="decode", reason=reason, rows=pl.DataFrame({"_position": range(n)}))


class Judge:
    """A reject limit and the totals, as the loop has them."""

    def __init__(self, *, again: bool = False, **settings: object) -> None:
        self.totals = Totals()
        self.limit = RejectLimit(DeadLetterSettings.model_validate(settings), again=again)

    def check(self, rows: int, rejects: tuple[Rejects, ...] = ()) -> None:
        for reject in rejects:
            key = (reject.stage, reject.reason)
            self.totals.reasons[key] = self.totals.reasons.get(key, 0) + len(reject)
        self.limit.count(rows, rejects, self.totals)
        self.limit.check(rows, rejects)

    def finish(self) -> None:
        self.limit.finish(self.totals)

    def restarted(self, *, again: bool = False, **settings: object) -> Judge:
        made = Judge(again=again, **settings)
        made.totals = Totals.restore(self.totals.snapshot())
        return made


@pytest.mark.parametrize(("bad", "floods"), [(0, False), (2, False), (3, True), (10, True)])
def test_a_few_rows_are_judged_at_the_end(bad: int, floods: bool) -> None:
    judge = Judge(limit=0.2)
    judge.check(10, (rejects("broken", bad),) if bad else ())
    if not floods:
        judge.finish()
        return
    with pytest.raises(
        TooManyRejects, match=rf"Ended: {bad * 10:.1f}% of 10 rows .*decode: broken"
    ):
        judge.finish()


def test_the_sentence_names_the_worst_reason_of_all_batches() -> None:
    judge = Judge()
    judge.check(10, (rejects("broken", 4),))
    judge.check(10, (rejects("wrong_type", 3), rejects("broken", 1)))
    judge.check(10, (rejects("wrong_type", 3),))
    with pytest.raises(
        TooManyRejects, match=r"36.7% of 30 rows were rejected \(decode: wrong_type, 6 of 11"
    ):
        judge.finish()


def test_expected_reasons_do_not_count() -> None:
    judge = Judge()
    judge.check(10, (rejects("duplicate", 9),))
    judge.finish()


def test_nothing_read_is_nothing_rejected() -> None:
    Judge().finish()


def test_dead_letters_read_again_are_judged_by_a_full_window_only() -> None:
    judge = Judge(window=100, again=True)
    judge.check(99, (rejects("broken", 99),))
    judge.finish()
    with pytest.raises(TooManyRejects, match=r"Stopped: 100.0% of the last 100 rows"):
        judge.check(1, (rejects("broken", 1),))


def test_a_start_that_reads_nothing_ends_as_the_one_before() -> None:
    """Under a restart policy, a failed job does not turn green by itself."""
    first = Judge()
    first.check(10, (rejects("broken", 4),))
    with pytest.raises(TooManyRejects):
        first.finish()
    with pytest.raises(
        TooManyRejects, match=r"Ended: 40.0% of 10 rows were rejected \(decode: broken\)"
    ):
        first.restarted().finish()
    first.restarted(limit=0.4).finish()
    more = first.restarted()
    more.check(990)
    more.finish()


def test_dead_letters_that_go_through_are_mended() -> None:
    first = Judge(limit=0.2)
    first.check(10, (rejects("broken", 4),))
    again = first.restarted(again=True, limit=0.2)
    again.check(4, (rejects("broken", 3),))
    again.finish()
    with pytest.raises(TooManyRejects, match=r"30.0% of 10 rows"):
        again.restarted(limit=0.2).finish()
    third = again.restarted(again=True, limit=0.2)
    third.check(3)
    third.restarted(limit=0.2).finish()
