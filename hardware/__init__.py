"""Drivers of robots, cameras and teleoperation devices."""

if not __name__.startswith("robot_rl."):
    raise ImportError(
        f"import robot_rl.hardware instead of {__name__}: a second copy of a module breaks isinstance silently"
    )
