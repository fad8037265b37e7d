"""A policy drives and a person takes over: who acted in which step, and nothing jumps where they change."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_chunks import WarmChunks
from small_robot import SmallPolicy, small_card, small_spec
from small_teleop import PlainClutch, PlainMapping, ScriptedDevice, episodes_of, small_session

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.deploy.inference import SameThreadPolicy
from robot_rl.deploy.schedule import ManualClock, Slot
from robot_rl.errors import DeployError
from robot_rl.specs import ActionKind, ActionSemantics, DeltaReference
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.pilots import Turn
from robot_rl.teleop.shared_pilot import SharedPilot
from robot_rl.types import Reading, Source

BACK = TeleopCommand(engaged=True, motion=np.array([-1, 0, 0, 0, 0, 0], np.float32))
OPEN = TeleopCommand(engaged=False)


def pilot_of(clock: ManualClock, config: dict[str, Any], **changes: Any) -> SharedPilot:
    policy = SameThreadPolicy(SmallPolicy(config), clock=clock)
    pilot = {"spec": small_spec(), "card": small_card(), "clock": clock} | changes
    return SharedPilot(PlainMapping(), PlainClutch(), policy, **pilot)


def shared_session(path: Path, say: Any, config: dict[str, Any], **changes: Any) -> Any:
    clock = ManualClock()
    device = ScriptedDevice(clock, say)
    session, robot, panel = small_session(path, episodes_of(100), clock=clock, device=device, total=1, **changes)
    session.pilot = pilot_of(clock, config)
    return session, robot, panel


def test_who_acted_is_known_of_every_step(tmp_path: Path) -> None:
    spans = ((0.6, 1.0), (1.4, 1.6))

    def say(since_s: float) -> TeleopCommand:
        return BACK if any(low <= since_s < high for low, high in spans) else OPEN

    session, robot, panel = shared_session(tmp_path / "d.zarr", say, {"rate": 0.5})
    assert session.run()["saved"] == 1
    episode = session.recorder.store.episode(0)
    columns = unpack_columns(episode.metadata)
    source, numbers = episode.source, columns["intervention"]
    assert set(source) == {Source.policy, Source.intervention}
    assert [int(n) for n in dict.fromkeys(numbers)] == [0, 1, 2]
    np.testing.assert_array_equal(source == Source.intervention, numbers > 0)
    seconds = columns["device_s"] - 1000.0
    for number, (low, high) in enumerate(spans, start=1):
        mine = seconds[numbers == number]
        assert low - 1e-6 <= mine.min() < low + 0.02 + 1e-6
        assert high - 0.02 - 1e-6 <= mine.max() < high
    assert np.isnan(columns["operator"][source == Source.policy]).all()
    assert not np.isnan(columns["operator"][source == Source.intervention]).any()
    assert np.isfinite(columns["policy"]).all(), "it is asked while the person drives too"
    of_policy = source == Source.policy
    np.testing.assert_array_equal(columns["policy"][of_policy], episode.action[of_policy])
    place = episode.observation["proprio"][:, 0]
    assert place[seconds < 0.6][-1] > place[0]
    assert np.diff(place[numbers == 1])[-5:].max() < 0, "the person pulls it back"
    assert episode.metadata["interventions"] == 2
    assert episode.metadata["takeover"] == pytest.approx((source == Source.intervention).mean())
    assert panel.views[-1].totals["takeover"] == pytest.approx(episode.metadata["takeover"])
    assert session.effects.policy_success == 0
    speeds = [np.abs(b[1].position - a[1].position).max() for a, b in itertools.pairwise(robot.commands)]
    assert max(speeds) <= 2 * 0.02 + 1e-9, "the card's speed, also where the driver changes"


def test_an_episode_without_a_hand_on_it_is_the_policys_own(tmp_path: Path) -> None:
    session, _, panel = shared_session(tmp_path / "d.zarr", lambda since_s: OPEN, {"rate": 0.5})
    assert session.run()["saved"] == 1
    assert set(session.recorder.store.episode(0).source) == {Source.policy}
    assert (session.effects.policy_success, panel.views[-1].totals["takeover"]) == (1, 0.0)
    ready = [view for view in panel.views if view.state == "ready"]
    assert {view.episode["source"] for view in ready} <= {"", "teleop"}, "before the start the policy does not move it"


def test_a_policy_that_fails_is_a_fault(tmp_path: Path) -> None:
    session, robot, panel = shared_session(tmp_path / "d.zarr", lambda since_s: OPEN, {"rate": 0.5, "raise": (5,)})
    panel.rule = lambda view: {"ready": ["start"], "fault": ["quit"]}.get(view.state, [])
    session.run()
    fault = next(view for view in panel.views if view.state == "fault")
    assert "no such thing" in fault.message
    assert robot.stops


def test_a_policy_of_another_robot_is_refused() -> None:
    other = SmallPolicy({"rate": 0.5})
    other.spec = small_spec(hz=50.0)
    card = small_card(robot="another")
    with pytest.raises(DeployError, match="another"):
        SharedPilot(
            PlainMapping(), PlainClutch(), SameThreadPolicy(other, clock=ManualClock()),
            spec=replace(small_spec(), robot="another"), card=card, clock=ManualClock(),
        )  # fmt: skip


def test_deltas_go_over_from_the_one_to_the_other() -> None:
    """By hand: at a change the action moves from the last one to the new one in a straight line over 0.2 s."""
    meaning = ActionSemantics(ActionKind.delta, DeltaReference.measured, "joint", "none", "none", "test")
    clock, spec = ManualClock(0.0), replace(small_spec(), action_semantics=meaning)
    policy = SmallPolicy({"open_loop": True, "rate": 0.0, "horizon": 100, "execute": 100}, replace(spec))

    class Still(PlainMapping):
        def action(self, command: TeleopCommand, **rest: Any) -> Any:
            moved = super().action(command, **rest)
            moved.action = np.array([-1.0, 0.0], np.float32) * command.engaged
            return moved

    pilot = SharedPilot(
        Still(), PlainClutch(), SameThreadPolicy(policy, clock=clock), spec=spec, card=small_card(), clock=clock
    )
    reading = Reading(frames={"proprio": np.zeros(2, np.float32)}, stamps={"joints": 0.0}, position=np.zeros(2))
    pilot.begin(reading, sent=None, seed=0)
    pilot.start(seed=0, is_new=True)
    seen = []
    for index in range(30):
        clock.advance(0.02)
        now_s = 0.02 * index
        command = TeleopCommand(index + 1, now_s, engaged=10 <= index < 25)
        pilot.judge(command, now_s)
        seen.append(pilot.choose(Turn(Slot(index, now_s, 0.0, 0), reading, command, now_s, 0.02, None)))
    first = [float(choice.action[0]) for choice in seen]
    np.testing.assert_allclose(first[:10], 0.0)
    np.testing.assert_allclose(first[10:20], -np.arange(10) / 10, atol=1e-6)
    np.testing.assert_allclose(first[20:25], -1.0)
    np.testing.assert_allclose(first[25:], -1 + np.arange(5) / 10, atol=1e-6)
    assert [choice.intervention for choice in seen] == [0] * 10 + [1] * 15 + [0] * 5


def warm_pilot() -> tuple[ManualClock, WarmChunks, SharedPilot, Reading]:
    """A policy that starts warm drives, and what it sees."""
    clock, policy = ManualClock(0.0), WarmChunks()
    pilot = SharedPilot(
        PlainMapping(),
        PlainClutch(),
        SameThreadPolicy(policy, clock=clock),
        spec=small_spec(),
        card=small_card(),
        clock=clock,
    )
    reading = Reading(frames={"proprio": np.zeros(2, np.float32)}, stamps={"joints": 0.0}, position=np.zeros(2))
    pilot.begin(reading, sent=None, seed=0)
    pilot.start(seed=0, is_new=True)
    return clock, policy, pilot, reading


def test_while_a_person_drives_a_policy_starts_from_nothing() -> None:
    """What it planned is not what the robot does then; a question behind a step of its own starts from the rest again."""
    clock, policy, pilot, reading = warm_pilot()
    for index in range(24):
        clock.advance(0.02)
        now_s = 0.02 * index
        command = TeleopCommand(index + 1, now_s, engaged=6 <= index < 14)
        pilot.judge(command, now_s)
        pilot.choose(Turn(Slot(index, now_s, 0.0, 0), reading, command, now_s, 0.02, None))
    # Asked at steps 0, 4, 8, ...: at 8 and 12 the person was driving, and did other things than the chunk of 12 says.
    assert [start is not None for start in policy.starts] == [False, True, False, False, False, True]


def test_on_stale_readings_the_policy_is_not_asked_and_nothing_is_due() -> None:
    """The driver holds then, whatever is chosen: a plan that moved on meanwhile would be ahead of the robot."""
    clock, policy, pilot, reading = warm_pilot()
    still = []
    for index in range(20):
        clock.advance(0.02)
        now_s = 0.02 * index
        pilot.judge(TeleopCommand(index + 1, now_s), now_s)
        is_stale = 6 <= index < 14
        choice = pilot.choose(Turn(Slot(index, now_s, 0.0, 0), reading, TeleopCommand(), now_s, 0.02, None, is_stale))
        still.append(choice.is_still)
    assert still == [6 <= index < 14 for index in range(20)]
    # Asked at 0, 4, with the first fresh reading at 14 from nothing, and at 18 from the rest of that.
    assert [start is not None for start in policy.starts] == [False, True, False, True]
