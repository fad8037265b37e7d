"""OpenVLA behind openpi's protocol. Runs in OpenVLA's own environment, never in robot-rl's: its model is remote code.

    pip install websockets msgpack        # in the environment of github.com/openvla/openvla (transformers 4.40.1)
    python serve_openvla.py --model openvla/openvla-7b --unnorm-key bridge_orig --port 8000
    robot-rl check teacher env=<env> teacher=server teacher.uri=ws://127.0.0.1:8000 teacher.card=openvla_bridge.yaml \\
        teacher.prompt='put the carrot on the plate'

`trust_remote_code=True` below runs Python that comes with the weights: look at it, pin `--revision`, and start this
script as a user that may do nothing else.

Conventions (openvla's README, vla-scripts/deploy.py and experiments/robot/bridge): one picture, RGB uint8 from a
third-person camera, rows from the top, any size (its processor resizes it to 224); the instruction in lower case inside
"In: What action should the robot take to ...?"; seven numbers, x y z (m) and roll pitch yaw (rad) of the end effector
relative to now, then the gripper from 0 (closed) to 1 (open), un-normalised by the statistics of `--unnorm-key`. One
action a question. No state of the robot goes in. Checkpoints for LIBERO want the picture turned by 180 degrees
(`--turned`) and have the gripper's sign the other way round there: say so in the card.
"""

# ruff: noqa: PLC0415  (what only the foreign environment has is imported where it is used, so that tests can go round it)
from __future__ import annotations

from typing import Any

import numpy as np
import openpi_wire

PROMPT = "In: What action should the robot take to {}?\nOut:"


def load(model: str, *, revision: str | None, device: str) -> tuple[Any, Any]:
    """OpenVLA's processor and model, as its README loads them."""
    import torch
    from transformers import AutoModelForVision2Seq, AutoProcessor

    processor = AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=True)
    vla = AutoModelForVision2Seq.from_pretrained(
        model, revision=revision, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, trust_remote_code=True,
        use_safetensors=True,
    )  # fmt: skip
    return processor, vla.to(device)


class OpenVla:
    """A function from an observation to (1, 7).

    Args:
        processor: of OpenVLA.
        vla: has `predict_action(**inputs, unnorm_key=, do_sample=)` -> (7,).
        unnorm_key: data set whose statistics un-normalise the action.
        image: the observation's key of the picture.
        turned: turn the picture by 180 degrees first.
        place: what brings the processor's output to the model's device and precision.
    """

    def __init__(
        self, processor: Any, vla: Any, *, unnorm_key: str, image: str = "observation/image", turned: bool = False,
        place: Any = None,
    ) -> None:  # fmt: skip
        self.processor, self.vla, self.unnorm_key = processor, vla, unnorm_key
        self.image, self.turned, self.place = image, turned, place

    def __call__(self, observation: dict) -> np.ndarray:
        from PIL import Image

        pixels = openpi_wire.wanted(observation, self.image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"{self.image}: expected uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
        picture = Image.fromarray(np.ascontiguousarray(pixels[::-1, ::-1] if self.turned else pixels))
        inputs = self.processor(PROMPT.format(openpi_wire.wanted(observation, "prompt").lower()), picture)
        if self.place is not None:
            inputs = self.place(inputs)
        action = self.vla.predict_action(**inputs, unnorm_key=self.unnorm_key, do_sample=False)
        return np.asarray(action, dtype=np.float32).reshape(1, -1)


def main() -> None:
    parser = openpi_wire.options("OpenVLA behind openpi's protocol")
    parser.add_argument("--model", default="openvla/openvla-7b")
    parser.add_argument("--revision", default=None, help="commit of the weights and of their code")
    parser.add_argument("--unnorm-key", default="bridge_orig")
    parser.add_argument("--image", default="observation/image")
    parser.add_argument("--turned", action="store_true")
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()
    import torch

    processor, vla = load(args.model, revision=args.revision, device=args.device)
    model = OpenVla(
        processor, vla, unnorm_key=args.unnorm_key, image=args.image, turned=args.turned,
        place=lambda inputs: inputs.to(args.device, dtype=torch.bfloat16),
    )  # fmt: skip
    openpi_wire.serve(model, {"model": args.model}, host=args.host, port=args.port, record=args.record)


if __name__ == "__main__":
    main()
