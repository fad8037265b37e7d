"""Random command streams (any float, any period, random limits) through either safety layer, and a judge of what leaves it.

The judge knows positions and times alone, and none of the layer's code. Of a motion whose k-th derivative is at most L, k!
times any k-th divided difference is at most L, for whatever steps in time: so velocity, acceleration and jerk are judged
exactly, but for the rounding of the positions (SLOP of the range, said in docs/safety.md). Turns are judged by scipy.

    python tests/support/command_streams.py joint_stream 0 300

prints the largest value over its limit of all streams of these seeds (1 is allowed), or the first seed that broke one. It
runs by itself because checked annotations make a step ten times slower.
"""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.pose_safety import MeasuredPose, PoseSafetyFilter, PoseSafetyLimits
from robot_rl.deploy.robot_card import GripperCard, PoseLimits
from robot_rl.deploy.safety import Measured, Reason, SafetyFilter, SafetyLimits

WILD = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, -5e-324, 2.2e-308, 0.0, -0.0, 1e-9, 1e3, -1e3)
STEPS = 30
SLOP = 2e-9


def any_float(rng: np.random.Generator) -> float:
    """A named bad one, or any 64 bits."""
    return float(rng.choice(WILD)) if rng.random() < 0.7 else float(struct.unpack("d", rng.bytes(8))[0])


def spoiled(rng: np.random.Generator, action: np.ndarray, *, share: float) -> Any:
    """The action, or with one wild number, or of another shape."""
    draw = rng.random()
    if draw < share:
        action = action.copy()
        action[rng.integers(len(action))] = any_float(rng)
    elif draw < share * 1.1:
        return [action[:-1], action[None], None, [None] * len(action), "stop", [*action.tolist(), 0.0]][rng.integers(6)]
    return action


@dataclass
class Periods:
    """Times between commands: one rate, or any; a tenth wild."""

    rng: np.random.Generator
    rate_s: float = field(init=False)
    spread: float = field(init=False)

    def __post_init__(self) -> None:
        self.rate_s = 10 ** float(self.rng.uniform(-3, -1))
        self.spread = float(self.rng.choice([0.0, 0.0, 0.3, 3.0]))

    def draw(self) -> float:
        if self.rng.random() < 0.1:
            return any_float(self.rng)
        return self.rate_s * 10 ** float(self.spread * self.rng.uniform(-1, 1))


def passed(period_s: float) -> float:
    """Time that went by for the layer; more than 1000 s is as good as that."""
    return min(period_s, 1e3) if math.isfinite(period_s) and period_s > 0 else 0.0


def divided(places: np.ndarray, gaps: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """k! times divided differences of rows at times apart by gaps, and how much an error of 1 in a place adds."""
    value, error, span = places, np.ones(len(places)), gaps
    for k in range(1, order + 1):
        value = k * np.diff(value, axis=0) / span[:, None]
        error = k * (error[1:] + error[:-1]) / span
        span = span[:-1] + gaps[k:]
    return value, error


def worst(places: np.ndarray, gaps: np.ndarray, limits: tuple[float, ...], slop: float) -> float:
    """Largest of velocity, acceleration and jerk over its limit, as vectors (one column: of a joint); 1 is allowed."""
    out = 0.0
    with np.errstate(all="ignore"):
        for order, most in enumerate(limits, start=1):
            if len(gaps) >= order:
                value, error = divided(places, gaps, order)
                over = np.linalg.norm(value, axis=1) / (most * (1 + 1e-6) + slop * error)
                out = max(out, float(np.nanmax(over)))
    return out


def kept(places: list[np.ndarray], periods: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Places at the times that went by, and the gaps; where no time went by, nothing may move."""
    rows, gaps = [places[0]], list[float]()
    for place, period_s in zip(places[1:], periods, strict=True):
        if passed(period_s) == 0:
            np.testing.assert_allclose(place, rows[-1], rtol=0, atol=1e-15)  # a release may round a quaternion
        else:
            rows.append(place)
            gaps.append(passed(period_s))
    return np.array(rows), np.array(gaps)


# ----------------------------------------------------------------------------------------------------------- joints


def random_joints(rng: np.random.Generator) -> JointLimits:
    count = int(rng.integers(1, 4))
    low = rng.uniform(-3, 0, count)
    high = low + 10 ** rng.uniform(-1, 1, count)
    velocity = 10 ** rng.uniform(-1, 1, count)
    acceleration = velocity * 10 ** rng.uniform(-0.5, 1.5, count)
    jerk = acceleration * 10 ** rng.uniform(-0.5, 2, count)
    names = tuple(f"joint{index}" for index in range(count))
    return JointLimits(names, *(tuple(map(float, x)) for x in (low, high, velocity, acceleration, jerk)))


def planar(position: np.ndarray) -> np.ndarray:
    """A planar arm of links 0.4 m."""
    angles = np.cumsum(position)
    return np.array([0.4 * np.cos(angles).sum(), 0.4 * np.sin(angles).sum(), 0.2])


def joint_stream(seed: int) -> float:
    """One stream; returns the largest value over its limit."""
    rng = np.random.default_rng(seed)
    joints, periods = random_joints(rng), Periods(rng)
    low, high = np.array(joints.low), np.array(joints.high)
    start = rng.uniform(low, high)
    options, box, planes = {}, None, ()
    if rng.random() < 0.3:
        place = planar(start)
        box = (tuple(place - 10 ** rng.uniform(-2, 0, 3)), tuple(place + 10 ** rng.uniform(-2, 0, 3)))
        normal = rng.normal(0, 1, 3)
        planes = ((*normal.tolist(), float(normal @ place + np.linalg.norm(normal) * 10 ** rng.uniform(-2, 0))),)
        options = {"forward": planar}
    limits = SafetyLimits(joints, box=box, half_spaces=planes, force_n=30.0)
    layer = SafetyFilter(limits, start, **options)  # type: ignore[arg-type]
    places, times, target = [start], list[float](), start
    for _ in range(STEPS):
        draw = rng.random()
        if draw < 0.3:
            target = rng.uniform(low - 0.5 * (high - low), high + 0.5 * (high - low))
        elif draw < 0.7:
            target = target + rng.normal(0, 0.02, len(low)) * (high - low)
        elif draw < 0.75:
            target = np.where(rng.random(len(low)) < 0.5, low, high)
        period_s, wrench = periods.draw(), rng.normal(0, 3, 6) if rng.random() < 0.5 else None
        position = spoiled(rng, places[-1], share=0.01)
        age_s = any_float(rng) if rng.random() < 0.02 else float(rng.uniform(0, 0.22))
        measured = Measured(position if isinstance(position, np.ndarray) else places[-1], age_s, wrench)
        if rng.random() < 0.01:
            layer.stop()
        sent = layer.step(spoiled(rng, target, share=0.06), period_s, measured)
        assert np.isfinite(sent.position).all()
        assert (np.abs(sent.velocity) <= np.array(joints.velocity)).all()
        assert bool(layer.latched) == sent.is_stopping
        assert ((sent.position >= low) & (sent.position <= high)).all()
        if box is not None:
            place = planar(sent.position)
            assert ((place >= box[0]) & (place <= box[1])).all(), (seed, place, box)
            assert planes[0][:3] @ place <= planes[0][3]
        places.append(sent.position)
        times.append(period_s)
        if layer.latched and not sent.velocity.any():
            layer.release()
    rows, gaps = kept(places, times)
    end_of_stream(Layer(layer, options), places[-1], start, periods.rate_s)
    return max(
        worst(rows[:, [j]], gaps, (joints.velocity[j], joints.acceleration[j], joints.jerk[j]), SLOP * (high - low)[j])
        for j in range(len(low))
    )


@dataclass
class Layer:
    """Either layer, as the end of a stream needs it."""

    filtered: Any
    options: dict[str, Any] = field(default_factory=dict)

    def step(self, action: Any, place: np.ndarray, period_s: float) -> tuple[np.ndarray, np.ndarray, Reason]:
        """Place, velocity and reasons; of a robot that is at a place, and feels nothing."""
        if isinstance(self.filtered, SafetyFilter):
            joints = self.filtered.step(action, period_s, Measured(place, 0.0))
            return joints.position, joints.velocity, joints.reasons
        sent = self.filtered.step(action, period_s, MeasuredPose(place, 0.0))
        return sent.pose, sent.twist, sent.reasons

    def rest(self, place: np.ndarray) -> np.ndarray:
        """Where it comes to rest; it must."""
        self.filtered.stop()
        for _ in range(5000):
            place, velocity, _ = self.step(place, place, 0.05)
            if not velocity.any():
                self.filtered.release()
                return place
        raise AssertionError("no rest within 250 s")


def end_of_stream(layer: Layer, place: np.ndarray, wanted: np.ndarray, period_s: float) -> None:
    """What was sent passes as it is; and after a NaN, actions are judged as by a layer that never saw one."""
    here = layer.rest(place)
    for _ in range(2):
        again, _, reasons = layer.step(here, here, period_s)
        assert reasons is Reason.none
        np.testing.assert_allclose(again, here, rtol=0, atol=1e-12)
    fresh = Layer(type(layer.filtered)(layer.filtered.limits, here, **layer.options))
    bad = here.copy()
    bad[0] = math.nan
    _, _, reasons = layer.step(bad, here, period_s)
    assert reasons == Reason.not_finite
    layer.filtered.release()
    mine = theirs = here
    for _ in range(4):
        mine, _, why = layer.step(wanted, mine, period_s)
        theirs, _, why_fresh = fresh.step(wanted, theirs, period_s)
        assert why == why_fresh
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ poses


def random_pose_limits(rng: np.random.Generator, place: np.ndarray) -> PoseLimits:
    speed, turn = (10 ** float(rng.uniform(-1, 0.7)) for _ in range(2))
    acceleration = speed * 10 ** float(rng.uniform(-0.5, 1.5))
    corners = (
        tuple((place - 10 ** rng.uniform(-2, 0, 3)).tolist()),
        tuple((place + 10 ** rng.uniform(-2, 0, 3)).tolist()),
    )
    planes = []
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        normal = rng.normal(0, 1, 3)
        room = np.linalg.norm(normal) * 10 ** rng.uniform(-2, 0)
        planes.append((*normal.tolist(), float(normal @ place + room)))
    return PoseLimits(
        speed_m_s=speed, acceleration_m_s2=acceleration, jerk_m_s3=acceleration * 10 ** float(rng.uniform(-0.5, 2)),
        rotation_rad_s=turn, rotation_rad_s2=turn * 10 ** float(rng.uniform(-0.5, 1.5)), box=corners,
        half_spaces=tuple(planes), step_m=None if rng.random() < 0.5 else 10 ** float(rng.uniform(-2, 0)),
        step_rad=None if rng.random() < 0.5 else 10 ** float(rng.uniform(-1, 0.4)),
    )  # fmt: skip


def rotations(poses: np.ndarray) -> Rotation:
    return Rotation.from_quat(np.roll(poses[:, 3:], -1, axis=1))


def turns(poses: np.ndarray, gaps: np.ndarray, limits: PoseLimits) -> float:
    """Largest rate, and change of rate from step to step, over its limit; multiplied out, as times may be tiny."""
    quaternion = rotations(poses)
    steps = (quaternion[1:] * quaternion[:-1].inv()).as_rotvec()
    angle = np.linalg.norm(steps, axis=1)
    out = float((angle / (limits.rotation_rad_s * gaps * (1 + 1e-9) + 1e-12)).max(initial=0.0))
    first, second = gaps[:-1], gaps[1:]
    change = np.linalg.norm(steps[1:] * first[:, None] - steps[:-1] * second[:, None], axis=1)
    allowed = limits.rotation_rad_s2 * (first + second) / 2 * first * second * (1 + 1e-9) + 1e-12 * (first + second)
    is_clear = (angle[1:] < 3.0) & (angle[:-1] < 3.0)  # beyond, the shorter way is the other one
    is_clear &= allowed > 0  # times too short to be told
    return max(out, float((change[is_clear] / allowed[is_clear]).max(initial=0.0)))


def pose_stream(seed: int) -> float:
    """One stream; returns the largest value over its limit."""
    rng = np.random.default_rng(seed)
    start = np.concatenate([rng.uniform(-1, 1, 3), np.roll(Rotation.random(random_state=seed).as_quat(), 1)])
    limits, periods = random_pose_limits(rng, start[:3]), Periods(rng)
    closed, opened = rng.uniform(-1, 1, 2).tolist()
    card = GripperCard(closed=closed, open=opened, velocity=10 ** float(rng.uniform(-2, 1)))
    layer = PoseSafetyFilter(PoseSafetyLimits(limits, card, force_n=30.0), start, gripper=closed)
    poses, times, openings, target = [layer._sent(Reason.none).pose], list[float](), [closed], start
    for _ in range(STEPS):
        draw, target = rng.random(), target.copy()
        if draw < 0.3:
            target[:3] = rng.uniform(-2, 2, 3)
            target[3:] = np.roll(Rotation.random(random_state=int(rng.integers(1 << 31))).as_quat(), 1)
        elif draw < 0.8:
            target[:3] += rng.normal(0, 0.03, 3)
            turn = Rotation.from_rotvec(rng.normal(0, 0.1, 3)) * Rotation.from_quat(np.roll(target[3:], -1))
            target[3:] = np.roll(turn.as_quat(), 1) * rng.choice([-1, 1])
        measured = poses[-1].copy()
        if rng.random() < 0.3:
            measured[:3] += rng.normal(0, 0.01, 3)
            turned = Rotation.from_rotvec(rng.normal(0, 0.05, 3)) * rotations(measured[None])[0]
            measured[3:] = np.roll(turned.as_quat(), 1)
        if rng.random() < 0.01:
            measured[rng.integers(7)] = any_float(rng)
        period_s, age_s = periods.draw(), float(rng.uniform(0, 0.22))
        opening = None if rng.random() < 0.2 else any_float(rng) if rng.random() < 0.05 else float(rng.normal(0, 1))
        if rng.random() < 0.01:
            layer.stop()
        robot = MeasuredPose(measured, age_s, rng.normal(0, 3, 6) if rng.random() < 0.5 else None)
        sent = layer.step(spoiled(rng, target, share=0.06), period_s, robot, gripper=opening)
        check_sent(sent, limits, card, robot, is_stale=age_s > 0.2)
        assert bool(layer.latched) == sent.is_stopping
        assert abs(sent.gripper - openings[-1]) <= card.velocity * passed(period_s) * (1 + 1e-9) + 1e-15
        poses.append(sent.pose)
        times.append(period_s)
        openings.append(sent.gripper)
        if layer.latched and not sent.twist.any():
            layer.release(poses[-1] if rng.random() < 0.5 else None)
    rows, gaps = kept(poses, times)
    box = np.array(limits.box)
    motion = (limits.speed_m_s, limits.acceleration_m_s2, limits.jerk_m_s3)
    wanted = np.concatenate([box.mean(axis=0), start[3:]])
    end_of_stream(Layer(layer, {"gripper": openings[-1]}), poses[-1], wanted, periods.rate_s)
    return max(
        worst(rows[:, :3], gaps, motion, SLOP * math.sqrt(3) * float((box[1] - box[0]).max())),
        turns(rows, gaps, limits),
    )


def check_sent(sent: Any, limits: PoseLimits, card: GripperCard, robot: MeasuredPose, *, is_stale: bool) -> None:
    """Everything that one command alone shows."""
    assert np.isfinite(sent.pose).all()
    assert np.isfinite(sent.twist).all()
    assert abs(np.linalg.norm(sent.pose[3:]) - 1) <= 1e-12
    assert np.linalg.norm(sent.twist[:3]) <= limits.speed_m_s * (1 + 1e-9)
    assert np.linalg.norm(sent.twist[3:]) <= limits.rotation_rad_s * (1 + 1e-9)
    assert ((sent.pose[:3] >= limits.box[0]) & (sent.pose[:3] <= limits.box[1])).all()  # type: ignore[index]
    for plane in limits.half_spaces:
        assert np.dot(plane[:3], sent.pose[:3]) <= plane[3]
    assert min(card.closed, card.open) <= sent.gripper <= max(card.closed, card.open)
    if not sent.is_stopping and not is_stale:
        if limits.step_m is not None:
            assert np.linalg.norm(sent.pose[:3] - robot.pose[:3]) <= limits.step_m + 1e-8
        if limits.step_rad is not None:
            apart = rotations(sent.pose[None])[0] * rotations(robot.pose[None])[0].inv()
            assert apart.magnitude() <= limits.step_rad + 1e-8


def main(words: list[str]) -> int:
    """Worst of some streams; 1 where a stream breaks a limit, with its seed."""
    stream, first, stop = globals()[words[0]], int(words[1]), int(words[2])
    worst_of_all = 0.0
    for seed in range(first, stop):
        try:
            found = stream(seed)
        except Exception as error:
            raise AssertionError(f"{words[0]}, seed {seed}") from error
        if found > 1:
            print(f"{words[0]}, seed {seed}: {found} of a limit")
            return 1
        worst_of_all = max(worst_of_all, found)
    print(worst_of_all)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
