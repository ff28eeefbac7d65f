"""A client of schema registries with Confluent's API (Confluent, Apicurio, Karapace, Redpanda)."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from pydantic import SecretStr

from connectors.formats.avro import UnknownSchema, parsed
from engine.types import HeadraceError, UserError

log = logging.getLogger("headrace.registry")
ANSWER_SECONDS = 4.0
"""How long one answer may take at most: a stop is to be done within 5 s."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
FORGET = 60.0
"""Seconds after which an unknown schema is asked for again: its writer may only now register it."""
JSON = "application/vnd.schemaregistry.v1+json"


class Registry:
    """See `connectors.formats.avro.Schemas`. What a number means never changes, so it is asked
    for once.

    Args:
        url: http(s)://host:port, with a path where the API is not at the root.
        user: and password: of HTTP's basic authentication.
        timeout: seconds for one answer, at most `ANSWER_SECONDS`.
        patience: seconds to ask again when it does not answer in the middle of a run.

    Raises (all methods): UserError where it refuses (user, password, a schema that does not go with
    the older ones); HeadraceError where it does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: SecretStr | None = None,
        timeout: float = ANSWER_SECONDS,
        patience: float = 60.0,
    ) -> None:
        """Validate the registry URL. Raises: UserError."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"registry '{url}' is no address: expected http://host:port or https://host:port."
            )
        if parts.username or parts.password:
            raise UserError(
                "registry has a user or password in its address, which would be logged: set "
                "registry_user and registry_password."
            )
        self._url = url.rstrip("/")
        self._headers = {"Accept": f"{JSON}, application/json", "Content-Type": JSON}
        if user is not None:
            secret = "" if password is None else password.get_secret_value()
            token = base64.b64encode(f"{user}:{secret}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._timeout = min(timeout, ANSWER_SECONDS)
        self._patience = patience
        self._stopped = threading.Event()
        self._known: dict[int, Any] = {}
        self._unknown: dict[int, tuple[float, str]] = {}

    def by_number(self, number: int) -> Any:
        """The schema of this number, parsed.

        Raises: UnknownSchema where there is none, or it is not Avro.
        """
        if number in self._known:
            return self._known[number]
        since, words = self._unknown.get(number, (-FORGET, ""))
        if time.monotonic() - since < FORGET:
            raise UnknownSchema(words)
        try:
            found = self._schema(self._ask(f"/schemas/ids/{number}"), f"schema {number}")
        except UnknownSchema as error:
            self._unknown[number] = (time.monotonic(), str(error))
            raise
        self._known[number] = found
        return found

    def newest(self, topic: str, *, patient: bool = True) -> Any | None:
        """The newest schema of the topic's values, parsed; None where the registry has none.

        Args:
            patient: whether to wait for a registry that is down.
        """
        try:
            return self.version(topic, "latest", patient=patient)
        except UnknownSchema:
            return None

    def version(self, topic: str, version: int | str, *, patient: bool = True) -> Any:
        """One of the schemas of the topic's values, parsed. Raises: UnknownSchema."""
        subject = _subject(topic)
        path = f"/subjects/{subject}/versions/{version}"
        return self._schema(self._ask(path, patient=patient), f"subject '{subject}'")

    def versions(self, topic: str, *, patient: bool = True) -> list[int]:
        """The numbers of the versions of the topic's values, oldest first."""
        found = self._ask(f"/subjects/{_subject(topic)}/versions", patient=patient)
        return [] if found is None else [int(version) for version in found]

    def register(self, topic: str, schema: Any) -> int:
        """The number of this schema of the topic's values; registered if it is not yet."""
        body = json.dumps({"schema": json.dumps(schema)}).encode()
        found = self._ask(f"/subjects/{_subject(topic)}/versions", body)
        if found is None or "id" not in found:
            raise HeadraceError(
                f"Schema registry {self._url} has no place for subject '{_subject(topic)}': "
                "expected Confluent's API; is the path of the address right?"
            )
        return int(found["id"])

    def interrupt(self) -> None:
        """Abort all waits until `resume`; waiters get an error. Thread-safe. Any thread may call
        it."""
        self._stopped.set()

    def resume(self) -> None:
        """Ask again where it does not answer."""
        self._stopped.clear()

    # ------------------------------------------------------------------------------------ inside

    def _schema(self, found: Any, what: str) -> Any:
        if found is None or "schema" not in found:
            raise UnknownSchema(f"Expected a schema that the registry knows, got {what}.")
        kind = found.get("schemaType", "AVRO")
        if kind != "AVRO":
            raise UnknownSchema(f"Expected an Avro schema, got {what}, which is {kind}.")
        named: dict[str, Any] = {}
        for reference in found.get("references") or ():
            name, version = urllib.parse.quote(reference["subject"], safe=""), reference["version"]
            other = self._schema(self._ask(f"/subjects/{name}/versions/{version}"), f"'{name}'")
            named |= other["__named_schemas"]
        try:
            return parsed(found["schema"], named)
        except ValueError as error:
            raise UnknownSchema(f"Expected an Avro record's schema, got {what}: {error}.") from None

    def _ask(self, path: str, body: bytes | None = None, *, patient: bool = True) -> Any | None:
        """What it answers, as JSON; None for 404. Asks again, less and less often, until its
        patience ends."""
        deadline = time.monotonic() + (self._patience if patient else 0.0)
        wait, told = FIRST_WAIT, False
        while True:
            try:
                return self._once(path, body)
            except HeadraceError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                left = deadline - time.monotonic()
                if left <= 0 or self._stopped.wait(min(wait, left)):
                    raise HeadraceError(
                        f"Schema registry {self._url} does not answer: {_words(error)}; is it up "
                        "and its address right? Nothing that was committed is lost: start again."
                    ) from error
                if not told:
                    log.warning(
                        "schema registry does not answer, asking again",
                        extra={"registry": self._url, "why": _words(error), "seconds": left},
                    )
                wait, told = min(2 * wait, LONGEST_WAIT), True

    def _once(self, path: str, body: bytes | None) -> Any | None:
        request = urllib.request.Request(self._url + path, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()[:500].decode(errors="replace")
            if error.code == 404:
                return None
            if error.code in (401, 403):
                raise UserError(
                    f"Schema registry {self._url} refuses: {error.code} {error.reason}; set "
                    "registry_user and registry_password, or ask for the permission."
                ) from None
            if error.code >= 500 or error.code == 429:
                raise OSError(f"{error.code} {error.reason}: {said}") from None
            raise UserError(
                f"Schema registry {self._url} refuses {path}: {error.code} {error.reason}: {said}."
            ) from None


def _subject(topic: str) -> str:
    """By the topic's name, as producers do unless told otherwise."""
    return urllib.parse.quote(f"{topic}-value", safe="")


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason) if type(reason) in (OSError, str) else f"{type(reason).__name__}: {reason}"


__all__ = ["Registry"]
