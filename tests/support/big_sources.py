"""Sources of any size in every format that is read, made of frames that any codec packs well: gigabytes of frames need
little disk. `write(family, path, episodes)` makes one, `open_reader(family, path, episodes)` reads it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.keyed import SourceEpisode
from robot_rl.data.formats.known import open_source
from robot_rl.data.formats.maniskill import ManiSkillReader
from robot_rl.data.formats.maniskill_header import read_header
from robot_rl.data.formats.spec_card import ArrayCard, SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.runs.config import convert_config
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

STEPS, FRAME = 40, (240, 320, 3)
EPISODE_BYTES = STEPS * 240 * 320 * 3
SEMANTICS = ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "stream")
SPEC = EnvSpec(
    "Stream", {"proprio": ArraySpec("proprio", (3,)), "image/top": ArraySpec("image/top", FRAME, dtype="uint8")},
    ArraySpec("action", (2,)), SEMANTICS, (), "stream", 10.0, 2 * STEPS,
)  # fmt: skip
# Family -> keys of proprio, image and action.
KEYS = {
    "keyed": ("state", "img", "action"),
    "diffusion_policy": ("state", "img", "action"),
    "robomimic": ("obs/state", "obs/img", "actions"),
    "aloha": ("observations/qpos", "observations/images/top", "action"),
    "minari": ("observations/state", "observations/img", "actions"),
    "dppo": ("states", "images", "actions"),
    "mcap": ("proprio", "img", "action"),
}
BAG = {
    "rate_hz": 10, "align": "log", "max_gap_s": 0.2, "episodes": "bag",
    "streams": {
        "proprio": {"topic": "/state"}, "action": {"topic": "/command"}, "img": {"topic": "/camera"},
    },
}  # fmt: skip


def frames(number: int, rows: int) -> np.ndarray:
    """Stripes that move: any codec packs them well, and no two frames are alike."""
    stripes = ((np.arange(FRAME[1]) // 20 + number) % 8 * 24 + 20).astype(np.uint8)
    return np.stack([np.broadcast_to(np.roll(stripes, step)[None, :, None], FRAME) for step in range(rows)])


def vectors(number: int, width: int, rows: int = STEPS) -> np.ndarray:
    """(rows, width) float32 in [-1, 1]."""
    return np.random.default_rng(number).uniform(-1, 1, (rows, width)).astype(np.float32)


class MadeUp:
    """A KeyedSource that makes each frame when it is asked for it."""

    format, declared, facts, notes = "made_up", dict[str, Any](), dict[str, Any](), list[str]()

    def __init__(self, path: Path, episodes: int) -> None:
        self.path = path
        self.episodes: Sequence[SourceEpisode] = [SourceEpisode(f"episode {n}", STEPS) for n in range(episodes)]
        self.keys: Mapping[str, tuple[tuple[int, ...], np.dtype]] = {
            "action": ((2,), np.dtype(np.float32)), "state": ((3,), np.dtype(np.float32)), "img": (FRAME, np.dtype(np.uint8)),
        }  # fmt: skip

    def rows(self, index: int, key: str) -> np.ndarray:
        return frames(index, STEPS) if key == "img" else vectors(index, self.keys[key][0][0])

    def close(self) -> None:
        pass


def _diffusion_policy(path: Path, episodes: int) -> None:
    import zarr
    from numcodecs import Blosc

    root, total = zarr.open_group(str(path), mode="w", zarr_format=2), episodes * STEPS
    for key, width in (("action", 2), ("state", 3)):
        root.create_array(f"data/{key}", data=vectors(0, width, total))
    images = root.create_array(
        "data/img", shape=(total, *FRAME), chunks=(STEPS, *FRAME), dtype="uint8", compressors=Blosc(cname="lz4")
    )
    for number in range(episodes):
        images[number * STEPS : (number + 1) * STEPS] = frames(number, STEPS)
    root.create_array("meta/episode_ends", data=STEPS * np.arange(1, episodes + 1))


def _robomimic(path: Path, episodes: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for number in range(episodes):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = STEPS
            demo["actions"], demo["obs/state"] = vectors(number, 2), vectors(number, 3)
            demo["rewards"], demo["dones"] = np.zeros(STEPS), np.arange(STEPS) == STEPS - 1
            demo.create_dataset("obs/img", data=frames(number, STEPS), chunks=(1, *FRAME), compression=1)
        file["data"].attrs["total"] = episodes * STEPS


def _lerobot(path: Path, episodes: int) -> None:
    from robot_rl.data.formats.lerobot_writer import write_lerobot

    with EpisodeStore.create(path.with_name("own.zarr"), SPEC) as store:
        for number in range(episodes):
            seen = {"proprio": vectors(number, 3), "image/top": frames(number, STEPS)}
            store.append(Episode(
                observation=seen, final_observation={key: rows[-1] for key, rows in seen.items()}, action=vectors(number, 2),
                reward=np.zeros(STEPS, np.float32), success=np.zeros(STEPS, bool), terminated=False, truncated=True,
                source=np.zeros(STEPS, np.uint8), time=np.arange(STEPS) / 10, metadata={"seed": number},
            ))  # fmt: skip
        write_lerobot(store, path, images="video")


def _aloha(path: Path, episodes: int) -> None:
    import h5py
    from PIL import Image

    path.mkdir()
    for number in range(episodes):
        packed = []
        for frame in frames(number, STEPS):
            Image.fromarray(frame).save(buffer := io.BytesIO(), format="JPEG")
            packed.append(np.frombuffer(buffer.getvalue(), np.uint8))
        table = np.zeros((STEPS, max(map(len, packed))), np.uint8)
        for row, data in zip(table, packed, strict=True):
            row[: len(data)] = data
        with h5py.File(path / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = True, True
            file["action"], file["observations/qpos"] = vectors(number, 2), vectors(number, 3)
            file["observations/images/top"] = table
            file["compress_len"] = np.array([[len(data) for data in packed]], np.float32)


def _minari(path: Path, episodes: int) -> None:
    import h5py

    def box(shape: tuple[int, ...], dtype: str, low: float, high: float) -> dict[str, Any]:
        return {
            "type": "Box", "dtype": dtype, "shape": list(shape), "low": np.full(shape, low).tolist(),
            "high": np.full(shape, high).tolist(),
        }  # fmt: skip

    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w", track_order=True) as file:
        for number in range(episodes):
            group = file.create_group(f"episode_{number}")
            group.attrs["id"], group.attrs["total_steps"] = number, STEPS
            group["observations/state"], group["actions"] = vectors(number, 3, STEPS + 1), vectors(number, 2)
            pixels = frames(number, STEPS + 1)
            group.create_dataset("observations/img", data=pixels, chunks=(1, *FRAME), compression=1)
            group["rewards"] = np.zeros(STEPS)
            group["terminations"], group["truncations"] = np.zeros(STEPS, bool), np.arange(STEPS) == STEPS - 1
    spaces = {"state": box((3,), "float32", -1, 1), "img": box(FRAME, "uint8", 0, 255)}
    content = {
        "data_format": "hdf5", "observation_space": json.dumps({"type": "Dict", "subspaces": spaces}),
        "action_space": json.dumps(box((2,), "float32", -1, 1)), "total_episodes": episodes, "total_steps": episodes * STEPS,
        "env_spec": json.dumps({"id": "Stream", "max_episode_steps": 2 * STEPS, "kwargs": {}}), "dataset_id": "big/test-v0",
        "minari_version": "0.5.3",
    }  # fmt: skip
    (path / "data" / "metadata.json").write_text(json.dumps(content))


def _dppo(path: Path, episodes: int) -> None:
    path.mkdir()
    pixels = np.concatenate([frames(number, STEPS).transpose(0, 3, 1, 2) for number in range(episodes)])
    np.savez_compressed(
        path / "train.npz", states=vectors(0, 3, episodes * STEPS), actions=vectors(1, 2, episodes * STEPS), images=pixels,
        traj_lengths=np.full(episodes, STEPS),
    )  # fmt: skip


def _maniskill(path: Path, episodes: int) -> None:
    import h5py

    path.mkdir()
    with h5py.File(path / "t.h5", "w") as file:
        for number in range(episodes):
            group = file.create_group(f"traj_{number}")
            group["obs/agent/qpos"], group["actions"] = vectors(number, 3, STEPS + 1), vectors(number, 2)
            pixels = frames(number, STEPS + 1)
            group.create_dataset("obs/sensor_data/top/rgb", data=pixels, chunks=(1, *FRAME), compression=1)
            group["terminated"], group["success"] = np.zeros(STEPS, bool), np.zeros(STEPS, bool)
            group["truncated"] = np.arange(STEPS) == STEPS - 1
    entries = [
        {"episode_id": n, "episode_seed": n, "control_mode": "stream", "elapsed_steps": STEPS} for n in range(episodes)
    ]
    info = {"env_id": "Stream", "env_kwargs": {"obs_mode": "rgb"}, "max_episode_steps": 2 * STEPS}
    content = {"env_info": info, "episodes": entries, "source_type": "motionplanning"}
    (path / "t.json").write_text(json.dumps(content))


def _mcap(path: Path, episodes: int) -> None:
    """One bag an episode, 10 Hz, raw images in chunks that zstd packs."""
    from mcap_ros2.writer import Writer

    from robot_rl.hardware.ros2_definitions import definition

    path.mkdir()
    kinds = {"/state": "std_msgs/msg/Float64MultiArray", "/command": "std_msgs/msg/Float64MultiArray"}
    kinds["/camera"] = "sensor_msgs/msg/Image"
    stamp = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "top"}
    picture = {"header": stamp, "height": 240, "width": 320, "encoding": "rgb8", "is_bigendian": 0, "step": 960}
    layout: dict[str, Any] = {"dim": [], "data_offset": 0}
    for number in range(episodes):
        with (path / f"{number:05d}.mcap").open("wb") as file:
            writer = Writer(file)
            schemas = {kind: writer.register_msgdef(kind, definition(kind)) for kind in set(kinds.values())}
            rows = zip(vectors(number, 3), vectors(number + 1, 2), frames(number, STEPS), strict=True)
            for step, (state, action, frame) in enumerate(rows):
                contents = (
                    ("/state", {"layout": layout, "data": state.tolist()}),
                    ("/command", {"layout": layout, "data": action.tolist()}),
                    ("/camera", {**picture, "data": frame.tobytes()}),
                )
                for topic, content in contents:
                    writer.write_message(topic, schemas[kinds[topic]], content, log_time=10**18 + step * 10**8)
            writer.finish()


_WRITERS = {
    "diffusion_policy": _diffusion_policy, "robomimic": _robomimic, "lerobot": _lerobot, "aloha": _aloha, "minari": _minari,
    "dppo": _dppo, "maniskill": _maniskill, "mcap": _mcap,
}  # fmt: skip


def write(family: str, path: Path, episodes: int) -> None:
    """Make a source of that many episodes at `path`; "keyed" needs none."""
    if family != "keyed":
        _WRITERS[family](path, episodes)


def open_reader(family: str, path: Path, episodes: int) -> CardReader | ManiSkillReader:
    """A reader of what `write` made."""
    if family == "maniskill":
        seen = SPEC.observation | {
            "proprio": ArraySpec("proprio", (3,), units=("1",) * 3, meanings=tuple(f"qpos[{n}]" for n in range(3)))
        }
        return ManiSkillReader(read_header(path / "t.h5"), EnvSpec(**{**vars(SPEC), "observation": seen}))
    if family == "keyed":
        return CardReader(MadeUp(path, episodes), _card(family))
    if family == "lerobot":
        source = open_source(family, path, {})
        return CardReader(source, convert_config(SpecCard, dict(source.declared), where="card"))
    if family == "dppo":
        return CardReader(open_source(family, path / "train.npz", {"is_raw": True}), _card(family))
    return CardReader(open_source(family, path, BAG if family == "mcap" else {}), _card(family))


def _card(family: str) -> SpecCard:
    proprio, image, action = KEYS[family]
    return SpecCard(
        env_id="Stream", robot="stream", control_hz=10.0, max_episode_steps=2 * STEPS, joint_names=(),
        action_semantics=SEMANTICS, action=ArrayCard((action,), ("1",), ("x",)),
        observation={"proprio": ArrayCard((proprio,), ("1",), ("x",)), "image/top": ArrayCard((image,), ("1",), ("RGB",))},
        source="teleop", success="last_step",
    )  # fmt: skip
