"""What following change may cost."""

from __future__ import annotations

import pytest

from models.challenge.token_bucket import FACTOR, HORIZON, MOST, STEP_ROWS, TokenBucket
from models.learners.tabular import TabularLearner
from tests.models.challenge.test_challenger import batches, concept, features, learned


def test_a_model_alone_saves_what_it_does_not_spend() -> None:
    pace = TokenBucket().charge(1_024, 1, models=1).settled(1 / 1_024)
    assert pace.left == (FACTOR - 1) * (1_024 + STEP_ROWS)
    assert (pace.total, pace.rows, pace.spent) == (1_024, 0, 0)


def test_savings_have_a_limit() -> None:
    pace = TokenBucket()
    for _ in range(10):
        pace = pace.charge(1_000_000, 1_000, models=1).settled(1 / 1_000)
    assert pace.left == MOST


def test_it_does_not_matter_when_work_is_noted() -> None:
    whole = TokenBucket().charge(30, 12, models=2).settled(0.5)
    parts = TokenBucket().charge(10, 4, models=2).charge(20, 8, models=2).settled(0.5)
    assert whole == parts


def test_what_is_left_is_spent_over_the_rows_to_come() -> None:
    rich = TokenBucket(left=float(MOST))
    assert rich.limit(0.1, 64) == 0.1 + MOST / STEP_ROWS / HORIZON
    assert rich.limit(0.1, 4_096) == 0.1 + MOST / STEP_ROWS / 8_192
    assert TokenBucket(left=-1e6).limit(0.1, 64) == 0.1


def test_a_snapshot_goes_on() -> None:
    pace = TokenBucket().charge(30, 12, models=2).settled(0.5).charge(5, 1, models=1)
    assert TokenBucket.restored(pace.snapshot()) == pace


@pytest.mark.parametrize("limit", [2.0, 0.3, 0.05, 0.001])
def test_a_learner_takes_no_more_steps_a_row_than_it_may(limit: float) -> None:
    training = TabularLearner.Training(replay_rows=500, replay_steps=3, step_rows=256)
    made = TabularLearner(TabularLearner.Settings(layers=(4,)), training, features("binary"))
    made.pace(limit)
    rows = concept("binary", n=1_024)
    learned(made, batches(rows, cut=100))
    taken = made.state_dict()["optimizer"]["steps"]
    assert 0 < taken <= max(limit, 1 / 256) * 1_024


def test_a_pace_may_change_while_rows_wait() -> None:
    made = TabularLearner(
        TabularLearner.Settings(layers=(4,)), TabularLearner.Training(), features("binary")
    )
    x, y = concept("binary", n=300)
    made.pace(0.01)
    assert len(learned(made, batches((x[:100], y[:100]))).scores) == 100
    made.pace(1.0)
    assert len(learned(made, batches((x[100:], y[100:]))).scores) == 200
    assert made.state_dict()["rows"] + len(made.state_dict()["waiting"]["target"]) == 300
