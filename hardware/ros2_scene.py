"""Who resets and judges a robot behind topics: the services and topics of sim_robot_node.py, or a node that has the same.

`reset` sets the parameter `seed` of that node, calls its service `reset` (std_srvs/Trigger), and waits until `episode_state`
shows the new episode. Its parameter `time_limit`, where it has one, says whether it judges for as long as a policy may take,
or as long as the episode lasts: people are slower. A node of its own in a thread of its own: it does not share an executor
with the control loop.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from robot_rl.deploy.robot_card import RobotCard
from robot_rl.errors import DeployError

from .sim_robot import EpisodeState

log = logging.getLogger(__name__)

_FIELDS = 5
_JOIN_S = 5.0


@dataclass(frozen=True)
class Ros2SceneConfig:
    """Names and times.

    Attributes:
        node: that resets, relative to the card's namespace.
        domain_id: null: ROS_DOMAIN_ID of the environment.
        wait_s: for its services, at the start.
        reset_s: for one reset. The loop that asks for it does not turn meanwhile; robots hold by their own means then.
    """

    node: str = "sim_robot"
    domain_id: int | None = None
    wait_s: float = 30.0
    reset_s: float = 10.0


class Ros2Scene:
    """See the text of this module.

    Args:
        config: see Ros2SceneConfig.
        card: of the robot, for its namespace.

    Raises:
        DeployError: the services are not there in time, or rclpy is not installed.
    """

    def __init__(self, config: Ros2SceneConfig, *, card: RobotCard) -> None:
        try:
            import rclpy
            from rclpy.executors import SingleThreadedExecutor
            from rclpy.qos import QoSProfile
            from std_msgs.msg import Float64MultiArray
            from std_srvs.srv import Trigger
        except ImportError as error:
            raise DeployError(
                "driver ros2",
                expected="rclpy",
                got=str(error),
                hint="pip install -r constraints/ros2-jazzy.txt, or source ROS 2.",
            ) from error
        self.config, self._row, self._changed = config, [0.0] * _FIELDS, threading.Condition()
        self.time_limit = True  # False: people are slower than the node's limit
        namespace = "" if card.ros2 is None or not card.ros2.namespace else f"/{card.ros2.namespace.strip('/')}"
        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[], domain_id=config.domain_id)
        self._node = rclpy.create_node("robot_rl_scene", context=self._context, namespace=namespace or None)
        self._node.create_subscription(Float64MultiArray, "episode_state", self._heard, QoSProfile(depth=10))
        self._trigger = self._node.create_client(Trigger, "reset")
        self._parameters = _parameter_client(self._node, config.node)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="scene", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # as in ros2_link.py
        for client in (self._trigger, self._parameters):
            if not client.wait_for_service(timeout_sec=config.wait_s):
                name = client.srv_name
                self.close()
                raise DeployError(
                    f"service {name!r}", expected=f"it within {config.wait_s:g} s", got="nothing",
                    hint="Start the node first; the same ROS_DOMAIN_ID and discovery range on both sides.",
                )  # fmt: skip

    def reset(self, seed: int) -> None:
        """Start the episode of a seed.

        Raises:
            DeployError: the node refuses, or does not answer in time.
        """
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter
        from std_srvs.srv import Trigger

        deadline_s = time.monotonic() + self.config.reset_s
        # Who waits for a node that is gone keeps a loop from turning.
        if not (self._trigger.service_is_ready() and self._parameters.service_is_ready()):
            raise self._refused(seed, f"nobody has the service {self._trigger.srv_name!r} any more")
        wanted = (
            Parameter("seed", Parameter.Type.INTEGER, seed),
            Parameter("time_limit", Parameter.Type.BOOL, self.time_limit),
        )
        request = SetParameters.Request(parameters=[parameter.to_parameter_msg() for parameter in wanted])
        of_seed, of_limit = self._call(self._parameters, request, deadline_s).results
        if not of_seed.successful:
            raise self._refused(seed, of_seed.reason)
        if not (of_limit.successful or self.time_limit):
            log.warning("%s: %s; its own limit, if it has one, ends its judgement", self.config.node, of_limit.reason)
        before = self._row[0]
        answer = self._call(self._trigger, Trigger.Request(), deadline_s)
        if not answer.success:
            raise self._refused(seed, answer.message)
        with self._changed:
            is_new = self._changed.wait_for(
                lambda: 0 < self._row[0] != before and int(self._row[1]) == seed, max(deadline_s - time.monotonic(), 0)
            )
        if not is_new:
            raise self._refused(seed, f"no new episode_state, only {self._row}")

    def episode(self) -> EpisodeState:
        """As the node told it last."""
        _, seed, steps, success, is_over = self._row
        return EpisodeState(int(seed), int(steps), bool(success), bool(is_over))

    def close(self) -> None:
        """End the node; also twice."""
        atexit.unregister(self.close)
        self._executor.shutdown(timeout_sec=_JOIN_S)
        with contextlib.suppress(Exception):  # destroyed before
            self._node.destroy_node()
        self._context.try_shutdown()
        self._thread.join(_JOIN_S)

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException, ShutdownException

        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            self._executor.spin()

    def _heard(self, message: Any) -> None:
        row = list(message.data)
        if len(row) == _FIELDS:
            with self._changed:
                self._row = row
                self._changed.notify_all()

    def _call(self, client: Any, request: Any, deadline_s: float) -> Any:
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _future: done.set())
        if not done.wait(max(deadline_s - time.monotonic(), 0.0)):
            raise DeployError(
                f"service {client.srv_name!r}", expected=f"an answer within {self.config.reset_s:g} s", got="silence",
                hint="Is the node still running?",
            )  # fmt: skip
        return future.result()

    def _refused(self, seed: int, why: str) -> DeployError:
        return DeployError(f"reset to seed {seed}", expected="a new episode", got=why, hint="See the node's log.")


def _parameter_client(node: Any, name: str) -> Any:
    from rcl_interfaces.srv import SetParameters

    return node.create_client(SetParameters, f"{name}/set_parameters")
