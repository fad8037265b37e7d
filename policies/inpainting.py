"""A diffusion policy that continues the chunk being played: what execution=rtc asks (robot_rl/algorithms/inpainting.py)."""

from __future__ import annotations

import torch

from robot_rl.algorithms.inpainting import sample_towards
from robot_rl.arrays import Array, Bool, Float32, Float64
from robot_rl.errors import PolicyError
from robot_rl.types import ActionChunk, Observation
from robot_rl.wrapped_policy import WrappedPolicy

from .acting import ACTION, check_noise
from .diffusion import DiffusionPolicy


class ContinuingPolicy(WrappedPolicy):
    """A Policy around a DiffusionPolicy for one env. `continue_from` says before a call of `act` what is being played.

    Args:
        policy: a DiffusionPolicy, in the sampling mode to use.
        most: see sample_towards.
    """

    def __init__(self, policy: DiffusionPolicy, most: float) -> None:
        super().__init__(policy)
        self.most = most
        self._known: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def sampling(self) -> str:
        """How it samples, for reports."""
        return f"continuing, {self.policy.sampling}"

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Of the policy inside."""
        shape: tuple[int, int, int] = self.policy.noise_shape
        return shape

    def continue_from(self, actions: Float32[Array, "Tp A"], weight: Float64[Array, " Tp"]) -> None:
        """What the next chunk is pulled to; for one call of `act`.

        Args:
            actions: physical, aligned with the next chunk.
            weight: 0 (free) to 1, for each of them.
        """
        known = torch.as_tensor(actions, dtype=torch.float32), torch.as_tensor(weight, dtype=torch.float32)
        self._known = known[0][None].clone(), known[1][None].clone()

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Forget what was to be continued, where the env begins anew."""
        if bool(torch.as_tensor(mask).any()):
            self._known = None

    def act(self, observation: Observation, noise: Float32[Array, "N draws Tp A"]) -> ActionChunk:
        """Choose the next chunk; as the policy inside where nothing is to be continued.

        Raises:
            PolicyError: the noise has another shape than this policy wants, or there is more than one env.
        """
        if self._known is None:
            chunk: ActionChunk = self.policy.act(observation, noise)
            return chunk
        (target, weight), self._known, policy = self._known, None, self.policy
        if len(noise) != 1:
            raise PolicyError("continue", expected="one env", got=str(len(noise)), hint="Ask for each env by itself.")
        # A caller's inference_mode would forbid gradients; what was made under it is copied.
        with torch.inference_mode(False), torch.no_grad():
            observation = observation.map(lambda array: torch.as_tensor(array, device=self.device).clone())
            noise = torch.as_tensor(noise, device=self.device).clone()
            check_noise(noise, self.noise_shape)
            condition = policy.encode(observation).clone()
            known = policy.normalizer.apply(ACTION, target.to(self.device))
            out = sample_towards(
                lambda latent, level: policy.denoiser(latent, level, condition), noise, policy.sampler,
                target=known, weight=weight.to(self.device), most=self.most,
            )  # fmt: skip
            return ActionChunk(actions=policy.physical_action(out), execute=policy.config.execute)
