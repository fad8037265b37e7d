"""Files that TensorRT can not take, each made on purpose, and parity with known differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.onnx_checks import (
    GraphTensor,
    check_for_tensorrt,
    check_parity,
    read_graph,
    seeded_feed,
)
from robot_rl.errors import DeployError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
RealSession = onnxruntime.InferenceSession
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper


def test_read_graph_by_hand(path: Path) -> None:
    facts = read_graph(path)
    assert facts.inputs == (
        GraphTensor("proprio", "float32", (2, 3)),
        GraphTensor("noise", "float32", (1, 4, 2)),
    )
    assert facts.outputs == (GraphTensor("actions", "float32", (4, 2)),)
    assert (facts.opset, facts.domains) == (20, frozenset())
    assert facts.operators == {"Squeeze", "ReduceSum", "Add", "Clip"}
    check_for_tensorrt(path, facts)


def dims(model: Any, name: str) -> Any:
    values = [*model.graph.input, *model.graph.output]
    return next(value for value in values if value.name == name).type.tensor_type


def static_batch(model: Any) -> None:
    dims(model, "proprio").shape.dim[0].dim_value = 2


def second_dynamic(model: Any) -> None:
    dims(model, "noise").shape.dim[2].dim_param = "horizon"


def half_input(model: Any) -> None:
    dims(model, "proprio").elem_type = TensorProto.FLOAT16


def byte_proprio(model: Any) -> None:
    dims(model, "proprio").elem_type = TensorProto.UINT8


def no_metadata(model: Any) -> None:
    del model.metadata_props[:]


def no_noise_rule(model: Any) -> None:
    del model.metadata_props[[entry.key for entry in model.metadata_props].index("noise")]


def other_format(model: Any) -> None:
    next(entry for entry in model.metadata_props if entry.key == "format").value = "robot-rl policy 99"


def other_input(model: Any) -> None:
    next(entry for entry in model.metadata_props if entry.key == "config").value = '{"observation_keys": ["state"]}'


def weights_outside(model: Any) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


def old_opset(model: Any) -> None:
    model.opset_import[0].version = 8


def new_opset(model: Any) -> None:
    model.opset_import[0].version = 25


def own_domain(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def random_inside(model: Any) -> None:
    model.graph.node.insert(0, helper.make_node("RandomNormalLike", ["noise"], ["other"]))


def unsupported_in_a_branch(model: Any) -> None:
    output = helper.make_tensor_value_info("d", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Det", ["square"], ["d"])], "branch", [], [output])
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "square"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (static_batch, "'proprio': expected a dynamic batch on axis 0, got shape [2, 2, 3]"),
        (second_dynamic, "'noise': expected fixed dimensions behind the batch, got shape ['batch', 1, 'horizon', 2]"),
        (half_input, "'proprio': expected float32 (uint8 for images), got float16"),
        (byte_proprio, "'proprio': expected float32 (uint8 for images), got uint8"),
        (no_metadata, "got format None, missing ['spec', 'config', 'sampling', 'noise']"),
        (no_noise_rule, "missing ['noise']"),
        (other_format, "got format 'robot-rl policy 99'"),
        (other_input, "expected inputs ['noise', 'state'] and outputs ['actions'], got inputs ['noise', 'proprio']"),
        (weights_outside, "export it again with `robot-rl export`"),
        (old_opset, "expected 9 to 24 for TensorRT 10, got 8"),
        (new_opset, "expected 9 to 24 for TensorRT 10, got 25"),
        (own_domain, "domain 'com.microsoft'"),
        (random_inside, "RandomNormalLike"),
        (unsupported_in_a_branch, "no random ones, got Det."),
    ],
)
def test_a_file_that_tensorrt_can_not_take_is_refused(
    toy: Any, change: Callable[[Any], None], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy.model()
    change(model)
    if change in (half_input, byte_proprio, old_opset, new_opset):
        # These files are not valid in themselves; each check must hold without the one in front of it.
        monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)
    path = toy.save(model, tmp_path)
    with pytest.raises(DeployError) as caught:
        check_for_tensorrt(path, read_graph(path))
    assert says in str(caught.value)


def test_images_may_be_bytes(toy: Any, tmp_path: Path) -> None:
    model = toy.model()
    model.graph.input.append(helper.make_tensor_value_info("image/base", TensorProto.UINT8, ["batch", 2, 4, 4, 3]))
    entry = next(entry for entry in model.metadata_props if entry.key == "config")
    entry.value = json.dumps({"observation_keys": ["proprio", "image/base"]})
    facts = read_graph(toy.save(model, tmp_path))
    feed = seeded_feed(facts, toy.spec, batch=4, seed=0)
    assert facts.inputs[2] == GraphTensor("image/base", "uint8", (2, 4, 4, 3))
    assert feed["image/base"].dtype == np.uint8
    assert int(feed["image/base"].max()) > 200


@pytest.mark.parametrize("content", [b"", b"not an onnx file", b"\x08\x0a\x12\x00"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").write_bytes(content)
    with pytest.raises(DeployError, match=r"expected a valid ONNX file|metadata"):
        read_graph(tmp_path / "policy.onnx")


def test_our_own_export_passes(toy: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from robot_rl.stages.export import write_onnx

    class Small(torch.nn.Module):
        spec = toy.spec
        noise_shape = (1, 4, 2)
        config = SimpleNamespace(observation_keys=("proprio",), history=2)

        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Mish(), torch.nn.Linear(8, 8))

        def forward(self, arrays: Any, noise: Any) -> Any:
            return (self.net(arrays["proprio"].flatten(1)).unflatten(1, (4, 2)) + noise[:, 0]).clamp(-1, 1)

    metadata = {entry.key: entry.value for entry in toy.model().metadata_props if entry.key != "format"}
    write_onnx(Small(), tmp_path / "policy.onnx", metadata=metadata)
    facts = read_graph(tmp_path / "policy.onnx")
    check_for_tensorrt(tmp_path / "policy.onnx", facts)
    assert [tensor.shape for tensor in facts.inputs] == [(2, 3), (1, 4, 2)]


def test_seeded_feed_keeps_the_bounds(toy: Any, path: Path) -> None:
    facts = read_graph(path)
    feed = seeded_feed(facts, toy.spec, batch=200, seed=3)
    proprio, noise = feed["proprio"], feed["noise"]
    assert proprio.shape == (200, 2, 3)
    assert proprio.dtype == noise.dtype == np.float32
    assert -1 <= proprio[..., 0].min() < -0.95
    assert -0.05 < proprio[..., 0].max() <= 0
    assert 2 <= proprio[..., 1].min() < 2.05
    assert 2.95 < proprio[..., 1].max() <= 3
    # Element 2 has no upper bound: standard normal; 400 numbers have a mean within 0.2 (4 standard errors).
    assert abs(float(proprio[..., 2].mean())) < 0.2
    assert abs(float(noise.std()) - 1) < 0.1
    assert np.array_equal(noise, seeded_feed(facts, toy.spec, batch=200, seed=3)["noise"])
    assert not np.array_equal(noise, seeded_feed(facts, toy.spec, batch=200, seed=4)["noise"])


class Off:
    """A session whose actions are off by `error` in one element of the last row."""

    def __init__(self, path: Path, error: float) -> None:
        self.session, self.error = RealSession(str(path), providers=["CPUExecutionProvider"]), error
        self.batches: list[int] = []

    def run(self, names: Any, feed: dict[str, Any]) -> list[Any]:
        (actions,) = self.session.run(names, feed)
        self.batches.append(len(actions))
        actions[-1, 3, 1] += self.error
        return [actions]


def test_parity_by_hand(toy: Any, path: Path) -> None:
    reference = RealSession(str(path), providers=["CPUExecutionProvider"])
    arguments = {"facts": read_graph(path), "spec": toy.spec, "max_batch": 5, "where": "here", "hint": "Look."}
    candidate = Off(path, 0.25)
    errors = check_parity(reference, candidate, tolerance=0.26, **arguments)
    assert errors == {f"batch_{batch}": pytest.approx(0.25, abs=1e-5) for batch in (1, 3, 5)}
    assert candidate.batches == [1] * 4 + [3] * 4 + [5] * 4
    with pytest.raises(DeployError, match=r"within 0\.24 action units, got a difference of 0\.25.*Look\."):
        check_parity(reference, candidate, tolerance=0.24, **arguments)
    with pytest.raises(DeployError, match="a difference of inf"):
        check_parity(reference, Off(path, float("nan")), tolerance=1e9, **arguments)
    # Of a file that rounds: root mean square. 0.25 in one of batch x 4 x 2 numbers of each draw.
    arguments["facts"] = replace(read_graph(path), operators=frozenset({"QuantizeLinear"}))
    errors = check_parity(reference, Off(path, 0.25), tolerance=0.1, **arguments)
    assert errors == {f"batch_{batch}": pytest.approx(0.25 / (8 * batch) ** 0.5, rel=1e-3) for batch in (1, 3, 5)}
    with pytest.raises(DeployError, match="a difference of inf"):
        check_parity(reference, Off(path, float("nan")), tolerance=1e9, **arguments)
