"""LeRobot 0.4.4 itself: its loader on our export, and our reader on what its LeRobotDataset records.

Needs its own environment: `tests/peers/lerobot.sh TARGET`, then ROBOT_RL_PEER_LEROBOT=TARGET/bin/python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.formats.lerobot import LeRobotSource
from robot_rl.data.formats.lerobot_writer import write_lerobot
from robot_rl.data.store import EpisodeStore
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

PEER = os.environ.get("ROBOT_RL_PEER_LEROBOT", "")
SPEED = Path(__file__).parents[1] / "peers" / "lerobot_speed.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_LEROBOT is not set (tests/peers/lerobot.sh makes it)"),
]
SPEC = EnvSpec(
    env_id="Paint-v0",
    observation={
        "proprio": ArraySpec("proprio", (3,)),
        "state": ArraySpec("state", (1,)),
        "points": ArraySpec("points", (4, 3)),
        "image/front": ArraySpec("image/front", (96, 96, 3), "uint8"),
        "image/wrist": ArraySpec("image/wrist", (64, 96, 3), "uint8"),
    },
    action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "pos"),
    joint_names=("a", "b", "c"),
    robot="arm",
    control_hz=10.0,
    max_episode_steps=20,
)
LENGTHS = [4 + number % 5 for number in range(12)]
_LOOK = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
data = LeRobotDataset("local/peer", root=sys.argv[1], video_backend="pyav", delta_timestamps={"action": [0.0, 0.1]})
items = [data[i] for i in range(len(data))]
keep = {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0] if key != "task"}
np.savez(sys.argv[2], tasks=[item["task"] for item in items], episodes=data.num_episodes,
         mean=data.meta.stats["observation.state"]["mean"], names=data.meta.camera_keys, **keep)
"""
_RECORD = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
kind = sys.argv[2]
features = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a.pos", "b.pos", "gripper.pos"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    "observation.images.front": {"dtype": kind, "shape": (96, 96, 3), "names": ["height", "width", "channels"]},
    "observation.images.wrist": {"dtype": kind, "shape": (3, 64, 96), "names": ["channels", "height", "width"]},
}
data = LeRobotDataset.create("local/made", fps=10, features=features, root=sys.argv[1], robot_type="arm",
                             use_videos=kind == "video")
def picture(number, shape):
    image = np.full(shape, 110, np.uint8)
    image[:16, :64] = np.kron(((number >> np.arange(16)) & 1).reshape(2, 8), np.ones((8, 8)))[..., None] * 255
    return image
for number in range(12):
    steps = 4 + number % 5
    for t in range(steps):
        data.add_frame({
            "observation.state": np.array([number, t, 0.5], np.float32), "action": np.array([t, -number], np.float32),
            "next.reward": np.array([t], np.float32), "next.success": np.array([t == steps - 1]),
            "observation.images.front": picture(number * 64 + t, (96, 96, 3)),
            "observation.images.wrist": picture(9000 + number * 64 + t, (64, 96, 3)).transpose(2, 0, 1),
            "task": f"task {number % 3}",
        })
    data.save_episode()
data.finalize()
"""


def painted(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Grey; the upper left 16 x 64 pixels are 16 black or white blocks: the number in binary."""
    image = np.full(shape, 110, np.uint8)
    image[:16, :64] = np.kron(((number >> np.arange(16)) & 1).reshape(2, 8), np.ones((8, 8)))[..., None] * 255
    return image


def read_painted(image: np.ndarray) -> int:
    blocks = image[:16, :64].astype(float).mean(-1).reshape(2, 8, 8, 8).mean((1, 3)).ravel() > 127
    return int((blocks << np.arange(16)).sum())


def episode(number: int, steps: int) -> Episode:
    rows = {
        key: np.stack([painted(number * 64 + t + 9000 * (key == "image/wrist"), a.shape) for t in range(steps + 1)])
        if key.startswith("image/")
        else np.random.default_rng(number).standard_normal((steps + 1, *a.shape)).astype(np.float32)
        for key, a in SPEC.observation.items()
    }
    return Episode(
        observation={key: value[:-1] for key, value in rows.items()},
        final_observation={key: value[-1] for key, value in rows.items()},
        action=np.sin(number + np.arange(steps)[:, None] * np.ones(2)).astype(np.float32),
        reward=np.arange(steps, dtype=np.float32),
        success=np.arange(steps) == steps - 1,
        terminated=True,
        truncated=False,
        source=np.zeros(steps, np.uint8),
        time=np.arange(steps) / 10,
        metadata={"collector": "human", "instruction": f"task {number % 3}"},
    )


def export(tmp_path: Path, images: str) -> Path:
    with EpisodeStore.create(tmp_path / "a.zarr", SPEC) as store:
        store.append_many([episode(number, steps) for number, steps in enumerate(LENGTHS)])
        write_lerobot(store, tmp_path / "set", images=images, data_file_mb=0.05, video_file_mb=0.01)
    return tmp_path / "set"


def peer(*words: str, cwd: Path) -> str:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cwd / "hf"),
    }
    done = subprocess.run([PEER, *words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("images", ["video", "png"])
def test_its_loader_reads_our_export(tmp_path: Path, images: str) -> None:
    """Every item: numbers bit-equal, pictures by the number painted into them, action windows with their padding."""
    path = export(tmp_path, images)
    peer("-c", _LOOK, str(path), str(tmp_path / "out.npz"), cwd=tmp_path)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    whole = [episode(number, steps) for number, steps in enumerate(LENGTHS)]
    for key, name in (("proprio", "state"), ("points", "points"), ("state", "environment_state")):
        ours = np.concatenate([e.observation[key] for e in whole])
        np.testing.assert_array_equal(found[f"observation.{name}"].reshape(ours.shape), ours)
    np.testing.assert_array_equal(found["action"][:, 0], np.concatenate([e.action for e in whole]))
    assert found["action_is_pad"][:, 1].tolist() == [t == n - 1 for n in LENGTHS for t in range(n)]
    assert found["tasks"].tolist() == [f"task {number % 3}" for number, n in enumerate(LENGTHS) for _ in range(n)]
    assert int(found["episodes"]) == 12
    np.testing.assert_allclose(
        found["mean"], np.concatenate([e.observation["proprio"] for e in whole]).mean(0), atol=1e-6
    )
    for camera, offset in (("front", 0), ("wrist", 9000)):
        pictures = np.rint(found[f"observation.images.{camera}"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        expected = [offset + number * 64 + t for number, n in enumerate(LENGTHS) for t in range(n)]
        assert [read_painted(picture) for picture in pictures] == expected


@pytest.mark.parametrize("kind", ["video", "image"])
def test_we_read_what_it_records(tmp_path: Path, kind: str) -> None:
    """LeRobotDataset.create, add_frame, save_episode and finalize: 12 episodes, 3 tasks, 2 cameras, one of them (3, H, W)."""
    peer("-c", _RECORD, str(tmp_path / "made"), kind, cwd=tmp_path)
    source = LeRobotSource(tmp_path / "made")
    assert [e.steps for e in source.episodes] == LENGTHS
    assert [e.metadata["instruction"] for e in source.episodes] == [f"task {n % 3}" for n in range(12)]
    assert source.declared["control_hz"] == 10
    assert source.declared["joint_names"] == ["a", "b"]
    assert source.declared["success"] == "next.success"
    for number, steps in enumerate(LENGTHS):
        state = np.stack([np.full(steps, number), np.arange(steps), np.full(steps, 0.5)], 1).astype(np.float32)
        np.testing.assert_array_equal(source.rows(number, "observation.state"), state)
        assert source.rows(number, "next.success").ravel().tolist() == [t == steps - 1 for t in range(steps)]
        for camera, offset in (("front", 0), ("wrist", 9000)):
            pictures = source.rows(number, f"observation.images.{camera}")
            assert pictures.shape == (steps, *((96, 96, 3) if camera == "front" else (64, 96, 3)))
            assert [read_painted(p) for p in pictures] == [offset + number * 64 + t for t in range(steps)]


def test_speed_script_prints_json(tmp_path: Path) -> None:
    path = export(tmp_path, "video")
    report = json.loads(peer(str(SPEED), str(path), "--batch", "8", "--horizon", "4", cwd=tmp_path))
    assert report["windows"] == report["windows_read"] == sum(LENGTHS)
    assert report["windows_per_s"] > 0
    report = json.loads(peer(str(SPEED), str(path), "--batch", "8", "--no-images", cwd=tmp_path))
    assert report["cameras"] == []
