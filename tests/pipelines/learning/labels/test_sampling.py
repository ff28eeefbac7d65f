"""``[train.sampling]`` from a pipeline file to the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run
from engine.running.saving.codec import encode
from engine.types import UserError


def pipeline(folder: Path, n: int = 20_000, **train: Any) -> Pipeline:
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    rare = rng.random(n) < 0.02
    rows = pl.DataFrame({"a": a + rare, "y": np.where(rare, "yes", "no")})
    rows.write_parquet(folder / "rows.parquet")
    return Pipeline.of(
        {
            "name": "rare",
            "folder": str(folder / "run"),
            "source": {"kind": "files", "path": str(folder / "rows.parquet")},
            "loader": {"batch_rows": 500},
            "model": {
                "task": "binary",
                "target": "y",
                "classes": ["no", "yes"],
                "numeric": ["a"],
                "layers": [8],
            },
            "train": {"optimizer": "adam", "lr": 1e-2, "threads": 1, **train},
            "export": {"compress": {"candidates": []}},
        }
    )


def test_every_row_is_accounted_for_and_the_model_knows_the_true_shares(tmp_path: Path) -> None:
    run = Run(pipeline(tmp_path, sampling={"method": "under"}))
    totals = run.run().totals
    assert totals.balanced
    assert totals.learned + totals.predicted == 20_000
    assert 500 < totals.learned < 2_000  # the rare ones and as many others
    session = ort.InferenceSession(
        run.pipeline.model_path.with_suffix(".fp32.onnx"), providers=["CPUExecutionProvider"]
    )
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    said = session.run(None, {"a": rows["a"].to_numpy()})[0]
    assert said.mean() == pytest.approx(0.02, abs=0.005)


@pytest.mark.full
def test_resumed_it_goes_on_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    whole = Run(pipeline(tmp_path, 8_000, sampling={"smote_neighbors": 3}))
    whole.run()

    def halt(loop: Any, batch: Any) -> None:
        if loop.totals.batches == 9:
            loop.stop()

    first = Run(pipeline(tmp_path / "b", 8_000, sampling={"smote_neighbors": 3}), watch=halt)
    assert first.run().stopped
    second = Run(pipeline(tmp_path / "b", 8_000, sampling={"smote_neighbors": 3}))
    assert second.run().resumed
    expected, got = whole.learner.state_dict(), second.learner.state_dict()
    assert encode(got, {}) == encode(expected, {})


def test_a_wrong_key_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\[train.sampling\].* has no key 'methd'.*'method'"):
        Run(pipeline(tmp_path, sampling={"methd": "under"})).run()
