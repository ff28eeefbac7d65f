"""A state per key: each row is scored with what the rows of its key have left, and learned so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from engine.types import Batch, Features, KeyedState, Mark, Schema, Tensors, UserError
from models.learners.modules.learner import ModuleLearner
from models.learners.online.carried import CarriedStates
from models.learners.online.steps.keyed_rows import MOST_PASSED

DENSE = {"head": {"layers": [{"kind": "dense", "width": 8, "dropout": 0.3}]}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: ([model], [train])
    "plain": ({}, {"replay_rows": 0}),
    "replay": ({}, {"replay_rows": 90, "replay_steps": 1}),
    "dropout, average": (DENSE, {"replay_rows": 0, "ema_decay": 0.9}),
}


def make(
    model: Any = None, train: Any = None, schema: Schema | None = None, **state: Any
) -> ModuleLearner:
    state = {"by": ["k"], "width": 6, **state}
    settings = ModuleLearner.Settings(state=state, **(model or {}))
    features = Features(
        numeric=("a", "b"),
        inputs={"numeric": ("a", "b")},
        target="y",
        state=ModuleLearner.named_state(settings, schema or {}),
    )
    return ModuleLearner(settings, ModuleLearner.Training(**(train or {})), features)


def rows(n: int, keys: int = 12, learned: float = 1.0, seed: int = 0) -> Tensors:
    """The target is a sum over the rows of a key, which fades."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(n, 2)).astype(np.float32)
    key = rng.integers(0, keys, n)
    sums, target = np.zeros(keys), np.empty(n, np.float32)
    for i in range(n):
        sums[key[i]] = 0.8 * sums[key[i]] + numeric[i, 0]
        target[i] = sums[key[i]]
    return Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.empty((n, 0), dtype=torch.int64),
        target=torch.from_numpy(target),
        keys=torch.from_numpy(key),
        learned=torch.from_numpy(rng.random(n) < learned),
    )


def batches(tensors: Tensors, cuts: Sequence[int] = ()) -> Iterator[Batch]:
    for start, stop in pairwise([0, *cuts, len(tensors)]):
        part = tensors.slice(start, stop)
        frame = pl.DataFrame({"i": np.arange(start, stop)})
        yield Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=part)


def learned(learner: ModuleLearner, tensors: Tensors, cuts: Sequence[int] = ()) -> Any:
    return np.concatenate([learner.learn(batch).scores for batch in batches(tensors, cuts)])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_it_is_a_recurrent_net_over_all_rows_of_a_key(cell: str) -> None:
    learner = make({"standardize": False, "target_transform": "none"}, cell=cell)
    network: Any = learner.module
    whole = (nn.GRU if cell == "gru" else nn.LSTM)(2, 6, batch_first=True)
    for name, weights in network.memory.cell.named_parameters():
        getattr(whole, f"{name}_l0").data.copy_(weights.data)
    tensors = rows(200, keys=7)
    assert tensors.keys is not None
    got = learner.predict(tensors)
    with torch.no_grad():
        for key in range(7):
            at = torch.nonzero(tensors.keys == key).squeeze(1)
            x = tensors.numeric[at]
            outputs = whole(x.unsqueeze(0))[0].squeeze(0)
            expected = network._scored(torch.cat([x, outputs], 1)).double().numpy()
            np.testing.assert_allclose(got[at], expected, rtol=0, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_weights_depend_on_the_rows_and_not_on_batches(case: str) -> None:
    """Keys are forgotten and expire meanwhile, and some rows are not learned."""
    model, train = CASES[case]
    tensors, weights, scores = rows(180, learned=0.8), [], []
    for cuts in ([], [3, 4, 50, 131], list(range(1, 180, 9))):
        learner = make(model, train, keys=9, idle=20)
        scores.append(learned(learner, tensors, cuts))
        weights.append(learner.state_dict()["weights"])
    for other in weights[1:]:
        assert all(np.array_equal(weights[0][name], other[name]) for name in other)
    for each in scores[1:]:
        np.testing.assert_allclose(each, scores[0], rtol=0, atol=1e-5)


def test_a_row_that_is_not_learned_passes_in_its_turn() -> None:
    tensors = rows(120, learned=0.5)
    assert tensors.learned is not None
    learner = make(train={"replay_rows": 0})
    (batch,) = batches(tensors)
    step = learner.learn(batch)
    assert step.not_learned is None
    assert learner.state_dict()["rows"] == int(tensors.learned.sum())
    # What comes next finds what all rows have left, each with the weights of its turn.
    follow, frozen = rows(30, seed=1), make(train={"lr": 1e-30, "replay_rows": 0})
    learned(frozen, tensors)
    whole = frozen.predict(Tensors(
        numeric=torch.cat([tensors.numeric, follow.numeric]),
        categories=torch.empty((150, 0), dtype=torch.int64),
        keys=1000 + torch.cat([tensors.keys, follow.keys]),  # type: ignore[list-item]
    ))  # fmt: skip
    np.testing.assert_allclose(frozen.predict(follow), whole[120:], rtol=0.2, atol=0.2)


def test_rows_of_which_none_is_learned_do_not_pile_up() -> None:
    learner = make(train={"replay_rows": 0})
    tensors = rows(MOST_PASSED + 50, learned=0.0)
    learned(learner, tensors, [1_000, 2_000])
    state = learner.state_dict()
    assert len(state["carried"]["waiting"]["slots"]) == 50
    assert state["rows"] == state["steps"] == 0
    assert learner.memory()["replay"] < 5_000


def test_what_leaves_the_table_is_counted() -> None:
    train = {"replay_rows": 0}
    steps = [make(train=train, keys=4).learn(next(batches(rows(100, keys=12))))]
    steps.append(make(train=train, idle=3).learn(next(batches(rows(100, keys=12)))))
    assert [set(step.counts) for step in steps] == [{"forgotten"}, {"expired"}]
    assert all(count > 20 for step in steps for count in step.counts.values())


def test_states_expire_by_time_as_if_the_key_were_another_one() -> None:
    """Scores, however rows are cut, are those of rows whose key is new after each long pause."""
    tensors = rows(120, keys=4)
    assert tensors.keys is not None
    hours = torch.arange(120) // 10  # ten rows at a time, then a pause of an hour
    times = hours * 1_000 + torch.arange(120) % 10
    timed = dataclasses.replace(tensors, times=times)
    others = dataclasses.replace(tensors, keys=tensors.keys + 100 * hours)
    train = {"replay_rows": 0}
    plain = learned(make(train=train), others)
    for cuts in ([], [3, 47, 100]):
        learner = make(train=train, schema={"at": pl.Int64()}, idle=500, time="at")
        np.testing.assert_allclose(learned(learner, timed, cuts), plain, rtol=0, atol=1e-5)
    before = make(train=train, schema={"at": pl.Int64()}, idle=500, time="at").predict(timed)
    np.testing.assert_allclose(before, make(train=train).predict(others), rtol=0, atol=1e-6)


def test_a_row_that_cannot_be_learned_does_not_spoil_its_key() -> None:
    tensors = rows(100, keys=2)
    tensors.numeric[50] = 3e38
    train = {"replay_rows": 0}
    step = make(train=train).learn(next(batches(tensors)))
    assert step.not_learned is None or step.not_learned.sum() <= 1
    tensors.target[60] = 1e30  # type: ignore[index]
    step = make(train=train).learn(next(batches(tensors)))
    assert step.not_learned is not None
    assert step.not_learned[60]
    assert step.not_learned.sum() <= 2
    assert np.isfinite(np.delete(step.scores, [50, 60])).all()


def test_it_learns_what_no_single_row_shows() -> None:
    tensors = rows(1_500, keys=20)
    scores = learned(make(train={"replay_rows": 0}), tensors)
    target = tensors.target.numpy()  # type: ignore[union-attr]
    error = np.abs(scores - target)[-500:].mean()
    assert error < 0.7 * np.abs(target - tensors.numeric[:, 0].numpy())[-500:].mean()


SAYS = {
    "no state": ("tests.models.nets:Mlp", 6, "takes no 'state'"),
    "wide": ("tests.models.nets:Carrying", 9, "state|raises"),
    "alone": ("tests.models.nets:Forgetful", 6, "returns a Tensor from its forward, and with"),
    "other": ("tests.models.nets:Narrowing", 6, r"a state of shape \(1, 3\)|\(2, 3\)"),
}


@pytest.mark.parametrize("case", SAYS)
def test_what_a_module_gets_wrong_is_one_sentence(case: str) -> None:
    module, width, sentence = SAYS[case]
    settings = ModuleLearner.Settings(module=module, state={"by": ["k"], "width": width})
    with pytest.raises(UserError, match=sentence):
        made_of(settings)


def made_of(settings: Any) -> ModuleLearner:
    numeric = ("x0", "x1", "x2", "x3")
    features = Features(
        numeric=numeric,
        inputs=dict.fromkeys(ModuleLearner.named_inputs(settings), numeric),
        target="y",
        state=ModuleLearner.named_state(settings, {}),
    )
    return ModuleLearner(settings, ModuleLearner.Training(), features)


def test_a_module_of_yours_has_its_own_cell() -> None:
    with pytest.raises(ValueError, match="expected no cell beside module"):
        ModuleLearner.Settings(module="a:B", state={"by": ["k"], "cell": "gru"})


def test_more_keys_than_memory_are_one_sentence() -> None:
    state = KeyedState(by=("k",), width=1 << 30, keys=1 << 28)
    with pytest.raises(UserError, match=r"keys = 268,435,456 .* more than this machine has: lower"):
        CarriedStates(state, "cpu")
