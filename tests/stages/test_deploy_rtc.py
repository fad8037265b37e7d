"""`robot-rl deploy execution=rtc policy=<checkpoint>`: torch in the policy's process, never in the loop's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_robot import CARD, panda_spec, run_torch_free

from robot_rl.data.normalizer import Normalizer
from robot_rl.deploy.chunk_weights import continuation_weights
from robot_rl.deploy.execution import ChunkRule, Execution
from robot_rl.deploy.loop_parts import LoopConfig
from robot_rl.deploy.loop_policy import source_of
from robot_rl.errors import DeployError, PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.checkpoint import load_policy, save_checkpoint
from robot_rl.runs.loop_checkpoint import open_checkpoint
from robot_rl.types import Observation

SUPPORT = str(Path(__file__).resolve().parents[1] / "support")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    spec = panda_spec()
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    shape = DiffusionPolicyConfig(
        observation_keys=("proprio",), history=1, horizon=8, execute=4, hidden_width=16, level_embedding=8
    )
    policy = DiffusionPolicy(shape, spec, Normalizer.identity(sizes))
    node = {"_target_": "robot_rl.policies.diffusion.DiffusionPolicy", "config": shape.to_json()}
    documents = {"policy": node, "spec": spec.to_json(), "normalizer": policy.normalizer.to_json()}
    return save_checkpoint(tmp_path, step=1, tensors={"policy": policy.state_dict()}, documents=documents)


def test_its_chunks_are_those_of_the_checkpoint(checkpoint: Path) -> None:
    ours = open_checkpoint({"path": str(checkpoint), "guidance": 3.0, "threads": torch.get_num_threads()})
    theirs = load_policy(checkpoint)[0].continuing(3.0)
    proprio = np.random.default_rng(0).standard_normal((1, 1, 18)).astype(np.float32)
    noise = ours.noise().draw([3], [4])
    plan, weights = np.full((8, 8), 0.25, np.float32), continuation_weights(committed=2, planned=5, horizon=8)
    found = []
    for is_continued in (False, True):
        if is_continued:
            ours.continue_from(plan, weights)
            theirs.continue_from(plan, weights)
        chunk = ours.act(Observation(proprio=proprio.copy()), noise.copy())
        wanted = theirs.act(Observation(proprio=torch.from_numpy(proprio)), torch.from_numpy(noise))
        assert isinstance(chunk.actions, np.ndarray)
        np.testing.assert_array_equal(chunk.actions, wanted.actions.detach().numpy())
        found.append(chunk.actions[0])
    assert np.abs(found[1][:2] - plan[:2]).max() < np.abs(found[0][:2] - plan[:2]).max()
    ours.continue_from(plan, weights)
    ours.reset(np.ones(1, bool))
    np.testing.assert_array_equal(ours.act(Observation(proprio=proprio), noise).actions[0], found[0])


def test_the_command_plays_and_its_loop_has_no_torch(checkpoint: Path, tmp_path: Path) -> None:
    words = [
        "deploy", f"policy={checkpoint}", f"robot={CARD}", "driver=mock", "driver.robot._target_=scene_robot.SceneRobot",
        "num_episodes=1", "max_steps=30", "execution=rtc", "chunks.every=2", "chunks.blend_steps=1", "black_box=false",
        f"run_root={tmp_path}", "--json",
    ]  # fmt: skip
    done = run_torch_free(words)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["execution"] == {"kind": "rtc", "every": 2, "blend_steps": 1, "decay": 0.01, "guidance": 5.0}
    assert summary["chunk_execution"]["questions"] >= 4
    assert summary["action_jerk_rms"] > 0


def test_what_is_refused(checkpoint: Path) -> None:
    with pytest.raises(PolicyError, match="robot-rl export"):
        source_of(str(checkpoint), LoopConfig())
    head = load_policy(checkpoint)[0].one_step_student()
    node = {"_target_": "robot_rl.policies.onestep.OneStepPolicy", "config": head.config.to_json()}
    documents = {"policy": node, "spec": head.spec.to_json(), "normalizer": head.normalizer.to_json()}
    path = save_checkpoint(checkpoint.parents[1], step=2, tensors={"policy": head.state_dict()}, documents=documents)
    source = source_of(str(path), LoopConfig(execution=Execution.rtc, chunks=ChunkRule(guidance=2.0)), threads=2)
    assert dict(source.config) == {"path": str(path), "guidance": 2.0, "threads": 2}
    with pytest.raises(
        DeployError, match=r"a diffusion policy for execution=rtc, got OneStepPolicy\. .* use execution=async"
    ):
        open_checkpoint(source.config)
