"""`robot-rl data convert --points`: stored clouds and depths become bit for bit what the live processing shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from software_vulkan import run_rendered

from robot_rl import cli
from robot_rl.data.recorded_points import PointSource, points_of_frames, points_spec, with_points_spec
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.point_cloud import PointCloudConfig, Sampling, points_from_json, points_of_depth, process_points
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, CameraSpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

CAMERA = CameraSpec(
    width=12, height=10, fx=9.0, fy=9.0, cx=5.5, cy=4.5, position_m=(0.3, 0.1, 0.9), quaternion_wxyz=(0.0, 1.0, 0.0, 0.0),
    frame="base",
)  # fmt: skip
SPEC = EnvSpec(
    env_id="Seen",
    observation={
        "proprio": ArraySpec("proprio", (2,)),
        "points": ArraySpec("points", (120, 6)),
        "depth/top": ArraySpec("depth/top", (10, 12, 1), units=("m",)),
        "image/top": ArraySpec("image/top", (10, 12, 3), "uint8"),
        "depth/wrist": ArraySpec("depth/wrist", (10, 12, 1), units=("m",)),
    },
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "d"),
    joint_names=(),
    robot="r",
    control_hz=10.0,
    max_episode_steps=9,
    cameras={"top": CAMERA, "wrist": replace(CAMERA, frame="hand")},
)
BOX = PointCloudConfig(num_points=16, low_m=(-0.5, -0.5, -0.2), high_m=(0.9, 0.9, 0.6), voxel_m=0.02, seed=3)


def episode(steps: int, seed: int) -> Episode:
    rng = np.random.default_rng(seed)

    def frame(count: int) -> dict[str, Any]:
        cloud = rng.uniform(-0.6, 1, (count, 120, 6)).astype(np.float32) * (rng.random((count, 120, 1)) < 0.8)
        depth = rng.uniform(0.2, 1.2, (count, 10, 12, 1)).astype(np.float32) * (rng.random((count, 10, 12, 1)) < 0.9)
        return {
            "proprio": rng.standard_normal((count, 2)).astype(np.float32),
            "points": cloud.astype(np.float32),
            "depth/top": depth.astype(np.float32),
            "image/top": rng.integers(0, 256, (count, 10, 12, 3), dtype=np.uint8),
            "depth/wrist": depth.astype(np.float32),
        }

    return Episode(
        observation=frame(steps), final_observation={key: value[0] for key, value in frame(1).items()},
        action=rng.standard_normal((steps, 2)).astype(np.float32), reward=np.zeros(steps, np.float32),
        success=np.zeros(steps, bool), source=np.zeros(steps, np.uint8), time=np.arange(steps) / 10.0, terminated=False,
        truncated=True, metadata={"seed": seed},
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "raw.zarr"
    with EpisodeStore.create(path, SPEC) as opened:
        for seed, steps in enumerate((5, 3)):
            opened.append(episode(steps, seed))
    return path


def convert(*words: object) -> int:
    return cli.main(["data", "convert", *map(str, words)])


WORDS = ["--points", 16, "--points-low", -0.5, -0.5, -0.2, "--points-high", 0.9, 0.9, 0.6, "--points-voxel", 0.02,
         "--points-seed", 3]  # fmt: skip


def test_recorded_clouds_become_what_an_env_would_show(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.zarr"
    assert convert(store, target, *WORDS) == 0
    with EpisodeStore.open(store, mode="r") as old, EpisodeStore.open(target, mode="r") as new:
        assert new.spec.observation["points"].shape == (16, 6)
        assert points_from_json(new.spec.point_cloud, where="new") == BOX
        assert new.metadata["history"][-1]["arguments"]["points"]["cloud"]["num_points"] == 16
        for number in range(2):
            before, after = old.episode(number), new.episode(number)
            for step in range(len(before)):  # one frame at a time, as it comes live
                live = process_points(torch.from_numpy(before.observation["points"][step : step + 1]), BOX)
                assert after.observation["points"][step].tobytes() == live[0].numpy().tobytes()
            live = process_points(torch.from_numpy(before.final_observation["points"][None]), BOX)
            assert after.final_observation["points"].tobytes() == live[0].numpy().tobytes()
            for key in ("proprio", "depth/top", "image/top"):
                assert np.array_equal(after.observation[key], before.observation[key])
            assert np.array_equal(after.action, before.action)
            assert (after.observation["points"][..., :3] >= np.float32([-0.5, -0.5, -0.2])).all()


def test_depths_and_colours_become_what_the_camera_code_makes(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.zarr"
    assert convert(store, target, *WORDS, "--points-camera", "top", "--points-sampling", "random") == 0
    cloud = replace(BOX, sampling=Sampling.random)
    with EpisodeStore.open(store, mode="r") as old, EpisodeStore.open(target, mode="r") as new:
        before, after = old.episode(0), new.episode(0)
        assert after.observation["points"].shape == (5, 16, 6)
        for step in range(5):
            depth, image = (before.observation[f"{kind}/top"][step : step + 1] for kind in ("depth", "image"))
            # numpy: a robot's own camera has no torch.
            live = process_points(points_of_depth(depth, CAMERA, image=image), cloud)
            assert after.observation["points"][step].tobytes() == live[0].astype(np.float32).tobytes()


def test_colours_can_be_left_out_and_a_few_frames_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = episode(6, 0).observation
    source = PointSource(replace(BOX, use_colour=False), ("top",))
    assert points_spec(SPEC, source, where="s").shape == (16, 3)
    whole = points_of_frames(frames, SPEC, source, where="s")
    monkeypatch.setattr("robot_rl.data.recorded_points._BYTES", 1)
    assert points_of_frames(frames, SPEC, source, where="s").tobytes() == whole.tobytes()
    assert whole.shape == (6, 16, 3)


def test_the_settings_say_what_was_made(store: Path, tmp_path: Path) -> None:
    """Without colours, of which cameras; and points that were cropped once are not cropped again under a new name."""
    for words, cameras in ((("--points-camera", "top"), ["top"]), ((), ["top", "wrist"])):
        target = tmp_path / f"{len(words)}.zarr"
        assert convert(store, target, *WORDS, *words) == 0
        with EpisodeStore.open(target, mode="r") as new:
            assert new.spec.point_cloud.get("cameras") == cameras
            with pytest.raises(DataError, match=r"(?s)expected a raw recording.*num_points"):
                points_spec(new.spec, PointSource(), where="s")
            # Depths are raw still.
            assert points_spec(new.spec, PointSource(BOX, ("top",)), where="s").shape == (16, 6)
    colourless = {**SPEC.observation, "points": ArraySpec("points", (120, 3))}
    found = with_points_spec(replace(SPEC, observation=colourless), PointSource(BOX), where="s")
    assert found.observation["points"].shape == (16, 3)
    assert points_from_json(found.point_cloud, where="s") == replace(BOX, use_colour=False)


def test_what_can_not_be_made_is_refused_and_nothing_is_written(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new.zarr"
    for words, said in (
        (["--points", 121], "recorded clouds of 121 points or more"),
        (["--points", 0], "num_points from 1 up"),
        (["--points", 9, "--points-camera", "wrist"], "in the frame of 'hand', which moves"),
        (["--points", 9, "--points-camera", "tpo"], "a camera with depth"),
        (["--points-voxel", 0.1], "--points M with the other"),
    ):
        assert convert(store, target, *words) in (1, 2)
        assert said in capsys.readouterr().err
        assert not target.exists()
    bare = replace(SPEC, observation={"proprio": SPEC.observation["proprio"]})
    with pytest.raises(DataError, match="points or depth/<camera> in the data"):
        points_spec(bare, PointSource(), where="s")
    assert convert(store, target, *WORDS, "--dry-run") == 0
    assert not target.exists()


_LIVE = """
import sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from robot_rl import cli
from robot_rl.data.store import EpisodeStore
icd, folder = sys.argv[1], Path(sys.argv[2])
env = ["env=push_cube", f"env.vulkan_icd={icd}", "env.image_size=16", "env.with_state=true", "env.obs_mode=pointcloud",
       "expert=scripted", "num_episodes=1", "num_envs=1", f"run_root={folder}/runs", "--track", "none"]
box = {"low": ["0.2", "-0.6", "-0.01"], "high": ["1.2", "0.6", "0.6"]}
few = ["env.points.num_points=32", *(f"env.points.{k}_m=[{','.join(v)}]" for k, v in box.items())]
assert cli.main(["collect", *env, f"dataset={folder}/raw.zarr"]) == 0
assert cli.main(["collect", *env, *few, f"dataset={folder}/live.zarr"]) == 0
words = [w for k, v in box.items() for w in (f"--points-{k}", *v)]
assert cli.main(["data", "convert", f"{folder}/raw.zarr", f"{folder}/new.zarr", "--points", "32", *words]) == 0
with EpisodeStore.open(folder / "live.zarr", mode="r") as live, EpisodeStore.open(folder / "new.zarr", mode="r") as new:
    one, two = live.episode(0), new.episode(0)
    assert new.spec == live.spec
    assert one.observation["points"].tobytes() == two.observation["points"].tobytes()
    assert one.final_observation["points"].tobytes() == two.final_observation["points"].tobytes()
    assert np.array_equal(one.action, two.action) and one.observation["points"].any()
print("FINE")
"""


@pytest.mark.slow
def test_converted_demonstrations_are_those_that_the_simulator_would_have_recorded(tmp_path: Path) -> None:
    done = run_rendered(_LIVE, str(tmp_path), timeout_s=900)
    assert "FINE" in done.stdout, done.stderr[-3000:]
