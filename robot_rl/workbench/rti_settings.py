"""The settings that `robot-rl rti tune` compares: samplers around one policy's weights, and one-step heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robot_rl.algorithms.diffusion import FinalAlpha, SamplingMode
from robot_rl.algorithms.warm_start import StartKind, WarmStart
from robot_rl.contracts import check_is_diffusion
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.runs.checkpoint import load_policy
from robot_rl.stages.sampling import with_few_steps

REFERENCE = "own sampler"


@dataclass(frozen=True)
class Setting:
    """One way to act.

    Attributes:
        name: of the row.
        kind: full, ddim (fewer steps), rti, plain (RTI without the handling of two-valued elements), clean (that from a
            start without noise) or one.
        policy: a Policy.
        forwards: of the network, a warm decision.
    """

    name: str
    kind: str
    policy: Any
    forwards: int


def reference_of(run: str) -> Setting:
    """The policy with its own sampler.

    Args:
        run: run or checkpoint of a diffusion policy.

    Raises:
        PolicyError: no diffusion policy.
    """
    policy = _loaded(run)
    check_is_diffusion(policy, run, hint="RTI starts a chain of denoising steps; a one-step head has none.")
    return Setting(REFERENCE, "full", policy, policy.sampler.num_steps)


def settings_beside(
    reference: Setting, *, levels: Sequence[int], forwards: Sequence[int], one_step: Sequence[str], ddpm: bool,
    max_jump: float,
) -> list[Setting]:  # fmt: skip
    """All settings of a study but the reference.

    Args:
        reference: see reference_of.
        levels: RTI starts from; those at or above the noisiest level of the policy are left out.
        forwards: of RTI and of DDIM.
        one_step: runs of heads.
        ddpm: also every level, with noise.
        max_jump: see WarmStart.

    Raises:
        PolicyError: a head of another environment.
        ConfigError: no level is below the noisiest one.
    """
    policy = reference.policy
    own = policy.sampler
    out: list[Setting] = []
    if ddpm:
        out.append(Setting(f"DDPM, {own.num_levels} steps", "ddim", as_ddpm(policy), own.num_levels))
    counts = [count for count in sorted({*forwards, 5}, reverse=True) if count < own.num_steps]
    for count in counts:
        spread, leading = as_short_ddim(policy, count), policy.with_steps(count, mode=SamplingMode.eta0)
        out.append(Setting(f"DDIM, {count} steps", "ddim", spread, count))
        # Neither is the better one everywhere: RTI has to beat both.
        if leading.sampler.levels != spread.sampler.levels:
            out.append(Setting(f"DDIM, {count} steps, leading levels", "ddim", leading, count))
    starts = [level for level in levels if level < own.levels[0]]
    if not starts:
        raise ConfigError(
            "rti tune --levels", expected=f"a level below {own.levels[0]}, the policy's noisiest", got=str(list(levels)),
            hint="At the noisiest level RTI is full denoising.",
        )  # fmt: skip
    for level in starts:
        for count in forwards:
            if count <= min(own.num_steps, level - own.levels[-1] + 1):
                out += _warm(policy, WarmStart(level=level, steps=count, max_jump=max_jump))
    for path in one_step:
        head = _loaded(path)
        if head.spec != policy.spec:
            raise PolicyError(
                path, expected=f"a head of {policy.spec.env_id}", got=head.spec.env_id, hint="Another run?"
            )
        steps = getattr(getattr(head, "sampler", None), "num_steps", 1)
        out.append(
            Setting(f"one-step head {Path(path).name}" if len(one_step) > 1 else "one-step head", "one", head, steps)
        )
    return out


def _warm(policy: Any, warm: WarmStart) -> list[Setting]:
    """RTI at one level: from noise with two-valued elements handled, and not, and from the last chunk itself."""
    name, count = f"RTI, level {warm.level}, {warm.steps} steps", int(warm.steps or 0)
    handled = policy.warm_started(warm)
    out = [Setting(name, "rti", handled, count)]
    plain = replace(warm, discrete_at=())
    if handled.discrete_at:
        out.append(Setting(f"{name}, gripper not handled", "plain", policy.warm_started(plain), count))
    # With the sign at 0.1, RTI-DP's way for this start, PickCube fell to 67 and 409 of 500 (docs/rti.md).
    clean = policy.warm_started(replace(plain, start=StartKind.clean))
    return [*out, Setting(f"{name}, clean start", "clean", clean, count)]


def as_short_ddim(policy: Any, steps: int) -> Any:
    """A policy's weights under DDIM with few steps, spread as `denoising_steps` of `evaluate` and `export` does.

    `with_steps`, diffusers' leading levels, starts a chain where unit noise is no sample, and the noisiest level of all made a
    baseline that fails (StackCube: 0 of 500).
    """
    return with_few_steps(policy.with_mode(SamplingMode.eta0), steps)


def as_ddpm(policy: Any) -> Any:
    """A policy's weights under DDPM: every level, down to the clean sample, and all but without RL's noise floor."""
    other = policy.with_mode(SamplingMode.eta1)
    own = other.sampler
    levels = tuple(reversed(range(own.num_levels)))
    other.sampler = replace(own, levels=levels, final_alpha=FinalAlpha.one, mode=SamplingMode.eta1, sigma_min=1e-6)
    return other


def _loaded(run: str) -> Any:
    policy, _spec, _checkpoint = load_policy(Path(run))
    policy.eval()
    return policy
