"""Bowling: a Panda pushes a ball that rolls down a lane by itself and topples pins which the arm can't reach.

Our own dynamic task on ManiSkill 3, in the spirit of the bowling of RL-100 (Lei et al. 2025). The task itself is in
bowling_sim.py, its scripted expert in bowling_expert.py.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from robot_rl.specs import EnvSpec

from .history import HistoryEnv
from .maniskill import ManiSkillConfig
from .maniskill import make_env as make_maniskill

ENV_ID = "Bowling-v1"


def make_env(config: ManiSkillConfig, *, num_envs: int, history: int) -> HistoryEnv:
    """Build `num_envs` bowling lanes with `history` frames per observation.

    Args:
        config: options of every ManiSkill task; `task` is "Bowling-v1".
        num_envs: N.
        history: To.

    Raises:
        EnvError: as robot_rl.envs.maniskill.make_env; there is no dense reward and no fast_cpu.
    """
    with warnings.catch_warnings():
        # As in headless.py: sapien brings a Vulkan loader of its own.
        warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
        from . import bowling_sim  # noqa: F401  (registers the task with ManiSkill)
    env = make_maniskill(config, num_envs=num_envs, history=history)
    env.spec = _with_units(env.spec)
    return env


def _with_units(spec: EnvSpec) -> EnvSpec:
    """The spec with the units of the ball's velocity and spin, which ManiSkill's names don't tell."""
    if "state" not in spec.observation:
        return spec
    state = spec.observation["state"]
    known = {"ball_vel": "m/s", "ball_spin": "rad/s"}
    names = [meaning.rpartition(".")[2].partition("[")[0] for meaning in state.meanings]
    units = tuple(known.get(name, unit) for name, unit in zip(names, state.units, strict=True))
    return replace(spec, observation={**spec.observation, "state": replace(state, units=units)})
