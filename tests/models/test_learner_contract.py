"""One contract, every learner under every option that keeps state.

What a learner does with all the batches is done once for each case (`Course`); the tests look at
it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch

from engine.types import Batch, Features, GraphColumn, Learner, Padded, Tensors, UserError
from models.augment import Augment, Augmentation
from models.augment.images import Crop
from models.augment.mixing import Mixup
from models.augment.tables import FeatureDropout, Jitter
from models.augment.tokens import TokenDropout
from models.challenge.challenger import ChampionChallenger
from models.export.model_files import STATE_BEFORE
from models.export.onnx_graph import Graph, TensorProto
from models.learners.linear import LinearLearner
from models.learners.modules.learner import ModuleLearner, ModuleSettings
from models.learners.prototypes.learner import PrototypeLearner
from models.learners.sampling import ResampledLearner, SamplingSettings
from models.learners.tabular import TabularLearner
from models.learners.trees.learner import TreesLearner
from tests.models.export.modules import in_this_process
from tests.size import few

KINDS = {
    "tabular": TabularLearner,
    "linear": LinearLearner,
    "module": ModuleLearner,
    "trees": TreesLearner,
    "prototypes": PrototypeLearner,
}
ROWS = 24
"""Of a batch: five of them fill a replay of 90 rows."""
Make = Callable[[], Any]
Batches = list[Batch]

QUANTILES = (0.1, 0.5, 0.9)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # name: (kind, task, [model], [train])
    "plain": ("tabular", "regression", {}, {"loss": "mae"}),
    "sgd": ("tabular", "regression", {"activation": "silu"}, {"optimizer": "sgd", "lr": 1e-2}),
    "momentum": ("tabular", "binary", {}, {"optimizer": "sgd", "momentum": 0.9, "lr": 1e-2}),
    "dropout": ("tabular", "regression", {"dropout": 0.3, "activation": "gelu"}, {}),
    "replay": ("tabular", "regression", {}, {"replay_rows": 90, "replay_steps": 2}),
    "recent": (
        "tabular",
        "multiclass",
        {"dropout": 0.1},
        {"replay_rows": 500, "replay_sampling": "recent", "replay_batch": 16},
    ),
    "ema_decay": (
        "tabular",
        "binary",
        {"skip_connection": True},
        {"ema_decay": 0.9, "class_weights": [1.0, 3.0]},
    ),
    "sqrt": (
        "tabular",
        "regression",
        {"target_transform": ["sqrt", "standard"]},
        {"ema_decay": 0.5},
    ),
    "log": ("tabular", "regression", {"target_transform": "log1p"}, {"loss": "huber"}),
    "several targets": (
        "tabular",
        "regression",
        {"target_transform": ["sqrt", "standard"]},
        {"loss": "huber", "replay_rows": 90, "replay_steps": 1, "ema_decay": 0.9}
        | {"forget_on": "watch", "augment": True},
    ),
    "quantiles": (
        "tabular",
        "regression",
        {"target_transform": ["sqrt", "standard"]},
        {"loss": "quantile", "quantiles": QUANTILES, "replay_rows": 90, "replay_steps": 1}
        | {"ema_decay": 0.9, "forget_on": "watch", "augment": True},
    ),
    "poisson": ("tabular", "regression", {}, {"loss": "poisson", "ema_decay": 0.5}),
    "vectors": (
        "tabular",
        "multiclass",
        {"vector_width": 8, "dropout": 0.1},
        {"loss": "contrastive", "replay_rows": 90, "replay_steps": 1, "ema_decay": 0.9}
        | {"forget_on": "watch", "augment": True, "class_weights": [1.0, 2.0, 1.0]},
    ),
    "vectors of two classes": (
        "tabular",
        "binary",
        {"vector_width": 2},
        {"loss": "contrastive", "accumulate": 2, "sampling": {"method": "over"}},
    ),
    "growing vectors": (
        "tabular",
        "multiclass",
        {"vector_width": 8},
        {"loss": "contrastive", "ema_decay": 0.9, "replay_rows": 90, "replay_steps": 1},
    ),
    "module, vectors": (
        "module",
        "multiclass",
        {"module": "tests.models.nets:Mlp", "arguments": {"outputs": 8}, "vector_width": 8},
        {"loss": "contrastive", "replay_rows": 90, "replay_steps": 1, "augment": True},
    ),
    "sparse": (
        "tabular",
        "multiclass",
        {"sparse_embeddings": True, "embedding_dim": 3},
        {"ema_decay": 0.9},
    ),
    "schedule": (
        "tabular",
        "regression",
        {"layers": []},
        {"optimizer": "adamw", "weight_decay": 0.1, "lr": 0.1}
        | {"schedule": "cosine", "schedule_steps": 200, "warmup_steps": 4},
    ),
    "everything": (
        "tabular",
        "regression",
        {"dropout": 0.2, "target_transform": "standard", "skip_connection": True, "seed": 7},
        {"ema_decay": 0.9, "replay_rows": 64, "replay_steps": 3, "l1": 1e-3, "max_grad_norm": 1.0},
    ),
    "balanced": ("tabular", "binary", {}, {"sampling": {"method": "over"}, "replay_rows": 64}),
    "smote_neighbors": (
        "tabular",
        "multiclass",
        {},
        {"sampling": {"smote_neighbors": 3, "desired_dist": {"c": 2, "a": 1}}},
    ),
    "balanced logistic": ("linear", "binary", {}, {"sampling": {"method": "under"}}),
    "augmented": ("tabular", "multiclass", {"dropout": 0.1}, {"augment": True, "ema_decay": 0.5}),
    "augmented replay": (
        "tabular",
        "regression",
        {"target_transform": "standard"},
        {"augment": True, "replay_rows": 90, "replay_steps": 2},
    ),
    "augmented, balanced": (
        "tabular",
        "binary",
        {},
        {"augment": True, "sampling": {"sampling_rate": 2.0}},
    ),
    "augmented linear": ("linear", "regression", {}, {"augment": True}),
    "augmented logistic": ("linear", "binary", {}, {"augment": True}),
    "nested": ("tabular", "regression", {"conv_channels": [4, 6]}, {"ema_decay": 0.9}),
    "nested classes": ("tabular", "multiclass", {"sparse_embeddings": True, "dropout": 0.1}, {}),
    "nested balanced": ("tabular", "binary", {}, {"sampling": {"smote_neighbors": 2}}),
    "nested augmented": ("tabular", "binary", {}, {"augment": True, "ema_decay": 0.5}),
    "linear": ("linear", "regression", {}, {"l2": 0.01}),
    "logistic": ("linear", "binary", {}, {"l1": 0.001}),
    "challenged": (
        "tabular",
        "multiclass",
        {"dropout": 0.1},
        {"forget_on": "watch", "ema_decay": 0.9, "replay_rows": 90, "replay_steps": 1},
    ),
    "challenged, balanced": (
        "tabular",
        "binary",
        {},
        {"forget_on": "watch", "augment": True, "sampling": {"method": "over"}},
    ),
    "challenged linear": ("linear", "regression", {}, {"forget_on": "watch", "augment": True}),
    "raw logistic": ("linear", "binary", {"standardize": False}, {}),
    "module": ("module", "regression", {"module": "tests.models.nets:Mlp"}, {"loss": "mae"}),
    "module, dropout": (
        "module",
        "multiclass",
        {"module": "tests.models.nets:Mlp", "arguments": {"dropout": 0.3, "outputs": 3}},
        {"replay_rows": 90, "replay_steps": 1, "ema_decay": 0.9},
    ),
    "module, batch normalization": (
        "module",
        "binary",
        {"module": "tests.models.nets:Normed"},
        {"ema_decay": 0.9, "lr": 1e-2},
    ),
    "module, quantiles": (
        "module",
        "regression",
        {"module": "tests.models.nets:Mlp", "arguments": {"outputs": 3}},
        {"loss": "quantile", "quantiles": QUANTILES},
    ),
    "accumulated": (
        "module",
        "multiclass",
        {"module": "tests.models.nets:Mlp", "arguments": {"dropout": 0.3, "outputs": 3}},
        {"accumulate": 3, "replay_rows": 90, "replay_steps": 1, "ema_decay": 0.9},
    ),
    "module, recurrent": (
        "module",
        "regression",
        {"module": "tests.models.nets:Words"},
        {"replay_rows": 64, "replay_steps": 1, "lr_scale": {"table.*": 0.5}, "augment": True},
    ),
    "module, image": (
        "module",
        "binary",
        {"module": "tests.models.nets:Picture", "freeze": ["convolution.bias"]},
        {"replay_rows": 64, "replay_steps": 1, "augment": True},
    ),
    "module, array": (
        "module",
        "multiclass",
        {"module": "tests.models.nets:Past", "arguments": {"outputs": 3}},
        {"forget_on": "watch", "replay_rows": 64, "replay_steps": 1},
    ),
    "layers": (
        "module",
        "binary",
        {},
        {"sampling": {"smote_neighbors": 2}},
    ),
    "state": (
        "module",
        "regression",
        {"state": {"by": ["k"], "cell": "lstm", "width": 5, "keys": 8}},
        {"forget_on": "watch", "replay_rows": 64, "replay_steps": 1},
    ),
    "module, state": (
        "module",
        "binary",
        {"module": "tests.models.nets:Carrying", "arguments": {"dropout": 0.2}}
        | {"state": {"by": ["k"], "width": 6, "idle": 20}},
        {"ema_decay": 0.9, "augment": True},
    ),
    "trees": ("trees", "regression", {}, {}),
    "trees of classes": ("trees", "multiclass", {"num_leaves": 7}, {"feature_share": 0.5}),
    "trees of quantiles": (
        "trees",
        "regression",
        {},
        {"loss": "quantile", "quantiles": QUANTILES, "forget_on": "watch"},
    ),
    "trees, few": ("trees", "binary", {}, {"window_rows": 400}),
    "trees, balanced": ("trees", "binary", {}, {"sampling": {"method": "over"}}),
    "growing": (
        "tabular",
        "multiclass",
        {"skip_connection": True},
        {"ema_decay": 0.9, "replay_rows": 90, "replay_steps": 1},
    ),
    "prototypes": ("prototypes", "multiclass", {"neighbors": 3}, {}),
    "prototypes, cosine": ("prototypes", "binary", {"distance": "cosine"}, {}),
    "prototypes, embedded": (
        "prototypes",
        "multiclass",
        {"module": "tests.models.nets:Embedder", "temperature": 0.5, "neighbors": 2},
        {},
    ),
    "prototypes, nested": ("prototypes", "multiclass", {"standardize": False}, {}),
    "challenged trees": ("trees", "binary", {}, {"forget_on": "watch"}),
}
INPUTS = {
    "module, image": ("photo",),
    "layers": ("numeric", "categories", "words", "photo"),
    "state": ("numeric", "categories"),
    "prototypes": ("numeric", "categories"),
    "prototypes, cosine": ("numeric",),
    "prototypes, embedded": ("numeric", "words"),
    "prototypes, nested": ("photo", "past"),
}
"""Case of a learner of named inputs -> these; those that its forward asks for unless given."""


FEW = (
    "replay", "several targets", "quantiles", "vectors", "everything", "augmented, balanced",
    "augmented linear", "nested classes", "logistic", "challenged, balanced", "accumulated",
    "module, recurrent", "layers", "state", "trees of classes", "growing", "prototypes, embedded",
)  # fmt: skip
"""A case of each kind of learner, and of each option with a state."""


@pytest.fixture(scope="module", params=few(CASES, FEW))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def features(case: str, make_features: Callable[..., Features]) -> Features:
    kind, task, model, train = CASES[case]
    width = model.get("vector_width", 0)
    if case.startswith("growing"):
        return replace(make_features(task), max_classes=5, vector_width=width)
    if case == "several targets":
        return replace(make_features(task), target=None, targets=("y", "z"))
    if kind not in ("module", "prototypes"):
        made = make_features(task, nested=case.startswith("nested"))
        return replace(made, quantiles=train.get("quantiles", ()), vector_width=width)
    if kind == "prototypes":
        return make_features(task, inputs=INPUTS[case])
    settings = ModuleSettings(**model)
    asked, state = ModuleLearner.named_inputs(settings), ModuleLearner.named_state(settings, {})
    made = make_features(task, inputs=INPUTS.get(case, tuple(asked)), state=state)
    return replace(made, quantiles=train.get("quantiles", ()), vector_width=width)


@pytest.fixture(scope="module")
def batches(features: Features, make_batches: Callable[..., Batches]) -> Batches:
    """A stage detects drift in all of them, for those that a challenge begins with."""
    made = make_batches(features, 5, ROWS)
    return [replace(batch, counts={("watch", "ks"): 1}) for batch in made]


@pytest.fixture(scope="module")
def make(case: str, features: Features) -> Make:
    kind: Any = KINDS[CASES[case][0]]
    model, train = CASES[case][2:]
    if kind is TabularLearner:
        model = {"layers": [16, 8], **model}
    if kind not in (LinearLearner, TreesLearner, PrototypeLearner):
        train = {"replay_rows": 0, **train}  # ten times as fast
    if kind is TreesLearner:
        pytest.importorskip("lightgbm")
        model = {"num_trees": 10, **model}
    sampling = train.get("sampling")
    own = {key: value for key, value in train.items() if key not in ("sampling", "augment")}

    def made() -> Any:
        learner = kind(kind.Settings(**model), kind.Training(**own), features)
        if "augment" in train:
            numbers: list[Augment] = [
                Jitter("noise", Jitter.Settings(scale=0.05)),
                FeatureDropout("gaps", FeatureDropout.Settings(share=0.02)),
            ]
            more: list[Any] = [Crop] if features.images else [] if features.nested else [Mixup]
            more += [TokenDropout] if features.ragged or features.padded else []
            augments = numbers if features.numeric else []
            augments += [one(one.__name__, one.Settings()) for one in more]
            Augmentation(augments).attach(learner)
        learner = ResampledLearner(learner, SamplingSettings(**sampling)) if sampling else learner
        return ChampionChallenger(learner, "watch") if "forget_on" in train else learner

    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One learner over all batches.

    Attributes:
        learner: as it is at the end; predict with it, and no more.
        states: before each batch and at the end, as they were handed out.
        copies: the same, as they were then.
        predicted: the scores of each batch before it was learned.
        steps: what learning each batch said.
    """

    learner: Any
    states: list[Any]
    copies: list[Any]
    predicted: list[Any]
    steps: list[Any]


@pytest.fixture(scope="module")
def course(make: Make, batches: Batches) -> Course:
    torch.manual_seed(1)
    learner = make()
    states, predicted, steps = [learner.state_dict()], [], []
    copies = copy.deepcopy(states)
    for batch in batches:
        predicted.append(learner.predict(tensors_of(batch)))
        steps.append(learner.learn(batch))
        states.append(learner.state_dict())
        copies.append(copy.deepcopy(states[-1]))
    return Course(learner=learner, states=states, copies=copies, predicted=predicted, steps=steps)


def equal(a: Any, b: Any, at: str = "state") -> None:
    """To the bit."""
    assert type(a) is type(b), at
    if isinstance(a, dict):
        assert list(a) == list(b), at
        for key in a:
            equal(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), at
        for i, pair in enumerate(zip(a, b, strict=True)):
            equal(*pair, f"{at}[{i}]")
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), at
    else:
        assert a == b, at


def inside(learner: Any) -> tuple[Any, Any]:
    """The learner that is challenged, and the one whose rows are drawn; itself where neither is."""
    champion = learner.learner if isinstance(learner, ChampionChallenger) else learner
    return champion, champion.learner if isinstance(champion, ResampledLearner) else champion


def tensors_of(batch: Batch) -> Tensors:
    assert batch.tensors is not None
    return batch.tensors


@pytest.mark.parametrize(
    ("first", "last"), [(0, 2), (3, 5), (5, 5)], ids=["start", "middle", "end"]
)
def test_a_restored_learner_goes_on_to_the_bit(
    make: Make, batches: Batches, course: Course, first: int, last: int
) -> None:
    second = make()
    second.load_state_dict(course.states[first])
    for step, batch in zip(course.steps[first:last], batches[first:last], strict=True):
        again = second.learn(batch)
        assert again.scores.tobytes() == step.scores.tobytes()
        assert (again.loss, again.steps) == (step.loss, step.steps)
    equal(second.state_dict(), course.copies[last])


def test_a_state_is_never_changed_after_it_was_handed_out(
    make: Make, batches: Batches, course: Course
) -> None:
    equal(course.states, course.copies)  # nor by who handed it out
    second = make()
    second.load_state_dict(course.states[1])
    second.learn(batches[1])
    equal(course.states[1], course.copies[1])


def test_a_state_is_a_plain_value(course: Course) -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (bool, int, float, str, np.ndarray)

    for state in course.states:
        check(state)


def test_scores_are_what_it_predicted_before_it_learned(course: Course) -> None:
    for before, step in zip(course.predicted, course.steps, strict=True):
        assert step.scores.dtype == before.dtype == np.float64
        if isinstance(inside(course.learner)[0], ResampledLearner):
            np.testing.assert_allclose(step.scores, before, rtol=1e-6, atol=1e-6)
        else:  # step by step: the first row is predicted by what was there before the batch
            np.testing.assert_allclose(step.scores[0], before[0], rtol=1e-6, atol=1e-6)
        assert np.isfinite(step.loss)
        assert step.skipped is None
        assert step.steps >= 1


def test_scores_have_the_shape_of_the_task(
    make: Make, batches: Batches, features: Features
) -> None:
    scores = make().predict(tensors_of(batches[0]))
    assert scores.shape == ((ROWS,) if features.outputs == 1 else (ROWS, features.outputs))
    if features.task != "regression":
        assert ((scores >= 0) & (scores <= 1)).all()
    if features.task == "multiclass":
        np.testing.assert_allclose(scores.sum(axis=1), 1)
    if features.quantiles:
        assert (np.diff(scores) >= 0).all()


def test_predicting_changes_nothing(make: Make, batches: Batches) -> None:
    learner = make()
    learner.learn(batches[0])
    before = copy.deepcopy(learner.state_dict())
    first = learner.predict(tensors_of(batches[1]))
    assert learner.predict(tensors_of(batches[1])).tobytes() == first.tobytes()
    equal(learner.state_dict(), before)


def masked(batch: Batch, learned: Any) -> Batch:
    return replace(batch, tensors=replace(tensors_of(batch), learned=torch.from_numpy(learned)))


def rows_of(batch: Batch, rows: Any) -> Batch:
    return replace(batch, frame=batch.frame[rows], tensors=tensors_of(batch).take(rows))


def test_rows_that_are_only_scored_teach_nothing(make: Make, batches: Batches) -> None:
    """Nothing but the rest of its key: what carries a state sees every row."""
    learned = np.random.default_rng(4).random(ROWS) < 0.6
    learned[-3:] = False
    batch, nothing = batches[0], np.zeros(ROWS, np.bool_)
    some, alone = make(), make()
    assert some.scores_in_turn
    step = some.learn(masked(batch, learned))
    own = alone.learn(rows_of(batch, np.flatnonzero(learned)))
    assert (step.steps, step.not_learned) == (own.steps, None)
    if tensors_of(batch).keys is None:
        assert step.scores[learned].tobytes() == own.scores.tobytes()
        now = alone.predict(tensors_of(batch))
        turn = 0 if isinstance(inside(some)[0], ResampledLearner) else 3  # whose turn is the batch
        np.testing.assert_allclose(step.scores[ROWS - turn :], now[ROWS - turn :], rtol=1e-5)
        equal(some.state_dict(), alone.state_dict())
        step = some.learn(masked(batches[1], nothing))
        assert (step.steps, step.not_learned) == (0, None)
        assert np.isnan(step.loss)
        equal(some.state_dict(), alone.state_dict())


def test_rows_are_scored_at_their_place_however_they_are_cut(make: Make, batches: Batches) -> None:
    learned = np.random.default_rng(4).random(ROWS) < 0.6
    whole, cut = make(), make()
    if isinstance(inside(whole)[0], ResampledLearner):
        pytest.skip("it draws by the batch")
    if isinstance(inside(whole)[0], LinearLearner) and inside(whole)[0].augmentation:
        pytest.skip("it augments by the batch")
    for batch in batches[:2]:
        scores = whole.learn(masked(batch, learned)).scores
        parts = np.array_split(np.arange(ROWS), 5)
        pieces = [cut.learn(masked(rows_of(batch, rows), learned[rows])).scores for rows in parts]
        np.testing.assert_allclose(np.concatenate(pieces), scores, rtol=1e-4, atol=1e-6)


def test_global_chance_is_neither_used_nor_moved(
    make: Make, batches: Batches, course: Course
) -> None:
    torch.manual_seed(2)  # the course has another
    learner = make()
    for batch in batches[:2]:
        learner.learn(batch)
    after = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(torch.get_rng_state(), after)
    equal(learner.state_dict(), course.copies[2])


def test_an_empty_batch_is_legal(make: Make, batches: Batches, features: Features) -> None:
    learner = make()
    learner.learn(batches[0])
    before = copy.deepcopy(learner.state_dict())
    tensors = tensors_of(batches[1])
    assert tensors.target is not None
    nothing = tensors.take(np.empty(0, np.int64))
    step = learner.learn(replace(batches[1], frame=pl.DataFrame(), tensors=nothing))
    assert step.skipped == "empty"
    assert step.steps == 0
    assert np.isnan(step.loss)
    assert step.scores.shape == ((0,) if features.outputs == 1 else (0, features.outputs))
    assert learner.predict(nothing).shape == step.scores.shape
    equal(learner.state_dict(), before)


def test_a_state_of_another_model_is_refused(
    make: Make, batches: Batches, features: Features
) -> None:
    state = make().state_dict()
    other = copy.deepcopy(state)
    other["shape"]["[model] numeric"] = ["x0", "x9"]
    with pytest.raises(UserError, match=r"saved model has \[model\] numeric = \['x0', 'x9'\]"):
        make().load_state_dict(other)
    make().load_state_dict(state)


def test_onnx_says_what_predict_says(
    course: Course, batches: Batches, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    learner, rows = course.learner, tensors_of(batches[0])
    if features.state is not None:  # each row is the first of a key
        rows = replace(rows, keys=1000 + torch.arange(len(rows)))
    expected = learner.predict(rows)
    got = run(build(learner, features), rows)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * scale)


def test_it_learns(
    case: str, make: Make, features: Features, make_batches: Callable[..., Batches]
) -> None:
    slow = case in ("poisson", "sparse", "prototypes, cosine")
    learner, count = make(), 20 if slow else 10
    counts = {("watch", "ks"): 0}
    stream = [replace(batch, counts=counts) for batch in make_batches(features, count, 64)]
    steps = [learner.learn(batch) for batch in stream]
    losses = [step.loss for step in steps]
    if features.vector_width:  # the loss is of choosing among the rows of a step, and these grow
        losses = [log_loss(batch, step.scores) for batch, step in zip(stream, steps, strict=True)]
    assert np.mean(losses[-count // 2 :]) < 0.95 * np.mean(losses[:2])


def log_loss(batch: Batch, scores: Any) -> float:
    target = tensors_of(batch).target
    assert target is not None
    both = scores if scores.ndim == 2 else np.stack([1 - scores, scores], 1)
    return float(-np.log(both[np.arange(len(both)), target.numpy()]).mean())


def test_it_says_how_large_it_is(course: Course) -> None:
    learner = course.learner
    memory = learner.memory()
    assert set(memory) - {"sampling", "states"} == {"weights", "optimizer", "replay"}
    assert learner.nbytes == sum(memory.values())
    assert memory["weights"] % (4 * learner.parameters_count) == 0
    if getattr(inside(learner)[1].training, "replay_rows", 0):
        assert memory["replay"] > 0
    assert isinstance(learner, Learner)


def build(learner: Any, features: Features) -> onnx.ModelProto:
    graph = Graph()
    numeric = graph.input("numeric", TensorProto.FLOAT, ["n", len(features.numeric)])
    categories = graph.input("categories", TensorProto.INT64, ["n", len(features.categories)])
    graph.columns = {name: column(graph, name, features) for name in features.nested}
    scores = learner.build(graph, numeric, categories)
    shape: list[int | str] = ["n"] if features.outputs == 1 else ["n", features.outputs]
    return graph.model({"scores": (scores, TensorProto.FLOAT, shape)}, {})


def column(graph: Graph, name: str, features: Features) -> GraphColumn:
    """An image, a list or an array as an input of its own."""
    if name in features.images:
        shape: list[int | str] = ["n", *features.images[name]]
        values = graph.input(name, TensorProto.UINT8, shape)
        return GraphColumn(values=values, mask="", dtype="uint8")
    mask = graph.input(f"{name}_mask", TensorProto.BOOL, ["n", f"{name}_length"])
    if name in features.arrays:
        shape = ["n", f"{name}_length", features.arrays[name][1]]
        values = graph.input(name, TensorProto.FLOAT, shape)
        return GraphColumn(values=values, mask=mask, dtype="float32")
    values = graph.input(name, TensorProto.INT64, ["n", f"{name}_length"])
    return GraphColumn(values=values, mask=mask, dtype="int64")


def padded(tensors: Tensors) -> dict[str, Padded]:
    """All lists and arrays, padded."""
    lists = {
        name: [rows.values[a:b] for a, b in itertools.pairwise(rows.offsets.tolist())]
        for name, rows in tensors.ragged.items()
    }
    for name, counts in tensors.sparse.items():
        ids = counts.indices.repeat_interleave(counts.weights.long())
        ends = torch.cat([torch.zeros(1), counts.weights.cumsum(0)])[counts.offsets].long()
        lists[name] = [ids[a:b] for a, b in itertools.pairwise(ends.tolist())]
    made = {
        name: Padded(
            values=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            mask=torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows]),
        )
        for name, rows in lists.items()
    }
    return {**made, **tensors.padded, **tensors.arrays}


def run(model: onnx.ModelProto, tensors: Tensors) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = {"numeric": tensors.numeric.numpy(), "categories": tensors.categories.numpy()}
    inputs |= {name: image.numpy() for name, image in tensors.images.items()}
    for name, rows in padded(tensors).items():
        inputs |= {name: rows.values.numpy(), f"{name}_mask": rows.mask.numpy()}
    for value in session.get_inputs():
        if value.name == STATE_BEFORE:
            inputs[STATE_BEFORE] = np.zeros((len(tensors), value.shape[1]), np.float32)
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in inputs.items() if name in wanted})[0]
