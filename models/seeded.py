"""torch's global random numbers from a seed, for code that knows no generators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Draw torch's global random numbers from this seed; afterwards they go on as before."""
    generators = _generators(device)
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(device: str) -> list[torch.Generator]:
    """Return the global generators that code on this device may draw from."""
    generators: list[torch.Generator] = [torch.default_generator]
    if torch.device(device).type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.device(device).index
        number = torch.cuda.current_device() if index is None else index
        generators.append(torch.cuda.default_generators[number])
    return generators


__all__ = ["seeded"]
