"""Pages of HTML in one file: no script, no font, no picture from elsewhere, light and dark.

Everything that comes from the data is escaped by the template, names of columns too.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined, Template
from markupsafe import Markup

from engine.system import atomic
from engine.types import HeadraceError

WIDTH = 280.0
"""The width of a drawing, in its own unit; the page stretches it."""
BASE = "base.html"


def template(package: str, name: str = "page.html") -> Template:
    """Return a template of a package, which extends ``base.html``; what is inserted is escaped."""
    texts = {
        name: files(package).joinpath(name).read_text(encoding="utf-8"),
        BASE: files(__name__).joinpath(BASE).read_text(encoding="utf-8"),
    }
    environment = Environment(
        loader=DictLoader(texts),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write(page: str, path: Path) -> None:
    """Write a page. Raises: HeadraceError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, page)
    except OSError as error:
        raise HeadraceError(f"The page cannot be written to '{path}': {error.strerror}.") from None


def svg(css_class: str, height: float, drawn: Sequence[str], width: float = WIDTH) -> Markup:
    """Return an SVG element of numbers alone: it contains no text from the data."""
    return Markup(
        f'<svg class="{css_class}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'
    )


def percent(n: float, of: float) -> str:
    """Format a share; a positive one is never shown as 0 %."""
    share = n / of if of else 0.0
    return "<0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


__all__ = ["WIDTH", "percent", "svg", "template", "write"]
