"""The Cartesian layer: bad inputs, latched stops, closed forms of braking and turning, and what a rotation flip may not do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from robot_rl.deploy.pose_safety import GripperLimiter, MeasuredPose, PoseSafetyFilter, PoseSafetyLimits, SentPose
from robot_rl.deploy.robot_card import GripperCard, PoseLimits
from robot_rl.deploy.rotation_motion import RotationLimiter, difference, from_vector
from robot_rl.deploy.safety import Reason
from robot_rl.errors import ConfigError, DeployError

pytest.importorskip("ruckig")
PERIOD_S = 0.02
POSE = PoseLimits(
    speed_m_s=0.5, acceleration_m_s2=2.0, jerk_m_s3=40.0, rotation_rad_s=1.0, rotation_rad_s2=4.0,
    box=((-0.5, -0.5, 0.0), (0.5, 0.5, 0.6)), step_m=0.1, step_rad=0.5,
)  # fmt: skip
LIMITS = PoseSafetyLimits(POSE, GripperCard(0.0, 0.08, 0.2), force_n=20.0, torque_nm=5.0)
START = np.array([0.0, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0])


def make(limits: PoseSafetyLimits = LIMITS, start: np.ndarray = START, **options: Any) -> PoseSafetyFilter:
    options.setdefault("gripper", 0.04 if limits.gripper else None)
    return PoseSafetyFilter(limits, start, **options)


def free(**other: Any) -> PoseSafetyLimits:
    """Without a step limit, for tests of motion alone."""
    return PoseSafetyLimits(replace(POSE, step_m=None, step_rad=None, **other))


def here(filtered: PoseSafetyFilter, **other: Any) -> MeasuredPose:
    """A robot that is where it was sent."""
    return MeasuredPose(**({"pose": filtered._sent(Reason.none).pose, "age_s": 0.01} | other))


def run(filtered: PoseSafetyFilter, action: Any, steps: int, **measured: Any) -> SentPose:
    for _ in range(steps):
        sent = filtered.step(action, PERIOD_S, here(filtered, **measured))
    return sent


def pose(place: Any = (0.0, 0.0, 0.3), rotvec: Any = (0.0, 0.0, 0.0)) -> np.ndarray:
    """By scipy, a second implementation of the quaternions."""
    return np.concatenate([place, np.roll(Rotation.from_rotvec(rotvec).as_quat(), 1)])


def angle(one: np.ndarray, other: np.ndarray) -> float:
    left, right = (Rotation.from_quat(np.roll(p[3:], -1)) for p in (one, other))
    return float((left.inv() * right).magnitude())


def test_a_gentle_action_passes_as_it_is() -> None:
    filtered = make()
    for step in range(1, 100):
        part = 1 - math.cos(0.01 * step)
        target = pose((0.1 * part, 0.05 * part, 0.3), (0.0, 0.1 * part, 0.0))
        sent = filtered.step(target, PERIOD_S, here(filtered), gripper=0.04 + 0.01 * part)
        assert sent.reasons is Reason.none
        np.testing.assert_allclose(sent.pose, target, atol=2e-3)
    sent = run(filtered, target, 20)
    np.testing.assert_allclose(sent.pose, target, atol=1e-9)
    again = filtered.step(sent.pose, PERIOD_S, here(filtered), gripper=sent.gripper)
    np.testing.assert_allclose(again.pose, sent.pose, atol=1e-12)
    assert (again.gripper, again.reasons) == (sent.gripper, Reason.none)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([np.nan, 0, 0, 1, 0, 0, 0], Reason.not_finite),
        ([0, 0, 0.3, 1, 0, np.inf, 0], Reason.not_finite),
        ([0, 0, 0.3], Reason.wrong_size),
        ([[0, 0, 0.3, 1, 0, 0, 0]], Reason.wrong_size),
        (None, Reason.wrong_size),
        (["x"] * 7, Reason.wrong_size),
        ([0, 0, 0.3, 0, 0, 0, 0], Reason.not_a_rotation),
        ([0, 0, 0.3, 1000, 0, 0, 0], Reason.not_a_rotation),
    ],
)
def test_bad_actions_stop_and_stay_out_of_the_state(action: Any, reason: Reason) -> None:
    filtered, twin = make(), make()
    for each in (filtered, twin):
        run(each, pose((0.3, 0, 0.3), (0, 0, 1)), 15)
    sent = filtered.step(action, PERIOD_S, here(filtered))
    assert sent.reasons & reason
    assert sent.is_stopping
    assert np.isfinite(sent.pose).all()
    sent = run(filtered, pose((0.4, 0, 0.3)), 60)
    assert sent.is_stopping
    assert not sent.twist.any()
    filtered.release()
    twin.stop()
    run(twin, pose(), 61)
    twin.release()
    # Braked by a bad number or by a person, the next actions are judged alike, to the last bit.
    for _ in range(10):
        one, other = (each.step(pose((0.4, 0, 0.3)), PERIOD_S, here(each)) for each in (filtered, twin))
        assert one.reasons == other.reasons
        np.testing.assert_array_equal(one.pose, other.pose)


@pytest.mark.parametrize("wrong", [0.0, -0.02, np.nan, np.inf, -np.inf])
def test_without_a_period_nothing_moves(wrong: float) -> None:
    sent = make().step(pose((0.1, 0, 0.3), (0, 0, 1)), wrong, MeasuredPose(START, 0.01), gripper=0.0)
    assert sent.reasons == Reason.period
    np.testing.assert_array_equal(sent.pose, START)
    assert sent.gripper == 0.04


def test_stale_observations_hold_and_go_on_by_themselves() -> None:
    filtered = make()
    assert run(filtered, pose((0.3, 0, 0.3), (0, 0, 1)), 15).twist.any()
    sent = run(filtered, pose((0.3, 0, 0.3)), 60, age_s=0.25, pose=START)
    assert sent.reasons == Reason.stale
    assert not sent.twist.any()
    assert not run(filtered, pose((0.3, 0, 0.3)), 1).is_stopping
    assert run(filtered, pose((0.3, 0, 0.3)), 1, age_s=-10.0).reasons & Reason.stale


@pytest.mark.parametrize(
    ("robot", "reason"),
    [
        ({"wrench": np.array([0.0, 0, 21, 0, 0, 0])}, Reason.force),
        ({"wrench": np.array([0.0, 0, 0, 0, 4, 4])}, Reason.force),
        ({"wrench": np.full(6, np.nan)}, Reason.measured_not_finite),
        ({"pose": np.full(7, np.nan)}, Reason.measured_not_finite),
        ({"pose": pose() * [1, 1, 1, 0, 0, 0, 0]}, Reason.measured_not_finite),
        ({"pose": pose((0.11, 0, 0.3))}, Reason.tracking),
        ({"pose": pose(rotvec=(0, 0, 0.51))}, Reason.tracking),
    ],
)
def test_what_the_robot_feels_stops_it(robot: dict[str, Any], reason: Reason) -> None:
    filtered = make()
    sent = run(filtered, pose((0.1, 0, 0.3)), 1, **robot)
    assert sent.reasons & reason
    assert sent.is_stopping
    assert run(filtered, pose((0.1, 0, 0.3)), 1).is_stopping


def test_emergency_is_latched_and_released_by_a_person_at_rest() -> None:
    filtered = make()
    run(filtered, pose((0.3, 0, 0.3), (0, 0, 1)), 15)
    filtered.stop()
    filtered.stop(Reason.collision)
    with pytest.raises(DeployError, match="at rest"):
        filtered.release()
    sent = filtered.step(pose((0.3, 0, 0.3)), PERIOD_S, here(filtered), gripper=0.0)
    assert sent.gripper == 0.04  # what it holds, it keeps
    assert run(filtered, pose((0.3, 0, 0.3)), 60).reasons == Reason.emergency | Reason.collision
    filtered.release()
    assert filtered.latched is Reason.none


def test_a_pushed_arm_goes_on_from_where_it_is_after_a_release() -> None:
    filtered, pushed = make(), pose((0.2, 0, 0.3))
    assert run(filtered, START, 3, pose=pushed).reasons & Reason.tracking
    filtered.release()
    assert run(filtered, START, 1, pose=pushed).reasons & Reason.tracking
    filtered.release(pushed)
    sent = filtered.step(pushed, PERIOD_S, MeasuredPose(pushed, 0.01))
    np.testing.assert_allclose(sent.pose, pushed, atol=1e-12)
    assert sent.reasons is Reason.none


def test_a_way_along_one_axis_takes_the_time_of_the_closed_form() -> None:
    """T = d/v + v/a + a/j with the limits over sqrt 3: .3/.2887 + .25 + .05 = 1.339 s; and stops in v/2 (v/a + a/j)."""
    filtered = make(free())
    ways = [run(filtered, pose((0.3, 0, 0.3)), 1).pose[0] for _ in range(100)]
    assert (1 + int(np.argmax(np.array(ways) >= 0.3 - 1e-9))) * PERIOD_S == pytest.approx(
        0.3 * math.sqrt(3) / 0.5 + 0.25 + 0.05, abs=PERIOD_S
    )
    filtered = make(free())
    moving = run(filtered, pose((0.5, 0, 0.3)), 30)
    speed = 0.5 / math.sqrt(3)
    assert moving.twist[0] == pytest.approx(speed)
    stopped = run(filtered, pose((0.5, 0, 0.3)), 60, age_s=1.0)
    assert stopped.pose[0] - moving.pose[0] == pytest.approx(speed / 2 * (0.25 + 0.05), abs=1e-6)


def test_a_turn_takes_the_time_of_the_closed_form() -> None:
    """90 degrees: T = angle/rate + rate/acceleration = pi/2 + .25 s, never faster, and one step late at most."""
    limiter, turned = RotationLimiter(1.0, 4.0, START[3:]), pose(rotvec=(0, 0, math.pi / 2))[3:]
    last, left = START[3:], list[float]()
    for _ in range(200):
        state = limiter.follow(turned, PERIOD_S)
        assert np.linalg.norm(difference(state.quaternion, last)) <= 1.0 * PERIOD_S + 1e-12
        last = state.quaternion
        left.append(float(np.linalg.norm(difference(turned, last))))
    assert (1 + int(np.argmax(np.array(left) < 1e-9))) * PERIOD_S == pytest.approx(math.pi / 2 + 0.25, abs=2 * PERIOD_S)


@pytest.mark.parametrize("flip", [-1.0, 1.0])
def test_signs_of_quaternions_and_branches_of_euler_angles_are_no_motion(flip: float) -> None:
    """A wrist that turns slowly through the branch, its angles jumping by 2 pi and its quaternion's sign at random."""
    rng, filtered = np.random.default_rng(0), make(start=pose(rotvec=(0, 0, math.pi - 0.1)))
    for step in range(100):
        euler = np.array([0.0, 0.0, math.pi - 0.1 + 0.002 * step])
        wrapped = (euler + math.pi) % (2 * math.pi) - math.pi
        target = np.concatenate([START[:3], np.roll(Rotation.from_euler("xyz", wrapped).as_quat(), 1)])
        target[3:] *= flip if rng.random() < 0.5 else 1.0
        sent = filtered.step(target, PERIOD_S, here(filtered))
        assert not sent.reasons & ~(Reason.rotation if step < 3 else Reason.none)
        assert angle(sent.pose, target) < 2e-3
    assert wrapped[2] < 0


def test_a_true_jump_of_90_degrees_is_limited() -> None:
    filtered, target = make(free()), pose(rotvec=(math.pi / 2, 0, 0))
    before = START
    for _ in range(100):
        sent = filtered.step(target, PERIOD_S, here(filtered))
        assert angle(before, sent.pose) <= 1.0 * PERIOD_S + 1e-9
        if angle(sent.pose, target) > 1e-6:
            assert sent.reasons & Reason.rotation
        before = sent.pose
    assert angle(sent.pose, target) < 1e-9


def test_the_workspace_holds_and_a_hand_slides_along_it() -> None:
    """Table at z = .1 as a half-space, and a tilted wall: pushed into both, it slides to the corner of the box."""
    wall = (1.0, 1.0, 0.0, 0.4)
    filtered = make(free(half_spaces=((0.0, 0.0, -2.0, -0.2), wall)))
    for _ in range(300):
        sent = filtered.step(pose((0.45, -0.9, -1.0)), PERIOD_S, here(filtered))
        assert sent.reasons & Reason.workspace
        x, y, z = sent.pose[:3]
        assert x <= 0.5
        assert y >= -0.5
        assert z >= 0.1
        assert x + y <= 0.4
    np.testing.assert_allclose(sent.pose[:3], [0.45, -0.5, 0.101], atol=1e-6)
    for _ in range(300):
        sent = filtered.step(pose((0.5, 0.5, 0.3)), PERIOD_S, here(filtered))
        assert sent.pose[0] + sent.pose[1] <= 0.4
    # Projected onto the wall, 1 mm inside: (.2, .2) less .001 along the normal.
    np.testing.assert_allclose(sent.pose[:2], 0.2 - 0.001 / math.sqrt(2), atol=1e-6)


@pytest.mark.parametrize("speed", [0.05, 2.0])
def test_a_blocked_arm_is_pressed_by_a_step_and_no_more(speed: float) -> None:
    """Before a wall at x = .05 it is followed; then the command waits 99 % of a step ahead of the arm, and that is no stop."""
    filtered, turn = make(PoseSafetyLimits(replace(POSE, speed_m_s=speed))), 0.0
    for step in range(300):
        measured = here(filtered).pose
        measured[0] = min(measured[0], 0.05)
        measured[3:] = pose(rotvec=(0, 0, min(turn, 0.2)))[3:]
        target = pose((0.4, 0, 0.3), (0, 0, 0.005 * step))
        sent = filtered.step(target, PERIOD_S, MeasuredPose(measured, 0.01))
        turn = Rotation.from_quat(np.roll(sent.pose[3:], -1)).as_rotvec()[2]
        assert not sent.is_stopping
        assert sent.pose[0] <= 0.05 + 0.1
        assert turn <= 0.2 + 0.5
    assert sent.reasons & Reason.step
    assert sent.pose[0] == pytest.approx(0.05 + 0.099, abs=1e-6)
    assert turn == pytest.approx(0.2 + 0.99 * 0.5, abs=1e-6)
    assert abs(sent.twist).max() < 1e-6


def test_collision_hook_stops() -> None:
    filtered = make(collides=lambda pose: bool(pose[0] > 0.05))
    assert not run(filtered, pose((0.02, 0, 0.3)), 1).is_stopping
    assert run(filtered, pose((0.08, 0, 0.3)), 1).reasons & Reason.collision
    assert run(filtered, pose((0.02, 0, 0.3)), 1).is_stopping


def test_a_gripper_keeps_range_and_velocity() -> None:
    limiter = GripperLimiter(GripperCard(closed=0.08, open=0.0, velocity=0.2), 0.04)
    assert limiter.step(0.2, 0.1) == (pytest.approx(0.06), Reason.range | Reason.gripper)
    assert limiter.step(0.2, 0.1) == (0.08, Reason.range)
    assert limiter.step(0.08, 0.1) == (0.08, Reason.none)
    assert limiter.step(math.nan, 0.1) == (0.08, Reason.not_finite)
    assert limiter.step(0.0, math.nan) == (0.08, Reason.period)
    assert limiter.step(0.0, 1e308) == (0.0, Reason.none)
    filtered = make()
    sent = filtered.step(START, PERIOD_S, here(filtered), gripper=0.0)
    assert sent.gripper == pytest.approx(0.036)
    assert filtered.step(START, PERIOD_S, here(filtered), gripper=math.inf).is_stopping
    assert filtered.step(START, PERIOD_S, here(filtered), gripper=0.08).gripper == pytest.approx(0.036)


def test_misconfigured_limits_are_named() -> None:
    with pytest.raises(ConfigError, match="stale_s"):
        make(replace(LIMITS, stale_s=math.nan))
    with pytest.raises(ConfigError, match="half_spaces"):
        make(free(half_spaces=((0.0, 0.0, 0.0, 1.0),)))
    with pytest.raises(DeployError, match="half-spaces"):
        make(free(half_spaces=((0.0, 0.0, 1.0, 0.3),)))
    with pytest.raises(DeployError, match="joint 'z'"):
        make(free(), start=pose((0, 0, -0.1)))
    with pytest.raises(DeployError, match="unit quaternion"):
        make(free(), start=np.zeros(7))
    with pytest.raises(DeployError, match="opening"):
        make(gripper=None)
    with pytest.raises(ConfigError, match="velocity above 0"):
        GripperLimiter(GripperCard(0.0, 0.08, 0.0), 0.0)


def test_quaternions_agree_with_scipy() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        one, other = rng.normal(0, 2, (2, 3))
        left, right = Rotation.from_rotvec(one), Rotation.from_rotvec(other)
        np.testing.assert_allclose(
            np.abs(np.roll(from_vector(one), -1) @ left.as_quat()), 1, atol=1e-12
        )  # the same up to its sign
        way = difference(from_vector(one), from_vector(other))
        np.testing.assert_allclose(way, (left * right.inv()).as_rotvec(), atol=1e-9)
