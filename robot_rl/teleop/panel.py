"""Between a session and who watches it: what is shown, and what is asked for. The page, a terminal and tests are panels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from robot_rl.arrays import Array, UInt8

EVENTS = (
    "start", "stop", "success", "failure", "discard", "save", "rerecord", "pause", "resume", "subtask", "note", "undo",
    "reset", "estop", "release", "quit", "save_last",
)  # fmt: skip
# Changes of episodes that are saved already; `edit_restore` brings a deleted one back. They leave the state as it is.
EDITS = ("edit_success", "edit_failure", "edit_note", "edit_delete", "edit_restore")


@dataclass(frozen=True)
class PanelEvent:
    """What a person asked for.

    Attributes:
        name: of EVENTS or EDITS.
        text: of a note or a subtask.
        stamp_s: when it was asked, CLOCK_MONOTONIC seconds; labels are aligned to it, not to when they are read.
        by: who ("page:<operator>", "keyboard", ...), for the log.
        episode: "id" of the saved episode that an edit is about; its number changes when others are deleted.
    """

    name: str
    text: str = ""
    stamp_s: float = 0.0
    by: str = ""
    episode: str = ""


@dataclass(frozen=True)
class SessionView:
    """What people see of a session, JSON types but for the pictures.

    Attributes:
        state: of the episode machine.
        allowed: events that do something now.
        message: what is to be done, in one sentence.
        episode: of the running one: "number", "seed", "steps", "seconds", "source", "clutch" (Engagement.state),
            "interventions", "subtask", "label", "problems" (texts); all keys here and below may be left out.
        totals: "saved" and "wanted" episodes, "successes", "failures", "discarded", "disk_bytes_left", "seconds" that it has
            room for, "takeover" and "policy_success" (shares), "deleted" (ids of episodes that can be brought back, the
            newest last).
        loop: "wanted_hz", "achieved_hz", "late_p99_ms", "skipped", "queued" rows of the writer, and "lost" ones.
        ages_ms: stream -> age of its newest reading.
        proprio: element name -> value; `action`: likewise, as sent after safety.
        action: see proprio.
        pose: of the tool in the base frame (m, quaternion wxyz), `joints`: joint name -> rad, for the drawn view.
        joints: see pose.
        scene: name -> position (m, base frame) of what a simulator knows (cube, goal), for the drawn view. Names that
            begin with "link:" are points of the arm, drawn as one line in their order; six numbers are a box (low, high).
        limits: reasons of the safety layer now ("velocity", "workspace", ...), shown to the operator.
        device: DeviceStatus as a dict.
        episodes: of the dataset, newest last: "number", "id", "length", "seconds", "success", "label", "rate_hz",
            "problems", "notes".
            The same tuple as before when nothing was added: it is sent to viewers when it changes.
        pictures: camera -> uint8 (H, W, 3) RGB; "render" is the simulator's picture of the scene, and has its age in ages_ms.
    """

    state: str
    allowed: tuple[str, ...] = ()
    message: str = ""
    episode: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, Any] = field(default_factory=dict)
    loop: Mapping[str, Any] = field(default_factory=dict)
    ages_ms: Mapping[str, float] = field(default_factory=dict)
    proprio: Mapping[str, float] = field(default_factory=dict)
    action: Mapping[str, float] = field(default_factory=dict)
    pose: tuple[float, ...] = ()
    joints: Mapping[str, float] = field(default_factory=dict)
    scene: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    device: Mapping[str, Any] = field(default_factory=dict)
    episodes: tuple[Mapping[str, Any], ...] = ()
    pictures: Mapping[str, UInt8[Array, "H W 3"]] = field(default_factory=dict)


@runtime_checkable
class OperatorPanel(Protocol):
    """Shows a session and hears people. No call waits or raises for what a viewer does; the loop calls them every period."""

    def publish(self, view: SessionView) -> None:
        """Show this; a slow viewer misses views, never holds up the caller."""
        ...

    def events(self) -> list[PanelEvent]:
        """Everything asked for since the last call, in order."""
        ...

    def close(self) -> None:
        """Take it down; also twice."""
        ...


@dataclass(frozen=True)
class EpisodePages:
    """What a panel may ask for about saved episodes, beside the stream of views; called from the panel's own threads.

    A busy thread ruins a control loop: a panel with a process of its own makes these there, from the dataset's path
    (hardware/browser_episodes.py).

    Attributes:
        thumbnail: episode number -> uint8 (H, W, 3), or None when there is no picture.
        frames: (episode, first, count) -> dict of "steps" (of the whole episode), "first", "times" (s), "names"
            ("proprio" and "action" -> element names), "proprio" (n, P), "action" (n, A), "source" (names), "success" and
            "pictures" (camera -> uint8 (n, H, W, 3)) of these steps.
        health: () -> rows of `robot-rl data check`: "severity", "check", "where", "got", "fix".
    """

    thumbnail: Any
    frames: Any
    health: Any
