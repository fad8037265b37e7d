"""Three short episodes that are seen by one small camera, for tests of what is computed from images once."""

from __future__ import annotations

import numpy as np

from robot_rl.data.windows import StepArrays
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec

SPEC = EnvSpec(
    env_id="Seen",
    observation={"proprio": ArraySpec("proprio", (2,)), "image/top": ArraySpec("image/top", (8, 8, 3), "uint8")},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "d"),
    joint_names=(),
    robot="r",
    control_hz=1.0,
    max_episode_steps=9,
)
LENGTHS = np.array([5, 9, 4], np.int64)


def seen_steps() -> StepArrays:
    """Steps of SPEC in episodes of LENGTHS, drawn from one seed; all succeed."""
    rng, steps = np.random.default_rng(0), int(LENGTHS.sum())
    return StepArrays(
        frames={
            "proprio": rng.standard_normal((steps + 3, 2)).astype(np.float32),
            "image/top": rng.integers(0, 256, (steps + 3, 8, 8, 3), dtype=np.uint8),
        },
        action=rng.standard_normal((steps, 2)).astype(np.float32),
        reward=np.zeros(steps, np.float32),
        done=np.zeros(steps, bool),
        source=np.zeros(steps, np.uint8),
        lengths=LENGTHS,
        success=np.ones(3, bool),
    )
