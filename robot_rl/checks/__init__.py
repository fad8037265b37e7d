"""Conformance suites for environments and policies of your own; `robot-rl check` runs them."""

from robot_rl.checks.env import ENV_CHECKS, check_env
from robot_rl.checks.findings import Finding, Severity, has_errors
from robot_rl.checks.policy import POLICY_CHECKS, check_policy

__all__ = ["ENV_CHECKS", "POLICY_CHECKS", "Finding", "Severity", "check_env", "check_policy", "has_errors"]
