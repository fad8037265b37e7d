"""An exported policy on a robot computer: numpy and onnxruntime, no torch.

The .onnx file holds everything: normaliser, clip and layout are in its graph, physical units go in and out, and its
metadata holds the EnvSpec, joint names, horizon, executed steps and the noise rule.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import DeployError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

if TYPE_CHECKING:
    from robot_rl.deploy.rti_policy import RtiPolicy

FORMAT = "robot-rl policy 1"
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class OnnxPolicyConfig:
    """Shape of what an exported policy does; from the file's metadata.

    Attributes:
        observation_keys: inputs of the graph.
        history, horizon, execute: To, Tp, Ta.
    """

    observation_keys: tuple[str, ...]
    history: int
    horizon: int
    execute: int


class OnnxPolicy:
    """A policy from one .onnx file.

    Args:
        path: the file.
        provider: onnxruntime execution provider, e.g. "CPUExecutionProvider", "CUDAExecutionProvider".
        allow_cpu: go on with the CPU when `provider` does not load (stated in `provider` afterwards).
        threads: intra-op threads.
        provider_options: of `provider`, in onnxruntime's own names. Not given to the CPU that `allow_cpu` permits.

    Raises:
        DeployError: not an exported policy of ours, or the provider does not load.
    """

    device = None
    runtime = "onnx"

    def __init__(
        self, path: str | Path, *, provider: str = CPU_PROVIDER, allow_cpu: bool = False, threads: int = 1,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.path = str(path)
        self.session = _open_session(
            self.path, provider=provider, allow_cpu=allow_cpu, threads=threads, provider_options=provider_options or {}
        )
        self.provider: str = self.session.get_providers()[0]
        self.threads = threads
        meta = self.session.get_modelmeta().custom_metadata_map
        if meta.get("format") != FORMAT:
            raise DeployError(
                self.path, expected=f"metadata format {FORMAT!r}", got=repr(meta.get("format")),
                hint="Export the policy with `robot-rl export`; other ONNX files lack the spec and the noise rule.",
            )  # fmt: skip
        self.metadata: dict[str, Any] = {key: json.loads(value) for key, value in meta.items() if key != "format"}
        self.spec = EnvSpec.from_json(self.metadata["spec"], where=f"{self.path}, spec")
        plain = self.metadata["config"]
        self.config = OnnxPolicyConfig(**plain | {"observation_keys": tuple(plain["observation_keys"])})
        self.sampling: str = self.metadata["sampling"]
        self.noise_rule = NoiseRule(self.metadata["noise"]["rule"])
        self.noise_seed = int(self.metadata["noise"]["seed"])
        self.noise_shape: tuple[int, int, int] = tuple(self.metadata["noise"]["shape"])

    def act(self, observation: Observation, noise: Float32[Array, "N draws Tp A"]) -> ActionChunk:
        """Run the graph once; numpy in and out.

        Raises:
            DeployError: when a key the graph wants is missing, or the file is an rti.onnx alone.
        """
        if "rti" in self.metadata:
            raise DeployError(
                self.path, expected="a file that decides by itself", got="an rti.onnx, which goes on from a last chunk",
                hint="Open it with robot_rl.deploy.tensorrt_policy.open_policy, its policy.onnx beside it.",
            )  # fmt: skip
        (actions,) = self.session.run(["actions"], self.inputs(observation) | {"noise": noise})
        return ActionChunk(actions=actions, execute=self.config.execute)

    def inputs(self, observation: Observation) -> dict[str, Array]:
        """The inputs of the graph that an observation gives, by key.

        Raises:
            DeployError: a key is missing.
        """
        arrays = observation.arrays()
        missing = [key for key in self.config.observation_keys if key not in arrays]
        if missing:
            raise DeployError(
                f"{self.path}: observation", expected=f"keys {list(self.config.observation_keys)}", got=f"keys {sorted(arrays)}",
                hint=f"Provide {missing}; check the obs_mode of the environment or the robot's sensors.",
            )  # fmt: skip
        return {key: np.ascontiguousarray(arrays[key]) for key in self.config.observation_keys}

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Nothing to forget: an exported policy keeps no state between decisions."""

    def noise(self) -> NoiseSource:
        """The noise source that the file states."""
        return NoiseSource(rule=self.noise_rule, seed=self.noise_seed, shape=self.noise_shape)


def exported_file(policy: str) -> Path | None:
    """The .onnx file that `policy` names: that file (which may be missing), or the one of a run of `export`; None: neither."""
    inside = Path(policy) / "export" / "policy.onnx"
    if policy.endswith(".onnx"):
        return Path(policy)
    return inside if policy and inside.is_file() else None


def _open_session(
    path: str, *, provider: str, allow_cpu: bool, threads: int, provider_options: Mapping[str, str]
) -> Any:
    if not Path(path).is_file():
        raise DeployError(
            path, expected="an .onnx file", got="nothing there", hint="Run `robot-rl export policy=<run>` first."
        )
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise DeployError(
            path, expected="onnxruntime installed", got="no module onnxruntime",
            hint="pip install 'robot-rl[export]' (or [export-gpu] on a GPU machine; not both).",
        ) from error  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    available = onnxruntime.get_available_providers()
    wanted: list[str | tuple[str, dict[str, str]]] = []
    if provider in available:
        wanted.append((provider, dict(provider_options)) if provider_options else provider)
        if provider == TENSORRT_PROVIDER and CUDA_PROVIDER in available:
            wanted.append(CUDA_PROVIDER)  # for nodes that TensorRT does not take
    if not wanted and not allow_cpu:
        raise _provider_missing(path, provider, f"only {available} in this onnxruntime")
    if wanted and provider != CPU_PROVIDER and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from pip are found this way only, where no torch has loaded them
    try:
        session = onnxruntime.InferenceSession(path, options, providers=wanted or [CPU_PROVIDER])
    except Exception as error:  # onnxruntime raises its own undocumented classes for damaged files
        raise DeployError(
            path, expected="a model that onnxruntime can load", got=str(error).splitlines()[0],
            hint="The file is damaged or from a newer exporter: export it again."
            + ("" if provider == CPU_PROVIDER else f" Or {provider} can't run here: the message says why."),
        ) from error  # fmt: skip
    if session.get_providers()[0] != provider and not allow_cpu:
        raise _provider_missing(path, provider, f"it failed to load; running would be on {session.get_providers()}")
    return session


def _provider_missing(path: str, provider: str, got: str) -> DeployError:
    return DeployError(
        f"{path}: provider",
        expected=f"{provider}",
        got=got,
        hint="Install onnxruntime-gpu with matching CUDA (extra `export-gpu`), or set allow_cpu=true to accept the CPU.",
    )


def measure_latency(
    policy: OnnxPolicy | RtiPolicy, observation: Observation, *, calls: int = 200, warmup_calls: int = 20
) -> dict[str, Any]:
    """Wall-clock latency of `act` at the batch size of `observation`, warm-up excluded, first call apart.

    Returns p50, p95, p99, minimum and first call in milliseconds, with threads, provider, batch and load average.
    """
    batch = observation.proprio.shape[0]
    noise = policy.noise().draw([0] * batch, [0] * batch)
    seconds = []
    for _ in range(warmup_calls + calls):
        began = time.perf_counter()
        policy.act(observation, noise)
        seconds.append(time.perf_counter() - began)
    measured = 1e3 * np.array(seconds[warmup_calls:])
    return {
        "batch": batch,
        "calls": calls,
        "warmup_calls": warmup_calls,
        "threads": policy.threads,
        "provider": policy.provider,
        "first_ms": 1e3 * seconds[0],
        "min_ms": float(measured.min()),
        **{f"p{q}_ms": float(np.percentile(measured, q)) for q in (50, 95, 99)},
        "load_average_1min": os.getloadavg()[0],
    }
