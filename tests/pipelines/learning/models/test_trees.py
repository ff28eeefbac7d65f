"""``kind = "trees"`` from a pipeline file to a model that serves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

Headrace = Callable[..., tuple[int, str, str]]
TREES = ('[model]\ntarget = "y"', '[model]\nkind = "trees"\ntarget = "y"')
NETWORK = ('layers = [8]\n[train]\noptimizer = "adam"\nreplay_rows = 0\n', "[train]\n")


def mean_error(rows: pl.DataFrame) -> float:
    errors = rows.select((pl.col("prediction") - pl.col("y")).abs().mean())
    return float(errors.item())


def test_trees_are_trained_exported_and_served(
    tmp_path: Path, rows: Callable[..., pl.DataFrame], small: Callable[..., Path],
    headrace: Headrace, results: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    pytest.importorskip("lightgbm")
    data = tmp_path / "rows.csv"
    rows(700).write_csv(data)
    code, _, err = headrace("run", small(data, TREES, NETWORK, more="[export]\n"))
    assert code == 0, err
    learned = results()[300:]
    error, usual = mean_error(learned), mean_error(learned.with_columns(prediction=0.0))
    assert error < 0.7 * usual
    model, out = tmp_path / "run" / "model.onnx", tmp_path / "predicted"
    code, _, err = headrace("predict", model, "--input", data, "--output", out)
    assert code == 0, err
    served = pl.concat([pl.read_parquet(part) for part in sorted(out.glob("*.parquet"))])
    assert len(served) == 700
    assert mean_error(served) < error  # it has learned these rows


def test_ten_rows_are_enough_for_a_model(
    tmp_path: Path, rows: Callable[..., pl.DataFrame], small: Callable[..., Path],
    headrace: Headrace, results: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    pytest.importorskip("lightgbm")
    data = tmp_path / "rows.csv"
    rows(10).write_csv(data)
    code, _, err = headrace("run", small(data, TREES, NETWORK, more="[export]\n"))
    assert code == 0, err
    assert results()["prediction"].is_finite().all()
    assert (tmp_path / "run" / "model.onnx").exists()


def test_check_says_what_to_install(
    tmp_path: Path, rows: Callable[..., pl.DataFrame], small: Callable[..., Path],
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    data = tmp_path / "rows.csv"
    rows(10).write_csv(data)
    code, _, err = headrace("check", small(data, TREES, NETWORK))
    assert code == 2
    assert "needs the package lightgbm, which is not installed" in err
    assert "Traceback" not in err
