"""A tiny ACT of LeRobot with random weights, and what LeRobot's own recording loop makes of it. Runs in LeRobot's environment.

python tiny_act.py make FOLDER
python tiny_act.py answer FOLDER IN.npz OUT.npy     # state (N, 2), image (N, 32, 32, 3) -> actions (N, 4, 2)
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.control_utils import predict_action

INPUTS = {
    "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
}
STATISTICS = {
    "observation.state": {"mean": torch.tensor([0.1, 0.0]), "std": torch.tensor([0.5, 1.0])},
    "observation.images.top": {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
    "action": {"mean": torch.tensor([0.1, -0.1]), "std": torch.tensor([0.5, 0.25])},
}


def make(folder: str) -> None:
    config = ACTConfig(
        input_features=INPUTS, output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))}, device="cpu",
        chunk_size=4, n_action_steps=4, dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1,
        n_vae_encoder_layers=1, latent_dim=4, pretrained_backbone_weights=None,
    )  # fmt: skip
    torch.manual_seed(0)
    ACTPolicy(config).save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=STATISTICS):
        pipeline.save_pretrained(folder)


def answer(folder: str, asked: str, out: str) -> None:
    policy = ACTPolicy.from_pretrained(folder)
    before, after = make_pre_post_processors(PreTrainedConfig.from_pretrained(folder), pretrained_path=folder)
    given, chunks = np.load(asked), []
    for state, image in zip(given["state"], given["image"], strict=True):
        policy.reset()
        frame = {"observation.state": state, "observation.images.top": image}
        chunks.append(
            [predict_action(dict(frame), policy, torch.device("cpu"), before, after, False, "x") for _ in range(4)]
        )
    np.save(out, np.array([[np.asarray(action).ravel() for action in chunk] for chunk in chunks], dtype=np.float32))


if __name__ == "__main__":
    {"make": make, "answer": answer}[sys.argv[1]](*sys.argv[2:])
