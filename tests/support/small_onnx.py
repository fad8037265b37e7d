"""Exported policies without training: a graph that gives the same actions whatever it sees, and the metadata of `export`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from robot_rl.deploy.onnx_policy import FORMAT
from robot_rl.specs import EnvSpec


def write_policy(path: Path, spec: EnvSpec, actions: np.ndarray, *, execute: int = 1, draws: int = 0) -> Path:
    """An .onnx file whose chunk is `actions`, float32 (Tp, A), for observations of `spec`'s proprio, history 1.

    With `draws` of noise and the observation in it times zero, so that every runtime takes it, at any batch.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size, (horizon, width) = spec.observation["proprio"].size, actions.shape
    inputs = [
        helper.make_tensor_value_info("proprio", TensorProto.FLOAT, ["batch", 1, size]),
        helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["batch", draws, horizon, width]),
    ]
    constant = numpy_helper.from_array(actions[None].astype(np.float32), "constant")
    nodes, parts = [helper.make_node("Identity", ["constant"], ["actions"])], [constant]
    if draws:
        axes = {"draw": np.array([1]), "all": np.array([1, 2]), "zero": np.float32(0)}
        parts += [numpy_helper.from_array(np.asarray(value), name) for name, value in axes.items()]
        nodes = [
            helper.make_node("ReduceSum", ["noise", "draw"], ["drawn"], keepdims=0),
            helper.make_node("ReduceSum", ["proprio", "all"], ["seen"], keepdims=1),
            helper.make_node("Add", ["drawn", "seen"], ["both"]),
            helper.make_node("Mul", ["both", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "constant"], ["actions"]),
        ]
    output = helper.make_tensor_value_info("actions", TensorProto.FLOAT, ["batch" if draws else 1, horizon, width])
    graph = helper.make_graph(nodes, "constant", inputs, [output], initializer=parts)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = {"observation_keys": ["proprio"], "history": 1, "horizon": horizon, "execute": execute}
    metadata = {
        "spec": spec.to_json(), "joint_names": list(spec.joint_names), "config": config, "policy": {}, "sampling": "none",
        "noise": {"rule": "fixed", "seed": 0, "shape": [draws, horizon, width]},
    }  # fmt: skip
    for key, value in {"format": FORMAT, **{key: json.dumps(value) for key, value in metadata.items()}}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    return path
