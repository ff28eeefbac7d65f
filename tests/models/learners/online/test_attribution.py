"""Integrated gradients: exact where that is known, complete, and of the right feature."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.types import UNEXPLAINED, Batch, Features, Mark, Padded, Ragged, Sparse, Tensors
from models.learners.linear import LinearLearner
from models.learners.online.attribution import integrated_gradients
from models.learners.tabular import TabularLearner

N = 40
FEATURES = Features(numeric=("x", "z"), categories={"c": 6, "d": 6}, target="y")


def rows(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return Tensors(
        numeric=torch.randn(N, 2, generator=generator),
        categories=torch.randint(0, 6, (N, 2), generator=generator),
        target=torch.randn(N, generator=generator),
    )


def batch(tensors: Tensors) -> Batch:
    frame = pl.DataFrame({"_partition": ["p"] * N, "_position": range(N)})
    return Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=N, tensors=tensors)


def test_of_a_linear_score_each_feature_gets_its_own_term() -> None:
    weights = torch.tensor([2.0, -3.0])
    given = rows()
    moved = integrated_gradients(lambda _, x: x @ weights, given, given.numeric, FEATURES)
    apart = (given.numeric - given.numeric.mean(0)) * weights
    np.testing.assert_allclose(moved["x"], apart[:, 0], atol=1e-5)
    np.testing.assert_allclose(moved["z"], apart[:, 1], atol=1e-5)
    for name in ("c", "d", UNEXPLAINED):
        np.testing.assert_allclose(moved[name], 0, atol=1e-5)


def test_a_score_that_depends_on_nothing_moves_by_nothing() -> None:
    given = rows()
    weight = torch.ones(1, requires_grad=True)
    for score in (torch.zeros(N), torch.zeros(N) * weight):
        moved = integrated_gradients(lambda *_, s=score: s, given, given.numeric, FEATURES)
        assert not any(each.any() for each in moved.values())


def test_a_vector_that_is_looked_up_belongs_to_its_column() -> None:
    given = rows()
    table = torch.randn(6, 3)

    def score(tensors: Tensors, numeric: torch.Tensor) -> torch.Tensor:
        second = F.embedding(tensors.categories[:, 1], table)
        return second.sum(1) + numeric[:, 0] * 0

    moved = integrated_gradients(score, given, given.numeric, FEATURES)
    vectors = table[given.categories[:, 1]]
    np.testing.assert_allclose(moved["d"], (vectors - vectors.mean(0)).sum(1), atol=1e-5)
    np.testing.assert_allclose(moved["c"], 0, atol=1e-6)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_the_parts_add_up_and_the_learner_stays_as_it_is(task: str) -> None:
    classes = {"regression": (), "binary": ("n", "y"), "multiclass": ("a", "b", "c")}[task]
    features = Features(
        numeric=FEATURES.numeric, categories=FEATURES.categories, target="y", task=task,
        classes=classes,
    )  # fmt: skip
    given = rows()
    target: Any = given.target if task == "regression" else torch.arange(N) % len(classes)
    learner = TabularLearner(
        TabularLearner.Settings(layers=(8,)), TabularLearner.Training(), features
    )
    given = Tensors(numeric=given.numeric, categories=given.categories, target=target)
    learner.learn(batch(given))
    scores, state = learner.predict(given), learner.state_dict()
    moved = learner.attributions(given)
    assert list(moved) == ["x", "z", "c", "d", UNEXPLAINED]
    whole = np.sum([each for name, each in moved.items() if name], axis=0)
    assert np.abs(moved[UNEXPLAINED]).max() < 0.05 * np.abs(whole).max() + 1e-6
    if task == "regression":
        # The sum is the distance to one and the same score, that of the mean row.
        apart = scores - whole - moved[UNEXPLAINED]
        np.testing.assert_allclose(apart, apart[0], atol=1e-4)
    np.testing.assert_array_equal(learner.predict(given), scores)
    after = learner.state_dict()
    for name, weights in state["weights"].items():
        np.testing.assert_array_equal(after["weights"][name], weights)


def test_a_linear_learner_has_them_exactly() -> None:
    given = rows()
    learner = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(), FEATURES)
    learner.learn(batch(given))
    moved = learner.attributions(given)
    whole = np.sum(list(moved.values()), axis=0)
    scores = learner.predict(given)
    np.testing.assert_allclose(whole, scores - scores.mean(), atol=1e-6)


def test_images_and_bags_have_their_parts() -> None:
    """Bytes of pixels have no line to be on; what the network makes of them first has."""
    rng = torch.Generator().manual_seed(0)
    offsets = torch.arange(0, 3 * N + 1, 3)

    def ids(most: int) -> torch.Tensor:
        return torch.randint(1, most, (3 * N,), generator=rng)

    given = Tensors(
        numeric=torch.randn(N, 1, generator=rng),
        categories=torch.zeros(N, 0, dtype=torch.int64),
        target=torch.randn(N, generator=rng),
        images={"i": torch.randint(0, 256, (N, 3, 8, 8), generator=rng, dtype=torch.uint8)},
        ragged={"r": Ragged(values=ids(9), offsets=offsets)},
        sparse={"s": Sparse(indices=ids(7), offsets=offsets, weights=torch.ones(3 * N), width=7)},
    )
    features = Features(
        numeric=("x",), target="y", images={"i": (3, 8, 8)}, ragged={"r": 9}, sparse={"s": 7}
    )
    learner = TabularLearner(TabularLearner.Settings(), TabularLearner.Training(), features)
    learner.learn(batch(given))  # without a row, a number has no scale
    moved = learner.attributions(given)
    rest = moved.pop(UNEXPLAINED)
    assert list(moved) == ["x", "i", "r", "s"]
    whole = np.sum(list(moved.values()), axis=0)
    assert np.abs(rest).mean() < 0.05 * np.abs(whole).mean()
    for part in moved.values():
        assert np.abs(part).max() > 1e-4


def test_a_recurrent_module_and_a_mask() -> None:
    """Only what is not padding counts; a module of the user's own may look ids up as it likes."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words = nn.Embedding(9, 4)
            self.gru = nn.GRU(4, 4, batch_first=True)

        def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states, _ = self.gru(self.words(words))
            scores: torch.Tensor = (states * mask.unsqueeze(-1)).sum((1, 2))
            return scores

    ids = torch.randint(1, 9, (N, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(N, 5, dtype=torch.bool)
    mask[:, 3:] = False
    given = Tensors(
        numeric=torch.zeros(N, 0), categories=torch.zeros(N, 0, dtype=torch.int64),
        padded={"text": Padded(values=ids * mask, mask=mask)},
    )  # fmt: skip
    features, net = Features(numeric=(), padded={"text": 9}), Net().eval()

    def score(tensors: Tensors, _: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = net(tensors.padded["text"].values, tensors.padded["text"].mask)
        return made

    moved = integrated_gradients(score, given, given.numeric, features)
    assert np.abs(moved["text"]).mean() > 0.01
    assert np.abs(moved[UNEXPLAINED]).max() < 0.02 * np.abs(moved["text"]).max()
