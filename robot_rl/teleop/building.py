"""From a recording to an episode: what belongs to it, how it ended, and what is said of it.

The last row of a recording is what the last action led to. Labels are aligned by their stamps: an episode ends with the
step in which its end was asked for, however late that was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.recorded_columns import AGES, KEY, pack_columns
from robot_rl.errors import DataError
from robot_rl.teleop.rows import IMAGE
from robot_rl.teleop.segments import Segment
from robot_rl.types import Episode, Source

_KEPT = (
    "read_s", "use_s", "command_s", "device_s", "device_sequence", "reasons", "intervention", "late_s", "skipped",
    "policy", "operator", "action", "sent", "sent_gripper",
)  # fmt: skip
_WHOLE = ("device_sequence", "reasons", "intervention", "skipped")


def build_episode(segment: Segment, *, control_hz: float) -> Episode:
    """The episode of a recording, with the columns of its rows in its metadata (data/recorded_columns.py).

    Args:
        segment: read from the disk.
        control_hz: steps a second that were wanted.

    Raises:
        DataError: fewer than two rows.
    """
    layout, table, facts = segment.layout, segment.table, segment.facts
    if len(table) < 2:
        raise DataError(
            f"recording {segment.path}", expected="at least one step and what it led to", got=f"{len(table)} rows",
            hint="It is too short to be an episode; discard it.",
        )  # fmt: skip
    read_s = layout.column(table, "read_s")
    said = told(segment.events)
    steps = steps_until(read_s, said["end_s"])
    success = np.zeros(steps, bool)
    success[-1] = said["label"] == "success"
    time_s = _episode_time(read_s[:steps], segment.events, 1.0 / control_hz)
    source = layout.column(table, "source")[:steps].astype(np.uint8)
    metadata = {
        **facts, "label": said["label"], "problems": said["problems"], "notes": said["notes"],
        "subtasks": [{"step": step_of(read_s[:steps], s), "text": text} for s, text in said["subtasks"]],
        "ended_by": said["ended_by"], "loop": loop_facts(time_s, layout.column(table, "late_s")[:steps], control_hz),
        "interventions": int(layout.column(table, "intervention")[:steps].max(initial=0)),
        "pauses": [step_of(read_s[:steps], e["stamp_s"]) + 1 for e in segment.events if e["kind"] == "pause"],
        "takeover": float((source == Source.intervention).mean()), AGES: _ages(segment, steps),
        KEY: pack_columns(_columns(segment, steps)),
    }  # fmt: skip
    return Episode(
        observation={key: frames[:steps] for key, frames in segment.frames.items()},
        final_observation={key: frames[steps] for key, frames in segment.frames.items()},
        action=layout.column(table, "action")[:steps].astype(np.float32),
        reward=success.astype(np.float32),
        success=success,
        terminated=bool(success[-1]),
        truncated=said["ended_by"] == "time_limit",
        source=source,
        time=time_s,
        metadata=metadata,
    )


def steps_until(read_s: Float64[Array, " R"], end_s: float | None) -> int:
    """Steps of an episode of R rows, the last of which only shows what the last action led to.

    Args:
        read_s: when each row was read.
        end_s: when its end was asked for; None: with the last row.
    """
    most = len(read_s) - 1
    asked = most if end_s is None else int(np.searchsorted(read_s, end_s, side="right"))
    return min(max(asked, 1), most)


def step_of(read_s: Float64[Array, " T"], stamp_s: float) -> int:
    """The step that was going on at a time."""
    return int(np.clip(np.searchsorted(read_s, stamp_s, side="right") - 1, 0, len(read_s) - 1))


def loop_facts(time_s: Float64[Array, " T"], late_s: Float64[Array, " T"], control_hz: float) -> dict[str, float]:
    """Achieved rate, jitter (95 % of steps are no further from one period than this), and lateness of an episode."""
    wait = np.diff(time_s)
    facts = {"wanted_hz": control_hz, "late_p99_ms": 1e3 * float(np.percentile(late_s, 99.0))}
    if len(wait) and time_s[-1] > time_s[0]:
        facts["rate_hz"] = float(len(wait) / (time_s[-1] - time_s[0]))
        facts["jitter_p95_ms"] = 1e3 * float(np.percentile(np.abs(wait - 1.0 / control_hz), 95.0))
    return facts


def told(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the events of a recording come to, taken one after the other as they were."""
    labels, marks, problems = list[str](), list[tuple[str, float, str]](), list[str]()
    end_s: float | None = None
    ended_by = "cut off"
    for event in events:
        kind = event["kind"]
        if kind in ("success", "failure"):
            labels.append(kind)
        elif kind == "undo_label" and labels:
            labels.pop()
        elif kind == "mark" and event["name"] not in ("subtask", "note"):
            problems.append(event["text"])  # found out by the session: nobody can take it back
        elif kind == "mark":
            marks.append((event["name"], event["stamp_s"], event["text"]))
        elif kind == "undo_mark" and marks:
            marks.pop()
        elif kind == "end":
            end_s, ended_by = event["stamp_s"], event["name"]
    return {
        "label": labels[-1] if labels else "", "end_s": end_s, "ended_by": ended_by,
        "subtasks": [(stamp_s, text) for name, stamp_s, text in marks if name == "subtask"],
        "notes": [text for name, _, text in marks if name == "note"],
        "problems": problems,
    }  # fmt: skip


def _episode_time(read_s: np.ndarray, events: Sequence[Mapping[str, Any]], period_s: float) -> np.ndarray:
    """Seconds since the first row, without what was paused: there one period passes."""
    time_s: np.ndarray = read_s - read_s[0]
    for event in events:
        if event["kind"] == "resume":
            first = int(np.searchsorted(read_s, event["stamp_s"], side="left"))
            if 0 < first < len(read_s):
                time_s[first:] -= max(float(read_s[first] - read_s[first - 1]) - period_s, 0.0)
    return time_s


def _ages(segment: Segment, steps: int) -> dict[str, list[float]]:
    """Camera -> age of its frame at each step, s."""
    layout, read_s = segment.layout, segment.layout.column(segment.table, "read_s")[:steps]
    ages = {}
    for stream in layout.streams:
        age = read_s - layout.column(segment.table, f"capture_s/{stream}")[:steps]
        if stream.startswith(IMAGE) and np.isfinite(age).all():
            ages[stream.removeprefix(IMAGE)] = np.round(age, 4).tolist()
    return ages


def _columns(segment: Segment, steps: int) -> dict[str, np.ndarray]:
    layout = segment.layout
    names = (*_KEPT, *(name for name in layout.columns if name.startswith("capture_s/")))
    columns = {name: layout.column(segment.table, name)[:steps] for name in names}
    for name in _WHOLE:
        columns[name] = columns[name].astype(np.int64)
    for name in ("policy", "operator", "action"):
        columns[name] = columns[name].astype(np.float32)
    # A stream that the robot does not have is all NaN, and says nothing.
    return {
        name: column for name, column in columns.items()
        if not (name.startswith("capture_s/") and np.isnan(column).all())
    }  # fmt: skip
