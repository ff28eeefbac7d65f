"""What a run says: one record one line, whatever is in it, and no secret in any spelling."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.observing import logs
from engine.types import UserError
from tests.size import examples

log = logging.getLogger("headrace.test")
NASTY = "row 1\n12:00:00 ERROR   headrace forged\r\x1b[2J\u2028\u202e\x00end"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def clean_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("headrace")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    monkeypatch.setattr(logs, "_hidden", logs._Hidden())
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def divert(monkeypatch: pytest.MonkeyPatch) -> Callable[[], io.StringIO]:
    """To be called in the test: pytest puts its own stderr in place between setup and call."""

    def stderr() -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return stderr


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().split("\n")[:-1]


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(stream)]


def fail(message: str) -> None:
    try:
        raise ValueError(message)
    except ValueError:
        log.exception("stage failed", extra={"stage": "scale"})


def test_messages_are_in_the_words_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.setup("json", spoken=lambda said: said.replace("[infer] model", "MODEL"))
    log.warning("%s is cold at 100 %%", "[infer] model")
    log.warning("100 %")
    assert [one["message"] for one in objects(stream)] == ["MODEL is cold at 100 %", "100 %"]


def test_auto_is_text_on_a_terminal_and_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, start in (
        (Terminal(), r"\d\d:\d\d:\d\d INFO    headrace.test"),
        (io.StringIO(), "{"),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        logs.setup()
        log.info("hello")
        assert re.match(start, lines(stream)[0])
        assert len(lines(stream)) == 1


def test_text_shows_fields_and_quotes_what_is_more_than_a_word(
    divert: Callable[[], io.StringIO],
) -> None:
    stderr = divert()
    logs.setup("text")
    fields = {"rows": 3, "path": "a/b.csv", "why": 'no "x" here', "parts": {"a": 1}, "none": None}
    log.warning("resumed", extra=fields)
    assert lines(stderr)[0][9:] == (
        'WARNING headrace.test resumed rows=3 path=a/b.csv why="no \\"x\\" here" '
        'parts={"a": 1} none=null'
    )


def test_json_has_time_level_logger_message_and_typed_fields(
    divert: Callable[[], io.StringIO],
) -> None:
    stderr = divert()
    logs.setup("json")
    extra = {"rows": np.int64(3), "loss": np.float32(0.5), "bad": float("nan"), "ok": True}
    log.info("step %d", 7, extra={**extra, "time": "mine", "names": ("a", "b")})
    (line,) = objects(stderr)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "headrace.test",
        "message": "step 7",
        "rows": 3,
        "loss": 0.5,
        "bad": "nan",
        "ok": True,
        "time_": "mine",
        "names": ["a", "b"],
    }


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("level", ["info", "debug"])
def test_nothing_from_outside_forges_a_line(
    divert: Callable[[], io.StringIO], style: str, level: str
) -> None:
    stderr = divert()
    logs.setup(style, level)
    log.info("read %s", NASTY, extra={"value": NASTY, "deep": [{NASTY: NASTY}]})
    fail(NASTY)
    if style == "json":
        assert [line["message"] for line in objects(stderr)] == [f"read {NASTY}", "stage failed"]
    starts = [line for line in lines(stderr) if not line.startswith("    | ")]
    assert len(starts) == 2
    assert all(line.isprintable() for line in lines(stderr))
    assert not any(line.startswith("12:00:00 ERROR   headrace forged") for line in lines(stderr))


@settings(max_examples=examples(100), deadline=None)
@given(st.text())
def test_escaped_text_is_one_printable_line(text: str) -> None:
    assert logs.escape(text).isprintable()
    assert logs.escape("plain, grüß 猫") == "plain, grüß 猫"


def test_an_exception_is_one_line_unless_debugging(divert: Callable[[], io.StringIO]) -> None:
    stderr = divert()
    logs.setup("text")
    fail("torn\nline")
    assert len(lines(stderr)) == 1
    assert lines(stderr)[0].endswith('stage failed stage=scale error="ValueError: torn\\nline"')
    logs.setup("text", "debug")
    fail("torn")
    assert "    | Traceback (most recent call last):" in lines(stderr)
    assert lines(stderr)[-1] == "    | ValueError: torn"
    logs.setup("json", "debug")
    fail("torn")
    assert json.loads(lines(stderr)[-1])["traceback"][-1] == "ValueError: torn"


def test_a_huge_value_is_cut(divert: Callable[[], io.StringIO]) -> None:
    stderr = divert()
    logs.setup("json")
    log.info("x" * 1_000_000, extra={"value": "y" * 1_000_000})
    (line,) = objects(stderr)
    assert line["message"].endswith("x... (990000 more characters)")
    assert len(lines(stderr)[0]) < 3 * logs.MAX_TEXT


SECRETS = ("s3cr3t pass", 'q"uo\\te', "tab\tand\nnewline-long-enough", "päss/wörd+&", "31415926")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_hidden_secret_never_shows(
    divert: Callable[[], io.StringIO], secret: str, style: str, level: str
) -> None:
    stderr = divert()
    logs.hide(secret)
    logs.setup(style, level)
    spellings = [
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
    ]
    for spelling in spellings:
        log.info("dsn %s", f"kafka://u:{spelling}@host", extra={"password": spelling})
        log.info("x", extra={"conf": {"pw": [spelling]}, spelling: 1})
        fail(f"refused {spelling} by host")
    log.info("config %s", {"pw": secret})
    if secret.isdigit():
        log.info("number", extra={"pin": int(secret)})
    shown = stderr.getvalue()
    found = [spelling for spelling in spellings if spelling in shown]
    assert not found
    assert shown.count("***") >= 5 * len(spellings)
    if style == "json":
        assert len(objects(stderr)) >= 3 * len(spellings)


def test_hiding_nothing_hides_nothing_and_redact_serves_other_texts() -> None:
    logs.hide("")
    assert logs.redact("as it is") == "as it is"
    logs.hide("abc")
    logs.hide("abcdef")
    assert logs.redact("abcdef abc") == "*** ***"


@pytest.mark.parametrize("secret", ["x", ":", "ab1", "0"])
def test_a_secret_of_a_few_characters_leaves_words_whole(secret: str) -> None:
    logs.hide(secret)
    for text in (f"as {secret} is", f"pw={secret}", f"'{secret}'"):
        assert logs.redact(text) == text.replace(secret, "***")
    whole = "expected_rejects: 100 cab12 db://host"
    assert logs.redact(whole) == whole


def test_a_sentence_for_the_user_is_one_line_without_secrets(
    divert: Callable[[], io.StringIO],
) -> None:
    stderr = divert()
    logs.hide("hunter22")
    logs.setup("json", "error")
    logs.say("headrace: No file 'a\nb' at hunter22.")
    assert stderr.getvalue() == "headrace: No file 'a\\nb' at ***.\n"


def test_levels_of_ours_and_of_libraries(divert: Callable[[], io.StringIO]) -> None:
    stderr = divert()
    logs.setup("json", "info")
    log.debug("no")
    log.info("yes")
    logging.getLogger("library").info("no")
    logging.getLogger("library").warning("yes")
    logs.setup("json", "error")
    log.warning("no")
    logging.getLogger("library").warning("no")
    log.error("yes")
    assert [line["message"] for line in objects(stderr)] == ["yes"] * 3


def test_warnings_become_records(divert: Callable[[], io.StringIO]) -> None:
    stderr = divert()
    logs.setup("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\nways", stacklevel=1)
    (line,) = objects(stderr)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def test_it_writes_to_whatever_stderr_is_now(
    divert: Callable[[], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = divert()
    logs.setup("json")
    bar = io.StringIO()
    monkeypatch.setattr(sys, "stderr", bar)
    log.info("above the bar")
    assert (len(lines(stderr)), len(lines(bar))) == (0, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"style": "jsno"}, "Unknown log style 'jsno'. Did you mean 'json'?"),
        ({"level": "loud"}, "Unknown log level 'loud'. Known: debug, error, info, warning."),
    ],
)
def test_a_wrong_word_is_the_users_mistake(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        logs.setup(**options)
    assert str(error.value) == sentence
