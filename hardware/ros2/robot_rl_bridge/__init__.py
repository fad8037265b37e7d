"""Executables of robot-rl for ROS 2 tools."""
