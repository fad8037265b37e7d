"""Tiny diffusion policies of LeRobot with random weights, and what they answer. Runs in LeRobot's environment.

python tiny_lerobot_diffusion.py make FOLDER '{"noise_scheduler_type": "DDIM", ...}' [FOLDER CHANGES ...]
python tiny_lerobot_diffusion.py answer FOLDER IN.npz OUT.npz [FOLDER IN.npz OUT.npz ...]
python tiny_lerobot_diffusion.py record OUT.json    # tests/policies/recorded/lerobot_diffusion.json: see `wave`

CHANGES are those of CONFIG, with state: its size, images: rows of an image, cameras, environment: false, and constant: true for
an element of the state that never varied.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file

CONFIG = {
    "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "down_dims": [16, 32], "kernel_size": 3, "n_groups": 4,
    "diffusion_step_embed_dim": 16, "spatial_softmax_num_keypoints": 4,
}  # fmt: skip
SEED = 5


def statistics(size: int, seed: int) -> dict[str, torch.Tensor]:
    """Of numbers."""
    draw = torch.Generator().manual_seed(seed)
    low = torch.randn(size, generator=draw)
    high = low + 0.5 + torch.rand(size, generator=draw)
    found = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}
    return found | {"q01": low + 0.01, "q99": high - 0.02}


def make(folder: str, changes: str) -> None:
    wanted = CONFIG | json.loads(changes)
    pixels, cameras = wanted.pop("images", 0), wanted.pop("cameras", ["top"])
    state = wanted.pop("state", 3)
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (state,))}
    stats = {"observation.state": statistics(state, 1), "action": statistics(2, 2)}
    if wanted.pop("environment", True):
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (4,))
        stats["observation.environment_state"] = statistics(4, 3)
    for number, camera in enumerate(cameras if pixels else []):
        inputs[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, pixels, pixels + 8))
        stats[f"observation.images.{camera}"] = {
            name: value.reshape(3, 1, 1) for name, value in statistics(3, 4 + number).items()
        }
    if wanted.pop("constant", False):
        stats["observation.state"]["max"][-1] = stats["observation.state"]["min"][-1]
    if "normalization_mapping" in wanted:
        wanted["normalization_mapping"] = {
            key: NormalizationMode(mode) for key, mode in wanted["normalization_mapping"].items()
        }
    config = DiffusionConfig(
        input_features=inputs, output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))}, device="cpu", **wanted
    )  # fmt: skip
    torch.manual_seed(0)
    policy = DiffusionPolicy(config)
    for parameter in policy.parameters():  # norms and biases start at 1 and 0, where an error would hide
        parameter.data += 0.05 * torch.randn(parameter.shape)
    for name, buffer in policy.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.3 * torch.rand(buffer.shape))
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(folder)


@torch.no_grad()
def answer(folder: str, asked: str, out: str) -> None:
    torch.set_num_threads(1)
    policy = DiffusionPolicy.from_pretrained(folder)
    before, after = make_pre_post_processors(PreTrainedConfig.from_pretrained(folder), pretrained_path=folder)
    given = {key: torch.from_numpy(value) for key, value in np.load(asked).items()}
    frames = {key: value for key, value in given.items() if key.startswith("observation.")}
    rows, steps = len(given["noise"]), policy.config.n_obs_steps
    seen: dict[str, torch.Tensor] = {}
    for key, value in frames.items():  # (N, To, ...) with images (3, H, W) in 0..1, as its loader gives them
        flat = before({key: value.flatten(0, 1)})[key]
        seen[key] = flat.reshape(rows, steps, *flat.shape[1:])
    batch = {key: value for key, value in seen.items() if "images" not in key}
    if policy.config.image_features:
        batch["observation.images"] = torch.stack([seen[key] for key in policy.config.image_features], dim=-4)
    condition = policy.diffusion._prepare_global_conditioning(batch)
    network = policy.diffusion.unet(given["latent"], given["level"], global_cond=condition)
    torch.manual_seed(SEED)
    sample = policy.diffusion.conditional_sample(rows, global_cond=condition, noise=given["noise"])
    torch.manual_seed(SEED)
    chunk = after(policy.diffusion.generate_actions(batch, noise=given["noise"]))
    torch.manual_seed(SEED)
    draws = [torch.randn(sample.shape) for _ in range(policy.diffusion.num_inference_steps - 1)]
    first = {key: value[:1, 0] for key, value in frames.items()}  # one frame, as at the start of an episode
    policy.reset()
    torch.manual_seed(SEED)
    played = [
        after(policy.select_action(before(dict(first)), noise=given["noise"][:1]))
        for _ in range(policy.config.n_action_steps)
    ]
    np.savez(
        out, condition=condition, network=network, sample=sample, chunk=chunk, played=torch.stack(played, 1),
        draws=torch.stack(draws, 1) if draws else np.zeros((rows, 0, *sample.shape[1:]), np.float32),
    )  # fmt: skip


def wave(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    """Numbers that need no file: sin(0.37 i + phase) over the elements."""
    return torch.sin(0.37 * torch.arange(int(np.prod(shape)), dtype=torch.float64) + phase).float().reshape(shape)


@torch.no_grad()
def record(out: str) -> None:
    """One checkpoint's documents, shapes and statistics, and what it answers with weights, inputs and noise of waves."""
    from diffusers.schedulers import scheduling_ddpm

    with tempfile.TemporaryDirectory() as folder:
        make(folder, json.dumps({"down_dims": [8, 16], "noise_scheduler_type": "DDIM", "num_inference_steps": 5}))
        policy, root = DiffusionPolicy.from_pretrained(folder), Path(folder)
        names = ("config", "policy_preprocessor", "policy_postprocessor")
        found: dict[str, Any] = {"documents": {name: json.loads((root / f"{name}.json").read_text()) for name in names}}
        for path in sorted(root.glob("policy_*.safetensors")):
            values = {name: value.tolist() for name, value in load_file(path).items()}
            found.setdefault("statistics", {})[path.name] = values
        weights = load_file(root / "model.safetensors")
    found["shapes"] = {name: list(weights[name].shape) for name in sorted(weights)}
    policy.load_state_dict({name: 0.5 * wave(tuple(weights[name].shape), k) for k, name in enumerate(sorted(weights))})
    seen = {"observation.state": wave((2, 2, 3), 0.1), "observation.environment_state": wave((2, 2, 4), 0.2)}
    condition = policy.diffusion._prepare_global_conditioning(seen)
    noise = wave((2, 8, 2), 0.3)
    found["network"] = policy.diffusion.unet(noise, torch.tensor([3, 70]), global_cond=condition).tolist()
    found["ddim"] = policy.diffusion.conditional_sample(2, global_cond=condition, noise=noise).tolist()
    calls = itertools.count(1)
    scheduling_ddpm.randn_tensor = lambda shape, **_: wave(tuple(shape), 0.3 + next(calls))
    ddpm = type(policy.config)(**{**vars(policy.config), "noise_scheduler_type": "DDPM"})
    policy.diffusion.noise_scheduler = DiffusionPolicy(ddpm).diffusion.noise_scheduler
    found["ddpm"] = policy.diffusion.conditional_sample(2, global_cond=condition, noise=noise).tolist()
    Path(out).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    act, count = {"make": (make, 2), "answer": (answer, 3), "record": (record, 1)}[sys.argv[1]]
    words = sys.argv[2:]
    for start in range(0, len(words), count):
        act(*words[start : start + count])
