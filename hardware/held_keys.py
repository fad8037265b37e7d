"""Which keys are held, from what a terminal sends; pure, told the time."""

from __future__ import annotations

from dataclasses import dataclass

from .terminal_keys import FOCUS_LOST, REPLY

# Two presses of an event's key within this are one that is held: the first repeat may come so late.
_SLOW_S = 0.7


@dataclass(frozen=True)
class KeyTimes:
    """Of a plain terminal; see KeyboardConfig.

    Attributes:
        tap_s, hold_s, quiet_s: see KeyboardConfig.
        slow: keys that ask for something once, and must not ask again while they are held.
    """

    tap_s: float
    hold_s: float
    quiet_s: float
    slow: frozenset[str]


class HeldKeys:
    """Held keys of one terminal.

    Args:
        times: of keys.
        now_s: CLOCK_MONOTONIC seconds.
    """

    def __init__(self, times: KeyTimes, now_s: float) -> None:
        self._times = times
        self._quiet_since_s, self.is_ready = now_s, False
        self.has_releases = False
        self._until_s: dict[str, float] = {}
        self._is_repeated: dict[str, bool] = {}
        self._changed = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Held now."""
        return tuple(key for key in self._until_s if self.is_ready or key in self._times.slow)

    @property
    def is_idle(self) -> bool:
        """Whether it may be said again and again that nothing is held: a key that repeats says itself."""
        return self.is_ready and not self._until_s

    def hear(self, key: str, kind: str, now_s: float) -> None:
        """One event of the terminal; "" is a key without meaning."""
        if key == REPLY:
            self.has_releases = True
            # The terminal answers behind everything that was typed: what is held now was held when it answered.
            self._changed |= self.is_ready
            return
        if kind == "release" or key == FOCUS_LOST:
            # Shift may be let go before its letter; and whoever types elsewhere does not release keys here.
            over = [held for held in self._until_s if key == FOCUS_LOST or held.lower() == key.lower()]
            self._changed |= bool([self._until_s.pop(held) for held in over])
            return
        if not self.is_ready:
            self._quiet_since_s = now_s
        if not key or (self.has_releases and kind == "repeat") or not (self.is_ready or key in self._times.slow):
            return
        self._hold(key, now_s)

    def turn(self, now_s: float) -> bool:
        """Let go of what was not heard for long; returns whether there is anything new to say."""
        if not self.is_ready and now_s - self._quiet_since_s >= self._times.quiet_s:
            self.is_ready = self._changed = True
        over = [key for key, until_s in self._until_s.items() if now_s >= until_s]
        for key in over:
            del self._until_s[key]
        changed, self._changed = self._changed or bool(over), False
        return changed

    def _hold(self, key: str, now_s: float) -> None:
        self._changed = True
        if self.has_releases:
            self._until_s[key] = float("inf")
        elif key in self._times.slow:
            self._until_s[key] = now_s + _SLOW_S
        else:
            is_repeat = key in self._until_s
            # A plain terminal repeats one key only: the others are let go, or may be.
            self._until_s = {other: until for other, until in self._until_s.items() if other in self._times.slow}
            self._until_s[key] = now_s + (self._times.hold_s if is_repeat else self._times.tap_s)
