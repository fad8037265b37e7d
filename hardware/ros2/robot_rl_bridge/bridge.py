"""Executable of the lifecycle bridge."""

from robot_rl.hardware.ros2_bridge import main

__all__ = ["main"]
