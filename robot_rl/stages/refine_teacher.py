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
    refine_teacher/gate              share of asked rows that counted in it
    refine_teacher/helps             option gated: 1 where the teacher's direction gained over the whole roll-out
    refine_teacher/asked_share       share of steps about which a teacher was asked
    refine_teacher/alarm             1 where the distillation loss fell and the reward fell as well (teacher hacking)
    refine_teacher/undone            student=denoising: 1 where the update passed max_kl and was undone
    refine_teacher/kl, clip_share, value_loss, std, minibatches, learning_rate    of PPO's update
    refine_teacher/seconds_student, seconds_env, seconds_teacher    wall time of training so far, in this process
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from robot_rl.algorithms.guidance import Guidance, GuidanceConfig
from robot_rl.algorithms.guidance_labels import TeacherTraces
from robot_rl.algorithms.sample_efficiency import steps_to_target
from robot_rl.data.teacher_card import require_card
from robot_rl.errors import ConfigError, RobotRlError
from robot_rl.fitting.refinement import Refinement, Seeds, Student
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig, GuidedEnv
from robot_rl.fitting.teacher_quality import ShownSteps, cost_of, measure_teacher, shown_by_expert, shown_by_store
from robot_rl.runs.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.runs.training import pick_device
from robot_rl.specs import EnvSpec
from robot_rl.stages.baseline import BaselineConfig, evaluate_both_ways, open_teacher, spec_of

log = logging.getLogger(__name__)

PREFIX = "refine_teacher/"


@dataclass(frozen=True)
class RefineTeacherConfig:
    """Configuration of `robot-rl refine_teacher`.

    Attributes:
        student: component: what learns.
        teacher: component: who guides it. Not built when guidance.weight is 0.
        other_teachers: more of them, for guidance.option=ampo.
        reference: component of a teacher that stands for what the teacher began as, for guidance.option=g_opd.
        env: component: what is played, in training and in evaluation.
        guidance: the teacher term and its weight.
        calls: which envs at which steps; cache, time-outs, retries.
        go_on_without_teacher: when it gives no answer any more, go on as plain PPO; otherwise stop with a checkpoint.
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
    _check(config)
    torch.set_num_threads(config.threads)
    began, evaluating = time.monotonic(), 0.0
    spec = spec_of(config.env)
    teachers, reference = _teachers(config, spec)
    student = build(config.student, spec=spec, device=str(pick_device(config.device)), seed=config.seed)
    _check_option(config, student)
    newest = latest_checkpoint(run.path)
    traces = _report(config, teachers, run, is_new=newest is None)
    env = _guided_env(config, student.history, teachers, reference)
    trial = build(config.env, num_envs=min(config.num_envs, config.rollout_episodes), history=student.history)
    state = Refinement(
        student, env, config.guidance, Seeds(config.train_first_seed + 1_000_000 * config.seed), traces,
        goes_on=config.go_on_without_teacher,
    )  # fmt: skip
    if newest is not None:
        state.restore(load_checkpoint(newest))
        log.info("continuing at %d env steps from %s", state.env_steps, newest)

    def seconds() -> dict[str, float]:
        teacher = sum(each.seconds for each in teachers)
        played, total = env.seconds, time.monotonic() - training_since - evaluating
        asked = teacher - before
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

    before, training_since = sum(each.seconds for each in teachers), time.monotonic()
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
    summary = _summary(config, state) | {"protocol": trial.protocol(), "teachers": [t.counts() for t in teachers]}
    if (run.path / "teacher.json").is_file():
        summary["teacher_success_once"] = [report["success_once"] for report in run.read_json("teacher.json")]
    summary |= {"seconds": time.monotonic() - began, "evaluation_seconds": evaluating} | seconds()
    for each in (env, trial, *teachers):
        each.close()
    run.write_json("summary.json", summary)
    return summary


def shown_steps(config: RefineTeacherConfig, spec: EnvSpec, *, history: int) -> ShownSteps | None:
    """What a teacher is compared with: the demonstrations, or episodes of the expert, or nothing."""
    if config.demonstrations:
        return shown_by_store(config.demonstrations, history=history)
    if not config.expert:
        return None
    number = max(config.quality_episodes, 1)
    env = build(config.env, num_envs=min(config.num_envs, number), history=history)
    try:
        first = config.quality_first_seed
        return shown_by_expert(build(config.expert, spec=spec), env, range(first, first + number))
    finally:
        env.close()


def _check(config: RefineTeacherConfig) -> None:
    config.guidance.validate()
    config.calls.validate()
    numbers = (config.num_steps, config.evaluate_every_steps, config.rollout_episodes, config.num_envs)
    if min(numbers) < 1 or config.quality_episodes < 0:
        raise ConfigError(
            "refine_teacher", expected="num_steps, evaluate_every_steps, rollout_episodes and num_envs of at least 1",
            got=str(numbers), hint="Set them to positive numbers.",
        )  # fmt: skip
    needed = {"teacher": config.teacher, "student": config.student}
    needed |= {"reference": config.reference} if config.guidance.option is Guidance.g_opd else {}
    for name, node in needed.items():
        if not node and (name == "student" or config.guidance.weight > 0):
            raise ConfigError(f"refine_teacher.{name}", expected="a component", got="none", hint=f"{name}=<choice>.")
    if config.guidance.option is Guidance.redi and config.guidance.weight > 0 and config.quality_episodes == 0:
        raise ConfigError(
            "quality_episodes", expected="some of the teacher, which option redi learns from", got="0", hint="E.g. 50."
        )
    if config.guidance.weight > 0 and config.guidance.anneal_steps == 0 and config.guidance.option is Guidance.rpd:
        log.warning(
            "guidance.weight is constant, as in the paper: the student ends between its optimum and the teacher; "
            "guidance=annealed lets it pass"
        )


def _check_option(config: RefineTeacherConfig, student: Student) -> None:
    if config.guidance.weight > 0 and config.guidance.option not in student.options:
        raise ConfigError(
            "guidance.option", expected=f"one that this student has: {', '.join(sorted(o.value for o in student.options))}",
            got=config.guidance.option.value,
            hint="The others need the density of an action, which only student=gaussian has.",
        )  # fmt: skip


def _teachers(config: RefineTeacherConfig, spec: EnvSpec) -> tuple[list[AskedTeacher], AskedTeacher | None]:
    """The teachers and the reference, their cards checked; none when the weight is 0."""
    if config.guidance.weight == 0:
        return [], None
    teachers = [open_teacher(node, spec, config.calls) for node in (config.teacher, *config.other_teachers)]
    is_referred = config.guidance.option is Guidance.g_opd
    reference = open_teacher(config.reference, spec, config.calls) if is_referred else None
    for each in [*teachers, *([] if reference is None else [reference])]:
        require_card(each.card, spec)
    return teachers, reference


def _guided_env(
    config: RefineTeacherConfig, history: int, teachers: Sequence[AskedTeacher], reference: AskedTeacher | None
) -> GuidedEnv:
    asked = [] if config.guidance.option is Guidance.redi else list(teachers)
    most = max([history, *(each.history for each in [*asked, *([] if reference is None else [reference])])])
    env = build(config.env, num_envs=config.num_envs, history=most)
    return GuidedEnv(
        env, history=history, teachers=asked, reference=reference, config=config.calls,
        on_demand=config.guidance.option is Guidance.ampo, fail_window=config.guidance.fail_window,
    )  # fmt: skip


def _report(
    config: RefineTeacherConfig, teachers: Sequence[AskedTeacher], run: RunDirectory, *, is_new: bool
) -> TeacherTraces | None:
    """Measure the teachers into teacher.json; returns the first one's episodes where the option learns from them."""
    learns = config.guidance.option is Guidance.redi
    if not teachers or config.quality_episodes == 0 or not (is_new or learns):
        return None
    reports, traces = [], []
    for teacher in teachers:
        env = build(config.env, num_envs=min(config.num_envs, config.quality_episodes), history=teacher.history)
        try:
            shown = shown_steps(config, env.spec, history=teacher.history)
            seeds = range(config.quality_first_seed, config.quality_first_seed + config.quality_episodes)
            report, trace = measure_teacher(teacher, env, seeds, shown=shown)
        finally:
            env.close()
        steps = 0 if learns else min(config.num_steps, config.guidance.anneal_steps or config.num_steps)
        report["cost"] = cost_of(report, env_steps=steps, num_envs=config.num_envs, config=config.calls)
        reports.append(report)
        traces.append(trace)
    if is_new:
        run.write_json("teacher.json", reports)
    return traces[0] if learns else None


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
        "lost_teacher": state.is_lost,
    }
