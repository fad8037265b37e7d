"""The safety layer: every kind of bad input, latched stops, and that nothing which leaves it breaks a limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.safety import STOPS, Measured, Reason, SafetyFilter, SafetyLimits
from robot_rl.errors import ConfigError, DeployError

pytest.importorskip("ruckig")
JOINTS = JointLimits(("a", "b"), (-1.0, -1.0), (1.0, 1.0), (1.0, 1.0), (4.0, 4.0), (400.0, 400.0))
LIMITS = SafetyLimits(JOINTS, force_n=20.0, torque_nm=5.0, tracking=(0.2, 0.2), stale_s=0.2)
PERIOD_S = 0.02


def forward(position: np.ndarray) -> np.ndarray:
    """A table robot: joints are x and y."""
    return np.array([position[0], position[1], 0.0])


def make(limits: SafetyLimits = LIMITS, **options: Any) -> SafetyFilter:
    return SafetyFilter(limits, np.zeros(2), **options)


def measured(filtered: SafetyFilter, **other: Any) -> Measured:
    """A robot that is where it was sent."""
    return Measured(**({"position": filtered._motion.state.position, "age_s": 0.01} | other))


def test_a_gentle_action_passes_as_it_is() -> None:
    filtered = make()
    for step in range(1, 100):
        target = np.array([0.1, 0.05]) * (1 - np.cos(0.02 * step))
        sent = filtered.step(target, PERIOD_S, measured(filtered))
        assert sent.reasons is Reason.none
    np.testing.assert_allclose(sent.position, target, atol=2e-3)
    for _ in range(20):
        sent = filtered.step(target, PERIOD_S, measured(filtered))
    np.testing.assert_allclose(sent.position, target, atol=1e-12)
    again = filtered.step(sent.position, PERIOD_S, measured(filtered))
    np.testing.assert_allclose(again.position, sent.position, atol=1e-12)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([np.nan, 0.0], Reason.not_finite),
        ([0.0, np.inf], Reason.not_finite),
        ([0.0], Reason.wrong_size),
        ([0.0, 0.0, 0.0], Reason.wrong_size),
        ([[0.0, 0.0]], Reason.wrong_size),
        (None, Reason.wrong_size),
        (["a", "b"], Reason.wrong_size),
    ],
)
def test_bad_actions_stop_and_stay_out_of_the_state(action: Any, reason: Reason) -> None:
    """LeRobot's filter passes 0.9 m after one NaN, for NaN is in its memory then. Here it is judged as before."""
    filtered = make()
    for _ in range(20):
        filtered.step([0.5, 0.5], PERIOD_S, measured(filtered))
    sent = filtered.step(action, PERIOD_S, measured(filtered))
    assert sent.reasons & reason
    assert sent.is_stopping
    assert np.isfinite(sent.position).all()
    for _ in range(100):
        sent = filtered.step([0.9, 0.9], PERIOD_S, measured(filtered))
    assert sent.is_stopping
    assert not sent.velocity.any()
    filtered.release()
    before = sent.position
    sent = filtered.step([0.9, 0.9], PERIOD_S, measured(filtered))
    assert not sent.is_stopping
    # Half of j t^2 is what the jerk limit allows in one period from rest.
    assert (np.abs(sent.position - before) <= 400.0 * PERIOD_S**3 / 6 + 1e-12).all()
    assert sent.reasons & Reason.velocity


@pytest.mark.parametrize("wrong", [0.0, -0.02, np.nan, np.inf, -np.inf])
def test_without_a_period_nothing_moves(wrong: float) -> None:
    filtered = make()
    sent = filtered.step([0.5, 0.5], wrong, measured(filtered))
    assert sent.reasons == Reason.period
    assert not sent.position.any()


def test_stale_observations_hold_and_go_on_by_themselves() -> None:
    filtered = make()
    for _ in range(20):
        moving = filtered.step([0.5, 0.5], PERIOD_S, measured(filtered))
    assert moving.velocity.any()
    for _ in range(50):
        sent = filtered.step([0.5, 0.5], PERIOD_S, measured(filtered, age_s=0.25))
    assert sent.reasons == Reason.stale
    assert not sent.velocity.any()
    assert not filtered.step([0.5, 0.5], PERIOD_S, measured(filtered)).reasons & STOPS
    # A clock that went back says nothing of how old an observation is.
    assert filtered.step([0.5, 0.5], PERIOD_S, measured(filtered, age_s=-10.0)).reasons & Reason.stale


@pytest.mark.parametrize(
    ("robot", "reason"),
    [
        ({"wrench": np.array([0.0, 0, 21, 0, 0, 0])}, Reason.force),
        ({"wrench": np.array([0.0, 0, 0, 0, 4, 4])}, Reason.force),
        ({"wrench": np.full(6, np.nan)}, Reason.measured_not_finite),
        ({"position": np.array([np.nan, 0.0])}, Reason.measured_not_finite),
        ({"position": np.zeros(3)}, Reason.measured_not_finite),
        ({"position": np.array([0.3, 0.0])}, Reason.tracking),
    ],
)
def test_what_the_robot_feels_stops_it(robot: dict[str, Any], reason: Reason) -> None:
    filtered = make()
    sent = filtered.step([0.1, 0.1], PERIOD_S, measured(filtered, **robot))
    assert sent.reasons & reason
    assert sent.is_stopping
    assert filtered.step([0.1, 0.1], PERIOD_S, measured(filtered)).is_stopping


def test_emergency_is_latched_and_released_by_a_person_at_rest() -> None:
    filtered = make()
    for _ in range(20):
        filtered.step([0.9, 0.9], PERIOD_S, measured(filtered))
    filtered.stop()
    filtered.stop(Reason.collision)
    with pytest.raises(DeployError, match="at rest"):
        filtered.release()
    for _ in range(60):
        sent = filtered.step([0.9, 0.9], PERIOD_S, measured(filtered))
    assert sent.reasons == Reason.emergency | Reason.collision
    filtered.release()
    assert filtered.latched is Reason.none


def test_workspace_holds_the_end_effector() -> None:
    box = ((-0.5, -0.5, -0.1), (0.3, 0.5, 0.1))
    filtered = make(SafetyLimits(JOINTS, box=box, half_spaces=((0.0, 1.0, 0.0, 0.2),)), forward=forward)
    for _ in range(400):
        sent = filtered.step([0.9, 0.9], PERIOD_S, measured(filtered))
        assert sent.reasons & Reason.workspace
        assert sent.position[0] <= 0.3 + 1e-9
        assert sent.position[1] <= 0.2 + 1e-9
    assert max(sent.position) > 0.15
    assert not filtered.step([0.1, 0.1], PERIOD_S, measured(filtered)).reasons & Reason.workspace


def test_collision_hook_stops() -> None:
    filtered = make(collides=lambda position: bool(position[0] > 0.5))
    assert not filtered.step([0.1, 0.0], PERIOD_S, measured(filtered)).is_stopping
    assert filtered.step([0.6, 0.0], PERIOD_S, measured(filtered)).reasons & Reason.collision
    assert filtered.step([0.1, 0.0], PERIOD_S, measured(filtered)).is_stopping


def test_misconfigured_limits_are_named() -> None:
    with pytest.raises(ConfigError, match="forward"):
        make(SafetyLimits(JOINTS, box=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))))
    with pytest.raises(ConfigError, match="stale_s"):
        make(SafetyLimits(JOINTS, stale_s=float("nan")))
    with pytest.raises(ConfigError, match="tracking"):
        make(SafetyLimits(JOINTS, tracking=(0.1,)))
    with pytest.raises(DeployError, match="workspace"):
        make(SafetyLimits(JOINTS, box=((0.1, 0.0, 0.0), (1.0, 1.0, 1.0))), forward=forward)


WILD = (np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, -5e-324, 0.0, 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_any_float_at_any_time(seed: int) -> None:
    """2,000 actions a seed, a fifth of them wild, periods wild too: finite, inside, no faster than allowed."""
    rng = np.random.default_rng(seed)
    filtered = make(SafetyLimits(JOINTS, stale_s=0.2))
    low, high, speed = (np.array(getattr(JOINTS, name)) for name in ("low", "high", "velocity"))
    for _ in range(2000):
        before = filtered._motion.state.position
        action = rng.normal(0, 1, 2)
        if rng.random() < 0.2:
            action[rng.integers(2)] = rng.choice(WILD)
        period_s = float(rng.choice(WILD)) if rng.random() < 0.1 else float(10.0 ** rng.uniform(-4, 0))
        sent = filtered.step(action, period_s, measured(filtered, age_s=float(rng.uniform(0, 0.21))))
        assert np.isfinite(sent.position).all()
        assert np.isfinite(sent.velocity).all()
        assert ((sent.position >= low) & (sent.position <= high)).all()
        elapsed = period_s if np.isfinite(period_s) and period_s > 0 else 0.0
        assert (np.abs(sent.position - before) <= speed * elapsed + 1e-9).all()
        if filtered.latched and not sent.velocity.any():
            filtered.release()
