"""How a robot plays (robot_play.py), and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from robot_rl.teleop.resetting import ResetConfig


@dataclass(frozen=True)
class PlayConfig:
    """How a robot plays.

    Attributes:
        asks_person: a person puts the scene back and says "start"; else episodes begin by themselves.
        judges: the scene's own signal is the success; else people say it.
        release_stops: go on after a stop without a person; for simulated robots only.
        rest_s: longest braking at the end of an episode before the robot's own stop.
        reset: see ResetConfig.
        is_threaded: hold between decisions, by a thread.
    """

    asks_person: bool = False
    judges: bool = True
    release_stops: bool = False
    rest_s: float = 2.0
    reset: ResetConfig = field(default_factory=ResetConfig)
    is_threaded: bool = True


@dataclass
class Counts:
    """Of a robot's life: steps, those that safety changed, stale ones, late decisions, stops."""

    steps: int = 0
    bent: int = 0
    stale: int = 0
    late_decisions: int = 0
    stops: int = 0
