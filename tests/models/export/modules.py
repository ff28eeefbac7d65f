"""Networks of every kind, small: what people bring."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from engine.system import limited_process
from engine.system.limited_process import Limits
from models.export import conversion
from models.net_input import NetInput

NUMBERS = NetInput(name="numbers", form="numbers", columns=("a", "b", "c"))
CODES = NetInput(name="codes", form="codes", columns=("k", "m"), sizes=(5, 9))
WORDS = NetInput(name="words", form="ids", columns=("words",), sizes=(30,))
PHOTO = NetInput(name="photo", form="image", columns=("photo",), shape=(3, 12, 10))
PAST = NetInput(name="past", form="array", columns=("past",), shape=(6, 2))
OPERATORS = functools.cache(ONNXRegistry.from_torchlib)


class Perceptron(nn.Module):
    """Numbers through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 1))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.body(numbers).squeeze(1)
        return scores


class WideAndDeep(nn.Module):
    """A weight for each code beside a network over embeddings and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Embedding(size, 1) for size in CODES.sizes)
        self.deep = nn.ModuleList(nn.Embedding(size, 4) for size in CODES.sizes)
        self.body = nn.Sequential(nn.Linear(11, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, codes: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        each = codes.unbind(1)
        wide = sum(table(c) for table, c in zip(self.wide, each, strict=True))
        vectors = [table(c) for table, c in zip(self.deep, each, strict=True)]
        scores: torch.Tensor = wide + self.body(torch.cat([*vectors, numbers], 1))
        return scores


class Bag(nn.Module):
    """The mean of the words' vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 1)

    def forward(self, words: torch.Tensor, words_mask: torch.Tensor) -> torch.Tensor:
        there = words_mask.unsqueeze(2).float()
        mean = (self.table(words) * there).sum(1) / there.sum(1).clamp(min=1)
        scores: torch.Tensor = self.head(mean)
        return scores


class Recurrent(nn.Module):
    """The state after the last word."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8, padding_idx=0)
        self.cells, self.head = kind(8, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, words: torch.Tensor, words_mask: torch.Tensor) -> torch.Tensor:
        states = self.cells(self.table(words))[0]
        last = (words_mask.sum(1) - 1).clamp(min=0)
        at = last[:, None, None].expand(-1, 1, states.shape[2])
        state = states.gather(1, at).squeeze(1) * words_mask.any(1, keepdim=True)
        scores: torch.Tensor = self.head(state).squeeze(1)
        return scores


class Encoder(nn.Module):
    """A transformer over words, with learned positions; padding is not attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(30, 8), nn.Embedding(16, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, words: torch.Tensor, words_mask: torch.Tensor) -> torch.Tensor:
        x = self.table(words) + self.places(torch.arange(words.shape[1], device=words.device))
        hidden = words_mask.clone()
        hidden[:, 0] = True  # an empty row attends to its first place
        x = self.layers(x, src_key_padding_mask=~hidden)
        there = hidden.unsqueeze(2).float()
        scores: torch.Tensor = self.head((x * there).sum(1) / there.sum(1))
        return scores


class Convolution1d(nn.Module):
    """Filters over the last rows of a key."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.head = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(6, 1)

    def forward(self, past: torch.Tensor, past_mask: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.filters((past * past_mask.unsqueeze(2)).transpose(1, 2)))
        scores: torch.Tensor = self.head(x.amax(2))
        return scores


class Convolution2d(nn.Module):
    """Convolutions with batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 1),
        )  # fmt: skip

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.body(photo)
        return scores


class Experts(nn.Module):
    """Two of four experts for each row, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 4)
        self.experts = nn.ModuleList(nn.Linear(3, 1) for _ in range(4))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        top, at = self.gate(numbers).topk(2, dim=1)
        weights = torch.zeros_like(self.gate(numbers)).scatter(1, at, top.softmax(1))
        said = torch.cat([expert(numbers) for expert in self.experts], 1)
        return (weights * said).sum(1)


class TwoTowers(nn.Module):
    """How alike the words and the codes are."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 6)
        self.codes = nn.ModuleList(nn.Embedding(size, 6) for size in CODES.sizes)

    def forward(self, **tensors: torch.Tensor) -> torch.Tensor:
        there = tensors["words_mask"].unsqueeze(2).float()
        words = (self.words(tensors["words"]) * there).sum(1)
        each = zip(self.codes, tensors["codes"].unbind(1), strict=True)
        codes = torch.stack([table(c) for table, c in each]).sum(0)
        return nn.functional.cosine_similarity(words, codes, dim=1)


class Quantiles(nn.Module):
    """Several numbers of each row, each above the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.more = nn.Linear(3, 1), nn.Linear(3, 2)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        steps = nn.functional.softplus(self.more(numbers))
        return torch.cat([self.first(numbers), steps], 1).cumsum(1)


class Resnet(nn.Module):
    """A network that others have made, with one block of each width."""

    def __init__(self) -> None:
        super().__init__()
        theirs = importlib.import_module("torchvision.models.resnet")  # two seconds: where needed
        self.body = theirs.ResNet(theirs.BasicBlock, [1, 1, 1, 1], num_classes=1)

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.body(photo)
        return scores


class Flat(nn.Module):
    """All numbers of an array side by side: its length is part of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 1)

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(past.flatten(1))
        return scores


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert without a child, which takes seconds to start; and list torch's operators once."""

    def call(function: str, argument: Any, limits: Limits) -> Any:
        assert function == "models.export.conversion:convert"
        return conversion.convert(argument)

    monkeypatch.setattr(limited_process, "call", call)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(OPERATORS))
