"""The page's server as a real process, spoken to over real sockets: what is refused, who drives, and what a session sees."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `teleop` is not installed")
pytest.importorskip("websockets")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect

from robot_rl.contracts import TeleopDevice
from robot_rl.deploy.child_process import Child
from robot_rl.errors import ConfigError, DeployError
from robot_rl.hardware import browser_access as access
from robot_rl.hardware import browser_hub
from robot_rl.hardware.browser import BrowserConfig, BrowserPage
from robot_rl.hardware.browser_lease import Freshness, Lease, RateLimit
from robot_rl.hardware.browser_link import VIEW_BYTES, ViewWriter, make_rings, plain
from robot_rl.hardware.browser_messages import BadMessage, Command, Event, LeaseWish, hello_of, parse
from robot_rl.teleop.clutch import Clutch
from robot_rl.teleop.panel import OperatorPanel, SessionView

TOKEN = "a-token-that-nobody-knows"
COMMAND: dict[str, Any] = {
    "type": "command", "seq": 1, "t": 20.0, "engaged": True, "motion": [0, 0.5, 0, 0, 0, -1], "gripper": -1,
    "pose": None, "buttons": ["a"],
}  # fmt: skip


def until(condition: Callable[[], Any], what: str, *, seconds: float = 20.0) -> Any:
    deadline_s = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)
    return found


class Client:
    """A page without a browser."""

    def __init__(
        self, page: BrowserPage, *, token: str = "", name: str = "Ada", hello: bool = True, **options: Any
    ) -> None:
        self._open = connect(
            page.url.partition("#")[0].replace("http", "ws") + "ws", compression=None, close_timeout=0.2, **options
        )
        self.socket: ClientConnection = self._open.__enter__()
        if hello:
            self.send({"type": "hello", "token": token, "name": name})

    def send(self, message: Any) -> None:
        self.socket.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    def command(self, seq: int, **changes: Any) -> None:
        self.send({**COMMAND, "seq": seq, "t": time.monotonic() * 1000, **changes})

    def hear(self, kind: str) -> dict[str, Any]:
        """The next message of this kind."""
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            message = self.socket.recv(timeout=20)
            if isinstance(message, str) and (told := json.loads(message))["type"] == kind:
                return dict(told)
        raise AssertionError(f"no {kind}")

    def lease(self, **wanted: Any) -> dict[str, Any]:
        """The lease, as soon as it is as wanted."""
        while True:
            told = self.hear("lease")
            if all(told[key] == value for key, value in wanted.items()):
                return told

    def end(self) -> tuple[int, str]:
        """Code and reason with which the server closes it."""
        closed = None
        while closed is None:
            try:
                self.socket.recv(timeout=20)
            except ConnectionClosed as caught:
                closed = caught.rcvd or Close(1006, "without a word")
        return closed.code, closed.reason

    def close(self) -> None:
        self._open.__exit__(None, None, None)


@pytest.fixture(scope="module")
def server() -> Iterator[BrowserPage]:
    with BrowserPage(BrowserConfig(port=0)) as page:
        yield page


@pytest.fixture
def page(server: BrowserPage) -> BrowserPage:
    """Without anybody on it, and nothing left of the test before."""
    until(lambda: server.publish(SessionView("idle")) or not server._told.get("viewers"), "the test before hung up")
    server.events()
    return server


@pytest.fixture
def client(page: BrowserPage) -> Iterator[Client]:
    one = Client(page)
    one.lease(you="driving")
    yield one
    one.close()


def test_it_is_a_device_and_a_panel(server: BrowserPage) -> None:
    assert isinstance(server, TeleopDevice)
    assert isinstance(server, OperatorPanel)
    assert server.url.startswith("http://127.0.0.1:")
    with pytest.raises(ConfigError, match=r"teleop\.port"):
        BrowserConfig(port=70000)


def test_a_command_arrives_as_it_was_said(page: BrowserPage, client: Client) -> None:
    before_s, first = time.monotonic(), page.read().sequence
    client.command(1, motion=[0.25, 0, 0, 0, 0, -1], pose=[1, 2, 3, 1, 0, 0, 0])
    command = until(lambda: page.read().sequence > first and page.read(), "the command")
    assert before_s <= command.stamp_s <= time.monotonic()
    np.testing.assert_array_equal(command.motion, np.float32([0.25, 0, 0, 0, 0, -1]))
    np.testing.assert_array_equal(command.pose, [1, 2, 3, 1, 0, 0, 0])
    assert (command.gripper, command.buttons, command.opening, command.joints) == (-1.0, frozenset({"a"}), None, None)
    status = page.status()
    assert status.is_connected
    assert status.commands >= 1
    assert status.problems == ()


def test_older_and_repeated_numbers_are_dropped(page: BrowserPage, client: Client) -> None:
    first = page.read().sequence
    for seq, x in ((5, 0.5), (5, 0.1), (4, 0.2), (1, 0.3), (6, 0.6)):
        client.command(seq, motion=[x, 0, 0, 0, 0, 0])
    client.send({"type": "event", "name": "start", "text": "", "t": time.monotonic() * 1000})
    until(page.events, "the event behind them")
    assert page.read().sequence == first + 2
    assert page.read().motion[0] == np.float32(0.6)


def test_without_fresh_commands_the_clutch_opens_and_then_the_lease_ends(page: BrowserPage, client: Client) -> None:
    clutch = Clutch()

    def state() -> str:
        return clutch.judge(page.read(), time.monotonic()).state

    seq = hold(client, state)
    held = page.read()
    until(lambda: state() == "releasing", "it fades")
    assert time.monotonic() - held.stamp_s > 0.1
    until(lambda: state() == "fault", "it is a fault")
    assert time.monotonic() - held.stamp_s > 0.5
    assert page.read() is held
    assert client.lease(you="viewing")["operator"] is None
    assert time.monotonic() - held.stamp_s > 2.0
    assert page.status().is_connected
    assert "nobody drives" in page.status().problems[0]
    client.command(seq + 1)  # does not count: it must take over first
    client.send({"type": "lease", "want": "take"})
    client.lease(you="driving")
    assert page.read().sequence == held.sequence


def test_the_second_looks_on_until_the_place_is_free(page: BrowserPage, client: Client) -> None:
    second = Client(page, name="Bo")
    assert second.lease(viewers=2)["operator"] == "Ada"
    client.command(1, motion=[0.1, 0, 0, 0, 0, 0])
    until(lambda: page.read().engaged, "Ada's command")
    second.command(1, motion=[0.9, 0, 0, 0, 0, 0])
    second.send({"type": "event", "name": "start", "text": "", "t": 0})
    assert "take over" in second.hear("notice")["text"]
    second.send({"type": "lease", "want": "take"})
    assert "Ada drives" in second.hear("notice")["text"]
    second.send({"type": "lease", "want": "ask"})
    assert client.lease(asking=["Bo"])["you"] == "driving"
    second.send({"type": "event", "name": "estop", "text": "", "t": 0})  # whoever sees it may stop it
    (event,) = until(page.events, "the stop")
    assert (event.name, event.by) == ("estop", "page:Bo")
    assert page.read().motion[0] == np.float32(0.1)
    client.command(2)
    client.send({"type": "lease", "want": "give"})
    second.lease(operator=None)
    assert not until(lambda: page.read().motion[0] == 0 and page.read(), "released").engaged
    second.send({"type": "lease", "want": "take"})
    second.lease(you="driving", asking=[])
    second.command(2, motion=[0.9, 0, 0, 0, 0, 0])
    until(lambda: page.read().motion[0] == np.float32(0.9), "Bo's command")
    second.close()


def test_a_closed_page_opens_the_clutch_with_a_command_of_its_own(page: BrowserPage, client: Client) -> None:
    client.command(1)
    held = until(lambda: page.read().engaged and page.read(), "engaged")
    client.socket.socket.shutdown(socket.SHUT_RDWR)  # without a word, as a browser that is killed
    command = until(lambda: page.read().sequence > held.sequence and page.read(), "released")
    assert not command.engaged
    assert command.stamp_s > held.stamp_s


def test_events_carry_text_time_and_name(page: BrowserPage, client: Client) -> None:
    before_s = time.monotonic()
    client.send({"type": "event", "name": "note", "text": "Würfel <b>rutscht</b>\n", "t": 12.5})
    (event,) = until(page.events, "the note")
    assert (event.name, event.text, event.by) == ("note", "Würfel <b>rutscht</b>\n", "page:Ada")
    assert before_s <= event.stamp_s <= time.monotonic()
    assert page.events() == []


def hold(client: Client, state: Callable[[], str]) -> int:
    """Let go and then hold on, until `state` says engaged; the number of the last command."""
    deadline_s, seq = time.monotonic() + 20, 0
    while time.monotonic() < deadline_s:
        for engaged in (False,) * 5 + (True,) * 10:
            seq += 1
            client.command(seq, engaged=engaged)
            time.sleep(0.02)
            if state() == "engaged":
                return seq
    raise AssertionError("never engaged")


BAD = {
    "no JSON": "{",
    "a list": [], "unknown type": {"type": "shell"}, "no type": {},
    "not a number": json.dumps(COMMAND).replace("0.5", "NaN"),
    "a huge number": json.dumps(COMMAND).replace("0.5", "1e999"), "too fast": {**COMMAND, "motion": [2, 0, 0, 0, 0, 0]},
    "five axes": {**COMMAND, "motion": [0] * 5},
    "text as number": {**COMMAND, "gripper": "1"}, "true as number": {**COMMAND, "gripper": True},
    "engaged by text": {**COMMAND, "engaged": "yes"}, "fraction": {**COMMAND, "seq": 1.5}, "zero": {**COMMAND, "seq": 0},
    "missing field": {key: value for key, value in COMMAND.items() if key != "t"}, "unknown field": {**COMMAND, "x": 1},
    "event as button": {**COMMAND, "buttons": ["event:quit"]}, "no rotation": {**COMMAND, "pose": [0, 0, 0, 0, 0, 0, 0]},
    "unknown event": {"type": "event", "name": "explode", "text": "", "t": 0},
    "long text": {"type": "event", "name": "note", "text": "x" * 2001, "t": 0},
    "half a character": '{"type": "event", "name": "note", "text": "\\ud800", "t": 0}',
    "wish": {"type": "lease", "want": "steal"}, "bytes": b"\x00\x01", "deep": "[" * 20000,
}  # fmt: skip


def test_each_malformed_message_ends_its_own_connection_alone(page: BrowserPage, client: Client) -> None:
    said: dict[str, str] = {}
    for case, message in BAD.items():
        other = Client(page, name="Eve")
        other.send(message)
        code, said[case] = other.end()
        assert code == 1008, case
        other.close()
    assert len(said["deep"]) > 0
    assert said["unknown type"] == "unknown type 'shell'"
    assert said["too fast"] == "motion: a number of at most 1 is expected"
    assert "missing fields ['t']" in said["missing field"]
    client.command(1, motion=[0.7, 0, 0, 0, 0, 0])
    until(lambda: page.read().motion[0] == np.float32(0.7), "the driver goes on")
    assert page.events() == []


def test_oversized_and_too_many_messages_end_the_connection(page: BrowserPage, client: Client) -> None:
    other = Client(page)
    other.send("x" * (64 * 1024 + 1))
    code, reason = other.end()
    assert code == 1009
    assert "65536" in reason
    flood = Client(page)
    with suppress(ConnectionClosed):
        for seq in range(1, 5000):
            flood.command(seq)
    assert flood.end() == (1008, "more than 200 messages a second")
    client.command(1)
    until(lambda: page.read().engaged, "the driver goes on")


def test_a_connection_that_says_no_hello_is_refused(page: BrowserPage) -> None:
    for first in (COMMAND, "{", {"type": "hello", "name": "x"}, {"type": "hello", "token": "", "name": "x" * 41}):
        other = Client(page, hello=False)
        other.send(first)
        assert other.end()[0] == 1008


def get(page: BrowserPage, path: str, **headers: str) -> int:
    request = urllib.request.Request(page.url.partition("#")[0] + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_pages_of_other_sites_and_rebound_names_are_refused(page: BrowserPage) -> None:
    own = page.url.rstrip("/")
    for origin in ("http://evil.example", own.replace("http", "https"), own.replace("127.0.0.1", "localhost"), "null"):
        with pytest.raises(InvalidStatus) as caught:
            Client(page, origin=origin)
        assert caught.value.response.status_code == 403
    Client(page, origin=own).close()
    with pytest.raises(InvalidStatus):
        Client(page, additional_headers={"Host": "evil.example"})
    assert [get(page, "", Host=host) for host in ("evil.example:80", "10.0.0.1", "localhost:1")] == [403, 403, 200]
    assert get(page, "page/app.js") == 200
    assert [get(page, path) for path in ("page/nothing.js", "page/..%2fbrowser.py", "docs")] == [404, 404, 404]


def test_a_token_is_needed_everywhere_when_there_is_one() -> None:
    with BrowserPage(BrowserConfig(port=0, token=TOKEN)) as page:
        assert page.url.endswith(f"/#token={TOKEN}")
        assert TOKEN not in str(page.status())
        for wrong in ("", TOKEN[:-1], TOKEN + "x", "é"):
            other = Client(page, token=wrong)
            assert other.end() == (4401, "wrong token")
        Client(page, token=TOKEN).lease(you="driving")
        assert [get(page, f"api/{name}") for name in ("health", "frames/0", "thumbnail/0")] == [401] * 3
        assert get(page, "api/health", Authorization=f"Bearer {TOKEN}") == 404  # let in; there is no dataset
        assert TOKEN not in Path(f"/proc/{page.pid}/cmdline").read_text()


def test_tokens_and_hosts() -> None:
    assert access.token_for("127.0.0.1", "") == access.token_for("localhost", "") == ""
    made = {access.token_for(host, "") for host in ("0.0.0.0", "::", "robot.local", "192.168.1.2")}
    assert len(made) == 4
    assert min(map(len, made)) >= 32
    with pytest.raises(ConfigError, match="at least 16"):
        access.token_for("0.0.0.0", "secret")
    allowed = {
        header: access.is_allowed_host(header, host="0.0.0.0", names=["robot.lab"])
        for header in ("192.168.1.2:8060", "[fe80::1]:8060", "robot.lab:8060", socket.gethostname(), "evil.example", "")
    }
    assert list(allowed.values()) == [True, True, True, True, False, False]


def test_views_reach_a_page_while_another_reads_nothing(page: BrowserPage, client: Client) -> None:
    slow = Client(page, name="slow")
    slow.lease(you="viewing")
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)  # noise: the largest JPEGs there are
    deadline_s, pictures, state = time.monotonic() + 30, 0, 0
    while pictures < 30:
        assert time.monotonic() < deadline_s
        state += 1
        page.publish(SessionView(str(state), ages_ms={"base": float("inf")}, pictures={"base": picture}))
        message = client.socket.recv(timeout=10)
        if isinstance(message, bytes):
            assert message[:7] == b"\x04base\xff\xd8"
            pictures += 1
    page.publish(SessionView("last"))
    told = client.hear("view")["view"]
    while told["state"] != "last":
        told = client.hear("view")["view"]
    assert told["ages_ms"] == {}
    slow.close()


def test_a_crashed_server_comes_back_at_the_same_address(page: BrowserPage) -> None:
    with BrowserPage(BrowserConfig(port=0)) as other:
        driver, url, pid = Client(other), other.url, other.pid
        clutch = Clutch()

        def state() -> str:
            return clutch.judge(other.read(), time.monotonic()).state

        hold(driver, state)
        held = other.read()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: state() == "fault", "silence is a fault")
        until(lambda: "SIGKILL" in str(other.status().problems), "it is said")
        until(lambda: other.publish(SessionView("idle")) or other.pid != pid, "started again")
        until(lambda: other.publish(SessionView("idle")) or "port" in other._told, "it listens")
        assert other.url == url
        again = Client(other)
        assert again.hear("view")["view"]["state"] == "idle"
        again.command(1)
        until(
            lambda: other.read().sequence > held.sequence and other.read().engaged, "it drives, and its numbers go on"
        )


def test_a_taken_port_is_named(page: BrowserPage) -> None:
    port = int(page.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(DeployError, match="already in use"):
        BrowserPage(BrowserConfig(port=port)).connect()
    with pytest.raises(DeployError, match=r"teleop\.host"):
        BrowserPage(BrowserConfig(host="203.0.113.7", port=0, token=TOKEN)).connect()


def test_it_ends_with_its_session() -> None:
    code = """
import sys, time
from robot_rl.hardware.browser import BrowserConfig, BrowserPage
page = BrowserPage(BrowserConfig(port=0)); page.connect(); print(page.pid, flush=True); time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        pid = int(session.stdout.readline())
        session.kill()
        until(lambda: not is_running(pid), "the server's end")


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_https_with_a_certificate_of_this_installation_until_close(tmp_path: Path) -> None:
    if access.shutil.which("openssl") is None:
        pytest.skip("no openssl")
    folder = tmp_path / "keys"
    with BrowserPage(BrowserConfig(port=0, https=True, certificate_dir=str(folder))) as page:
        context = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
        driver = Client(page, ssl=context)
        driver.lease(you="driving")
        assert page.url.startswith("https://")
        pid = page.pid
    page.close()
    assert driver.hear("ended") == {"type": "ended"}
    assert pid is not None
    assert not is_running(pid)
    page.publish(SessionView("idle"))
    assert (page.pid, page.events(), page.read().engaged) == (None, [], False)
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first = (folder / "certificate.pem").read_bytes()
    assert access.certificate_of(folder, [])[0].read_bytes() == first


def test_age_of_a_burst_is_that_of_its_commands() -> None:
    fresh = Freshness()
    assert fresh.stamp_s(1000.0, 50.010) == 50.010  # the first is taken as undelayed: way 49.010
    assert fresh.stamp_s(1020.0, 50.025) == pytest.approx(50.025)  # way 49.005, a new shortest
    assert fresh.stamp_s(1040.0, 50.345) == pytest.approx(50.045)  # 300 ms later than the quickest
    assert fresh.stamp_s(1320.0, 50.346) == pytest.approx(50.325)
    # A page whose clock slept for a minute starts anew after a silence.
    assert fresh.stamp_s(1340.0, 110.0) == 110.0
    # The shortest way of the last ten seconds counts: a detour that lasts is no delay for ever.
    for i in range(12):
        stamp_s = fresh.stamp_s(2340.0 + 1000 * i, 111.2 + i)
    assert stamp_s == pytest.approx(122.2)


@pytest.mark.parametrize("who", ["driver", "other"])
def test_an_event_that_ends_a_silent_lease_tells_who_drove(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    now_s = 100.0
    monkeypatch.setattr(browser_hub, "time", SimpleNamespace(monotonic=lambda: now_s))
    told: list[Any] = []
    hub = browser_hub.Hub(lambda message: told.append(message) or True)  # type: ignore[func-returns-value]
    driver, other = hub.join("Ada"), hub.join("Bo")
    now_s = 103.0  # nothing was said for 3 s, and the server has not looked yet
    event = {"type": "event", "name": "estop", "text": "", "t": 1.0}
    hub.hear(driver if who == "driver" else other, json.dumps(event))
    hub.tick()
    assert [message["event"]["name"] for message in told if "event" in message] == ["estop"]
    assert {"operator": None, "viewers": 2} in told
    for viewer in (driver, other):
        lease = json.loads(viewer.outbox["lease"])
        assert (lease["you"], lease["operator"]) == ("viewing", None)


def test_lease_and_rate() -> None:
    lease = Lease()
    assert lease.join(1, 0.0)
    assert not lease.join(2, 0.5)
    assert lease.heard(1, 1.0)
    assert not lease.take(2, 3.0)  # exactly two seconds are no silence yet
    assert lease.take(2, 3.01)
    assert not lease.heard(1, 3.02)
    lease.ask(1, "Ada")
    assert lease.asking == {1: "Ada"}
    assert lease.leave(2)
    assert not lease.leave(2)
    assert lease.take(1, 4.0)
    assert lease.asking == {}
    limit = RateLimit(0.0)
    assert [limit.allows(0.0) for _ in range(401)] == [True] * 400 + [False]
    assert sum(limit.allows(0.5) for _ in range(200)) == 99  # 0.5 s fill 100, and one was owed


def test_parse() -> None:
    assert parse(json.dumps(COMMAND)) == Command(1, 20.0, True, (0.0, 0.5, 0.0, 0.0, 0.0, -1.0), -1.0, None, ("a",))
    assert parse('{"type": "event", "name": "save", "text": "", "t": 3}') == Event("save", "", 3.0)
    assert parse('{"type": "lease", "want": "give"}') == LeaseWish("give")
    assert hello_of('{"type": "hello", "token": "t", "name": "n"}') == ("t", "n")
    with pytest.raises(BadMessage, match="hello"):
        hello_of('{"type": "event"}')


def test_what_is_no_json_is_made_some() -> None:
    told = {
        "a": float("nan"),
        "b": np.float32(0.5),
        "c": (np.int64(2), np.bool_(True)),
        "d": np.zeros(2),
        "e": None,
        3: {1},
    }
    assert plain(told) == {"a": None, "b": 0.5, "c": [2, True], "d": [0.0, 0.0], "e": None, "3": [1]}
    assert json.dumps(plain(told), allow_nan=False)


def test_what_can_not_be_shown_is_a_problem_and_no_error() -> None:
    fds = make_rings()
    writer = ViewWriter(fds, view_hz=20.0, picture_hz=10.0)

    child = object.__new__(Child)  # nothing is sent to it
    view = SessionView("idle", message="long " * (VIEW_BYTES // 5))
    object.__setattr__(view, "pictures", {"deep": np.zeros((4, 4), np.uint16)})  # what a careless caller does
    writer.write(view)
    writer.write_picture(view, child)
    assert "at most 262144" in writer.problems["view"]
    assert "uint8 (H, W, 3)" in writer.problems["deep"]
    writer.write(SessionView("ready"))
    assert "view" not in writer.problems
    for fd in fds.values():
        os.close(fd)
