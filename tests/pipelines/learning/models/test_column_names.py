"""Columns may have the names of what is inside a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run

N = 600


def pipeline(folder: Path, names: list[str], kind: str) -> Pipeline:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, len(names)))
    label = np.where(x.sum(1) + rng.normal(size=N) / 4 > 0, "yes", "no")
    folder.mkdir()
    frame = pl.DataFrame(x, schema=names).with_columns(label=pl.Series(label))
    frame.write_parquet(folder / "rows.parquet")
    layers: dict[str, Any] = {"layers": [8]} if kind == "tabular" else {}
    return Pipeline.of(
        {
            "name": "names",
            "folder": str(folder / "run"),
            "source": {"kind": "files", "path": str(folder / "rows.parquet")},
            "scrub": {"clip": {"kind": "outliers", "columns": names[:2], "method": "zscore"}},
            "model": {
                "kind": kind,
                "task": "binary",
                "target": "label",
                "numeric": names,
                **layers,
            },
            "export": {"holdout": 0.2, "compress": {} if kind == "tabular" else False},
        }
    )


def answers(model: Path, folder: Path) -> pl.DataFrame:
    served = {
        "name": "served",
        "folder": str(folder / "served"),
        "source": {"kind": "files", "path": str(folder / "rows.parquet")},
        "infer": {"model": str(model)},
        "sink": {"kind": "files", "path": str(folder / "out"), "columns": ["label"]},
    }
    assert Run(Pipeline.of(served)).run().totals.predicted == N
    return pl.read_parquet(folder / "out" / "*.parquet")


@pytest.mark.parametrize("kind", ["tabular", "linear", "module"])
def test_columns_may_be_named_like_the_values_of_a_graph(kind: str, tmp_path: Path) -> None:
    plain = Run(pipeline(tmp_path / "plain", ["a", "b", "c", "d"], kind)).run().files["model"]
    graph = onnx.load(plain).graph
    made = {name for node in graph.node for name in node.output}
    inside = sorted((made | {constant.name for constant in graph.initializer}) - {"score"})
    assert "score" in made
    names = ["score", *inside[:: len(inside) // 3]][:4]
    odd = Run(pipeline(tmp_path / "odd", names, kind)).run().files["model"]
    rows = answers(odd, tmp_path / "odd")
    right = (rows["label"] == rows["prediction"]).to_numpy()
    assert right.mean() > 0.85
