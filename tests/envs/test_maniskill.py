"""Real ManiSkill: layouts, determinism, errors, and physics that does not depend on how the machine draws."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mani_skill")

from software_vulkan import software_icd

from robot_rl.contracts import VectorEnv
from robot_rl.envs import headless
from robot_rl.envs.history import HistoryEnv
from robot_rl.envs.maniskill import ManiSkillConfig, RewardMode, make_env
from robot_rl.errors import EnvError
from robot_rl.specs import ActionKind, DeltaReference, EnvSpec
from robot_rl.types import ActionChunk

STEPS = 30


def make(task: str = "PickCube-v1", *, num_envs: int = 1, **options: object) -> HistoryEnv:
    config = ManiSkillConfig(task=task, **options)  # type: ignore[arg-type]
    return make_env(config, num_envs=num_envs, history=1)


def grasp(state: torch.Tensor) -> torch.Tensor:
    """Go above the cube, down, close, carry to the goal: contacts of all kinds. State layout of PickCube-v1."""
    action = torch.zeros(state.shape[0], 4)
    for row, s in enumerate(state):
        to_cube, to_goal, is_grasped = s[36:39].clone(), s[39:42], bool(s[18])
        near = bool(to_cube.norm() < 0.01)
        if to_cube[:2].norm() > 0.01:
            to_cube[2] += 0.08
        action[row, :3] = to_goal * 10 if is_grasped else (torch.zeros(3) if near else to_cube * 10)
        action[row, 3] = -1 if near or is_grasped else 1
    return action.clamp(-1, 1)


def play(env: HistoryEnv, seeds: list[int]) -> dict[int, torch.Tensor]:
    """States of each episode, (T + 1, 42), under the closed-loop controller above."""
    observation = env.reset(seeds)
    states: dict[int, list[torch.Tensor]] = {}
    for row, seed in enumerate(env.episode_seeds.tolist()):
        states[seed] = [observation.state[row, -1]]
    while (env.episode_seeds >= 0).any():
        before = env.episode_seeds
        result = env.step(ActionChunk(actions=grasp(observation.state[:, -1])[:, None], execute=1))
        for row in np.flatnonzero(before >= 0):
            states[int(before[row])].append(result.final_observation.state[row, -1])
            if env.episode_seeds[row] not in (before[row], -1):
                states[int(env.episode_seeds[row])] = [result.observation.state[row, -1]]
        observation = result.observation
    return {seed: torch.stack(rows) for seed, rows in states.items() if seed >= 0}


@pytest.fixture(scope="module")
def pick() -> HistoryEnv:
    return make(max_episode_steps=STEPS, terminate_on_success=False)


def test_observation_is_maniskills_own(pick):
    from mani_skill.utils.registration import REGISTERED_ENVS

    assert isinstance(pick, VectorEnv)
    raw = REGISTERED_ENVS["PickCube-v1"].make(
        num_envs=1, obs_mode="state", control_mode="pd_ee_delta_pos", reward_mode="sparse",
        sim_backend="physx_cpu", render_backend=headless.prepare_rendering("state", vulkan_icd=None).render_backend,
    )  # fmt: skip
    expected, _ = raw.reset(seed=11)
    observation = pick.reset([11])
    assert observation.state.shape == (1, 1, 42)
    assert torch.equal(observation.state[0], expected)
    assert torch.equal(observation.proprio, observation.state[..., :18])
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 5, 4)).astype(np.float32))
    result = pick.step(ActionChunk(actions=actions, execute=5))
    for step in range(5):
        expected, *_ = raw.step(actions[0, step])
        assert torch.equal(result.frames["state"][0, step], expected[0])
    raw.close()


def test_spec_tells_the_truth(pick):
    spec = pick.spec
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert (spec.env_id, spec.robot, spec.control_hz, spec.max_episode_steps) == ("PickCube-v1", "panda", 20.0, STEPS)
    assert spec.joint_names[0] == "panda_joint1"
    assert len(spec.joint_names) == 9
    assert spec.has_success
    semantics = spec.action_semantics
    assert (semantics.kind, semantics.delta_reference) == (ActionKind.delta, DeltaReference.measured)
    assert (semantics.frame, semantics.rotation) == ("base", "none")
    assert semantics.gripper == "-1 closed (-0.01 m) .. 1 open (0.04 m)"
    assert spec.action.units == ("1 = 0.1 m",) * 3 + ("-1 = -0.01 m, 1 = 0.04 m",)
    assert spec.action.low == (-1.0,) * 4
    state = spec.observation["state"]
    assert state.meanings[18] == "extra.is_grasped"
    assert state.meanings[29] == "extra.obj_pose[0]"
    assert state.units[:10] == ("rad",) * 7 + ("m", "m", "rad/s")
    assert spec.observation["proprio"].shape == (18,)


def test_units_of_the_action_are_physical(pick):
    """The first action of a chunk moves the commanded target by 0.1 m a unit, in the base frame."""
    pick.reset([0])
    scene = pick._env._envs[0]
    arm = scene.agent.controller.controllers["arm"]
    before = arm.ee_pose_at_base.p[0].clone()
    pick.step(ActionChunk(actions=torch.tensor([[[0.5, -0.2, 0.1, 1.0]]]), execute=1))
    torch.testing.assert_close(arm._target_pose.p[0] - before, torch.tensor([0.05, -0.02, 0.01]), atol=1e-6, rtol=0)


def test_a_seed_is_an_episode_whatever_ran_before_or_beside(pick):
    seeds = [5, 12]
    fresh = {}
    for seed in seeds:
        env = make(max_episode_steps=STEPS, terminate_on_success=False)
        fresh |= play(env, [seed])
        env.close()
    assert max(float(states[:, 18].max()) for states in fresh.values()) == 1.0  # cubes were really grasped
    assert all(states[0, 18] == 0 for states in fresh.values())
    for order in ([12, 5], [5, 12]):
        for seed, states in play(pick, order).items():
            assert torch.equal(states, fresh[seed]), f"seed {seed} in order {order}"
    three = make(num_envs=3, max_episode_steps=STEPS, terminate_on_success=False)
    for seed, states in play(three, [7, 12, 5]).items():
        assert seed == 7 or torch.equal(states, fresh[seed]), f"seed {seed} beside others"
    three.close()


def test_success_ends_the_episode():
    env = make(max_episode_steps=40)
    states = play(env, [5])[5]
    assert len(states) - 1 < 40
    assert float(states[-1, 39:42].norm()) <= 0.025  # the cube is within the goal's radius
    assert env.protocol()["terminate_on_success"] is True
    env.close()


@pytest.mark.parametrize(
    ("task", "control_mode", "state_size", "action_size"),
    [("PushT-v1", "pd_ee_delta_pose", 31, 6), ("StackCube-v1", "pd_joint_delta_pos", 48, 8)],
)
def test_other_tasks(task, control_mode, state_size, action_size):
    env = make(task, num_envs=2, control_mode=control_mode, reward_mode=RewardMode.normalized_dense)
    assert env.reset([1, 2]).state.shape == (2, 1, state_size)
    result = env.step(ActionChunk(actions=torch.zeros(2, 3, action_size), execute=3))
    assert result.executed.tolist() == [3, 3]
    assert (result.rewards > 0).all()
    assert all(len(spec.meanings) == spec.size == len(spec.units) for spec in env.spec.observation.values())
    if task == "PushT-v1":
        # ManiSkill multiplies rotations by their lower bound.
        assert env.spec.action.units == ("1 = 0.1 m",) * 3 + ("1 = -0.1 rad, norm <= 1",) * 3
    env.close()


def test_protocol_names_what_a_result_depends_on(pick):
    protocol = pick.protocol()
    expected = {"task": "PickCube-v1", "obs_mode": "state", "control_mode": "pd_ee_delta_pos", "reward_mode": "sparse"}
    assert {key: protocol[key] for key in expected} == expected
    assert (protocol["sim_backend"], protocol["max_episode_steps"]) == ("physx_cpu", STEPS)
    assert set(protocol["versions"]) == {"mani_skill", "sapien", "numpy", "torch"}
    assert protocol["rendering"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "PickCub-v1"}, "Did you mean 'PickCube-v1'"),
        ({"obs_mode": "stat"}, "Did you mean 'state'.*pointcloud, rgb, rgb.depth, state, state_dict"),
        ({"control_mode": "pd_ee_delta_po"}, "robot panda.*Did you mean 'pd_ee_delta_pos'.*pd_joint_pos"),
    ],
)
def test_misspelt_names(options, message):
    with pytest.raises(EnvError, match=message):
        make(**options)


def test_missing_assets_are_named(monkeypatch):
    from mani_skill.utils import assets

    monkeypatch.setattr(assets, "is_data_source_downloaded", lambda name: False)
    with pytest.raises(EnvError, match="download_asset ycb`"):
        make("PickSingleYCB-v1")


def test_seeds_beyond_maniskills_range(pick):
    with pytest.raises(EnvError, match=r"below 2\^32"):
        pick.reset([2**32])


def _run(code: str, *arguments: str) -> str:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


_ENV_STATES = """
import sys, hashlib, numpy as np, torch
torch.set_num_threads(1)
from robot_rl.envs.maniskill import ManiSkillConfig, make_env
from robot_rl.types import ActionChunk
icd = sys.argv[1] if len(sys.argv) > 1 else None
print("KIND", end=" ")
for task, mode, size in (("PickCube-v1", "pd_ee_delta_pos", 4), ("PushT-v1", "pd_ee_delta_pose", 6)):
    env = make_env(ManiSkillConfig(task, control_mode=mode, vulkan_icd=icd), num_envs=1, history=1)
    if task == "PickCube-v1":
        print(env.protocol()["rendering"].partition(":")[0])
    env.reset([3, 4, 5])
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 20, size)).astype(np.float32))
    actions[:, :, 2] -= 0.5
    env.step(ActionChunk(actions=actions, execute=20))
    print("STATE", task, hashlib.sha256(env._env._envs[0].get_state().numpy().tobytes()).hexdigest())
"""


def test_physics_is_the_same_with_and_without_a_renderer():
    icd = software_icd()
    if icd is None:
        pytest.skip("no SwiftShader here (apt-get install chromium-common)")
    with_renderer, without = _run(_ENV_STATES, icd), _run(_ENV_STATES)
    if "KIND none" not in without:
        pytest.skip("this machine has a Vulkan device of its own")
    assert "KIND software" in with_renderer

    def states(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("STATE")]

    assert len(states(without)) == 2
    assert states(with_renderer) == states(without)


_IMAGES = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from robot_rl.envs.maniskill import ManiSkillConfig, make_env
from robot_rl.types import ActionChunk
config = ManiSkillConfig("PickCube-v1", obs_mode=sys.argv[2], vulkan_icd=sys.argv[1], image_size=32)
env = make_env(config, num_envs=1, history=2)
key = "points" if sys.argv[2] == "pointcloud" else "image/base_camera"
first = env.reset([3]).arrays()
assert set(first) == {"proprio", key}, set(first)
assert tuple(first[key].shape[2:]) == env.spec.observation[key].shape
actions = torch.full((1, 4, 4), 0.5)
moved = env.step(ActionChunk(actions=actions, execute=4)).observation.arrays()
assert not torch.equal(moved[key], first[key])
again = env.reset([3]).arrays()
assert all(torch.equal(again[name], first[name]) for name in first)
other = env.reset([4]).arrays()[key]
assert not torch.equal(other, first[key])
image = first[key][0, 0].float()
print("RANGE", float(image.std()), *(float(x) for x in image.reshape(-1, image.shape[-1]).amin(0)[:3]))
if key == "points":  # the table is at height 0 of the base; most of the picture is table or arm
    heights = image[image.abs().sum(1) > 0][:, 2]
    assert (heights.abs() < 0.005).float().mean() > 0.2, heights
else:
    assert image.std() > 10
"""


@pytest.mark.slow
@pytest.mark.parametrize("obs_mode", ["rgb", "pointcloud"])
def test_images_by_software(obs_mode):
    icd = software_icd()
    if icd is None:
        pytest.skip("no SwiftShader here (apt-get install chromium-common)")
    assert "RANGE" in _run(_IMAGES, icd, obs_mode)


def test_images_after_state_only_are_refused(pick):
    if headless.prepare_rendering("state", vulkan_icd=None).kind is not headless.RenderingKind.none:
        pytest.skip("this machine has a renderer")
    with pytest.raises(EnvError, match="state-only"):
        make(obs_mode="rgb")


def test_no_renderer_says_what_to_install(monkeypatch):
    monkeypatch.setattr(headless, "_process_choice", None)
    monkeypatch.setattr(headless, "_may_have_device", lambda: False)
    monkeypatch.setattr(headless, "_SWIFTSHADER", ("/nowhere/icd.json",))
    with pytest.raises(EnvError, match=r"/nowhere/icd.json.*apt-get install chromium-common.*obs_mode=state"):
        headless.prepare_rendering("rgb", vulkan_icd=None)


def test_wrong_icd_path(monkeypatch):
    monkeypatch.setattr(headless, "_process_choice", None)
    with pytest.raises(EnvError, match="no such file"):
        headless.prepare_rendering("state", vulkan_icd="/nowhere/icd.json")


def test_choice_is_announced_once(monkeypatch, caplog):
    choice = headless.RenderingChoice(headless.RenderingKind.none, "none", "state-only without Vulkan")
    monkeypatch.setattr(headless, "_process_choice", None)
    monkeypatch.setattr(headless, "_choose", lambda wants_images, icd: choice)
    with caplog.at_level("INFO", logger=headless.__name__):
        assert headless.prepare_rendering("state", vulkan_icd=None) is choice
        assert headless.prepare_rendering("state_dict", vulkan_icd=None) is choice
    assert [record.getMessage() for record in caplog.records] == [
        "ManiSkill rendering: none (state-only without Vulkan)"
    ]
