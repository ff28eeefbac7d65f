"""Logging: text on a terminal, JSON lines elsewhere, always to stderr.

What comes from outside (a record's value in a message, a file's name in a field) cannot forge a
line: everything that is not printable is escaped, in messages, fields and tracebacks. What was
given to `hide` is shown as ``***``, wherever it turns up.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import numbers
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from engine.errors import UserError, nearest

STYLES = ("auto", "text", "json")
LEVELS = ("debug", "info", "warning", "error")
MAX_TEXT = 10_000
"""The most characters kept of a message, a field or a traceback line."""
SHORTEST = 4
"""The least characters of a secret that is found inside words, too."""

_STANDARD = frozenset(
    logging.LogRecord("", 0, "", 0, "", (), None).__dict__.keys()
    | {"message", "asctime", "taskName", "color_message"}
)
_PLAIN = re.compile(r"[\w.,:;/+*%@#~<>()\[\]-]+")


def setup(
    style: str = "auto", level: str = "info", *, spoken: Callable[[str], str] | None = None
) -> None:
    """Send every log record of the process to stderr. May be called again with other settings.

    Headrace's own loggers speak from `level` on, those of libraries from warnings on (at debug
    level: from info on); Python's warnings become records.

    Args:
        style: ``text``, ``json``, or ``auto``: text if stderr is a terminal.
        level: ``debug`` (errors come with their tracebacks), ``info``, ``warning`` or ``error``.
        spoken: returns a message in the words of the command that runs.

    Raises: UserError for another style or level.
    """
    _known("log style", style, STYLES)
    _known("log level", level, LEVELS)
    if style == "auto":
        style = "text" if sys.stderr.isatty() else "json"
    tracebacks = level == "debug"
    handler = _Stderr(spoken)
    handler.setFormatter(
        TextFormatter(tracebacks) if style == "text" else JsonFormatter(tracebacks)
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Stderr)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if tracebacks else max(logging.WARNING, _number(level)))
    logging.getLogger("headrace").setLevel(_number(level))
    logging.captureWarnings(True)


class _Hidden:
    """The secrets, and one pattern that finds any of them in every spelling that is logged.

    One of a few characters is found only where it stands alone: inside words it would take letters
    out of every name, and be told by what is missing.
    """

    def __init__(self) -> None:
        self._spellings: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, secret: str) -> None:
        # A secret of several lines (a key file) may turn up line by line, in a traceback.
        lines = [line for line in secret.splitlines() if len(line) >= 8]
        for text in (secret, *lines):
            self._spellings |= {
                text,
                json.dumps(text)[1:-1],
                json.dumps(text, ensure_ascii=False)[1:-1],
                repr(text)[1:-1],
                urllib.parse.quote(text, safe=""),
                urllib.parse.quote_plus(text),
            }
        ordered = sorted(self._spellings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_pattern, ordered)))

    def redact(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub("***", text)


def _pattern(text: str) -> str:
    found = re.escape(text)
    return found if len(text) >= SHORTEST else rf"(?<![^\W_]){found}(?![^\W_])"


_hidden = _Hidden()


def hide(secret: str) -> None:
    """Show ``***`` instead of `secret` in every log record from now on."""
    if secret:
        _hidden.add(secret)


def redact(text: str) -> str:
    """Return the text with every hidden secret as ``***``, for output outside the log."""
    return _hidden.redact(text)


def say(sentence: str) -> None:
    """Print a sentence to stderr, in one line and without secrets. An error that ends a command
    is not a log record."""
    with contextlib.suppress(OSError):  # no reader: the exit code tells as well
        sys.stderr.write(escape(redact(sentence)) + "\n")
        sys.stderr.flush()


def escape(text: str) -> str:
    r"""Return the text as one line of printable characters: a line break becomes ``\n``, and so
    on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class TextFormatter(logging.Formatter):
    """``12:00:00 INFO    headrace.loop resumed batches=12``"""

    def __init__(self, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        words = [f"{clock} {record.levelname:<7} {record.name} {escape(_message(record))}"]
        words += [f"{escape(key)}={_word(value)}" for key, value in _fields(record).items()]
        if (error := _error(record)) is not None:
            words.append(f"error={_word(error)}")
        lines = _traceback(record) if self._tracebacks else []
        return "\n".join([" ".join(words), *(f"    | {escape(line)}" for line in lines)])


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time`` (UTC), ``level``, ``logger``, ``message``, then the
    fields."""

    def __init__(self, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if (error := _error(record)) is not None:
            line["error"] = error
        if self._tracebacks and (lines := _traceback(record)):
            line["traceback"] = lines
        for key, value in _fields(record).items():
            line[f"{key}_" if key in line else key] = value
        return json.dumps(line, default=str)


class _Stderr(logging.StreamHandler[TextIO]):
    """A handler that looks up `sys.stderr` at every write, because a progress bar replaces it."""

    def __init__(self, spoken: Callable[[str], str] | None = None) -> None:
        logging.Handler.__init__(self)
        self._spoken = spoken

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, its message in the words of the command that runs."""
        if self._spoken is not None:
            message = record.getMessage()
            if (said := self._spoken(message)) != message:
                record = copy.copy(record)
                record.msg, record.args = said, None
        return super().format(record)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        raise AssertionError


def _known(setting: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise UserError(f"Unknown {setting} '{word}'.{nearest(word, words)}")


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _message(record: logging.LogRecord) -> str:
    return _cut(redact(record.getMessage()))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the `extra` fields, redacted, as JSON types."""
    return {
        redact(key): plain_value(value)
        for key, value in record.__dict__.items()
        if key not in _STANDARD
    }  # fmt: skip


def _error(record: logging.LogRecord) -> str | None:
    """Return type and message of the record's exception."""
    if not record.exc_info or record.exc_info[1] is None:
        return None
    error = record.exc_info[1]
    return _cut(redact(f"{type(error).__name__}: {error}"))


def _traceback(record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    text = logging.Formatter().formatException(record.exc_info)
    return [_cut(line) for line in redact(text).splitlines()]


def plain_value(value: object) -> Any:
    """Return a value as JSON types, redacted and bounded."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {redact(str(key)): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(item) for item in value]
    text = redact(str(value))
    if isinstance(value, numbers.Real) and math.isfinite(value) and text == str(value):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return _cut(text)


def _word(value: object) -> str:
    """Return a field's value as text, quoted if it would look like several."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and not _PLAIN.fullmatch(text):
        text = json.dumps(text, ensure_ascii=False)
    return escape(text)


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]}... ({len(text) - MAX_TEXT} more characters)"
