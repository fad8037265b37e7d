"""The simulated arm as a process of its own, over real DDS on the loopback, in a ROS domain of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mani_skill")
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.errors import DeployError
from robot_rl.hardware.ros2_scene import Ros2Scene, Ros2SceneConfig
from robot_rl.hardware.sim_messages import goal_of
from robot_rl.hardware.sim_robot import live_scene

DOMAIN = 80 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 5
WAIT_S = 20.0
START_S = 90.0
CARD = load_robot_card("sim_panda")
SEED = 900_000


def until(is_true: Callable[[], bool], *, what: str, wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not is_true():
        assert time.monotonic() < deadline, f"waited {wait_s:g} s for {what}"
        time.sleep(0.005)


def node_process(*words: str, domain: int = DOMAIN) -> subprocess.Popen[str]:
    env = os.environ | {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    command = [sys.executable, "-m", "robot_rl.hardware.sim_robot_node", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@dataclass
class Listener:
    """Newest messages, how late they came, and publishers of commands."""

    node: Any
    newest: dict[str, Any] = field(default_factory=dict)
    late_s: dict[str, list[float]] = field(default_factory=dict)
    publishers: dict[str, Any] = field(default_factory=dict)

    def hear(self, topic: str, message: Any) -> None:
        self.newest[topic] = message
        if hasattr(message, "header"):
            stamp = message.header.stamp
            self.late_s.setdefault(topic, []).append(time.time() - stamp.sec - 1e-9 * stamp.nanosec)

    def next(self, topic: str) -> Any:
        old = self.newest.get(topic)
        until(lambda: self.newest.get(topic) is not old, what=topic)
        return self.newest[topic]


@pytest.fixture(scope="module")
def node() -> Iterator[subprocess.Popen[str]]:
    process = node_process(
        "--latency-s",
        "0.02",
        "--jitter-s",
        "0.005",
        "--options",
        '{"fast_cpu": true}',
        "--ros-args",
        "-p",
        f"seed:={SEED}",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def listener(node: subprocess.Popen[str]) -> Iterator[Listener]:
    import rclpy
    from geometry_msgs.msg import PoseStamped
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Bool, Float64MultiArray

    context = rclpy.Context()
    rclpy.init(context=context, args=[], domain_id=DOMAIN)
    client = rclpy.create_node("test_listener", context=context)
    listener = Listener(client)
    kinds = {
        "joint_states": JointState, "current_pose": PoseStamped, "scene_state": Float64MultiArray, "success": Bool,
        "episode_state": Float64MultiArray,
    }  # fmt: skip
    for topic, kind in kinds.items():
        client.create_subscription(kind, topic, lambda message, topic=topic: listener.hear(topic, message), 10)
    listener.publishers = {
        "arm": client.create_publisher(PoseStamped, "target_pose", 10),
        "gripper": client.create_publisher(Float64MultiArray, "gripper_controller/commands", 10),
    }
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(client)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        until(lambda: len(listener.newest) == len(kinds) or node.poll() is not None, what="topics", wait_s=START_S)
        assert node.poll() is None, node.communicate()
        until(lambda: all(p.get_subscription_count() for p in listener.publishers.values()), what="the robot to listen")
        yield listener
    finally:
        context.try_shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def scene(listener: Listener) -> Iterator[Ros2Scene]:
    scene = Ros2Scene(Ros2SceneConfig(domain_id=DOMAIN), card=CARD)
    yield scene
    scene.close()


def pose_of(message: Any) -> np.ndarray:
    p, q = message.pose.position, message.pose.orientation
    return np.array([p.x, p.y, p.z, q.w, q.x, q.y, q.z])


def captured_after(listener: Listener, time_s: float) -> Any:
    """A pose of then or later; those of before a reset are still under way."""

    def is_new() -> bool:
        stamp = listener.newest["current_pose"].header.stamp
        return stamp.sec + 1e-9 * stamp.nanosec >= time_s

    until(is_new, what="a new pose")
    return listener.newest["current_pose"]


def send(listener: Listener, pose: np.ndarray, *, frame: str = "panda_link0", opening: float = 0.04) -> None:
    from geometry_msgs.msg import PoseStamped
    from std_msgs.msg import Float64MultiArray

    message = PoseStamped()
    message.header.frame_id = frame
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z, q.w, q.x, q.y, q.z = pose.tolist()
    listener.publishers["arm"].publish(message)
    listener.publishers["gripper"].publish(Float64MultiArray(data=[opening]))


def test_topics_are_those_of_a_robot(listener: Listener) -> None:
    joints = listener.next("joint_states")
    assert tuple(joints.name) == (*CARD.joints, "panda_finger_joint1", "panda_finger_joint2")
    assert len(joints.position) == len(joints.velocity) == 9
    assert listener.newest["current_pose"].header.frame_id == "panda_link0"
    state = np.array(listener.next("scene_state").data)
    assert state.shape == (42,)
    np.testing.assert_allclose(state[:9], listener.newest["joint_states"].position, atol=0.01)


def test_messages_come_as_late_as_wanted(listener: Listener) -> None:
    until(lambda: len(listener.late_s["joint_states"]) > 50, what="50 messages")
    late = np.array(listener.late_s["joint_states"])
    assert late.min() > 0.0149, "never earlier than latency - jitter"
    assert np.median(late) < 0.5, "and not forever later, whatever the load"


def test_reset_starts_the_episode_of_a_seed(scene: Ros2Scene, listener: Listener) -> None:
    known = live_scene("pick_cube", {})
    goal, cube = slice(26, 29), slice(29, 32)

    def shows(expected: np.ndarray) -> bool:
        return np.allclose(np.array(listener.newest["scene_state"].data)[goal], expected[goal], atol=1e-6)

    for seed in (SEED + 3, SEED + 4):
        known.reset(seed)
        expected = known.measure().frames["state"]
        scene.reset(seed)
        assert scene.episode().seed == seed
        until(lambda expected=expected: shows(expected), what=f"the scene of seed {seed}")
        np.testing.assert_allclose(np.array(listener.newest["scene_state"].data)[cube], expected[cube], atol=1e-3)
    known.close()
    # The service alone plays the seed that follows.
    from std_srvs.srv import Trigger

    answer = scene._call(scene._trigger, Trigger.Request(), time.monotonic() + WAIT_S)
    assert answer.success
    until(lambda: scene.episode().seed == SEED + 5, what="the next seed")


def test_arm_follows_commands_and_holds_when_they_end(scene: Ros2Scene, listener: Listener) -> None:
    scene.reset(SEED)
    assert scene.episode().steps == 0
    time_out = time.monotonic() + WAIT_S
    start = pose_of(captured_after(listener, time.time()))
    target = start + np.array([0.0, 0.08, 0.05, 0, 0, 0, 0])
    while np.abs(pose_of(listener.next("current_pose"))[:3] - target[:3]).max() > 0.01:
        send(listener, target, opening=0.0)
        assert time.monotonic() < time_out, "the arm does not follow"
    until(lambda: scene.episode().steps > 0, what="the episode to begin with its first command")
    until(lambda: np.abs(np.array(listener.next("joint_states").velocity)).max() < 1e-2, what="the arm to hold")
    until(lambda: scene.episode().is_over, what="the time limit")
    assert not scene.episode().success
    assert not listener.newest["success"].data


def test_command_of_another_frame_or_nan_is_not_followed(scene: Ros2Scene, listener: Listener) -> None:
    scene.reset(SEED)
    start = pose_of(captured_after(listener, time.time()))
    for _ in range(10):
        send(listener, start + np.array([0, 0.3, 0, 0, 0, 0, 0]), frame="world")
        send(listener, np.full(7, np.nan), opening=float("nan"))
        listener.next("current_pose")
    assert np.abs(pose_of(listener.next("current_pose")) - start)[:3].max() < 0.01


def test_ends_cleanly_on_ctrl_c_and_says_how_it_kept_time(
    scene: Ros2Scene, listener: Listener, node: subprocess.Popen[str]
) -> None:
    node.send_signal(signal.SIGINT)
    out, err = node.communicate(timeout=60)
    assert node.returncode == 0, err
    facts = json.loads(out.strip().splitlines()[-1])
    assert facts["resets"] >= 1
    assert facts["holds"] >= 1
    with pytest.raises(DeployError, match="an answer"):
        scene._call(scene._trigger, scene._trigger.srv_type.Request(), time.monotonic() + 0.3)


@pytest.mark.parametrize(
    ("words", "says"),
    [(("--env", "pick_cub"), "pick_cube"), (("--latency-s", "0.01", "--jitter-s", "0.02"), "jitter_s <= latency_s")],
)
def test_wrong_words_end_with_an_error(words: tuple[str, ...], says: str) -> None:
    process = node_process(*words)
    try:
        _, err = process.communicate(timeout=START_S)
    finally:
        process.kill()
    assert process.returncode == 1
    assert says in err


def test_scene_says_when_nobody_answers() -> None:
    with pytest.raises(DeployError, match="ROS_DOMAIN_ID"):
        Ros2Scene(Ros2SceneConfig(domain_id=DOMAIN + 5, wait_s=0.3), card=CARD)


def trajectory(names: list[str], positions: list[float]) -> Any:
    kind = type("JointTrajectory", (), {})
    message = kind()
    message.joint_names, message.points = names, [SimpleNamespace(positions=positions)]
    return message


def test_joint_commands_by_name_and_by_order() -> None:
    names = ("a", "b", "c")
    goal = goal_of(trajectory(["c", "a", "b"], [3.0, 1.0, 2.0]), names, frame="base")
    np.testing.assert_array_equal(goal.position, [1, 2, 3])
    array = type("Float64MultiArray", (), {"data": [1.0, 2.0, 3.0]})()
    np.testing.assert_array_equal(goal_of(array, names, frame="base").position, [1, 2, 3])
    for bad in (trajectory(["a", "b"], [1.0, 2.0]), type("Float64MultiArray", (), {"data": [1.0]})()):
        with pytest.raises(DeployError):
            goal_of(bad, names, frame="base")


def test_twist_commands() -> None:
    def twist(frame: str) -> Any:
        message = type("TwistStamped", (), {})()
        message.header = SimpleNamespace(frame_id=frame)
        linear, angular = SimpleNamespace(x=1.0, y=2.0, z=3.0), SimpleNamespace(x=4.0, y=5.0, z=6.0)
        message.twist = SimpleNamespace(linear=linear, angular=angular)
        return message

    np.testing.assert_array_equal(goal_of(twist("base"), ("a",), frame="base").twist, [1, 2, 3, 4, 5, 6])
    with pytest.raises(DeployError, match="base"):
        goal_of(twist("tool"), ("a",), frame="base")
