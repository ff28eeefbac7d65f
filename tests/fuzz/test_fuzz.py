"""A bounded part of `make fuzz`: each whole input of every kind is damaged a few times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.kit import Limits, fuzz
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS
from tests.size import FULL

MUTATIONS = 72 if FULL else 12


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_rows_letters_or_one_sentence(name: str, tmp_path: Path) -> None:
    outcome = fuzz(name, MUTATIONS, tmp_path)
    assert outcome.findings == {}
    assert outcome.read + outcome.refused == MUTATIONS


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_is_found(tmp_path: Path) -> None:
    """The kit itself: what it looks for, done on purpose."""
    outcome = fuzz("itself", 8, tmp_path, limits=Limits(seconds=2, nbytes=1 << 30))
    assert {n: what.partition(":")[0] for n, what in outcome.findings.items()} == {
        1: "SIGSEGV", 2: "builtins.ValueError", 3: "foreign memory in a row",
        4: "not one sentence", 5: "memory", 6: "a hang",
    }  # fmt: skip
    assert outcome.read + outcome.refused == 2


def test_a_mutation_is_the_same_each_time() -> None:
    seed = bytes(range(256))
    assert [mutated(seed, i) for i in range(200)] == [mutated(seed, i) for i in range(200)]
    assert len({mutated(seed, i) for i in range(200)}) > 180
