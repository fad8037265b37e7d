"""Gamepad, SpaceMouse and replay: against stand-ins of their drivers, which are no hardware."""

from __future__ import annotations

import errno
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.checks.findings import has_errors
from robot_rl.checks.teleop import check_teleop
from robot_rl.errors import ConfigError, DataError, DeployError
from robot_rl.hardware.gamepad import Gamepad, GamepadConfig
from robot_rl.hardware.replay_device import ReplayDevice, ReplayDeviceConfig
from robot_rl.hardware.spacemouse import SpaceMouse, SpaceMouseConfig
from robot_rl.hardware.teleop_slot import CommandSlot
from robot_rl.teleop.clutch import Clutch
from robot_rl.teleop.command_files import read_commands, write_commands
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.hearing import Hearing


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.002)


class FakePad:
    """What evdev.InputDevice is of an Xbox pad, as far as it is used: state by ioctl."""

    def __init__(self, name: str = "Xbox Wireless Controller") -> None:
        evdev = pytest.importorskip("evdev")
        self.name, self._codes, self._info = name, evdev.ecodes, evdev.AbsInfo
        sticks = dict.fromkeys(("ABS_X", "ABS_Y", "ABS_RX", "ABS_RY"), (-32768, 32767))
        self.ranges = (
            sticks | dict.fromkeys(("ABS_Z", "ABS_RZ"), (0, 1023)) | dict.fromkeys(("ABS_HAT0X", "ABS_HAT0Y"), (-1, 1))
        )
        self.values = dict.fromkeys(self.ranges, 0)
        self.held: set[str] = set()
        self.is_gone = self.is_closed = False

    def capabilities(self, absinfo: bool = True) -> dict[int, Any]:
        axes = [self._codes.ecodes[name] for name in self.ranges]
        keys = [self._codes.BTN_SOUTH, self._codes.BTN_TR]
        found = [(code, self.absinfo(code)) for code in axes] if absinfo else axes
        return {self._codes.EV_ABS: found, self._codes.EV_KEY: keys}

    def absinfo(self, code: int) -> Any:
        if self.is_gone:
            raise OSError(errno.ENODEV, "No such device")
        name = next(name for name in self.ranges if self._codes.ecodes[name] == code)
        low, high = self.ranges[name]
        return self._info(self.values[name], low, high, 0, 0, 0)

    def active_keys(self) -> list[int]:
        if self.is_gone:
            raise OSError(errno.ENODEV, "No such device")
        return [self._codes.ecodes[name] for name in set(self.held)]

    def close(self) -> None:
        self.is_closed = True


def test_a_gamepad_s_sticks_clutch_and_buttons() -> None:
    pad = FakePad()
    device = Gamepad(GamepadConfig(deadzone=0.1, curve=1.0), opened=lambda path: pad)
    device.connect()
    try:
        pad.values |= {"ABS_Y": -32768, "ABS_X": 3000, "ABS_RZ": 1023}
        first = device.read().sequence
        until(lambda: device.read().sequence > first + 1)
        assert not device.read().engaged
        assert not device.read().motion.any()
        pad.held.add("BTN_TR")
        until(lambda: device.read().engaged)
        command = device.read()
        assert command.motion.tolist() == [1, 0, 0, 0, 0, 0]  # 3000 of 32768 is inside the dead zone
        assert command.gripper == -1
        pad.values["ABS_X"] = 16384
        until(lambda: device.read().motion[1] < 0)
        assert device.read().motion[1] == pytest.approx(-(0.5 - 0.1) / 0.9, abs=1e-3)
        pad.held |= {"BTN_SOUTH"}
        until(lambda: "event:start" in device.read().buttons)
        pad.held |= {"BTN_TL"}
        until(lambda: device.read().buttons == frozenset({"event:resume"}))
        pad.values["ABS_HAT0Y"] = 1
        until(lambda: "event:quit" in device.read().buttons)
        assert device.status().help["BTN_TL+BTN_SOUTH"] == "resume"
    finally:
        device.close()
    assert pad.is_closed


def test_a_gamepad_that_is_unplugged_falls_silent_and_the_clutch_finds_the_fault() -> None:
    pad, clutch = FakePad(), Clutch()
    device = Gamepad(GamepadConfig(), opened=lambda path: pad)
    device.connect()
    until(lambda: device.read().sequence > 0)
    assert clutch.judge(device.read(), time.monotonic()).state == "open"
    pad.held.add("BTN_TR")
    until(lambda: clutch.judge(device.read(), time.monotonic()).state == "engaged")
    pad.is_gone = True
    gone_s = time.monotonic()
    until(lambda: clutch.judge(device.read(), time.monotonic()).state == "fault")
    assert time.monotonic() - gone_s > 0.2
    assert "gone (No such device)" in device.status().problems[0]
    assert not device.status().is_connected
    device.close()
    pad.is_gone = False
    device.connect()
    until(lambda: device.status().age_s < 0.05)
    assert device.status().problems == ()
    device.close()


def test_a_gamepad_that_may_not_be_opened_says_how_to_allow_it() -> None:
    pytest.importorskip("evdev")

    def refuse(path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with pytest.raises(DeployError, match="usermod -aG input"):
        Gamepad(GamepadConfig(), opened=refuse).connect()
    with pytest.raises(DeployError, match="others: Xbox"):
        Gamepad(GamepadConfig(device="Stadia"), opened=lambda path: FakePad()).connect()
    with pytest.raises(ConfigError, match="BTN_SUTH"):
        Gamepad(GamepadConfig(controls={"BTN_SUTH": "open"}), opened=lambda path: FakePad()).connect()


@pytest.mark.parametrize(
    "options",
    [{"deadzone": 1.0}, {"curve": 0.0}, {"controls": {"BTN_SOUTH": "event:go"}}, {"shifted": {"BTN_SOUTH": "jump"}}],
)
def test_wrong_settings_of_a_gamepad_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="gamepad"):
        Gamepad(GamepadConfig(**options))


class FakeMouse:
    """What pyspacemouse.open() gives, as far as it is used."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(t=0.0, x=0.0, y=0.0, z=0.0, roll=0.0, pitch=0.0, yaw=0.0, buttons=[0, 0])
        self.reports: list[dict[str, Any]] = []
        self.lock, self.error = threading.Lock(), ""
        self.is_closed = False

    def read(self) -> Any:
        if self.error:
            raise RuntimeError(self.error)
        with self.lock:
            if self.reports:
                vars(self.state).update(self.reports.pop(0), t=self.state.t + 0.001)
        return SimpleNamespace(**vars(self.state))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def mouse(monkeypatch: pytest.MonkeyPatch) -> FakeMouse:
    fake = FakeMouse()
    module = SimpleNamespace(open=lambda **options: fake, AxisConvention=SimpleNamespace(ROS="ros"))
    monkeypatch.setitem(sys.modules, "pyspacemouse", module)
    return fake


def test_a_spacemouse_is_engaged_while_it_is_pushed(mouse: FakeMouse) -> None:
    device = SpaceMouse(SpaceMouseConfig(deadzone=0.1, curve=1.0))
    device.connect()
    try:
        until(lambda: device.read().sequence > 0)
        assert not device.read().engaged
        mouse.reports = [{"x": 0.05}, {"x": 0.55, "yaw": -1.0}]
        until(lambda: device.read().engaged)
        np.testing.assert_allclose(device.read().motion, [0.5, 0, 0, 0, 0, -1], atol=1e-6)
        until(lambda: device.status().age_s > 0.1)  # no more reports: a push that is not said any more
        mouse.reports = [{"x": 0.0, "yaw": 0.0, "buttons": [1, 0]}]
        until(lambda: device.read().gripper == -1)
        mouse.error = "unplugged"
        until(lambda: not device.status().is_connected)
        assert device.status().problems == ("the SpaceMouse is gone (unplugged)",)
    finally:
        device.close()
    assert mouse.is_closed


def test_a_clutch_button_of_a_spacemouse(mouse: FakeMouse) -> None:
    device = SpaceMouse(SpaceMouseConfig(controls={"button0": "clutch"}))
    device.connect()
    try:
        mouse.reports = [{"z": 1.0}]
        until(lambda: not mouse.reports and device.read().sequence > 3)
        assert not device.read().engaged
        mouse.reports = [{"z": 1.0, "buttons": [1, 0]}]
        until(lambda: device.read().engaged)
        assert device.read().motion[2] == 1
    finally:
        device.close()


def test_a_spacemouse_that_may_not_be_opened_prints_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> Any:
        raise RuntimeError("Failed to open device")

    module = SimpleNamespace(open=refuse, AxisConvention=SimpleNamespace(ROS="ros"))
    monkeypatch.setitem(sys.modules, "pyspacemouse", module)
    with pytest.raises(DeployError, match=r'70-spacemouse.rules.*idVendor}=="256f"'):
        SpaceMouse(SpaceMouseConfig()).connect()
    module.open = lambda **options: (_ for _ in ()).throw(RuntimeError("HID API is probably not installed."))
    with pytest.raises(DeployError, match="apt install libhidapi-hidraw0"):
        SpaceMouse(SpaceMouseConfig()).connect()
    monkeypatch.setitem(sys.modules, "pyspacemouse", None)
    with pytest.raises(DeployError, match=r"robot-rl\[devices\]"):
        SpaceMouse(SpaceMouseConfig()).connect()


def test_pyspacemouse_still_has_what_is_used() -> None:
    """Its library hidapi may be missing here; its source is not."""
    from importlib.util import find_spec

    spec = find_spec("pyspacemouse")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pyspacemouse is not installed")
    folder = Path(spec.submodule_search_locations[0])
    assert "axis_convention: Optional[AxisConvention]" in (folder / "api.py").read_text()
    assert 'ROS = "ros"' in (folder / "types.py").read_text()


def commands() -> list[TeleopCommand]:
    first = TeleopCommand(1, 10.0)
    second = TeleopCommand(
        2, 10.02, True, np.float32([0.5, 0, 0, 0, 0, -1]), -0.5, 0.0, np.array([0.1, -0.2]), np.array([0, 0, 1, 1.0, 0, 0, 0]),
        frozenset({"event:start", "b"}),
    )  # fmt: skip
    return [first, first, second, TeleopCommand(5, 10.06, True)]


def test_what_was_recorded_is_said_again(tmp_path: Path) -> None:
    file, said = tmp_path / "said.jsonl", commands()
    assert write_commands(file, said) == 3
    for read, wrote in zip(read_commands(file), [said[0], said[2], said[3]], strict=True):
        assert read.stamp_s == pytest.approx(wrote.stamp_s - 10.0)
        for name in ("engaged", "gripper", "opening", "buttons"):
            assert getattr(read, name) == getattr(wrote, name)
        for name in ("motion", "joints", "pose"):
            np.testing.assert_array_equal(getattr(read, name), getattr(wrote, name))


class HandClock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = max(self.time_s, time_s)


def test_a_recording_plays_by_the_clock_and_then_grows_old(tmp_path: Path) -> None:
    file, clock = tmp_path / "said.jsonl", HandClock()
    write_commands(file, commands())
    device = ReplayDevice(ReplayDeviceConfig(str(file)), clock=clock)
    assert device.read().sequence == 0
    device.connect()
    for time_s, sequence, stamp_s in ((100.0, 1, 100.0), (100.03, 2, 100.02), (100.06, 3, 100.06), (103.0, 3, 100.06)):
        clock.time_s = time_s + 1e-9
        command = device.read()
        assert command.sequence == sequence
        assert command.stamp_s == pytest.approx(stamp_s)
    assert device.status().problems == ("the recording is over",)
    again = ReplayDevice(ReplayDeviceConfig(str(file), speed=2.0, is_repeated=True), clock=clock)
    again.connect()
    start_s, seen = clock.time_s, []
    for step in range(40):
        clock.time_s = start_s + step * 0.003
        seen.append(again.read())
    assert [command.sequence for command in seen] == sorted(command.sequence for command in seen)
    assert seen[-1].sequence >= 10
    assert all(0 <= start_s + n * 0.003 - c.stamp_s < 0.03 for n, c in enumerate(seen))


@pytest.mark.parametrize(
    "line",
    ["", "[1]", '{"t": -1}', '{"t": 0, "motion": [1]}', '{"t": 0, "speed": 1}', '{"engaged": true}', "x" * 70000,
     '{"t": 0, "engaged": "yes"}', '{"t": NaN}'],
)  # fmt: skip
def test_a_damaged_recording_is_refused_by_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text(json.dumps({"t": 0}) + "\n" + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        read_commands(file)


def test_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"Give teleop\.file"):
        ReplayDevice(ReplayDeviceConfig(str(tmp_path / "none"))).connect()


def test_replay_and_spacemouse_keep_the_contract(tmp_path: Path, mouse: FakeMouse) -> None:
    file = tmp_path / "said.jsonl"
    write_commands(file, [TeleopCommand(n, 0.02 * n, n > 5, buttons=frozenset({"event:save"})) for n in range(1, 60)])
    for device in (ReplayDevice(ReplayDeviceConfig(str(file))), SpaceMouse(SpaceMouseConfig())):
        findings = check_teleop(device, seconds=0.6)
        assert not has_errors(findings), (device.name, findings)


def test_a_gamepad_keeps_the_contract() -> None:
    pad = FakePad()
    findings = check_teleop(Gamepad(GamepadConfig(), opened=lambda path: pad), seconds=0.6)
    assert not has_errors(findings), findings


class Broken:
    """Breaks one rule of the contract at a time."""

    name = "broken"

    def __init__(self, rule: str) -> None:
        self._rule, self._is_open, self._count = rule, False, 0

    def connect(self) -> None:
        self._is_open = self._rule != "unconnected"

    def read(self) -> TeleopCommand:
        if self._rule == "slow":
            time.sleep(0.02)
        self._count += self._rule != "same_number" or self._count == 0
        now_s = time.monotonic()
        stamp_s = {"future": now_s + 5, "wall": time.time(), "back": now_s - 0.1 * self._count}.get(self._rule, now_s)
        motion = np.full(6, 2.0 if self._rule == "large" else 0.5, np.float32)
        button = "event:dance" if self._rule == "event" else "event:save"
        sequence = -self._count + 1000 if self._rule == "falls" else self._count
        engaged = self._rule == "engaged" or self._count > 2
        return TeleopCommand(sequence, stamp_s, engaged, motion * engaged, buttons=frozenset({button}))

    def status(self) -> Any:
        if self._rule == "status":
            raise RuntimeError("no")
        return CommandSlotStatus(self._is_open)

    def close(self) -> None:
        if self._rule == "close" and not self._is_open:
            raise RuntimeError("closed twice")
        self._is_open = False


def CommandSlotStatus(is_connected: bool) -> Any:
    slot = CommandSlot("broken", {"a": "b"})
    slot.is_connected = is_connected
    return slot.status()


@pytest.mark.parametrize(
    ("rule", "check"),
    [
        ("future", "stamps"), ("wall", "stamps"), ("back", "stamps"), ("large", "numbers"), ("event", "buttons"),
        ("falls", "sequence"), ("same_number", "sequence"), ("engaged", "let_go"), ("slow", "read_time"),
        ("unconnected", "status"), ("status", "connect"),
    ],
)  # fmt: skip
def test_the_suite_finds_what_is_wrong(rule: str, check: str) -> None:
    findings = check_teleop(Broken(rule), seconds=0.2)
    assert has_errors(finding for finding in findings if finding.check == check), findings


def test_a_tap_between_two_readings_is_heard_once() -> None:
    slot = CommandSlot("fast", {})
    slot.say(stamp_s=1.0, buttons=frozenset({"event:start"}))
    slot.say(stamp_s=1.1, buttons=frozenset())
    assert slot.read().buttons == frozenset()  # from before anybody listened
    slot.say(stamp_s=1.2, buttons=frozenset({"event:success", "free"}))
    slot.say(stamp_s=1.3)
    slot.say(stamp_s=1.4, buttons=frozenset({"event:save"}))
    assert slot.read().buttons == {"event:success", "event:save"}  # a free button is a state: it is up again
    slot.say(stamp_s=1.5, buttons=frozenset())
    assert slot.read().buttons == frozenset()


def test_a_press_is_heard_whoever_read_the_device_meanwhile() -> None:
    class Device(CommandSlot):
        connect = close = lambda self: None

    device = Device("fast", {})
    hearing = Hearing(device, ())
    hearing.command()
    device.say(stamp_s=1.0, buttons=frozenset({"event:estop"}))
    hearing.command()  # who takes over from a policy looks as well
    device.say(stamp_s=1.1, buttons=frozenset())
    hearing.command()
    (event,) = hearing.events(2.0)
    assert (event.name, event.stamp_s, event.by) == ("estop", 1.0, "fast")
    assert hearing.events(2.1) == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["teleop=keyboard", "+teleop.keys={g: 'event:save'}"], "keyboard"), (["teleop=spacemouse"], "spacemouse"),
        (["teleop=gamepad", "+teleop.deadzone=0.2"], "gamepad"), (["teleop=replay", "teleop.file=said.jsonl"], "replay"),
        (["teleop=leader_arm", "+teleop.joints=[a, b]", "session.mapping.input=joints"], "leader_arm"),
    ],
)  # fmt: skip
def test_every_device_is_built_from_its_configuration(words: list[str], name: str) -> None:
    from robot_rl.runs.config import build, load_config
    from robot_rl.stages.collect import CollectConfig

    config = load_config(CollectConfig, words, name="collect")
    device = build(config.teleop)
    assert device.name == name
    assert not device.status().is_connected
    device.close()


def test_the_command_checks_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from robot_rl.workbench.check import main

    file, again = tmp_path / "said.jsonl", tmp_path / "again.jsonl"
    write_commands(file, [TeleopCommand(n, 0.02 * n, n > 5) for n in range(1, 30)])
    words = ["teleop", "teleop=replay", f"teleop.file={file}", "--seconds", "0.7", "--record", str(again), "--json"]
    assert main(words) == 0
    assert "let_go" in json.loads(capsys.readouterr().out)["checks"]
    assert len(read_commands(again)) >= 15
    assert main(["teleop", "teleop=replay", "teleop.file=/none", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["checks"] == ["connect"]
    with pytest.raises(ConfigError, match="teleop=<device>"):
        main(["teleop"])
