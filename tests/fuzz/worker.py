"""A process that reads damaged inputs one after the other: ``python -m tests.fuzz.worker``.

Says on its standard output, a JSON line each, what it found; the number that it is at lies in a
file, so that whoever started it knows it when the process dies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import sys
from pathlib import Path

from engine.types import HeadraceError
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import Target, targets

CANARY = b"FOREIGN-MEMORY-"


def main(name: str, first: int, last: int, step: int, folder: Path) -> None:
    """Read mutations `first`, `first + step`, ... below `last` of a target."""
    logging.disable(logging.CRITICAL)
    target = targets()[name]
    with (folder / "at").open("r+b") as file, mmap.mmap(file.fileno(), 16) as at:
        read = refused = 0
        for number in range(first, last, step):
            at[:8] = number.to_bytes(8, "little")
            finding = _one(target, number, folder)
            read, refused = read + (finding == ""), refused + (finding is None)
            if finding:
                print(json.dumps({"number": number, "what": finding}), flush=True)
        print(json.dumps({"read": read, "refused": refused}), flush=True)


def seed(target: Target, number: int) -> tuple[str, bytes]:
    """The whole input that a mutation starts from."""
    names = sorted(target.seeds)
    name = names[number % len(names)]
    return name, target.seeds[name]


def _one(target: Target, number: int, folder: Path) -> str | None:
    """What is wrong with how one input is read: "" for nothing, None where it was refused."""
    name, whole = seed(target, number)
    damaged = mutated(whole, number)
    path = folder / name
    path.write_bytes(damaged.replace(b"FOLDER", str(folder).encode()))
    _litter(number)
    try:
        for part in target.read(damaged, path):
            if CANARY in part and CANARY not in damaged:
                return "foreign memory in a row"
    except HeadraceError as error:
        text = str(error)
        if "\n" in text.strip() or "Traceback" in text:
            return f"not one sentence: {text!r}"
        return f"foreign memory in a sentence: {text!r}" if CANARY.decode() in text else None
    except BaseException as error:  # noqa: BLE001 - anything else is what is looked for
        return f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return ""


def _litter(number: int) -> None:
    """Leave marks in freed memory: they come out where somebody reads beyond what is theirs."""
    rng = random.Random(number)
    blocks = [CANARY * rng.choice([4, 40, 400, 4_000]) for _ in range(8)]
    del blocks


if __name__ == "__main__":
    os.environ["RUST_BACKTRACE"] = "0"
    name, first, last, step, folder = sys.argv[1:]
    main(name, int(first), int(last), int(step), Path(folder))
