"""Pipelines whose model is a module of the user's: run, stopped, killed and resumed to the bit; and
what is wrong with it, told by `check`."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_crash import (
    finish,
    finish_through_kills,
    finish_through_stops,
    same,
    state,
)

N = 600
Write = Callable[..., Path]
NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Words through a recurrent network, numbers through a normalization; dropout over both."""

    def __init__(self, hidden=8):
        super().__init__()
        self.table = nn.Embedding(501, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(hidden + 2, 1))

    def forward(self, words, price, age, words_mask):
        states, _ = self.gru(self.table(words))
        count = words_mask.sum(1, keepdim=True).clamp(min=1)
        mean = (states * words_mask.unsqueeze(-1)).sum(1) / count
        return self.head(torch.cat([mean, self.norm(torch.cat([price, age], 1))], 1))
'''
PIPELINE = """
name = "own"
folder = "{folder}"
[source]
kind = "files"
path = "{data}"
[scrub.tokens]
columns = ["text"]
size = 500
[model]
target = "label"
module = "{module}"
max_length = 16
{model}
[model.inputs.words]
columns = ["text"]
[train]
lr = 1e-2
threads = 1
replay_steps = 1
[loader]
batch_rows = 32
[checkpoint]
interval_batches = 3
[sink]
kind = "files"
path = "{folder}/out"
columns = ["label"]
"""


def rows(n: int = N) -> pl.DataFrame:
    """Words and a number tell the class; one in a hundred has no text, one in fifty no words."""
    rng = np.random.default_rng(0)
    labels = ["cross" if i % 2 else "bar" for i in range(n)]
    texts = [
        " ".join(f"{label}{w}" for w in rng.integers(0, 9, i % 12)) if i % 100 != 7 else None
        for i, label in enumerate(labels)
    ]
    price = rng.normal(5, 2, n) + 2 * (np.arange(n) % 2)
    return pl.DataFrame(
        {"text": texts, "price": price, "age": rng.integers(1, 90, n), "label": labels}
    )


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes the pipeline's file, by the name of its folder; all on the same data, beside a file
    `my_net.py`."""
    rows().write_ndjson(tmp_path / "rows.ndjson")
    (tmp_path / "my_net.py").write_text(NET)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()

    def write(name: str = "whole", module: str = "my_net:Net", model: str = "") -> Path:
        file, folder = tmp_path / f"{name}.toml", tmp_path / name
        data = tmp_path / "rows.ndjson"
        text = PIPELINE.format(folder=folder, data=data, module=module, model=model)
        file.write_text(text)
        return file

    yield write
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def ends(file: Path) -> dict[str, Any]:
    saved, folder = state(file), file.with_suffix("")
    return {
        **{part: saved[part] for part in ("positions", "stages", "totals", "work")},
        "rows": pl.read_parquet(folder / "out" / "*.parquet"),
    }


def test_a_module_learns_its_inputs(pipeline: Write, headrace: Headrace) -> None:
    file = pipeline()
    code, out, _ = headrace("check", file)
    assert code == 0
    assert "is ready to run" in out
    summary = Run(file).run()
    assert summary.totals.balanced
    assert summary.totals.counts["tokens", "null"] == N // 100  # a text that is null has no words
    last = ends(file)["rows"].tail(100)
    assert (last["label"] == last["prediction"]).mean() >= 0.95


@pytest.mark.full
@pytest.mark.slow
def test_a_stopped_or_killed_run_ends_where_an_uninterrupted_one_does(pipeline: Write) -> None:
    whole, stopped, killed = map(pipeline, ("whole", "stopped", "killed"))
    finish(whole)
    finish_through_stops(stopped, 3, 8)
    same(ends(whole), ends(stopped))
    finish_through_kills(killed, killed.with_suffix("") / "checkpoints")
    same(ends(whole), ends(killed))


class Linear(nn.Module):
    """Learns from one number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, price: torch.Tensor) -> Any:
        return self.linear(price)


def test_an_instance_learns_in_a_run(pipeline: Write) -> None:
    file, mine = pipeline(), Linear()
    text = file.read_text().replace('module = "my_net:Net"\n', "")
    file.write_text(text.replace('[model.inputs.words]\ncolumns = ["text"]\n', ""))
    before = mine.linear.weight.detach().clone()
    run = Run(file, module=mine)
    assert run.run().totals.learned == N  # the text is not read
    assert torch.equal(mine.linear.weight, before)
    assert run.features.inputs == {"price": ("price",)}
    with pytest.raises(
        UserError, match=r"module in .* is 'my_net:Net', and Run was given a module"
    ):
        Run(pipeline("twice"), module=mine).run()


BAD: dict[str, tuple[str, str, str]] = {
    # name: (the file's text, what [model] has beside, what is said)
    "import": (
        "import nothing_like_it\n",
        "",
        "ModuleNotFoundError: No module named 'nothing_like",
    ),
    "lines": (
        "raise ValueError('one\\ntwo')\n",
        "",
        "cannot be imported: ValueError: one; expected",
    ),
    "exit": ("raise SystemExit('bye')\n", "", "cannot be imported: SystemExit: bye"),
    "syntax": ("class Net(\n", "", "cannot be imported: SyntaxError"),
    "no class": ("x = 1\n", "", "has no attribute 'Net'"),
    "arguments": (NET, "arguments = {hiden = 3}", "Did you mean 'hidden'?"),
    "their type": (NET, 'arguments = {hidden = "x"}', "cannot be made with hidden = 'x'"),
    "asks": (NET.replace("age", "agee"), "", "asks for 'agee', and there is neither an input"),
    "lacks": (NET.replace("words, price", "wrds, price"), "", "asks for 'wrds'"),
    "shape": (NET.replace("+ 2, 1", "+ 2, 3"), "", "returns scores of shape (2, 3)"),
    "raises": (NET.replace("hidden + 2, 1", "hidden, 1"), "", "mat1 and mat2 shapes cannot be mul"),
    "text": (NET.replace("age", "label"), "", "reads column 'label', which is string"),
    "unknown key": (NET, "modul = 1", "has no key 'modul'. Did you mean 'module'?"),
    "images": (NET, 'images = ["text"]', "[model] images is a key of kind = 'tabular'"),
}


@pytest.mark.parametrize(
    ("command", "case"), [*(("check", case) for case in BAD), ("run", "shape"), ("run", "import")]
)
def test_what_is_wrong_is_one_sentence(
    command: str, case: str, pipeline: Write, headrace: Headrace, tmp_path: Path
) -> None:
    text, model, said = BAD[case]
    (tmp_path / "my_net.py").write_text(text)
    code, out, err = headrace(command, pipeline(model=model))
    assert code == 2, out
    assert said in err
    assert "Traceback" not in err
    said_so = [line for line in err.splitlines() if line.startswith("headrace: ")]
    logged = [json.loads(line)["level"] for line in err.splitlines() if line not in said_so]
    assert len(said_so) == 1
    assert set(logged) <= {"info"}
    assert not (tmp_path / "whole" / "checkpoints").exists()


README = (Path(__file__).parents[4] / "models" / "README.md").read_text()


def blocks(language: str, title: str) -> list[str]:
    """The README's blocks under a heading."""
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_readme_learn(tmp_path: Path, pipeline: Write) -> None:
    (module,) = blocks("python", "A network of your own")
    (tmp_path / "my_net.py").write_text(module)
    tables = blocks("toml", "A network of your own")
    assert len(tables) == 2
    text = pipeline().read_text()
    head, rest = text[: text.index("[model]")], text[text.index("[train]") :]
    for number, table in enumerate(tables):
        file, folder = tmp_path / f"{number}.toml", tmp_path / str(number)
        file.write_text(f"{head}{table}{rest}".replace(str(tmp_path / "whole"), str(folder)))
        assert Run(file).run().totals.learned == N
        last = pl.read_parquet(folder / "out" / "*.parquet").tail(100)
        assert (last["label"] == last["prediction"]).to_numpy().mean() >= 0.95


EXPORT = "[export]\nholdout = 0.1\ncompress = false\n"


@pytest.mark.full
def test_what_a_module_has_learned_is_served(pipeline: Write, headrace: Headrace) -> None:
    """From one file, behind the stage that none can contain; a row without text has no answer."""
    file = pipeline()
    file.write_text(file.read_text() + EXPORT)
    code, _, err = headrace("run", file)
    assert code == 0, err
    table, folder = tomllib.loads(file.read_text()), file.with_name("served")
    served = {
        "name": "served",
        "folder": str(folder),
        "source": table["source"],
        "scrub": table["scrub"],
        "infer": {"model": str(file.with_suffix("") / "model.onnx")},
        "sink": {"kind": "files", "path": str(folder / "out"), "columns": ["label"]},
    }
    totals = Run(Pipeline.of(served)).run().totals
    assert totals.balanced
    assert (totals.predicted, totals.rejected) == (N, 0)
    answers = pl.read_parquet(folder / "out" / "*.parquet")
    assert (answers["label"] == answers["prediction"]).to_numpy().mean() >= 0.95


def test_a_module_that_cannot_be_exported_is_served_by_torch(
    pipeline: Write, headrace: Headrace, tmp_path: Path
) -> None:
    """Every command says why; whoever serves the file names its class."""
    asks = "        states, _ = self.gru(self.table(words) * (2 if words.sum() > 9 else 1))\n"
    text = NET.replace("        states, _ = self.gru(self.table(words))\n", asks)
    (tmp_path / "my_net.py").write_text(text)
    file = pipeline()
    file.write_text(file.read_text() + "[export]\nholdout = 0.1\n")
    why = "[model] module 'my_net:Net' cannot be exported as ONNX: torch.export cannot trace it"
    code, out, err = headrace("check", file)
    assert code == 0, err
    assert why in out + err
    code, _, err = headrace("run", file)
    assert code == 0, err
    assert why in err
    model = file.with_suffix("") / "model.onnx"
    table, folder = tomllib.loads(file.read_text()), file.with_name("served")
    served: dict[str, Any] = {
        "name": "served",
        "folder": str(folder),
        "source": table["source"],
        "scrub": table["scrub"],
        "infer": {"model": str(model)},
        "sink": {"kind": "files", "path": str(folder / "out"), "columns": ["label"]},
    }
    with pytest.raises(UserError, match=r"name it, \[infer\] module = 'my_net:Net', if you trust"):
        Run(Pipeline.of(served)).run()
    served["infer"]["module"] = "my_net:Other"
    with pytest.raises(UserError, match="the network of the model file is of 'my_net:Net'"):
        Run(Pipeline.of(served)).run()
    served["infer"]["module"] = "my_net:Net"
    totals = Run(Pipeline.of(served)).run().totals
    assert totals.balanced
    assert (totals.predicted, totals.rejected) == (N, 0)
    answers = pl.read_parquet(folder / "out" / "*.parquet")
    assert (answers["label"] == answers["prediction"]).to_numpy().mean() >= 0.9
