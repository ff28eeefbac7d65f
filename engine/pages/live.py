"""The live page of a running engine: one file of HTML, CSS and JavaScript, the same for every
engine. What it shows it asks of ``/status.json``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache

from engine.pages import template


@cache
def live_page() -> tuple[str, str]:
    """Return the page and its Content-Security-Policy, which allows its own script and style, its
    own site, and nothing else."""
    page = template(__package__, "live.html").render()
    style, script = (_digest(page, tag) for tag in ("style", "script"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _digest(page: str, tag: str) -> str:
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


__all__ = ["live_page"]
