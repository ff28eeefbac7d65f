"""Steps follow rows: how a stream is cut into batches changes nothing that is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from engine.types import Batch, Features, Mark, Scale, Tensors
from models.learners.online.scaler import MAX_DEVIATIONS, Scaler
from models.learners.online.steps.buffer import concat, plain, restored
from models.learners.tabular import TabularLearner

Make = Callable[..., Features]
Batches = Callable[..., list[Batch]]


def learner(features: Features, **keys: Any) -> TabularLearner:
    """Keys go to [model] or [train] by their name."""
    known = TabularLearner.Settings.model_fields
    model = {key: value for key, value in keys.items() if key in known}
    train = {key: value for key, value in keys.items() if key not in known}
    settings = TabularLearner.Settings(**({"layers": [8]} | model))
    return TabularLearner(settings, TabularLearner.Training(**train), features)


def whole(batches: list[Batch]) -> Tensors:
    return concat([batch.tensors for batch in batches if batch.tensors is not None])


def batch_of(tensors: Tensors, scales: tuple[Scale, ...] = ()) -> Batch:
    frame = pl.DataFrame({"n": np.arange(len(tensors))})
    tensors = replace(tensors, scales=scales)
    return Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=tensors)


def learned(made: TabularLearner, tensors: Tensors, cut: int) -> NDArray[np.float64]:
    """Learn the rows in batches of `cut`; their scores."""
    parts = [
        made.learn(batch_of(tensors.slice(at, min(at + cut, len(tensors))))).scores
        for at in range(0, len(tensors), cut)
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("task", "nested", "keys"),
    [
        ("regression", False, {"replay_steps": 1}),
        ("binary", False, {"ema_decay": 0.9, "dropout": 0.1, "replay_rows": 0}),
        ("multiclass", False, {"replay_sampling": "recent", "replay_steps": 1}),
        ("regression", True, {"conv_channels": [4]}),
    ],
)
def test_the_cut_into_batches_changes_no_weight(
    task: str, nested: bool, keys: dict[str, Any], make_features: Make, make_batches: Batches
) -> None:
    features = make_features(task, nested=nested)
    rows = whole(make_batches(features, 1, 150))
    first = learner(features, **keys)
    expected = learned(first, rows, len(rows))
    other = learner(features, **keys)
    np.testing.assert_allclose(learned(other, rows, 7), expected, rtol=1e-4, atol=1e-5)
    one, two = first.state_dict()["weights"], other.state_dict()["weights"]
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("task", "nested"), [("regression", True), ("binary", False), ("multiclass", False)]
)
def test_a_step_in_parts_is_the_same_step(
    task: str, nested: bool, make_features: Make, make_batches: Batches
) -> None:
    """To the rounding of float32."""
    features = make_features(task, nested=nested)
    keys: dict[str, Any] = {"conv_channels": [4]} if nested else {"replay_steps": 1}
    keys |= {"optimizer": "sgd", "lr": 1e-2}
    rows = whole(make_batches(features, 1, 500))
    one, other = learner(features, **keys), learner(features, accumulate=3, **keys)
    scores = learned(one, rows, 500)
    np.testing.assert_allclose(learned(other, rows, 500), scores, rtol=1e-4, atol=1e-4)
    assert one.state_dict()["steps"] == other.state_dict()["steps"]
    for name, array in one.state_dict()["weights"].items():
        np.testing.assert_allclose(other.state_dict()["weights"][name], array, atol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
def test_rows_that_wait_are_part_of_the_state(
    nested: bool, make_features: Make, make_batches: Batches
) -> None:
    features = make_features("binary", nested=nested)
    rows = whole(make_batches(features, 1, 300))
    first, second = (learner(features, replay_rows=0, conv_channels=[4]) for _ in range(2))
    learned(first, rows.slice(0, 259), 259)
    state = first.state_dict()
    assert len(state["waiting"]["target"]) == 3  # 256 rows seen: steps of four
    second.load_state_dict(state)
    for made in (first, second):
        learned(made, rows.slice(259, 300), 41)
    one, two = first.state_dict()["weights"], second.state_dict()["weights"]
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_rows_as_arrays_and_back(make_features: Make, make_batches: Batches) -> None:
    features = make_features("multiclass", nested=True)
    parts = [batch.tensors for batch in make_batches(features, 3, 9) if batch.tensors is not None]
    rows = concat(parts)
    again = restored(plain(rows))
    cut = concat([rows.slice(0, 4), rows.slice(4, 11), rows.slice(11, 27)])
    for other in (again, cut):
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        mine: list[torch.Tensor] = []
        rows.map(lambda t, mine=mine: mine.append(t) or t)  # type: ignore[misc]
        theirs: list[torch.Tensor] = []
        other.map(lambda t, theirs=theirs: theirs.append(t) or t)  # type: ignore[misc]
        pairs = list(zip(mine, theirs, strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)


# ------------------------------------------------------------------------------------------ scaler


def test_the_scale_is_that_of_all_rows_whatever_their_unit() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([5, -1e6, 1e-5], [2, 1e3, 1e-7], (500, 3)).astype(np.float32)
    scaler = Scaler.of([True, True, True])
    for row in torch.from_numpy(x):
        scaler = scaler.learned(row[None])
    z = scaler.forward(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(z.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(z.std(0), 1, atol=0.05)


def test_a_constant_says_nothing_and_an_outlier_not_everything() -> None:
    x = torch.stack([torch.full((100,), 7.0), torch.arange(100.0)], 1)
    scaler = Scaler.of([True, True]).learned(x[:1]).learned(x[1:])
    spoilt = scaler.learned(torch.tensor([[7.0, 1e30]]))
    assert (scaler.forward(x)[:, 0] == 0).all()
    assert float(scaler.forward(torch.tensor([[7.0, 1e30]]))[0, 1]) == MAX_DEVIATIONS
    assert float(spoilt.mean[1]) < 60


def test_what_a_stage_has_scaled_is_left_alone(make_features: Make, make_batches: Batches) -> None:
    features = replace(make_features(), scaled=("x0", "x2"))
    made = learner(features)
    learned(made, whole(make_batches(features)), 40)
    x = torch.randn(5, 4)
    z = made._scorer.scaler.forward(x)
    assert torch.equal(z[:, [0, 2]], x[:, [0, 2]])
    assert not torch.equal(z[:, [1, 3]], x[:, [1, 3]])


# ------------------------------------------------------------------------- replay of scaled numbers


def test_kept_rows_are_scaled_as_the_stream_stands(make_features: Make) -> None:
    """A column with a trend: the same row means something else on the scale of later rows."""
    features = Features(numeric=("x",), target="y", scaled=("x",))
    errors = {}
    for rows in (0, 2_000):
        made, seen, wrong = learner(features, replay_rows=rows, replay_steps=2), 0, []
        for _ in range(40):
            x = np.arange(seen, seen + 100, dtype=np.float64)
            y = (0.01 * x).astype(np.float32)
            past = np.arange(seen)
            known = Scale(
                columns=("x",),
                shift=np.array([past.mean() if seen else np.nan]),
                factor=np.array([1 / past.std() if seen else 0.0]),
            )
            scaled = (x - known.shift) * known.factor if seen else 0 * x
            tensors = Tensors(
                numeric=torch.from_numpy(scaled[:, None].astype(np.float32)),
                categories=torch.empty((100, 0), dtype=torch.int64),
                target=torch.from_numpy(y),
            )
            scores = made.learn(batch_of(tensors, (known,))).scores
            wrong.append(np.abs(scores - y).mean())
            seen += 100
        errors[rows] = np.mean(wrong[5:])
    assert errors[2_000] <= 1.2 * errors[0]


def test_the_loop_on_this_processor_scales_as_tensors_do() -> None:
    """To the bit, so that a model trained elsewhere goes on here."""
    scaler = Scaler.of([True, True, False, True])
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 1_000):
        x = 100 * torch.randn((n, 4), generator=generator)
        x[:, 3], x[0, 0] = 5.0, 1e30 if n == 7 else x[0, 0]
        shift, _, factor, low, high = torch.from_numpy(scaler._numbers)
        assert torch.equal(scaler.forward(x), ((x - shift) * factor).clamp(low, high))
        scaler = scaler.learned(x)
    assert scaler.forward(torch.full((1, 4), torch.nan)).isnan().tolist() == [[True] * 4]
