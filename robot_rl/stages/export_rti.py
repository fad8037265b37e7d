"""rti.onnx beside policy.onnx: a decision that goes on from the rest of the last chunk, as a graph of its own (docs/rti.md).

The graph takes the guess in physical units and runs the denoising levels that remain. What jumps stays outside, in
deploy/rti_policy.py, with the numbers for it in the metadata. Parity: two decisions behind each other, in torch and in the
files, of random and of recorded observations; in the second one every other env sees what another one saw.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.deploy.engine_cache import file_sha256
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.deploy.rti_policy import RtiPolicy, TwoValues
from robot_rl.errors import DeployError, PolicyError
from robot_rl.stages.export_graph import example_inputs, write_graph
from robot_rl.types import Observation

NAME = "rti.onnx"
# Of the elements with two values that are compared, so many may be thresholded to the other end: values on the edge.
MOST_FLIPS = 1e-3


class WarmGraph(torch.nn.Module):
    """WarmStartedPolicy.graph as a pure function of named tensors, the form that is exported."""

    def __init__(self, warm: Any) -> None:
        super().__init__()
        self.policy, self.warm = warm.policy, warm
        self.keys = tuple(warm.config.observation_keys)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Observation tensors in the order of `keys`, the guess, and noise where it draws any; actions (N, Tp, A)."""
        arrays, rest = dict(zip(self.keys, inputs, strict=False)), inputs[len(self.keys) :]
        return self.warm.graph(arrays, rest[0], rest[1] if len(rest) > 1 else None)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RtiParity:
    """What two decisions of RTI differ by, torch against the files.

    Attributes:
        max_error: action units, of all that was not thresholded to the other end; inf for NaN.
        flips: elements with two values that were.
        two_valued: that were compared.
        unsure: envs whose second decision is not compared: an element of their first chunk is within `tolerance` of the
            middle, so that its sign in the guess is chance.
        decisions: counts in the files, by reason.
        torch_decisions: likewise in torch.
    """

    max_error: float
    flips: int
    two_valued: int
    unsure: int
    decisions: Mapping[str, int]
    torch_decisions: Mapping[str, int]

    def is_within(self, tolerance: float) -> bool:
        """Whether the files are this policy."""
        is_same = self.decisions == self.torch_decisions and self.decisions["warm"] > 0
        return is_same and self.max_error <= tolerance and self.flips <= MOST_FLIPS * self.two_valued

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class RtiOptions:
    """How rti.onnx is made and judged.

    Attributes:
        warm: see WarmStart.
        passes: see ExportConfig.
        tolerance: largest allowed difference to torch, action units.
        batches: numbers of envs that are compared.
        seed: of the noise of the comparison.
    """

    warm: WarmStart
    passes: tuple[ExportPass, ...]
    tolerance: float
    batches: tuple[int, ...] = (1, 3, 5)
    seed: int = 0


@dataclass(frozen=True)
class WrittenRti:
    """rti.onnx under its temporary name, and what was found out about it.

    Attributes:
        path: where it will be.
        temporary: where it is.
        policy: both files.
        told: for parity.json and the summary; JSON types.
    """

    path: Path
    temporary: Path
    policy: RtiPolicy
    told: dict[str, Any]

    def publish(self) -> None:
        """Give it its name."""
        os.replace(self.temporary, self.path)


def require_warm(policy: Any, warm: WarmStart, *, where: str) -> Any:
    """The WarmStartedPolicy of a policy.

    Raises:
        PolicyError: it has none, or its start is its noisiest level: there is nothing to export.
    """
    if not hasattr(policy, "warm_started"):
        raise PolicyError(
            where, expected="a run or checkpoint directory of a diffusion policy for rti", got=type(policy).__name__,
            hint="Leave rti out.",
        )  # fmt: skip
    found = policy.warm_started(warm)
    if found.is_full:
        raise PolicyError(
            where, expected=f"rti.level below the noisiest level, {found.sampler.levels[0]}", got=str(warm.level),
            hint="From there policy.onnx denoises; leave rti out, or start lower.",
        )  # fmt: skip
    return found


def write_rti(
    warm: Any, exported: OnnxPolicy, metadata: Mapping[str, str], cases: Mapping[str, Observation], options: RtiOptions
) -> WrittenRti:
    """Write rti.onnx.tmp beside the file of `exported` and compare both files with torch.

    Args:
        warm: see require_warm; without gradients.
        exported: policy.onnx, under whatever name; that very file is the one rti.onnx will go with.
        metadata: of policy.onnx, JSON texts.
        cases: observations (M, To, ...) to compare at, torch.
        options: see RtiOptions.

    Raises:
        PolicyError: see two_values.
        DeployError: another policy came out; the file is kept as rti.onnx.rejected.
    """
    path = Path(exported.path).parent / NAME
    temporary = path.with_suffix(".onnx.tmp")
    cheaper, applied = warm.for_export(options.passes)
    said = {"sampling": warm.sampling, "passes": [one.value for one in applied], "rti": _said(warm, exported)}
    write_graph(
        WarmGraph(cheaper), _inputs(warm), temporary,
        metadata=dict(metadata) | {key: json.dumps(value) for key, value in said.items()},
    )  # fmt: skip
    wanted = exported.provider
    policy = RtiPolicy(exported, OnnxPolicy(temporary, provider=wanted, threads=exported.threads))
    found = {name: rti_parity(warm, policy, case, options) for name, case in cases.items()}
    told = {
        "settings": warm.describe(), "passes": said["passes"], "tolerance": options.tolerance,
        "max_error": max(parity.max_error for parity in found.values()),
        **{name: parity.to_json() for name, parity in found.items()},
    }  # fmt: skip
    if not all(parity.is_within(options.tolerance) for parity in found.values()):
        rejected = path.with_suffix(".onnx.rejected")
        os.replace(temporary, rejected)
        raise DeployError(
            str(rejected), expected=f"the same decisions as RTI in torch within {options.tolerance}", got=json.dumps(told),
            hint="Nothing was replaced. Do not deploy this file; export without rti, or report it.",
        )  # fmt: skip
    return WrittenRti(path, temporary, policy, told)


def _inputs(warm: Any) -> dict[str, torch.Tensor]:
    inputs = dict(zip(warm.config.observation_keys, example_inputs(warm), strict=True))
    _draws, length, size = warm.noise_shape
    noise = {"noise": torch.zeros(2, warm.noise_draws, length, size)} if warm.noise_draws else {}
    return inputs | {"guess": torch.zeros(2, length, size)} | noise


def _said(warm: Any, exported: OnnxPolicy) -> dict[str, Any]:
    """What the metadata says under "rti"; see rti_policy.RtiPolicy."""
    policy = warm.policy
    maps, specs = policy.normalizer.to_json(), policy.spec.observation
    numbers = [
        key for key in policy.encoder.keys if len(specs[key].shape) == 1
    ]  # as WarmStartedPolicy looks for a jump
    return {
        "settings": warm.describe(),
        "policy_sha256": file_sha256(exported.path),
        "noise_draws": warm.noise_draws,
        "discrete": [asdict(two) for two in two_values(warm)],
        "frame": {key: {part: maps[key][part] for part in ("offset", "gain", "limit")} for key in numbers},
    }


def two_values(warm: Any) -> tuple[TwoValues, ...]:
    """The elements with two values in physical units, where WarmStartedPolicy has them normalised.

    Raises:
        PolicyError: the spec's bounds cut one of the two off.
    """
    policy, scale = warm.policy, warm.warm.sign_size
    shape, found = (1, *warm.noise_shape[1:]), []

    def inverted(value: float) -> list[float]:
        return policy.normalizer.invert("action", torch.full(shape, value))[0, -1].tolist()  # type: ignore[no-any-return]

    low, high = (policy.physical_action(torch.full(shape, end))[0, -1].tolist() for end in (-1.0, 1.0))
    down, middle, up = (inverted(value) for value in (-scale, 0.0, scale))
    for at in warm.discrete_at:
        if not low[at] < middle[at] <= high[at]:
            raise PolicyError(
                f"rti.discrete_at, element {at}", expected=f"bounds of the action on both sides of {middle[at]:g}",
                got=f"{low[at]:g} to {high[at]:g}", hint="Its two values in the training data are not both allowed.",
            )  # fmt: skip
        found.append(TwoValues(at, middle[at], (down[at], up[at]), (low[at], high[at])))
    return tuple(found)


def rti_parity(warm: Any, exported: RtiPolicy, observation: Observation, options: RtiOptions) -> RtiParity:
    """Two decisions of RTI in torch and in the files, at each of the batches.

    Args:
        warm: a WarmStartedPolicy; its counts begin anew.
        exported: the files, likewise.
        observation: (M, To, ...), torch.
        options: tolerance, batches and seed.
    """
    generator = torch.Generator().manual_seed(options.seed)
    count = len(observation.proprio)
    noises = torch.randn((2, count, *warm.noise_shape), generator=generator)
    other = np.arange(count)
    other[1::2] = (other[1::2] + 1) % count
    warm.counts, exported.counts = type(warm.counts)(), type(exported.counts)()
    errors, flips, two_valued, unsure = [0.0], 0, 0, 0
    for batch in options.batches:
        for begin in range(0, count, batch):
            rows = np.arange(begin, min(begin + batch, count))
            warm.reset(torch.ones(len(rows), dtype=torch.bool))
            exported.reset(np.ones(len(rows), bool))
            first = _both(warm, exported, _rows(observation, rows), noises[0, rows])
            second = _both(warm, exported, _rows(observation, other[rows]), noises[1, rows])
            is_sure = _is_sure(first[0], exported.discrete, options.tolerance)
            errors.append(_largest(np.abs(first[0] - first[1])))
            difference = np.abs(second[0] - second[1])[is_sure]
            for two in exported.discrete:
                part = difference[..., two.at]
                is_flip = np.abs(part - (two.ends[1] - two.ends[0])) <= options.tolerance
                flips, two_valued = flips + int(is_flip.sum()), two_valued + part.size
                part[is_flip] = 0.0
            errors.append(_largest(difference))
            unsure += int((~is_sure).sum())
    exported.reset(np.ones(1, bool))  # whoever asks next may ask for another number of envs
    return RtiParity(max(errors), flips, two_valued, unsure, exported.counts.to_json(), warm.counts.to_json())


def _both(
    warm: Any, exported: RtiPolicy, observation: Observation, noise: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        expected = warm.act(observation, noise).actions.numpy()
    return expected, exported.act(observation.map(lambda array: array.numpy()), noise.numpy()).actions


def _is_sure(actions: np.ndarray, discrete: Sequence[TwoValues], tolerance: float) -> np.ndarray:
    """Envs of which no element with two values is so near its middle that its sign is chance."""
    is_sure = np.ones(len(actions), bool)
    for two in discrete:
        is_sure &= (np.abs(actions[..., two.at] - two.middle) > tolerance).all(axis=1)
    return is_sure


def _largest(difference: np.ndarray) -> float:
    worst = float(difference.max(initial=0.0))
    return worst if np.isfinite(worst) else float("inf")


def _rows(observation: Observation, rows: np.ndarray) -> Observation:
    return observation.map(lambda array: array[torch.from_numpy(rows)])
