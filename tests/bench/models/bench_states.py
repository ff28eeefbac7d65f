"""A state per key, beside a window of rows that is read again for each row.

``python -m tests.bench states``

Rows of 8 numbers by 1,024 keys, each once in a batch; a GRU of 64 before a head of two layers. The
window has 32 rows, which a stage `history` remembers and the network reads from its first one; the
state is taken on by one step. Served: from a frame to answers, by ONNX Runtime on one thread.
Learned: from a frame to weights, in steps of a whole batch without replay, by torch on one thread.
The bare net is the same GRU with nothing around it, and without a table of states. How the two
differ is the largest difference of the outputs of a GRU after 32 rows from a state of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch
from torch import nn

from engine.columnar.state_table import Rounds, StateTable
from engine.loading.collate import Collate
from engine.scrub.features.history import History
from engine.types import Batch, Features, KeyedState, Mark
from models.export.model import export
from models.layers.recurrent import StateCell
from models.learners.modules.learner import ModuleLearner
from models.serving.predictor import OnnxPredictor
from tests.bench.measure import interleave, median, report

KEYS = 1_024
NUMBERS, WIDTH, WINDOW = 8, 64, 32
NAMES = tuple(f"x{i}" for i in range(NUMBERS))
MANY = 1_000_000
SETTLED = 1 << 17
"""Rows after which a step has a whole batch."""
STATE = KeyedState(by=("key",), width=WIDTH, keys=MANY)
FEATURES = {
    "window": Features(
        numeric=(),
        arrays={"past": (WINDOW, NUMBERS)},
        inputs={"past": ("past",)},
        max_length=WINDOW,
        target="y",
    ),
    "state": Features(numeric=NAMES, inputs={"numeric": NAMES}, target="y", state=STATE),
}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/states.json``."""
    torch.set_num_threads(1)
    rounds, batches = (3, 2) if quick else (7, 20)
    frames = [rows(seed) for seed in range(batches)]
    runs: dict[str, Callable[[], object]] = {}
    with TemporaryDirectory() as folder:
        for name in FEATURES:
            runs[f"served, {name}"] = served(name, Path(folder), frames)
            runs[f"learned, {name}"] = learned(name, frames)
            runs[f"bare net, {name}"] = bare(name, batches)
        seconds = interleave(runs, rounds)
    figures: dict[str, Any] = {
        f"{name}, rows/s": batches * KEYS / median(spent) for name, spent in seconds.items()
    }
    for what in ("served", "learned", "bare net"):
        window, state = (median(seconds[f"{what}, {name}"]) for name in FEATURES)
        figures[f"{what}, state / window"] = window / state
    figures["largest difference"] = difference()
    figures |= many_keys(10_000 if quick else MANY)
    goal = f"50 x a window of {WINDOW}, equal to 1e-6; a million keys in 0.4 GB"
    report("states", figures, seconds=seconds, goal=goal)


def rows(seed: int) -> pl.DataFrame:
    """One row of each key."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(rng.normal(size=(KEYS, NUMBERS)), schema=NAMES)
    return frame.with_columns(
        key=pl.Series([f"user {key}" for key in rng.permutation(KEYS)]),
        y=pl.Series(rng.normal(size=KEYS)),
        _partition=pl.lit("p"),
        _position=pl.int_range(KEYS),
    )


def batch_of(frame: pl.DataFrame) -> Batch:
    return Batch(frame=frame, mark=Mark(), arrived=0.0)


def prepare(name: str, frame: pl.DataFrame) -> Callable[[pl.DataFrame], Batch]:
    """What comes before the model: the rows of the window, all of them there."""
    if name == "state":
        return batch_of
    past = History(
        "past", History.Settings(columns=NAMES, by=("key",), rows=WINDOW, own=True, keys=MANY)
    )
    past.bind(dict(frame.schema))
    for _ in range(WINDOW):
        past.apply(batch_of(frame))
    return lambda frame: past.apply(batch_of(frame))


def learner(name: str) -> ModuleLearner:
    state: Any = {"by": ["key"], "width": WIDTH} if name == "state" else None
    made = ModuleLearner(
        ModuleLearner.Settings(state=state),
        ModuleLearner.Training(replay_rows=0, threads=1),
        FEATURES[name],
    )
    made._stepper._rows = SETTLED
    return made


def learned(name: str, frames: list[pl.DataFrame]) -> Callable[[], object]:
    """From frames to weights."""
    before, collate, model = prepare(name, frames[0]), Collate(FEATURES[name]), learner(name)

    def run() -> None:
        for frame in frames:
            model.learn(collate.apply(before(frame)))

    return run


def served(name: str, folder: Path, frames: list[pl.DataFrame]) -> Callable[[], object]:
    """From frames to answers."""
    before, model = prepare(name, frames[0]), learner(name)
    batch = before(frames[0])
    model.learn(Collate(FEATURES[name]).apply(batch))
    path = export(
        folder / f"{name}.onnx", model, [], {"columns": "{}"}, schema=dict(batch.frame.schema)
    )
    predictor = OnnxPredictor(OnnxPredictor.Settings(model=str(path), threads=1))
    predictor.bind(dict(batch.frame.schema))

    def run() -> None:
        for frame in frames:
            predictor.predict(before(frame))

    return run


@torch.no_grad()
def bare(name: str, batches: int) -> Callable[[], object]:
    """The GRU alone, over rows that lie ready."""
    torch.manual_seed(0)
    if name == "state":
        cell, x = StateCell("gru", NUMBERS, WIDTH), torch.randn(KEYS, NUMBERS)
        state = torch.zeros(KEYS, WIDTH)
        return lambda: passed(cell, x, state, batches)
    gru, windows = nn.GRU(NUMBERS, WIDTH, batch_first=True), torch.randn(KEYS, WINDOW, NUMBERS)
    return lambda: read(gru, windows, batches)


@torch.no_grad()
def passed(cell: StateCell, x: torch.Tensor, state: torch.Tensor, batches: int) -> None:
    for _ in range(batches):
        _, state = cell(x, state)


@torch.no_grad()
def read(gru: nn.GRU, windows: torch.Tensor, batches: int) -> None:
    for _ in range(batches):
        gru(windows)


@torch.no_grad()
def difference() -> float:
    """The largest difference between a state taken on row by row and a window read at once."""
    torch.manual_seed(0)
    cell, gru = StateCell("gru", NUMBERS, WIDTH), nn.GRU(NUMBERS, WIDTH, batch_first=True)
    for name, weights in cell.cell.named_parameters():
        getattr(gru, f"{name}_l0").copy_(weights)
    windows, state = torch.randn(KEYS, WINDOW, NUMBERS), torch.zeros(KEYS, WIDTH)
    for place in range(WINDOW):
        _, state = cell(windows[:, place], state)
    return float((gru(windows)[0][:, -1] - state).abs().max())


def many_keys(keys: int) -> dict[str, float]:
    """Memory of so many keys, and the rate at which batches of any of them pass."""
    before = resident()
    table = StateTable(width=WIDTH, keys=keys)
    rng = np.random.default_rng(0)
    every = rng.integers(0, 2**63, keys).astype(np.uint64)
    states = np.ones((KEYS, WIDTH), np.float32)
    for start in range(0, keys, KEYS):
        part = every[start : start + KEYS]
        table.put(table.enter(part).slots, states[: len(part)])
    taken = resident() - before

    def run() -> None:
        for _ in range(20):
            entry = table.enter(every[rng.integers(0, keys, KEYS)])
            rounds = Rounds.of(np.maximum(entry.previous - entry.row, -1))
            table.states(entry, rounds.first)
            table.put(entry.slots, states)

    spent = interleave({"table": run}, 7)["table"]
    return {
        f"{keys:,} keys, bytes a key resident": taken / keys,
        f"{keys:,} keys, bytes a key on /metrics": table.nbytes / len(table),
        f"{keys:,} keys, table alone, rows/s": 20 * KEYS / median(spent),
    }


def resident() -> int:
    """The memory of this process, in bytes."""
    nbytes: int = psutil.Process().memory_info().rss
    return nbytes
