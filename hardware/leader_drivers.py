"""Where the joints of a leader arm come from: servos on a serial line, a ROS 2 topic, or datagrams on this machine.

Each source gives name -> number, as it is: ticks of servos, or radians. What they mean says leader_arm.py. The servo drivers
are NOT TRIED ON HARDWARE: Dynamixel X (control table of protocol 2: Present Position 132, 4 bytes, signed), Feetech STS
(Present Position 56, 2 bytes; bit 15 is the sign where a servo runs in several turns).
"""

from __future__ import annotations

import json
import math
import select
import socket
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from robot_rl.deploy.robot_card import TopicCard
from robot_rl.errors import DeployError

Numbers = dict[str, float]
_MOST_BYTES = 8192
_MOST_DATAGRAMS = 100


@runtime_checkable
class LeaderSource(Protocol):
    """One source; used by one thread."""

    trouble: str

    def open(self) -> None:
        """Begin to hear.

        Raises:
            DeployError: it can't be opened; with what to do.
        """
        ...

    def poll(self) -> Numbers | None:
        """What is new, or None; waits a few milliseconds at most.

        Raises:
            OSError: it is lost.
        """
        ...

    def close(self) -> None:
        """Also twice."""
        ...


class SocketSource:
    """Datagrams of JSON to 127.0.0.1: {"joints": {"<name>": rad, ...}}; the newest counts. Bad ones are told and left out.

    Args:
        port: UDP; 0 takes a free one, `port` says which.
    """

    def __init__(self, port: int) -> None:
        self.port, self.trouble = port, ""
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """See LeaderSource."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind(("127.0.0.1", self.port))
        except OSError as error:
            self.close()
            raise DeployError(
                f"leader arm, UDP port {self.port}",
                expected="a free port",
                got=str(error),
                hint="Does another one listen?",
            ) from error
        self.port = int(self._socket.getsockname()[1])

    def poll(self) -> Numbers | None:
        """See LeaderSource."""
        assert self._socket is not None
        newest = None
        if not select.select([self._socket], [], [], 0.005)[0]:
            return None
        for _ in range(_MOST_DATAGRAMS):
            try:
                data = self._socket.recv(_MOST_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            try:
                newest = numbers_of(json.loads(data)["joints"])
                self.trouble = ""
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                self.trouble = f"a datagram that is no joint reading ({type(error).__name__}: {str(error)[:80]})"
        return newest

    def close(self) -> None:
        """See LeaderSource."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class Ros2Source:
    """A topic of JointState.

    Args:
        topic: full name.
        domain_id: None: ROS_DOMAIN_ID of the environment.
    """

    def __init__(self, topic: str, *, domain_id: int | None = None) -> None:
        self._topic, self._domain_id, self.trouble = topic, domain_id, ""
        self._link: Any = None
        self._seen_s = 0.0

    def open(self) -> None:
        """See LeaderSource."""
        from .ros2_link import Ros2Link, Stream

        self._link = Ros2Link("robot_rl_leader", domain_id=self._domain_id)
        self._stream = Stream("leader", TopicCard(self._topic, "JointState"), self._link.full(self._topic))

    def poll(self) -> Numbers | None:
        """See LeaderSource."""
        time.sleep(0.002)
        if self._stream.profile is None and not self._link.listen(self._stream):
            self.trouble = f"nobody publishes {self._topic}"
            return None
        self.trouble = self._stream.incompatible
        heard = self._stream.newest
        if heard is None or heard.received_s == self._seen_s:
            return None
        self._seen_s = heard.received_s
        return numbers_of(dict(zip(heard.message.name, heard.message.position, strict=False)))

    def close(self) -> None:
        """See LeaderSource."""
        if self._link is not None:
            self._link.close()
        self._link = None


class DynamixelSource:
    """Servos of Robotis' X series (dynamixel_sdk, protocol 2), all in one reading; torque is not touched.

    Args:
        port: "/dev/ttyUSB0".
        baud: bits a second.
        ids: name -> id.
    """

    def __init__(self, port: str, baud: int, ids: Mapping[str, int]) -> None:
        self._port, self._baud, self._ids, self.trouble = port, baud, dict(ids), ""
        self._line: Any = None

    def open(self) -> None:
        """See LeaderSource."""
        sdk = _imported("dynamixel_sdk", "dynamixel-sdk")
        self._line = _opened(sdk, self._port, self._baud)
        self._reader = sdk.GroupSyncRead(self._line, sdk.PacketHandler(2.0), 132, 4)
        for servo in self._ids.values():
            self._reader.addParam(servo)

    def poll(self) -> Numbers | None:
        """See LeaderSource."""
        code = self._reader.txRxPacket()
        if code != 0:
            self.trouble = f"the servos do not answer (code {code})"
            return None
        missing = [name for name, servo in self._ids.items() if not self._reader.isAvailable(servo, 132, 4)]
        self.trouble = f"no answer of {', '.join(missing)}" if missing else ""
        if missing:
            return None
        return {name: float(_signed(self._reader.getData(servo, 132, 4), 32)) for name, servo in self._ids.items()}

    def close(self) -> None:
        """See LeaderSource."""
        if self._line is not None:
            self._line.closePort()
        self._line = None


class FeetechSource:
    """Servos of Feetech's STS series (scservo_sdk of feetech-servo-sdk), one after the other; torque is not touched.

    Args:
        port, baud, ids: as in DynamixelSource.
    """

    def __init__(self, port: str, baud: int, ids: Mapping[str, int]) -> None:
        self._port, self._baud, self._ids, self.trouble = port, baud, dict(ids), ""
        self._line: Any = None

    def open(self) -> None:
        """See LeaderSource."""
        sdk = _imported("scservo_sdk", "feetech-servo-sdk")
        self._line = _opened(sdk, self._port, self._baud)
        self._handler = sdk.PacketHandler(0)

    def poll(self) -> Numbers | None:
        """See LeaderSource."""
        out = {}
        for name, servo in self._ids.items():
            value, code, _ = self._handler.read2ByteTxRx(self._line, servo, 56)
            if code != 0:
                self.trouble = f"{name} (servo {servo}) does not answer (code {code})"
                return None
            out[name] = float(-(value & 0x7FFF) if value & 0x8000 else value)
        self.trouble = ""
        return out

    def close(self) -> None:
        """See LeaderSource."""
        if self._line is not None:
            self._line.closePort()
        self._line = None


def numbers_of(values: Any) -> Numbers:
    """Name -> finite number.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(values, Mapping) or len(values) > 64:
        raise ValueError("no mapping of names to numbers")
    numbers = {str(name): float(value) for name, value in values.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("numbers that are not finite")
    return numbers


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def _imported(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise DeployError(
            "leader arm", expected=f"the package {package}", got="not installed", hint=f"pip install {package}."
        ) from error


def _opened(sdk: Any, port: str, baud: int) -> Any:
    line = sdk.PortHandler(port)
    try:
        is_open = line.openPort() and line.setBaudRate(baud)
    except PermissionError as error:
        raise DeployError(
            f"leader arm, {port}", expected="access", got=str(error),
            hint="sudo usermod -aG dialout $USER, and log in again.",
        ) from error  # fmt: skip
    except OSError as error:
        raise DeployError(
            f"leader arm, {port}", expected="a serial line", got=str(error), hint="ls /dev/serial/by-id"
        ) from error
    if not is_open:
        raise DeployError(
            f"leader arm, {port}", expected="an open line", got="none", hint="Port, and baud rate of the servos?"
        )
    return line
