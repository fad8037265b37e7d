"""What runs of a launch file, and its lifecycle nodes: transitions are asked and heard over their real services."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from robot_rl.errors import DeployError

from . import launch_words as words

_SERVICE_S = 15.0
# An event of a transition that was done comes this soon, or it was lost: its publisher may know of us later than we of it.
_EVENT_S = 1.0
# transition id -> the state it passes through, lifecycle_msgs/msg/Transition
_THROUGH = {1: "configuring", 2: "cleaningup", 3: "activating", 4: "deactivating"}


@dataclass(eq=False)
class Started:
    """A process of a launch file."""

    action: words.Node
    full_name: str
    process: subprocess.Popen
    is_over: bool = False


@dataclass
class LaunchState:
    """What runs, who listens, what is still to be done."""

    context: dict[str, str]
    say: Callable[[str], None]
    environment: dict[str, str] = field(default_factory=dict)
    started: list[Started] = field(default_factory=list)
    handlers: list[Any] = field(default_factory=list)
    asked: list[words.ChangeState] = field(default_factory=list)
    is_ending: bool = False
    failed: str = ""


class LifecycleDriver:
    """Asks transitions of lifecycle nodes and hears of their states, as launch_ros does."""

    def __init__(self) -> None:
        try:
            import rclpy
            from lifecycle_msgs.msg import TransitionEvent
            from lifecycle_msgs.srv import ChangeState, GetState
        except ModuleNotFoundError as error:
            raise DeployError(
                "robot-rl ros2 up", expected="rclpy and lifecycle_msgs", got=f"no module {error.name!r}",
                hint="Source ROS 2, or pip install -r constraints/ros2-jazzy.txt.",
            ) from error  # fmt: skip
        self._rclpy, self._event, self._service, self._state = rclpy, TransitionEvent, ChangeState, GetState
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        self._node = rclpy.create_node(f"robot_rl_launch_{os.getpid()}", context=self._context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._heard: dict[str, Any] = {}
        self._events: list[tuple[str, str, str]] = []
        self._clients: dict[str, Any] = {}
        self._state_clients: dict[str, Any] = {}
        self._waiting: list[tuple[str, Any, float]] = []
        self._owed: dict[str, tuple[str, float]] = {}
        self._states: list[tuple[str, str, Any]] = []

    def step(self, state: LaunchState) -> list[Any]:
        """Everything that is due now; waits at most 50 ms.

        Returns:
            Entities of the handlers of those transitions that were heard.
        """
        for item in state.started:
            if isinstance(item.action, words.LifecycleNode) and item.full_name not in self._heard:
                self._listen(item.full_name)
        self._executor.spin_once(timeout_sec=0.05)
        self._ask(state)
        self._answers(state)
        self._look_for_lost_events()
        events, self._events = self._events, []
        due: list[Any] = []
        for name, start, goal in events:
            state.say(f"{name}: {start} -> {goal}")
            for handler in list(state.handlers):
                if isinstance(handler, words.OnStateTransition) and self._fits(handler, name, (start, goal), state):
                    due += handler.entities
        return due

    def _listen(self, name: str) -> None:
        def hear(message: Any) -> None:
            start, goal = message.start_state.label, message.goal_state.label
            self._events.append((name, start, goal))
            if start in _THROUGH.values():
                self._owed.pop(name, None)

        self._heard[name] = self._node.create_subscription(self._event, f"{name}/transition_event", hear, 10)
        self._clients[name] = self._node.create_client(self._service, f"{name}/change_state")
        self._state_clients[name] = self._node.create_client(self._state, f"{name}/get_state")

    def _fits(self, handler: Any, name: str, change: tuple[str, str], state: LaunchState) -> bool:
        is_node = any(item.full_name == name and item.action is handler.target_lifecycle_node for item in state.started)
        return is_node and change[1] == handler.goal_state and handler.start_state in (None, change[0])

    def _ask(self, state: LaunchState) -> None:
        later = []
        for event in state.asked:
            names = [item.full_name for item in state.started if event.lifecycle_node_matcher(item.action)]
            ready = [name for name in names if name in self._clients and self._is_ready(name)]
            if len(ready) < len(names):
                later.append(event)
                continue
            for name in ready:
                request = self._service.Request()
                request.transition.id = number = int(event.transition_id)
                if number in _THROUGH:
                    self._owed[name] = (_THROUGH[number], float("inf"))
                answer = self._clients[name].call_async(request)
                self._waiting.append((name, answer, time.monotonic() + _SERVICE_S))
        state.asked[:] = later

    def _is_ready(self, name: str) -> bool:
        # Without a listener the first transition would be missed.
        return (
            bool(self._clients[name].service_is_ready()) and self._node.count_publishers(f"{name}/transition_event") > 0
        )

    def _answers(self, state: LaunchState) -> None:
        for waiting in list(self._waiting):
            name, future, deadline = waiting
            if future.done():
                self._waiting.remove(waiting)
                if future.result().success:
                    if name in self._owed:
                        self._owed[name] = (self._owed[name][0], time.monotonic() + _EVENT_S)
                else:
                    state.failed = state.failed or f"{name} refused a transition; its log says why"
                    state.is_ending = True
            elif time.monotonic() > deadline and not self._clients[name].service_is_ready():
                self._waiting.remove(waiting)
                state.failed = state.failed or f"{name}/change_state did not answer in {_SERVICE_S:g} s"

    def _look_for_lost_events(self) -> None:
        """Ask for the state behind a transition that was done and never told; without it the launch would wait for ever."""
        now_s = time.monotonic()
        for name, (through, deadline_s) in list(self._owed.items()):
            if now_s > deadline_s and self._state_clients[name].service_is_ready():
                del self._owed[name]
                self._states.append((name, through, self._state_clients[name].call_async(self._state.Request())))
        for asked in [asked for asked in self._states if asked[2].done()]:
            self._states.remove(asked)
            self._events.append((asked[0], asked[1], asked[2].result().current_state.label))

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        self._rclpy.try_shutdown(context=self._context)
