"""Hydra groups: one YAML a choice."""

if not __name__.startswith("robot_rl."):
    raise ImportError(
        f"import robot_rl.configs instead of {__name__}: a second copy of a module breaks isinstance silently"
    )
