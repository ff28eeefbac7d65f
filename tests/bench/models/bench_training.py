"""Online training through headrace, against a bare loop over the same tensors.

``python -m tests.bench training``

Both score a batch, then learn it, with one thread for torch. The bare loop has its tensors in a
list; headrace reads frames, standardizes, collates, evaluates, counts and answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import polars as pl
from torch import nn

from connectors.memory import MemorySource
from engine.config import LoaderSettings
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.quality.evaluation import Evaluation
from engine.running.loop import Loop
from engine.running.work import Training
from engine.scrub.values.scale import Standardize
from engine.types import Batch, Features, Mark
from models.learners.modules.learner import ModuleLearner
from models.learners.tabular import TabularLearner
from tests.bench.measure import interleave, median, report

ROWS, COLUMNS = 1_024, 32
SETTINGS = {"small": (128, 64), "wide": (512, 512)}
"""Hidden layers: of the demo's network, and of one whose steps cost ten times as much."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/training.json``."""
    frame = rows(2 if quick else 200)
    runs: dict[str, Callable[[], object]] = {}
    for size, layers in SETTINGS.items():
        runs[f"bare loop, {size}"] = bare(frame, layers)
        runs[f"bare loop of a module, {size}"] = bare(frame, layers, module=True)
        runs[f"headrace, {size}"] = through(frame, layers, scrub=False)
        runs[f"headrace with standardize, {size}"] = through(frame, layers, scrub=True)
    seconds = interleave(runs, rounds=3 if quick else 7)
    figures = {f"{name}, rows/s": frame.height / median(seconds[name]) for name in runs}
    for size in SETTINGS:
        rate = figures[f"bare loop, {size}, rows/s"]
        module = figures[f"bare loop of a module, {size}, rows/s"]
        figures[f"a torch.nn.Module / the tabular network, {size}"] = module / rate
        for way in ("headrace", "headrace with standardize"):
            figures[f"{way} / bare loop, {size}"] = figures[f"{way}, {size}, rows/s"] / rate
    report("training", figures, seconds=seconds, goal="0.97 of the bare loop, 0.95 a module")


def rows(batches: int) -> pl.DataFrame:
    """Numbers and a target that depends on them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batches * ROWS, COLUMNS))
    names = [f"x{i}" for i in range(COLUMNS)]
    return pl.DataFrame(x, schema=names).with_columns(y=pl.Series(x[:, 0] * 3 + np.sin(x[:, 1])))


def learner(
    frame: pl.DataFrame, layers: tuple[int, ...], *, scaled: bool = False
) -> TabularLearner:
    """A fresh one, on one thread, that keeps no rows; it scales what no stage has scaled."""
    return TabularLearner(
        TabularLearner.Settings(layers=layers),
        TabularLearner.Training(optimizer="adam", threads=1, replay_rows=0),
        features(frame, scaled=scaled),
    )


def features(frame: pl.DataFrame, *, scaled: bool = False) -> Features:
    """All columns but the target."""
    names = tuple(frame.columns[:-1])
    return Features(numeric=names, target="y", scaled=names if scaled else ())


def perceptron(frame: pl.DataFrame, layers: tuple[int, ...]) -> ModuleLearner:
    """The same network as a module of torch."""
    widths = [len(features(frame).numeric), *layers]
    hidden = [(nn.Linear(*pair), nn.ReLU(inplace=True)) for pair in pairwise(widths)]
    network = nn.Sequential(*chain.from_iterable(hidden), nn.Linear(widths[-1], 1))
    return ModuleLearner(
        ModuleLearner.Settings(module=network),
        ModuleLearner.Training(optimizer="adam", threads=1, replay_rows=0),
        replace(features(frame), inputs={"input": features(frame).numeric}),
    )


def bare(
    frame: pl.DataFrame, layers: tuple[int, ...], *, module: bool = False
) -> Callable[[], object]:
    """The loop that everybody writes, with everything ready."""
    collate = Collate(features(frame))
    batches = [
        collate.apply(Batch(frame=part, mark=Mark(), arrived=0.0))
        for part in frame.iter_slices(ROWS)
    ]
    model = perceptron(frame, layers) if module else learner(frame, layers)
    return lambda: [model.learn(batch) for batch in batches]


def through(frame: pl.DataFrame, layers: tuple[int, ...], *, scrub: bool) -> Callable[[], object]:
    """The loop of a run: source, loader, learner, evaluation, account."""
    model = learner(frame, layers, scaled=scrub)

    def run() -> None:
        source = MemorySource.of([frame])
        schema = source.schema({})
        stages = []
        if scrub:
            stage = Standardize("standardize", Standardize.Settings(columns=("x*",)))
            schema_after = stage.bind(schema)
            stages = [stage]
        else:
            schema_after = schema
        collate = Collate(features(frame))
        collate.bind(schema_after)
        evaluation = Evaluation(Evaluation.Settings(), features(frame))
        evaluation.bind(schema_after)
        loader = Loader(
            source,
            schema=schema,
            stages=stages,
            collate=collate.apply,
            settings=LoaderSettings(batch_rows=ROWS),
        )
        work = Training(model, evaluation, emit_predictions=False)
        totals = Loop(source=source, loader=loader, work=work).run()
        assert totals.learned == frame.height

    return run


if __name__ == "__main__":
    main()
