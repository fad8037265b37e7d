"""Minari's data sets, written by hand to the layout of minari 0.5.3's HDF5Storage, and broken."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.minari import MinariSource
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.runs.config import convert_config

LENGTHS = [3, 5] + [2] * 9  # episode_10 is among them
BOX = {"type": "Box", "dtype": "float32", "shape": [4], "low": [-1.0] * 4, "high": [2.0] * 4}
GOAL = {"type": "Box", "dtype": "float64", "shape": [3], "low": [-float("inf")] * 3, "high": [float("inf")] * 3}
CAMERA = {
    "type": "Box", "dtype": "uint8", "shape": [32, 40, 3], "low": np.zeros((32, 40, 3), int).tolist(),
    "high": np.full((32, 40, 3), 255).tolist(),
}  # fmt: skip
NESTED = {
    "type": "Dict",
    "subspaces": {
        "pixels": CAMERA,
        "agent": {"type": "Dict", "subspaces": {"qpos": BOX}},
        "goals": {
            "type": "Tuple",
            "subspaces": [GOAL, {"type": "Text", "max_length": 5, "min_length": 0, "charset": "a"}],
        },
    },
}
ACTION = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -2.0], "high": [1.0, 2.0]}
PARTS: dict[str, Any] = {
    "robot": "arm", "control_hz": 10, "joint_names": [], "source": "policy", "success": "infos/success",
    "action_semantics": {
        "kind": "absolute", "delta_reference": "none", "frame": "joint", "rotation": "none", "gripper": "none",
        "control_mode": "joint",
    },
}  # fmt: skip


def numbers(index: int, rows: int, size: int, dtype: str = "float32") -> np.ndarray:
    """index * 100 + row + column / 10."""
    return (index * 100 + np.arange(rows)[:, None] + np.arange(size) / 10).astype(dtype)


def jpeg(step: int) -> np.ndarray:
    """A level that tells the step; a corner of noise makes every frame of another length."""
    image = np.full((32, 40, 3), 20 + 10 * step, np.uint8)
    image[16:, : 8 * (step + 1)] = np.random.default_rng(step).integers(0, 256, (16, min(8 * (step + 1), 40), 3))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write(folder: Path, **metadata: Any) -> Path:
    """As HDF5Storage.update_episodes: chunked and growing, JPEG rows, lists of dictionaries as groups."""
    data = folder / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w", track_order=True) as file:
        for index, steps in enumerate(LENGTHS):
            episode = file.create_group(f"episode_{index}")
            episode.attrs["id"], episode.attrs["total_steps"] = index, steps
            episode.attrs["seed"] = np.uint64(2**63 + 5 if index == 1 else index)
            # Episode 0 has frames of one length, by chance: then they are a plain table of bytes.
            frames = [jpeg(step if index else 0) for step in range(steps + 1)]
            kind = h5py.vlen_dtype(np.uint8) if index else None
            growing: Mapping[str, np.ndarray] = {
                "observations/agent/qpos": numbers(index, steps + 1, 4),
                "observations/goals/_index_0": numbers(index, steps + 1, 3, "float64"),
                "actions": numbers(index, steps, 2),
                "rewards": np.arange(steps, dtype="float64"),
                "terminations": np.arange(steps) == (steps - 1 if index % 2 else -1),
                "truncations": np.arange(steps) == (-1 if index % 2 or index == 4 else steps - 1),
                "infos/success": np.arange(steps + 1) == steps,
            }
            for key, rows in growing.items():
                episode.create_dataset(key, data=rows, chunks=True, maxshape=(None, *rows.shape[1:]))
            episode.create_dataset("observations/pixels", data=frames, dtype=kind, chunks=True)
            episode["observations/goals/_index_1"] = np.array(["a"] * (steps + 1), dtype=h5py.string_dtype())
    content = {
        "data_format": "hdf5", "observation_space": json.dumps(NESTED), "action_space": json.dumps(ACTION),
        "env_spec": json.dumps({"id": "Arm-v0", "max_episode_steps": 7, "kwargs": {}}), "total_episodes": len(LENGTHS),
        "total_steps": sum(LENGTHS), "dataset_id": "arm/test-v0", "minari_version": "0.5.3", "author": ["me"],
    }  # fmt: skip
    (data / "metadata.json").write_text(json.dumps({**content, **metadata}))
    return folder


def bring_in(path: Path, target: Path | None, **options: Any) -> Any:
    source = MinariSource(path)
    said = json.loads(json.dumps(source.declared).replace('"???"', '"1"'))
    reader = CardReader(source, convert_config(SpecCard, {**said, **PARTS}, where="card"))
    try:
        return import_episodes(reader, target, **options)
    finally:
        reader.close()


def test_numbers_arrive(tmp_path: Path) -> None:
    """T + 1 observations, nested spaces, JPEG, ends, bounds and seeds; episode_10 last."""
    report = bring_in(write(tmp_path / "test-v0"), tmp_path / "o.zarr")
    assert (report.episodes, report.steps, report.successes) == (11, sum(LENGTHS), 11)
    with EpisodeStore.open(tmp_path / "o.zarr") as store:
        assert store.lengths.tolist() == LENGTHS
        first, second, last, spec = store.episode(0), store.episode(1), store.episode(10), store.spec
        cut = store.episode(4)
        assert store.metadata["import"]["dataset_id"] == "arm/test-v0"
    np.testing.assert_array_equal(last.observation["proprio"][:, :4], numbers(10, 2, 4))
    np.testing.assert_array_equal(second.observation["proprio"][:, 4:], numbers(1, 5, 3))
    np.testing.assert_array_equal(second.final_observation["proprio"][:4], numbers(1, 6, 4)[5])
    np.testing.assert_array_equal(second.action, numbers(1, 5, 2))
    assert second.reward.tolist() == [0, 1, 2, 3, 4]
    assert second.success.tolist() == [False] * 4 + [True]
    levels = second.observation["image/pixels"][:, 0, 0, 0].astype(int)
    assert np.abs(levels - (20 + 10 * np.arange(5))).max() <= 2
    assert abs(int(second.final_observation["image/pixels"][0, 0, 0]) - 70) <= 2
    assert first.observation["image/pixels"].shape == (3, 32, 40, 3)
    assert (first.terminated, first.truncated, second.terminated, second.truncated) == (False, True, True, False)
    assert (cut.terminated, cut.truncated) == (False, False)
    assert (first.metadata["seed"], second.metadata["minari_seed"]) == (0, str(2**63 + 5))
    assert (spec.env_id, spec.max_episode_steps) == ("Arm-v0", 7)
    assert (spec.action.low, spec.action.high) == ((-1.0, -2.0), (1.0, 2.0))
    assert spec.observation["proprio"].low is None  # the goal has no bounds
    text = " ".join(report.notes)
    for part in ("JPEG changed these images", "observations/goals/_index_1", "1 of 11 episodes neither"):
        assert part in text


def test_the_folder_may_be_given_in_three_ways(tmp_path: Path) -> None:
    write(tmp_path / "test-v0")
    for path in (tmp_path / "test-v0", tmp_path / "test-v0/data", tmp_path / "test-v0/data/main_data.hdf5"):
        source = MinariSource(path)
        assert len(source.episodes) == len(LENGTHS)
        source.close()


def test_units_stay_open(tmp_path: Path) -> None:
    source = MinariSource(write(tmp_path / "test-v0"))
    assert source.declared["action"]["units"] == ["???"]
    assert source.declared["observation"]["proprio"]["keys"] == [
        "observations/agent/qpos",
        "observations/goals/_index_0",
    ]
    source.close()


def change(folder: Path, action: str) -> None:
    path = folder / "data/main_data.hdf5"
    if action == "no metadata":
        (folder / "data/metadata.json").unlink()
        return
    if action == "half":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        return
    with h5py.File(path, "a") as file:
        episode = file["episode_1"]
        if action == "dropped":
            del file["episode_3"]
        elif action == "short obs":
            episode["observations/agent/qpos"].resize((5, 4))
        elif action == "short rewards":
            episode["rewards"].resize((4,))
        elif action == "unwritten":
            del episode["actions"]
            episode.create_dataset("actions", (5, 2), "f4", chunks=(1, 2))[:3] = 1
        elif action == "early end":
            episode["terminations"][2] = True
        elif action == "cut frame":
            frame = episode["observations/pixels"][2]
            episode["observations/pixels"][2] = frame[:-30]
        elif action == "shape":
            del episode["observations/agent/qpos"]
            episode["observations/agent/qpos"] = np.zeros((6, 5), np.float32)


@pytest.mark.parametrize(
    ("action", "match"),
    [
        ("no metadata", r"expected a data set of Minari.*got no metadata\.json"),
        ("half", "expected a whole HDF5 file"),
        ("dropped", "total_episodes: expected 11, as metadata.json says, got 10"),
        ("short obs", "episode_1, observations/agent/qpos: expected 6 rows"),
        ("short rewards", "episode_1: expected 5 rewards, terminations and truncations, as total_steps says, got 4"),
        ("unwritten", r"episode_1, actions: .*3 of 5 chunks, none at \(3, 0\)"),
        ("early end", "episode_1: expected an end at its last step only, got one at step 2"),
        ("cut frame", "episode_1, observations/pixels, step 2: expected a whole JPEG"),
        ("shape", r"episode_1, observations/agent/qpos: expected rows of shape \(4,\)"),
    ],
)
def test_faults_are_named(tmp_path: Path, action: str, match: str) -> None:
    folder = write(tmp_path / "test-v0")
    change(folder, action)
    with pytest.raises(DataError, match=match):
        bring_in(folder, tmp_path / "o.zarr")


def test_counts_and_formats_of_the_metadata(tmp_path: Path) -> None:
    for number, (changes, match) in enumerate(
        [
            ({"total_steps": 7}, "total_steps: expected 7"),
            ({"data_format": "arrow"}, "data_format: expected hdf5, got 'arrow'.*DataCollector"),
            ({"action_space": '{"type": "Graph"}'}, "action_space: expected a space as Minari writes it"),
        ]
    ):
        with pytest.raises(DataError, match=match):
            MinariSource(write(tmp_path / f"{number}-v0", **changes))


def test_a_bad_episode_can_be_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "test-v0")
    change(folder, "early end")
    report = bring_in(folder, tmp_path / "o.zarr", skip_bad=True)
    assert report.episodes == 10
    assert report.left_out[0].startswith("episode_1: ")
