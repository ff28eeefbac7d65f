"""A real browser, where the machine has one."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.waiting import HANG

LIGHT = {"paper": "#fbfaf7", "mark": "#0072b2"}
DARK = {"paper": "#151618", "mark": "#56b4e9"}
"""The colours of the pages' base.html."""
HOSTILE = "<img src=x onerror=alert(1)>\"'{{ 7*7 }}</style><script>"
"""A name that would run if a page did not escape it."""
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


class Tab:
    """A page in a running browser, which a test drives over Chromium's debugging pipe.

    Attributes:
        said: what the browser and the page complained of so far.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.said: list[str] = []
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._events: list[str] = []
        self._session: dict[str, str] = {}
        self._number = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return dict(answer["result"])

    def show(self, *, dark: bool = False, size: tuple[int, int] = (1240, 2000)) -> None:
        """Choose the colours and the size of what is seen."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, url: str) -> None:
        """Open a page, and return when it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._note(self._next())

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return its value; a promise's once it is there."""
        done = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression holds, looking after each change of the page."""
        self.run(
            "new Promise((done) => { const look = () => { if (!(" + condition + ")) return;"
            "watch.disconnect(); done(true); }; const watch = new MutationObserver(look);"
            "watch.observe(document, {subtree: true, childList: true, characterData: true,"
            "attributes: true}); look(); })"
        )

    def press(self, key: str) -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, " ": 32, "Enter": 13}
        named = {"key": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": {"Enter": "\r", " ": " "}[key]} if key in "Enter " else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, file: Path) -> Looked:
        """Save what is seen, and look at it."""
        shot = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))
        return Looked(np.asarray(Image.open(file).convert("RGB")), self.said)

    def memory(self) -> tuple[int, int]:
        """Return the bytes of JavaScript's heap, and the nodes of the document, after garbage was
        collected."""
        self.call("HeapProfiler.collectGarbage")
        heap = self.call("Runtime.getHeapUsage")["usedSize"]
        return int(heap), int(self.run("document.getElementsByTagName('*').length"))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._answers], [], [], HANG)[0], "the browser does not answer"
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser has ended"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        name, told = event.get("method", ""), event.get("params", {})
        self._events.append(name)
        if name in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.said.append(json.dumps(told))


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A browser's page for as long as the block runs."""
    their_commands, commands = os.pipe()
    answers, their_answers = os.pipe()
    # Chromium reads at 3 and writes at 4, which may be taken here.
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (their_commands, their_answers)]
    process = subprocess.Popen(
        [
            *("bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "bash", browser()),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank"),
        ],
        pass_fds=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (*theirs, their_commands, their_answers):
        os.close(fd)
    try:
        yield Tab(commands, answers)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(answers)


class Tags(HTMLParser):
    """The tags of a page, and the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def require_inert(text: str) -> None:
    """Check that nothing in a page runs or is loaded."""
    seen = Tags(text)
    assert not {"script", "img", "link", "iframe"} & set(seen.tags)
    assert not [
        name for name in seen.attributes if name.startswith("on") or name in ("src", "href")
    ]


def look_at_both(page: Path, folder: Path) -> Iterator[Looked]:
    """Open a page of the house in light and in dark: the browser complains of nothing, the paper
    has its colour, and nothing reaches over the edge."""
    for dark, paper in ((False, LIGHT["paper"]), (True, DARK["paper"])):
        seen = look(page, folder, dark=dark)
        assert seen.said == []
        assert seen.corner == paper
        right = seen.pixels[:, -15:].reshape(-1, 3)
        assert (right == right[0]).all(), "something reaches over the page's edge"
        yield seen


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

    @property
    def marks(self) -> int:
        """Pixels of the colour of bars and lines."""
        return max(self.count(LIGHT["mark"]), self.count(DARK["mark"]))


__all__ = ["HOSTILE", "Looked", "Tab", "browser", "look", "look_at_both", "require_inert", "tab"]
