"""Who looks on and who drives: the state of the page's server, without sockets. Used by one thread, its event loop's."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .browser_lease import Freshness, Lease, RateLimit
from .browser_messages import BadMessage, Command, Event, LeaseWish, parse

MOST_VIEWERS = 16
MOST_WAITING_EVENTS = 1000
ACK_S = 0.1
FROM_ANYONE = ("estop",)


class Viewer:
    """One page. What it is to be sent waits in `outbox`, the newest of each kind: a slow page misses the others.

    Args:
        number: of the connection.
        name: as its user gave it.
        now_s: seconds of CLOCK_MONOTONIC.
    """

    def __init__(self, number: int, name: str, now_s: float) -> None:
        self.number, self.name = number, name or f"operator {number}"
        self.outbox: dict[str, str | bytes] = {}
        self.wake = asyncio.Event()
        self.freshness, self.limit = Freshness(), RateLimit(now_s)
        self.last_seq, self.acked_s = 0, float("-inf")

    def send(self, key: str, message: str | bytes) -> None:
        """Put it in the place of an older one of the same kind."""
        self.outbox[key] = message
        self.wake.set()

    def notice(self, text: str) -> None:
        """Tell its user something."""
        self.send("notice", json.dumps({"type": "notice", "text": text}))


class Hub:
    """All pages of one session.

    Args:
        tell: sends one message to the session; False when it can't take it now.
        first_sequence: number of the last command that the session knows.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], bool], *, first_sequence: int = 0) -> None:
        self._tell, self._sequence = tell, first_sequence
        self._numbers = itertools.count(1)
        self._waiting: deque[Mapping[str, Any]] = deque()
        self.lease = Lease()
        self.viewers: dict[int, Viewer] = {}
        self.latest: dict[str, str | bytes] = {}

    def join(self, name: str) -> Viewer:
        """A page came; the first drives.

        Raises:
            BadMessage: there are too many.
        """
        if len(self.viewers) >= MOST_VIEWERS:
            raise BadMessage(f"{MOST_VIEWERS} pages look on already")
        viewer = Viewer(next(self._numbers), name, time.monotonic())
        self.viewers[viewer.number] = viewer
        self.lease.join(viewer.number, time.monotonic())
        for key, message in self.latest.items():
            viewer.send(key, message)
        self._announce()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A page went; if it drove, the clutch is open from now on."""
        self.viewers.pop(viewer.number, None)
        if self.lease.leave(viewer.number):
            self._release()
        self._announce()

    def show(self, key: str, message: str | bytes) -> None:
        """To every page, and to those that come later."""
        self.latest[key] = message
        for viewer in self.viewers.values():
            viewer.send(key, message)

    def hear(self, viewer: Viewer, text: str) -> None:
        """One message of a page.

        Raises:
            BadMessage: it is none of ours, or there are too many.
        """
        now_s = time.monotonic()
        if not viewer.limit.allows(now_s):
            raise BadMessage("more than 200 messages a second")
        message = parse(text)
        if self.lease.expire(now_s):  # told here: whatever is heard next would end it in silence
            self._announce()
        if isinstance(message, LeaseWish):
            self._wish(viewer, message.want, now_s)
        elif isinstance(message, Event):
            self._event(viewer, message, now_s)
        elif self.lease.heard(viewer.number, now_s):
            self._command(viewer, message, now_s)

    def tick(self) -> None:
        """Ten times a second: end the lease of a silent page, and send what the session could not take."""
        if self.lease.expire(time.monotonic()):
            self._announce()
        while self._waiting and self._tell(self._waiting[0]):
            self._waiting.popleft()

    def _command(self, viewer: Viewer, command: Command, now_s: float) -> None:
        stamp_s = viewer.freshness.stamp_s(command.t_ms, now_s)
        if command.seq <= viewer.last_seq:
            return
        viewer.last_seq = command.seq
        self._sequence += 1
        told = {
            "sequence": self._sequence, "stamp_s": stamp_s, "engaged": command.engaged, "motion": command.motion,
            "gripper": command.gripper, "pose": command.pose, "buttons": command.buttons,
        }  # fmt: skip
        self._tell({"command": told, "by": viewer.name})
        if now_s - viewer.acked_s > ACK_S:
            viewer.acked_s = now_s
            viewer.send("ack", json.dumps({"type": "ack", "seq": command.seq, "t": command.t_ms}))

    def _release(self) -> None:
        self._sequence += 1
        told = {
            "sequence": self._sequence, "stamp_s": time.monotonic(), "engaged": False, "motion": (0.0,) * 6,
            "gripper": 0.0, "pose": None, "buttons": (),
        }  # fmt: skip
        self._tell({"command": told, "by": ""})

    def _event(self, viewer: Viewer, event: Event, now_s: float) -> None:
        drives = self.lease.heard(viewer.number, now_s)
        if not drives and event.name not in FROM_ANYONE:
            viewer.notice("You only look on: take over first.")
            return
        if len(self._waiting) >= MOST_WAITING_EVENTS:
            viewer.notice("The session does not answer; this was not heard.")
            return
        stamp_s = viewer.freshness.stamp_s(event.t_ms, now_s)
        told = {
            "name": event.name,
            "text": event.text,
            "stamp_s": stamp_s,
            "by": f"page:{viewer.name}",
            "episode": event.episode,
        }
        self._waiting.append({"event": told})
        while self._waiting and self._tell(self._waiting[0]):
            self._waiting.popleft()

    def _wish(self, viewer: Viewer, want: str, now_s: float) -> None:
        if want == "take" and not self.lease.take(viewer.number, now_s):
            viewer.notice(f"{self.operator} drives. Ask, and take over when the place is free.")
        elif want == "ask":
            self.lease.ask(viewer.number, viewer.name)
        elif want == "give" and self.lease.give(viewer.number):
            self._release()
        self._announce()

    @property
    def operator(self) -> str | None:
        """Name of who drives."""
        holder = self.viewers.get(self.lease.holder or 0)
        return None if holder is None else holder.name

    def _announce(self) -> None:
        """Tell everybody who drives."""
        asking = [name for number, name in self.lease.asking.items() if number in self.viewers]
        for viewer in self.viewers.values():
            told = {
                "type": "lease", "you": "driving" if viewer.number == self.lease.holder else "viewing",
                "name": viewer.name, "operator": self.operator, "asking": asking, "viewers": len(self.viewers),
            }  # fmt: skip
            viewer.send("lease", json.dumps(told))
        self._tell({"operator": self.operator, "viewers": len(self.viewers)})
