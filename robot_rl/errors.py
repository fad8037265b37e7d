"""Errors that say what was expected, what came, and what to do.

Every error a user can cause is a child of RobotRlError; the CLI prints it in one paragraph without a traceback and
exits with `exit_code`. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class RobotRlError(Exception):
    """Base of all errors a user can cause.

    Args:
        where: the file, episode, step, key, joint or camera that is meant.
        expected: what was expected there.
        got: what came.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, where: str, *, expected: str, got: str, hint: str) -> None:
        self.where, self.expected, self.got, self.hint = where, expected, got, hint
        super().__init__(f"{where}: expected {expected}, got {got}. {hint}")


class ConfigError(RobotRlError):
    """A configuration key, value or group choice is wrong."""

    exit_code = 2


class DataError(RobotRlError):
    """A dataset is damaged, does not match, or holds values that are no numbers."""


class EnvError(RobotRlError):
    """An environment can't be built or was driven against its contract."""


class PolicyError(RobotRlError):
    """A policy, checkpoint or exported file does not fit what it is used for."""


class RunError(RobotRlError):
    """A run directory can't be made, resumed or read."""


class DeployError(RobotRlError):
    """An inference provider is missing, or a parity or latency check failed."""


def closest(word: str, options: Iterable[str]) -> str:
    """Return ` did you mean 'x'?` followed by all options, for the hint of an error."""
    names = sorted(options)
    near = get_close_matches(word, names, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + "Valid: " + ", ".join(names) + "."


def missing_package(module: str, *, where: str) -> ConfigError:
    """Error for a package that is not installed, naming the extra of robot-rl that brings it."""
    from importlib.metadata import (  # slow to load, and needed by nobody who has everything
        PackageNotFoundError,
        requires,
    )

    package = module.partition(".")[0].replace("_", "-").lower()
    pattern = re.compile(rf"{re.escape(package)}(-core)?\b[^;]*;\s*extra == ['\"]([\w-]+)['\"]", re.IGNORECASE)
    try:
        found = [m.group(2) for line in requires("robot-rl") or [] if (m := pattern.match(line.replace("_", "-")))]
    except PackageNotFoundError:
        found = []
    install = f"pip install 'robot-rl[{found[0]}]'" if found else f"pip install {package}"
    return ConfigError(where, expected=f"the package {module!r}", got="not installed", hint=f"Install it: {install}.")
