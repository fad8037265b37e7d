"""Our export to LeRobot v3.0: bit-equal back, and the files as pyarrow alone sees them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.lerobot import LeRobotSource
from robot_rl.data.formats.lerobot_stats import Statistics
from robot_rl.data.formats.lerobot_writer import write_lerobot
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.point_cloud import PointCloudConfig, points_to_json
from robot_rl.errors import DataError
from robot_rl.runs.config import convert_config
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, CameraSpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

SPEC = EnvSpec(
    env_id="Paint-v0",
    observation={
        "proprio": ArraySpec(
            "proprio", (3,), low=(-9.0,) * 3, high=(9.0,) * 3, units=("rad",), meanings=("a", "b", "c")
        ),
        "state": ArraySpec("state", (5,)),
        "points": ArraySpec("points", (4, 3)),
        "image/front": ArraySpec("image/front", (32, 64, 3), "uint8"),
        "image/wrist": ArraySpec("image/wrist", (48, 64, 3), "uint8"),
    },
    action=ArraySpec("action", (1,), low=(-1.0,), high=(1.0,)),
    action_semantics=ActionSemantics(
        ActionKind.delta, DeltaReference.target, "base", "rotvec", "0 shut .. 1 open", "pose"
    ),
    joint_names=("a", "b", "c"),
    robot="arm",
    control_hz=12.0,
    max_episode_steps=90,
    cameras={
        "front": CameraSpec(
            width=64,
            height=32,
            fx=20.0,
            fy=20.5,
            cx=3.5,
            cy=4.5,
            position_m=(0.5, 0.0, 0.7),
            quaternion_wxyz=(0.0, 1.0, 0.0, 0.0),
        )
    },
    point_cloud=points_to_json(PointCloudConfig(num_points=5, low_m=(0.0, -0.5, 0.0), high_m=(1.0, 0.5, 0.5))),
)
LENGTHS = (5, 1, 30, 8, 2, 17)


def painted(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """A noisy grey picture whose upper left 16 x 64 pixels are 16 black or white blocks: the number in binary."""
    image = np.random.default_rng(number).integers(100, 130, shape).astype(np.uint8)
    bits = (number >> np.arange(16)) & 1
    image[:16, :64] = np.kron(bits.reshape(2, 8), np.ones((8, 8)))[..., None] * 255
    return image


def read_painted(image: np.ndarray) -> int:
    blocks = image[:16, :64].astype(float).mean(-1).reshape(2, 8, 8, 8).mean((1, 3)).ravel() > 127
    return int((blocks << np.arange(16)).sum())


def episode(number: int, steps: int) -> Episode:
    rng = np.random.default_rng(number)
    rows = {
        key: np.stack([painted(number * 64 + t + 1000 * (key == "image/wrist"), array.shape) for t in range(steps + 1)])
        if key.startswith("image/")
        else rng.standard_normal((steps + 1, *array.shape)).astype(np.float32)
        for key, array in SPEC.observation.items()
    }
    return Episode(
        observation={key: value[:-1] for key, value in rows.items()},
        final_observation={key: value[-1] for key, value in rows.items()},
        action=rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=np.arange(steps) >= steps - 1 - number % 2,
        terminated=number % 3 == 0,
        truncated=number % 3 == 1,
        source=(np.arange(steps) % 4).astype(np.uint8),
        time=np.arange(steps) / 12 + rng.uniform(0, 0.01, steps),
        metadata={"collector": "human", "seed": number, "instruction": f"task {number % 2}"},
    )


def make(path: Path, lengths: tuple[int, ...] = LENGTHS, spec: EnvSpec = SPEC) -> Path:
    with EpisodeStore.create(path, spec, metadata={"card": {"origin": "here", "operators": 2}}) as store:
        whole = [episode(number, steps) for number, steps in enumerate(lengths)]
        store.append_many([
            replace(e, observation={k: e.observation[k] for k in spec.observation},
                    final_observation={k: e.final_observation[k] for k in spec.observation}) for e in whole
        ])  # fmt: skip
    return path


def export(tmp_path: Path, **options: object) -> Path:
    with EpisodeStore.open(make(tmp_path / "a.zarr")) as store:
        write_lerobot(store, tmp_path / "set", **options)  # type: ignore[arg-type]
    return tmp_path / "set"


def bring_back(path: Path, target: Path) -> None:
    source = LeRobotSource(path)
    reader = CardReader(source, convert_config(SpecCard, dict(source.declared), where="card"))
    import_episodes(reader, target)
    reader.close()


@pytest.mark.parametrize("images", ["video", "png"])
def test_round_trip(tmp_path: Path, images: str) -> None:
    """Several data and video files with limits of a few kB; images in their places by the numbers painted into them."""
    bring_back(export(tmp_path, images=images, data_file_mb=0.02, video_file_mb=0.01), tmp_path / "b.zarr")
    with EpisodeStore.open(tmp_path / "a.zarr") as ours, EpisodeStore.open(tmp_path / "b.zarr") as back:
        assert back.spec == ours.spec
        assert back.lengths.tolist() == list(LENGTHS)
        assert (back.content_hash() == ours.content_hash()) == (images == "png")
        for number, steps in enumerate(LENGTHS):
            a, b = ours.episode(number), back.episode(number)
            for key in ("action", "reward", "success", "source", "time"):
                np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
            assert (a.terminated, a.truncated, dict(a.metadata)) == (b.terminated, b.truncated, dict(b.metadata))
            for key in SPEC.observation:
                np.testing.assert_array_equal(a.final_observation[key], b.final_observation[key])
                if not key.startswith("image/"):
                    np.testing.assert_array_equal(a.observation[key], b.observation[key])
                    continue
                offset = number * 64 + 1000 * (key == "image/wrist")
                assert [read_painted(image) for image in b.observation[key]] == [offset + t for t in range(steps)]
                error = np.abs(a.observation[key].astype(int) - b.observation[key]).mean()
                assert error < (4 if images == "video" else 1e-9)
    source = LeRobotSource(tmp_path / "set")
    assert source.facts["exported"]["metadata"]["card"] == {"origin": "here", "operators": 2}


def test_layout_as_pyarrow_sees_it(tmp_path: Path) -> None:
    path = export(tmp_path, data_file_mb=0.002, video_file_mb=0.01)
    info = json.loads((path / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"], info["total_tasks"]) == ("v3.0", 12, 63, 2)
    rows = parquet.read_table(path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 5, 6, 36, 44, 46]
    files = {"data": {row["data/file_index"] for row in rows}}
    for camera in ("front", "wrist"):
        files[camera] = {row[f"videos/observation.images.{camera}/file_index"] for row in rows}
    assert len(files["data"]) > 1
    assert len(files["wrist"]) > 1
    assert files["data"] != files["wrist"]
    table = parquet.read_table(path / "data")
    assert table["index"].to_pylist() == list(range(63))
    np.testing.assert_array_equal(
        np.array(table["observation.state"].to_pylist(), np.float32),
        np.concatenate([episode(n, s).observation["proprio"] for n, s in enumerate(LENGTHS)]),
    )
    assert table["timestamp"].to_pylist()[6:9] == pytest.approx([0, 1 / 12, 2 / 12])
    assert np.flatnonzero(table["next.done"].to_numpy()).tolist() == (np.cumsum(LENGTHS) - 1).tolist()
    assert np.flatnonzero(table["next.truncated"].to_numpy()).tolist() == [5, 45]
    tasks = parquet.read_table(path / "meta/tasks.parquet").to_pydict()
    assert tasks == {"task_index": [0, 1], "__index_level_0__": ["task 0", "task 1"]}
    feature = info["features"]["observation.images.front"]
    assert (feature["dtype"], feature["shape"]) == ("video", [32, 64, 3])
    assert (feature["info"]["video.g"], feature["info"]["video.encoder"]) == (2, "libx264")


def test_statistics_by_numpy() -> None:
    """Of two episodes, against numpy over all rows and pixels at once."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, 3)).astype(np.float32) for n in (7, 5)]
    images = [rng.integers(0, 256, (n, 6, 4, 3)).astype(np.uint8) for n in (7, 5)]
    statistics = Statistics()
    for a, b in zip(rows, images, strict=True):
        statistics.add({"action": a, "camera": b})
    found, every = statistics.result(), np.concatenate(rows).astype(float)
    for name, value in (("mean", every.mean(0)), ("std", every.std(0)), ("q10", np.quantile(every, 0.1, axis=0))):
        np.testing.assert_allclose(found["action"][name], value)
    pixels = np.concatenate(images).reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(found["camera"]["mean"]), pixels.mean(0))
    np.testing.assert_allclose(np.ravel(found["camera"]["std"]), pixels.std(0))
    expected = np.quantile(pixels, 0.9, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(np.ravel(found["camera"]["q90"]), expected)
    assert np.shape(found["camera"]["min"]) == (3, 1, 1)
    assert found["camera"]["count"] == [12]


def test_target_and_images_are_refused_by_name(tmp_path: Path) -> None:
    path = export(tmp_path)
    with EpisodeStore.open(tmp_path / "a.zarr") as store:
        with pytest.raises(DataError, match="nothing there"):
            write_lerobot(store, path)
        with pytest.raises(DataError, match="video or png"):
            write_lerobot(store, tmp_path / "other", images="gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "set"]


def test_odd_size_and_noise_name_png(tmp_path: Path) -> None:
    """Nothing is left behind where the codec can't hold an image."""
    odd = replace(SPEC, observation={
        "proprio": SPEC.observation["proprio"], "image/front": ArraySpec("image/front", (33, 64, 3), "uint8"),
    })  # fmt: skip
    for spec, match in ((odd, "even number"), (SPEC, "30 dB")):
        with EpisodeStore.create(tmp_path / f"{match}.zarr", spec) as store:
            one = episode(0, 4)
            rng = np.random.default_rng(0)
            rows = {
                key: rng.integers(0, 256, (5, *a.shape)).astype(np.uint8)
                if "image" in key
                else np.zeros((5, *a.shape), np.float32)
                for key, a in spec.observation.items()
            }
            store.append(
                replace(
                    one,
                    observation={k: v[:4] for k, v in rows.items()},
                    final_observation={k: v[4] for k, v in rows.items()},
                )
            )
            with pytest.raises(DataError, match=f'{match}.*images="png"'):
                write_lerobot(store, tmp_path / "x")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".x", "x"))]


@pytest.mark.parametrize("change", ["sidecar episodes", "final", "numbers", "removed"])
def test_changed_since_the_export(tmp_path: Path, change: str) -> None:
    """Nothing that was changed is taken for ours; without the sidecar the rest imports as foreign data."""
    path = export(tmp_path, images="png")
    file, sidecar = path / "data/chunk-000/file-000.parquet", path / "meta/robot_rl.json"
    if change == "sidecar episodes":
        content = json.loads(sidecar.read_text())
        content["episodes"].pop()
        sidecar.write_text(json.dumps(content))
        with pytest.raises(DataError, match="the 6 episodes of this dataset"):
            LeRobotSource(path)
    elif change == "final":
        (path / "meta/robot_rl/chunk-000/episode-000002.npz").write_bytes(b"PK")
        with pytest.raises(DataError, match="episode 2"):
            LeRobotSource(path).rows(2, "observation.state")
    elif change == "numbers":
        table = parquet.read_table(file)
        place = table.column_names.index("next.reward")
        parquet.write_table(table.set_column(place, "next.reward", [np.zeros(63, np.float32)]), file)
        with pytest.raises(DataError, match="checksum"):
            LeRobotSource(path).rows(2, "next.reward")
    else:
        sidecar.unlink()
        source = LeRobotSource(path)
        assert not source.episodes[0].has_final
        assert [(e.terminated, e.truncated) for e in source.episodes[:3]] == [
            (True, False),
            (False, True),
            (True, False),
        ]
        assert source.episodes[3].metadata["instruction"] == "task 1"


_GROWTH = """
import resource, sys
from pathlib import Path
from robot_rl.data.formats.lerobot import LeRobotSource
source = LeRobotSource(Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index in range(2):
    source.rows(index, "observation.images.front")
before = peak()
for index in range(len(source.episodes)):
    source.rows(index, "observation.images.front")
print(peak() - before)
"""


@pytest.mark.parametrize("images", ["video", "png"])
def test_memory_stays_flat(tmp_path: Path, images: str) -> None:
    """24 episodes in one file: reading all of them needs no more than reading two (B9)."""
    spec = replace(SPEC, observation={
        "proprio": SPEC.observation["proprio"], "image/front": ArraySpec("image/front", (128, 128, 3), "uint8"),
    })  # fmt: skip
    with EpisodeStore.create(tmp_path / "a.zarr", spec) as store:
        for number in range(24):
            rows = {
                "proprio": np.zeros((21, 3), np.float32),
                "image/front": np.repeat(np.random.default_rng(number).integers(90, 160, (21, 16, 16, 3)), 8, 1)
                .repeat(8, 2)
                .astype(np.uint8),
            }
            store.append(
                replace(
                    episode(0, 20),
                    observation={k: v[:20] for k, v in rows.items()},
                    final_observation={k: v[20] for k, v in rows.items()},
                )
            )
        write_lerobot(store, tmp_path / "set", images=images)
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(tmp_path / "set")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 * 1024  # kB; all frames are 24 MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
