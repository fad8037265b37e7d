"""Decisions of LeRobot's DiffusionPolicy as its recording loop makes them, timed on request. Runs in LeRobot's own environment.

    $ROBOT_RL_PEER_LEROBOT tests/peers/lerobot_infer.py make FOLDER '{"state": 18, "environment": 42, "action": 4, "config": {...}}'
    $ROBOT_RL_PEER_LEROBOT tests/peers/lerobot_infer.py serve FOLDER THREADS

`make` saves a policy with random weights. `serve` answers lines of standard input, each a JSON object, with one line each:
{"sampler": "DDPM-100" or "DDIM-10"} -> {"wall_s", "cpu_s"} of one predict_action that has to compute a chunk;
{"check": IN.npz, "out": OUT.npy} -> the chunk that DDIM-10 gives for state, environment and noise, un-normalised.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import sys
import time
from typing import Any

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
SAMPLERS: dict[str, dict[str, Any]] = {
    "DDPM-100": {"noise_scheduler_type": "DDPM", "num_inference_steps": None},
    "DDIM-10": {"noise_scheduler_type": "DDIM", "num_inference_steps": 10},
}


def make(folder: str, sizes: str) -> None:
    """Save a policy."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    wanted = json.loads(sizes)
    inputs = {
        STATE: PolicyFeature(FeatureType.STATE, (wanted["state"],)),
        ENVIRONMENT: PolicyFeature(FeatureType.ENV, (wanted["environment"],)),
    }
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (wanted["action"],))}
    config = DiffusionConfig(input_features=inputs, output_features=outputs, device="cpu", **wanted["config"])
    statistics = {
        name: {"min": -torch.ones(feature.shape), "max": torch.ones(feature.shape)}
        for name, feature in (inputs | outputs).items()
    }
    torch.manual_seed(0)
    DiffusionPolicy(config).save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=statistics):
        pipeline.save_pretrained(folder)


class Decider:
    """The same weights under each of SAMPLERS.

    Args:
        folder: that `make` wrote.
    """

    def __init__(self, folder: str) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
        from lerobot.policies.factory import make_pre_post_processors

        self.policies: dict[str, Any] = {}
        for name, changes in SAMPLERS.items():
            config = PreTrainedConfig.from_pretrained(folder)
            for key, value in changes.items():
                setattr(config, key, value)
            self.policies[name] = DiffusionPolicy.from_pretrained(folder, config=config).eval()
            self.policies[name].reset()
            self.before, self.after = make_pre_post_processors(config, pretrained_path=folder)
        self.config = config

    def decide(self, sampler: str) -> dict[str, float]:
        """Time the call that computes a chunk; those that only play the rest of it are made, and not timed."""
        import numpy as np
        import torch
        from lerobot.utils.control_utils import predict_action

        policy, draw = self.policies[sampler], np.random.default_rng(0)
        frame = {name: draw.normal(size=f.shape).astype(np.float32) for name, f in self.config.input_features.items()}
        words = (policy, torch.device("cpu"), self.before, self.after, False)
        began, used = time.perf_counter(), time.process_time()
        predict_action(dict(frame), *words)
        spent = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
        for _ in range(self.config.n_action_steps - 1):
            predict_action(dict(frame), *words)
        return spent

    def check(self, asked: str, out: str) -> dict[str, Any]:
        """Write the whole chunk from the newest frame on, (N, H - To + 1, A)."""
        import numpy as np
        import torch

        policy = self.policies["DDIM-10"]
        with np.load(asked) as given, torch.inference_mode():
            seen = {
                name: self.before({name: torch.from_numpy(given[key]).flatten(0, 1)})[name].reshape(given[key].shape)
                for name, key in ((STATE, "proprio"), (ENVIRONMENT, "state"))
            }
            condition = policy.diffusion._prepare_global_conditioning(seen)
            chunk = policy.diffusion.conditional_sample(
                len(condition), global_cond=condition, noise=torch.from_numpy(given["noise"])
            )
            np.save(out, self.after(chunk[:, self.config.n_obs_steps - 1 :]).numpy())
        return {"written": out}


def serve(folder: str, threads: str) -> None:
    """Answer until standard input ends."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what lerobot prints is no answer
        import torch

        torch.set_num_threads(int(threads))
        decider = Decider(folder)
        versions = {name: importlib.metadata.version(name) for name in ("lerobot", "torch", "diffusers")}
        count = sum(weight.numel() for weight in decider.policies["DDIM-10"].parameters())
        print(
            json.dumps({"parameters": count, "python": platform.python_version()} | versions), file=answers, flush=True
        )
        for line in sys.stdin:
            asked = json.loads(line)
            found = (
                decider.check(asked["check"], asked["out"]) if "check" in asked else decider.decide(asked["sampler"])
            )
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    {"make": make, "serve": serve}[sys.argv[1]](*sys.argv[2:])
