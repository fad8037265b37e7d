"""`mode` and `denoising_steps` of the stages that play, serve or export a diffusion policy."""

from __future__ import annotations

import copy
from typing import Any

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.few_steps import few_steps
from robot_rl.errors import PolicyError


def sampled(policy: Any, *, mode: SamplingMode | None, denoising_steps: int | None, where: str) -> Any:
    """The policy under another sampling mode and with fewer denoising steps (algorithms/few_steps.py), where they are given.

    Args:
        policy: a loaded Policy.
        mode, denoising_steps: null: the policy's own.
        where: its run, for errors.

    Raises:
        PolicyError: one is given and the policy has none, or more steps than levels.
    """
    if mode is not None:
        _require(policy, "with_mode", f"mode={mode.value}", where=where, hint="Leave `mode` out for a one-step policy.")
        policy = policy.with_mode(mode)
    if denoising_steps is not None:
        hint = "Leave `denoising_steps` out: a head has the steps that it was distilled for."
        _require(policy, "with_steps", f"denoising_steps={denoising_steps}", where=where, hint=hint)
        policy = with_few_steps(policy, denoising_steps)
    return policy


def with_few_steps(policy: Any, num_steps: int) -> Any:
    """The weights (shared, not copied) and mode of a diffusion policy with few denoising steps; see few_steps.

    Raises:
        PolicyError: no step, or more steps than levels.
    """
    other = copy.copy(policy)  # of a module: it shares the tables of parameters and submodules
    other.sampler = few_steps(policy.sampler, num_steps)
    return other


def _require(policy: Any, method: str, word: str, *, where: str, hint: str) -> None:
    if not hasattr(policy, method):
        raise PolicyError(where, expected=f"a diffusion policy for {word}", got=type(policy).__name__, hint=hint)


def refuse_of_a_file(*, mode: SamplingMode | None, denoising_steps: int | None, where: str) -> None:
    """Refuse both for an .onnx file.

    Raises:
        PolicyError: one of them is given.
    """
    for name, value in (("mode", None if mode is None else mode.value), ("denoising_steps", denoising_steps)):
        if value is not None:
            raise PolicyError(
                where, expected=f"no {name} for an .onnx file, which was exported with its own", got=f"{name}={value}",
                hint=f"Leave `{name}` out, or give the run that was exported.",
            )  # fmt: skip
