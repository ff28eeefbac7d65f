"""Pipelines whose rows have no label: a model that has learned nothing is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.conftest import Headrace

PIPELINE = """
name = "nolab"
folder = "{place}/run"
[source]
kind = "files"
path = "{place}/rows.csv"
[model]
kind = "linear"
task = "binary"
target = "label"
classes = ["no", "yes"]
numeric = ["x"]
[export]
compress = false
"""


@pytest.mark.parametrize(
    ("more", "exit_code"),
    [("", 3), ("[dead_letters]\nlimit = 1.0\n", 0)],
    ids=["refused", "allowed"],
)
def test_a_model_that_has_learned_nothing_is_none(
    headrace: Headrace, tmp_path: Path, more: str, exit_code: int
) -> None:
    (tmp_path / "rows.csv").write_text("x,label\n1,\n2,\n3,\n")
    file = tmp_path / "p.toml"
    file.write_text(PIPELINE.format(place=tmp_path) + more)
    code, out, err = headrace("run", file)
    assert code == exit_code, err
    assert "No model is exported: no row has been learned so far." in err
    assert "headrace export" not in out + err
    for command in ("export", "compress", "interpret"):
        code, _, err = headrace(command, file)
        assert code == 2, err
        assert "has learned no row, so it knows nothing" in err
        assert len(err.strip().splitlines()) == 1
    assert not [*(tmp_path / "run").rglob("*.onnx")]
