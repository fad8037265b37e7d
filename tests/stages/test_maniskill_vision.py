"""PushCube-v1, drawn by software: demonstrations with images and points, imitation, evaluation in the renderer, export.

Far too little data and training to learn the task; tests/stages/test_imitate_vision.py shows learning.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from software_vulkan import result_of, run_rendered

_CHAIN = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from robot_rl.data.store import EpisodeStore
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect, export, imitate

icd, mode, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
env = ["env=push_cube", f"env.obs_mode={mode}", f"env.vulkan_icd={icd}", "env.image_size=32", "env.with_state=true"]
if mode == "pointcloud":
    env += ["env.points.num_points=48", "env.points.low_m=[0.2,-0.6,-0.01]", "env.points.high_m=[1.2,0.6,0.6]"]

def opened(stage):
    return RunDirectory.create(folder / stage, stage=stage, task="t", seed=0, config_yaml="", command=[])

def staged(module, *words):
    name = module.__name__.rpartition(".")[2]
    run = opened(name)
    return run, module.run(load_config(module.CONFIG, list(words), name=name), run)

store = str(folder / "demos.zarr")
staged(collect, *env, "expert=scripted", "num_episodes=3", "num_envs=1", f"dataset={store}")
with EpisodeStore.open(store, mode="r") as data:
    successes, spec = data.success.tolist(), data.spec
small = {
    "rgb": ["encoder=rgb", "policy.encoder.images.width=8", "policy.encoder.images.num_stages=2",
            "policy.encoder.images.crop=28"],
    "pointcloud": ["encoder=points_regularised", "policy.encoder.points.widths=[16,32]"],
}
train = ["policy.hidden_width=32", "train.num_steps=5", "train.batch_size=8", "train.threads=1", "train.warmup_steps=1"]
run, summary = staged(imitate, *env, *small[mode], *train, f"dataset={store}", "rollout_episodes=1", "num_envs=1")
_, exported = staged(export, f"policy={run.path}", f"dataset={store}", "latency_calls=3")
print("RESULT", json.dumps({
    "successes": successes, "keys": sorted(spec.observation), "cameras": {k: v.frame for k, v in spec.cameras.items()},
    "success_once": summary["metrics"]["imitate/success_once"], "parity": exported["parity_max_error"],
    "final": (folder / "imitate").is_dir(),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rgb", "pointcloud"])
def test_demonstrations_imitation_and_export_of_rendered_observations(mode: str, tmp_path: Path) -> None:
    result = result_of(run_rendered(_CHAIN, mode, str(tmp_path), timeout_s=900))
    assert result["successes"] == [True] * 3
    assert result["keys"] == sorted({"proprio", "state", "image/base_camera" if mode == "rgb" else "points"})
    assert result["cameras"] == {"base_camera": "base"}
    assert 0 <= result["success_once"] <= 1
    assert result["parity"] < 1e-4


_STUDENT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from robot_rl.runs.checkpoint import load_checkpoint
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import refine_teacher

icd, student, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
place, words = ("student", ["student.hidden=[16]", "student.batch_size=8"])
if student == "denoising":
    place = "student.policy"
    words = ["student.policy.hidden_width=16", "student.ppo.batch_size=8", "student.critic.hidden_width=8"]
config = load_config(refine_teacher.CONFIG, [
    "env=push_cube", "env.obs_mode=rgb", f"env.vulkan_icd={icd}", "env.image_size=32", "env.with_state=true",
    f"student={student}", f"+encoder@{place}=rgb", f"{place}.observation_keys=[proprio,image/base_camera]",
    f"{place}.encoder.images.width=8", f"{place}.encoder.images.num_stages=2", *words, "student.num_steps=4",
    "teacher=scripted", "quality_episodes=0", "num_envs=2", "num_steps=16", "evaluate_every_steps=16", "rollout_episodes=1",
    "env.max_episode_steps=6",
], name="refine_teacher")
run = RunDirectory.create(folder, stage="refine_teacher", task="t", seed=0, config_yaml="", command=[])
summary = refine_teacher.run(config, run)
first, last = (load_checkpoint(run.path / "checkpoints" / f"step_{step:06d}").tensors["policy"] for step in (0, 16))
moved = sorted({name.split(".")[0] for name in last if not torch.equal(first[name], last[name])})
print("RESULT", json.dumps({"env_steps": summary["env_steps"], "answers": summary["teachers"][0]["answers"], "moved": moved}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("student", ["gaussian", "denoising"])
def test_a_student_that_sees_learns_under_a_teacher_that_knows_the_state(student: str, tmp_path: Path) -> None:
    result = result_of(run_rendered(_STUDENT, student, str(tmp_path), timeout_s=900))
    assert (result["env_steps"], result["answers"]) == (16, 16)
    assert {"encoder", "mean" if student == "gaussian" else "denoiser"} <= set(result["moved"])
