"""A real browser, where the machine has one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.waiting import HANG

NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    """The command. It must be there on CI, and is a reason to skip elsewhere."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("chromium is missing on CI: install the Debian package chromium")
    pytest.skip("no chromium here (Debian's package chromium)")


def look(page: Path, folder: Path, *, dark: bool, size: tuple[int, int] = (1240, 2400)) -> Looked:
    """Open a page and look at it."""
    picture = folder / f"{'dark' if dark else 'light'}.png"
    done = subprocess.run(
        [
            *(browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *(f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Looked(np.asarray(Image.open(picture).convert("RGB")), said)


class Looked:
    """What was seen.

    Attributes:
        pixels: shape (height, width, 3).
        said: the browser's complaints about the page.
    """

    def __init__(self, pixels: NDArray[np.uint8], said: list[str]) -> None:
        self.pixels = pixels
        self.said = said

    def count(self, colour: str) -> int:
        """Pixels of a colour, ``#rrggbb``."""
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return int((self.pixels == wanted).all(axis=2).sum())

    @property
    def corner(self) -> str:
        """Colour of the page's first pixel."""
        return "#" + "".join(f"{x:02x}" for x in self.pixels[0, 0])


__all__ = ["Looked", "browser", "look"]
