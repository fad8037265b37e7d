"""The faults of `robot-rl bench safety`, and by what each is judged. Written before anything was run.

Every fault plays commands at 50 Hz (0.02 s) to an arm that is where it was sent, unless the fault says otherwise; it begins
at rest at zero. The checks look at what was sent, and know no rule:

    finite        every number sent
    shape         as many numbers as the robot takes, or nothing sent
    inside        the cube (or each joint) of +-0.5
    wall          x + y <= 0.4, where the arm did not begin outside
    jump          no command further than 0.05 from the one before
    turn          nor turned by more than 0.1 rad
    speed         nor faster than 0.5 per second
    acceleration  nor a change of velocity above 2 per second squared (with 1 % for rounding)
    rest          nothing moves in the last 0.5 s
    still         nothing moves where no time passed
    near          every command within 0.1 of the measured place; in a stop, what braking takes more: 0.1 + 0.02
    unit          quaternions of unit length to 1e-6
    arrives       at the end within 0.01 and 0.02 rad of what was asked: no false alarm
Distances are norms for a pose, and of the worst joint for joints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.workbench.safety_rules import NUMBERS, ArmState, Rule

PERIOD_S = 0.02
_IDENTITY = np.array([1.0, 0.0, 0.0, 0.0])


@dataclass(frozen=True)
class Step:
    """One command of a fault.

    Attributes:
        place: asked, (3,).
        quaternion: asked, wxyz (4,).
        period_s: since the last command.
        spoil: makes the action that is really given.
        arm: changes of what the arm says: a function of its true state.
        event: "stop" or "release", before the command.
    """

    place: Float64[Array, "3"]
    quaternion: Float64[Array, "4"] = field(default_factory=lambda: _IDENTITY)
    period_s: float = PERIOD_S
    spoil: Callable[[np.ndarray], Any] | None = None
    arm: Callable[[ArmState], ArmState] | None = None
    event: str = ""


@dataclass
class Trace:
    """What a rule did with a fault: commands that reached the arm, with the times between them."""

    is_pose: bool
    sent: list[np.ndarray] = field(default_factory=list)
    periods: list[float] = field(default_factory=list)
    arms: list[ArmState] = field(default_factory=list)
    asked: Step | None = None
    wrong_shapes: int = 0
    errors: int = 0
    stops: bool = False


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: of the fault.
        checks: names from the text of this module; all must hold.
        steps: the commands.
        scope: "pose" or "joints" where the other kind has no such thing, else "both".
        needs_stop: only for rules that know a stop.
    """

    name: str
    checks: tuple[str, ...]
    steps: Callable[[], Iterable[Step]]
    scope: str = "both"
    needs_stop: bool = False


def play(fault: Fault, rule: Rule) -> Trace:
    """Give the commands of a fault to a rule. What raises, or sends another shape, sends nothing: the arm holds."""
    size = 7 if rule.is_pose else 3
    here = np.concatenate([np.zeros(3), _IDENTITY])[:size]
    trace = Trace(rule.is_pose, [here])
    for step in fault.steps():
        arm = ArmState(here[:3].copy(), here[3:].copy() if rule.is_pose else _IDENTITY.copy())
        arm = arm if step.arm is None else step.arm(arm)
        if step.event == "stop":
            rule.stop()
        elif step.event == "release":
            rule.release(arm)
        action = np.concatenate([step.place, step.quaternion])[:size]
        sent = here
        try:
            with np.errstate(all="ignore"):
                answer = rule.send(action if step.spoil is None else step.spoil(action), step.period_s, arm)
            if np.shape(answer) == (size,):
                sent = np.asarray(answer, np.float64).copy()
            else:
                trace.wrong_shapes += 1
        except Exception:  # a rule that raises is a result
            trace.errors += 1
        trace.sent.append(sent)
        trace.periods.append(step.period_s)
        trace.arms.append(arm)
        trace.asked, trace.stops = step, trace.stops or rule.is_stopped
        here = sent if np.isfinite(sent).all() else here
    return trace


def judge(fault: Fault, trace: Trace) -> tuple[bool, str]:
    """Whether all checks hold, and what the rule let through, or how it held."""
    broken = [text for name in fault.checks if (text := _CHECKS[name](trace))]
    if broken:
        return False, "; ".join(broken)
    if trace.errors:
        return True, f"raises ({trace.errors} of {len(trace.periods)})"
    return True, "stops" if trace.stops else "holds" if not _rest(trace) else "goes on"


def _size(trace: Trace, ways: np.ndarray) -> np.ndarray:
    places: np.ndarray = ways[..., :3]
    sizes = np.linalg.norm(places, axis=-1) if trace.is_pose else np.abs(places).max(axis=-1)
    return np.asarray(sizes)


def _ways(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """How far each command is from the one before, and the time between; NaN counts as endless."""
    with np.errstate(invalid="ignore"):
        ways = _size(trace, np.diff(np.array(trace.sent), axis=0))
    gaps = np.array([period if math.isfinite(period) and period > 0 else 0.0 for period in trace.periods])
    return np.where(np.isnan(ways), math.inf, ways), gaps


def _turns(trace: Trace) -> np.ndarray:
    """Angle of each command from the one before."""
    if not trace.is_pose:
        return np.zeros(len(trace.periods))
    quaternions = np.array(trace.sent)[:, 3:]
    with np.errstate(invalid="ignore", divide="ignore"):
        quaternions = quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)
        angles = 2 * np.arccos(np.clip(np.abs((quaternions[1:] * quaternions[:-1]).sum(axis=1)), 0, 1))
    return np.where(np.isnan(angles), math.inf, angles)


def _finite(trace: Trace) -> str:
    bad = [sent for sent in trace.sent if not np.isfinite(sent).all()]
    return "" if not bad else f"{'NaN' if np.isnan(bad[0]).any() else 'Inf'} sent"


def _shape(trace: Trace) -> str:
    return f"{trace.wrong_shapes} of another shape sent" if trace.wrong_shapes else ""


def _inside(trace: Trace) -> str:
    out = float(np.nanmax(np.abs(np.array(trace.sent)[:, :3]))) - NUMBERS.reach
    return f"{out:.3g} outside" if out > 1e-9 else ""


def _wall(trace: Trace) -> str:
    *normal, most = NUMBERS.wall
    out = float(np.nanmax(np.array(trace.sent)[:, :3] @ normal)) - most
    return f"{out / math.sqrt(2):.3g} behind the wall" if out > 1e-9 else ""


def _jump(trace: Trace) -> str:
    return _over(float(_ways(trace)[0].max()), NUMBERS.jump * (1 + 1e-9), "in one command")


def _turn(trace: Trace) -> str:
    return _over(float(_turns(trace).max()), NUMBERS.jump_rad, "rad in one command")


def _speed(trace: Trace) -> str:
    ways, gaps = _ways(trace)
    speeds = ways[gaps > 0] / gaps[gaps > 0]
    return _over(float(speeds.max()), NUMBERS.speed * (1 + 1e-6), "per second")


def _acceleration(trace: Trace) -> str:
    places, gaps = np.array(trace.sent)[:, :3], np.array(trace.periods)[:, None]
    with np.errstate(invalid="ignore"):
        velocity = np.diff(places, axis=0) / gaps
        found = _size(trace, np.diff(velocity, axis=0) / ((gaps[1:] + gaps[:-1]) / 2))
    return _over(float(np.where(np.isnan(found), math.inf, found).max()), NUMBERS.acceleration * 1.01, "per s^2")


def _rest(trace: Trace) -> str:
    last = round(0.5 / PERIOD_S)
    moved = float(_ways(trace)[0][-last:].max())
    turned = float(_turns(trace)[-last:].max())
    return "moves on" if moved > 1e-9 or turned > 1e-6 else ""


def _still(trace: Trace) -> str:
    ways, gaps = _ways(trace)
    moved = ways[gaps == 0].max(initial=0.0)
    return f"{moved:.3g} in no time" if moved > 0 else ""


def _near(trace: Trace) -> str:
    with np.errstate(invalid="ignore"):
        ways = _size(trace, np.array(trace.sent[1:])[:, :3] - np.array([arm.place for arm in trace.arms]))
    return _over(
        float(np.where(np.isnan(ways), math.inf, ways).max()),
        NUMBERS.near + (0.02 if trace.stops else 1e-6),
        "from the arm",
    )


def _unit(trace: Trace) -> str:
    lengths = np.linalg.norm(np.array(trace.sent)[:, 3:], axis=1)
    worst = lengths[np.abs(lengths - 1).argmax()]
    return f"quaternion of length {worst:.3g} sent" if abs(worst - 1) > 1e-6 else ""


def _arrives(trace: Trace) -> str:
    assert trace.asked is not None
    last = Trace(trace.is_pose, [trace.sent[-1], np.concatenate([trace.asked.place, trace.asked.quaternion])], [1.0])
    last.sent[1] = last.sent[1][: len(last.sent[0])]
    away, apart = float(_ways(last)[0][0]), float(_turns(last)[0])
    return f"{away:.3g} and {apart:.3g} rad away at the end" if away > 0.01 or apart > 0.02 else ""


def _over(value: float, most: float, what: str) -> str:
    return f"{value:.3g} {what}" if value > most else ""


_CHECKS: dict[str, Callable[[Trace], str]] = {
    "finite": _finite, "shape": _shape, "inside": _inside, "wall": _wall, "jump": _jump, "turn": _turn, "speed": _speed,
    "acceleration": _acceleration, "rest": _rest, "still": _still, "near": _near, "unit": _unit, "arrives": _arrives,
}  # fmt: skip


# The commands. `_gentle` goes 0.1 along x within a second and every rule passes it on.


def _x(value: float) -> np.ndarray:
    return np.array([value, 0.0, 0.0])


def _gentle(first: int = 0, stop: int = 50) -> list[Step]:
    return [Step(_x(0.05 * (1 - math.cos(math.pi * min(k, 50) / 50)))) for k in range(first + 1, stop + 1)]


def _hold(place: np.ndarray, count: int, **other: Any) -> list[Step]:
    return [Step(place, **other) for _ in range(count)]


def _with(steps: list[Step], **other: Any) -> list[Step]:
    return [replace(step, **other) for step in steps]


def _after(wrong: list[Step]) -> Callable[[], list[Step]]:
    """Half of a gentle way, the fault, and the rest of the way."""
    return lambda: _gentle(0, 25) + wrong + _gentle(25, 100)


def _spoiled(spoil: Callable[[np.ndarray], Any], count: int = 1) -> Callable[[], list[Step]]:
    return _after(_with(_gentle(25, 26), spoil=spoil) * count)


def _first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda action: np.concatenate([[value], action[1:]])


def _cruise(count: int, *, speed: float = 0.2) -> list[Step]:
    """Within half a second to a speed along x, as a cosine; then on at that speed."""
    steps, place = list[Step](), 0.0
    for k in range(1, count + 1):
        place += speed * PERIOD_S * (0.5 * (1 - math.cos(math.pi * k / 25)) if k < 25 else 1.0)
        steps.append(Step(_x(place)))
    return steps


def _said(change: Callable[[ArmState], ArmState]) -> Callable[[], list[Step]]:
    """The arm says something else from the 30th command of a cruise on."""
    return lambda: _cruise(30) + _with(_cruise(105)[30:], arm=change)


def _about_z(angle: float) -> np.ndarray:
    return np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])


def _flips() -> list[Step]:
    turn = [Step(_x(0.0), _about_z(0.2 * (1 - math.cos(math.pi * min(k, 100) / 100)))) for k in range(150)]
    return [replace(step, quaternion=step.quaternion * (-1) ** k) for k, step in enumerate(turn)]


def _branch() -> list[Step]:
    """First slowly to 3.0 rad about z, then through pi, where Euler angles jump by 2 pi; told with w >= 0."""
    angles = [1.5 * (1 - math.cos(math.pi * min(k, 400) / 400)) for k in range(400)]
    angles += [3.0 + 0.15 * (1 - math.cos(math.pi * min(k, 100) / 100)) for k in range(150)]
    wrapped = [(angle + math.pi) % (2 * math.pi) - math.pi for angle in angles]
    return [Step(_x(0.0), _about_z(angle)) for angle in wrapped]


def _corner() -> list[Step]:
    """Smoothly along x and y to (0.15, 0.15), then a target behind the wall."""
    way = [0.075 * (1 - math.cos(math.pi * k / 50)) for k in range(1, 51)]
    return [Step(np.array([value, value, 0.0])) for value in way] + _hold(np.array([0.45, 0.45, 0.0]), 100)


def _away(step: float) -> Callable[[ArmState], ArmState]:
    return lambda arm: replace(arm, place=arm.place + np.array([0.0, step, 0.0]))


FAULTS: tuple[Fault, ...] = (
    Fault("one NaN in an action", ("finite",), _spoiled(_first(math.nan))),
    Fault("one Inf in an action", ("finite", "inside", "jump"), _spoiled(_first(math.inf))),
    Fault("NaN in the rotation", ("finite",), _spoiled(lambda a: a * [1, 1, 1, 1, 1, math.nan, 1]), "pose"),
    Fault("one NaN, then a jump of 0.9", ("finite", "jump"),
          lambda: _with(_gentle(0, 1), spoil=_first(math.nan)) + _hold(_x(-0.45), 1) + _hold(_x(0.45), 50)),
    Fault("jump of 0.9", ("finite", "jump"), lambda: _gentle(0, 2) + _hold(_x(0.9), 50)),
    Fault("actions times 1000", ("inside", "jump"), _spoiled(lambda a: np.concatenate([1000 * a[:3], a[3:]]), 10)),
    Fault("a bias of 0.45 on every action", ("inside", "jump"),
          lambda: _gentle(0, 25) + [replace(step, place=step.place + _x(0.45)) for step in _gentle(25, 100)]),
    Fault("one number too few", ("finite", "shape", "jump"), _spoiled(lambda a: a[:-1])),
    Fault("one number instead of all", ("finite", "shape", "jump"), _spoiled(lambda a: 0.3)),
    Fault("target outside the workspace or the joint limits", ("inside",), lambda: _hold(_x(0.8), 150)),
    Fault("target behind a tilted wall", ("wall",), _corner),
    Fault("fast towards a limit", ("inside", "acceleration"), lambda: _cruise(200, speed=0.25)),
    Fault("turning back at speed", ("acceleration",), lambda: _cruise(60) + _cruise(60)[::-1]),
    Fault("chatter of 0.02 around a place", ("acceleration",),
          lambda: _gentle() + [Step(_x(0.1 + 0.01 * (-1) ** k)) for k in range(60)]),
    Fault("quaternion changes its sign", ("turn", "arrives"), _flips, "pose"),
    Fault("Euler angles change their branch", ("turn", "arrives"), _branch, "pose"),
    Fault("true jump of 90 degrees", ("turn",), lambda: _gentle() + _hold(_x(0.1), 100, quaternion=_about_z(math.pi / 2)),
          "pose"),
    Fault("quaternion of zeros", ("finite", "unit"), _spoiled(lambda a: np.concatenate([a[:3], np.zeros(4)])), "pose"),
    Fault("quaternion of length 10", ("finite", "unit"), _spoiled(lambda a: np.concatenate([a[:3], 10 * a[3:]])), "pose"),
    Fault("no time between two commands", ("still",), _after([replace(step, period_s=0.0) for step in _gentle(25, 27)])),
    Fault("time that is NaN or runs back", ("finite", "still"),
          _after([replace(step, period_s=wrong) for step, wrong in zip(_gentle(25, 27), (math.nan, -0.02), strict=True)])),
    Fault("five queued commands 0.1 ms apart", ("speed",),
          lambda: _cruise(30) + _with(_cruise(35)[30:], period_s=1e-4) + _cruise(105)[35:]),
    Fault("commands late by 0.3 s", ("speed", "inside"), lambda: _cruise(30) + _with(_cruise(46)[45:], period_s=0.32)
          + _cruise(105)[46:]),
    Fault("suspended for an hour, then a far target", ("finite", "inside", "speed"),
          lambda: _gentle() + _hold(_x(-0.45), 1, period_s=3600.0) + _hold(_x(0.45), 100)),
    Fault("observation stays 1 s old", ("rest",), _said(lambda arm: replace(arm, age_s=1.0))),
    Fault("clock goes back 10 s", ("rest",), _said(lambda arm: replace(arm, age_s=-10.0))),
    Fault("measured place is NaN", ("finite", "rest"), _said(lambda arm: replace(arm, place=arm.place * math.nan))),
    Fault("blocked arm", ("near",), lambda: [
        replace(step, arm=lambda arm: replace(arm, place=np.minimum(arm.place, 0.1))) for step in _cruise(150)]),
    Fault("arm pushed away by 0.3", ("jump", "rest"), _said(_away(0.3))),
    Fault("force of 50 N", ("rest",), _said(lambda arm: replace(arm, force_n=50.0))),
    Fault("emergency stop, and commands go on", ("rest",),
          lambda: _cruise(30) + _with(_cruise(31)[30:], event="stop") + _cruise(105)[31:]),
    Fault("far target after the release of a stop", ("jump", "speed", "acceleration"),
          lambda: _cruise(30) + _with(_cruise(31)[30:], event="stop") + _cruise(80)[31:]
          + _hold(_x(-0.45), 1, event="release") + _hold(_x(-0.45), 50), needs_stop=True),
)  # fmt: skip
