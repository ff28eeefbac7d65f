"""A network inside a model file that torch runs: it scores as the learner did, and no other code of
the file is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engine.types import Batch, Features, UserError
from models.challenge.challenger import ChampionChallenger
from models.export.model import make
from models.learners.modules.learner import ModuleLearner, ModuleSettings, ModuleTraining
from models.learners.modules.served import network_of
from models.learners.sampling import ResampledLearner, SamplingSettings

Make = Callable[..., Features]
Batches = Callable[..., list[Batch]]
NETS = "tests.models.nets"
QUANTILES: dict[str, Any] = {"loss": "quantile", "quantiles": (0.5, 0.9)}


def learned(features: Features, batches: list[Batch], module: str, **keys: Any) -> ModuleLearner:
    known = ModuleTraining.model_fields
    train = {key: value for key, value in keys.items() if key in known}
    model = {key: value for key, value in keys.items() if key not in known}
    learner = ModuleLearner(
        ModuleSettings(module=f"{NETS}:{module}", **model),
        ModuleTraining(**{"replay_rows": 0, **train}),
        features,
    )
    for batch in batches:
        learner.learn(batch)
    return learner


@pytest.mark.parametrize(
    ("task", "module", "keys"),
    [
        ("multiclass", "Mlp", {"arguments": {"outputs": 3, "dropout": 0.3}, "ema_decay": 0.9}),
        ("binary", "Normed", {"precision": "bfloat16", "loss": "focal"}),
        ("regression", "Words", {"loss": "poisson", "lora": {"head.*": 1}}),
        ("regression", "Past", {"target_transform": "log1p"}),
        ("growing", "Mlp", {"arguments": {"outputs": 5}}),
        ("several", "Mlp", {"arguments": {"outputs": 2}, "loss": "mae"}),
        ("quantiles", "Mlp", {"arguments": {"outputs": 2}} | QUANTILES),
    ],
)
def test_it_scores_as_the_learner_did(
    task: str,
    module: str,
    keys: dict[str, Any],
    make_features: Make,
    make_batches: Batches,
) -> None:
    reads = {"Mlp": ("numeric", "categories"), "Normed": ("numeric",)}
    inputs = reads.get(module, ("numeric", "words" if module == "Words" else "past"))
    known = {"growing": "multiclass", "several": "regression", "quantiles": "regression"}
    features = make_features(known.get(task, task), inputs=inputs)
    if task == "growing":
        features = replace(features, max_classes=5)
    if task == "several":
        features = replace(features, target=None, targets=("y", "z"))
    if task == "quantiles":
        features = replace(features, quantiles=QUANTILES["quantiles"])
    batches = make_batches(features, 3)
    learner = learned(features, batches, module, **keys)
    body = learner.torch_body()
    assert body is not None
    served = network_of(f"{NETS}:{module}", json.loads(json.dumps(body)))
    rows = batches[0].tensors
    assert rows is not None
    tolerance = 0.05 if "precision" in keys else 0.0
    assert served.predict(rows) == pytest.approx(
        learner.predict(rows), rel=tolerance, abs=tolerance
    )


def test_the_version_follows_the_weights(make_features: Make, make_batches: Batches) -> None:
    """They are no part of the graph, which is what stands before the network."""
    features = make_features("regression", inputs=("numeric",))
    learner, versions = learned(features, [], "Branching"), []
    for batch in make_batches(features, 2):
        learner.learn(batch)
        known = {prop.key: prop.value for prop in make(learner, [], {}).metadata_props}
        assert known["body"] == "torch"
        versions.append(known["version"])
    assert versions[0] != versions[1]


def test_no_other_code_of_the_file_is_run(make_features: Make, make_batches: Batches) -> None:
    features = make_features("regression", inputs=("numeric",))
    learner = learned(features, make_batches(features, 1), "Normed")
    body = dict(learner.torch_body() or {})
    with pytest.raises(UserError, match="module is 'mine:Net', and the network of the model file"):
        network_of("mine:Net", body)
    evil = "tests.models.learners.modules.test_served:caught"
    own = {**json.loads(body["settings"]), "module": evil, "weights": "no/such/file"}
    tampered = body | {"settings": json.dumps(own), "training": json.dumps({"loss": evil})}
    network_of(f"{NETS}:Normed", tampered)
    assert CAUGHT == []


CAUGHT: list[Any] = []


def caught(*given: Any, **named: Any) -> Any:
    CAUGHT.append((given, named))
    raise AssertionError("the file's code was run")


def test_what_no_file_can_hold(make_features: Make, make_batches: Batches) -> None:
    """Corrected probabilities are more than the network's; an object has no import string."""
    features = make_features("binary", inputs=("numeric",))
    learner = learned(features, make_batches(features, 1), "Normed")
    assert ResampledLearner(learner, SamplingSettings()).torch_body() is None
    assert ChampionChallenger(learner).torch_body() is not None
    own = ModuleLearner(
        ModuleSettings(module=learner.module), ModuleTraining(replay_rows=0), features
    )
    assert own.torch_body() is None
