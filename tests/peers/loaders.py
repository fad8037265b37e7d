"""Our window sampler against the loaders people have, on the same data, in one run:

    ROBOT_RL_PEER_ROBOMIMIC=... ROBOT_RL_PEER_LEROBOT=... .venv/bin/python tests/peers/loaders.py --output loaders.json

Makes random demonstrations once low-dimensional (100 episodes of 100 steps, 60 numbers) and once with 3 cameras of 96 x 96
(20 episodes of 100 steps), exports them to robomimic and LeRobot, and gives every loader the same seconds: 2 frames of
history, 16 actions, batches of 256 (64 with cameras). Peers run in environments of their own (lerobot.sh, robomimic.sh).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.data.formats.lerobot_writer import write_lerobot
from robot_rl.data.formats.robomimic_writer import write_robomimic
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.runs.provenance import cpu_model
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

HERE = Path(__file__).parent
HISTORY, HORIZON, EXECUTE = 2, 16, 8
CAMERAS = ("a", "b", "c")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for every loader")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, episodes, cameras in (("low-dimensional", 100, ()), ("3 cameras of 96 x 96", 20, CAMERAS)):
            path = demonstrations(Path(folder) / f"{episodes}.zarr", episodes, cameras)
            found = list(loaders(path, cameras, asked.seconds))
            best = max(one["windows_per_s"] for one in found[1:])
            for one in found:
                one |= {"data": name, "ours against it": round(found[0]["windows_per_s"] / one["windows_per_s"], 1)}
                rows.append(
                    {key: one[key] for key in ("data", "loader", "windows_per_s", "epoch_s", "ours against it")}
                )
            print(f"{name}: {found[0]['windows_per_s'] / best:.1f} times the best peer", file=sys.stderr)
    document = {
        "title": "Windows a second: our sampler against other loaders (random data, one thread)", "rows": rows,
        "note": f"{asked.seconds:g} s each, one after the other; load average at the end {os.getloadavg()[0]:.1f}.",
        "seeds": "0", "date": date.today().isoformat(), "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "command": "python tests/peers/loaders.py",
    }  # fmt: skip
    asked.output.write_text(json.dumps(document, indent=2) + "\n")


def loaders(path: Path, cameras: tuple[str, ...], seconds: float) -> Iterator[dict[str, Any]]:
    """Ours first, then the peers that are there."""
    batch = 64 if cameras else 256
    keys = ["proprio", "state", *(f"image/{camera}" for camera in cameras)]
    with EpisodeStore.open(path) as store:
        count = int(store.lengths.sum())
        began = time.perf_counter()
        sampler = WindowSampler(
            store, history=HISTORY, horizon=HORIZON, execute=EXECUTE, keys=keys, episodes=np.arange(len(store)),
            device="cpu",
        )  # fmt: skip
        print(f"ours opened in {time.perf_counter() - began:.2f} s", file=sys.stderr)
        generator = torch.Generator().manual_seed(0)
        yield timed("robot-rl WindowSampler", lambda: sampler.sample(batch, generator), batch, count, seconds)
        arrays = store.load([*keys, "action"])
        for workers in (0, 2):
            yield data_loader(Slices(arrays, store.episode_ends), workers, batch, count, seconds)
        named = {
            key: name.removeprefix("obs/")
            for key, name in write_robomimic(store, path.with_suffix(".hdf5"))["keys"].items()
        }
        write_lerobot(store, path.with_suffix(".lerobot"))
    if python := os.environ.get("ROBOT_RL_PEER_ROBOMIMIC"):
        images = ["--images", *(named[f"image/{camera}"] for camera in cameras)] if cameras else []
        for cache in ("low_dim", "all"):
            yield peer(
                f"robomimic SequenceDataset, cache {cache}", python, "robomimic_speed.py", str(path.with_suffix(".hdf5")),
                "--obs", "proprio", "state", *images, "--cache", cache, *sizes(batch, seconds),
            )  # fmt: skip
    if python := os.environ.get("ROBOT_RL_PEER_LEROBOT"):
        words = [] if cameras else ["--no-images"]
        yield peer(
            "LeRobotDataset" + ", video (pyav)" * bool(cameras), python, "lerobot_speed.py",
            str(path.with_suffix(".lerobot")), *words, *sizes(batch, seconds),
        )  # fmt: skip


def sizes(batch: int, seconds: float) -> list[str]:
    return ["--history", str(HISTORY), "--horizon", str(HORIZON), "--batch", str(batch), "--seconds", str(seconds)]


class Slices(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Arrays in memory, a window by slicing: the fastest plain dataset. Borders are padded by clipped indices."""

    def __init__(self, arrays: dict[str, np.ndarray], ends: np.ndarray) -> None:
        self.arrays, self.ends = arrays, ends
        self.starts = np.concatenate([[0], ends[:-1]])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        low, high = int(self.starts[number]), int(self.ends[number]) - 1
        out = {}
        for key, array in self.arrays.items():
            span = (index, index + HORIZON) if key == "action" else (index - HISTORY + 1, index + 1)
            out[key] = torch.from_numpy(array[np.clip(np.arange(*span), low, high)])
        return out


def data_loader(dataset: Slices, workers: int, batch: int, count: int, seconds: float) -> dict[str, Any]:
    loader = torch.utils.data.DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    batches = iter(endless(loader))
    for _ in range(2 * workers + 1):
        next(batches)
    return timed(f"torch DataLoader, arrays in memory, {workers} workers", lambda: next(batches), batch, count, seconds)


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def timed(name: str, take: Any, batch: int, count: int, seconds: float) -> dict[str, Any]:
    began, windows = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        take()
        windows += batch
    rate = windows / (time.perf_counter() - began)
    return {"loader": name, "windows_per_s": round(rate), "epoch_s": round(count / rate, 3)}


def peer(name: str, python: str, script: str, *words: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(HERE / script), *words], capture_output=True, text=True, check=True, env=environment
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"loader": name, "windows_per_s": round(found["windows_per_s"], 1), "epoch_s": round(found["epoch_s"], 1)}


def demonstrations(path: Path, episodes: int, cameras: tuple[str, ...]) -> Path:
    """Random numbers; pictures that move, as a codec would meet them."""
    rng = np.random.default_rng(0)
    shapes = {"proprio": (18,), "state": (42,)}
    observation = {key: ArraySpec(key, shape) for key, shape in shapes.items()}
    observation |= {f"image/{camera}": ArraySpec(f"image/{camera}", (96, 96, 3), dtype="uint8") for camera in cameras}
    spec = EnvSpec(
        env_id="Speed", observation=observation, action=ArraySpec("action", (4,), low=(-1.0,) * 4, high=(1.0,) * 4),
        action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "speed"),
        joint_names=(), robot="speed", control_hz=20.0, max_episode_steps=100,
    )  # fmt: skip
    # Grey: half a video's colour is thrown away before it is coded, and random colours would say nothing of loaders.
    picture = rng.integers(40, 216, (12, 12, 1)).astype(np.uint8).repeat(8, 0).repeat(8, 1).repeat(3, 2)
    with EpisodeStore.create(path, spec) as store:
        for number in range(episodes):
            frames = {key: rng.normal(size=(101, *shape)).astype(np.float32) for key, shape in shapes.items()}
            for place, camera in enumerate(cameras):
                frames[f"image/{camera}"] = np.stack(
                    [np.roll(picture, t + 7 * place + number, axis=1) for t in range(101)]
                )
            store.append(Episode(
                observation={key: value[:-1] for key, value in frames.items()},
                final_observation={key: value[-1] for key, value in frames.items()},
                action=rng.uniform(-1, 1, (100, 4)).astype(np.float32), reward=np.zeros(100, np.float32),
                success=np.zeros(100, bool), terminated=False, truncated=True, source=np.zeros(100, np.uint8),
                time=np.arange(100) / 20, metadata={"seed": number},
            ))  # fmt: skip
    return path


if __name__ == "__main__":
    main()
