"""ALOHA's folders: written by hand to the layout of ACT's scripts, packed as compress_data.py does it, and broken."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from robot_rl.data.formats.aloha import AlohaSource
from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.runs.config import convert_config

STEPS = {0: 5, 2: 4, 10: 6}
CAMERAS = ("cam_high", "cam_left_wrist")
REST = {
    "env_id": "transfer_cube",
    "control_hz": 50,
    "max_episode_steps": 400,
    "source": "scripted",
    "success": "last_step",
}


def frame(number: int, step: int, camera: str) -> np.ndarray:
    """A flat colour a JPEG keeps to a level or two: red tells the step, blue the camera; (24, 32, 3)."""
    image = np.zeros((24, 32, 3), np.uint8)
    image[:] = (20 + 10 * step, number, 100 * (1 + CAMERAS.index(camera)))
    return image


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write(folder: Path, *, packed: bool = True, lengths: bool = True) -> Path:
    """As record_sim_episodes.py, then compress_data.py: padded with zeros, compress_len float32 (cameras, T)."""
    folder.mkdir()
    for number, steps in STEPS.items():
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = True, packed
            file["action"] = number + np.arange(steps)[:, None] / 10 * np.ones(14)
            for key, offset in (("qpos", 0.5), ("qvel", 0.25), ("effort", 0.125)):
                file[f"observations/{key}"] = np.arange(steps)[:, None] + offset + np.zeros(14)
            rows = []
            for camera in CAMERAS:
                images = [frame(number, step, camera) for step in range(steps)]
                if not packed:
                    file[f"observations/images/{camera}"] = np.stack(images)
                    continue
                data = [jpeg(image) for image in images]
                rows.append([len(d) for d in data])
                table = np.zeros((steps, max(rows[-1]) + 7), np.uint8)
                for step, d in enumerate(data):
                    table[step, : len(d)] = d
                file[f"observations/images/{camera}"] = table
            if packed and lengths:
                # The recorder's order of cameras need not be that of their names.
                file.create_dataset("compress_len", data=np.array(rows[::-1], np.float32))
    return folder


def bring_in(path: Path, target: Path | None, **options: Any) -> Any:
    source = AlohaSource(path)
    reader = CardReader(source, convert_config(SpecCard, {**source.declared, **REST}, where="card"))
    try:
        return import_episodes(reader, target, **options)
    finally:
        reader.close()


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_arrive_in_natural_order(tmp_path: Path, packed: bool) -> None:
    """episode_10 last; the last row is the final observation; an image tells step and camera within two levels."""
    report = bring_in(write(tmp_path / "a", packed=packed), tmp_path / "o.zarr")
    assert (report.episodes, report.steps) == (3, 4 + 3 + 5)
    with EpisodeStore.open(tmp_path / "o.zarr") as store:
        assert store.lengths.tolist() == [4, 3, 5]
        episode, spec = store.episode(2), store.spec
        assert store.metadata["import"]["sim"] is True
    np.testing.assert_allclose(episode.action, 10 + np.arange(5)[:, None] / 10 * np.ones(14), rtol=1e-6)
    np.testing.assert_array_equal(episode.observation["proprio"][:, 0], np.arange(5) + 0.5)
    assert episode.final_observation["proprio"][0] == 5.5
    for camera in CAMERAS:
        images = episode.observation[f"image/{camera}"].astype(int)
        wanted = np.stack([frame(10, step, camera) for step in range(5)])
        assert np.abs(images - wanted).max() <= (3 if packed else 0)
    assert spec.joint_names[0] == "left_waist"
    assert spec.joint_names[13] == "right_gripper"
    assert (spec.action_semantics.kind.value, spec.action_semantics.frame) == ("absolute", "joint")
    assert any("observations/qvel" in note for note in report.notes)
    assert any("1, 3, 4, 5, 6, 7, 8, 9" in note for note in report.notes)
    assert any("red and blue" in note for note in report.notes)


def test_swapped_colours_are_turned_back(tmp_path: Path) -> None:
    plain = AlohaSource(write(tmp_path / "a")).rows(0, "observations/images/cam_high")
    swapped = AlohaSource(tmp_path / "a", swap_red_blue=True).rows(0, "observations/images/cam_high")
    np.testing.assert_array_equal(swapped, plain[..., ::-1])
    assert plain[0, 0, 0].tolist() != swapped[0, 0, 0].tolist()


def test_one_file_bytes_strings_and_no_lengths(tmp_path: Path) -> None:
    """RoboTwin keeps frames as byte strings; a single file is a data set of one episode."""
    write(tmp_path / "a", lengths=False)
    path = tmp_path / "a/episode_2.hdf5"
    with h5py.File(path, "a") as file:
        key = "observations/images/cam_high"
        data = [bytes(row).rstrip(b"\0") for row in file[key][()]]
        del file[key]
        file[key] = np.array(data, dtype="S")
    source = AlohaSource(path)
    assert [episode.name for episode in source.episodes] == ["episode_2"]
    images = source.rows(0, "observations/images/cam_high").astype(int)
    assert np.abs(images - np.stack([frame(2, step, "cam_high") for step in range(4)])).max() <= 3
    source.close()


def change(folder: Path, action: str) -> None:
    path = folder / "episode_2.hdf5"
    key = "observations/images/cam_high"
    if action == "half":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        return
    if action == "name":
        path.rename(folder / "episode_b.hdf5")
        return
    with h5py.File(path, "a") as file:
        if action == "short":
            del file["observations/qpos"]
            file["observations/qpos"] = np.zeros((3, 14))
        elif action == "cut frame":
            row = file[key][1]
            row[len(bytes(row).rstrip(b"\0")) - 40 :] = 0
            file[key][1] = row
            del file["compress_len"]
        elif action == "lengths":
            file["compress_len"][:, 1] = file["compress_len"][:, 1] + 3
        elif action == "no camera":
            del file[key]
        elif action == "dims":
            del file["action"]
            file["action"] = np.zeros((4, 13))
        elif action == "never written":
            del file[key]
            file.create_dataset(key, (4, 24, 32, 3), "u1")


@pytest.mark.parametrize(
    ("action", "match"),
    [
        ("half", r"episode_2.hdf5: expected a whole HDF5 file"),
        ("name", "named as episode_0, at least one, got episode_b"),
        ("short", r"episode_2.hdf5, observations/qpos: expected 4 rows"),
        ("cut frame", r"cam_high, step 1: expected a whole JPEG or PNG, got \d+ bytes without the end mark"),
        ("lengths", r"cam_high, step 1: expected frames as long as compress_len says"),
        ("no camera", r"episode_2.hdf5, observations/images/cam_high: expected a dataset"),
        ("dims", r"episode_2.hdf5, action: expected rows of shape \(14,\)"),
        ("never written", "cam_high: expected data that were written"),
    ],
)
def test_faults_are_named(tmp_path: Path, action: str, match: str) -> None:
    folder = write(tmp_path / "a")
    change(folder, action)
    with pytest.raises(DataError, match=match):
        bring_in(folder, tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()


def test_a_bad_file_can_be_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    change(folder, "half")
    report = bring_in(folder, tmp_path / "o.zarr", skip_bad=True)
    assert report.episodes == 2
    assert report.left_out[0].startswith("episode_2: ")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing there"):
        AlohaSource(tmp_path / "none")
    with pytest.raises(DataError, match=r"no \.hdf5 file"):
        AlohaSource(tmp_path)
