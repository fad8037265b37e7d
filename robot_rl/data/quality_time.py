"""Time: the rate achieved against the declared one, gaps, stamps that stand still, and how old the camera frames are.

Ages of camera frames are optional. They are looked for in the observation "age/<camera>" (seconds, one number a step)
and in the episode's metadata {"ages_s": {"<camera>": [seconds a step]}}; an age is the time of the step minus the
time at which the frame was taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.quality import IMAGE, Finding, Limits, Place, Severity, delete_command, trim_command
from robot_rl.types import Episode, Source

AGE = "age/"


def achieved_hz(time: Float64[Array, " T"]) -> float | None:
    """Steps per second by the time stamps; None for one step, infinite where time stands still."""
    if len(time) < 2:
        return None
    seconds = float(time[-1] - time[0])
    return (len(time) - 1) / seconds if seconds > 0 else float("inf")


def time_findings(
    time: Float64[Array, " T"], number: int, *, control_hz: float, limits: Limits, is_measured: bool = False
) -> Iterator[Finding]:
    """Rate, gaps, jitter and repeated stamps of one episode.

    Args:
        time: seconds.
        number: of the episode.
        control_hz: declared rate.
        limits: see Limits.
        is_measured: a person or a robot was there, so stamps that lie on a perfect grid were not measured.
    """
    rate = achieved_hz(time)
    if rate is None:
        return
    wait = np.diff(time)
    still = np.flatnonzero(wait <= 0)
    if still.size:
        yield Finding(
            "time_stands_still", Severity.error, Place(number, int(still[0]) + 1, "time"),
            f"the stamp is {time[still[0] + 1]:.4f} s, as one step before ({still.size} such steps)", float(still.size),
            f"Use a monotonic clock when recording; leave the episode out: {delete_command(number)}", int(still.size),
        )  # fmt: skip
    if not np.isfinite(rate):
        return
    off = rate / control_hz - 1
    if abs(off) > limits.rate_warning:
        yield Finding(
            "rate", Severity.error if abs(off) > limits.rate_error else Severity.warning, Place(number, key="time"),
            f"{rate:.2f} steps a second, declared are {control_hz:g}", abs(off),
            f"Declare the rate that was achieved (control_hz of the spec card) and import again, resample, or leave it "
            f"out: {delete_command(number)}",
        )  # fmt: skip
    yield from _gaps(time, wait, number, control_hz, limits)
    grid = np.arange(len(time)) / control_hz
    if is_measured and len(time) > 9 and np.abs(time - time[0] - grid).max() < 1e-6:
        yield Finding(
            "time_not_measured", Severity.note, Place(number, key="time"),
            f"every stamp is its index divided by {control_hz:g}: nothing was measured, so rate and gaps can't be checked",
            None, "Record the clock of each step (seconds, monotonic).",
        )  # fmt: skip


def _gaps(time: np.ndarray, wait: np.ndarray, number: int, control_hz: float, limits: Limits) -> Iterator[Finding]:
    # An episode that is slow throughout has a wrong rate and not a gap at every step.
    period = max(1 / control_hz, float(np.median(wait)))
    gaps = np.flatnonzero(wait > limits.gap_warning * period)
    if gaps.size:
        worst = int(gaps[np.argmax(wait[gaps])])
        yield Finding(
            "gap", Severity.error if wait[worst] > limits.gap_error * period else Severity.warning,
            Place(number, worst + 1, "time"),
            f"{1000 * wait[worst]:.0f} ms since the step before, {wait[worst] / period:.1f} periods "
            f"({gaps.size} such gaps)", float(wait[worst] / period),
            f"Cut it there: {trim_command(number, end=len(time) - worst - 1)}", int(gaps.size),
        )  # fmt: skip
    if len(wait) >= 20:
        jitter = float(np.quantile(np.abs(wait - np.median(wait)), 0.95) / period)
        if jitter > limits.jitter:
            yield Finding(
                "jitter", Severity.warning, Place(number, key="time"),
                f"one step in twenty is over {jitter:.2f} periods early or late", jitter,
                "Keep cameras and disk out of the control loop; resample when importing.",
            )  # fmt: skip


def is_measured(episode: Episode) -> bool:
    """Whether a person acted, which means a real clock."""
    return bool(np.isin(episode.source, (Source.teleop, Source.intervention)).any())


def camera_ages(episode: Episode) -> dict[str, np.ndarray]:
    """Camera -> age of its frame at each step, float64 (T,), seconds; for the cameras whose ages were recorded."""
    steps, ages = len(episode), {}
    stored: Any = episode.metadata.get("ages_s")
    if isinstance(stored, Mapping):
        ages = {str(name).removeprefix(IMAGE): np.asarray(values, np.float64) for name, values in stored.items()}
    for key, values in episode.observation.items():
        if key.startswith(AGE):
            ages[key.removeprefix(AGE)] = np.asarray(values, np.float64).reshape(steps, -1)[:, 0]
    return {name: values for name, values in ages.items() if values.shape == (steps,)}


def age_findings(
    ages: Mapping[str, Float64[Array, " T"]], number: int, *, control_hz: float, limits: Limits
) -> Iterator[Finding]:
    """Frames that are too old, and cameras that are apart from each other."""
    period = 1 / control_hz
    for camera, age in ages.items():
        step = int(np.argmax(age))
        periods = float(age[step] / period)
        # The frame of the step before is one period old and allowed; a whole period more is not.
        if periods > 1 + limits.skew:
            late = int((age > (1 + limits.skew) * period).sum())
            yield Finding(
                "stale_frame", Severity.error if periods > limits.gap_error else Severity.warning,
                Place(number, step, IMAGE + camera),
                f"the frame is {1000 * age[step]:.0f} ms old, {periods:.1f} periods ({late} of {len(age)} steps)",
                periods, f"Check the camera's rate and cable; leave the episode out: {delete_command(number)}", late,
            )  # fmt: skip
        early = int(np.argmin(age))
        if age[early] < -0.5 * period:
            yield Finding(
                "frame_from_the_future", Severity.error, Place(number, early, IMAGE + camera),
                f"the frame was taken {-1000 * age[early]:.0f} ms after the step that shows it", float(-age[early]),
                "The clocks of camera and robot differ: synchronise them and import again.",
            )  # fmt: skip
    if len(ages) > 1:
        table = np.stack(list(ages.values()))
        apart = table.max(axis=0) - table.min(axis=0)
        step = int(np.argmax(apart))
        if apart[step] > limits.skew * period:
            names = list(ages)
            oldest, newest = names[int(table[:, step].argmax())], names[int(table[:, step].argmin())]
            skewed = int((apart > limits.skew * period).sum())
            yield Finding(
                "camera_skew", Severity.warning, Place(number, step, IMAGE + oldest),
                f"its frame is {1000 * apart[step]:.0f} ms older than that of {newest} ({skewed} of {len(apart)} steps)",
                float(apart[step] / period), "Trigger the cameras together, or lower their resolution or rate.", skewed,
            )  # fmt: skip
