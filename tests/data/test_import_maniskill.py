"""ManiSkill files, small ones by hand, for every way to be wrong; test_import_recorded.py has ManiSkill's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.maniskill import ManiSkillReader
from robot_rl.data.formats.maniskill_header import read_header
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Source

h5py = pytest.importorskip("h5py")

SEMANTICS = ActionSemantics(
    ActionKind.delta, DeltaReference.measured, "base", "none", "-1 closed .. 1 open", "pd_ee_delta_pos"
)
PROPRIO = ("qpos[0]", "qpos[1]", "qvel[0]", "qvel[1]")
STATE = (*(f"agent.{name}" for name in PROPRIO), "extra.is_grasped", "extra.goal_pos[0]", "extra.goal_pos[1]")
SPEC = EnvSpec(
    env_id="Toy-v1",
    observation={
        "proprio": ArraySpec("proprio", (4,), units=("1",) * 4, meanings=PROPRIO),
        "state": ArraySpec("state", (7,), units=("1",) * 7, meanings=STATE),
    },
    action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0), units=("1",) * 2, meanings=("a", "b")),
    action_semantics=SEMANTICS,
    joint_names=("j0", "j1"),
    robot="toy",
    control_hz=20.0,
    max_episode_steps=5,
)


def toy(folder: Path, lengths: tuple[int, ...] = (3, 4), *, flat: bool = True, gzip: bool = False) -> Path:
    """Episodes whose numbers say where they come from: obs[t, d] = 100 episode + t + d / 10, action = (t / 10, -t / 10)."""
    pack = {"compression": "gzip"} if gzip else {}
    with h5py.File(folder / "t.h5", "w") as file:
        for number, steps in enumerate(lengths):
            group = file.create_group(f"traj_{number}")
            obs = (100 * number + np.arange(steps + 1)[:, None] + np.arange(7) / 10).astype(np.float32)
            if flat:
                group.create_dataset("obs", data=obs, **pack)
            else:
                # Written in another order than the spec's: only names may decide.
                group.create_dataset("obs/extra/goal_pos", data=obs[:, 5:], **pack)
                group.create_dataset("obs/extra/is_grasped", data=np.arange(steps + 1) % 2 == 1, **pack)
                group.create_dataset("obs/agent/qvel", data=obs[:, 2:4], **pack)
                group.create_dataset("obs/agent/qpos", data=obs[:, :2], **pack)
            time = np.arange(steps, dtype=np.float32)
            group.create_dataset("actions", data=np.stack([time / 10, -time / 10], 1), **pack)
            group.create_dataset("terminated", data=time == steps - 1)
            group.create_dataset("truncated", data=np.ones(steps, bool))
            group.create_dataset("success", data=time >= steps - 2)
            group.create_dataset("fail", data=time == 0)
    entries = [
        {"episode_id": n, "episode_seed": 70 + n, "control_mode": "pd_ee_delta_pos", "elapsed_steps": steps}
        for n, steps in enumerate(lengths)
    ]
    content = {
        "env_info": {"env_id": "Toy-v1", "env_kwargs": {"obs_mode": "state"}, "max_episode_steps": 5},
        "episodes": entries[::-1],
        "source_type": "motionplanning",
    }
    (folder / "t.json").write_text(json.dumps(content))
    return folder / "t.h5"


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.with_suffix(".json").read_text())
    change(content)
    path.with_suffix(".json").write_text(json.dumps(content))


def set_modes(path: Path, *modes: str) -> None:
    def change(content: dict[str, Any]) -> None:
        for entry, mode in zip(content["episodes"], modes, strict=True):
            entry["control_mode"] = mode

    change_json(path, change)


def bring_in(path: Path, target: Path | None, *, spec: EnvSpec = SPEC, **options: Any) -> Any:
    wanted = {key: options.pop(key) for key in ("source", "success") if key in options}
    reader = ManiSkillReader(read_header(path), spec, **wanted)
    try:
        return import_episodes(reader, target, **options)
    finally:
        reader.close()


@pytest.mark.parametrize("gzip", [False, True])
def test_flat_numbers(tmp_path: Path, gzip: bool) -> None:
    report = bring_in(toy(tmp_path, gzip=gzip), tmp_path / "out.zarr")
    assert (report.episodes, report.steps, report.successes, report.left_out) == (2, 7, 2, ())
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        assert store.seeds.tolist() == [70, 71]
        assert store.spec == SPEC
        assert store.metadata["import"]["format"] == "maniskill"
        episode = store.episode(1)
    expected = (100 + np.arange(5)[:, None] + np.arange(7) / 10).astype(np.float32)
    np.testing.assert_array_equal(episode.observation["state"], expected[:4])
    np.testing.assert_array_equal(episode.final_observation["state"], expected[4])
    np.testing.assert_array_equal(episode.observation["proprio"], expected[:4, :4])
    np.testing.assert_array_equal(episode.action[:, 1], np.float32([0, -0.1, -0.2, -0.3]))
    assert episode.success.tolist() == [False, False, True, True]
    assert episode.reward.tolist() == [-1, 0, 1, 1]  # sparse: success minus fail
    assert (episode.terminated, episode.truncated) == (True, False)
    np.testing.assert_allclose(episode.time, [0, 0.05, 0.1, 0.15])
    assert set(episode.source.tolist()) == {Source.scripted}
    assert episode.metadata["source_episode"] == "traj_1"


def test_nested_is_matched_by_name(tmp_path: Path) -> None:
    bring_in(toy(tmp_path, flat=False), tmp_path / "out.zarr")
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        episode = store.episode(0)
    expected = (np.arange(3)[:, None] + np.arange(7) / 10).astype(np.float32)
    expected[:, 4] = [0, 1, 0]
    np.testing.assert_array_equal(episode.observation["state"], expected)
    np.testing.assert_array_equal(episode.observation["proprio"], expected[:, :4])


def test_numbers_not_letters_order_the_episodes(tmp_path: Path) -> None:
    bring_in(toy(tmp_path, (2,) * 12), tmp_path / "out.zarr")
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        assert store.seeds.tolist() == list(range(70, 82))
        assert store.episode(10).observation["state"][0, 0] == 1000


def test_rewards_of_the_file_win(tmp_path: Path) -> None:
    path = toy(tmp_path, (3,))
    with h5py.File(path, "a") as file:
        file["traj_0/rewards"] = np.float32([0.25, 0.5, 0.75])
    report = bring_in(path, tmp_path / "out.zarr")
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        assert store.episode(0).reward.tolist() == [0.25, 0.5, 0.75]
    assert any("reward_mode" in note for note in report.notes)


def test_longer_than_the_limit_is_said(tmp_path: Path) -> None:
    """Lengths 4, 6 and 8 against a limit of 5; success begins one step before the end: steps 3, 5 and 7."""
    report = bring_in(toy(tmp_path, (4, 6, 8)), tmp_path / "out.zarr")
    assert (report.over_limit, report.late_success, report.longest_steps) == (2, 1, 8)
    (note,) = [note for note in report.notes if "limit" in note]
    for part in ("2 of 3", "5 steps", "1 succeed", "env.max_episode_steps=8"):
        assert part in note


def test_actions_outside_the_bounds_are_said(tmp_path: Path) -> None:
    path = toy(tmp_path)
    with h5py.File(path, "a") as file:
        file["traj_1/actions"][2, 0] = 1.5
    report = bring_in(path, None)
    assert report.outside_bounds == 1
    assert any("1 of 2 episodes have actions outside" in note for note in report.notes)


def test_max_episodes_and_dry_run(tmp_path: Path) -> None:
    report = bring_in(toy(tmp_path), None, max_episodes=1)
    assert (report.episodes, report.target, report.content_hash) == (1, None, None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.h5", "t.json"]


def test_import_is_deterministic(tmp_path: Path) -> None:
    path = toy(tmp_path)
    assert bring_in(path, tmp_path / "a.zarr").content_hash == bring_in(path, tmp_path / "b.zarr").content_hash


def _swap(path: Path, name: str, data: Any) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if data is not None:
            file[name] = data


BROKEN: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "obs one short": (lambda p: _swap(p, "traj_1/obs", np.zeros((4, 7), np.float32)), ["traj_1", "obs", "5 rows"]),
    "obs of another width": (lambda p: _swap(p, "traj_1/obs", np.zeros((5, 8), np.float32)), ["traj_1", "7", "8"]),
    "success short": (lambda p: _swap(p, "traj_1/success", np.zeros(3, bool)), ["traj_1", "success", "4 rows"]),
    "truncated missing": (lambda p: _swap(p, "traj_1/truncated", None), ["traj_1", "truncated"]),
    "no actions": (lambda p: _swap(p, "traj_1/actions", np.zeros((0, 2), np.float32)), ["traj_1", "actions", "none"]),
    "elapsed steps": (lambda p: change_json(p, lambda c: c["episodes"][0].update(elapsed_steps=9)), ["traj_1", "9"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_episode_is_named_and_can_be_left_out(tmp_path: Path, name: str) -> None:
    change, parts = BROKEN[name]
    path = toy(tmp_path)
    change(path)
    with pytest.raises(DataError) as caught:
        bring_in(path, tmp_path / "out.zarr")
    for part in parts:
        assert part in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.h5", "t.json"], "a failed import must leave nothing"
    assert len(bring_in(path, None).left_out) == 1
    report = bring_in(path, tmp_path / "out.zarr", skip_bad=True)
    assert (report.episodes, len(report.left_out)) == (1, 1)
    assert report.left_out[0].startswith("traj_1: ")


def test_nan_is_named_by_episode_step_and_key(tmp_path: Path) -> None:
    path = toy(tmp_path, flat=False)
    with h5py.File(path, "a") as file:
        file["traj_1/obs/agent/qvel"][2, 1] = np.nan
    with pytest.raises(DataError, match=r"traj_1, key 'obs/agent/qvel', step 2, element \[1\]"):
        bring_in(path, tmp_path / "out.zarr")


FOREIGN: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing entry": (lambda p: change_json(p, lambda c: c["episodes"].pop()), ["traj_0 has no entry"]),
    "missing group": (lambda p: _swap(p, "traj_0", None), ["traj_0 is in the json only"]),
    "twice": (lambda p: change_json(p, lambda c: c["episodes"].append(c["episodes"][0])), ["traj_1 is twice"]),
    "two modes": (lambda p: set_modes(p, "pd_joint_pos", "pd_ee_delta_pos"), ["pd_joint_pos", "replay_trajectory"]),
    "another mode": (lambda p: set_modes(p, "x", "x"), ["'x'", "-c pd_ee_delta_pos"]),
    "another task": (lambda p: change_json(p, lambda c: c["env_info"].update(env_id="Other-v1")), ["Other-v1", "Toy-v1"]),
    "another robot": (lambda p: change_json(p, lambda c: c["env_info"]["env_kwargs"].update(robot_uids="xarm")), ["xarm", "toy"]),
    "another rate": (lambda p: change_json(p, lambda c: c["env_info"]["env_kwargs"].update(sim_config={"control_freq": 10})), ["10", "20"]),
    "who acted": (lambda p: change_json(p, lambda c: c.pop("source_type")), ["--source-type"]),
    "no env": (lambda p: change_json(p, lambda c: c.update(env_info=None)), ["env_info"]),
    "no json": (lambda p: p.with_suffix(".json").unlink(), ["t.json"]),
    "half a json": (lambda p: p.with_suffix(".json").write_text('{"episodes": ['), ["t.json"]),
    "half an h5": (lambda p: p.write_bytes(p.read_bytes()[:900]), ["t.h5", "whole HDF5"]),
    "two robots": (lambda p: _swap(p, "traj_0/actions", None) or _swap2(p), ["dictionary", "panda-0, panda-1"]),
    "states only": (lambda p: _swap(p, "traj_0/obs", None), ["observations", "replay_trajectory", "-o state --use-env-states"]),
    "no success": (lambda p: _swap(p, "traj_0/success", None), ["--success last_step"]),
}  # fmt: skip


def _swap2(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for name in ("panda-1", "panda-0"):
            file[f"traj_0/actions/{name}"] = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_does_not_fit_is_refused_as_a_whole(tmp_path: Path, name: str) -> None:
    change, parts = FOREIGN[name]
    path = toy(tmp_path)
    change(path)
    with pytest.raises(DataError) as caught:
        bring_in(path, None)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("success", "expected"), [("last_step", [False, False, True]), ("none", [False] * 3)])
def test_success_that_the_file_lacks_can_be_said(tmp_path: Path, success: str, expected: list[bool]) -> None:
    path = toy(tmp_path, (3,))
    _swap(path, "traj_0/success", None)
    bring_in(path, tmp_path / "out.zarr", success=success)
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        assert store.episode(0).success.tolist() == expected
        assert store.metadata["import"]["success"] == success


def test_target_is_never_overwritten(tmp_path: Path) -> None:
    path = toy(tmp_path)
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr/precious").write_text("")
    with pytest.raises(DataError, match="overwritten"):
        bring_in(path, tmp_path / "out.zarr")
    assert (tmp_path / "out.zarr/precious").exists()


def test_images_and_what_is_not_imported(tmp_path: Path) -> None:
    path = toy(tmp_path, (3,), flat=False)
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), np.uint8)
    with h5py.File(path, "a") as file:
        file.create_dataset("traj_0/obs/sensor_data/hand/rgb", data=image, compression="gzip", compression_opts=5)
        file["traj_0/obs/sensor_data/hand/depth"] = np.zeros((4, 6, 8, 1), np.int16)
    observation = {"proprio": SPEC.observation["proprio"], "image/hand": ArraySpec("image/hand", (6, 8, 3), "uint8")}
    spec = replace(SPEC, observation=observation)
    report = bring_in(path, tmp_path / "out.zarr", spec=spec)
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        np.testing.assert_array_equal(store.episode(0).observation["image/hand"], image[:3])
        np.testing.assert_array_equal(store.episode(0).final_observation["image/hand"], image[3])
    assert any("sensor_data/hand/depth" in note and "extra/goal_pos" in note for note in report.notes)
    assert read_header(path).image_size == (6, 8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("source_type", 3, "source_type: expected str, got 3"),
        ("episodes", [["episode_id", 0]], "entry 0 of 'episodes' is no object"),
        ("env_info", {"env_id": ["Toy-v1"]}, "env_id: expected str"),
        ("env_info", {"env_id": "Toy-v1", "env_kwargs": []}, "env_kwargs: expected dict"),
        ("env_info", {"env_id": "Toy-v1", "max_episode_steps": "5"}, "max_episode_steps: expected int, got '5'"),
    ],
)
def test_a_retyped_json_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = toy(tmp_path)
    change_json(path, lambda content: content.update({key: value}))
    with pytest.raises(DataError, match=message):
        bring_in(path, None)


def test_rows_that_were_never_written_are_no_zeros(tmp_path: Path) -> None:
    path = toy(tmp_path)
    with h5py.File(path, "a") as file:
        del file["traj_1/actions"]
        file["traj_1"].create_dataset("actions", (4, 2), "f4", chunks=(2, 2))[:2] = 0.5
    with pytest.raises(DataError, match=r"traj_1, actions: expected data that were written, got 1 of 2 chunks"):
        bring_in(path, tmp_path / "out.zarr")


def _with_cloud(folder: Path) -> tuple[Path, EnvSpec]:
    """The base stands at (1, 0, 0) in the world, turned by 90 degrees about z."""
    path = toy(folder, (1,), flat=False)
    xyzw = np.array([[1, 2, 0, 1], [3, 0, 0.5, 1], [7, 7, 7, 0]], np.float32)
    root = [1, 0, 0, np.sqrt(0.5), 0, 0, np.sqrt(0.5), *np.zeros(6), 0.1, 0.2]
    with h5py.File(path, "a") as file:
        file["traj_0/obs/pointcloud/xyzw"] = np.stack([xyzw, xyzw])
        file["traj_0/obs/pointcloud/rgb"] = np.array([[[255, 0, 51], [0, 102, 0], [9, 9, 9]]] * 2, np.uint8)
        file["traj_0/obs/pointcloud/segmentation"] = np.zeros((2, 3, 1), np.int16)
        file["traj_0/env_states/articulations/toy"] = np.array([root, root], np.float32)
    observation = {"proprio": SPEC.observation["proprio"], "points": ArraySpec("points", (3, 6))}
    return path, replace(SPEC, observation=observation)


def test_clouds_come_in_the_base_frame(tmp_path: Path) -> None:
    path, spec = _with_cloud(tmp_path)
    report = bring_in(path, tmp_path / "out.zarr", spec=spec)
    # (1, 2, 0) is 2 m along the world's y from the base, which is the base's x; (3, 0, .5) lies 2 m to its right.
    expected = [[2, 0, 0, 1, 0, 0.2], [0, -2, 0.5, 0, 0.4, 0], [0, 0, 0, 0, 0, 0]]
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        episode = store.episode(0)
    np.testing.assert_allclose(episode.observation["points"][0], expected, atol=1e-6)
    np.testing.assert_allclose(episode.final_observation["points"], expected, atol=1e-6)
    assert any("pointcloud/segmentation" in note and "pointcloud/xyzw" not in note for note in report.notes)


def _with_depth(folder: Path, shape: tuple[int, ...], dtype: str) -> tuple[Path, EnvSpec]:
    """Element n is n * 250 mm; the spec has another shape or type where the caller says so."""
    path = toy(folder, (1,), flat=False)
    with h5py.File(path, "a") as file:
        depth = np.arange(2 * 2 * 3, dtype=np.int16).reshape(2, 2, 3, 1) * 250
        file["traj_0/obs/sensor_data/hand/depth"] = depth
    seen = {"proprio": SPEC.observation["proprio"], "depth/hand": ArraySpec("depth/hand", shape, dtype)}
    return path, replace(SPEC, observation=seen)


def test_depth_in_metres(tmp_path: Path) -> None:
    path, spec = _with_depth(tmp_path, (2, 3, 1), "float32")
    report = bring_in(path, tmp_path / "out.zarr", spec=spec)
    assert not any("depth" in note for note in report.notes)
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        episode = store.episode(0)
    np.testing.assert_allclose(episode.observation["depth/hand"][0, 1, :, 0], [0.75, 1.0, 1.25])
    np.testing.assert_allclose(episode.final_observation["depth/hand"][1, 2, 0], 2.75)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"), [((3, 2, 1), "float32", "int16"), ((2, 3, 1), "uint8", "uint8")]
)
def test_depth_of_another_spec(tmp_path: Path, shape: tuple[int, ...], dtype: str, message: str) -> None:
    path, spec = _with_depth(tmp_path, shape, dtype)
    with pytest.raises(DataError, match=message):
        bring_in(path, tmp_path / "refused.zarr", spec=spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda traj: traj.pop("env_states"), r"env_states/articulations/toy.*record_env_state=True"),
        (lambda traj: traj["env_states/articulations"].move("toy", "other"), "got only other"),
        (lambda traj: traj.pop("obs/pointcloud/rgb"), "a dataset 'pointcloud/rgb'"),
        (
            lambda traj: _again(traj, "obs/pointcloud/xyzw", np.zeros((2, 4, 4))),
            r"xyzw \(2, 3, 4\).*got xyzw \(2, 4, 4\)",
        ),
        (lambda traj: _again(traj, "obs/pointcloud/rgb", np.zeros((2, 3, 3))), r"rgb uint8 .*got .*rgb float64"),
        (lambda traj: _again(traj, "obs/pointcloud/xyzw", np.full((2, 3, 4), 0.5)), "w of 0"),
        (lambda traj: _again(traj, "obs/pointcloud/xyzw", np.full((2, 3, 4), [np.nan, 0, 0, 1])), "xyzw"),
        (lambda traj: _again(traj, "env_states/articulations/toy", np.zeros((2, 15))), "unit quaternion"),
        (lambda traj: _again(traj, "env_states/articulations/toy", np.zeros((3, 15))), "expected 2 rows"),
    ],
)
def test_clouds_that_do_not_fit(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path, spec = _with_cloud(tmp_path)
    with h5py.File(path, "a") as file:
        change(file["traj_0"])
    with pytest.raises(DataError, match=message):
        bring_in(path, tmp_path / "out.zarr", spec=spec)
    assert not (tmp_path / "out.zarr").exists()


def _again(group: Any, key: str, data: Any) -> None:
    del group[key]
    group[key] = data
