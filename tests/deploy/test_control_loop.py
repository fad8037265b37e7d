"""The control loop on a mock robot in exact time: what it does step by step, and when a hold begins."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_robot import SmallPolicy, small_card, small_spec

from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import SameThreadPolicy
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts, Targets
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.safety import STOPS, Reason
from robot_rl.deploy.schedule import ManualClock
from robot_rl.deploy.targets import ActionReader
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.deploy.watchdog import Heart
from robot_rl.errors import DeployError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.specs import ActionKind, DeltaReference, EnvSpec

QUIET = RealtimeConfig(freeze_gc=False, fifo_priority=None, lock_memory=False)
PERIOD_S, SLACK_S = 0.02, 0.020


class Bench:
    """A loop, its parts, and what they did; in time that only moves when somebody sleeps."""

    def __init__(
        self, *faults: Fault, policy: dict[str, Any] | None = None, latency_s: Callable[[int], float] = lambda _: 0.0,
        card: RobotCard | None = None, spec: EnvSpec | None = None, config: LoopConfig | None = None,
        heart: Heart | None = None, **mock: Any,
    ) -> None:  # fmt: skip
        self.clock, self.card = ManualClock(), card or small_card()
        robot = MockRobotConfig(**{"streams": ("joints",), "lag_s": 0.0, "faults": faults, **mock})
        self.robot = MockRobot(robot, card=self.card, spec=spec, clock=self.clock)
        self.policy = SmallPolicy(policy or {}, spec)
        self.runner = SameThreadPolicy(self.policy, clock=self.clock, latency_s=latency_s)
        self.records: list[StepRecord] = []
        self.act: Callable[[StepRecord], None] = lambda record: None
        self.targets: Targets = ActionReader(self.policy.spec, self.card)
        self.loop = ControlLoop(
            self.robot, self.runner, self.targets, config=config or LoopConfig(realtime=QUIET),
            parts=LoopParts(heart=heart, observer=self.observe, clock=self.clock),
        )  # fmt: skip
        self.loop.bring_up()
        self.began_s = self.clock.now()

    def observe(self, record: StepRecord) -> None:
        self.records.append(record)
        self.act(record)

    def first(self, reason: Reason) -> StepRecord:
        return next(record for record in self.records if record.reasons & reason)

    def since_s(self, record: StepRecord) -> float:
        return record.monotonic_s - self.began_s

    def commanded(self) -> np.ndarray:
        return np.array([record.sent.position for record in self.records])

    def is_within_limits(self) -> bool:
        """Position, velocity and acceleration of everything that was sent, by differences, over all of the episode."""
        steps = np.diff([record.slot for record in self.records])[:, None] * PERIOD_S
        speed = np.diff(self.commanded(), axis=0) / steps
        change = 2 * np.diff(speed, axis=0) / (steps[1:] + steps[:-1])  # mean speeds are those of the middles
        return bool(np.abs(speed).max() <= 2.0 + 1e-9 and np.abs(change).max() <= 20.0 + 1e-6)


def test_one_action_a_slot_each_at_its_time() -> None:
    """execute 4 of 8: questions at slots 0, 4, 8 ..., every answer from its first action on, and the targets reached."""
    bench = Bench()
    summary = bench.loop.run_episode(max_steps=10)
    played = [record for record in bench.records if record.action is not None]
    assert [record.index for record in played] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [record.request for record in played] == [1] * 4 + [2] * 4 + [3] * 2
    assert [record.slot for record in played] == list(range(10))
    assert (summary.ended_by, summary.reasons, summary.success, summary.steps) == ("time_limit", Reason.none, False, 10)
    assert bench.is_within_limits()
    # Behind the last action it brakes to rest, and then the robot's own stop.
    assert [record.action for record in bench.records[10:]] == [None] * (len(bench.records) - 10)
    assert len(bench.robot.stops) == 1
    np.testing.assert_allclose(bench.commanded()[-1], bench.commanded()[-2], atol=0.02)
    counts = summary.counts
    assert (counts["requests"], counts["answers"], counts["dropped"]) == (3, 3, 0)
    assert counts["jitter"]["skipped"] == 0
    assert counts["jitter"]["handled"] == len(bench.records)
    assert counts["latency"]["count"] == 3


def test_the_policy_sees_a_history_of_action_periods() -> None:
    bench = Bench(policy={"execute": 2, "rate": 1.0})
    bench.loop.run_episode(max_steps=6)
    places = [float(record.reading.frames["proprio"][0]) for record in bench.records]
    seen = [observation.proprio[0, :, 0].tolist() for observation in bench.policy.seen]
    assert seen == [[places[0], places[0]], [places[1], places[2]], [places[3], places[4]]]


def test_faster_commands_than_actions() -> None:
    """Commands at 50 Hz, actions at 10 Hz: five commands each; a delta counts once however many commands it gets."""
    spec = small_spec(hz=10.0)
    delta = replace(spec.action_semantics, kind=ActionKind.delta, delta_reference=DeltaReference.target)
    spec = replace(spec, action_semantics=delta)
    bench = Bench(policy={"actions": {str(k): 0.002 for k in range(9)}, "hz": 10.0}, spec=spec)
    summary = bench.loop.run_episode(max_steps=4)
    played = [record for record in bench.records if record.action is not None]
    assert [record.index for record in played] == [k for k in range(4) for _ in range(5)]
    assert summary.steps == 4
    assert bench.commanded()[19][0] == pytest.approx(4 * 0.002, abs=1e-6)


@pytest.mark.parametrize(
    ("latency_s", "indices"), [(0.009, [0, 1, 2, 3, 0]), (0.05, [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3])]
)
def test_a_slow_policy_is_entered_at_the_action_that_is_due(latency_s: float, indices: list[int]) -> None:
    """9 ms is inside half a period; after 50 ms, three slots later, action 3 is due. The first answer is waited for."""
    bench = Bench(latency_s=lambda request: latency_s)
    bench.loop.run_episode(max_steps=20)
    played = [record.index for record in bench.records if record.action is not None]
    assert played[: len(indices)] == indices
    assert not any(record.reasons & Reason.policy_late for record in bench.records[: 3 + len(indices)])


def test_latency_is_from_capture_to_command() -> None:
    bench = Bench(latency_s=lambda request: 0.004)
    bench.loop.run_episode(max_steps=8)
    found = [record.latency_s for record in bench.records if not math.isnan(record.latency_s)]
    np.testing.assert_allclose(found, [0.004, 0.004], atol=1e-9)


def hold_begins_s(bench: Bench, reason: Reason) -> float:
    return bench.since_s(bench.first(reason))


@pytest.mark.parametrize("phase_s", [0.0, 0.003, 0.011, 0.0199])
@pytest.mark.parametrize("kind", [FaultKind.frozen, FaultKind.missing])
def test_a_stale_observation_holds_in_time_and_goes_on_when_it_is_fresh(kind: FaultKind, phase_s: float) -> None:
    """Property of the issue: hold within threshold + one period + 20 ms; and nothing jumps when the stream is back."""
    at_s = 0.5 + phase_s
    bench = Bench(Fault(kind, at_s, at_s + 0.5), policy={"rate": 1.0})
    summary = bench.loop.run_episode(max_steps=100)
    threshold_s = bench.card.thresholds.observation_s if kind is FaultKind.frozen else 0.0
    assert at_s <= hold_begins_s(bench, Reason.stale) <= at_s + threshold_s + PERIOD_S + SLACK_S
    assert bench.is_within_limits()
    assert summary.ended_by == "time_limit"
    assert summary.counts["clamps"]["stale"] == pytest.approx(20 if kind is FaultKind.frozen else 25, abs=1)
    held = [record for record in bench.records if record.reasons & Reason.stale]
    assert held[-1].sent.velocity.tolist() == [0.0, 0.0]
    assert bench.records[-1].reading.position[0] > held[-1].reading.position[0] + 0.1


@pytest.mark.parametrize("late_at", [2, 3, 7])
def test_a_policy_two_seconds_late_holds_in_time_and_its_answer_is_dropped(late_at: int) -> None:
    """The answer was due in its own slot; the rest of the old chunk is followed for up to 0.1 s, then the robot holds."""
    bench = Bench(latency_s=lambda request: 2.0 if request == late_at else 0.0, policy={"rate": 1.0})
    summary = bench.loop.run_episode(max_steps=160)
    asked_s = PERIOD_S * (1 + 4 * (late_at - 1))
    threshold_s = bench.card.thresholds.observation_s
    begins_s = hold_begins_s(bench, Reason.policy_late)
    assert asked_s < begins_s <= asked_s + threshold_s + PERIOD_S + SLACK_S
    late = [record for record in bench.records if record.reasons & Reason.policy_late]
    assert late[-1].sent.velocity.tolist() == [0.0, 0.0]
    assert bench.is_within_limits()
    assert summary.counts["dropped"] == 1
    assert late_at not in {record.request for record in bench.records if bench.since_s(record) > begins_s}
    # No action of the chunk that ran out is played again: what follows belongs to later questions.
    assert min(r.request for r in bench.records if r.action is not None and bench.since_s(r) > begins_s) > late_at
    assert summary.ended_by == "time_limit"


def test_an_answer_that_is_a_little_late_changes_nothing_but_the_action_that_is_due() -> None:
    bench = Bench(latency_s=lambda request: 0.07 if request == 2 else 0.0)
    summary = bench.loop.run_episode(max_steps=20)
    assert summary.counts["dropped"] == 0
    assert not any(record.reasons & (Reason.policy_late | STOPS) for record in bench.records)
    played = [(record.request, record.index) for record in bench.records if record.action is not None]
    assert played[:10] == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (3, 0), (3, 1)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(FaultKind.nan, 0.5), Reason.measured_not_finite),
        (Fault(FaultKind.permuted, 0.5), Reason.tracking),
        (Fault(FaultKind.bias, 0.5, value=0.6), Reason.tracking),
        (Fault(FaultKind.command_lost, 0.3), Reason.tracking),
        (Fault(FaultKind.extra_joint, 0.5), Reason.measured_not_finite),
        (Fault(FaultKind.missing_joint, 0.5), Reason.measured_not_finite),
        (Fault(FaultKind.force, 0.5, value=60.0), Reason.force),
        (Fault(FaultKind.read_error, 0.5), Reason.robot_lost),
        (Fault(FaultKind.command_error, 0.5), Reason.robot_lost),
        (Fault(FaultKind.wrong_shape, 0.5, stream="image/wrist"), Reason.measured_not_finite),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Fault) else "",
)
def test_faults_stop_the_robot_for_good_with_their_reason(fault: Fault, reason: Reason) -> None:
    """Joint 0 moves at 1 rad/s, joint 1 at -1: reversed they are 2 * 0.5 rad apart."""
    card = small_card(tracking=(0.2, 0.2), force_n=30.0)
    bench = Bench(
        fault, card=card, cameras={"wrist": (4, 6)}, streams=("joints", "wrench"),
        policy={"keys": ("proprio", "image/wrist"), "rate": [1.0, -1.0], "open_loop": True},
        spec=replace(small_spec(card, MockRobotConfig(cameras={"wrist": (4, 6)})), control_hz=50.0),
    )  # fmt: skip
    summary = bench.loop.run_episode(max_steps=100)
    assert summary.ended_by == "stop"
    assert summary.reasons & reason
    assert summary.reasons & STOPS == summary.reasons
    assert hold_begins_s(bench, reason) <= fault.start_s + 0.3  # a lost command shows after 0.2 rad
    assert fault.kind is FaultKind.command_error or bench.is_within_limits()  # nothing was sent any more
    assert len(bench.robot.stops) >= 1
    with pytest.raises(DeployError, match="release"):
        bench.loop.run_episode()


@pytest.mark.parametrize("jump_s", [10.0, -10.0])
def test_a_clock_that_jumps_holds_at_once_and_goes_on_when_it_is_back(jump_s: float) -> None:
    bench = Bench(Fault(FaultKind.clock_jump, 0.5, 0.8, value=jump_s))
    summary = bench.loop.run_episode(max_steps=60)
    assert hold_begins_s(bench, Reason.stale) <= 0.5 + PERIOD_S
    assert summary.ended_by == "time_limit"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"raise": [2]}, Reason.policy_lost),
        ({"shape": [2]}, Reason.wrong_size),
        ({"actions": {"2": float("nan")}}, Reason.not_finite),
        ({"actions": {"2": float("inf")}}, Reason.not_finite),
    ],
)
def test_what_a_policy_can_do_wrong_stops_the_robot(policy: dict[str, Any], reason: Reason) -> None:
    bench = Bench(policy=policy)
    summary = bench.loop.run_episode(max_steps=60)
    assert (summary.ended_by, summary.reasons) == ("stop", reason)
    assert hold_begins_s(bench, reason) == pytest.approx((1 + 8) * PERIOD_S)  # in the slot of the third question
    assert bench.is_within_limits()
    assert all(math.isfinite(value) for value in summary.counts["smoothness"].values())


def test_actions_a_thousand_times_too_large_are_bent_and_counted() -> None:
    bench = Bench(policy={"actions": {"2": 1000.0}})
    summary = bench.loop.run_episode(max_steps=30)
    assert summary.ended_by == "time_limit"
    assert bench.is_within_limits()
    assert summary.counts["clamps"]["position"] == 4
    assert summary.counts["clamps"]["velocity"] >= 4


def test_a_policy_that_dies_stops_the_robot_in_the_next_slot_and_is_started_again() -> None:
    bench = Bench()

    def die(record: StepRecord) -> None:
        if record.slot == 10:
            bench.runner.failure = "killed by signal 9"

    bench.act = die
    summary = bench.loop.run_episode(max_steps=60)
    assert (summary.ended_by, summary.reasons) == ("stop", Reason.policy_lost)
    assert bench.first(Reason.policy_lost).slot == 11
    bench.runner.failure = ""  # what start() does in a process
    bench.loop.release()
    bench.act = lambda record: None
    assert bench.loop.run_episode(max_steps=5).ended_by == "time_limit"


def test_a_release_with_another_policy_behind_its_name_is_refused() -> None:
    bench = Bench()
    bench.act = lambda record: bench.loop.stop() if record.slot == 5 else None
    bench.loop.run_episode(max_steps=60)
    was, bench.policy.spec = bench.policy.spec, replace(bench.policy.spec, control_hz=25.0)
    for _ in range(2):
        with pytest.raises(DeployError, match="the policy that the loop was brought up with"):
            bench.loop.release()
        assert bench.loop.latched
    bench.policy.spec = was
    bench.loop.release()
    assert not bench.loop.latched


def test_stop_brakes_holds_and_waits_for_a_person() -> None:
    bench = Bench(policy={"rate": 1.5, "open_loop": True})

    def press(record: StepRecord) -> None:
        if record.slot == 30:
            assert np.abs(record.sent.velocity).max() > 1.0
            bench.loop.stop()

    bench.act = press
    summary = bench.loop.run_episode(max_steps=100)
    assert (summary.ended_by, summary.reasons, summary.is_interrupted) == ("stop", Reason.emergency, False)
    braking = [record for record in bench.records if record.reasons & Reason.emergency]
    assert braking[0].slot == 31
    assert braking[-1].sent.velocity.tolist() == [0.0, 0.0]
    assert len(braking) * PERIOD_S < 0.25  # 1.5 rad/s at 20 rad/s2 and 500 rad/s3
    assert bench.is_within_limits()
    with pytest.raises(DeployError, match="emergency"):
        bench.loop.run_episode()
    bench.loop.release()
    bench.act = lambda record: None
    assert bench.loop.run_episode(max_steps=3).ended_by == "time_limit"


def test_ctrl_c_is_the_emergency_stop() -> None:
    bench = Bench(policy={"rate": 1.0})
    bench.act = lambda record: os.kill(os.getpid(), signal.SIGINT) if record.slot == 20 else None
    before = signal.getsignal(signal.SIGINT)
    summary = bench.loop.run_episode(max_steps=100)
    assert (summary.ended_by, summary.reasons, summary.is_interrupted) == ("stop", Reason.emergency, True)
    assert bench.is_within_limits()
    assert bench.first(Reason.emergency).slot == 21
    assert signal.getsignal(signal.SIGINT) is before


def test_episodes_have_a_reset_a_mark_and_an_end_of_their_own() -> None:
    bench, order = Bench(), list[str]()
    bench.act = lambda record: bench.loop.mark_success() if record.slot == 7 else None
    summary = bench.loop.run_episode(max_steps=50, reset=lambda: order.append(f"reset after {len(bench.records)}"))
    assert (summary.ended_by, summary.success) == ("success", True)
    assert bench.records[8].action is None
    done = len(bench.records)
    bench.act = lambda record: bench.loop.end_episode("operator") if record.slot == 3 else None
    summary = bench.loop.run_episode(max_steps=50, reset=lambda: order.append(f"reset after {len(bench.records)}"))
    assert (summary.ended_by, summary.success) == ("operator", False)
    assert order == ["reset after 0", f"reset after {done}"]
    # A new episode knows nothing of the one before: first question, first action, and its own first frame twice.
    assert bench.records[done].index == 0
    fresh = bench.policy.seen[3].proprio[0] if len(bench.policy.seen) > 3 else bench.policy.seen[-1].proprio[0]
    assert fresh[0].tolist() == fresh[1].tolist()


def test_a_stop_while_the_scene_is_reset_is_kept() -> None:
    bench = Bench()
    summary = bench.loop.run_episode(max_steps=20, reset=bench.loop.stop)
    assert (summary.ended_by, summary.reasons) == ("stop", Reason.emergency)
    assert np.ptp(bench.commanded(), axis=0).tolist() == [0.0, 0.0]


def test_an_answer_to_the_episode_before_is_dropped() -> None:
    bench = Bench(latency_s=lambda request: 0.5 if request == 2 else 0.0)
    bench.loop.run_episode(max_steps=5)
    assert bench.runner.is_busy
    done = len(bench.records)
    summary = bench.loop.run_episode(max_steps=60)
    assert 2 not in {record.request for record in bench.records[done:]}
    assert summary.counts["dropped"] == 1
    assert summary.ended_by == "time_limit"


def test_skipped_slots_are_counted_and_the_chunk_keeps_its_time() -> None:
    bench = Bench()
    bench.act = lambda record: bench.clock.advance(0.05) if record.slot == 4 else None
    summary = bench.loop.run_episode(max_steps=12)
    played = {record.slot: record.index for record in bench.records if record.action is not None}
    assert [played.get(slot) for slot in (4, 5, 6, 7)] == [0, None, 2, 3]
    assert summary.counts["jitter"]["skipped"] == 1
    assert bench.is_within_limits()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_limits_hold_and_no_expired_action_is_played(seed: int) -> None:
    """Random faults at random times, random latencies of the policy, and slots that take too long."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in FaultKind if kind not in (FaultKind.wrong_shape, FaultKind.command_error)]
    starts = rng.uniform(0.0, 0.8, 3)
    faults = [
        Fault(kinds[rng.integers(len(kinds))], start, start + rng.uniform(0.02, 0.4), value=rng.normal(0, 1))
        for start in starts.tolist()
    ]
    latencies = np.where(rng.random(500) < 0.5, 0.0, rng.exponential(0.08, 500))
    bench = Bench(
        *faults, policy={"rate": rng.uniform(-1.5, 1.5, 2).tolist()}, latency_s=lambda request: float(latencies[request]),
    )  # fmt: skip
    stalls = rng.exponential(0.03, 500) * (rng.random(500) < 0.1)
    bench.act = lambda record: bench.clock.advance(float(stalls[record.slot]))
    summary = bench.loop.run_episode(max_steps=50)
    assert bench.is_within_limits()
    grace = math.floor(bench.card.thresholds.observation_s / PERIOD_S)
    played = [record for record in bench.records if record.action is not None]
    asked = {}
    for record in played:
        assert record.index < min(4 + grace, 8)
        # An action has one time: its chunk's start and its place in it; so start = slot - index is one for each request.
        assert asked.setdefault(record.request, record.slot - record.index) == record.slot - record.index
    assert [record.request for record in played] == sorted(record.request for record in played)
    for record in bench.records:
        is_fresh = record.monotonic_s - record.reading.stamps.get("joints", -math.inf) <= 0.1
        assert is_fresh or record.action is None
        assert not record.reasons & STOPS or record.action is None or record.goal is None
    assert len(bench.robot.stops) >= 1
    assert summary.ended_by in ("time_limit", "stop")


class FakeHeart:
    """Notes what the loop does with it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.has_tripped, self.failure = False, ""

    def arm(self) -> None:
        self.calls.append("arm")

    def beat(self) -> None:
        self.calls.append("beat")

    def disarm(self) -> None:
        self.calls.append("disarm")

    def reset(self) -> None:
        self.calls.append("reset")
        self.has_tripped = False


def test_the_heart_beats_in_every_slot_and_is_disarmed_behind_the_robots_stop() -> None:
    heart = FakeHeart()
    bench = Bench(heart=heart)
    heart.disarm = lambda: heart.calls.append(f"disarm after {len(bench.robot.stops)} stops")  # type: ignore[method-assign]
    bench.loop.run_episode(max_steps=5)
    assert heart.calls == ["arm", *["beat"] * len(bench.records), "disarm after 1 stops"]


def test_after_the_watchdogs_stop_nothing_is_commanded() -> None:
    heart = FakeHeart()
    bench = Bench(heart=heart)

    def trip(record: StepRecord) -> None:
        heart.has_tripped = record.slot == 6

    bench.act = trip
    summary = bench.loop.run_episode(max_steps=50)
    assert (summary.ended_by, summary.reasons) == ("stop", Reason.loop_lost)
    assert len(bench.robot.commands) == 7
    with pytest.raises(DeployError, match="loop_lost"):
        bench.loop.run_episode()
    bench.loop.release()
    assert heart.calls[-1] == "reset"
    bench.act = lambda record: None
    assert bench.loop.run_episode(max_steps=3).ended_by == "time_limit"


def test_a_dead_watchdog_stops_the_robot_within_its_limits() -> None:
    heart = FakeHeart()
    bench = Bench(heart=heart)

    def die(record: StepRecord) -> None:
        heart.failure = "exit code -9" if record.slot == 6 else heart.failure

    bench.act = die
    assert bench.loop.run_episode(max_steps=50).reasons == Reason.loop_lost
    assert bench.is_within_limits()


def test_bring_up_has_its_order_and_nothing_moves_before_it_ends() -> None:
    order: list[str] = []

    class Robot(MockRobot):
        def connect(self) -> None:
            order.append("connect")
            super().connect()

    class Runner(SameThreadPolicy):
        def start(self) -> Any:
            order.append("policy is warm")
            return super().start()

        def close(self) -> None:
            order.append("policy closed")
            super().close()

    clock = ManualClock()
    robot = Robot(MockRobotConfig(streams=("joints",)), card=small_card(), clock=clock)
    policy = SmallPolicy({}, replace(small_spec(), robot="another"))
    loop = ControlLoop(robot, Runner(policy, clock=clock), ActionReader(policy.spec, robot.card))
    with pytest.raises(DeployError, match="bring_up"):
        loop.run_episode()
    with pytest.raises(DeployError, match="robot: another, robot small"):
        loop.bring_up()
    assert order == ["policy is warm", "connect", "policy closed"]
    assert len(robot.commands) == 0


def test_the_stop_path_holds_before_anything_is_torn_down() -> None:
    order: list[str] = []
    bench = Bench()
    for thing, name in ((bench.robot, "stop"), (bench.runner, "close"), (bench.robot, "close")):
        old, text = getattr(thing, name), f"{type(thing).__name__}.{name}"
        setattr(thing, name, lambda old=old, text=text: (order.append(text), old()))
    bench.loop.close()
    assert order[:3] == ["MockRobot.stop", "SameThreadPolicy.close", "MockRobot.close"]


def test_a_bug_in_a_part_holds_the_robot_and_is_not_hidden() -> None:
    bench = Bench()

    def broken(record: StepRecord) -> None:
        if record.slot == 5:
            raise ZeroDivisionError("a bug")

    bench.act = broken
    with pytest.raises(ZeroDivisionError):
        bench.loop.run_episode(max_steps=20)
    assert len(bench.robot.stops) == 1


@pytest.mark.parametrize("heartbeat_s", [0.03])
def test_a_watchdog_that_a_healthy_loop_would_trip_is_refused(heartbeat_s: float) -> None:
    with pytest.raises(DeployError, match="heartbeat"):
        Bench(card=small_card(thresholds=Thresholds(heartbeat_s=heartbeat_s)))


def test_no_watchdog_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Bench()
    assert "no watchdog" in caplog.text


def test_the_loop_imports_no_torch() -> None:
    code = (
        "import sys; import robot_rl.deploy.control_loop, robot_rl.deploy.policy_process, robot_rl.deploy.watchdog_process,"
        " robot_rl.deploy.black_box_process, robot_rl.hardware.mock_robot;"
        "print(sorted(set(sys.modules) & {'torch', 'zarr', 'scipy', 'onnxruntime', 'mani_skill', 'hydra', 'yaml'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_policy_that_hangs_is_late_in_every_episode() -> None:
    """It never answers the second question, so the next episode can't even ask: that is late, and not silence."""
    bench = Bench(latency_s=lambda request: 1e9 if request == 2 else 0.0)
    assert bench.loop.run_episode(max_steps=20).counts["clamps"]["policy_late"] > 0
    assert bench.runner.is_busy
    done, began_s = len(bench.records), bench.clock.now()
    bench.loop.run_episode(max_steps=20)
    first = next(record for record in bench.records[done:] if record.reasons & Reason.policy_late)
    assert first.monotonic_s - began_s <= bench.card.thresholds.observation_s + 2 * PERIOD_S + SLACK_S


def test_nothing_begins_where_the_robot_was_long_ago() -> None:
    """Held where an old reading has it, an arm that somebody moved meanwhile would jump back."""
    bench = Bench(Fault(FaultKind.frozen, 0.5), policy={"rate": 1.0})
    bench.loop.run_episode(max_steps=10)
    done = len(bench.robot.commands)
    bench.clock.advance(1.0)
    for begin in (bench.loop.run_episode, bench.loop.release):
        with pytest.raises(DeployError, match="'joints'"):
            begin()
    assert len(bench.robot.commands) == done


def test_an_episode_waits_for_a_fresh_reading() -> None:
    bench = Bench(Fault(FaultKind.frozen, 0.5, 1.5), policy={"rate": 1.0})
    bench.loop.run_episode(max_steps=10)
    done = len(bench.records)
    bench.clock.advance(0.7)
    assert bench.loop.run_episode(max_steps=10).ended_by == "time_limit"
    assert bench.since_s(bench.records[done]) == pytest.approx(1.5, abs=2 * PERIOD_S)
    assert not any(record.reasons & Reason.stale for record in bench.records[done:])


def test_an_end_that_is_asked_for_before_the_first_step_is_kept() -> None:
    """A person deactivates while the scene is reset, or while the thread of the loop starts."""
    bench = Bench()
    summary = bench.loop.run_episode(max_steps=500, reset=lambda: bench.loop.end_episode("operator"))
    assert (summary.ended_by, summary.steps) == ("operator", 1)
    assert bench.loop.run_episode(max_steps=3).ended_by == "time_limit"
