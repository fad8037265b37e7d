"""`mode` and `denoising_steps` of the stages that play, serve or export a diffusion policy."""

from __future__ import annotations

from typing import Any

from robot_rl.algorithms.diffusion import SamplingMode
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
        if not hasattr(policy, "with_mode"):
            raise PolicyError(
                where, expected=f"a diffusion policy for mode={mode.value}", got=type(policy).__name__,
                hint="Leave `mode` out for a one-step policy.",
            )  # fmt: skip
        policy = policy.with_mode(mode)
    if denoising_steps is not None:
        if not hasattr(policy, "with_few_steps"):
            raise PolicyError(
                where, expected=f"a diffusion policy for denoising_steps={denoising_steps}", got=type(policy).__name__,
                hint="Leave `denoising_steps` out: a head has the steps that it was distilled for.",
            )  # fmt: skip
        policy = policy.with_few_steps(denoising_steps)
    return policy


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
