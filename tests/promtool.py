"""The real promtool."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def promtool(*arguments: str, page: bytes | None = None) -> str:
    """What it says of its arguments (and of a metrics page, on its standard input). It must be
    there on CI, and is a reason to skip elsewhere; that it finds fault fails the test."""
    tool = shutil.which("promtool")
    if tool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing on CI: install the Debian package prometheus")
        pytest.skip("promtool is not installed (Debian package prometheus)")
    run = subprocess.run([tool, *arguments], input=page, capture_output=True, check=False)
    said = (run.stdout + run.stderr).decode()
    assert run.returncode == 0, said
    return said
