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
from tests.fuzz.targets import Target, target

CANARY = b"FOREIGN-MEMORY-"


def main(name: str, first: int, last: int, step: int, folder: Path) -> None:
    """Read mutations `first`, `first + step`, ... below `last` of a target."""
    logging.disable(logging.CRITICAL)
    chosen = target(name)
    (folder / "rows.csv").write_bytes(b"n,x,s\n1,2,3\n")  # for a pipeline
    with (folder / "at").open("r+b") as file, mmap.mmap(file.fileno(), 16) as at:
        read = refused = 0
        for number in range(first, last, step):
            at[:8] = number.to_bytes(8, "little")
            finding = _one(chosen, number, folder)
            read, refused = read + (finding == ""), refused + (finding is None)
            if finding:
                print(json.dumps({"number": number, "what": finding}), flush=True)
        print(json.dumps({"read": read, "refused": refused}), flush=True)


def damage(chosen: Target, number: int) -> tuple[str, bytes]:
    """Damaged input `number`: the name of its file, and what is in it."""
    names = sorted(chosen.seeds)
    name = names[number % len(names)]
    return name, chosen.harm(chosen.seeds[name], number)


def _one(chosen: Target, number: int, folder: Path) -> str | None:
    """What is wrong with how one input is read: "" for nothing, None where it was refused."""
    name, damaged = damage(chosen, number)
    path = folder / name
    path.write_bytes(damaged.replace(b"FOLDER", str(folder).encode()))
    _litter(number)
    try:
        for part in chosen.read(damaged, path):
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
    sys.exit(0)
