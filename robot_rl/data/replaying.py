"""Recorded actions, played once more in the environment they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Bool
from robot_rl.contracts import VectorEnv
from robot_rl.data.episode_rows import schema_differences
from robot_rl.data.same_spec import require_same_spec
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Episode

_HINT = "Replay in the environment that the data come from (env=... and env.control_mode=...), or convert the data."


def require_playable(stored: EnvSpec, offered: EnvSpec, *, where: str, whose: str) -> None:
    """Refuse actions that mean something else where they would be played; time limits may differ.

    Args:
        stored: of the data at `where`.
        offered: of the environment or robot.
        where: for the error.
        whose: what `offered` belongs to, for example "the environment".

    Raises:
        DataError: with both declarations and every difference.
    """
    same = replace(offered, max_episode_steps=stored.max_episode_steps, has_success=stored.has_success)
    require_same_spec(stored, same, where=where, whose=whose, hint=_HINT)


def settings_that_differ(metadata: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per setting that is not as it was when the data were collected.

    Args:
        metadata: of the store: `protocol` of its environment, or what an imported file says of its own.
        now: `VectorEnv.protocol`.
    """
    said = metadata.get("protocol") or {}
    foreign = {k: v for k, v in metadata.get("import", {}).get("env_kwargs", {}).items() if k in now}
    if not (said or foreign):
        return ["the data do not say how they were collected"]
    left, right = ({k: v for k, v in one.items() if k != "history"} for one in (said or foreign, now))
    return schema_differences(left, right if said else {k: right[k] for k in foreign})


def seed_of(episode: Episode, *, where: str) -> int:
    """The seed that an episode started from.

    Raises:
        DataError: it was not recorded, so its start can't be made again.
    """
    seed = episode.metadata.get("seed", -1)
    if seed < 0:
        raise DataError(
            where, expected="the seed it started from, in its metadata", got="none",
            hint="Data of a robot, or imported without seeds, can't be started again in a simulator; leave it out.",
        )  # fmt: skip
    return int(seed)


def play_in_env(env: VectorEnv, episode: Episode, seed: int) -> tuple[dict[str, np.ndarray], Bool[Array, " L"]]:
    """Start from `seed` and play the actions until they or the episode end.

    Args:
        env: one environment (num_envs 1) of the same spec.
        episode: whose actions are played, in the env's own units.
        seed: of the start.

    Returns:
        key -> (L + 1, ...), the start and what each of the L actions led to; and bool (L,), success after each.
    """
    first = env.reset([seed]).arrays()
    actions = torch.from_numpy(np.array(episode.action, np.float32)).to(env.device)[None]
    result = env.step(ActionChunk(actions=actions, execute=len(episode)))
    count = int(result.executed[0])
    frames = {
        key: np.concatenate([_numpy(value[0, -1:]), _numpy(result.frames[key][0, :count])])
        for key, value in first.items()
    }
    success: np.ndarray = _numpy(result.step_success[0, :count])
    return frames, success


def _numpy(tensor: Any) -> np.ndarray:
    array: np.ndarray = torch.as_tensor(tensor).detach().cpu().numpy()
    return array
