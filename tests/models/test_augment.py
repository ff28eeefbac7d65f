"""Augmentation of tables: what holds for any rows, and that learners score the rows themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from engine.types import Batch, Features, Mark, Step, Tensors, UserError
from models.augment.augmentation import Augmentation, chance_of
from models.augment.mixing import Mixup
from models.augment.tables import FeatureDropout, Jitter
from models.balance import Balanced, SamplingSettings
from models.learner import TabularLearner
from models.linear import LinearLearner
from models.losses import LossSettings, make_loss

CLASSES = {"regression": (), "binary": ("no", "yes"), "multiclass": ("a", "b", "c")}
KINDS: dict[str, Callable[..., Any]] = {
    "jitter": lambda **s: Jitter("it", Jitter.Settings(**s)),
    "mixup": lambda **s: Mixup("it", Mixup.Settings(**s)),
    "feature_dropout": lambda **s: FeatureDropout("it", FeatureDropout.Settings(**s)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
tasks = st.sampled_from(list(CLASSES))
probabilities = st.floats(0, 1)


def features_of(task: str, numeric: int = 3, categories: int = 2) -> Features:
    return Features(
        numeric=tuple(f"x{i}" for i in range(numeric)),
        categories={f"c{i}": 6 for i in range(categories)},
        target="y",
        task=task,
        classes=CLASSES[task],
    )


def rows_of(features: Features, n: int, seed: int = 0) -> Tensors:
    chance = np.random.default_rng(seed)
    target: Any = chance.normal(size=n).astype(np.float32)
    if features.task != "regression":
        target = chance.integers(0, len(features.classes), n)
    numeric = chance.normal(size=(n, len(features.numeric))).astype(np.float32)
    return Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.from_numpy(chance.integers(0, 6, (n, len(features.categories)))),
        target=torch.from_numpy(target),
    )


def parts(tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert tensors.target is not None
    return tensors.numeric, tensors.categories, tensors.target


def same(a: Tensors, b: Tensors) -> bool:
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def applied(
    made: Any, features: Features, rows: Tensors, number: int = 0, seed: int = 0
) -> tuple[Tensors, int]:
    made.bind(features, soft=True)
    done, changed = made.apply(rows, chance_of(seed, "it", number))
    return done, int(changed)


@every_kind
@settings(max_examples=40, deadline=None)
@given(task=tasks, n=st.integers(0, 50), seed=st.integers(0, 99), probability=probabilities)
def test_rows_shapes_and_types_hold(
    kind: str, task: str, n: int, seed: int, probability: float
) -> None:
    features = features_of(task)
    rows = rows_of(features, n, seed)
    before = [part.clone() for part in parts(rows)]
    key = "share" if kind == "feature_dropout" else "probability"
    done, changed = applied(KINDS[kind](**{key: probability}), features, rows, seed=seed)
    assert all(torch.equal(x, y) for x, y in zip(parts(rows), before, strict=True))
    numeric, categories, target = parts(done)
    assert (numeric.shape, numeric.dtype) == (rows.numeric.shape, torch.float32)
    assert (categories.shape, categories.dtype) == (rows.categories.shape, torch.int64)
    assert numeric.is_contiguous()
    assert len(target) == n
    assert 0 <= changed <= n
    assert numeric.isfinite().all()
    assert ((categories >= 0) & (categories < 6)).all()
    if kind != "mixup":
        assert target is rows.target
    elif changed and task == "multiclass":
        assert target.shape == (n, 3)
        assert torch.allclose(target.sum(1), torch.ones(n))
        assert ((target >= 0) & (target <= 1)).all()
    elif changed and task == "binary":
        assert target.dtype == torch.float32
        assert ((target >= 0) & (target <= 1)).all()
    again, _ = applied(KINDS[kind](**{key: probability}), features, rows, seed=seed)
    assert same(done, again)


@every_kind
def test_probability_0_changes_nothing(kind: str) -> None:
    features = features_of("multiclass")
    rows = rows_of(features, 100)
    key = "share" if kind == "feature_dropout" else "probability"
    done, changed = applied(KINDS[kind](**{key: 0.0}), features, rows)
    assert changed == 0
    assert same(done, rows)


@every_kind
def test_an_own_chance_for_every_batch_step_name_and_seed(kind: str) -> None:
    features = features_of("regression")
    rows = rows_of(features, 30)
    made = KINDS[kind]()
    made.bind(features)
    keys = [(0, "it", 5, 0), (1, "it", 5, 0), (0, "that", 5, 0), (0, "it", 6, 0), (0, "it", 5, 1)]
    results = [made.apply(rows, chance_of(*key))[0] for key in keys]
    for i, one in enumerate(results):
        assert not any(same(one, other) for other in results[:i])


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_jitter_is_noise_of_the_asked_deviation_on_the_asked_share(probability: float) -> None:
    features = features_of("regression", numeric=4)
    rows = rows_of(features, 50_000)
    made = KINDS["jitter"](columns=["x1", "x3"], scale=0.25, probability=probability)
    done, changed = applied(made, features, rows)
    noise = (done.numeric - rows.numeric).double()
    assert (noise[:, [0, 2]] == 0).all()
    moved = noise[:, [1, 3]][(noise[:, 1] != 0)]
    assert len(moved) == changed == pytest.approx(50_000 * probability, rel=0.03)
    assert moved.std(0).tolist() == pytest.approx([0.25, 0.25], rel=0.02)
    assert moved.mean(0).abs().max() < 0.01
    assert torch.corrcoef(moved.T)[0, 1].abs() < 0.03


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_feature_dropout_drops_the_asked_share_of_the_asked_columns(share: float) -> None:
    features = features_of("binary", numeric=3)
    rows = rows_of(features, 20_000)
    rows = replace(rows, categories=rows.categories.clamp(min=1))
    made = KINDS["feature_dropout"](columns=["x[02]", "c1"], share=share, value=-7.0)
    done, changed = applied(made, features, rows)
    gone = torch.cat([done.numeric == -7, done.categories == 0], 1).double()
    assert gone.mean(0).tolist() == pytest.approx([share, 0, share, 0, share], rel=0.1)
    assert changed == int(gone.any(1).sum())
    kept = done.numeric != -7
    assert torch.equal(done.numeric[kept], rows.numeric[kept])
    assert torch.equal(parts(done)[2], parts(rows)[2])


@settings(max_examples=40, deadline=None)
@given(
    task=tasks,
    n=st.integers(2, 60),
    number=st.integers(0, 2**63),
    alpha=st.sampled_from([0.1, 1.0, 5.0]),
    probability=probabilities,
)
def test_mixup_lies_between_two_rows_and_so_does_its_label(
    task: str, n: int, number: int, alpha: float, probability: float
) -> None:
    """Every row finds its other and its share again in a column of row numbers."""
    features = features_of(task, numeric=2)
    rows = rows_of(features, n)
    chance = np.random.default_rng(number)
    places = chance.normal(size=(n, 2)).astype(np.float32)  # no three on a line
    rows = replace(rows, numeric=torch.from_numpy(places))
    made = KINDS["mixup"](alpha=alpha, probability=probability)
    done, changed = applied(made, features, rows, number)
    if not changed:
        assert same(done, rows)
        return
    drawn = chance_of(0, "it", number)
    mixed = drawn.random(n) < probability
    other = drawn.permutation(n)
    kept = drawn.beta(alpha, alpha, n)
    kept[~mixed] = 1
    assert changed == mixed.sum()
    expected = kept[:, None] * places + (1 - kept[:, None]) * places[other]
    np.testing.assert_allclose(done.numeric.numpy(), expected, rtol=1e-4, atol=1e-5)
    target = parts(rows)[2]
    soft = F.one_hot(target, 3).double() if task == "multiclass" else target.double()[:, None]
    labels = kept[:, None] * soft.numpy() + (1 - kept[:, None]) * soft.numpy()[other]
    np.testing.assert_allclose(parts(done)[2].numpy().reshape(n, -1), labels, rtol=1e-4, atol=1e-5)
    codes = rows.categories.numpy()
    now = done.categories.numpy()
    assert ((now == codes) | (now == codes[other])).all()
    assert (now[~mixed] == codes[~mixed]).all()


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5)])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_loss_of_mixed_labels_is_that_of_both(task: str, weights: Any) -> None:
    """lambda * loss(a) + (1 - lambda) * loss(b), over the rows' weights."""
    features = features_of(task)
    k = len(features.classes)
    loss = make_loss(LossSettings(class_weights=weights and weights[:k]), features)
    chance = torch.Generator().manual_seed(1)
    a, b = (torch.randint(k, (200,), generator=chance) for _ in range(2))
    share = torch.rand(200, generator=chance)
    raw = torch.randn((200, k) if k > 2 else (200,), generator=chance)
    hot_a, hot_b = (F.one_hot(x, k).float() if k > 2 else x.float() for x in (a, b))
    shares = share[:, None] if k > 2 else share
    soft = shares * hot_a + (1 - shares) * hot_b
    weight = torch.ones(k) if weights is None else torch.tensor(weights[:k])
    one = torch.stack([loss(raw[i : i + 1], a[i : i + 1]) for i in range(200)]) * weight[a]
    two = torch.stack([loss(raw[i : i + 1], b[i : i + 1]) for i in range(200)]) * weight[b]
    size = share * weight[a] + (1 - share) * weight[b]
    expected = (share * one + (1 - share) * two).sum() / size.sum()
    assert loss(raw, soft).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(raw, hot_a).item() == pytest.approx(loss(raw, a).item(), rel=1e-5)


def learner_of(kind: str, features: Features, **train: Any) -> Any:
    if kind == "linear":
        return LinearLearner(LinearLearner.Settings(), LinearLearner.Training(**train), features)
    model = TabularLearner.Settings(layers=(8,))
    return TabularLearner(model, TabularLearner.Training(**train), features)


def all_of() -> Augmentation:
    return Augmentation(
        [
            Jitter("noise", Jitter.Settings(scale=0.3)),
            FeatureDropout("gaps", FeatureDropout.Settings(share=0.2)),
            Mixup("mix", Mixup.Settings(alpha=1.0, probability=0.7)),
            Mixup("again", Mixup.Settings(alpha=0.5)),
        ]
    )


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tabular", "regression", {}),
    ("tabular", "binary", {"class_weights": [1.0, 2.0]}),
    ("tabular", "multiclass", {"replay_rows": 100, "replay_steps": 2}),
    ("linear", "regression", {}),
    ("linear", "binary", {"l1": 1e-3}),
]
every_case = pytest.mark.parametrize(("kind", "task", "train"), CASES)


@every_case
def test_the_rows_themselves_are_scored(
    kind: str,
    task: str,
    train: dict[str, Any],
    make_features: Callable[..., Features],
    make_batches: Callable[..., list[Batch]],
) -> None:
    features = make_features(task)
    plain, changed = learner_of(kind, features, **train), learner_of(kind, features, **train)
    all_of().attach(changed)
    batches = make_batches(features)
    one, two = plain.learn(batches[0]), changed.learn(batches[0])
    if kind == "tabular":  # before the first update both models are the same
        np.testing.assert_allclose(two.scores, one.scores, rtol=1e-6)
    np.testing.assert_allclose(two.scores[0], one.scores[0], rtol=1e-6)
    assert two.augmented["again"] == len(batches[0]) * two.steps or kind == "linear"
    assert set(two.augmented) == {"noise", "gaps", "mix", "again"}
    assert one.augmented == {}
    for batch in batches[1:]:
        assert batch.tensors is not None
        before = changed.predict(batch.tensors)
        step = changed.learn(batch)
        assert step.scores[:1].tobytes() == before[:1].tobytes()
        if kind == "tabular":
            assert step.scores.tobytes() == before.tobytes()
    rest = batches[1].tensors
    assert rest is not None
    plain.learn(batches[1])
    assert not np.allclose(changed.predict(rest), plain.predict(rest))


@every_case
def test_probability_0_learns_the_same(
    kind: str,
    task: str,
    train: dict[str, Any],
    make_features: Callable[..., Features],
    make_batches: Callable[..., list[Batch]],
) -> None:
    features = make_features(task)
    plain, other = learner_of(kind, features, **train), learner_of(kind, features, **train)
    Augmentation([Jitter("noise", Jitter.Settings(probability=0.0))]).attach(other)
    for batch in make_batches(features):
        one, two = plain.learn(batch), other.learn(batch)
        np.testing.assert_allclose(two.scores, one.scores, rtol=1e-6)
        assert two.loss == one.loss
    last = make_batches(features)[0].tensors
    assert last is not None
    assert plain.predict(last).tobytes() == other.predict(last).tobytes()


def test_kept_rows_are_kept_as_they_are_and_augmented_anew() -> None:
    features = features_of("multiclass")
    learner = learner_of("tabular", features, replay_rows=50, replay_steps=3, replay_batch=50)
    seen: list[Tensors] = []

    class Spy(Jitter):
        def apply(self, tensors: Tensors, chance: np.random.Generator) -> tuple[Tensors, int]:
            seen.append(tensors)
            made, changed = super().apply(tensors, chance)
            seen.append(made)
            return made, changed

    mix = Mixup("mix", Mixup.Settings(alpha=1.0))
    Augmentation([Spy("noise", Spy.Settings()), mix]).attach(learner)
    rows = rows_of(features, 50)
    step: Step = learner.learn(batch_of(rows))
    assert step.steps == 4
    assert step.augmented == {"noise": 200, "mix": 200}
    clean = {tuple(row) for row in rows.numeric.tolist()}
    for rows, made in zip(seen[::2], seen[1::2], strict=True):
        assert {tuple(row) for row in rows.numeric.tolist()} <= clean
        assert parts(rows)[2].dtype == torch.int64
        assert not {tuple(row) for row in made.numeric.tolist()} & clean
    noises = [made.numeric.sort(0).values for made in seen[1::2]]
    assert not torch.equal(noises[1], noises[2])


def batch_of(rows: Tensors) -> Batch:
    frame = pl.DataFrame({"y": parts(rows)[2].numpy()})
    return Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=rows)


def test_drawn_rows_are_augmented_after_they_were_drawn() -> None:
    features = features_of("binary")
    inner = learner_of("tabular", features)
    Augmentation([Jitter("noise", Jitter.Settings())]).attach(inner)
    balanced = Balanced(inner, SamplingSettings(method="under"))
    rows = rows_of(features, 300)
    rows = replace(rows, target=(torch.arange(300) < 30).long())
    before = balanced.predict(rows)
    step = balanced.learn(batch_of(rows))
    assert step.scores.tobytes() == before.tobytes()
    assert step.augmented == {"noise": 300 - step.unlearned}


class Plain:
    """A learner of the user's own that knows nothing of augmentation."""

    features = features_of("binary")

    def learn(self, batch: Batch) -> Step:
        return Step(scores=np.zeros(len(batch)), loss=0.0)

    def predict(self, tensors: Tensors) -> Any:
        return np.zeros(len(tensors.numeric))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Hard(Plain):
    """One that augments, and takes whole classes only."""

    augmentation: Augmentation | None = None


@pytest.mark.parametrize(
    ("learner", "made", "sentence"),
    [
        (Plain(), Jitter("a", Jitter.Settings()), "Plain has no attribute 'augmentation'"),
        (Hard(), Mixup("a", Mixup.Settings()), r"\[augment.a\] kind mixes labels, and this learn"),
        (
            Hard(),
            Jitter("a", Jitter.Settings(columns=("x11",))),
            r"\[augment.a\] columns names 'x11', which is none of .* Did you mean 'x1'\?",
        ),
        (Hard(), Jitter("a", Jitter.Settings(columns=("c0",))), r"\[augment.a\] columns names 'c0"),
        (
            Hard(),
            FeatureDropout("gaps", FeatureDropout.Settings(columns=("z*",))),
            r"\[augment.gaps\] columns names 'z\*', which is none",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(learner: Any, made: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        Augmentation([made]).attach(learner)
    assert "\n" not in str(caught.value)


def test_two_of_one_name_are_refused() -> None:
    one = Jitter("a", Jitter.Settings())
    with pytest.raises(UserError, match="2 augments named 'a': rename one"):
        Augmentation([one, one])
