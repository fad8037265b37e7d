"""What a check of a dataset says: findings with a severity, a place, a value and a fix; and the limits of the checks.

error: training on this would learn something false, so it may not start. warning: probably not meant. note: good to
know. The checks are pure functions over the arrays of one episode (quality_time, quality_values, quality_motion,
quality_images, quality_outcome) or over what was kept of all of them (quality_episodes, quality_response).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from robot_rl.errors import ConfigError, closest

IMAGE = "image/"
# Stands for the path of the dataset in a fix; who prints it puts the path in.
STORE = "STORE"
_MOST_NAMED = 8


class Severity(str, Enum):
    """See the text of this module."""

    error = "error"
    warning = "warning"
    note = "note"


@dataclass(frozen=True)
class Place:
    """Where something was found; None where it is about all of them.

    Attributes:
        episode, step: indices.
        key: observation key of the spec, or "action", "reward", "success", "time".
        element: index into the flattened sample of `key`.
    """

    episode: int | None = None
    step: int | None = None
    key: str | None = None
    element: int | None = None

    @property
    def camera(self) -> str | None:
        """Name of the camera when `key` is one's."""
        return self.key.removeprefix(IMAGE) if self.key is not None and self.key.startswith(IMAGE) else None

    def __str__(self) -> str:
        parts = [f"episode {self.episode}"] if self.episode is not None else []
        parts += [f"step {self.step}"] if self.step is not None else []
        if self.key is not None:
            parts.append(f"camera {self.camera}" if self.camera else f"key {self.key}")
        parts += [f"element {self.element}"] if self.element is not None else []
        return ", ".join(parts) or "whole dataset"


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: name of the check.
        severity: see the text of this module.
        place: where; of several places in one episode the first or worst.
        got: what is there, in one sentence.
        value: the number that crossed a limit, if there is one.
        fix: what to do about it, a command where there is one (with "STORE" for the path).
        count: how many places there are; after `collapsed`, how many findings.
        episodes: after `collapsed`: the episodes concerned.
    """

    check: str
    severity: Severity
    place: Place
    got: str
    value: float | None
    fix: str
    count: int = 1
    episodes: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        place = {**asdict(self.place), "camera": self.place.camera}
        return {**asdict(self), "severity": self.severity.value, "place": place, "episodes": list(self.episodes)}


@dataclass(frozen=True)
class Limits:
    """Where the checks draw their lines. The defaults suit arms and grippers at 5 to 100 Hz.

    Attributes:
        history, horizon, execute: To, Tp and Ta of the policy that shall learn from this; steps.
        rate_warning, rate_error: relative difference between the rate of the time stamps and the declared one.
        gap_warning, gap_error: time between two steps, in periods.
        jitter: 95th percentile of |time between steps - its median|, in periods.
        skew: difference between the ages of two cameras at one step, and age of one frame, in periods.
        frozen_s, frozen_steps: a camera that shows one picture for longer than both has stopped.
        repeated: share of frames that repeat the one before although the robot moves.
        black: share of black or single-coloured frames from which on it is an error.
        speed_m_s, speed_rad_s: nothing real moves faster between two steps.
        jump: change of a coordinate, in multiples of the 90th percentile of its changes in this episode.
        clipped: share of steps with an action at a bound of the spec.
        late_ms: median time from an action to the motion it causes.
        near: distance between two episodes, rms over resampled trajectories, in standard deviations of the dataset.
        few_successes: share of episodes with success.
        idle_s: time at the beginning or end of an episode during which nothing moves.
        degrees_rad: a larger typical angle is no radian. metres: a larger typical length is no metre.
    """

    history: int = 2
    horizon: int = 16
    execute: int = 8
    rate_warning: float = 0.05
    rate_error: float = 0.2
    gap_warning: float = 2.0
    gap_error: float = 10.0
    jitter: float = 0.5
    skew: float = 1.0
    frozen_s: float = 0.5
    frozen_steps: int = 5
    repeated: float = 0.2
    black: float = 0.05
    speed_m_s: float = 4.0
    speed_rad_s: float = 15.0
    jump: float = 10.0
    clipped: float = 0.5
    late_ms: float = 200.0
    near: float = 0.02
    few_successes: float = 0.5
    idle_s: float = 2.0
    degrees_rad: float = 12.6
    metres: float = 10.0


# Check -> what it looks for.
CHECKS = {
    "angle_wrap": "an angle goes round by 2 pi between two steps",
    "black_frame": "frames that are black",
    "both_ends": "an episode that is terminated and truncated",
    "camera_skew": "cameras whose frames were taken at different times (needs recorded ages)",
    "clipping": "actions at a bound most of the time",
    "constant": "elements that never change",
    "damaged": "episodes that can't be read",
    "duplicate": "exact copies of episodes",
    "early_truncation": "truncated before the time limit",
    "empty": "no episode",
    "euler_branch": "Euler angles that change their branch",
    "few_starts": "episodes that share their first state",
    "few_successes": "most episodes fail",
    "frame_from_the_future": "a frame taken after the step that shows it (needs recorded ages)",
    "frozen_camera": "one picture for a long time",
    "gap": "time between two steps",
    "gripper": "a gripper that goes against its declaration",
    "idle": "nothing moves at the beginning or the end",
    "jitter": "uneven time between steps",
    "jump": "faster than anything real; rotations by their geodesic angle",
    "lag": "time from an action to its motion",
    "near_constant": "elements that hardly ever change, and then a lot",
    "near_duplicate": "episodes that are nearly copies",
    "no_reward": "success without reward",
    "no_success": "no episode succeeds",
    "no_window": "episodes that are too short for a training window",
    "not_finite": "NaN and infinity",
    "outside_spec": "values outside the bounds of the spec",
    "over_limit": "episodes longer than the environment allows",
    "plain_frame": "frames of one colour",
    "quaternion_norm": "quaternions that are none",
    "quaternion_sign": "quaternions that change their sign",
    "rate": "rate of the time stamps against the declared one",
    "repeated_frames": "a camera that is slower than the control rate",
    "repeated_seed": "one seed in several episodes",
    "reward_and_success": "reward and success that contradict each other",
    "rotvec_branch": "rotation vectors that change their branch",
    "same_camera": "two cameras that show the same pictures",
    "same_start": "all episodes begin in one state",
    "short_episode": "episodes shorter than the horizon",
    "spike": "a change far over the habit of its episode",
    "stale_frame": "frames that are too old (needs recorded ages)",
    "success_at_start": "solved at the first step",
    "success_lost": "success that is gone at the end",
    "time_not_measured": "time stamps that were computed and not measured",
    "time_stands_still": "a time stamp that repeats the one before",
    "unit": "numbers that can't be in the declared unit",
}


def delete_command(*episodes: int) -> str:
    """Command that leaves these episodes out of a store."""
    return f"robot-rl data delete {STORE} {' '.join(map(str, episodes))}"


def trim_command(episode: int, *, begin: int = 0, end: int = 0) -> str:
    """Command that cuts so many steps off an episode."""
    cuts = [f"--begin {begin}"] if begin else []
    cuts += [f"--end {end}"] if end else []
    return f"robot-rl data trim {STORE} --episodes {episode} {' '.join(cuts)}"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; in the order they were found."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def collapsed(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for all of one check, severity, key and element, worst first: the one with the largest value stands
    for the others, with their episodes and their number."""
    groups: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.check, finding.severity, finding.place.key, finding.place.element)
        groups.setdefault(key, []).append(finding)
    out = []
    for group in groups.values():
        worst = max(group, key=lambda finding: finding.value if finding.value is not None else float("-inf"))
        named = {number for f in group for number in (f.episodes or (f.place.episode,)) if number is not None}
        episodes = tuple(sorted(named))
        fix = worst.fix
        if worst.place.episode is not None:
            fix = fix.replace(delete_command(worst.place.episode), delete_command(*episodes))
        count = len(group) if len(group) > 1 else worst.count
        out.append(replace(worst, count=count, episodes=episodes, fix=fix))
    return worst_first(out)


def known_checks(names: Iterable[str], *, where: str) -> frozenset[str]:
    """These names, all of them checks.

    Raises:
        ConfigError: one is none.
    """
    found = frozenset(names)
    for name in sorted(found - CHECKS.keys()):
        raise ConfigError(where, expected="names of checks", got=repr(name), hint=closest(name, CHECKS))
    return found


def finding_text(finding: Finding, path: str) -> str:
    """Two lines for people: what was found where, and the fix with the path of the dataset in it."""
    others = [number for number in finding.episodes if number != finding.place.episode]
    more = ""
    if others:
        named = ", ".join(map(str, others[:_MOST_NAMED]))
        rest = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        more = f"; also in episodes {named}{rest}"
    head = f"{finding.severity.value:<8}{finding.check}: {finding.place}: {finding.got}{more}"
    return f"{head}\n        fix: {finding.fix.replace(STORE, path)}"


def may_train(findings: Iterable[Finding]) -> bool:
    """Whether no finding is an error."""
    return all(finding.severity is not Severity.error for finding in findings)
