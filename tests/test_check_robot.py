"""`check_robot`: a good mock passes, and every fault that it can have is found by the check that is meant for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robot_rl.checks.findings import Severity, has_errors
from robot_rl.checks.robot import ROBOT_CHECKS, check_robot
from robot_rl.deploy.schedule import ManualClock
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig

GOOD = MockRobotConfig(card="sim_panda", rate_hz=100.0, latency_s=0.01, cameras={"wrist": (8, 8)})


def found(config: MockRobotConfig) -> dict[str, Severity]:
    clock = ManualClock()
    findings = check_robot(MockRobot(config, clock=clock), seconds=2.0, clock=clock)
    return {finding.check: finding.severity for finding in findings}


def test_a_good_robot_passes() -> None:
    # The camera of a mock shows one colour.
    assert found(GOOD) == {"images": Severity.warning}
    assert found(replace(GOOD, cameras={})) == {}


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (Fault(FaultKind.nan), "numbers"),
        (Fault(FaultKind.missing, stream="pose", start_s=0.5), "streams"),
        (Fault(FaultKind.frozen, stream="pose", start_s=0.5), "rates"),
        (Fault(FaultKind.frozen, stream="pose", start_s=0.5), "ages"),
        (Fault(FaultKind.stale, stream="pose", value=0.5), "ages"),
        (Fault(FaultKind.clock_jump, value=-10.0, start_s=1.0), "clocks"),
        (Fault(FaultKind.clock_jump, value=3600.0, start_s=1.0), "clocks"),
        (Fault(FaultKind.wrong_shape, stream="image/wrist"), "contract"),
        (Fault(FaultKind.bias, value=10.0), "limits"),
        (Fault(FaultKind.read_error), "connect"),
        (Fault(FaultKind.extra_joint), "contract"),
    ],
    ids=lambda value: str(getattr(value, "kind", value)),
)
def test_every_fault_is_found(fault: Fault, check: str) -> None:
    findings = found(replace(GOOD, faults=(fault,)))
    assert findings.get(check) is Severity.error, findings


def test_what_was_not_looked_at_is_not_called_good() -> None:
    findings = found(replace(GOOD, faults=(Fault(FaultKind.read_error),)))
    assert findings == {"connect": Severity.error} | dict.fromkeys(ROBOT_CHECKS[1:], Severity.skipped)


def test_a_slow_stream_is_found() -> None:
    assert found(replace(GOOD, cameras={}, rate_hz=10.0)) == {"rates": Severity.error}


def test_nothing_is_commanded() -> None:
    clock = ManualClock()
    robot = MockRobot(GOOD, clock=clock)
    assert not has_errors(check_robot(robot, seconds=1.0, clock=clock))
    assert not robot.commands
    assert not robot.stops
