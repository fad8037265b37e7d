"""A policy drives and the operator may take over at any moment: who holds the clutch drives (HG-DAgger, arXiv:1810.02890).

The policy is asked all the time, also while the operator drives, so that what it would have done is recorded and its newest
chunk fits when it drives again. At a take-over the operator's mapping begins where the robot is; behind one, and behind a
hand-back, the arm's part of the action goes over from the one to the other within `hand_over_s`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.data.element_names import gripper_elements
from robot_rl.deploy.decisions import Decisions, Timing
from robot_rl.deploy.inference import PolicyRunner
from robot_rl.deploy.loop_checks import actions_every, require_fits, streams_of
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import Clock
from robot_rl.specs import ActionKind, EnvSpec
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.pilots import MOVES, Choice, ClutchLike, Mapping, Turn, mapped_of
from robot_rl.types import Goal, Reading, Source


class SharedPilot:
    """See the text of this module.

    Args:
        mapping: of the operator.
        clutch: likewise.
        policy: started here, closed by the caller.
        spec: of the robot.
        card: of the robot.
        clock: of the loop.
        hand_over_s: see above; actions that are places go over at once, within the limits of the safety layer.

    Raises:
        RobotRlError: the policy does not start, or was made for another robot.
    """

    def __init__(
        self, mapping: Mapping, clutch: ClutchLike, policy: PolicyRunner, *, spec: EnvSpec, card: RobotCard, clock: Clock,
        hand_over_s: float = 0.2,
    ) -> None:  # fmt: skip
        self._mapping, self._clutch, self._policy = mapping, clutch, policy
        info = policy.start()
        require_fits(info, spec, card)
        self._decisions = _decisions(policy, info, card, clock, self._fail)
        self._hand_over_s, self._is_place = hand_over_s, spec.action_semantics.kind is ActionKind.absolute
        self._gripper = list(gripper_elements(spec.action))
        self._state, self._share, self.problem = "open", 0.0, ""
        self._is_policy_on, self._was_operator, self._count = False, False, 0
        self._last: np.ndarray | None = None
        self._from: np.ndarray | None = None
        self._changed_s = -np.inf

    @property
    def engagement(self) -> str:
        """See Pilot."""
        return self._state

    def judge(self, command: TeleopCommand, now_s: float) -> None:
        """See Pilot."""
        engagement = self._clutch.judge(command, now_s)
        self._state, self._share = engagement.state, engagement.share

    def begin(self, reading: Reading, *, sent: Goal | None, seed: int) -> None:
        """See Pilot. Until `start` the operator drives alone."""
        if self._policy.failure:
            self._policy.start()
        self._mapping.reset(reading, sent=sent)
        self._decisions.begin(seed=seed)
        self.problem, self._is_policy_on, self._was_operator = "", False, False
        self._last = self._from = None

    def start(self, *, seed: int, is_new: bool) -> None:
        """See Pilot: from now on the policy drives."""
        self._decisions.begin(seed=seed)
        self._is_policy_on, self._was_operator = True, False
        self._count = 0 if is_new else self._count

    def choose(self, turn: Turn) -> Choice:
        """See Pilot."""
        if not self._is_policy_on:
            mapped = mapped_of(self._mapping, turn, self._state, self._share)
            still = self._state not in MOVES
            return Choice(mapped.action, None, mapped.raw, Source.teleop, 0, tuple(mapped.clamped), still)
        self._decisions.update(turn.slot, turn.reading, may_ask=not turn.is_stale)
        if self._policy.failure:
            self.problem = self._policy.failure
        due = self._decisions.due(turn.slot, is_stale=turn.is_stale)
        policy = None if due is None else np.asarray(due.action, np.float32)
        is_operator = self._state in MOVES
        if is_operator != self._was_operator:
            self._change(turn, is_operator)
        mapped = mapped_of(self._mapping, turn, self._state, self._share)
        if is_operator:
            self._decisions.overruled()
            action = self._gone_over(mapped.action, turn.now_s)
            return self._chosen(
                Choice(action, policy, mapped.raw, Source.intervention, self._count, tuple(mapped.clamped))
            )
        if policy is None:
            return self._chosen(Choice(mapped.action, None, None, Source.policy, is_still=True))
        return self._chosen(Choice(self._gone_over(policy, turn.now_s), policy, None, Source.policy))

    def _change(self, turn: Turn, is_operator: bool) -> None:
        self._was_operator, self._from, self._changed_s = is_operator, self._last, turn.now_s
        if is_operator:
            self._count += 1
            self._mapping.reset(turn.reading, sent=turn.sent)

    def _chosen(self, choice: Choice) -> Choice:
        self._last = choice.action
        return choice

    def _gone_over(self, action: Float32[Array, " A"], now_s: float) -> Float32[Array, " A"]:
        """Between what was asked when the driver changed and this action."""
        share = (now_s - self._changed_s) / self._hand_over_s if self._hand_over_s > 0 else 1.0
        if self._from is None or self._is_place or share >= 1.0:
            return action
        mixed = np.asarray(self._from + max(share, 0.0) * (action - self._from), np.float32)
        mixed[self._gripper] = action[self._gripper]  # half a grasp is none
        return mixed

    def _fail(self, reason: Reason, text: str) -> None:
        self.problem = f"{reason.name}: {text}"


def _decisions(
    policy: PolicyRunner, info: PolicyInfo, card: RobotCard, clock: Clock, fail: Callable[[Reason, str], None]
) -> Decisions:
    period_s = 1.0 / card.control_hz
    timing = Timing(
        period_s, actions_every(card.control_hz, info.spec.control_hz), wait_s=0.5 * period_s,
        late_s=card.thresholds.observation_s,
    )  # fmt: skip
    return Decisions(policy, info, timing, streams=streams_of(info.keys, card), clock=clock, latch=fail)
