"""The tabular learner's steps, term by term, against torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from engine.config import validate
from engine.types import Batch, Features, Tensors, UserError
from models.learners.network import NetworkShape, TabularNetwork
from models.learners.online.losses import LossSettings, make_loss
from models.learners.online.optimizer import Optimizer, OptimizerSettings
from models.learners.online.target_transform import TargetScale, TargetScales
from models.learners.tabular import TabularLearner
from tests.size import examples

Make = Callable[..., Features]
Batches = Callable[..., list[Batch]]


def learner(features: Features, **keys: Any) -> TabularLearner:
    """Keys go to [model] or [train] by their name."""
    known = TabularLearner.Settings.model_fields
    model = {key: value for key, value in keys.items() if key in known}
    train = {key: value for key, value in keys.items() if key not in known}
    return TabularLearner(
        TabularLearner.Settings(**({"layers": [8]} | model)),
        TabularLearner.Training(**train),
        features,
    )


def tensors_of(batch: Batch) -> Tensors:
    assert batch.tensors is not None
    return batch.tensors


# -------------------------------------------------------------------------------------------- loss

RAW, VALUES = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1.0, 0.0, 2.5])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (0.25 + 4 + 0.25) / 3),
        ({"loss": "mae"}, (0.5 + 2 + 0.5) / 3),
        ({"loss": "huber", "huber_delta": 1.0}, (0.125 + 1.5 + 0.125) / 3),
    ],
)
def test_regression_losses(make_features: Make, keys: dict[str, Any], expected: float) -> None:
    loss = make_loss(LossSettings(**keys), make_features())
    assert float(loss(RAW, VALUES)) == pytest.approx(expected)


def test_binary_loss_is_that_of_two_classes(make_features: Make) -> None:
    # Logits (0, s) of two classes are the binary logit s; so are the weights and their mean.
    keys = LossSettings(class_weights=(1.0, 3.0))
    target = torch.tensor([1, 0, 1])
    got = make_loss(keys, make_features("binary"))(RAW, target)
    two = torch.stack([torch.zeros(3), RAW], 1)
    expected = F.cross_entropy(two, target, torch.tensor([1.0, 3.0]))
    assert float(got) == pytest.approx(float(expected))


def test_multiclass_loss_is_weighted(make_features: Make) -> None:
    features, raw, target = make_features("multiclass"), torch.randn(5, 3), torch.arange(5) % 3
    weights = (1.0, 0.0, 2.0)
    got = make_loss(LossSettings(class_weights=weights), features)(raw, target)
    assert float(got) == float(F.cross_entropy(raw, target, torch.tensor(weights)))


# --------------------------------------------------------------------------------------- optimizer

SHAPE = NetworkShape(numeric=3, categories=(5,), embedding_dim=(2,), layers=(6,))


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 5, (20, 1), generator=rng)
    return torch.randn((20, 3), generator=rng), codes, torch.randn(20, generator=rng)


def descend(network: TabularNetwork, optimizer: Optimizer, steps: int = 5) -> list[float]:
    numeric, codes, target = problem()
    return [optimizer.step([F.mse_loss(network(numeric, codes), target)])[0] for _ in range(steps)]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (
            {"optimizer": "adam", "weight_decay": 0.1},
            lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1),
        ),
        (
            {"optimizer": "adamw", "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
        ),
        ({"optimizer": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
    ],
    ids=["adam", "adamw", "sgd"],
)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_one_flat_step_is_torch_step_on_every_layer(
    keys: dict[str, Any], kind: Callable[[Any], torch.optim.Optimizer], clip: float | None
) -> None:
    flat, layered = TabularNetwork(SHAPE), TabularNetwork(SHAPE)
    descend(flat, Optimizer(OptimizerSettings(lr=0.05, max_grad_norm=clip, **keys), flat))
    parameters = list(layered.tensors.values())
    optimizer, (numeric, codes, target) = kind(parameters), problem()
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(layered(numeric, codes), target).backward()  # type: ignore[no-untyped-call]
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
    torch.testing.assert_close(flat.flat, layered.flat, rtol=1e-4, atol=1e-6)


def test_l1_is_the_gradient_of_the_absolute_weights() -> None:
    network = TabularNetwork(SHAPE)
    before = network.flat.detach().clone()
    keys = OptimizerSettings(optimizer="sgd", lr=0.1, l1=0.2)
    Optimizer(keys, network).step([0 * network.tensors["layer.0.bias"].sum()])
    torch.testing.assert_close(network.flat.detach(), before - 0.1 * 0.2 * before.sign())


@pytest.mark.parametrize("clip", [None, 0.05])
def test_sparse_embeddings_learn_what_dense_ones_do(clip: float | None) -> None:
    keys = OptimizerSettings(optimizer="sgd", lr=0.1, max_grad_norm=clip, ema_decay=0.5)
    ends = []
    for sparse in (False, True):
        network, average = (TabularNetwork(replace(SHAPE, sparse=sparse)) for _ in range(2))
        descend(network, Optimizer(keys, network, average))
        ends.append([network.weights(), average.weights()])
    for dense, spared in zip(*ends, strict=True):
        for name, weights in dense.items():
            np.testing.assert_allclose(spared[name], weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(sparse: bool, poison: float) -> None:
    network = TabularNetwork(replace(SHAPE, sparse=sparse))
    optimizer = Optimizer(OptimizerSettings(), network)
    descend(network, optimizer, 2)
    before, state = network.weights(), optimizer.state_dict()
    numeric, codes, target = problem()
    _, taken = optimizer.step([F.mse_loss(network(numeric, codes), target) * poison])
    assert not taken
    assert optimizer.steps == 2
    assert all(np.array_equal(a, before[k]) for k, a in network.weights().items())
    after = optimizer.state_dict()
    for old, new in zip(state["moments"], after["moments"], strict=True):
        assert all(np.array_equal(old[i][k], new[i][k]) for i in old for k in old[i])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    network = TabularNetwork(SHAPE)
    optimizer = Optimizer(OptimizerSettings(), network)
    before = network.weights()
    zero = 0 * network.tensors["layer.0.weight"].sum()
    loss, taken = optimizer.step([zero.sqrt()])  # 0, with a slope that is not finite
    assert (loss, taken) == (0.0, False)
    assert all(np.array_equal(a, before[k]) for k, a in network.weights().items())


@pytest.mark.parametrize(
    ("keys", "shares"),
    [
        ({}, {0: 1.0, 1000: 1.0}),
        ({"warmup_steps": 4}, {0: 0.25, 3: 1.0, 50: 1.0}),
        ({"schedule": "inverse_sqrt", "warmup_steps": 4}, {1: 0.5, 4: 1.0, 16: 0.5, 400: 0.1}),
        ({"schedule": "inverse_sqrt", "lr_floor": 0.3}, {0: 1.0, 4: 0.5, 400: 0.3}),
        ({"schedule": "cosine", "schedule_steps": 10}, {0: 1.0, 5: 0.5, 10: 0.0, 99: 0.0}),
        (
            {"schedule": "cosine", "schedule_steps": 12, "warmup_steps": 2, "lr_floor": 0.1},
            {0: 0.5, 2: 1.0, 7: 0.5, 12: 0.1},
        ),
    ],
)
def test_schedule(keys: dict[str, Any], shares: dict[int, float]) -> None:
    optimizer = Optimizer(OptimizerSettings(**keys), TabularNetwork(SHAPE))
    assert {step: optimizer.lr_share(step) for step in shares} == pytest.approx(shares)


def test_the_schedule_scales_the_step() -> None:
    network = TabularNetwork(SHAPE)
    keys = OptimizerSettings(optimizer="sgd", lr=0.5, warmup_steps=10)
    optimizer, moved = Optimizer(keys, network), []
    for _ in range(3):
        before = network.flat.detach().clone()
        optimizer.step([network.tensors["layer.1.bias"].sum()])
        moved.append(float((before - network.flat.detach()).sum()))
    assert moved == pytest.approx([0.05, 0.1, 0.15], rel=1e-5)


def test_the_average_follows_young_fast_then_by_its_decay() -> None:
    network, average = TabularNetwork(SHAPE), TabularNetwork(SHAPE)
    keys = OptimizerSettings(optimizer="sgd", lr=0.1, ema_decay=0.25)
    optimizer, expected = Optimizer(keys, network, average), average.flat.detach().clone()
    for step in range(1, 5):
        descend(network, optimizer, 1)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.flat.detach()
        torch.testing.assert_close(average.flat.detach(), expected)
    assert not torch.equal(average.flat, network.flat)


# ------------------------------------------------------------------------------------------ target


@given(
    warp=st.sampled_from(["none", "log1p", "sqrt"]),
    standard=st.booleans(),
    batches=st.lists(
        st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=9), min_size=1, max_size=4
    ),
)
@settings(max_examples=examples(60), deadline=None)
def test_the_way_back_undoes_the_way_there(
    warp: str, standard: bool, batches: list[list[float]]
) -> None:
    scale = TargetScale(transform=warp, standard=standard)
    for batch in batches:
        scale = scale.learned(torch.tensor(batch))
    every = torch.tensor([y for batch in batches for y in batch], dtype=torch.float64)
    back = scale.inverse(scale.forward(every))
    torch.testing.assert_close(back, every, rtol=1e-7, atol=1e-6)
    if standard:
        plain = TargetScale(transform=warp).forward(every)
        assert scale.count == len(every)
        assert scale.mean == pytest.approx(float(plain.mean()), abs=1e-9)
        spread = float(plain.std(correction=0))
        assert scale.deviation == pytest.approx(spread if spread > 0 else 1.0, rel=1e-6)


def test_the_way_back_stays_in_range() -> None:
    wild = torch.tensor([-1e30, 1e30], dtype=torch.float64)
    assert (TargetScale(transform="sqrt").inverse(wild)[0]) == 0
    for warp in ("log1p", "rate"):
        assert TargetScale(transform=warp).inverse(wild).float().isfinite().all()


def test_each_of_several_targets_has_its_own_scale() -> None:
    scales = TargetScales(each=(TargetScale(standard=True),) * 2)
    nan = float("nan")
    scales = scales.learned(torch.tensor([[1.0, nan], [3.0, 1e6], [nan, 3e6], [5.0, nan]]))
    scales = scales.learned(torch.tensor([[nan, 2e6]]))
    assert [scale.count for scale in scales.each] == [3, 3]
    assert [scale.mean for scale in scales.each] == [3, 2e6]
    rows = torch.tensor([[3.0, nan], [nan, 2e6]], dtype=torch.float64)
    assert scales.forward(rows).nan_to_num(9).tolist() == [[0, 9], [9, 0]]
    back = scales.inverse(scales.forward(rows))
    torch.testing.assert_close(back, rows, equal_nan=True)
    again = TargetScales(each=(TargetScale(standard=True),) * 2).restored(scales.snapshot())
    assert again == scales


def test_a_rate_is_a_share_of_the_mean_target() -> None:
    scale = TargetScale(transform="rate", standard=True)
    assert scale.rate == 1
    assert scale.learned(torch.zeros(99)).rate == pytest.approx(0.01)  # never 0
    scale = scale.learned(torch.tensor([3.0, 5.0, 7.0]))
    assert scale.rate == pytest.approx(4)
    assert float(scale.forward(torch.tensor(8.0))) == pytest.approx(2)
    assert float(scale.inverse(torch.tensor(math.log(2)))) == pytest.approx(8)


# ----------------------------------------------------------------------------------------- learner


def test_a_batch_that_overflows_is_refused_whole_and_kept_aside(
    make_features: Make, make_batches: Batches
) -> None:
    features = make_features()
    made = learner(features, standardize=False, ema_decay=0.9, replay_rows=100)
    good = make_batches(features, 10)
    made.learn(good[0])
    before = made.state_dict()
    tensors = tensors_of(good[1])
    assert tensors.target is not None
    huge = replace(good[1], tensors=replace(tensors, numeric=tensors.numeric * 1e38))
    step = made.learn(huge)
    assert (step.skipped, step.steps) == ("non_finite", 0)
    assert np.isnan(step.loss)
    assert list(made.bad_batches) == [huge]
    after = made.state_dict()
    assert after["target"] == before["target"]
    for name in ("weights", "average", "replay"):
        assert all(np.array_equal(after[name][k], before[name][k]) for k in after[name])
    assert after["optimizer"]["steps"] == before["optimizer"]["steps"]
    assert made.learn(good[2]).skipped is None
    for _ in range(9):
        made.learn(huge)
    assert len(made.bad_batches) == 4


def test_a_poison_row_costs_itself(make_features: Make, make_batches: Batches) -> None:
    features = make_features()
    poisoned, spared = learner(features, standardize=False), learner(features, standardize=False)
    batch = make_batches(features)[0]
    tensors = tensors_of(batch)
    numeric = tensors.numeric.clone()
    numeric[7] = 1e30
    step = poisoned.learn(replace(batch, tensors=replace(tensors, numeric=numeric)))
    assert step.skipped is None
    assert step.not_learned is not None
    assert np.flatnonzero(step.not_learned).tolist() == [7]
    rest = np.delete(np.arange(len(batch)), 7)
    spared.learn(replace(batch, tensors=tensors.take(rest)))
    one, other = poisoned.state_dict()["weights"], spared.state_dict()["weights"]
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_target_a_warp_cannot_take_is_skipped(make_features: Make, make_batches: Batches) -> None:
    features = make_features()
    made = learner(features, target_transform=["sqrt", "standard"])
    tensors = tensors_of(make_batches(features)[0])
    assert tensors.target is not None
    negative = replace(tensors, target=tensors.target - 100)
    batch = replace(make_batches(features)[0], tensors=negative)
    assert made.learn(batch).skipped == "non_finite"
    assert made.learn(make_batches(features)[0]).skipped is None


def test_replay_takes_its_steps(make_features: Make, make_batches: Batches) -> None:
    features = make_features()
    for steps in (0, 3):
        made = learner(features, replay_rows=50, replay_steps=steps)
        taken = [made.learn(batch).steps for batch in make_batches(features, 3)]
        assert taken == [40 * (1 + steps)] * 3


def test_one_learner_scores_and_learns_with_one_forward_pass(
    make_features: Make, make_batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = make_features()
    batch = make_batches(features, rows=1)[0]
    passes: list[int] = []
    forward = TabularNetwork.__call__

    def counted(self: TabularNetwork, *args: Any, **keys: Any) -> torch.Tensor:
        passes.append(1)
        return forward(self, *args, **keys)

    monkeypatch.setattr(TabularNetwork, "__call__", counted)
    for keys, expected in ({}, 1), ({"dropout": 0.5}, 2), ({"ema_decay": 0.9}, 2):
        passes.clear()
        learner(features, replay_rows=0, **keys).learn(batch)
        assert len(passes) == expected


def test_dropout_is_for_learning_only(make_features: Make, make_batches: Batches) -> None:
    features = make_features()
    batch = make_batches(features)[0]
    dropped, plain = learner(features, dropout=0.9), learner(features)
    assert np.array_equal(dropped.predict(tensors_of(batch)), plain.predict(tensors_of(batch)))
    assert dropped.learn(batch).loss != plain.learn(batch).loss


def test_bfloat16_is_near_and_its_weights_are_float32(
    make_features: Make, make_batches: Batches
) -> None:
    features = make_features("multiclass")
    exact = learner(features, replay_rows=0)
    rough = learner(features, replay_rows=0, precision="bfloat16")
    for batch in make_batches(features, 20):
        exact.learn(batch)
        step = rough.learn(batch)
    assert step.skipped is None
    one, other = (made.predict(tensors_of(batch)) for made in (exact, rough))
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.03)
    assert all(a.dtype == np.float32 for a in rough.state_dict()["weights"].values())


def test_replay_counts_in_memory(make_features: Make, make_batches: Batches) -> None:
    features = make_features()
    made = learner(features, replay_rows=1000, ema_decay=0.5)
    assert made.memory()["replay"] == 0
    made.learn(make_batches(features)[0])
    assert made.memory()["replay"] == 40 * (4 * 4 + 2 * 8 + 4)
    # gradient, two moments, the average, and Adam's step number
    assert made.memory()["optimizer"] == 4 * made.memory()["weights"] + 4


def test_threads_are_set(make_features: Make) -> None:
    torch.set_num_threads(1)
    learner(make_features(), threads=2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("layers", "step_rows", "environment", "small"),
    [
        ((128, 64), 1_024, None, True),
        ((512, 512), 1_024, None, False),
        ((512, 512), 64, None, True),
        ((128, 64), 65_536, None, False),
        ((128, 64), 1_024, "2", False),
    ],
)
def test_threads_share_a_step_only_where_it_is_much_work(
    layers: tuple[int, ...],
    step_rows: int,
    environment: str | None,
    small: bool,
    make_features: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("models.learners.online.learner.OWN_THREADS", 2)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    settings = TabularLearner.Settings(layers=layers)
    TabularLearner(settings, TabularLearner.Training(step_rows=step_rows), make_features())
    assert torch.get_num_threads() == (1 if small else 2)


def test_a_large_table_of_vectors_is_no_work_to_share(
    make_features: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("models.learners.online.learner.OWN_THREADS", 2)
    features = replace(make_features(), categories={"c": 1_001, "d": 100_000})
    made = TabularLearner(TabularLearner.Settings(), TabularLearner.Training(), features)
    assert made.parameters_count > 1_000_000
    assert torch.get_num_threads() == 1


# -------------------------------------------------------------------------------------- complaints


@pytest.mark.parametrize(
    ("task", "keys", "sentence"),
    [
        (
            "binary",
            {"loss": "mse"},
            "loss = 'mse' does not fit .* 'binary': expected cross_entropy",
        ),
        ("regression", {"loss": "cross_entropy"}, "expected mse, mae, huber, quantile, poisson"),
        ("multiclass", {"class_weights": [1, 2]}, r"each of the 3 classes \(a, b, c\), got 2"),
        ("binary", {"class_weights": [0, 0]}, "at least one above 0"),
        ("binary", {"class_weights": [-1, 1]}, "numbers of 0 or more"),
        ("regression", {"class_weights": [1, 2]}, "class_weights is for classes"),
        ("binary", {"target_transform": "sqrt"}, "target_transform is for regression"),
        ("regression", {"target_transform": ["standard", "sqrt"]}, "a warp and then standard"),
        ("regression", {"target_transform": ["sqrt", "log1p"]}, "a warp and then standard"),
        ("regression", {"embedding_dim": {"colour": 3}}, "names 'colour'.* mean 'color'"),
        ("regression", {"momentum": 0.9}, "momentum is a setting of sgd"),
        ("regression", {"schedule": "cosine"}, "needs schedule_steps"),
        (
            "regression",
            {"sparse_embeddings": True, "optimizer": "sgd", "momentum": 0.5},
            "sparse_embeddings does not go with",
        ),
    ],
)
def test_settings_that_do_not_fit(
    make_features: Make, task: str, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        learner(make_features(task), **keys)


@pytest.mark.parametrize(
    ("table", "section", "sentence"),
    [
        ({"layers": [64, 0]}, "model", "expected a list of whole numbers > 0 for .layers."),
        ({"activation": "tanh"}, "model", r"expected .relu. or .* for 'activation', got \"tanh\""),
        ({"dropout": 1.0}, "model", "for 'dropout', got 1.0"),
        ({"embedding_dim": 0}, "model", "embedding_dim"),
        ({"layer": [3]}, "model", "has no key 'layer'. Did you mean 'layers'"),
        ({"lr": 0}, "train", "for 'lr', got 0"),
        ({"optimizer": "rmsprop"}, "train", "for 'optimizer', got \"rmsprop\""),
        ({"replay_rows": -1}, "train", "for 'replay_rows', got -1"),
        ({"momentun": 0.1}, "train", "has no key 'momentun'. Did you mean 'momentum'"),
    ],
)
def test_values_out_of_range_are_one_sentence(
    table: dict[str, Any], section: str, sentence: str
) -> None:
    kind: Any = TabularLearner.Settings if section == "model" else TabularLearner.Training
    with pytest.raises(UserError, match=sentence):
        validate(kind, table, section, "pipeline.toml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        TabularLearner.Settings().seed = 3  # type: ignore[misc]


def test_no_features_are_refused(make_features: Make) -> None:
    with pytest.raises(UserError, match="needs features"):
        learner(make_features("regression", 0, {}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(make_features: Make) -> None:
    with pytest.raises(UserError, match="expects a CUDA device"):
        learner(make_features(), device="cuda")
    assert learner(make_features(), device="auto").device == "cpu"


@pytest.mark.parametrize(
    ("keys", "difference"),
    [
        ({"layers": [9]}, r"\[model\] layers = \[8\], this pipeline's has \[9\]"),
        ({"embedding_dim": 3}, r"\[model\] embedding_dim = \[4, 5\], this pipeline's has \[3, 3\]"),
        ({"optimizer": "sgd"}, r"\[train\] optimizer = adam, this pipeline's has sgd"),
        ({"ema_decay": 0.9}, r"\[train\] ema_decay = False"),
        ({"replay_rows": 5}, r"\[train\] replay_rows = 10000, this pipeline's has 5"),
    ],
)
def test_a_saved_model_of_another_shape_is_refused(
    make_features: Make, keys: dict[str, Any], difference: str
) -> None:
    features = make_features()
    with pytest.raises(UserError, match=difference):
        learner(features, **keys).load_state_dict(learner(features).state_dict())
