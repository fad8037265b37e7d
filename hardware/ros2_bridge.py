"""The bridge: a lifecycle node that runs an exported or served policy on a robot behind ROS 2 topics.

configure   load and warm the policy, connect to the robot's topics, compare both; nothing moves
activate    episodes may be started (~/start_episode), or one starts at once (parameter start_on_activate)
deactivate  the episode ends, the robot decelerates within its limits and holds
cleanup     everything is taken down

Services (std_srvs/Trigger): ~/start_episode, ~/stop_episode, ~/mark_success, ~/emergency_stop (latched), ~/release (a person
allows motion again), ~/reset (forgets the outcome of the last episode). /diagnostics comes once a second.
The control loop runs in a thread of this process, the policy and the watchdog in processes of their own.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.execution import ChunkRule, Execution
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.loop_parts import LoopConfig
from robot_rl.deploy.loop_policy import source_of
from robot_rl.deploy.loop_summary import EpisodeSummary
from robot_rl.deploy.reasons import as_text
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.station import Station, StationConfig
from robot_rl.deploy.tensorrt_policy import Runtime
from robot_rl.errors import DeployError, RobotRlError

from .ros2_diagnostics import Condition, diagnostics
from .ros2_robot import Ros2Robot, Ros2RobotConfig
from .ros2_signals import init_until_signal

DIAGNOSTICS_HZ = 1.0
_END_S = 10.0
_CHOICES = {
    "runtime": [kind.value for kind in Runtime],
    "execution": [kind.value for kind in Execution if kind is not Execution.naive],
}
_LEAST = {"max_steps": 0, "first_seed": 0, "chunks_every": 0, "blend_steps": 0, "threads": 1}
_WATCHDOG = "robot_rl.hardware.ros2_robot:ros2_stop"
# name -> default, what it is; all are read at configure and fixed while the node is configured
PARAMETERS: dict[str, tuple[Any, str]] = {
    "policy": ("", "exported policy: an .onnx file or a run of export, or ws://host:port of robot-rl serve"),
    "robot": ("", "robot card: a name or a YAML file"),
    "log_folder": ("black_box", "for the last seconds of stops; empty: none"),
    "runtime": ("onnx", "what runs the file: onnx, openvino, tensorrt or auto, which measures first"),
    "provider": ("CPUExecutionProvider", "execution provider of onnxruntime"),
    "threads": (1, "of onnxruntime or OpenVINO, 1 or more"),
    "execution": ("async", "what is played while the policy computes: async, sync, ensemble or rtc (docs/chunks.md)"),
    "chunks_every": (0, "actions between two questions; 0: as execution has it"),
    "blend_steps": (0, "actions over which a new chunk takes over, async and rtc"),
    "max_steps": (0, "actions of an episode; 0: as the policy's spec has it"),
    "first_seed": (0, "of the policy's noise; the next episode takes the next one"),
    "points_camera": (
        "",
        "camera whose hand-eye calibration brings clouds into the base frame; empty: they come in it",
    ),
    "delta_gain": (1.0, "longer deltas where readings come late, 1 to 2 (docs/ros2.md)"),
    "start_on_activate": (False, "whether an episode starts when motion is enabled"),
    "watchdog": (True, "a process that stops the robot when this one falls silent"),
}


def wrong(name: str, value: Any) -> str:
    """What is wrong with the value of a parameter; "" when nothing is."""
    wanted = type(PARAMETERS[name][0])
    if type(value) is not wanted:
        return f"expected {wanted.__name__}, got {value!r}"
    if value not in _CHOICES.get(name, [value]):
        return f"expected one of {', '.join(_CHOICES[name])}, got {value!r}"
    if name in _LEAST and value < _LEAST[name]:
        return f"expected {_LEAST[name]} or more, got {value}"
    return ""


class Bridge(LifecycleNode):  # type: ignore[misc]  # rclpy has no types
    """See the text of this module."""

    def __init__(self) -> None:
        super().__init__("robot_rl_bridge")
        for name, (default, text) in PARAMETERS.items():
            self.declare_parameter(name, default, ParameterDescriptor(description=text))
        self.add_on_set_parameters_callback(self._check_parameters)
        self._station: Station | None = None
        self._robot: Ros2Robot | None = None
        self._thread: threading.Thread | None = None
        self._is_active, self._episodes = False, 0
        self._last: StepRecord | None = None
        self._summary: EpisodeSummary | None = None
        self._problem = ""
        group = ReentrantCallbackGroup()  # an e-stop is not queued behind a slow service
        calls: dict[str, Callable[[], str]] = {
            "start_episode": self._start_episode, "stop_episode": self._stop_episode, "mark_success": self._mark_success,
            "emergency_stop": self._emergency_stop, "release": self._release, "reset": self._reset,
        }  # fmt: skip
        for name, call in calls.items():
            self.create_service(Trigger, f"~/{name}", self._answered(name, call), callback_group=group)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0 / DIAGNOSTICS_HZ, self._report, callback_group=group)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _check_parameters(self, parameters: Sequence[Any]) -> SetParametersResult:
        """Refuse a parameter that makes no sense, or that can't change while the node is configured."""
        for parameter in parameters:
            if parameter.name not in PARAMETERS:
                continue
            why = (
                "the node is configured; clean it up first"
                if self._station is not None
                else wrong(parameter.name, parameter.value)
            )
            if why:
                return SetParametersResult(successful=False, reason=f"{parameter.name}: {why}")
        return SetParametersResult(successful=True)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Policy loaded and warm, robot connected, both compared. Nothing moves."""
        del state
        try:
            self._station = self._made()
        except (RobotRlError, OSError) as error:
            self._problem = str(error)
            self.get_logger().error(f"configure: {error}")
            return TransitionCallbackReturn.FAILURE
        self._problem = ""
        self.get_logger().info(f"{self._value('policy')} is warm and fits {self._value('robot')}")
        return TransitionCallbackReturn.SUCCESS

    def _made(self) -> Station:
        for name in PARAMETERS:  # those of a launch file were not set, but there from the start
            if why := wrong(name, self._value(name)):
                raise DeployError(f"parameter {name!r}", expected=PARAMETERS[name][1], got=why, hint="Correct it.")
            if name in ("policy", "robot") and not self._value(name):
                raise DeployError(
                    f"parameter {name!r}", expected=PARAMETERS[name][1], got="none", hint=f"-p {name}:=..."
                )
        rule = ChunkRule(every=int(self._value("chunks_every")) or None, blend_steps=int(self._value("blend_steps")))
        loop = LoopConfig(execution=Execution(self._value("execution")), chunks=rule)
        source = source_of(
            str(self._value("policy")), loop, runtime=Runtime(self._value("runtime")),
            provider=str(self._value("provider")), threads=int(self._value("threads")),
        )  # fmt: skip
        card, policy = self._card(), ProcessPolicy(source)
        spec = policy.start().spec
        reach = Ros2RobotConfig(node=f"{self.get_name()}_robot", points_camera=str(self._value("points_camera")))
        self._robot = Ros2Robot(reach, card=card, spec=spec)
        watched = {"card": str(self._value("robot")), "namespace": self._namespace}
        config = StationConfig(
            policy=source, loop=loop, log_folder=str(self._value("log_folder")), delta_gain=float(self._value("delta_gain")),
            watchdog=_WATCHDOG if self._value("watchdog") else "", watchdog_config=watched,
        )  # fmt: skip
        return Station(self._robot, spec, config, observer=self._see, policy=policy)

    @property
    def _namespace(self) -> str:
        return str(self.get_namespace()).strip("/")

    def _card(self) -> RobotCard:
        """The card, its topics below this node's namespace."""
        card = load_robot_card(str(self._value("robot")))
        if card.ros2 is None or not self._namespace:
            return card
        return replace(card, ros2=replace(card.ros2, namespace=self._namespace))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Motion is enabled."""
        self._is_active = True
        if self._value("start_on_activate"):
            try:
                self._start_episode()
            except RobotRlError as error:
                self._is_active, self._problem = False, str(error)
                self.get_logger().error(f"activate: {error}")
                return TransitionCallbackReturn.FAILURE
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the episode within the limits, then hold."""
        self._is_active = False
        self._end_episode("deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold the robot and take everything down."""
        del state
        self._take_down()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state."""
        del state
        self._take_down()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold the robot whatever happened, and go back to unconfigured."""
        del state
        if self._robot is not None:
            self._robot.stop()
        self._take_down()
        return TransitionCallbackReturn.SUCCESS

    def _take_down(self) -> None:
        self._is_active = False
        self._end_episode("shut down")
        station, self._station, self._robot = self._station, None, None
        if station is not None:
            station.close()

    def _answered(self, name: str, call: Callable[[], str]) -> Callable[[Any, Any], Any]:
        def answer(_request: Any, response: Any) -> Any:
            try:
                response.message, response.success = call(), True
            except RobotRlError as error:
                response.message, response.success = str(error), False
            self.get_logger().info(f"{name}: {response.message}")
            return response

        return answer

    def _require(self, *, active: bool = False) -> Station:
        if self._station is None or (active and not self._is_active):
            raise DeployError(
                "bridge", expected="an active node" if active else "a configured node",
                got="inactive" if self._station is not None else "unconfigured", hint="ros2 lifecycle set <node> ...",
            )  # fmt: skip
        return self._station

    @property
    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start_episode(self) -> str:
        station = self._require(active=True)
        if station.loop.latched:
            raise DeployError(
                "episode", expected="a robot that may move", got=f"stopped: {as_text(station.loop.latched)}",
                hint="Look at the robot, then call ~/release.",
            )  # fmt: skip
        if self._is_running:
            raise DeployError("episode", expected="none", got="one that runs", hint="Stop it first.")
        seed = int(self._value("first_seed")) + self._episodes
        self._episodes += 1
        self._thread = threading.Thread(target=self._run, args=(station, seed), name="control loop")
        self._thread.start()
        return f"episode with seed {seed}"

    def _run(self, station: Station, seed: int) -> None:
        steps = int(self._value("max_steps"))
        try:
            self._summary = station.loop.run_episode(seed=seed, max_steps=steps or None)
            self.get_logger().info(f"episode {seed}: {json.dumps(self._summary.to_json())}")
        except RobotRlError as error:
            self._problem = str(error)
            self.get_logger().error(f"episode {seed}: {error}")

    def _stop_episode(self) -> str:
        self._require()
        return self._end_episode("stopped")

    def _end_episode(self, word: str) -> str:
        if not self._is_running or self._station is None or self._thread is None:
            return "no episode runs"
        self._station.loop.end_episode(word)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self._station.loop.stop()
            self._thread.join(_END_S)
        return f"ended by {self._summary.ended_by}" if self._summary is not None else "ended"

    def _mark_success(self) -> str:
        station = self._require()
        if not self._is_running:
            raise DeployError("success", expected="an episode that runs", got="none", hint="Start one.")
        station.loop.mark_success()
        return "marked"

    def _emergency_stop(self) -> str:
        self._require().loop.stop(Reason.emergency)
        return "stopped; ~/release allows motion again"

    def _release(self) -> str:
        station = self._require()
        if self._is_running:
            raise DeployError("release", expected="no episode", got="one that runs", hint="It ends by itself at rest.")
        station.loop.release()
        return "the robot may move"

    def _reset(self) -> str:
        self._require()
        if self._is_running:
            raise DeployError("reset", expected="no episode", got="one that runs", hint="Stop it first.")
        self._summary, self._problem, self._last = None, "", None
        return "ready"

    def _see(self, record: StepRecord) -> None:
        self._last = record

    def _report(self) -> None:
        latched = Reason.none if self._station is None else self._station.loop.latched
        word = "running" if self._is_running else "active" if self._is_active else "ready"
        condition = Condition(
            word if self._station is not None else "unconfigured", latched, self._problem, self._last, self._summary
        )
        stamp = self.get_clock().now().to_msg()
        name, robot = self.get_fully_qualified_name(), str(self._value("robot"))
        self._diagnostics.publish(diagnostics(condition, name=name, robot=robot, stamp=stamp))


def main(words: Sequence[str] | None = None) -> int:
    """Run the node until a signal comes; the robot holds before anything is torn down."""
    ended = init_until_signal(words)
    bridge = Bridge()
    executor = MultiThreadedExecutor(num_threads=3)
    executor.add_node(bridge)
    try:
        while not ended.is_set():
            executor.spin_once(timeout_sec=0.1)
    finally:
        bridge._take_down()
        executor.shutdown(timeout_sec=2.0)
        bridge.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
