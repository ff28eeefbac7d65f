"""Connection settings shared by source and sink, and the client's errors as one sentence."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from kafka import KafkaConsumer, errors
from pydantic import Field, SecretStr, field_validator, model_validator

from connectors.kafka import handshake
from connectors.kafka.client_internals import connections
from engine import types
from engine.types import Duration, HeadraceError, Name, UserError
from engine.types.changes import Free

log = logging.getLogger("headrace.kafka")
SILENT_SECONDS = 10.0
"""The seconds a request may wait for its answer before the broker counts as unreachable."""
KEEP_ALIVE_SECONDS = 1.0
HANG_SECONDS = 120.0
"""The seconds that a start waits for a hanging broker, unless `timeout` is given."""

USERS_MISTAKES = (
    errors.InvalidTopicError,
    errors.KafkaConfigurationError,
    errors.UnsupportedVersionError,
    errors.UnsupportedCodecError,
)
TLS_KEYS = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
SASL_KEYS = ("sasl_mechanism", "user", "password", "password_file")


class KafkaSettings(types.Settings):
    """The settings that ``[source]`` and ``[sink]`` of ``kind = "kafka"`` share.

    Settings that contradict each other, and unreadable files, are refused before anything starts.

    Attributes:
        bootstrap_servers: "host:port" of one or more brokers, separated by commas; unless given,
            the environment variable KAFKA_BOOTSTRAP_SERVERS, else localhost:9092.
        security_protocol: PLAINTEXT (for private networks), SSL, SASL_SSL, or SASL_PLAINTEXT, which
            sends the password (PLAIN) or data to guess it from (SCRAM) in the clear, with a
            warning.
        ssl_cafile: certificates to trust (SSL, SASL_SSL), PEM; the system's unless given. The
            broker's host name is always checked.
        ssl_certfile, ssl_keyfile: this client's own certificate and its key (mutual TLS), PEM,
            without pass phrase; `ssl_keyfile` is not needed if `ssl_certfile` contains both.
        sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; needed by SASL_SSL and
            SASL_PLAINTEXT.
        user: the SASL user's name.
        password: the SASL password, never shown; better set in the environment
            (``HEADRACE_SOURCE__PASSWORD``, ``HEADRACE_SINK__PASSWORD``) or in `password_file`
            than in the pipeline file.
        password_file: a file with the password in its first line, instead of `password`; read at
            each start.
        timeout: how long to wait for a broker's answer at the start; unless given, 30 s if no
            broker is reachable, and 120 s if one is but hangs. A broker that permanently refuses
            this client ends the wait at once.
    """

    bootstrap_servers: Free[str] = Field(
        default_factory=lambda: os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    )
    security_protocol: Free[Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]] = "PLAINTEXT"
    ssl_cafile: Free[Name | None] = None
    ssl_certfile: Free[Name | None] = None
    ssl_keyfile: Free[Name | None] = None
    sasl_mechanism: Free[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None] = None
    user: Free[str | None] = None
    password: Free[SecretStr | None] = None
    password_file: Free[Name | None] = None
    timeout: Free[Duration] = Field(30.0, gt=0)

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, bootstrap_servers: str) -> str:
        handshake.addresses(bootstrap_servers)
        return bootstrap_servers

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if "SASL" in self.security_protocol:
            self._fit_sasl()
        else:
            self._unanswered(SASL_KEYS, "SASL_SSL")
        if "SSL" in self.security_protocol:
            self._context()
        else:
            self._unanswered(TLS_KEYS, "SASL_SSL" if self.sasl_mechanism else "SSL")
        return self

    def _fit_sasl(self) -> None:
        if self.sasl_mechanism is None:
            raise ValueError(
                f"security_protocol '{self.security_protocol}' needs sasl_mechanism: expected "
                f"PLAIN, SCRAM-SHA-256 or "
                "SCRAM-SHA-512"
            )
        if not self.user:
            raise ValueError(
                f"sasl_mechanism '{self.sasl_mechanism}' needs the name to sign in with: set user"
            )
        if self.password is not None and self.password_file is not None:
            raise ValueError("expected password or password_file, got both: take one away")
        if not self._password():
            raise ValueError(
                f"sasl_mechanism '{self.sasl_mechanism}' needs the password of user '{self.user}': "
                f"set it in the "
                "environment (HEADRACE_SOURCE__PASSWORD, HEADRACE_SINK__PASSWORD) or name a "
                "password_file"
            )

    def _unanswered(self, keys: tuple[str, ...], security_protocol: str) -> None:
        for key in keys:
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is of no use with security_protocol '{self.security_protocol}': set "
                    f"security_protocol to "
                    f"'{security_protocol}', or take {key} away"
                )

    def secrets(self) -> Iterator[str]:
        yield from super().secrets()
        if self.password_file is not None:
            yield self._password()

    def config(self) -> dict[str, Any]:
        """Return the configuration of kafka-python's clients, after a successful handshake with
        a broker.

        Raises: handshake.AccessDenied where it says that it cannot, handshake.Unreachable where
            none answers.
        """
        context = self._context() if "SSL" in self.security_protocol else None
        self._warn()
        # It shouts at every attempt to reach a broker that is away; `BrokerHealth` says it once.
        client = logging.getLogger("kafka")
        client.setLevel(logging.NOTSET if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
        servers = handshake.addresses(self.bootstrap_servers)
        with BrokerHealth.of(self.bootstrap_servers).watching(self):
            left = handshake.connect(
                servers, self._client_identity(context), self.timeout, self.hang
            )
        config: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "bootstrap_timeout_ms": int(left * 1000),
            "security_protocol": self.security_protocol,
            "ssl_context": context,
            "client_id": "headrace",
            "reconnect_backoff_max_ms": 1_000,  # a broker that is back is found within a second
        }
        if self.sasl_mechanism is not None:
            config["sasl_mechanism"] = self.sasl_mechanism
            config["sasl_plain_username"] = self.user
            config["sasl_plain_password"] = self._password()
        return config

    @property
    def hang(self) -> float:
        """Return the seconds that the start waits for a broker that accepts connections and does
        not answer."""
        return self.timeout if "timeout" in self.model_fields_set else HANG_SECONDS

    def _password(self) -> str:
        if self.password_file is None:
            return "" if self.password is None else self.password.get_secret_value()
        try:
            with Path(self.password_file).open(encoding="utf-8") as file:
                line = file.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable("password_file", self.password_file, error) from None
        if not line:
            raise ValueError(f"password_file {self.password_file} has an empty first line")
        return line

    def _context(self) -> ssl.SSLContext:
        """Raises: ValueError for a file that is not there or not what it should be."""
        context = ssl.create_default_context()
        if self.ssl_cafile is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            _readable("ssl_cafile", self.ssl_cafile)
            try:
                context.load_verify_locations(self.ssl_cafile)
            except ssl.SSLError as error:
                raise _unreadable("ssl_cafile", self.ssl_cafile, error) from None
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None:
                raise ValueError(
                    "ssl_keyfile needs the certificate that it is the key of: ssl_certfile"
                )
            return context
        _readable("ssl_certfile", self.ssl_certfile)
        if self.ssl_keyfile is not None:
            _readable("ssl_keyfile", self.ssl_keyfile)
        try:
            # A pass phrase would be asked for on the terminal, and waited for.
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")
        except ssl.SSLError as error:
            pair = (
                f"ssl_certfile {self.ssl_certfile} and ssl_keyfile "
                f"{self.ssl_keyfile or '(the same)'}"
            )
            why = (error.reason or str(error)).lower().replace("_", " ")
            raise ValueError(
                f"{pair} cannot be used ({why}): expected a certificate and its own key in PEM, "
                "without pass phrase"
            ) from None
        return context

    def _client_identity(self, context: ssl.SSLContext | None) -> handshake.ClientIdentity:
        topics, operation = self._topics()
        return handshake.ClientIdentity(
            security_protocol=self.security_protocol,
            tls=context,
            ca="the system's store (ssl_cafile names others)"
            if self.ssl_cafile is None
            else f"ssl_cafile {self.ssl_cafile}",
            cert=None if self.ssl_certfile is None else f"ssl_certfile {self.ssl_certfile}",
            sasl_mechanism=self.sasl_mechanism,
            user=self.user or "",
            password=self._password(),
            topics=topics,
            what=operation,
        )

    def _topics(self) -> tuple[tuple[str, ...], int]:
        """Return the topics: a source's, to read; or a sink's, to write."""
        given = dict(self)
        if "topics" in given:
            return tuple(t for t in given["topics"] if not t.startswith("^")), handshake.READ
        return (given["topic"],) if "topic" in given else (), handshake.WRITE

    def _warn(self) -> None:
        if self.security_protocol == "SASL_PLAINTEXT":
            log.warning(
                "password and records go over the network in the clear: use security_protocol "
                "SASL_SSL",
                extra={
                    "bootstrap_servers": self.bootstrap_servers,
                    "security_protocol": self.security_protocol,
                },
            )
        for key in ("password_file", "ssl_keyfile"):
            path = getattr(self, key)
            if path is not None and Path(path).stat().st_mode & stat.S_IROTH:
                log.warning(
                    "all users of this machine can read a secret: chmod 600 it",
                    extra={"key": key, "file": path},
                )


def _readable(key: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise _unreadable(key, path, error) from None


def _unreadable(key: str, path: str, error: Exception) -> ValueError:
    expected = {"password_file": "text", "ssl_keyfile": "a private key in PEM"}.get(
        key, "certificates in PEM"
    )
    if isinstance(error, ssl.SSLError):
        why: str | None = error.reason
    else:
        why = error.strerror if isinstance(error, OSError) else None
    return ValueError(
        f"{key} {path} cannot be read ({why or f'no {expected}'}): expected {expected}"
    )


def is_answering(consumer: KafkaConsumer, *, again: bool = False) -> bool:
    """Return whether a broker answers this consumer now. An open connection does not tell: a
    hanging process keeps its connections and accepts new ones.

    Args:
        again: whether the broker was silent before; a request without a receiver then proves
            nothing.
    """
    known = connections(consumer)
    if any(time.monotonic() - at <= SILENT_SECONDS for at in known.last_read):
        return True
    return bool(known.last_read) and not again and not known.awaiting


class BrokerHealth:
    """Tracks whether the brokers at an address are reachable, over all clients of this process;
    logs once when one gets no answers, and once when all do again."""

    _known: ClassVar[dict[str, BrokerHealth]] = {}

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap = bootstrap_servers
        self._unanswered: dict[int, float] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, bootstrap_servers: str) -> BrokerHealth:
        """Return the tracker of that address."""
        return cls._known.setdefault(bootstrap_servers, cls(bootstrap_servers))

    @property
    def unreachable_since(self) -> float | None:
        """The time since when there is no answer, in `time.monotonic` seconds; None if there are
        answers."""
        return min(list(self._unanswered.values()), default=None)

    def report(self, client: object, answered: bool) -> None:
        """Report whether this client gets answers now. Any thread."""
        with self._lock:
            before = bool(self._unanswered)
            if answered:
                self._unanswered.pop(id(client), None)
            else:
                self._unanswered.setdefault(id(client), time.monotonic())
            if before == bool(self._unanswered):
                return
        message = "a broker is in reach again" if answered else "no broker is in reach"
        log.warning("%s", message, extra={"bootstrap_servers": self._bootstrap})

    @contextmanager
    def watching(
        self, client: object, keep_alive: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """Log a long wait inside the block, which has its own timeout.

        Args:
            keep_alive: called every second meanwhile, on another thread.
        """
        done, silent_at = threading.Event(), time.monotonic() + SILENT_SECONDS

        def watch() -> None:
            while not done.wait(KEEP_ALIVE_SECONDS):
                if keep_alive is not None:
                    keep_alive()
                if time.monotonic() >= silent_at:
                    self.report(client, False)

        thread = threading.Thread(target=watch, daemon=True, name="headrace-waiting")
        thread.start()
        try:
            yield
        except BaseException:
            self._end(done, thread)
            self.forget(client)
            raise
        self._end(done, thread)
        self.report(client, True)

    @staticmethod
    def _end(done: threading.Event, thread: threading.Thread) -> None:
        done.set()
        thread.join()

    def forget(self, client: object) -> None:
        """Stop tracking this client."""
        with self._lock:
            self._unanswered.pop(id(client), None)


def same_broker(first: KafkaSettings, other: KafkaSettings) -> bool:
    """Return whether both name a broker at the same address, in any spelling."""

    def known(settings: KafkaSettings) -> set[tuple[str, int]]:
        hosts = set(handshake.addresses(settings.bootstrap_servers))
        for host, port in list(hosts):
            with suppress(OSError):  # told where it is spoken to
                hosts |= {(str(a[4][0]), port) for a in socket.getaddrinfo(host, port)}
        return hosts

    return bool(known(first) & known(other))


@contextmanager
def translated_errors(settings: KafkaSettings, action: str) -> Iterator[None]:
    """Translate the client's errors into one sentence that says what was tried, and where.

    Raises: UserError for a wrong name, password or permission; HeadraceError for the rest.
    """
    place = f"{action} at {settings.bootstrap_servers}"
    try:
        yield
    except HeadraceError:
        raise
    except handshake.AccessDenied as error:
        raise UserError(f"{action}: {error}.") from error
    except errors.SaslAuthenticationFailedError as error:
        raise UserError(
            f"{place}: the broker does not let user '{settings.user}' in with "
            f"{settings.sasl_mechanism} "
            f"({error}): expected its password, and a user that it knows."
        ) from error
    except errors.AuthorizationError as error:
        raise UserError(
            f"{place}: the broker does not allow this to {_who(settings)} ({_words(error)}): "
            "expected ACLs that allow READ on a source's topics and group, WRITE on a sink's topic."
        ) from error
    except USERS_MISTAKES as error:
        raise UserError(f"{place}: {_words(error)}.") from error
    except (errors.KafkaError, OSError, ValueError) as error:
        raise HeadraceError(
            f"{place} failed: {_words(error)}; is the broker up and its address right? Nothing "
            "that was committed is lost: start again."
        ) from error


def _who(settings: KafkaSettings) -> str:
    if settings.user is not None:
        return f"user '{settings.user}'"
    return (
        f"ssl_certfile {settings.ssl_certfile}"
        if settings.ssl_certfile
        else "a client without a name"
    )


def _words(error: BaseException) -> str:
    text = str(error).strip().rstrip(".")
    if isinstance(error, handshake.Unreachable):
        return text
    return text if text and type(error).__name__ in text else f"{type(error).__name__}: {text}"


__all__ = [
    "SILENT_SECONDS",
    "BrokerHealth",
    "KafkaSettings",
    "is_answering",
    "same_broker",
    "translated_errors",
]
