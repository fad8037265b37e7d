"""How an arm answers to steps: dead time and time constant, by a fit of a delayed first-order lag to what was recorded.

    T x'(t) = u(t - d) - x(t)

u is what was really sent, which the safety layer may have made a ramp of: each command counts from its own stamp until the
next one. So limits, rate and ramps do not look like a slow arm. Gain and offset (an arm sags) are free in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import DeployError

# Shares of the step: less is no motion, more is no first-order lag or too much noise.
LEAST_MOVED, MOST_RESIDUAL = 0.2, 0.2
# Of the time of a step: a slower arm has not come to rest before the next one.
MOST_OF_STEP = 0.25
_GRID, _STARTS = 12, 4
_SHORTEST_S = 1e-4


@dataclass(frozen=True)
class Step:
    """One recorded step of R readings and C commands.

    Attributes:
        read_s, position: capture of each reading, float64 (R,) s, and what was stepped, (R,) m or rad.
        command_s, command: when each command was sent, float64 (C,) s, and to where, (C,). The first one is from before the step.
        began_s: when the first changed command was sent.
        size: of the step, m or rad, with its sign.
    """

    read_s: Float64[Array, " R"]
    position: Float64[Array, " R"]
    command_s: Float64[Array, " C"]
    command: Float64[Array, " C"]
    began_s: float
    size: float

    @property
    def lasted_s(self) -> float:
        """From its begin to its last reading."""
        return float(self.read_s[-1] - self.began_s)


@dataclass(frozen=True)
class StepFit:
    """What fits one step: dead time and time constant, s; share of the step that the arm moved, and that is left over."""

    delay_s: float
    time_constant_s: float
    moved: float
    residual: float


@dataclass(frozen=True)
class Spread:
    """A median and the interquartile range around it."""

    median: float
    spread: float


@dataclass(frozen=True)
class StepResponse:
    """Of all steps: dead time, time constant (s), time between two readings (s), and how many steps."""

    delay_s: Spread
    time_constant_s: Spread
    resolution_s: float
    steps: int


def spread_of(values: Sequence[float] | Array) -> Spread:
    """Median and interquartile range."""
    low, middle, high = np.percentile(np.asarray(values, np.float64), (25.0, 50.0, 75.0))
    return Spread(float(middle), float(high - low))


def require_narrow(name: str, found: Spread, *, resolution_s: float, hint: str) -> None:
    """Refuse what scatters by more than it is.

    Args:
        name: of the quantity, for the message.
        found: s.
        resolution_s: between two samples; less than that is never refused, as a quantity of zero may scatter a little.
        hint: what to do.

    Raises:
        DeployError: the spread is larger than the median.
    """
    if found.spread > max(abs(found.median), resolution_s):
        raise DeployError(
            name, expected="repeats that agree: a spread below the median",
            got=f"median {1e3 * found.median:.1f} ms, spread {1e3 * found.spread:.1f} ms", hint=hint,
        )  # fmt: skip


def measure_response(steps: Sequence[Step]) -> StepResponse:
    """Fit every step and put them together.

    Raises:
        DeployError: the arm did not move, did something else, did not come to rest in time, or the steps do not agree.
    """
    resolution_s = float(np.median(np.concatenate([np.diff(step.read_s) for step in steps])))
    fits = [fit_step(step) for step in steps]
    moved, residual = (float(np.median([getattr(fit, name) for fit in fits])) for name in ("moved", "residual"))
    size = abs(steps[0].size)
    if moved < LEAST_MOVED:
        raise DeployError(
            "step response", expected=f"an arm that follows steps of {size:g}", got=f"it moved {moved * size:.4f}: not at all",
            hint="Is it enabled, in the right mode, its e-stop released, and does the driver take commands?",
        )  # fmt: skip
    if residual > MOST_RESIDUAL:
        raise DeployError(
            "step response", expected="a delayed first-order lag, left over at most a fifth of the step",
            got=f"{100 * residual:.0f} % of the step left over: noise, or another motion", hint="Try a larger --step.",
        )  # fmt: skip
    found = StepResponse(
        spread_of([fit.delay_s for fit in fits]), spread_of([fit.time_constant_s for fit in fits]), resolution_s, len(fits)
    )  # fmt: skip
    lasted_s = float(np.median([step.lasted_s for step in steps]))
    if found.delay_s.median + found.time_constant_s.median > MOST_OF_STEP * lasted_s:
        raise DeployError(
            "step response", expected=f"an arm that comes to rest within the {lasted_s:.2f} s of a step",
            got=f"dead time {found.delay_s.median:.3f} s, time constant {found.time_constant_s.median:.3f} s",
            hint="Give it more time: --hold-s.",
        )  # fmt: skip
    hint = "Try a larger --step or more --repeats; look at noise, load and the rate of the readings."
    require_narrow("dead time of commands", found.delay_s, resolution_s=resolution_s, hint=hint)
    require_narrow("time constant", found.time_constant_s, resolution_s=resolution_s, hint=hint)
    return found


def fit_step(step: Step) -> StepFit:
    """Least squares over dead time and time constant, from the best points of a grid; gain and offset by closed form."""
    from scipy.optimize import least_squares

    position = step.position - step.position.mean()

    def left_over(point: np.ndarray) -> np.ndarray:
        # The dead time is shifted by 1 s: least_squares takes differences relative to a parameter, and it may be 0.
        shape = lag_response(step, delay_s=point[0] - 1.0, time_constant_s=float(np.exp(point[1])))
        shape -= shape.mean()
        size = float(shape @ shape)
        gain = float(shape @ position) / size if size > 0 else 0.0
        out: np.ndarray = (gain * shape - position) / step.size
        return out

    longest_s = max(step.lasted_s / 2, 10 * _SHORTEST_S)
    delays = 1.0 + np.linspace(0.0, longest_s, 2 * _GRID)
    logs = np.linspace(np.log(_SHORTEST_S), np.log(longest_s), _GRID)
    bounds = ([1.0, logs[0]], [1.0 + longest_s, logs[-1]])

    def cost(point: np.ndarray) -> float:
        return float((left_over(point) ** 2).sum())

    # Dead time and time constant stand in for each other, in a valley with corners where readings cross the dead time.
    starts = sorted((min((np.array([delay, log]) for delay in delays), key=cost) for log in logs), key=cost)[:_STARTS]
    ends = [least_squares(left_over, at, bounds=bounds, x_scale=(0.01, 0.3), diff_step=1e-4) for at in starts]
    best = min(ends, key=lambda end: float(end.cost))
    before = step.read_s <= step.began_s
    last = step.read_s >= step.read_s[-1] - 0.2 * step.lasted_s
    moved = float(np.median(step.position[last]) - np.median(step.position[before])) / step.size
    residual = float(np.sqrt((left_over(best.x) ** 2).mean()))
    return StepFit(float(best.x[0]) - 1.0, float(np.exp(best.x[1])), moved, residual)


def lag_response(step: Step, *, delay_s: float, time_constant_s: float) -> Float64[Array, " R"]:
    """Where a delayed first-order lag at rest on the first command would be at each reading; exact between commands."""
    switch_s, command = step.command_s + delay_s, step.command
    at = np.empty(len(command))
    at[0] = command[0]
    kept = np.exp(-np.diff(switch_s) / time_constant_s)
    for number, share in enumerate(kept):
        at[number + 1] = command[number] + (at[number] - command[number]) * share
    place = np.clip(np.searchsorted(switch_s, step.read_s, side="right") - 1, 0, None)
    gone_s = np.maximum(step.read_s - switch_s[place], 0.0)
    out: np.ndarray = command[place] + (at[place] - command[place]) * np.exp(-gone_s / time_constant_s)
    return out
