"""TensorRT 10 without torch: build an engine from an ONNX file, keep its buffers on the GPU, run it.

Not run on a GPU yet: written against NVIDIA's documentation of TensorRT 10 and tested with stand-ins of `tensorrt` and
`cuda.bindings.runtime`. docs/tensorrt.md says what the first run on a GPU has to show.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.onnx_checks import GraphFacts, GraphTensor
from robot_rl.errors import DeployError

INSTALL = "pip install 'tensorrt>=10,<11' 'cuda-python>=12.6,<14'"
WITHOUT_GPU = "or run on the CPU: runtime=onnx provider=CPUExecutionProvider"


class UnreadablePlanError(DeployError):
    """TensorRT does not take a serialised engine."""


@dataclass(frozen=True)
class Gpu:
    """One device: its name as CUDA gives it, and its compute capability, e.g. "9.0"."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Libraries:
    """What the engine needs.

    Attributes:
        tensorrt: the module.
        cuda: the module `cuda.bindings.runtime`.
        logger: the one logger of all TensorRT objects (a second one is answered with a warning).
    """

    tensorrt: Any
    cuda: Any
    logger: Any

    def cuda_call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and return its value (None, one, or a tuple).

        Raises:
            DeployError: with CUDA's own text when the call does not succeed.
        """
        error, *values = getattr(self.cuda, name)(*arguments)
        if error != self.cuda.cudaError_t.cudaSuccess:
            text = self.cuda.cudaGetErrorString(error)[1].decode()
            raise DeployError(
                name, expected="cudaSuccess", got=f"{error!s} ({text})",
                hint=f"`nvidia-smi` must list a GPU with free memory: install or update the NVIDIA driver, {WITHOUT_GPU}.",
            )  # fmt: skip
        return values[0] if len(values) == 1 else (tuple(values) or None)


def load_libraries() -> Libraries:
    """Import `tensorrt` and `cuda.bindings.runtime`.

    Raises:
        DeployError: one is missing or broken, or TensorRT is not version 10; the hint is the line that fixes it.
    """
    modules = {}
    for name in ("tensorrt", "cuda.bindings.runtime"):
        try:
            modules[name] = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a wheel without its shared libraries
            raise DeployError(
                "TensorRT", expected=f"the module {name}", got=str(error), hint=f"{INSTALL}, {WITHOUT_GPU}."
            ) from error
    version = str(modules["tensorrt"].__version__)
    if version.split(".")[0] != "10":
        raise DeployError(
            "TensorRT", expected="version 10", got=version, hint=f"{INSTALL} (11 builds fp16 in another way)."
        )
    trt = modules["tensorrt"]
    return Libraries(trt, modules["cuda.bindings.runtime"], trt.Logger(trt.Logger.WARNING))


def find_gpu(libraries: Libraries) -> Gpu:
    """The GPU that CUDA calls device 0; CUDA_VISIBLE_DEVICES chooses another.

    Raises:
        DeployError: no driver or no device.
    """
    if libraries.cuda_call("cudaGetDeviceCount") < 1:
        raise DeployError(
            "TensorRT", expected="an NVIDIA GPU", got="no device",
            hint=f"`nvidia-smi` must list one, and CUDA_VISIBLE_DEVICES must not hide it; {WITHOUT_GPU}.",
        )  # fmt: skip
    device = libraries.cuda_call("cudaGetDeviceProperties", 0)
    return Gpu(device.name.decode().rstrip("\0"), f"{device.major}.{device.minor}")


def build_plan(
    libraries: Libraries, path: str | Path, *, facts: GraphFacts, precision: Precision, max_batch: int
) -> bytes:
    """Serialised engine of an ONNX file for batches 1 to `max_batch`, tuned for 1 (what a robot asks for). Takes minutes.

    TF32 is off, so that fp32 means fp32.

    Raises:
        DeployError: TensorRT can't parse the file or can't build the engine.
    """
    trt = libraries.tensorrt
    builder = trt.Builder(libraries.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, libraries.logger)
    if not parser.parse(Path(path).read_bytes()):
        faults = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise DeployError(
            str(path), expected="a file that TensorRT's ONNX parser takes", got="; ".join(faults) or "no reason given",
            hint=f"TensorRT here is {trt.__version__}: a newer 10 may know the operator; or run with runtime=onnx.",
        )  # fmt: skip
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if precision is Precision.fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    if facts.is_quantised:
        # A weakly typed network may take int8 only then; where, and with which scales, its Q/DQ nodes say.
        config.set_flag(trt.BuilderFlag.INT8)
    profile = builder.create_optimization_profile()
    for tensor in facts.inputs:
        one, most = (1, *tensor.shape), (max_batch, *tensor.shape)
        profile.set_shape(tensor.name, min=one, opt=one, max=most)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeployError(
            str(path), expected="an engine from TensorRT's builder", got="none (its messages are above)",
            hint="Free GPU memory, or run with runtime=onnx.",
        )  # fmt: skip
    return bytes(plan)


class EngineSession:
    """An engine with its context, stream and device buffers for the largest batch. Threads that call `run` take turns.

    Args:
        libraries: see `load_libraries`.
        plan: serialised engine, from `build_plan` by the same version on the same GPU.
        facts: of the graph it was built from.
        max_batch: as given to `build_plan`.

    Raises:
        UnreadablePlanError: TensorRT refuses the plan, or its inputs and outputs are not those of `facts`.
        DeployError: no room for the buffers.
    """

    def __init__(self, libraries: Libraries, plan: bytes, *, facts: GraphFacts, max_batch: int) -> None:
        self._libraries, self._facts, self._max_batch = libraries, facts, max_batch
        # The engine needs its runtime alive.
        self._runtime = libraries.tensorrt.Runtime(libraries.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise UnreadablePlanError(
                "TensorRT", expected="a serialised engine for this GPU and version", got=f"{len(plan)} unusable bytes",
                hint="Delete the entry in the engine cache and start again.",
            )  # fmt: skip
        self._check_tensors()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeployError(
                "TensorRT", expected="an execution context", got="none", hint="Free GPU memory and start again."
            )
        self._lock = threading.Lock()  # all clients of a server share the context, the stream and the buffers
        self._stream = libraries.cuda_call("cudaStreamCreate")
        self._addresses: dict[str, int] = {}
        # The list is shared with the finalizer, which must not hold `self`.
        weakref.finalize(self, _release, libraries, self._addresses, self._stream)
        for tensor in (*facts.inputs, *facts.outputs):
            size = max_batch * int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
            self._addresses[tensor.name] = int(libraries.cuda_call("cudaMalloc", size))
            self._context.set_tensor_address(tensor.name, self._addresses[tensor.name])

    def _check_tensors(self) -> None:
        trt, engine = self._libraries.tensorrt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            (
                n,
                engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT,
                np.dtype(trt.nptype(engine.get_tensor_dtype(n))).name,
            )
            for n in names
        }
        wanted = {(t.name, True, t.dtype) for t in self._facts.inputs} | {
            (t.name, False, t.dtype) for t in self._facts.outputs
        }
        if found != wanted:
            raise UnreadablePlanError(
                "TensorRT", expected=f"an engine with (name, is input, dtype) {sorted(wanted)}", got=str(sorted(found)),
                hint="Delete the entry in the engine cache and start again.",
            )  # fmt: skip

    def run(self, names: Sequence[str], feed: dict[str, Array]) -> list[Array]:
        """Copy the inputs in, run, copy the outputs out, wait. numpy in and out, batch first.

        Raises:
            DeployError: a batch, shape or dtype that the engine does not take, or a failure on the GPU.
        """
        batch = int(feed[self._facts.inputs[0].name].shape[0])
        if not 1 <= batch <= self._max_batch:
            raise DeployError(
                "TensorRT", expected=f"a batch of 1 to {self._max_batch}", got=str(batch),
                hint="Build the engine for a larger max_batch, or use fewer envs side by side.",
            )  # fmt: skip
        # Kept until the stream is done: the copies read their memory.
        held = {tensor.name: _checked(feed[tensor.name], tensor, batch) for tensor in self._facts.inputs}
        out = {t.name: np.empty((batch, *t.shape), dtype=t.dtype) for t in self._facts.outputs}
        with self._lock:
            self._run(held, out)
        return [out[name] for name in names]

    def _run(self, held: dict[str, Array], out: dict[str, Array]) -> None:
        """Fill `out` with the answer to `held`; one thread at a time."""
        kinds, stream = self._libraries.cuda.cudaMemcpyKind, self._stream
        for name, array in held.items():
            if not self._context.set_input_shape(name, array.shape):
                raise _failed(f"set_input_shape({name!r}, {array.shape})")
            self._copy(self._addresses[name], array.ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(stream)):
            raise _failed("execute_async_v3")
        for name, array in out.items():
            if tuple(self._context.get_tensor_shape(name)) != array.shape:
                raise _failed(f"the shape of {name!r}, {tuple(self._context.get_tensor_shape(name))}")
            self._copy(array.ctypes.data, self._addresses[name], array.nbytes, kinds.cudaMemcpyDeviceToHost)
        self._libraries.cuda_call("cudaStreamSynchronize", stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._libraries.cuda_call("cudaMemcpyAsync", target, source, size, kind, self._stream)


def _checked(array: Array, tensor: GraphTensor, batch: int) -> Array:
    array = np.ascontiguousarray(array)
    if array.shape != (batch, *tensor.shape) or array.dtype != tensor.dtype:
        raise DeployError(
            f"TensorRT: input {tensor.name!r}", expected=f"{tensor.dtype} {(batch, *tensor.shape)}",
            got=f"{array.dtype} {array.shape}", hint="Check the obs_mode and the history of the environment.",
        )  # fmt: skip
    return array


def _failed(what: str) -> DeployError:
    return DeployError(
        "TensorRT", expected=f"{what} to succeed", got="a failure (TensorRT's messages are above)",
        hint="Delete the entry in the engine cache and start again; report it if it stays.",
    )  # fmt: skip


def _release(libraries: Libraries, addresses: dict[str, int], stream: Any) -> None:
    """Give buffers and stream back; errors are past caring for, the process may be ending."""
    for address in addresses.values():
        libraries.cuda.cudaFree(address)
    libraries.cuda.cudaStreamDestroy(stream)
