"""Executable of the simulated arm."""

from robot_rl.hardware.sim_robot_node import main

__all__ = ["main"]
