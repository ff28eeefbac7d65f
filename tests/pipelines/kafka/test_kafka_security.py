"""A broker behind locks: who has the key comes in, who has not is told why, in one sentence and in
time; and nobody sees the key, nor forges what is said.

Passing and failing clients meet a real broker with real certificates, users and permissions.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as pem
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ACLOperation, NewTopic, ResourceType

from connectors.kafka.source import KafkaSource
from engine.observing import logs
from engine.types import Mark, Values
from tests.broker import skip_without_tools
from tests.connectors.conftest import drain
from tests.forks import Command
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_service import started
from tests.promtool import promtool
from tests.secure import PASSWORDS, SecureBroker
from tests.waiting import HANG, until

TIMEOUT = HANG
ROWS = 100
Keys = dict[str, Any]
PIPELINE = """
name = "locked"
folder = {folder}
[source]
kind = "kafka"
stop = "end"
topics = {topic}
{source}
[source.schema]
a = "float64"
n = "int64"
[scrub.standardize]
columns = ["a"]
[sink]
kind = "kafka"
topic = {to}
{sink}
[checkpoint]
interval_batches = 1
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    skip_without_tools()
    made = SecureBroker(tmp_path_factory.mktemp("secure"))
    with made:
        yield made


@pytest.fixture(scope="module")
def topic(broker: SecureBroker) -> str:
    """Rows of JSON that the reader may read."""
    name = broker.topic()
    broker.produce(name, [json.dumps({"a": i / 2, "n": i}).encode() for i in range(ROWS)])
    broker.allow(ACLOperation.READ, ResourceType.TOPIC, name)
    return name


@pytest.fixture(scope="module")
def other(broker: SecureBroker) -> str:
    """A topic that the reader may see, and neither read nor write."""
    name = broker.topic()
    broker.allow(ACLOperation.DESCRIBE, ResourceType.TOPIC, name)
    return name


@pytest.fixture
def plain(broker: SecureBroker) -> Keys:
    return {"bootstrap_servers": broker.bootstrap_servers, "timeout": TIMEOUT}


@pytest.fixture
def signed(broker: SecureBroker) -> Keys:
    """engine's keys to SASL_SSL."""
    return {
        "bootstrap_servers": broker.at["SASL_SSL"],
        "timeout": TIMEOUT,
        "security_protocol": "SASL_SSL",
        "ssl_cafile": broker.ca,
        "sasl_mechanism": "SCRAM-SHA-256",
        "user": "engine",
        "password": PASSWORDS["engine"],
    }


@pytest.fixture
def reader(signed: Keys) -> Keys:
    return signed | {"user": "reader", "password": PASSWORDS["reader"]}


@pytest.fixture
def mutual(broker: SecureBroker) -> Keys:
    """engine's certificate for SSL."""
    keys = {"bootstrap_servers": broker.at["SSL"], "timeout": TIMEOUT, "security_protocol": "SSL"}
    return keys | {"ssl_cafile": broker.ca} | pair(broker, "engine")


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A pipeline file that reads a topic and writes another; None takes a key away."""

    def write(source: Keys, sink: Keys, topic: str = "none", to: str = "none") -> Path:
        file = tmp_path / "locked.toml"
        file.write_text(
            PIPELINE.format(
                folder=json.dumps(str(tmp_path / "run")),
                topic=json.dumps(topic),
                to=json.dumps(to),
                source=_lines(source),
                sink=_lines(sink),
            )
        )
        return file

    return write


def pair(broker: SecureBroker, name: str) -> Keys:
    cert, key = broker.clients[name]
    return {"ssl_certfile": cert, "ssl_keyfile": key}


def _lines(keys: Keys) -> str:
    return "\n".join(
        f"{key} = {value if isinstance(value, float) else json.dumps(str(value))}"
        for key, value in keys.items()
        if value is not None
    )


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [*map(str, arguments)]
    pipe = subprocess.PIPE
    with Command(words, stdout=pipe, stderr=pipe, text=True) as process:
        out, err = process.communicate(timeout=HANG)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def consumed(broker: SecureBroker, topic: str) -> list[Any]:
    """All records of a topic of one partition, by kafka-python alone."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    tp = TopicPartition(topic, 0)
    consumer.assign([tp])
    consumer.seek(tp, 0)
    end, found = consumer.end_offsets([tp])[tp], []
    while consumer.position(tp) < end:
        found += [record for batch in consumer.poll(500).values() for record in batch]
    consumer.close()
    return found


# ------------------------------------------------------------------------------------- coming in


def ways(broker: SecureBroker, signed: Keys, mutual: Keys) -> dict[str, Keys]:
    clear = signed | {
        "bootstrap_servers": broker.at["SASL_PLAINTEXT"],
        "security_protocol": "SASL_PLAINTEXT",
    }
    return {
        "PLAIN": signed | {"sasl_mechanism": "PLAIN"},
        "SCRAM-SHA-256": signed,
        "SCRAM-SHA-512": signed | {"sasl_mechanism": "SCRAM-SHA-512"},
        "mutual TLS": mutual,
        "in the clear": clear | {"sasl_mechanism": "SCRAM-SHA-512", "ssl_cafile": None},
    }


@pytest.mark.parametrize(
    "way", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "mutual TLS", "in the clear"]
)
def test_a_pipeline_runs_through_the_lock(
    way: str, broker: SecureBroker, topic: str, signed: Keys, mutual: Keys,
    written: Callable[..., Path], headrace: Headrace,
) -> None:  # fmt: skip
    keys, to = ways(broker, signed, mutual)[way], broker.topic()
    file = written(keys, keys, topic, to)
    code, out, err = headrace("run", file, "--log-level", "warning", "--log-format", "json")
    assert code == 0, err
    assert f"{ROWS} read = {ROWS} cleaned" in out
    assert [json.loads(r.value)["n"] for r in consumed(broker, to)] == list(range(ROWS))
    said = [json.loads(line) for line in err.splitlines()]
    warned = {line["message"] for line in said if line["logger"] == "headrace.kafka"}
    clear = "password and records go over the network in the clear: use security_protocol SASL_SSL"
    assert warned == ({clear} if way == "in the clear" else set())


def test_answers_of_megabytes_come_whole_through_the_lock(
    broker: SecureBroker, mutual: Keys
) -> None:
    """Of many TLS records of 16 KiB each; what is deciphered already wakes nobody."""
    sent = [json.dumps({"n": i, "text": f"{i:06}" * 9_000}).encode() for i in range(150)]
    name = broker.topic()
    broker.produce(name, sent, each=10)
    keys = mutual | {key: str(mutual[key]) for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")}
    source = KafkaSource(KafkaSource.Settings(**keys, topics=(name,), stop="end"))
    source.seek(Mark())
    found = [piece.values for piece in drain(source)]
    source.close()
    lines = b"".join(
        v.data[v.bounds[0] : v.bounds[-1]].tobytes() for v in found if isinstance(v, Values)
    )
    assert lines.splitlines() == sent


def test_one_server_of_two_is_enough(
    broker: SecureBroker, topic: str, mutual: Keys, plain: Keys, written: Callable[..., Path]
) -> None:
    """In a process of its own: kafka-python leaves the refused sockets to the collector."""
    keys = mutual | {"bootstrap_servers": f"127.0.0.1:1, {mutual['bootstrap_servers']}"}
    file = written(keys, plain, topic, broker.topic())
    done = command("run", file)
    assert done.returncode == 0, done.stderr
    assert f"{ROWS} read = {ROWS} cleaned" in done.stdout


# ------------------------------------------------------------------------------------- kept out

WRONG = "expected a user that it knows, and its password."
REFUSED: dict[str, tuple[Callable[[SecureBroker, Keys, Keys, Keys], Keys], list[str]]] = {
    "wrong password, PLAIN": (
        lambda b, p, s, m: s | {"sasl_mechanism": "PLAIN", "password": "wrong"},
        ["does not let user 'engine' in with PLAIN (Authentication failed", WRONG],
    ),
    "wrong password, SCRAM-SHA-256": (
        lambda b, p, s, m: s | {"password": "wrong"},
        ["does not let user 'engine' in with SCRAM-SHA-256 (Authentication failed", WRONG],
    ),
    "wrong password, SCRAM-SHA-512": (
        lambda b, p, s, m: s | {"sasl_mechanism": "SCRAM-SHA-512", "password": "wrong"},
        ["does not let user 'engine' in with SCRAM-SHA-512 (Authentication failed", WRONG],
    ),
    "unknown user": (
        lambda b, p, s, m: s | {"user": "nobody"},
        ["does not let user 'nobody' in with SCRAM-SHA-256 (Authentication failed", WRONG],
    ),
    "mechanism not offered": (
        lambda b, p, s, m: s
        | {"bootstrap_servers": b.at["SASL_PLAINTEXT"], "security_protocol": "SASL_PLAINTEXT",
        "ssl_cafile": None},
        ["wants SASL with SCRAM-SHA-512, and sasl_mechanism is 'SCRAM-SHA-256': set "
        "security_protocol to "],
    ),
    "other authority": (
        lambda b, p, s, m: s | {"ssl_cafile": b.other_ca},
        ["is not accepted (unable to get local issuer certificate)", "an authority in ssl_cafile"],
    ),
    "the system's authorities": (
        lambda b, p, s, m: s | {"ssl_cafile": None},
        ["is not accepted (", "from an authority in the system's store (ssl_cafile names others)."],
    ),
    "other host": (
        lambda b, p, s, m: m | {"bootstrap_servers": b.at["FOREIGN"]},
        ["is not accepted (IP address mismatch, certificate is not valid for '127.0.0.1')"],
    ),
    "sent on to another host": (
        lambda b, p, s, m: m | {"bootstrap_servers": b.at["MOVED"]},
        ["is not accepted (IP address mismatch, certificate is not valid for '127.0.0.1')"],
    ),
    "no certificate": (
        lambda b, p, s, m: m | {"ssl_certfile": None, "ssl_keyfile": None},
        ["wants a client's certificate, and none is given", ": set ssl_certfile and ssl_keyfile."],
    ),
    "expired certificate": (
        lambda b, p, s, m: m | pair(b, "expired"),
        ["refuses the certificate in ssl_certfile ", "expired.pem (", "that is valid now"],
    ),
    "foreign certificate": (
        lambda b, p, s, m: m | pair(b, "foreign"),
        ["refuses the certificate in ssl_certfile ", "from an authority that the broker trusts."],
    ),
    "plain to TLS": (
        lambda b, p, s, m: p | {"bootstrap_servers": b.at["SSL"]},
        ["speaks TLS, and security_protocol is 'PLAINTEXT': set it to 'SSL', or name the port "
        "without TLS."],
    ),
    "SASL to TLS": (
        lambda b, p, s, m: s | {"security_protocol": "SASL_PLAINTEXT", "ssl_cafile": None},
        ["speaks TLS, and security_protocol is 'SASL_PLAINTEXT': set it to 'SASL_SSL', or name"],
    ),
    "TLS to plain": (
        lambda b, p, s, m: m | {"bootstrap_servers": b.bootstrap_servers},
        ["speaks no TLS, and security_protocol is 'SSL': name its TLS port, or set "
        "security_protocol to 'PLAIN"],
    ),
    "SASL_SSL to SASL_PLAINTEXT": (
        lambda b, p, s, m: s | {"bootstrap_servers": b.at["SASL_PLAINTEXT"]},
        ["speaks no TLS, and security_protocol is 'SASL_SSL'", "set security_protocol to "
        "'SASL_PLAINTEXT'."],
    ),
    "SASL to none": (
        lambda b, p, s, m: s
        | {"bootstrap_servers": b.bootstrap_servers, "security_protocol": "SASL_PLAINTEXT",
        "ssl_cafile": None},
        ["takes no SASL, and security_protocol is 'SASL_PLAINTEXT'", "or set security_protocol to "
        "'PLAINTEXT'."],
    ),
    "none to SASL": (
        lambda b, p, s, m: p | {"bootstrap_servers": b.at["SASL_PLAINTEXT"]},
        ["wants SASL with SCRAM-SHA-512, and no sasl_mechanism is set: set security_protocol to "
        "'SASL_PLAINTEXT'"],
    ),
    "none to SASL, over TLS": (
        lambda b, p, s, m: m | {"bootstrap_servers": b.at["SASL_SSL"]},
        ["wants SASL with PLAIN or SCRAM-SHA-256 or SCRAM-SHA-512, and no sasl_mechanism is set: "
        "set "],
    ),
}  # fmt: skip


@pytest.mark.parametrize("section", ["source", "sink"])
@pytest.mark.parametrize("case", REFUSED)
def test_who_is_kept_out_is_told_why(
    case: str, section: str, broker: SecureBroker, topic: str, other: str, plain: Keys,
    signed: Keys, mutual: Keys, written: Callable[..., Path], headrace: Headrace,
) -> None:  # fmt: skip
    """One sentence and nothing else, exit code 2, and not after the timeout but at once."""
    change, parts = REFUSED[case]
    keys = change(broker, plain, signed, mutual) | {"timeout": 3_600.0}
    pair = (keys, plain) if section == "source" else (plain, keys)
    code, _, err = headrace("run", written(*pair, topic, other), "--log-level", "error")
    assert code == 2, err
    what = f"topics {topic}" if section == "source" else f"topic '{other}'"
    assert re.fullmatch(rf"headrace: \[{section}\] {what}: [^\n]*\.\n", err), err
    for part in parts:
        assert part in err


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("section", ["source", "sink"])
def test_what_is_not_permitted(
    section: str, seen: bool, broker: SecureBroker, topic: str, other: str, plain: Keys,
    reader: Keys, written: Callable[..., Path], headrace: Headrace,
) -> None:  # fmt: skip
    """Whether the user may see that the topic is there, or not even that."""
    to = other if seen else broker.topic()
    pair = (reader, plain, to, topic) if section == "source" else (plain, reader, topic, to)
    code, _, err = headrace("run", written(*pair), "--log-level", "error")
    assert code == 2, err
    verb = "read" if section == "source" else "write"
    assert err.endswith(
        f" does not allow user 'reader' to {verb} topic '{to}': expected an ACL that allows "
        f"{verb.upper()} on it, or another user.\n"
    )
    assert err.count("\n") == 1


def test_a_group_that_is_not_permitted(
    broker: SecureBroker, topic: str, plain: Keys, reader: Keys, other: str,
    written: Callable[..., Path], headrace: Headrace,
) -> None:  # fmt: skip
    file = written(reader | {"group_id": "theirs"}, plain, topic, other)
    code, _, err = headrace("run", file, "--log-level", "error")
    assert code == 2, err
    assert "the broker does not allow this to user 'reader' (" in err
    assert "GroupAuthorizationFailedError: theirs): expected ACLs that allow READ on" in err
    assert "Traceback" not in err
    broker.allow(ACLOperation.READ, ResourceType.GROUP, "ours")
    file = written(reader | {"group_id": "ours"}, plain, topic, broker.topic())
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert f"{ROWS} read" in out


def test_a_table_is_read_through_the_lock(
    broker: SecureBroker, topic: str, plain: Keys, reader: Keys, written: Callable[..., Path],
    headrace: Headrace, tmp_path: Path,
) -> None:  # fmt: skip
    """A lookup's topic has credentials of its own: its user needs READ on it, and nobody sees its
    password. All its records have one key, so the last is the table."""
    table, to = broker.topic(), broker.topic()
    broker.produce(table, [json.dumps({"n": n, "x": 2 * n}).encode() for n in range(ROWS)])
    file = written(plain, plain, topic, to)
    keys = reader | {"kind": "kafka", "topics": table}
    file.write_text(
        f"{file.read_text()}[scrub.doubled]\nkind = 'lookup'\nby = ['n']\ncolumns = ['x']\n"
        f"[scrub.doubled.source]\n{_lines(keys)}\n"
        "[scrub.doubled.source.schema]\nn = 'int64'\nx = 'int64'\n"
    )
    refused = headrace("run", file, "--log-level", "debug")
    assert refused[0] == 2, refused[2]
    assert "[scrub.doubled.source]" in refused[2]
    assert f"does not allow user 'reader' to read topic '{table}': expected an ACL" in refused[2]
    broker.allow(ACLOperation.READ, ResourceType.TOPIC, table)
    code, out, err = headrace("run", file, "--log-level", "debug")
    assert code == 0, err
    found = [json.loads(record.value) for record in consumed(broker, to)]
    assert [row["x"] for row in found] == [None] * (ROWS - 1) + [2 * (ROWS - 1)]
    said = {"refused": "".join(refused[1:]).encode(), "run": (out + err).encode()}
    file.unlink()
    assert_unseen(PASSWORDS["reader"], said | below(tmp_path))


def test_a_topic_to_write_to_must_be_there(
    topic: str, plain: Keys, written: Callable[..., Path], headrace: Headrace
) -> None:
    code, _, err = headrace("run", written(plain, plain, topic, topic + "x"))
    assert code == 2
    assert (
        f"[sink] topic '{topic}x': there is no such topic at {plain['bootstrap_servers']}: create"
        in err
    )


@pytest.mark.parametrize("place", ["closed", "mute", "mute, TLS", "sends on to nobody"])
def test_where_nobody_answers(
    place: str, broker: SecureBroker, topic: str, plain: Keys, mutual: Keys,
    written: Callable[..., Path], headrace: Headrace,
) -> None:  # fmt: skip
    """Exit code 1, once the timeout is over and not before."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        at = {
            "closed": plain | {"bootstrap_servers": "127.0.0.1:1"},
            "mute": plain | {"bootstrap_servers": f"127.0.0.1:{mute.getsockname()[1]}"},
            "mute, TLS": mutual | {"bootstrap_servers": f"127.0.0.1:{mute.getsockname()[1]}"},
            "sends on to nobody": plain | {"bootstrap_servers": broker.at["GONE"]},
        }[place] | {"timeout": 1.0}
        start = time.monotonic()
        code, _, err = headrace("run", written(at, plain, topic), "--log-level", "error")
        assert time.monotonic() - start > 0.7
    assert code == 1, err
    assert re.fullmatch(
        rf"headrace: \[source\] topics {topic} at {at['bootstrap_servers']} failed: [^\n]*no "
        rf"answer within "
        r"1 s \(.*\); is the broker up and its address right\? .*: start again\.\n",
        err,
    ), err


# ------------------------------------------------------------------------------------- in mid-run

TAKEN = {
    "read": "the broker does not allow this to user 'reader' ([Error 29] TopicAuthorization",
    "write": f"{ROWS} of {ROWS} records were not delivered: [Error 29] TopicAuthorization",
    "user": "the broker does not let user 'reader' in with SCRAM-SHA-256 ([Error 58] Sasl",
}


@pytest.fixture
def taken_back(signed: Keys, written: Callable[..., Path]) -> Callable[..., None]:
    """Runs the pipeline as reader until it has done what there is, takes something away, and looks
    at what is left: one sentence, and nothing committed that was not delivered."""

    def check(broker: SecureBroker, what: str, take: Callable[[str, str], None]) -> None:
        topic, to, group = broker.topic(), broker.topic(), f"locked-{what}"
        rows = [json.dumps({"a": i / 2, "n": i}).encode() for i in range(ROWS)]
        broker.produce(topic, rows)
        broker.allow(ACLOperation.READ, ResourceType.TOPIC, topic)
        broker.allow(ACLOperation.READ, ResourceType.GROUP, group)
        broker.allow(ACLOperation.WRITE, ResourceType.TOPIC, to)
        own = signed | {"bootstrap_servers": broker.at["SASL_SSL"], "ssl_cafile": broker.ca}
        own |= {"user": "reader", "password": PASSWORDS["reader"]}
        file = written(own | {"group_id": group}, own | {"delivery_timeout": 10.0}, topic, to)
        more = "interval = 0.2\n[loader]\nmax_delay = 0.1\n[service]\nport = 0\n"
        file.write_text(file.read_text().replace('stop = "end"', 'stop = "never"') + more)
        with started(file) as made:
            until(lambda: committed(broker, group, topic) == ROWS)
            take(topic, to)
            broker.produce(topic, rows)
            _, rest = made.process.communicate(timeout=HANG)
        assert TAKEN[what] in rest.splitlines()[-1]
        assert "Traceback" not in rest
        assert made.process.returncode == (1 if what == "write" else 2)
        assert [json.loads(r.value)["n"] for r in consumed(broker, to)] == list(range(ROWS))
        assert committed(broker, group, topic) == ROWS

    return check


def committed(broker: SecureBroker, group: str, topic: str) -> int | None:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=group)
    offset: int | None = consumer.committed(TopicPartition(topic, 0))
    consumer.close()
    return offset


@pytest.mark.slow(18)
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_permission_that_is_taken_back_ends_the_run(
    what: str, broker: SecureBroker, taken_back: Callable[..., None]
) -> None:
    def take(topic: str, to: str) -> None:
        broker.forbid(ResourceType.TOPIC, topic if what == "read" else to)

    taken_back(broker, what, take)


@pytest.mark.full
@pytest.mark.slow(23)
def test_a_user_who_is_deleted_is_not_tried_for_ever(
    tmp_path: Path, taken_back: Callable[..., None]
) -> None:
    skip_without_tools()
    (tmp_path / "own").mkdir()
    with SecureBroker(tmp_path / "own") as own:

        def take(*_: str) -> None:
            own.forget("reader")
            own.kill()  # whoever is in stays in, until it has to come in again
            own.start()

        taken_back(own, "user", take)


# ------------------------------------------------------------------------------------- settings

MISFITS: dict[str, tuple[Keys, str]] = {
    "no mechanism": (
        {"sasl_mechanism": None},
        "security_protocol 'SASL_SSL' needs sasl_mechanism: expected PLAIN, SCRAM-SHA-256 or "
        "SCRAM-SHA-512.",
    ),
    "no user": (
        {"user": None},
        "sasl_mechanism 'SCRAM-SHA-256' needs the name to sign in with: set user.",
    ),
    "no password": (
        {"password": None},
        "sasl_mechanism 'SCRAM-SHA-256' needs the password of user 'engine': set it in the "
        "environment ",
    ),
    "empty password": ({"password": ""}, "needs the password of user 'engine'"),
    "two passwords": (
        {"password_file": "x"},
        "expected password or password_file, got both: take one away.",
    ),
    "sasl_mechanism without": (
        {"security_protocol": "SSL"},
        "sasl_mechanism is of no use with security_protocol 'SSL': set security_protocol to "
        "'SASL_SSL', or take sasl_mechanism away.",
    ),
    "password alone": (
        {"security_protocol": "PLAINTEXT", "sasl_mechanism": None, "user": None,
        "ssl_cafile": None},
        "password is of no use with security_protocol 'PLAINTEXT': set security_protocol to "
        "'SASL_SSL', or take ",
    ),
    "authority without TLS": (
        {"security_protocol": "SASL_PLAINTEXT"},
        "ssl_cafile is of no use with security_protocol 'SASL_PLAINTEXT': set security_protocol to "
        "'SASL_SSL', or take",
    ),
    "key without certificate": (
        {"ssl_keyfile": "server.pem"},
        "ssl_keyfile needs the certificate that it is the key of: ssl_certfile.",
    ),
    "authority not there": (
        {"ssl_cafile": "nowhere.pem"},
        "nowhere.pem cannot be read (No such file or directory): expected certificates in PEM.",
    ),
    "authority is no certificate": ({"ssl_cafile": "secret"}, "secret cannot be read ("),
    "certificate not there": (
        {"ssl_certfile": "nowhere.pem"},
        "nowhere.pem cannot be read (No such file or directory): expected certificates in PEM.",
    ),
    "key not there": (
        {"ssl_certfile": "engine.pem", "ssl_keyfile": "nowhere.key"},
        "nowhere.key cannot be read (No such file or directory): expected a private key in PEM.",
    ),
    "key is a folder": (
        {"ssl_certfile": "engine.pem", "ssl_keyfile": "."},
        " cannot be read (Is a directory): expected a private key in PEM.",
    ),
    "somebody else's key": (
        {"ssl_certfile": "engine.pem", "ssl_keyfile": "foreign.key"},
        "foreign.key cannot be used (key values mismatch): expected a certificate and its own key",
    ),
    "key with a pass phrase": (
        {"ssl_certfile": "engine.pem", "ssl_keyfile": "closed.key"},
        "closed.key cannot be used (",
    ),
    "password file not there": (
        {"password": None, "password_file": "nowhere"},
        "nowhere cannot be read (No such file or directory): expected text.",
    ),
    "password file empty": (
        {"password": None, "password_file": "empty"},
        "empty has an empty first line.",
    ),
    "password file is no text": (
        {"password": None, "password_file": "binary"},
        "binary cannot be read (no text): expected text.",
    ),
    "address": ({"bootstrap_servers": "here:there"}, "expected host:port, or several with commas"),
    "mechanism": ({"sasl_mechanism": "GSSAPI"}, '"PLAIN" or "SCRAM-SHA-256" or "SCRAM-SHA-512" for '
    ''),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(broker: SecureBroker) -> Path:
    """Beside the certificates, files that are of no use."""
    folder = broker.ca.parent
    (folder / "empty").write_text("\nsecond line\n")
    (folder / "binary").write_bytes(b"\xff\xfe")
    (folder / "secret").write_text("not PEM")
    key = pem.load_pem_private_key((folder / "engine.key").read_bytes(), None)
    closed = pem.BestAvailableEncryption(b"phrase")
    (folder / "closed.key").write_bytes(
        key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, closed)
    )
    return folder


@pytest.mark.parametrize("case", MISFITS)
def test_settings_that_do_not_fit_are_refused_at_the_start(
    case: str, files: Path, signed: Keys, plain: Keys, topic: str,
    written: Callable[..., Path], headrace: Headrace,
) -> None:  # fmt: skip
    """By `run` and by `check`, without a word of the password; a pass phrase is not asked for."""
    change, sentence = MISFITS[case]
    change = {
        key: files / value if value is not None and key.endswith("file") else value
        for key, value in change.items()
    }
    file = written(signed | change, plain, topic)
    for command in ("run", "check"):
        code, out, err = headrace(command, file)
        assert code == 2, err
        assert re.fullmatch(rf"headrace: \[source\] in {re.escape(str(file))}: .*\.\n", err), err
        assert sentence in err
        assert PASSWORDS["engine"] not in out + err


def test_a_password_of_the_wrong_type_is_not_shown(
    signed: Keys, plain: Keys, written: Callable[..., Path], headrace: Headrace
) -> None:
    file = written(signed, plain)
    code, out, err = headrace("check", file, "--set", "source.password=90210442")
    assert code == 2
    assert "expected text for 'password', got a value that is not shown." in err
    assert "90210442" not in out + err


# ------------------------------------------------------------------------------------- secrets


def spellings(secret: str) -> set[bytes]:
    """How a secret may turn up: as it is, quoted, and in base64 wherever in a text it stands."""
    raw = secret.encode()
    found = {raw, json.dumps(secret)[1:-1].encode(), urllib.parse.quote(secret, safe="").encode()}
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw + b"\0" * (3 - (before + len(raw)) % 3))
        found.add(coded[4 : len(coded) // 4 * 4 - 4])
    return found


def assert_unseen(secret: str, texts: dict[str, bytes]) -> None:
    assert any(texts.values())
    for name, text in texts.items():
        for spelling in spellings(secret):
            assert spelling not in text, (name, spelling)


def below(folder: Path) -> dict[str, bytes]:
    """All files' bytes."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("sasl_mechanism", ["PLAIN", "SCRAM-SHA-512"])
@pytest.mark.parametrize("by", ["environment", "file"])
def test_nobody_sees_the_password(
    by: str, sasl_mechanism: str, broker: SecureBroker, signed: Keys, plain: Keys,
    written: Callable[..., Path], headrace: Headrace, tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Not in what is said at debug level, nor in checkpoints, metrics, dead letters and records:
    of a run, a check, and a run with a wrong one."""
    topic, to = broker.topic(), broker.topic()
    values = [json.dumps({"a": i, "n": i}).encode() for i in range(50)]
    broker.produce(topic, [*values, b"poison"])
    right, wrong = PASSWORDS["engine"], 'wrong-Horse"battery\\staple'
    place = tmp_path_factory.mktemp("secret") / "password"
    place.touch(0o600)
    keys = signed | {"sasl_mechanism": sasl_mechanism, "password": None}
    if by == "file":
        keys["password_file"] = place
    else:
        monkeypatch.setenv("HEADRACE_SINK__PASSWORD", right)
    said: dict[str, bytes] = {}
    for name, password, command, expected in (
        ("check", right, "check", 0),
        ("run", right, "run", 0),
        ("wrong", wrong, "run", 2),
    ):
        place.write_text(f"{password}\nmore\n")
        if by == "environment":
            monkeypatch.setenv("HEADRACE_SOURCE__PASSWORD", password)
        file = written(keys, keys, topic, to)
        code, out, err = headrace(command, file, "--log-level", "debug", "--log-format", "json")
        assert code == expected, err
        said[name] = (out + err).encode()
    assert b"does not let user 'engine' in" in said["wrong"]
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    assert any((tmp_path / "run" / "dead_letters").iterdir())
    assert (tmp_path / "run" / "metrics.prom").is_file()
    records = consumed(broker, to)
    assert len(records) == 50
    for secret in (right, wrong):
        assert_unseen(secret, said | below(tmp_path) | {"records": repr(records).encode()})
        assert logs.redact(f"<{secret}>") == "<***>"  # nor would it be, if anything said it


def test_kafka_pythons_own_log_does_not_show_the_password(
    signed: Keys, plain: Keys, topic: str, broker: SecureBroker, written: Callable[..., Path]
) -> None:
    """A program of the user's that turns everything on; in a process of its own, as is its log."""
    file = written(signed | {"sasl_mechanism": "PLAIN"}, plain, topic, broker.topic())
    code = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG);"
        "from engine import Run; Run(sys.argv[1]).run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert b"DEBUG:kafka.net.connection:" in done.stderr
    assert b"SaslHandshakeRequest" in done.stderr
    assert_unseen(PASSWORDS["engine"], {"log": done.stdout + done.stderr})


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True)])
def test_a_password_file_that_everybody_can_read_is_warned_of(
    mode: int, warned: bool, signed: Keys, plain: Keys, topic: str, broker: SecureBroker,
    written: Callable[..., Path], headrace: Headrace, tmp_path: Path,
) -> None:  # fmt: skip
    place = tmp_path / "password"
    place.write_text(PASSWORDS["engine"] + "\r\n")
    place.chmod(mode)
    file = written(
        signed | {"password": None, "password_file": place}, plain, topic, broker.topic()
    )
    code, _, err = headrace("run", file, "--log-format", "json")
    assert code == 0, err
    lines = [json.loads(line) for line in err.splitlines()]
    found = [line["file"] for line in lines if "all users of this machine" in line["message"]]
    assert found == ([str(place)] if warned else [])


# ------------------------------------------------------------------------------------- forgery

ROGUE = [
    b'{"a": 1}\n{"level": "error", "message": "forged"}',
    b"\x1b[2J\x1b[31mforged\x1b[0m",
    b'"} 1\nheadrace_read_records_total{partition="x"} 99\n# ',
    b"\r\nheadrace: forged sentence.\r\n\x00\x07\x08\x7f\xc2\x9b\xe2\x80\xa8",
    b"'" * 3 + b'"' * 3 + b"\\" * 5,
    b"\xff\xfe\xfd",
    b"x" * 10_240,
    b'{"a": "\\u001b[31m\\nforged", "n": 1}',
]


@pytest.mark.parametrize("style", ["text", "json"])
def test_nothing_from_outside_forges_what_is_said(
    style: str, broker: SecureBroker, plain: Keys, written: Callable[..., Path],
    headrace: Headrace, tmp_path: Path,
) -> None:  # fmt: skip
    """A topic with the longest name, of every kind of character; keys, headers and values that
    try."""
    topic = f"{style}.a_b-{'Z.' * 125}"[:249]
    admin = broker.admin()
    admin.create_topics([NewTopic(name=topic, num_partitions=2, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for i in range(100):
        producer.send(topic, json.dumps({"a": i, "n": i}).encode(), partition=0)
    for value in ROGUE:
        name = value.decode("utf-8", "replace")
        producer.send(topic, value, key=value, headers=[(name, value)], partition=0)
    producer.flush()
    producer.close()
    to = broker.topic()
    arguments = ("--log-format", style, "--log-level", "debug")
    code, out, err = headrace("run", written(plain, plain, topic, to), *arguments)
    assert code == 0, err
    assert "108 read = 100 cleaned + 8 rejected" in out.replace("\n", " ")
    assert len(consumed(broker, to)) == 100

    for line in err.splitlines():  # also at the separators that only Unicode knows
        assert line.isprintable()
        if style == "json":
            assert json.loads(line)["message"] != "forged"
        else:
            assert re.match(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING) +[a-z_.]+ |    \| ", line), line

    page = (tmp_path / "run" / "metrics.prom").read_bytes()
    assert promtool("check", "metrics", page=page) == ""
    assert (
        len(re.findall(rb'^headrace_source_lag_records\{partition="[^"]{80}"\} ', page, re.M)) == 2
    )
    assert b"forged" not in page
    assert b'"x"' not in page

    parts = (tmp_path / "run" / "dead_letters").glob("*.ndjson")
    data = b"".join(part.read_bytes() for part in parts)
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", data)
    letters = [json.loads(line) for line in data.split(b"\n")[:-1]]
    shown = {letter["_position"] - 100: letter["value"] for letter in letters}
    assert sorted(shown) == list(range(len(ROGUE)))
    for i in range(5):
        assert shown[i] == ROGUE[i].decode()
