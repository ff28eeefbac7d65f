"""A feed-forward network over numbers, category codes, bags of ids and images, with all its weights
in one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from engine.types import GraphBuilder, GraphColumn, Ragged, Sparse, Tensors
from models.carry import Carry
from models.learners.online.trainable import TrainableNetwork

FLOAT = 1
"""ONNX's number of float32."""
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,  # in place: a linear layer's backward does not need its own output
    "silu": F.silu,
    "gelu": F.gelu,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkShape:
    """The structure of a network, without its weights.

    Attributes:
        numeric: numeric inputs.
        categories: number of codes of each category.
        embedding_dim: width of each category's vector.
        layers: widths of the hidden layers; empty makes the model linear in its inputs.
        outputs: 1, or the number of classes.
        activation: a key of `ACTIVATIONS`.
        skip_connection: add a linear path from the inputs to the output.
        sparse: gradients of the embeddings are sparse; their tables lie outside the one tensor.
        bags: number of ids and width of the vectors of each bag.
        images: channels of each image.
        conv_channels: widths of the layers that every image goes through, each 3 x 3 at every
            second place; the mean over what is left of height and width is input beside the others.
    """

    numeric: int
    categories: tuple[int, ...] = ()
    embedding_dim: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    outputs: int = 1
    activation: str = "relu"
    skip_connection: bool = False
    sparse: bool = False
    bags: tuple[tuple[int, int], ...] = ()
    images: tuple[int, ...] = ()
    conv_channels: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """The width of the first layer's input."""
        bags = sum(width for _, width in self.bags)
        images = len(self.images) * self.conv_channels[-1] if self.images else 0
        return self.numeric + sum(self.embedding_dim) + bags + images

    def tables(self) -> dict[str, tuple[int, int]]:
        """Return name -> shape of the embedding tables."""
        pairs = zip(self.categories, self.embedding_dim, strict=True)
        tables = {f"embedding.{i}": pair for i, pair in enumerate(pairs)}
        return tables | {f"bag.{i}": pair for i, pair in enumerate(self.bags)}

    def dense(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the layers' weights and biases, input to output."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, channels in enumerate(self.images):
            for j, units in enumerate(self.conv_channels):
                shapes[f"image.{i}.{j}.weight"] = (units, channels, 3, 3)
                shapes[f"image.{i}.{j}.bias"] = (units,)
                channels = units
        width = self.inputs
        for i, units in enumerate((*self.layers, self.outputs)):
            shapes[f"layer.{i}.weight"] = (units, width)
            shapes[f"layer.{i}.bias"] = (units,)
            width = units
        if self.skip_connection:
            shapes["skip.weight"] = (self.outputs, self.inputs)
        return shapes


class TabularNetwork(TrainableNetwork):
    """The weights of a network, and its forward pass.

    Args:
        shape: what it is.
        seed: of the first weights; they are the same on every device.
        dropout: share of hidden units silenced by `train`.

    Attributes:
        tensors: name -> weights, views of `flat` (sparse tables stand alone).
    """

    def __init__(
        self, shape: NetworkShape, *, seed: int = 0, device: str = "cpu", dropout: float = 0.0
    ) -> None:
        self.shape = shape
        self._dropout = dropout
        self._dropout_rng = torch.Generator(device)
        inside = shape.dense() if shape.sparse else {**shape.tables(), **shape.dense()}
        apart = shape.tables() if shape.sparse else {}
        self.flat = torch.zeros(sum(map(math.prod, inside.values())), device=device)
        self.flat.requires_grad_()
        self.gradient = torch.zeros_like(self.flat, requires_grad=False)
        self.flat.grad = self.gradient
        self.tables = [torch.zeros(s, device=device).requires_grad_() for s in apart.values()]
        self.tensors = dict(zip(apart, self.tables, strict=True)) | self._views(inside)
        self._activation = ACTIVATIONS[shape.activation]
        self._embeddings = [self.tensors[f"embedding.{i}"] for i in range(len(shape.categories))]
        self._bags = [self.tensors[f"bag.{i}"] for i in range(len(shape.bags))]
        self._layers = [
            (self.tensors[f"layer.{i}.weight"], self.tensors[f"layer.{i}.bias"])
            for i in range(len(shape.layers) + 1)
        ]
        self._initialize(torch.Generator().manual_seed(seed))

    def __call__(
        self,
        numeric: torch.Tensor,
        categories: torch.Tensor,
        *,
        bags: Sequence[Ragged | Sparse] = (),
        images: Sequence[torch.Tensor] = (),
        dropout: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return raw scores, shape (n,) or (n, outputs), without a link function.

        Args:
            numeric: (n, d), float32.
            categories: (n, c), int64 codes.
            bags: ids, n rows each: the mean of their vectors, or the sum by their weights.
            images: (n, channels, height, width); uint8 is brought to -0.5 ... 0.5.
            dropout: share of hidden units silenced, drawn from `rng`.
        """
        inputs = hidden = self._inputs(numeric, categories, bags, images)
        for weight, bias in self._layers[:-1]:
            hidden = self._activation(F.linear(hidden, weight, bias))
            if dropout:
                keep = torch.empty_like(hidden).bernoulli_(1 - dropout, generator=rng)
                hidden = hidden * keep.div_(1 - dropout)
        scores = F.linear(hidden, *self._layers[-1])
        if self.shape.skip_connection:
            scores = scores + F.linear(inputs, self.tensors["skip.weight"])
        return scores.squeeze(1) if self.shape.outputs == 1 else scores

    def raw(self, rows: Tensors, numeric: torch.Tensor, carry: Carry | None = None) -> torch.Tensor:
        """Return raw scores, without dropout."""
        return self(numeric, rows.categories, **_nested(rows))

    def train(
        self, rows: Tensors, numeric: torch.Tensor, carry: Carry | None = None
    ) -> torch.Tensor:
        """Return raw scores with dropout."""
        return self(
            numeric,
            rows.categories,
            **_nested(rows),
            dropout=self._dropout,
            rng=self._dropout_rng,
        )

    @property
    def trains_on_scores(self) -> bool:
        """Whether there is no dropout."""
        return not self._dropout

    @torch.no_grad()
    def reset_outputs(self, slots: Sequence[int]) -> None:
        last = f"layer.{len(self.shape.layers)}"
        for name in (f"{last}.weight", f"{last}.bias", "skip.weight"):
            if name in self.tensors:
                self.tensors[name].detach()[list(slots)] = 0.0

    def seed(self, seed: int) -> None:
        """Seed dropout."""
        if self._dropout:
            self._dropout_rng.manual_seed(seed)

    def weights(self) -> dict[str, np.ndarray]:
        """Return name -> weights, copied."""
        flat = self.flat.detach().clone().cpu()
        start, copies = 0, {}
        for name, tensor in self.tensors.items():
            if any(tensor is table for table in self.tables):
                copies[name] = tensor.detach().clone().cpu().numpy()
                continue
            part = flat[start : start + tensor.numel()]
            copies[name] = part.view(tensor.shape).numpy()
            start += tensor.numel()
        return copies

    @torch.no_grad()
    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Load a copy of what `weights` returned."""
        for name, tensor in self.tensors.items():
            tensor.copy_(torch.tensor(weights[name]))

    def build(
        self,
        graph: GraphBuilder,
        numeric: str,
        categories: str,
        *,
        ragged: Sequence[GraphColumn] = (),
        sparse: Sequence[GraphColumn] = (),
        images: Sequence[GraphColumn] = (),
    ) -> str:
        """Write the network into an ONNX graph.

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.
            ragged, sparse, images: the other inputs, in the order of the shape.

        Returns:
            The name of the raw scores, float32, (n, 1) or (n, outputs).
        """
        weights = self.weights()
        parts = self._build_embeddings(graph, weights, numeric, categories)
        for i, column in enumerate((*ragged, *sparse)):
            parts.append(_build_bag(graph, weights[f"bag.{i}"], column, mean=i < len(ragged)))
        for i, column in enumerate(images):
            parts.append(self._build_image(graph, weights, i, column))
        inputs = hidden = parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)
        for i in range(len(self.shape.layers)):
            hidden = self._build_activation(graph, _gemm(graph, weights, f"layer.{i}", hidden))
        scores = _gemm(graph, weights, f"layer.{len(self.shape.layers)}", hidden)
        if self.shape.skip_connection:
            path = graph.constant(weights["skip.weight"].T.copy(), "skip_connection")
            scores = graph.op("Add", scores, graph.op("MatMul", inputs, path))
        return scores

    def _inputs(
        self,
        numeric: torch.Tensor,
        categories: torch.Tensor,
        bags: Sequence[Ragged | Sparse],
        images: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        parts = [numeric] if self.shape.numeric else []
        for table, codes in zip(self._embeddings, categories.unbind(1), strict=True):
            parts.append(F.embedding(codes, table, sparse=self.shape.sparse))
        for table, bag in zip(self._bags, bags, strict=True):
            parts.append(_bagged(bag, table, sparse=self.shape.sparse))
        for i, image in enumerate(images):
            parts.append(self._convolve(i, image))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _convolve(self, i: int, image: torch.Tensor) -> torch.Tensor:
        """Reduce (n, channels, height, width) to (n, the last width)."""
        x = image.float().div_(255).sub_(0.5) if image.dtype == torch.uint8 else image
        for j in range(len(self.shape.conv_channels)):
            weight, bias = (self.tensors[f"image.{i}.{j}.{part}"] for part in ("weight", "bias"))
            x = self._activation(F.conv2d(x, weight, bias, stride=2, padding=1))
        return x.mean((2, 3))

    def _views(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        views, start = {}, 0
        for name, shape in shapes.items():
            part = slice(start, start + math.prod(shape))
            view = self.flat.detach()[part].view(shape).requires_grad_()
            view.grad = self.gradient[part].view(shape)
            views[name], start = view, part.stop
        return views

    @torch.no_grad()
    def _initialize(self, rng: torch.Generator) -> None:
        """Initialize weights uniformly within 1/sqrt(inputs), like `torch.nn.Linear`; embeddings
        standard normal, and the unknown code at the origin."""
        for name, tensor in self.tensors.items():
            if name in self.shape.tables():
                tensor.copy_(torch.empty(tensor.shape).normal_(generator=rng))
                tensor[0] = 0
                continue
            inputs = self.tensors[name.replace("bias", "weight")][0].numel()
            bound = 1 / math.sqrt(inputs)
            tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=rng))

    def _build_embeddings(
        self, graph: GraphBuilder, weights: dict[str, np.ndarray], numeric: str, categories: str
    ) -> list[str]:
        parts = [numeric] if self.shape.numeric else []
        for i in range(len(self.shape.categories)):
            column = graph.constant(np.int64(i), "column")
            codes = graph.op("Gather", categories, column, axis=1)
            table = graph.constant(weights[f"embedding.{i}"].copy(), "embedding")
            parts.append(graph.op("Gather", table, codes, axis=0))
        return parts

    def _build_image(
        self, graph: GraphBuilder, weights: dict[str, np.ndarray], i: int, column: GraphColumn
    ) -> str:
        x = column.values
        if column.dtype == "uint8":
            x = graph.op("Cast", x, to=FLOAT)
            x = graph.op("Div", x, graph.constant(np.float32(255)))
            x = graph.op("Sub", x, graph.constant(np.float32(0.5)))
        for j in range(len(self.shape.conv_channels)):
            names = (f"image.{i}.{j}.weight", f"image.{i}.{j}.bias")
            filters = [graph.constant(weights[name].copy(), "filter") for name in names]
            x = graph.op("Conv", x, *filters, strides=[2, 2], pads=[1, 1, 1, 1])
            x = self._build_activation(graph, x)
        return graph.op("Flatten", graph.op("GlobalAveragePool", x), axis=1)

    def _build_activation(self, graph: GraphBuilder, x: str) -> str:
        if self.shape.activation == "relu":
            return graph.op("Relu", x)
        if self.shape.activation == "silu":
            return graph.op("Mul", x, graph.op("Sigmoid", x))
        root = graph.constant(np.float32(math.sqrt(0.5)))
        share = graph.op("Erf", graph.op("Mul", x, root))
        share = graph.op("Add", share, graph.constant(np.float32(1)))
        return graph.op("Mul", graph.op("Mul", x, graph.constant(np.float32(0.5))), share)


def _nested(rows: Tensors) -> dict[str, Any]:
    """Return the network's list and image inputs, in the order of its shape."""
    bags = [*rows.ragged.values(), *rows.sparse.values()]
    return {"bags": bags, "images": list(rows.images.values())}


def _bagged(bag: Ragged | Sparse, table: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    """Return one vector per row, (n, width); zeros for an empty row."""
    if isinstance(bag, Ragged):
        ids, weights, mode = bag.values, None, "mean"
    else:
        ids, weights, mode = bag.indices, bag.weights, "sum"
    return F.embedding_bag(
        ids, table, bag.offsets, mode=mode, sparse=sparse, per_sample_weights=weights,
        include_last_offset=True,
    )  # fmt: skip


def _build_bag(graph: GraphBuilder, table: np.ndarray, column: GraphColumn, *, mean: bool) -> str:
    """Write the sum or the mean of a list's vectors; zeros for an empty list."""
    vectors = graph.op("Gather", graph.constant(table.copy(), "bag"), column.values, axis=0)
    along, last = (graph.constant(np.array([axis], np.int64)) for axis in (1, 2))
    there = graph.op("Unsqueeze", graph.op("Cast", column.mask, to=FLOAT), last)
    total = graph.op("ReduceSum", graph.op("Mul", vectors, there), along, keepdims=0)
    if not mean:
        return total
    count = graph.op("ReduceSum", there, along, keepdims=0)
    return graph.op("Div", total, graph.op("Max", count, graph.constant(np.float32(1))))


def _gemm(graph: GraphBuilder, weights: dict[str, np.ndarray], name: str, x: str) -> str:
    weight = graph.constant(weights[f"{name}.weight"].T.copy(), "weight")
    return graph.op("Gemm", x, weight, graph.constant(weights[f"{name}.bias"].copy(), "bias"))


__all__ = ["ACTIVATIONS", "NetworkShape", "TabularNetwork"]
