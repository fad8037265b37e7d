"""Our own PPO of a Gaussian actor (Schulman et al. 2017), the field's plain way, as a learner of `robot-rl baseline`.

It shares its returns with the online stage (algorithms/returns.py: a time limit is bootstrapped, a termination is not)
and ends as the same `BaselineMlpPolicy` as SB3's PPO. Defaults are those of ManiSkill3's own PPO baseline where it has
them (orthogonal layers, three of 256 with tanh, gamma 0.8, lambda 0.9, 3e-4, clip 0.2, KL stop at 0.1, log s = -0.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.ppo import AdvantageRule, clipped_loss, scale_advantage, step_statistics, value_loss
from robot_rl.algorithms.returns import generalized_advantage
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.contracts import VectorEnv
from robot_rl.data.normalizer import unit_actions
from robot_rl.errors import PolicyError, RunError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

from .baseline_mlp import BaselineMlpConfig, BaselineMlpPolicy, GaussianHead
from .encoder_fusion import EncoderConfig
from .gaussian_actor_critic import GaussianActorCritic

# Called with the env steps so far, the policy so far and numbers of the last update.
OnEvaluation = Callable[[int, BaselineMlpPolicy, Mapping[str, float]], None]


@dataclass(frozen=True)
class GaussianPpoConfig:
    """PPO of a Gaussian actor.

    Attributes:
        hidden: widths of the actor's and, separately, the critic's hidden layers (tanh).
        learning_rate: of Adam, constant, for both.
        num_steps: env steps of each env between updates.
        batch_size: of a minibatch.
        epochs: passes over the data of an update.
        gamma: discount per env step.
        trace: lambda of GAE.
        clip: of the ratio.
        kl_stop: an update stops behind the minibatch whose KL to the start of the update passes this.
        max_grad_norm: of actor and critic together.
        log_std_init: of the Gaussian, actions in [-1, 1].
        history: To, frames seen.
        observation_keys: that the networks see.
        encoder: of images and points (config group `encoder`), one for actor and critic, trained by both losses; null: numbers.
    """

    hidden: tuple[int, ...] = (256, 256, 256)
    learning_rate: float = 3e-4
    num_steps: int = 50
    batch_size: int = 256
    epochs: int = 8
    gamma: float = 0.8
    trace: float = 0.9
    clip: float = 0.2
    kl_stop: float = 0.1
    max_grad_norm: float = 0.5
    log_std_init: float = -0.5
    history: int = 1
    observation_keys: tuple[str, ...] = ("state",)
    encoder: EncoderConfig | None = None

    @property
    def actor(self) -> BaselineMlpConfig:
        """The network that learns."""
        return BaselineMlpConfig(
            head=GaussianHead.clipped, hidden=tuple(self.hidden), history=self.history, encoder=self.encoder,
            observation_keys=tuple(self.observation_keys),
        )  # fmt: skip


@dataclass(frozen=True)
class GaussianBatch:
    """What was played between two updates, T steps of N envs; one action a decision.

    Attributes:
        feature: float32 (T, N, C), what the actor saw; `next_feature`: before the auto-reset.
        action: float32 (T, N, A), normalised, before the clip: what the density is of.
        log_prob: float32 (T, N), under the actor that played.
        reward: float32 (T, N).
        executed: int64 (T, N), 0 for an idle env.
        terminated, truncated: bool (T, N).
        observation: (T, N, To, ...), what the actor saw, where its encoder learns; else None.
    """

    feature: Float32[Array, "T N C"]
    next_feature: Float32[Array, "T N C"]
    action: Float32[Array, "T N A"]
    log_prob: Float32[Array, "T N"]
    reward: Float32[Array, "T N"]
    executed: Int64[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    observation: dict[str, Any] | None = None

    def conditions(self, encoder: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """Numbers of rows among the played ones -> what actor and critic take, with the encoder's gradient where it learns."""
        played = self.executed > 0
        if self.observation is None:
            feature = self.feature[played]
            return lambda rows: feature[rows]
        arrays = {key: array[played] for key, array in self.observation.items()}
        return lambda rows: encoder.encode({key: array[rows] for key, array in arrays.items()})


class GaussianPpo:
    """A Learner of `robot-rl baseline`, see stages/baseline.py.

    Args:
        config: see GaussianPpoConfig.
        device: of the networks.
    """

    learns_from = "env"

    def __init__(self, config: GaussianPpoConfig, *, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)

    @property
    def history(self) -> int:
        """To, frames that the environment must stack."""
        return self.config.history

    def learn(
        self, env: VectorEnv, *, num_steps: int, seed: int, first_env_seed: int, evaluate_every: int,
        on_evaluation: OnEvaluation,
    ) -> None:  # fmt: skip
        """Train for `num_steps` env steps of all envs together; ends with the roll-out it is in. See Learner.

        Raises:
            PolicyError: as `new_actor`.
            RunError: a loss that is no number.
        """
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        policy = new_actor(config, env.spec)
        network = GaussianActorCritic(policy, log_std_init=config.log_std_init, generator=generator).to(self.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, eps=1e-5)
        on_evaluation(0, policy, {})
        played, due = 0, evaluate_every
        for batch in play(network, env, itertools.count(first_env_seed), steps=config.num_steps, generator=generator):
            played += int(batch.executed.sum())
            numbers = update(network, batch, optimizer, config=config, generator=generator)
            if played >= due or played >= num_steps:
                due += evaluate_every * (1 + (played - due) // evaluate_every)
                on_evaluation(played, policy, numbers)
            if played >= num_steps:
                return


def new_actor(config: GaussianPpoConfig, spec: EnvSpec) -> BaselineMlpPolicy:
    """The actor that a run begins with; weights that its encoder names as pretrained are loaded.

    Raises:
        PolicyError: regularisers of the encoder, which nothing would add here, or as pretrained.load_pretrained.
    """
    if config.encoder is not None:
        wanted = config.encoder.representation
        for name in ("reconstruction", "bottleneck", "dropout"):
            if getattr(wanted, name):
                raise PolicyError(
                    f"encoder.representation.{name} of the Gaussian", expected="0: its PPO adds no regulariser",
                    got=str(getattr(wanted, name)), hint="Set it to 0 (encoder points in place of points_regularised).",
                )  # fmt: skip
    policy = BaselineMlpPolicy(config.actor, spec, unit_actions(spec, config.actor.observation_keys))
    policy.load_pretrained()
    return policy


def play(
    network: GaussianActorCritic, env: VectorEnv, seeds: Iterable[int], *, steps: int, generator: torch.Generator
) -> Iterator[GaussianBatch]:
    """Roll-outs of `steps` env steps each with the network as it is then, for ever; episodes go on over their borders."""
    device = network.policy.device

    def features(observation: Observation) -> torch.Tensor:
        found: torch.Tensor = network.policy.encoder(observation.map(lambda array: array.to(device)))
        return found

    learns = any(parameter.requires_grad for parameter in network.policy.encoder.parameters())
    observation = env.reset(seeds)
    while True:
        rows, seen = [], []
        for _ in range(steps):
            if learns:
                arrays = observation.arrays()
                seen.append({key: arrays[key].to(device) for key in network.policy.config.observation_keys})
            with torch.no_grad():
                feature = features(observation)
                noise = torch.randn(len(feature), env.spec.action.size, generator=generator).to(device)
                action, log_prob = network.sample(feature, noise)
                physical = network.policy.physical_action(action[:, None]).to(env.device)
                result = env.step(ActionChunk(actions=physical, execute=1))
                behind = features(result.final_observation)
            observation = result.observation
            rows.append((
                feature, behind, action, log_prob, result.rewards[:, 0].to(device), result.executed.to(device),
                result.terminated.to(device), result.truncated.to(device),
            ))  # fmt: skip
        stacked = {key: torch.stack([each[key] for each in seen]) for key in seen[0]} if seen else None
        columns: list[Any] = [torch.stack(column) for column in zip(*rows, strict=True)]
        yield replace(GaussianBatch(*columns), observation=stacked)


def advantages(
    network: GaussianActorCritic, batch: GaussianBatch, config: GaussianPpoConfig
) -> tuple[Float32[Array, "T N"], Float32[Array, "T N"]]:
    """GAE and returns of a roll-out, by the network's value as it is."""
    with torch.no_grad():
        value, behind = (network.value(x).squeeze(-1) for x in (batch.feature, batch.next_feature))
    return generalized_advantage(
        batch.reward, value, behind, executed=batch.executed, terminated=batch.terminated, truncated=batch.truncated,
        gamma=config.gamma, trace=config.trace,
    )  # fmt: skip


def update(
    network: GaussianActorCritic, batch: GaussianBatch, optimizer: torch.optim.Optimizer, *,
    config: GaussianPpoConfig, generator: torch.Generator,
    term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, float]:  # fmt: skip
    """PPO's epochs over one roll-out, in place.

    Args:
        network: that played `batch`.
        batch: of one roll-out.
        optimizer: over the network's parameters.
        config: of PPO.
        generator: of the order of the minibatches, CPU.
        term: (numbers of the minibatch's rows among the played ones, their scaled advantages) -> a loss that is added.

    Returns:
        "kl" of the last minibatch (estimate), "clip_share", "value_loss", "std" (mean), "minibatches".

    Raises:
        RunError: a loss that is no number.
    """
    advantage, returns = advantages(network, batch, config)
    played = batch.executed > 0
    action, old, gain, target = (each[played] for each in (batch.action, batch.log_prob, advantage, returns))
    condition = batch.conditions(network.policy.encoder)
    clip, numbers, count = torch.tensor([config.clip], device=old.device), dict[str, float](), 0
    for _ in range(config.epochs):
        order = torch.randperm(len(old), generator=generator).to(old.device)
        for part in (order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)):
            seen = condition(part)
            new = network.log_prob(seen, action[part])
            scaled = scale_advantage(gain[part], rule=AdvantageRule.centre)
            ratio_loss = clipped_loss(new[:, None], old[part][:, None], scaled, clip=clip)
            v_loss = value_loss(network.value(seen).squeeze(-1), target[part], old=None, clip=0.0)
            losses = {"ratio": ratio_loss, "value": v_loss}
            if term is not None:
                losses["teacher term"] = term(part, scaled)
            loss = _sum_of(losses)
            statistics = step_statistics(new[:, None], old[part][:, None], clip=clip)
            numbers = {"kl": float(statistics["kl"]), "clip_share": float(statistics["clip_share"])}
            numbers |= {"value_loss": v_loss.item(), "std": network.policy.log_std.detach().exp().mean().item()}
            if numbers["kl"] > config.kl_stop:
                return numbers | {"minibatches": float(count)}
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
            optimizer.step()
            count += 1
    return numbers | {"minibatches": float(count)}


def _sum_of(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a minibatch; RunError where a part is no number."""
    total = sum(losses.values(), torch.zeros(()))
    if not bool(torch.isfinite(total)):
        hint = "Lower learning_rate (algo.learning_rate of baseline, student.learning_rate of refine_teacher); "
        if all(bool(torch.isfinite(each)) for name, each in losses.items() if name != "teacher term"):
            hint += "look at guidance.* and at the teacher's answers (`robot-rl check teacher`)."
        else:
            hint += "look at the scale of the rewards."
        got = ", ".join(f"{name} {each.item():g}" for name, each in losses.items())
        raise RunError("Gaussian PPO", expected="finite losses", got=got, hint=hint)
    return total
