"""Damage to bytes, seeded: the same number gives the same damage on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable

Data = bytearray
EXTREMES = (0, 1, -1, 127, -128, 2**15, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, -(2**63))
TOKENS = (
    b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\n", b"\r\n", b'"', b"'", b",", b"{", b"}", b"[" * 99,
    b"null", b"NaN", b"-1e999", b"999999999999999999999", b"\\ud800", b"<!ENTITY x 'y'>", b"&x;",
    b"../../x", b"\x1f\x8b\x08", b"PK\x03\x04", b"#", b"=", b"%s%n", b"1979-13-45",
)  # fmt: skip


def _flip(data: Data, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: Data, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _number(data: Data, rng: random.Random) -> None:
    """A little-endian number of 1 to 8 bytes becomes an extreme one: lengths, offsets, counts."""
    size = rng.choice([1, 2, 4, 8])
    at = rng.randrange(len(data)) // size * size
    value = rng.choice(EXTREMES) & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, "little")


def _cut(data: Data, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(data: Data, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 2, 8, 64, 512])]


def _double(data: Data, rng: random.Random) -> None:
    at, size = rng.randrange(len(data)), rng.choice([1, 4, 16, 128, 1024])
    data[at:at] = data[at : at + size]


def _rebalance(data: Data, rng: random.Random) -> None:
    size = rng.choice([1, 4, 16, 64])
    here, there = rng.randrange(len(data)), rng.randrange(len(data))
    data[there : there + size] = data[here : here + size]


def _insert(data: Data, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(TOKENS) if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 40))


def _blank(data: Data, rng: random.Random) -> None:
    at, size = rng.randrange(len(data)), rng.choice([1, 8, 64])
    data[at : at + size] = bytes([rng.choice([0, 255])]) * len(data[at : at + size])


HARMS: tuple[Callable[[Data, random.Random], None], ...] = (
    _flip, _byte, _number, _cut, _delete, _double, _rebalance, _insert, _blank,
)  # fmt: skip


def mutated(seed: bytes, number: int) -> bytes:
    """Mutation `number` of a seed: one harm or several."""
    rng = random.Random(number)
    data = bytearray(seed)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 12])):
        if data:
            rng.choice(HARMS)(data, rng)
    return bytes(data)


ODD = (
    "0", "-1", "1", "true", '""', '"x"', "[]", "{}", "nan", "inf", "-inf", "1e999", "0.5", '["x"]',
    "99999999999999999999", "1979-05-27T07:32:00Z", '[["x"]]', "{x = 1}", '"1GiB"', '"250ms"',
    '"\\u0000"', '"../../x"', "[1, 2]", '["*"]', '"' + "9" * 400 + '"',
)  # fmt: skip
"""Values of TOML that hardly any key expects."""


def harmed(seed: bytes, number: int) -> bytes:
    """Damage to a pipeline file: to its values two times of three, to its bytes the third."""
    rng = random.Random(number)
    if number % 3 == 0:
        return mutated(seed, number)
    lines = seed.decode().splitlines()
    at = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("folder")]
    for i in rng.sample(at, rng.choice([1, 1, 2])):
        key = lines[i].partition(" = ")[0]
        lines[i] = rng.choice([f"{key} = {rng.choice(ODD)}", f"{key}x = 1", "", f"[{key}]"])
    return "\n".join(lines).encode()


__all__ = ["harmed", "mutated"]
