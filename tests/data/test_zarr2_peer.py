"""zarr 2, which diffusion_policy pins, reads our stores: the steps its ReplayBuffer takes, and its copy into memory.

Needs its own environment: `tests/peers/zarr2.sh TARGET`, then ROBOT_RL_PEER_ZARR2=TARGET/bin/python. zarr 3 does the
same in tests/data/test_store.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

PEER = os.environ.get("ROBOT_RL_PEER_ZARR2", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_ZARR2 is not set (tests/peers/zarr2.sh makes it)"),
]
LENGTHS = (7, 1, 300, 12)
# Everything of data/ and meta/ from disk, and again from a copy that zarr itself makes in memory.
_READ = """
import sys
import numpy as np
import zarr

assert zarr.__version__.startswith("2.")
root = zarr.open(sys.argv[1], "r")
copied = zarr.MemoryStore()
zarr.copy_store(source=root.store, dest=copied)
memory = zarr.open(copied, "r")
out = {}
for group in ("data", "meta"):
    for key, value in root[group].items():
        out[f"{group}/{key}"] = value[:]
        assert (memory[group][key][:] == value[:]).all()
ends = root["meta"]["episode_ends"][:]
assert all(value.shape[0] == ends[-1] for value in root["data"].values())
np.savez(sys.argv[2], **{key.replace("/", "|"): value for key, value in out.items()})
"""


def make_episode(number: int, steps: int) -> Episode:
    rng = np.random.default_rng(number)
    frames = {
        "proprio": rng.standard_normal((steps + 1, 4)).astype(np.float32),
        "image/front": np.repeat(rng.integers(0, 256, (steps + 1, 12, 16, 1), dtype=np.uint8), 3, axis=-1),
    }
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=rng.standard_normal((steps, 3)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=np.arange(steps) == steps - 1,
        terminated=True,
        truncated=False,
        source=np.ones(steps, np.uint8),
        time=np.arange(steps) / 20.0,
        metadata={"seed": number},
    )


@pytest.mark.parametrize("images", ["arrays", "video_lossless"])
def test_zarr_2_reads_our_store(tmp_path: Path, images: str) -> None:
    spec = EnvSpec(
        "Peer-v1",
        {"proprio": ArraySpec("proprio", (4,)), "image/front": ArraySpec("image/front", (12, 16, 3), "uint8")},
        ArraySpec("action", (3,)),
        ActionSemantics(ActionKind.delta, DeltaReference.target, "joint", "none", "none", "pd"),
        ("a",),
        "none",
        20.0,
        100,
    )
    episodes = [make_episode(i, steps) for i, steps in enumerate(LENGTHS)]
    with EpisodeStore.create(tmp_path / "s.zarr", spec, images=images) as store:
        store.append_many(episodes)
        attributes = json.loads((tmp_path / "s.zarr/.zattrs").read_text())
    done = subprocess.run(
        [PEER, "-c", _READ, str(tmp_path / "s.zarr"), str(tmp_path / "read.npz")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "read.npz", allow_pickle=False) as stored:
        read = {name.replace("|", "/"): stored[name] for name in stored.files}
    assert read["meta/episode_ends"].tolist() == [7, 8, 308, 320]
    assert read["meta/episode_ends"].dtype == np.int64
    expected = {
        "data/proprio": [e.observation["proprio"] for e in episodes],
        "data/action": [e.action for e in episodes],
    }
    if images == "arrays":
        expected["data/image__front"] = [e.observation["image/front"] for e in episodes]
    else:
        assert "data/image__front" not in read
        assert attributes["images"]["files"] == {"image/front": "videos/image__front/<episode>.mp4"}
    for name, parts in expected.items():
        np.testing.assert_array_equal(read[name], np.concatenate(parts))
        assert read[name].dtype == parts[0].dtype
    np.testing.assert_array_equal(
        read["meta/final_proprio"], np.stack([e.final_observation["proprio"] for e in episodes])
    )
