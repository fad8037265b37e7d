"""Replays with a drift that is known: none with the settings of the recording, and by hand where an action was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.replaying import settings_that_differ
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.rollout import EpisodeRecord, rollout
from robot_rl.runs.config import build
from robot_rl.types import Episode, Source
from robot_rl.workbench import data_replay

POINT = {"_target_": "robot_rl.envs.point_reach.make_env"}
CUBE = {
    "_target_": "robot_rl.envs.maniskill.make_env", "task": "PickCube-v1", "obs_mode": "state",
    "control_mode": "pd_ee_delta_pos",
}  # fmt: skip
EXPERTS = {
    "robot_rl.envs.point_reach.make_env": "robot_rl.envs.point_reach.PointReachExpert",
    "robot_rl.envs.maniskill.make_env": "robot_rl.envs.experts.ScriptedExpert",
}


def record(path: Path, component: dict[str, object], *, episodes: int, num_envs: int = 2) -> Path:
    """As `robot-rl collect`: the scripted expert, a store with env and protocol in its metadata."""
    env = build(component, num_envs=num_envs, history=1)
    kept: list[Episode] = []

    def on_episode(record: EpisodeRecord, episode: Episode | None) -> None:
        assert episode is not None
        kept.append(episode)

    expert = build({"_target_": EXPERTS[str(component["_target_"])]}, spec=env.spec)
    rollout(env, expert, range(episodes), on_episode=on_episode, source=Source.scripted)
    with EpisodeStore.create(path, env.spec, metadata={"env": component, "protocol": env.protocol()}) as store:
        store.append_many(kept)
    env.close()
    return path


def changed(path: Path, target: Path, number: int, change: dict[str, object]) -> Path:
    """A copy of the store in which one episode differs."""
    with EpisodeStore.open(path) as store, EpisodeStore.create(target, store.spec, metadata=store.metadata) as out:
        for index in range(len(store)):
            episode = store.episode(index)
            out.append(replace(episode, **change) if index == number else episode)  # type: ignore[arg-type]
    return target


def run(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = data_replay.main(["replay", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def points(tmp_path: Path) -> Path:
    return record(tmp_path / "points.zarr", POINT, episodes=5)


def test_the_recorded_settings_give_no_drift(points: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(points, capsys=capsys)
    assert (code, report["episodes"], report["same"], report["success_agrees"]) == (0, 5, 5, 5)
    assert report["settings_that_differ"] == []
    for episode in report["per_episode"]:
        assert episode["played"] == episode["steps"]
        assert episode["first_success"] == episode["replayed_first_success"]
        for key in episode["keys"].values():
            assert (key["max_difference"], key["first_over"], key["worst"]) == (0.0, None, "nowhere")
            assert len(key["max_per_step"]) == episode["steps"] + 1


def test_a_changed_action_shows_from_its_step_on(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An action moves the point by a tenth: 0.2 more in x at step 2 is 0.02 m from frame 3 on, and nothing before."""
    with EpisodeStore.open(points) as store:
        action = store.episode(1).action.copy()
    step = 2
    more = 0.2 if action[step, 0] < 0.5 else -0.2
    action[step, 0] += more
    code, report = run(
        changed(points, tmp_path / "x.zarr", 1, {"action": action}), "--threshold", "0.01", capsys=capsys
    )
    assert code == 1
    assert report["same"] == 4
    drift = report["per_episode"][1]["keys"]["state"]
    expected = np.where(np.arange(len(drift["max_per_step"])) > step, 0.02, 0.0)
    np.testing.assert_allclose(drift["max_per_step"], expected, atol=1e-6)
    np.testing.assert_allclose(drift["mean_per_step"], expected / 4, atol=1e-6)
    assert drift["first_over"] == step + 1
    code, report = run(tmp_path / "x.zarr", "--threshold", "0.03", "--threshold", "state=0.5", capsys=capsys)
    assert report["per_episode"][1]["keys"]["state"]["first_over"] is None


def test_another_seed_shows_at_the_start_and_in_success(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = run(changed(points, tmp_path / "x.zarr", 0, {"metadata": {"seed": 77}}), capsys=capsys)
    assert code == 1
    first = report["per_episode"][0]
    assert first["keys"]["state"]["first_over"] == 0
    assert (first["success"], first["replayed_success"]) == (True, False)
    assert report["success_agrees"] == 4


def test_an_episode_that_ends_early_says_so(points: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(points, "env.max_episode_steps=3", "--episodes", "0", "2-3", capsys=capsys)
    assert code == 1
    assert [e["episode"] for e in report["per_episode"]] == [0, 2, 3]
    assert report["cut_short"] == 3
    assert all(e["played"] == 3 for e in report["per_episode"])
    assert report["settings_that_differ"] == ["max_episode_steps: stored 30, new 3"]


def test_what_is_refused(points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = changed(points, tmp_path / "x.zarr", 3, {"metadata": {}})
    with pytest.raises(DataError, match=r"episode 3: expected the seed"):
        data_replay.main(["replay", str(without)])
    with pytest.raises(ConfigError, match="sate"):
        data_replay.main(["replay", str(points), "--threshold", "sate=1"])
    with pytest.raises(ConfigError, match="seed=3"):
        data_replay.main(["replay", str(points), "seed=3"])
    bare = tmp_path / "bare.zarr"
    with EpisodeStore.open(points) as store, EpisodeStore.create(bare, store.spec) as out:
        out.append(store.episode(0))
    with pytest.raises(DataError, match="env=pick_cube"):
        data_replay.main(["replay", str(bare)])
    assert data_replay.main(["replay", str(bare), "env=point_reach"]) == 0
    assert "the data do not say how they were collected" in capsys.readouterr().out


def test_settings_of_imported_files_are_compared_too() -> None:
    """A ManiSkill file names its backend (pain B19: demonstrations of one backend played on another)."""
    now = {"sim_backend": "physx_cuda", "obs_mode": "state", "history": 2}
    imported = {"import": {"env_kwargs": {"sim_backend": "physx_cpu", "obs_mode": "state", "render_backend": "none"}}}
    assert settings_that_differ(imported, now) == ["sim_backend: stored physx_cpu, new physx_cuda"]
    assert settings_that_differ({"protocol": {**now, "history": 1}}, now) == []
    assert settings_that_differ({}, now) == ["the data do not say how they were collected"]


def test_on_a_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mock robot in real time holds its pose: its own record, made by the same command's actions, is near."""
    from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig

    robot = MockRobot(MockRobotConfig(card="sim_panda_joints"))
    robot.connect()
    here = robot.read()
    steps = 6
    rows = np.tile(np.asarray(here.frames["proprio"]), (steps + 1, 1))
    action = np.tile(np.append(here.position, 1.0), (steps, 1)).astype(np.float32)
    episode = Episode(
        observation={"proprio": rows[:-1]}, final_observation={"proprio": rows[-1]}, action=action,
        reward=np.zeros(steps, np.float32), success=np.zeros(steps, bool), terminated=False, truncated=True,
        source=np.zeros(steps, np.uint8), time=np.arange(steps) / 20, metadata={},
    )  # fmt: skip
    store = tmp_path / "robot.zarr"
    with EpisodeStore.create(store, robot.spec) as out:
        out.append_many([episode, replace(episode, metadata={"seed": 1})])
    mock = "{robot: {_target_: robot_rl.hardware.mock_robot.MockRobot}}"
    words = ["robot=sim_panda_joints", "~driver", f"+driver={mock}", "--threshold", "0.01"]
    code, report = run(store, *words, "--episodes", "1", capsys=capsys)
    # On a busy machine the loop may skip slots, and says so.
    assert code == (0 if report["per_episode"][0]["played"] == steps else 1)
    assert report["per_episode"][0]["replayed_success"] is None
    assert report["per_episode"][0]["keys"]["proprio"]["max_difference"] < 0.01
    with pytest.raises(ConfigError, match="one episode"):
        data_replay.main(["replay", str(store), *map(str, words)])


def test_pick_cube_replays_bit_by_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Demonstrations of the scripted expert on CPU physics; another control mode is refused with both declarations."""
    pytest.importorskip("mani_skill")
    path = record(tmp_path / "cubes.zarr", CUBE, episodes=2)
    code, report = run(path, capsys=capsys)
    assert (code, report["same"], report["success_agrees"], report["success"]) == (0, 2, 2, 2)
    assert all(key["max_difference"] == 0 for e in report["per_episode"] for key in e["keys"].values())
    with pytest.raises(DataError) as error:
        data_replay.main(["replay", str(path), "env.control_mode=pd_joint_delta_pos"])
    text = str(error.value)
    assert "pd_ee_delta_pos" in text
    assert "pd_joint_delta_pos  <- differs" in text
