"""Checks of a teacher: what its card says against the environment, and what it does against what was shown.

The classic faults are found by both: a card that declares another delta or a flipped gripper, and a teacher whose answers
are twice the shown deltas, point the other way, or close where the demonstration opens, whatever its card says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robot_rl.algorithms.teacher_agreement import Agreement
from robot_rl.checks.findings import Finding, error, run_checks, skipped, warning
from robot_rl.contracts import VectorEnv
from robot_rl.data.element_names import gripper_elements, names_of
from robot_rl.data.teacher_card import card_problems
from robot_rl.fitting.teacher_calls import AskedTeacher, take_rows
from robot_rl.fitting.teacher_quality import ShownSteps, bounds, compare
from robot_rl.specs import ActionKind
from robot_rl.types import Observation

TEACHER_CHECKS = ("card", "answers", "bounds", "order", "repeats", "deltas", "gripper", "error")
DOUBLED = (1.6, 2.6)
POOR_ERROR = 0.5
FLIPPED_SHARE = 0.25


class TeacherTrial:
    """A teacher under test.

    Args:
        teacher: under test.
        env: its environment.
        observation: real rows, two or more, with the teacher's history.
        shown: demonstrations, or None.
    """

    def __init__(
        self, teacher: AskedTeacher, env: VectorEnv, *, observation: Observation, shown: ShownSteps | None
    ) -> None:
        self.teacher, self.env, self.observation, self.shown = teacher, env, observation, shown
        self._agreement: Agreement | None = None

    def card(self) -> Iterator[Finding]:
        """Every line of the card fits the environment."""
        for problem in card_problems(self.teacher.card, self.env.spec):
            yield error(
                problem.where, expected=problem.expected, got=problem.got,
                fix="Correct the card if it is wrong; otherwise take the environment that the teacher was trained for.",
            )  # fmt: skip

    def answers(self) -> Iterator[Finding]:
        """Answers are finite actions of the environment's size."""
        answer = self.teacher.label(self.observation)
        if tuple(answer.shape) != (len(self.observation.proprio), self.env.spec.action.size):
            yield error(
                "label",
                expected=f"actions of {self.env.spec.action.size} numbers",
                got=str(tuple(answer.shape)),
                fix="See the card.",
            )

    def bounds(self) -> Iterator[Finding]:
        """Answers lie inside the bounds of the environment's action."""
        low, high = bounds(self.env)
        answer = self.teacher.label(self.observation).numpy()
        slack = 1e-3 * (high - low)
        outside = ((answer < low - slack) | (answer > high + slack)).mean(0)
        names = names_of(self.env.spec.action)
        for element in np.flatnonzero(outside).tolist():
            yield warning(
                f"element {element}, {names[element]}", expected=f"{low[element]:g} to {high[element]:g}",
                got=f"{answer[:, element].min():.3g} to {answer[:, element].max():.3g}",
                fix="Another unit or normalisation? Training clips it; the card's scale and offset convert it.",
            )  # fmt: skip

    def order(self) -> Iterator[Finding]:
        """Row i of the answers belongs to row i of the question."""
        rows = np.arange(len(self.observation.proprio))[::-1].copy()
        forward = self.teacher.label(self.observation).numpy()
        backward = self.teacher.label(take_rows(self.observation, rows)).numpy()[::-1]
        if not np.allclose(forward, backward, atol=1e-4):
            yield error(
                "label of the rows in reverse", expected="the same answers in reverse",
                got=f"a difference of up to {np.abs(forward - backward).max():.3g}",
                fix="Keep the order of the batch, and nothing of other rows.",
            )  # fmt: skip

    def repeats(self) -> Iterator[Finding]:
        """The same question has the same answer."""
        found = [self.teacher.label(self.observation).numpy() for _ in range(2)]
        if not np.allclose(found[0], found[1], atol=1e-5):
            yield warning(
                "label twice", expected="the same answer", got=f"a difference of up to {np.abs(found[0] - found[1]).max():.3g}",
                fix="A teacher that samples is averaged by the loss; a resumed run is not bit-equal, and a cache keeps one draw.",
            )  # fmt: skip

    def deltas(self) -> Iterator[Finding]:
        """Elements that are deltas have the size and sign of those that were shown."""
        found = self._compared()
        if found is None:
            yield _NOTHING_SHOWN
            return
        spec = self.env.spec
        grippers, names = gripper_elements(spec.action), names_of(spec.action)
        arm = [e for e in range(spec.action.size) if e not in grippers and not np.isnan(found.slope[e])]
        if not arm:
            yield skipped(
                "deltas",
                expected="20 shown actions that are not at a bound",
                got="fewer",
                fix="Give more demonstrations.",
            )
            return
        middle = float(np.median([found.slope[e] for e in arm]))
        if spec.action_semantics.kind is ActionKind.delta and DOUBLED[0] <= middle <= DOUBLED[1]:
            yield error(
                "deltas, median over the elements", expected="about the deltas that were shown",
                got=f"{middle:.2f} times them: doubled delta",
                fix="It is counted twice: as a delta to the target in an environment that measures, or in another unit.",
            )  # fmt: skip
            return
        for element in arm:
            if found.slope[element] < -0.2:
                yield error(
                    f"element {element}, {names[element]}", expected="the direction that was shown",
                    got=f"{found.slope[element]:.2f} times it", fix="Another frame or handedness? See the card's frame.",
                )  # fmt: skip

    def gripper(self) -> Iterator[Finding]:
        """The gripper closes where it was shown to close."""
        found = self._compared()
        if found is None:
            yield _NOTHING_SHOWN
            return
        for element in gripper_elements(self.env.spec.action):
            share = found.same_side[element]
            if share < FLIPPED_SHARE:
                yield error(
                    f"element {element}, {names_of(self.env.spec.action)[element]}", expected="closed and open as shown",
                    got=f"the same side in {share:.0%} of the steps: flipped gripper",
                    fix="Its polarity is the other one: set scale -1 at this element of the card ([0, 1] to [-1, 1]: 2 a - 1).",
                )  # fmt: skip

    def error(self) -> Iterator[Finding]:
        """Answers are near those that were shown."""
        found = self._compared()
        if found is None:
            yield _NOTHING_SHOWN
        elif found.error > POOR_ERROR:
            yield warning(
                "all elements", expected=f"a mean error under {POOR_ERROR:g} of the half range", got=f"{found.error:.2f}",
                fix="It may be bad, or solve the task another way; the teacher report of refine_teacher says how often it succeeds.",
            )  # fmt: skip

    def _compared(self) -> Agreement | None:
        if self._agreement is None and self.shown is not None:
            self._agreement = compare(self.teacher, self.shown, self.env)
        return self._agreement


_NOTHING_SHOWN = skipped(
    "nothing shown", expected="demonstrations=<store> or expert=<choice>", got="neither", fix="Give one of them."
)


def check_teacher(
    teacher: AskedTeacher, env: VectorEnv, *, observation: Observation, shown: ShownSteps | None
) -> list[Finding]:
    """Run TEACHER_CHECKS.

    Args:
        teacher: under test.
        env: its environment; not stepped here.
        observation: real rows, two or more, with the teacher's history.
        shown: demonstrations to compare with, or None.
    """
    trial = TeacherTrial(teacher, env, observation=observation, shown=shown)
    return run_checks({name: getattr(trial, name) for name in TEACHER_CHECKS})
