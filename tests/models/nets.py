"""Modules as a user writes them: good ones, and one for each thing that can be wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

COLORS, CITIES = 5, 7


class Embedder(nn.Module):
    """Numbers, and the mean of the words' vectors, side by side; it does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 3)

    def forward(
        self, numeric: torch.Tensor, words: torch.Tensor, words_mask: torch.Tensor
    ) -> torch.Tensor:
        there = words_mask.unsqueeze(-1)
        mean = (self.table(words) * there).sum(1) / there.sum(1).clamp(min=1)
        return torch.cat([numeric, mean], 1)


class Mlp(nn.Module):
    """Numbers and categories."""

    def __init__(self, hidden: int = 16, outputs: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.color = nn.Embedding(COLORS, 3)
        self.city = nn.Embedding(CITIES, 3)
        self.body = nn.Sequential(nn.LazyLinear(hidden), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden, outputs)

    def forward(self, numeric: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        codes = [self.color(categories[:, 0]), self.city(categories[:, 1])]
        return cast(torch.Tensor, self.head(self.body(torch.cat([numeric, *codes], 1))))


class Carrying(nn.Module):
    """A cell of its own, whose state the keys of rows carry."""

    def __init__(self, width: int = 6, outputs: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width + 4, outputs)

    def forward(
        self, numeric: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.cell(numeric, state)
        return self.head(torch.cat([self.dropout(state), numeric], 1)), state


class Forgetful(nn.Module):
    """Gets a state and returns none."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6 + 4, 1)

    def forward(self, numeric: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(torch.cat([state, numeric], 1)))


class Narrowing(Forgetful):
    """Returns half of the state."""

    def forward(  # type: ignore[override]
        self, numeric: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(numeric, state), state[:, :3]


class Normed(nn.Module):
    """Batch normalization: running means, and rows that depend on each other."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, outputs)

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(self.body(numeric)))


class Words(nn.Module):
    """A recurrent network over ids, whose mask says where they end; and numbers beside it."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.head = nn.Linear(6 + 4, outputs)

    def forward(
        self, numeric: torch.Tensor, words: torch.Tensor, words_mask: torch.Tensor
    ) -> torch.Tensor:
        states, _ = self.gru(self.table(words))
        last = (words_mask.sum(1) - 1).clamp(min=0)
        state = states[torch.arange(len(last)), last] * words_mask.any(1, keepdim=True)
        return cast(torch.Tensor, self.head(torch.cat([state, numeric], 1)))


class Picture(nn.Module):
    """Convolutions with batch normalization over an image."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, outputs)

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.norm(self.convolution(photo - 0.5)))
        return cast(torch.Tensor, self.head(hidden.mean((2, 3))))


class Past(nn.Module):
    """The rows before, as an array with a mask, through a network that shares its two layers."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, outputs)

    def forward(
        self, numeric: torch.Tensor, past: torch.Tensor, past_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert past_mask is not None
        mean = past.sum(1) / past_mask.sum(1, keepdim=True).clamp(min=1)
        x = torch.cat([numeric, mean, mean.square()], 1)
        return cast(torch.Tensor, self.head(F.silu(self.second(F.silu(self.first(x))))))


# -------------------------------------------------------------------------- what can be wrong


class Changed(nn.Module):
    """A linear model of the numbers, whose scores another function changes."""

    def __init__(self, change: Callable[[Any, torch.Tensor], Any], outputs: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(4, outputs)
        self.change = change
        self.calls = 0

    def forward(self, numeric: torch.Tensor) -> Any:
        self.calls += 1
        return self.change(self, self.linear(numeric))


def wide(outputs: int = 5) -> nn.Module:
    """More scores than there are classes."""
    return Changed(lambda _, raw: raw, outputs)


def squeezed() -> nn.Module:
    """Loses the rows' dimension where there is one row."""
    return Changed(lambda _, raw: raw.squeeze())


def not_a_number() -> nn.Module:
    return Changed(lambda _, raw: raw * torch.nan)


def whole() -> nn.Module:
    return Changed(lambda _, raw: (raw > 0).long())


def a_pair() -> nn.Module:
    return Changed(lambda _, raw: (raw, raw))


def detached() -> nn.Module:
    return Changed(lambda _, raw: raw.detach())


def always_random() -> nn.Module:
    return Changed(lambda _, raw: F.dropout(raw, 0.5))


def python_random() -> nn.Module:
    return Changed(lambda _, raw: raw + random.random())


def stateful() -> nn.Module:
    return Changed(lambda self, raw: raw + self.calls)


def steep() -> nn.Module:
    """The slope of a root at 0."""
    return Changed(lambda self, raw: raw + (raw * 0).sqrt())


def raises() -> nn.Module:
    def fail(_: Any, raw: torch.Tensor) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nand a long trace")

    return Changed(fail)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(numeric.mul_(2)))


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(numeric.double()))


class Empty(nn.Module):
    """Nothing to learn."""

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return numeric.sum(1)


class Unused(nn.Module):
    """A lazy layer that no forward gives a size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.lazy = nn.LazyLinear(3)

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(numeric))


class OneLength(nn.Module):
    """Takes lists of one length alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 2)
        self.linear = nn.Linear(16, 1)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(self.table(words).flatten(1)))


class Narrow(OneLength):
    """A table that does not hold every id."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(19, 2)


class Careless(nn.Module):
    """Takes padding for values."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 1)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.table(words).mean(1))


class Empties(nn.Module):
    """NaN for a row whose list is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 1)

    def forward(self, words: torch.Tensor, words_mask: torch.Tensor) -> torch.Tensor:
        values = self.table(words).squeeze(2) * words_mask
        return cast(torch.Tensor, values.sum(1) / words_mask.sum(1))


class Branching(nn.Module):
    """Looks at its numbers before it decides, which no graph can: torch runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        scores = self.linear(numeric)
        return cast(torch.Tensor, scores if float(numeric.sum()) > 0 else scores * 1.0)


class Positional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(tensors[0]))


class Silent(nn.Module):
    """No forward."""


class Sized(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(self.linear(numeric)))


def no_module() -> int:
    return 7


A_NUMBER = 7
