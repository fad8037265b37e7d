"""A ManiSkill scene whose time passes by itself: one physics step after another, joints driven at any of them.

`env.step` waits for the policy; a robot does not. This is the same scene that evaluation plays (same resets, same drives,
same observations), taken apart: `solve` and `drive` are what the end-effector controllers of ManiSkill do at a step,
`advance` is one physics step, `measure` the observation. hardware/sim_robot.py makes a robot of it. CPU physics only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Float64
from robot_rl.errors import EnvError

from .history import HistoryEnv
from .maniskill import ManiSkillConfig, make_env
from .maniskill_sim import CpuEnvs
from .maniskill_spec import read_frame

_SCENERY = ("ground", "table")
_SAME_PLACE_M = 1e-3
_IK_ITERATIONS = 100  # as ManiSkill's Kinematics.compute_ik


@dataclass(frozen=True)
class LiveState:
    """What the scene is like after a physics step.

    Attributes:
        frames: key of EnvSpec.observation -> array, as the environment's own observation.
        position, velocity: of all joints in the order of EnvSpec.joint_names, float64 (Q,), rad or m.
        pose: of the end effector in the robot's base frame, m and quaternion wxyz, float64 (7,).
        success: the task's signal now.
    """

    frames: dict[str, np.ndarray]
    position: Float64[Array, " Q"]
    velocity: Float64[Array, " Q"]
    pose: Float64[Array, "7"]
    success: bool


class LiveScene:
    """See the text of this module.

    Args:
        env: one env of maniskill.make_env on CPU physics, without pushes.

    Raises:
        EnvError: another kind of env, or a robot without an end effector.
    """

    def __init__(self, env: HistoryEnv) -> None:
        # The very scene that evaluation resets; HistoryEnv itself only knows whole control steps.
        sim = env._env
        if not isinstance(sim, CpuEnvs) or sim.num_envs != 1:
            raise EnvError(
                f"live {env.spec.env_id}", expected="one scene with CPU physics and no push",
                got=f"{env.num_envs} of {type(sim).__name__}", hint="Use sim_backend=physx_cpu and no push.",
            )  # fmt: skip
        self._history, self._env, self._views = env, sim._envs[0], sim.views
        self.spec = env.spec
        self.step_s = 1.0 / float(self._env.sim_freq)
        self.steps_per_control = int(self._env.sim_freq // self._env.control_freq)
        self._robot = self._env.agent.robot._objs[0]
        self._kinematics = _kinematics(self._env)
        self._chain = _chain_to(self._kinematics.end_link._objs[0], self._env.agent.uid)

    def reset(self, seed: int) -> None:
        """Start an episode; every joint holds where it is.

        Raises:
            EnvError: as HistoryEnv.reset.
        """
        self._history.reset([seed])
        self.drive(range(len(self.spec.joint_names)), self._robot.qpos.astype(np.float64))

    def solve(self, pose: Float64[Array, "7"]) -> Float64[Array, " Q"] | None:
        """Joint positions that bring the end effector to a pose, searched from the measured ones; None: out of reach.

        Args:
            pose: in the base frame, m and a unit quaternion wxyz.

        Returns:
            All joints; those that do not carry the end effector as measured, float64 (Q,).
        """
        import sapien

        kinematics, measured = self._kinematics, self._robot.qpos
        sign = -1.0 if pose[3] < 0 else 1.0  # the solver's path depends on it; ManiSkill keeps the real part positive
        order = kinematics.pmodel_active_joint_indices.numpy()
        result, success, _error = kinematics.pmodel.compute_inverse_kinematics(
            kinematics.end_link_idx,
            sapien.Pose(pose[:3].astype(np.float32), (sign * pose[3:]).astype(np.float32)),
            initial_qpos=measured[order],
            active_qmask=kinematics.qmask,
            max_iterations=_IK_ITERATIONS,
        )
        if not success:
            return None
        out = measured.astype(np.float64)
        controlled = kinematics.pmodel_controlled_joint_indices.numpy()
        out[order[controlled]] = np.asarray(result)[controlled]
        return out

    def drive(self, joints: Sequence[int], targets: Float64[Array, " J"]) -> None:
        """Set the targets of the drives of joints, by their index in EnvSpec.joint_names."""
        active = self._robot.active_joints
        for joint, target in zip(joints, targets.astype(np.float32)[:, None], strict=True):
            active[joint].drive_target = target

    @property
    def driven(self) -> Float64[Array, " Q"]:
        """Targets of all drives, float64 (Q,)."""
        return np.array([float(joint.drive_target[0]) for joint in self._robot.active_joints], np.float64)

    def joints(self) -> Float64[Array, " Q"]:
        """Measured positions of all joints, cheap."""
        position: np.ndarray = self._robot.qpos.astype(np.float64)
        return position

    def pose(self) -> Float64[Array, "7"]:
        """Measured pose of the end effector in the base frame, cheap."""
        kinematics = self._kinematics
        tool, root = kinematics.end_link._objs[0], self._env.agent.robot.root._objs[0]
        pose = root.entity_pose.inv() * tool.entity_pose
        quaternion = -pose.q if pose.q[0] < 0 else pose.q
        return np.concatenate([pose.p, quaternion]).astype(np.float64)

    def advance(self) -> None:
        """One physics step of `step_s`."""
        with torch.inference_mode():
            self._env._before_simulation_step()
            self._env.scene.step()
            self._env._after_simulation_step()

    def success(self) -> bool:
        """The task's signal now."""
        with torch.inference_mode():
            return _is_success(self._env.get_info())

    def objects(self) -> dict[str, tuple[float, ...]]:
        """Positions for people to look at, m, in the robot's base frame: the task's own objects and goals by name, and the
        links that carry the tool as "link:<name>", from the base on; a link that sits where the one before does is left out.
        """
        root = self._env.agent.robot.root._objs[0].entity_pose.inv()
        actors = {name: actor for name, actor in self._env.scene.actors.items() if not name.startswith(_SCENERY)}
        out = {name: tuple((root * actor._objs[0].pose).p.tolist()) for name, actor in actors.items()}
        before = np.full(3, np.inf)
        for name, link in self._chain:
            place = (root * link.entity_pose).p
            if np.abs(place - before).max() > _SAME_PLACE_M:
                out[f"link:{name}"], before = tuple(place.tolist()), place
        return out

    def placement(self) -> Float64[Array, " S"]:
        """Where everything that moves is, world frame, for `place` of a scene of the same configuration and seed.

        Returns:
            Seven numbers an object (m, wxyz; by name), then of each articulation seven of its root and its joints.
        """
        parts = [_flat(actor._objs[0].pose) for actor in self._movable()]
        for body in self._bodies():
            parts += [_flat(body.root_pose), body.qpos]
        return np.concatenate(parts).astype(np.float64)

    def place(self, placement: Float64[Array, " S"]) -> None:
        """Put everything where `placement` of another scene says, to be drawn: speeds and targets stay as they are.

        Raises:
            EnvError: that scene has other objects.
        """
        import sapien

        bodies, actors = self._bodies(), self._movable()
        wanted = 7 * (len(actors) + len(bodies)) + sum(len(body.qpos) for body in bodies)
        if len(placement) != wanted:
            raise EnvError(
                "placement", expected=f"{wanted} numbers", got=str(len(placement)), hint="Use the same configuration."
            )
        numbers = placement.astype(np.float32)
        for actor in actors:
            actor._objs[0].pose, numbers = sapien.Pose(numbers[:3], numbers[3:7]), numbers[7:]
        for body in bodies:
            body.root_pose = sapien.Pose(numbers[:3], numbers[3:7])
            body.qpos, numbers = numbers[7 : 7 + len(body.qpos)], numbers[7 + len(body.qpos) :]

    def _movable(self) -> list[Any]:
        actors = self._env.scene.actors
        return [actors[name] for name in sorted(actors) if not name.startswith(_SCENERY)]

    def _bodies(self) -> list[Any]:
        found = self._env.scene.articulations
        return [found[name]._objs[0] for name in sorted(found)]

    def measure(self) -> LiveState:
        """What it is like now."""
        with torch.inference_mode():
            info = self._env.get_info()
            frame = read_frame(self._env, self._env.get_obs(info), views=self._views)
        return LiveState(
            frames={key: value[0].numpy() for key, value in frame.items()},
            position=self.joints(),
            velocity=self._robot.qvel.astype(np.float64),
            pose=self.pose(),
            success=_is_success(info),
        )

    def close(self) -> None:
        """Release the simulator."""
        self._history.close()


def make_live(config: ManiSkillConfig) -> LiveScene:
    """A live scene of the environment that `make_env` makes of the same configuration.

    Raises:
        EnvError: as make_env, or the environment can't be live.
    """
    return LiveScene(make_env(config, num_envs=1, history=1))


def _is_success(info: Any) -> bool:
    return bool(info["success"][0]) if "success" in info else False


def _chain_to(link: Any, robot: str) -> list[tuple[str, Any]]:
    """Links from the base to this one, with their names in the robot's description."""
    chain = list[tuple[str, Any]]()
    while link is not None:
        chain.append((str(link.name).rpartition(f"{robot}_")[2], link))
        link = link.parent
    return chain[::-1]


def _flat(pose: Any) -> np.ndarray:
    return np.concatenate([pose.p, pose.q])


def _kinematics(env: Any) -> Any:
    """The arm controller's own solver, or one like it where the controller has none."""
    agent = env.agent
    parts = getattr(agent.controller, "controllers", {"arm": agent.controller})
    arm = parts.get("arm", next(iter(parts.values())))
    own = getattr(arm, "kinematics", None)
    if own is not None:
        return own
    if not hasattr(agent, "ee_link_name"):
        raise EnvError(
            f"robot {agent.uid}",
            expected="a named end effector",
            got="none in ManiSkill",
            hint="Choose another task or robot.",
        )
    from mani_skill.agents.controllers.utils.kinematics import Kinematics

    return Kinematics(agent.urdf_path, agent.ee_link_name, agent.robot, arm.active_joint_indices)
