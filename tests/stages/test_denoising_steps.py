"""`denoising_steps=` of evaluate, serve and export: fewer steps of a trained diffusion policy, on the point task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.few_steps import few_steps, sampling_text
from robot_rl.cli import main as robot_rl
from robot_rl.data.normalizer import Normalizer
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.checkpoint import save_checkpoint
from robot_rl.stages.evaluate import EvaluateConfig, load_any_policy
from robot_rl.stages.sampling import sampled
from robot_rl.types import Observation

CONFIG = DiffusionPolicyConfig(horizon=4, execute=2, hidden_width=16, level_embedding=8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    spec = PointReach(PointReachConfig(), num_envs=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    policy = DiffusionPolicy(CONFIG, spec, Normalizer.identity(sizes))
    node = {"_target_": "robot_rl.policies.diffusion.DiffusionPolicy", "config": CONFIG.to_json()}
    documents = {"policy": node, "spec": spec.to_json(), "normalizer": policy.normalizer.to_json()}
    return save_checkpoint(tmp_path, step=1, tensors={"policy": policy.state_dict()}, documents=documents)


def decision(policy: Any) -> tuple[Observation, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    arrays = {
        key: torch.randn((5, 1, *array.shape), generator=generator) for key, array in policy.spec.observation.items()
    }
    return Observation.from_arrays(arrays), torch.randn((5, *policy.noise_shape), generator=generator)


def test_levels_are_spread_over_the_policys_own() -> None:
    own = CONFIG.sampler
    wanted = {1: (91,), 2: (91, 1), 3: (91, 46, 1), 5: (91, 69, 46, 23, 1), 10: own.levels}
    assert {steps: few_steps(own, steps).levels for steps in wanted} == wanted
    assert few_steps(replace(own, levels=(40, 20, 7)), 2).levels == (40, 7)
    assert sampling_text(own, own) == "eta0, 10 steps"
    assert sampling_text(few_steps(own, 3), own) == "eta0, 3 steps at levels 91, 46, 1"
    for steps in (0, 92):
        with pytest.raises(PolicyError, match=rf"1 to 91.*got {steps}"):
            few_steps(own, steps)


def test_the_loaded_policy_takes_those_steps_in_its_mode(checkpoint: Path) -> None:
    own, short, drawn = (
        load_any_policy(EvaluateConfig(policy=str(checkpoint), denoising_steps=steps, mode=mode))
        for steps, mode in ((None, None), (3, None), (3, SamplingMode.eta1))
    )
    assert (short.sampling, drawn.sampling) == (
        "eta0, 3 steps at levels 91, 46, 1",
        "eta1, 3 steps at levels 91, 46, 1",
    )
    assert (short.noise_shape[0], drawn.noise_shape[0]) == (1, 4)
    observation, noise = decision(short)
    with torch.inference_mode():
        condition = short.encode(observation)
        latent = noise[:, 0]
        for step in range(3):
            latent = short.reverse_step(latent, step, condition)[0]
        expected = short.physical_action(latent)
        found = short.act(observation, noise).actions
        assert torch.allclose(found, expected, atol=1e-6)
        assert not torch.allclose(found, own.act(observation, noise).actions, atol=1e-3)
    assert own.sampler.num_steps == 10  # the weights are shared, not the sampler


def test_evaluate_and_export_take_the_word(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from robot_rl.deploy.onnx_policy import OnnxPolicy

    monkeypatch.chdir(tmp_path)
    env = ["env=point_reach", "env.max_episode_steps=20"]
    assert robot_rl(["collect", *env, "expert=point_reach", "num_episodes=4", "dataset=d.zarr", "run_root=c"]) == 0
    words = [f"policy={checkpoint}", "denoising_steps=3"]
    assert robot_rl(["export", *words, "dataset=d.zarr", "latency_calls=5", "run_root=x"]) == 0
    (run,) = (tmp_path / "x").iterdir()
    file = OnnxPolicy(run / "export" / "policy.onnx")
    policy = load_any_policy(EvaluateConfig(policy=str(checkpoint), denoising_steps=3))
    assert file.sampling == policy.sampling
    observation, noise = decision(policy)
    with torch.inference_mode():
        expected = policy.act(observation, noise).actions.numpy()
    assert np.allclose(file.act(observation.map(torch.Tensor.numpy), noise.numpy()).actions, expected, atol=1e-5)
    found = []
    for root, given in (("t", words), ("f", [f"policy={run / 'export' / 'policy.onnx'}"]), ("o", words[:1])):
        assert robot_rl(["evaluate", *env, *given, "num_episodes=3", f"run_root={root}"]) == 0
        (place,) = (tmp_path / root).iterdir()
        found.append(json.loads((place / "summary.json").read_text()))
    three, of_file, ten = found
    assert three["protocol"]["policy"]["sampling"] == "eta0, 3 steps at levels 91, 46, 1"
    assert three["action_jerk_rms"] == pytest.approx(of_file["action_jerk_rms"], abs=1e-5)
    assert three["action_jerk_rms"] != pytest.approx(ten["action_jerk_rms"], rel=1e-3)


def test_it_is_refused_where_nobody_denoises(checkpoint: Path, tmp_path: Path) -> None:
    head = load_any_policy(EvaluateConfig(policy=str(checkpoint))).one_step_student()
    with pytest.raises(PolicyError, match=r"diffusion policy for denoising_steps=2.*OneStepPolicy"):
        sampled(head, mode=None, denoising_steps=2, where="head")
    with pytest.raises(PolicyError, match=r"no denoising_steps for an \.onnx file.*denoising_steps=2"):
        load_any_policy(EvaluateConfig(policy=str(tmp_path / "policy.onnx"), denoising_steps=2))
    with pytest.raises(PolicyError, match=r"robot-rl serve.*denoising_steps"):
        load_any_policy(EvaluateConfig(policy="ws://127.0.0.1:1", denoising_steps=2))
    from robot_rl.stages import evaluate

    with pytest.raises(ConfigError, match=r"denoising_steps.*expert"):
        evaluate._check_execution(EvaluateConfig(denoising_steps=2))
