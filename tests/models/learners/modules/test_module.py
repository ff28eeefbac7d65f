"""Modules of the user's: what is learned of them, and a sentence for each that cannot be."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from engine.config import validate
from engine.types import Batch, Features, Padded, Tensors, UserError
from models.learners.modules.flat import Behaviour, FlatModule
from models.learners.modules.learner import ModuleLearner, ModuleSettings, ModuleTraining
from models.learners.online.optimizer import Optimizer, OptimizerSettings
from models.learners.online.replay.parts import packed, parts_of, unpacked
from models.net_input import NetInput, net_inputs, tensors_of
from models.seeded import seeded
from tests.models import nets

Make = Callable[..., Features]
Batches = Callable[..., list[Batch]]
NETS = "tests.models.nets"


def learner(features: Features, module: Any, **keys: Any) -> ModuleLearner:
    """Keys go to [model] or [train] by their name."""
    own = ModuleSettings.model_fields
    model = {key: value for key, value in keys.items() if key in own}
    train = {key: value for key, value in keys.items() if key not in own}
    settings = validate(ModuleSettings, {"module": module, **model}, "model", "p.toml")
    training = validate(ModuleTraining, {"replay_rows": 0, **train}, "train", "p.toml")
    return ModuleLearner(settings, training, features)


def numbers(make_features: Make, task: str = "regression") -> Features:
    return make_features(task, inputs=("numeric",))


def flat(module: nn.Module, names: tuple[str, ...] = ("numeric",), **keys: Any) -> FlatModule:
    inputs = [NetInput(name=name, form="numbers", columns=("x0", "x1", "x2")) for name in names]
    return FlatModule(module, inputs, behaviour=Behaviour(), **keys)


def rows_of(numeric: torch.Tensor) -> Tensors:
    return Tensors(numeric=numeric, categories=torch.empty((len(numeric), 0), dtype=torch.int64))


# ------------------------------------------------------------------------------------ what learns


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.b.weight = self.a.weight

    def forward(self, numeric: torch.Tensor) -> Any:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(numeric)))))


@pytest.mark.parametrize("shares", [{}, {"a.weight": 0.1, "out.bias": 3.0}])
def test_steps_are_those_of_torch(shares: dict[str, float]) -> None:
    torch.manual_seed(3)
    module = Tied()
    plain = copy.deepcopy(module)
    network = flat(module, lr_scales=shares)
    own = Optimizer(OptimizerSettings(lr=0.05), network)
    groups = [
        {"params": [parameter], "lr": 0.05 * shares.get(name, 1.0)}
        for name, parameter in plain.named_parameters()
    ]
    optimizer = torch.optim.Adam(groups)
    for seed in range(5):
        numeric = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
        target = numeric.sum(1)
        own.step([F.mse_loss(network.train(rows_of(numeric), numeric), target)])
        optimizer.zero_grad()
        F.mse_loss(plain(numeric).squeeze(1), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert module.b.weight is module.a.weight
    assert network.count == sum(p.numel() for p in plain.parameters()) == network.flat.numel()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(module.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_rest_with_their_running_means(
    make_features: Make, make_batches: Batches
) -> None:
    features = numbers(make_features, "binary")
    made = learner(features, f"{NETS}:Normed", freeze=["body.*"])
    before = made.state_dict()["weights"]
    for batch in make_batches(features, 3):
        made.learn(batch)
    after = made.state_dict()["weights"]
    moved = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_step_that_fails_leaves_the_running_means(
    make_features: Make, make_batches: Batches
) -> None:
    features = numbers(make_features)
    made = learner(features, f"{NETS}:Normed")
    (batch,) = make_batches(features, 1, 8)
    before = made.state_dict()["weights"]
    made._stepper._loss.loss = lambda raw, target: (raw * torch.nan).sum()
    step = made.learn(batch)
    assert step.not_learned is not None
    assert step.not_learned.all()
    for name, array in made.state_dict()["weights"].items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_the_parts_of_a_step_fail_together(make_features: Make, make_batches: Batches) -> None:
    made = learner(numbers(make_features), f"{NETS}:Normed")
    network, (batch,) = made._scorer.network, make_batches(numbers(make_features), 1, 16)
    before = network.weights()
    assert batch.tensors is not None
    for part in (batch.tensors.slice(0, 8), batch.tensors.slice(8, 16)):
        network.train(part, part.numeric)
    assert not np.array_equal(
        network.weights()["body.1.running_mean"], before["body.1.running_mean"]
    )
    network.undo()
    for name, array in network.weights().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_rows_that_depend_on_each_other_come_by_eight(
    make_features: Make, make_batches: Batches
) -> None:
    features = numbers(make_features)
    (batch,) = make_batches(features, 1, 40)
    assert learner(features, f"{NETS}:Normed").learn(batch).steps == 5
    assert learner(features, f"{NETS}:Sized", arguments={"hidden": 2}).learn(batch).steps == 40


@pytest.mark.parametrize("net", ["Words", "Past"])
def test_weights_do_not_depend_on_batches(
    net: str, make_features: Make, make_batches: Batches
) -> None:
    """Nor on how far the lists of a batch are padded."""
    asked = ModuleLearner.named_inputs(ModuleSettings(module=f"{NETS}:{net}"))
    features = make_features(inputs=tuple(asked))
    (whole,) = make_batches(features, 1, 90)
    ends = []
    for size in (90, 7):
        made = learner(features, f"{NETS}:{net}", replay_rows=30, replay_steps=1)
        assert whole.tensors is not None
        for at in range(0, 90, size):
            part = whole.tensors.slice(at, min(at + size, 90))
            made.learn(replace(whole, tensors=trimmed(part)))
        ends.append(made.state_dict()["weights"])
    for name, array in ends[0].items():
        assert array.tobytes() == ends[1][name].tobytes(), name


def trimmed(rows: Tensors) -> Tensors:
    """With lists no longer than the longest needs, as a loader leaves them."""
    longest = {name: max(1, int(p.mask.sum(1).max())) for name, p in rows.padded.items()}
    padded = {
        name: Padded(values=p.values[:, : longest[name]], mask=p.mask[:, : longest[name]])
        for name, p in rows.padded.items()
    }
    return replace(rows, padded=padded)


def test_arrays_are_scaled_and_padding_stays_0(make_features: Make) -> None:
    features = make_features(inputs=("numeric", "past"))
    made = learner(features, f"{NETS}:Past")
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.random((64, 5)) < 0.7)
    values = torch.from_numpy(rng.normal((100, -3), (5, 0.1), (64, 5, 2)).astype(np.float32))
    rows = Tensors(
        numeric=torch.zeros(64, 4),
        categories=torch.empty((64, 0), dtype=torch.int64),
        target=torch.zeros(64),
        arrays={"past": Padded(values=values * mask.unsqueeze(-1), mask=mask)},
    )
    made._scorer.learn_scales(rows, made._scorer.target_scale)
    scaled = made._scorer._with_scaled_arrays(rows).arrays["past"]
    there = scaled.values[mask]
    torch.testing.assert_close(there.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(there.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert (scaled.values[~mask] == 0).all()


def test_an_instance_is_copied(make_features: Make, make_batches: Batches) -> None:
    torch.manual_seed(0)
    features, mine = numbers(make_features), nets.Sized(3)
    before = copy.deepcopy(mine.state_dict())
    made = learner(features, mine)
    made.learn(make_batches(features, 1)[0])
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert not torch.equal(made.module.state_dict()[name], tensor)


def test_first_weights_go_by_the_seed(make_features: Make) -> None:
    features = numbers(make_features)
    one, same, other = (
        learner(features, f"{NETS}:Sized", arguments={"hidden": 3}, seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert one["weights"]["head.weight"].tobytes() == same["weights"]["head.weight"].tobytes()
    assert one["weights"]["head.weight"].tobytes() != other["weights"]["head.weight"].tobytes()


# ------------------------------------------------------------------------------- what cannot learn


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            "wide",
            r"returns scores of shape \(2, 5\) for numeric \(2, 4\) float32, expected a float",
        ),
        ("squeezed", r"returns scores of shape \(\) for numeric \(1, 4\) float32, expected"),
        ("not_a_number", "returns NaN or infinity for finite inputs"),
        ("whole", "returns numbers of type int64 from its forward, expected a float tensor"),
        ("a_pair", "returns a tuple from its forward, expected a float tensor of shape"),
        ("detached", "returns scores without a gradient, so nothing can be learned"),
        ("always_random", "draws random numbers in evaluation mode too"),
        ("python_random", "draws Python's or numpy's global random numbers"),
        ("stateful", "gives another answer to the same rows the second time, in evaluation mode"),
        ("steep", "has a gradient of NaN or infinity in 'linear.weight'"),
        (
            "raises",
            r"raises RuntimeError: mat1 and mat2 .* multiplied \(nets.py:\d+\), in evaluation",
        ),
        ("InPlace", r"changes its input .numeric. in place, .* numeric.clone\(\)"),
        ("Double", "parameter 'linear.weight' of type float64, expected float32"),
        ("Empty", "has no parameters, so there is nothing to learn"),
        ("Unused", "lazy parameter 'lazy.weight' that its forward never uses"),
        ("Positional", r"the parameter '\*tensors: .*', which cannot be given by name"),
        ("Silent", "has no forward: write one"),
        ("Sized", "takes hidden, and .* arguments do not fit: missing .* 'hidden'"),
        ("no_module", "makes a int: expected a class that inherits torch.nn.Module"),
        ("A_NUMBER", "is a int: expected a class that inherits torch.nn.Module"),
        ("Missing", r"cannot be imported: AttributeError: module .* has no attribute 'Missing'"),
    ],
)
def test_a_module_that_cannot_learn_is_told_so(module: str, said: str, make_features: Make) -> None:
    with pytest.raises(UserError, match=said) as caught:
        learner(numbers(make_features), f"{NETS}:{module}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("OneLength", r"lists of 8 work: .* \[model\] buckets = \[8\]"),
        ("Narrow", r"raises IndexError: index out of range .* words \(2, 8\) int64"),
    ],
)
def test_lists_that_a_module_cannot_take(module: str, said: str, make_features: Make) -> None:
    features = make_features(inputs=("words",))
    with pytest.raises(UserError, match=said):
        learner(features, f"{NETS}:{module}")
    if module == "OneLength":
        learner(replace(features, buckets=(8,)), f"{NETS}:{module}")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("Empties", "returns NaN or infinity for a row whose words is empty"),
        (
            "Careless",
            "other scores to a row whose lists are padded further.* let forward take words_mask",
        ),
        ("Words", None),
    ],
)
def test_lists_that_a_module_takes_badly_are_told_of(
    module: str, said: str | None, make_features: Make, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = ("words", "numeric") if module == "Words" else ("words",)
    learner(make_features(inputs=inputs), f"{NETS}:{module}")
    assert re.search(said, caplog.text) if said else not caplog.text


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (("numeric", "photo"), "takes no 'photo', and .* it takes numeric"),
        (("photo",), "takes no 'photo'"),
    ],
)
def test_inputs_that_do_not_fit_the_forward(
    inputs: tuple[str, ...], said: str, make_features: Make
) -> None:
    with pytest.raises(UserError, match=said):
        learner(make_features(inputs=inputs), f"{NETS}:Normed")


def test_a_forward_that_asks_for_more_is_told_so(make_features: Make) -> None:
    with pytest.raises(UserError, match="forward that asks for 'categories'"):
        learner(numbers(make_features), f"{NETS}:Mlp")


def test_arguments_that_are_unknown(make_features: Make) -> None:
    with pytest.raises(UserError, match="Did you mean 'hidden'"):
        learner(numbers(make_features), f"{NETS}:Sized", arguments={"hiden": 3})
    with pytest.raises(UserError, match="cannot be made with hidden = 'x': TypeError"):
        learner(numbers(make_features), f"{NETS}:Sized", arguments={"hidden": "x"})


def test_settings_that_do_not_go_together(make_features: Make) -> None:
    with pytest.raises(UserError, match=r"no layers beside module.*\[model.head\]"):
        learner(numbers(make_features), f"{NETS}:Normed", head={"layers": []})
    with pytest.raises(UserError, match="module beside arguments"):
        learner(numbers(make_features), None, arguments={"hidden": 3})
    with pytest.raises(UserError, match=r"a number above 0 for lr_scale of 'body\.\*'"):
        learner(numbers(make_features), f"{NETS}:Normed", lr_scale={"body.*": 0})


def test_the_trial_leaves_no_trace(make_features: Make) -> None:
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    made = learner(numbers(make_features), f"{NETS}:Normed")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    weights = made.state_dict()["weights"]
    assert (weights["body.1.running_mean"] == 0).all()
    assert weights["body.1.num_batches_tracked"] == 0


# ----------------------------------------------------------------------------------------- weights


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    with seeded(9):
        return {name: tensor.clone() for name, tensor in nets.Sized(3).state_dict().items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_from_a_file(
    suffix: str,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    make_features: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    del weights["head.bias"]
    weights["tail.bias"] = torch.zeros(2)
    path = tmp_path / f"first{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    made = learner(
        numbers(make_features), f"{NETS}:Sized", arguments={"hidden": 3}, weights=str(path)
    )
    for name in ("linear.weight", "linear.bias", "head.weight"):
        assert torch.equal(made.module.state_dict()[name], weights[name])
    assert "lacks 'head.bias': these start at random" in caplog.text
    assert "also holds 'tail.bias', which the module has not" in caplog.text


def test_weights_that_do_not_fit(
    weights: dict[str, torch.Tensor], tmp_path: Path, make_features: Make
) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_text("no weights")
    torch.save({"linear.weight": Tied}, tmp_path / "d.pt")
    torch.save([1, 2], tmp_path / "e.pt")
    for name, hidden, said in [
        (
            "a.safetensors",
            4,
            r"holds 'head.weight' of shape \(1, 3\), and the module's has \(1, 4\)",
        ),
        ("b.safetensors", 3, "holds none of the module's weights: it has 'other', and"),
        ("c.safetensors", 3, "cannot be read"),
        ("d.pt", 3, "cannot be read"),  # a class needs pickle to run code
        ("e.pt", 3, "holds a list and no state dict"),
        ("none.pt", 3, "is no file"),
    ]:
        with pytest.raises(UserError, match=said):
            learner(
                numbers(make_features),
                f"{NETS}:Sized",
                arguments={"hidden": hidden},
                weights=str(tmp_path / name),
            )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"freeze": ["bdy.*"]}, r"\[model\] freeze has the pattern 'bdy.\*', and no parameter"),
        ({"freeze": ["*"]}, "all of them frozen, so there is nothing to learn"),
        ({"lr_scale": {"tail.*": 2}}, r"\[train\] lr_scale has the pattern 'tail.\*'"),
        ({"lora": {"*.bias": 2}}, r"\[model\] lora has the pattern '\*.bias'"),
    ],
)
def test_patterns_that_match_nothing_or_all(
    keys: dict[str, Any], said: str, make_features: Make
) -> None:
    with pytest.raises(UserError, match=said):
        learner(numbers(make_features), f"{NETS}:Normed", **keys)


def test_adapters_learn_beside_weights_that_rest(
    make_features: Make, make_batches: Batches
) -> None:
    features = numbers(make_features)
    keys: dict[str, Any] = {"arguments": {"hidden": 6}, "freeze": ["*"]}
    made = learner(features, f"{NETS}:Sized", lora={"linear.*": 2}, **keys)
    plain = learner(features, f"{NETS}:Sized", arguments={"hidden": 6})
    batches = make_batches(features, 3)
    rows = batches[0].tensors
    assert rows is not None
    np.testing.assert_array_equal(made.predict(rows), plain.predict(rows))
    before = made.state_dict()["weights"]
    for batch in batches:
        made.learn(batch)
    after = made.state_dict()["weights"]
    moved = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    part = "linear.parametrizations.weight.0"
    assert moved == {f"{part}.up", f"{part}.down"}
    assert after[f"{part}.up"].shape == (6, 2)
    again = learner(features, f"{NETS}:Sized", lora={"linear.*": 2}, **keys)
    again.load_state_dict(made.state_dict())
    assert again.learn(batches[0]).loss == made.learn(batches[0]).loss


# ------------------------------------------------------------------------------------------ replay


def test_rows_of_every_kind_are_kept_as_they_are(
    make_features: Make, make_batches: Batches
) -> None:
    inputs = ("numeric", "categories", "photo", "words", "past")
    features = make_features(inputs=inputs)
    (batch,) = make_batches(features, 1, 20)
    rows = batch.tensors
    assert rows is not None
    assert rows.target is not None
    parts = list(packed(rows, features))
    stored = [
        part.to(own.dtype).reshape(20, *own.shape)
        for part, own in zip(parts, parts_of(features), strict=True)
    ]
    again = unpacked(rows.numeric, rows.categories, rows.target, stored, features)
    one, other = (tensors_of(each, net_inputs(features)) for each in (rows, again))
    assert one.keys() == other.keys() == {*inputs, "words_mask", "past_mask"}
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_images_ids_and_arrays_are_learned_again(
    make_features: Make, make_batches: Batches
) -> None:
    features = make_features("binary", inputs=("photo",))
    batches = make_batches(features, 4, 32)
    losses = []
    for kept in (0, 128):
        made = learner(features, f"{NETS}:Picture", replay_rows=kept, lr=1e-2)
        losses.append([made.learn(batch).loss for batch in batches][-1])
    assert losses[1] < losses[0]
    assert made.replay_bytes == 128 * (9 * 8 * 3 + 8)


# ----------------------------------------------------------------------------------------- inputs


def test_inputs_share_and_pick_columns() -> None:
    features = Features(
        numeric=("b", "a", "c"),
        categories={"k": 3},
        inputs={"x": ("b", "a"), "y": ("c",), "z": ("k",), "all": ("a", "b", "c")},
    )
    rows = Tensors(numeric=torch.tensor([[1.0, 2.0, 3.0]]), categories=torch.tensor([[2]]))
    inputs = net_inputs(features)
    assert [each.form for each in inputs] == ["numbers", "numbers", "codes", "numbers"]
    tensors = tensors_of(rows, inputs)
    # All numbers are in the order in which the inputs name them: b, a, c.
    assert tensors["x"].tolist() == [[1.0, 2.0]]
    assert tensors["y"].tolist() == [[3.0]]
    assert tensors["z"].tolist() == [[2]]
    assert tensors["all"].tolist() == [[2.0, 1.0, 3.0]]


def test_a_batch_of_none_has_no_scores(make_features: Make) -> None:
    features = make_features("multiclass", inputs=("words", "numeric"))
    made = learner(features, f"{NETS}:Words", arguments={"outputs": 3})
    rows = Tensors(
        numeric=torch.empty((0, 4)),
        categories=torch.empty((0, 0), dtype=torch.int64),
        padded={
            "words": Padded(values=torch.empty((0, 1)).long(), mask=torch.empty((0, 1)).bool())
        },
    )
    assert made.predict(rows).shape == (0, 3)


def test_a_state_of_another_module_is_refused(make_features: Make) -> None:
    features = numbers(make_features)
    small, large = (
        learner(features, f"{NETS}:Sized", arguments={"hidden": hidden}) for hidden in (2, 3)
    )
    with pytest.raises(UserError, match=r"has 'linear.weight' of shape \(2, 4\), and this"):
        large.load_state_dict(small.state_dict())
