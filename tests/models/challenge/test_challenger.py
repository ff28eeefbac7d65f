"""A challenger takes over where the champion no longer holds, and nowhere else."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from engine.types import Batch, Features, Learner, Mark, Step, Tensors, UserError
from models.augment import Augmentation
from models.augment.tables import Jitter
from models.challenge.challenger import (
    MAX_CHALLENGE_ROWS,
    ChampionChallenger,
    require_challengeable,
)
from models.challenge.error_drift import THRESHOLD
from models.challenge.token_bucket import STEP_ROWS
from models.learners.linear import LinearLearner
from models.learners.sampling import ResampledLearner, SamplingSettings
from models.learners.tabular import TabularLearner
from tests.size import few

Floats = NDArray[np.float64]
Rows = tuple[Floats, NDArray[Any]]
WEIGHTS = np.array([1.0, -2.0, 0.5, 0.0])
CLASSES = {"regression": (), "binary": ("no", "yes"), "multiclass": ("a", "b", "c")}


# ----------------------------------------------------------------------------------------- helpers


def features(task: str) -> Features:
    return Features(numeric=tuple("abcd"), target="y", task=task, classes=CLASSES[task])


def tabular(task: str, **keys: Any) -> TabularLearner:
    """Without kept rows it is five times as fast, and larger steps make up for it."""
    training = TabularLearner.Training(**{"replay_rows": 0, "lr": 1e-2, **keys})
    return TabularLearner(TabularLearner.Settings(layers=(8,)), training, features(task))


def linear(task: str) -> LinearLearner:
    training = LinearLearner.Training(lr=0.001)
    return LinearLearner(LinearLearner.Settings(), training, features(task))


def task_of(y: NDArray[Any]) -> str:
    if y.dtype.kind == "f":
        return "regression"
    return "multiclass" if y.max() > 1 else "binary"


def batches(rows: Rows, cut: int = 1_024, drift: int = 0) -> Iterator[Batch]:
    """The stream; in each batch the stage 'watch' has detected drift so many times."""
    x, y = rows
    tensors = Tensors(
        numeric=torch.from_numpy(x.astype(np.float32)),
        categories=torch.empty((len(x), 0), dtype=torch.int64),
        target=torch.from_numpy(y.astype(np.float32 if y.dtype.kind == "f" else np.int64)),
    )
    for at in range(0, len(x), cut):
        part = tensors.slice(at, min(at + cut, len(x)))
        frame = pl.DataFrame({"n": np.arange(len(part))})
        counts = {("watch", "ks"): drift}
        yield Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=part, counts=counts)


@dataclass
class Outcome:
    """What came of a stream: scores of all rows, and how challenges went."""

    scores: Floats
    challenges: Counter[str] = field(default_factory=Counter)


def learned(learner: Any, stream: Iterator[Batch]) -> Outcome:
    steps = [learner.learn(batch) for batch in stream]
    challenges: Counter[str] = Counter()
    for step in steps:
        challenges.update(step.challenges)
    return Outcome(np.concatenate([step.scores for step in steps]), challenges)


def error(scores: Floats, y: NDArray[Any]) -> float:
    """Mean absolute error, or the share of wrong answers."""
    if y.dtype.kind == "f":
        return float(np.abs(scores - y).mean())
    return float(((scores > 0.5 if scores.ndim == 1 else scores.argmax(1)) != y).mean())


def same(a: Any, b: Any) -> bool:
    """Two states, to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else bool(a == b)


def concept(task: str, *weights: tuple[int, Floats], n: int, noise: float = 0.3) -> Rows:
    """A sum by weights that change at some rows, and its sign or third."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4))
    by = np.tile(WEIGHTS, (n, 1))
    for at, new in weights:
        by[at:] = new
    signal = (x * by).sum(1) + noise * rng.normal(size=n)
    if task == "regression":
        return x, signal
    return x, np.digitize(signal, [0] if task == "binary" else [-1, 1]).astype(np.int64)


# ------------------------------------------------------------------------------------------ change


@pytest.mark.parametrize("keys", [{}, {"replay_rows": 5_000, "replay_steps": 2}])
def test_flipped_labels_are_learned_anew(keys: dict[str, Any]) -> None:
    x, y = concept("binary", (3_000, -WEIGHTS), n=7_000, noise=0.0)
    made = tabular("binary", **({"replay_rows": None, "lr": 1e-3} | keys))
    outcome = learned(ChampionChallenger(made), batches((x, y)))
    assert error(outcome.scores[:3_000], y[:3_000]) < 0.1
    assert error(outcome.scores[5_000:], y[5_000:]) <= 0.1
    assert outcome.challenges == {"begun": 1, "won": 1}


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("regression", [(8_000, -WEIGHTS)]),
        ("multiclass", [(8_000, -WEIGHTS)]),
        ("binary", [(8_000, -WEIGHTS), (11_000, WEIGHTS)]),
        ("regression", [(8_000, -WEIGHTS), (8_300, WEIGHTS[::-1])]),
    ],
    ids=["regression", "multiclass", "and back", "the second during a challenge"],
)
def test_a_change_is_followed(task: str, changes: list[tuple[int, Floats]]) -> None:
    rows = concept(task, *changes, n=14_000)
    follows = learned(ChampionChallenger(tabular(task)), batches(rows))
    stays = learned(tabular(task), batches(rows))
    changed = slice(8_000, None)
    assert follows.challenges["won"] >= 1
    assert error(follows.scores[changed], rows[1][changed]) < 0.6 * error(
        stays.scores[changed], rows[1][changed]
    )
    assert np.array_equal(follows.scores[:8_000], stays.scores[:8_000])


def test_a_change_over_many_rows_is_followed() -> None:
    rng, n = np.random.default_rng(0), 24_000
    x = rng.normal(size=(n, 4))
    turned = np.clip((np.arange(n) - 8_000) / 8_000, 0, 1)
    y = (x @ WEIGHTS) * (1 - 2 * turned) + 0.3 * rng.normal(size=n)
    follows = learned(ChampionChallenger(tabular("regression")), batches((x, y)))
    stays = learned(tabular("regression"), batches((x, y)))
    assert error(follows.scores, y) < 0.6 * error(stays.scores, y)


@pytest.mark.full
def test_changes_without_end_cost_no_more_than_three_times_a_model_alone() -> None:
    """And most are followed all the same."""
    n, every = 40_000, 4_000
    turns = [(at, WEIGHTS * (-1) ** (at // every)) for at in range(every, n, every)]
    rows = concept("binary", *turns, n=n)
    spent = Counter[str]()

    class Counted(TabularLearner):
        def learn(self, batch: Batch) -> Step:
            step = super().learn(batch)
            spent[name] += len(step.scores) + STEP_ROWS * step.steps
            return step

        def successor(self) -> TabularLearner:
            old = super().successor()
            made = Counted(self.settings, self.training, self.features)
            made.load_state_dict(old.state_dict())
            return made

    def made() -> TabularLearner:
        training = TabularLearner.Training(replay_rows=2_000, lr=1e-2)
        return Counted(TabularLearner.Settings(layers=(8,)), training, features("binary"))

    name = "alone"
    stays = learned(made(), batches(rows))
    name = "follows"
    follows = learned(ChampionChallenger(made()), batches(rows))
    assert follows.challenges["won"] > len(turns) / 2
    assert error(follows.scores, rows[1]) < 0.7 * error(stays.scores, rows[1])
    assert spent["follows"] < 3 * spent["alone"]


def test_no_challenge_begins_while_there_is_no_work_left_for_it() -> None:
    rows = concept("binary", n=600)
    made = ChampionChallenger(tabular("binary"), "watch")
    learned(made, batches((rows[0][:300], rows[1][:300])))
    state, begun = made.state_dict(), []
    for left in (-1e9, 0.0):
        state["renewal"]["pace"]["left"] = left
        made.load_state_dict(state)
        outcome = learned(made, batches((rows[0][300:], rows[1][300:]), drift=1))
        begun.append(outcome.challenges["begun"])
    assert begun == [0, 1]


def test_the_linear_learner_follows_too() -> None:
    rows = concept("binary", (20_000, -WEIGHTS), n=24_000)
    follows = learned(ChampionChallenger(linear("binary")), batches(rows))
    stays = learned(linear("binary"), batches(rows))
    assert follows.challenges["won"] == 1
    assert error(follows.scores, rows[1]) < error(stays.scores, rows[1])


# ---------------------------------------------------------------------------------------- no change


def season(rng: np.random.Generator, n: int) -> Rows:
    """The spread of the errors has a daily season."""
    x = rng.normal(size=(n, 4))
    spread = 1 + 0.9 * np.sin(2 * np.pi * np.arange(n) / 1_440)
    return x, x @ WEIGHTS + spread * rng.normal(size=n)


def alike(phi: float) -> Callable[[np.random.Generator, int], Rows]:
    """Errors follow on each other."""

    def make(rng: np.random.Generator, n: int) -> Rows:
        x, noise = rng.normal(size=(n, 4)), rng.normal(size=n) * np.sqrt(1 - phi**2)
        for i in range(1, n):
            noise[i] += phi * noise[i - 1]
        return x, x @ WEIGHTS + noise

    return make


def heavy(degrees: float) -> Callable[[np.random.Generator, int], Rows]:
    """Errors with tails of Student's t."""

    def make(rng: np.random.Generator, n: int) -> Rows:
        x = rng.normal(size=(n, 4))
        return x, x @ WEIGHTS + rng.standard_t(degrees, size=n)

    return make


def rare(share: float) -> Callable[[np.random.Generator, int], Rows]:
    """Few positives, more of them with the first number."""

    def make(rng: np.random.Generator, n: int) -> Rows:
        x = rng.normal(size=(n, 4))
        odds = share * np.exp(2 * x[:, 0] - 2)
        return x, (rng.random(n) < odds / (1 + odds)).astype(np.int64)

    return make


def bursts(rng: np.random.Generator, n: int) -> Rows:
    """Positives come together."""
    x, y = rng.normal(size=(n, 4)), np.zeros(n, np.int64)
    for at in rng.integers(0, n - 40, n // 4_000):
        y[at : at + 40] |= rng.random(40) < 0.5
    x[y == 1, 0] += 1.5
    return x, y


STEADY: dict[str, Callable[[np.random.Generator, int], Rows]] = {
    "season": season,
    "alike": alike(0.9),
    "very alike": alike(0.99),
    "t of 2.1": heavy(2.1),
    "t of 3": heavy(3),
    "rare": rare(0.001),
    "very rare": rare(0.0003),
    "bursts": bursts,
}


@pytest.fixture(params=few(STEADY, ("season", "t of 2.1", "very rare")))
def steady(request: pytest.FixtureRequest) -> Rows:
    """A stream without change that looks like one."""
    return STEADY[request.param](np.random.default_rng(0), 20_000)


def test_no_challenger_wins_on_a_steady_stream(steady: Rows) -> None:
    """One challenge after the other, by drift that is detected in every batch."""
    made = ChampionChallenger(tabular(task_of(steady[1])), "watch")
    learned(made, batches((steady[0][:4_096], steady[1][:4_096])))  # a young one may lose
    outcome = learned(made, batches((steady[0][4_096:], steady[1][4_096:]), drift=1))
    assert outcome.challenges == {"begun": 2, "dropped": 1}


def test_an_alarm_that_came_to_nothing_leaves_no_trace() -> None:
    rows = season(np.random.default_rng(0), 20_000)
    outcome = learned(ChampionChallenger(tabular("regression")), batches(rows))
    assert outcome.challenges == {"begun": 1, "dropped": 1}
    never = learned(tabular("regression"), batches(rows))
    assert np.array_equal(outcome.scores, never.scores)


def test_drawn_copies_raise_no_alarm() -> None:
    """Copies of rare rows follow each other; the rows themselves do not."""
    rng = np.random.default_rng(5)
    rows = rare(0.01)(rng, 20_000)
    drawn = ResampledLearner(tabular("binary"), SamplingSettings(method="over"))
    made = ChampionChallenger(drawn)
    outcome = learned(made, batches(rows, cut=500))
    assert outcome.challenges["won"] == 0
    plain = learned(tabular("binary"), batches(rows, cut=500))
    assert brier(outcome.scores, rows[1]) <= 1.05 * brier(plain.scores, rows[1])


def brier(scores: Floats, y: NDArray[Any]) -> float:
    return float(np.square(scores - y).mean())


# --------------------------------------------------------------------------------------- decisions


@pytest.mark.full
def test_the_cut_into_batches_changes_no_decision() -> None:
    """One challenge won, and one under way at the end."""
    rows = concept("regression", (1_000, -WEIGHTS), (2_500, WEIGHTS), n=2_800)
    ends = {}
    for cut in (1, 7, 1_000):
        made = ChampionChallenger(tabular("regression", replay_rows=64, replay_steps=1))
        outcome = learned(made, batches(rows, cut))
        assert outcome.challenges == {"begun": 2, "won": 1}
        ends[cut] = made.state_dict()
    for cut in (7, 1_000):
        assert same(ends[cut]["weights"], ends[1]["weights"])
        challenges = [ends[c]["renewal"]["challenge"] for c in (cut, 1)]
        assert same(challenges[0]["learner"]["weights"], challenges[1]["learner"]["weights"])


def test_a_challenge_goes_on_where_it_was_cut_off() -> None:
    rows = list(batches(concept("binary", (1_500, -WEIGHTS), n=4_000), cut=100))
    first = ChampionChallenger(tabular("binary"))
    learned(first, iter(rows[:19]))
    state = first.state_dict()
    assert state["renewal"]["challenge"] is not None
    second = ChampionChallenger(tabular("binary"))
    second.load_state_dict(state)
    outcomes = [learned(made, iter(rows[19:])) for made in (first, second)]
    assert outcomes[0].challenges == outcomes[1].challenges == {"won": 1}
    assert np.array_equal(outcomes[0].scores, outcomes[1].scores)
    assert same(first.state_dict(), second.state_dict())


def test_a_model_that_nobody_challenged_can_be_challenged_later() -> None:
    rows = concept("binary", n=500)
    alone = tabular("binary")
    learned(alone, batches(rows))
    made = ChampionChallenger(tabular("binary"))
    made.load_state_dict(alone.state_dict())
    assert same(made.learner.state_dict(), alone.state_dict())
    back = tabular("binary")
    back.load_state_dict(made.state_dict())
    assert same(back.state_dict(), alone.state_dict())


def test_an_alarm_must_be_louder_after_a_challenge_that_came_to_nothing() -> None:
    rows = concept("binary", n=MAX_CHALLENGE_ROWS + 2_048)
    made = ChampionChallenger(tabular("binary"), "watch")
    learned(made, batches((rows[0][:1_024], rows[1][:1_024])))
    outcome = learned(
        made,
        batches(
            (
                rows[0][1_024 : 1_024 + MAX_CHALLENGE_ROWS],
                rows[1][1_024 : 1_024 + MAX_CHALLENGE_ROWS],
            ),
            drift=1,
        ),
    )
    assert outcome.challenges == {"begun": 1, "dropped": 1}
    assert made.state_dict()["renewal"]["watch"]["threshold"] == 2 * THRESHOLD


def test_rows_that_are_not_learned_do_not_count() -> None:
    x, y = concept("regression", n=900)
    y[300:700] = np.inf
    made = ChampionChallenger(tabular("regression"))
    steps = [made.learn(batch) for batch in batches((x, y), cut=300)]
    assert made.state_dict()["renewal"]["rows"] == 500
    not_learned = np.concatenate(
        [np.zeros(300, np.bool_) if s.not_learned is None else s.not_learned for s in steps]
    )
    assert np.array_equal(not_learned, ~np.isfinite(y))
    assert all(len(step.scores) == 300 for step in steps)


def test_it_says_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="headrace.learner"):
        learned(
            ChampionChallenger(tabular("binary")),
            batches(concept("binary", (1_500, -WEIGHTS), n=3_000)),
        )
    assert [record.message for record in caplog.records] == [
        "a new model learns beside the old one: what that learned may no longer hold",
        "the new model takes over: it is better than the old one",
    ]


# ----------------------------------------------------------------------------------- what is inside


def test_a_successor_has_the_same_settings_scales_and_augmentation() -> None:
    made = tabular("regression", replay_rows=50, replay_steps=1)
    Augmentation([Jitter("noise", Jitter.Settings(scale=0.05))]).attach(made)
    learned(made, batches(concept("regression", n=2_000)))
    after = made.successor()
    assert after.augmentation is made.augmentation
    old, new = made.state_dict(), after.state_dict()
    assert (new["rows"], new["steps"], len(new["replay"]["target"])) == (0, 0, 0)
    assert new["scaler"]["count"] == 512 < old["scaler"]["count"]
    assert np.array_equal(new["scaler"]["mean"], old["scaler"]["mean"])
    assert new["target"]["mean"] == old["target"]["mean"]
    first = tabular("regression", replay_rows=50, replay_steps=1).state_dict()
    assert same(new["weights"], first["weights"])


def test_memory_is_that_of_both() -> None:
    made = ChampionChallenger(tabular("binary", replay_rows=500), "watch")
    rows = concept("binary", n=300)
    learned(made, batches(rows))
    alone = made.memory()
    learned(made, batches(rows, drift=1))
    assert made.memory()["weights"] == 2 * alone["weights"]
    assert made.memory()["replay"] > alone["replay"]
    assert made.nbytes == sum(made.memory().values())


def test_a_name_that_is_no_stage_is_one_sentence() -> None:
    made = ChampionChallenger(tabular("binary"), "wacht")
    with pytest.raises(UserError, match=r"forget_on = 'wacht' expects .* add \[scrub.wacht\]"):
        learned(made, batches(concept("binary", n=10)))


class Plain(Learner):
    """A learner that cannot be challenged."""

    def __init__(self) -> None:
        super().__init__(None, None, features("binary"))

    def learn(self, batch: Batch) -> Step:
        assert batch.tensors is not None
        return Step(scores=self.predict(batch.tensors), loss=0.0)

    def predict(self, tensors: Tensors) -> Floats:
        return np.full(len(tensors), 0.5)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def test_who_can_be_challenged() -> None:
    able = tabular("binary")
    require_challengeable(able, "error", [])
    require_challengeable(able, "watch", ["scale", "watch"])
    with pytest.raises(UserError, match=r"add \[scrub.wacht\]. Did you mean 'watch'\?"):
        require_challengeable(able, "wacht", ["scale", "watch"])
    with pytest.raises(UserError, match="Plain has no method 'successor'"):
        require_challengeable(Plain(), "error", [])


def test_a_challenger_that_says_nothing_finite_never_wins() -> None:
    """Its own successor says NaN of every row."""

    class NoReply(TabularLearner):
        def successor(self) -> NoReply:
            made = NoReply(self.settings, self.training, self.features)
            made.load_state_dict(self.state_dict())
            state = made.state_dict()
            weights = {
                name: np.full_like(value, np.nan) for name, value in state["weights"].items()
            }
            made.load_state_dict(state | {"weights": weights})
            return made

    settings = TabularLearner.Settings(layers=(8,))
    inner = NoReply(settings, TabularLearner.Training(replay_rows=0), features("regression"))
    rows = concept("regression", n=MAX_CHALLENGE_ROWS)
    outcome = learned(ChampionChallenger(inner, "watch"), batches(rows, drift=1))
    assert outcome.challenges == {"begun": 1, "dropped": 1}
