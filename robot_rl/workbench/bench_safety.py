"""`robot-rl bench safety`: what safety layers let through, fault by fault; and what a step of ours costs.

Faults and criteria are in safety_faults.py, the rules of others in safety_rules.py. Deterministic: a busy machine changes
the times of a step and nothing else.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.pose_safety import MeasuredPose, PoseSafetyFilter, PoseSafetyLimits
from robot_rl.deploy.robot_card import GripperCard, PoseLimits
from robot_rl.deploy.safety import Measured, Reason, SafetyFilter, SafetyLimits
from robot_rl.workbench.bench_timing import Contender, Options, Report, interleave
from robot_rl.workbench.safety_faults import FAULTS, PERIOD_S, Fault, judge, play
from robot_rl.workbench.safety_rules import NUMBERS, RULES

_STEPS = 200


def run(options: Options) -> Report:
    """Play every fault to every rule, and time a step of both layers.

    Returns:
        Report without ratios. `facts`: `limits`, `faults` (each with `fault`, `checks`, `results`: rule ->
        {`passed` (None: does not apply), `let_through`}), `passed` (rule -> [passed, judged]), `table` (text).
    """
    rows = [matrix_row(fault) for fault in FAULTS]
    passed = {
        rule: [sum(row["results"][rule]["passed"] is verdict for row in rows for verdict in verdicts)
               for verdicts in ((True,), (True, False))] for rule in RULES
    }  # fmt: skip
    facts = {"limits": asdict(NUMBERS), "period_s": PERIOD_S, "faults": rows, "passed": passed}
    measurements = interleave([_joints(), _poses()], rounds=options.rounds)
    return Report(measurements, (), facts | {"table": table(rows, passed)})


def matrix_row(fault: Fault) -> dict[str, Any]:
    """One fault against every rule."""
    results: dict[str, dict[str, Any]] = {}
    for name, rule_type in RULES.items():
        rule = rule_type()
        applies = fault.scope == "both" or (fault.scope == "pose") == rule.is_pose
        if not applies or (fault.needs_stop and not rule.has_stop):
            results[name] = {"passed": None, "let_through": ""}
            continue
        passed, text = judge(fault, play(fault, rule))
        results[name] = {"passed": passed, "let_through": text}
    return {"fault": fault.name, "checks": list(fault.checks), "results": results}


SEVEN_JOINTS = JointLimits(tuple("abcdefg"), (-2.5,) * 7, (2.5,) * 7, (2.0,) * 7, (10.0,) * 7, (200.0,) * 7)


def table(rows: list[dict[str, Any]], passed: dict[str, list[int]]) -> list[list[str]]:
    """Heading, one line a fault, and the sums."""
    lines = [["fault", "must hold", *RULES]]
    for row in rows:
        cells = []
        for result in row["results"].values():
            word = {True: "pass", False: "FAIL", None: "-"}[result["passed"]]
            cells.append(f"{word}: {result['let_through']}" if result["passed"] is not None else word)
        lines.append([row["fault"], ", ".join(row["checks"]), *cells])
    return [*lines, ["passed", "", *(f"{good} of {judged}" for good, judged in passed.values())]]


def _joints() -> Contender:
    """One step of 7 joints with jumps and noise."""
    layer = SafetyFilter(SafetyLimits(SEVEN_JOINTS, tracking=(1.0,) * 7, force_n=30.0), np.zeros(7))
    rng, here = np.random.default_rng(0), [np.zeros(7)]

    def step() -> None:
        sent = layer.step(rng.normal(0, 1, 7), PERIOD_S, Measured(here[0], 0.01, np.zeros(6)))
        here[0] = sent.position

    return Contender("step of 7 joints", step, 1, "steps", repeats=_STEPS)


def _poses() -> Contender:
    """One step of a pose, a gripper and one half-space."""
    pose = PoseLimits(
        speed_m_s=0.5, acceleration_m_s2=2.0, jerk_m_s3=40.0, rotation_rad_s=1.0, rotation_rad_s2=4.0,
        box=((-0.5,) * 3, (0.5,) * 3), half_spaces=((0.0, 0.0, -1.0, 0.2),), step_m=0.3, step_rad=1.0,
    )  # fmt: skip
    start = np.array([0.0, 0, 0, 1, 0, 0, 0])
    layer = PoseSafetyFilter(PoseSafetyLimits(pose, GripperCard(0.0, 0.08, 0.2), force_n=30.0), start, gripper=0.04)
    rng, here = np.random.default_rng(0), [start]

    def step() -> None:
        turned = rng.normal(0, 0.3, 4) + start[3:]
        action = np.concatenate([rng.normal(0, 0.3, 3), turned / np.linalg.norm(turned)])
        sent = layer.step(action, PERIOD_S, MeasuredPose(here[0], 0.01, np.zeros(6)), gripper=float(rng.random()))
        assert not sent.reasons & Reason.tracking
        here[0] = sent.pose

    return Contender("step of a pose", step, 1, "steps", repeats=_STEPS)
