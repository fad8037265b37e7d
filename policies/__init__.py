"""Policies, denoisers and encoders: networks behind the contracts of robot_rl.contracts."""

if not __name__.startswith("robot_rl."):
    raise ImportError(
        f"import robot_rl.policies instead of {__name__}: a second copy of a module breaks isinstance silently"
    )
