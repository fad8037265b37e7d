"""Online RL: PPO over the denoising steps with GAE, in simulation or on a robot (RL-100, section 3.4).

Inputs: a diffusion policy (run of offline or imitate) that already succeeds sometimes, and its environment. Output:
checkpoints of the improved policy and of V, `student/` with a one-step head when student.num_steps > 0, and
`episodes.zarr` with every episode when save_episodes is set.

An iteration: play `episodes_per_iteration` whole episodes (mode eta1), compare their success with the best policy so far
and go back to it when it has clearly fallen, compute GAE over decisions, fit V, take PPO steps, let the student follow.
The first `warmup_iterations` fit V alone. The stage ends with a batch of the last policy, so what is saved was played.

Metrics (metrics.jsonl, step = env steps of training so far):
    online/success_once          of the batch, in mode eta1; an episode in which a human acted is no success of the policy
    online/env_steps             played so far
    online/episodes              played so far
    online/value_loss            of the last epoch of V
    online/explained_variance    of the returns by V, before it was fitted
    online/advantage_std         before scaling, units of return
    online/kl_nats               KL of a decision, summed over denoising steps, by the whole update (exact, along the chains played)
    online/undone                1 when the update passed max_kl and was undone
    online/clip_share            share of clipped ratios, mean over denoising steps
    online/gradient_steps        of the policy in this iteration
    online/human_share           share of decisions in which a human acted
    online/robot_*               of a real robot so far: takeover (share of steps), takeovers, bent_share, stops, late_p99_ms ...
    online/weights_age_iterations  with learner=process: updates between the weights that played the batch and those that learned
    online/rolled_back           1 when the batch was worse than the best policy and its weights were restored
    online/student_mse           same-noise distance of the student to the policy, normalised actions
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from robot_rl.algorithms.rewards import RewardConfig
from robot_rl.algorithms.statistics import Proportion, proportion
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError
from robot_rl.fitting.handover import check_reproduced
from robot_rl.fitting.kept_episodes import KeptEpisodes
from robot_rl.fitting.on_policy import OnPolicyBatch, play_batch
from robot_rl.fitting.online_learning import InlineLearning, Learning, LearningConfig, LearningParts, start_learning
from robot_rl.fitting.online_state import OnlineState
from robot_rl.fitting.online_update import OnlinePpoConfig, ValueConfig
from robot_rl.fitting.student import StudentConfig
from robot_rl.rollout import EpisodeRecord
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import build, build_for
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.stages.evaluate import check_policy_spec, check_spec
from robot_rl.types import Episode

log = logging.getLogger(__name__)

UNREAD_PPO = ("num_states", "group", "baseline")


class LearnerPlace(str, Enum):
    """Where the gradients are taken: between two batches, or in a process of its own while the next batch is played."""

    inline = "inline"
    process = "process"


@dataclass(frozen=True)
class OnlineConfig:
    """Configuration of `robot-rl online`.

    Attributes:
        policy: run or checkpoint directory of a DiffusionPolicy, or of a one-step head (with sigma_min: RL on the head).
        env: component.
        critic: component, used when the checkpoint has no critic.
        success: run of `robot-rl success` whose classifier gives reward and end of episodes, as on a robot; empty: the task.
        intervener: component of who may take over, or empty; `intervener=scripted` stands in for a person in simulation.
        demonstrations: EpisodeStores whose successful episodes the anchor imitates; may be empty.
        imitate_successes: the anchor imitates the successful episodes of this run as well (self-imitation).
        evaluation: an `evaluate` run of the same policy whose success must be reproduced before the first update.
        max_env_steps: of training; the iteration that passes it is the last.
        episodes_per_iteration: whole episodes played by one set of weights.
        warmup_iterations: fit V alone.
        gamma: discount per env step; as in the offline stage.
        trace: lambda of GAE, per decision.
        reward: penalties on top of the task's reward; as in the offline stage.
        ppo: of the policy.
        value: of V.
        student: joint distillation of a one-step head.
        train_encoder: let the encoder learn as well.
        sigma_min: noise floor of mode eta1, or null for the policy's own.
        max_kl: nats a decision; an update that ends beyond it is undone, and the learning rate halved.
        target_success: stop when the Wilson lower bound of a batch reaches it; null: never. Every batch is a look, so the one
            that stops is luckier than its policy: evaluate it.
        save_episodes: keep every episode in `<run>/episodes.zarr`, steps labelled by who chose them.
        first_seed: of the first episode; each iteration takes the next ones. Never those of an evaluation.
        num_envs: side by side; changes no figure.
        learner: see LearnerPlace. With `process` a batch is one update old when it is learned from.
        device: of policy and critic.
        threads: of torch on the CPU.
        seed, run_root, resume: as in every stage.
    """

    policy: str = ""
    env: dict[str, Any] = field(default_factory=dict)
    critic: dict[str, Any] = field(default_factory=dict)
    success: str = ""
    intervener: dict[str, Any] = field(default_factory=dict)
    demonstrations: list[str] = field(default_factory=list)
    imitate_successes: bool = False
    evaluation: str = ""
    max_env_steps: int = 150_000
    episodes_per_iteration: int = 100
    warmup_iterations: int = 1
    gamma: float = 0.98
    trace: float = 0.95
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: OnlinePpoConfig = field(default_factory=OnlinePpoConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    train_encoder: bool = False
    sigma_min: float | None = None
    max_kl: float = 2.0
    target_success: float | None = None
    save_episodes: bool = False
    first_seed: int = 1_000_000
    num_envs: int = 16
    learner: LearnerPlace = LearnerPlace.inline
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = OnlineConfig


def run(config: OnlineConfig, run: RunDirectory) -> dict[str, Any]:
    """Improve the policy until the budget is spent or the target is reached, and return what was played and won."""
    _check(config)
    began = time.monotonic()
    torch.set_num_threads(config.threads)
    state, documents = start_learning(LearningConfig.of(config), run.path)
    policy = state.learner.policy
    env = _env(config, run, policy)
    check_policy_spec(policy, env.spec, where=config.policy)
    intervener = build(config.intervener, spec=env.spec) if config.intervener else getattr(env, "intervener", None)
    noise = NoiseSource(rule=NoiseRule.seeded, seed=config.seed, shape=policy.noise_shape)
    if intervener is not None:
        _check_saved(config)
    with (
        ExitStack() as last,
        closing(env),  # a robot is at rest and held before what learns ends, whatever ends the run
        KeptEpisodes(
            policy,
            config.demonstrations,
            run.path / "episodes.zarr" if config.save_episodes else None,
            successes=config.imitate_successes,
            imitates=config.learner is LearnerPlace.inline,
        ) as recorder,
        MetricsWriter(run.path / "metrics.jsonl", resume_step=state.env_steps) as metrics,
        interruptible() as stop,
        Progress("online", total=config.max_env_steps) as progress,
    ):
        parts = LearningParts(run.path, recorder, metrics, progress)
        learning = _learning(config, state, documents, parts)
        last.callback(learning.close)

        def keep(record: EpisodeRecord, episode: Episode) -> None:
            recorder.keep(record, episode)
            learning.check()

        progress.advance(min(state.env_steps, config.max_env_steps))
        while not state.finished:
            first = config.first_seed + state.episodes
            with progress.share("playing"):
                batch, records = play_batch(
                    env, policy, range(first, first + config.episodes_per_iteration), noise=noise, gamma=config.gamma,
                    reward=config.reward, intervener=intervener, on_episode=keep,
                )  # fmt: skip
            score = _score(batch, records)
            if state.iteration == 0:
                played = proportion(sum(record.success_once for record in records), len(records))
                check_reproduced(played, config.evaluation, document=documents["handover"])
            values = state.count(records, score) | {"human_share": float(batch.human.float().mean())}
            values |= (
                {f"robot_{name}": value for name, value in env.measures().items()} if hasattr(env, "measures") else {}
            )
            state.finished = state.env_steps >= config.max_env_steps or _reached(config, score)
            learning.take(batch, score, values)
            progress.advance(min(state.env_steps, config.max_env_steps) - progress.done, str(score))
            log.info("iteration %d, %d env steps: %s", state.iteration, state.env_steps, score)
            if stop.requested and not state.finished:
                learning.drain()
                log.warning("stopped by the user; continue with resume=%s", run.path)
                raise KeyboardInterrupt
        protocol = env.protocol()
    assert state.last_score is not None
    summary = {
        "policy": config.policy, "env": policy.spec.env_id, "env_steps": state.env_steps, "episodes": state.episodes,
        "iterations": state.iteration, "success_once": state.last_score.to_json(), "roll_backs": state.roll_backs,
        "target_reached": _reached(config, state.last_score), "seconds": time.monotonic() - began,
        "protocol": protocol, "learner": config.learner.value, "seconds_of": progress.shares,
    }  # fmt: skip
    run.write_json("summary.json", summary)
    return summary


def _score(batch: OnPolicyBatch, records: Sequence[EpisodeRecord]) -> Proportion:
    """Successes of the policy alone: with a human's among them, the best policy would be the one that needs most help."""
    helped = set(batch.episode[batch.human].tolist())
    won = sum(record.success_once and number not in helped for number, record in enumerate(records))
    return proportion(won, len(records))


def _learning(config: OnlineConfig, state: OnlineState, documents: dict[str, Any], parts: LearningParts) -> Learning:
    """Who learns from the batches; nobody needs a process where nothing is left to learn."""
    if config.learner is LearnerPlace.inline or state.finished:
        return InlineLearning(state, documents, LearningConfig.of(config), parts)
    from robot_rl.fitting.learner_link import ProcessLearning

    return ProcessLearning(state, LearningConfig.of(config), parts)


def _env(config: OnlineConfig, run: RunDirectory, policy: Any) -> Any:
    """The environments of training, with the classifier's reward when there is one."""
    count = min(config.num_envs, config.episodes_per_iteration)
    env = build_for(config.env, policy.spec, num_envs=count, history=policy.config.history)
    if hasattr(env, "log_to"):
        env.log_to(run.path / "black_box")
    if not config.success:
        return env
    classifier, spec, _ = load_policy(config.success)
    check_spec(spec, env.spec, where=config.success)
    return env.judged_by(classifier.detector(env.num_envs))


def _check(config: OnlineConfig) -> None:
    if not config.policy or not config.env or config.episodes_per_iteration < 2 or config.num_envs < 1:
        raise ConfigError(
            "online", expected="policy=<run>, env=<name>, episodes_per_iteration of 2 or more, num_envs of 1 or more",
            got=f"policy={config.policy!r} env={config.env.get('_target_')!r} "
            f"episodes_per_iteration={config.episodes_per_iteration} num_envs={config.num_envs}",
            hint="See `robot-rl online --help`.",
        )  # fmt: skip
    ignored = [name for name in UNREAD_PPO if getattr(config.ppo, name) != getattr(OnlinePpoConfig, name)]
    if ignored:
        raise ConfigError(
            f"online.ppo.{ignored[0]}", expected="no value: the decisions are those that were played",
            got=str(getattr(config.ppo, ignored[0])), hint="It belongs to `robot-rl offline`; leave it out here.",
        )  # fmt: skip
    if config.intervener or config.imitate_successes:
        _check_saved(config)


def _check_saved(config: OnlineConfig) -> None:
    if not config.save_episodes:
        raise ConfigError(
            "online.save_episodes", expected="true when episodes of this run are imitated", got="false",
            hint="Set save_episodes=true: what the human or the policy showed is imitated, after a restart too, and is data "
            "for the next offline round.",
        )  # fmt: skip


def _reached(config: OnlineConfig, score: Proportion) -> bool:
    return config.target_success is not None and score.low >= config.target_success
