"""An exported policy on an NVIDIA GPU: TensorRT itself, or ONNX Runtime's TensorRT and CUDA providers.

Not run on a GPU yet (docs/tensorrt.md). Whatever acts has first given the same actions as onnxruntime on the CPU, on
seeded inputs at several batch sizes, each time it is loaded. Nothing here goes on with the CPU unless `allow_cpu` says
so; TensorRT itself never does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.deploy.engine_cache import TOLERANCE, EngineCache, EngineKey, Precision, file_sha256
from robot_rl.deploy.onnx_checks import (
    GraphFacts,
    allowed_difference,
    arithmetic,
    check_for_tensorrt,
    check_parity,
    parity_hint,
    read_graph,
)
from robot_rl.deploy.onnx_policy import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER, OnnxPolicy
from robot_rl.deploy.tensorrt_engine import (
    EngineSession,
    Gpu,
    Libraries,
    UnreadablePlanError,
    build_plan,
    find_gpu,
    load_libraries,
)
from robot_rl.errors import DeployError

if TYPE_CHECKING:
    from robot_rl.deploy.rti_policy import RtiPolicy

log = logging.getLogger(__name__)

PLAN = "engine.plan"
ORT_GPU = "onnxruntime-gpu"
DEFAULT_CACHE = "~/.cache/robot-rl/engines"


class Runtime(str, Enum):
    """What runs an .onnx file: ONNX Runtime with one of its providers, OpenVINO, a TensorRT engine, or the fastest (autotune)."""

    onnx = "onnx"
    openvino = "openvino"
    tensorrt = "tensorrt"
    auto = "auto"


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built and kept.

    Attributes:
        cache: folder of built engines.
        precision: arithmetic inside the engine, or inside OpenVINO.
        max_batch: largest number of observations at once; part of the cache key.
        tolerance: largest allowed difference to the CPU, action units; null for 1e-3 (fp32), 2e-2 (fp16) or 5e-2 (bf16), and for
            what an int8 file needs where that is more.
    """

    cache: str = DEFAULT_CACHE
    precision: Precision = Precision.fp32
    max_batch: int = 16
    tolerance: float | None = None

    def allowed_difference(self, metadata: Mapping[str, Any]) -> float:
        """`tolerance`, or the default for the precision and the file with this metadata."""
        return allowed_difference(metadata, TOLERANCE[self.precision]) if self.tolerance is None else self.tolerance


class TensorRtPolicy(OnnxPolicy):
    """A policy from one .onnx file, run by a TensorRT engine that is built once and cached.

    Args:
        path: the file.
        options: see EngineOptions.
        threads: of onnxruntime while the engine is compared with the CPU.

    Raises:
        DeployError: not an exported policy of ours, one that TensorRT 10 can't take, no TensorRT, no GPU, or actions
            that differ from the CPU's by more than `options` allow.
    """

    runtime = "tensorrt"

    def __init__(self, path: str | Path, *, options: EngineOptions, threads: int = 1) -> None:
        _refuse_bf16(path, options)
        super().__init__(path, threads=threads)
        facts = read_graph(path)
        check_for_tensorrt(path, facts)
        libraries = load_libraries()
        key = engine_key(path, libraries, find_gpu(libraries), builder="tensorrt", options=options)
        cache = EngineCache(options.cache)
        # From here on the session of the CPU is only the answer that the engine has to repeat.
        engine = _cached_engine(cache, key, libraries, facts)
        if engine is None:
            engine = self._build(cache, key, libraries, facts, options)
        else:
            _parity(self, engine, facts=facts, options=options)
        self.session = engine
        self.provider = f"TensorRT {key.tensorrt} {arithmetic(self.metadata, key.precision.value)} on {key.gpu}"

    def _build(
        self, cache: EngineCache, key: EngineKey, libraries: Libraries, facts: GraphFacts, options: EngineOptions
    ) -> EngineSession:
        log.info("building a TensorRT engine for %s; this takes minutes, once", self.path)
        began = time.monotonic()
        with cache.staging(key) as folder:
            plan = build_plan(
                libraries, self.path, facts=facts, precision=options.precision, max_batch=options.max_batch
            )
            engine = EngineSession(libraries, plan, facts=facts, max_batch=options.max_batch)
            parity = _parity(self, engine, facts=facts, options=options)
            try:
                (folder / PLAN).write_bytes(plan)
            except OSError as error:
                raise DeployError(
                    str(folder), expected=f"room for an engine of {len(plan)} bytes", got=str(error),
                    hint="Free some space, or set engine_cache to another folder.",
                ) from error  # fmt: skip
            cache.publish(key, folder, facts={"parity": parity, "build_s": time.monotonic() - began})
        return engine


def _refuse_bf16(path: str | Path, options: EngineOptions) -> None:
    if options.precision is Precision.bf16:
        raise DeployError(
            f"{path}: precision=bf16",
            expected="fp32 or fp16 for TensorRT",
            got="bf16",
            hint="bf16 is for runtime=openvino.",
        )


def engine_key(path: str | Path, libraries: Libraries, gpu: Gpu, *, builder: str, options: EngineOptions) -> EngineKey:
    """What an engine built now from this file would depend on. Raises DeployError for a batch below 1."""
    if options.max_batch < 1:
        raise DeployError(
            "engine", expected="max_batch of at least 1", got=str(options.max_batch), hint="Set it to 1 for a robot."
        )
    return EngineKey(
        model_sha256=file_sha256(path), gpu=gpu.name, compute_capability=gpu.compute_capability,
        tensorrt=str(libraries.tensorrt.__version__), builder=builder, precision=options.precision, min_batch=1,
        max_batch=options.max_batch,
    )  # fmt: skip


def _cached_engine(cache: EngineCache, key: EngineKey, libraries: Libraries, facts: GraphFacts) -> EngineSession | None:
    entry = cache.find(key)
    if entry is None:
        return None
    try:
        return EngineSession(libraries, (entry / PLAN).read_bytes(), facts=facts, max_batch=key.max_batch)
    except (UnreadablePlanError, OSError) as error:
        cache.report(key, str(error))
        return None


def _parity(
    policy: OnnxPolicy, candidate: Any, *, facts: GraphFacts, options: EngineOptions, software: str = "TensorRT"
) -> dict[str, float]:
    instead = "runtime=onnx" if software == "TensorRT" else f"provider={CPU_PROVIDER}"
    errors = check_parity(
        policy.session, candidate, facts=facts, spec=policy.spec, max_batch=options.max_batch,
        tolerance=options.allowed_difference(policy.metadata), where=f"{policy.path}: parity",
        hint=parity_hint(software, options.precision.value, instead=instead),
    )  # fmt: skip
    kind, worst = "rms" if facts.is_quantised else "largest", max(errors.values())
    log.info("%s: %s difference to the CPU %.2g action units", policy.path, kind, worst)
    return errors


def provider_options(facts: GraphFacts, folder: Path, *, options: EngineOptions) -> dict[str, str]:
    """Options of ONNX Runtime's TensorrtExecutionProvider: its cache in `folder`, the precision and the batch range."""

    def shapes(batch: int) -> str:
        return ",".join(f"{t.name}:{'x'.join(str(n) for n in (batch, *t.shape))}" for t in facts.inputs)

    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_fp16_enable": "True" if options.precision is Precision.fp16 else "False",
        # The scales of a Q/DQ file stand in it; no calibration table is looked for.
        "trt_int8_enable": "True" if facts.is_quantised else "False",
        # Without explicit shapes the engine is built again for each new batch (onnxruntime #16889, #18272).
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(1),
        "trt_profile_max_shapes": shapes(options.max_batch),
    }


def open_policy(
    path: str | Path, *, runtime: Runtime = Runtime.onnx, provider: str = CPU_PROVIDER, allow_cpu: bool = False,
    threads: int = 1, options: EngineOptions | None = None,
) -> OnnxPolicy | RtiPolicy:  # fmt: skip
    """A policy from an .onnx file: see open_graph. Of an rti.onnx, with the policy.onnx beside it on the same runtime.

    runtime=auto measures the rti.onnx, which decides nearly always.

    Raises:
        DeployError: see open_graph and rti_policy.open_rti.
    """
    policy = open_graph(path, runtime=runtime, provider=provider, allow_cpu=allow_cpu, threads=threads, options=options)
    if "rti" not in policy.metadata:
        return policy
    from robot_rl.deploy.rti_policy import open_rti

    return open_rti(
        policy,
        lambda full: open_graph(
            full, runtime=Runtime(policy.runtime), provider=provider, allow_cpu=allow_cpu, threads=policy.threads,
            options=options,
        ),
    )  # fmt: skip


def open_graph(
    path: str | Path, *, runtime: Runtime = Runtime.onnx, provider: str = CPU_PROVIDER, allow_cpu: bool = False,
    threads: int = 1, options: EngineOptions | None = None,
) -> OnnxPolicy:  # fmt: skip
    """One .onnx file on whatever is asked for, compared with the CPU where it is a GPU.

    Args:
        path: the file.
        runtime: see Runtime.
        provider: onnxruntime's, for runtime=onnx.
        allow_cpu: go on with the CPU when `provider` does not load; without meaning for the other runtimes.
        threads: of onnxruntime or OpenVINO; runtime=auto measures which number is best.
        options: of engines; the defaults when None.

    Raises:
        DeployError: see TensorRtPolicy and OnnxPolicy; or fp16 where there is no way to get it.
    """
    options = EngineOptions() if options is None else options
    if runtime is Runtime.auto:
        from robot_rl.deploy.autotune import tuned_policy

        return tuned_policy(path, options=options)
    if runtime is Runtime.openvino:
        from robot_rl.deploy.openvino_policy import OpenVinoPolicy

        return OpenVinoPolicy(
            path, threads=threads, precision=options.precision, tolerance=options.tolerance,
            max_batch=options.max_batch,
        )  # fmt: skip
    if runtime is Runtime.tensorrt:
        return TensorRtPolicy(path, options=options, threads=threads)
    if provider == TENSORRT_PROVIDER:
        return _open_tensorrt_provider(path, allow_cpu=allow_cpu, threads=threads, options=options)
    if options.precision is not Precision.fp32:
        raise DeployError(
            f"{path}: precision={options.precision.value}", expected="a TensorRT engine", got=f"runtime=onnx provider={provider}",
            hint=f"Set runtime=tensorrt or provider={TENSORRT_PROVIDER} (bf16: runtime=openvino), or leave precision out.",
        )  # fmt: skip
    if provider != CUDA_PROVIDER:
        return OnnxPolicy(path, provider=provider, allow_cpu=allow_cpu, threads=threads)
    # TF32 has 11 bits too: off, so that fp32 means fp32.
    policy = OnnxPolicy(
        path, provider=provider, allow_cpu=allow_cpu, threads=threads, provider_options={"use_tf32": "0"}
    )
    if policy.provider == provider:
        reference = OnnxPolicy(path, threads=threads)
        _parity(reference, policy.session, facts=read_graph(path), options=options, software=ORT_GPU)
    return policy


def _open_tensorrt_provider(path: str | Path, *, allow_cpu: bool, threads: int, options: EngineOptions) -> OnnxPolicy:
    _refuse_bf16(path, options)
    reference = OnnxPolicy(path, threads=threads)
    import onnxruntime

    if TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
        return OnnxPolicy(path, provider=TENSORRT_PROVIDER, allow_cpu=allow_cpu, threads=threads)
    try:
        libraries = load_libraries()
        gpu = find_gpu(libraries)
    except DeployError as error:
        if not allow_cpu:
            raise
        log.warning("allow_cpu: %s runs on the CPU: %s", path, error)
        return reference
    facts = read_graph(path)
    check_for_tensorrt(path, facts)
    key = engine_key(path, libraries, gpu, builder=f"onnxruntime {onnxruntime.__version__}", options=options)
    cache = EngineCache(options.cache)

    def opened(folder: Path) -> tuple[OnnxPolicy, dict[str, float]]:
        policy = OnnxPolicy(
            path, provider=TENSORRT_PROVIDER, threads=threads,
            provider_options=provider_options(facts, folder, options=options),
        )  # fmt: skip
        return policy, _parity(reference, policy.session, facts=facts, options=options, software=ORT_GPU)

    entry = cache.find(key)
    if entry is not None:
        return opened(entry)[0]
    log.info("onnxruntime builds a TensorRT engine for %s; this takes minutes, once", path)
    began = time.monotonic()
    with cache.staging(key) as folder:
        policy, parity = opened(folder)
        cache.publish(key, folder, facts={"parity": parity, "build_s": time.monotonic() - began})
    return policy
