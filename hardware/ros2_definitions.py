"""Text of ROS 2 message definitions for MCAP files, from the .msg files that every installation carries.

MCAP's ros2msg encoding: the definition of the type, then that of every type it uses behind a line of "=" and "MSG: name"
(https://mcap.dev/spec/registry, ros2msg).
"""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from pathlib import Path

from robot_rl.errors import DeployError

_PLAIN = frozenset(
    "bool byte char string wstring float32 float64 int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()  # noqa: SIM905
)
_FIELD = re.compile(r"^\s*([A-Za-z][\w/]*)(<=\d+)?(\[[^\]]*\])?\s+[A-Za-z]\w*")


@lru_cache(maxsize=64)
def definition(type_name: str) -> str:
    """Definition of a message type with those of all types inside.

    Args:
        type_name: "package/msg/Type".

    Raises:
        DeployError: no .msg file of that name in this installation.
    """
    parts, seen, todo = [], {type_name}, [type_name]
    while todo:
        name = todo.pop(0)
        text = _file(name).read_text(encoding="utf-8")
        parts.append(text if name == type_name else f"{'=' * 80}\nMSG: {_short(name)}\n{text}")
        for used in _used(text, package=name.split("/")[0]):
            if used not in seen:
                seen.add(used)
                todo.append(used)
    return "\n".join(parts)


def _short(name: str) -> str:
    package, _, kind = name.split("/")
    return f"{package}/{kind}"


def _used(text: str, *, package: str) -> list[str]:
    out = []
    for line in text.splitlines():
        found = _FIELD.match(line.split("#")[0])
        if found is None or found[1] in _PLAIN or "=" in line.split("#")[0].replace("<=", ""):
            continue
        owner, _, kind = found[1].rpartition("/")
        out.append(f"{owner.removesuffix('/msg') or ('std_msgs' if kind == 'Header' else package)}/msg/{kind}")
    return out


def _file(name: str) -> Path:
    package, _, kind = name.split("/")
    prefixes = [Path(part) for part in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if part]
    for prefix in [*prefixes, Path(sys.prefix)]:
        if (file := prefix / "share" / package / "msg" / f"{kind}.msg").is_file():
            return file
    raise DeployError(
        f"message type {name!r}", expected="its .msg file below AMENT_PREFIX_PATH or this environment's share",
        got="none", hint="Source ROS 2 and the workspace that defines it.",
    )  # fmt: skip
