"""An optional fast path through ManiSkill's CPU step: the same simulator objects, less pose arithmetic.

Most of a state-only CPU step is not physics: two functions of ManiSkill chain poses through batched torch code for a
batch of one. `install` replaces exactly these two in one instance: `set_action` of the end-effector position
controller, and the Panda's `is_grasping`. Physics, inverse kinematics, success, rewards and observations stay
ManiSkill's own. Only tasks and controllers whose parity a test has shown are accepted; it is off by default.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from robot_rl.errors import EnvError

# Tasks whose parity tests/envs/test_maniskill_fast.py holds, all in pd_ee_delta_pos.
SUPPORTED_TASKS = ("PickCube-v1", "PushCube-v1", "PullCube-v1", "StackCube-v1", "Bowling-v1")
SUPPORTED_CONTROL_MODE = "pd_ee_delta_pos"


def check_supported(*, task: str, control_mode: str, sim_backend: str) -> None:
    """Refuse what has no parity test.

    Raises:
        EnvError: another task, controller or backend.
    """
    if task not in SUPPORTED_TASKS or control_mode != SUPPORTED_CONTROL_MODE or sim_backend != "physx_cpu":
        raise EnvError(
            "fast_cpu=true",
            expected=f"one of {', '.join(SUPPORTED_TASKS)} with {SUPPORTED_CONTROL_MODE} on physx_cpu",
            got=f"{task} with {control_mode} on {sim_backend}",
            hint="Leave fast_cpu out: the fast path is only for tasks whose parity with ManiSkill is tested.",
        )


def install(env: Any) -> None:
    """Replace the two slow functions in this instance.

    Args:
        env: a ManiSkill BaseEnv on CPU physics with one scene.

    Raises:
        EnvError: the controller is built otherwise than the one that was copied (another mani-skill version).
    """
    arm = env.agent.controller.controllers["arm"]
    config = arm.config
    wanted = {"use_delta": True, "use_target": False, "interpolate": False, "frame": "root_translation"}
    found = {name: getattr(config, name, None) for name in wanted}
    if found != wanted or type(arm).__name__ != "PDEEPosController":
        raise EnvError(
            "fast_cpu=true", expected=f"PDEEPosController with {wanted}", got=f"{type(arm).__name__} with {found}",
            hint="This mani-skill has another controller; leave fast_cpu out.",
        )  # fmt: skip
    arm.set_action = _DirectArm(arm)
    env.agent.is_grasping = _DirectGrasp(env)


class _DirectArm:
    """`PDEEPosController.set_action` for one scene: target = measured tool position + delta, rotation kept."""

    def __init__(self, arm: Any) -> None:
        self._arm = arm
        self._drives = [joint._objs[0] for joint in arm.joints]
        self._robot = arm.articulation._objs[0]
        self._tool, self._root = arm.ee_link._objs[0], arm.root_link._objs[0]
        self._controlled = arm.kinematics.pmodel_controlled_joint_indices.numpy()

    def __call__(self, action: torch.Tensor) -> None:
        arm = self._arm
        delta = arm._preprocess_action(action)[0].numpy()
        arm._step = 0
        arm._start_qpos = arm.qpos
        target = self._root.entity_pose.inv() * self._tool.entity_pose
        target.p = target.p + delta
        if target.q[0] < 0:  # ManiSkill's products keep the real part positive, and the solver's path depends on it
            target.q = -target.q
        kinematics = arm.kinematics
        result, success, _error = kinematics.pmodel.compute_inverse_kinematics(
            kinematics.end_link_idx,
            target,
            initial_qpos=self._robot.qpos,
            active_qmask=kinematics.qmask,
            max_iterations=100,
        )
        # ManiSkill holds the measured joints when the target can't be reached.
        joints = np.asarray(result)[self._controlled].astype(np.float32) if success else arm._start_qpos[0].numpy()
        arm._target_qpos = torch.from_numpy(joints)[None]
        for drive, value in zip(self._drives, joints[:, None], strict=True):
            drive.drive_target = value


class _DirectGrasp:
    """`Panda.is_grasping` for one scene: both fingers press on the object, within an angle of their opening axis."""

    def __init__(self, env: Any) -> None:
        agent = env.agent
        self._scene = env.scene
        self._fingers = ((agent.finger1_link._objs[0], 1.0), (agent.finger2_link._objs[0], -1.0))

    def __call__(self, object: Any, min_force: float = 0.5, max_angle: float = 85.0) -> torch.Tensor:
        body = object._bodies[0].entity
        contacts = [c for c in self._scene.px.get_contacts() if body in (c.bodies[0].entity, c.bodies[1].entity)]
        return torch.tensor([all(self._presses(contacts, *f, min_force, max_angle) for f in self._fingers)])

    def _presses(self, contacts: Any, finger: Any, sign: float, min_force: float, max_angle: float) -> bool:
        impulse = np.zeros(3, dtype=np.float32)
        for contact in contacts:
            first, second = contact.bodies[0].entity, contact.bodies[1].entity
            if finger.entity in (first, second):
                total = np.sum([point.impulse for point in contact.points], axis=0, dtype=np.float32)
                impulse += total if first == finger.entity else -total
        force = impulse / np.float32(self._scene.px.timestep)
        size = np.linalg.norm(force)
        if size < min_force:
            return False
        opening = sign * finger.entity_pose.to_transformation_matrix()[:3, 1]
        cosine = np.clip(opening @ force / size, -1, 1)
        return bool(np.rad2deg(np.arccos(cosine)) <= max_angle)
