"""The house's layers, read from the source: who may import whom, and what may not be imported when a module loads."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("envs", "policies", "hardware")
LAYERS = (
    {"types", "specs", "errors", "arrays"},
    {"contracts", "wrapped_policy", "algorithms", "data", "deploy", "teleop"},
    {"checks", "rollout", "chunk_execution", "runs", "fitting", "engines"},
    {"stages", "workbench"},
    {"cli", "cli_help", "__main__"},
)
GENERIC = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc", "core"}
SIMULATORS_AND_DRIVERS = {
    "mani_skill", "sapien", "gymnasium", "gym", "mujoco", "mplib", "pytorch_kinematics", "rclpy", "cv2", "pygame",
    "evdev", "hid", "serial", "pyrealsense2", "pyspacemouse", "dynamixel_sdk", "av", "fastapi", "uvicorn", "websockets",
}  # fmt: skip
OPTIONAL = {
    "yaml",
    "av",
    "pyarrow",
    "fsspec",
    "mcap",
    "mcap_ros2",
    "ruckig",
    "rerun",
    "PIL",
    "matplotlib",
    "zarr",
    "numcodecs",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "cuda",
    "hydra",
    "omegaconf",
    "h5py",
    "diffusers",
    "ray",
    "submitit",
}
# Parts that a robot computer loads: numpy and the standard library.
TORCH_FREE = {"types", "specs", "errors", "arrays", "deploy", "teleop", "cli", "cli_help"}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name as written, the dots in front, and whether loading the file runs it."""

    name: str
    dots: int
    at_load: bool
    line: int


def imports_of(source: str) -> list[Import]:
    """Every import in a file; `from a import b` counts as `a.b`. Those under TYPE_CHECKING do not run at load."""
    found: list[Import] = []

    def visit(node: ast.AST, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, 0, at_load, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            found.extend(Import(prefix + alias.name, node.level, at_load, node.lineno) for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                visit(child, False)
            for child in node.orelse:
                visit(child, at_load)
            return
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, at_load and not inside)

    visit(ast.parse(source), True)
    return found


def layer_of(part: str) -> int:
    """Index into LAYERS of a part of robot_rl; -1 for none."""
    return next((index for index, parts in enumerate(LAYERS) if part in parts), -1)


def violations(path: str, source: str) -> list[str]:
    """Broken rules of one file; `path` is relative to the repository root, e.g. "robot_rl/runs/config.py"."""
    top, *rest = Path(path).with_suffix("").parts
    part = rest[0]
    out = []
    if rest[-1] in GENERIC:
        out.append(f"the name {rest[-1]!r} says nothing")
    tree = ast.parse(source)
    defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(tree))
    if defines and "from __future__ import annotations" not in source:
        out.append("no `from __future__ import annotations`")
    if top == "robot_rl" and part != "__init__" and layer_of(part) < 0:
        out.append(f"{part!r} belongs to no layer")
    for item in imports_of(source):
        first, *inner = item.name.split(".")
        problem = None
        if item.dots > 1 or (item.dots and top == "robot_rl"):
            problem = "relative import that leaves the folder, or in the core"
        elif item.dots:
            continue
        elif first in (*PLUGINS, "configs", "sim_assets"):
            problem = "plug-in under its bare name"
        elif first == "robot_rl":
            problem = _inner_problem(top, part, inner)
        elif top == "robot_rl" and item.at_load and first in SIMULATORS_AND_DRIVERS | OPTIONAL:
            problem = "heavy or optional package when the core is loaded"
        elif first == "torch" and top == "robot_rl" and part in TORCH_FREE:
            problem = "torch in a part that a robot computer loads"
        elif first == "torch" and path == "robot_rl/data/store.py" and item.at_load:
            problem = "torch when the store is loaded"
        if problem:
            out.append(f"line {item.line}: {item.name}: {problem}")
    return out


def _inner_problem(top: str, part: str, inner: list[str]) -> str | None:
    """What is wrong with importing robot_rl.<inner> from a file of `top`/`part`."""
    target = inner[0] if inner else "__init__"
    if top in PLUGINS:
        if target == top:
            return "sibling under its absolute name"
        return None if 0 <= layer_of(target) <= 1 else "plug-ins import L0 and L1 only"
    if target in PLUGINS:
        return "the core names a plug-in"
    if target.startswith("__"):
        return None
    return None if layer_of(target) <= layer_of(part) else f"L{layer_of(part)} imports L{layer_of(target)}"


def files() -> list[Path]:
    found = [path for top in ("robot_rl", *PLUGINS) for path in sorted((ROOT / top).rglob("*.py"))]
    # hardware/ros2 is an ament package of its own that imports robot_rl as any user does.
    return [path for path in found if ROOT / "hardware" / "ros2" not in path.parents]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_layers(path: Path) -> None:
    assert violations(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "says"),
    [
        ("robot_rl/types.py", "import robot_rl.contracts", "L0 imports L1"),
        ("robot_rl/algorithms/ppo.py", "def f():\n    from robot_rl.runs.config import build", "L1 imports L2"),
        ("robot_rl/rollout.py", "from robot_rl.stages import collect", "L2 imports L3"),
        ("robot_rl/stages/x.py", "from robot_rl import cli", "L3 imports L4"),
        ("robot_rl/rollout.py", "from robot_rl.envs.history import HistoryEnv", "names a plug-in"),
        ("robot_rl/rollout.py", "from envs.history import HistoryEnv", "bare name"),
        ("robot_rl/rollout.py", "from .runs import config", "relative import"),
        ("robot_rl/rollout.py", "try:\n    import mani_skill.envs\nexcept ImportError:\n    pass", "heavy or optional"),
        ("robot_rl/deploy/x.py", "def f():\n    import torch", "torch in a part"),
        ("robot_rl/deploy/x.py", "import onnxruntime as ort", "heavy or optional"),
        ("robot_rl/data/store.py", "import torch", "torch when the store"),
        ("envs/x.py", "from robot_rl.rollout import rollout", "L0 and L1 only"),
        ("envs/x.py", "from robot_rl.envs.history import HistoryEnv", "absolute name"),
        ("policies/x.py", "from robot_rl.envs.history import HistoryEnv", "L0 and L1 only"),
        ("policies/x.py", "from ..envs import history", "leaves the folder"),
        ("robot_rl/data/utils.py", "", "says nothing"),
        ("robot_rl/widgets/x.py", "", "no layer"),
        ("robot_rl/data/x.py", "def f(): ...", "__future__"),
    ],
)
def test_rule_can_be_broken(path: str, source: str, says: str) -> None:
    header = "" if says == "__future__" else "from __future__ import annotations\n"
    (problem,) = violations(path, header + source)
    assert says in problem


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("robot_rl/runs/x.py", "from robot_rl.data.store import EpisodeStore\nfrom robot_rl import __version__"),
        ("robot_rl/runs/x.py", "def f():\n    import hydra"),
        ("robot_rl/runs/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import zarr"),
        ("envs/x.py", "import sapien\nfrom robot_rl.contracts import VectorEnv\nfrom .history import HistoryEnv"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, "from __future__ import annotations\n" + source) == []


def test_no_cycles_when_loading() -> None:
    modules: dict[str, set[str]] = {}
    for path in files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        prefix = parts if parts[0] == "robot_rl" else ("robot_rl", *parts)
        modules[".".join(prefix).removesuffix(".__init__")] = set()
    for path in files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        prefix = parts if parts[0] == "robot_rl" else ("robot_rl", *parts)
        name = ".".join(prefix).removesuffix(".__init__")
        for item in imports_of(path.read_text(encoding="utf-8")):
            full = f"{'.'.join(prefix[:-1])}.{item.name}" if item.dots else item.name
            target = next((m for m in (full, full.rpartition(".")[0]) if m in modules), None)
            if item.at_load and target and target != name:
                modules[name].add(target)
    while leaves := {name for name, needs in modules.items() if not needs & modules.keys()}:
        modules = {name: needs for name, needs in modules.items() if name not in leaves}
    assert modules == {}, "these modules import each other in a circle"


def test_every_module_loads_with_its_annotations_checked() -> None:
    """The hook of conftest.py refuses a module whose annotations can't be checked, when it is loaded and not before."""
    import importlib
    import importlib.util

    if importlib.util.find_spec("mani_skill") is None:
        pytest.skip("needs all extras")
    for path in files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__" and "ros2" not in parts:
            importlib.import_module(
                ".".join(parts if parts[0] == "robot_rl" else ("robot_rl", *parts)).removesuffix(".__init__")
            )
