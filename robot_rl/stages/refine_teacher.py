"""Refine a teacher: PPO of a small student that a teacher's actions guide (RPD, arXiv 2503.05833), and end above it.

Inputs: an environment, and a teacher: a checkpoint or an export of ours, a scripted expert with errors, or a policy server.
Output: checkpoints of the student, which `robot-rl evaluate policy=<run>` plays without the teacher, and teacher.json, the
teacher's own success, latency and agreement with what was shown, measured before anything is trained.

The teacher is asked once a step about what the student sees, and its answers serve all epochs of the update. The default
is the paper's objective, a mean squared error with constant weight; it leaves the student between its optimum and the
teacher. A weight that reaches 0 with learning rate and KL limit lowered alongside is `guidance=annealed` (docs/teachers.md).
A teacher that is lost for good stops the run with a checkpoint, or with go_on_without_teacher=true is done without.

Metrics (metrics.jsonl, step = env steps of all envs together; evaluations at the development seeds, training lines apart):
    refine_teacher/success_once_deterministic        centre of the distribution
    refine_teacher/success_once_deterministic_low    lower end of its Wilson 95 % interval
    refine_teacher/success_once_deterministic_high   upper end
    refine_teacher/success_once_stochastic           the same seeds, drawn
    refine_teacher/total_reward_mean                 raw return of the deterministic episodes
    refine_teacher/reward_mean       of a step in the roll-out
    refine_teacher/weight            of the teacher term, 0 where no teacher was asked
    refine_teacher/distill_loss      the unweighted teacher term, mean over the minibatches
    refine_teacher/gate              share of asked rows that counted in it (ampo: of all rows, those of failing envs)
    refine_teacher/helps             option gated: 1 where the teacher's direction gained over the whole roll-out
    refine_teacher/asked_share       share of steps about which a teacher was asked
    refine_teacher/alarm             1 where the distillation loss fell and the reward fell as well (teacher hacking)
    refine_teacher/undone            student=denoising: 1 where the update passed max_kl and was undone
    refine_teacher/kl, clip_share, value_loss, std, minibatches, learning_rate    of PPO's update
    refine_teacher/seconds_student, seconds_env, seconds_teacher    wall time of training so far, in this process; the
                                     reference of option g_opd is a teacher as well
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from robot_rl.algorithms.guidance import GuidanceConfig
from robot_rl.algorithms.sample_efficiency import steps_to_target
from robot_rl.errors import RobotRlError
from robot_rl.fitting.refinement import Refinement, Seeds
from robot_rl.fitting.teacher_calls import CallConfig
from robot_rl.runs.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.runs.training import pick_device
from robot_rl.stages.baseline import BaselineConfig, evaluate_both_ways, spec_of
from robot_rl.stages.refine_teacher_setup import check_config, check_option, guided_env, open_teachers, report_on

log = logging.getLogger(__name__)

PREFIX = "refine_teacher/"


@dataclass(frozen=True)
class RefineTeacherConfig:
    """Configuration of `robot-rl refine_teacher`.

    Attributes:
        student: component: what learns.
        teacher: component: who guides it. Not built when guidance.weight is 0.
        other_teachers: more of them, for guidance.option=ampo.
        reference: component of a teacher that stands for what the teacher began as, for guidance.option=g_opd; it is asked
            about every env at every step.
        env: component: what is played, in training and in evaluation.
        guidance: the teacher term and its weight.
        calls: which envs at which steps; cache, time-outs, retries.
        go_on_without_teacher: when it gives no answer any more, or is not there when the run is resumed, go on as plain PPO;
            otherwise stop with a checkpoint.
        demonstrations: EpisodeStore that the teacher is compared with; may be empty.
        expert: component of an expert that it is compared with when there are no demonstrations; may be empty.
        quality_episodes: of the teacher, before training; 0: no report.
        quality_first_seed: of them.
        num_steps: env steps of all envs together.
        evaluate_every_steps: between two evaluations; each leaves a checkpoint, and all envs begin new episodes there.
        rollout_episodes: of an evaluation, at the development seeds from rollout_first_seed on.
        rollout_first_seed: never those of the final evaluation.
        train_first_seed: training episodes take the seeds from here + 1,000,000 * seed on.
        targets: success rates for which the env steps are reported.
        num_envs: environments side by side, in training and in evaluation.
        device: of the student: "cpu", "cuda" or "cuda:N".
        threads: torch threads on the CPU.
        seed, run_root, resume: as in every stage.
    """

    student: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    other_teachers: list[dict[str, Any]] = field(default_factory=list)
    reference: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    calls: CallConfig = field(default_factory=CallConfig)
    go_on_without_teacher: bool = False
    demonstrations: str = ""
    expert: dict[str, Any] = field(default_factory=dict)
    quality_episodes: int = 50
    quality_first_seed: int = 40_000
    num_steps: int = 200_000
    evaluate_every_steps: int = 10_000
    rollout_episodes: int = 50
    rollout_first_seed: int = 50_000
    train_first_seed: int = 1_000_000
    targets: tuple[float, ...] = (0.8, 0.95)
    num_envs: int = 16
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = RefineTeacherConfig


def run(config: RefineTeacherConfig, run: RunDirectory) -> dict[str, Any]:
    """Measure the teacher, train, evaluate along the way, and return the last scores and the env steps to each target."""
    check_config(config)
    torch.set_num_threads(config.threads)
    began, evaluating = time.monotonic(), 0.0
    spec, newest = spec_of(config.env), latest_checkpoint(run.path)
    saved = None if newest is None else load_checkpoint(newest)
    begins = 0 if saved is None else saved.documents["refinement"]["env_steps"]
    teachers = open_teachers(config, spec, env_steps=begins, is_new=saved is None)
    student = build(config.student, spec=spec, device=str(pick_device(config.device)), seed=config.seed)
    check_option(config, student)
    traces = report_on(config, teachers, run, history=student.history, is_new=saved is None)
    env = guided_env(config, history=student.history, teachers=teachers)
    trial = build(config.env, num_envs=min(config.num_envs, config.rollout_episodes), history=student.history)
    state = Refinement(
        student, env, config.guidance, Seeds(config.train_first_seed + 1_000_000 * config.seed), traces,
        goes_on=config.go_on_without_teacher,
    )  # fmt: skip
    if saved is not None:
        state.restore(saved)
        log.info("continuing at %d env steps from %s", state.env_steps, newest)
    if teachers.lost is not None:
        state.lose(teachers.lost)

    def seconds() -> dict[str, float]:
        played, total = env.seconds, time.monotonic() - training_since - evaluating
        asked = teachers.seconds - before
        return {"seconds_student": max(total - played - asked, 0.0), "seconds_env": played, "seconds_teacher": asked}

    def evaluate() -> dict[str, float]:
        nonlocal evaluating
        since = time.monotonic()
        scores = evaluate_both_ways(student.policy, trial, _evaluation(config))
        state.curve.append((state.env_steps, scores))
        _save(run, state)
        evaluating += time.monotonic() - since
        log.info("%d env steps: %s of %s", state.env_steps, scores["deterministic"]["k"], scores["deterministic"]["n"])
        return _flat(scores)

    before, training_since = teachers.seconds, time.monotonic()
    with (
        MetricsWriter(run.path / "metrics.jsonl", resume_step=None if newest is None else state.env_steps) as metrics,
        interruptible() as stop,
        Progress("refine_teacher", total=config.num_steps) as progress,
    ):
        if not state.curve:
            metrics.write(0, evaluate())
        while state.env_steps < config.num_steps:
            due = config.evaluate_every_steps * (1 + state.env_steps // config.evaluate_every_steps)
            try:
                for numbers in state.updates(min(due, config.num_steps)):
                    is_last = state.env_steps >= min(due, config.num_steps)
                    values = {PREFIX + name: value for name, value in (numbers | seconds()).items()}
                    metrics.write(state.env_steps, values | (evaluate() if is_last else {}))
                    progress.advance(state.env_steps - progress.done)
                    if stop.requested and not is_last:
                        log.warning("stopped by the user; it goes on from the last evaluation: resume=%s", run.path)
                        raise KeyboardInterrupt
            except RobotRlError:
                if env.lost is not None:
                    _save(run, state)
                    log.error("the teacher is lost; the student is saved and can be evaluated: %s", run.path)
                raise
            if stop.requested and state.env_steps < config.num_steps:
                raise KeyboardInterrupt
    summary = _summary(config, state) | {
        "protocol": trial.protocol(),
        "teachers": [t.counts() for t in teachers.everyone],
    }
    if (run.path / "teacher.json").is_file():
        summary["teacher_success_once"] = [report["success_once"] for report in run.read_json("teacher.json")]
    summary |= {"seconds": time.monotonic() - began, "evaluation_seconds": evaluating} | seconds()
    for each in (env, trial, teachers):
        each.close()
    run.write_json("summary.json", summary)
    return summary


def _evaluation(config: RefineTeacherConfig) -> BaselineConfig:
    return replace(
        BaselineConfig(), rollout_episodes=config.rollout_episodes, rollout_first_seed=config.rollout_first_seed
    )


def _flat(scores: Mapping[str, Any]) -> dict[str, float]:
    name = f"{PREFIX}success_once_deterministic"
    values = {f"{name}_{end}": scores["deterministic"][end] for end in ("low", "high")}
    values |= {name: scores["deterministic"]["rate"], f"{PREFIX}total_reward_mean": scores["total_reward_mean"]}
    return values | {f"{PREFIX}success_once_stochastic": scores["stochastic"]["rate"]}


def _save(run: RunDirectory, state: Refinement) -> None:
    policy = state.student.deployed
    target = f"{type(policy).__module__}.{type(policy).__qualname__}"
    documents = {
        "policy": {"_target_": target, "config": policy.config.to_json()},
        "spec": policy.spec.to_json(),
        "normalizer": policy.normalizer.to_json(),
        "refinement": state.document(),
    }
    save_checkpoint(run.path, step=state.env_steps, tensors=state.tensors(), documents=documents)


def _summary(config: RefineTeacherConfig, state: Refinement) -> dict[str, Any]:
    last_step, last = state.curve[-1]
    steps, rates = [step for step, _ in state.curve], [scores["deterministic"]["rate"] for _, scores in state.curve]
    budget = max(config.num_steps, last_step)
    found = [steps_to_target(steps, rates, target=target, budget=budget) for target in config.targets]
    return {
        "student": config.student["_target_"],
        "guidance": config.guidance.option.value,
        "env_steps": last_step,
        "success_once_deterministic": last["deterministic"],
        "success_once_stochastic": last["stochastic"],
        "to_target": [each.to_json() for each in found],
        "alarms": state.alarms,
        "lost_teacher": state.was_lost,
    }
