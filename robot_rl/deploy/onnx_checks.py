"""Checks of an exported file before an engine is built from it, and of the engine before it may act.

The limits are those that NVIDIA states for TensorRT 10.15 (onnx-tensorrt, docs/operators.md); older versions of 10 know
less, and then TensorRT's own parser refuses the file with the name of the operator.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robot_rl.arrays import Array
from robot_rl.deploy.onnx_policy import FORMAT
from robot_rl.errors import DeployError
from robot_rl.specs import EnvSpec

METADATA = ("spec", "config", "sampling", "noise")
# Value of the metadata field `precision`, and name of the field with the errors that the export measured.
INT8 = "int8"
FIRST_OPSET, LAST_OPSET = 9, 24
UNSUPPORTED = {
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
    "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "ImageDecoder",
    "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss",
    "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
    "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit",
    "TfIdfVectorizer", "Unique",
}  # fmt: skip
# TensorRT takes these and ignores their seed: the policy would act differently at each start.
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
PARITY_SEEDS = range(4)


@dataclass(frozen=True)
class GraphTensor:
    """One input or output of a graph.

    Attributes:
        name: in the graph.
        dtype: numpy name, "float32" or (images) "uint8".
        shape: behind the batch dimension.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphFacts:
    """What `read_graph` found in a file.

    Attributes:
        inputs, outputs: in the order of the graph.
        opset: of the standard domain.
        domains: other operator domains that the file wants.
        operators: names of all operators, those in inner graphs and functions too.
    """

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    opset: int
    domains: frozenset[str]
    operators: frozenset[str]

    @property
    def is_quantised(self) -> bool:
        """Whether it rounds to integers (Q/DQ nodes)."""
        return "QuantizeLinear" in self.operators


@runtime_checkable
class GraphSession(Protocol):
    """What runs a graph: an onnxruntime session or an EngineSession."""

    def run(self, names: Sequence[str], feed: dict[str, Array]) -> list[Array]:
        """Outputs `names` for the inputs `feed`, numpy, batch first."""


def read_graph(path: str | Path) -> GraphFacts:
    """Inputs, outputs and operators of an exported policy, checked.

    Raises:
        DeployError: no onnx package, a damaged file, metadata that isn't ours, weights outside the file, a dynamic
            dimension that is not the batch, a fixed batch, or an input or output that is not float32 (images: uint8).
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise DeployError(
            str(path), expected="the onnx package", got="no module onnx",
            hint="pip install 'robot-rl[export-gpu]' ([export] on a computer without a GPU).",
        ) from error  # fmt: skip
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, onnx.checker and the file system all have their own classes
        raise DeployError(
            str(path), expected="a valid ONNX file", got=(str(error).splitlines() or [type(error).__name__])[0],
            hint="The file is damaged or has its weights beside it; export it again with `robot-rl export`.",
        ) from error  # fmt: skip
    meta = _metadata(path, model)
    weights = {tensor.name for tensor in model.graph.initializer}
    facts = GraphFacts(
        inputs=tuple(_tensor(onnx, path, value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_tensor(onnx, path, value) for value in model.graph.output),
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        domains=frozenset(entry.domain for entry in model.opset_import) - {"", "ai.onnx"},
        operators=frozenset(node.op_type for graph in [model.graph, *model.functions] for node in _nodes(graph)),
    )
    names = {tensor.name for tensor in facts.inputs}, [tensor.name for tensor in facts.outputs]
    wanted = {*meta["config"]["observation_keys"], *_beside_observation(meta)}, ["actions"]
    if names != wanted:
        raise DeployError(
            str(path), expected=f"inputs {sorted(wanted[0])} and outputs {wanted[1]}",
            got=f"inputs {sorted(names[0])} and outputs {names[1]}", hint="Export the policy again.",
        )  # fmt: skip
    return facts


def _metadata(path: str | Path, model: Any) -> dict[str, Any]:
    meta = {entry.key: entry.value for entry in model.metadata_props}
    missing = [key for key in METADATA if key not in meta]
    if meta.get("format") != FORMAT or missing:
        raise DeployError(
            f"{path}: metadata", expected=f"format {FORMAT!r} and {list(METADATA)}",
            got=f"format {meta.get('format')!r}, missing {missing}",
            hint="Export the policy with `robot-rl export`; other ONNX files lack the spec and the noise rule.",
        )  # fmt: skip
    return {key: json.loads(text) for key, text in meta.items() if key in (*METADATA, "rti")}


def _beside_observation(meta: dict[str, Any]) -> tuple[str, ...]:
    """Inputs of the graph beside the observation: an rti.onnx starts from a guess, and may draw nothing."""
    if "rti" not in meta:
        return ("noise",)
    return ("guess", "noise") if meta["rti"]["noise_draws"] else ("guess",)


def _tensor(onnx: Any, path: str | Path, value: Any) -> GraphTensor:
    kind = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    dtype = {"float": "float32"}.get(dtype, dtype)
    if dtype != "float32" and not (dtype == "uint8" and value.name.startswith("image/")):
        raise DeployError(
            f"{path}: {value.name!r}", expected="float32 (uint8 for images)", got=dtype,
            hint="Inputs and outputs stay float32, also for an fp16 engine; export the policy again.",
        )  # fmt: skip
    dims = [dim.dim_param or dim.dim_value or "?" for dim in kind.shape.dim]
    if not dims or isinstance(dims[0], int):
        raise DeployError(
            f"{path}: {value.name!r}", expected="a dynamic batch on axis 0", got=f"shape {dims}",
            hint="Export with a batch of at least 2 and dimension 0 dynamic, as `robot-rl export` does.",
        )  # fmt: skip
    if not all(isinstance(dim, int) for dim in dims[1:]):
        raise DeployError(
            f"{path}: {value.name!r}", expected="fixed dimensions behind the batch", got=f"shape {dims}",
            hint="Only the batch may be dynamic: the engine's profile names one range. Export the policy again.",
        )  # fmt: skip
    return GraphTensor(value.name, dtype, tuple(int(dim) for dim in dims[1:]))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def check_for_tensorrt(path: str | Path, facts: GraphFacts) -> None:
    """Refuse what TensorRT 10 can't build, before minutes are spent on it.

    Raises:
        DeployError: naming the opset, the domains or the operators.
    """
    if not FIRST_OPSET <= facts.opset <= LAST_OPSET:
        raise DeployError(
            f"{path}: opset", expected=f"{FIRST_OPSET} to {LAST_OPSET} for TensorRT 10", got=str(facts.opset),
            hint="Export the policy again; `robot-rl export` writes opset 20.",
        )  # fmt: skip
    refused = sorted(facts.operators & (UNSUPPORTED | RANDOM))
    if refused or facts.domains:
        raise DeployError(
            f"{path}: operators", expected="standard ONNX operators that TensorRT 10 has, and no random ones",
            got=", ".join([*refused, *(f"domain {domain!r}" for domain in sorted(facts.domains))]),
            hint="Take them out of the policy (noise is an input), or run with runtime=onnx.",
        )  # fmt: skip


def seeded_feed(facts: GraphFacts, spec: EnvSpec, *, batch: int, seed: int) -> dict[str, Array]:
    """Random inputs of a graph: uniform within the spec's bounds where it has finite ones, else standard normal."""
    rng = np.random.default_rng([seed, batch])
    feed: dict[str, Array] = {}
    for tensor in facts.inputs:
        shape = (batch, *tensor.shape)
        bounds = spec.observation.get(tensor.name)
        if tensor.dtype == "uint8":
            feed[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
            continue
        value = rng.standard_normal(shape)
        if bounds is not None and bounds.low is not None and bounds.high is not None:
            low, high = np.reshape(bounds.low, bounds.shape), np.reshape(bounds.high, bounds.shape)
            finite = np.isfinite(low) & np.isfinite(high)
            drawn = rng.random(shape) * np.where(finite, high - low, 0) + np.where(finite, low, 0)
            value = np.where(finite, drawn, value)
        feed[tensor.name] = value.astype(np.float32)
    return feed


def is_int8(metadata: Mapping[str, Any]) -> bool:
    """Whether the products of an exported file are int8 (Q/DQ), from its metadata."""
    return metadata.get("precision") == INT8


def arithmetic(metadata: Mapping[str, Any], floats: str) -> str:
    """Name of the arithmetic of an exported file whose floats a runtime computes in `floats`: that, "int8", or "int8, bf16"."""
    if not is_int8(metadata):
        return floats
    return INT8 if floats == "fp32" else f"{INT8}, {floats}"


def allowed_difference(metadata: Mapping[str, Any], usual: float) -> float:
    """Allowed difference of two right runtimes of one file, action units: `usual`, largest; of an int8 file root mean square.

    Where the float32 sums of two runtimes differ in the last bit, a value is rounded to the next step of int8, and what follows
    differs as two roundings of one policy do. Each is as far from the trained policy as the export measured (in the metadata, the
    largest of its cases); if they are independent, they are sqrt(2) times that apart. The largest difference of a few draws says
    little then: an element with two values may flip.
    """
    if not is_int8(metadata):
        return usual
    return max(usual, math.sqrt(2) * max(float(case["rms_error"]) for case in metadata[INT8].values()))


def check_parity(
    reference: GraphSession, candidate: GraphSession, *, facts: GraphFacts, spec: EnvSpec, max_batch: int,
    tolerance: float, where: str, hint: str,
) -> dict[str, float]:  # fmt: skip
    """Difference of two sessions' actions on seeded inputs at batch 1, 3 and `max_batch`, by batch; see allowed_difference.

    It is the largest one; of a file that rounds to integers the root mean square.

    Args:
        reference: onnxruntime on the CPU.
        candidate: what is going to act.
        facts: of the graph.
        spec: gives the bounds of the inputs.
        max_batch: largest batch that the candidate takes.
        tolerance: allowed difference, action units.
        where, hint: for the error; see parity_hint.

    Raises:
        DeployError: a difference above `tolerance`; NaN counts as infinite.
    """
    errors = {}
    for batch in sorted({1, min(3, max_batch), max_batch}):
        away = list[Array]()
        for seed in PARITY_SEEDS:
            feed = seeded_feed(facts, spec, batch=batch, seed=seed)
            (expected,) = reference.run(["actions"], feed)
            (got,) = candidate.run(["actions"], feed)
            away.append(np.abs(np.asarray(expected) - np.asarray(got)))
        difference = float(np.sqrt(np.mean(np.square(away))) if facts.is_quantised else np.max(away))
        errors[f"batch_{batch}"] = difference if np.isfinite(difference) else float("inf")
    worst = max(errors.values())
    if not worst <= tolerance:
        raise DeployError(
            where, expected=f"the same actions as onnxruntime on the CPU within {tolerance:g} action units",
            got=f"a difference of {worst:g} ({errors})", hint=hint,
        )  # fmt: skip
    return errors


def parity_hint(software: str, precision: str, *, instead: str = "runtime=onnx") -> str:
    """What to try where a runtime does not give the same actions.

    Args:
        software: whose version it may be.
        precision: that it computed in.
        instead: option that runs the file without it.
    """
    first = "" if precision == "fp32" else "precision=fp32, "
    return f"It does not act. Try {first}another version of {software}, or {instead}."
