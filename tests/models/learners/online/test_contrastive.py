"""The supervised contrastive loss against its formula, and the means of classes beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from engine.types import Batch, Features, Mark, Tensors, UserError
from models.learners.online.class_means import MOST_ROWS, ClassMeans
from models.learners.online.contrastive import ContrastiveLoss
from models.learners.tabular import TabularLearner

T = 0.2
LOSS = ContrastiveLoss(temperature=T)
TARGET = torch.tensor([0, 1, 0, 2, 1, 0])
Make = Callable[..., Features]


def vectors(n: int = 6, width: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, width)).astype(np.float32))


def none(classes: int = 3, width: int = 5, *, binary: bool = False) -> ClassMeans:
    return ClassMeans.none(classes, width, temperature=T, binary=binary, device="cpu")


def by_hand(rows: list[np.ndarray], classes: list[int], anchors: int) -> float:
    """Equation 2 of Khosla et al., pair by pair, of the first rows among all."""
    units = [row / np.linalg.norm(row) for row in rows]
    losses = []
    for i in range(anchors):
        powers = {j: math.exp(units[i] @ units[j] / T) for j in range(len(units)) if j != i}
        pairs = [j for j in powers if classes[j] == classes[i]]
        if pairs:
            logs = [math.log(powers[j] / sum(powers.values())) for j in pairs]
            losses.append(-sum(logs) / len(pairs))
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_the_formula() -> None:
    """Class 2 has one row, which costs nothing and is a negative of the others."""
    expected = by_hand(list(vectors().numpy()), TARGET.tolist(), 6)
    assert float(LOSS(vectors(), TARGET)) == pytest.approx(expected, rel=1e-5)
    assert float(LOSS(vectors() * 7, TARGET)) == pytest.approx(expected, rel=1e-5)


def test_means_of_classes_stand_beside_the_rows() -> None:
    means = none().learned(torch.eye(5)[[0, 1]], torch.tensor([0, 2]))
    rows = [*vectors().numpy(), *torch.eye(5)[[0, 1]].numpy()]
    expected = by_hand(rows, [*TARGET.tolist(), 0, 2], 6)
    assert float(LOSS(vectors(), TARGET, means)) == pytest.approx(expected, rel=1e-5)
    one = LOSS(vectors(1).requires_grad_(), torch.tensor([2]), means)
    assert float(one.detach()) > 0  # a single row learns from them


def test_a_target_between_classes_is_a_positive_by_its_shares() -> None:
    means = none().learned(vectors(3), torch.tensor([0, 1, 2]))
    surely = F.one_hot(TARGET, 3).float()
    for given in ((), (means,)):
        hard, soft = LOSS(vectors(), TARGET, *given), LOSS(vectors(), surely, *given)
        assert float(soft) == pytest.approx(float(hard), rel=1e-6)
    two = torch.tensor([0, 1, 1])
    assert float(LOSS(vectors(3), two.float())) == pytest.approx(float(LOSS(vectors(3), two)))


def test_weights_of_classes_weigh_the_rows() -> None:
    weights = torch.tensor([1.0, 0.0, 5.0])
    weighted = ContrastiveLoss(temperature=T, weights=weights)
    kept = by_hand(list(vectors()[[0, 2, 5, 1, 3, 4]].numpy()), [0, 0, 0, 1, 2, 1], 3)
    assert float(weighted(vectors(), TARGET)) == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("target", [[0], [0, 1, 2]], ids=["one row", "a row of each class"])
def test_a_step_without_a_pair_moves_nothing(target: list[int]) -> None:
    rows = vectors(len(target)).requires_grad_()
    loss = LOSS(rows, torch.tensor(target), none())
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, rows)
    assert not gradient.any()


def test_a_mean_follows_the_newest_rows() -> None:
    old, new = torch.eye(5)[[0]], torch.eye(5)[[1]]
    means = none().learned(old.repeat(3, 1), torch.zeros(3, dtype=torch.int64))
    means = means.learned(new, torch.tensor([0]))
    assert means.means[0].tolist() == pytest.approx([0.75, 0.25, 0, 0, 0])  # all rows alike
    for _ in range(20):
        means = means.learned(new.repeat(64, 1), torch.zeros(64, dtype=torch.int64))
    assert means.counts.tolist() == [MOST_ROWS, 0, 0]
    assert F.cosine_similarity(means.means[:1], new) > 0.999
    bad = torch.full((1, 5), torch.nan)
    same = means.learned(torch.cat([bad, new]), torch.tensor([0, -1]))
    assert torch.equal(same.means, means.means)


def test_raw_scores_are_cosines_with_the_means() -> None:
    means = none().learned(torch.eye(5)[[0, 1]], torch.tensor([0, 1]))
    raw = means.raw_scores(torch.tensor([[3.0, 4, 0, 0, 0]]))
    assert raw.tolist()[0] == pytest.approx([0.6 / T, 0.8 / T, -1 / T])  # of class 2 no row came
    two = none(2, binary=True).learned(torch.eye(5)[[0, 1]], torch.tensor([0, 1]))
    assert float(two.raw_scores(torch.tensor([[3.0, 4, 0, 0, 0]]))) == pytest.approx(0.2 / T)


def batch(x: torch.Tensor, target: torch.Tensor) -> Batch:
    rows = Tensors(numeric=x, categories=torch.empty((len(x), 0), dtype=torch.int64), target=target)
    frame = pl.DataFrame({"y": target.numpy()})
    return Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=rows)


def test_rows_of_one_class_are_learned_without_a_nan(make_features: Make) -> None:
    features = replace(make_features("multiclass", numeric=3, categories={}), vector_width=4)
    learner = TabularLearner(
        TabularLearner.Settings(layers=[8]),
        TabularLearner.Training(loss="contrastive"),
        features,
    )
    zeros = torch.zeros(40, dtype=torch.int64)
    step = learner.learn(batch(torch.randn(40, 3, generator=torch.Generator()), zeros))
    assert np.isfinite(step.loss)
    assert step.not_learned is None
    assert step.scores[0].tolist() == pytest.approx([1 / 3] * 3)  # nothing was known
    assert (step.scores[1:].argmax(1) == 0).all()
    assert all(np.isfinite(weights).all() for weights in learner.state_dict()["weights"].values())


def test_a_model_of_vectors_is_not_one_of_scores(make_features: Make) -> None:
    features = make_features("multiclass")
    scores = TabularLearner(TabularLearner.Settings(), TabularLearner.Training(), features)
    training = TabularLearner.Training(loss="contrastive")
    of_vectors = TabularLearner(
        TabularLearner.Settings(), training, replace(features, vector_width=64)
    )
    for one, other in ((scores, of_vectors), (of_vectors, scores)):
        with pytest.raises(UserError, match=r"saved model has \[train\] loss = "):
            one.load_state_dict(other.state_dict())
