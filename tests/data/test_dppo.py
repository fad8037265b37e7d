"""dppo's npz: written by dppo's own formula, read back to the numbers before it, and broken."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.dppo import DppoSource
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.npz_source import NpzSource
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.runs.config import convert_config

LENGTHS = np.array([5, 3, 6])
CARD: dict[str, Any] = {
    "env_id": "can", "robot": "Panda", "control_hz": 20, "max_episode_steps": 300, "joint_names": [], "source": "teleop",
    "success": "rewards", "reward_key": "rewards",
    "action_semantics": {
        "kind": "delta", "delta_reference": "measured", "frame": "world", "rotation": "rotvec", "gripper": "none",
        "control_mode": "OSC_POSE",
    },
    "action": {"keys": ["actions"], "units": ["1"], "meanings": ["a"]},
    "observation": {
        "proprio": {"keys": ["states"], "units": ["1"], "meanings": ["s"]},
        "image/a": {"keys": ["images/0"], "units": ["1"], "meanings": ["RGB"]},
        "image/b": {"keys": ["images/1"], "units": ["1"], "meanings": ["RGB"]},
    },
}  # fmt: skip


def raw() -> dict[str, np.ndarray]:
    """Before scaling: column 3 of the actions is constant."""
    rng, steps = np.random.default_rng(0), int(LENGTHS.sum())
    actions = rng.uniform(-3, 5, (steps, 4))
    actions[:, 3] = 0.25
    rewards = np.zeros(steps)
    rewards[LENGTHS.cumsum() - 1] = 1
    return {
        "states": rng.standard_normal((steps, 6)) * 10,
        "actions": actions,
        "rewards": rewards,
        "terminals": rewards > 0,
        "images": rng.integers(0, 256, (steps, 6, 5, 7), dtype=np.uint8),
    }


def write(folder: Path, *, prefix: str = "", compressed: bool = False, **changes: Any) -> Path:
    """As process_robomimic_dataset.py --normalize: 2 (x - min) / (max - min + 1e-6) - 1, float32."""
    arrays, bounds = raw(), dict[str, np.ndarray]()
    for key, ours in (("states", "obs"), ("actions", "action")):
        low, high = arrays[key].min(0), arrays[key].max(0)
        bounds |= {f"{ours}_min": low, f"{ours}_max": high}
        arrays[key] = (2 * (arrays[key] - low) / (high - low + 1e-6) - 1).astype(np.float32)
    arrays |= {"traj_lengths": LENGTHS, **changes}
    path = folder / f"{prefix}train.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, **{key: value for key, value in arrays.items() if value is not None})
    np.savez(folder / f"{prefix}normalization.npz", **bounds)
    return path


def bring_in(path: Path, target: Path | None, **options: Any) -> Any:
    reader = CardReader(DppoSource(path, **options), convert_config(SpecCard, CARD, where="card"))
    try:
        return import_episodes(reader, target)
    finally:
        reader.close()


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_are_scaled_back(tmp_path: Path, compressed: bool) -> None:
    report = bring_in(write(tmp_path, compressed=compressed), tmp_path / "o.zarr")
    assert (report.episodes, report.steps, report.successes) == (3, 4 + 2 + 5, 3)
    with EpisodeStore.open(tmp_path / "o.zarr") as store:
        episode = store.episode(1)
    arrays = raw()
    np.testing.assert_allclose(episode.action, arrays["actions"][5:7], atol=2e-6)
    np.testing.assert_allclose(episode.action[:, 3], 0.25, atol=1e-6)
    np.testing.assert_allclose(episode.observation["proprio"], arrays["states"][5:7], atol=1e-5)
    np.testing.assert_allclose(episode.final_observation["proprio"], arrays["states"][7], atol=1e-5)
    np.testing.assert_array_equal(episode.observation["image/b"], arrays["images"][5:7, 3:].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(episode.final_observation["image/a"], arrays["images"][7, :3].transpose(1, 2, 0))
    assert episode.terminated


def test_prefixes_belong_together(tmp_path: Path) -> None:
    """--save_name_prefix names both files."""
    source = DppoSource(write(tmp_path, prefix="max_episodes_3_"))
    np.testing.assert_allclose(source.rows(0, "actions"), raw()["actions"][:5], atol=2e-6)
    source.close()


def test_without_normalization_it_must_be_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "normalization.npz").rename(tmp_path / "n.npz")
    with pytest.raises(DataError, match=r"normalization\.npz, with which dppo scaled.*is_raw"):
        DppoSource(path)
    moved = DppoSource(path, normalization=tmp_path / "n.npz")
    as_it_is = DppoSource(path, is_raw=True)
    np.testing.assert_allclose(moved.rows(2, "states"), raw()["states"][8:], atol=1e-5)
    assert np.abs(as_it_is.rows(2, "states")).max() <= 1
    assert "nothing is scaled back" in as_it_is.notes[0]
    moved.close()
    as_it_is.close()


def test_numbers_that_were_never_scaled_are_refused(tmp_path: Path) -> None:
    source = DppoSource(write(tmp_path, actions=raw()["actions"]))
    with pytest.raises(DataError, match=r"trajectory 0, actions, step 3: expected numbers in \[-1, 1\]|actions, step"):
        source.rows(0, "actions")
    source.close()


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    """One bit in the middle of the largest member."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("images.npy")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 300] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip])
def test_damage_is_named(tmp_path: Path, damage: Any) -> None:
    path = write(tmp_path)
    damage(path)
    with pytest.raises(DataError, match=r"train\.npz: expected a whole \.npz"):
        DppoSource(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"traj_lengths": np.array([5, 3, 5])}, "expected 13 rows, the sum of traj_lengths, got 14"),
        ({"traj_lengths": np.array([5.0, 3.0, 6.0])}, "expected whole numbers"),
        ({"traj_lengths": np.array([5, -3, 12])}, "expected lengths, got -3"),
        ({"traj_lengths": None}, "no traj_lengths"),
        ({"actions": None}, "no actions"),
        ({"rewards": np.zeros(4)}, "rewards: expected 14 rows"),
        ({"images": np.zeros((14, 4, 5, 7), np.uint8)}, r"rows \(C, H, W\), C a multiple of 3"),
        ({"rewards": np.array([{}] * 14, dtype=object)}, "rewards: expected numbers in C order"),
        ({"states": np.zeros((14, 5), np.float32)}, "obs_min: expected 5 numbers, one for each of states"),
    ],
)
def test_faults_are_named(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        DppoSource(write(tmp_path, **changes))


def test_rows_without_reading_the_whole_array(tmp_path: Path) -> None:
    """Forward, the same again, and backward; only the rows asked for are in memory."""
    table = np.arange(1000, dtype=np.int32).reshape(100, 10)
    np.savez_compressed(tmp_path / "a.npz", table=table, one=np.arange(3))
    source = NpzSource(tmp_path / "a.npz")
    assert source.arrays["table"] == ((100, 10), np.dtype(np.int32))
    for start, stop in ((0, 7), (7, 50), (7, 50), (3, 9), (99, 100)):
        np.testing.assert_array_equal(source.rows("table", start, stop, where="x"), table[start:stop])
    with pytest.raises(DataError, match="rows 90 to 120"):
        source.rows("table", 90, 120, where="x")
    source.close()
    with pytest.raises(DataError, match=r"whole \.npz"):
        NpzSource(tmp_path / "none.npz")
