"""`robot-rl ros2 up`: launch files with real processes, a real lifecycle node and real signals."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from robot_rl.errors import ConfigError
from robot_rl.hardware import launch_words
from robot_rl.hardware.launch_runner import command_line, read_launch_file, run_launch_file

OURS = sorted((Path(launch_words.__file__).parent / "ros2" / "launch").glob("*.launch.py"))
WAIT_S = 40.0

NODE = """#!{python}
import sys
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

class Arm(LifecycleNode):
    def __init__(self):
        super().__init__("arm")
        self.declare_parameter("word", "")
    def on_configure(self, state):
        word = self.get_parameter("word").value
        return TransitionCallbackReturn.FAILURE if word == "refuse" else TransitionCallbackReturn.SUCCESS
    def on_activate(self, state):
        # In one piece: launcher and node write into the same pipe, unbuffered.
        print(f"active {{self.get_fully_qualified_name()}} {{self.get_parameter('word').value}}", flush=True)
        return super().on_activate(state)

rclpy.init()
node = Arm()
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
rclpy.try_shutdown()
"""

# Does its transitions and tells nobody: what a launcher sees whose subscription the node does not know yet.
MUTE = """#!{python}
import rclpy
from lifecycle_msgs.msg import TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetState

LABELS = {{0: "unconfigured", 1: "inactive", 3: "active"}}
rclpy.init()
node = rclpy.create_node("arm")
now = [0]
def change(request, response):
    now[0] = request.transition.id
    print(f"now {{LABELS[now[0]]}}", flush=True)
    response.success = True
    return response
def tell(request, response):
    response.current_state.label = LABELS[now[0]]
    return response
node.create_publisher(TransitionEvent, "~/transition_event", 10)
node.create_service(ChangeState, "~/change_state", change)
node.create_service(GetState, "~/get_state", tell)
try:
    rclpy.spin(node)
except KeyboardInterrupt:
    pass
"""

LAUNCH = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler, Shutdown
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

def generate_launch_description():
    arm = LifecycleNode(package="test_arm", executable="arm", name="left", namespace="cell", output="screen",
                        parameters=[{"word": LaunchConfiguration("word")}], on_exit=Shutdown(reason="over"))
    def change(transition):
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(arm), transition_id=transition))
    return LaunchDescription([
        DeclareLaunchArgument("word", default_value="ready"),
        arm,
        RegisterEventHandler(OnStateTransition(target_lifecycle_node=arm, goal_state="inactive",
                                               entities=[change(Transition.TRANSITION_ACTIVATE)])),
        change(Transition.TRANSITION_CONFIGURE),
    ])
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "prefix" / "lib" / "test_arm"
    folder.mkdir(parents=True)
    (folder / "arm").write_text(NODE.format(python=sys.executable))
    (folder / "arm").chmod(stat.S_IRWXU)
    (tmp_path / "arm.launch.py").write_text(LAUNCH)
    return tmp_path


def up(workspace: Path, *words: str) -> subprocess.Popen:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    environment = os.environ | {
        "AMENT_PREFIX_PATH": str(workspace / "prefix"),
        "ROS_DOMAIN_ID": str(90 + worker % 10),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "robot_rl", "ros2", "up", str(workspace / "arm.launch.py"), *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=workspace
    )


def lines_until(process: subprocess.Popen, word: str) -> list[str]:
    """Lines up to one with `word`; the process is killed when it never comes."""
    assert process.stdout is not None
    lines = []
    timer = threading.Timer(WAIT_S, end_all, [process])
    timer.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if word in line:
                return lines
    finally:
        timer.cancel()
    raise AssertionError(f"no {word!r} in: {''.join(lines)}")


def end_all(process: subprocess.Popen) -> None:
    """Kill the launcher and its nodes, so that nobody holds the pipe."""
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()


def test_a_lifecycle_node_is_configured_activated_and_ended(workspace: Path) -> None:
    process = up(workspace, "word:=left hand")
    try:
        lines = lines_until(process, "active /cell/left left hand")
        assert any("/cell/left: configuring -> inactive" in line for line in lines)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=WAIT_S)
        assert "/cell/left ended" in rest or process.returncode == 0
        assert process.returncode == 0, rest
    finally:
        process.kill()


def test_a_lost_event_of_a_transition_is_asked_for(workspace: Path) -> None:
    (workspace / "prefix/lib/test_arm/arm").write_text(MUTE.format(python=sys.executable))
    process = up(workspace)
    try:
        lines = lines_until(process, "now active")
        assert any("/cell/left: configuring -> inactive" in line for line in lines)
        lines_until(process, "/cell/left: activating -> active")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_S)


def test_a_refused_transition_ends_all_with_code_1(workspace: Path) -> None:
    process = up(workspace, "word:=refuse")
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1, output
    assert "refused a transition" in output
    assert "active /cell" not in output


def test_a_node_that_dies_ends_the_launch_with_code_1(workspace: Path) -> None:
    (workspace / "prefix/lib/test_arm/arm").write_text(f"#!{sys.executable}\nraise SystemExit(3)\n")
    process = up(workspace)
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "/cell/left ended with code 3" in output
    assert "shutdown: over" in output


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_our_launch_files_are_read_and_their_commands_are_ours(file: Path) -> None:
    description = read_launch_file(file)
    context = {
        entity.name: entity.default_value or "x"
        for entity in description.entities
        if isinstance(entity, launch_words.DeclareLaunchArgument)
    }
    nodes = [entity for entity in description.entities if isinstance(entity, launch_words.Node)]
    assert nodes
    for node in nodes:
        command, full_name = command_line(node, context | {"namespace": "left"})
        assert command[:2] == [sys.executable, "-m"]
        assert command[2].startswith("robot_rl.hardware.")
        assert full_name == f"/left/{node.name}"
        assert "__ns:=/left" in command


def test_the_real_launch_reads_our_files() -> None:
    pytest.importorskip("launch_ros", reason="PyPI has no launch_ros; this runs where ROS 2 is installed")
    for file in OURS:
        spec: dict = {}
        exec(compile(file.read_text(), str(file), "exec"), spec)
        assert spec["generate_launch_description"]().entities


def test_what_a_runner_can_not_do_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.launch.py"
    file.write_text("from launch.actions import GroupAction\n")
    with pytest.raises(ConfigError, match="GroupAction"):
        read_launch_file(file)
    file.write_text(
        "from launch import LaunchDescription\nfrom launch_ros.actions import Node\n"
        "def generate_launch_description():\n"
        "    return LaunchDescription([Node(package='robot_rl_bridge', executable='brige', name='a')])\n"
    )
    with pytest.raises(ConfigError, match="Did you mean 'bridge'"):
        run_launch_file(file, {}, say=lambda _: None)
    assert "launch" not in sys.modules
    (tmp_path / "a.launch.xml").write_text("<launch/>")
    with pytest.raises(ConfigError, match="XML"):
        read_launch_file(tmp_path / "a.launch.xml")
