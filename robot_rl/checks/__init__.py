"""Conformance suites for environments, policies and robots of your own; `robot-rl check` runs them.

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

__all__ = [
    "ENV_CHECKS",
    "POLICY_CHECKS",
    "ROBOT_CHECKS",
    "Finding",
    "Severity",
    "check_env",
    "check_policy",
    "check_robot",
    "has_errors",
]
_PLACES = {
    "env": ("ENV_CHECKS", "check_env"),
    "findings": ("Finding", "Severity", "has_errors"),
    "policy": ("POLICY_CHECKS", "check_policy"),
    "robot": ("ROBOT_CHECKS", "check_robot"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"robot_rl.checks.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
