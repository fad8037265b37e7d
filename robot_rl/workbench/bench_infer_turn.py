"""`bench infer`: what a robot's turn costs around the network: history, checks, noise, copies, the safety layer.

`graph` is the call of the exported graph alone, inputs at hand; `turn` is all that a control loop does for one decision in
its own process: take the newest frame into the history (with the checks of shape and finiteness), stack it, draw the noise,
run the same graph, and let the safety layer of a 7-joint arm judge the command. The issue wants the turn within 1.15 times the
graph for the large net, and within 0.3 ms of it for the small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.deploy.chunking import ObservationHistory
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.deploy.safety import Measured, SafetyFilter, SafetyLimits
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation, Reading
from robot_rl.workbench.bench_safety import SEVEN_JOINTS

GRAPH, TURN = "graph", "turn"
# As the rate of the turn over that of the graph.
TURN_TARGETS = {"unet 65 M": 1 / 1.15}
PERIOD_S, JOINTS = 0.05, len(SEVEN_JOINTS.names)


def turn_calls(
    file: OnnxPolicy, spec: EnvSpec, observation: Observation, noise: Float32[Array, "1 draws Tp A"]
) -> dict[str, Callable[[], Array]]:
    """The graph alone and the whole turn of a file, by name; both return the chunk, float32 (1, Tp, A).

    Args:
        file: opened by any runtime.
        spec: of the policy.
        observation: of one env, numpy; its last frame is the reading of every turn.
        noise: of the graph alone; the turn draws its own, another one for every decision.
    """
    feed: dict[str, Any] = file.inputs(observation) | {"noise": noise}

    def graph() -> Array:
        (actions,) = file.session.run(["actions"], feed)
        return np.asarray(actions)

    frames = {key: value[0, -1] for key, value in observation.arrays().items()}
    reading = Reading(frames, {}, np.zeros(JOINTS))
    history = ObservationHistory(spec, keys=file.config.observation_keys, history=file.config.history)
    layer = SafetyFilter(SafetyLimits(SEVEN_JOINTS), np.zeros(JOINTS))
    source, decided = file.noise(), [0]

    def turn() -> Array:
        history.push(reading)
        drawn = source.draw([0], [decided[0]])
        decided[0] += 1
        actions = file.act(history.observation(), drawn).actions
        layer.step(np.resize(actions[0, 0], JOINTS), PERIOD_S, Measured(np.zeros(JOINTS), age_s=0.01))
        return actions

    return {GRAPH: graph, TURN: turn}
