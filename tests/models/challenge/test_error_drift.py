"""Whether errors have risen."""

from __future__ import annotations

import numpy as np
import pytest

from models.challenge.error_drift import BLOCK, ErrorDrift


def test_a_rise_is_found_however_the_errors_are_cut() -> None:
    rng = np.random.default_rng(1)
    errors = np.concatenate([rng.uniform(0, 0.2, 1_000), rng.uniform(0.7, 1, 100)])
    ends = []
    for cut in (1, 13, 2_000):
        rise = ErrorDrift()
        for at in range(0, len(errors), cut):
            rise = rise.update(errors[at : at + cut])
        ends.append(rise)
    assert ends[0] == ends[1] == ends[2]
    assert ends[0].risen
    assert not ErrorDrift().update(errors[:1_000]).risen


def test_a_falling_error_is_no_rise() -> None:
    rise = ErrorDrift().update(np.linspace(1, 0, 5_000))
    assert not rise.risen
    assert rise.usual == pytest.approx(0.5, abs=0.001)
    assert rise.blocks == 5_000 // BLOCK


def test_one_error_is_no_rise_whatever_its_size() -> None:
    errors = np.random.default_rng(0).uniform(0, 1, 2_000)
    errors[1_500] = 1e300
    errors[1_600] = np.nan
    errors[1_700] = np.inf
    assert not ErrorDrift().update(errors).risen


def test_a_louder_alarm_is_asked_for_by_the_threshold() -> None:
    errors = np.concatenate([np.random.default_rng(0).uniform(0, 1, 2_000), np.full(200, 1.5)])
    assert ErrorDrift().update(errors).risen
    assert not ErrorDrift(threshold=400.0).update(errors).risen


def test_a_snapshot_goes_on() -> None:
    errors = np.random.default_rng(0).uniform(0, 1, 1_003)
    rise = ErrorDrift().update(errors[:501])
    assert ErrorDrift.restored(rise.snapshot()).update(errors[501:]) == rise.update(errors[501:])


def test_what_is_usual_outlives_the_watch() -> None:
    rise = ErrorDrift().update(np.full(800, 3.0)).reset(80.0)
    assert (rise.usual, rise.blocks, rise.risen, rise.threshold) == (3.0, 0, False, 80.0)
    assert rise.update(np.full(800, 1.0)).usual == pytest.approx(2.0)
    for _ in range(20):
        rise = rise.update(np.full(65_536, 1.0))
    assert rise.usual == pytest.approx(1.0)
