"""Recording a robot's topics: a real node, real DDS, files that the mcap package reads back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robot_rl.errors import DeployError
from robot_rl.hardware.raw_log import RawLog
from robot_rl.hardware.ros2_definitions import definition

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")
from geometry_msgs.msg import PoseStamped  # noqa: E402
from mcap.exceptions import EndOfFile, McapError  # noqa: E402
from mcap.reader import NonSeekingReader, make_reader  # noqa: E402
from mcap_ros2.decoder import DecoderFactory  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

WAIT_S = 40.0


@contextlib.contextmanager
def recorder(folder: Path, domain: int) -> Iterator[subprocess.Popen]:
    words = ["-p", "robot:=sim_panda", "-p", f"dataset:={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "robot_rl.hardware.ros2_recorder", "--ros-args", *words],
        env=os.environ | {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Arm:
    """A publisher of the three inputs of sim_panda, and a caller of services."""

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("arm", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.sent = 0
        self.publishers = {
            "joint_states": self.node.create_publisher(JointState, "joint_states", 10),
            "current_pose": self.node.create_publisher(PoseStamped, "current_pose", 10),
            "scene_state": self.node.create_publisher(Float64MultiArray, "scene_state", 10),
        }

    def send(self) -> None:
        joints = JointState(name=["a", "b"], position=[float(self.sent), 0.5])
        pose = PoseStamped()
        pose.pose.orientation.w = 1.0
        self.publishers["joint_states"].publish(joints)
        self.publishers["current_pose"].publish(pose)
        self.publishers["scene_state"].publish(Float64MultiArray(data=[1.0, float(self.sent)]))
        self.sent += 1

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < end
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, name: str, kind: type, **fields: object) -> object:
        client = self.node.create_client(kind, f"/robot_rl_recorder/{name}")
        self.until(client.service_is_ready)
        request = kind.Request()
        for key, value in fields.items():
            setattr(request, key, value)
        future = client.call_async(request)
        self.until(future.done)
        return future.result()

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def domain() -> int:
    return 80 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10


def test_episodes_are_kept_as_they_came(tmp_path: Path, domain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    folder = tmp_path / "recordings"
    with recorder(folder, domain) as process:
        arm = Arm(domain)
        try:
            answer = arm.call("start_episode", Trigger)
            assert not answer.success
            assert "joint_states" in answer.message
            arm.until(lambda: all(p.get_subscription_count() for p in arm.publishers.values()))

            def started() -> bool:
                arm.send()
                return bool(arm.call("start_episode", Trigger).success)

            arm.until(started)
            assert "runs already" in arm.call("start_episode", Trigger).message
            first = arm.sent
            for _ in range(50):
                arm.send()
                arm.executor.spin_once(timeout_sec=0.01)
            assert arm.call("mark_success", SetBool, data=True).success
            answer = arm.call("stop_episode", Trigger)
            assert answer.success, answer.message
            assert arm.call("start_episode", Trigger).success
            assert arm.call("discard_episode", Trigger).success
            assert arm.call("start_episode", Trigger).success
            arm.send()
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, output
        finally:
            arm.close()
    assert sorted(file.name for file in folder.iterdir()) == ["episode_000000.mcap", "episode_000001.mcap"]
    with (folder / "episode_000000.mcap").open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        joints = [message.position[0] for *_, message in reader.iter_decoded_messages(topics=["/joint_states"])]
        (facts,) = [record.metadata for record in reader.iter_metadata()]
    assert facts["success"] == "true"
    assert facts["dropped"] == "0"
    assert joints == [float(number) for number in range(first, first + 50)]


def test_a_log_is_not_overwritten_and_appears_when_whole(tmp_path: Path) -> None:
    log = RawLog(tmp_path / "a.mcap")
    log.add_topic("/x", "std_msgs/msg/Float64MultiArray", definition("std_msgs/msg/Float64MultiArray"))
    log.add("/x", b"\x00\x01\x00\x00")
    assert not (tmp_path / "a.mcap").exists()
    assert log.close() == tmp_path / "a.mcap"
    with pytest.raises(DeployError, match="overwritten"):
        RawLog(tmp_path / "a.mcap")


FULL = """
import os, resource, signal, sys
from robot_rl.errors import DeployError
from robot_rl.hardware.raw_log import RawLog
from robot_rl.hardware.ros2_definitions import definition
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
log = RawLog(sys.argv[1])
log.add_topic("/x", "std_msgs/msg/Bool", definition("std_msgs/msg/Bool"))
for _ in range(500):
    log.add("/x", os.urandom(20_000))
try:
    log.close()
except DeployError as error:
    print(error)
print("written", log.written["/x"], "dropped", log.dropped["/x"])
"""


def test_a_full_disk_is_said_and_what_was_written_can_be_read(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "a.mcap")],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert "expected room on the disk" in done.stdout, done.stderr
    written, dropped = (int(done.stdout.split()[place]) for place in (-3, -1))
    assert written + dropped == 500
    assert dropped > 0
    assert not (tmp_path / "a.mcap").exists()
    part = tmp_path / "a.mcap.part"
    whole = 0
    with part.open("rb") as stream, contextlib.suppress(EndOfFile, McapError):
        for *_, message in NonSeekingReader(stream).iter_messages(log_time_order=False):
            assert len(message.data) == 20_000
            whole += 1
    assert 100 < whole <= written
