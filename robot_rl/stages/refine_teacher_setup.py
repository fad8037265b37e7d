"""What `refine_teacher` needs before it trains: its settings checked, the teachers opened and measured, the env that asks them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from robot_rl.algorithms.guidance import Guidance, weight_at
from robot_rl.algorithms.guidance_labels import TeacherTraces
from robot_rl.data.teacher_card import require_card
from robot_rl.errors import ConfigError, DeployError, RobotRlError
from robot_rl.fitting.guided_env import GuidedEnv
from robot_rl.fitting.refinement import Student
from robot_rl.fitting.teacher_calls import AskedTeacher
from robot_rl.fitting.teacher_quality import ShownSteps, cost_of, measure_teacher, shown_by_expert, shown_by_store
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.specs import EnvSpec
from robot_rl.stages.baseline import open_teacher

if TYPE_CHECKING:
    from robot_rl.stages.refine_teacher import RefineTeacherConfig

log = logging.getLogger(__name__)


@dataclass
class Teachers:
    """The teachers of a run, open.

    Attributes:
        guides: whom the student listens to.
        reference: of option g_opd, or None.
        lost: why a resumed run has none although their weight is not 0 yet, or None.
    """

    guides: list[AskedTeacher] = field(default_factory=list)
    reference: AskedTeacher | None = None
    lost: RobotRlError | None = None

    @property
    def everyone(self) -> list[AskedTeacher]:
        """The guides, then the reference."""
        return [*self.guides, *([] if self.reference is None else [self.reference])]

    @property
    def seconds(self) -> float:
        """Spent waiting for them."""
        return sum((each.seconds for each in self.everyone), 0.0)

    def close(self) -> None:
        """End their connections; also twice."""
        for each in self.everyone:
            each.close()


def check_config(config: RefineTeacherConfig) -> None:
    """Refuse settings that can't be meant.

    Raises:
        ConfigError: naming the setting.
    """
    config.guidance.validate()
    config.calls.validate()
    numbers = (config.num_steps, config.evaluate_every_steps, config.rollout_episodes, config.num_envs)
    if min(numbers) < 1 or config.quality_episodes < 0:
        raise ConfigError(
            "refine_teacher", expected="num_steps, evaluate_every_steps, rollout_episodes and num_envs of at least 1",
            got=str(numbers), hint="Set them to positive numbers.",
        )  # fmt: skip
    if not config.student:
        raise ConfigError("refine_teacher.student", expected="a component", got="none", hint="student=<choice>.")
    if config.guidance.weight == 0:
        return  # the control: the same words with guidance=none
    option = config.guidance.option
    needed = {"teacher": config.teacher} | ({"reference": config.reference} if option is Guidance.g_opd else {})
    for name, node in needed.items():
        if not node:
            raise ConfigError(f"refine_teacher.{name}", expected="a component", got="none", hint=f"{name}=<choice>.")
    _check_heard(option, config)
    if option is Guidance.redi and config.quality_episodes == 0:
        raise ConfigError(
            "quality_episodes", expected="some of the teacher, which option redi learns from", got="0", hint="E.g. 50."
        )
    if config.guidance.anneal_steps == 0 and option is Guidance.rpd:
        log.warning(
            "guidance.weight is constant, as in the paper: the student ends between its optimum and the teacher; "
            "guidance=annealed lets it pass"
        )


def _check_heard(option: Guidance, config: RefineTeacherConfig) -> None:
    """Refuse teachers that the option would never listen to."""
    heard = {
        "other_teachers": (Guidance.ampo, config.other_teachers, "the others listen to `teacher` alone"),
        "reference": (Guidance.g_opd, config.reference, "no other compares teacher and reference"),
    }
    for name, (by, given, why) in heard.items():
        if given and option is not by:
            raise ConfigError(
                f"refine_teacher.{name}", expected=f"none without guidance.option={by.value}: {why}",
                got=f"some, and guidance.option={option.value}", hint=f"Leave {name} out, or choose guidance={by.value}.",
            )  # fmt: skip


def check_option(config: RefineTeacherConfig, student: Student) -> None:
    """Refuse an option that the student does not have.

    Raises:
        ConfigError: naming those that it has.
    """
    if config.guidance.weight > 0 and config.guidance.option not in student.options:
        raise ConfigError(
            "guidance.option", expected=f"one that this student has: {', '.join(sorted(o.value for o in student.options))}",
            got=config.guidance.option.value,
            hint="The others need the density of an action, which only student=gaussian has.",
        )  # fmt: skip


def open_teachers(config: RefineTeacherConfig, spec: EnvSpec, *, env_steps: int, is_new: bool) -> Teachers:
    """The teachers and the reference, their cards checked; none where their weight is 0 from `env_steps` on.

    Args:
        config: of the stage.
        spec: of the environment.
        env_steps: that the run goes on at; the weight never rises again.
        is_new: whether the run begins. One that is resumed and may go on without its teachers does so when there are none.

    Raises:
        ConfigError, PolicyError, RunError, DeployError: see the component; a card that does not fit.
    """
    found = Teachers()
    if weight_at(config.guidance, env_steps) == 0:
        return found
    try:
        for node in (config.teacher, *config.other_teachers):
            found.guides.append(open_teacher(node, spec, config.calls))
        if config.guidance.option is Guidance.g_opd:
            found.reference = open_teacher(config.reference, spec, config.calls)
        for each in found.everyone:
            require_card(each.card, spec)
    except RobotRlError as error:
        found.close()
        if is_new or not config.go_on_without_teacher or not isinstance(error, DeployError):
            raise
        return Teachers(lost=error)
    return found


def guided_env(config: RefineTeacherConfig, *, history: int, teachers: Teachers) -> GuidedEnv:
    """The environment of the training, with as many frames as the student (`history`) and everyone who is asked in it want."""
    asked = [] if config.guidance.option is Guidance.redi else teachers.guides
    reference = teachers.reference
    most = max([history, *(each.history for each in [*asked, *([] if reference is None else [reference])])])
    env = build(config.env, num_envs=config.num_envs, history=most)
    return GuidedEnv(
        env, history=history, teachers=asked, reference=reference, config=config.calls,
        on_demand=config.guidance.option is Guidance.ampo, fail_window=config.guidance.fail_window,
    )  # fmt: skip


def report_on(
    config: RefineTeacherConfig, teachers: Teachers, run: RunDirectory, *, history: int, is_new: bool
) -> TeacherTraces | None:
    """Measure the guides into teacher.json; returns the teacher's episodes where the option learns from them.

    Args:
        config: of the stage.
        teachers: of the run; in a resumed one that may go on without them, `lost` is set when they give no answer.
        run: where teacher.json is written.
        history: frames of the student, which the episodes have at least.
        is_new: whether the run begins; later, only an option that learns from the episodes needs them.

    Raises:
        DeployError, PolicyError: see AskedTeacher.label.
    """
    learns = config.guidance.option is Guidance.redi
    if not teachers.guides or config.quality_episodes == 0 or not (is_new or learns):
        return None
    reports: list[Mapping[str, Any]] = []
    traces: list[TeacherTraces] = []
    try:
        for teacher in teachers.guides:
            report, trace = _measured(config, teacher, history=max(history if learns else 1, teacher.history))
            reports.append(report)
            traces.append(trace)
    except DeployError as error:
        if is_new or not config.go_on_without_teacher:
            raise
        teachers.lost = error
        return None
    if is_new:
        run.write_json("teacher.json", reports)
    return traces[0] if learns else None


def _measured(
    config: RefineTeacherConfig, teacher: AskedTeacher, *, history: int
) -> tuple[dict[str, Any], TeacherTraces]:
    env = build(config.env, num_envs=min(config.num_envs, config.quality_episodes), history=history)
    try:
        shown = shown_steps(config, env.spec, history=teacher.history)
        seeds: Sequence[int] = range(config.quality_first_seed, config.quality_first_seed + config.quality_episodes)
        report, trace = measure_teacher(teacher, env, seeds, shown=shown)
    finally:
        env.close()
    is_asked = config.guidance.option is not Guidance.redi
    steps = min(config.num_steps, config.guidance.anneal_steps or config.num_steps) if is_asked else 0
    report["cost"] = cost_of(report, env_steps=steps, num_envs=config.num_envs, config=config.calls)
    return report, trace


def shown_steps(config: RefineTeacherConfig, spec: EnvSpec, *, history: int) -> ShownSteps | None:
    """What a teacher is compared with: the demonstrations, or episodes of the expert, or nothing.

    Raises:
        DataError: no such store, or one of another environment.
    """
    if config.demonstrations:
        return shown_by_store(config.demonstrations, spec=spec, history=history)
    if not config.expert:
        return None
    number = max(config.quality_episodes, 1)
    env = build(config.env, num_envs=min(config.num_envs, number), history=history)
    try:
        first = config.quality_first_seed
        return shown_by_expert(build(config.expert, spec=spec), env, range(first, first + number))
    finally:
        env.close()
