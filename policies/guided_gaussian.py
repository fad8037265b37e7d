"""The student of `robot-rl refine_teacher`: our Gaussian PPO (baseline_gaussian.py) with a teacher term in its minibatches.

Without a term it is that PPO to the bit: the same networks, minibatches and random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from robot_rl.algorithms.guidance import (
    Guidance,
    GuidanceConfig,
    GuidanceInputs,
    guidance_loss,
    helps,
    pace_at,
    teacher_gain,
)
from robot_rl.algorithms.guidance_labels import GuidanceLabels, TeacherTraces, segment_returns
from robot_rl.algorithms.ppo import AdvantageRule, scale_advantage
from robot_rl.contracts import VectorEnv
from robot_rl.specs import EnvSpec

from .acting import ACTION
from .baseline_gaussian import (
    GaussianBatch,
    GaussianPpoConfig,
    advantages,
    new_actor,
    play,
    update,
)
from .baseline_mlp import BaselineMlpPolicy
from .gaussian_actor_critic import GaussianActorCritic


class GuidedGaussian:
    """A Student of `robot-rl refine_teacher`, see fitting/teacher_calls.py.

    Args:
        config: of PPO; the same fields and defaults as `algo=gaussian_ppo` of `baseline`.
        spec: of the environment.
        device: of the networks.
        seed: of weights, exploration and the order of minibatches.

    Raises:
        PolicyError: as baseline_gaussian.new_actor.
    """

    options = frozenset(Guidance)

    def __init__(self, config: GaussianPpoConfig, *, spec: EnvSpec, device: str, seed: int) -> None:
        self.config, self.device = config, torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.policy = new_actor(config, spec)
        self.network = GaussianActorCritic(self.policy, log_std_init=config.log_std_init, generator=self.generator)
        self.network.to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, eps=1e-5)

    @property
    def deployed(self) -> BaselineMlpPolicy:
        """The policy as it is saved: without exploration."""
        return self.policy

    @property
    def history(self) -> int:
        """To, frames that it sees."""
        return self.config.history

    def rollouts(self, env: VectorEnv, seeds: Iterable[int]) -> Iterator[GaussianBatch]:
        """Endless roll-outs with the policy as it is then; the envs are reset before the first."""
        return play(self.network, env, seeds, steps=self.config.num_steps, generator=self.generator)

    def learn(
        self, batch: GaussianBatch, labels: GuidanceLabels | None, *, guidance: GuidanceConfig, env_steps: int,
        traces: TeacherTraces | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """One update, in place.

        Args:
            batch: what this policy played last.
            labels: of the same steps; None: no teacher term.
            guidance: of the term, and where learning rate and KL limit go with its weight.
            env_steps: at the start of the batch, for the weight.
            traces: for option redi, with at least as many frames as this student sees.

        Returns:
            Numbers of PPO's update, "learning_rate", and with a term "distill_loss", "gate" (share of rows that
            counted) and "helps" (option gated), means over the minibatches.

        Raises:
            RunError: a loss that is no number.
        """
        pace = pace_at(
            guidance, env_steps, learning_rate=self.config.learning_rate, kl_stop=self.config.kl_stop,
            final_kl_stop=guidance.final_kl_stop,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = pace.learning_rate
        config = replace(self.config, kl_stop=pace.kl_stop)
        term = None
        if labels is not None and pace.weight > 0:
            term = _Term(self, batch, labels, guidance, traces)
        used = None if term is None or not term.is_on else (lambda rows, scaled: pace.weight * term(rows, scaled))
        numbers = update(self.network, batch, self.optimizer, config=config, generator=self.generator, term=used)
        return numbers | {"learning_rate": pace.learning_rate} | ({} if term is None else term.numbers())

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """All that the next update depends on, but for the optimiser (the stage saves that)."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.network.value.state_dict(),
            "random": {"generator": self.generator.get_state()},
        }

    def restore(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Go on where `tensors` were taken."""
        self.policy.load_state_dict(dict(tensors["policy"]))
        self.network.value.load_state_dict(dict(tensors["critic"]))
        self.generator.set_state(tensors["random"]["generator"].cpu())


class _Term:
    """The teacher term of one update: what `update` adds to its loss."""

    def __init__(
        self, student: GuidedGaussian, batch: GaussianBatch, labels: GuidanceLabels, guidance: GuidanceConfig,
        traces: TeacherTraces | None,
    ) -> None:  # fmt: skip
        self.student, self.guidance = student, guidance
        self._losses: list[tuple[torch.Tensor, torch.Tensor]] = []
        policy, played = student.policy, batch.executed > 0
        device = played.device

        def normalized(action: torch.Tensor) -> torch.Tensor:
            return policy.normalizer.apply(ACTION, action.to(device).clamp(policy.action_low, policy.action_high))

        self._condition, self._action = batch.conditions(policy.encoder), batch.action[played]
        self._teacher = normalized(labels.teacher).transpose(0, 1)[:, played]
        self._asked = labels.asked.to(device).transpose(0, 1)[:, played]
        self._failing = labels.failing.to(device)[played]
        self._reference = None if labels.reference is None else normalized(labels.reference)[played]
        with torch.no_grad():
            self._old_mean, self._old_log_std = self._mean(batch.feature[played]), policy.log_std.clone()
        gain, returns = advantages(student.network, batch, student.config)
        if guidance.option is Guidance.kepo:
            # Whole returns: those of GAE's trace rest on V after a few steps, and would rank trajectories by it.
            _, returns = advantages(student.network, batch, replace(student.config, trace=1.0))
        segments = segment_returns(returns, batch.terminated | batch.truncated)[played]
        self._segments, self._floor = segments, float(segments.quantile(guidance.quantile))
        self._traces: tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor] | None = None
        if traces is not None:
            frames, keys = traces.observation.arrays(), policy.config.observation_keys
            seen = {key: frames[key][:, -student.history :] for key in keys}
            self._traces = seen, normalized(traces.action), traces.success.to(device)
        self.is_on = bool(self._asked.any()) or self._traces is not None
        self._helps: float | None = None
        if guidance.option is Guidance.gated:
            every = torch.arange(len(self._action), device=device)
            scaled = scale_advantage(gain[played], rule=AdvantageRule.centre)
            with torch.no_grad():
                rows = teacher_gain(self._inputs(every, scaled))[self._asked[0]]
            self._helps = float(helps(rows, z=guidance.gate_z))
            self.is_on = self.is_on and self._helps > 0

    def __call__(self, rows: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
        """Unweighted loss of a minibatch."""
        loss, gate = guidance_loss(self._inputs(rows, scaled), self.guidance)
        self._losses.append((loss.detach(), gate.detach()))
        return loss

    def numbers(self) -> dict[str, float]:
        """Means over the minibatches so far."""
        out = {} if self._helps is None else {"helps": self._helps}
        if not self._losses:
            return out | {"gate": 0.0}
        means = torch.tensor([[float(loss), float(gate)] for loss, gate in self._losses]).mean(0)
        return out | {"distill_loss": float(means[0]), "gate": float(means[1])}

    def _mean(self, feature: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.student.policy.mean(self.student.policy.body(feature))
        return found

    def _inputs(self, rows: torch.Tensor, advantage: torch.Tensor) -> GuidanceInputs:
        traced: dict[str, Any] = {}
        if self._traces is not None:
            seen, action, success = self._traces
            size = min(self.guidance.trace_batch, len(action))
            some = torch.randperm(len(action), generator=self.student.generator)[:size]
            # Encoded in every minibatch: an encoder that learns has changed since the last one.
            feature = self.student.policy.encoder.encode(
                {key: array[some].to(action.device) for key, array in seen.items()}
            )
            rows_of = some.to(action.device)
            traced = {
                "trace_mean": self._mean(feature),
                "trace_action": action[rows_of],
                "trace_success": success[rows_of],
            }
        return GuidanceInputs(
            mean=self._mean(self._condition(rows)), log_std=self.student.policy.log_std, old_mean=self._old_mean[rows],
            old_log_std=self._old_log_std, action=self._action[rows], advantage=advantage, teacher=self._teacher[:, rows],
            asked=self._asked[:, rows], segment_return=self._segments[rows], return_floor=self._floor,
            failing=self._failing[rows], reference=None if self._reference is None else self._reference[rows], **traced,
        )  # fmt: skip
