"""Executable of the recorder."""

from robot_rl.hardware.ros2_recorder import main

__all__ = ["main"]
