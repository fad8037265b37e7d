"""How late a camera's stamps are: light that changes at known times, against the brightness of stamped frames.

Each change lies between the last frame that still shows the light of before and the first that shows the new one. The middle
of the two is off by half a frame at most; blinks at uneven times and their median take that away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Protocol, runtime_checkable

import numpy as np

from robot_rl.arrays import Array, Float64, UInt8
from robot_rl.data.delays import CameraDelays
from robot_rl.deploy.schedule import Clock
from robot_rl.deploy.step_response import Spread, require_narrow, spread_of
from robot_rl.errors import ConfigError, DeployError
from robot_rl.types import CameraFrame

LEAST_CONTRAST = 10.0  # grey levels between light and dark
LEAST_SEEN = 0.8  # of the blinks
GAPS_S = (0.45, 0.75)  # between two blinks, drawn anew each time
_EARLY_S = 0.1  # stamps may be ahead by so much
_POLL_S = 0.002
_WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Blink:
    """The light changed at a time (CLOCK_MONOTONIC s), to light or to dark."""

    time_s: float
    is_light: bool


@runtime_checkable
class Lamp(Protocol):
    """Something that the camera sees and that changes when it is told to."""

    def show(self, is_light: bool) -> float:
        """Change now; returns when it changed, CLOCK_MONOTONIC s."""
        ...


@dataclass(frozen=True)
class BlinkPlan:
    """What to do.

    Attributes:
        blinks: changes of the light.
        region: of the picture that is looked at: x0, y0, x1, y1 in shares of width and height.
        seed: of the times between blinks.
    """

    blinks: int = 40
    region: tuple[float, float, float, float] = _WHOLE
    seed: int = 0


def delay_of_frames(
    blinks: Sequence[Blink], stamp_s: Float64[Array, " F"], brightness: Float64[Array, " F"]
) -> tuple[Spread, float, int]:
    """Delay of the stamps (median and interquartile range), time between two frames, s, and blinks used.

    Args:
        blinks: in the order of time.
        stamp_s: of F frames, growing.
        brightness: mean of what each shows.

    Raises:
        DeployError: the light is not seen, or not at most of the blinks, or the blinks do not agree.
    """
    if len(stamp_s) < 4 or len(blinks) < 4:
        raise DeployError(
            "camera delay", expected="4 frames and 4 blinks at least", got=f"{len(stamp_s)} and {len(blinks)}", hint=""
        )
    dark, light = np.percentile(brightness, (10.0, 90.0))
    if light - dark < LEAST_CONTRAST:
        raise DeployError(
            "camera delay", expected=f"brightness that changes by {LEAST_CONTRAST:g} grey levels", got=f"{light - dark:.1f}",
            hint="Point the camera at the blinking light from close by, darken the room, fix its exposure, or give --region.",
        )  # fmt: skip
    is_bright = brightness > (dark + light) / 2
    period_s, found = float(np.median(np.diff(stamp_s))), list[float]()
    ends = [blink.time_s for blink in blinks[1:]] + [blinks[-1].time_s + GAPS_S[0]]
    for blink, end_s in zip(blinks, ends, strict=True):
        inside = np.flatnonzero((stamp_s > blink.time_s - _EARLY_S) & (stamp_s <= end_s - _EARLY_S))
        hits = [
            at for at in inside[inside > 0] if is_bright[at] == blink.is_light and is_bright[at - 1] != blink.is_light
        ]
        if len(hits) == 1 and stamp_s[hits[0]] - stamp_s[hits[0] - 1] < 2 * period_s:
            found.append(float(stamp_s[hits[0] - 1] + stamp_s[hits[0]]) / 2 - blink.time_s)
    if len(found) < LEAST_SEEN * len(blinks):
        raise DeployError(
            "camera delay", expected=f"at least {100 * LEAST_SEEN:.0f} % of {len(blinks)} blinks seen once", got=f"{len(found)}",
            hint="Other light changes too, frames are lost, or the delay is above 0.3 s.",
        )  # fmt: skip
    spread = spread_of(found)
    hint = "Fix the camera's exposure; look at its rate, and at the load of the machine."
    require_narrow("camera delay", spread, resolution_s=period_s, hint=hint)
    return spread, period_s, len(found)


def measure_camera(
    read: Callable[[], CameraFrame], lamp: Lamp, plan: BlinkPlan, *, clock: Clock, method: str
) -> CameraDelays:
    """Blink, and look at a connected camera.

    Args:
        read: of a connected camera that sees the lamp.
        lamp: see Lamp.
        plan: see BlinkPlan.
        clock: of the frames' stamps.
        method: what the lamp is, for the file.

    Raises:
        ConfigError: a region that is none.
        DeployError: as `delay_of_frames`, or the camera failed.
    """
    x0, y0, x1, y1 = plan.region
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1) or plan.blinks < 4:
        raise ConfigError(
            "calibrate latency", expected="--region x0,y0,x1,y1 with 0 <= x0 < x1 <= 1, likewise y, and --blinks 4 or more",
            got=f"{plan.region}, {plan.blinks}", hint="Shares of width and height.",
        )  # fmt: skip
    rng = np.random.default_rng(plan.seed)
    blinks, frames = list[Blink](), list[tuple[float, float]]()
    lamp.show(False)
    _watch(read, clock, clock.now() + GAPS_S[1], plan.region, frames)
    for number in range(plan.blinks):
        is_light = number % 2 == 0
        blinks.append(Blink(lamp.show(is_light), is_light))
        _watch(read, clock, clock.now() + float(rng.uniform(*GAPS_S)), plan.region, frames)
    stamp_s, brightness = np.array(frames, np.float64).reshape(-1, 2).T
    spread, period_s, used = delay_of_frames(blinks, stamp_s, brightness)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return CameraDelays(spread.median, spread.spread, period_s, used, method, created)


def brightness_in(image: UInt8[Array, "H W 3"], region: tuple[float, float, float, float]) -> float:
    """Mean grey level of a part of a picture; see BlinkPlan.region."""
    (height, width), (x0, y0, x1, y1) = image.shape[:2], region
    part = image[int(y0 * height) : max(int(y1 * height), 1), int(x0 * width) : max(int(x1 * width), 1)]
    return float(part.mean())


def _watch(
    read: Callable[[], CameraFrame],
    clock: Clock,
    until_s: float,
    region: tuple[float, float, float, float],
    out: list[tuple[float, float]],
) -> None:
    """Note stamp and brightness of every new frame until a time."""
    while clock.now() < until_s:
        frame = read()
        if not out or frame.stamp_s > out[-1][0]:
            out.append((frame.stamp_s, brightness_in(frame.image, region)))
        clock.sleep_until(min(clock.now() + _POLL_S, until_s))
