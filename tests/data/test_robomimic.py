"""robomimic's HDF5, written by hand to the layout of its own scripts, broken in every way seen in the wild, and our export
to it and back."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.keyed import KeyedSource
from robot_rl.data.formats.robomimic import RobomimicSource, done_modes
from robot_rl.data.formats.robomimic_writer import split, write_robomimic
from robot_rl.data.formats.spec_card import FinalObservation, SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.point_cloud import PointCloudConfig, points_to_json
from robot_rl.errors import DataError
from robot_rl.runs.config import convert_config
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, CameraSpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

LENGTHS = {0: 4, 2: 3, 10: 5}
CONTROLLER = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "impedance_mode": "fixed", "control_delta": True,
}  # fmt: skip
ENV_ARGS: dict[str, Any] = {
    "env_name": "Lift", "env_version": "1.4.1", "type": 1,
    "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "reward_shaping": False, "controller_configs": CONTROLLER},
}  # fmt: skip
SHAPES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}


def obs_rows(number: int, key: str, steps: int) -> np.ndarray:
    """obs of demo `number`: value = number * 1000 + step + column / 100; steps + 1 rows."""
    if key.endswith("_image"):
        return np.full((steps + 1, 4, 6, 3), 0, np.uint8) + np.arange(steps + 1, dtype=np.uint8)[:, None, None, None]
    return number * 1000 + np.arange(steps + 1)[:, None] + np.arange(SHAPES[key]) / 100


def write(
    path: Path,
    *,
    env_args: Mapping[str, Any] | None = ENV_ARGS,
    done_mode: int = 2,
    next_obs: bool = True,
    mask: bool = True,
    keys: tuple[str, ...] = (*SHAPES, "agentview_image"),
) -> Path:
    """As dataset_states_to_obs writes it: float64, contiguous, success at the last two steps."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, steps in LENGTHS.items():
            demo = data.create_group(f"demo_{number}")
            success = np.arange(steps) >= steps - 2
            ending = np.arange(steps) == steps - 1
            demo["actions"] = np.full((steps, 7), number / 100) + np.arange(steps)[:, None] / 10
            demo["states"] = np.zeros((steps, 30))
            demo["rewards"] = success.astype(float)
            demo["dones"] = {0: success, 1: ending, 2: success | ending}[done_mode].astype(np.int64)
            for key in keys:
                rows = obs_rows(number, key, steps)
                demo[f"obs/{key}"] = rows[:-1]
                if next_obs:
                    demo[f"next_obs/{key}"] = rows[1:]
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>"
        data.attrs["total"] = sum(LENGTHS.values())
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args, indent=4)
        if mask:
            file["mask/train"] = np.array(["demo_0", "demo_10"], dtype="S")
            file["mask/valid"] = np.array(["demo_2"], dtype="S")
    return path


def card(source: KeyedSource, **fields: Any) -> SpecCard:
    """What the file declares, completed with what it can't."""
    content = {"source": "teleop", "max_episode_steps": 400, **source.declared, **fields}
    return convert_config(SpecCard, content, where="card")


def bring_in(path: Path, target: Path | None, **fields: Any) -> Any:
    skip = fields.pop("skip_bad", False)
    source = RobomimicSource(path)
    reader = CardReader(source, card(source, **fields))
    try:
        return import_episodes(reader, target, skip_bad=skip)
    finally:
        reader.close()


def test_numbers_arrive_in_natural_order(tmp_path: Path) -> None:
    """demo_10 comes after demo_2, the last row of next_obs is the final observation, quaternions are named xyzw."""
    report = bring_in(write(tmp_path / "a.hdf5"), tmp_path / "out.zarr")
    assert (report.episodes, report.steps, report.successes) == (3, 12, 3)
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        assert store.lengths.tolist() == [4, 3, 5]
        episode, spec = store.episode(2), store.spec
        masks = store.metadata["import"]["masks"]
    np.testing.assert_allclose(episode.action, 0.1 + np.arange(5)[:, None] / 10 * np.ones(7), rtol=1e-6)
    wanted = np.concatenate([obs_rows(10, key, 5) for key in list(SHAPES)[:3]], 1).astype(np.float32)
    np.testing.assert_array_equal(episode.observation["proprio"], wanted[:5])
    np.testing.assert_array_equal(episode.final_observation["proprio"], wanted[5])
    np.testing.assert_array_equal(
        episode.final_observation["state"][9:], obs_rows(10, "object", 5)[5].astype(np.float32)
    )
    assert episode.final_observation["image/agentview"][0, 0].tolist() == [5, 5, 5]
    assert episode.success.tolist() == [False, False, False, True, True]
    assert episode.reward.tolist() == [0, 0, 0, 1, 1]
    assert episode.time.tolist() == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert masks == {"train": ["demo_0", "demo_10"], "valid": ["demo_2"]}
    assert (spec.env_id, spec.robot, spec.control_hz) == ("Lift", "Panda", 20.0)
    assert spec.observation["proprio"].meanings[3:7] == tuple(
        f"robot0_eef_quat {part} of the quaternion (xyzw)" for part in "xyzw"
    )
    semantics = ActionSemantics(
        ActionKind.delta, DeltaReference.measured, "world", "rotvec", "-1 open .. 1 closed", "OSC_POSE"
    )
    assert spec.action_semantics == semantics
    assert spec.action.meanings[0] == "robot0 delta x, 1 is 0.05 m"
    assert spec.action.meanings[5] == "robot0 delta rotvec z, 1 is 0.5 rad"
    assert (spec.action.low, spec.action.high) == ((-1.0,) * 7, (1.0,) * 7)


@pytest.mark.parametrize(("mode", "text"), [(0, r"0 \(at success\)"), (1, r"1 \(at the end"), (2, "0.*or 2")])
def test_done_mode_is_detected_and_stated(tmp_path: Path, mode: int, text: str) -> None:
    """Success lasts to the end here, so 0 and 2 give the same dones, and only 1 stands alone."""
    source = RobomimicSource(write(tmp_path / "a.hdf5", done_mode=mode))
    (note,) = [note for note in source.notes if "done" in note]
    assert source.facts["done_modes"] == ([1] if mode == 1 else [0, 2])
    source.close()
    if mode != 0:
        import re

        assert re.search(text, note)


def test_done_modes_by_hand() -> None:
    success = np.array([False, True, False])
    assert done_modes(np.array([False, True, False]), success) == {0}
    assert done_modes(np.array([False, False, True]), success) == {1}
    assert done_modes(np.array([False, True, True]), success) == {2}
    assert done_modes(np.array([True, False, False]), success) == frozenset()
    only_last = np.array([False, False, True])
    assert done_modes(only_last, only_last) == {0, 1, 2}


@pytest.mark.parametrize("final", list(FinalObservation))
def test_missing_next_obs_follows_the_card(tmp_path: Path, final: FinalObservation) -> None:
    path = write(tmp_path / "a.hdf5", next_obs=False)
    report = bring_in(path, tmp_path / "o.zarr", final_observation=final.value)
    assert report.steps == (12 if final is FinalObservation.repeat else 9)
    assert any("3 of 3 demos have no next_obs" in note for note in report.notes)
    with EpisodeStore.open(tmp_path / "o.zarr") as store:
        np.testing.assert_array_equal(
            store.episode(0).final_observation["proprio"][:3], obs_rows(0, "robot0_eef_pos", 4)[3].astype(np.float32)
        )


def test_missing_mask_is_said(tmp_path: Path) -> None:
    report = bring_in(write(tmp_path / "a.hdf5", mask=False), None)
    assert any("no masks" in note for note in report.notes)


def test_states_only_names_the_command(tmp_path: Path) -> None:
    """robosuite's collect_human_demonstrations: states and actions, env and env_info."""
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"], data.attrs["env_info"], data.attrs["repository_version"] = "Lift", "{}", "1.4.1"
        data["demo_1/states"], data["demo_1/actions"] = np.zeros((4, 30)), np.zeros((4, 7))
    with pytest.raises(DataError, match=r"convert_robosuite --dataset .*dataset_states_to_obs --dataset .*done_mode 2"):
        RobomimicSource(path)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps(ENV_ARGS)
    with pytest.raises(DataError, match="states of the simulator") as caught:
        RobomimicSource(path)
    assert "convert_robosuite" not in str(caught.value)


def change(path: Path, action: str) -> None:
    with h5py.File(path, "a") as file:
        demo = file["data/demo_2"]
        if action == "num_samples":
            demo.attrs["num_samples"] = 7
        elif action == "total":
            file["data"].attrs["total"] = 99
        elif action == "dropped demo":
            del file["data/demo_2"]
        elif action == "renamed demo":
            file.move("data/demo_2", "data/demo_x")
        elif action == "short obs":
            del demo["obs/object"]
            demo["obs/object"] = np.zeros((2, 10))
        elif action == "other shape":
            del demo["obs/object"]
            demo["obs/object"] = np.zeros((3, 9))
        elif action == "missing key":
            del demo["obs/object"], demo["next_obs/object"]
        elif action == "never written":
            del demo["obs/object"]
            demo.create_dataset("obs/object", (3, 10), "f8")
        elif action == "missing chunk":
            del demo["obs/object"]
            demo.create_dataset("obs/object", (3, 10), "f8", chunks=(1, 10))[:2] = 1.0
        elif action == "text":
            del demo["actions"]
            demo["actions"] = np.array(["a", "b", "c"], dtype="S")
        elif action == "nan":
            demo["obs/object"][1, 4] = np.nan
        elif action == "env_args":
            file["data"].attrs["env_args"] = "{"
        elif action == "no data":
            file.move("data", "date")


@pytest.mark.parametrize(
    ("action", "match"),
    [
        ("num_samples", "demo_2, num_samples: expected 3, as many as it has actions, got 7"),
        ("total", "total: expected 12, the sum of the actions of 3 demos, got 99"),
        ("dropped demo", "total: expected 9, the sum of the actions of 2 demos, got 12"),
        ("renamed demo", "named as demo_0, at least one, got demo_x"),
        ("short obs", "demo_2, obs/object: expected 3 rows"),
        ("other shape", r"demo_2, .*object: expected rows of shape \((10|9),\)"),
        ("missing key", "demo_2, obs/object: expected a dataset"),
        ("never written", r"demo_2, obs/object: .*none of it \(HDF5 itself reads 0"),
        ("missing chunk", r"demo_2, obs/object: .*2 of 3 chunks, none at \(2, 0\)"),
        ("text", "demo_2, actions: expected numbers"),
        ("nan", r"demo_2.*step 1, element \[4\]"),
        ("env_args", "env_args: expected a JSON object"),
        ("no data", "expected a group data with demo_0"),
    ],
)
def test_faults_are_named(tmp_path: Path, action: str, match: str) -> None:
    path = write(tmp_path / "a.hdf5")
    change(path, action)
    with pytest.raises(DataError, match=match):
        bring_in(path, tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()


def test_a_bad_demo_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    change(path, "num_samples")
    report = bring_in(path, tmp_path / "o.zarr", skip_bad=True)
    assert report.episodes == 2
    assert [text.partition(":")[0] for text in report.left_out] == ["demo_2"]
    change(path, "missing key")
    assert any("demo_2" in note or "left" in note for note in report.left_out)


def test_key_sets_that_differ_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    change(path, "missing key")
    source = RobomimicSource(path)
    assert any(note == "demo_2 has no obs/object, which other demos have." for note in source.notes)
    source.close()


def test_a_file_cut_off_and_no_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    data = path.read_bytes()
    (tmp_path / "half.hdf5").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="whole HDF5 file"):
        RobomimicSource(tmp_path / "half.hdf5")
    with pytest.raises(DataError, match="nothing there"):
        RobomimicSource(tmp_path / "none.hdf5")


def variant(**changes: Any) -> dict[str, Any]:
    """env_args with another controller."""
    kwargs = {**ENV_ARGS["env_kwargs"], "controller_configs": {**CONTROLLER, **changes}}
    return {**ENV_ARGS, "env_kwargs": kwargs}


def test_semantics_only_where_they_are_certain(tmp_path: Path) -> None:
    def semantics(env_args: dict[str, Any], name: str) -> Any:
        source = RobomimicSource(write(tmp_path / f"{name}.hdf5", env_args=env_args))
        source.close()
        return source.declared.get("action_semantics")

    assert semantics(variant(control_delta=False), "absolute") == {
        "kind": "absolute", "delta_reference": "none", "frame": "world", "rotation": "rotvec",
        "gripper": "-1 open .. 1 closed", "control_mode": "OSC_POSE",
    }  # fmt: skip
    new = {**variant(input_type="delta", input_ref_frame="base"), "env_version": "1.5.1"}
    assert semantics(new, "new")["frame"] == "base"
    assert semantics(new, "new2")["delta_reference"] == "???"  # 1.5 may add to the measured or to the target pose
    assert semantics(variant(impedance_mode="variable"), "gains") is None
    assert semantics(variant(type="IK_POSE"), "ik") is None
    assert semantics(variant(type="JOINT_VELOCITY"), "velocity")["kind"] == "velocity"
    assert semantics(variant(type="JOINT_POSITION"), "joints")["delta_reference"] == "measured"
    several = {**ENV_ARGS["env_kwargs"], "robots": ["Panda", "Sawyer"], "controller_configs": [CONTROLLER] * 2}
    assert semantics({**ENV_ARGS, "env_kwargs": several}, "seven numbers for two arms") is None
    assert semantics({"env_name": "hopper", "type": 2, "env_kwargs": {}}, "gym") is None


def test_absolute_actions_under_old_env_args_are_not_called_deltas(tmp_path: Path) -> None:
    """diffusion_policy's *_abs.hdf5 keeps env_args with control_delta true."""
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"][1, 3] = 3.1
    source = RobomimicSource(path)
    source.close()
    assert "action_semantics" not in source.declared
    assert any("absolute" in note and "3.1" in note for note in source.notes)


def test_instructions_of_libero_and_robocasa(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "put the bowl on the plate"})
        file["data/demo_2"].attrs["ep_meta"] = json.dumps({"lang": "open the drawer"})
    source = RobomimicSource(path)
    source.close()
    said = [episode.metadata["instruction"] for episode in source.episodes]
    assert said == ["put the bowl on the plate", "open the drawer", "put the bowl on the plate"]
    assert any("upside down" in note for note in source.notes)


def test_masks_that_name_absent_demos_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["mask/20_percent"] = np.array(["demo_7"], dtype="S")
    source = RobomimicSource(path)
    source.close()
    assert "mask/20_percent names 1 demos that are not there: demo_7." in source.notes


SPEC = EnvSpec(
    env_id="PickCube-v1",
    observation={
        "proprio": ArraySpec("proprio", (9,), units=("rad",) * 9, meanings=tuple(f"qpos[{i}]" for i in range(9))),
        "state": ArraySpec("state", (12,)),
        "image/front": ArraySpec("image/front", (8, 10, 3), "uint8", meanings=("RGB",)),
        "points": ArraySpec("points", (5, 3), units=("m",), meanings=("x, y, z in the base frame",)),
    },
    action=ArraySpec("action", (7,), low=(-1.0,) * 7, high=(1.0,) * 7),
    action_semantics=ActionSemantics(
        ActionKind.delta, DeltaReference.target, "base", "rotvec", "none", "pd_ee_delta_pose"
    ),
    joint_names=tuple(f"j{i}" for i in range(9)),
    robot="panda",
    control_hz=20.0,
    max_episode_steps=50,
    cameras={
        "front": CameraSpec(
            width=10,
            height=8,
            fx=20.0,
            fy=20.5,
            cx=3.5,
            cy=4.5,
            position_m=(0.5, 0.0, 0.7),
            quaternion_wxyz=(0.0, 1.0, 0.0, 0.0),
        )
    },
    point_cloud=points_to_json(PointCloudConfig(num_points=5, low_m=(0.0, -0.5, 0.0), high_m=(1.0, 0.5, 0.5))),
)


def recorded(number: int, steps: int, *, low: float = -1.0, high: float = 1.0) -> Episode:
    rng = np.random.default_rng(number)
    rows = {
        "proprio": rng.standard_normal((steps + 1, 9)).astype(np.float32),
        "state": rng.standard_normal((steps + 1, 12)).astype(np.float32),
        "image/front": rng.integers(0, 256, (steps + 1, 8, 10, 3), dtype=np.uint8),
        "points": rng.standard_normal((steps + 1, 5, 3)).astype(np.float32),
    }
    return Episode(
        observation={key: value[:-1] for key, value in rows.items()},
        final_observation={key: value[-1] for key, value in rows.items()},
        action=rng.uniform(low, high, (steps, 7)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=rng.random(steps) < 0.3,
        terminated=number % 3 == 0,
        truncated=number % 3 == 1,
        source=rng.integers(0, 4, steps).astype(np.uint8),
        time=np.cumsum(rng.uniform(0.01, 0.1, steps)),
        metadata={"seed": number, "collector": "human", "note": "ü"},
    )


def recording(path: Path, *, episodes: int = 12, **options: float) -> EpisodeStore:
    store = EpisodeStore.create(path, SPEC, metadata={"card": {"licence": "CC-BY-4.0", "operators": 2}})
    store.append_many([recorded(number, 3 + number % 4, **options) for number in range(episodes)])
    return store


@pytest.mark.parametrize("normalize", [False, True])
def test_round_trip_is_bit_equal(tmp_path: Path, normalize: bool) -> None:
    """Everything comes back: sources, ends, times, final observations, metadata; 12 demos, so demo_10 is among them."""
    store = recording(tmp_path / "a.zarr", high=2.0 if normalize else 1.0)
    if normalize:
        with pytest.raises(DataError, match=r"actions in \[-1, 1\].*normalize"):
            write_robomimic(store, tmp_path / "a.hdf5")
    counted: list[tuple[int, int]] = []
    facts = write_robomimic(
        store, tmp_path / "a.hdf5", normalize=normalize, on_episode=lambda done, total: counted.append((done, total))
    )
    assert counted == [(number + 1, 12) for number in range(12)]
    assert (facts["episodes"], facts["masks"]) == (12, {"train": 11, "valid": 1})
    report = bring_in(tmp_path / "a.hdf5", tmp_path / "b.zarr")
    assert report.content_hash == store.content_hash()
    with EpisodeStore.open(tmp_path / "b.zarr") as back:
        assert back.metadata["import"]["exported"]["metadata"]["card"] == {"licence": "CC-BY-4.0", "operators": 2}
    with h5py.File(tmp_path / "a.hdf5") as file:
        actions = np.concatenate([file[f"data/demo_{i}/actions"][()] for i in range(12)])
    assert np.abs(actions).max() <= 1
    store.close()
    if normalize:
        low, high = (np.asarray(facts["action_scale"][side]) for side in ("low", "high"))
        with EpisodeStore.open(tmp_path / "a.zarr") as again:
            raw = again.load(["action"])["action"]
        np.testing.assert_allclose((actions + 1) / 2 * (high - low) + low, raw, atol=1e-6)
    assert list(tmp_path.glob(".*")) == []


def test_layout_is_robomimics(tmp_path: Path) -> None:
    """next_obs is obs shifted, dones by mode 2, masks disjoint and complete, env_args parses."""
    store = recording(tmp_path / "a.zarr")
    write_robomimic(store, tmp_path / "a.hdf5")
    episode = store.episode(10)
    store.close()
    with h5py.File(tmp_path / "a.hdf5") as file:
        demo = file["data/demo_10"]
        assert set(demo["obs"]) == {"proprio", "state", "points", "front_image"}
        np.testing.assert_array_equal(demo["next_obs/proprio"][:-1], demo["obs/proprio"][1:])
        np.testing.assert_array_equal(demo["next_obs/proprio"][-1], episode.final_observation["proprio"])
        assert demo["dones"][()].tolist() == [int(s or i == len(episode) - 1) for i, s in enumerate(episode.success)]
        assert demo.attrs["num_samples"] == len(episode)
        assert file["data"].attrs["total"] == sum(3 + number % 4 for number in range(12))
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "PickCube-v1"
        names = [name.decode() for mask in ("train", "valid") for name in file[f"mask/{mask}"][()]]
    assert sorted(names) == sorted(f"demo_{i}" for i in range(12))


def test_next_obs_may_be_left_out(tmp_path: Path) -> None:
    """Of an image file it is half; our own import does not need it."""
    with recording(tmp_path / "a.zarr") as store:
        whole = write_robomimic(store, tmp_path / "whole.hdf5")["bytes"]
        facts = write_robomimic(store, tmp_path / "a.hdf5", next_obs=False)
        content = store.content_hash()
    assert whole - facts["bytes"] > facts["steps"] * 8 * 10 * 3  # bytes of a frame
    assert any("hdf5_load_next_obs=false" in note for note in facts["notes"])
    assert bring_in(tmp_path / "a.hdf5", tmp_path / "b.zarr").content_hash == content


def test_split_by_seed() -> None:
    assert split(50, valid_fraction=0.1, seed=1) == split(50, valid_fraction=0.1, seed=1)
    assert split(50, valid_fraction=0.1, seed=1) != split(50, valid_fraction=0.1, seed=2)
    assert [len(names) for names in split(50, valid_fraction=0.1, seed=1).values()] == [45, 5]
    assert split(1, valid_fraction=0.5, seed=0) == {"train": ["demo_0"]}


def test_a_card_states_a_camera_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    """A hand-written card: where the camera stands goes into the store; half a quaternion, or a word for a number, does not."""
    fields = {"width": 84, "height": 84, "fx": 90.0, "fy": 90.0, "cx": 41.5, "cy": 41.5, "position_m": [0.6, 0, 0.4]}
    path = write(tmp_path / "a.hdf5")
    bring_in(path, tmp_path / "b.zarr", cameras={"front": {**fields, "quaternion_wxyz": [0, 1, 0, 0]}})
    with EpisodeStore.open(tmp_path / "b.zarr") as store:
        assert store.spec.cameras["front"].position_m == (0.6, 0.0, 0.4)
    for wrong, message in (
        ({"quaternion_wxyz": [0.5, 0, 0, 0]}, "quaternion_wxyz.*unit length"),
        ({"fx": "wide"}, "fx.*finite number"),
        ({"zoom": 2}, "zoom"),
    ):
        with pytest.raises(DataError, match=rf"spec card, camera 'front'.*{message}"):
            bring_in(path, tmp_path / "c.zarr", cameras={"front": {**fields, **wrong}})
    assert not (tmp_path / "c.zarr").exists()


def tamper(path: Path, action: str) -> None:
    with h5py.File(path, "a") as file:
        if action == "swapped":
            file.move("data/demo_3", "data/t")
            file.move("data/demo_7", "data/demo_3")
            file.move("data/t", "data/demo_7")
        elif action == "flipped":
            file["data/demo_3/obs/front_image"][1, 2, 3, 0] ^= 1
        elif action == "retyped":
            rows = file["data/demo_3/obs/proprio"][()]
            del file["data/demo_3/obs/proprio"]
            file["data/demo_3/obs/proprio"] = rows.astype(np.float64)
        elif action == "final":
            file["robot_rl/demo_3/final/state"][0, 0] += 1
        elif action == "dropped":
            steps = file["data/demo_3"].attrs["num_samples"]
            del file["data/demo_3"], file["robot_rl/demo_3"]
            file["data"].attrs["total"] -= steps
        elif action == "metadata":
            file["robot_rl/demo_3/json"][20] ^= 1
        elif action == "sidecar":
            del file["robot_rl/json"]


@pytest.mark.parametrize("action", ["swapped", "flipped", "retyped", "final", "dropped", "metadata", "sidecar"])
def test_an_export_that_was_changed_is_refused(tmp_path: Path, action: str) -> None:
    """demo_3 and demo_7 have equal lengths, so only checksums can tell."""
    recording(tmp_path / "a.zarr").close()
    with EpisodeStore.open(tmp_path / "a.zarr") as store:
        write_robomimic(store, tmp_path / "a.hdf5")
    tamper(tmp_path / "a.hdf5", action)
    with pytest.raises(DataError, match=r"demo_3|robot_rl"):
        bring_in(tmp_path / "a.hdf5", tmp_path / "o.zarr")


def test_without_the_sidecar_it_is_an_ordinary_file(tmp_path: Path) -> None:
    with recording(tmp_path / "a.zarr") as store:
        write_robomimic(store, tmp_path / "a.hdf5", done_mode=1)
        proprio = store.episode(4).observation["proprio"]
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["robot_rl"]
    source = RobomimicSource(tmp_path / "a.hdf5")
    np.testing.assert_array_equal(source.rows(4, "obs/proprio")[:-1], proprio)
    assert source.facts["done_modes"] == [1]
    assert source.declared == {"env_id": "PickCube-v1"}
    source.close()


def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    with recording(tmp_path / "a.zarr") as store:
        (tmp_path / "there.hdf5").write_bytes(b"mine")
        with pytest.raises(DataError, match="Nothing is ever overwritten"):
            write_robomimic(store, tmp_path / "there.hdf5")
        with pytest.raises(DataError, match="done_mode 0, 1 or 2"):
            write_robomimic(store, tmp_path / "b.hdf5", done_mode=3)

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_robomimic(store, tmp_path / "b.hdf5", on_episode=stop)
    assert (tmp_path / "there.hdf5").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "there.hdf5"]
    with (
        EpisodeStore.create(tmp_path / "e.zarr", SPEC) as store,
        pytest.raises(DataError, match="at least one episode"),
    ):
        write_robomimic(store, tmp_path / "e.hdf5")


def test_a_spec_that_would_not_come_back_is_refused(tmp_path: Path) -> None:
    odd = replace(SPEC, observation={"proprio": ArraySpec("proprio", (3, 3))})
    rows = np.zeros((3, 3, 3), np.float32)
    episode = replace(recorded(0, 2), observation={"proprio": rows[:2]}, final_observation={"proprio": rows[2]})
    with EpisodeStore.create(tmp_path / "a.zarr", odd) as store:
        store.append(episode)
        with pytest.raises(DataError, match="arrays that a card can describe"):
            write_robomimic(store, tmp_path / "a.hdf5")
    assert not (tmp_path / "a.hdf5").exists()


_IMPORT = """
import sys
from pathlib import Path
import resource
from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.robomimic import RobomimicSource
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.runs.config import convert_config
import h5py, zarr, omegaconf
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = RobomimicSource(Path(sys.argv[1]))
card = convert_config(SpecCard, {"source": "teleop", "max_episode_steps": 400, **source.declared}, where="card")
reader = CardReader(source, card)
report = import_episodes(reader, Path(sys.argv[2]))
print(report.episodes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("megabytes", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_memory_stays_flat(tmp_path: Path, megabytes: int) -> None:
    """An episode is 3 MB; what is held grows with it and with a batch of 8 MB, not with the file (growth in kB)."""
    steps, demos = 64, megabytes // 3
    rows = np.random.default_rng(0).integers(0, 256, (steps, 128, 128, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        data = file.create_group("data")
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            demo["actions"], demo["rewards"] = np.zeros((steps, 7)), np.zeros(steps)
            demo["obs/agentview_image"] = np.roll(rows, number, 0)
            for key in list(SHAPES)[:3]:
                demo[f"obs/{key}"] = np.zeros((steps, SHAPES[key]))
            demo.attrs["num_samples"] = steps
        data.attrs["total"], data.attrs["env_args"] = steps * demos, json.dumps(ENV_ARGS)
    assert (tmp_path / "a.hdf5").stat().st_size > megabytes * 0.95e6
    command = [sys.executable, "-c", _IMPORT, str(tmp_path / "a.hdf5"), str(tmp_path / "o.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    episodes, growth = map(int, done.stdout.split()[-2:])
    assert episodes == demos
    assert growth < 55_000 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
