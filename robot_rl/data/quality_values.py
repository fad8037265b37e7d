"""Values: numbers that are none, outside the bounds of the spec, that never or hardly change, and in another unit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robot_rl.arrays import Array, Shaped
from robot_rl.data.element_names import names_of, units_of
from robot_rl.data.element_statistics import Summary
from robot_rl.data.quality import Finding, Limits, Place, Severity, delete_command
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Episode

# Bounds are met up to this part of their range: float32 after a rescaling is not exact.
_TOLERANCE = 1e-4


def value_arrays(episode: Episode, spec: EnvSpec) -> Iterator[tuple[str, ArraySpec, np.ndarray]]:
    """(key, spec, rows) of the action and of every observation that is no image."""
    yield "action", spec.action, np.asarray(episode.action)
    for key, array in spec.observation.items():
        if np.dtype(array.dtype).kind == "f" and key in episode.observation:
            yield key, array, np.asarray(episode.observation[key])


def finite_findings(rows: Shaped[Array, "T ..."], number: int, *, key: str) -> Iterator[Finding]:
    """NaN and infinity."""
    flat = np.asarray(rows).reshape(len(rows), -1)
    bad = np.argwhere(~np.isfinite(flat))
    if len(bad):
        step, element = (int(i) for i in bad[0])
        steps = len(np.unique(bad[:, 0]))
        yield Finding(
            "not_finite", Severity.error, Place(number, step, key, element),
            f"{flat[step, element]} ({steps} bad steps in this episode)", float(steps),
            f"Leave the episode out: {delete_command(number)}", steps,
        )  # fmt: skip


def bounds_findings(rows: Shaped[Array, "T ..."], number: int, *, key: str, array: ArraySpec) -> Iterator[Finding]:
    """Values outside [low, high] of the spec."""
    if array.low is None or array.high is None or len(array.low) != array.size or len(array.high) != array.size:
        return
    low, high = np.asarray(array.low, np.float64), np.asarray(array.high, np.float64)
    slack = _TOLERANCE * np.where(np.isfinite(high - low), high - low, 1)
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    # Comparisons with NaN are False, and those are found elsewhere.
    beyond = np.maximum(low - flat, flat - high)
    outside = beyond > slack
    if outside.any():
        step, element = (int(i) for i in np.unravel_index(np.argmax(np.where(outside, beyond, -np.inf)), beyond.shape))
        steps = int(outside.any(axis=1).sum())
        what = "it is clipped by robot or simulator, so this was not executed" if key == "action" else "by its spec"
        yield Finding(
            "outside_spec", Severity.warning, Place(number, step, key, element),
            f"{flat[step, element]:.4g} ({names_of(array)[element]}) outside {low[element]:g} .. {high[element]:g}, {what} "
            f"({steps} of {len(flat)} steps)", float(beyond[step, element]),
            "Record what was executed; correct low and high of the spec card if they are wrong.", steps,
        )  # fmt: skip


def at_bound(action: Shaped[Array, "T ..."], array: ArraySpec) -> np.ndarray | None:
    """Steps at a bound for each element of the action, int64 (A,); None where the action has no bounds."""
    if array.low is None or array.high is None or len(array.low) != array.size or len(array.high) != array.size:
        return None
    low, high = np.asarray(array.low, np.float64), np.asarray(array.high, np.float64)
    flat = np.asarray(action, np.float64).reshape(len(action), -1)
    slack = 1e-6 * (high - low)
    counts: np.ndarray = ((flat <= low + slack) | (flat >= high - slack)).sum(axis=0)
    return counts


def clipping_findings(
    counts: np.ndarray, steps: int, *, array: ArraySpec, grippers: tuple[int, ...], limits: Limits
) -> Iterator[Finding]:
    """Actions that are at a bound most of the time; a gripper may be.

    Args:
        counts: int64 (A,), from `at_bound`, summed over episodes.
        steps: of all episodes.
        array: spec of the action.
        grippers: elements that are not judged.
        limits: see Limits.
    """
    for element in np.flatnonzero(counts / max(steps, 1) > limits.clipped):
        if int(element) not in grippers:
            share = counts[element] / steps
            yield Finding(
                "clipping", Severity.warning, Place(key="action", element=int(element)),
                f"{names_of(array)[element]} is at a bound in {share:.0%} of all steps", float(share),
                "The demonstrator wanted more than the controller takes: widen its range or lower the device's gain.",
                int(counts[element]),
            )  # fmt: skip


def spread_findings(summary: Summary, *, key: str, array: ArraySpec) -> Iterator[Finding]:
    """Elements that never change, and elements that hardly ever do.

    One division by the standard deviation turns a millimetre of the latter into hundreds; our normalizer has floors
    (data/normalizer.py), others have none.
    """
    if summary.rows < 2:
        return
    names, constant = names_of(array), summary.high == summary.low
    if constant.all():
        is_action = key == "action"
        yield Finding(
            "constant", Severity.error if is_action else Severity.warning, Place(key=key),
            f"all {array.size} elements are constant over {summary.rows} steps", float(array.size),
            "There is nothing to learn: was the right topic recorded?" if is_action
            else "Leave this key out, or check its sensor.",
        )  # fmt: skip
        return
    for element in np.flatnonzero(constant):
        yield Finding(
            "constant", Severity.note, Place(key=key, element=int(element)),
            f"{names[element]} is {summary.low[element]:.6g} in all {summary.rows} steps", 0.0,
            "Fine for a part that stands still; check the sensor otherwise.",
        )  # fmt: skip
    width, core = summary.high - summary.low, summary.q99 - summary.q01
    for element in np.flatnonzero(~constant & (core < 1e-3 * width)):
        yield Finding(
            "near_constant", Severity.warning, Place(key=key, element=int(element)),
            f"{names[element]} stays within {core[element]:.2g} in 98 % of the steps and reaches over "
            f"{width[element]:.2g} in all", float(core[element] / width[element]),
            "Look at the outliers (robot-rl data view STORE); a trainer that divides by the spread blows them up.",
        )  # fmt: skip


def unit_findings(summary: Summary, *, key: str, array: ArraySpec, limits: Limits) -> Iterator[Finding]:
    """Numbers that can't be in the unit that is declared: degrees as radians and back, millimetres as metres."""
    if not summary.rows:
        return
    size = np.maximum(np.abs(summary.q01), np.abs(summary.q99))
    width = summary.q99 - summary.q01
    units = np.array(units_of(array))
    rules = (
        ((units == "rad") & (size > limits.degrees_rad), "rad", "degrees"),
        ((units == "m") & (size > limits.metres), "m", "millimetres"),
        # All degrees together: one joint may rest within three degrees, a whole arm does not.
        ((units == "deg") & (size[units == "deg"].max(initial=0) <= np.pi) & (width > 0.1), "deg", "radians"),
    )
    for wrong, unit, likely in rules:
        for element in np.flatnonzero(wrong):
            yield Finding(
                "unit", Severity.warning, Place(key=key, element=int(element)),
                f"{names_of(array)[element]} goes from {summary.q01[element]:.4g} to {summary.q99[element]:.4g} {unit}: "
                f"these look like {likely}", float(size[element]), "Correct the unit in the spec card, or convert.",
            )  # fmt: skip
