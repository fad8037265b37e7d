"""The simulated arm as a ROS 2 node: the topics of a real one, at its own rate, as late and as noisy as wanted.

    python -m robot_rl.hardware.sim_robot_node --robot sim_panda --env pick_cube --latency-s 0.02 --jitter-s 0.005

The same words are ROS parameters (`--ros-args -p latency_s:=0.02`), and those win. Topics are those of the robot card:
JointState of all joints, PoseStamped of the tool, `scene_state` (Float64MultiArray) where the card has a stream "state",
JPEG CompressedImage of its cameras. Commands are of the card's type. Beside them:

    reset          std_srvs/Trigger: starts the episode of parameter `seed`, which then counts up by one; with the parameter
                   `time_limit` false it has no limit but success
    success        Bool: whether the task's signal came in this episode; stays until the next reset
    episode_state  Float64MultiArray [resets, seed, control periods since the first command, success, is over]

Those three are the operator's, so they are neither late nor lost. Every other message takes latency_s -+ jitter_s, commands
too (command_latency_s, command_jitter_s in place of them). When commands end for thresholds.command_s, the arm holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from robot_rl.deploy.realtime import RealtimeConfig, as_text, realtime
from robot_rl.deploy.schedule import MonotonicClock, Schedule
from robot_rl.errors import ConfigError, DeployError, RobotRlError

from .delay_line import Channel, Delay, DelayLine
from .ros2_link import message_type
from .ros2_messages import number_of
from .ros2_signals import init_until_signal
from .sim_messages import IMAGE, STREAMS, Noise, SimMessages, goal_of
from .sim_robot import SimRobot, SimRobotConfig

NODE = "sim_robot"
_RESET_S = 20.0


@dataclass(frozen=True)
class SimNodeConfig:
    """What the node is; each field is a ROS parameter and a word of the command line.

    Attributes:
        robot: a robot card.
        env: a name of configs/env.
        options: JSON, fields of the environment in place of those of its file.
        seed: of the next episode.
        rate_hz: of every topic; at most that of physics.
        latency_s, jitter_s, drop: see delay_line.Delay.
        command_latency_s, command_jitter_s: for commands; negative: as the others.
        noise_rad, noise_m, noise_state: standard deviations, added to joints, to the tool's place, and to scene_state.
        fault_seed: of noise, jitter and losses.
        fifo_priority: SCHED_FIFO priority of its threads, as the controller of a real arm has; 0: the system's usual
            scheduling. What was granted is logged.
    """

    robot: str = "sim_panda"
    env: str = "pick_cube"
    options: str = "{}"
    seed: int = 0
    rate_hz: float = 100.0
    latency_s: float = 0.0
    jitter_s: float = 0.0
    drop: float = 0.0
    command_latency_s: float = -1.0
    command_jitter_s: float = -1.0
    noise_rad: float = 0.0
    noise_m: float = 0.0
    noise_state: float = 0.0
    fault_seed: int = 0
    fifo_priority: int = 50

    @property
    def out(self) -> Delay:
        """Of what the robot says."""
        return Delay(self.latency_s, self.jitter_s, self.drop)

    @property
    def back(self) -> Delay:
        """Of what it is told."""
        latency_s = self.latency_s if self.command_latency_s < 0 else self.command_latency_s
        return Delay(latency_s, self.jitter_s if self.command_jitter_s < 0 else self.command_jitter_s, self.drop)


class SimRobotNode:
    """A node around a SimRobot: physics in one thread, late messages in another, ROS callbacks in the executor's.

    Args:
        node: an rclpy node.
        config: see SimNodeConfig.

    Raises:
        RobotRlError: no such card or environment, a card without topics, or numbers that make no sense.
    """

    def __init__(self, node: Any, config: SimNodeConfig) -> None:
        self.node, self.config = node, config
        options, self._delays = _json_object(config.options), (config.out, config.back)
        robot = SimRobot(SimRobotConfig(card=config.robot, env=config.env, options=options, seed=config.seed))
        self.robot, self.resets = robot, 0
        if robot.card.ros2 is None:
            raise ConfigError(
                f"robot {robot.card.name!r}", expected="a card with topics", got="none", hint="Add ros2:."
            )
        noise = Noise(config.noise_rad, config.noise_m, config.noise_state, seed=config.fault_seed)
        self._maker = SimMessages(robot.spec.joint_names, robot.card.ros2.base_frame, noise, clock=node.get_clock())
        self._line, self._stop = DelayLine(priority=self.priority), threading.Event()
        self._loop = Schedule(min(config.rate_hz, 1 / robot.step_s), clock=MonotonicClock())
        self.failure: BaseException | None = None
        robot.connect()
        self._publishers = self._advertise()
        self._listen()
        self._thread = threading.Thread(target=self._run, name="physics", daemon=True)

    @contextmanager
    def priority(self) -> Iterator[None]:
        """Real-time scheduling of the calling thread, where it is granted."""
        wish = RealtimeConfig(freeze_gc=False, fifo_priority=self.config.fifo_priority or None, lock_memory=False)
        with realtime(wish) as grants:
            self.node.get_logger().info(f"{threading.current_thread().name}: {as_text(grants)}")
            yield

    def start(self) -> None:
        """Let time pass."""
        self._thread.start()

    def close(self) -> None:
        """Stop the threads and release the simulator; also twice."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        self._line.close()
        self.robot.close()

    def facts(self) -> dict[str, Any]:
        """How well it kept real time, and what was lost, as JSON types."""
        lost = {name: channel.lost for name, channel in self._channels.items() if channel.delay.drop}
        return {
            "physics": self._loop.jitter.to_json(), "left_out_s": self.robot.lost_s, "holds": self.robot.holds,
            "unreachable": self.robot.unreachable, "resets": self.resets, "lost_messages": lost,
        }  # fmt: skip

    def _advertise(self) -> dict[str, Any]:
        from rclpy.qos import QoSProfile
        from std_msgs.msg import Bool, Float64MultiArray

        card = self.robot.card.ros2
        assert card is not None
        out, self._channels = {}, {}
        for number, (stream, topic) in enumerate(card.inputs.items()):
            if stream not in STREAMS and not stream.startswith(IMAGE):
                continue
            # Reliable publishers match both kinds of subscribers.
            out[stream] = self.node.create_publisher(
                message_type(topic.type), _in(card, topic.topic), QoSProfile(depth=10)
            )
            self._channels[stream] = Channel(self._delays[0], seed=self.config.fault_seed * 1000 + number)
        out["success"] = self.node.create_publisher(Bool, _in(card, "success"), QoSProfile(depth=10))
        out["episode"] = self.node.create_publisher(Float64MultiArray, _in(card, "episode_state"), QoSProfile(depth=10))
        return out

    def _listen(self) -> None:
        from rclpy.qos import QoSProfile, QoSReliabilityPolicy
        from std_srvs.srv import Trigger

        card = self.robot.card.ros2
        assert card is not None
        for number, (channel, topic) in enumerate(card.outputs.items()):
            self._channels[channel] = Channel(self._delays[1], seed=self.config.fault_seed * 1000 + 500 + number)
            qos = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.BEST_EFFORT)
            callback = self._later(channel)
            self.node.create_subscription(message_type(topic.type), _in(card, topic.topic), callback, qos)
        self.node.create_service(Trigger, _in(card, "reset"), self._reset)
        self.node.declare_parameter("time_limit", True)

    def _later(self, channel: str) -> Callable[[Any], None]:
        def arrived(message: Any) -> None:
            due_s = self._channels[channel].arrival_s(time.monotonic())
            self._line.put(due_s, lambda: self._act(channel, message))

        return arrived

    def _act(self, channel: str, message: Any) -> None:
        try:
            if channel == "gripper":
                self.robot.command_gripper(number_of(message))
            else:
                self.robot.command(goal_of(message, self.robot.card.joints, frame=self._maker.frame))
        except DeployError as error:
            self.node.get_logger().warning(str(error), throttle_duration_sec=1.0)

    def _reset(self, _request: Any, response: Any) -> Any:
        from rclpy.parameter import Parameter

        seed = int(self.node.get_parameter("seed").value)
        try:
            self.robot.time_limit = bool(self.node.get_parameter("time_limit").value)
            self.robot.reset(seed)
        except RobotRlError as error:
            response.success, response.message = False, str(error)
            return response
        self.resets += 1
        self.node.set_parameters([Parameter("seed", Parameter.Type.INTEGER, seed + 1)])
        response.success, response.message = True, f"episode of seed {seed}"
        return response

    def _run(self) -> None:
        try:
            with self.priority():
                while not self._stop.is_set():
                    self._loop.wait()
                    stamp_s, state = self.robot.snapshot()
                    self._tell(stamp_s, state)
                    if self._line.failure is not None:
                        raise self._line.failure
        except BaseException as error:  # the executor's thread ends the node
            self.failure = error

    def _tell(self, stamp_s: float, state: Any) -> None:
        from std_msgs.msg import Bool, Float64MultiArray

        now_s, messages = time.monotonic(), self._maker.make(state, stamp_s=stamp_s, streams=self._publishers)
        for stream, message in messages.items():
            publisher = self._publishers[stream]
            self._line.put(self._channels[stream].arrival_s(now_s), partial(publisher.publish, message))
        episode = self.robot.episode()
        row = [self.resets, episode.seed, episode.steps, episode.success, episode.is_over]
        self._publishers["success"].publish(Bool(data=episode.success))
        self._publishers["episode"].publish(Float64MultiArray(data=[float(value) for value in row]))


def _in(card: Any, topic: str) -> str:
    return topic if topic.startswith("/") or not card.namespace else f"/{card.namespace.strip('/')}/{topic}"


def _json_object(text: str) -> dict[str, Any]:
    try:
        plain = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError("options", expected="a JSON object", got=text, hint=str(error)) from error
    if not isinstance(plain, dict):
        raise ConfigError("options", expected="a JSON object", got=text, hint='For example {"fast_cpu": true}.')
    return plain


def read_config(node: Any, words: Sequence[str]) -> SimNodeConfig:
    """What the command line says, and over it what the node's parameters say.

    Raises:
        ConfigError: a value of the wrong type.
    """
    from rcl_interfaces.msg import ParameterDescriptor

    parser = argparse.ArgumentParser(
        prog="sim_robot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for entry in fields(SimNodeConfig):
        flags = [f"--{entry.name.replace('_', '-')}"] + ["--card"] * (entry.name == "robot")
        parser.add_argument(*flags, dest=entry.name, type=type(entry.default), default=entry.default)
    values = vars(parser.parse_args(list(words)))
    for name, value in values.items():
        node.declare_parameter(name, value, ParameterDescriptor(dynamic_typing=True))
        given = node.get_parameter(name).value
        try:
            values[name] = type(value)(given)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"parameter {name}", expected=type(value).__name__, got=repr(given), hint="Correct it."
            ) from error
    return SimNodeConfig(**values)


def main(words: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Args:
        words: arguments behind the program name, `--ros-args` among them; None: those of the process.

    Returns:
        0, or 1 after an error.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.utilities import remove_ros_args

    words = list(sys.argv[1:] if words is None else words)
    ended = init_until_signal(words)
    node = rclpy.create_node(NODE)
    robot: SimRobotNode | None = None
    try:
        robot = SimRobotNode(node, read_config(node, remove_ros_args(["sim_robot", *words])[1:]))
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        robot.start()
        node.get_logger().info(f"simulated {robot.robot.card.name} in {robot.robot.spec.env_id} is there")
        with robot.priority():
            while robot.failure is None and not ended.is_set():
                executor.spin_once(timeout_sec=0.2)
        if robot.failure is not None:
            raise robot.failure
        return 0
    except RobotRlError as error:
        node.get_logger().error(str(error))
        return 1
    finally:
        if robot is not None:
            robot.close()
            sys.stdout.write(json.dumps(robot.facts()) + "\n")
            sys.stdout.flush()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
