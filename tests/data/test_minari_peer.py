"""Data that the minari package itself records: flat, nested and with images.

Needs its own environment: `tests/peers/minari.sh TARGET`, then ROBOT_RL_PEER_MINARI=TARGET/bin/python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.minari import MinariSource
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.runs.config import convert_config

PEER = os.environ.get("ROBOT_RL_PEER_MINARI", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_MINARI is not set (tests/peers/minari.sh makes it)"),
]
# Records 12 episodes with a time limit of 4, and keeps beside them what the environment gave.
_RECORD = """
import sys
import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces

class Arm(gym.Env):
    action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
    def __init__(self, kind="flat"):
        box = spaces.Box(-1e3, 1e3, (3,), np.float32)
        self.kind = kind
        self.observation_space = box if kind == "flat" else spaces.Dict({
            "agent": spaces.Dict({"qpos": box, "grip": spaces.Box(0, 1, (1,), np.float64)}),
            "camera": spaces.Box(0, 255, (48, 64, 3), np.uint8), "mode": spaces.Discrete(5)})
    def obs(self):
        q = (100 * self.episode + self.t + np.arange(3) / 10).astype(np.float32)
        if self.kind == "flat":
            return q
        image = np.full((48, 64, 3), 20 + 10 * self.t, np.uint8)
        image[24:, : 8 * (self.t + 1)] = self.np_random.integers(0, 255, (24, 8 * (self.t + 1), 3))
        return {"agent": {"qpos": q, "grip": np.array([self.t / 10])}, "camera": image, "mode": self.t % 5}
    episode = -1
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.obs(), {"success": False}
    def step(self, action):
        self.t += 1
        return self.obs(), float(action.sum()), self.episode % 3 == 0 and self.t == 3, False, {"success": self.t == 3}

if __name__ == "__main__":
    kind = sys.argv[1]
    gym.register("Arm-v0", entry_point="record:Arm", max_episode_steps=4)
    env = minari.DataCollector(gym.make("Arm-v0", kind=kind), record_infos=True, data_format="hdf5")
    log = {}
    for episode in range(12):
        env.reset(seed=episode)
        actions, done = [], False
        while not done:
            action = np.float32([episode, len(actions)]) / 10
            *_, terminated, truncated, _ = env.step(action)
            actions.append(action)
            done = terminated or truncated
        log[f"actions_{episode}"], log[f"ends_{episode}"] = np.stack(actions), np.array([terminated, truncated])
    env.create_dataset(dataset_id=f"arm/{kind}-v0", algorithm_name="scripted", author="t", author_email="t@t", code_permalink="t")
    np.savez(sys.argv[2], **log)
"""
PARTS = {
    "robot": "arm", "control_hz": 10, "joint_names": [], "source": "scripted", "success": "infos/success",
    "action_semantics": {
        "kind": "absolute", "delta_reference": "none", "frame": "joint", "rotation": "none", "gripper": "none",
        "control_mode": "joint",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["flat", "nested"])
def test_data_recorded_by_minari_arrive(tmp_path: Path, kind: str) -> None:
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "sets"), "PYTHONPATH": ""}
    (tmp_path / "record.py").write_text(_RECORD)
    words = [PEER, "record.py", kind, "log.npz"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    source = MinariSource(tmp_path / "sets" / "arm" / f"{kind}-v0")
    said = json.loads(json.dumps(source.declared).replace('"???"', '"1"'))
    assert (said["env_id"], said["max_episode_steps"]) == ("Arm-v0", 4)
    assert (said["action"]["low"], said["action"]["high"]) == ([-2, -2], [2, 2])
    reader = CardReader(source, convert_config(SpecCard, {**said, **PARTS}, where="card"))
    report = import_episodes(reader, tmp_path / "o.zarr")
    reader.close()
    assert report.episodes == 12
    column = 1 if kind == "nested" else 0  # Gymnasium sorts a Dict: agent/grip (1), agent/qpos (3), camera, mode
    with np.load(tmp_path / "log.npz") as log, EpisodeStore.open(tmp_path / "o.zarr") as store:
        for number in range(12):
            episode = store.episode(number)
            steps = 3 if number % 3 == 0 else 4
            np.testing.assert_array_equal(episode.action, log[f"actions_{number}"])
            assert [episode.terminated, episode.truncated] == log[f"ends_{number}"].tolist()
            wanted = (100 * number + np.arange(steps + 1)[:, None] + np.arange(3) / 10).astype(np.float32)
            np.testing.assert_array_equal(episode.observation["proprio"][:, column : column + 3], wanted[:-1])
            np.testing.assert_array_equal(episode.final_observation["proprio"][column : column + 3], wanted[-1])
            assert episode.success.tolist() == [step == 2 for step in range(steps)]
            np.testing.assert_allclose(episode.reward, log[f"actions_{number}"].sum(1), rtol=1e-6)
            assert episode.metadata["seed"] == number
            if kind == "nested":
                levels = episode.observation["image/camera"][:, 0, 0, 0].astype(int)
                assert np.abs(levels - (20 + 10 * np.arange(steps))).max() <= 2
