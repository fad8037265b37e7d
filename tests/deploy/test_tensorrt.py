"""TensorRT without a GPU: the refusals, and the control flow against the stand-ins of conftest.py."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from side_by_side import wrong_answers

from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.onnx_policy import measure_latency
from robot_rl.deploy.tensorrt_engine import find_gpu, load_libraries
from robot_rl.deploy.tensorrt_policy import (
    PLAN,
    EngineOptions,
    Runtime,
    TensorRtPolicy,
    open_policy,
)
from robot_rl.errors import DeployError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def quantised_model(toy: Any) -> Any:
    """The toy with its noise rounded to multiples of 1/8."""
    model = toy.model()
    for node in model.graph.node:
        node.input[:] = ["rounded" if name == "plain" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.125), "scale"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int8(0), "zero"))
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["plain", "scale", "zero"], ["whole"]),
        onnx.helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["rounded"]),
    ]
    at = 1 + [node.output[0] for node in model.graph.node].index("plain")
    for node in reversed(pair):
        model.graph.node.insert(at, node)
    for key, value in {"precision": "int8", "int8": {"recorded": {"rms_error": 0.04}}}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    return model


def test_a_file_with_qdq_may_use_int8(toy: Any, tmp_path: Path, trt: Any) -> None:
    path = toy.save(quantised_model(toy), tmp_path)
    policy = TensorRtPolicy(path, options=EngineOptions(cache=str(tmp_path / "engines"), max_batch=2))
    assert trt.flags == {trt.BuilderFlag.INT8}
    assert policy.provider == "TensorRT 10.16.1.11 int8 on NVIDIA H100 80GB HBM3"
    observation, noise = toy.observe(2)
    expected = toy.by_hand(observation, np.round(8 * noise) / 8)
    np.testing.assert_allclose(policy.act(observation, noise).actions, expected, atol=1e-5)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.fp16])
def test_build_run_and_cache(toy: Any, path: Path, tmp_path: Path, trt: Any, precision: Precision) -> None:
    options = EngineOptions(cache=str(tmp_path / "engines"), precision=precision, max_batch=5)
    policy = TensorRtPolicy(path, options=options)
    assert trt.calls == ["Logger", "build", "deserialize"]
    assert trt.flags == ({trt.BuilderFlag.FP16} if precision is Precision.fp16 else set())
    assert trt.profile == {
        "proprio": ((1, 2, 3), (1, 2, 3), (5, 2, 3)),
        "noise": ((1, 1, 4, 2), (1, 1, 4, 2), (5, 1, 4, 2)),
    }
    assert policy.provider == f"TensorRT 10.16.1.11 {precision.value} on NVIDIA H100 80GB HBM3"
    assert (policy.spec, policy.config.execute, policy.noise_shape) == (toy.spec, 2, (1, 4, 2))
    for batch in (5, 1, 3):
        observation, noise = toy.observe(batch)
        chunk = policy.act(observation, noise)
        np.testing.assert_allclose(chunk.actions, toy.by_hand(observation, noise), atol=1e-5)
        assert chunk.execute == 2
    (entry,) = (tmp_path / "engines").iterdir()
    sidecar = json.loads((entry / "entry.json").read_text())
    assert sidecar["key"]["compute_capability"] == "9.0"
    assert sidecar["facts"]["parity"] == {"batch_1": 0.0, "batch_3": 0.0, "batch_5": 0.0}
    trt.calls.clear()
    again = TensorRtPolicy(path, options=options)
    assert trt.calls == ["Logger", "deserialize"]
    observation, noise = toy.observe(2)
    np.testing.assert_array_equal(again.act(observation, noise).actions, policy.act(observation, noise).actions)


def test_latency_is_measured_through_the_engine(toy: Any, path: Path, trt: Any, options: EngineOptions) -> None:
    report = measure_latency(TensorRtPolicy(path, options=options), toy.observe(1)[0], calls=3, warmup_calls=1)
    assert report["provider"].startswith("TensorRT 10")
    assert report["p50_ms"] > 0


def test_one_allocation_a_tensor_and_all_given_back(toy: Any, path: Path, trt: Any, options: EngineOptions) -> None:
    policy = TensorRtPolicy(path, options=options)
    # proprio 2x3, noise 4x2, actions 4x2: float32 at the largest batch of 5.
    sizes = sorted(ctypes.sizeof(block) for block in trt.cuda.memory.values())
    assert sizes == [5 * 6 * 4, 5 * 8 * 4, 5 * 8 * 4]
    trt.cuda.copies.clear()
    policy.act(*toy.observe(3))
    # A batch of 3 in full, both ways, and no more: memory that numpy hands out again may hold the old answer.
    inward, outward = "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"
    assert trt.cuda.copies == [(inward, 3 * 6 * 4), (inward, 3 * 8 * 4), (outward, 3 * 8 * 4)]
    assert len(trt.cuda.memory) == 3
    del policy
    gc.collect()
    assert (trt.cuda.memory, trt.cuda.streams) == ({}, set())


def test_threads_get_their_own_answers(
    toy: Any, path: Path, trt: Any, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in's stream waits a moment between the engine and the copy of the answer, as a GPU does."""
    policy, plain = TensorRtPolicy(path, options=options), trt.cuda.cudaMemcpyAsync

    def slow(*words: Any) -> Any:
        time.sleep(1e-4)
        return plain(*words)

    monkeypatch.setattr(trt.cuda, "cudaMemcpyAsync", slow)
    assert wrong_answers(policy, toy, calls=50) == []


def truncate(entry: Path) -> None:
    (entry / PLAN).write_bytes((entry / PLAN).read_bytes()[:-100])


def forget(entry: Path) -> None:
    (entry / "entry.json").unlink()


def unusable(entry: Path) -> None:
    """Intact by its hash, yet TensorRT does not take it."""
    (entry / PLAN).write_bytes(b'{"version": "10.0.0"}\nx')
    sidecar = json.loads((entry / "entry.json").read_text())
    sidecar["sha256"][PLAN] = hashlib.sha256((entry / PLAN).read_bytes()).hexdigest()
    (entry / "entry.json").write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    ("damage", "calls"),
    [
        (truncate, ["Logger", "build", "deserialize"]),
        (forget, ["Logger", "build", "deserialize"]),
        (unusable, ["Logger", "deserialize", "build", "deserialize"]),
    ],
)
def test_a_damaged_entry_is_built_again_with_one_warning(
    toy: Any, damage: Callable[[Path], None], calls: list[str], path: Path, trt: Any, options: EngineOptions,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    TensorRtPolicy(path, options=options)
    (entry,) = Path(options.cache).iterdir()
    damage(entry)
    trt.calls.clear()
    policy = TensorRtPolicy(path, options=options)
    assert trt.calls == calls
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    np.testing.assert_allclose(policy.act(*toy.observe(3)).actions, toy.by_hand(*toy.observe(3)), atol=1e-5)
    trt.calls.clear()
    TensorRtPolicy(path, options=options)
    assert trt.calls == ["Logger", "deserialize"]


def other_version(trt: Any, path: Path) -> None:
    trt.__version__ = "10.16.2.0"


def other_gpu(trt: Any, path: Path) -> None:
    trt.cuda.gpu.name = b"NVIDIA A100\0\0"


def other_capability(trt: Any, path: Path) -> None:
    trt.cuda.gpu.minor = 1


def other_model(trt: Any, path: Path) -> None:
    model = onnx.load(str(path))
    model.doc_string = "exported again"
    onnx.save_model(model, str(path))


@pytest.mark.parametrize("change", [other_version, other_gpu, other_capability, other_model])
def test_whatever_the_engine_depends_on_builds_another(
    change: Callable[[Any, Path], None], path: Path, trt: Any, options: EngineOptions
) -> None:
    TensorRtPolicy(path, options=options)
    trt.calls.clear()
    change(trt, path)
    TensorRtPolicy(path, options=options)
    assert trt.calls == ["Logger", "build", "deserialize"]
    assert len(list(Path(options.cache).iterdir())) == 2


def test_an_engine_that_acts_differently_is_refused_fresh_and_cached(path: Path, tmp_path: Path, trt: Any) -> None:
    options = EngineOptions(cache=str(tmp_path / "engines"), precision=Precision.fp16, max_batch=5)
    trt.error = 0.03  # above the 2e-2 of fp16
    says = r"within 0\.02 action units, got a difference of 0\.03.*precision=fp32, another version of TensorRT, or runtime=onnx"
    with pytest.raises(DeployError, match=says):
        TensorRtPolicy(path, options=options)
    assert list(Path(options.cache).iterdir()) == []
    trt.error = 0.01
    TensorRtPolicy(path, options=options)
    trt.error = float("nan")
    with pytest.raises(DeployError, match="a difference of inf"):
        TensorRtPolicy(path, options=options)
    gc.collect()
    assert trt.cuda.memory == {}


def test_the_tolerance_can_be_set_and_fp32_is_stricter(path: Path, tmp_path: Path, trt: Any) -> None:
    assert EngineOptions().allowed_difference({}) == 1e-3
    trt.error = 0.01
    options = EngineOptions(cache=str(tmp_path / "engines"), precision=Precision.fp16, tolerance=1e-3)
    with pytest.raises(DeployError, match=r"within 0\.001 action units"):
        TensorRtPolicy(path, options=options)


def test_refusals_of_batch_and_input(toy: Any, path: Path, trt: Any, options: EngineOptions) -> None:
    policy = TensorRtPolicy(path, options=options)
    with pytest.raises(DeployError, match="expected a batch of 1 to 5, got 6"):
        policy.act(*toy.observe(6))
    observation, noise = toy.observe(2)
    with pytest.raises(DeployError, match=r"'noise': expected float32 \(2, 1, 4, 2\), got float32 \(1, 1, 4, 2\)"):
        policy.session.run(["actions"], {"proprio": observation.proprio, "noise": noise[:1]})
    with pytest.raises(DeployError, match="got float64"):
        policy.session.run(["actions"], {"proprio": observation.proprio, "noise": noise.astype(np.float64)})
    with pytest.raises(DeployError, match="max_batch of at least 1, got 0"):
        TensorRtPolicy(path, options=EngineOptions(cache=options.cache, max_batch=0))


def test_failures_of_tensorrt_are_errors_and_leave_no_entry(path: Path, trt: Any, options: EngineOptions) -> None:
    for name, says in (
        ("parses", "error 0: no importer for Foo"),
        ("builds", "an engine from TensorRT's builder, got none"),
        ("executes", "execute_async_v3 to succeed"),
    ):
        setattr(trt, name, False)
        with pytest.raises(DeployError, match=says):
            TensorRtPolicy(path, options=options)
        setattr(trt, name, True)
        assert list(Path(options.cache).iterdir()) == []
    trt.cuda.room = 100
    with pytest.raises(DeployError, match="text of cudaErrorMemoryAllocation"):
        TensorRtPolicy(path, options=options)


def without(name: str) -> Callable[[pytest.MonkeyPatch, Any], None]:
    # None in sys.modules is what Python itself answers with ModuleNotFoundError.
    return lambda patch, trt: patch.setitem(sys.modules, name, None)


def version_11(patch: pytest.MonkeyPatch, trt: Any) -> None:
    trt.__version__ = "11.4.0.106"


def no_driver(patch: pytest.MonkeyPatch, trt: Any) -> None:
    # What cuda-bindings 12.9.10 answers on a computer without a driver: (cudaErrorInsufficientDriver, None).
    trt.cuda.device_error = trt.cuda.cudaError_t.cudaErrorInsufficientDriver


def no_device(patch: pytest.MonkeyPatch, trt: Any) -> None:
    trt.cuda.devices = 0


LACKS = [
    (without("tensorrt"), ["the module tensorrt", "pip install 'tensorrt>=10,<11'"]),
    (without("cuda.bindings.runtime"), ["the module cuda.bindings.runtime", "'cuda-python>=12.6,<14'"]),
    (version_11, ["expected version 10, got 11.4.0.106", "pip install 'tensorrt>=10,<11'"]),
    (no_driver, ["text of cudaErrorInsufficientDriver", "nvidia-smi", "driver"]),
    (no_device, ["an NVIDIA GPU", "nvidia-smi"]),
]


@pytest.mark.parametrize("allow_cpu", [False, True])
@pytest.mark.parametrize(("lack", "says"), LACKS)
def test_tensorrt_never_runs_on_the_cpu_in_silence(
    lack: Any, says: list[str], allow_cpu: bool, path: Path, trt: Any, options: EngineOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lack(monkeypatch, trt)
    with pytest.raises(DeployError) as caught:
        open_policy(path, runtime=Runtime.tensorrt, allow_cpu=allow_cpu, options=options)
    for text in [*says, "runtime=onnx provider=CPUExecutionProvider"] if lack is not version_11 else says:
        assert text in str(caught.value)
    assert not Path(options.cache).exists()


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.fp16])
def test_on_a_real_gpu(toy: Any, path: Path, tmp_path: Path, precision: Precision) -> None:
    """No stand-ins: builds, acts as by hand, and does not build a second time. Skipped where no GPU is."""
    try:
        find_gpu(load_libraries())
    except DeployError as error:
        pytest.skip(str(error))
    options = EngineOptions(cache=str(tmp_path / "engines"), precision=precision, max_batch=5)
    first = TensorRtPolicy(path, options=options)
    (entry,) = Path(options.cache).iterdir()
    built_at = (entry / PLAN).stat().st_mtime_ns
    for policy in (first, TensorRtPolicy(path, options=options)):
        for batch in (1, 5):
            expected = toy.by_hand(*toy.observe(batch))
            np.testing.assert_allclose(
                policy.act(*toy.observe(batch)).actions, expected, atol=options.allowed_difference({})
            )
    assert (entry / PLAN).stat().st_mtime_ns == built_at


def test_deploy_loads_no_torch() -> None:
    code = (
        "import sys, robot_rl.deploy.tensorrt_policy; print(sorted({'torch', 'onnx', 'tensorrt'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
