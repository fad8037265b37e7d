"""`export quantize=int8`: errors that are bounded and told, a file that runtimes take, and calibrations that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.deploy.onnx_checks import allowed_difference, check_for_tensorrt, is_int8, read_graph
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.errors import DeployError
from robot_rl.runs.checkpoint import save_checkpoint
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import export, export_int8
from robot_rl.stages.export_int8 import Int8Options, Quantize, action_errors, add_int8, feeds, quantise
from robot_rl.types import Observation
from robot_rl.workbench.bench_infer_nets import exported, random_policy
from robot_rl.workbench.bench_sample import random_demonstrations

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def head() -> Any:
    """A one-step head of the mlp: four products of 256 x 256 and two small ones behind the noise."""
    return random_policy("mlp").one_step_student(1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def float_file(head: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("int8") / "policy.onnx"
    exported(head, path, threads=1)
    return path


def drawn(policy: Any, rows: int, *, seed: int, scale: float = 1.0) -> tuple[Observation, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    arrays = {
        key: scale * torch.randn(rows, policy.config.history, *array.shape, generator=rng)
        for key, array in policy.spec.observation.items()
    }
    noise = scale * torch.randn(rows, *policy.noise_shape, generator=rng)
    return Observation.from_arrays(arrays), noise


def made(head: Any, source: Path, target: Path, *, scale: float = 1.0) -> dict[str, int]:
    observation, noise = drawn(head, 60, seed=1, scale=scale)
    return quantise(source, target, feeds(head.config.observation_keys, observation, noise))


def test_weights_are_within_half_a_step_and_actions_close(head: Any, float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    assert made(head, float_file, path) == {"products": 6, "quantised_products": 4, "calibration_rows": 60}
    model = onnx.load(str(path))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    whole = [name for name, array in tensors.items() if array.dtype == np.int8 and array.ndim == 2]
    assert len(whole) == 4
    wanted = [layer.weight.numpy().T for block in head.denoiser.blocks for layer in (block.expand, block.project)]
    for name in whole:
        scale = next(tensors[node.input[1]] for node in model.graph.node if node.input[0] == name)
        away = [float(np.abs(tensors[name] * scale - weight).max() / scale.max()) for weight in wanted]
        assert min(away) <= 0.5 + 1e-4, "symmetric, one scale an output channel: rounding is at most half of it"
    errors = action_errors(head, OnnxPolicy(path), drawn(head, 50, seed=2)[0], seed=3)
    # int8 has 7 bits behind its sign: some per cent of the spread, not none and not tens.
    assert 1e-3 < errors["rms_error"] / errors["spread"] < 0.05
    assert errors["max_error"] < 0.1


def test_it_stays_one_of_our_files_that_tensorrt_may_take(head: Any, float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    made(head, float_file, path)
    before, after = OnnxPolicy(float_file), OnnxPolicy(path)
    assert after.metadata == before.metadata | {"precision": "int8"}
    facts = read_graph(path)
    check_for_tensorrt(path, facts)
    assert facts.is_quantised
    assert not read_graph(float_file).is_quantised
    model = onnx.load(str(path))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    zeros = {name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer for name in [t.name]}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            # TensorRT 10: int8 with zero points of zero; an int32 bias behind DequantizeLinear is not taken.
            assert kinds[node.input[2]] == onnx.TensorProto.INT8
            assert not zeros[node.input[2]].any()


def test_what_can_not_be_quantised_is_refused(head: Any, float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    observation, noise = drawn(head, 4, seed=1)
    keys = head.config.observation_keys
    with pytest.raises(DeployError, match="6 smaller products"):
        quantise(float_file, path, feeds(keys, observation, noise), min_weights=10**6)
    noise[2, 0, 0, 0] = float("nan")
    with pytest.raises(DeployError, match=r"'noise'.*finite numbers"):
        quantise(float_file, path, feeds(keys, observation, noise))
    made(head, float_file, path)
    with pytest.raises(DeployError, match="got an int8 file"):
        made(head, path, tmp_path / "again.onnx")


def test_other_runtimes_may_differ_as_two_roundings_do() -> None:
    metadata = {"precision": "int8", "int8": {"recorded": {"rms_error": 0.02}, "random": {"rms_error": 0.05}}}
    assert is_int8(metadata)
    assert allowed_difference(metadata, 1e-3) == pytest.approx(0.0707, abs=1e-4)
    assert allowed_difference(metadata, 0.2) == 0.2
    assert allowed_difference({}, 1e-3) == 1e-3


def test_a_calibration_that_saturates_is_seen(head: Any, float_file: Path, tmp_path: Path) -> None:
    """Zeros show far less than what comes later, so activations are cut off; LayerNorm saves the rest of the answer."""
    judged, errors = drawn(head, 50, seed=2)[0], []
    for scale in (1.0, 1e-3):
        made(head, float_file, tmp_path / f"{scale}.onnx", scale=scale)
        errors.append(action_errors(head, OnnxPolicy(tmp_path / f"{scale}.onnx"), judged, seed=3)["rms_error"])
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize(
    ("found", "tolerance", "says"),
    [
        ({"max_error": 0.3, "rms_error": 0.1, "spread": 0.2}, None, None),
        ({"max_error": 0.3, "rms_error": 0.1, "spread": 0.2}, 0.3, None),
        ({"max_error": 0.3, "rms_error": 0.1, "spread": 0.2}, 0.29, "int8_tolerance=0.29"),
        ({"max_error": 0.3, "rms_error": 0.21, "spread": 0.2}, None, "spread of the actions"),
        ({"max_error": np.inf, "rms_error": np.inf, "spread": 0.2}, None, "spread of the actions"),
    ],
)
def test_what_is_refused(found: dict[str, float], tolerance: float | None, says: str | None) -> None:
    fault = export_int8._fault(found, tolerance)
    assert (fault is None) if says is None else (fault is not None and says in fault[0])


@pytest.fixture(scope="module")
def place(head: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and summary of an export with quantize=int8, from a checkpoint of the head and demonstrations of random numbers."""
    folder: Path = tmp_path_factory.mktemp("export_int8")
    node = {"_target_": "robot_rl.policies.onestep.OneStepPolicy", "config": head.config.to_json()}
    documents = {"policy": node, "spec": head.spec.to_json(), "normalizer": head.normalizer.to_json()}
    checkpoint = save_checkpoint(folder, step=1, tensors={"policy": head.state_dict()}, documents=documents)
    random_demonstrations(folder / "demos.zarr", episodes=3, steps=30)
    config = export.ExportConfig(
        policy=str(checkpoint), dataset=str(folder / "demos.zarr"), latency_calls=3, quantize=Quantize.int8
    )
    (folder / "run").mkdir()
    return folder / "run", export.run(config, RunDirectory(folder / "run"))


def test_the_stage_tells_error_and_latency_and_states_them_in_the_file(place: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = place
    path, told = folder / "export/policy_int8.onnx", summary["int8"]
    assert told["onnx"] == str(path)
    assert told["bytes"] == path.stat().st_size < summary["bytes"] / 2
    parity, latency = (json.loads((folder / f"export/{name}.json").read_text()) for name in ("parity", "latency"))
    assert parity["max_error"] == summary["parity_max_error"] < 1e-4, "the float32 file is judged as before"
    assert parity["int8"]["recorded"] == told["recorded"]
    assert latency["int8"]["p50_ms"] == told["latency"]["p50_ms"] > 0
    policy = OnnxPolicy(path)
    assert policy.metadata["int8"]["recorded"]["max_error"] == told["recorded"]["max_error"]
    assert policy.metadata["checkpoint"] == OnnxPolicy(folder / "export/policy.onnx").metadata["checkpoint"]
    assert 0 < told["recorded"]["rms_error"] < told["recorded"]["max_error"] < 0.1
    metrics = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["export/int8_rms_error"] == told["recorded"]["rms_error"]
    assert json.loads((folder / "summary.json").read_text())["int8"] == told


def test_an_error_above_the_tolerance_is_refused_and_kept_apart(
    head: Any, place: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(place[0] / "export", tmp_path / "export")
    (tmp_path / "export/policy_int8.onnx").unlink()
    observation = drawn(head, 20, seed=4)[0]
    options = Int8Options(tolerance=1e-6, latency_calls=1)
    with pytest.raises(DeployError, match=r"int8_tolerance=1e-06"):
        add_int8(RunDirectory(tmp_path), head, observation, {"recorded": observation}, options)
    assert {file.name for file in (tmp_path / "export").iterdir()} == {
        "policy.onnx", "policy_int8.onnx.rejected", "parity.json", "latency.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "export/parity.json").read_text())["int8"]["recorded"]["rms_error"] > 0
