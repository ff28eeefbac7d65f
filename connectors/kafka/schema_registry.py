"""A client for schema registries with Confluent's API (Confluent, Apicurio, Karapace, Redpanda)."""

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
"""The most seconds of one answer: a stop must be done within 5 s."""
MIN_BACKOFF, MAX_BACKOFF = 0.1, 5.0
UNKNOWN_SCHEMA_TTL = 60.0
"""The seconds after which an unknown schema is requested again: its writer may register it only
now."""
CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"


class Registry:
    """A registry, see `connectors.formats.avro.Schemas`. A schema number never changes its
    meaning, so it is requested once.

    Args:
        url: http(s)://host:port, with a path where the API is not at the root.
        user: and password: of HTTP's basic authentication.
        timeout: seconds for one answer, at most `ANSWER_SECONDS`.
        retry_timeout: seconds to ask again when it does not answer in the middle of a run.

    Raises (all methods): UserError if it refuses (user, password, a schema that does not go with
    the older ones); HeadraceError where it does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: SecretStr | None = None,
        timeout: float = ANSWER_SECONDS,
        retry_timeout: float = 60.0,
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
        self._headers = {
            "Accept": f"{CONTENT_TYPE}, application/json",
            "Content-Type": CONTENT_TYPE,
        }
        if user is not None:
            secret = "" if password is None else password.get_secret_value()
            token = base64.b64encode(f"{user}:{secret}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._timeout = min(timeout, ANSWER_SECONDS)
        self._retry_timeout = retry_timeout
        self._stopped = threading.Event()
        self._known: dict[int, Any] = {}
        self._unknown: dict[int, tuple[float, str]] = {}

    def by_id(self, number: int) -> Any:
        """Return the parsed schema with this number.

        Raises: UnknownSchema if there is none, or it is not Avro.
        """
        if number in self._known:
            return self._known[number]
        since, words = self._unknown.get(number, (-UNKNOWN_SCHEMA_TTL, ""))
        if time.monotonic() - since < UNKNOWN_SCHEMA_TTL:
            raise UnknownSchema(words)
        try:
            schema = self._schema(self._request(f"/schemas/ids/{number}"), f"schema {number}")
        except UnknownSchema as error:
            self._unknown[number] = (time.monotonic(), str(error))
            raise
        self._known[number] = schema
        return schema

    def latest(self, topic: str, *, retry: bool = True) -> Any | None:
        """Return the newest parsed schema of the topic's values; None without one.

        Args:
            retry: whether to wait for a registry that is down.
        """
        try:
            return self.version(topic, "latest", retry=retry)
        except UnknownSchema:
            return None

    def version(self, topic: str, version: int | str, *, retry: bool = True) -> Any:
        """Return one of the parsed schemas of the topic's values. Raises: UnknownSchema."""
        subject = _subject(topic)
        path = f"/subjects/{subject}/versions/{version}"
        return self._schema(self._request(path, retry=retry), f"subject '{subject}'")

    def versions(self, topic: str, *, retry: bool = True) -> list[int]:
        """Return the versions of the topic's values, oldest first."""
        numbers = self._request(f"/subjects/{_subject(topic)}/versions", retry=retry)
        return [] if numbers is None else [int(version) for version in numbers]

    def register(self, topic: str, schema: Any) -> int:
        """Return the number of this schema of the topic's values; register it if necessary."""
        body = json.dumps({"schema": json.dumps(schema)}).encode()
        reply = self._request(f"/subjects/{_subject(topic)}/versions", body)
        if reply is None or "id" not in reply:
            raise HeadraceError(
                f"Schema registry {self._url} has no place for subject '{_subject(topic)}': "
                "expected Confluent's API; is the path of the address right?"
            )
        return int(reply["id"])

    def interrupt(self) -> None:
        """Abort all waits until `resume`; waiters get an error. Any thread may call it."""
        self._stopped.set()

    def resume(self) -> None:
        """Wait again when it does not answer."""
        self._stopped.clear()

    # ------------------------------------------------------------------------------------ inside

    def _schema(self, reply: Any, described: str) -> Any:
        if reply is None or "schema" not in reply:
            raise UnknownSchema(f"Expected a schema that the registry knows, got {described}.")
        schema_type = reply.get("schemaType", "AVRO")
        if schema_type != "AVRO":
            raise UnknownSchema(
                f"Expected an Avro schema, got {described}, which is {schema_type}."
            )
        named: dict[str, Any] = {}
        for reference in reply.get("references") or ():
            name, version = urllib.parse.quote(reference["subject"], safe=""), reference["version"]
            other = self._schema(self._request(f"/subjects/{name}/versions/{version}"), f"'{name}'")
            named |= other["__named_schemas"]
        try:
            return parsed(reply["schema"], named)
        except ValueError as error:
            raise UnknownSchema(
                f"Expected an Avro record's schema, got {described}: {error}."
            ) from None

    def _request(self, path: str, body: bytes | None = None, *, retry: bool = True) -> Any | None:
        """Return the answer as JSON; None for 404. Retries with growing pauses, up to its
        timeout."""
        deadline = time.monotonic() + (self._retry_timeout if retry else 0.0)
        wait, warned = MIN_BACKOFF, False
        while True:
            try:
                return self._request_once(path, body)
            except HeadraceError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                left = deadline - time.monotonic()
                if left <= 0 or self._stopped.wait(min(wait, left)):
                    raise HeadraceError(
                        f"Schema registry {self._url} does not answer: {_words(error)}; is it up "
                        "and its address right? Nothing that was committed is lost: start again."
                    ) from error
                if not warned:
                    log.warning(
                        "schema registry does not answer, asking again",
                        extra={"registry": self._url, "reason": _words(error), "seconds": left},
                    )
                wait, warned = min(2 * wait, MAX_BACKOFF), True

    def _request_once(self, path: str, body: bytes | None) -> Any | None:
        request = urllib.request.Request(self._url + path, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                body_text = error.read()[:500].decode(errors="replace")
            if error.code == 404:
                return None
            if error.code in (401, 403):
                raise UserError(
                    f"Schema registry {self._url} refuses: {error.code} {error.reason}; set "
                    "registry_user and registry_password, or ask for the permission."
                ) from None
            if error.code >= 500 or error.code == 429:
                raise OSError(f"{error.code} {error.reason}: {body_text}") from None
            raise UserError(
                f"Schema registry {self._url} refuses {path}: {error.code} {error.reason}: "
                f"{body_text}."
            ) from None


def _subject(topic: str) -> str:
    """Return the subject, by the topic's name, the default of producers."""
    return urllib.parse.quote(f"{topic}-value", safe="")


def _words(error: Exception) -> str:
    # Errors of urllib, TLS and text encodings each have a reason of their own.
    reason = getattr(error, "reason", error)
    return str(reason) if type(reason) in (OSError, str) else f"{type(reason).__name__}: {reason}"


__all__ = ["Registry"]
