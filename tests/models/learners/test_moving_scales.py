"""Learners that keep what they learned of numbers that a stage scales, while the scale moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from engine.columnar.numeric_scale import NumericScale
from engine.loading.collate import Collate
from engine.scrub.values.scale import Normalize, Standardize
from engine.types import Affine, Batch, Features, Mark, Scale, Tensors, UserError
from models.export.model import export
from models.learners.online.replay.rescale import Rescale
from models.learners.prototypes.learner import PrototypeLearner
from models.learners.sampling import ResampledLearner, SamplingSettings
from models.learners.tabular import TabularLearner
from models.learners.trees.learner import TreesLearner

FEATURES = Features(
    numeric=("x", "z", "y"),
    inputs={"numeric": ("x", "z", "y")},
    target="label",
    task="multiclass",
    classes=("a", "b", "c"),
    scaled=("x", "y"),
    moving=("x", "y"),
)


def sorted_classes(n: int = 150) -> pl.DataFrame:
    """One class after the other, as many files have them; each further from 0, so that mean and
    deviation of `x` move all the time. `y` is large, and says nothing."""
    rng = np.random.default_rng(0)
    number = np.arange(n) * 3 // n
    x = 10.0 * number + rng.normal(size=n)
    columns = {"x": x, "z": rng.normal(size=n), "y": 1e9 + rng.normal(size=n)}
    at = {"_partition": ["f"] * n, "_position": range(n)}
    return pl.DataFrame({**at, **columns, "label": [FEATURES.classes[i] for i in number]})


def standardize() -> Standardize:
    stage = Standardize("scale", Standardize.Settings(columns=("x", "y")))
    stage.bind({"x": pl.Float64(), "z": pl.Float64(), "y": pl.Float64(), "label": pl.String()})
    return stage


def batches(rows: pl.DataFrame, stage: Standardize, size: int) -> list[Batch]:
    collate = Collate(FEATURES)
    return [
        collate.apply(stage.apply(Batch(frame=part, mark=Mark(), arrived=0.0)))
        for part in rows.iter_slices(size)
    ]


def scales_of(stage: Standardize) -> tuple[Scale, ...]:
    return tuple(
        Scale(columns=(t.column,), shift=np.array([t.shift]), factor=np.array([t.scale]))
        for t in stage.transforms() or ()
        if isinstance(t, Affine)
    )


def make(kind: str, **settings: Any) -> Any:
    learner = {"prototypes": PrototypeLearner, "trees": TreesLearner}[kind]
    return learner(cast(Any, learner).Settings(**settings), cast(Any, learner).Training(), FEATURES)


def tensors_of(batch: Batch) -> Tensors:
    assert batch.tensors is not None
    return batch.tensors


def test_each_of_the_first_rows_knows_its_scale() -> None:
    """Also where rows have left since."""
    rows, stage = sorted_classes(), standardize()
    scaled = stage.apply(Batch(frame=rows, mark=Mark(), arrived=0.0))
    keep = np.arange(150) % 3 > 0
    left = scaled.reject(keep, stage="some", reason="why")
    for batch, kept in ((scaled, rows), (left, rows.filter(pl.Series(keep)))):
        tensors = tensors_of(Collate(FEATURES).apply(batch))
        assert len(list(tensors.even_parts())) > 10
        raw = Rescale(FEATURES).unscale(tensors).numpy()
        np.testing.assert_allclose(raw, kept[["x", "z", "y"]].to_numpy(), rtol=1e-6, atol=1e-6)
        again = Rescale(FEATURES).unscale(tensors.take(np.array([2, 99, 2]))).numpy()
        np.testing.assert_array_equal(again, raw[[2, 99, 2]])


def test_later_rows_have_the_scale_of_their_batch() -> None:
    parts = batches(sorted_classes(600), standardize(), 200)
    assert [len(list(tensors_of(part).even_parts())) for part in parts][1:] == [1, 1]
    assert all(scale.part is None for scale in tensors_of(parts[1]).scales)


@pytest.mark.parametrize("size", [1, 40, 150])
def test_prototypes_are_means_of_rows_as_they_came(size: int) -> None:
    rows, learner = sorted_classes(), make("prototypes")
    for batch in batches(rows, standardize(), size):
        learner.learn(batch)
    raw = learner._scale.undo(learner._table.prototypes)
    means = rows.group_by("label", maintain_order=True).agg(pl.col("x", "z", "y").mean())
    np.testing.assert_allclose(raw, means[["x", "z", "y"]].to_numpy(), rtol=1e-6, atol=1e-5)


def test_trees_keep_rows_as_they_came() -> None:
    rows, learner = sorted_classes(), make("trees", num_trees=5)
    for batch in batches(rows, standardize(), 40):
        learner.learn(batch)
    kept = learner._window.snapshot()[:, :3]
    np.testing.assert_allclose(kept, rows[["x", "z", "y"]].to_numpy(), rtol=1e-6, atol=1e-5)


def test_rows_to_interpolate_follow_the_scale() -> None:
    rows = sorted_classes()
    network = TabularLearner(
        TabularLearner.Settings(layers=[4]), TabularLearner.Training(replay_rows=0), FEATURES
    )
    learner = ResampledLearner(network, SamplingSettings(method="over", smote_neighbors=2))
    for batch in batches(rows, standardize(), 40):
        learner.learn(batch)
    for name, kept in zip(FEATURES.classes, learner._kept, strict=True):
        raw = rows.filter(pl.col("label") == name)[["x", "z", "y"]].to_numpy()
        np.testing.assert_allclose(
            learner._scale.undo(kept.astype(np.float64)), raw, rtol=1e-6, atol=1e-4
        )


@pytest.mark.parametrize("size", [40, 150])
@pytest.mark.parametrize("kind", ["prototypes", "trees"])
def test_the_model_file_scores_as_the_learner_does(kind: str, size: int, tmp_path: Path) -> None:
    rows, learner, stage = sorted_classes(), make(kind), standardize()
    for batch in batches(rows, stage, size):
        learner.learn(batch)
    transforms, scales = stage.transforms() or (), scales_of(stage)
    path = export(tmp_path / "model.onnx", learner, transforms, {}, scales=scales)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {name: rows[name].to_numpy() for name in ("x", "z", "y")}
    scores = np.asarray(session.run(["score"], feed)[0])
    assert accuracy(scores, rows) > 0.98
    expected = learner.predict(in_scale(rows, scales))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def in_scale(rows: pl.DataFrame, scales: Sequence[Scale]) -> Tensors:
    """Rows as the stage would scale them next."""
    raw = rows[["x", "z", "y"]].to_numpy()
    numbers = NumericScale.of(FEATURES.numeric, tuple(scales)).apply(raw)
    return Tensors(
        numeric=torch.from_numpy(numbers.astype(np.float32)),
        categories=torch.empty((len(rows), 0), dtype=torch.int64),
        scales=tuple(scales),
    )


def accuracy(scores: NDArray[Any], rows: pl.DataFrame) -> float:
    named = pl.Series(FEATURES.classes).gather(scores.argmax(axis=1))
    return float((named == rows["label"]).to_numpy().mean())


@pytest.mark.parametrize("kind", ["prototypes", "trees"])
def test_a_restored_learner_goes_on_to_the_bit(kind: str) -> None:
    parts = batches(sorted_classes(), standardize(), 30)
    whole, other = make(kind), make(kind)
    for batch in parts[:3]:
        whole.learn(batch)
    other.load_state_dict(whole.state_dict())
    for batch in parts[3:]:
        assert whole.learn(batch).scores.tobytes() == other.learn(batch).scores.tobytes()


def test_a_column_that_no_longer_varies_does_not_lose_what_is_known() -> None:
    both = np.array([True, True])
    known = NumericScale(shift=np.array([3.0, 1.0]), factor=np.array([2.0, 1.0]), named=both)
    flat = NumericScale(shift=np.array([9.0, 2.0]), factor=np.array([0.0, 5.0]), named=both)
    newest = known.followed(flat)
    assert newest.shift.tolist() == [3.0, 2.0]
    assert newest.factor.tolist() == [2.0, 5.0]
    a, b = flat.to(newest)  # a number of a flat column is 0, and was 9
    assert (a * 0 + b).tolist() == [12.0, 0.0]


class Same(nn.Module):
    """The numbers themselves."""

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return numeric


def test_an_embedding_needs_a_scale_that_stands_still() -> None:
    with pytest.raises(UserError, match=r"module reads 'x', which a .scrub. stage scales by what"):
        make("prototypes", module=Same())
    settings, training = PrototypeLearner.Settings(module=Same()), PrototypeLearner.Training()
    PrototypeLearner(settings, training, replace(FEATURES, moving=()))


def test_a_stage_with_given_numbers_does_not_move() -> None:
    given = Normalize("n", Normalize.Settings(columns=("x",), from_low=0, from_high=1))
    given.bind({"x": pl.Float64()})
    assert list(given.scaled) == ["x"]
    assert list(given.moving) == []
    assert list(standardize().moving) == ["x", "y"]
