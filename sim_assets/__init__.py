"""Small, licence-noted models for our own tasks."""

if not __name__.startswith("robot_rl."):
    raise ImportError(
        f"import robot_rl.sim_assets instead of {__name__}: a second copy of a module breaks isinstance silently"
    )
