"""`bench data`: epochs of our WindowSampler against the loaders people have, on the same episodes.

Two datasets of random numbers are made: low-dimensional (100 episodes of 100 steps, 60 numbers) and with three cameras of
96 x 96 (20 episodes); with --dataset there is that one alone. Each is also exported to robomimic and LeRobot, whose own
loaders run where an environment variable names the Python of an environment that has them (tests/peers/*.sh make one):
ROBOT_RL_PEER_ROBOMIMIC, ROBOT_RL_PEER_LEROBOT. A call is one epoch, measured on a part of it where that takes long.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from robot_rl.arrays import Array, Int64
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode
from robot_rl.workbench.bench_timing import BenchError, Comparison, Measurement, Options, Report

HISTORY, HORIZON, EXECUTE = 2, 16, 8
CAMERAS = ("image/a", "image/b", "image/c")
OURS = "WindowSampler"
# Ours against the best peer, as issue 6 promises: low-dimensional data, and cameras.
TARGETS = (10.0, 1.0)
# A peer starts a Python for each round, and 15 of them would take long.
MOST_ROUNDS, SECONDS = 5, 3.0
PEERS = {"ROBOT_RL_PEER_ROBOMIMIC": "robomimic_speed.py", "ROBOT_RL_PEER_LEROBOT": "lerobot_speed.py"}
SCRIPTS = Path(__file__).parents[2] / "tests" / "peers"


@dataclass(frozen=True)
class Loader:
    """One way to read windows.

    Attributes:
        name: in tables.
        epoch_s: measures for about SECONDS and returns seconds an epoch.
    """

    name: str
    epoch_s: Callable[[], float]


def run(options: Options) -> Report:
    """Measure ours, a torch DataLoader with 0 and 2 workers, and the peers that there are, in turns.

    Raises:
        DataError: the dataset can't be read or exported.
        BenchError: a peer's environment does not work.
    """
    torch.set_num_threads(options.threads)
    rounds = min(options.rounds, MOST_ROUNDS)
    measured, comparisons, facts = list[Measurement](), list[Comparison](), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        paths = {"dataset": Path(options.dataset)} if options.dataset else {}
        if not paths:
            paths["low-dim"] = random_demonstrations(Path(folder) / "low.zarr", episodes=100, cameras=())
            paths["3 cameras"] = random_demonstrations(Path(folder) / "cameras.zarr", episodes=20, cameras=CAMERAS)
        for name, path in paths.items():
            with EpisodeStore.open(path) as store:
                windows, target = int(store.lengths.sum()), TARGETS[bool(_cameras(store))]
                found = list(loaders(store, Path(folder) / f"{name} exports", seconds=SECONDS))
            rows = epochs(found, rounds=rounds)
            measured += [Measurement(f"{name}: {key}", windows, "windows", row) for key, row in rows.items()]
            comparisons += [Comparison(f"{name}: {OURS}", f"{name}: {one.name}", target) for one in found[1:]]
            facts[name] = {"windows": windows, "batch": _batch(store)}
    missing = [variable for variable in PEERS if not os.environ.get(variable)]
    facts |= {"history": HISTORY, "horizon": HORIZON, "seconds_a_round": SECONDS, "rounds": rounds}
    return Report(tuple(measured), tuple(comparisons), facts | {"peers_not_named": missing, "threads": options.threads})


def epochs(found: Sequence[Loader], *, rounds: int) -> dict[str, np.ndarray]:
    """Name -> seconds an epoch, float64 (rounds, 1), the loaders in turns; each warms itself up."""
    rows: dict[str, list[list[float]]] = {one.name: [] for one in found}
    for _ in range(rounds):
        for one in found:
            rows[one.name].append([one.epoch_s()])
    return {name: np.array(row, np.float64) for name, row in rows.items()}


def loaders(store: EpisodeStore, exports: Path, *, seconds: float) -> Iterator[Loader]:
    """Ours first, then torch's, then the peers that are named.

    Args:
        store: is read into memory.
        exports: folder for the peers' files; only made when there are peers.
        seconds: of one measurement.
    """
    batch, count, keys = _batch(store), int(store.lengths.sum()), list(store.spec.observation)
    sampler = WindowSampler(
        store,
        history=HISTORY,
        horizon=HORIZON,
        execute=EXECUTE,
        keys=keys,
        episodes=np.arange(len(store)),
        device="cpu",
    )
    generator = torch.Generator().manual_seed(0)
    yield Loader(OURS, lambda: timed(lambda: sampler.sample(batch, generator), batch, count, seconds))
    slices = Slices(store.load([*keys, "action"]), store.episode_ends)
    for workers in (0, 2):
        yield _data_loader(slices, workers, batch, count, seconds)
    yield from _peers(store, exports, ["--batch", str(batch), "--seconds", str(seconds)])


def timed(take: Callable[[], object], batch: int, count: int, seconds: float) -> float:
    """Seconds for `count` windows, of calls that give `batch` of them, measured for `seconds` at least."""
    take()
    began, windows = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        take()
        windows += batch
    return (time.perf_counter() - began) * count / windows


class Slices(Dataset[dict[str, torch.Tensor]]):
    """Arrays in memory, a window by slicing: the fastest plain dataset. Borders are padded by clipped indices.

    Args:
        arrays: key -> (S, ...) over all episodes.
        ends: exclusive ends of the episodes.
    """

    def __init__(self, arrays: dict[str, np.ndarray], ends: Int64[Array, " E"]) -> None:
        self._arrays, self._ends = arrays, ends
        self._starts = np.concatenate([[0], ends[:-1]])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Observations (To, ...) up to step `index`, actions (Tp, A) from it on."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        low, high = int(self._starts[number]), int(self._ends[number]) - 1
        out = {}
        for key, array in self._arrays.items():
            span = (index, index + HORIZON) if key == "action" else (index - HISTORY + 1, index + 1)
            out[key] = torch.from_numpy(array[np.clip(np.arange(*span), low, high)])
        return out


def _data_loader(dataset: Slices, workers: int, batch: int, count: int, seconds: float) -> Loader:
    loader = DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()

    def epoch_s() -> float:
        for _ in range(2 * workers):  # prepared while others were measured
            next(batches)
        return timed(lambda: next(batches), batch, count, seconds)

    return Loader(f"DataLoader, {workers} workers", epoch_s)


def _peers(store: EpisodeStore, exports: Path, sizes: Sequence[str]) -> Iterator[Loader]:
    robomimic, lerobot = (os.environ.get(variable) for variable in PEERS)
    cameras = _cameras(store)
    sizes = [*sizes, "--history", str(HISTORY), "--horizon", str(HORIZON)]
    if robomimic or lerobot:
        exports.mkdir()
    if robomimic:
        from robot_rl.data.formats.robomimic_writer import write_robomimic

        names = write_robomimic(store, exports / "demos.hdf5")["keys"]
        plain = [names[key].removeprefix("obs/") for key in store.spec.observation if key not in cameras]
        images = ["--images", *(names[key].removeprefix("obs/") for key in cameras)] if cameras else []
        for cache in ("low_dim", "all"):
            words = [str(exports / "demos.hdf5"), "--obs", *plain, *images, "--cache", cache, *sizes]
            yield Loader(f"robomimic, cache {cache}", _peer(robomimic, PEERS["ROBOT_RL_PEER_ROBOMIMIC"], words))
    if lerobot:
        from robot_rl.data.formats.lerobot_writer import write_lerobot

        write_lerobot(store, exports / "lerobot")
        words = [str(exports / "lerobot"), *([] if cameras else ["--no-images"]), *sizes]
        yield Loader("LeRobotDataset", _peer(lerobot, PEERS["ROBOT_RL_PEER_LEROBOT"], words))


def _peer(python: str, script: str, words: Sequence[str]) -> Callable[[], float]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [python, str(SCRIPTS / script), *words]

    def epoch_s() -> float:
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=True)
            return float(json.loads(done.stdout.strip().splitlines()[-1])["epoch_s"])
        except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
            told = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
            raise BenchError(
                f"{python} {script}", expected="windows a second of a peer, as JSON", got=" ".join(told) or repr(error),
                hint="Make its environment with tests/peers/*.sh of a checkout, or leave the variable out.",
            ) from error  # fmt: skip

    return epoch_s


def _batch(store: EpisodeStore) -> int:
    return 64 if _cameras(store) else 256


def _cameras(store: EpisodeStore) -> list[str]:
    return [key for key in store.spec.observation if key.startswith("image/")]


def random_demonstrations(path: Path, *, episodes: int, cameras: Sequence[str]) -> Path:
    """A store of random numbers, 100 steps an episode, and of pictures that move, as a codec would meet them."""
    rng, steps = np.random.default_rng(0), 100
    shapes = {"proprio": (18,), "state": (42,)}
    observation = {key: ArraySpec(key, shape) for key, shape in shapes.items()}
    observation |= {camera: ArraySpec(camera, (96, 96, 3), dtype="uint8") for camera in cameras}
    spec = EnvSpec(
        env_id="bench", observation=observation, action=ArraySpec("action", (4,), low=(-1.0,) * 4, high=(1.0,) * 4),
        action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "bench"),
        joint_names=(), robot="bench", control_hz=20.0, max_episode_steps=steps,
    )  # fmt: skip
    # Grey: half a video's colour is thrown away before it is coded, and random colours would say nothing of loaders.
    picture = rng.integers(40, 216, (12, 12, 1)).astype(np.uint8).repeat(8, 0).repeat(8, 1).repeat(3, 2)
    with EpisodeStore.create(path, spec) as store:
        for number in range(episodes):
            frames = {key: rng.normal(size=(steps + 1, *shape)).astype(np.float32) for key, shape in shapes.items()}
            for place, camera in enumerate(cameras):
                moved = [np.roll(picture, t + 7 * place + number, axis=1) for t in range(steps + 1)]
                frames[camera] = np.stack(moved)
            store.append(Episode(
                observation={key: value[:-1] for key, value in frames.items()},
                final_observation={key: value[-1] for key, value in frames.items()},
                action=rng.uniform(-1, 1, (steps, 4)).astype(np.float32), reward=np.zeros(steps, np.float32),
                success=np.zeros(steps, bool), terminated=False, truncated=True, source=np.zeros(steps, np.uint8),
                time=np.arange(steps) / 20, metadata={"seed": number},
            ))  # fmt: skip
    return path
