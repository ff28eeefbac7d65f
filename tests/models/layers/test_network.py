"""Networks of inputs and a head: their scores, defaults, export, and what they can learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.types import UserError
from models.layers.attention import AttentionSettings
from models.layers.convolution import ConvolutionSettings
from models.layers.dense import DenseSettings
from models.layers.embedding import EmbeddingSettings
from models.layers.experts import ExpertsSettings
from models.layers.layer import LayerSettings
from models.layers.pooling import PoolingSettings
from models.layers.recurrent import RecurrentSettings
from models.net_input import NetInput
from models.network import Network, build_network

NUMBERS = NetInput(name="numeric", form="numbers", columns=("a", "b"))
CODES = NetInput(name="categories", form="codes", columns=("c",), sizes=(9,))
WORDS = NetInput(name="words", form="ids", columns=("w",), sizes=(40,))
TEXT = NetInput(name="text", form="ids", columns=("t",), sizes=(40,))
PAST = NetInput(name="past", form="array", columns=("p",), shape=(8, 3))
PHOTO = NetInput(name="photo", form="image", columns=("i",), shape=(3, 16, 12))
ALL = (NUMBERS, CODES, WORDS, TEXT, PAST, PHOTO)
LAYERS: dict[str, Sequence[LayerSettings]] = {
    "numeric": [DenseSettings(width=6, normalization="batch")],
    "words": [
        EmbeddingSettings(width=8),
        AttentionSettings(blocks=1, heads=2),
        PoolingSettings(how="attention"),
    ],
    "text": [
        EmbeddingSettings(width=8),
        ConvolutionSettings(width=8, stride=2),
        PoolingSettings(how="max", size=2),
        ExpertsSettings(count=3, width=6),
        PoolingSettings(how="mean"),
    ],
    "past": [
        RecurrentSettings(width=6, bidirectional=True, normalization="layer"),
        RecurrentSettings(width=5, cell="lstm", residual=True),
        PoolingSettings(how="last"),
    ],
    "photo": [
        ConvolutionSettings(width=8, stride=2),
        PoolingSettings(how="max"),
        ConvolutionSettings(width=8, normalization="batch", residual=True),
        PoolingSettings(how="mean"),
    ],
}
HEAD = [ExpertsSettings(count=4, top=2, width=16), DenseSettings(width=8, residual=True)]


def tensors(n: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of all inputs; every third without words."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, length + 1, (n, 1), generator=rng)
    lengths[::3] = 0
    mask = torch.arange(length) < lengths
    ids = torch.randint(1, 40, (n, length), generator=rng) * mask
    return {
        "numeric": torch.randn(n, 2, generator=rng),
        "categories": torch.randint(0, 9, (n, 1), generator=rng),
        "words": ids,
        "words_mask": mask,
        "text": ids,
        "text_mask": mask,
        "past": torch.randn(n, length, 3, generator=rng),
        "past_mask": mask,
        "photo": torch.rand(n, 3, 16, 12, generator=rng),
    }


class Positional(nn.Module):
    """A network called by position."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._names = list(names)

    def forward(self, *values: torch.Tensor) -> Any:
        return self.network(**dict(zip(self._names, values, strict=True)))


@pytest.mark.full
@pytest.mark.slow(seconds=24)
def test_it_is_exported_for_any_number_of_rows_and_any_length() -> None:
    import onnxruntime

    pytest.importorskip("onnxscript")
    network = build_network(ALL, LAYERS, HEAD, 3).eval()
    example = tensors(4, 6)
    rows, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    shapes = tuple(
        {0: rows, 1: length} if name.startswith(("words", "text", "past")) else {0: rows}
        for name in example
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of its own GRU
        program = torch.onnx.export(
            Positional(network, list(example)).eval(), tuple(example.values()), dynamo=True,
            dynamic_shapes=(shapes,), input_names=list(example), external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for n, long in ((1, 1), (2, 3), (3, 6), (64, 17)):
        given = tensors(n, long, seed=n)
        with torch.no_grad():
            expected = network(**given).numpy()
        got = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_shape_of_scores_follows_the_outputs() -> None:
    rows = tensors(5, 4)
    assert build_network(ALL, {}, None, 1)(**rows).shape == (5,)
    assert build_network(ALL, {}, None, 4)(**rows).shape == (5, 4)


def test_without_layers_each_kind_of_column_has_its_own() -> None:
    network = build_network(ALL, {}, None, 1)
    classes = {
        name.partition(".")[0]: [type(module).__name__ for module in encoder.modules()]
        for name, encoder in network.named_children()
        if name.startswith("input_")
    }
    assert classes["input_numeric"] == ["Stack"]
    assert "Embedding" in classes["input_categories"]
    assert "Embedding" in classes["input_words"]
    assert "GRU" in classes["input_past"]
    assert classes["input_photo"].count("Conv2d") == 2
    assert sum(p.numel() for p in build_network([NUMBERS], {}, None, 1).parameters()) == (
        3 * 128 + 129 * 64 + 65
    )


@pytest.mark.parametrize("side", [1, 2, 7, 8, 28, 64])
def test_images_of_any_size_have_default_layers(side: int) -> None:
    image = NetInput(name="photo", form="image", columns=("i",), shape=(1, side, side))
    assert build_network([image], {}, None, 1)(photo=torch.rand(2, 1, side, side)).shape == (2,)


def test_names_of_inputs_may_be_those_of_modules() -> None:
    for name in ("keys", "type", "forward", "head", "scores", "training"):
        words = NetInput(name=name, form="numbers", columns=("a",))
        assert build_network([words], {}, None, 1)(**{name: torch.ones(2, 1)}).shape == (2,)


@pytest.mark.parametrize(
    ("inputs", "layers", "sentence"),
    [
        ([], {}, r"\[model\] needs inputs"),
        ([NUMBERS], {"numbers": []}, "has no input 'numbers'. Did you mean 'numeric'"),
        ([replace(NUMBERS, name="a b")], {}, "a name of letters, digits and _, got 'a b'"),
    ],
)
def test_wrong_inputs_are_one_sentence(inputs: Any, layers: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_network(inputs, layers, None, 1)


def test_a_head_has_vectors_only() -> None:
    with pytest.raises(
        UserError, match=r"\[model.head\] layer 1 \(recurrent\): expected a sequence"
    ):
        build_network([NUMBERS], {}, [RecurrentSettings()], 1)


# ---------------------------------------------------------------- what it can learn


def order(n: int, rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Whether id 1 comes before id 2; a bag of ids cannot tell."""
    ids = rng.integers(3, 10, (n, 12))
    at = np.sort(np.argsort(rng.random((n, 8)), 1)[:, :2], 1)
    first = rng.integers(0, 2, n)
    np.put_along_axis(ids, at, np.stack([1 + first, 2 - first], 1), 1)
    lengths = rng.integers(8, 13, (n, 1))
    mask = np.arange(12) < lengths
    given = {"words": torch.from_numpy(ids * mask), "words_mask": torch.from_numpy(mask)}
    return given, torch.from_numpy(1.0 - first).float()


def accuracy(
    network: Network,
    make: Callable[[int, np.random.Generator], tuple[dict[str, torch.Tensor], torch.Tensor]],
    steps: int,
    lr: float,
) -> float:
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    network.train()
    for _ in range(steps):
        rows, target = make(64, rng)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(**rows), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.eval()
    rows, target = make(500, rng)
    with torch.no_grad():
        return float(((network(**rows) > 0) == (target > 0.5)).float().mean())


@pytest.mark.parametrize(
    ("layers", "steps", "lr"),
    [
        ([RecurrentSettings(width=32), PoolingSettings(how="last")], 150, 1e-2),
        ([AttentionSettings(blocks=2, heads=2), PoolingSettings(how="mean")], 200, 3e-3),
        (
            [
                ConvolutionSettings(width=32, size=5),
                ConvolutionSettings(width=32, size=5),
                PoolingSettings(how="max"),
            ],
            200,
            3e-3,
        ),
    ],
    ids=["recurrent", "attention", "convolution"],
)
@pytest.mark.full
def test_the_order_of_a_sequence_is_learned(
    layers: list[LayerSettings], steps: int, lr: float
) -> None:
    words = NetInput(name="words", form="ids", columns=("w",), sizes=(10,))
    network = build_network(
        [words], {"words": [EmbeddingSettings(width=32), *layers]}, [DenseSettings(width=32)], 1
    )
    assert accuracy(network, order, steps, lr) >= 0.95


def shifted(n: int, rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A bar that lies or stands anywhere."""
    pixels = rng.random((n, 1, 12, 12)).astype(np.float32) * 0.4
    stands = rng.integers(0, 2, n)
    for i, (top, left) in enumerate(rng.integers(0, 7, (n, 2))):
        part = np.s_[top : top + 6, left + 2] if stands[i] else np.s_[top + 2, left : left + 6]
        pixels[i, 0][part] = 1
    return {"photo": torch.from_numpy(pixels)}, torch.from_numpy(stands).float()


def test_images_are_learned_with_default_layers() -> None:
    image = NetInput(name="photo", form="image", columns=("i",), shape=(1, 12, 12))
    assert accuracy(build_network([image], {}, None, 1), shifted, 60, 2e-3) >= 0.95
