"""A pi0 checkpoint in transformers' own format (PaliGemma and a flow-matching action expert) behind openpi's protocol.

    pip install 'transformers>=5.24,<6' torch websockets msgpack     # robot-rl's extras vla and serve have them
    python serve_pi0.py --folder <folder> --port 8000

No remote code: the classes are transformers' (PI0ForConditionalGeneration), the weights are safetensors, and only a local
folder is read (`huggingface-cli download` fetches one). processor_config.json of the folder has the statistics
(state_mean, state_std, actions_mean, actions_std) of the data that it was trained on. openpi's own checkpoints are served
by openpi itself.

Conventions: pictures RGB uint8 (H, W, 3), rows from the top, in the order of --images, resized with their sides kept and
padded with black; "prompt" the instruction; the state normalised by its mean and standard deviation; the answer is the
chunk, un-normalised likewise, its width that of actions_mean. The flow starts from the same noise at every question.
"""

# ruff: noqa: PLC0415  (what only the foreign environment has is imported where it is used, so that tests can go round it)
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openpi_wire

IMAGE_TOKEN = "<image>"
MOST_WORDS = 48  # PI0Processor's max_length


class Pi0:
    """A function from an observation to (Tp, A).

    Args:
        folder: config.json, model.safetensors, tokenizer files, processor_config.json.
        images: the observation's keys of the pictures, in the order of training.
        state: its key of the robot's state.
        device: of the model.
        seed: of the noise.

    Raises:
        ValueError: weights that are missing or too many, no statistics, or a tokenizer without <image>.
    """

    def __init__(self, folder: str, *, images: list, state: str, device: str, seed: int = 0) -> None:
        import torch
        from transformers import AutoTokenizer, PI0ForConditionalGeneration

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.model, found = PI0ForConditionalGeneration.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **local
        )
        wrong = {kind: sorted(map(str, names))[:3] for kind, names in found.items() if names}
        if wrong:  # transformers would fill what is missing with random numbers
            raise ValueError(f"{folder}: expected the weights of config.json and no others, got {wrong}")
        self.model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        said = json.loads((Path(folder) / "processor_config.json").read_text(encoding="utf-8"))
        names = ("state_mean", "state_std", "actions_mean", "actions_std")
        missing = [name for name in names if said.get(name) is None]
        if missing:
            raise ValueError(f"{folder}/processor_config.json: expected {list(names)}, got no {missing}")
        self.statistics = {name: torch.tensor(said[name], dtype=torch.float32) for name in names}
        config = self.model.config
        self.image_token = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if self.image_token != config.vlm_config.image_token_id:
            raise ValueError(
                f"expected {IMAGE_TOKEN} to be token {config.vlm_config.image_token_id}, got {self.image_token}"
            )
        vision = config.vlm_config.vision_config
        self.size, self.patches = vision.image_size, (vision.image_size // vision.patch_size) ** 2
        self.images, self.state, self.device = images, state, device
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(1, config.chunk_size, config.max_action_dim, generator=generator).to(device)

    def __call__(self, observation: dict) -> np.ndarray:
        import torch

        pictures = torch.stack([self._picture(openpi_wire.wanted(observation, key)) for key in self.images])
        words = self.tokenizer(
            f"{IMAGE_TOKEN * self.patches * len(self.images)}{self.tokenizer.bos_token}"
            f"{openpi_wire.wanted(observation, 'prompt')}\n",
            add_special_tokens=False, return_tensors="pt", padding="max_length", padding_side="right", truncation=True,
            max_length=MOST_WORDS + self.patches * len(self.images),
        )  # fmt: skip
        said = self.statistics
        state = torch.from_numpy(np.array(openpi_wire.wanted(observation, self.state), dtype=np.float32))
        state = (state - said["state_mean"]) / (said["state_std"] + 1e-8)
        state = torch.nn.functional.pad(state, (0, self.model.config.max_state_dim - len(state)))
        dtype = self.model.dtype
        chunk = self.model.sample_actions(
            state=state[None].to(self.device, dtype), input_ids=words["input_ids"].to(self.device),
            attention_mask=words["attention_mask"].to(self.device), pixel_values=pictures[None].to(self.device, dtype),
            pixel_attention_mask=torch.ones(1, len(pictures), dtype=torch.bool, device=self.device),
            noise=self.noise.to(dtype),
        )[0].float().cpu()  # fmt: skip
        width = len(said["actions_mean"])
        return (chunk[:, :width] * (said["actions_std"] + 1e-8) + said["actions_mean"]).numpy()

    def _picture(self, pixels: np.ndarray) -> Any:
        """uint8 (H, W, 3) -> float (3, size, size) in [-1, 1], sides kept, black around it."""
        import torch

        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"expected a picture uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
        height, width = image.shape[2:]
        share = self.size / max(height, width)
        inner = (max(1, int(height * share)), max(1, int(width * share)))
        if inner != (height, width):
            image = torch.nn.functional.interpolate(image, inner, mode="bicubic", antialias=True).round().clamp(0, 255)
        top, left = (self.size - inner[0]) // 2, (self.size - inner[1]) // 2
        around = (left, self.size - inner[1] - left, top, self.size - inner[0] - top)
        return torch.nn.functional.pad(image, around)[0] / 127.5 - 1


def main() -> None:
    parser = openpi_wire.options("pi0 (transformers) behind openpi's protocol")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--images", nargs="+", default=["observation/image"])
    parser.add_argument("--state", default="observation/state")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = Pi0(args.folder, images=args.images, state=args.state, device=args.device)
    openpi_wire.serve(model, {"model": args.folder}, host=args.host, port=args.port, record=args.record)


if __name__ == "__main__":
    main()
