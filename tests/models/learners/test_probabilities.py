"""Probabilities of rows do not depend on the rows beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from models.learners.probabilities import sigmoid, softmax


@pytest.mark.parametrize("shape", [(16,), (16, 3)])
def test_a_row_has_the_same_probability_in_any_company(shape: tuple[int, ...]) -> None:
    rng, chances = np.random.default_rng(0), sigmoid if len(shape) == 1 else softmax
    for _ in range(100):
        raw = rng.normal(size=shape)
        together = chances(raw)
        for rows in range(1, len(raw)):
            assert chances(raw[:rows]).tobytes() == together[:rows].tobytes()
            assert chances(raw[rows:]).tobytes() == together[rows:].tobytes()


def test_they_are_torchs_but_for_rounding() -> None:
    raw = np.array([-800.0, -30.0, -1e-9, 0.0, 2.5, 40.0, 800.0])
    assert_allclose(sigmoid(raw), torch.from_numpy(raw).sigmoid(), rtol=1e-14)
    rows = raw.reshape(-1, 1) * [1.0, -1.0, 0.5]
    assert_allclose(softmax(rows), torch.from_numpy(rows).softmax(1), rtol=1e-14)
