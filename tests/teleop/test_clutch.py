"""The clutch: hand-made sequences of commands and what they may move."""

from __future__ import annotations

import pytest

from robot_rl.errors import ConfigError
from robot_rl.teleop.clutch import Clutch, Engagement
from robot_rl.teleop.commands import TeleopCommand


def said(sequence: int, stamp_s: float, *, engaged: bool) -> TeleopCommand:
    return TeleopCommand(sequence, stamp_s, engaged)


def ready() -> Clutch:
    clutch = Clutch()
    assert clutch.judge(said(1, 1.0, engaged=False), 1.0).state == "open"
    return clutch


def test_nothing_moves_before_the_first_command() -> None:
    assert Clutch().judge(TeleopCommand(), 5.0) == Engagement("open", 0.0)
    assert Clutch().judge(said(0, 5.0, engaged=True), 5.0) == Engagement("open", 0.0)


def test_a_key_held_at_the_start_moves_nothing_until_it_is_let_go() -> None:
    clutch = Clutch()
    for step in range(100):
        now = 1.0 + step * 0.02
        assert clutch.judge(said(1 + step, now, engaged=True), now) == Engagement("open", 0.0)
    assert clutch.judge(said(200, 4.0, engaged=False), 4.0) == Engagement("open", 0.0)
    assert clutch.judge(said(201, 4.02, engaged=True), 4.02) == Engagement("engaged", 1.0)


@pytest.mark.parametrize(
    ("age_s", "state", "share"),
    [
        (0.0, "engaged", 1.0), (0.099, "engaged", 1.0), (0.125, "releasing", 0.75), (0.15, "releasing", 0.5),
        (0.2, "releasing", 0.0), (0.49, "releasing", 0.0), (0.51, "fault", 0.0), (60.0, "fault", 0.0),
    ],
)  # fmt: skip
def test_a_held_command_that_grows_old_fades_and_is_then_a_fault(age_s: float, state: str, share: float) -> None:
    clutch = ready()
    command = said(2, 2.0, engaged=True)
    assert clutch.judge(command, 2.0).state == "engaged"
    judged = clutch.judge(command, 2.0 + age_s)
    assert judged.state == state
    assert judged.share == pytest.approx(share, abs=1e-9)


def test_short_silence_is_forgiven_and_a_fault_wants_a_release_first() -> None:
    clutch = ready()
    assert clutch.judge(said(2, 2.0, engaged=True), 2.3) == Engagement("open", 0.0)  # first heard of when it was old
    clutch.judge(said(2, 2.0, engaged=True), 2.0)
    assert clutch.judge(said(2, 2.0, engaged=True), 2.3).state == "releasing"
    assert clutch.judge(said(3, 2.31, engaged=True), 2.31).state == "engaged"
    assert clutch.judge(said(3, 2.31, engaged=True), 2.9).state == "fault"
    assert clutch.judge(said(4, 3.0, engaged=True), 3.0) == Engagement("fault", 0.0)  # comes back still held
    assert clutch.judge(said(5, 3.0, engaged=False), 3.5) == Engagement("fault", 0.0)  # let go, but who knows since
    assert clutch.judge(said(6, 3.6, engaged=False), 3.6) == Engagement("open", 0.0)
    assert clutch.judge(said(7, 3.7, engaged=True), 3.7) == Engagement("engaged", 1.0)


def test_letting_go_ends_motion_at_once_and_silence_without_holding_on_is_no_fault() -> None:
    clutch = ready()
    clutch.judge(said(2, 2.0, engaged=True), 2.0)
    assert clutch.judge(said(3, 2.02, engaged=False), 2.03) == Engagement("open", 0.0)
    assert clutch.judge(said(3, 2.02, engaged=False), 99.0) == Engagement("open", 0.0)
    assert clutch.judge(said(4, 99.5, engaged=True), 99.5).state == "engaged"


def test_a_stamp_of_another_clock_moves_nothing() -> None:
    clutch = ready()
    assert clutch.judge(said(2, 1000.0, engaged=True), 2.0).share == 0.0
    clutch = Clutch()
    clutch.judge(said(1, 1000.0, engaged=False), 2.0)
    assert clutch.judge(said(2, 2.1, engaged=True), 2.1).state == "open"
    assert ready().judge(said(2, float("nan"), engaged=True), 2.0).share == 0.0


@pytest.mark.parametrize("times", [(0.0, 0.5, 0.1), (0.5, 0.5, 0.1), (0.1, 0.5, 0.0), (0.1, float("inf"), 0.1)])
def test_times_that_make_no_sense_are_refused(times: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="release_s < fault_s"):
        Clutch(*times)
