"""RTI around a diffusion policy: the rest of the last chunk starts the next decision (robot_rl/algorithms/warm_start.py).

It falls back to full denoising where there is no chunk to start from (first call, after `reset`) and where the observation
jumped. Every row keeps its own state, so a batch plays what its envs would play one by one.
deploy/rti_policy.py is the same policy as two exported files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.diffusion import sample_final
from robot_rl.algorithms.warm_start import (
    StartKind,
    WarmStart,
    measured_contraction,
    remaining_sampler,
    scale_discrete,
    start_latent,
    threshold_discrete,
    watched_frame,
)
from robot_rl.arrays import Array, Bool, Float32
from robot_rl.data.element_names import gripper_elements
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.warm_memory import WarmCounts, WarmMemory
from robot_rl.errors import PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation
from robot_rl.wrapped_policy import WrappedPolicy

from .acting import ACTION, check_noise


class WarmStartedPolicy(WrappedPolicy):
    """A Policy around a diffusion policy; its weights and its sampling mode are those of the policy.

    Args:
        policy: a DiffusionPolicy or LeRobotDiffusionPolicy, in the sampling mode to use.
        warm: see WarmStart.

    Raises:
        ConfigError: a number of `warm` out of range.
        PolicyError: a level that its sampler does not have, or an element that the action lacks.
    """

    starts_warm = True

    def __init__(self, policy: Any, warm: WarmStart) -> None:
        warm.validate()
        super().__init__(policy)
        self.warm = warm
        self.sampler = remaining_sampler(policy.sampler, warm.level, warm.steps)
        self.is_full = self.sampler == policy.sampler
        still = policy.normalizer.near_constant(ACTION)
        self.discrete_at = tuple(at for at in _discrete_elements(policy.spec, warm) if at not in still)
        self.counts = WarmCounts()
        self._memory = WarmMemory()

    @property
    def sampling(self) -> str:
        """How it samples, for reports."""
        levels = ", ".join(map(str, self.sampler.levels))
        return f"rti ({self.warm.start.value}) at levels {levels}; first {self.policy.sampling}"

    def describe(self) -> dict[str, Any]:
        """JSON types for the protocol of an evaluation: the settings, with the levels and elements that they came to."""
        settings = asdict(self.warm) | {"start": self.warm.start.value, "discrete_scale": self.warm.sign_size}
        settings |= {"max_jump": self.warm.jump_limit}
        return settings | {"levels": list(self.sampler.levels), "discrete_at": list(self.discrete_at)}

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(draws, Tp, A) of full denoising; a warm start reads the first of the draws."""
        shape: tuple[int, int, int] = self.policy.noise_shape
        return shape

    @property
    def noise_draws(self) -> int:
        """How many of the draws a warm start reads; 0 where nothing is drawn."""
        is_drawn = self.warm.start is StartKind.noised or self.sampler.noise_draws > 1
        return self.sampler.noise_draws if is_drawn else 0

    def for_export(self, passes: Sequence[ExportPass]) -> tuple[WarmStartedPolicy, tuple[ExportPass, ...]]:
        """This policy in cheaper operators at the levels of its warm start, for `graph`, and the passes that applied."""
        inner, other = copy.copy(self.policy), copy.copy(self)
        inner.sampler = self.sampler
        other.policy, applied = inner.for_export(passes)
        return other, applied

    def graph(
        self, arrays: Mapping[str, Array], guess: Float32[Array, "N G A"], noise: Float32[Array, "N draws G A"] | None
    ) -> Float32[Array, "N Tp A"]:
        """A warm decision but for what jumps (the elements with two values, and whether it may start warm), for export.

        Args:
            arrays: float32 (N, To, size) by key, uint8 for images.
            guess: physical; its elements with two values at the size of `sign_size` already.
            noise: `noise_draws` draws; None for none.

        Returns:
            Physical actions.
        """
        out = self._refined(self.policy.normalized_chunk(guess), self.policy.encoder.encode(arrays), noise)
        actions: torch.Tensor = self.policy.physical_action(out)
        return actions

    def start_from(self, rest: Float32[Array, "Tp A"] | None) -> None:
        """What the next decision of the one env starts from, in place of the rest of its last chunk.

        Args:
            rest: physical actions from the next decision on; None: nothing, so it is denoised in full.

        Raises:
            PolicyError: there are several envs.
        """
        given = None if rest is None else torch.as_tensor(rest, dtype=torch.float32).cpu().numpy()
        self._memory = self._memory.told(given, past=self._past)

    @property
    def _past(self) -> int:
        """Actions that it denoises before the first that it returns."""
        return self.noise_shape[1] - int(self.policy.config.horizon)

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Forget the chunks of the envs in `mask`.

        Raises:
            PolicyError: another number of envs than before, and not all of them begin anew.
        """
        self._memory = self._memory.without(torch.as_tensor(mask, dtype=torch.bool).cpu().numpy())

    @torch.no_grad()
    def act(self, observation: Observation, noise: Float32[Array, "N draws Tp A"]) -> ActionChunk:
        """Choose the next chunk; all `execute` actions of the last one were played.

        Raises:
            PolicyError: the noise or an observation has another shape than this policy wants, or the number of envs
                changed without a reset of all.
        """
        policy = self.policy
        observation = observation.map(lambda array: torch.as_tensor(array, device=self.device))
        noise = torch.as_tensor(noise, device=self.device)
        check_noise(noise, self.noise_shape)
        condition, frame = policy.encode(observation), self._frame(observation).cpu().numpy()
        known, is_near = self._memory.rows(frame, max_jump=self.warm.jump_limit)
        is_warm = np.zeros_like(known) if self.is_full else is_near
        chunk, warm = torch.empty_like(noise[:, 0]), torch.from_numpy(is_warm).to(noise.device)
        if not is_warm.all():
            chunk[~warm] = policy.sample(condition[~warm], noise[~warm])
        if is_warm.any():
            guess = torch.from_numpy(self._memory.guess[is_warm]).to(noise.device)
            chunk[warm] = self._continue(guess, condition[warm], noise[warm])
        self.counts.add(known, is_warm, is_full=self.is_full)
        actions, execute = policy.physical_action(chunk), policy.config.execute
        # From what is returned, as an exported file, which knows no more, starts.
        self._memory = WarmMemory.after(actions.cpu().numpy(), frame, executed=execute, past=self._past)
        return ActionChunk(actions=actions, execute=execute)

    @torch.no_grad()
    def contraction(
        self,
        observation: Observation,
        noise: Float32[Array, "N draws Tp A"],
        *,
        generator: torch.Generator,
        radius: float = 0.1,
    ) -> Float32[Array, " N"]:
        """How much of an error of the start is left in the chunk (measured_contraction), around full denoising's chunk.

        Args:
            observation: one decision of N envs.
            noise: as `act` takes it.
            generator: of the directions, on the CPU.
            radius: root mean square of the error, normalised units.
        """
        observation = observation.map(lambda array: torch.as_tensor(array, device=self.device))
        noise = torch.as_tensor(noise, device=self.device)
        condition = self.policy.encode(observation)
        guess = self.policy.sample(condition, noise).clamp(-1, 1)
        first, kind = self.sampler.levels[0], self.warm.start
        latent = start_latent(guess, noise[:, 0], level=first, num_levels=self.sampler.num_levels, kind=kind)

        def finish(start: Array) -> Array:
            draws = torch.cat([start[:, None], noise[:, 1 : self.sampler.noise_draws]], dim=1)
            return sample_final(lambda x, level: self.policy.denoiser(x, level, condition), draws, self.sampler)

        return measured_contraction(finish, latent, radius=radius, generator=generator)

    def _continue(self, guess: Array, condition: Array, noise: Array) -> Array:
        """The chunks that follow from guesses (physical), normalised."""
        start = scale_discrete(self.policy.normalized_chunk(guess), self.discrete_at, self.warm.sign_size)
        return threshold_discrete(self._refined(start, condition, noise), self.discrete_at)

    def _refined(self, guess: Array, condition: Array, noise: Array | None) -> Array:
        """What the levels that remain make of a normalised guess, unclipped."""
        first, kind = self.sampler.levels[0], self.warm.start
        drawn = guess if noise is None else noise[:, 0]
        latent = start_latent(guess, drawn, level=first, num_levels=self.sampler.num_levels, kind=kind)
        draws = latent[:, None]
        if noise is not None and self.sampler.noise_draws > 1:
            draws = torch.cat([draws, noise[:, 1 : self.sampler.noise_draws]], dim=1)
        # The rule of DiffusionPolicy.sample, under the sampler of the levels that remain.
        return sample_final(lambda x, level: self.policy.denoiser(x, level, condition), draws, self.sampler)

    def _frame(self, observation: Observation) -> Array:
        return watched_frame(observation.arrays(), self.policy.encoder.keys, self.policy.normalizer.apply)


def _discrete_elements(spec: EnvSpec, warm: WarmStart) -> tuple[int, ...]:
    at = warm.discrete_at
    declared = spec.action_semantics.gripper
    if at is None:
        at = gripper_elements(spec.action) if declared != "none" else ()
        if declared != "none" and not at:
            raise PolicyError(
                f"rti.discrete_at of {spec.env_id}", expected="an element named gripper in the action",
                got=f"none, but a gripper {declared!r}", hint="Give rti.discrete_at=[<its elements>], or [] for none.",
            )  # fmt: skip
    if not all(0 <= element < spec.action.size for element in at):
        raise PolicyError(
            "rti.discrete_at", expected=f"elements 0..{spec.action.size - 1} of the action", got=str(list(at)),
            hint="Leave it out to take the grippers that the spec names, or [] for none.",
        )  # fmt: skip
    return tuple(at)
