"""Episodes of random numbers with one camera, for tests of a store's edits, repair and room on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode


def camera_spec(size: int, *, max_episode_steps: int = 40) -> EnvSpec:
    """A proprio of 3 numbers and a square camera of `size` pixels."""
    observation = {"proprio": ArraySpec("proprio", (3,)), "image/cam": ArraySpec("image/cam", (size, size, 3), "uint8")}
    return EnvSpec(
        env_id="EditTest-v1",
        observation=observation,
        action=ArraySpec("action", (2,)),
        action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "pd"),
        joint_names=("a",),
        robot="panda",
        control_hz=10.0,
        max_episode_steps=max_episode_steps,
    )


def camera_episode(number: int, steps: int, *, size: int) -> Episode:
    """Episode `number` of `camera_spec(size)`; success at the last step of even episodes only."""
    rng = np.random.default_rng(number)
    frames = {
        "proprio": rng.standard_normal((steps + 1, 3)).astype(np.float32),
        "image/cam": rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
    }
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=rng.standard_normal((steps, 2)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=(np.arange(steps) == steps - 1) & (number % 2 == 0),
        terminated=number % 2 == 0,
        truncated=number % 2 == 1,
        source=np.ones(steps, np.uint8),
        time=np.arange(steps) / 10.0,
        metadata={"seed": 100 + number},
    )


def assert_same(left: Episode, right: Episode) -> None:
    """Every array, end and metadata."""
    assert dict(left.metadata) == dict(right.metadata)
    assert (left.terminated, left.truncated) == (right.terminated, right.truncated)
    for name in ("action", "reward", "success", "source", "time"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for side in ("observation", "final_observation"):
        for key, value in getattr(right, side).items():
            np.testing.assert_array_equal(getattr(left, side)[key], value)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, by its path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
