"""A function in a child process: its result, or why there is none. What ends a process and what
takes too much is tried with candidates, in tests/models/compress/test_gate.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.system.limited_process import Limits, ProcessFailed, call

PLENTY = Limits(seconds=60.0, memory=2 << 30)


def test_the_result_comes_back() -> None:
    result: Any = call("numpy:cumsum", np.arange(4), PLENTY)
    assert result.tolist() == [0, 1, 3, 6]


def test_an_error_is_the_reason() -> None:
    with pytest.raises(ProcessFailed, match=r"^math domain error$"):
        call("math:sqrt", -1.0, PLENTY)


def test_a_call_that_is_no_longer_wanted_ends_at_once() -> None:
    with pytest.raises(ProcessFailed, match=r"^was stopped$"):
        call("time:sleep", 3_600, PLENTY, stopped=lambda: True)


def test_it_imports_from_where_its_parent_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in that order: what stands beside a pipeline file hides nothing."""
    (tmp_path / "models").mkdir()  # of model files
    (tmp_path / "queue.py").write_text("raise ImportError('the wrong one')\n")
    (tmp_path / "their_own.py").write_text(
        "import queue\nfrom models import LEARNERS\n\ndef kinds(_):\n    return sorted(LEARNERS)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    assert "linear" in call("their_own:kinds", None, PLENTY)


def test_a_folder_of_model_files_does_not_hide_the_package(tmp_path: Path) -> None:
    """Of a script that stands beside it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "script.py").write_text("from models import LEARNERS\n")
    subprocess.run([sys.executable, tmp_path / "script.py"], cwd=tmp_path, check=True)
