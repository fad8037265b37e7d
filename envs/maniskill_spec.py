"""Reading a ManiSkill env: its EnvSpec with units and meanings, and its observations as named arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from robot_rl.deploy.point_cloud import points_to_json
from robot_rl.errors import EnvError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec

from .maniskill_views import DEPTH, IMAGE, Views, describe_cameras, privileged_state, read_views

PLAIN = Views()


def read_frame(env: Any, obs: Any, *, views: Views = PLAIN) -> dict[str, torch.Tensor]:
    """Named arrays of one observation of `env.reset` or `env.step`: key -> (N, ...), copies, for N envs of a batch.

    "state" f32 (N, S); "proprio" f32 (N, P); "image/<camera>" u8 (N, H, W, 3); "depth/<camera>" f32 (N, H, W, 1) m;
    "points" f32 (N, M, 6): x, y, z in the robot's base frame in metres and RGB in 0..1; points without a surface are zero.
    `views` says how a cloud is cropped and sampled, and whether the state comes with images and points.
    """
    from mani_skill.utils import common

    if env.obs_mode == "state":
        proprio = common.flatten_state_dict(env._get_obs_agent(), use_torch=True, device=env.device)
        return {"proprio": proprio.float().clone(), "state": obs.float().clone()}
    out = {"proprio": common.flatten_state_dict(obs["agent"], use_torch=True, device=env.device).float().clone()}
    return out | read_views(env, obs, views)


def describe_env(env: Any, *, task: str, max_episode_steps: int, views: Views = PLAIN) -> EnvSpec:
    """EnvSpec of a ManiSkill BaseEnv; `views` as in read_frame.

    Raises:
        EnvError: the task drives several robots, or its action is not a vector.
    """
    agent = env.agent
    if not hasattr(agent, "robot") or not hasattr(env.single_action_space, "low"):
        raise EnvError(
            task, expected="one robot with one action vector", got="several robots or none", hint="Choose another task."
        )
    frame = read_frame(env, env.get_obs(), views=views)
    meanings = {"proprio": tuple(_paths(env._get_obs_agent(), ""))}
    if "state" in frame:
        meanings["state"] = tuple(_paths(privileged_state(env), ""))
    is_prismatic = [joint.type[0] == "prismatic" for joint in agent.robot.active_joints]
    observation = {key: _array_spec(key, value, meanings, is_prismatic) for key, value in frame.items()}
    cameras = describe_cameras(env)
    return EnvSpec(
        env_id=task,
        observation=observation,
        action=_action_spec(env.single_action_space, agent.controller),
        action_semantics=_semantics(agent.controller, agent.control_mode),
        joint_names=tuple(joint.name for joint in agent.robot.active_joints),
        robot=str(agent.uid),
        control_hz=float(env.control_freq),
        max_episode_steps=max_episode_steps,
        has_success="success" in env.get_info(),
        cameras=cameras,
        point_cloud=points_to_json(views.points, tuple(cameras)) if views.points and "points" in observation else {},
    )


def _paths(value: Any, path: str) -> Iterator[str]:
    """One name per element of a nested observation, in ManiSkill's order of flattening."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _paths(child, f"{path}.{key}" if path else str(key))
        return
    size = int(np.prod(tuple(value.shape)[1:])) if value.ndim > 1 else 1
    for index in range(size):
        yield path if size == 1 else f"{path}[{index}]"


def _array_spec(
    key: str, value: torch.Tensor, meanings: Mapping[str, tuple[str, ...]], is_prismatic: list[bool]
) -> ArraySpec:
    shape = tuple(value.shape[1:])
    if key.startswith(DEPTH):
        return ArraySpec(key, shape, units=("m",), meanings=("along the camera's axis, 0 where there is no surface",))
    if key.startswith(IMAGE):
        return ArraySpec(key, shape, dtype="uint8", meanings=("RGB, rows from the top",))
    if key == "points":
        colour = ", red, green, blue (0..1)" if shape[1] > 3 else ""
        meaning = f"x, y, z in the base frame (m){colour}; zero where there is no surface"
        return ArraySpec(key, shape, meanings=(meaning,))
    units = tuple(_unit(name, is_prismatic) for name in meanings[key])
    return ArraySpec(key, shape, units=units, meanings=meanings[key])


def _unit(name: str, is_prismatic: list[bool]) -> str:
    """Unit by ManiSkill's habits of naming: qpos, qvel, *_pose (position, then a quaternion wxyz), *_pos."""
    leaf, _, rest = name.rpartition(".")[2].partition("[")
    index = int(rest.rstrip("]")) if rest else 0
    if leaf in ("qpos", "qvel"):
        unit = "m" if index < len(is_prismatic) and is_prismatic[index] else "rad"
        return unit + ("/s" if leaf == "qvel" else "")
    if leaf.endswith("pose"):
        return "m" if index < 3 else "1"
    return "m" if leaf.endswith(("pos", "position", "size", "radius")) else "1"


def _controllers(controller: Any) -> dict[str, Any]:
    parts = getattr(controller, "controllers", None)
    return dict(parts) if parts else {"arm": controller}


def _action_spec(space: Any, controller: Any) -> ArraySpec:
    low, high = np.asarray(space.low, dtype=np.float64), np.asarray(space.high, dtype=np.float64)
    is_bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
    elements = [pair for name, part in _controllers(controller).items() for pair in _elements(name, part)]
    return ArraySpec(
        "action",
        tuple(space.shape),
        low=tuple(low.tolist()) if is_bounded else None,
        high=tuple(high.tolist()) if is_bounded else None,
        units=tuple(unit for unit, _ in elements),
        meanings=tuple(meaning for _, meaning in elements),
    )


def _elements(name: str, controller: Any) -> list[tuple[str, str]]:
    """(unit, meaning) of each element of one controller's action (mani_skill/agents/controllers)."""
    size = int(controller.single_action_space.shape[0])
    kind, config = type(controller).__name__, controller.config
    delta = "change of " if getattr(config, "use_delta", False) else ""
    if kind in ("PDEEPosController", "PDEEPoseController"):
        what = [("m", f"{name}: {delta}end-effector {axis}") for axis in "xyz"]
        what += [("rad", f"{name}: {delta}end-effector rotation {axis}") for axis in "xyz"]
    elif kind == "PDJointPosMimicController":
        what = [("m" if name == "gripper" else "1", f"{name}: {delta}position of the fingers")] * size
    elif kind == "PDJointPosController":
        what = [("rad", f"{name}: {delta}{joint}") for joint in config.joint_names]
    elif kind == "PDJointVelController":
        what = [("rad/s", f"{name}: velocity of {joint}") for joint in config.joint_names]
    elif kind == "PDJointPosVelController":
        what = [("rad", f"{name}: {delta}{joint}") for joint in config.joint_names]
        what += [("rad/s", f"{name}: velocity of {joint}") for joint in config.joint_names]
    else:
        what = [("1", f"{name}: {kind} element {index}") for index in range(size)]
    what = what[:size]
    if not controller._normalize_action:
        return what
    return [(_normalised(unit, controller, index, kind), meaning) for index, (unit, meaning) in enumerate(what)]


def _normalised(unit: str, controller: Any, index: int, kind: str) -> str:
    original = controller._original_single_action_space
    low, high = float(original.low[index]), float(original.high[index])
    if kind == "PDEEPoseController" and index >= 3:
        # ManiSkill scales rotations by their lower bound: a positive number turns the negative way;
        # and it shortens the three numbers together to length 1.
        return f"1 = {float(np.broadcast_to(controller.config.rot_lower, 3)[index - 3]):g} {unit}, norm <= 1"
    if abs(low + high) < 1e-9:
        return f"1 = {high:g} {unit}"
    return f"-1 = {low:g} {unit}, 1 = {high:g} {unit}"


def _semantics(controller: Any, control_mode: str) -> ActionSemantics:
    parts = _controllers(controller)
    gripper = parts.get("gripper")
    arm = parts.get("arm", next(iter(parts.values())))
    kind, config = type(arm).__name__, arm.config
    if "Vel" in kind and "PosVel" not in kind:
        action_kind = ActionKind.velocity
    else:
        action_kind = ActionKind.delta if getattr(config, "use_delta", False) else ActionKind.absolute
    reference = DeltaReference.none
    if action_kind is ActionKind.delta:
        reference = DeltaReference.target if getattr(config, "use_target", False) else DeltaReference.measured
    is_cartesian = kind.startswith("PDEE")
    frame = ("tool" if "body_translation" in config.frame else "base") if is_cartesian else "joint"
    return ActionSemantics(
        kind=action_kind,
        delta_reference=reference,
        frame=frame,
        # pytorch3d's "XYZ", about the turned axes: the controller's targets agree to 1e-7 rad.
        rotation="euler_XYZ" if kind == "PDEEPoseController" else "none",
        gripper="none" if gripper is None else _gripper(gripper),
        control_mode=control_mode,
    )


def _gripper(controller: Any) -> str:
    # A normalised controller keeps the space it began with; in metres here.
    space = controller._original_single_action_space if controller._normalize_action else controller.single_action_space
    low, high = float(space.low[0]), float(space.high[0])
    if controller._normalize_action:
        return f"-1 closed ({low:g} m) .. 1 open ({high:g} m)"
    return f"{low:g} m closed .. {high:g} m open"
