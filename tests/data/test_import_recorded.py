"""Files that ManiSkill records here, from its RecordEpisode wrapper and its planner, all the way into imitate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from software_vulkan import software_icd

from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.maniskill import ManiSkillReader
from robot_rl.data.formats.maniskill_header import read_header
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec
from robot_rl.workbench.data import main

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.skipif(find_spec("mani_skill") is None, reason="ManiSkill is not installed (extra sim)")

LIMIT = 200


def grasp(state: np.ndarray) -> np.ndarray:
    """Controller for PickCube-v1 on its flat state: above the cube, down, close, to the goal."""
    to_cube, to_goal = state[36:39].copy(), state[39:42]
    near = np.linalg.norm(to_cube) < 0.01
    if np.linalg.norm(to_cube[:2]) > 0.01:
        to_cube[2] += 0.08
    is_grasped = bool(state[18])
    move = to_goal * 10 if is_grasped else (np.zeros(3) if near else to_cube * 10)
    return np.clip(np.concatenate([move, [-1.0 if near or is_grasped else 1.0]]), -1, 1).astype(np.float32)


def record(folder: Path, obs_mode: str, *, waits: int = 0) -> Path:
    """Two episodes of PickCube-v1 recorded by ManiSkill; `waits` steps of doing nothing come first."""
    from robot_rl.envs.headless import prepare_rendering

    backend = prepare_rendering("state", vulkan_icd=None).render_backend
    import gymnasium
    from mani_skill.utils.wrappers.record import RecordEpisode

    env: Any = gymnasium.make(
        "PickCube-v1", num_envs=1, obs_mode=obs_mode, control_mode="pd_ee_delta_pos", reward_mode="sparse",
        sim_backend="physx_cpu", render_backend=backend, max_episode_steps=LIMIT,
    )  # fmt: skip
    env = RecordEpisode(env, str(folder), trajectory_name="demo", save_video=False, source_type="motionplanning")
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        for step in range(waits + 60):
            if isinstance(obs, dict):
                from mani_skill.utils import common

                obs = common.flatten_state_dict(obs, use_torch=True) if obs else None
            action = np.zeros(4, np.float32) if obs is None or step < waits else grasp(obs[0].numpy())
            obs, _, terminated, truncated, _ = env.step(action[None])
            if terminated or truncated:
                break
    env.close()
    return folder / "demo.h5"


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("flat"), "state")


def bring_in(path: Path, target: Path, spec: EnvSpec) -> Any:
    reader = ManiSkillReader(read_header(path), spec)
    try:
        return import_episodes(reader, target)
    finally:
        reader.close()


def test_recorded_numbers_arrive(flat: Path, tmp_path: Path) -> None:
    """Against h5py, and the first episode against our own environment playing the same actions from the same seed."""
    import torch

    from robot_rl.envs.maniskill import ManiSkillConfig, make_env
    from robot_rl.types import ActionChunk

    spec = make_env(ManiSkillConfig(task="PickCube-v1"), num_envs=1, history=1).spec
    report = bring_in(flat, tmp_path / "out.zarr", spec)
    assert (report.episodes, report.successes) == (2, 2), "the controller of this file should succeed"
    with EpisodeStore.open(tmp_path / "out.zarr") as store, h5py.File(flat) as file:
        assert store.seeds.tolist() == [0, 1]
        for number in range(2):
            episode, group = store.episode(number), file[f"traj_{number}"]
            np.testing.assert_array_equal(episode.observation["state"], group["obs"][:-1])
            np.testing.assert_array_equal(episode.final_observation["state"], group["obs"][-1])
            np.testing.assert_array_equal(episode.action, group["actions"][:])
            np.testing.assert_array_equal(episode.reward, group["rewards"][:])
            np.testing.assert_array_equal(episode.success, group["success"][:])
            # RecordEpisode keeps joint positions and velocities a second time, as simulator state.
            joints = group["env_states/articulations/panda"][:-1, 13:]
            np.testing.assert_allclose(episode.observation["proprio"], joints, atol=1e-6)
        first = store.episode(0)
    env = make_env(
        ManiSkillConfig(task="PickCube-v1", terminate_on_success=False, max_episode_steps=LIMIT), num_envs=1, history=1
    )
    observation = env.reset([0])
    for state, proprio, action in zip(
        first.observation["state"], first.observation["proprio"], first.action, strict=True
    ):
        np.testing.assert_array_equal(observation.state[0, 0].numpy(), state)
        np.testing.assert_array_equal(observation.proprio[0, 0].numpy(), proprio)
        observation = env.step(ActionChunk(actions=torch.from_numpy(action)[None, None], execute=1)).observation
    np.testing.assert_array_equal(observation.state[0, 0].numpy(), first.final_observation["state"])


def test_maniskills_own_planner_is_slower_than_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded by mani_skill.examples.motionplanning: joint positions, no rewards, about 75 steps against 50."""
    pytest.importorskip("mplib")
    from robot_rl.envs.headless import prepare_rendering
    from robot_rl.envs.maniskill import ManiSkillConfig, make_env

    backend = prepare_rendering("state", vulkan_icd=None).render_backend
    import gymnasium
    from mani_skill.examples.motionplanning.panda import run

    make = gymnasium.make
    monkeypatch.setattr(gymnasium, "make", lambda *words, **options: make(*words, **options, render_backend=backend))
    flags = ["-e", "PickCube-v1", "-n", "2", "-o", "state", "-b", "physx_cpu", "--traj-name", "plan"]
    monkeypatch.setattr("sys.argv", ["run", *flags, "--record-dir", str(tmp_path)])
    run.main(run.parse_args())
    (path,) = tmp_path.rglob("plan.h5")
    spec = make_env(ManiSkillConfig(task="PickCube-v1", control_mode="pd_joint_pos"), num_envs=1, history=1).spec
    report = bring_in(path, tmp_path / "out.zarr", spec)
    assert (report.episodes, report.successes) == (2, 2)
    assert report.over_limit >= 1
    assert report.late_success == report.over_limit
    assert 60 < report.longest_steps < 120
    assert any(f"env.max_episode_steps={report.longest_steps}" in note for note in report.notes)
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        assert store.episode(0).action.shape[1] == 8
        assert store.episode(0).reward.tolist() == store.episode(0).success.astype(np.float32).tolist()


def test_flat_and_nested_files_give_the_same_store(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ways to record the same episodes; one spec from the file, one from our configuration."""
    nested = record(tmp_path, "state_dict")
    hashes = []
    for name, path, more in (("a", flat, []), ("b", nested, ["--env", "pick_cube"])):
        assert (
            main(["import", str(path), str(tmp_path / f"{name}.zarr"), "--format", "maniskill", *more, "--json"]) == 0
        )
        report = json.loads(capsys.readouterr().out)
        assert (report["episodes"], report["successes"], report["over_limit"]) == (2, 2, 0)
        hashes.append(report["content_hash"])
    assert hashes[0] == hashes[1]


def test_spec_of_another_store(flat: Path, tmp_path: Path) -> None:
    """Without a simulator: the spec of a store, or of a file with the same JSON, says how to read the file."""
    words = ["import", str(flat)]
    assert main([*words, str(tmp_path / "a.zarr"), "--format", "maniskill"]) == 0
    with EpisodeStore.open(tmp_path / "a.zarr") as store:
        (tmp_path / "spec.json").write_text(json.dumps(store.spec.to_json()))
        content = store.content_hash()
    for name, spec in (("b", "a.zarr"), ("c", "spec.json")):
        target = tmp_path / f"{name}.zarr"
        assert main([*words, str(target), "--format", "maniskill", "--spec", str(tmp_path / spec)]) == 0
        with EpisodeStore.open(target) as store:
            assert store.content_hash() == content


def test_imported_demonstrations_train_and_roll_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow demonstrations (40 idle steps, longer than PickCube's 50) are told, and imitate takes the store."""
    path = record(tmp_path, "state", waits=40)
    target = tmp_path / "demos.zarr"
    assert main(["info", str(path)]) == 0
    assert "control_mode: pd_ee_delta_pos" in capsys.readouterr().out
    assert main(["import", str(path), str(target), "--format", "maniskill"]) == 0
    text = capsys.readouterr().out
    assert "2 of 2 demonstrations are longer than the limit of 50 steps of PickCube-v1" in text
    assert "env.max_episode_steps=" in text
    done = subprocess.run(
        [
            sys.executable, "-m", "robot_rl", "imitate", "env=pick_cube", f"dataset={target}", "train.num_steps=2",
            "policy.observation_keys=[state]", "policy.hidden_width=32", "train.batch_size=8", "train.warmup_steps=1",
            "train.threads=1", "rollout_episodes=1", "env.max_episode_steps=5",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/checkpoints/step_000002/policy.safetensors"))


def test_recorded_without_observations_names_the_command(tmp_path: Path) -> None:
    path = record(tmp_path, "none")
    with pytest.raises(DataError) as caught:
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill"])
    for part in ("env_states", f"replay_trajectory --traj-path {path} -o state --use-env-states"):
        assert part in str(caught.value)


def test_env_of_another_control_mode_is_refused(flat: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(flat.parent, tmp_path / "copy")) / flat.name
    with pytest.raises(DataError, match=r"env_id.*StackCube-v1.*PickCube-v1"):
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill", "--env", "stack_cube"])
    content = json.loads(path.with_suffix(".json").read_text())
    for entry in content["episodes"]:
        entry["control_mode"] = "pd_joint_delta_pos"
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"control_mode.*pd_ee_delta_pos.*pd_joint_delta_pos"):
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill", "--env", "pick_cube"])
    with pytest.raises(DataError, match=r"actions: expected \(T, 8\)"):
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill"])


_CLOUDS = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from pathlib import Path
from robot_rl.envs.maniskill import ManiSkillConfig, make_env
from robot_rl.types import ActionChunk
folder = Path(sys.argv[2])
ours = make_env(
    ManiSkillConfig("PickCube-v1", obs_mode="pointcloud", vulkan_icd=sys.argv[1], image_size=32), num_envs=1, history=1
)
points = [ours.reset([3]).points]
action = np.array([0.5, -0.2, -0.5, 1.0], np.float32)
for _ in range(2):
    points.append(ours.step(ActionChunk(actions=torch.from_numpy(action)[None, None], execute=1)).observation.points)
from robot_rl.envs.headless import prepare_rendering
backend = prepare_rendering("pointcloud", vulkan_icd=sys.argv[1]).render_backend
import gymnasium
from mani_skill.utils.wrappers.record import RecordEpisode
env = gymnasium.make(
    "PickCube-v1", num_envs=1, obs_mode="pointcloud", control_mode="pd_ee_delta_pos", reward_mode="sparse",
    sim_backend="physx_cpu", render_backend=backend, sensor_configs={"width": 32, "height": 32},
)
env = RecordEpisode(env, str(folder), trajectory_name="demo", save_video=False, source_type="rl")
env.reset(seed=3)
for _ in range(2):
    env.step(action[None])
env.close()
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.maniskill import ManiSkillReader
from robot_rl.data.formats.maniskill_header import read_header
from robot_rl.data.store import EpisodeStore
import_episodes(ManiSkillReader(read_header(folder / "demo.h5"), ours.spec), folder / "out.zarr")
with EpisodeStore.open(folder / "out.zarr") as store:
    episode = store.episode(0)
found = np.concatenate([episode.observation["points"], episode.final_observation["points"][None]])
expected = torch.cat([p[:, 0] for p in points]).numpy()
assert found.shape == expected.shape, (found.shape, expected.shape)
assert (np.abs(expected).sum(2) > 0).mean() > 0.5
print("FURTHEST", float(np.abs(found - expected).max()))
"""


@pytest.mark.slow
def test_recorded_clouds_are_those_of_our_environment(tmp_path: Path) -> None:
    icd = software_icd()
    if icd is None:
        pytest.skip("no SwiftShader here (apt-get install chromium-common)")
    done = subprocess.run(
        [sys.executable, "-c", _CLOUDS, icd, str(tmp_path)], capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    furthest = float(done.stdout.split("FURTHEST ")[1])
    assert furthest < 1e-5
