"""An import holds one episode (or batch) at a time: the peak of its memory does not grow with the size of the source.

Each reader family imports two sizes of the same data in processes of their own; the peak (VmHWM) of the larger one must
not be higher by more than a small part of what it read in addition. Pictures are 240 x 320 and cheap to pack, so that
gigabytes of frames need little disk. Run as a script by the tests: `python test_streaming_memory.py FAMILY EPISODES FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.keyed import KeyedSource, SourceEpisode
from robot_rl.data.formats.known import open_source
from robot_rl.data.formats.spec_card import ArrayCard, SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.runs.config import convert_config
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

STEPS, FRAME = 40, (240, 320, 3)
EPISODE_BYTES = STEPS * 240 * 320 * 3
SEMANTICS = ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "stream")
# Family -> episodes of the small and the large source. "keyed" writes 3 GB of frames from a source that makes them.
SIZES = {"keyed": (54, 325), "diffusion_policy": (15, 75), "robomimic": (15, 75), "lerobot": (15, 75)}
ALLOWED_MB = 48
DECLARED = 50e9
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def frames(number: int, rows: int) -> np.ndarray:
    """Stripes that move: any codec packs them well, and no two frames are alike."""
    stripes = ((np.arange(FRAME[1]) // 20 + number) % 8 * 24 + 20).astype(np.uint8)
    return np.stack([np.broadcast_to(np.roll(stripes, step)[None, :, None], FRAME) for step in range(rows)])


class MadeUp:
    """A KeyedSource that makes each frame when it is asked for it."""

    format, declared, facts, notes = "made_up", dict[str, Any](), dict[str, Any](), list[str]()

    def __init__(self, path: Path, episodes: int) -> None:
        self.path = path
        self.episodes: Sequence[SourceEpisode] = [SourceEpisode(f"episode {n}", STEPS) for n in range(episodes)]
        self.keys: Mapping[str, tuple[tuple[int, ...], np.dtype]] = {
            "action": ((2,), np.dtype(np.float32)), "state": ((3,), np.dtype(np.float32)), "img": (FRAME, np.dtype(np.uint8)),
        }  # fmt: skip

    def rows(self, index: int, key: str) -> np.ndarray:
        if key == "img":
            return frames(index, STEPS)
        return np.zeros((STEPS, *self.keys[key][0]), np.float32) + np.arange(STEPS, dtype=np.float32)[:, None] / STEPS

    def close(self) -> None:
        pass


def make_diffusion_policy(path: Path, episodes: int) -> None:
    import zarr
    from numcodecs import Blosc

    root, total = zarr.open_group(str(path), mode="w", zarr_format=2), episodes * STEPS
    for key, width in (("action", 2), ("state", 3)):
        root.create_array(f"data/{key}", data=np.random.default_rng(0).uniform(size=(total, width)).astype(np.float32))
    images = root.create_array(
        "data/img", shape=(total, *FRAME), chunks=(STEPS, *FRAME), dtype="uint8", compressors=Blosc(cname="lz4")
    )
    for number in range(episodes):
        images[number * STEPS : (number + 1) * STEPS] = frames(number, STEPS)
    root.create_array("meta/episode_ends", data=STEPS * np.arange(1, episodes + 1))


def make_robomimic(path: Path, episodes: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for number in range(episodes):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = STEPS
            demo["actions"] = np.random.default_rng(number).uniform(-1, 1, (STEPS, 2))
            demo["rewards"], demo["dones"] = np.zeros(STEPS), np.arange(STEPS) == STEPS - 1
            demo["obs/state"] = np.random.default_rng(number).uniform(-1, 1, (STEPS, 3))
            demo.create_dataset("obs/img", data=frames(number, STEPS), chunks=(1, *FRAME), compression=1)
        file["data"].attrs["total"] = episodes * STEPS


def make_lerobot(path: Path, episodes: int) -> None:
    from robot_rl.data.formats.lerobot_writer import write_lerobot

    observation = {"proprio": ArraySpec("proprio", (3,)), "image/top": ArraySpec("image/top", FRAME, dtype="uint8")}
    spec = EnvSpec("Stream", observation, ArraySpec("action", (2,)), SEMANTICS, (), "stream", 10.0, 2 * STEPS)
    with EpisodeStore.create(path.with_name("own.zarr"), spec) as store:
        for number in range(episodes):
            rng = np.random.default_rng(number)
            seen = {"proprio": rng.normal(size=(STEPS, 3)).astype(np.float32), "image/top": frames(number, STEPS)}
            store.append(Episode(
                observation=seen, final_observation={key: rows[-1] for key, rows in seen.items()},
                action=rng.normal(size=(STEPS, 2)).astype(np.float32), reward=np.zeros(STEPS, np.float32),
                success=np.zeros(STEPS, bool), terminated=False, truncated=True, source=np.zeros(STEPS, np.uint8),
                time=np.arange(STEPS) / 10, metadata={"seed": number},
            ))  # fmt: skip
        write_lerobot(store, path, images="video")


def source_of(family: str, path: Path, episodes: int) -> KeyedSource:
    return MadeUp(path, episodes) if family == "keyed" else open_source(family, path, {})


def card_of(family: str, source: KeyedSource) -> SpecCard:
    if family == "lerobot":
        card: SpecCard = convert_config(SpecCard, dict(source.declared), where="card")
        return card
    prefix, action = ("obs/", "actions") if family == "robomimic" else ("", "action")
    return SpecCard(
        env_id="Stream", robot="stream", control_hz=10.0, max_episode_steps=2 * STEPS, joint_names=(),
        action_semantics=SEMANTICS, action=ArrayCard((action,), ("1",), ("x",)),
        observation={
            "proprio": ArrayCard((f"{prefix}state",), ("1",), ("x",)), "image/top": ArrayCard((f"{prefix}img",), ("1",), ("RGB",)),
        },
        source="teleop", success="last_step",
    )  # fmt: skip


def peak_mb() -> float:
    """Highest resident memory of this process; ru_maxrss would hold that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def main(family: str, episodes: int, folder: Path) -> None:
    """Import, and print what it took."""
    source = source_of(family, folder / "source", episodes)
    before, reader = peak_mb(), CardReader(source, card_of(family, source))
    try:
        report = import_episodes(reader, folder / "out.zarr")
    finally:
        reader.close()
    print(json.dumps({"episodes": report.episodes, "steps": report.steps, "before_mb": before, "peak_mb": peak_mb()}))


def child(family: str, episodes: int, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, family, str(episodes), str(folder)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc (Linux)")
@pytest.mark.parametrize("family", SIZES)
def test_memory_is_flat(family: str, tmp_path: Path) -> None:
    needs = {"lerobot": ("pyarrow", "av"), "robomimic": ("h5py",)}
    for package in needs.get(family, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra data)")
    peaks, read = [], []
    for episodes in SIZES[family]:
        folder = tmp_path / f"{episodes}"
        folder.mkdir()
        if family != "keyed":
            # In a process of its own too: what a writer leaves in this one must not be seen as the reader's.
            subprocess.run(
                [sys.executable, __file__, "make", family, str(episodes), str(folder)], check=True, env=ENVIRONMENT
            )
        found = child(family, episodes, folder)
        assert found["episodes"] == episodes
        peaks.append(found["peak_mb"])
        read.append(episodes * EPISODE_BYTES / 1e6)
    more, further = peaks[1] - peaks[0], read[1] - read[0]
    print(
        f"{family}: {read[0]:.0f} MB of frames: peak {peaks[0]:.0f} MB; {read[1]:.0f} MB: {peaks[1]:.0f} MB; "
        f"a line through both gives {peaks[1] + max(more, 0) / further * (DECLARED / 1e6 - read[1]):.0f} MB at 50 GB"
    )
    assert further > 8 * ALLOWED_MB
    assert more < ALLOWED_MB, f"{further:.0f} MB more of frames cost {more:.0f} MB of memory"


MAKERS = {"diffusion_policy": make_diffusion_policy, "robomimic": make_robomimic, "lerobot": make_lerobot}

if __name__ == "__main__":
    *_, name, count, place = sys.argv
    if sys.argv[1] == "make":
        MAKERS[name](Path(place) / "source", int(count))
    else:
        main(name, int(count), Path(place))
