"""Damaged inputs of every kind: rows, dead letters or one sentence, and nothing else; README.md."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.kit import Outcome, fuzz
from tests.fuzz.targets import TARGETS, target
from tests.fuzz.worker import damage


def main() -> int:
    """The command; 0 where nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"all of them unless given: {list(TARGETS)}")
    parser.add_argument("--mutations", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for what is found")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such targets: {sorted(unknown)}; expected some of {list(TARGETS)}")
    each = -(-options.mutations // len(names))
    found = 0
    print(f"{'target':<18}{'mutations':>10}{'read':>9}{'refused':>9}{'findings':>10}")
    for name in names:
        outcome = _parallel(name, each, options.jobs, options.out)
        found += len(outcome.findings)
        print(
            f"{name:<18}{each:>10}{outcome.read:>9}{outcome.refused:>9}{len(outcome.findings):>10}"
        )
        for number, what in sorted(outcome.findings.items()):
            print(f"  {number}: {what}")
            file, damaged = damage(target(name), number)
            (options.out / f"{number}-{file}").write_bytes(damaged)
        sys.stdout.flush()
    return 1 if found else 0


def _parallel(name: str, mutations: int, jobs: int, out: Path) -> Outcome:
    with ThreadPoolExecutor(jobs) as pool:
        parts = [
            pool.submit(
                fuzz, name, mutations, out / f"{job}".replace(" ", "-"), start=job, step=jobs
            )
            for job in range(jobs)
        ]
        outcomes = [part.result() for part in parts]
    return Outcome(
        read=sum(o.read for o in outcomes),
        refused=sum(o.refused for o in outcomes),
        findings={n: what for o in outcomes for n, what in o.findings.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
