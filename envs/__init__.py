"""Environments: every simulator or robot behind the one VectorEnv contract."""

if not __name__.startswith("robot_rl."):
    raise ImportError(
        f"import robot_rl.envs instead of {__name__}: a second copy of a module breaks isinstance silently"
    )
