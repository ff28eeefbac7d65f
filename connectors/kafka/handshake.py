"""Broker handshake before kafka-python connects: fails fast on errors that retrying cannot fix.

A few words do it. Every listener answers a SASL handshake: one with SASL names its mechanisms, one
without says that it has none, one that wants TLS says so in TLS, or hangs up. Then the broker says
where clients find it and its like, and that must work too.
https://kafka.apache.org/protocol#protocol_messages
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kafka.net.sasl import get_sasl_mechanism

PAUSE = 0.2
"""Seconds between two rounds of knocking at brokers that are not there."""
NAME = b"headrace"
READ, WRITE = 3, 4
"""What one may do with a topic, as a broker numbers it."""
METADATA, SASL_HANDSHAKE, SASL_AUTHENTICATE = 3, 17, 36
NOT_THERE, NO_NAME, NO_PERMISSION, UNKNOWN_MECHANISM, NO_SASL = 3, 17, 29, 33, 34
MOST = 1 << 20
"""Bytes of an answer: a longer one is not Kafka's."""
ASKED = 32
"""Brokers of a cluster that are tried: enough to see a mistake that all of them share."""
Address = tuple[str, int]


class Refused(Exception):
    """The broker permanently denies access to this client."""


class Unreachable(OSError):
    """None answered in time."""


class Mute(TimeoutError):
    """A server accepted the connection and sent no reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """How the client authenticates: protocol, SASL mechanism, credentials, certificates.

    Attributes:
        security: as in `KafkaSettings`.
        tls: what to trust and show, or None without TLS.
        ca: what is trusted, and `cert` what is shown: in words, for sentences.
        sasl: the mechanism, or None; with `user` and `password`.
        topics: what for, and `what` is to be done with them: READ or WRITE.
    """

    security: str
    tls: ssl.SSLContext | None
    ca: str
    cert: str | None
    sasl: str | None
    user: str
    password: str = field(repr=False)
    topics: tuple[str, ...]
    what: int


def addresses(bootstrap: str) -> list[Address]:
    """Raises: ValueError for what is no list of host:port."""
    return [_address(text.strip()) for text in bootstrap.split(",")]


def reach(servers: Sequence[Address], door: Door, timeout: float, hang: float = 0.0) -> float:
    """Connect to the bootstrap servers in turn, then to one broker they name; return the seconds
    left.

    Args:
        timeout: seconds for all of it.
        hang: seconds for one that is there and does not answer, where that is longer.

    Raises: Refused, at once; Unreachable, when the time is over.
    """
    start = time.monotonic()
    try:
        named = _any(servers, door, start + timeout, f"no answer within {timeout:g} s")
    except Unreachable as error:
        if hang <= timeout or not isinstance(error.__cause__, Mute):
            raise
        timeout = hang
        named = _any(servers, door, start + timeout, f"no answer within {timeout:g} s")
    deadline = start + timeout
    others = [server for server in named[:ASKED] if server not in servers]
    if others and len(others) == len(named):
        names = ", ".join(f"{host}:{port}" for host, port in others)
        _any(
            others,
            door,
            max(deadline, time.monotonic() + 1.0),
            f"it answers, and sends clients on to {names} (advertised.listeners), where there is "
            f"no answer within {timeout:g} s",
        )
    return max(deadline - time.monotonic(), 1.0)


def _any(servers: Sequence[Address], door: Door, deadline: float, silence: str) -> list[Address]:
    """The brokers that the first server names that lets in."""
    while True:
        trouble: OSError | None = None
        mistake: Refused | None = None
        for i, server in enumerate(servers):
            share = (deadline - time.monotonic()) / (len(servers) - i)
            try:
                return _knock(server, door, max(share, 0.1))
            except Refused as error:
                mistake = error
            except OSError as error:
                trouble = error if not isinstance(trouble, Mute) else trouble
        if mistake is not None:
            raise mistake
        if time.monotonic() + PAUSE >= deadline:
            assert trouble is not None
            why = trouble.strerror or str(trouble) or type(trouble).__name__
            raise Unreachable(f"{silence} ({why})") from trouble
        time.sleep(PAUSE)


def _knock(server: Address, door: Door, timeout: float) -> list[Address]:
    """The brokers it names.

    Raises: Refused; OSError where another try may go well.
    """
    name = f"{server[0]}:{server[1]}"
    try:
        with _connected(server, door.tls, timeout) as line:
            return _come_in(line, server[0], name, door)
    except OSError as error:
        if (proof := _proof(error, name, door)) is not None:
            raise proof from error
        if not isinstance(error, ConnectionRefusedError | socket.gaierror | TimeoutError):
            _other_way(server, name, door, timeout)
        raise
    except (struct.error, UnicodeDecodeError):
        return []  # not what is known of Kafka; kafka-python may know more


def _come_in(line: _Line, host: str, name: str, door: Door) -> list[Address]:
    code, offered = _mechanisms(line, door.sasl or "PLAIN")
    if code == NO_SASL and door.sasl is not None:
        raise Refused(
            f"{name} takes no SASL, and security is '{door.security}': name the port of a listener "
            f"with SASL, or set security to '{door.security.removeprefix('SASL_')}'"
        )
    if code in (0, UNKNOWN_MECHANISM) and door.sasl not in offered:
        wanted = "no sasl is set" if door.sasl is None else f"sasl is '{door.sasl}'"
        secure = "SASL_PLAINTEXT" if door.tls is None else "SASL_SSL"
        raise Refused(
            f"{name} wants SASL with {' or '.join(sorted(offered))}, and {wanted}: set security to "
            f"'{secure}' and sasl to one of these"
        )
    if code == 0:
        _sign_in(line, host, name, door)
    return _brokers(line, name, door)


def _mechanisms(line: _Line, mechanism: str) -> tuple[int, list[str]]:
    """Error code, and what is offered."""
    answer = _Answer(line.ask(SASL_HANDSHAKE, 1, _text(mechanism)))
    code = answer.number("h")
    return code, [answer.text() for _ in range(answer.number("i"))]


def _sign_in(line: _Line, host: str, name: str, door: Door) -> None:
    mechanism = get_sasl_mechanism(door.sasl)(
        host=host,
        sasl_mechanism=door.sasl,
        sasl_plain_username=door.user,
        sasl_plain_password=door.password,
    )
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
        raise Refused(
            f"{name} does not let user '{door.user}' in with {door.sasl} "
            f"({why or 'no reason given'}): expected a user that it knows, and its password"
        )


def _brokers(line: _Line, name: str, door: Door) -> list[Address]:
    """Raises: Refused where a topic's permissions are not enough, or one to write to is not
    there (a source finds that out itself, and knows similar names)."""
    topics = b"".join(map(_text, door.topics))
    body = struct.pack(">i", len(door.topics)) + topics + bytes([False, False, True])
    try:
        answer = _Answer(line.ask(METADATA, 8, body))
    except ConnectionError:
        return []  # a broker older than 2.3 hangs up; kafka-python has other words for it
    answer.number("i")
    found = []
    for _ in range(answer.number("i")):
        answer.number("i")
        found.append((answer.text(), answer.number("i")))
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
        if code == NO_PERMISSION or (code == 0 and not allowed & 1 << door.what):
            raise Refused(_no_permission(topic, name, door))
        if code in (NOT_THERE, NO_NAME) and door.what == WRITE:
            raise Refused(f"there is no such topic at {name}: create it, or mend its name")
    return found


def _no_permission(topic: str, name: str, door: Door) -> str:
    who = f"user '{door.user}'" if door.sasl else door.cert or "a client without a name"
    what = "READ" if door.what == READ else "WRITE"
    return (
        f"{name} does not allow {who} to {what.lower()} topic '{topic}': expected an ACL that "
        f"allows {what} on it, or another user"
    )


def _proof(error: OSError, server: str, door: Door) -> Refused | None:
    """What a failed TLS handshake proves, or None where another try may go well."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return Refused(
            f"the certificate of {server} is not accepted ({why}): expected one for this host "
            f"name, valid now, from an authority in {door.ca}"
        )
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    said = reason.lower().replace("_", " ")
    if "ALERT" in reason and door.cert is None:
        return Refused(
            f"{server} wants a client's certificate, and none is given ({said}): set cert_file and "
            "key_file"
        )
    if "ALERT" in reason:
        return Refused(
            f"{server} refuses the certificate in {door.cert} ({said}): expected one that is valid "
            "now, from an authority that the broker trusts"
        )
    return None


def _other_way(server: Address, name: str, door: Door, timeout: float) -> None:
    """Whether it would have answered in TLS, or without.

    Raises: Refused if so.
    """
    try:
        with _connected(server, _anyone() if door.tls is None else None, timeout) as line:
            _mechanisms(line, "PLAIN")
    except (OSError, struct.error, UnicodeDecodeError) as error:
        if door.tls is not None or "ALERT" not in (getattr(error, "reason", None) or ""):
            return
    if door.tls is None:
        raise Refused(
            f"{name} speaks TLS, and security is '{door.security}': set it to "
            f"'{'SASL_SSL' if door.sasl else 'SSL'}', or name the port without TLS"
        )
    raise Refused(
        f"{name} speaks no TLS, and security is '{door.security}': name its TLS port, or set "
        f"security to '{door.security.replace('SSL', 'PLAINTEXT')}'"
    )


class _Line:
    """A connection, and how long it may still take."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def ask(self, api: int, version: int, body: bytes) -> bytes:
        """A request's answer, without its header. Raises: OSError."""
        head = struct.pack(f">hhih{len(NAME)}s", api, version, api, len(NAME), NAME)
        self._sock.settimeout(self._left())
        self._sock.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
        try:
            size, correlation = struct.unpack(">ii", self._exactly(8))
        except TimeoutError as error:
            raise Mute("timed out") from error
        if correlation != api or not 4 <= size <= MOST:
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
            raise Mute("timed out")
        return left


class _Answer:
    """Reads what Kafka wrote. Raises: struct.error, UnicodeDecodeError where it is something
    else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, kind: str) -> int:
        value: int = struct.unpack_from(f">{kind}", self._data, self._at)[0]
        self._at += struct.calcsize(kind)
        return value

    def bytes(self, n: int) -> bytes:
        self._at += max(n, 0)
        return self._data[self._at - max(n, 0) : self._at]

    def text(self) -> str:
        """Read a string; null becomes ""."""
        return self.bytes(self.number("h")).decode()


@contextmanager
def _connected(server: Address, tls: ssl.SSLContext | None, timeout: float) -> Iterator[_Line]:
    deadline = time.monotonic() + timeout
    with socket.create_connection(server, timeout) as plain:
        if tls is None:
            yield _Line(plain, deadline)
            return
        with tls.wrap_socket(plain, server_hostname=server[0].rstrip(".")) as secured:
            yield _Line(secured, deadline)


def _anyone() -> ssl.SSLContext:
    """To see whether TLS is spoken at all; nothing secret is said."""
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


__all__ = ["READ", "WRITE", "Address", "Door", "Refused", "Unreachable", "addresses", "reach"]
