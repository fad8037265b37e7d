"""robomimic 0.3.0 itself on our export: its SequenceDataset, its dataset report and one epoch of its own training script.

Needs its own environment: `tests/peers/robomimic.sh TARGET`, then ROBOT_RL_PEER_ROBOMIMIC=TARGET/bin/python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from robot_rl.data.formats.robomimic import RobomimicSource
from robot_rl.data.formats.robomimic_writer import write_robomimic
from robot_rl.data.store import EpisodeStore
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

PEER = os.environ.get("ROBOT_RL_PEER_ROBOMIMIC", "")
SPEED = Path(__file__).parents[1] / "peers" / "robomimic_speed.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_ROBOMIMIC is not set (tests/peers/robomimic.sh makes it)"),
]
SPEC = EnvSpec(
    env_id="Paint-v0",
    observation={
        "proprio": ArraySpec("proprio", (3,)),
        "state": ArraySpec("state", (5,)),
        "image/front": ArraySpec("image/front", (12, 16, 3), "uint8"),
    },
    action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "pos"),
    joint_names=("a", "b", "c"),
    robot="arm",
    control_hz=10.0,
    max_episode_steps=20,
)
_LOOK = """
import json, sys
import numpy as np
import robomimic.utils.obs_utils as obs_utils
obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["proprio", "state"], "rgb": ["front_image"]}})
from robomimic.utils.dataset import SequenceDataset
def make(mask):
    return SequenceDataset(sys.argv[1], ("proprio", "state", "front_image"), ("actions", "rewards", "dones"), frame_stack=2,
                           seq_length=4, hdf5_cache_mode="low_dim", filter_by_attribute=mask, load_next_obs=True)
whole, train, valid = make(None), make("train"), make("valid")
out = [whole[index] for index in range(len(whole))]
np.savez(sys.argv[2], demos=np.array(whole.demos), n=[len(whole), len(train), len(valid)],
         actions=np.stack([o["actions"] for o in out]), dones=np.stack([o["dones"] for o in out]),
         proprio=np.stack([o["obs"]["proprio"] for o in out]), next_proprio=np.stack([o["next_obs"]["proprio"] for o in out]),
         image=np.stack([o["obs"]["front_image"] for o in out]))
"""


def episode(number: int, steps: int) -> Episode:
    """Each number says where it stands: number * 100 + step; images carry the step as their level."""
    rows = {
        "proprio": (number * 100 + np.arange(steps + 1)[:, None] + np.arange(3) / 10).astype(np.float32),
        "state": np.random.default_rng(number).standard_normal((steps + 1, 5)).astype(np.float32),
        "image/front": np.full((steps + 1, 12, 16, 3), 0, np.uint8)
        + np.arange(steps + 1, dtype=np.uint8)[:, None, None, None],
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
        metadata={"collector": "human"},
    )


@pytest.fixture
def export(tmp_path: Path) -> Path:
    with EpisodeStore.create(tmp_path / "a.zarr", SPEC) as store:
        store.append_many([episode(number, 4 + number % 5) for number in range(12)])
        write_robomimic(store, tmp_path / "a.hdf5")
    return tmp_path / "a.hdf5"


def peer(*words: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([PEER, *words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_sequence_dataset_reads_what_the_store_holds(export: Path, tmp_path: Path) -> None:
    """Every window of 1 + 4 frames, against windows cut here by hand from the store."""
    peer("-c", _LOOK, str(export), str(tmp_path / "out.npz"), cwd=tmp_path)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    lengths = [4 + number % 5 for number in range(12)]
    assert found["demos"].tolist() == [f"demo_{number}" for number in range(12)]
    total, train, valid = found["n"].tolist()
    assert total == sum(lengths) == train + valid
    index = 0
    for number, steps in enumerate(lengths):
        whole = episode(number, steps)
        for step in range(steps):
            frames = np.clip(np.arange(step - 1, step + 4), 0, steps - 1)
            np.testing.assert_array_equal(found["actions"][index], whole.action[frames])
            np.testing.assert_array_equal(found["proprio"][index], whole.observation["proprio"][frames])
            following = np.concatenate([whole.observation["proprio"], whole.final_observation["proprio"][None]])[1:]
            np.testing.assert_array_equal(found["next_proprio"][index], following[frames])
            assert found["image"][index, :, 0, 0, 0].tolist() == frames.tolist()
            assert found["dones"][index].ravel().tolist() == (frames == steps - 1).astype(int).tolist()
            index += 1


def test_its_own_report_accepts_the_file(export: Path, tmp_path: Path) -> None:
    """get_dataset_info raises for actions outside [-1, 1]."""
    text = peer("-m", "robomimic.scripts.get_dataset_info", "--dataset", str(export), cwd=tmp_path)
    assert "total trajectories: 12" in text
    assert "filter key train with 11 demos" in text
    assert "filter key valid with 1 demos" in text


def config(export: Path, folder: Path, *, images: bool) -> dict[str, Any]:
    """Of robomimic's train script, over its defaults for BC."""
    obs = {"low_dim": ["proprio", "state"], "rgb": ["front_image"] if images else []}
    return {
        "algo_name": "bc",
        "experiment": {
            "name": "peer", "validate": True, "epoch_every_n_steps": 5, "validation_epoch_every_n_steps": 2,
            "logging": {"log_tb": False, "terminal_output_to_txt": False},
            "save": {"enabled": True, "every_n_epochs": 1}, "rollout": {"enabled": False}, "render_video": False,
        },
        "train": {
            "data": str(export), "output_dir": str(folder / "trained"), "hdf5_cache_mode": "low_dim",
            "hdf5_filter_key": "train", "hdf5_validation_filter_key": "valid", "batch_size": 4, "num_epochs": 1, "cuda": False,
        },
        "observation": {"modalities": {"obs": obs}},
    }  # fmt: skip


def test_one_epoch_of_its_own_training(export: Path, tmp_path: Path) -> None:
    """robomimic.scripts.train exits with 0 when it fails, so its checkpoint and its last line are what counts."""
    (tmp_path / "config.json").write_text(json.dumps(config(export, tmp_path, images=False)))
    text = peer("-m", "robomimic.scripts.train", "--config", str(tmp_path / "config.json"), cwd=tmp_path)
    assert "finished run successfully!" in text
    assert "Validation Epoch 1" in text
    assert len(list((tmp_path / "trained").rglob("model_epoch_1*.pth"))) == 1


def test_we_read_a_split_that_it_wrote(export: Path, tmp_path: Path) -> None:
    """split_train_val edits the file in place: its new masks are found, and our sidecar is still right."""
    peer("-m", "robomimic.scripts.split_train_val", "--dataset", str(export), "--ratio", "0.25", cwd=tmp_path)
    source = RobomimicSource(export)
    assert [len(source.facts["masks"][name]) for name in ("train", "valid")] == [9, 3]
    np.testing.assert_array_equal(source.rows(3, "actions"), episode(3, 7).action)
    source.close()


def test_speed_script_prints_json(export: Path, tmp_path: Path) -> None:
    words = (str(export), "--obs", "proprio", "state", "--images", "front_image", "--batch", "8", "--cache", "none")
    report = json.loads(peer(str(SPEED), *words, cwd=tmp_path))
    with h5py.File(export) as file:
        assert report["windows"] == report["windows_read"] == file["data"].attrs["total"]
    assert report["windows_per_s"] > 0
