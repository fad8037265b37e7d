"""Policies of other projects, as they saved them: a file robot_rl.json in their folder says what builds them here.

    {"format": "robot-rl adopted policy 1", "policy": {"_target_": "package.module.load", ...}, "spec": {...}}

The target is called as `load(config, spec=EnvSpec, folder=Path)` and returns a Policy. `robot-rl adopt` writes the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError, DataError, PolicyError
from robot_rl.runs.config import validate_component
from robot_rl.runs.directory import read_json, write_json
from robot_rl.specs import EnvSpec

DECLARATION = "robot_rl.json"
FORMAT = "robot-rl adopted policy 1"
_TAKEN_BY = "evaluate, export, rti tune and serve take it; no stage trains it."


class Declared(dict[str, Any]):
    """A part of a declaration, where the stages that train look for what only policies of ours have."""

    def __missing__(self, key: str) -> Any:
        """Raises PolicyError."""
        raise PolicyError(
            f"{key} of an adopted policy", expected="a policy that was trained here", got="one of another project",
            hint=_TAKEN_BY,
        )  # fmt: skip


def require_trained_here(saved: Any, *, where: str) -> None:
    """Refuse an adopted policy before a stage trains it.

    Args:
        saved: the Checkpoint that load_policy returned.
        where: who gave it, for the error.

    Raises:
        PolicyError: it is one of another project.
    """
    if isinstance(saved.documents, Declared):
        raise PolicyError(
            where, expected="a policy that was trained here", got="an adopted policy of another project", hint=_TAKEN_BY
        )


def is_adopted(folder: Path) -> bool:
    """Whether a folder holds a policy of another project.

    Raises:
        PolicyError: it seems to, but nobody has declared it.
    """
    if (folder / DECLARATION).is_file():
        return True
    if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
        raise PolicyError(
            str(folder), expected=f"{DECLARATION} beside a checkpoint of another project", got="none",
            hint=f"It says what the numbers mean; write it with `robot-rl adopt {folder} --env ... --name <theirs>=<ours>`.",
        )  # fmt: skip
    return False


def declare(folder: Path, policy: Mapping[str, Any], spec: EnvSpec) -> Path:
    """Write the declaration and return its path.

    Args:
        folder: of the checkpoint.
        policy: component that builds it.
        spec: of the environment that it acts in.
    """
    write_json(folder / DECLARATION, document_of(policy, spec))
    return folder / DECLARATION


def build_adopted(folder: Path) -> tuple[Any, Declared]:
    """The policy of a folder, and its declaration.

    Raises:
        PolicyError: the declaration is damaged, or does not fit the checkpoint.
    """
    return built(read_json(folder / DECLARATION), folder)


def document_of(policy: Mapping[str, Any], spec: EnvSpec) -> dict[str, Any]:
    """A declaration.

    Args:
        policy: component that builds it.
        spec: of the environment that it acts in.
    """
    return {"format": FORMAT, "policy": dict(policy), "spec": spec.to_json()}


def built(document: Any, folder: Path) -> tuple[Any, Declared]:
    """`build_adopted` of a declaration that need not be written yet."""
    path = folder / DECLARATION
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PolicyError(
            str(path), expected=f"format {FORMAT!r}", got=str(document)[:80], hint="Write it with robot-rl adopt."
        )
    try:
        spec = EnvSpec.from_json(document["spec"], where=f"{path}: spec")
        target, config = validate_component(document["policy"], where=f"{path}: policy")
    except (ConfigError, DataError, KeyError, TypeError) as error:
        raise PolicyError(
            str(path), expected="a policy and a spec that this version knows", got=f"{type(error).__name__}: {error}",
            hint="Write it again with robot-rl adopt.",
        ) from error  # fmt: skip
    policy = target(config, spec=spec, folder=folder)
    return policy, Declared({**document, "policy": Declared(document["policy"])})
