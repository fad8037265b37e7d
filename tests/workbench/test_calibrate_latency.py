"""`robot-rl calibrate latency`: a mock arm and a simulated camera of known delays, what is refused, the file, the page."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_robot import write_small_card
from small_teleop import PlainClutch, PlainMapping

from robot_rl.data.delays import (
    CameraDelays,
    Delays,
    RobotDelays,
    align_columns,
    delays_of,
    load_delays,
    load_delays_for,
)
from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.deploy.schedule import ManualClock
from robot_rl.deploy.step_response import Step, StepFit, fit_step, lag_response, measure_response
from robot_rl.errors import ConfigError, DataError, DeployError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.runs.directory import RunDirectory, write_json
from robot_rl.stages import collect, collect_teleop
from robot_rl.stages.collect import CollectConfig
from robot_rl.teleop.pilots import OperatorPilot
from robot_rl.teleop.writing import RecordingConfig
from robot_rl.types import CameraFrame, Goal, Reading
from robot_rl.workbench import calibrate
from robot_rl.workbench.calibrate_latency_camera import Blink, BlinkPlan, delay_of_frames, measure_camera
from robot_rl.workbench.calibrate_latency_page import BlinkPage
from robot_rl.workbench.calibrate_latency_robot import StepPlan, delta_gain_for, measure_robot, plan_motion

ROBOT = RobotDelays("so101", 0.04, 0.001, 0.1, 0.002, 0.035, 0.01, 20, "wrist_roll by 0.05 rad", "test", "2026-11-27")
CAMERA = CameraDelays(0.05, 0.004, 0.033, 40, "test", "2026-11-27")
QUICK = StepPlan(repeats=3, hold_s=0.8)


def quiet(text: str) -> None:
    """Say nothing."""


def connected(robot_class: type[MockRobot] = MockRobot, card: str | RobotCard = "so101", **config: Any) -> MockRobot:
    clock = ManualClock()
    card = load_robot_card(card) if isinstance(card, str) else card
    robot = robot_class(MockRobotConfig(**config), card=card, clock=clock)
    robot.connect()
    clock.advance(0.5)  # so that a reading that comes late is there
    return robot


def measured(robot: MockRobot, plan: StepPlan = QUICK, say: Callable[[str], None] = quiet) -> RobotDelays:
    return measure_robot(robot, plan, clock=robot._clock, confirm=quiet, say=say)


def test_the_lag_is_that_of_the_closed_form_and_of_a_second_way_to_compute_it() -> None:
    read_s = np.linspace(-0.1, 0.9, 40)
    one = Step(read_s, read_s, np.array([-0.2, 0.0]), np.array([1.0, 3.0]), 0.0, 2.0)
    after = np.maximum(read_s - 0.05, 0.0)
    wanted = np.where(read_s < 0.05, 1.0, 3.0 - 2.0 * np.exp(-after / 0.1))
    np.testing.assert_allclose(lag_response(one, delay_s=0.05, time_constant_s=0.1), wanted, atol=1e-12)

    ramp = Step(read_s, read_s, 0.02 * np.arange(-10, 6), np.r_[np.zeros(10), 0.2 * np.arange(1, 7)], 0.0, 1.2)
    fine_s, place, at = 1e-5, [], 0.0  # Euler, in steps of 10 us
    for time_s in np.arange(-0.2, 0.91, fine_s):
        place.append(at)
        told = np.searchsorted(ramp.command_s, time_s - 0.03 + 1e-9, side="right") - 1
        at += fine_s / 0.08 * (ramp.command[max(told, 0)] - at)
    euler = np.interp(read_s, np.arange(-0.2, 0.91, fine_s), place)
    np.testing.assert_allclose(lag_response(ramp, delay_s=0.03, time_constant_s=0.08), euler, atol=1e-4)


@pytest.mark.parametrize(
    ("card", "config"),
    [
        ("sim_panda", {"latency_s": 0.035, "command_latency_s": 0.030, "lag_s": 0.10}),
        ("so101", {"rate_hz": 50.0, "latency_s": 0.01, "jitter_s": 0.01, "command_latency_s": 0.042, "lag_s": 0.08}),
        ("ur5e", {"rate_hz": 125.0, "command_latency_s": 0.0, "lag_s": 0.05}),
        ("franka_fr3", {"command_latency_s": 0.02, "lag_s": 0.03}),
    ],
)  # a pose at once, joints with late and uneven readings, no dead time, a ramp made by the safety layer
def test_a_mock_arm_of_known_delays_is_found_within_a_millisecond(card: str, config: dict[str, Any]) -> None:
    robot = connected(card=card, **config)
    found = measured(robot)
    assert found.command_delay_s == pytest.approx(config["command_latency_s"], abs=1e-3)
    assert found.time_constant_s == pytest.approx(config["lag_s"], abs=1e-3)
    assert found.command_delay_spread_s < 1e-3
    assert (found.card, found.steps) == (card, 6)
    if not config.get("rate_hz"):
        assert found.reading_age_s == pytest.approx(config.get("latency_s", 0.0), abs=1e-6)
    # It went there and back by the stated step, never further, and is held.
    place = [(goal.pose[2] if goal.position is None else goal.position[-1]) for _, goal in robot.commands]
    size = 0.02 if robot.card.command.value == "pose" else 0.05
    assert max(place) - min(place) == pytest.approx(size, abs=1e-6)
    assert place[-1] == pytest.approx(place[0], abs=1e-6)
    assert len(robot.stops) == 1


def test_an_arm_that_does_not_move_is_refused_and_held() -> None:
    robot = connected(faults=(Fault(FaultKind.command_lost),))
    with pytest.raises(DeployError, match=r"it moved -?0\.0000: not at all"):
        measured(robot)
    assert robot.stops


class NoisyRobot(MockRobot):
    """Its encoders err by as much as the step."""

    def read(self) -> Reading:
        reading = super().read()
        noise = np.random.default_rng(round(1e6 * self._clock.now())).normal(0.0, 0.05, reading.position.shape)
        return replace(reading, position=reading.position + noise)


class UnevenRobot(MockRobot):
    """Each new goal works after another time: 0 to 150 ms."""

    def command(self, goal: Goal) -> Goal:
        assert goal.position is not None
        before = self.commands[-1][1].position if self.commands else None
        if before is None or not np.allclose(before, goal.position):
            number = len({round(float(sent.position[-1]), 2) for _, sent in self.commands if sent.position is not None})
            late_s = (0.0, 0.15, 0.01, 0.12, 0.0, 0.15)[(len(self.commands) // 24 + number) % 6]
            self.config = replace(self.config, command_latency_s=late_s)
            return super().command(goal)
        return goal


def test_too_much_noise_and_steps_that_do_not_agree_are_refused() -> None:
    with pytest.raises(DeployError, match="of the step left over: noise"):
        measured(connected(NoisyRobot))
    with pytest.raises(DeployError, match=r"dead time of commands: expected repeats that agree.*spread"):
        measured(connected(UnevenRobot, lag_s=0.02))


def test_an_arm_that_is_slower_than_the_steps_is_told_so() -> None:
    with pytest.raises(DeployError, match=r"comes to rest within.*--hold-s"):
        measured(connected(lag_s=0.5), StepPlan(repeats=2, hold_s=0.6))


def test_stale_readings_and_a_stop_of_the_safety_layer_end_it_with_the_arm_held() -> None:
    robot = connected(faults=(Fault(FaultKind.frozen, start_s=1.5),))
    with pytest.raises(DeployError, match=r"stream 'joints': expected at most 0\.\d+ s old"):
        measured(robot)
    assert robot.stops
    robot = connected(card="ur5e", faults=(Fault(FaultKind.bias, start_s=1.5, value=1.0),))
    with pytest.raises(DeployError, match="a stop: tracking"):
        measured(robot)
    assert robot.stops


class InterruptedRobot(MockRobot):
    """Ctrl-C comes with its 30th command, as the arm goes up a step."""

    def command(self, goal: Goal) -> Goal:
        if len(self.commands) == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return super().command(goal)


def test_ctrl_c_brakes_and_holds() -> None:
    before = signal.getsignal(signal.SIGINT)
    robot = connected(InterruptedRobot, lag_s=0.02)
    with pytest.raises(KeyboardInterrupt):
        measured(robot)
    assert len(robot.stops) == 1
    assert len(robot.commands) < 40
    assert signal.getsignal(signal.SIGINT) is before
    robot._clock.advance(0.5)
    held = robot.read()
    robot._clock.advance(1.0)
    np.testing.assert_allclose(robot.read().position, held.position, atol=1e-9)


def test_nobody_who_says_yes_means_that_nothing_moves() -> None:
    def refuse(text: str) -> None:
        assert "wrist_roll by" in text
        raise DeployError("test", expected="yes", got="no", hint="")

    robot = connected()
    with pytest.raises(DeployError, match="expected yes"):
        measure_robot(robot, QUICK, clock=robot._clock, confirm=refuse, say=quiet)
    assert not robot.commands


def test_where_it_steps_to() -> None:
    card = load_robot_card("so101")
    reading = connected().read()
    high = replace(reading, position=np.array(card.limits.high) - 0.01)
    assert plan_motion(card, high, StepPlan()).end == pytest.approx(card.limits.high[-1] - 0.06)
    low = replace(reading, position=np.array(card.limits.low) + 0.01)
    assert plan_motion(card, low, StepPlan(part="shoulder_pan", size=0.1)).end == pytest.approx(
        card.limits.low[0] + 0.11
    )
    with pytest.raises(ConfigError, match="--part: expected one of shoulder_pan"):
        plan_motion(card, reading, StepPlan(part="z"))
    with pytest.raises(ConfigError, match=r"--step: expected above 0, 0\.15 rad at most"):
        plan_motion(card, reading, StepPlan(size=1.0))
    with pytest.raises(ConfigError, match="--step"):
        plan_motion(card, reading, StepPlan(size=math.nan))
    with pytest.raises(ConfigError, match="tracking of wrist_roll"):
        plan_motion(replace(card, tracking=(0.04,) * 5), reading, StepPlan())
    narrow = tuple(value + 0.05 for value in card.limits.low)
    with pytest.raises(DeployError, match=r"step of wrist_roll: expected 0\.075 rad of room"):
        plan_motion(replace(card, limits=replace(card.limits, high=narrow)), low, StepPlan())
    panda = load_robot_card("sim_panda")
    pose = connected(card=panda).read()  # at z = 0.3 of 0 .. 1.2, and up has more room anyway
    assert plan_motion(panda, pose, StepPlan()).text == "z by 0.02 m"
    assert pose.pose is not None
    high_up = replace(pose, pose=np.r_[0.4, 0.0, 1.19, pose.pose[3:]])
    assert plan_motion(panda, high_up, StepPlan()).end == pytest.approx(1.17)
    with pytest.raises(ConfigError, match="commanded by twists"):
        plan_motion(replace(panda, command=type(panda.command)("twist")), pose, StepPlan())


def test_delta_gain_is_the_formula_of_the_docs_within_what_deploy_takes() -> None:
    assert delta_gain_for(ROBOT) == pytest.approx((1.175, 1.175))  # 1 + 0.035 / 0.2
    assert delta_gain_for(replace(ROBOT, time_constant_s=0.01)) == pytest.approx((2.0, 2.75))


def test_a_step_is_judged_by_its_own_numbers() -> None:
    read_s = np.linspace(-0.1, 0.9, 101)
    step = Step(read_s, read_s * 0.0, np.array([-0.2, 0.0]), np.array([0.0, 1.0]), 0.0, 1.0)
    sags = replace(step, position=0.3 + 0.9 * lag_response(step, delay_s=0.04, time_constant_s=0.1))
    found = fit_step(sags)  # gain and offset are free
    assert isinstance(found, StepFit)
    assert (found.delay_s, found.time_constant_s) == pytest.approx((0.04, 0.1), abs=1e-4)
    assert found.moved == pytest.approx(0.9, abs=0.01)
    assert measure_response([sags, sags]).resolution_s == pytest.approx(0.01)


class Lamp:
    """A light and a camera that sees it, on one clock: frames integrate over their exposure and are stamped late."""

    name = "wrist"

    def __init__(self, delay_s: float, *, exposure_s: float = 0.01, rate_hz: float = 30.0, noise: float = 2.0) -> None:
        self.clock, self.delay_s, self.exposure_s, self.rate_hz = ManualClock(), delay_s, exposure_s, rate_hz
        self.changes: list[tuple[float, bool]] = [(-math.inf, False)]
        self.noise, self.works = noise, True

    def show(self, is_light: bool) -> float:
        self.changes.append((self.clock.now(), is_light and self.works))
        return self.clock.now()

    def read(self) -> CameraFrame:
        number = math.floor((self.clock.now() - 0.06) * self.rate_hz)
        middle_s = number / self.rate_hz
        share = np.mean([self._is_light(middle_s + part * self.exposure_s) for part in np.linspace(-0.5, 0.5, 21)])
        noise = np.random.default_rng(number).normal(0.0, self.noise)
        image = np.full((8, 8, 3), 30, np.uint8)
        image[:4] = np.clip(30 + 150 * share + noise, 0, 255)
        return CameraFrame(image, middle_s + self.delay_s, number)

    def _is_light(self, time_s: float) -> bool:
        return next(is_light for since_s, is_light in reversed(self.changes) if since_s <= time_s)


@pytest.mark.parametrize("delay_s", [-0.02, 0.0, 0.042, 0.15])
def test_the_delay_of_a_cameras_stamps_is_found_within_a_fifth_of_a_frame(delay_s: float) -> None:
    lamp = Lamp(delay_s)
    found = measure_camera(lamp.read, lamp, BlinkPlan(region=(0.0, 0.0, 1.0, 0.5)), clock=lamp.clock, method="test")
    assert found.camera_delay_s == pytest.approx(delay_s, abs=0.2 / 30)
    assert found.frame_period_s == pytest.approx(1 / 30, abs=1e-3)
    assert found.blinks >= 36
    assert found.camera_delay_spread_s < 1 / 30


def test_a_camera_that_sees_no_light_or_another_one_is_refused() -> None:
    dark = Lamp(0.04)
    dark.works = False
    with pytest.raises(DeployError, match="brightness that changes by 10 grey levels"):
        measure_camera(dark.read, dark, BlinkPlan(blinks=8), clock=dark.clock, method="test")
    lamp = Lamp(0.04)
    with pytest.raises(DeployError, match="brightness that changes"):  # a region beside the light
        measure_camera(
            lamp.read, lamp, BlinkPlan(blinks=8, region=(0.0, 0.5, 1.0, 1.0)), clock=lamp.clock, method="test"
        )
    with pytest.raises(ConfigError, match="--region"):
        measure_camera(lamp.read, lamp, BlinkPlan(region=(0.5, 0.0, 0.5, 1.0)), clock=lamp.clock, method="test")
    stamp_s = np.arange(0.0, 10.0, 1 / 30)
    flicker = np.random.default_rng(0).choice([20.0, 200.0], len(stamp_s))
    blinks = [Blink(0.5 * number, number % 2 == 0) for number in range(1, 19)]
    with pytest.raises(DeployError, match=r"80 % of 18 blinks seen once"):
        delay_of_frames(blinks, stamp_s, flicker)


def test_the_page_tells_when_it_changed_and_nobody_else_may() -> None:
    page = BlinkPage(wait_s=10.0)
    seen, refused = list[str](), list[int]()

    def browser() -> None:
        with urllib.request.urlopen(page.address, timeout=10) as answer:
            assert b"EventSource" in answer.read()
        with urllib.request.urlopen(page.address + "events", timeout=10) as events:
            for line in events:
                if line.startswith(b"data: "):
                    number, color = line.decode().split()[1:]
                    seen.append(color)
                    request = urllib.request.Request(f"{page.address}shown/{number}", method="POST")
                    urllib.request.urlopen(request, timeout=10).close()

    def stranger(address: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=10)
        except urllib.error.HTTPError as error:
            refused.append(error.code)

    thread = threading.Thread(target=browser, daemon=True)
    thread.start()
    try:
        page.wait_open()
        stranger(page.address.rsplit("/", 2)[0] + "/shown/1")
        times = [page.show(is_light) for is_light in (True, False, True)]
    finally:
        page.close()
    thread.join(10)
    assert seen == ["#fff", "#000", "#fff"]
    assert times == sorted(times)
    assert refused == [404]
    assert not thread.is_alive()


def test_a_page_that_nobody_opens_says_where_it_is() -> None:
    page = BlinkPage(wait_s=0.05)
    try:
        with pytest.raises(DeployError, match=r"http://127\.0\.0\.1:\d+/.*a browser that opens it"):
            page.wait_open()
        with pytest.raises(DeployError, match="the page to say that it changed"):
            page.show(True)
    finally:
        page.close()


def test_the_file_comes_back_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path, delays = tmp_path / "delays.json", Delays(ROBOT, {"wrist": replace(CAMERA, camera_delay_s=-0.01)})
    write_json(path, delays.to_json())
    assert load_delays(path) == delays
    assert [file.name for file in tmp_path.iterdir()] == ["delays.json"]
    assert load_delays_for(path, card="so101", cameras=("wrist", "top")) == delays
    with pytest.raises(DataError, match=r"robot\.card: expected 'ur5e', got 'so101'"):
        load_delays_for(path, card="ur5e", cameras=("wrist",))
    with pytest.raises(DataError, match="cameras that are recorded, got 'wrist'"):
        load_delays_for(path, card="so101", cameras=("wirst",))
    good = json.loads(path.read_text())
    wrong: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda d: d.update(format="robot_rl.camera_calibration"), "got 'robot_rl.camera_calibration'"),
        (lambda d: d.update(version=2), "version 1"),
        (lambda d: d["robot"].pop("time_constant_s"), "robot: expected keys"),
        (lambda d: d["robot"].update(command_delay_s=-0.1), r"robot\.command_delay_s"),
        (lambda d: d["robot"].update(command_delay_s="fast"), r"robot\.command_delay_s"),
        (lambda d: d["cameras"]["wrist"].update(camera_delay_s=math.nan), r"cameras\.wrist\.camera_delay_s"),
        (lambda d: d.update(cameras=[]), "cameras: expected an object"),
    ]
    for change, text in wrong:
        content = json.loads(json.dumps(good))
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=text):
            load_delays(path)
    path.write_text("{")
    with pytest.raises(DataError, match="a JSON file"):
        load_delays(path)


def test_stamps_are_moved_by_what_was_measured_and_nothing_else() -> None:
    columns = {
        "capture_s/image/wrist": np.array([1.0, 2.0]), "capture_s/image/top": np.array([1.0, 2.0]),
        "capture_s/joints": np.array([1.0, 2.0]), "command_s": np.array([1.01, 2.01]),
    }  # fmt: skip
    moved = align_columns(columns, Delays(ROBOT, {"wrist": CAMERA}))
    np.testing.assert_allclose(moved["capture_s/image/wrist"], [0.95, 1.95])
    np.testing.assert_allclose(moved["works_s"], [1.05, 2.05])
    assert all((moved[key] == columns[key]).all() for key in ("capture_s/image/top", "capture_s/joints", "command_s"))
    assert "works_s" not in align_columns(columns, Delays())


def test_the_command_measures_keeps_other_cameras_and_refuses_wrong_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "delays.json"
    write_json(output, Delays(None, {"top": CAMERA}).to_json())
    words = ["latency", "--output", str(output), "robot=so101", "driver=mock", "driver.robot.command_latency_s=0.02"]
    assert calibrate.main([*words, "--yes", "--repeats", "2", "--hold-s", "0.4"]) == 0
    found = load_delays(output)
    assert found.cameras == {"top": CAMERA}
    assert found.robot is not None
    assert found.robot.command_delay_s == pytest.approx(0.02, abs=0.02)  # on the clock of a busy machine
    assert "delta_gain=1." in capsys.readouterr().out
    with pytest.raises(DeployError, match="no terminal"):
        calibrate.main(words)
    for wrong in ([], ["robot=so101"], ["driver=mock"]):
        with pytest.raises(ConfigError, match="robot=<card> driver=<driver>"):
            calibrate.main(["latency", "--output", str(output), *wrong])
    with pytest.raises(ConfigError, match="the word latency first"):
        calibrate.main(["--output", str(output), "latency"])
    output.write_text("{}")
    with pytest.raises(DataError, match=r"robot_rl\.delays"):
        calibrate.main([*words, "--yes"])
    assert output.read_text() == "{}"


def test_collect_stores_the_delays_with_every_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_teleop, "_pilot", lambda *_: OperatorPilot(PlainMapping(), PlainClutch()))
    card = write_small_card(tmp_path)
    delays, file = Delays(replace(ROBOT, card="small")), tmp_path / "delays.json"
    write_json(file, delays.to_json())
    session = collect_teleop.TeleopConfig(recording=RecordingConfig(delays=str(file)))
    config = CollectConfig(
        teleop={"_target_": "small_teleop.ScriptedOperator"}, robot=card, dataset=str(tmp_path / "d.zarr"), num_episodes=1,
        driver={"robot": {"_target_": "robot_rl.hardware.mock_robot.MockRobot", "streams": ("joints",)}}, session=session,
    )  # fmt: skip
    run = RunDirectory.create(tmp_path, stage="collect", task="test", seed=0, config_yaml="", command=["test"])
    assert collect.run(config, run)["saved"] == 1
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        store.verify()
        metadata = store.episode(0).metadata
    assert delays_of(metadata) == delays
    columns = unpack_columns(metadata)
    np.testing.assert_allclose(align_columns(columns, delays)["works_s"] - columns["command_s"], 0.04)
    write_json(file, Delays(ROBOT).to_json())
    with pytest.raises(DataError, match="expected 'small', got 'so101'"):
        collect.run(config, run)
