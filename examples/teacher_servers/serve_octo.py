"""Octo behind openpi's protocol. Runs in Octo's own environment (JAX), never in robot-rl's.

    pip install websockets msgpack        # in the environment of github.com/octo-models/octo
    python serve_octo.py --model hf://rail-berkeley/octo-small-1.5 --dataset bridge_dataset

Conventions (its README and examples): "image_primary" RGB uint8 from the third-person camera, 256 x 256 ("image_wrist"
128 x 128 where given), rows from the top, resized by whoever sends them: another size is an error. A window of one
frame, so nothing is remembered between questions. The answer is a chunk of 4 actions, un-normalised by mean and standard
deviation of `--dataset`; for bridge x y z (m), roll pitch yaw (rad) relative to now, gripper 0 (closed) to 1 (open). The
diffusion head draws; with the same random key at every question the answer is a function of the observation.
"""

# ruff: noqa: PLC0415  (what only the foreign environment has is imported where it is used, so that tests can go round it)
from __future__ import annotations

from typing import Any

import numpy as np
import openpi_wire

SIZES = {"image_primary": 256, "image_wrist": 128}


class Octo:
    """A function from an observation to (Tp, A).

    Args:
        model: an OctoModel.
        statistics: "mean", "std" and perhaps "mask" of the action, or None.
        images: Octo's name -> the observation's key.
        random_key: of the diffusion, the same at every question.
    """

    def __init__(self, model: Any, *, statistics: Any, images: dict, random_key: Any) -> None:
        self.model, self.statistics, self.images, self.random_key = model, statistics, images, random_key
        self._tasks: dict = {}

    def __call__(self, observation: dict) -> np.ndarray:
        own: dict = {"timestep_pad_mask": np.ones((1, 1), dtype=bool)}
        for name, key in self.images.items():
            pixels, size = openpi_wire.wanted(observation, key), SIZES[name]
            if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
                raise ValueError(f"{key}: expected uint8 ({size}, {size}, 3), got {pixels.dtype} {pixels.shape}")
            own[name] = pixels[None, None]
        prompt = openpi_wire.wanted(observation, "prompt")
        if prompt not in self._tasks:
            self._tasks = {prompt: self.model.create_tasks(texts=[prompt])}
        actions = self.model.sample_actions(
            own, self._tasks[prompt], unnormalization_statistics=self.statistics, rng=self.random_key
        )
        return np.asarray(actions[0], dtype=np.float32)


def main() -> None:
    parser = openpi_wire.options("Octo behind openpi's protocol")
    parser.add_argument("--model", default="hf://rail-berkeley/octo-small-1.5")
    parser.add_argument("--dataset", default="bridge_dataset", help="whose statistics un-normalise the action")
    parser.add_argument("--image", default="observation/image")
    parser.add_argument("--wrist-image", default="", help="key of the picture from the hand; empty: none")
    args = parser.parse_args()
    import jax
    from octo.model.octo_model import OctoModel

    model = OctoModel.load_pretrained(args.model)
    images = {"image_primary": args.image} | ({"image_wrist": args.wrist_image} if args.wrist_image else {})
    statistics = model.dataset_statistics[args.dataset]["action"]
    octo = Octo(model, statistics=statistics, images=images, random_key=jax.random.PRNGKey(0))
    openpi_wire.serve(octo, {"model": args.model}, host=args.host, port=args.port, record=args.record)


if __name__ == "__main__":
    main()
