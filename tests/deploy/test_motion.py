"""Joint motion limits: closed forms, and random streams of targets and periods that must never break a limit."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.deploy.motion import JointLimits, MotionLimiter
from robot_rl.deploy.plan_extrema import extrema
from robot_rl.errors import ConfigError, DeployError

pytest.importorskip("ruckig")
ONE = JointLimits(("j",), (-1.0,), (1.0,), (0.5,), (2.0,), (20.0,))
ARM = JointLimits(
    ("a", "b", "c"), (-2.0, -0.5, 0.0), (2.0, 0.5, 0.08), (2.0, 1.0, 0.1), (10.0, 3.0, 0.5), (100.0, 20.0, 5.0)
)


def test_a_target_within_the_limits_is_reached_exactly_and_on_time() -> None:
    limiter = MotionLimiter(ONE, np.zeros(1))
    for step in range(1, 40):
        # A slow sine: its speed, acceleration and jerk are far below the limits.
        target = np.array([0.1 * (1 - np.cos(0.05 * step))])
        state = limiter.follow(target, 0.05)
        assert abs(state.position[0] - target[0]) < 2e-3
    for _ in range(10):
        state = limiter.follow(target, 0.05)
    assert state.position[0] == pytest.approx(target[0], abs=1e-12)
    assert state.velocity[0] == pytest.approx(0, abs=1e-9)


def test_a_jump_takes_the_time_of_the_closed_form() -> None:
    """From rest over d at v, a, j (with all three reached): T = d/v + v/a + a/j = 1/.5 + .25 + .1 s."""
    limiter = MotionLimiter(ONE, np.array([-0.5]))
    times = np.arange(1, 300) * 0.01
    positions = [limiter.follow(np.array([0.5]), 0.01).position[0] for _ in times]
    arrived = times[int(np.argmax(np.asarray(positions) >= 0.5 - 1e-9))]
    assert arrived == pytest.approx(2.35, abs=0.011)
    assert max(positions) <= 0.5 + 1e-9


def test_braking_distance_is_the_closed_form() -> None:
    """From v = .5 without acceleration: v/2 (v/a + a/j) = .25 (.25 + .1) = .0875."""
    limiter = MotionLimiter(ONE, np.array([-0.9]))
    while limiter.state.velocity[0] < 0.5 - 1e-9 or abs(limiter.state.acceleration[0]) > 1e-9:
        limiter.follow(np.array([1.0]), 0.01)
    start = limiter.state.position[0]
    for _ in range(50):
        state = limiter.brake(0.01)
    assert state.position[0] - start == pytest.approx(0.0875, abs=1e-6)
    assert state.velocity[0] == pytest.approx(0, abs=1e-9)


def broken(limits: JointLimits, positions: np.ndarray, periods: np.ndarray) -> dict[str, float]:
    """Largest value / limit of what somebody sees who has positions and times alone (divided differences)."""
    out = {"position": float(np.max(np.maximum(np.array(limits.low) - positions, positions - np.array(limits.high))))}
    values, gaps = positions, periods
    for name in ("velocity", "acceleration", "jerk"):
        values = np.diff(values, axis=0) / gaps[:, None]
        gaps = (gaps[1:] + gaps[:-1]) / 2
        out[name] = float(np.abs(values / np.array(getattr(limits, name))).max())
    return out


@pytest.mark.parametrize("seed", range(12))
def test_no_stream_breaks_a_limit(seed: int) -> None:
    """Jumps, noise, ramps, bounds and braking at a fixed rate: seen from outside, all four limits hold at every step."""
    rng = np.random.default_rng(seed)
    limiter, low, high = MotionLimiter(ARM, np.array([0.0, 0.1, 0.04])), np.array(ARM.low), np.array(ARM.high)
    positions, period_s = [limiter.state.position], float(rng.choice([0.002, 0.01, 0.05]))
    target = limiter.state.position
    for _ in range(1000):
        kind = rng.integers(6)
        if kind == 0:
            target = rng.uniform(3 * low - 1, 3 * high + 1)
        elif kind == 1:
            target = np.where(rng.random(3) < 0.5, low, high)
        elif kind < 4:
            target = target + rng.normal(0, 0.02, 3)
        positions.append((limiter.brake(period_s) if kind == 5 else limiter.follow(target, period_s)).position)
    found = broken(ARM, np.array(positions), np.full(len(positions) - 1, period_s))
    assert found["position"] <= 0
    # Third differences of positions of size 1 at 2 ms lose nine digits.
    assert max(found["velocity"], found["acceleration"]) <= 1 + 1e-5, found
    assert found["jerk"] <= 1 + 1e-3, found


@pytest.mark.parametrize("seed", range(4))
def test_any_period(seed: int) -> None:
    """Periods from a microsecond to ten seconds: position and speed hold, and so does the state the limiter is in."""
    rng = np.random.default_rng(100 + seed)
    limiter = MotionLimiter(ARM, np.array([0.0, 0.1, 0.04]))
    for _ in range(1000):
        before, period_s = limiter.state.position, float(10.0 ** rng.uniform(-6, 1))
        state = limiter.follow(rng.normal(0, 2, 3), period_s) if rng.random() < 0.9 else limiter.brake(period_s)
        assert (state.position >= np.array(ARM.low)).all()
        assert (state.position <= np.array(ARM.high)).all()
        moved = np.abs(state.position - before)
        assert (moved <= np.array(ARM.velocity) * period_s + 1e-12).all()
        assert (np.abs(state.velocity) <= np.array(ARM.velocity)).all()
        assert (np.abs(state.acceleration) <= np.array(ARM.acceleration)).all()


def test_bad_limits_and_starts_are_named() -> None:
    with pytest.raises(ConfigError, match=r"limits\.jerk"):
        JointLimits(("j",), (-1.0,), (1.0,), (0.5,), (2.0,), (0.0,))
    with pytest.raises(ConfigError, match="joint 'j'"):
        JointLimits(("j",), (1.0,), (1.0,), (0.5,), (2.0,), (20.0,))
    with pytest.raises(DeployError, match="joint 'j'"):
        MotionLimiter(ONE, np.array([1.5]))


def test_extrema_see_a_turn_inside_constant_acceleration() -> None:
    """The state in which Ruckig 0.19's own `position_extrema` says -.458 where the plan goes to -.5075."""
    import ruckig

    task, plan = ruckig.InputParameter(1), ruckig.Trajectory(1)
    task.current_position, task.current_velocity, task.current_acceleration = [-0.42202602], [-0.68483778], [1.82988607]
    task.max_velocity, task.max_acceleration, task.max_jerk = [1], [3], [20]
    task.target_position = [0.5]
    assert ruckig.Ruckig(1).calculate(task, plan) == ruckig.Result.Working
    seen = [plan.at_time(t)[0][0] for t in np.linspace(0, plan.duration, 5001)]
    assert extrema(plan) == pytest.approx((min(seen), max(seen)), abs=1e-6)
    assert min(seen) < -0.507


@pytest.mark.parametrize("size", [1e-4, 0.003, 0.015, 0.035])
@pytest.mark.parametrize("period_s", [0.002, 0.02, 0.1])
def test_no_step_goes_away_from_a_new_target(size: float, period_s: float) -> None:
    """A plan that passes a near target at the speed of the stream took a run-up: it went the wrong way first."""
    limits = JointLimits(("a", "b"), (-2.0,) * 2, (2.0,) * 2, (2.0,) * 2, (20.0,) * 2, (500.0,) * 2)
    limiter = MotionLimiter(limits, np.zeros(2))
    goal = np.array([size, -0.7 * size])
    before = np.zeros(2)
    for _ in range(200):
        now = limiter.follow(goal, period_s).position
        assert (np.sign(goal) * (now - before) >= -1e-9).all(), (before, now)
        if np.allclose(now, goal, rtol=0, atol=1e-12):
            break
        before = now
    np.testing.assert_allclose(now, goal, rtol=0, atol=1e-9)
