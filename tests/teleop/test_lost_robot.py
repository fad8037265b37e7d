"""A robot that tells nothing fresh: a hold and a mark at first, then a fault with its reason, and no release before it is back."""

from __future__ import annotations

from pathlib import Path

import pytest
from reaching_robot import Person, ReachExpert, ReachExpertConfig, reach_env
from small_teleop import small_session

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import ManualClock
from robot_rl.errors import DeployError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.rollout import rollout
from robot_rl.teleop.panel import PanelEvent, SessionView

LIMIT_S, LOST_S, PERIOD_S = 0.1, 1.0, 0.02  # of the small robot's card


def frozen(start_s: float, end_s: float) -> dict[str, tuple[Fault, ...]]:
    """Its joints keep the frame and the stamp that they had."""
    return {"faults": (Fault(FaultKind.frozen, start_s, end_s, "joints"),)}


@pytest.mark.parametrize(("silence_s", "is_lost"), [(0.6, False), (1.5, True)])
def test_a_session_marks_a_short_silence_and_stops_at_a_long_one(
    tmp_path: Path, silence_s: float, is_lost: bool
) -> None:
    seen: dict[str, float] = {}
    clock = ManualClock()
    began_s = clock.now()

    def rule(view: SessionView) -> list[str | PanelEvent]:
        for name, is_seen in (("mark", bool(view.episode["problems"])), ("fault", view.state == "fault")):
            if is_seen:
                seen.setdefault(name, clock.now() - began_s - 1.0)
        ask = {"ready": "start", "fault": "release", "review": "save"}.get(view.state, "")
        return ["success"] if view.state == "recording" and view.episode["steps"] >= 150 else [ask] if ask else []

    mock = frozen(1.0, 1.0 + silence_s)
    session, robot, panel = small_session(tmp_path / "d.zarr", rule, clock=clock, mock=mock, total=1)
    assert session.run()["saved"] == 1
    episode = session.recorder.store.episode(0)
    (problem,) = episode.metadata["problems"]
    assert problem.startswith("the reading of 'joints' is 0.1")
    assert LIMIT_S < seen["mark"] <= LIMIT_S + 2 * PERIOD_S
    assert episode.metadata["ended_by"] == ("robot_stop" if is_lost else "success")
    assert ("fault" in seen) is is_lost
    if is_lost:
        assert LIMIT_S + LOST_S < seen["fault"] <= LIMIT_S + LOST_S + 3 * PERIOD_S
        messages = [view.message for view in panel.views if view.state == "fault"]
        assert "robot_lost: the reading of 'joints' is 1.1" in messages[0]
        assert any("expected fresh readings" in message for message in messages), "it is released when it is back"
        held = unpack_columns(episode.metadata)["reasons"] & int(Reason.stale)
        assert (held > 0).sum() == pytest.approx(LOST_S / PERIOD_S, abs=3)
    assert robot.stops


def test_an_env_stops_and_waits_until_the_robot_is_back() -> None:
    refused = []

    def rule(view: SessionView) -> list[str]:
        if view.state == "fault" and "fresh readings" in view.message:
            refused.append(view.message)
        return ["release"] if view.state == "fault" else []

    clock, person = ManualClock(), Person(rule)
    env, _ = reach_env(
        clock=clock, panel=person, mock=frozen(0.6, 3.0), max_episode_steps=40, terminate_on_success=False
    )
    first, second = rollout(env, ReachExpert(ReachExpertConfig(), env.spec), [7, 8])
    assert first.truncated
    assert first.length == pytest.approx(17, abs=1)  # 0.6 s, 0.1 s until it is stale, and 1 s, at 10 steps a second
    assert second.length > 5, (
        "it went on behind the release (and the mock's fault comes again with its second connection)"
    )
    assert any("robot_lost" in view.message for view in person.views)
    assert refused
    assert env.measures()["stops"] == 1
    env.close()


def test_alone_it_ends_with_the_reason() -> None:
    env, robot = reach_env(mock=frozen(0.6, 1e9), max_episode_steps=40, terminate_on_success=False)
    with pytest.raises(DeployError, match=r"robot_lost .*'joints'.* gone, and neither panel nor device"):
        rollout(env, ReachExpert(ReachExpertConfig(), env.spec), [7, 8])
    env.close()
    assert robot.stops
