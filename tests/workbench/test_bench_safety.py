"""`bench safety`: our layers hold in every fault, and the restated rules of others fail and hold where they were found to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from robot_rl.workbench import safety_faults
from robot_rl.workbench.safety_faults import FAULTS, Trace, judge
from robot_rl.workbench.safety_rules import RULES, ArmState, Interpolation, LeRobotBounds, LeRobotRelative

pytest.importorskip("ruckig")
OURS = ("ours, joints", "ours, pose")
PEERS = ("LeRobot relative", "LeRobot bounds", "diffusion_policy", "SERL")
# + holds, x lets through, . does not apply; in the order of PEERS.
FOUND = {
    "one NaN in an action": "xxxx",
    "one Inf in an action": "++xx",
    "NaN in the rotation": ".x++",
    "one NaN, then a jump of 0.9": "xxxx",
    "jump of 0.9": "+++x",
    "actions times 1000": "x++x",
    "a bias of 0.45 on every action": "x+xx",
    "one number too few": "++++",
    "one number instead of all": "++++",
    "target outside the workspace or the joint limits": "x+x+",
    "target behind a tilted wall": "x+xx",
    "fast towards a limit": "xxxx",
    "turning back at speed": "xxxx",
    "chatter of 0.02 around a place": "xxxx",
    "quaternion changes its sign": ".+++",
    "Euler angles change their branch": ".+++",
    "true jump of 90 degrees": ".x+x",
    "quaternion of zeros": ".x++",
    "quaternion of length 10": ".x++",
    "no time between two commands": "xx+x",
    "time that is NaN or runs back": "xxxx",
    "five queued commands 0.1 ms apart": "xx+x",
    "commands late by 0.3 s": "x+++",
    "suspended for an hour, then a far target": "x++x",
    "observation stays 1 s old": "xxxx",
    "clock goes back 10 s": "xxxx",
    "measured place is NaN": "xxxx",
    "blocked arm": "+xxx",
    "arm pushed away by 0.3": "xxxx",
    "force of 50 N": "xxxx",
    "emergency stop, and commands go on": "xxxx",
    "far target after the release of a stop": "....",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command prints and writes. In a process of its own: checked annotations make a step ten times slower."""
    path = tmp_path_factory.mktemp("bench") / "safety.json"
    words = [sys.executable, "-m", "robot_rl", "bench", "safety", "--rounds", "1", "--json", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())["results"]["safety"]["facts"]


@pytest.fixture(scope="module")
def rows(printed: tuple[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["fault"]: row["results"] for row in printed[1]["faults"]}


def test_every_fault_is_judged_once(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == list(FOUND)
    assert tuple(RULES) == OURS + PEERS


def test_ours_hold_in_every_fault(rows: dict[str, dict[str, Any]]) -> None:
    failed = {(name, rule): row[rule]["let_through"] for name, row in rows.items() for rule in OURS
              if row[rule]["passed"] is False}  # fmt: skip
    assert failed == {}
    assert all(row["ours, pose"]["passed"] for row in rows.values())
    scoped = {fault.name for fault in FAULTS if fault.scope == "pose"}
    assert {name for name, row in rows.items() if row["ours, joints"]["passed"] is None} == scoped


def test_others_hold_and_fail_as_found(rows: dict[str, dict[str, Any]]) -> None:
    signs = {True: "+", False: "x", None: "."}
    assert {name: "".join(signs[row[rule]["passed"]] for rule in PEERS) for name, row in rows.items()} == FOUND


def test_the_holes_that_were_measured_are_restated() -> None:
    """docs/safety.md: LeRobot's NaN and how one NaN disarms its bounds; np.clip and interpolation keep a NaN."""
    arm = ArmState(np.zeros(3), np.array([1.0, 0, 0, 0]))
    relative = LeRobotRelative().send([math.nan, math.inf, 0.01], 0.02, arm)
    assert math.isnan(relative[0])
    np.testing.assert_allclose(relative[1:], [0.05, 0.01])
    bounds, near, far = LeRobotBounds(), np.array([0.0, 0, 0, 1, 0, 0, 0]), np.array([0.45, 0.45, 0.45, 1, 0, 0, 0])
    bounds.send(near, 0.02, arm)
    with pytest.raises(ValueError, match="jump"):
        bounds.send(far, 0.02, arm)
    assert np.isnan(bounds.send(near * [math.nan, 1, 1, 1, 1, 1, 1], 0.02, arm)).any()
    np.testing.assert_array_equal(bounds.send(far, 0.02, arm), far)  # disarmed
    interpolation = Interpolation()
    np.testing.assert_allclose(interpolation.send(far, 0.02, arm)[:3], 0.01 / math.sqrt(3))  # 0.5 m/s for 0.02 s
    interpolation.send(near * [math.nan, 1, 1, 1, 1, 1, 1], 0.02, arm)
    assert np.isnan(interpolation.send(near, 0.02, arm)).any()


@pytest.mark.parametrize(
    ("check", "place", "text"),
    [
        ("jump", 0.06, "0.06 in one command"), ("inside", 0.6, "0.1 outside"), ("speed", 0.02, "1 per second"),
        ("near", 0.3, "0.3 from the arm"), ("rest", 0.01, "moves on"), ("finite", math.nan, "NaN sent"),
    ],
)  # fmt: skip
def test_checks_by_hand(check: str, place: float, text: str) -> None:
    """One command after zero, 0.02 s later, on an arm that stays at zero."""
    sent = [np.zeros(3), np.array([place, 0, 0])]
    trace = Trace(False, sent, [0.02], [ArmState(np.zeros(3), np.array([1.0, 0, 0, 0]))])
    fault = safety_faults.Fault("by hand", (check,), list)
    assert judge(fault, trace) == (False, text)
    assert judge(fault, Trace(False, [np.zeros(3)] * 2, [0.02], trace.arms)) == (True, "holds")


def test_the_command_prints_and_writes_the_matrix(printed: tuple[str, dict[str, Any]]) -> None:
    out, facts = printed
    assert "one NaN, then a jump of 0.9" in out
    assert "step of 7 joints" in out
    assert facts["passed"]["ours, pose"] == [32, 32]
    assert facts["passed"]["ours, joints"] == [26, 26]
    assert facts["passed"]["SERL"][0] < 15
