"""rti.onnx and policy.onnx made by hand, with answers that are known: no training, no torch.

full: actions = noise + sum of what is seen; warm: actions = guess / 2 + noise / 8 + sum of what is seen, clipped to +-5.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.deploy.onnx_policy import FORMAT
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

HISTORY, HORIZON, EXECUTE, SIZE, MAX_JUMP = 2, 4, 1, 2, 0.5
SPEC = EnvSpec(
    env_id="Toy",
    observation={"proprio": ArraySpec("proprio", (3,))},
    action=ArraySpec("action", (SIZE,), meanings=("x", "gripper")),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "base", "none", "0 closed .. 4 open", "toy"),
    joint_names=("a", "b", "c"), robot="none", control_hz=20.0, max_episode_steps=50,
)  # fmt: skip
# The gripper goes from 0 to 4; in a guess it is a tenth of the way from the middle.
TWO = {"at": 1, "middle": 2.0, "starts": [1.8, 2.2], "ends": [0.0, 4.0]}
FRAME = {"proprio": {"offset": [1.0, 0.0, 0.0], "gain": [10.0, 1.0, 1.0], "limit": [5.0, 5.0, 5.0]}}


def write_files(folder: Path, *, draws: int = 1, **rti: Any) -> Path:
    """rti.onnx with policy.onnx beside it; `rti` changes what its metadata says; draws=0: it reads no noise."""
    full = folder / "policy.onnx"
    _save(full, is_warm=False, draws=1, more={})
    told = {
        "settings": {"level": 21, "max_jump": MAX_JUMP, "levels": [21, 1]}, "noise_draws": draws, "discrete": [TWO],
        "frame": FRAME, "policy_sha256": hashlib.sha256(full.read_bytes()).hexdigest(),
    }  # fmt: skip
    _save(folder / "rti.onnx", is_warm=True, draws=draws, more={"rti": told | rti})
    return folder / "rti.onnx"


def _save(path: Path, *, is_warm: bool, draws: int, more: dict[str, Any]) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shapes = {"proprio": ["n", HISTORY, 3], "noise": ["n", 1, HORIZON, SIZE], "guess": ["n", HORIZON, SIZE]}
    names = [name for name in shapes if (name != "guess" or is_warm) and (name != "noise" or draws)]
    values = {"axes": np.array([1, 2]), "axis": np.array([1]), "low": np.float32(-5), "high": np.float32(5)}
    values |= {"half": np.float32(0.5), "eighth": np.float32(0.125), "all": np.float32(1.0)}
    nodes = [helper.make_node("ReduceSum", ["proprio", "axes"], ["seen"], keepdims=1)]
    parts = ["seen"]
    if draws:
        nodes += [
            helper.make_node("Squeeze", ["noise", "axis"], ["plain"]),
            helper.make_node("Mul", ["plain", "eighth" if is_warm else "all"], ["drawn"]),
        ]
        parts.append("drawn")
    if is_warm:
        nodes.append(helper.make_node("Mul", ["guess", "half"], ["halved"]))
        parts.append("halved")
    nodes += [
        helper.make_node("Sum", parts, ["sum"]),
        helper.make_node("Clip", ["sum", "low", "high"], ["actions"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in names]
    output = helper.make_tensor_value_info("actions", TensorProto.FLOAT, ["n", HORIZON, SIZE])
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in values.items()]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(nodes, "toy", inputs, [output], [weight for weight in weights if weight.name in used])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = {"observation_keys": ["proprio"], "history": HISTORY, "horizon": HORIZON, "execute": EXECUTE}
    metadata = {
        "spec": SPEC.to_json(), "joint_names": list(SPEC.joint_names), "config": config, "policy": {},
        "sampling": "rti" if is_warm else "full", "noise": {"rule": "seeded", "seed": 0, "shape": [1, HORIZON, SIZE]},
        "checkpoint": "none",
    } | more  # fmt: skip
    helper.set_model_props(model, {"format": FORMAT} | {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save_model(model, str(path))


def seen_of(*newest: tuple[float, float, float]) -> Observation:
    """An observation of so many envs; the older frame is zero."""
    proprio = np.zeros((len(newest), HISTORY, 3), np.float32)
    proprio[:, -1] = newest
    return Observation(proprio=proprio)


def noise_of(rows: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 (rows, 1, HORIZON, SIZE)."""
    return np.random.default_rng(seed).standard_normal((rows, 1, HORIZON, SIZE), dtype=np.float32)


def full_by_hand(seen: Observation, noise: np.ndarray) -> np.ndarray:
    """What policy.onnx answers."""
    return np.clip(noise[:, 0] + seen.proprio.sum(axis=(1, 2))[:, None, None], -5, 5)


def warm_by_hand(seen: Observation, noise: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """What RTI answers that starts from `rest` (N, HORIZON, SIZE)."""
    guess = rest.copy()
    guess[..., 1] = np.where(rest[..., 1] >= 2.0, 2.2, 1.8)
    out = np.clip(guess / 2 + noise[:, 0] / 8 + seen.proprio.sum(axis=(1, 2))[:, None, None], -5, 5)
    out[..., 1] = np.where(out[..., 1] >= 2.0, 4.0, 0.0)
    return out


def rest_of(actions: np.ndarray, executed: int = EXECUTE) -> np.ndarray:
    """(N, HORIZON, SIZE): moved on, its last action repeated."""
    return np.concatenate([actions[:, executed:], np.repeat(actions[:, -1:], executed, axis=1)], axis=1)
