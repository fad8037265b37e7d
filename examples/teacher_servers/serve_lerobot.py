"""A LeRobot policy (ACT, Diffusion, SmolVLA, pi0, ...) behind openpi's protocol, in LeRobot's own environment.

    tests/peers/lerobot.sh /tmp/lerobot && /tmp/lerobot/bin/pip install websockets msgpack
    /tmp/lerobot/bin/python serve_lerobot.py --policy lerobot/smolvla_base --port 8000

Made for lerobot 0.4.4: the folder has config.json, model.safetensors and the pipelines policy_preprocessor.json and
policy_postprocessor.json, which normalise, tokenise and un-normalise as in training. Nothing of it is pickled.

Conventions: the observation's keys are the policy's own (config.json, input_features: observation.state, observation
.images.<camera>); pictures RGB uint8 (H, W, 3), rows from the top; "prompt" is the task. The answer is the whole chunk in
the data set's units (for SO-100/101: joint degrees or per cent, absolute), so a card for it says `kind: absolute`. A
policy that remembers frames (Diffusion: n_obs_steps 2) is refused: a teacher is a function of one observation. What draws
(Diffusion, SmolVLA, pi0) draws from the same seed at every question.
"""

# ruff: noqa: PLC0415  (what only the foreign environment has is imported where it is used, so that tests can go round it)
from __future__ import annotations

from typing import Any

import numpy as np
import openpi_wire


class LeRobotPolicy:
    """A function from an observation to (Tp, A).

    Args:
        policy: a PreTrainedPolicy.
        before, after: its pipelines.
        device: of the policy.
        seed: of what it draws, at every question.

    Raises:
        ValueError: it remembers frames.
    """

    def __init__(self, policy: Any, before: Any, after: Any, *, device: str, seed: int = 0) -> None:
        if getattr(policy.config, "n_obs_steps", 1) != 1:
            raise ValueError(f"expected a policy of one frame, got n_obs_steps={policy.config.n_obs_steps}")
        self.policy, self.before, self.after, self.device, self.seed = policy, before, after, device, seed

    def __call__(self, observation: dict) -> np.ndarray:
        import torch
        from lerobot.policies.utils import prepare_observation_for_inference

        own = {name: np.array(openpi_wire.wanted(observation, name)) for name in self.policy.config.input_features}
        with torch.inference_mode():
            torch.manual_seed(self.seed)
            self.policy.reset()
            batch = self.before(
                prepare_observation_for_inference(own, torch.device(self.device), observation.get("prompt", ""))
            )
            chunk = self.policy.predict_action_chunk(batch)
            steps = [self.after(chunk[:, step]) for step in range(chunk.shape[1])]
        return torch.stack(steps, dim=1)[0].float().cpu().numpy()


def load(path: str, *, device: str) -> LeRobotPolicy:
    """A policy of a folder or of the hub, with its pipelines."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(path)
    config.device = device
    policy = get_policy_class(config.type).from_pretrained(path, config=config).to(device).eval()
    placed = {"device_processor": {"device": device}}
    before, after = make_pre_post_processors(config, pretrained_path=path, preprocessor_overrides=placed)
    return LeRobotPolicy(policy, before, after, device=device)


def main() -> None:
    parser = openpi_wire.options("a LeRobot policy behind openpi's protocol")
    parser.add_argument("--policy", required=True, help="folder or name on the hub")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    model = load(args.policy, device=args.device)
    features = {name: list(each.shape) for name, each in model.policy.config.input_features.items()}
    hello = {"policy": args.policy, "type": model.policy.config.type, "input_features": features}
    openpi_wire.serve(model, hello, host=args.host, port=args.port, record=args.record)


if __name__ == "__main__":
    main()
