"""A checkpoint as the policy of a robot's loop that continues its chunks (execution=rtc): torch, numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.deploy.noise import NoiseSource
from robot_rl.deploy.serving import noise_of
from robot_rl.errors import DeployError
from robot_rl.runs.checkpoint import load_policy
from robot_rl.types import ActionChunk, Observation
from robot_rl.wrapped_policy import WrappedPolicy


class LoopCheckpoint(WrappedPolicy):
    """See the text of this module.

    Args:
        policy: a ContinuingPolicy.
    """

    def noise(self) -> NoiseSource:
        """Of the policy inside."""
        return noise_of(self.policy)

    def continue_from(self, actions: Float32[Array, "Tp A"], weight: Array) -> None:
        """See ContinuingPolicy."""
        self.policy.continue_from(actions, weight)

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Forget what was to be continued, where the env begins anew."""
        self.policy.reset(torch.from_numpy(mask.copy()))

    def act(self, observation: Observation, noise: Float32[Array, "N draws Tp A"]) -> ActionChunk:
        """The next chunk, numpy."""
        with torch.inference_mode():
            chunk = self.policy.act(
                observation.map(lambda array: torch.from_numpy(array.copy())), torch.from_numpy(noise)
            )
        return ActionChunk(actions=chunk.actions.cpu().numpy(), execute=chunk.execute)


def open_checkpoint(config: Mapping[str, Any]) -> LoopCheckpoint:
    """For PolicySource.target, of JSON types: path, guidance (ChunkRule.guidance), threads.

    Raises:
        RobotRlError: no such checkpoint.
        DeployError: a policy that can't continue a chunk.
    """
    torch.set_num_threads(int(config["threads"]))
    policy, _spec, checkpoint = load_policy(config["path"])
    if not hasattr(policy, "continuing"):
        raise DeployError(
            str(checkpoint.path), expected="a diffusion policy for execution=rtc", got=type(policy).__name__,
            hint="Guidance needs gradients of a denoising network: export this one and use execution=async.",
        )  # fmt: skip
    return LoopCheckpoint(policy.continuing(float(config["guidance"])))
