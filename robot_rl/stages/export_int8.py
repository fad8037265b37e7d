"""policy_int8.onnx beside policy.onnx: the large products of the denoiser in int8, static quantisation with Q/DQ nodes.

Source: Jacob et al., arXiv 1712.05877 (affine quantisation, here symmetric: int8 weights per output channel, int8 activations per
tensor), by onnxruntime.quantization. Scales of activations are the largest magnitudes that the very graph shows for recorded
observations and seeded noise; every denoising step has its own.

Only a product behind `noise` with a constant matrix of at least MIN_WEIGHTS numbers is quantised: the encoder, the projection
of the observation, the first and the last layer and everything between the products stay float32, as do inputs and outputs.
Biases are added in float32, so there is no int32 DequantizeLinear, which TensorRT lacks; zero points are zero, as it wants.

What int8 costs is measured and never assumed: `action_errors` against the policy in torch, in action units; `evaluate` for
success.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array
from robot_rl.deploy.onnx_checks import INT8
from robot_rl.deploy.onnx_policy import OnnxPolicy, measure_latency
from robot_rl.errors import DeployError
from robot_rl.runs.directory import RunDirectory, read_json
from robot_rl.types import Observation

log = logging.getLogger(__name__)

NAME = "policy_int8.onnx"
# A smaller matrix fits the first-level cache in float32 too: its product gains nothing, and its rounding is not free.
MIN_WEIGHTS = 2**15
CALIBRATION_BATCH = 25


class Quantize(str, Enum):
    """Arithmetic of the second file that `export` writes."""

    int8 = "int8"


class NothingToQuantiseError(DeployError):
    """No product of the file is large enough for int8, or it is in int8 already."""


@dataclass(frozen=True)
class Int8Options:
    """How the int8 file is made and judged.

    Attributes:
        tolerance: largest allowed difference to torch on recorded observations, action units; None: it is only reported.
        threads: of onnxruntime.
        latency_calls: measured calls.
        seed: of the noise, for calibration and for the comparison.
    """

    tolerance: float | None = None
    threads: int = 1
    latency_calls: int = 500
    seed: int = 0


def add_int8(
    run: RunDirectory, policy: Any, calibration: Observation, cases: Mapping[str, Observation], options: Int8Options
) -> dict[str, Any]:
    """Write export/policy_int8.onnx, and what it costs and gains into parity.json and latency.json under "int8".

    Args:
        run: of the export; export/policy.onnx, parity.json and latency.json are there.
        policy: in torch, as it was trained.
        calibration: recorded observations (M, To, ...), torch.
        cases: "recorded" and "random" observations to compare at, torch; other draws than `calibration`.
        options: see Int8Options.

    Returns:
        Fields for the summary: file, bytes, counts of products, errors by case, latency.

    Raises:
        DeployError: nothing to quantise, calibration with NaN, a file without sense, or an error above the tolerance. The
            file is kept as policy_int8.onnx.rejected then; policy.onnx stays.
    """
    folder = run.path / "export"
    path, temporary = folder / NAME, folder / f"{NAME}.tmp"
    noise = _noise(policy, len(calibration.proprio), seed=options.seed + 1)
    facts = quantise(folder / "policy.onnx", temporary, feeds(policy.config.observation_keys, calibration, noise))
    errors = note_errors(policy, temporary, cases, seed=options.seed)
    if np.isfinite(
        [found["max_error"] for found in errors.values()]
    ).all():  # JSON has no infinity; the error below tells
        run.write_json("export/parity.json", read_json(folder / "parity.json") | {"int8": facts | errors})
    fault = _fault(errors["recorded"], options.tolerance)
    if fault is not None:
        rejected = folder / f"{NAME}.rejected"
        os.replace(temporary, rejected)
        expected, got = fault
        raise DeployError(
            str(rejected), expected=expected, got=got,
            hint="See int8 in export/parity.json; policy.onnx is not touched. Record more observations, or deploy policy.onnx.",
        )  # fmt: skip
    os.replace(temporary, path)
    first = cases["recorded"].map(lambda x: x[:1].numpy())
    latency = measure_latency(OnnxPolicy(path, threads=options.threads), first, calls=options.latency_calls)
    run.write_json("export/latency.json", read_json(folder / "latency.json") | {"int8": latency})
    found = errors["recorded"]
    log.info(
        "int8: %d of %d products, error %.2g at most, %.2g rms action units (spread of the actions %.2g), p50 %.2f ms, %.1f MB; "
        "success was not measured: evaluate policy=%s",
        facts["quantised_products"], facts["products"], found["max_error"], found["rms_error"], found["spread"],
        latency["p50_ms"], path.stat().st_size / 1e6, path,
    )  # fmt: skip
    return {"onnx": str(path), "bytes": path.stat().st_size, "latency": latency} | facts | errors


def as_metrics(added: Mapping[str, Any]) -> dict[str, float]:
    """What `add_int8` returned, for metrics.jsonl."""
    found = {f"export/int8_{name}": float(added["recorded"][name]) for name in ("max_error", "rms_error")}
    return found | {f"export/int8_latency_{q}_ms": float(added["latency"][f"{q}_ms"]) for q in ("p50", "p99")}


def _fault(found: Mapping[str, float], tolerance: float | None) -> tuple[str, str] | None:
    """What was expected and what came, where a file must not be used; None where it may."""
    told = f"{found['max_error']:.3g} at most, {found['rms_error']:.3g} rms"
    if not found["rms_error"] <= found["spread"]:
        # An answer that ignores the observation would be nearer.
        return f"an int8 error below the spread of the actions, {found['spread']:.3g} rms", told
    if tolerance is not None and not found["max_error"] <= tolerance:
        return f"an int8 error of at most int8_tolerance={tolerance} action units", told
    return None


def _noise(policy: Any, number: int, *, seed: int) -> torch.Tensor:
    return torch.randn((number, *policy.noise_shape), generator=torch.Generator().manual_seed(seed))


def feeds(keys: Sequence[str], observation: Observation, noise: torch.Tensor) -> Iterator[dict[str, Array]]:
    """Inputs of the graph, CALIBRATION_BATCH rows at a time.

    Raises:
        DeployError: a number that is not finite.
    """
    arrays = {key: np.asarray(array) for key, array in observation.arrays().items() if key in keys}
    arrays["noise"] = noise.numpy()
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise DeployError(
                f"calibration of int8: {key!r}", expected="finite numbers", got="NaN or infinity",
                hint="Check the dataset: `robot-rl data check DATASET`.",
            )  # fmt: skip
    for begin in range(0, len(noise), CALIBRATION_BATCH):
        yield {key: array[begin : begin + CALIBRATION_BATCH] for key, array in arrays.items()}


def note_errors(policy: Any, path: Path, cases: Mapping[str, Observation], *, seed: int) -> dict[str, dict[str, float]]:
    """`action_errors` of an int8 file for each case, which its metadata states from now on; other runtimes are held to them."""
    exported = OnnxPolicy(path)
    errors = {name: action_errors(policy, exported, case, seed=seed) for name, case in cases.items()}
    _add_metadata(path, {INT8: errors})
    return errors


def action_errors(policy: Any, exported: OnnxPolicy, observation: Observation, *, seed: int) -> dict[str, float]:
    """Difference of a file's actions to those of the torch policy, action units; not finite counts as infinite.

    Returns:
        `max_error`, `rms_error`, and `spread`: root mean square deviation of torch's actions from their mean over the cases.
    """
    noise = _noise(policy, len(observation.proprio), seed=seed)
    with torch.inference_mode():
        expected = policy.act(observation, noise).actions.numpy()
    got = exported.act(observation.map(lambda x: x.numpy()), noise.numpy()).actions
    away = np.where(np.isfinite(got), got - expected, np.inf)
    deviation = expected - expected.mean(axis=0, keepdims=True)
    return {
        "max_error": float(np.abs(away).max()), "rms_error": float(np.sqrt(np.mean(np.square(away)))),
        "spread": float(np.sqrt(np.mean(np.square(deviation)))),
    }  # fmt: skip


def quantise(
    source: Path, target: Path, inputs: Iterator[dict[str, Array]], *, min_weights: int = MIN_WEIGHTS
) -> dict[str, int]:
    """Write `source` with its large products in int8 to `target`, metadata kept and `precision: int8` added.

    Args:
        source: an exported policy, float32.
        target: to write.
        inputs: of its graph, for the calibration.
        min_weights: of a matrix that is quantised.

    Returns:
        `products` behind the noise, `quantised_products`, and the `calibration_rows`.

    Raises:
        DeployError: no product is large enough, or `source` is quantised already.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = onnx.load(str(source))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    # onnxruntime makes a Gemm of a product of matrices and its bias again, and its int8 Gemm wants an int8 output; other products
    # are exacter and faster without.
    outputs_float = (
        [] if any(node.op_type == "Gemm" for node in _large_products(model.graph, min_weights)[0]) else ["MatMul"]
    )
    graph = ONNXModel(model)
    # One kind of product, and its bias apart.
    graph.replace_gemm_with_matmul()
    graph.clean_initializers()
    chosen, products = _large_products(graph.model.graph, min_weights)
    names = [node.name for node in chosen]
    if not names or "precision" in metadata:
        raise NothingToQuantiseError(
            str(source), expected=f"a float32 file with a product of at least {min_weights} weights behind the noise",
            got="an int8 file" if "precision" in metadata else f"{products} smaller products",
            hint="Export it with passes=[film,conv], which makes products of convolutions; a smaller network gains nothing by int8.",
        )  # fmt: skip
    # The exporter has optimised it; without this mark the library recommends that in a warning.
    onnx.helper.set_model_props(graph.model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    reader = _Reader(inputs)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        onnx.save_model(graph.model, str(prepared))
        quantize_static(
            prepared, target, reader, op_types_to_quantize=["MatMul"], nodes_to_quantize=names, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": outputs_float,
            },
        )  # fmt: skip
    written = onnx.load(str(target))
    onnx.helper.set_model_props(written, metadata)
    onnx.save_model(written, str(target))
    _add_metadata(target, {"precision": INT8})
    return {"products": products, "quantised_products": len(names), "calibration_rows": reader.rows}


def _add_metadata(path: Path, entries: Mapping[str, Any]) -> None:
    import onnx

    model = onnx.load(str(path))
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, kept | {key: json.dumps(value) for key, value in entries.items()})
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def _large_products(graph: Any, min_weights: int) -> tuple[list[Any], int]:
    """Products with a large constant matrix that depend on the noise, and how many there are of any size."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    moved, large, products = {"noise"}, list[Any](), 0
    for node in graph.node:  # sorted: ONNX wants it
        if not moved.intersection(node.input):
            continue
        moved.update(node.output)
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in sizes:
            products += 1
            large += [node] if sizes[node.input[1]] >= min_weights else []
    return large, products


class _Reader:
    """onnxruntime's CalibrationDataReader over an iterator."""

    def __init__(self, inputs: Iterator[dict[str, Array]]) -> None:
        self._inputs, self.rows = inputs, 0

    def get_next(self) -> dict[str, Array] | None:
        """The next inputs, None behind the last."""
        found = next(self._inputs, None)
        self.rows += 0 if found is None else len(found["noise"])
        return found
