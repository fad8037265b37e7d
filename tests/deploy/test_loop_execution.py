"""Chunk execution in a robot's loop, in exact time: action by action what an evaluation plays, and never an old chunk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from known_chunks import EXECUTE, HORIZON, KnownChunks, chunk_of
from small_robot import HERE, small_card, small_spec

from robot_rl import chunk_execution
from robot_rl.chunk_execution import DelayedActor
from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.decisions import Timing, _player_of
from robot_rl.deploy.execution import ChunkRule, Execution, require_blendable
from robot_rl.deploy.inference import ProcessPolicy, SameThreadPolicy
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts
from robot_rl.deploy.loop_summary import EpisodeSummary
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.safety import STOPS, Reason
from robot_rl.deploy.schedule import ManualClock
from robot_rl.deploy.smoothness import Smoothness
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import ConfigError, DeployError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.rollout import _Track
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

HZ, STEPS = 50.0, 40
QUIET = RealtimeConfig(freeze_gc=False, fifo_priority=None, lock_memory=False)
LATE_S = 1.0  # longer than any chunk: then a robot plays as long as an evaluation


class Play:
    """One episode of a loop on the mock robot; time moves only when somebody sleeps."""

    def __init__(
        self, kind: Execution, latency_s: Callable[[int], float], *, rule: ChunkRule | None = None, policy: Any = None,
        late_s: float | None = LATE_S, faults: tuple[Fault, ...] = (), spec: EnvSpec | None = None,
    ) -> None:  # fmt: skip
        self.clock, card = ManualClock(), small_card()
        robot = MockRobot(
            MockRobotConfig(streams=("joints",), lag_s=0.0, faults=faults), card=card, spec=spec, clock=self.clock
        )
        self.policy = KnownChunks(spec) if policy is None else policy
        self.runner = SameThreadPolicy(self.policy, clock=self.clock, latency_s=latency_s)
        self.records: list[StepRecord] = []
        self.stall: Callable[[StepRecord], None] = lambda record: None
        config = LoopConfig(realtime=QUIET, wait_s=0.0, late_s=late_s, execution=kind, chunks=rule or ChunkRule())
        self.loop = ControlLoop(
            robot, self.runner, ActionReader(self.policy.spec, card), config=config,
            parts=LoopParts(observer=self._see, clock=self.clock),
        )  # fmt: skip

    def _see(self, record: StepRecord) -> None:
        self.records.append(record)
        self.stall(record)

    def run(self, steps: int = STEPS) -> EpisodeSummary:
        self.loop.bring_up()
        return self.loop.run_episode(seed=7, max_steps=steps)

    def played(self, every: int = 1) -> list[np.ndarray | None]:
        """The action of each action period; it must be one for all its commands."""
        out: dict[int, list[np.ndarray | None]] = {}
        for record in self.records:
            out.setdefault(record.slot // every, []).append(record.action)
        return [actions[-1] for actions in out.values()]


def evaluated(actor: DelayedActor, steps: int) -> np.ndarray:
    """What an evaluation plays, float32 (steps, A)."""
    seen = Observation(proprio=torch.zeros(1, 1, 4))
    return np.stack([
        actor.act(seen, episode_seeds=np.array([7]), new_episode=np.array([step == 0])).actions[0, 0].numpy()
        for step in range(steps)
    ])  # fmt: skip


def sim(kind: Execution, rule: ChunkRule, latency_ms: float | None, spec: EnvSpec | None = None) -> DelayedActor:
    policy = KnownChunks(spec)
    return DelayedActor(policy, policy.noise(), kind=kind, rule=rule, latency_ms=latency_ms)


def require_same(robot: list[np.ndarray | None], wanted: np.ndarray) -> None:
    """Bit by bit; where the robot holds, the evaluation repeats its last action, which is what holding means there."""
    before = wanted[0]
    for step, (ours, theirs) in enumerate(zip(robot, wanted, strict=True)):
        np.testing.assert_array_equal(before if ours is None else ours, theirs, err_msg=f"step {step}")
        before = theirs


CASES = [
    (kind, delay, rule)
    for kind in (Execution.sync, Execution.asynchronous, Execution.ensemble, Execution.rtc)
    for delay in (0, 1, 3)
    for rule in (ChunkRule(), ChunkRule(every=2), ChunkRule(blend_steps=3), ChunkRule(every=3, blend_steps=2))
    if not rule.blend_steps or kind in (Execution.asynchronous, Execution.rtc)
    # An evaluation with a given delay never asks sooner, a robot does behind its first answer: the next test has those.
    if delay <= (1 if kind is Execution.ensemble else rule.every or EXECUTE)
]


@pytest.mark.parametrize(("kind", "delay", "rule"), CASES)
def test_a_robot_plays_what_an_evaluation_with_this_latency_plays(kind: Execution, delay: int, rule: ChunkRule) -> None:
    """An answer a little before the slot `delay` is there in it. The robot stands for the first one; then every bit is equal."""
    latency_s = max(delay / HZ - 0.001, 0.0)
    play = Play(kind, lambda request: latency_s, rule=rule)
    summary = play.run()
    played = play.played()[:STEPS]
    assert played[:delay] == [None] * delay
    wanted = sim(kind, rule, 1e3 * latency_s)
    require_same(played[delay:], evaluated(wanted, STEPS - delay))
    told = summary.counts["chunk_execution"]
    assert told["held_steps"] - delay == wanted.summary()["held_steps"]
    assert (told["steps"], told["delay_steps"]["max"]) == (STEPS, delay)
    assert summary.counts["unanswered"] == summary.counts["dropped"] == 0


@pytest.mark.parametrize(("first", "most"), [(0, 6), (5, 10)])
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        *[(kind, ChunkRule(every)) for every in (None, 2) for kind in Execution if kind is not Execution.naive],
        *[(kind, ChunkRule(every, 3)) for every in (None, 1, 2) for kind in (Execution.asynchronous, Execution.rtc)],
    ],
)
def test_measured_delays_that_vary_are_those_of_an_evaluation(
    kind: Execution, rule: ChunkRule, first: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation's stop watch tells the same delays; async and rtc expect the largest of the last ten of them."""
    delays = [first, *np.random.default_rng(3).integers(0, most, 60).tolist()]
    seconds = [max(delay / HZ - 0.001, 0.0) for delay in delays]
    play = Play(kind, lambda request: seconds[request - 1], rule=rule)
    play.run()
    ticks = iter([tick for taken in seconds for tick in (0.0, taken)])
    monkeypatch.setattr(chunk_execution, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    require_same(play.played()[first:STEPS], evaluated(sim(kind, rule, None), STEPS - first))


def test_the_robot_commands_less_jerk_with_a_blend() -> None:
    def told(rule: ChunkRule) -> dict[str, float]:
        return Play(Execution.asynchronous, lambda request: 0.039, rule=rule).run(200).counts["smoothness"]

    plain, blended = told(ChunkRule()), told(ChunkRule(blend_steps=3))
    assert blended["action_jerk_rms"] < plain["action_jerk_rms"]
    assert blended["action_change_rms"] < plain["action_change_rms"]


def gripper_spec(kind: ActionKind) -> EnvSpec:
    reference = DeltaReference.target if kind is ActionKind.delta else DeltaReference.none
    action = ArraySpec("action", (3,), meanings=("x", "y", "gripper"))
    said = ActionSemantics(kind, reference, "base", "none", "-1 closed .. 1 open", "x")
    return replace(small_spec(), action=action, action_semantics=said)


@pytest.mark.parametrize("kind", [ActionKind.delta, ActionKind.absolute])
def test_smoothness_is_that_of_an_evaluation(kind: ActionKind) -> None:
    spec, rng = gripper_spec(kind), np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, 3)).astype(np.float32)
    held = actions[10].copy() if kind is ActionKind.absolute else np.float32([0, 0, actions[10][2]])
    ours = Smoothness(spec)
    for step, action in enumerate([None, *actions[:11], None, None, *actions[11:]]):
        assert step or action is None
        ours.add(action)
    track = _Track(0, {}, False)
    track.actions, track.rewards, track.success = [*actions[:11], held, held, *actions[11:]], [0.0], [False]
    record = track.record(spec, terminated=False, truncated=True)
    for name, value in ours.to_json().items():
        assert value == pytest.approx(getattr(record, name), rel=1e-6), name


def test_the_first_answer_is_played_from_its_first_action_for_the_robot_stood_still() -> None:
    play = Play(Execution.asynchronous, lambda request: 0.059 if request == 1 else 0.0)
    summary = play.run(10)
    played = play.played()[:10]
    assert played[:3] == [None] * 3
    np.testing.assert_array_equal(np.stack(played[3:7]), chunk_of(0)[:4])  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.stack(played[7:10]), chunk_of(1)[:3])  # type: ignore[arg-type]
    assert summary.counts["chunk_execution"]["held_steps"] == 3
    assert "policy_late" not in summary.counts["clamps"], "waiting for the first answer is no lateness"


def test_sync_holds_for_its_answer_and_that_is_late_only_behind_the_threshold() -> None:
    """80 ms are within the 100 ms of the card, 300 ms are not."""
    quick = Play(Execution.sync, lambda request: 0.079, late_s=None).run()
    assert "policy_late" not in quick.counts["clamps"]
    play = Play(Execution.sync, lambda request: 0.299 if request == 2 else 0.0, late_s=None)
    play.run()
    late = [record.slot for record in play.records if record.reasons & Reason.policy_late]
    assert late[0] == 4 + 6, "asked in slot 4, and 5 periods are allowed"
    assert any(record.request == 3 for record in play.records)
    assert not any(record.request == 2 for record in play.records), "an answer of 15 periods is not played"


@pytest.mark.parametrize("kind", [Execution.asynchronous, Execution.ensemble, Execution.rtc])
def test_a_policy_that_falls_silent_is_followed_for_execute_and_the_threshold_only(kind: Execution) -> None:
    """The chunk has 12 actions; 4 + 5 of them may be played. Then it holds, and nothing of that chunk is played again."""
    play = Play(kind, lambda request: 1.0 if request == 3 else 0.0, late_s=None)
    play.run(80)
    asked = {}
    for record in play.records:
        if record.action is not None:
            asked.setdefault(record.request, record.slot - record.index)
            assert record.index < EXECUTE + 5
    last = max(record.slot for record in play.records if record.request == 2)
    assert last == asked[2] + EXECUTE + 5 - 1
    assert 3 not in asked, "its answer came 50 periods late"
    held = next(record for record in play.records if record.slot == last + 1)
    assert held.reasons & Reason.policy_late
    later = [record for record in play.records if record.action is not None and record.slot > last]
    first = later[0]
    assert first.request == 4
    if kind is not Execution.rtc:
        np.testing.assert_array_equal(first.action, chunk_of(3)[0])


def test_a_chunk_that_ran_out_is_not_blended_into_the_next_one() -> None:
    """Request 3 comes too late, and the robot holds; at request 4 the old chunk has actions left that no longer count."""
    rule = ChunkRule(blend_steps=3)
    play = Play(Execution.asynchronous, lambda request: 0.119 if request == 3 else 0.0, rule=rule, late_s=0.02)
    play.run(60)
    after = [record for record in play.records if record.request == 4]
    np.testing.assert_array_equal(after[0].action, chunk_of(3)[after[0].index])


@pytest.mark.parametrize("kind", [Execution.asynchronous, Execution.ensemble])
@pytest.mark.parametrize("said", [ActionKind.absolute, ActionKind.delta])
def test_several_commands_an_action_change_chunks_between_actions(kind: Execution, said: ActionKind) -> None:
    """Five commands for one action, answers after 1.5 periods of actions: nothing changes inside a period."""
    spec = small_spec(hz=10.0)
    reference = DeltaReference.target if said is ActionKind.delta else DeltaReference.none
    spec = replace(spec, action_semantics=replace(spec.action_semantics, kind=said, delta_reference=reference))
    play = Play(kind, lambda request: 0.149, spec=spec)
    play.run(30)
    by_period: dict[int, list[tuple[int, int]]] = {}
    for record in play.records:
        if record.action is not None:
            by_period.setdefault(record.slot // 5, []).append((record.request, record.index))
    changed = [period for period, seen in by_period.items() if len(set(seen)) > 1]
    assert changed == []
    if kind is Execution.asynchronous:
        require_same(play.played(5)[1:30], evaluated(sim(kind, ChunkRule(), 149.0, spec), 29))


@pytest.mark.parametrize("kind", [Execution.sync, Execution.ensemble, Execution.rtc])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_goes_wrong_no_old_chunk_moves_the_robot(kind: Execution, seed: int) -> None:
    """Random faults, latencies and slots that take too long; see the same test of the plain loop."""
    rng = np.random.default_rng(seed)
    kinds = [FaultKind.frozen, FaultKind.missing, FaultKind.clock_jump, FaultKind.nan]
    faults = tuple(
        Fault(kinds[rng.integers(len(kinds))], start, start + rng.uniform(0.02, 0.4), value=rng.normal(0, 1))
        for start in rng.uniform(0.0, 1.2, 2).tolist()
    )
    latencies = np.where(rng.random(500) < 0.5, 0.0, rng.exponential(0.08, 500))
    play = Play(kind, lambda request: float(latencies[request]), late_s=None, faults=faults)
    stalls = rng.exponential(0.03, 1000) * (rng.random(1000) < 0.1)
    play.stall = lambda record: play.clock.advance(float(stalls[record.slot]))
    play.run(80)
    played = [record for record in play.records if record.action is not None]
    assert played
    assert all(record.index < EXECUTE + 5 for record in played)
    assert [record.request for record in played] == sorted(record.request for record in played)
    for record in play.records:
        is_fresh = record.monotonic_s - record.reading.stamps.get("joints", -math.inf) <= 0.1
        assert is_fresh or record.action is None
        assert not record.reasons & STOPS or record.action is None or record.goal is None


def test_a_process_gets_the_plan_that_it_is_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)
    runner = ProcessPolicy(PolicySource(target="known_chunks:open_known"))
    seen = Observation(proprio=np.zeros((1, 1, 2), np.float32))
    plan, weights = chunk_of(99), np.linspace(1.0, 0.0, HORIZON)
    try:
        assert runner.start().can_continue
        found = []
        for request in (1, 2, 3):
            if request == 2:
                runner.continue_from(plan, weights)
            runner.ask(request, seen, episode_seed=0, decision=request)
            answer = runner.poll(60.0)
            assert answer is not None
            assert answer.actions is not None, answer.error
            found.append(answer.actions)
    finally:
        runner.close()
    np.testing.assert_array_equal(found[0], chunk_of(0))
    np.testing.assert_array_equal(found[1], np.float32(weights[:, None] * plan + (1 - weights[:, None]) * chunk_of(1)))
    np.testing.assert_array_equal(found[2], chunk_of(2))


def test_a_gripper_changes_hands_at_once() -> None:
    """The player of a loop knows which elements are a gripper: those are not blended."""
    info = PolicyInfo(gripper_spec(ActionKind.absolute), ("proprio",), history=1, horizon=4, execute=2)
    timing = Timing(0.02, 1, wait_s=0.0, late_s=1.0, chunks=ChunkRule(blend_steps=1))
    player, interval = _player_of(info, timing)
    assert interval == 2
    for step, value in ((0, 0.0), (2, 1.0)):
        player.asked(step)
        assert player.take(step, np.full((4, 3), value, np.float32))
    due = player.due(2)
    assert due is not None
    assert due.action.tolist() == [0.5, 0.5, 1.0]


def rotating(rotation: str, kind: ActionKind = ActionKind.absolute) -> EnvSpec:
    said = small_spec().action_semantics
    reference = DeltaReference.measured if kind is ActionKind.delta else DeltaReference.none
    return replace(
        small_spec(), action_semantics=replace(said, rotation=rotation, kind=kind, delta_reference=reference)
    )


def test_what_a_robot_refuses() -> None:
    with pytest.raises(ConfigError, match="sync, async, ensemble or rtc on a robot"):
        Play(Execution.naive, lambda request: 0.0).run()
    with pytest.raises(ConfigError, match="at most 12 steps between two questions"):
        Play(Execution.asynchronous, lambda request: 0.0, rule=ChunkRule(every=13)).run()
    policy = KnownChunks()
    runner = SimpleNamespace(act=policy.act, noise=policy.noise, spec=policy.spec, config=policy.config)
    with pytest.raises(DeployError, match="a policy that can continue a chunk: a run or checkpoint directory"):
        Play(Execution.rtc, lambda request: 0.0, policy=runner).run()


@pytest.mark.parametrize(
    ("spec", "is_fine"),
    [
        (rotating("none"), True), (rotating("rot6d"), True), (rotating("rotvec", ActionKind.delta), True),
        (rotating("euler_XYZ", ActionKind.delta), True), (rotating("rotvec"), False), (rotating("euler_XYZ"), False),
        (rotating("quat_wxyz"), False), (rotating("quat_wxyz", ActionKind.delta), False),
    ],
    ids=lambda value: f"{value.action_semantics.kind}-{value.action_semantics.rotation}" if isinstance(value, EnvSpec) else "",
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "rule"), [(Execution.ensemble, ChunkRule()), (Execution.asynchronous, ChunkRule(blend_steps=1))]
)
def test_rotations_that_have_no_mean_are_refused(
    spec: EnvSpec, is_fine: bool, kind: Execution, rule: ChunkRule
) -> None:
    require_blendable(spec, Execution.asynchronous, ChunkRule())
    if is_fine:
        require_blendable(spec, kind, rule)
        return
    with pytest.raises(ConfigError, match="may be averaged"):
        require_blendable(spec, kind, rule)


def missing(slots: range) -> tuple[Fault, ...]:
    """No reading in these slots: the first one is a period behind the start."""
    return (Fault(FaultKind.missing, (slots[0] + 0.5) / HZ, (slots[-1] + 1.5) / HZ),)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (Execution.asynchronous, ChunkRule(blend_steps=3)), (Execution.rtc, ChunkRule()),
        (Execution.ensemble, ChunkRule()),
    ],
)  # fmt: skip
def test_behind_a_stale_hold_nothing_of_the_old_plan_is_in_a_new_chunk(kind: Execution, rule: ChunkRule) -> None:
    play = Play(kind, lambda request: 0.0, rule=rule, faults=missing(range(2, 9)))
    told = play.run(12).counts["chunk_execution"]
    assert [record.slot for record in play.records if record.reasons & Reason.stale] == list(range(2, 9))
    first = play.records[9]
    np.testing.assert_array_equal(first.action, chunk_of(first.request - 1)[0])
    assert first.request == (3 if kind is Execution.ensemble else 2)
    assert (told["steps"], told["held_steps"]) == (12, 7), "held steps are steps"


def test_a_period_whose_first_slot_is_stale_is_asked_about_in_its_next() -> None:
    """Five commands an action; at slot 20 the chunk is over and nothing can be read."""
    spec = small_spec(hz=10.0)
    play = Play(Execution.sync, lambda request: 0.0, spec=spec, faults=missing(range(20, 21)))
    play.run(6)
    assert [record.slot for record in play.records if record.reasons & Reason.stale] == [20]
    assert [(record.slot, record.request) for record in play.records[19:22]] == [(19, 1), (20, -1), (21, 2)]


def test_the_first_hand_over_forecasts_the_next_answer() -> None:
    """Answers take 3 periods, and 4 + 2 actions of a chunk may be played: the second question comes 3 behind the first answer."""
    summary = Play(Execution.asynchronous, lambda request: 0.059, late_s=0.04).run(20)
    assert summary.counts["chunk_execution"]["held_steps"] == 3, "those before the first answer"


def test_the_first_answer_is_no_delay() -> None:
    play = Play(Execution.asynchronous, lambda request: 0.059 if request == 1 else 0.0)
    assert play.run(20).counts["chunk_execution"]["delay_steps"]["max"] == 0
