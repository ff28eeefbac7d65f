"""Broker handshake before kafka-python connects: fails fast on errors that retrying cannot fix.

A few words do it. Every listener answers a SASL handshake: one with SASL names its mechanisms, one
without says that it has none, one that wants TLS says so in TLS, or hangs up. Then the broker says
where clients find it and its like, and that must work too.
https://kafka.apache.org/protocol#protocol_messages

The three requests are packed by hand: the messages of kafka.protocol are internal to kafka-python,
and what answers here need not be Kafka.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from connectors.kafka.client_internals import sasl_mechanism

PAUSE = 0.2
"""The seconds between two attempts at unreachable brokers."""
CLIENT_ID = b"headrace"
READ, WRITE = 3, 4
"""The operations on a topic, as a broker numbers them."""
METADATA, SASL_HANDSHAKE, SASL_AUTHENTICATE = 3, 17, 36
UNKNOWN_TOPIC, INVALID_TOPIC, NO_PERMISSION, UNKNOWN_MECHANISM, NO_SASL = 3, 17, 29, 33, 34
MAX_ANSWER_BYTES = 1 << 20
"""The most bytes of an answer: a longer one is not Kafka's."""
MAX_BROKERS_TRIED = 32
"""The brokers of a cluster that are tried: enough to find an error that all of them share."""
Address = tuple[str, int]


class AccessDenied(Exception):
    """The broker permanently denies access to this client."""


class Unreachable(OSError):
    """No server answered in time."""


class NoReply(TimeoutError):
    """A server accepted the connection and sent no reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientIdentity:
    """How the client authenticates: protocol, SASL mechanism, credentials, certificates.

    Attributes:
        security_protocol: as in `KafkaSettings`.
        tls: what to trust and show, or None without TLS.
        ca: what is trusted, and `cert` what is shown: in words, for sentences.
        sasl_mechanism: the mechanism, or None; with `user` and `password`.
        topics: what for, and `what` is to be done with them: READ or WRITE.
    """

    security_protocol: str
    tls: ssl.SSLContext | None
    ca: str
    cert: str | None
    sasl_mechanism: str | None
    user: str
    password: str = field(repr=False)
    topics: tuple[str, ...]
    what: int


def addresses(bootstrap_servers: str) -> list[Address]:
    """Raises: ValueError for what is no list of host:port."""
    return [_address(text.strip()) for text in bootstrap_servers.split(",")]


def connect(
    servers: Sequence[Address], identity: ClientIdentity, timeout: float, hang: float = 0.0
) -> float:
    """Connect to the bootstrap servers in turn, then to one broker they name; return the seconds
    left.

    Args:
        timeout: seconds for all of it.
        hang: seconds for one that is there and does not answer, where that is longer.

    Raises: AccessDenied, at once; Unreachable, when the time is over.
    """
    start = time.monotonic()
    try:
        named = _any(servers, identity, start + timeout, f"no answer within {timeout:g} s")
    except Unreachable as error:
        if hang <= timeout or not isinstance(error.__cause__, NoReply):
            raise
        timeout = hang
        named = _any(servers, identity, start + timeout, f"no answer within {timeout:g} s")
    deadline = start + timeout
    others = [server for server in named[:MAX_BROKERS_TRIED] if server not in servers]
    if others and len(others) == len(named):
        names = ", ".join(f"{host}:{port}" for host, port in others)
        _any(
            others,
            identity,
            max(deadline, time.monotonic() + 1.0),
            f"it answers, and sends clients on to {names} (advertised.listeners), where there is "
            f"no answer within {timeout:g} s",
        )
    return max(deadline - time.monotonic(), 1.0)


def _any(
    servers: Sequence[Address], identity: ClientIdentity, deadline: float, silence: str
) -> list[Address]:
    """Return the brokers named by the first server that accepts the client."""
    while True:
        failure: OSError | None = None
        mistake: AccessDenied | None = None
        for i, server in enumerate(servers):
            share = (deadline - time.monotonic()) / (len(servers) - i)
            try:
                return _handshake(server, identity, max(share, 0.1))
            except AccessDenied as error:
                mistake = error
            except OSError as error:
                failure = error if not isinstance(failure, NoReply) else failure
        if mistake is not None:
            raise mistake
        if time.monotonic() + PAUSE >= deadline:
            assert failure is not None
            why = failure.strerror or str(failure) or type(failure).__name__
            raise Unreachable(f"{silence} ({why})") from failure
        time.sleep(PAUSE)


def _handshake(server: Address, identity: ClientIdentity, timeout: float) -> list[Address]:
    """Return the brokers a server names.

    Raises: AccessDenied; OSError where another try may go well.
    """
    name = f"{server[0]}:{server[1]}"
    try:
        with _connected(server, identity.tls, timeout) as line:
            return _check_access(line, server[0], name, identity)
    except OSError as error:
        if (proof := _proof(error, name, identity)) is not None:
            raise proof from error
        if not isinstance(error, ConnectionRefusedError | socket.gaierror | TimeoutError):
            _check_other_protocol(server, name, identity, timeout)
        raise
    except (struct.error, UnicodeDecodeError):
        return []  # not what is known of Kafka; kafka-python may know more


def _check_access(
    line: _TimedConnection, host: str, name: str, identity: ClientIdentity
) -> list[Address]:
    code, offered = _mechanisms(line, identity.sasl_mechanism or "PLAIN")
    if code == NO_SASL and identity.sasl_mechanism is not None:
        raise AccessDenied(
            f"{name} takes no SASL, and security_protocol is '{identity.security_protocol}': name "
            f"the port of a listener "
            f"with SASL, or set security_protocol to "
            f"'{identity.security_protocol.removeprefix('SASL_')}'"
        )
    if code in (0, UNKNOWN_MECHANISM) and identity.sasl_mechanism not in offered:
        wanted = (
            "no sasl_mechanism is set"
            if identity.sasl_mechanism is None
            else f"sasl_mechanism is '{identity.sasl_mechanism}'"
        )
        secure = "SASL_PLAINTEXT" if identity.tls is None else "SASL_SSL"
        raise AccessDenied(
            f"{name} wants SASL with {' or '.join(sorted(offered))}, and {wanted}: set "
            f"security_protocol to "
            f"'{secure}' and sasl_mechanism to one of these"
        )
    if code == 0:
        _authenticate(line, host, name, identity)
    return _brokers(line, name, identity)


def _mechanisms(line: _TimedConnection, mechanism: str) -> tuple[int, list[str]]:
    """Return the error code, and the offered mechanisms."""
    answer = _Answer(line.ask(SASL_HANDSHAKE, 1, _text(mechanism)))
    code = answer.number("h")
    return code, [answer.text() for _ in range(answer.number("i"))]


def _authenticate(line: _TimedConnection, host: str, name: str, identity: ClientIdentity) -> None:
    mechanism = sasl_mechanism(identity.sasl_mechanism, host, identity.user, identity.password)
    why = None
    while why is None and not mechanism.is_done():
        token = mechanism.auth_bytes()
        sent = struct.pack(f">i{len(token)}s", len(token), token)
        answer = _Answer(line.ask(SASL_AUTHENTICATE, 0, sent))
        if answer.number("h"):
            why = answer.text() or "no reason given"
            break
        answer.text()
        try:
            mechanism.receive(answer.bytes(answer.number("i")))
        except ValueError as error:  # the broker cannot prove that it knows the password
            why = str(error)
    if why is not None or not mechanism.is_authenticated():
        raise AccessDenied(
            f"{name} does not let user '{identity.user}' in with {identity.sasl_mechanism} "
            f"({why or 'no reason given'}): expected a user that it knows, and its password"
        )


def _brokers(line: _TimedConnection, name: str, identity: ClientIdentity) -> list[Address]:
    """Raises: AccessDenied where a topic's permissions are not enough, or one to write to is not
    there (a source finds that out itself, and knows similar names)."""
    topics = b"".join(map(_text, identity.topics))
    body = struct.pack(">i", len(identity.topics)) + topics + bytes([False, False, True])
    try:
        answer = _Answer(line.ask(METADATA, 8, body))
    except ConnectionError:
        return []  # a broker older than 2.3 hangs up; kafka-python has other words for it
    answer.number("i")
    brokers = []
    for _ in range(answer.number("i")):
        answer.number("i")
        brokers.append((answer.text(), answer.number("i")))
        answer.text()
    answer.text()
    answer.number("i")
    for _ in range(answer.number("i")):
        code, topic = answer.number("h"), answer.text()
        answer.number("?")
        for _ in range(answer.number("i")):
            answer.bytes(14)  # error, partition, leader, epoch
            for _ in range(3):  # replicas, in sync, offline
                answer.bytes(4 * answer.number("i"))
        allowed = answer.number("i")
        if code == NO_PERMISSION or (code == 0 and not allowed & 1 << identity.what):
            raise AccessDenied(_no_permission(topic, name, identity))
        if code in (UNKNOWN_TOPIC, INVALID_TOPIC) and identity.what == WRITE:
            raise AccessDenied(f"there is no such topic at {name}: create it, or correct its name")
    return brokers


def _no_permission(topic: str, name: str, identity: ClientIdentity) -> str:
    who = (
        f"user '{identity.user}'"
        if identity.sasl_mechanism
        else identity.cert or "a client without a name"
    )
    operation = "READ" if identity.what == READ else "WRITE"
    return (
        f"{name} does not allow {who} to {operation.lower()} topic '{topic}': expected an ACL that "
        f"allows {operation} on it, or another user"
    )


def _proof(error: OSError, server: str, identity: ClientIdentity) -> AccessDenied | None:
    """Return what a failed TLS handshake proves, or None if another attempt may succeed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return AccessDenied(
            f"the certificate of {server} is not accepted ({why}): expected one for this host "
            f"name, valid now, from an authority in {identity.ca}"
        )
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    alert = reason.lower().replace("_", " ")
    if "ALERT" in reason and identity.cert is None:
        return AccessDenied(
            f"{server} wants a client's certificate, and none is given ({alert}): set ssl_certfile "
            f"and "
            "ssl_keyfile"
        )
    if "ALERT" in reason:
        return AccessDenied(
            f"{server} refuses the certificate in {identity.cert} ({alert}): expected one that is "
            f"valid "
            "now, from an authority that the broker trusts"
        )
    return None


def _check_other_protocol(
    server: Address, name: str, identity: ClientIdentity, timeout: float
) -> None:
    """Check whether the server would answer with TLS, or without.

    Raises: AccessDenied if so.
    """
    try:
        with _connected(
            server, _unverified_context() if identity.tls is None else None, timeout
        ) as line:
            _mechanisms(line, "PLAIN")
    except (OSError, struct.error, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else None
        if identity.tls is not None or "ALERT" not in (reason or ""):
            return
    if identity.tls is None:
        raise AccessDenied(
            f"{name} speaks TLS, and security_protocol is '{identity.security_protocol}': set it "
            f"to "
            f"'{'SASL_SSL' if identity.sasl_mechanism else 'SSL'}', or name the port without TLS"
        )
    raise AccessDenied(
        f"{name} speaks no TLS, and security_protocol is '{identity.security_protocol}': name its "
        f"TLS port, or set "
        f"security_protocol to '{identity.security_protocol.replace('SSL', 'PLAINTEXT')}'"
    )


class _TimedConnection:
    """A connection with a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def ask(self, api: int, version: int, body: bytes) -> bytes:
        """Return a request's answer, without its header. Raises: OSError."""
        head = struct.pack(f">hhih{len(CLIENT_ID)}s", api, version, api, len(CLIENT_ID), CLIENT_ID)
        self._sock.settimeout(self._left())
        self._sock.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
        try:
            size, correlation = struct.unpack(">ii", self._exactly(8))
        except TimeoutError as error:
            raise NoReply("timed out") from error
        if correlation != api or not 4 <= size <= MAX_ANSWER_BYTES:
            raise ConnectionAbortedError("what answers there is no Kafka broker")
        return self._exactly(size - 4)

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            self._sock.settimeout(self._left())
            more = self._sock.recv(n - len(data))
            if not more:
                raise ConnectionResetError("the connection was closed")
            data += more
        return data

    def _left(self) -> float:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise NoReply("timed out")
        return left


class _Answer:
    """Parses an answer of Kafka. Raises: struct.error, UnicodeDecodeError if it is something
    else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, format: str) -> int:
        value: int = struct.unpack_from(f">{format}", self._data, self._at)[0]
        self._at += struct.calcsize(format)
        return value

    def bytes(self, n: int) -> bytes:
        self._at += max(n, 0)
        return self._data[self._at - max(n, 0) : self._at]

    def text(self) -> str:
        """Read a string; null becomes ""."""
        return self.bytes(self.number("h")).decode()


@contextmanager
def _connected(
    server: Address, tls: ssl.SSLContext | None, timeout: float
) -> Iterator[_TimedConnection]:
    deadline = time.monotonic() + timeout
    with socket.create_connection(server, timeout) as plain:
        if tls is None:
            yield _TimedConnection(plain, deadline)
            return
        with tls.wrap_socket(plain, server_hostname=server[0].rstrip(".")) as secured:
            yield _TimedConnection(secured, deadline)


def _unverified_context() -> ssl.SSLContext:
    """Return a context that tests whether the server speaks TLS; nothing secret is sent through
    it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(f">h{len(data)}s", len(data), data)


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "9092"
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError("expected host:port, or several with commas in between,")
    return host, int(port)


__all__ = [
    "READ",
    "WRITE",
    "AccessDenied",
    "Address",
    "ClientIdentity",
    "Unreachable",
    "addresses",
    "connect",
]
