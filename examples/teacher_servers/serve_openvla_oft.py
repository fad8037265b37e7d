"""OpenVLA-OFT behind openpi's protocol. Runs inside its repository and environment, never in robot-rl's.

    pip install websockets msgpack        # in the environment of github.com/moojink/openvla-oft
    python serve_openvla_oft.py --model moojink/openvla-7b-oft-finetuned-libero-spatial --unnorm-key libero_spatial_no_noops

Conventions (its vla-scripts/deploy.py, experiments/robot/openvla_utils.py and libero_utils.py): pictures RGB uint8,
LIBERO's turned by 180 degrees, resized to 224 by the function that its training used; "full_image" is the third-person
camera and "wrist_image" the one on the hand; "state" is x y z, axis-angle (3) and both fingers (8 numbers, LIBERO). The
answer is a chunk of 8 actions of seven numbers as OpenVLA's, gripper 0 (closed) to 1 (open) before its evaluation code
turns it into LIBERO's -1 (open) .. 1 (closed): a card for LIBERO maps it with scale -2 and offset 1.
"""

# ruff: noqa: PLC0415  (what only the foreign environment has is imported where it is used, so that tests can go round it)
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import openpi_wire


class OpenVlaOft:
    """A function from an observation to (Tp, 7).

    Args:
        act: (observation in OFT's names, instruction) -> list of (7,).
        images: OFT's name -> the observation's key.
        state: the observation's key of the robot's state.
        turned: turn the pictures by 180 degrees first.
        resize: (picture, size) -> picture, as in training.
        size: rows and columns.
    """

    def __init__(
        self, act: Callable[[dict, str], Any], *, images: dict, state: str, turned: bool,
        resize: Callable[[np.ndarray, int], np.ndarray], size: int = 224,
    ) -> None:  # fmt: skip
        self.act, self.images, self.state, self.turned = act, images, state, turned
        self.resize, self.size = resize, size

    def __call__(self, observation: dict) -> np.ndarray:
        own: dict = {"state": np.asarray(openpi_wire.wanted(observation, self.state))}
        for name, key in self.images.items():
            pixels = openpi_wire.wanted(observation, key)
            pixels = np.ascontiguousarray(pixels[::-1, ::-1] if self.turned else pixels)
            own[name] = self.resize(pixels, self.size)
        return np.stack([np.asarray(a) for a in self.act(own, openpi_wire.wanted(observation, "prompt"))])


def main() -> None:
    parser = openpi_wire.options("OpenVLA-OFT behind openpi's protocol")
    parser.add_argument("--model", required=True)
    parser.add_argument("--unnorm-key", required=True)
    parser.add_argument("--image", default="observation/image")
    parser.add_argument("--wrist-image", default="observation/wrist_image")
    parser.add_argument("--state", default="observation/state")
    parser.add_argument("--not-turned", action="store_true", help="pictures that come as the model wants them")
    args = parser.parse_args()
    from experiments.robot.openvla_utils import (
        get_action_head,
        get_processor,
        get_proprio_projector,
        get_vla,
        get_vla_action,
        resize_image_for_policy,
    )  # fmt: skip
    from prismatic.vla.constants import NUM_ACTIONS_CHUNK, PROPRIO_DIM

    cfg = SimpleNamespace(
        pretrained_checkpoint=args.model, use_l1_regression=True, use_diffusion=False, use_film=False,
        num_images_in_input=2, use_proprio=True, load_in_8bit=False, load_in_4bit=False, center_crop=True,
        num_open_loop_steps=NUM_ACTIONS_CHUNK, unnorm_key=args.unnorm_key, lora_rank=32, model_family="openvla",
        num_diffusion_steps_train=50, num_diffusion_steps_inference=50,
    )  # fmt: skip
    vla, processor = get_vla(cfg), get_processor(cfg)
    head, projector = get_action_head(cfg, vla.llm_dim), get_proprio_projector(cfg, vla.llm_dim, PROPRIO_DIM)

    def act(own: dict, prompt: str) -> Any:
        return get_vla_action(cfg, vla, processor, own, prompt, action_head=head, proprio_projector=projector)

    images = {"full_image": args.image, "wrist_image": args.wrist_image}
    model = OpenVlaOft(
        act, images=images, state=args.state, turned=not args.not_turned, resize=resize_image_for_policy
    )  # fmt: skip
    openpi_wire.serve(model, {"model": args.model}, host=args.host, port=args.port, record=args.record)


if __name__ == "__main__":
    main()
