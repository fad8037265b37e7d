"""Packaging: what pyproject lists, what a wheel holds, and what the base install (numpy alone) can import."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("envs", "policies", "hardware", "configs", "sim_assets")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in_tree() -> set[str]:
    core = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "robot_rl").rglob("__init__.py")}
    return core | {f"robot_rl.{name}" for name in MAPPED}


def test_listed_packages_are_those_of_the_tree() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages_in_tree())
    assert {f"robot_rl.{name}": name for name in MAPPED}.items() <= PROJECT["tool"]["setuptools"]["package-dir"].items()


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "robot_rl").rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()
    # Folders of configs hold YAML only; a Python file below them would be lost from the wheel.
    for name in ("configs", "sim_assets", "envs", "policies"):
        assert [p for p in (ROOT / name).rglob("*.py") if p.parent != ROOT / name] == []


def test_wheel_holds_every_file(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    for name in ("robot_rl", *MAPPED):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run(
        [*command, "-w", str(tmp_path), "."], cwd=tmp_path / "source", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = set()
    for top, prefix in [("robot_rl", ""), *((name, "robot_rl/") for name in MAPPED)]:
        for path in (tmp_path / "source" / top).rglob("*"):
            # Every file of the ament package belongs into the wheel, also those without a suffix.
            is_ament = path.is_file() and "ros2" in path.relative_to(tmp_path / "source").parts
            if is_ament or path.suffix in (
                ".py",
                ".yaml",
                ".typed",
                ".md",
                ".html",
                ".xml",
                ".obj",
                ".js",
                ".css",
                ".svg",
            ):
                wanted.add(prefix + path.relative_to(tmp_path / "source").as_posix())
    assert held == wanted
    assert {"robot_rl/py.typed", "robot_rl/configs/env/point_reach.yaml", "robot_rl/envs/__init__.py"} <= held
    meta = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name]
    assert any(name.endswith("licenses/LICENSE") for name in meta)
    (entry_points,) = [name for name in meta if name.endswith("entry_points.txt")]
    assert "robot-rl = robot_rl.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


@pytest.mark.parametrize("name", MAPPED)
def test_bare_import_says_the_right_name(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: import robot_rl.{name} instead of {name}" in done.stderr


BASE_ONLY = """
import importlib, sys

class OnlyBase:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("numpy", "robot_rl") or top.startswith("__editable__"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r} in the base install", name=name)

sys.meta_path.insert(0, OnlyBase())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "torch" not in sys.modules and "jaxtyping" not in sys.modules
from robot_rl.specs import ArraySpec
import numpy as np
ArraySpec("x", (2,)).validate(np.zeros((3, 2), np.float32), where="here")
print("done")
"""


def base_modules() -> list[str]:
    deploy = [
        f"robot_rl.deploy.{path.stem}" for path in (ROOT / "robot_rl/deploy").glob("*.py") if path.stem != "__init__"
    ]
    return [
        "robot_rl.types",
        "robot_rl.errors",
        "robot_rl.contracts",
        "robot_rl.cli",
        "robot_rl.deploy",
        *sorted(deploy),
    ]


def run_base(*names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BASE_ONLY, *names], capture_output=True, text=True, check=False)


def test_base_install_imports_without_torch_and_jaxtyping() -> None:
    done = run_base(*base_modules())
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    # The blocker blocks: a module that needs torch can't be imported this way.
    blocked = run_base("robot_rl.runs.checkpoint")
    assert blocked.returncode == 1
    assert "in the base install" in blocked.stderr


def python_310_files() -> list[Path]:
    core = [
        ROOT / "robot_rl" / f"{name}.py"
        for name in ("__init__", "types", "errors", "arrays", "contracts", "cli", "cli_help")
    ]
    return [*core, *sorted((ROOT / "robot_rl/deploy").glob("*.py")), *sorted((ROOT / "hardware").rglob("*.py"))]


@pytest.mark.parametrize("path", python_310_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_robot_parts_are_python_310(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 10))
    # Newer than 3.10: names, which the grammar does not show.
    newer = {"StrEnum", "ReprEnum", "tomllib", "Self", "assert_never", "LiteralString", "ExceptionGroup", "UTC"}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {
        alias.name for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
    }
    assert names & newer == set()


def test_grammar_check_can_fail() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass\n", feature_version=(3, 10))


def test_constraints_satisfy_pyproject() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints/py311.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"no exact pin: {line}"
            pins[canonicalize_name(name)] = version
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(r for extra in ("train", "sim", "export", "dev") for r in extras[extra]),
    ]
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement} has no pin"
        assert requirement.specifier.contains(pin), f"{requirement} excludes the pin {pin}"
    assert not [name for name in pins if name.startswith("nvidia") and name != "nvidia-ml-py"]


def test_the_dockerfile_names_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert [word for word in copied if not (ROOT / word).exists()] == []
    assert {"robot_rl", *MAPPED, "pyproject.toml"} <= set(copied)
    (extras,) = re.findall(r"\.\[([a-z0-9,-]+)\]", text)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_issue_forms_are_forms() -> None:
    import yaml

    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        asked = [part for part in form["body"] if part["type"] != "markdown"]
        assert len({part["id"] for part in asked}) == len(asked)
        assert all(part["attributes"]["label"] for part in asked)
