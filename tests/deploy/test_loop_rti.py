"""What a robot's loop gives a policy that starts warm: the rest of what is being played, bit by bit, and nothing after a hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from known_chunks import EXECUTE, HORIZON, WarmChunks, chunk_of
from small_robot import HERE, small_card

from robot_rl.chunk_execution import DelayedActor
from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.chunk_weights import ensembled
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.execution import ChunkPlayer, ChunkRule, Execution
from robot_rl.deploy.inference import ProcessPolicy, SameThreadPolicy
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts
from robot_rl.deploy.loop_summary import EpisodeSummary
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.schedule import ManualClock
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import DeployError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.types import Observation

HZ, STEPS = 50.0, 40
QUIET = RealtimeConfig(freeze_gc=False, fifo_priority=None, lock_memory=False)


class Play:
    """One episode on the mock robot in exact time: what was played in every slot, and in which slot each question was asked."""

    def __init__(
        self, kind: Execution, latency_s: Any, *, late_s: float | None = 1.0, faults: tuple[Fault, ...] = ()
    ) -> None:
        self.clock, card, self.policy = ManualClock(), small_card(), WarmChunks()
        self.records: list[StepRecord] = []
        self.asked: list[int] = []

        def latency(request: int) -> float:
            self.asked.append(len(self.records))
            return float(latency_s(request))

        robot = MockRobot(MockRobotConfig(streams=("joints",), lag_s=0.0, faults=faults), card=card, clock=self.clock)
        self.loop = ControlLoop(
            robot, SameThreadPolicy(self.policy, clock=self.clock, latency_s=latency), ActionReader(self.policy.spec, card),
            config=LoopConfig(realtime=QUIET, wait_s=0.0, late_s=late_s, execution=kind),
            parts=LoopParts(observer=self.records.append, clock=self.clock),
        )  # fmt: skip

    def run(self, steps: int = STEPS) -> EpisodeSummary:
        self.loop.bring_up()
        return self.loop.run_episode(seed=7, max_steps=steps)

    def rests(self) -> list[np.ndarray | None]:
        """For every question: what the chunk being played has for its slot and later, by the records; its last action repeated.

        That is the chunk of the slot before, or one that was handed over to in the slot of the question.
        """
        out: list[np.ndarray | None] = []
        for request, slot in enumerate(self.asked, start=1):
            now, before = self.records[slot], self.records[slot - 1] if slot else None
            if before is None or before.action is None:
                out.append(None)
                continue
            is_new = now.action is not None and before.request < now.request < request
            left = (
                chunk_of(now.request - 1)[now.index :] if is_new else chunk_of(before.request - 1)[before.index + 1 :]
            )
            out.append(np.concatenate([left, np.repeat(left[-1:], HORIZON - len(left), axis=0)]))
        return out


def require_same(got: list[np.ndarray | None], wanted: list[np.ndarray | None]) -> None:
    assert len(got) == len(wanted)
    for number, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert (ours is None) == (theirs is None), f"question {number}"
        if ours is not None and theirs is not None:
            np.testing.assert_array_equal(ours, theirs, err_msg=f"question {number}")


@pytest.mark.parametrize("delays", [(0,), (1,), (3,), (1, 2, 1, 4, 3)])
@pytest.mark.parametrize("kind", [Execution.asynchronous, Execution.sync])
def test_the_guess_is_the_rest_of_what_is_being_played(kind: Execution, delays: tuple[int, ...]) -> None:
    play = Play(kind, lambda request: max(delays[request % len(delays)] / HZ - 0.001, 0.0))
    summary = play.run()
    starts = play.policy.starts
    require_same(starts, play.rests())
    assert starts[0] is None
    assert len(starts) >= STEPS // (EXECUTE + 5)
    assert all(start is not None for start in starts[1:]), "it never held before it asked"
    assert summary.counts["warm_starts"] == len(starts) - 1 == summary.counts["requests"] - 1


@pytest.mark.parametrize("kind", [Execution.asynchronous, Execution.sync])
def test_a_policy_that_may_not_be_late_starts_warm_too(kind: Execution) -> None:
    """No action beyond `execute` may be played then: the question comes where the usable ones end, and nothing was held."""
    play = Play(kind, lambda request: 0.0, late_s=0.0)
    summary = play.run()
    require_same(play.policy.starts, play.rests())
    assert all(start is not None for start in play.policy.starts[1:])
    assert summary.counts["warm_starts"] == summary.counts["requests"] - 1


def test_a_hold_that_is_over_before_the_next_question_is_remembered() -> None:
    """What was held was not played, so the rest of that chunk is no plan; that of a chunk asked for behind the hold is."""
    player = _player()
    player.asked(0)
    player.take(0, chunk_of(0))
    player.went(is_held=False)
    player.went(is_held=True)
    player.went(is_held=False)
    assert player.rest(4) is None
    player.asked(4)
    player.take(4, chunk_of(1))
    player.went(is_held=False)
    rest = player.rest(5)
    assert rest is not None
    np.testing.assert_array_equal(rest[0][: HORIZON - 1], chunk_of(1)[1:])
    player.asked(8)
    player.went(is_held=True)  # between question and answer: the answer counts from before the hold
    player.went(is_held=False)
    player.take(10, chunk_of(2))
    player.went(is_held=False)
    assert player.rest(11) is None


def _player() -> ChunkPlayer:
    return ChunkPlayer(
        Execution.asynchronous, ChunkRule(), interval=EXECUTE, horizon=HORIZON, discrete=(), usable=HORIZON
    )


def test_an_ensemble_starts_from_its_average() -> None:
    """Asked in every step and answered at once: by hand, of the chunks that reach a step, the oldest first."""
    play = Play(Execution.ensemble, lambda request: 0.0)
    play.run(6)
    for step, start in enumerate(play.policy.starts[1:6], start=1):
        for later in range(step, step - 1 + HORIZON):
            rows = np.stack([chunk_of(asked)[later - asked] for asked in range(step) if later - asked < HORIZON])
            assert start is not None
            np.testing.assert_allclose(start[later - step], ensembled(rows, 0.01), atol=1e-6)
        np.testing.assert_array_equal(start[-1], start[-2])


def test_behind_a_hold_there_is_nothing_to_start_from() -> None:
    """Request 3 is answered 50 periods late: its chunk is dropped, the robot holds where the old one ends, and asks anew."""
    play = Play(Execution.asynchronous, lambda request: 1.0 if request == 3 else 0.0, late_s=None)
    summary = play.run(80)
    require_same(play.policy.starts, play.rests())
    is_warm = [start is not None for start in play.policy.starts]
    assert is_warm[:4] == [False, True, True, False]
    assert all(is_warm[4:])
    assert summary.counts["dropped"] == 1
    assert summary.counts["warm_starts"] == sum(is_warm)


def test_an_answer_that_is_dropped_leaves_the_plan_that_is_played() -> None:
    """Request 3 takes longer than an answer may, but is there before the old chunk has ended: the next guess is of the old one."""
    play = Play(Execution.asynchronous, lambda request: 0.0)
    play.loop.bring_up()
    decisions = play.loop._decisions
    player = decisions._player
    player.asked(0)
    player.take(0, chunk_of(50))
    player.went(is_held=False)
    player.asked(4)
    player.lost()
    rest = player.rest(5)
    assert rest is not None
    np.testing.assert_array_equal(rest[0][:7], chunk_of(50)[5:])
    player.went(is_held=True)
    assert player.rest(6) is None


def test_a_stale_reading_is_a_hold() -> None:
    """Frozen for longer than its threshold: the first question behind it starts from nothing."""
    fault = Fault(FaultKind.frozen, 0.3, 0.5)
    play = Play(Execution.asynchronous, lambda request: 0.0, faults=(fault,))
    play.run()
    held = [record.slot for record in play.records[:STEPS] if record.action is None]
    assert held
    behind = next(number for number, slot in enumerate(play.asked) if slot > held[0])
    assert play.asked[behind] == held[-1] + 1
    assert play.policy.starts[behind] is None
    assert all(start is not None for number, start in enumerate(play.policy.starts) if number not in (0, behind))


def test_every_episode_begins_from_nothing() -> None:
    play = Play(Execution.asynchronous, lambda request: 0.0)
    play.run(12)
    count = len(play.policy.starts)
    play.loop.run_episode(seed=8, max_steps=12)
    assert play.policy.starts[count] is None
    assert play.policy.starts[count + 1] is not None


@pytest.mark.parametrize("kind", [Execution.sync, Execution.asynchronous, Execution.ensemble])
@pytest.mark.parametrize("delay", [0, 1])
def test_an_evaluation_gives_the_same_guesses(kind: Execution, delay: int) -> None:
    latency_s = max(delay / HZ - 0.001, 0.0)
    play = Play(kind, lambda request: latency_s)
    play.run()
    policies: list[WarmChunks] = []

    class Kept(WarmChunks):
        def __copy__(self) -> WarmChunks:
            policies.append(WarmChunks())
            return policies[-1]

    policy = Kept()
    actor = DelayedActor(policy, policy.noise(), kind=kind, rule=ChunkRule(), latency_ms=1e3 * latency_s)
    for step in range(STEPS - delay):
        seen = Observation(proprio=torch.zeros(1, 1, 4))
        actor.act(seen, episode_seeds=np.array([7]), new_episode=np.array([step == 0]))
    shorter = min(len(policies[0].starts), len(play.policy.starts))
    assert shorter >= (STEPS - delay) // (EXECUTE + delay)
    require_same(play.policy.starts[:shorter], policies[0].starts[:shorter])


def test_rtc_and_a_runner_that_passes_nothing_on_are_refused() -> None:
    with pytest.raises(DeployError, match="execution=rtc"):
        Play(Execution.rtc, lambda request: 0.0).run()
    play = Play(Execution.asynchronous, lambda request: 0.0)
    mute = SameThreadPolicy(play.policy, clock=play.clock)
    names = ("start", "is_busy", "failure", "ask", "poll", "close")
    play.loop._policy = SimpleNamespace(**{name: getattr(mute, name) for name in names})  # type: ignore[assignment]
    with pytest.raises(DeployError, match="a runner that passes on what is being played"):
        play.loop.bring_up()


def test_a_process_gets_the_plan_or_is_told_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)
    runner = ProcessPolicy(PolicySource(target="known_chunks:open_warm"))
    seen, found = Observation(proprio=np.zeros((1, 1, 2), np.float32)), []
    try:
        info = runner.start()
        assert (info.starts_warm, info.can_continue) == (True, False)
        for request in (1, 2, 3):
            if request == 2:
                runner.start_from(chunk_of(9))
            runner.ask(request, seen, episode_seed=0, decision=request)
            answer = runner.poll(60.0)
            assert answer is not None
            assert answer.actions is not None, answer.error
            found.append(answer.actions)
    finally:
        runner.close()
    np.testing.assert_array_equal(
        np.stack(found), np.stack([np.zeros((HORIZON, 2)), chunk_of(9), np.zeros((HORIZON, 2))])
    )
