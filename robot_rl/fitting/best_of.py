"""Best of N: draw N chunks from a policy at every decision and play the one that a critic likes best.

A cheap look at a critic before any offline PPO: one that cannot choose among the policy's own chunks has no gradient to
offer either (docs/offline.md has the figures).
"""

from __future__ import annotations

from typing import Any

import torch

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.contracts import check_is_diffusion
from robot_rl.errors import ConfigError, PolicyError, RobotRlError
from robot_rl.fitting.denoising_ppo import executed_action
from robot_rl.runs.checkpoint import Checkpoint, load_policy
from robot_rl.runs.config import build
from robot_rl.types import ActionChunk, Observation
from robot_rl.wrapped_policy import WrappedPolicy

HINT = "Leave best_of and critic out for a one-step or exported policy."


class BestOfPolicy(WrappedPolicy):
    """A Policy around a DiffusionPolicy and a critic. It keeps nothing between calls.

    Args:
        policy: a DiffusionPolicy, in the sampling mode to draw with.
        critic: scores (feature, executed action) of the policy's feature space; see `load_critic`.
        number: N, chunks a decision. One plays what the policy alone plays.

    Raises:
        ConfigError: number below 1.
        PolicyError: the policy has no denoising steps.
    """

    def __init__(self, policy: Any, critic: Any, number: int) -> None:
        if number < 1:
            raise ConfigError("best_of", expected="at least 1", got=str(number), hint="Set best_of=8.")
        check_is_diffusion(policy, "best of N", hint=HINT)
        super().__init__(policy)
        self.critic, self.number = critic, number

    @property
    def sampling(self) -> str:
        """How it samples, for reports."""
        return f"best of {self.number}, {self.policy.sampling}"

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(N * draws, Tp, A): the draws of the first chunk, then those of the second, ..."""
        draws, horizon, size = self.policy.noise_shape
        return self.number * draws, horizon, size

    @torch.no_grad()
    def act(self, observation: Observation, noise: Float32[Array, "B draws Tp A"]) -> ActionChunk:
        """Choose the chunk with the highest min-Q of its executed part; the first one of equals.

        Raises:
            PolicyError: the noise or an observation has another shape than this policy wants.
        """
        policy = self.policy
        observation = observation.map(lambda array: torch.as_tensor(array, device=policy.device))
        noise = torch.as_tensor(noise, device=policy.device)
        if tuple(noise.shape[1:]) != self.noise_shape:
            raise PolicyError(
                "noise of a policy", expected=f"shape (B, {', '.join(map(str, self.noise_shape))})",
                got=str(tuple(noise.shape)), hint="Draw it with the noise_shape of this policy.",
            )  # fmt: skip
        feature = policy.encode(observation).repeat_interleave(self.number, dim=0)
        drawn = policy.sample(feature, noise.reshape(-1, *policy.noise_shape))
        q = self.critic.q(feature, executed_action(policy, drawn)).amin(0)
        rows = torch.arange(len(noise), device=drawn.device)
        best = drawn.unflatten(0, (-1, self.number))[rows, q.view(-1, self.number).argmax(1)]
        return ActionChunk(actions=policy.physical_action(best), execute=policy.config.execute)

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Nothing to forget."""


def load_critic(path: str, policy: Any) -> Any:
    """The critic of an `offline` run or checkpoint, for the feature space of `policy`; in evaluation mode.

    Args:
        path: run or checkpoint directory.
        policy: the DiffusionPolicy whose chunks it will score; its encoder, its normaliser and its executed actions
            must be those that the critic was fitted with.

    Raises:
        RunError: no checkpoint there, or a damaged one.
        PolicyError: a checkpoint without a critic, or one of another feature space.
    """
    check_is_diffusion(policy, path, hint=HINT)
    fitted, _spec, checkpoint = load_policy(path)
    if "critic" not in checkpoint.documents or "critic" not in checkpoint.tensors:
        raise PolicyError(
            str(checkpoint.path), expected="a checkpoint with a critic", got="a policy alone",
            hint="Give critic=<run directory of `robot-rl offline`>.",
        )  # fmt: skip
    _check_same_space(fitted, policy, checkpoint)
    sizes = {"feature_size": policy.encoder.size, "action_size": policy.config.execute * policy.spec.action.size}
    try:
        critic = build(checkpoint.documents["critic"], **sizes)
        critic.load_state_dict(checkpoint.tensors["critic"], strict=True)
    except (RobotRlError, RuntimeError, TypeError, ValueError) as error:
        raise PolicyError(
            f"{checkpoint.path}: critic", expected="a critic that this version of the code can build",
            got=f"{type(error).__name__}: {error}", hint="Use the code of the commit in the run's provenance.json.",
        ) from error  # fmt: skip
    return critic.to(policy.device).eval().requires_grad_(False)


def _check_same_space(fitted: Any, policy: Any, checkpoint: Checkpoint) -> None:
    """Refuse a critic whose features or actions mean something else than those of `policy`."""
    pairs = [(name, getattr(fitted.config, name), getattr(policy.config, name)) for name in ("history", "execute")]
    pairs.append(("observations", tuple(fitted.config.observation_keys), tuple(policy.config.observation_keys)))
    different = [name for name, expected, got in pairs if expected != got]
    if not different and not _same_weights(fitted.encoder, policy.encoder):
        different = ["encoder or normaliser"]
    if different:
        raise PolicyError(
            f"critic of {checkpoint.path}", expected="the feature space that it was fitted in",
            got=f"a policy with another {different[0]}",
            hint="Play a policy that this `offline` run started from or made.",
        )  # fmt: skip


def _same_weights(first: Any, second: Any) -> bool:
    """Equal up to rounding, for averages of weights that never moved may differ in the last bit."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(
        one[key].shape == two[key].shape and torch.allclose(one[key].float(), two[key].to(one[key].device).float(), atol=1e-6)
        for key in one
    )  # fmt: skip
