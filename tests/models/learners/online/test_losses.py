"""Losses beside torch's own: quantile, focal, and functions of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import mean_pinball_loss, mean_tweedie_deviance
from torch.nn import functional as F

from engine.types import Batch, Features, Mark, Tensors, UserError
from models.learners.online.losses import LossSettings, make_loss
from models.learners.tabular import TabularLearner

Make = Callable[..., Features]


def loss(features: Features, **keys: Any) -> Callable[[Any, Any], torch.Tensor]:
    return make_loss(LossSettings(**keys), features)


def test_the_quantile_loss_weighs_both_sides(make_features: Make) -> None:
    raw, target = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2.0, -4.0, 1.0])
    got = loss(make_features(), loss="quantile", quantile=0.9)(raw, target)
    assert float(got) == pytest.approx((0.9 * 2 + 0.1 * 4 + 0) / 3)


def test_the_loss_of_several_quantiles_is_the_sum_of_theirs(make_features: Make) -> None:
    """Each output by itself: scores that cross are not sorted before they are learned."""
    quantiles = (0.1, 0.5, 0.9)
    rng = np.random.default_rng(0)
    raw, target = rng.normal(size=(50, 3)), rng.normal(size=50)
    features = replace(make_features(), quantiles=quantiles)
    own = loss(features, loss="quantile", quantiles=quantiles)
    each = (mean_pinball_loss(target, raw[:, i], alpha=q) for i, q in enumerate(quantiles))
    got = own(torch.from_numpy(raw), torch.from_numpy(target))
    assert float(got) == pytest.approx(sum(each), rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"quantiles": [0.9, 0.5, 0.1]}, r"that rise, as in .*, got \[0.9, 0.5, 0.1\]"),
        ({"quantiles": [0.1, 0.5, 0.5]}, r"that rise"),
        ({"quantiles": [0.0, 0.5]}, r"above 0 and below 1"),
        ({"quantiles": [0.5, 1.0]}, r"above 0 and below 1"),
        ({"quantiles": [0.5]}, r"two numbers or more .* quantile is for one"),
        ({"quantiles": []}, r"two numbers or more"),
        ({"quantiles": [0.1, 0.9]}, r"expected 0.5 among quantiles"),
        ({"quantiles": [0.1, 0.5], "quantile": 0.5}, r"take one of them out"),
    ],
)
def test_quantiles_that_cannot_be_learned(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LossSettings(loss="quantile", **keys)


@pytest.mark.parametrize("transform", ["standard", "log1p"])
def test_a_quantile_is_learned(transform: str, make_features: Make) -> None:
    """In the target's own unit, whatever scale the network works on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6_000, 1)).astype(np.float32)
    y = np.exp(0.3 * x[:, 0] + rng.normal(size=6_000)).astype(np.float32)
    features = make_features(numeric=1, categories={})
    learner = TabularLearner(
        TabularLearner.Settings(layers=[], target_transform=transform),
        TabularLearner.Training(loss="quantile", quantile=0.8, lr=0.02, replay_rows=0),
        features,
    )
    rows = Tensors(
        numeric=torch.from_numpy(x),
        categories=torch.empty((len(x), 0), dtype=torch.int64),
        target=torch.from_numpy(y),
    )
    learner.learn(Batch(frame=pl.DataFrame({"y": y}), mark=Mark(), arrived=0.0, tensors=rows))
    below = float((y < learner.predict(rows)).mean())
    assert below == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("keys", "power"),
    [({"loss": "poisson"}, 1.0), ({"loss": "tweedie", "tweedie_power": 1.3}, 1.3)],
)
def test_the_loss_of_rates_is_half_the_deviance(
    keys: dict[str, Any], power: float, make_features: Make
) -> None:
    """But for what does not depend on the score."""
    target = torch.tensor([0.0, 1.0, 7.0], dtype=torch.float64)
    one, other = (
        torch.tensor(raw, dtype=torch.float64) for raw in ([0.2, -1.0, 2.5], [1.0, 0.5, 0.0])
    )
    own = loss(make_features(), **keys)
    half = [mean_tweedie_deviance(target, raw.exp(), power=power) / 2 for raw in (one, other)]
    assert float(own(one, target) - own(other, target)) == pytest.approx(half[0] - half[1])


def counts(n: int = 4_000) -> tuple[Any, Any]:
    """Counts whose logarithm is a line, and their means."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 1)).astype(np.float32)
    mean = np.exp(0.7 * x[:, 0] + 4)
    return Tensors(
        numeric=torch.from_numpy(x),
        categories=torch.empty((n, 0), dtype=torch.int64),
        target=torch.from_numpy(rng.poisson(mean).astype(np.float32)),
    ), mean


@pytest.mark.parametrize("name", ["poisson", "tweedie"])
def test_rates_are_learned_in_their_own_unit(name: str, make_features: Make) -> None:
    """From the first rows on: the network's unit is the mean target."""
    rows, mean = counts()
    learner = TabularLearner(
        TabularLearner.Settings(layers=[]),
        TabularLearner.Training(loss=name, lr=0.02, replay_rows=0),
        make_features(numeric=1, categories={}),
    )
    frame = pl.DataFrame({"y": rows.target.numpy()})
    step = learner.learn(Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=rows))
    assert (step.scores > 0).all()
    wrong = np.abs(np.log(step.scores / mean))
    assert np.median(wrong[100:200]) < 1
    assert np.median(np.abs(np.log(learner.predict(rows) / mean))) < 0.05


def test_a_loss_of_rates_has_its_own_transform(make_features: Make) -> None:
    training = TabularLearner.Training(loss="poisson")
    settings = TabularLearner.Settings(target_transform="log1p")
    with pytest.raises(UserError, match=r"does not go with .train. loss = 'poisson'"):
        TabularLearner(settings, training, make_features())
    other = TabularLearner(TabularLearner.Settings(), training, make_features())
    usual = TabularLearner(TabularLearner.Settings(), TabularLearner.Training(), make_features())
    with pytest.raises(UserError, match="target_transform"):
        usual.load_state_dict(other.state_dict())


def test_a_missing_target_costs_nothing(make_features: Make) -> None:
    """One target's gap changes no step on the other."""
    features = replace(make_features(numeric=1, categories={}), target=None, targets=("y", "z"))
    x = torch.linspace(-1, 1, 64)[:, None]
    both = torch.cat([x, 5 - 100 * x], 1)
    gaps = both.clone()
    gaps[::2, 1] = torch.nan
    weights = []
    for target in (both, gaps):
        learner = TabularLearner(
            TabularLearner.Settings(layers=[], target_transform="none"),
            TabularLearner.Training(optimizer="sgd", lr=0.01, replay_rows=0),
            features,
        )
        rows = Tensors(numeric=x, categories=torch.empty((64, 0), dtype=torch.int64), target=target)
        raw = learner._scorer.train(rows)
        loss = learner._stepper._loss.of(raw, rows, learner._scorer.target_scale)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = learner._scorer.network.tensors["layer.0.weight"].grad
        assert gradient is not None
        weights.append(gradient * both.numel())
    there = (~gaps.isnan()).sum() / both.numel()
    torch.testing.assert_close(weights[1][0] * there, weights[0][0])
    assert weights[1].isfinite().all()


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_focal_with_gamma_0_is_cross_entropy(weights: Any, make_features: Make) -> None:
    raw, target = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1, 0, 0])
    binary = make_features("binary")
    one = loss(binary, loss="focal", focal_gamma=0, class_weights=weights)
    other = loss(binary, class_weights=weights)
    for labels in (target, torch.tensor([0.3, 0.9, 0.0])):  # as mixup makes them
        torch.testing.assert_close(one(raw, labels), other(raw, labels))
    many = make_features("multiclass")
    scores = torch.tensor([[0.1, 2.0, -1.0], [0.0, 0.0, 3.0]])
    got = loss(many, loss="focal", focal_gamma=0)(scores, torch.tensor([1, 0]))
    torch.testing.assert_close(got, F.cross_entropy(scores, torch.tensor([1, 0])))


def test_focal_counts_what_is_known_less(make_features: Make) -> None:
    raw = torch.tensor([2.0, -1.0], requires_grad=True)
    target = torch.tensor([1, 1])
    p = torch.sigmoid(torch.tensor([2.0, -1.0]))
    got = loss(make_features("binary"), loss="focal", focal_gamma=2)(raw, target)
    torch.testing.assert_close(got.detach(), (-(1 - p).square() * p.log()).mean())
    got.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(raw.grad).all()  # type: ignore[arg-type]


def test_fake_negatives_are_weighed_away(make_features: Make) -> None:
    """Of ten rows, all are learned as class 0 and three again as class 1: 0.3 is the best answer,
    and cross entropy's is 3/13."""
    target = torch.tensor([0] * 10 + [1] * 3)
    for name, best in (("fake_negatives", 3 / 10), ("cross_entropy", 3 / 13)):
        raw = torch.full((13,), best).logit().requires_grad_()
        got = loss(make_features("binary"), loss=name)(raw, target)
        (gradient,) = torch.autograd.grad(got, raw)
        assert float(gradient.sum()) == pytest.approx(0, abs=1e-6)


def root(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((raw - target).square() + 1).sqrt().mean() - 1


def per_row(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (raw - target).abs()


def fails(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    raise ValueError("no such loss")


def still(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (raw - target).abs().mean().detach()


OWN = "tests.models.learners.online.test_losses"


def test_a_function_is_a_loss(make_features: Make) -> None:
    raw, target = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0])
    got = loss(make_features(), loss=f"{OWN}:root")(raw, target)
    torch.testing.assert_close(got, root(raw, target))


@pytest.mark.parametrize(
    ("task", "keys", "said"),
    [
        ("regression", {"loss": f"{OWN}:per_row"}, r"returns shape \(2,\), expected one number"),
        ("regression", {"loss": f"{OWN}:fails"}, "raises ValueError: no such loss, when it gets"),
        ("regression", {"loss": f"{OWN}:still"}, "returns a number without a gradient"),
        ("regression", {"loss": f"{OWN}:none"}, "cannot be imported: AttributeError"),
        ("regression", {"loss": "focal"}, "does not fit .* huber, quantile, poisson or"),
        (
            "binary",
            {"loss": "poisson"},
            "does not fit .* cross_entropy, focal, contrastive or fake_",
        ),
        ("regression", {"tweedie_power": 1.2}, "tweedie_power is for loss = 'tweedie'"),
        (
            "binary",
            {"loss": "quantile"},
            "does not fit .* cross_entropy, focal, contrastive or fake_",
        ),
        ("regression", {"quantile": 0.9}, "quantile is for loss = 'quantile', and loss is 'mse'"),
        (
            "regression",
            {"quantiles": (0.1, 0.5)},
            "quantiles is for loss = 'quantile', and loss is",
        ),
        ("binary", {"focal_gamma": 1}, "focal_gamma is for loss = 'focal'"),
        ("binary", {"loss": f"{OWN}:root", "class_weights": [1, 2]}, "weigh the classes there"),
        (
            "multiclass",
            {"loss": "fake_negatives"},
            "does not fit .* cross_entropy, focal or contrastive",
        ),
        ("binary", {"loss": "fake_negatives", "class_weights": [1, 2]}, "weighs the classes"),
    ],
)
def test_a_loss_that_does_not_fit(
    task: str, keys: dict[str, Any], said: str, make_features: Make
) -> None:
    with pytest.raises(UserError, match=said):
        loss(make_features(task), **keys)
