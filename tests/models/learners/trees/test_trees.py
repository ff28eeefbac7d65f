"""Trees on a window of a stream: what holds of ten rows and of one class, and when they train."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from engine.types import Batch, Features, Mark, Tensors, UserError
from models.challenge.challenger import ChampionChallenger
from models.export.onnx_graph import Graph, TensorProto

pytest.importorskip("lightgbm")
from engine.columnar.numeric_scale import NumericScale
from models.learners.trees.forest import _float_below
from models.learners.trees.learner import TreesLearner
from models.learners.trees.window import TrainingWindow

Rng = np.random.Generator


def learner(features: Features, **keys: Any) -> TreesLearner:
    """Keys go to [model] or [train] by their name; few trees, for speed."""
    known = TreesLearner.Settings.model_fields
    model = {key: value for key, value in keys.items() if key in known}
    train = {key: value for key, value in keys.items() if key not in known}
    settings = TreesLearner.Settings(**({"num_trees": 10} | model))
    return TreesLearner(settings, TreesLearner.Training(**train), features)


def reads(task: str, columns: int = 2, codes: int = 0) -> Features:
    classes = {"regression": (), "binary": ("no", "yes"), "multiclass": ("a", "b", "c")}[task]
    return Features(
        numeric=tuple(f"x{i}" for i in range(columns)),
        categories={"c": codes} if codes else {},
        target="y",
        task=task,
        classes=classes,
    )


def batch_of(
    numbers: NDArray[Any], target: NDArray[Any], codes: NDArray[Any] | None = None
) -> Batch:
    regression = target.dtype.kind == "f"
    columns = np.empty((len(target), 0)) if codes is None else codes[:, None]
    tensors = Tensors(
        numeric=torch.from_numpy(numbers.astype(np.float32)),
        categories=torch.from_numpy(columns.astype(np.int64)),
        target=torch.from_numpy(target.astype(np.float32 if regression else np.int64)),
    )
    return Batch(frame=pl.DataFrame({"y": target}), mark=Mark(), arrived=0.0, tensors=tensors)


def part(batch: Batch, start: int, stop: int) -> Batch:
    assert batch.tensors is not None
    return replace(batch, tensors=batch.tensors.slice(start, min(stop, len(batch.tensors))))


def steps(rng: Rng, rows: int = 600) -> Batch:
    """A step and a slope."""
    x = rng.normal(size=(rows, 2))
    return batch_of(x, np.where(x[:, 0] > 0.3, 5.0, -5.0) + x[:, 1])


def classified(rng: Rng, rows: int = 600) -> Batch:
    x = rng.normal(size=(rows, 2))
    return batch_of(x, np.digitize(x[:, 0] + x[:, 1] ** 2, [0.0, 1.5]))


def served(made: TreesLearner, batch: Batch) -> NDArray[Any]:
    import onnxruntime

    features, tensors = made.features, batch.tensors
    assert tensors is not None
    graph = Graph()
    numeric = graph.input("numeric", TensorProto.FLOAT, ["n", len(features.numeric)])
    codes = graph.input("codes", TensorProto.INT64, ["n", len(features.categories)])
    score = made.build(graph, numeric, codes)
    shape: list[int | str] = ["n"] if features.outputs == 1 else ["n", features.outputs]
    model = graph.model({"scores": (score, TensorProto.FLOAT, shape)}, {})
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {"numeric": tensors.numeric.numpy(), "codes": tensors.categories.numpy()}
    wanted = {value.name for value in session.get_inputs()}
    return np.asarray(session.run(None, {k: v for k, v in feed.items() if k in wanted})[0])


def test_before_any_row_it_knows_nothing() -> None:
    rows = batch_of(np.zeros((2, 2)), np.zeros(2))
    assert rows.tensors is not None
    assert learner(reads("regression")).predict(rows.tensors).tolist() == [0, 0]
    assert learner(reads("binary")).predict(rows.tensors).tolist() == [0.5, 0.5]
    shares = learner(reads("multiclass")).predict(rows.tensors)
    np.testing.assert_allclose(shares, 1 / 3)


def test_ten_rows_are_learned_as_their_mean_or_shares() -> None:
    made = learner(reads("regression"))
    target = np.arange(10.0)
    step = made.learn(batch_of(np.zeros((10, 2)), target))
    means = [0.0, *np.cumsum(target)[:-1] / np.arange(1, 10)]
    np.testing.assert_allclose(step.scores, means)
    made = learner(reads("binary"))
    labels = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1])
    step = made.learn(batch_of(np.zeros((10, 2)), labels))
    before = np.concatenate(([0], np.cumsum(labels)[:-1]))
    np.testing.assert_allclose(step.scores, (before + 1) / (np.arange(10) + 2))  # Laplace's rule


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_stream_of_one_class_is_never_certain(task: str) -> None:
    made, rng = learner(reads(task)), np.random.default_rng(0)
    batch = batch_of(rng.normal(size=(300, 2)), np.ones(300, np.int64))
    step = made.learn(batch)
    assert np.isfinite(step.scores).all()
    assert np.isfinite(step.loss)
    assert batch.tensors is not None
    last = made.predict(batch.tensors)[0]
    assert (last if task == "binary" else last[1]) == pytest.approx(
        301 / (302 if task == "binary" else 303), abs=0.01
    )
    other = batch_of(np.zeros((1, 2)), np.zeros(1, np.int64))
    assert 1 < made.learn(other).loss < 10
    np.testing.assert_allclose(served(made, batch), made.predict(batch.tensors), rtol=1e-5)


def test_a_constant_target_and_constant_features_are_legal() -> None:
    rng = np.random.default_rng(0)
    made = learner(reads("regression"))
    assert made.learn(batch_of(rng.normal(size=(100, 2)), np.full(100, 7.0))).scores[-1] == 7
    made = learner(reads("regression"))
    target = rng.normal(size=300)
    scores = made.learn(batch_of(np.ones((300, 2)), target)).scores
    assert abs(scores[-1]) < 0.5


@pytest.mark.parametrize(("task", "rows"), [("regression", steps), ("multiclass", classified)])
def test_it_learns_what_a_mean_does_not(task: str, rows: Callable[[Rng], Batch]) -> None:
    batch = rows(np.random.default_rng(0))
    assert batch.tensors is not None
    made = learner(reads(task), num_trees=30)
    scores = made.learn(batch).scores[300:]
    truth = batch.tensors.target.numpy()[300:]  # type: ignore[union-attr]
    if task == "regression":
        assert np.abs(scores - truth).mean() < 0.2 * np.abs(truth - truth.mean()).mean()
    else:
        assert (scores.argmax(axis=1) == truth).mean() > 0.9


@pytest.mark.parametrize(("task", "rows"), [("regression", steps), ("multiclass", classified)])
def test_the_cut_into_batches_changes_nothing(task: str, rows: Callable[[Rng], Batch]) -> None:
    batch = rows(np.random.default_rng(1))
    whole, cut = learner(reads(task)), learner(reads(task))
    scores = whole.learn(batch).scores
    parts = [cut.learn(part(batch, at, at + 37)).scores for at in range(0, 600, 37)]
    assert np.concatenate(parts).tobytes() == scores.tobytes()
    assert whole.state_dict()["forests"][0]["text"] == cut.state_dict()["forests"][0]["text"]


def test_a_restored_learner_trains_on_the_same_window() -> None:
    batch = steps(np.random.default_rng(2), 900)
    made = learner(reads("regression"), window_rows=100)
    made.learn(part(batch, 0, 450))
    other = learner(reads("regression"), window_rows=100)
    other.load_state_dict(made.state_dict())
    rest = part(batch, 450, 900)
    assert other.learn(rest).scores.tobytes() == made.learn(rest).scores.tobytes()
    assert other.state_dict()["forests"][0]["text"] == made.state_dict()["forests"][0]["text"]
    assert len(made.state_dict()["window"]) == 100
    assert made.memory()["replay"] == 100 * 12 == made.replay_bytes


def test_trainings_become_rare_as_the_stream_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    at: list[int] = []
    train = TreesLearner._train

    def noted(self: TreesLearner) -> None:
        at.append(self._rows)
        train(self)

    monkeypatch.setattr(TreesLearner, "_train", noted)
    made = learner(reads("regression"), window_rows=200, num_trees=1)
    made.learn(steps(np.random.default_rng(0), 4_000))
    assert at[:19] == [*range(1, 17), 18, 20, 22]
    gaps = np.diff(at)
    assert (gaps <= np.maximum(np.array(at[:-1]) / 8, 1)).all()
    assert gaps.max() == gaps[-1] == 200


def test_categories_split_in_sets_and_are_served_alike() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 60, 3_000)
    odd = rng.permutation(60) % 2
    numbers = rng.normal(size=(3_000, 1))
    target = 3.0 * odd[codes] + numbers[:, 0]
    made = learner(reads("regression", 1, codes=61), num_trees=40)
    batch = batch_of(numbers, target, codes)
    scores = made.learn(batch).scores
    assert np.abs(scores - target)[2_000:].mean() < 0.5
    assert "||" in str(made._scorer.forests[0].booster.dump_model()["tree_info"])
    unseen = batch_of(rng.normal(size=(70, 1)), np.zeros(70), np.arange(70))
    assert unseen.tensors is not None
    own = made.predict(unseen.tensors)
    np.testing.assert_allclose(served(made, unseen), own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_served_scores_are_its_own_at_every_threshold(task: str) -> None:
    """Features that lie on the thresholds, to the last bit of float32."""
    rng = np.random.default_rng(4)
    numbers = np.round(rng.normal(size=(800, 2)), 1)
    high = numbers[:, 0] + 0.3 * numbers[:, 1] > 0.2
    target: NDArray[Any] = high.astype(int) + (numbers[:, 1] > 1) * (task == "multiclass")
    target = target * 1e3 if task == "regression" else target
    made = learner(reads(task), num_trees=30)
    batch = batch_of(numbers, target)
    made.learn(batch)
    edges = [
        float(line)
        for text in made._scorer.forests[0].text.splitlines()
        if text.startswith("threshold=")
        for line in text[10:].split()
    ]
    near = np.array([np.float32(edge) for edge in edges])
    points = np.concatenate([near, np.nextafter(near, 9e9), np.nextafter(near, -9e9)])
    grid = np.stack((points, rng.permutation(points)), axis=1)
    rows = batch_of(grid, np.zeros(len(grid), target.dtype))
    assert rows.tensors is not None
    own = made.predict(rows.tensors)
    atol = 1e-6 * np.abs(own).max()
    np.testing.assert_allclose(served(made, rows), own, rtol=1e-5, atol=atol)


def test_thresholds_round_down() -> None:
    for threshold in (0.1, -0.1, 1.0, 16_777_217.0, 1e-50, -1e-30, 1e30, -3.5):
        below = _float_below(threshold)
        assert below <= threshold
        assert float(np.nextafter(np.float32(below), np.float32(np.inf))) > threshold
    assert _float_below(1e300) == np.finfo(np.float32).max
    assert _float_below(-1e-36) < -1e-35  # taken for 0, which is above


@pytest.mark.parametrize("loss", ["mae", "quantile"])
def test_other_losses_of_a_regression(loss: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2_000, 2))
    batch = batch_of(x, x[:, 0] + rng.exponential(size=2_000))
    keys = {"quantile": 0.9} if loss == "quantile" else {}
    made = learner(reads("regression"), loss=loss, min_data_in_leaf=100, num_trees=50, **keys)
    scores = made.learn(batch).scores[1_000:]
    assert batch.tensors is not None
    assert batch.tensors.target is not None
    below = (batch.tensors.target.numpy()[1_000:] < scores).mean()
    assert below == pytest.approx(0.9 if loss == "quantile" else 0.5, abs=0.08)


@pytest.mark.parametrize(
    ("keys", "share"),
    [({"loss": "mae"}, 0.5), ({"loss": "quantile", "quantile": 0.9}, 0.9), ({}, None)],
)
def test_the_first_rows_are_predicted_by_what_the_loss_asks_for(
    keys: dict[str, Any], share: float | None
) -> None:
    """Of skewed targets neither the median nor a quantile is the mean."""
    target = np.exp(np.arange(18) / 4.0)
    made = learner(reads("regression"), **keys)
    rows = batch_of(np.zeros((18, 2)), target)
    made.learn(rows)
    assert rows.tensors is not None
    best = target.mean() if share is None else np.quantile(target.astype(np.float32), share)
    assert made.predict(rows.tensors) == pytest.approx(np.full(18, best), rel=1e-6)


def test_several_quantiles_have_trees_of_their_own() -> None:
    """Of a target that spreads the more the larger x is; from the first constants on."""
    quantiles = (0.1, 0.5, 0.9)
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(3_000, 1))
    batch = batch_of(x, 5 * x[:, 0] + (0.5 + 2 * x[:, 0]) * rng.normal(size=3_000))
    made = learner(
        replace(reads("regression", columns=1), quantiles=quantiles),
        loss="quantile",
        quantiles=quantiles,
        min_data_in_leaf=100,
        num_trees=30,
    )
    scores = made.learn(batch).scores
    assert batch.tensors is not None
    assert batch.tensors.target is not None
    target = batch.tensors.target.numpy()
    assert (np.diff(scores) >= 0).all()
    assert (np.ptp(scores[2:16], axis=1) > 0).all()
    inside = (scores[:, 0] <= target) & (target <= scores[:, 2])
    for half in (x[:, 0] < 0.5, x[:, 0] >= 0.5):
        half[:1_000] = False
        assert inside[half].mean() == pytest.approx(0.8, abs=0.08)
    ours, theirs = served(made, batch), made.predict(batch.tensors)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_change_is_followed_by_a_challenger() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(12_000, 2))
    sign = np.where(np.arange(12_000) < 6_000, 1, -1)
    batch = batch_of(x, (sign * x[:, 0] > 0).astype(int))
    right: dict[str, float] = {}
    for name in ("error", "never"):
        made: Any = learner(reads("binary"))
        made = ChampionChallenger(made, name) if name != "never" else made
        scores = np.concatenate(
            [made.learn(part(batch, at, at + 1_000)).scores for at in range(0, 12_000, 1_000)]
        )
        assert batch.tensors is not None
        assert batch.tensors.target is not None
        right[name] = ((scores > 0.5) == batch.tensors.target.numpy())[7_500:9_000].mean()
    assert right["error"] > 0.95
    assert right["error"] > right["never"]


def test_the_window_holds_the_newest_rows() -> None:
    window, scale = TrainingWindow(reads("regression", columns=1), 5), NumericScale.unknown(1)
    for start, count in ((0, 2), (2, 0), (2, 4), (6, 12), (18, 1)):
        numbers = np.arange(start, start + count, dtype=np.float32)
        window.add(numbers[:, None], numbers)
        expected = np.arange(max(0, start + count - 5), start + count)
        assert window.newest(scale)[0].tolist() == [[x] for x in expected]
        assert window.newest(scale, 2)[1].tolist() == expected[-2:].tolist()


def test_the_window_is_what_the_memory_allows() -> None:
    made = learner(reads("regression"))
    made.limit_memory(12 * 50)
    assert made.replay_bytes == 12 * 50
    given = learner(reads("regression"), window_rows=100)
    given.limit_memory(12 * 50)
    assert given.replay_bytes == 12 * 100


@pytest.mark.parametrize(
    ("features", "keys", "sentence"),
    [
        (Features(numeric=()), {}, "needs features: name columns"),
        (Features(numeric=(), ragged={"w": 3}), {}, "expects numbers and categories, got 'w'"),
        (
            Features(numeric=(), categories={"c": 1 << 25}),
            {},
            "at most 16,777,216 codes in category 'c', got 33,554,432",
        ),
        (reads("binary"), {"loss": "mae"}, "loss = 'mae' is for regression, and task is 'binary'"),
        (reads("regression"), {"quantile": 0.9}, "quantile is for loss = 'quantile'"),
        (reads("regression"), {"quantiles": (0.1, 0.5)}, "quantiles is for loss = 'quantile'"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    features: Features, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        learner(features, **keys)


def test_without_lightgbm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UserError, match=r"is not installed: pip install 'headrace\[trees\]'"):
        learner(reads("regression"))
