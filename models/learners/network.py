"""A feed-forward network over numbers, category codes, bags of ids and images, with all its weights
in one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from engine.types import GraphBuilder, Ragged, Sparse

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,  # in place: a linear layer's backward does not need its own output
    "silu": F.silu,
    "gelu": F.gelu,
}


def embedding_width(codes: int) -> int:
    """Return the width of the embedding for a category of so many codes: 1.6 * codes ** 0.56, at
    most 64.

    Source: the rule of the fastai library, found by trying many tabular data sets.
    """
    return min(64, max(1, round(1.6 * math.pow(codes, 0.56))))


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


class Network:
    """The weights of a network, and its forward pass.

    Dense weights are views of one flat tensor, and their gradients of another, so that optimizer,
    norm, averaging and snapshot are one operation each instead of one a layer.

    Args:
        shape: what it is.
        seed: of the first weights; they are the same on every device.

    Attributes:
        flat, gradient: shape (p,), float32.
        tensors: name -> weights, views of `flat` (sparse tables stand alone).
        tables: the sparse tables.
    """

    def __init__(self, shape: NetworkShape, *, seed: int = 0, device: str = "cpu") -> None:
        self.shape = shape
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

    @property
    def count(self) -> int:
        """The number of weights."""
        return self.flat.numel() + sum(table.numel() for table in self.tables)

    def parameters(self) -> list[torch.Tensor]:
        """Return the tensors that hold all weights, none twice."""
        return [self.flat.detach(), *(table.detach() for table in self.tables)]

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

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the network into an ONNX graph.

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.

        Returns:
            The name of the raw scores, float32, (n, 1) or (n, outputs).
        """
        weights = self.weights()
        inputs = hidden = self._build_inputs(graph, weights, numeric, categories)
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

    def _build_inputs(
        self, graph: GraphBuilder, weights: dict[str, np.ndarray], numeric: str, categories: str
    ) -> str:
        parts = [numeric] if self.shape.numeric else []
        for i, name in enumerate(self.shape.tables()):
            column = graph.constant(np.int64(i), "column")
            codes = graph.op("Gather", categories, column, axis=1)
            table = graph.constant(weights[name].copy(), "embedding")
            parts.append(graph.op("Gather", table, codes, axis=0))
        return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)

    def _build_activation(self, graph: GraphBuilder, x: str) -> str:
        if self.shape.activation == "relu":
            return graph.op("Relu", x)
        if self.shape.activation == "silu":
            return graph.op("Mul", x, graph.op("Sigmoid", x))
        root = graph.constant(np.float32(math.sqrt(0.5)))
        share = graph.op("Erf", graph.op("Mul", x, root))
        share = graph.op("Add", share, graph.constant(np.float32(1)))
        return graph.op("Mul", graph.op("Mul", x, graph.constant(np.float32(0.5))), share)


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


def _gemm(graph: GraphBuilder, weights: dict[str, np.ndarray], name: str, x: str) -> str:
    weight = graph.constant(weights[f"{name}.weight"].T.copy(), "weight")
    return graph.op("Gemm", x, weight, graph.constant(weights[f"{name}.bias"].copy(), "bias"))


__all__ = ["ACTIVATIONS", "Network", "NetworkShape", "embedding_width"]
