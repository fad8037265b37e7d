"""Scripted expert for ManiSkill's PegInsertionSide-v1, closed loop on the privileged state, with flaws on request.

The task (mani_skill 3.0.1, envs/tasks/tabletop/peg_insertion_side.py): pick up a square peg of random size and push its
head to the middle of a box, through a hole with 3 mm of clearance. What the expert does is in peg_insertion_rule.py.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

from .expert_flaws import ExpertConfig
from .expert_memory import ExpertMemory, require_task
from .experts import METRES_PER_ACTION, TOP_SPEED
from .peg_insertion_rule import Bench, Motion, insert_peg

ENV_ID = "PegInsertionSide-v1"
CONTROL_MODE = "pd_ee_delta_pose"
STATE_SIZE = 43
# qpos (9), qvel (9), then the task's extras in the order of its _get_obs_extra; poses with quaternions wxyz.
FINGERS, TCP, PEG, HALF_SIZE, HOLE = slice(7, 9), slice(18, 25), slice(25, 32), slice(32, 35), slice(35, 42)
# agents/controllers/pd_ee_pose.py scales rotations by their lower bound: a positive number turns the negative way.
RADIANS_PER_ACTION = -0.1
GAIN = 2.0


class PegInsertionExpert:
    """Solves PegInsertionSide-v1 with `pd_ee_delta_pose`.

    Without flaws it has no memory at all. Flaws are those of ExpertConfig: grasp_offset_m along and across the peg,
    goal_offset_m across the hole and in height, early closing above the peg, a drop before the hole, speed, and noise on
    the three position actions.

    Args:
        config: flaws, noise and seed.
        spec: of the environment; needs the observation key "state".

    Raises:
        EnvError: for another task, control mode or observation.
        ConfigError: for a flaw out of range.
    """

    def __init__(self, config: ExpertConfig, spec: EnvSpec) -> None:
        config.validate()
        require_task(spec, env_id=ENV_ID, control_mode=CONTROL_MODE, state_size=STATE_SIZE, name="peg_insertion")
        self.config = config
        self._memory = ExpertMemory(config)

    def act(
        self,
        observation: Observation,
        *,
        episode_seeds: Int64[Array, " N"],
        new_episode: Bool[Array, " N"],
    ) -> ActionChunk:
        """Choose the next action of N envs from the newest frame of `observation.state`.

        Args:
            observation: state float32 (N, To, 43).
            episode_seeds: int64 (N,), -1 for an idle env (its action means nothing).
            new_episode: bool (N,), True where this is the first decision of an episode.

        Returns:
            A chunk of one action, float32 (N, 1, 7) in [-1, 1]: x, y, z deltas, rotations, and the gripper (1 open,
            -1 shut).

        Raises:
            EnvError: when an episode goes on that never began.
        """
        frame = torch.as_tensor(observation.state)[:, -1].detach()
        self._memory.begin(torch.as_tensor(episode_seeds).cpu().numpy(), torch.as_tensor(new_episode).cpu().numpy())
        motion = insert_peg(read_bench(frame.cpu().numpy().astype(np.float64)), self._memory.flaws)
        shut, opened = self._memory.slips.step(above=motion.above, to_goal=motion.to_wait, holding=motion.holding)
        arm = np.where((shut | opened)[:, None], 0.0, _arm(motion, self._memory.flaws.speed))
        arm[:, :3] += self._memory.noise()
        close = (motion.close | shut) & ~opened
        action = np.concatenate([np.clip(arm, -1.0, 1.0), np.where(close, -1.0, 1.0)[:, None]], axis=1)
        return ActionChunk(torch.as_tensor(action[:, None], dtype=torch.float32, device=frame.device), execute=1)


def read_bench(state: Float64[Array, "N S"]) -> Bench:
    """What the rule looks at, from the task's flat state, float64 (N, 43). Idle envs may hold zeros."""
    return Bench(
        tcp=state[:, TCP][:, :3],
        tcp_axes=_axes(state[:, TCP][:, 3:]),
        finger=state[:, FINGERS].mean(axis=1),
        peg=state[:, PEG][:, :3],
        peg_axes=_axes(state[:, PEG][:, 3:]),
        half_length=state[:, HALF_SIZE][:, 0],
        radius=state[:, HALF_SIZE][:, 1],
        hole=state[:, HOLE][:, :3],
        hole_axes=_axes(state[:, HOLE][:, 3:]),
    )


def _axes(quaternion: Float64[Array, "N 4"]) -> Float64[Array, "N 3 3"]:
    """Rotation matrices of quaternions wxyz; of zeros, which an idle env may show, the identity."""
    real = np.where((quaternion == 0.0).all(axis=1), 1.0, quaternion[:, 0])
    return np.asarray(Rotation.from_quat(np.column_stack([quaternion[:, 1:], real])).as_matrix())


def _arm(motion: Motion, speed: Float64[Array, " N"]) -> Float64[Array, "N 6"]:
    """Position and rotation actions: proportional, limited in speed."""
    turn = _limited(motion.turn * (GAIN / abs(RADIANS_PER_ACTION)) * speed[:, None], speed)
    wanted = _limited(motion.displacement * (GAIN / METRES_PER_ACTION) * speed[:, None], speed * TOP_SPEED)
    # The controller turns about the tool: what the turn does to a point away from it is taken back.
    rotation = Rotation.from_rotvec(turn * abs(RADIANS_PER_ACTION))
    swing = rotation.apply(motion.lever) - motion.lever
    angles = rotation.as_euler("XYZ")
    return np.concatenate([wanted - swing / METRES_PER_ACTION, angles / RADIANS_PER_ACTION], axis=1)


def _limited(vector: Float64[Array, "N 3"], top: Float64[Array, " N"]) -> Float64[Array, "N 3"]:
    """The vector, shortened to length `top`."""
    size = np.sqrt((vector * vector).sum(axis=1))
    return vector * np.minimum(1.0, top / np.maximum(size, 1e-9))[:, None]
