"""The judges of the gate: a critic and a transition model of their own, fitted on episodes that no optimiser has seen.

A gate that was scored by the critic it optimised accepted a policy that had fallen from 60 to 41 % (measured.md, part 1,
section 5). So data is split by episode; candidate and incumbent meet the same start states, noise and members.

Judges:
    am_q           Q of the judges' critic along roll-outs in the judges' model (RL-100, eq. 9)
    model_return   discounted predicted reward of the same roll-outs until predicted termination
    fqe            least-squares evaluation of each policy on the judges' data, features of the judges' critic
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from robot_rl.algorithms.fqe import EvaluationData, FqeInterval, bootstrap_weights, fqe_interval, paired_difference
from robot_rl.algorithms.ope import (
    AmQRule,
    GateCheck,
    GateConfig,
    SupportGuards,
    am_q,
    decide,
    decision_record,
    model_return,
    paired_estimate,
    q_gap,
)
from robot_rl.arrays import Array, Float32, Int64
from robot_rl.data.transitions import Transitions
from robot_rl.fitting.denoising_ppo import act_in_feature_space
from robot_rl.fitting.model_rollout import RolloutNoise, draw_noise, roll_out, rollout_q
from robot_rl.types import GateDecision, OpeEstimate

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class JudgeConfig:
    """How policies are scored.

    Attributes:
        am_q: how Q along a roll-out becomes a score.
        num_starts: start states at most, the first ones of the judges' episodes.
        horizon: decisions of a roll-out; null: the task's time limit, so that it reaches a sparse reward (P14).
        fqe_draws: actions of the policy at each next state.
        fqe_bootstrap: resamplings of the episodes.
        fqe_ridge: of the least squares.
    """

    am_q: AmQRule = AmQRule.hold
    num_starts: int = 256
    horizon: int | None = None
    fqe_draws: int = 2
    fqe_bootstrap: int = 200
    fqe_ridge: float = 1e-4


@dataclass(frozen=True)
class JudgedTask:
    """What judges need to know of a task.

    Attributes:
        bounds: lowest and highest return that can be reached.
        discount: between decisions, gamma^Ta.
        horizon: decisions until the time limit.
    """

    bounds: tuple[float, float]
    discount: float
    horizon: int


@dataclass(frozen=True)
class Scores:
    """One policy under every judge.

    Attributes:
        am_q, model_return: (M, S).
        fqe: with its bootstrap members.
        disagreement: mean over the decisions of its roll-outs.
        q_gap: of its actions on the judges' data.
    """

    am_q: Float32[Array, "M S"]
    model_return: Float32[Array, "M S"]
    fqe: FqeInterval
    disagreement: float
    q_gap: float

    def to_json(self) -> dict[str, float]:
        """The point values."""
        return {
            "am_q": float(self.am_q.mean()),
            "model_return": float(self.model_return.mean()),
            "fqe": self.fqe.value,
            "disagreement": self.disagreement,
            "q_gap": self.q_gap,
        }


class Judges:
    """Scores policies on one fixed set of starts, noise and members.

    Args:
        critic: fitted on the judges' episodes.
        model: fitted on the judges' episodes.
        data: the judges' decisions.
        config: see JudgeConfig.
        noise_shape: of the policies in the mode that is judged.
        task: what they need to know of the task.
        seed: of all randomness.
    """

    def __init__(
        self,
        critic: Any,
        model: Any,
        data: Transitions,
        config: JudgeConfig,
        *,
        noise_shape: tuple[int, int, int],
        task: JudgedTask,
        seed: int,
    ) -> None:
        self.critic, self.model, self.config, self.task = critic, model, config, task
        generator = torch.Generator(device=data.feature.device).manual_seed(seed)
        _, episode = data.episode.unique(return_inverse=True)
        self._data, self._episode = data, episode
        self.starts = data.starts[: config.num_starts]
        self.members: Int64[Array, " M"] = torch.arange(model.num_members)
        self.noise: RolloutNoise = draw_noise(
            horizon=config.horizon or task.horizon, starts=len(self.starts), noise_shape=noise_shape,
            feature_size=data.feature.shape[1], generator=generator, device=data.feature.device,
        )  # fmt: skip
        self._action_noise = torch.randn(
            config.fqe_draws, len(data), *noise_shape, generator=generator, device=data.feature.device
        )
        self._weight = bootstrap_weights(int(episode.max()) + 1, config.fqe_bootstrap, generator)

    @torch.no_grad()
    def returns_of(self, act: Any) -> Float32[Array, "M S"]:
        """Model returns alone of any `act(feature, noise)`, under the shared noise: for comparing sampling modes."""
        rollout = roll_out(self.model, act, self.starts, noise=self.noise, members=self.members)
        return model_return(rollout.reward, rollout.alive, discount=self.task.discount)

    @torch.no_grad()
    def score(self, policy: Any) -> Scores:
        """Every judge's view of a policy, with the shared randomness."""
        act = act_in_feature_space(policy)
        rollout = roll_out(self.model, act, self.starts, noise=self.noise, members=self.members)
        q = rollout_q(self.critic.q, rollout)
        return Scores(
            am_q=am_q(q, rollout.alive, rule=self.config.am_q),
            model_return=model_return(rollout.reward, rollout.alive, discount=self.task.discount),
            fqe=self._fqe(act),
            disagreement=rollout.mean_disagreement,
            q_gap=self._q_gap(act),
        )

    def _fqe(self, act: Any) -> FqeInterval:
        data = self._data
        is_start = data.step == 0
        next_phi = sum(self._phi(data.next_feature, act, noise) for noise in self._action_noise) / self.config.fqe_draws
        start_phi = (
            sum(self._phi(data.feature[is_start], act, noise[is_start]) for noise in self._action_noise)
            / self.config.fqe_draws
        )
        evaluation = EvaluationData(
            phi=_with_constant(self.critic.features(data.feature, data.action)), next_phi=next_phi,
            reward=data.reward, discount=data.discount, episode=self._episode, start_phi=start_phi,
            start_episode=self._episode[is_start],
        )  # fmt: skip
        low, high = self.task.bounds
        return fqe_interval(evaluation, self._weight, ridge=self.config.fqe_ridge, low=low, high=high)

    def _phi(self, feature: torch.Tensor, act: Any, noise: torch.Tensor) -> torch.Tensor:
        pieces = zip(torch.split(feature, ROWS_AT_ONCE), torch.split(noise, ROWS_AT_ONCE), strict=True)
        return _with_constant(torch.cat([self.critic.features(f, act(f, n)) for f, n in pieces]))

    def _q_gap(self, act: Any) -> float:
        rows = slice(0, ROWS_AT_ONCE)
        feature, action = self._data.feature[rows], self._data.action[rows]
        return q_gap(self.critic.q(feature, act(feature, self._action_noise[0, rows])), self.critic.q(feature, action))


def compare(candidate: Scores, incumbent: Scores) -> dict[str, OpeEstimate]:
    """Paired estimates of every judge."""
    difference = paired_difference(candidate.fqe, incumbent.fqe)
    return {
        "am_q": paired_estimate(candidate.am_q, incumbent.am_q),
        "model_return": paired_estimate(candidate.model_return, incumbent.model_return),
        "fqe": OpeEstimate(
            candidate=candidate.fqe.value, incumbent=incumbent.fqe.value, difference=difference.value,
            low=difference.low, high=difference.high, start_states=difference.num_episodes,
        ),
    }  # fmt: skip


def guards(candidate: Scores, incumbent: Scores, *, kl: float | None) -> SupportGuards:
    """How far the candidate has left the data."""
    ratio = candidate.disagreement / max(incumbent.disagreement, 1e-9)
    return SupportGuards(kl=kl, disagreement_ratio=ratio, q_gap=candidate.q_gap)


def decide_with(
    estimates: Mapping[str, OpeEstimate], limits: SupportGuards, config: GateConfig, *, worthless: str | None
) -> tuple[GateDecision, dict[str, Any]]:
    """The gate's decision and its line of ope/decisions.jsonl; nothing is kept on the word of a judge that learned nothing.

    Args:
        estimates: of `compare`.
        limits: of `guards`.
        config: of the gate.
        worthless: RoundFits.worthless.

    Raises:
        DataError: as `ope.checks`.
    """
    decision = decide(estimates, limits, config)
    if worthless is not None:
        others = decision.reason.removeprefix("rejected: ").removeprefix("accepted. ")
        reason = f"rejected: {worthless}{'. ' if decision.accepted else '; '}{others}"
        decision = GateDecision(decision.estimate, accepted=False, reason=reason)
    record = decision_record(decision, estimates, limits, config)
    # The check stands in every record, so that `accepted` is what all checks say.
    fit = GateCheck("judge_critic/fit", worthless is None, worthless or "the judges' critic beat the untrained one")
    return decision, record | {"checks": [*record["checks"], asdict(fit)]}


def _with_constant(phi: torch.Tensor) -> torch.Tensor:
    return torch.cat([phi, torch.ones_like(phi[:, :1])], dim=1)
