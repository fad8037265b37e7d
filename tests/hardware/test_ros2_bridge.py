"""The lifecycle bridge, started by its launch file: real processes, real DDS, an arm that tells what it is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from fake_arm import FakeArm  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from small_onnx import write_policy  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from robot_rl.deploy.robot_card import load_robot_card  # noqa: E402
from robot_rl.hardware.mock_robot import MockRobotConfig, mock_spec  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
# A machine that runs other work too may keep a process from running for LOADED_S; the exact bound is in test_watchdog.py.
HEARTBEAT_S, PERIOD_S, LOADED_S = 2.0, 0.05, 3.0
# Where the arm says it is, and 4 cm above it.
HERE, ABOVE = (0.4, 0.1, 0.3), (0.4, 0.1, 0.34)


class Person:
    """Calls the bridge's services and reads its diagnostics."""

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("person", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.status: Any = None
        self.show_stacks: Callable[[], None] = lambda: None
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._hear, 10)

    def _hear(self, message: DiagnosticArray) -> None:
        self.status = message.status[0]

    def until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + WAIT_S
        while not done():
            if time.monotonic() > end:
                self.show_stacks()
                said = None if self.status is None else self.status.message
                pytest.fail(f"not within {WAIT_S:g} s: {what}; the bridge said last {said!r}")
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, name: str, kind: type = Trigger, **fields: object) -> Any:
        client = self.node.create_client(kind, f"/robot_rl_bridge/{name}")
        self.until(client.service_is_ready, name)
        request = kind.Request()
        for key, value in fields.items():
            setattr(request, key, value)
        future = client.call_async(request)
        self.until(future.done, f"an answer of {name}")
        return future.result()

    def says(self, words: str) -> None:
        """Wait until the diagnostics say so."""
        self.until(lambda: self.status is not None and re.search(words, self.status.message) is not None, words)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


class Stage:
    """An arm, a launched bridge and a person in one domain."""

    def __init__(self, folder: Path, domain: int) -> None:
        # Slower than the simulated arm, so that the way to the goal is seen.
        plain = yaml.safe_load((ROOT / "configs" / "robot" / "sim_panda.yaml").read_text())
        plain["pose"] |= {"speed_m_s": 0.1, "acceleration_m_s2": 1.0, "jerk_m_s3": 20.0}
        plain["thresholds"] = {
            "observation_s": 2.0,
            "heartbeat_s": HEARTBEAT_S,
        }  # of a machine that runs other tests beside
        (folder / "slow.yaml").write_text(yaml.safe_dump(plain))
        card = load_robot_card(folder / "slow.yaml")
        spec = mock_spec(card, MockRobotConfig(streams=("joints", "pose")))
        actions = np.tile(np.float32([*ABOVE, 0.8, 0.6, 0.0, 0.0, 1.0]), (4, 1))
        policy = write_policy(folder / "policy.onnx", spec, actions)
        self.arm = FakeArm(folder / "slow.yaml", domain, still=True)
        environment = os.environ | {"ROS_DOMAIN_ID": str(domain), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        command = [sys.executable, "-m", "robot_rl", "ros2", "up", "deploy.launch.py", f"policy:={policy}"]
        self.log = (folder / "log.txt").open("w+")
        self.bridge = subprocess.Popen(
            [*command, f"robot:={folder / 'slow.yaml'}", f"log_folder:={folder / 'black_box'}"],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
        self.person = Person(domain)
        self.person.show_stacks = self.show_stacks

    def show_stacks(self) -> None:
        """Where a bridge that hangs does so; it ends by that, the log goes to what pytest shows."""
        launcher = psutil.Process(self.bridge.pid)
        for one in (*launcher.children(), launcher):
            one.send_signal(signal.SIGABRT)
            time.sleep(1.0)
        print(Path(self.log.name).read_text())

    def commanded(self) -> np.ndarray:
        """The next pose that the arm is told."""
        pose = self.arm.expect(lambda entry: "arm" in entry)["arm"]["pose"]["position"]
        return np.array([pose["x"], pose["y"], pose["z"]])

    def close(self) -> None:
        self.person.close()
        if self.bridge.poll() is None:
            self.bridge.send_signal(signal.SIGTERM)
            try:
                self.bridge.wait(20)
            except subprocess.TimeoutExpired:
                self.bridge.kill()
        self.arm.kill()
        self.log.close()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    stage = Stage(tmp_path, 70 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10)
    try:
        yield stage
    finally:
        stage.close()


def test_an_episode_an_emergency_stop_and_the_way_down(stage: Stage, tmp_path: Path) -> None:
    person = stage.person
    person.says("^active$")
    assert stage.arm.heard.empty()  # motion is enabled, nothing moves
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="ur5e")
    (answer,) = person.call("set_parameters", SetParameters, parameters=[Parameter(name="robot", value=value)]).results
    assert not answer.successful
    assert "clean it up first" in answer.reason

    assert person.call("start_episode").success
    first = stage.commanded()
    np.testing.assert_allclose(first, HERE, atol=0.02)
    before = first[2]
    while (height := stage.commanded()[2]) < ABOVE[2] - 1e-6:
        # 0.1 m/s at 20 Hz, or a few skipped slots of a loaded machine.
        assert before - 1e-9 <= height <= before + 0.02
        before = height
    assert "one that runs" in person.call("start_episode").message
    assert person.call("emergency_stop").success
    person.says("^stopped: .*emergency")
    assert person.status.level == b"\x02"
    refused = person.call("start_episode")
    assert not refused.success
    assert "emergency" in refused.message
    person.until(lambda: person.call("release").success, "an episode that has ended")
    assert list((tmp_path / "black_box").glob("*emergency*.mcap"))

    assert person.call("start_episode").success
    person.says("running|bent")
    assert "ended by stopped" in person.call("stop_episode").message
    person.until(lambda: any(v.key == "last_episode" for v in person.status.values), "the last episode")
    stage.bridge.send_signal(signal.SIGINT)
    assert stage.bridge.wait(30) == 0


def test_a_killed_bridge_is_answered_by_its_watchdog_with_a_hold(stage: Stage) -> None:
    person = stage.person
    person.says("^active$")
    assert person.call("start_episode").success
    while stage.commanded()[2] < ABOVE[2] - 1e-6:
        pass
    # The launcher's child is the bridge; its policy and its watchdog are children of that one.
    psutil.Process(stage.bridge.pid).children()[0].kill()
    killed_s = time.monotonic()
    # The hold is where the arm says it is, not where it was told to go.
    end = time.monotonic() + WAIT_S
    while not np.allclose(stage.commanded(), HERE, atol=1e-6):
        assert time.monotonic() < end
    hold_s = time.monotonic() - killed_s
    print(f"hold_s {hold_s:.4f}")
    assert 0.5 * HEARTBEAT_S < hold_s <= HEARTBEAT_S + PERIOD_S + 0.020 + LOADED_S
    assert stage.bridge.wait(30) == 1
