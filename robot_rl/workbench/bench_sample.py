"""`bench sample`: windows per second of our WindowSampler against a torch DataLoader over the same zarr.

The peer is made like diffusion_policy's SequenceSampler and its dataset (Chi et al. 2023, real-stanford/diffusion_policy,
common/sampler.py): the zarr is read into memory, a window is cut by slicing and padded at both ends, the DataLoader
shuffles, collates and may use workers. It does a little less than ours, which also gives reward, source and mask.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
from robot_rl.workbench.bench_timing import Comparison, Contender, Options, Report, interleave

HISTORY, HORIZON, EXECUTE, BATCH = 2, 16, 8, 256
KEYS = ("proprio", "state")
OURS, TARGET = "WindowSampler", 10.0


def run(options: Options) -> Report:
    """Measure ours and a DataLoader with 0 and 2 workers.

    Raises:
        DataError: the dataset can't be read.
    """
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.dataset) if options.dataset else random_demonstrations(Path(folder) / "demos.zarr")
        with EpisodeStore.open(path, mode="r") as store:
            ours = WindowSampler(
                store, history=HISTORY, horizon=HORIZON, execute=EXECUTE, keys=KEYS,
                episodes=np.arange(len(store)), device="cpu",
            )  # fmt: skip
            facts = {"dataset": options.dataset or "random numbers", "episodes": len(store)}
        peer = SlicedWindows(path, history=HISTORY, horizon=HORIZON)
    facts |= {"windows": ours.num_windows, "batch": BATCH, "history": HISTORY, "horizon": HORIZON}
    facts |= {"threads": options.threads}
    generator = torch.Generator().manual_seed(0)

    def hundred_batches() -> None:
        for _ in range(100):
            ours.sample(BATCH, generator)

    contenders = [Contender(OURS, hundred_batches, 100 * BATCH, "windows")]
    contenders += [loader_contender(peer, workers) for workers in (0, 2)]
    measured = interleave(contenders, rounds=options.rounds)
    comparisons = tuple(Comparison(OURS, contender.name, TARGET) for contender in contenders[1:])
    return Report(measured, comparisons, facts)


class SlicedWindows(Dataset[dict[str, torch.Tensor]]):
    """diffusion_policy's way to cut windows: arrays in memory, one Python call a window.

    Args:
        path: zarr store.
        history: To.
        horizon: Tp.
    """

    def __init__(self, path: Path, *, history: int, horizon: int) -> None:
        import zarr

        group = zarr.open_group(str(path), mode="r")
        self._arrays = {key: np.asarray(group[f"data/{key}"][:]) for key in (*KEYS, "action")}
        ends = np.asarray(group["meta/episode_ends"][:])
        self._history, self._horizon = history, horizon
        self._indices = window_indices(ends, before=history - 1, horizon=horizon)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """proprio and state (To, ...), action (Tp, A); the episode's first and last rows fill what is outside it."""
        start, stop, offset = (int(value) for value in self._indices[index])
        length = self._history - 1 + self._horizon
        out = {}
        for key, array in self._arrays.items():
            part = array[start:stop]
            if len(part) < length:
                padded = np.empty((length, *array.shape[1:]), array.dtype)
                padded[:offset], padded[offset + len(part) :] = part[0], part[-1]
                padded[offset : offset + len(part)] = part
                part = padded
            chosen = part[self._history - 1 :] if key == "action" else part[: self._history]
            out[key] = torch.from_numpy(chosen)
        return out


def window_indices(ends: Int64[Array, " E"], *, before: int, horizon: int) -> Int64[Array, "S 3"]:
    """Of the window of every step: first row, row behind the last, and rows missing in front.

    Args:
        ends: exclusive ends of the episodes.
        before: rows in front of the step.
        horizon: rows from the step on.
    """
    rows, begin = [], 0
    for end in ends.tolist():
        for step in range(begin, end):
            first = max(step - before, begin)
            rows.append((first, min(step + horizon, end), first - (step - before)))
        begin = end
    return np.array(rows, np.int64).reshape(-1, 3)


def loader_contender(dataset: SlicedWindows, workers: int) -> Contender:
    """A DataLoader that runs for ever; what its workers made while others were measured is thrown away first."""
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0), drop_last=len(dataset) >= BATCH,
    )  # fmt: skip
    batches = _endless(loader)
    ready = 2 * workers  # DataLoader's prefetch_factor

    def take(count: int) -> None:
        for _ in range(count):
            next(batches)

    return Contender(
        f"DataLoader, {workers} workers", lambda: take(40), 40 * min(BATCH, len(dataset)), "windows",
        prepare=lambda: take(ready), settle_s=0.1 if workers else 0.0,
    )  # fmt: skip


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def random_demonstrations(path: Path, *, episodes: int = 200, steps: int = 80) -> Path:
    """A store of random numbers with the sizes of PickCube-v1 (proprio 18, state 42, action 4); returns `path`."""
    rng = np.random.default_rng(0)
    spec = task_spec()

    def frames(key: str, count: int) -> np.ndarray:
        return rng.standard_normal((count, spec.observation[key].size), dtype=np.float32)

    made = []
    for _ in range(episodes):
        last = np.arange(steps) == steps - 1
        made.append(
            Episode(
                observation={key: frames(key, steps) for key in KEYS},
                final_observation={key: frames(key, 1)[0] for key in KEYS},
                action=rng.uniform(-1, 1, (steps, spec.action.size)).astype(np.float32),
                reward=last.astype(np.float32),
                success=last,
                terminated=True,
                truncated=False,
                source=np.ones(steps, np.uint8),
                time=np.arange(steps) / spec.control_hz,
            )
        )
    with EpisodeStore.create(path, spec) as store:
        store.append_many(made)
    return path


def task_spec() -> EnvSpec:
    """Sizes of PickCube-v1 without a simulator."""
    return EnvSpec(
        env_id="bench",
        observation={"proprio": ArraySpec("proprio", (18,)), "state": ArraySpec("state", (42,))},
        action=ArraySpec("action", (4,), low=(-1.0,) * 4, high=(1.0,) * 4),
        action_semantics=ActionSemantics(
            ActionKind.delta, DeltaReference.measured, "base", "none", "-1 closed .. 1 open", "pd_ee_delta_pos"
        ),
        joint_names=tuple(f"joint{i}" for i in range(9)),
        robot="panda",
        control_hz=20.0,
        max_episode_steps=100,
    )
