"""Absolute targets computed from deltas are those that ManiSkill's own controllers aim at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robot_rl.data.conversion import Conversion, Measured
from robot_rl.data.converting import Converter
from robot_rl.data.rotations import geodesic_rad
from robot_rl.types import ActionChunk, Episode

pytest.importorskip("mani_skill")

JOINTS = Measured("proprio", 0, 7)


@pytest.mark.parametrize("mode", ["pd_joint_delta_pos", "pd_joint_target_delta_pos", "pd_ee_target_delta_pose"])
def test_targets_are_those_of_the_controller(mode: str) -> None:
    from robot_rl.envs.maniskill import ManiSkillConfig, make_env

    env = make_env(ManiSkillConfig("PickCube-v1", control_mode=mode, terminate_on_success=False), num_envs=1, history=1)
    simulator = env._env._envs[0]  # type: ignore[attr-defined]  # its controller says where it aims
    arm = simulator.agent.controller.controllers["arm"]
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (10, env.spec.action.size)).astype(np.float32)
    frames, aims = [env.reset([3]).arrays()["state"][0, 0].numpy()], []
    for action in actions:
        result = env.step(ActionChunk(actions=torch.from_numpy(action)[None, None], execute=1))
        frames.append(result.frames["state"][0, 0].numpy())
        aim = arm._target_qpos if "joint" in mode else arm._target_pose.raw_pose
        aims.append(aim[0].numpy().astype(np.float64))
    state, aimed = np.stack(frames), np.stack(aims)
    size = env.spec.observation["proprio"].size
    episode = Episode(
        observation={"state": state[:-1], "proprio": state[:-1, :size]},
        final_observation={"state": state[-1], "proprio": state[-1, :size]},
        action=actions, reward=np.zeros(10, np.float32), success=np.zeros(10, bool), terminated=False, truncated=True,
        source=np.zeros(10, np.uint8), time=np.arange(10) / env.spec.control_hz,
    )  # fmt: skip
    if "joint" in mode:
        out = Converter(env.spec, Conversion(kind="absolute", measured=JOINTS), where=mode).episode(episode)
        np.testing.assert_allclose(out.action[:, :7], aimed, atol=1e-6)
    else:
        first = next(i for i, name in enumerate(env.spec.observation["state"].meanings) if "tcp_pose" in name)
        hand = Measured("state", first, first + 7, "quat_wxyz")
        wanted = Conversion(kind="absolute", rotation="quat_wxyz", measured=hand)
        found = Converter(env.spec, wanted, where=mode).episode(episode).action.astype(np.float64)
        base = simulator.agent.robot.pose.p[
            0
        ].numpy()  # the observed pose is in the world, the controller's in the base
        np.testing.assert_allclose(found[:, :3] - base, aimed[:, :3], atol=2e-6)
        assert geodesic_rad(found[:, 3:7], aimed[:, 3:], "quat_wxyz", where="").max() < 1e-6
    np.testing.assert_array_equal(out.action[:, 7] if "joint" in mode else found[:, 7], actions[:, -1])
    env.close()
