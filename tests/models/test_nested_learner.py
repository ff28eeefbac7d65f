"""Networks on images and lists of ids: against torch's own modules, and what they can learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from engine.loading.collate import Collate
from engine.types import Batch, DeviceTensors, Features, Mark, Step, Tensors, UserError
from models.learners.linear import LinearLearner
from models.learners.network import NetworkShape, TabularNetwork
from models.learners.tabular import TabularLearner

BINARY: dict[str, Any] = {"target": "y", "task": "binary", "classes": ("bar", "cross")}


def pictures(n: int, rng: np.random.Generator) -> pl.DataFrame:
    """Bars and crosses anywhere, on noise, shape (16, 16, 1)."""
    pixels = rng.integers(0, 120, (n, 16, 16, 1), dtype=np.uint8)
    classes = rng.integers(0, 2, n)
    for picture, cross in zip(pixels, classes, strict=True):
        top, left = rng.integers(0, 8, 2)
        middle = slice(top + 3, top + 5), slice(left, left + 8)
        across = slice(top, top + 8), slice(left + 3, left + 5)
        shown = [middle, across] if cross else [[middle, across][rng.integers(2)]]
        for part in shown:
            picture[part] = 255
    return pl.DataFrame({"i": pixels, "y": np.where(classes, "cross", "bar")})


def sentences(n: int, rng: np.random.Generator) -> pl.DataFrame:
    """Nine of ten ids are from 100 on in class cross, and below in the other."""
    classes = rng.integers(0, 2, n)
    lists = []
    for cross in classes:
        ids = rng.integers(1, 100, rng.integers(3, 30))
        high = (rng.random(len(ids)) < 0.9) == cross
        lists.append((ids + 100 * high).tolist())
    rows = pl.Series(lists, dtype=pl.List(pl.Int64))
    return pl.DataFrame({"t": rows, "y": np.where(classes, "cross", "bar")})


def batches(frames: list[pl.DataFrame], features: Features) -> list[Batch]:
    collate = Collate(features)
    made = []
    for frame in frames:
        places = {"_partition": ["p"] * frame.height, "_position": np.arange(frame.height)}
        rows = pl.DataFrame(places).hstack(frame)
        made.append(collate.apply(Batch(frame=rows, mark=Mark(), arrived=0.0)))
    return made


def accuracy(learner: Any, given: list[Batch]) -> list[float]:
    """Of each batch, before it is learned."""
    right = []
    for batch in given:
        scores = learner.learn(batch).scores
        assert batch.tensors is not None
        assert batch.tensors.target is not None
        right.append(float(((scores > 0.5) == batch.tensors.target.numpy()).mean()))
    return right


def test_images_are_learned_online() -> None:
    rng = np.random.default_rng(0)
    features = Features(numeric=(), images={"i": (1, 16, 16)}, **BINARY)
    learner = TabularLearner(
        TabularLearner.Settings(layers=(32,), conv_channels=(16, 32)),
        TabularLearner.Training(optimizer="adam", lr=3e-3),
        features,
    )
    right = accuracy(learner, batches([pictures(64, rng) for _ in range(250)], features))
    assert np.mean(right[:5]) < 0.8
    assert np.mean(right[-40:]) >= 0.95


@pytest.mark.parametrize("kind", ["ragged", "sparse"])
def test_lists_of_ids_are_learned_online(kind: str) -> None:
    rng = np.random.default_rng(0)
    lists: dict[str, Any] = {kind: {"t": 201}}
    features = Features(numeric=(), **lists, **BINARY)
    learner = TabularLearner(
        TabularLearner.Settings(layers=(16,), embedding_dim={"t": 8}),
        TabularLearner.Training(optimizer="adam", lr=1e-2),
        features,
    )
    right = accuracy(learner, batches([sentences(64, rng) for _ in range(150)], features))
    assert np.mean(right[-30:]) >= 0.95


class Recurrent:
    """A user's own learner around a module of torch, on padded lists."""

    def __init__(self, features: Features) -> None:
        self.features = features
        torch.manual_seed(0)
        self.table = nn.Embedding(features.padded["t"], 8, padding_idx=0)
        self.head = nn.Linear(8, 1)
        self.steps = torch.optim.Adam([*self.table.parameters(), *self.head.parameters()], 1e-2)

    def learn(self, batch: Batch) -> Step:
        assert batch.tensors is not None
        rows, target = batch.tensors.padded["t"], batch.tensors.target
        assert target is not None
        vectors = self.table(rows.values) * rows.mask[:, :, None]
        raw = self.head(vectors.sum(1) / rows.mask.sum(1, keepdim=True)).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(raw, target.float())
        self.steps.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.steps.step()
        return Step(scores=raw.detach().sigmoid().double().numpy(), loss=loss.item())


def test_a_module_of_your_own_takes_padded_lists() -> None:
    rng = np.random.default_rng(0)
    features = Features(numeric=(), padded={"t": 201}, buckets=(8, 16, 32), **BINARY)
    given = batches([sentences(64, rng) for _ in range(150)], features)
    widths = {batch.tensors.padded["t"].values.shape[1] for batch in given if batch.tensors}
    assert widths == {32}
    assert np.mean(accuracy(Recurrent(features), given)[-30:]) >= 0.95


def test_the_network_is_torch_modules(
    make_features: Callable[..., Features], make_batches: Callable[..., list[Batch]]
) -> None:
    features = make_features(nested=True)
    tensors = make_batches(features)[0].tensors
    assert tensors is not None
    network = TabularNetwork(
        NetworkShape(
            numeric=4, bags=((20, 3), (6, 2)), images=(3,), conv_channels=(5, 7), layers=()
        ),
        seed=1,
    )
    weights = {name: weight.detach() for name, weight in network.tensors.items()}
    conv_channels = []
    for j, channels in enumerate((3, 5)):
        layer = nn.Conv2d(channels, weights[f"image.0.{j}.bias"].shape[0], 3, stride=2, padding=1)
        layer.weight.data = weights[f"image.0.{j}.weight"]
        layer.bias.data = weights[f"image.0.{j}.bias"]  # type: ignore[union-attr]
        conv_channels += [layer, nn.ReLU()]
    words = nn.EmbeddingBag.from_pretrained(weights["bag.0"], mode="mean", include_last_offset=True)
    image = nn.Sequential(*conv_channels)(tensors.images["photo"] / 255 - 0.5).mean((2, 3))
    ragged, tags = tensors.ragged["words"], tensors.sparse["tags"]
    said = words(ragged.values, ragged.offsets)
    counted = tags.csr().to_dense() @ weights["bag.1"]
    inputs = torch.cat([tensors.numeric, said, counted, image], 1)
    expected = nn.functional.linear(inputs, weights["layer.0.weight"], weights["layer.0.bias"])
    got = network(
        tensors.numeric, tensors.categories[:, :0], bags=[ragged, tags],
        images=[tensors.images["photo"]],
    )  # fmt: skip
    torch.testing.assert_close(got, expected.squeeze(1))


def test_tensors_that_are_placed_are_those_that_are_learned(
    make_features: Callable[..., Features], make_batches: Callable[..., list[Batch]]
) -> None:
    features = make_features(nested=True)
    tensors = make_batches(features)[0].tensors
    assert tensors is not None
    learner = TabularLearner(TabularLearner.Settings(), TabularLearner.Training(), features)
    expected = learner.predict(tensors)
    elsewhere = Tensors(
        numeric=tensors.numeric * torch.nan,
        categories=tensors.categories,
        on_device=DeviceTensors(tensors=tensors.map(lambda tensor: tensor.to(learner.device))),
    )
    assert learner.predict(elsewhere).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("given", "train", "sentence"),
    [
        ({"padded": {"t": 9}}, {}, "padded is for a learner of your own"),
        ({"ragged": {"t": 0}}, {}, "expects ids in column 't', and no stage says how many"),
        ({"ragged": {"t": 9}}, {"replay_rows": 9}, "replay_rows keeps numbers and categories"),
        ({"ragged": {"t": 9}, "sparse": {"t": 9}}, {}, "in one of 'categories', 'ragged' and"),
    ],
)
def test_what_it_cannot_take_is_one_sentence(
    given: dict[str, Any], train: dict[str, Any], sentence: str
) -> None:
    features = Features(numeric=("a",), **given, **BINARY)
    settings, training = TabularLearner.Settings(), TabularLearner.Training(**train)
    with pytest.raises(UserError, match=sentence):
        TabularLearner(settings, training, features)


def test_the_linear_learner_takes_numbers_and_categories() -> None:
    features = Features(numeric=("a",), images={"i": (1, 2, 2)}, **BINARY)
    settings, training = LinearLearner.Settings(), LinearLearner.Training()
    with pytest.raises(UserError, match="expects numbers and categories, got 'i'"):
        LinearLearner(settings, training, features)
