"""Any module of torch behind the front of a model file: it scores as torch does, for any number of
rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from engine.system import limited_process
from engine.system.limited_process import Limits, ProcessFailed
from models.export.body import Body, NotExportable, _rows, convert
from models.net_input import NetInput
from tests.models import nets
from tests.models.export import modules
from tests.models.export.modules import CODES, NUMBERS, PAST, PHOTO, WORDS, in_this_process

PARITY = 1e-5
"""The largest difference, as a share of the largest score."""
KINDS: dict[str, tuple[Any, tuple[NetInput, ...], int]] = {
    "perceptron": (modules.Perceptron, (NUMBERS,), 1),
    "wide and deep": (modules.WideAndDeep, (NUMBERS, CODES), 1),
    "bag": (modules.Bag, (WORDS,), 1),
    "gru": (lambda: modules.Recurrent(nn.GRU), (WORDS,), 1),
    "lstm": (lambda: modules.Recurrent(nn.LSTM), (WORDS,), 1),
    "encoder": (modules.Encoder, (WORDS,), 3),
    "1-d convolution": (modules.Convolution1d, (PAST,), 1),
    "2-d convolution": (modules.Convolution2d, (PHOTO,), 1),
    "experts": (modules.Experts, (NUMBERS,), 1),
    "two towers": (modules.TwoTowers, (WORDS, CODES), 1),
    "several outputs, quantiles": (modules.Quantiles, (NUMBERS,), 3),
    "a user's": (
        nets.Words,
        (
            NetInput(name="numeric", form="numbers", columns=("a", "b", "c", "d")),
            replace(WORDS, sizes=(20,)),
        ),
        1,
    ),
    "fixed length": (modules.Flat, (PAST,), 1),
    "resnet": (
        modules.Resnet,
        (NetInput(name="photo", form="image", columns=("photo",), shape=(3, 33, 33)),),
        1,
    ),
}


FEW = ("gru", "2-d convolution")


def body(kind: str, **keys: Any) -> Body:
    """A network with running means that are not those it began with."""
    make, inputs, outputs = KINDS[kind]
    torch.manual_seed(0)
    module = make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for kept, low, high in ((part.running_mean, -1.0, 1.0), (part.running_var, 0.5, 2.0)):
                assert kept is not None
                kept.uniform_(low, high)
    masks = [f"{entry.name}_mask" for entry in inputs if entry.form in ("ids", "array")]
    unasked = ["past_mask"] if kind == "fixed length" else []
    names = [name for name in (*(e.name for e in inputs), *masks) if name not in unasked]
    given: dict[str, Any] = {
        "inputs": inputs,
        "arguments": names,
        "outputs": outputs,
        "max_length": 16,
        "lengths": {"past": 6},
    }
    return Body(module=module.eval(), **(given | keys))


@pytest.fixture(
    scope="module",
    params=[
        FEW,
        pytest.param(tuple(KINDS.keys() - {*FEW}), marks=[pytest.mark.slow, pytest.mark.full]),
    ],
    ids=["few", "others"],
)
def converted(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """A session of each."""
    kinds: tuple[str, ...] = request.param
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        models = convert([body(kind) for kind in kinds])
    return {
        kind: onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for kind, model in zip(kinds, models, strict=True)
    }


def difference(session: Any, of: Body, rows: int, longest: int) -> float:
    tensors = _rows(of, rows, longest, torch.Generator().manual_seed(rows))
    with torch.no_grad():
        wanted = of.module(**tensors).numpy()
    names = {value.name for value in session.get_inputs()}
    feed = {name: tensor.numpy() for name, tensor in tensors.items() if name in names}
    got: NDArray[Any] = session.run(None, feed)[0]
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_a_converted_network_scores_as_torch(converted: Mapping[str, Any]) -> None:
    """For any number of rows, and lists of any length, empty ones too."""
    for kind, session in converted.items():
        of = body(kind)
        for rows, longest in [(1, 1), (1, 16), (2, 2), (3, 5), (64, 16), (1_000, 12)]:
            assert difference(session, of, rows, longest) <= PARITY, (kind, rows, longest)


# ---------------------------------------------------------------------------- what cannot be one


class AsksTheNumbers(nn.Module):
    """Its way depends on what the rows hold."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sum(1) if numbers.sum() > 0 else numbers.mean(1)


class CountsRows(nn.Module):
    """Divides by the size of the batch as a Python number."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.sum() for row in numbers]) / len(numbers.tolist())


class Fails(nn.Module):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such luck")


class Sorts(nn.Module):
    """torch.onnx knows no such operator."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = torch.linalg.eigvalsh(numbers[:, :, None] * numbers[:, None, :])
        return scores[:, 0]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            AsksTheNumbers(),
            "torch.export cannot trace it (Data-dependent branching, at test_body.py:",
        ),
        (CountsRows(), "torch.export cannot trace it"),
        (Fails(), "its forward fails on 1 row (no such luck)"),
        (Sorts(), "torch.onnx cannot convert it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_network_that_cannot_be_converted(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, reason: str
) -> None:
    """One sentence: which, why, what to do."""
    in_this_process(monkeypatch)
    of = Body(
        module=module,
        inputs=(NUMBERS,),
        arguments=("numbers",),
        outputs=1,
        name="[model] module 'X'",
    )
    with pytest.raises(NotExportable) as error:
        convert([of])
    sentence = str(error.value)
    assert sentence.startswith(f"[model] module 'X' cannot be exported as ONNX: {reason}")
    assert sentence.endswith("take [export] out and score with the pipeline that trains it.")
    assert "\n" not in sentence


def test_a_conversion_that_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashed(function: str, argument: Any, limits: Limits) -> Any:
        raise ProcessFailed("crashed with SIGSEGV")

    monkeypatch.setattr(limited_process, "call", crashed)
    with pytest.raises(NotExportable, match="its conversion crashed with SIGSEGV"):
        convert([body("perceptron")])


class Pretends(nn.Module):
    """Another network while it is traced."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        more = numbers.shape[1] if torch.compiler.is_exporting() else 0
        return numbers.sum(1) + more


def test_a_conversion_that_scores_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    of = Body(module=Pretends(), inputs=(NUMBERS,), arguments=("numbers",), outputs=1)
    with pytest.raises(NotExportable, match="of 1 row at a time the converted network scores one"):
        convert([of])


class CountsByLen(nn.Module):
    """Asks Python how many rows there are."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers[torch.arange(len(numbers)), numbers.argmax(1)]


def test_a_trace_that_fails_says_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch prints the graph so far; and what its first way cannot trace, its second can."""
    in_this_process(monkeypatch)
    of = Body(module=CountsByLen(), inputs=(NUMBERS,), arguments=("numbers",), outputs=1)
    assert len(convert([of])) == 1
    with pytest.raises(NotExportable):
        convert(
            [Body(module=AsksTheNumbers(), inputs=(NUMBERS,), arguments=("numbers",), outputs=1)]
        )
    assert capfd.readouterr() == ("", "")
