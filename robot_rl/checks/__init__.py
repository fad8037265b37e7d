"""Conformance suites for environments, policies, robots and teleoperation devices of your own; `robot-rl check` runs them.

A suite is loaded when it is asked for: that of robots runs on robot computers, which have no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robot_rl.checks.env import ENV_CHECKS, check_env
    from robot_rl.checks.findings import Finding, Severity, has_errors
    from robot_rl.checks.policy import POLICY_CHECKS, check_policy
    from robot_rl.checks.robot import ROBOT_CHECKS, check_robot
    from robot_rl.checks.teleop import TELEOP_CHECKS, check_teleop

__all__ = [
    "ENV_CHECKS",
    "POLICY_CHECKS",
    "ROBOT_CHECKS",
    "TELEOP_CHECKS",
    "Finding",
    "Severity",
    "check_env",
    "check_policy",
    "check_robot",
    "check_teleop",
    "has_errors",
]
_PLACES = {
    "env": ("ENV_CHECKS", "check_env"),
    "findings": ("Finding", "Severity", "has_errors"),
    "policy": ("POLICY_CHECKS", "check_policy"),
    "robot": ("ROBOT_CHECKS", "check_robot"),
    "teleop": ("TELEOP_CHECKS", "check_teleop"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"robot_rl.checks.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
