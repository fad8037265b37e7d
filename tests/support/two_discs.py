"""A point, a red disc and a green one, seen from above, and a small policy of ours that is told in words where to go.

python two_discs.py FOLDER --port 0        # serve what `train` and `save` left there
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robot_rl.envs.point_pictures import picture

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "teacher_servers"))

INSTRUCTIONS = ("move to the red disc", "move to the green disc")
WORDS = tuple(sorted({word for text in INSTRUCTIONS for word in text.split()}))
SIZE, STEP_M, REACHED_M = 32, 0.1, 0.05


def scenes(number: int, seed: int) -> torch.Tensor:
    """(N, 6) of point, red disc, green disc in m; every two at least 0.5 m apart."""
    rng, out = np.random.default_rng(seed), []
    while len(out) < number:
        places = rng.uniform(-0.9, 0.9, (3, 2))
        if min(np.linalg.norm(places[a] - places[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.5:
            out.append(places.ravel())
    return torch.tensor(np.array(out), dtype=torch.float32)


def seen(scene: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 32, 32, 3); the point is not drawn, its place is in proprio."""
    return picture(scene[:, 2:], SIZE)


class WordsAndPicture(nn.Module):
    """Words choose what to look for in the picture; the mean place of what is found, less the point's own, is where to go."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), 16)
        self.pixels = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.head = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
        middles = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
        places = torch.stack([middles.expand(SIZE, SIZE), -middles[:, None].expand(SIZE, SIZE)])
        self.register_buffer("places", places.flatten(1), persistent=False)

    def forward(self, image: torch.Tensor, point: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Image uint8 (N, H, W, 3), point (N, 2), numbers of words (N, L) -> action (N, 2)."""
        query = self.words(words).sum(1)
        found = self.pixels(image.permute(0, 3, 1, 2).float() / 255).flatten(2)
        look = torch.softmax((query[:, :, None] * found).sum(1), -1)
        goal = look @ self.places.T
        return self.head(torch.cat([goal, point], -1)) + (goal - point) / STEP_M


def numbers(text: str) -> list[int]:
    """Of its words. Raises ValueError for one that it was not taught."""
    return [WORDS.index(word) for word in text.split()]


def train(seed: int = 0, steps: int = 150) -> WordsAndPicture:
    """Behaviour cloning of the straight way, half of the scenes with either instruction."""
    torch.manual_seed(seed)
    model = WordsAndPicture()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    words = torch.tensor([numbers(text) for text in INSTRUCTIONS])
    for step in range(steps):
        scene = scenes(64, seed=10_000 + step)
        told = torch.arange(64) % 2
        goal = torch.where(told[:, None] == 0, scene[:, 2:4], scene[:, 4:6])
        near = torch.arange(64) % 4 < 2  # half of the points are about to arrive
        point = torch.where(near[:, None], goal + 0.15 * torch.randn(64, 2), scene[:, :2]).clamp(-1, 1)
        wanted = ((goal - point) / STEP_M).clamp(-1, 1)
        loss = (model(seen(scene), point, words[told]).clamp(-1.5, 1.5) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def save(model: WordsAndPicture, folder: Path) -> None:
    """model.safetensors and words.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "words.json").write_text(json.dumps(WORDS))


def main() -> None:
    import openpi_wire

    parser = openpi_wire.options("two discs")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    assert tuple(json.loads((args.folder / "words.json").read_text())) == WORDS
    torch.set_num_threads(1)
    model = WordsAndPicture()
    model.load_state_dict(load_file(args.folder / "model.safetensors"))

    @torch.inference_mode()
    def infer(observation: dict[str, Any]) -> np.ndarray:
        image, point = (
            np.array(openpi_wire.wanted(observation, key)) for key in ("observation/image", "observation/state")
        )
        words = torch.tensor([numbers(openpi_wire.wanted(observation, "prompt"))])
        return model(torch.from_numpy(image)[None], torch.from_numpy(point)[None], words).clamp(-1, 1).numpy()

    openpi_wire.serve(infer, {"words": list(WORDS)}, port=args.port, record=args.record)


if __name__ == "__main__":
    main()
