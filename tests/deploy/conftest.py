"""Shared by the tests of exported policies: a small exported file with a known answer, and stand-ins for a GPU.

`FakeTensorRt` and `FakeCuda` stand in for `tensorrt` and `cuda.bindings.runtime` only because no GPU can be here. The
device memory is real memory at real addresses and the engine computes with onnxruntime from those bytes, so a wrong
address, size, direction or shape gives a wrong answer. What they can't show: that TensorRT builds these graphs, its
numbers, its speed (docs/tensorrt.md).
"""

from __future__ import annotations

import ctypes
import json
import sys
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.onnx_policy import FORMAT
from robot_rl.deploy.tensorrt_policy import EngineOptions
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

SPEC = EnvSpec(
    env_id="Toy",
    observation={"proprio": ArraySpec("proprio", (3,), low=(-1.0, 2.0, 4.0), high=(0.0, 3.0, float("inf")))},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "base", "none", "none", "toy"),
    joint_names=("a", "b", "c"),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)


def toy_model() -> Any:
    """actions (N, 4, 2) = clip(noise (N, 1, 4, 2) without its draw + sum of proprio (N, 2, 3), -5, 5)."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Squeeze", ["noise", "axis_1"], ["plain"]),
        helper.make_node("ReduceSum", ["proprio", "axes_12"], ["total"], keepdims=1),
        helper.make_node("Add", ["plain", "total"], ["sum"]),
        helper.make_node("Clip", ["sum", "low", "high"], ["actions"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(value), name)
        for name, value in {
            "axis_1": np.array([1]),
            "axes_12": np.array([1, 2]),
            "low": np.float32(-5),
            "high": np.float32(5),
        }.items()
    ]
    shapes = {"proprio": ["batch", 2, 3], "noise": ["batch", 1, 4, 2], "actions": ["batch", 4, 2]}
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()}
    graph = helper.make_graph(nodes, "toy", [values["proprio"], values["noise"]], [values["actions"]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    config = {"observation_keys": ["proprio"], "history": 2, "horizon": 4, "execute": 2}
    metadata = {
        "spec": SPEC.to_json(),
        "config": config,
        "sampling": "one_step",
        "noise": {"rule": "seeded", "seed": 0, "shape": [1, 4, 2]},
    }
    helper.set_model_props(model, {"format": FORMAT} | {key: json.dumps(value) for key, value in metadata.items()})
    return model


def save(model: Any, folder: Path) -> Path:
    import onnx

    onnx.save_model(model, str(folder / "policy.onnx"))
    return folder / "policy.onnx"


@pytest.fixture
def toy() -> Any:
    """The small policy: its spec, the model, how to save it, observations, and its actions by hand."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return SimpleNamespace(spec=SPEC, model=toy_model, save=save, observe=observe, by_hand=by_hand)


@pytest.fixture
def path(toy: Any, tmp_path: Path) -> Path:
    return Path(toy.save(toy.model(), tmp_path))


def observe(batch: int) -> tuple[Observation, np.ndarray]:
    rng = np.random.default_rng(batch)
    proprio = rng.standard_normal((batch, 2, 3)).astype(np.float32)
    return Observation(proprio=proprio), rng.standard_normal((batch, 1, 4, 2)).astype(np.float32)


def by_hand(observation: Observation, noise: np.ndarray) -> np.ndarray:
    return np.clip(noise[:, 0] + observation.proprio.sum(axis=(1, 2))[:, None, None], -5, 5)


class FakeCuda:
    """`cuda.bindings.runtime`: every call returns (error, value...), device memory is host memory behind addresses."""

    class cudaError_t(IntEnum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2
        cudaErrorInsufficientDriver = 35

    class cudaMemcpyKind(IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.made = 0
        self.copies: list[tuple[str, int]] = []
        self.devices, self.device_error, self.room = 1, self.cudaError_t.cudaSuccess, 1 << 20
        self.gpu = SimpleNamespace(name=b"NVIDIA H100 80GB HBM3", major=9, minor=0)

    def cudaGetDeviceCount(self) -> tuple[Any, Any]:
        return self.device_error, None if self.device_error else self.devices

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        assert device == 0
        return self.cudaError_t.cudaSuccess, self.gpu

    def cudaGetErrorString(self, error: IntEnum) -> tuple[Any, bytes]:
        return self.cudaError_t.cudaSuccess, f"text of {error.name}".encode()

    def cudaStreamCreate(self) -> tuple[Any, int]:
        self.made += 1
        self.streams.add(self.made)
        return self.cudaError_t.cudaSuccess, self.made

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        self.streams.remove(stream)
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream in self.streams
        return (self.cudaError_t.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, Any]:
        if size > self.room:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return self.cudaError_t.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[Any]:
        del self.memory[address]
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: IntEnum, stream: int) -> tuple[Any]:
        assert stream in self.streams
        device = target if kind is self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert size <= ctypes.sizeof(self.memory[device])
        ctypes.memmove(target, source, size)
        self.copies.append((kind.name, size))
        return (self.cudaError_t.cudaSuccess,)


class FakeTensorRt:
    """`tensorrt` 10. A "plan" is a JSON line (version, range, flags) in front of the ONNX file it was built from."""

    class BuilderFlag(Enum):
        FP16 = 0
        TF32 = 1
        INT8 = 2

    class TensorIOMode(Enum):
        INPUT = 0
        OUTPUT = 1

    def __init__(self) -> None:
        self.__version__ = "10.16.1.11"
        self.calls: list[str] = []
        self.flags: set[Enum] = set()
        self.profile: dict[str, Any] = {}
        self.error = 0.0  # added to the actions of an fp16 engine
        self.parses = self.builds = self.executes = True
        fake = self

        class Logger:
            WARNING = 2

            def __init__(self, severity: int) -> None:
                fake.calls.append("Logger")

        class Builder:
            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def create_network(self, flags: int) -> Any:
                return SimpleNamespace(flags=flags, model=b"")

            def create_builder_config(self) -> Any:
                # TF32 is on by default in TensorRT.
                fake.flags = {fake.BuilderFlag.TF32}
                return SimpleNamespace(
                    set_flag=fake.flags.add, clear_flag=fake.flags.discard, add_optimization_profile=fake.profile.update
                )

            def create_optimization_profile(self) -> Any:
                class Profile(dict[str, Any]):
                    def set_shape(self, name: str, min: Any, opt: Any, max: Any) -> None:
                        self[name] = (min, opt, max)

                return Profile()

            def build_serialized_network(self, network: Any, config: Any) -> Any:
                fake.calls.append("build")
                if not fake.builds:
                    return None
                most = max(shape[2][0] for shape in fake.profile.values())
                fp16 = fake.BuilderFlag.FP16 in fake.flags
                head = {"version": fake.__version__, "max": most, "fp16": fp16}
                return memoryview(json.dumps(head).encode() + b"\n" + network.model)

        class OnnxParser:
            def __init__(self, network: Any, logger: Logger) -> None:
                self.network, self.num_errors = network, 0

            def parse(self, model: bytes) -> bool:
                assert isinstance(model, bytes)
                self.network.model, self.num_errors = model, 0 if fake.parses else 1
                return fake.parses

            def get_error(self, index: int) -> Any:
                return SimpleNamespace(desc=lambda: f"error {index}: no importer for Foo")

        class Runtime:
            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                fake.calls.append("deserialize")
                head, _, model = bytes(plan).partition(b"\n")
                settings = json.loads(head)
                return FakeEngine(fake, settings, model) if settings["version"] == fake.__version__ else None

        self.Logger, self.Builder, self.OnnxParser, self.Runtime = Logger, Builder, OnnxParser, Runtime
        self.cuda = FakeCuda()

    def nptype(self, dtype: str) -> type:
        return {"kFLOAT": np.float32}[dtype]


class FakeEngine:
    """ICudaEngine and IExecutionContext in one: it reads and writes at the addresses it was given."""

    def __init__(self, fake: FakeTensorRt, settings: dict[str, Any], model: bytes) -> None:
        from onnxruntime import InferenceSession

        self.fake, self.settings = fake, settings
        self.session = InferenceSession(model, providers=["CPUExecutionProvider"])
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index].name)

    def get_tensor_mode(self, name: str) -> Enum:
        modes = self.fake.TensorIOMode
        return modes.OUTPUT if name == "actions" else modes.INPUT

    def get_tensor_dtype(self, name: str) -> str:
        return "kFLOAT"

    def create_execution_context(self) -> FakeEngine:
        return self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return 1 <= shape[0] <= self.settings["max"]

    def get_tensor_shape(self, name: str) -> list[int]:
        batch = next(iter(self.shapes.values()))[0]
        return [batch, *next(t for t in self.tensors if t.name == name).shape[1:]]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.fake.cuda.streams
        feed = {}
        for name, shape in self.shapes.items():
            data = ctypes.string_at(self.addresses[name], 4 * int(np.prod(shape)))
            feed[name] = np.frombuffer(data, np.float32).reshape(shape)
        (actions,) = self.session.run(["actions"], feed)
        actions = actions + np.float32(self.fake.error if self.settings["fp16"] else 0)
        ctypes.memmove(self.addresses["actions"], actions.tobytes(), actions.nbytes)
        return self.fake.executes


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    fake = FakeTensorRt()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake.cuda)
    return fake


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    return EngineOptions(cache=str(tmp_path / "engines"), max_batch=5)
