"""A terminal without echo and lines, and put back as it was however this process ends: a small shell waits for that.

The shell holds the other end of a pipe; when the pipe closes (close(), an exception, SIGTERM, even SIGKILL) it gives the
terminal its old modes back.
"""

from __future__ import annotations

import os
import subprocess
import termios
from contextlib import suppress

from robot_rl.errors import DeployError

from .terminal_keys import POP

_GUARD = 'read _; stty -F "$1" "$2"; printf "\\033[?1004l\\033[<u" > "$1"'


class TerminalMode:
    """Opens a terminal for single keys. Ctrl-C still interrupts; Ctrl-Z does not, as it would leave the robot alone.

    Args:
        path: of the terminal.

    Raises:
        DeployError: there is none, or it is no terminal.
    """

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise _no_terminal(path, str(error)) from error
        try:
            self._old = termios.tcgetattr(self.fd)
            saved = subprocess.run(
                ["stty", "-F", path, "-g"], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (termios.error, OSError, subprocess.CalledProcessError) as error:
            os.close(self.fd)
            raise _no_terminal(path, f"{error}") from error
        self._path = os.ttyname(self.fd)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", self._path, saved], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        mode = termios.tcgetattr(self.fd)
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 0, 0
        mode[6][termios.VSUSP] = b"\x00"
        termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)
        self._is_open = True

    def write(self, data: bytes) -> None:
        """To the terminal; what it does not take at once is lost."""
        with suppress(OSError):
            os.write(self.fd, data)

    def close(self) -> None:
        """As it was. Also twice, also when the terminal is gone."""
        if not self._is_open:
            return
        self._is_open = False
        self.write(POP)
        with suppress(termios.error):
            # What was typed ahead for the robot is not for the shell.
            termios.tcsetattr(self.fd, termios.TCSAFLUSH, self._old)
        os.close(self.fd)
        self._guard.kill()
        self._guard.communicate()


def _no_terminal(path: str, got: str) -> DeployError:
    return DeployError(
        f"keyboard, terminal {path!r}", expected="a terminal to type in", got=got,
        hint="Start it from a terminal (also over SSH: ssh -t), or take teleop=browser or teleop=gamepad.",
    )  # fmt: skip
