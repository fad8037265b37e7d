"""LeRobot 0.4.4 itself: a random diffusion policy that it saved answers here as it does there, to 1e-5.

Needs `tests/peers/lerobot.sh TARGET`, then ROBOT_RL_PEER_LEROBOT=TARGET/bin/python.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.policies.lerobot_diffusion import LeRobotAdoption, load_lerobot
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

PEER = os.environ.get("ROBOT_RL_PEER_LEROBOT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_LEROBOT is not set (tests/peers/lerobot.sh makes it)"),
]
SCRIPT = str(Path(__file__).resolve().parents[1] / "support" / "tiny_lerobot_diffusion.py")
STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
SPEC = EnvSpec(
    env_id="Tiny",
    observation={"proprio": ArraySpec("proprio", (3,)), "state": ArraySpec("state", (4,))},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "pos"),
    joint_names=(), robot="none", control_hz=10.0, max_episode_steps=20,
)  # fmt: skip
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
ROWS, TOLERANCE = 3, 1e-5
DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 10}
PICTURES = {"images": 64, "cameras": ["top", "wrist"], "crop_shape": [49, 56]}
FROZEN = {"use_group_norm": False, "use_separate_rgb_encoder_per_camera": True}
CASES: dict[str, dict[str, Any]] = {
    "ddim": DDIM,
    "ddpm, every level": {},
    "ddpm of 7 steps, three levels of channels, a shift alone": {
        "num_inference_steps": 7, "down_dims": [8, 16, 24], "use_film_scale_modulation": False, "kernel_size": 5,
    },
    "ddim, clean sample, a state that never varied": DDIM | {"prediction_type": "sample", "constant": True},
    "ddpm, clean sample, wider clip": {"prediction_type": "sample", "clip_sample_range": 1.5, "num_inference_steps": 20},
    "ddim, no clip, mean and std, one frame": DDIM | {
        "clip_sample": False, "n_obs_steps": 1,
        "normalization_mapping": {"STATE": "MEAN_STD", "ENV": "QUANTILES", "ACTION": "MEAN_STD"},
    },
    "ddim, two cameras in one network": DDIM | PICTURES,
    "ddim, a resized camera and no state of the scene": DDIM | {
        "images": 72, "environment": False, "resize_shape": [48, 64], "crop_ratio": 0.9,
    },
    "ddim, a network for each camera, BatchNorm": DDIM | PICTURES | FROZEN,
}  # fmt: skip


def peer(*words: str, cwd: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([PEER, SCRIPT, *words], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@dataclass(frozen=True)
class Asked:
    """What a policy is asked: its folder, the names of its inputs, the environment's spec, and arrays by our keys."""

    folder: Path
    names: dict[str, str]
    spec: EnvSpec
    arrays: dict[str, np.ndarray]


def ask(folder: Path, changes: dict[str, Any]) -> Asked:
    """Random inputs, also written as IN.npz under LeRobot's names, images as its loader gives them."""
    steps, pixels = changes.get("n_obs_steps", 2), changes.get("images", 0)
    names, spec, rng = {STATE: "proprio", ENVIRONMENT: "state"}, SPEC, np.random.default_rng(0)
    arrays = {key: rng.normal(size=(ROWS, steps, *SPEC.observation[key].shape)) for key in names.values()}
    arrays = {key: value.astype(np.float32) for key, value in arrays.items()}
    if not changes.get("environment", True):
        names.pop(ENVIRONMENT)
    if changes.get("constant"):  # else LeRobot multiplies the difference by 2e8
        arrays["proprio"][:, :, -1] = load_file(folder / STATISTICS)[f"{STATE}.min"][-1]
    theirs = {name: arrays[key] for name, key in names.items()}
    for camera in changes.get("cameras", ["top"]) if pixels else ():
        key, name, shape = f"image/{camera}", f"observation.images.{camera}", (pixels, pixels + 8, 3)
        spec = replace(spec, observation={**spec.observation, key: ArraySpec(key, shape, "uint8")})
        arrays[key], names[name] = rng.integers(256, size=(ROWS, steps, *shape), dtype=np.uint8), key
        theirs[name] = np.moveaxis(arrays[key].astype(np.float32) / np.float32(255), -1, 2)
    latent, noise = rng.normal(size=(2, ROWS, 8, 2)).astype(np.float32)
    np.savez(folder / "in.npz", latent=latent, level=rng.integers(100, size=ROWS), noise=noise, **theirs)
    return Asked(folder, names, spec, arrays)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Asked]:
    """All cases, made and answered by two processes of LeRobot."""
    root = tmp_path_factory.mktemp("lerobot")
    folders = {case: root / str(number) for number, case in enumerate(CASES)}
    peer("make", *(word for case, path in folders.items() for word in (str(path), json.dumps(CASES[case]))), cwd=root)
    found = {case: ask(path, CASES[case]) for case, path in folders.items()}
    files = [(str(path), str(path / "in.npz"), str(path / "out.npz")) for path in folders.values()]
    peer("answer", *(word for row in files for word in row), cwd=root)
    return found


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.detach(), wanted, rtol=TOLERANCE, atol=TOLERANCE)


def read(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize("case", CASES)
def test_it_answers_as_lerobot_does(case: str, asked: dict[str, Asked]) -> None:
    """Condition, bare network, the whole chunk under the checkpoint's own sampler, and un-normalised actions."""
    one, changes = asked[case], CASES[case]
    given, wanted = read(one.folder / "in.npz"), read(one.folder / "out.npz")
    policy = load_lerobot(LeRobotAdoption(one.names), spec=one.spec, folder=one.folder)
    observation = Observation.from_arrays({key: torch.from_numpy(value) for key, value in one.arrays.items()})
    condition = policy.encode(observation)
    close(condition, wanted["condition"])
    with torch.no_grad():
        close(policy.unet(given["latent"], given["level"], condition), wanted["network"])
    draws, is_ddpm = given["noise"][:, None], policy.sampler.mode is SamplingMode.eta1
    assert is_ddpm == (changes.get("noise_scheduler_type") != "DDIM")
    if is_ddpm:
        draws = torch.cat([draws, wanted["draws"], torch.ones_like(draws)], dim=1)  # the last step adds none
    close(policy.sample(condition, draws), wanted["sample"])
    chunk, steps = policy.act(observation, draws), changes.get("n_obs_steps", 2)
    assert (chunk.execute, chunk.actions.shape[1]) == (4, 8 - steps + 1)
    close(chunk.actions[:, :4], wanted["chunk"])
    if not is_ddpm:  # its select_action, from one frame; of one row it would draw other noise
        frames = {k: torch.from_numpy(v[:1, :1]).expand(-1, steps, *v.shape[2:]) for k, v in one.arrays.items()}
        close(policy.act(Observation.from_arrays(frames), draws[:1]).actions[:, :4], wanted["played"])
    assert float(wanted["chunk"].std()) > 0.01
    assert float((wanted["sample"].abs() < 0.99).float().mean()) > 0.1  # not all at the clip
