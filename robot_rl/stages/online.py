"""Online RL: PPO over the denoising steps with GAE, in simulation or on a robot (RL-100, section 3.4).

Inputs: a diffusion policy (run of offline or imitate) that already succeeds sometimes, and its environment. Output:
checkpoints of the improved policy and of V, `student/` with a one-step head when student.num_steps > 0, and
`episodes.zarr` with every episode when save_episodes is set.

An iteration: play `episodes_per_iteration` whole episodes (mode eta1), compare their success with the best policy so far
and go back to it when it has clearly fallen, compute GAE over decisions, fit V, take PPO steps, let the student follow.
The first `warmup_iterations` fit V alone. The stage ends with a batch of the last policy, so what is saved was played.

Metrics (metrics.jsonl, step = env steps of training so far):
    online/success_once          of the batch, in mode eta1
    online/env_steps             played so far
    online/episodes              played so far
    online/value_loss            of the last epoch of V
    online/explained_variance    of the returns by V, before it was fitted
    online/advantage_std         before scaling, units of return
    online/kl_nats               KL of a decision, summed over denoising steps, by the whole update (estimate k3)
    online/undone                1 when the update passed max_kl and was undone
    online/clip_share            share of clipped ratios, mean over denoising steps
    online/gradient_steps        of the policy in this iteration
    online/human_share           share of decisions in which a human acted
    online/robot_*               of a real robot so far: takeover (share of steps), takeovers, bent_share, stops, late_p99_ms ...
    online/rolled_back           1 when the batch was worse than the best policy and its weights were restored
    online/student_mse           same-noise distance of the student to the policy, normalised actions
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.rewards import RewardConfig
from robot_rl.algorithms.statistics import Proportion, proportion
from robot_rl.contracts import DenoisingPolicy
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.fitting.handover import check_handover, check_reproduced, handover_document
from robot_rl.fitting.kept_episodes import KeptEpisodes
from robot_rl.fitting.on_policy import play_batch
from robot_rl.fitting.online_state import OnlineState
from robot_rl.fitting.online_update import Learner, OnlinePpoConfig, UpdateConfig, ValueConfig, improve, numbers_to_log
from robot_rl.fitting.student import JointStudent, StudentConfig
from robot_rl.runs.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_policy,
    save_checkpoint,
)
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.runs.training import pick_device
from robot_rl.stages.evaluate import check_spec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnlineConfig:
    """Configuration of `robot-rl online`.

    Attributes:
        policy: run or checkpoint directory of a DiffusionPolicy, or of a one-step head (with sigma_min: RL on the head).
        env: component.
        critic: component, used when the checkpoint has no critic.
        success: run of `robot-rl success` whose classifier gives reward and end of episodes, as on a robot; empty: the task.
        intervener: component of who may take over, or empty; `intervener=scripted` stands in for a person in simulation.
        demonstrations: EpisodeStores whose successful and human steps the anchor imitates; may be empty.
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
        target_success: stop when the Wilson lower bound of a batch reaches it; null: never.
        save_episodes: keep every episode in `<run>/episodes.zarr`, steps labelled by who chose them.
        first_seed: of the first episode; each iteration takes the next ones. Never those of an evaluation.
        num_envs: side by side; changes no figure.
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
    state, documents = _start(config, run)
    policy = state.learner.policy
    env = _env(config, history=policy.config.history)
    check_spec(policy.spec, env.spec, where=config.policy)
    intervener = build(config.intervener, spec=env.spec) if config.intervener else getattr(env, "intervener", None)
    noise = NoiseSource(rule=NoiseRule.seeded, seed=config.seed, shape=policy.noise_shape)
    update = UpdateConfig(config.gamma, config.trace, config.ppo, config.value, config.max_kl, config.train_encoder)
    if intervener is not None:
        _check_saved(config)
    with (
        closing(env),  # a robot is at rest and held before anything else ends, whatever ends the run
        KeptEpisodes(
            policy,
            config.demonstrations,
            run.path / "episodes.zarr" if config.save_episodes else None,
            successes=config.imitate_successes,
        ) as recorder,
        MetricsWriter(run.path / "metrics.jsonl", resume_step=state.env_steps) as metrics,
        interruptible() as stop,
        Progress("online", total=config.max_env_steps) as progress,
    ):
        progress.advance(min(state.env_steps, config.max_env_steps))
        while not state.finished:
            first = config.first_seed + state.episodes
            with progress.share("playing"):
                batch, records = play_batch(
                    env, policy, range(first, first + config.episodes_per_iteration), noise=noise, gamma=config.gamma,
                    reward=config.reward, intervener=intervener, on_episode=recorder.keep,
                )  # fmt: skip
            score = proportion(sum(record.success_once for record in records), len(records))
            if state.iteration == 0:
                check_reproduced(score, config.evaluation, document=documents["handover"])
            values = state.count(records, score) | {"human_share": float(batch.human.float().mean())}
            values |= (
                {f"robot_{name}": value for name, value in env.measures().items()} if hasattr(env, "measures") else {}
            )
            state.finished = state.env_steps >= config.max_env_steps or _reached(config, score)
            if state.has_fallen(score):
                log.warning("%s: back to the policy that had %s, with a smaller step", score, state.best_score)
                state.roll_back()
                values["rolled_back"] = 1.0
            elif not state.finished:
                state.remember(score)
                moves = state.iteration >= config.warmup_iterations
                with progress.share("learning"):
                    numbers = improve(state.learner, batch, config=update, move_policy=moves, anchor=recorder.anchor())
                    values |= numbers_to_log(numbers)
                if state.student is not None and moves:
                    with progress.share("student"):
                        values["student_mse"] = state.student.learn(policy, batch.observation)
            state.iteration += 1
            metrics.write(state.env_steps, {f"online/{name}": float(value) for name, value in values.items()})
            progress.advance(min(state.env_steps, config.max_env_steps) - progress.done, str(score))
            log.info("iteration %d, %d env steps: %s", state.iteration, state.env_steps, score)
            _save(run, state, documents)
            if stop.requested and not state.finished:
                log.warning("stopped by the user; continue with resume=%s", run.path)
                raise KeyboardInterrupt
        protocol = env.protocol()
    assert state.last_score is not None
    summary = {
        "policy": config.policy, "env": policy.spec.env_id, "env_steps": state.env_steps, "episodes": state.episodes,
        "iterations": state.iteration, "success_once": state.last_score.to_json(), "roll_backs": state.roll_backs,
        "target_reached": _reached(config, state.last_score), "seconds": time.monotonic() - began,
        "protocol": protocol,
    }  # fmt: skip
    run.write_json("summary.json", summary)
    return summary


def _env(config: OnlineConfig, *, history: int) -> Any:
    """The environments of training, with the classifier's reward when there is one."""
    env = build(config.env, num_envs=min(config.num_envs, config.episodes_per_iteration), history=history)
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
    if config.intervener or config.imitate_successes:
        _check_saved(config)


def _check_saved(config: OnlineConfig) -> None:
    if not config.save_episodes:
        raise ConfigError(
            "online.save_episodes", expected="true when episodes of this run are imitated", got="false",
            hint="Set save_episodes=true: what the human or the policy showed is imitated, after a restart too, and is data "
            "for the next offline round.",
        )  # fmt: skip


def _start(config: OnlineConfig, run: RunDirectory) -> tuple[OnlineState, dict[str, Any]]:
    """Policy, V, optimisers and student, as they begin or as the newest checkpoint of the run has them."""
    device = pick_device(config.device)
    loaded, spec, saved = load_policy(Path(config.policy), device=str(device))
    if not isinstance(loaded, DenoisingPolicy):
        raise PolicyError(
            config.policy, expected="a policy with denoising steps (a run of imitate, offline or distill_onestep)",
            got=type(loaded).__name__, hint="Give another run.",
        )  # fmt: skip
    policy = loaded.eval().with_mode(SamplingMode.eta1, sigma_min=config.sigma_min)  # type: ignore[attr-defined]
    is_head = policy.sampler.num_steps == 1
    if is_head and (config.demonstrations or config.intervener or config.student.num_steps):
        raise PolicyError(
            config.policy, expected="no demonstrations, intervener or student with a one-step head",
            got="one of them", hint="A head has no denoising loss to imitate with: improve its teacher, then distil again.",
        )  # fmt: skip
    policy.denoiser.requires_grad_(True)
    policy.encoder.requires_grad_(config.train_encoder)
    handover = handover_document(policy, gamma=config.gamma, reward=config.reward)
    if "handover" in saved.documents:
        check_handover(handover, saved.documents["handover"], where=str(saved.path))
    node = saved.documents.get("critic", config.critic)
    torch.manual_seed(config.seed)
    sizes = {"feature_size": policy.encoder.size, "action_size": policy.config.execute * spec.action.size}
    critic = build(node, **sizes).to(device)
    if "critic" in saved.tensors:
        critic.load_state_dict(saved.tensors["critic"])
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    learner = Learner(
        policy, critic, torch.optim.Adam(weights, lr=config.ppo.learning_rate, eps=1e-5),
        torch.optim.Adam(critic.parameters(), lr=config.value.learning_rate, eps=1e-5),
        torch.Generator(device=device).manual_seed(config.seed),
    )  # fmt: skip
    student = JointStudent(policy, config.student, config.seed) if config.student.num_steps else None
    state = OnlineState(learner, student)
    newest = latest_checkpoint(run.path)
    if newest is not None:
        state.restore(load_checkpoint(newest, device=device))
        log.info("continuing at %d env steps from %s", state.env_steps, newest)
    shared = {name: saved.documents[name] for name in ("spec", "normalizer", "data") if name in saved.documents}
    described = dict(saved.documents["policy"])
    if not is_head:  # a head is deployed without the noise that it explored with
        described["config"] = described["config"] | {"sigma_min": policy.config.sigma_min}
    return state, shared | {
        "policy": described, "critic": node, "handover": handover, "teacher": {"path": config.policy},
    }  # fmt: skip


def _save(run: RunDirectory, state: OnlineState, documents: dict[str, Any]) -> None:
    """The run's checkpoint, and the student's in `student/`, each with what `evaluate` and `export` need."""
    save_checkpoint(
        run.path, step=state.env_steps, tensors=state.tensors(), documents=documents | {"online": state.document()}
    )
    if state.student is not None:
        (run.path / "student").mkdir(exist_ok=True)
        shared = {name: documents[name] for name in ("spec", "normalizer", "data") if name in documents}
        save_checkpoint(
            run.path / "student", step=state.env_steps, tensors={"policy": state.student.average.state_dict()},
            documents=shared | {"policy": state.student.document(), "teacher": {"path": str(run.path)}}, keep=1,
        )  # fmt: skip


def _reached(config: OnlineConfig, score: Proportion) -> bool:
    return config.target_success is not None and score.low >= config.target_success
