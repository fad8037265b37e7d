"""The black box's process: `python -m robot_rl.deploy.black_box_process FD`, started by black_box.BlackBox."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.deploy.black_box import LOG_TOPIC, STEP_TOPIC, layout_of
from robot_rl.deploy.child_process import SharedArrays, parent_socket, receive
from robot_rl.deploy.policy_words import failed
from robot_rl.deploy.reasons import names_of
from robot_rl.deploy.safety import STOPS, Reason
from robot_rl.errors import DeployError

log = logging.getLogger("robot_rl.black_box")
_WHOLE = ("number", "slot", "skipped", "request", "index", "reasons")
_LEVEL = {"info": 2, "error": 4}  # of foxglove.Log
_LOG_SCHEMA = {
    "type": "object",
    "properties": {
        "timestamp": {
            "type": "object", "title": "time",
            "properties": {"sec": {"type": "integer", "minimum": 0}, "nsec": {"type": "integer", "minimum": 0}},
        },
        "level": {"type": "integer"}, "message": {"type": "string"}, "name": {"type": "string"},
        "file": {"type": "string"}, "line": {"type": "integer", "minimum": 0},
    },
}  # fmt: skip


def main(words: list[str]) -> int:
    """Write what the parent asks for, and what is left when it dies.

    Args:
        words: number of the socket's file descriptor.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    channel, config = parent_socket(words)
    try:
        folder = _folder(Path(config["folder"]))
        import mcap.writer  # noqa: F401
    except Exception as error:  # the parent must not begin without it
        channel.send(failed(_as_deploy_error(error)))
        return 1
    arrays = SharedArrays(layout_of(config["columns"], config["rows"]), fd=int(config["fds"][0]))
    channel.send(b"{}")
    written = 0
    while True:
        got = receive(channel, 1.0)
        if got is None:
            continue
        asked = (
            json.loads(got[0]) if got[0] else {"reasons": int(Reason.loop_lost), "what": "the control loop was lost"}
        )
        if not asked or (not got[0] and int(arrays["count"][0]) == written):
            return 0
        rows = rows_of(arrays)
        written = int(arrays["count"][0])
        try:
            reply = {"path": str(write_mcap(folder, rows, config, asked))}
        except OSError as error:  # no room, or the folder is gone: said, and the robot goes on
            reply = {"failed": f"{folder}: {error}"}
            log.error("nothing written: %s", reply["failed"])
        if not got[0]:
            return 0
        channel.send(json.dumps(reply).encode())


def rows_of(arrays: SharedArrays) -> np.ndarray:
    """Whole rows of the ring, oldest first; one being written now is left out.

    Args:
        arrays: see black_box.layout_of.

    Returns:
        float64 (R, W).
    """
    ring = arrays["rows"]
    before = ring[:, 0].copy()
    rows = ring.copy()
    whole = np.isfinite(before) & (before > 0) & (before == rows[:, 0]) & (before == ring[:, 0])
    rows = rows[whole]
    ordered: np.ndarray = rows[np.argsort(rows[:, 0])]
    return ordered


def write_mcap(folder: Path, rows: np.ndarray, config: dict[str, Any], asked: dict[str, Any]) -> Path:
    """One file, under its name only when it is complete and on the disk.

    Args:
        folder: to write into.
        rows: see `rows_of`.
        config: columns and facts, see black_box.BlackBox.
        asked: "reasons" and "what".

    Raises:
        OSError: no room.
    """
    from mcap.writer import CompressionType, Writer

    names = names_of(Reason(asked["reasons"]))
    # A stop is named after what stopped, not after what bent on the way.
    short = names_of(Reason(asked["reasons"]) & STOPS) or names or ["end"]
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}-{'+'.join(short)[:80]}.mcap"
    part = path.with_suffix(".part")
    # Wall-clock time of a monotonic one: for a viewer only.
    offset_ns = time.time_ns() - time.monotonic_ns()
    try:
        with part.open("wb") as stream:
            writer = Writer(stream, compression=CompressionType.NONE)
            writer.start(profile="", library="robot-rl")
            step = writer.register_channel(
                STEP_TOPIC, "json", _schema(writer, "robot_rl.Step", step_schema(config["columns"]))
            )
            told = writer.register_channel(LOG_TOPIC, "json", _schema(writer, "foxglove.Log", _LOG_SCHEMA))
            newest_ns = 0
            for row in rows:
                newest_ns = int(row[1] * 1e9) + offset_ns
                data = json.dumps(step_of(row, config["columns"]), allow_nan=False).encode()
                writer.add_message(step, newest_ns, data, newest_ns)
            newest_ns = newest_ns or time.time_ns()
            entry = {
                "timestamp": {"sec": newest_ns // 10**9, "nsec": newest_ns % 10**9},
                "level": _LEVEL["error" if asked["reasons"] else "info"],
                "message": f"{' '.join(names) or 'no stop'}: {asked['what']}", "name": "robot_rl", "file": "", "line": 0,
            }  # fmt: skip
            writer.add_message(told, newest_ns, json.dumps(entry).encode(), newest_ns)
            facts = {"reasons": " ".join(names), "what": asked["what"], **config["about"]}
            writer.add_metadata(
                "black_box",
                {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()},
            )
            writer.finish()
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def step_of(row: np.ndarray, columns: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON types; numbers that are not finite become null, parts that were not there are left out."""
    out: dict[str, Any] = {}
    for name, (first, end) in columns.items():
        values = [value if math.isfinite(value) else None for value in row[first:end].tolist()]
        if name in _WHOLE:
            out[name] = -1 if values[0] is None else int(values[0])
        elif any(value is not None for value in values) or name in ("action", "position"):
            out[name] = values if end - first > 1 else values[0]
    return out | {"reason_names": names_of(Reason(max(out["reasons"], 0)))}


def step_schema(columns: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of a step."""
    number = {"type": ["number", "null"]}
    properties: dict[str, Any] = {
        name: {"type": "integer"}
        if name in _WHOLE
        else number
        if end - first == 1
        else {"type": "array", "items": number}
        for name, (first, end) in columns.items()
    }
    return {
        "type": "object",
        "properties": properties | {"reason_names": {"type": "array", "items": {"type": "string"}}},
    }


def _schema(writer: Any, name: str, schema: dict[str, Any]) -> int:
    number: int = writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
    return number


def _folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{os.getpid()}"
    probe.touch()
    probe.unlink()
    return folder


def _as_deploy_error(error: Exception) -> DeployError:
    if isinstance(error, ModuleNotFoundError):
        return DeployError(
            "black box", expected="mcap to write with", got=str(error), hint="pip install 'robot-rl[ros2]'."
        )
    return DeployError(
        "black box", expected="a folder to write to", got=str(error), hint="Check folder and permissions."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
