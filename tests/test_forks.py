"""Commands that are forks are children of their test, also when several start at once."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

from tests.forks import Command


def test_many_at_once_are_all_children_of_the_test() -> None:
    """What is not our child cannot be waited for: Popen then calls it 0, and sends it no signal."""

    def ended(_: int) -> int:
        process = Command(["no-such-command"], stderr=subprocess.DEVNULL)
        return int(process.wait())

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ended, range(6))) == {2}
