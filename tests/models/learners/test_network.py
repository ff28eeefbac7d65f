"""The network against torch's own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.layers.embedding import embedding_width
from models.learners.network import ACTIVATIONS, NetworkShape, TabularNetwork

MODULES: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def shape(**changes: Any) -> NetworkShape:
    wanted: dict[str, Any] = {
        "numeric": 3,
        "categories": (4, 6),
        "embedding_dim": (2, 5),
        "layers": (7, 6),
    }
    return NetworkShape(**(wanted | changes))


def rows(n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    codes = [torch.randint(0, size, (n,), generator=rng) for size in (4, 6)]
    return torch.randn((n, 3), generator=rng), torch.stack(codes, 1)


def twin(network: TabularNetwork) -> nn.Sequential:
    """The layers as torch has them, with the same numbers."""
    layers: list[nn.Module] = []
    for i in range(len(network.shape.layers) + 1):
        weight = network.tensors[f"layer.{i}.weight"].detach()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(network.tensors[f"layer.{i}.bias"].detach())
        layers += [layer, MODULES[network.shape.activation]()]
    return nn.Sequential(*layers[:-1])


def inputs(
    network: TabularNetwork, numeric: torch.Tensor, categories: torch.Tensor
) -> torch.Tensor:
    tables = [network.tensors[f"embedding.{i}"].detach() for i in range(2)]
    looked_up = [table[categories[:, i]] for i, table in enumerate(tables)]
    return torch.cat([numeric, *looked_up], 1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_scores_and_gradients_are_torch_layers(activation: str, outputs: int) -> None:
    network = TabularNetwork(shape(activation=activation, outputs=outputs), seed=1)
    reference = twin(network)
    expected = reference(inputs(network, *rows()))
    got = network(*rows())
    assert got.shape == ((9,) if outputs == 1 else (9, outputs))
    torch.testing.assert_close(got, expected.squeeze(1) if outputs == 1 else expected)
    expected.square().sum().backward()
    got.square().sum().backward()  # type: ignore[no-untyped-call]
    first = reference[0]
    assert isinstance(first, nn.Linear)
    torch.testing.assert_close(network.tensors["layer.0.weight"].grad, first.weight.grad)


def test_all_gradients_lie_in_the_one_tensor() -> None:
    network = TabularNetwork(shape(skip_connection=True))
    network(*rows()).sum().backward()  # type: ignore[no-untyped-call]
    parts = [t.grad.flatten() for t in network.tensors.values() if t.grad is not None]
    assert len(parts) == len(network.tensors)
    assert torch.equal(torch.cat(parts), network.gradient)
    assert (network.gradient != 0).any()


def test_the_linear_path_is_added() -> None:
    network = TabularNetwork(shape(skip_connection=True), seed=1)
    with torch.no_grad():
        with_path = network(*rows())
        path = F.linear(inputs(network, *rows()), network.tensors["skip.weight"]).squeeze(1)
        network.tensors["skip.weight"].zero_()
        torch.testing.assert_close(with_path, network(*rows()) + path)
    assert path.abs().max() > 0.01


def test_without_layers_it_is_linear() -> None:
    network = TabularNetwork(shape(layers=(), categories=(), embedding_dim=()))
    numeric, none = torch.randn(5, 3), torch.empty((5, 0), dtype=torch.int64)
    with torch.no_grad():
        twice = network(2 * numeric, none) - network(0 * numeric, none)
        once = network(numeric, none) - network(0 * numeric, none)
    torch.testing.assert_close(twice, 2 * once)


def test_dropout_silences_the_share_and_keeps_the_mean() -> None:
    # One hidden unit that is always 1, read out with weight 1.
    network = TabularNetwork(NetworkShape(numeric=1, layers=(1,)))
    with torch.no_grad():
        network.flat.copy_(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    noise = torch.Generator().manual_seed(5)
    none = torch.empty((20_000, 0), dtype=torch.int64)
    said = network(torch.zeros(20_000, 1), none, dropout=0.25, rng=noise).detach()
    assert sorted(set(said.tolist())) == [0.0, pytest.approx(4 / 3)]
    assert float((said == 0).float().mean()) == pytest.approx(0.25, abs=0.015)


def test_first_weights_go_by_the_seed() -> None:
    one, same, other = (TabularNetwork(shape(), seed=seed).flat.detach() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_unknown_code_starts_at_the_origin() -> None:
    table = TabularNetwork(shape()).tensors["embedding.1"].detach()
    assert (table[0] == 0).all()
    assert (table[1:] != 0).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_weights_go_out_and_in(sparse: bool) -> None:
    one, other = (
        TabularNetwork(shape(sparse=sparse, skip_connection=True), seed=seed) for seed in (1, 2)
    )
    weights = one.weights()
    assert {name: array.shape for name, array in weights.items()} == {
        **one.shape.tables(),
        **one.shape.dense(),
    }
    other.load(weights)
    assert torch.equal(one(*rows()), other(*rows()))
    with torch.no_grad():
        one.flat.add_(1)
    assert all(np.array_equal(a, weights[k]) for k, a in other.weights().items())


def test_count_is_the_number_of_weights() -> None:
    for sparse in (False, True):
        network = TabularNetwork(shape(sparse=sparse))
        #                    tables          10 inputs -> 7 -> 6 -> 1
        assert network.count == 4 * 2 + 6 * 5 + (10 * 7 + 7) + (7 * 6 + 6) + (6 + 1)
        assert sum(t.numel() for t in network.parameters()) == network.count


def test_width_grows_with_the_codes_up_to_a_bound() -> None:
    widths = [embedding_width(codes) for codes in (1, 8, 32, 1000, 10**6)]
    assert widths == [2, 5, 11, 64, 64]
