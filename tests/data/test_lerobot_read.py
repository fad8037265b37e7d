"""LeRobot v2.0, v2.1 and v3.0 datasets, written by hand to the layout of formats.md, and broken in every way seen in the wild."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.lerobot import LeRobotSource
from robot_rl.data.formats.lerobot_layout import flat_names
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.errors import DataError
from robot_rl.runs.config import convert_config

FPS = 10
LENGTHS = (4, 3, 6, 2, 5)
# File of each episode: the front camera changes file elsewhere than the data, the wrist camera elsewhere again (B3).
DATA, FRONT, WRIST = (0, 0, 1, 1, 1), (0, 1, 1, 2, 2), (0, 0, 0, 0, 1)
FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a.pos", "gripper.pos"]}},
    "action": {"dtype": "float32", "shape": [3], "names": None},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    "observation.images.front": {"dtype": "video", "shape": [32, 64, 3], "names": ["height", "width", "channels"]},
    "observation.images.wrist": {"dtype": "video", "shape": [3, 48, 64], "names": ["channels", "height", "width"]},
    "observation.images.top": {"dtype": "image", "shape": [16, 64, 3], "names": None},
    **{key: {"dtype": "int64", "shape": [1], "names": None} for key in ("frame_index", "episode_index", "index", "task_index")},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
}  # fmt: skip
SIZES = {"front": (32, 64, 3), "wrist": (48, 64, 3), "top": (16, 64, 3)}
OFFSET = {"front": 0, "wrist": 1000, "top": 2000}


def painted(number: int, shape: tuple[int, ...]) -> np.ndarray:
    image = np.full(shape, 110, np.uint8)
    image[:16, :64] = np.kron(((number >> np.arange(16)) & 1).reshape(2, 8), np.ones((8, 8)))[..., None] * 255
    return image


def read_painted(image: np.ndarray) -> int:
    blocks = image[:16, :64].astype(float).mean(-1).reshape(2, 8, 8, 8).mean((1, 3)).ravel() > 127
    return int((blocks << np.arange(16)).sum())


def numbers_of(number: int, camera: str) -> list[int]:
    return [OFFSET[camera] + number * 64 + t for t in range(LENGTHS[number])]


def rows_of(number: int) -> dict[str, Any]:
    """Columns of one episode; the state is (number, t), the action (t, -t, number)."""
    steps, t = LENGTHS[number], np.arange(LENGTHS[number])
    pictures = []
    for value in numbers_of(number, "top"):
        file = io.BytesIO()
        Image.fromarray(painted(value, SIZES["top"])).save(file, format="PNG")
        pictures.append({"bytes": file.getvalue(), "path": "x.png"})
    return {
        "observation.state": np.stack([t * 0 + number, t], 1).astype(np.float32).tolist(),
        "action": np.stack([t, -t, t * 0 + number], 1).astype(np.float32).tolist(),
        "next.reward": pa.array(t.astype(np.float32)),
        "next.done": (t == steps - 1).tolist(),
        "next.success": (t == steps - 1).tolist(),
        "observation.images.top": pictures,
        "timestamp": pa.array((t / FPS).astype(np.float32)),
        "frame_index": t,
        "episode_index": t * 0 + number,
        "index": t + sum(LENGTHS[:number]),
        "task_index": t * 0 + number % 2,
    }


def write_video(file: Path, numbers: list[int], shape: tuple[int, ...], times: list[int] | None = None) -> None:
    """B frames and a long GOP, as other programs write them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"g": "12", "bf": "2", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(painted(number, shape), format="rgb24")
            frame.pts = place if times is None else times[place]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def info_of(version: str, **paths: str) -> dict[str, Any]:
    return {
        "codebase_version": version, "robot_type": "so101", "fps": FPS, "features": FEATURES, "chunks_size": 1000,
        "total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS), "splits": {"train": "0:5"}, **paths,
    }  # fmt: skip


def write_v3(path: Path, *, tasks: str = "parquet") -> Path:
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    (path / "data/chunk-000").mkdir(parents=True)
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (path / "meta/info.json").write_text(json.dumps(info_of("v3.0", data_path=data, video_path=video)))
    for file in range(2):
        parts = [pa.table(rows_of(n)) for n in range(5) if DATA[n] == file]
        # One row group for several episodes, as LeRobot's converter writes them.
        pq.write_table(pa.concat_tables(parts), path / f"data/chunk-000/file-{file:03d}.parquet")
    said = []
    for number, steps in enumerate(LENGTHS):
        begin = sum(LENGTHS[:number])
        row: dict[str, Any] = {
            "episode_index": number, "length": steps, "tasks": [f"task {number % 2}"], "dataset_from_index": begin,
            "dataset_to_index": begin + steps, "data/chunk_index": 0, "data/file_index": DATA[number],
            "stats/action/min": [0.0],
        }  # fmt: skip
        for camera, files in (("front", FRONT), ("wrist", WRIST)):
            start = sum(LENGTHS[n] for n in range(number) if files[n] == files[number]) / FPS
            row |= {f"videos/observation.images.{camera}/chunk_index": 0,
                    f"videos/observation.images.{camera}/file_index": files[number],
                    f"videos/observation.images.{camera}/from_timestamp": start,
                    f"videos/observation.images.{camera}/to_timestamp": start + steps / FPS}  # fmt: skip
        said.append(row)
    # Two meta files too.
    for file, part in enumerate((said[:3], said[3:])):
        pq.write_table(pa.Table.from_pylist(part), path / f"meta/episodes/chunk-000/file-{file:03d}.parquet")
    for camera, files in (("front", FRONT), ("wrist", WRIST)):
        for file in set(files):
            numbers = [v for n in range(5) if files[n] == file for v in numbers_of(n, camera)]
            target = path / f"videos/observation.images.{camera}/chunk-000/file-{file:03d}.mp4"
            write_video(target, numbers, SIZES[camera])
    if tasks == "parquet":
        table = pa.table({"task_index": [0, 1], "__index_level_0__": ["task 0", "task 1"]})
        pq.write_table(table, path / "meta/tasks.parquet")
    else:
        write_tasks_jsonl(path)
    return path


def write_tasks_jsonl(path: Path) -> None:
    lines = [json.dumps({"task_index": n, "task": f"task {n}"}) for n in range(2)]
    (path / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")


def write_v2(path: Path, version: str = "v2.1") -> Path:
    (path / "meta").mkdir(parents=True)
    (path / "data/chunk-000").mkdir(parents=True)
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (path / "meta/info.json").write_text(json.dumps(info_of(version, data_path=data, video_path=video)))
    write_tasks_jsonl(path)
    lines = [json.dumps({"episode_index": n, "tasks": [f"task {n % 2}"], "length": s}) for n, s in enumerate(LENGTHS)]
    (path / "meta/episodes.jsonl").write_text("\n".join(lines))
    if version == "v2.0":
        (path / "meta/stats.json").write_text("{}")
    for number in range(5):
        pq.write_table(pa.table(rows_of(number)), path / f"data/chunk-000/episode_{number:06d}.parquet")
        for camera in ("front", "wrist"):
            target = path / f"videos/chunk-000/observation.images.{camera}/episode_{number:06d}.mp4"
            write_video(target, numbers_of(number, camera), SIZES[camera])
    return path


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0", "v3.0 jsonl"])
def test_every_row_and_frame_is_in_its_place(tmp_path: Path, version: str) -> None:
    make: dict[str, Callable[[], Path]] = {
        "v3.0": lambda: write_v3(tmp_path / "s"),
        "v3.0 jsonl": lambda: write_v3(tmp_path / "s", tasks="jsonl"),
    }
    source = LeRobotSource(make[version]() if version in make else write_v2(tmp_path / "s", version))
    assert [e.steps for e in source.episodes] == list(LENGTHS)
    assert [e.metadata for e in source.episodes] == [{"instruction": f"task {n % 2}"} for n in range(5)]
    assert source.keys["observation.images.wrist"] == ((48, 64, 3), np.dtype("uint8"))
    # Backwards, so that nothing depends on what was read before.
    for number in reversed(range(5)):
        t = np.arange(LENGTHS[number])
        assert source.rows(number, "observation.state").tolist() == [[number, step] for step in t]
        assert source.rows(number, "action").tolist() == [[step, -step, number] for step in t]
        assert source.rows(number, "next.reward").tolist() == [[step] for step in t]
        for camera in SIZES:
            pictures = source.rows(number, f"observation.images.{camera}")
            assert [read_painted(picture) for picture in pictures] == numbers_of(number, camera)
    notes = " ".join(source.notes)
    assert ("no statistics" in notes) == (version != "v2.0")
    assert "No names for the elements of action" in notes


def test_what_the_files_declare(tmp_path: Path) -> None:
    declared = LeRobotSource(write_v3(tmp_path / "s")).declared
    assert (declared["control_hz"], declared["robot"], declared["joint_names"]) == (10.0, "so101", ["a"])
    assert (declared["success"], declared["reward_key"]) == ("next.success", "next.reward")
    assert declared["action"] == {"keys": ["action"], "units": ["???"], "meanings": ["???"]}
    assert declared["observation"]["proprio"]["meanings"] == ["a.pos", "gripper.pos"]
    assert set(declared["observation"]) == {"proprio", "image/front", "image/wrist", "image/top"}


def test_with_a_card_it_is_an_episode(tmp_path: Path) -> None:
    source = LeRobotSource(write_v3(tmp_path / "s"))
    semantics = {
        "kind": "absolute",
        "delta_reference": "none",
        "frame": "joint",
        "rotation": "none",
        "gripper": "0..1",
        "control_mode": "pos",
    }
    content = {
        **source.declared,
        "env_id": "Pick",
        "max_episode_steps": 9,
        "source": "teleop",
        "action_semantics": semantics,
    }
    content["action"] = {"keys": ["action"], "units": ["rad"], "meanings": ["target"]}
    content["observation"] = dict(source.declared["observation"])
    content["observation"]["proprio"] = {"keys": ["observation.state"], "units": ["rad"], "meanings": ["a", "gripper"]}
    episode = CardReader(source, convert_config(SpecCard, content, where="card")).read(2)
    assert episode.action.tolist() == [[t, -t, 2] for t in range(5)]
    assert episode.final_observation["proprio"].tolist() == [2, 5]
    assert read_painted(episode.final_observation["image/front"]) == 2 * 64 + 5
    assert episode.success.tolist() == [False] * 4 + [True]
    assert episode.reward.tolist() == [0, 1, 2, 3, 4]
    assert episode.metadata == {"collector": "import", "source_episode": "2", "instruction": "task 0"}


def test_names_in_every_form() -> None:
    assert flat_names(None, 2) == ()
    assert flat_names(["a", "b"], 2) == ("a", "b")
    assert flat_names({"motors": ["a", "b"]}, 2) == ("a", "b")
    assert flat_names({"motor_1": 1, "motor_0": 0}, 2) == ("motor_0", "motor_1")
    assert flat_names(["a"], 2) == ()


def edit_table(file: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(file)
    place = table.column_names.index(column)
    kind = table.schema.field(column).type
    pq.write_table(table.set_column(place, column, pa.array(change(table[column].to_pylist()), kind)), file)


def replaced(place: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value if n == place else old for n, old in enumerate(values)]


@pytest.mark.parametrize(
    ("column", "place", "value", "match"),
    [
        ("timestamp", 8, 0.53, r"episode 3, frame 2|episode 2, frame"),
        ("index", 3, 99, "episode 2, frame 3, index: expected 10, got 99"),
        ("frame_index", 7, 5, "episode 3, frame 1, frame_index: expected 1, got 5"),
        ("episode_index", 0, 1, "episode 2, frame 0, episode_index: expected 2, got 1"),
        ("task_index", 12, 7, "episode 4, task_index.*got 7"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, column: str, place: int, value: float, match: str) -> None:
    """Row n of the second data file: episodes 2 (0..5), 3 (6, 7) and 4 (8..12)."""
    path = write_v3(tmp_path / "s")
    edit_table(path / "data/chunk-000/file-001.parquet", column, replaced(place, value))
    if column == "timestamp":
        match = r"episode 4, frame 0, timestamp: expected 0 s .* got 0.53 s \(1 frames.*tolerance_s"
    with pytest.raises(DataError, match=match):
        LeRobotSource(path)
    if column == "timestamp":
        source = LeRobotSource(path, tolerance_s=0.6)
        assert any("up to 0.53 s off the grid" in note for note in source.notes)


@pytest.mark.parametrize(
    ("column", "place", "value", "match"),
    [
        ("dataset_from_index", 1, 5, "episode 1: expected dataset_from_index 4 and dataset_to_index 7, got 5 and 7"),
        ("length", 2, 5, "episode 2: expected dataset_from_index 7"),
        ("episode_index", 2, 7, r"expected episode 2, got episode 3|dataset_from_index"),
        ("videos/observation.images.front/to_timestamp", 1, 9.0, "episode 1, observation.images.front"),
        ("videos/observation.images.front/file_index", 1, 7, "episode 1: expected the file .*file-007.mp4"),
        ("data/file_index", 1, 1, "file-000.parquet: expected 4 rows"),
        ("data/chunk_index", 0, 3, "episode 0: expected the file .*chunk-003"),
    ],
)
def test_damaged_meta_is_named(tmp_path: Path, column: str, place: int, value: float, match: str) -> None:
    path = write_v3(tmp_path / "s")
    edit_table(path / "meta/episodes/chunk-000/file-000.parquet", column, replaced(place, value))
    with pytest.raises(DataError, match=match):
        LeRobotSource(path)


@pytest.mark.parametrize(
    ("key", "value"), [("total_frames", 21), ("total_episodes", 4), ("codebase_version", "v1.6"), ("fps", 0)]
)
def test_info_contradicts(tmp_path: Path, key: str, value: object) -> None:
    path = write_v2(tmp_path / "s")
    file = path / "meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(DataError, match=key):
        LeRobotSource(path)


def test_paths_lead_nowhere_else(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "s")
    file = path / "meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "data_path": "../{episode_index}.parquet"}))
    with pytest.raises(DataError, match="inside the dataset"):
        LeRobotSource(path)


def test_short_video_names_the_frame(tmp_path: Path) -> None:
    """The head of the file says 8 frames where episodes 1 and 2 need 9."""
    path = write_v3(tmp_path / "s")
    numbers = [*numbers_of(1, "front"), *numbers_of(2, "front")][:-1]
    write_video(path / "videos/observation.images.front/chunk-000/file-001.mp4", numbers, SIZES["front"])
    with pytest.raises(DataError, match=r"episode 2, observation\.images\.front, frame 5: expected 9 frames.*got 8"):
        LeRobotSource(path)


def test_frame_off_the_grid_is_refused(tmp_path: Path) -> None:
    """As many frames, but frame 2 stands where frame 3 should: no reader may shift the rest by one."""
    path = write_v3(tmp_path / "s")
    numbers = [*numbers_of(1, "front"), *numbers_of(2, "front")]
    file = path / "videos/observation.images.front/chunk-000/file-001.mp4"
    write_video(file, numbers, SIZES["front"], times=[0, 1, 3, 4, 5, 6, 7, 8, 9])
    source = LeRobotSource(path)
    with pytest.raises(DataError, match=r"episode 1, observation.images.front, frame 2: expected a picture at 0.2 s"):
        source.rows(1, "observation.images.front")


def test_other_damage(tmp_path: Path) -> None:
    path = write_v3(tmp_path / "s")
    video = path / "videos/observation.images.wrist/chunk-000/file-001.mp4"
    data = path / "data/chunk-000/file-001.parquet"
    edit_table(data, "observation.images.top", replaced(1, {"bytes": b"\x89PNG", "path": None}))
    edit_table(data, "action", replaced(2, None))
    source = LeRobotSource(path)
    with pytest.raises(DataError, match=r"episode 2, observation\.images\.top, frame 1"):
        source.rows(2, "observation.images.top")
    with pytest.raises(DataError, match="episode 2, action"):
        source.rows(2, "action")
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(DataError, match=r"file-001\.mp4, observation\.images\.wrist: expected a video"):
        LeRobotSource(path)
    data.write_bytes(data.read_bytes()[:500])
    with pytest.raises(DataError, match=r"file-001\.parquet: expected a whole parquet file"):
        LeRobotSource(path)
