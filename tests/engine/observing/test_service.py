"""The page over real sockets: what it says, how it starts and stops, and that it harms no loop."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pydantic
import pytest

from engine.observing.metrics import Metrics
from engine.observing.service import BACKLOG, STOP_SECONDS, Heartbeat, Service
from engine.observing.status import Health
from engine.observing.web_server import MAX_CONNECTIONS, _room
from engine.types import HeadraceError, UserError
from tests.waiting import HANG

FREE = Service.Settings(port=0)


def get(service: Service, path: str) -> httpx.Response:
    return httpx.get(service.url + path, timeout=HANG, trust_env=False, verify=False)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def service(metrics: Metrics) -> Iterator[Service]:
    with Service(metrics, FREE) as running:
        yield running


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------------------------- heartbeat


def test_a_heart_that_beats_is_alive_and_one_that_stalls_is_not(metrics: Metrics) -> None:
    clock = Clock()
    heart = Heartbeat(60, metrics=metrics, clock=clock)
    assert heart.health() == Health(True)
    clock.now += 59.9
    assert heart.health().ok
    heart.beat()
    clock.now += 59.9
    assert heart.health().ok
    clock.now += 1
    assert heart.health() == Health(False, "no progress for 60.9 s; 60 s are allowed")
    assert b"headrace_loop_stall_seconds 60.9" in metrics.exposition()[0]
    heart.beat()
    assert heart.health().ok
    assert heart.age() == 0
    heart.rest()
    clock.now += 1e6
    assert heart.health().ok
    assert heart.age() == 0


def test_a_pause_is_no_stall_and_its_end_is_progress() -> None:
    clock = Clock()
    heart = Heartbeat(60, clock=clock)
    heart.pause()
    heart.pause()
    clock.now += 1e6
    assert heart.health().ok
    heart.resume()
    assert heart.health().ok
    heart.resume()
    assert heart.age() == 0
    clock.now += 61
    assert not heart.health().ok
    heart.rest()
    heart.pause()
    heart.resume()
    clock.now += 61
    assert heart.health().ok


class Bellman(logging.Handler):
    """Counts what is said; a thread may wait for the next."""

    def __init__(self) -> None:
        super().__init__()
        self._said = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self._said.release()

    def listen(self) -> None:
        assert self._said.acquire(timeout=HANG)


def test_a_stall_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    heart, bellman = Heartbeat(0.02), Bellman()

    def stuck() -> None:
        heart.beat(-1e9)
        bellman.listen()

    def well() -> None:
        heart.beat(1e9)
        bellman.listen()

    logging.getLogger().addHandler(bellman)
    try:
        heart.beat(1e9)
        with heart.watched():
            for _ in range(2):
                stuck()
                well()
    finally:
        logging.getLogger().removeHandler(bellman)
    told = [record.getMessage() for record in caplog.records]
    stalls, ends = told[::2], told[1::2]
    assert len(stalls) == 2
    assert all(re.fullmatch(r"stalled: no progress for [\d.e+]+ s; 0.02 s are allowed", s)
               for s in stalls)  # fmt: skip
    assert ends == ["goes on after a stall"] * 2
    assert "stuck (test_service.py:" in vars(caplog.records[0])["at"]


# ------------------------------------------------------------------------------------------- routes


def test_metrics_are_those_of_the_registry(service: Service, metrics: Metrics) -> None:
    metrics.learned_records.inc(7)
    answer = get(service, "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "headrace_learned_records_total 7.0\n" in answer.text


def test_the_page_links_to_every_other(service: Service) -> None:
    answer = get(service, "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for path in ("metrics", "livez", "readyz", "status.json"):
        assert f'href="{path}"' in answer.text  # relative: a proxy may add a prefix
        assert get(service, f"/{path}").status_code == 200
    assert get(service, "/nothing").status_code == 404


def test_the_page_may_run_its_own_script_and_nothing_else(service: Service) -> None:
    answer = get(service, "/")
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", answer.text)
    assert ".innerHTML" not in answer.text
    assert "insertAdjacentHTML" not in answer.text


def test_the_status_is_for_this_site_alone(service: Service, metrics: Metrics) -> None:
    metrics.learned_records.inc(7)
    answer = get(service, "/status.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers
    assert answer.json()["metrics"]["learned_records"] == 7


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/livez", "/readyz"])
def test_it_is_read_only(service: Service, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = httpx.request(method, service.url + path, trust_env=False, verify=False)
        assert answer.status_code == 405


def test_rows_are_only_for_readers_who_name_this_machine(metrics: Metrics) -> None:
    def facts(samples: bool) -> Mapping[str, Any]:
        return {"samples": ["a row"] if samples else None}

    with Service(metrics, FREE, facts=facts) as service:
        page = service.url + "/status.json"
        here = httpx.get(page, trust_env=False, verify=False).json()
        there = httpx.get(page, headers={"host": "evil.example"}, trust_env=False, verify=False)
    assert here["samples"] == ["a row"]
    assert there.json()["samples"] is None


def test_health_is_200_or_503_with_one_line(metrics: Metrics) -> None:
    clock = Clock()
    heart = Heartbeat(clock=clock)
    state = Health(False, "opening\nthe source\r\n")
    with Service(metrics, FREE, live=heart.health, ready=lambda: state) as service:
        alive, ready = get(service, "/livez"), get(service, "/readyz")
        clock.now += 61
        stalled = get(service, "/livez")
    assert (alive.status_code, alive.text) == (200, "ok\n")
    assert (ready.status_code, ready.text) == (503, "opening the source\n")
    assert stalled.status_code == 503
    assert stalled.text == "no progress for 61.0 s; 60 s are allowed\n"
    assert stalled.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_check_that_raises_is_not_healthy(metrics: Metrics) -> None:
    def broken() -> Health:
        raise OSError("no\nnetwork")

    with Service(metrics, FREE, live=broken) as service:
        answer = get(service, "/livez")
        assert (answer.status_code, get(service, "/metrics").status_code) == (503, 200)
    assert answer.text == "the check itself failed: OSError('no\\nnetwork')\n"


def test_the_page_makes_no_log_noise(
    metrics: Metrics, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO"), Service(metrics, FREE) as service:
        get(service, "/metrics")
        get(service, "/nothing")
        port = service.port
    assert [record.getMessage() for record in caplog.records if record.name != "httpx"] == [
        "service listens"
    ]
    assert [getattr(r, "url", None) for r in caplog.records if r.name == "headrace.service"] == [
        f"http://127.0.0.1:{port}"
    ]
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------- starting, stopping


def test_it_answers_when_start_returns_and_leaves_nothing_behind(metrics: Metrics) -> None:
    before = threads()
    service = Service(metrics, FREE)
    for _ in range(3):
        service.start()
        service.start()
        assert get(service, "/livez").status_code == 200
        port = service.port
        service.stop()
        service.stop()
        assert threads() == before
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=HANG)


def test_disabled_there_is_no_page(metrics: Metrics) -> None:
    before = threads()
    with Service(metrics, Service.Settings(enabled=False)) as service:
        assert not service.running
        assert threads() == before


def test_signal_handlers_are_left_alone(metrics: Metrics) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with Service(metrics, FREE):
        assert [signal.getsignal(number) for number in numbers] == before
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_port_in_use_is_the_users_mistake(service: Service, metrics: Metrics) -> None:
    before = threads()
    second = Service(metrics, Service.Settings(port=service.port))
    with pytest.raises(UserError) as error:
        second.start()
    assert str(error.value) == (
        f"Port {service.port} on 127.0.0.1 is in use by another program: choose another with "
        "`[service] port = ...` in the pipeline file or `--set service.port=...`, or 0 for any "
        "free one."
    )
    assert threads() == before
    assert get(service, "/livez").status_code == 200


@pytest.mark.parametrize("host", ["198.51.100.1", "no-such-host.invalid", "x" * 70 + "..", ""])
def test_an_address_that_is_not_ours_is_the_users_mistake(metrics: Metrics, host: str) -> None:
    service = Service(metrics, Service.Settings(host=host, port=0))
    with pytest.raises(UserError, match=r"cannot listen on '.*', port 0 .*`\[service\] host = "):
        service.start()


@pytest.mark.parametrize(
    "wrong", [{"port": -1}, {"port": 65536}, {"stall_timeout": 0}, {"prot": 1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Service.Settings(**wrong)


def test_a_server_that_does_not_come_up_is_told(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = threads()
    service = Service(metrics, FREE)

    async def broken(*_: object, **__: object) -> None:
        raise OSError("no loop")

    monkeypatch.setattr("uvicorn.Server.startup", broken)
    with pytest.raises(HeadraceError, match="did not start; the log says why"):
        service.start()
    assert "service failed" in caplog.messages
    assert threads() == before


def test_it_listens_on_ipv6_too(metrics: Metrics) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Service(metrics, Service.Settings(host="::1", port=0)) as service:
        assert service.url == f"http://[::1]:{service.port}"
        assert get(service, "/livez").status_code == 200


# -------------------------------------------------------------------------------------- bad readers


def slow_reader(service: Service) -> socket.socket:
    """Asks for the page, many times, and reads nothing."""
    reader = socket.create_connection(("127.0.0.1", service.port), timeout=HANG)
    reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
    return reader


def test_a_slow_reader_stalls_neither_others_nor_the_end(metrics: Metrics) -> None:
    for i in range(300):
        metrics.quality.labels(metric=f"m{i:03}", window="all").set(i)
    before = threads()
    with Service(metrics, FREE) as service:
        readers = [slow_reader(service) for _ in range(3)]
        silent = socket.create_connection(("127.0.0.1", service.port), timeout=HANG)
        assert "m299" in get(service, "/metrics").text
        metrics.optimizer_steps.inc()
        thread = service._thread
    assert thread is not None
    assert not thread.is_alive(), f"the thread did not end within {STOP_SECONDS} s"
    assert threads() == before
    for reader in (*readers, silent):
        reader.close()


def test_garbage_does_not_end_the_service(service: Service) -> None:
    for noise in (b"\x00\xff\x16\x03\x01" * 100, b"GET " + b"/" * 100_000, b""):
        with socket.create_connection(("127.0.0.1", service.port), timeout=HANG) as reader:
            reader.sendall(noise)
    assert get(service, "/livez").status_code == 200


def idle(service: Service, n: int) -> list[socket.socket]:
    """Connections that ask for nothing; one or the other may be closed again already."""
    made = []
    for _ in range(n):
        reader = socket.socket()
        reader.settimeout(HANG)
        reader.connect(("127.0.0.1", service.port))
        made.append(reader)
    return made


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_idle_connections_take_no_descriptors_and_keep_nobody_out(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    before = descriptors()
    readers = []
    for _ in range(6):
        readers += idle(service, 50)
        assert get(service, "/livez").status_code == 200  # behind all that came before
        # Theirs are of this process, too.
        assert descriptors() - before - len(readers) <= MAX_CONNECTIONS + 2 * BACKLOG
    for reader in readers[: -MAX_CONNECTIONS - BACKLOG]:  # the oldest are closed
        with contextlib.suppress(ConnectionResetError):
            assert reader.recv(1) == b""
    for reader in readers:
        reader.close()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "too many connections to the service: idle ones are closed, the oldest first"
    ]


def test_few_descriptors_are_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, room in ((1024, 64), (256, 16), (20, 4), (1 << 20, 64)):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, soft))
        assert _room() == room


@pytest.mark.parametrize("said", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"])
def test_a_reader_that_does_not_get_on_is_closed(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("engine.observing.web_server.CONNECTION_SECONDS", 0.2)
    with Service(metrics, FREE) as service, idle(service, 1)[0] as reader:
        reader.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            assert reader.recv(1) == b""


def test_a_connection_is_one_request(service: Service) -> None:
    with idle(service, 1)[0] as reader:
        reader.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b"".join(iter(lambda: reader.recv(4096), b""))
    assert b"connection: close" in said.lower()
    assert said.endswith(b"ok\n")


def test_the_end_with_a_stuck_reader_is_no_error(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(20_000):  # more than a socket takes
        metrics.quality.labels(metric=f"m{i:05}", window="all" * 50).set(i)
    with Service(metrics, FREE) as service, idle(service, 1)[0] as reader:
        reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert reader.recv(15) == b"HTTP/1.1 200 OK"  # it has begun, and does not get on
        service.stop()
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.INFO] == []
