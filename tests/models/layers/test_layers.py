"""What every layer promises, and what each kind of layer does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.types import UserError
from models.layers.attention import AttentionSettings
from models.layers.convolution import ConvolutionSettings
from models.layers.dense import DenseSettings
from models.layers.embedding import EmbeddingSettings
from models.layers.experts import Experts, ExpertsSettings
from models.layers.layer import LayerSettings
from models.layers.normalization import Normalization
from models.layers.pooling import PoolingSettings
from models.layers.recurrent import Recurrent, RecurrentSettings
from models.layers.shape import Place, Shape
from models.net_input import NetInput
from models.network import build_network, expert_loads
from tests.size import examples

IDS = NetInput(name="words", form="ids", columns=("w",), sizes=(30,))
ARRAY = NetInput(name="past", form="array", columns=("p",), shape=(9, 3))
IMAGE = NetInput(name="photo", form="image", columns=("i",), shape=(2, 9, 8))
NUMBERS = NetInput(name="numeric", form="numbers", columns=("a", "b", "c"))
CODES = NetInput(name="categories", form="codes", columns=("d", "e"), sizes=(5, 7))
MEAN = PoolingSettings(how="mean")
WORDS = EmbeddingSettings(width=8)

CASES: dict[str, tuple[NetInput, Sequence[LayerSettings]]] = {
    "mean": (ARRAY, [PoolingSettings(how="mean")]),
    "max": (ARRAY, [PoolingSettings(how="max")]),
    "sum": (ARRAY, [PoolingSettings(how="sum")]),
    "last": (ARRAY, [PoolingSettings(how="last")]),
    "attention pooling": (ARRAY, [PoolingSettings(how="attention")]),
    "bag": (IDS, [WORDS, PoolingSettings(how="sum")]),
    "windows": (
        ARRAY,
        [
            PoolingSettings(how="max", size=2),
            PoolingSettings(how="mean", size=3),
            MEAN,
        ],
    ),
    "convolution": (IDS, [WORDS, ConvolutionSettings(width=8, residual=True), MEAN]),
    "strides": (
        ARRAY,
        [
            ConvolutionSettings(width=8, size=5, stride=2, residual=True, normalization="layer"),
            ConvolutionSettings(width=6, stride=3, normalization="batch"),
            PoolingSettings(how="last"),
        ],
    ),
    "convolution and windows": (
        IDS,
        [
            WORDS,
            PoolingSettings(how="mean"),
            ConvolutionSettings(width=8),
            PoolingSettings(how="max"),
        ],
    ),
    "gru": (ARRAY, [RecurrentSettings(width=5), PoolingSettings(how="last")]),
    "lstm": (
        IDS,
        [
            WORDS,
            RecurrentSettings(
                width=4, cell="lstm", bidirectional=True, residual=True, normalization="layer"
            ),
            PoolingSettings(how="attention"),
        ],
    ),
    "attention": (IDS, [WORDS, AttentionSettings(blocks=2, heads=2), MEAN]),
    "causal": (
        ARRAY,
        [
            AttentionSettings(
                blocks=1, heads=2, width=6, causal=True, positions="learned", max_length=4
            ),
            PoolingSettings(how="last"),
        ],
    ),
    "attention without positions": (ARRAY, [AttentionSettings(heads=3, positions="none"), MEAN]),
    "experts of a sequence": (
        IDS,
        [WORDS, ExpertsSettings(count=3, top=2, width=5, residual=True), MEAN],
    ),
    "default ids": (IDS, ()),
    "default array": (ARRAY, ()),
}
"""Layers of sequences."""
ROW_CASES: dict[str, tuple[NetInput, Sequence[LayerSettings]]] = {
    "dense": (NUMBERS, [DenseSettings(width=8, normalization="batch", residual=True)]),
    "layer": (NUMBERS, [DenseSettings(width=8, normalization="layer", activation="gelu")]),
    "group": (NUMBERS, [DenseSettings(width=8, normalization="group", activation="none")]),
    "experts": (NUMBERS, [ExpertsSettings(count=5, top=1, width=6), ExpertsSettings(width=4)]),
    "codes": (CODES, ()),
    "image": (IMAGE, ()),
    "image, batch": (
        IMAGE,
        [
            ConvolutionSettings(width=4, size=5, stride=2, residual=True, normalization="batch"),
            PoolingSettings(how="attention"),
        ],
    ),
    "image, layer": (
        IMAGE,
        [
            ConvolutionSettings(width=4, normalization="layer"),
            PoolingSettings(how="mean", size=3),
            MEAN,
        ],
    ),
}
"""Layers of what has no length."""
PLACE = Place(table="[model.head]", number=1, kind="test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Sequences of some lengths, with gaps."""

    values: torch.Tensor
    mask: torch.Tensor

    def padded(self, net_input: NetInput, extra: int) -> dict[str, torch.Tensor]:
        """As an input, with more padding, which holds anything."""
        n, _, *width = self.values.shape
        rng = torch.Generator().manual_seed(1)
        if net_input.form == "ids":
            padding = torch.randint(0, 30, (n, extra), generator=rng)
        else:
            padding = torch.randn(n, extra, *width, generator=rng)
        mask = torch.cat([self.mask, torch.zeros(n, extra, dtype=torch.bool)], 1)
        name = net_input.name
        return {name: torch.cat([self.values, padding], 1), f"{name}_mask": mask}

    def row(self, i: int) -> Rows:
        return Rows(values=self.values[i : i + 1], mask=self.mask[i : i + 1])


def sequences(net_input: NetInput, lengths: Sequence[int], gaps: bool, seed: int) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    n, longest = len(lengths), max([*lengths, 0])
    if net_input.form == "ids":
        values = torch.randint(1, 30, (n, longest), generator=rng)
    else:
        values = torch.randn(n, longest, net_input.shape[1], generator=rng)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    if gaps:
        mask = mask & (torch.rand(mask.shape, generator=rng) < 0.7)
    return Rows(values=values, mask=mask)


def rows_of(net_input: NetInput, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    if net_input.form == "codes":
        columns = [torch.randint(0, size, (n,), generator=rng) for size in net_input.sizes]
        return {net_input.name: torch.stack(columns, 1)}
    shape = net_input.shape or (len(net_input.columns),)
    return {net_input.name: torch.rand(n, *shape, generator=rng)}


def network_of(net_input: NetInput, layers: Sequence[LayerSettings], outputs: int = 3) -> nn.Module:
    own = {net_input.name: layers} if layers else {}
    return build_network([net_input], own, (), outputs)


NETWORKS = {name: network_of(*case).eval() for name, case in [*CASES.items(), *ROW_CASES.items()]}


# ---------------------------------------------------------------- every kind's promises


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=examples(25))
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    extra=st.integers(0, 5),
    gaps=st.booleans(),
    seed=st.integers(0, 99),
)
def test_neither_padding_nor_other_rows_change_a_row(
    name: str, lengths: list[int], extra: int, gaps: bool, seed: int
) -> None:
    net_input, network = CASES[name][0], NETWORKS[name]
    rows = sequences(net_input, lengths, gaps, seed)
    with torch.no_grad():
        together = network(**rows.padded(net_input, extra))
        alone = [network(**rows.row(i).padded(net_input, 0)) for i in range(len(lengths))]
    assert together.isfinite().all()
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROW_CASES)
def test_other_rows_do_not_change_a_row(name: str) -> None:
    rows = rows_of(ROW_CASES[name][0], 7)
    with torch.no_grad():
        together = NETWORKS[name](**rows)
        parts = [NETWORKS[name](**{k: v[i : i + 1] for k, v in rows.items()}) for i in range(7)]
    torch.testing.assert_close(together, torch.cat(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lengths", [[0, 0], [0], [1], [], [3, 0, 1]], ids=str)
def test_it_trains_on_rows_without_values(name: str, lengths: list[int]) -> None:
    net_input, layers = CASES[name]
    network = network_of(net_input, layers).train()
    scores = network(**sequences(net_input, lengths, False, 0).padded(net_input, 0))
    assert scores.shape == (len(lengths), 3)
    scores.square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    for buffer in network.buffers():
        assert buffer.isfinite().all()


@pytest.mark.parametrize("name", ROW_CASES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_it_trains_on_a_row(name: str, n: int) -> None:
    network = network_of(*ROW_CASES[name]).train()
    scores = network(**rows_of(ROW_CASES[name][0], n))
    scores.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", [*CASES, *ROW_CASES])
def test_every_weight_learns(name: str) -> None:
    net_input, layers = {**CASES, **ROW_CASES}[name]
    network = network_of(net_input, layers).train()
    sequence = net_input.form in ("ids", "array")
    rows = (
        sequences(net_input, [9, 7, 8, 9] * 8, False, 0).padded(net_input, 0)
        if sequence
        else rows_of(net_input, 32)
    )
    network(**rows).square().sum().backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of scores that become shares cannot, nor an expert that nobody chose.
    assert [n for n in still if "score.bias" not in n and ".experts." not in n] == []


def test_a_seed_gives_the_weights_and_torchs_own_random_state_does_not() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return list(build_network([IDS, IMAGE], {}, None, 2, seed=seed).state_dict().values())

    torch.manual_seed(1)
    first = weights(5)
    before = torch.get_rng_state()
    torch.rand(3)
    for one, other in zip(first, weights(5), strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(a, b) for a, b in zip(first, weights(6), strict=True))
    torch.manual_seed(1)
    weights(5)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- against torch


def test_a_gru_and_an_lstm_are_torchs_on_packed_sequences() -> None:
    lengths = [4, 1, 6]
    rows = sequences(ARRAY, lengths, False, 0)
    for cell, peer_class in (("gru", nn.GRU), ("lstm", nn.LSTM)):
        layer = Recurrent(cell, 3, 5, bidirectional=True)
        peer = peer_class(3, 5, batch_first=True, bidirectional=True)
        assert layer.back is not None
        forth, back = layer.forth.state_dict(), layer.back.state_dict()
        peer.load_state_dict({**forth, **{f"{k}_reverse": v for k, v in back.items()}})
        packed = nn.utils.rnn.pack_padded_sequence(
            rows.values, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        expected, _ = nn.utils.rnn.pad_packed_sequence(peer(packed)[0], batch_first=True)
        got, mask = layer(rows.values, rows.mask)
        torch.testing.assert_close(got[mask], expected[mask])


def test_attention_is_torchs_encoder() -> None:
    layer, made = AttentionSettings(blocks=2, heads=2, positions="none").build(
        Shape(form="sequence", width=8), PLACE
    )
    assert made.width == 8
    rng = torch.Generator().manual_seed(0)
    x, mask = torch.randn(3, 5, 8, generator=rng), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    expected = x
    for block in layer.blocks:  # type: ignore[union-attr]
        block.activation = nn.functional.gelu
        expected = block(expected, src_key_padding_mask=~mask)
    got, _ = layer(x, mask)
    torch.testing.assert_close(got[mask], layer.normalization(expected)[mask])  # type: ignore[operator]


def test_poolings_are_numpys() -> None:
    rows = sequences(ARRAY, [3, 0, 6, 1], True, 3)
    mask = rows.mask.numpy()
    for how, function in (("mean", np.mean), ("max", np.max), ("sum", np.sum)):
        layer, _ = PoolingSettings(how=how).build(Shape(form="sequence", width=3), PLACE)
        expected = [
            function(row[there], axis=0) if there.any() else np.zeros(3)
            for row, there in zip(rows.values.numpy(), mask, strict=True)
        ]
        np.testing.assert_allclose(layer(rows.values, rows.mask)[0], expected, atol=1e-6)
    last, _ = PoolingSettings(how="last").build(Shape(form="sequence", width=3), PLACE)
    expected = [
        row[there][-1] if there.any() else np.zeros(3)
        for row, there in zip(rows.values.numpy(), mask, strict=True)
    ]
    np.testing.assert_allclose(last(rows.values, rows.mask)[0], expected)


def test_windows_of_a_sequence_know_only_its_values() -> None:
    x = torch.tensor([[[1.0], [5.0], [3.0], [9.0], [7.0]]])
    mask = torch.tensor([[True, True, False, True, True]])
    for how, expected in (("max", [5.0, 9.0, 7.0]), ("mean", [3.0, 9.0, 7.0])):
        layer, _ = PoolingSettings(how=how, size=2).build(Shape(form="sequence", width=1), PLACE)
        y, made = layer(x, mask)
        assert made.all()
        assert y.flatten().tolist() == expected


def test_batch_normalization_learns_from_values_only() -> None:
    rows = sequences(ARRAY, [4, 0, 7], True, 1)
    shape = Shape(form="sequence", width=3)
    layer, peer = Normalization("batch", shape, PLACE).train(), nn.BatchNorm1d(3).train()
    got = layer(rows.values, rows.mask)
    torch.testing.assert_close(got[rows.mask], peer(rows.values[rows.mask]))
    for one, other in zip(layer.buffers(), peer.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_of_one_row_leaves_batch_statistics_alone() -> None:
    layer = Normalization("batch", Shape(form="vector", width=3), PLACE).train()
    x = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(layer(x, None), x, rtol=1e-4, atol=1e-4)
    assert [buffer.sum().item() for buffer in layer.buffers()] == [0.0, 3.0, 0]


# ---------------------------------------------------------------- experts


def test_experts_are_the_weighted_sum_of_the_best() -> None:
    layer = Experts(ExpertsSettings(count=4, top=2, width=5), 3).eval()
    x = rows_of(NUMBERS, 9)["numeric"]
    shares = layer.router(x).softmax(1)
    expected = torch.zeros(9, 5)
    for i, row in enumerate(x):
        best = shares[i].topk(2)
        for weight, number in zip(*best, strict=True):
            expected[i] += weight / best.values.sum() * layer.experts[int(number)](row)
    torch.testing.assert_close(layer(x)[0], expected)


def test_one_expert_of_one_is_a_dense_layer() -> None:
    layer = Experts(ExpertsSettings(count=1, top=1, width=5), 3).eval()
    x = rows_of(NUMBERS, 9)["numeric"]
    torch.testing.assert_close(layer(x)[0], layer.experts[0](x))


def test_the_load_is_the_share_of_values_in_training_only() -> None:
    layers = [WORDS, ExpertsSettings(count=3, top=2, width=4), MEAN]
    network = build_network([IDS], {"words": layers}, (), 1)
    rows = sequences(IDS, [3, 0, 6], True, 0)
    network.eval()(**rows.padded(IDS, 4))
    assert expert_loads(network) == {"input_words.1": pytest.approx([1 / 3] * 3)}
    for _ in range(1000):
        network.train()(**rows.padded(IDS, 4))
    values = network.get_submodule("input_words.0")(rows.values)[0][rows.mask]
    router = network.get_submodule("input_words.1.body.router")
    chosen = router(values).topk(2, dim=1).indices.flatten().bincount(minlength=3)
    expected = (chosen / chosen.sum()).tolist()
    assert expert_loads(network)["input_words.1"] == pytest.approx(expected, abs=1e-3)


def test_the_balance_loss_keeps_experts_busy_and_scores_as_they_are() -> None:
    """Beside a loss that is 0, only it teaches the router."""
    load = {}
    for balance in (0.0, 1.0):
        layer = Experts(ExpertsSettings(count=4, top=1, width=2, balance=balance), 3).train()
        with torch.no_grad():
            layer.router.weight.copy_(torch.tensor([[1.0], [0.0], [0.1], [0.2]]).expand(4, 3))
        steps = torch.optim.SGD(layer.router.parameters(), 0.5)
        x = rows_of(NUMBERS, 64)["numeric"]
        scored = layer.eval()(x)[0]
        torch.testing.assert_close(layer.train()(x)[0], scored)
        for _ in range(200):
            steps.zero_grad()
            (0 * layer(x)[0].sum()).backward()
            steps.step()
        load[balance] = layer.load.max().item()
    assert load[0.0] > 0.8
    assert load[1.0] < 0.4


# ---------------------------------------------------------------- what is wrong


VECTORS = "expected a sequence of vectors"
VECTOR = "expected one vector per row"


@pytest.mark.parametrize(
    ("net_input", "layers", "at", "sentence"),
    [
        (
            IDS,
            [MEAN],
            "layer 1 (pooling)",
            f"{VECTORS} or an image, got ids: put an embedding before it.",
        ),
        (
            IDS,
            [WORDS, DenseSettings(width=3)],
            "layer 2 (dense)",
            f"{VECTOR}, got a sequence of vectors: put a pooling before it.",
        ),
        (
            IDS,
            [WORDS, MEAN, RecurrentSettings()],
            "layer 3 (recurrent)",
            f"{VECTORS}, got one vector per row: put it before the layer that",
        ),
        (
            IDS,
            [WORDS],
            "layers",
            f"{VECTOR} after the last layer, got a sequence of vectors: put a pooling there.",
        ),
        (
            IDS,
            [WORDS, AttentionSettings(heads=3), MEAN],
            "layer 2 (attention)",
            "expected heads that divide the width of 8, got heads = 3: set width = 9 or other",
        ),
        (
            NUMBERS,
            [ConvolutionSettings(width=3), MEAN],
            "layer 1 (convolution)",
            f"{VECTORS} or an image, got one vector per row: put it before the layer that",
        ),
        (
            NUMBERS,
            [WORDS],
            "layer 1 (embedding)",
            "expected ids or category codes, got one vector per row: only the first layer of",
        ),
        (
            CODES,
            [DenseSettings(width=3)],
            "layer 1 (dense)",
            f"{VECTOR}, got category codes: put an embedding before it.",
        ),
        (
            IMAGE,
            [DenseSettings(width=3)],
            "layer 1 (dense)",
            f"{VECTOR}, got an image: put a pooling before it.",
        ),
        (
            IMAGE,
            [AttentionSettings()],
            "layer 1 (attention)",
            f"{VECTORS}, got an image: take it out.",
        ),
        (
            IMAGE,
            [PoolingSettings(how="last")],
            "layer 1 (pooling)",
            "expected how = 'mean', 'max', 'sum' or 'attention' for an image, got 'last'.",
        ),
        (
            IMAGE,
            [PoolingSettings(how="max", size=9)],
            "layer 1 (pooling)",
            "expected an image of at least 9 x 9, got 9 x 8: take out a pooling or a stride",
        ),
        (
            ARRAY,
            [PoolingSettings(how="last", size=2), MEAN],
            "layer 1 (pooling)",
            "expected how = 'mean' or 'max' for windows of 2, got 'last'.",
        ),
        (
            NUMBERS,
            [DenseSettings(width=1, normalization="layer")],
            "layer 1 (dense)",
            "normalization = 'layer' of a width of 1 is always 0: set a larger width",
        ),
        (
            replace(IDS, sizes=(0,)),
            [WORDS, MEAN],
            "layer 1 (embedding)",
            "no stage says how many ids there are: make them with a 'tokens' stage.",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    net_input: NetInput, layers: list[LayerSettings], at: str, sentence: str
) -> None:
    expected = f"[model.inputs.{net_input.name}] {at}: {sentence}"
    with pytest.raises(UserError, match=re.escape(expected)):
        build_network([net_input], {net_input.name: layers}, None, 1)


@pytest.mark.parametrize(
    ("settings_class", "keys", "sentence"),
    [
        (ConvolutionSettings, {"width": 3, "size": 4}, "expected an odd number"),
        (ExpertsSettings, {"count": 2, "top": 3}, "expected top <= count, got top = 3, count = 2"),
        (DenseSettings, {"width": 0}, "greater than 0"),
        (DenseSettings, {"width": 3, "dropout": 1.0}, "less than 1"),
    ],
)
def test_a_wrong_value_of_a_layer(settings_class: Any, keys: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings_class(**keys)
