"""Baseline: train a library's algorithm (SB3 PPO or SAC, robomimic BC-RNN or IQL) and keep it as a policy of ours.

Or one of ours that others are compared with: gaussian_ppo, and what `refine_teacher` must beat, bc_teacher and dagger.
Inputs: an environment for the learners that play, a teacher as well for those that imitate it (`teacher=<choice>`; no reward
is used), an EpisodeStore for those that learn from data. Output: checkpoints
that `robot-rl evaluate policy=<run>` plays with the same seeds as any other policy, without the library: weights as
safetensors, the network as JSON. Needs `pip install 'robot-rl[baselines]'` (SB3) or `'robot-rl[robomimic]'`; no other
command does.

The reward is the environment's: env.reward_mode=sparse, or a dense one. With a dense reward a learner can gain by not
succeeding (success ends the stream of rewards): set env.terminate_on_success=false then; success_once is the same.
Evaluation: the same development seeds every time, once with the centre of the policy's distribution (deterministic) and
once drawing from it (stochastic). `to_target` in the summary is read off the deterministic curve.
A baseline can't be resumed: its replay buffer and optimiser are the library's and are not kept.

Metrics (metrics.jsonl, step = env steps of all envs together, or gradient steps of a learner from data):
    baseline/success_once_deterministic        development seeds, centre of the distribution
    baseline/success_once_deterministic_low    lower end of its Wilson 95 % interval
    baseline/success_once_deterministic_high   upper end
    baseline/success_once_stochastic           the same seeds, drawn
    baseline/total_reward_mean                 raw return of the deterministic episodes
    baseline/rate_hz                           env steps (or gradient steps) per second of training, evaluation left out
    baseline/train_*                           what the library logged of its last update, under its own names
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.sample_efficiency import steps_to_target
from robot_rl.contracts import VectorEnv
from robot_rl.data.store import EpisodeStore
from robot_rl.data.teacher_card import require_card
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig
from robot_rl.rollout import PolicyActor, rollout, summarize
from robot_rl.runs.checkpoint import save_checkpoint
from robot_rl.runs.config import build, config_to_json
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.training import pick_device
from robot_rl.specs import EnvSpec
from robot_rl.stages.evaluate import EvaluateConfig, check_spec, load_any_policy

log = logging.getLogger(__name__)

DETERMINISTIC = "baseline/success_once_deterministic"
OnEvaluation = Callable[[int, Any, Mapping[str, float]], None]


@dataclass(frozen=True)
class BaselineConfig:
    """Configuration of `robot-rl baseline`.

    Attributes:
        algo: component: which algorithm, with its own settings.
        env: component: what is played, in training (by learners that play) and in evaluation (by all).
        teacher: component: whom a learner from a teacher imitates, as in `refine_teacher`.
        calls: cache, time-outs and retries of the teacher; it is asked about all envs at every step.
        dataset: the EpisodeStore of a learner from data.
        num_steps: env steps of all envs together, or gradient steps of a learner from data.
        evaluate_every_steps: between two evaluations, counted the same way; each leaves a checkpoint.
        rollout_episodes: of an evaluation, at the development seeds from rollout_first_seed on.
        rollout_first_seed: never those of the final evaluation.
        train_first_seed: training episodes take the seeds from here + 1,000,000 * seed on.
        targets: success rates for which the env steps are reported.
        num_envs: environments side by side, in training and in evaluation.
        device: of the networks: "cpu", "cuda" or "cuda:N".
        threads: torch threads on the CPU.
        seed, run_root, resume: as in every stage.
    """

    algo: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    calls: CallConfig = field(default_factory=CallConfig)
    dataset: str = "datasets/demonstrations.zarr"
    num_steps: int = 200_000
    evaluate_every_steps: int = 10_000
    rollout_episodes: int = 50
    rollout_first_seed: int = 50_000
    train_first_seed: int = 1_000_000
    targets: tuple[float, ...] = (0.8, 0.95)
    num_envs: int = 8
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = BaselineConfig
CAN_RESUME = False


@runtime_checkable
class Learner(Protocol):
    """What `algo` builds. `learn(source, num_steps=, seed=, evaluate_every=, on_evaluation=)` does the work.

    learns_from "env": the source is a VectorEnv, and `first_env_seed` is given too. learns_from "data": it is an
    EpisodeStore. "teacher": a VectorEnv and `first_env_seed`, and `teacher`: an observation -> physical actions (N, A).
    `on_evaluation(steps, policy, metrics)` wants a torch policy with `with_mode`, `config` and `normalizer`.
    """

    learns_from: str

    @property
    def history(self) -> int:
        """To, frames that the policy sees."""
        ...


def run(config: BaselineConfig, run: RunDirectory) -> dict[str, Any]:
    """Train, evaluate along the way, and return the last scores and the env steps to each target."""
    _check(config)
    torch.set_num_threads(config.threads)
    learner = build(config.algo, device=str(pick_device(config.device)))
    trial = build(config.env, num_envs=min(config.num_envs, config.rollout_episodes), history=learner.history)
    teacher = _teacher_of(learner, config, trial.spec)
    began, evaluating = time.monotonic(), 0.0
    curve: list[tuple[int, dict[str, Any]]] = []
    with MetricsWriter(run.path / "metrics.jsonl") as metrics:

        def on_evaluation(step: int, policy: Any, training: Mapping[str, float]) -> None:
            nonlocal evaluating
            since = time.monotonic()
            rate = step / max(since - began - evaluating, 1e-9)
            scores = evaluate_both_ways(policy, trial, config)
            curve.append((step, scores))
            values = _flat(scores) | {"baseline/rate_hz": rate}
            metrics.write(step, values | {f"baseline/train_{name}": value for name, value in training.items()})
            save_checkpoint(
                run.path, step=step, tensors={"policy": policy.state_dict()}, documents=_documents(policy, config)
            )
            log.info(
                "step %d: deterministic %d/%d, stochastic %d/%d, %.0f steps/s", step, scores["deterministic"]["k"],
                scores["deterministic"]["n"], scores["stochastic"]["k"], scores["stochastic"]["n"], rate,
            )  # fmt: skip
            evaluating += time.monotonic() - since

        _learn(learner, trial, config, on_evaluation, teacher)
    summary = _summary(learner, config, curve)
    seconds = time.monotonic() - began
    summary |= {"protocol": trial.protocol(), "seconds": seconds, "evaluation_seconds": evaluating}
    summary["rate_hz"] = curve[-1][0] / max(seconds - evaluating, 1e-9)
    trial.close()
    if teacher is not None:
        summary["teachers"] = [teacher.counts()]
        teacher.close()
    run.write_json("summary.json", summary)
    return summary


def spec_of(node: Mapping[str, Any]) -> EnvSpec:
    """The spec of an environment component."""
    env: VectorEnv = build(node, num_envs=1, history=1)
    try:
        return env.spec
    finally:
        env.close()


def open_teacher(node: Mapping[str, Any], spec: EnvSpec, calls: CallConfig) -> AskedTeacher:
    """Build a teacher component, ready to be asked; its card is not compared with the environment here.

    Raises:
        ConfigError, PolicyError, RunError: see the component.
    """

    def load(path: str, mode: str | None) -> Any:
        return load_any_policy(EvaluateConfig(policy=path, mode=None if mode is None else SamplingMode(mode)))

    return AskedTeacher(build(node, spec=spec, build=build, load=load), calls)


def _check(config: BaselineConfig) -> None:
    if config.resume:
        raise ConfigError(
            "resume", expected="a new run", got=config.resume,
            hint="A baseline keeps no replay buffer or optimiser, so it can't go on: start it again without resume.",
        )  # fmt: skip
    numbers = (config.num_steps, config.evaluate_every_steps, config.rollout_episodes, config.num_envs)
    if min(numbers) < 1:
        raise ConfigError(
            "baseline", expected="num_steps, evaluate_every_steps, rollout_episodes and num_envs of at least 1",
            got=str(numbers), hint="Set them to positive numbers.",
        )  # fmt: skip
    if "dense" in str(config.env.get("reward_mode", "")) and config.env.get("terminate_on_success"):
        log.warning(
            "a dense reward and terminate_on_success=true: if the reward is positive, a learner may gain by not succeeding, "
            "for success ends the stream of rewards; env.terminate_on_success=false is the usual choice"
        )


def _teacher_of(learner: Learner, config: BaselineConfig, spec: EnvSpec) -> AskedTeacher | None:
    """The teacher of a learner that imitates one, its card checked; None for the others."""
    imitates = learner.learns_from == "teacher"
    if imitates != bool(config.teacher):
        raise ConfigError(
            "baseline.teacher", expected="a teacher for algo=dagger and algo=bc_teacher, and for no other",
            got=f"{'one' if config.teacher else 'none'} for {config.algo['_target_']}",
            hint="teacher=<choice>." if imitates else "Leave it out; `refine_teacher` is PPO with a teacher.",
        )  # fmt: skip
    if not imitates:
        return None
    config.calls.validate()
    if config.calls.every != 1 or config.calls.envs is not None:
        raise ConfigError(
            "calls", expected="every=1 and envs=null: an imitator learns from answers alone", got=str(config.calls),
            hint="Leave them out, or keep answers with calls.cache_entries.",
        )  # fmt: skip
    teacher = open_teacher(config.teacher, spec, config.calls)
    require_card(teacher.card, spec)
    return teacher


def _learn(
    learner: Any, trial: VectorEnv, config: BaselineConfig, on_evaluation: OnEvaluation, teacher: AskedTeacher | None
) -> None:
    """Let the learner work on what it learns from."""
    options: dict[str, Any] = {
        "num_steps": config.num_steps,
        "seed": config.seed,
        "evaluate_every": config.evaluate_every_steps,
        "on_evaluation": on_evaluation,
    }
    if learner.learns_from == "data":
        with EpisodeStore.open(config.dataset, mode="r") as store:
            check_spec(store.spec, trial.spec, where=config.dataset)
            learner.learn(store, **options)
        return
    history = learner.history
    if teacher is not None:
        history, options["teacher"] = max(history, teacher.history), teacher.label
    env = build(config.env, num_envs=config.num_envs, history=history)
    try:
        learner.learn(env, first_env_seed=config.train_first_seed + 1_000_000 * config.seed, **options)
    finally:
        env.close()


def evaluate_both_ways(policy: Any, env: VectorEnv, config: BaselineConfig) -> dict[str, Any]:
    """Success of the deterministic and of the stochastic policy on the development seeds.

    Returns:
        "deterministic" and "stochastic": a Proportion as JSON; "total_reward_mean" of the deterministic episodes.
    """
    seeds = range(config.rollout_first_seed, config.rollout_first_seed + config.rollout_episodes)
    out: dict[str, Any] = {}
    for name, mode in (("stochastic", SamplingMode.eta1), ("deterministic", SamplingMode.mean)):
        played = policy.with_mode(mode)
        noise = NoiseSource(rule=NoiseRule.seeded, seed=0, shape=played.noise_shape)
        summary = summarize(rollout(env, PolicyActor(played, noise), seeds))
        out |= {name: summary["success_once"], "total_reward_mean": summary["total_reward_mean"]}
    return out


def _flat(scores: Mapping[str, Any]) -> dict[str, float]:
    low_high = {f"{DETERMINISTIC}_{end}": scores["deterministic"][end] for end in ("low", "high")}
    return {
        DETERMINISTIC: scores["deterministic"]["rate"],
        **low_high,
        "baseline/success_once_stochastic": scores["stochastic"]["rate"],
        "baseline/total_reward_mean": scores["total_reward_mean"],
    }


def _documents(policy: Any, config: BaselineConfig) -> dict[str, Any]:
    target = f"{type(policy).__module__}.{type(policy).__qualname__}"
    return {
        "policy": {"_target_": target, "config": policy.config.to_json()},
        "spec": policy.spec.to_json(),
        "normalizer": policy.normalizer.to_json(),
        "baseline": {"algo": config_to_json(config.algo)},
    }


def _summary(learner: Learner, config: BaselineConfig, curve: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    last_step, last = curve[-1]
    summary: dict[str, Any] = {
        "algo": config.algo["_target_"],
        "steps": last_step,
        "success_once_deterministic": last["deterministic"],
        "success_once_stochastic": last["stochastic"],
    }
    if learner.learns_from != "data":
        steps, rates = [step for step, _ in curve], [scores["deterministic"]["rate"] for _, scores in curve]
        budget = max(config.num_steps, last_step)
        found = [steps_to_target(steps, rates, target=target, budget=budget) for target in config.targets]
        summary |= {"env_steps": last_step, "to_target": [each.to_json() for each in found]}
    return summary
