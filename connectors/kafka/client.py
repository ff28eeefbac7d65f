"""How to reach a broker: settings that the source and the sink share, and errors in one
sentence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from kafka import errors
from pydantic import Field, SecretStr

from engine import types
from engine.types import HeadraceError, UserError

USERS_MISTAKES = (
    errors.SaslAuthenticationFailedError,
    errors.AuthorizationError,
    errors.InvalidTopicError,
    errors.KafkaConfigurationError,
    errors.UnsupportedVersionError,
    errors.UnsupportedCodecError,
)


class KafkaSettings(types.Settings):
    """What ``[source]`` and ``[sink]`` of ``kind = "kafka"`` have in common.

    Attributes:
        bootstrap: "host:port" of one broker or more, with commas in between; by default the
            environment's KAFKA_BOOTSTRAP_SERVERS, else localhost:9092.
        security: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        ca_file: certificates to trust (SSL), PEM; the system's unless given.
        cert_file, key_file: this client's own (mutual TLS), PEM.
        sasl: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        user: of SASL.
        password: of SASL; better from the environment:
            ``HEADRACE_SOURCE__PASSWORD``. Never logged.
        timeout: seconds to wait for a broker's answer at the start.
    """

    bootstrap: str = Field(
        default_factory=lambda: os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    )
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    user: str | None = None
    password: SecretStr | None = None
    timeout: float = Field(30.0, gt=0)

    def config(self) -> dict[str, Any]:
        """As kafka-python's clients take it."""
        found: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap.split(","),
            "bootstrap_timeout_ms": int(self.timeout * 1000),
            "security_protocol": self.security,
            "ssl_cafile": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
            "sasl_mechanism": self.sasl,
            "sasl_plain_username": self.user,
            "client_id": "headrace",
            "reconnect_backoff_max_ms": 1_000,  # a broker that is back is found within a second
        }
        if self.password is not None:
            found["sasl_plain_password"] = self.password.get_secret_value()
        return found


class _Cancelled(logging.Filter):
    """kafka-python calls it an error that closing a client cancels what it was about to ask."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Cancelled" not in record.getMessage()


logging.getLogger("kafka.cluster").addFilter(_Cancelled())


@contextmanager
def speaking(settings: KafkaSettings, what: str) -> Iterator[None]:
    """Turns the client's errors into one sentence that says what was tried, where.

    Raises: UserError for a wrong name, password or permission; HeadraceError for the rest.
    """
    try:
        yield
    except HeadraceError:
        raise
    except USERS_MISTAKES as error:
        raise UserError(f"{what} at {settings.bootstrap}: {_words(error)}.") from error
    except (errors.KafkaError, OSError, ValueError) as error:
        raise HeadraceError(
            f"{what} at {settings.bootstrap} failed: {_words(error)}; is the broker up and its "
            "address right? Nothing that was committed is lost: start again."
        ) from error


def _words(error: BaseException) -> str:
    text = str(error).strip().rstrip(".")
    return text if text and type(error).__name__ in text else f"{type(error).__name__}: {text}"


__all__ = ["KafkaSettings", "speaking"]
