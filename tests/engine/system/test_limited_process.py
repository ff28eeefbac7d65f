"""A function in a child process: its result, or why there is none. What ends a process and what
takes too much is tried with candidates, in tests/models/compress/test_gate.py."""

from __future__ import annotations

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
