"""What a diagnosis is, and the diagnoses of installed packages against the bounds of pyproject.toml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

NEEDED_EXTRAS = ("", "train", "sim", "export")
_DISABLES = {
    "": "everything",
    "train": "every stage that trains or evaluates",
    "sim": "ManiSkill tasks",
    "export": "export, evaluation of .onnx files",
    "export-gpu": "ONNX Runtime on a GPU",
    "ros2": "robots over ROS 2",
    "teleop": "teleoperation from a browser",
    "baselines": "comparison with stable-baselines3",
    "track": "--track wandb and trackio",
    "dev": "tests and linters",
}


class State(str, Enum):
    """ok; missing: not there; warning: works, but not well; broken: there, and does not work."""

    ok = "ok"
    missing = "missing"
    warning = "warning"
    broken = "broken"


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at.

    Attributes:
        name: of the part.
        state: see State.
        detail: what was found.
        disables: what does not work because of it; empty when ok.
        fix: one line to run or to do; empty when ok.
        needed: whether the CPU path needs it.
    """

    name: str
    state: State
    detail: str
    disables: str = ""
    fix: str = ""
    needed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return {**asdict(self), "state": self.state.value}

    @property
    def fatal(self) -> bool:
        """Whether the CPU path does not work because of it."""
        return self.needed and self.state in (State.missing, State.broken)


def packages() -> list[Diagnosis]:
    """Installed versions against the bounds of pyproject.toml, one diagnosis an extra."""
    try:
        lines = requires("robot-rl") or []
        from packaging.requirements import Requirement
    except (PackageNotFoundError, ModuleNotFoundError) as error:
        fix = "pip install packaging" if "packaging" in str(error) else "pip install -e ."
        return [Diagnosis("packages", State.broken, str(error), "checking versions", fix, needed=True)]
    extras: dict[str, list[Requirement]] = {"": []}
    for line in lines:
        match = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        extras.setdefault(match.group(1) if match else "", []).append(Requirement(line.partition(";")[0]))
    return [_extra(name, wanted) for name, wanted in extras.items()]


def _extra(name: str, wanted: Sequence[Any]) -> Diagnosis:
    absent, outside = [], []
    for requirement in wanted:
        try:
            has = version(requirement.name)
        except PackageNotFoundError:
            absent.append(requirement.name)
            continue
        if not requirement.specifier.contains(has, prereleases=True):
            outside.append(f"{requirement.name} {has} (wants {requirement.specifier})")
    if name == "export" and absent == ["onnxruntime"] and is_installed("onnxruntime-gpu"):
        absent = []
    title, needed = (f"extra {name}" if name else "base install"), name in NEEDED_EXTRAS
    if not absent and not outside:
        return Diagnosis(title, State.ok, f"{len(wanted)} packages inside their bounds", needed=needed)
    detail = "; ".join(
        ([f"not installed: {', '.join(absent)}"] if absent else [])
        + ([f"outside: {', '.join(outside)}"] if outside else [])
    )
    state = State.missing if absent else State.warning
    fix = f"pip install 'robot-rl[{name}]'" if name else "pip install robot-rl"
    if name == "export-gpu" and is_installed("onnxruntime"):  # both are one Python module
        fix = f"pip uninstall -y onnxruntime && {fix}"
    return Diagnosis(title, state, detail, _DISABLES.get(name, f"what extra {name} is for"), fix, needed)


def is_installed(package: str) -> bool:
    """Whether a distribution of this name is installed, of any version."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
