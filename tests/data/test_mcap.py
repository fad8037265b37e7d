"""Bags written by mcap_ros2's writer and by rclpy's serialiser, resampled to values known in closed form, and broken.

Joint a moves as t, joint b as 10 t (t in seconds of the stamp); image red tells the frame. So a row's value is the time
of its message, and its age follows.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.known import detect_format
from robot_rl.data.formats.mcap_file import McapFile
from robot_rl.data.formats.mcap_source import McapSource
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.runs.config import convert_config

pytest.importorskip("mcap_ros2")
from mcap_ros2.writer import Writer

BEGIN = 1_700_000_000_000_000_000
LINE = "=" * 80
TIME = f"{LINE}\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
HEADER = f"{LINE}\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n{TIME}"
VECTOR = f"{LINE}\nMSG: geometry_msgs/Vector3\nfloat64 x\nfloat64 y\nfloat64 z\n"
TURN = f"{LINE}\nMSG: geometry_msgs/Quaternion\nfloat64 x\nfloat64 y\nfloat64 z\nfloat64 w\n"
DEFINITIONS = {
    "sensor_msgs/msg/JointState": "std_msgs/Header header\nstring[] name\n"
    f"float64[] position\nfloat64[] velocity\nfloat64[] effort\n{HEADER}",
    "std_msgs/msg/Float64MultiArray": "std_msgs/MultiArrayLayout layout\nfloat64[] data\n"
    f"{LINE}\nMSG: std_msgs/MultiArrayLayout\nstd_msgs/MultiArrayDimension[] dim\nuint32 data_offset\n"
    f"{LINE}\nMSG: std_msgs/MultiArrayDimension\nstring label\nuint32 size\nuint32 stride\n",
    "geometry_msgs/msg/PoseStamped": f"std_msgs/Header header\ngeometry_msgs/Pose pose\n{HEADER}"
    f"{LINE}\nMSG: geometry_msgs/Pose\ngeometry_msgs/Point position\ngeometry_msgs/Quaternion orientation\n"
    f"{LINE}\nMSG: geometry_msgs/Point\nfloat64 x\nfloat64 y\nfloat64 z\n{TURN}",
    "geometry_msgs/msg/WrenchStamped": f"std_msgs/Header header\ngeometry_msgs/Wrench wrench\n{HEADER}"
    f"{LINE}\nMSG: geometry_msgs/Wrench\ngeometry_msgs/Vector3 force\ngeometry_msgs/Vector3 torque\n{VECTOR}",
    "sensor_msgs/msg/Image": "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\n"
    f"uint32 step\nuint8[] data\n{HEADER}",
    "sensor_msgs/msg/CompressedImage": f"std_msgs/Header header\nstring format\nuint8[] data\n{HEADER}",
    "trajectory_msgs/msg/JointTrajectory": "std_msgs/Header header\nstring[] joint_names\n"
    f"trajectory_msgs/JointTrajectoryPoint[] points\n{HEADER}"
    f"{LINE}\nMSG: trajectory_msgs/JointTrajectoryPoint\nfloat64[] positions\nfloat64[] velocities\nfloat64[] accelerations\n"
    "float64[] effort\nbuiltin_interfaces/Duration time_from_start\n"
    f"{LINE}\nMSG: builtin_interfaces/Duration\nint32 sec\nuint32 nanosec\n",
    "std_msgs/msg/Bool": "bool data\n",
    "std_msgs/msg/String": "string data\n",
}
Message = tuple[float, str, str, Any]  # log time in s after BEGIN, topic, type, content


def header(at: float | None, frame: str = "base") -> dict[str, Any]:
    stamp = 0 if at is None else BEGIN + round(at * 1e9)
    return {"stamp": {"sec": stamp // 10**9, "nanosec": stamp % 10**9}, "frame_id": frame}


def joints(at: float, *, log: float | None = None, names: str = "ab", **changes: Any) -> Message:
    """Joints a = t and b = 10 t, velocities 1 and 10, in the order of `names`."""
    by_name = {"a": (at, 1.0), "b": (10 * at, 10.0), "g": (-at, -1.0)}
    content = {
        "header": header(at), "name": list(names), "position": [by_name[n][0] for n in names],
        "velocity": [by_name[n][1] for n in names], "effort": [], **changes,
    }  # fmt: skip
    return (at if log is None else log, "/joint_states", "sensor_msgs/msg/JointState", content)


def command(at: float, value: float) -> Message:
    layout: dict[str, Any] = {"dim": [], "data_offset": 0}
    return (at, "/commands", "std_msgs/msg/Float64MultiArray", {"layout": layout, "data": [value, -value]})


def picture(number: int) -> np.ndarray:
    """(4, 6, 3) RGB: red tells the frame, green 7, blue 200."""
    return np.broadcast_to(np.array([number, 7, 200], np.uint8), (4, 6, 3)).copy()


def image(at: float, number: int, *, encoding: str = "rgb8", padding: int = 0) -> Message:
    pixels = picture(number)[..., :: 1 if encoding == "rgb8" else -1].reshape(4, 18)
    data = np.concatenate([pixels, np.zeros((4, padding), np.uint8)], axis=1).tobytes()
    content = {
        "header": header(at),
        "height": 4,
        "width": 6,
        "encoding": encoding,
        "is_bigendian": 0,
        "step": 18 + padding,
    }
    return (at, "/camera", "sensor_msgs/msg/Image", {**content, "data": data})


def word(at: float, text: str) -> Message:
    return (at, "/episode", "std_msgs/msg/String", {"data": text})


def write(path: Path, messages: list[Message], *, finish: bool = True, chunk: int = 2000) -> Path:
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=chunk)
        schemas = {kind: writer.register_msgdef(kind, DEFINITIONS[kind]) for kind in {m[2] for m in messages}}
        for at, topic, kind, content in messages:
            writer.write_message(topic, schemas[kind], content, log_time=BEGIN + round(at * 1e9))
        if finish:
            writer.finish()
    return path


def arm(*, stop: float = 2.0) -> list[Message]:
    """Joints at 100 Hz, commands at 20 Hz in between (value k), both until `stop`."""
    states = [joints(k / 100) for k in range(round(stop * 100) + 1)]
    commands = [command(0.012 + k / 20, float(k)) for k in range(round(stop * 20))]
    return sorted([*states, *commands], key=lambda message: message[0])


STREAMS = {
    "proprio": {"topic": "/joint_states", "joints": ["a", "b"]},
    "action": {"topic": "/commands", "align": "log"},
}
OPTIONS: dict[str, Any] = {"rate_hz": 20, "align": "header", "max_gap_s": 0.06, "streams": STREAMS, "episodes": "bag"}


def opened(path: Path, **changes: Any) -> McapSource:
    return McapSource(path, **{**OPTIONS, **changes})


def joint_only(**entries: Any) -> dict[str, Any]:
    return {"proprio": {"topic": "/joint_states", "joints": ["a", "b"], **entries}}


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as error:
        action()
    return str(error.value)


def test_latest_message_not_newer(tmp_path: Path) -> None:
    """The grid begins when all have been heard (0.012): joints are 2 ms old at every row, commands 0."""
    source = opened(write(tmp_path / "bag.mcap", arm()))
    (episode,) = source.episodes
    grid = 0.012 + np.arange(episode.steps) / 20
    assert episode.steps == 40
    assert grid[-1] <= 2.0
    np.testing.assert_allclose(
        source.rows(0, "proprio"), np.stack([grid - 0.002, 10 * (grid - 0.002)], axis=1), atol=1e-12
    )
    np.testing.assert_array_equal(source.rows(0, "action"), np.stack([np.arange(40), -np.arange(40)], axis=1))
    np.testing.assert_allclose(source.rows(0, "age/proprio"), 0.002, atol=1e-9)
    np.testing.assert_array_equal(source.rows(0, "age/action"), 0)
    np.testing.assert_allclose(source.rows(0, "time"), np.arange(40) / 20)
    assert episode.metadata["begin_unix_ns"] == BEGIN + 12_000_000
    assert episode.metadata["ages_s"]["proprio"] == pytest.approx({"mean": 0.002, "max": 0.002})
    assert source.facts["streams"]["action"]["align"] == "log"
    assert source.declared["control_hz"] == 20


def test_next_command_answers_what_was_seen(tmp_path: Path) -> None:
    """With `next` the grid begins at the first joint message, and row k has the command 12 ms behind it."""
    streams = {**STREAMS, "action": {"topic": "/commands", "align": "log", "take": "next"}}
    source = opened(write(tmp_path / "bag.mcap", arm()), streams=streams)
    assert source.episodes[0].steps == 40  # the row at 2.0 s has no command behind it
    np.testing.assert_allclose(source.rows(0, "proprio")[:, 0], np.arange(40) / 20, atol=1e-12)
    np.testing.assert_array_equal(source.rows(0, "action")[:, 0], np.arange(40))
    np.testing.assert_allclose(source.rows(0, "age/action"), -0.012, atol=1e-9)


def test_header_and_log_clocks_differ(tmp_path: Path) -> None:
    """Messages that arrive 30 ms late: by header a = t, by log a = t - 0.03."""
    path = write(tmp_path / "bag.mcap", [joints(k / 100, log=k / 100 + 0.03) for k in range(101)])
    by_header, by_log = (opened(path, streams=joint_only(align=align)) for align in ("header", "log"))
    np.testing.assert_allclose(by_header.rows(0, "proprio")[:, 0], np.arange(21) / 20, atol=1e-12)
    np.testing.assert_allclose(by_log.rows(0, "proprio")[:, 0], np.arange(21) / 20, atol=1e-12)
    assert by_log.episodes[0].metadata["begin_unix_ns"] - by_header.episodes[0].metadata["begin_unix_ns"] == 30_000_000
    mixed = {**joint_only(), "late": {"topic": "/joint_states", "joints": ["a"], "align": "log", "max_gap_s": 0.02}}
    values = opened(path, streams=mixed)
    late = (values.rows(0, "proprio")[:, 0] - values.rows(0, "late")[:, 0])[:-1]  # at the last row joints are older
    np.testing.assert_allclose(late, 0.03, atol=1e-12)


def test_names_not_order(tmp_path: Path) -> None:
    """The order in the message changes from message to message; a gripper speaks on the same topic."""
    orders = itertools.cycle(["ab", "ba", "gba"])
    messages = [joints(k / 100, names=next(orders)) for k in range(101)]
    messages += [joints(k / 100 + 0.004, names="g") for k in range(101)]
    streams = {**joint_only(), "speed": {"topic": "/joint_states", "joints": ["b"], "field": "velocity"}}
    source = opened(write(tmp_path / "bag.mcap", sorted(messages, key=lambda m: m[0])), streams=streams)
    rows = source.rows(0, "proprio")
    np.testing.assert_allclose(rows[:, 1], 10 * rows[:, 0], atol=1e-12)
    np.testing.assert_allclose(rows[:, 0], np.arange(len(rows)) / 20, atol=1e-12)
    np.testing.assert_array_equal(source.rows(0, "speed"), 10)


def test_trajectories_of_one_point_are_commands(tmp_path: Path) -> None:
    """By name too, with a stamp of zero as the controller wants it; a plan of two points is refused."""
    kind = "trajectory_msgs/msg/JointTrajectory"

    def goal(at: float, count: int = 1) -> Message:
        point = {"positions": [-at, at], "velocities": [], "accelerations": [], "effort": []}
        points = [{**point, "time_from_start": {"sec": 0, "nanosec": 0}}] * count
        return (at, "/goal", kind, {"header": header(None), "joint_names": ["b", "a"], "points": points})

    streams = {"action": {"topic": "/goal", "joints": ["a", "b"], "align": "log"}}
    source = opened(write(tmp_path / "bag.mcap", [goal(k / 20) for k in range(21)]), streams=streams)
    grid = np.arange(21) / 20
    np.testing.assert_allclose(source.rows(0, "action"), np.stack([grid, -grid], axis=1), atol=1e-12)
    source = opened(
        write(tmp_path / "plan.mcap", [goal(k / 20, 2 if k == 9 else 1) for k in range(21)]), streams=streams
    )
    text = refusal(lambda: source.rows(0, "action"))
    assert "2 points" in text
    assert "step 9" in text


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (joints(0.5, names="ag"), ["no b", "step 10"]),
        (joints(0.5, names="aab"), ["a twice", "step 10"]),
        (joints(0.5, position=[1.0]), ["1 numbers", "position"]),
    ],
)
def test_joint_states_that_do_not_fit(tmp_path: Path, bad: Message, words: list[str]) -> None:
    messages = [bad if k == 50 else joints(k / 100) for k in range(101)]
    source = opened(write(tmp_path / "bag.mcap", messages), streams=joint_only())
    text = refusal(lambda: source.rows(0, "proprio"))
    assert all(word in text for word in [*words, "/joint_states"]), text


def test_joints_must_be_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "bag.mcap", [joints(k / 100) for k in range(101)])
    assert "a, b" in refusal(lambda: opened(path, streams={"proprio": "/joint_states"}))
    text = refusal(lambda: opened(path, streams=joint_only(joints=["a", "b"], field="effort")).rows(0, "proprio"))
    assert "does not measure effort" in text


def test_a_gap_refuses_or_splits(tmp_path: Path) -> None:
    """Joints are silent from 0.5 to 1.0 s: rows up to 0.55 hold (age 0.06 at most), and again from 1.0 s."""
    path = write(tmp_path / "bag.mcap", [joints(k / 100) for k in range(201) if not 50 < k < 100])
    text = refusal(lambda: opened(path, streams=joint_only()).rows(0, "proprio"))
    assert "stream 'proprio' (/joint_states), step 12, 0.600 s" in text
    assert "0.100 s before it (8 such steps)" in text
    source = opened(path, streams=joint_only(), on_gap="split")
    assert [(e.name, e.steps) for e in source.episodes] == [("bag part 0", 12), ("bag part 1", 21)]
    np.testing.assert_allclose(source.rows(0, "age/proprio"), [0] * 11 + [0.05], atol=1e-9)
    np.testing.assert_allclose(source.rows(1, "proprio")[:, 0], 1 + np.arange(21) / 20, atol=1e-12)
    assert any("8 rows are in gaps; 2 parts" in note for note in source.notes)


def test_order_duplicates_and_clocks_that_jump(tmp_path: Path) -> None:
    messages = [joints(k / 100) for k in range(101)]
    messages[20], messages[21] = messages[21], messages[20]
    messages.insert(31, joints(0.30, position=[7.0, 70.0]))
    source = opened(write(tmp_path / "bag.mcap", messages), streams=joint_only())
    expected = np.arange(21) / 20
    expected[6] = 7.0  # of two messages with the stamp 0.30 the one that came last
    np.testing.assert_allclose(source.rows(0, "proprio")[:, 0], expected, atol=1e-12)
    assert any("1 messages came out of order (by 0.010 s" in note for note in source.notes)
    assert any("1 messages have the stamp of the next one" in note for note in source.notes)
    again = [joints(k / 100) for k in range(201)] + [joints(k / 100, log=2 + k / 100) for k in range(101)]
    text = refusal(lambda: opened(write(tmp_path / "jump.mcap", again), streams=joint_only()))
    assert "message 201" in text
    assert "2.000 s before" in text


def test_stamps_of_zero_and_headers_that_are_not_there(tmp_path: Path) -> None:
    zero = [joints(k / 100, header=header(None)) for k in range(101)]
    path = write(tmp_path / "zero.mcap", zero)
    assert "align: log" in refusal(lambda: opened(path, streams=joint_only()))
    assert opened(path, streams=joint_only(align="log")).episodes[0].steps == 21
    path = write(tmp_path / "arm.mcap", arm())
    text = refusal(lambda: opened(path, streams={**STREAMS, "action": "/commands"}))
    assert "align: log" in text
    assert "Float64MultiArray" in text
    simulated = [joints(k / 100, log=1000 + k / 100) for k in range(101)] + [word(1000, "start"), word(1001, "stop")]
    path = write(tmp_path / "sim.mcap", sorted(simulated, key=lambda m: m[0]))
    marks = {"topic": "/episode", "begin": ["start"], "end": ["stop"]}
    assert "1000.000 s" in refusal(lambda: opened(path, streams=joint_only(), episodes=marks))


def test_images_poses_and_forces(tmp_path: Path) -> None:
    """Raw RGB and BGR with padded rows, PNG, a pose (x y z, x y z w) and a wrench; a 10 Hz camera repeats at 20 Hz."""
    buffer = io.BytesIO()
    Picture.fromarray(picture(99)).save(buffer, format="PNG")
    messages: list[Message] = []
    for k in range(11):
        at = k / 10
        messages.append(image(at, k, encoding="bgr8" if k % 2 else "rgb8", padding=k % 3))
        packed = {"header": header(at), "format": "rgb8; png compressed", "data": buffer.getvalue()}
        messages.append((at, "/packed", "sensor_msgs/msg/CompressedImage", packed))
        pose = {"position": {"x": at, "y": 2, "z": 3}, "orientation": {"x": 0, "y": 0, "z": 0.6, "w": 0.8}}
        messages.append((at, "/pose", "geometry_msgs/msg/PoseStamped", {"header": header(at), "pose": pose}))
        wrench = {"force": {"x": 1, "y": 2, "z": 3}, "torque": {"x": 4, "y": 5, "z": at}}
        messages.append((at, "/wrench", "geometry_msgs/msg/WrenchStamped", {"header": header(at), "wrench": wrench}))
    streams = {"camera": "/camera", "packed": "/packed", "pose": "/pose", "wrench": "/wrench"}
    source = opened(write(tmp_path / "bag.mcap", messages), streams=streams)
    frames = source.rows(0, "camera")
    assert frames.shape == (21, 4, 6, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, np.stack([picture(k // 2) for k in range(21)]))
    np.testing.assert_array_equal(source.rows(0, "packed")[-1], picture(99))
    np.testing.assert_allclose(source.rows(0, "pose")[3], [0.1, 2, 3, 0, 0, 0.6, 0.8])
    np.testing.assert_allclose(source.rows(0, "wrench")[-1], [1, 2, 3, 4, 5, 1.0])
    np.testing.assert_allclose(source.rows(0, "age/camera"), [0.05 * (k % 2) for k in range(21)], atol=1e-9)
    messages[0][3]["encoding"] = "16UC1"
    assert "16UC1" in refusal(lambda: opened(write(tmp_path / "depth.mcap", messages), streams={"camera": "/camera"}))
    messages[10][3]["header"]["frame_id"] = "tool"
    moved = opened(write(tmp_path / "moved.mcap", messages), streams={"pose": "/pose"})
    assert "frame 'base'" in refusal(lambda: moved.rows(0, "pose"))


def test_episodes_by_words(tmp_path: Path) -> None:
    """start, success | start, start (again), failure | start, discard | start (never ends)."""
    said = [(0.2, "start"), (0.6, "success"), (0.7, "start"), (0.9, "start"), (1.2, "failure"), (1.3, "start")]
    said += [(1.5, "discard"), (1.8, "start")]
    messages = sorted([*arm(), *(word(at, text) for at, text in said)], key=lambda m: m[0])
    marks = {"topic": "/episode", "begin": ["start"], "end": ["success", "failure"], "success": ["success"]}
    path = write(tmp_path / "bag.mcap", messages)
    source = opened(path, episodes={**marks, "drop": ["discard"]})
    assert [(e.name, e.steps) for e in source.episodes] == [("bag episode 0", 9), ("bag episode 1", 7)]
    np.testing.assert_allclose(source.rows(0, "proprio")[:, 0], 0.2 + np.arange(9) / 20, atol=1e-12)
    np.testing.assert_array_equal(source.rows(0, "success"), [0] * 8 + [1])
    np.testing.assert_array_equal(source.rows(1, "success"), 0)
    notes = " ".join(source.notes)
    assert "1 episodes were dropped" in notes
    assert "1 episodes began anew" in notes
    assert "1.800 s never ended" in notes
    assert "'discard'" in refusal(lambda: opened(path, episodes=marks))


def test_episodes_by_bool_and_by_times(tmp_path: Path) -> None:
    flags = [(at / 10, "/active", "std_msgs/msg/Bool", {"data": 3 <= at < 8 or 12 <= at < 15}) for at in range(20)]
    path = write(tmp_path / "bag.mcap", sorted([*arm(), *flags], key=lambda m: m[0]))
    by_bool = opened(path, episodes={"topic": "/active"})
    by_times = opened(path, episodes={"times": [[0.3, 0.8], [1.2, 1.5]]})
    for source in (by_bool, by_times):
        assert [e.steps for e in source.episodes] == [11, 7]
        np.testing.assert_allclose(source.rows(1, "proprio")[:, 0], 1.2 + np.arange(7) / 20, atol=1e-12)
    assert "0..2.000 s" in refusal(lambda: opened(path, episodes={"times": [[1.0, 3.0]]}))


def test_a_state_that_is_said_once(tmp_path: Path) -> None:
    done = [(1.02, "/done", "std_msgs/msg/Bool", {"data": True})]
    path = write(tmp_path / "bag.mcap", sorted([*arm(), *done], key=lambda m: m[0]))
    streams = {**STREAMS, "done": {"topic": "/done", "align": "log", "max_gap_s": None, "initial": 0.0}}
    source = opened(path, streams=streams)
    grid = 0.012 + source.rows(0, "time")
    np.testing.assert_array_equal(source.rows(0, "done")[:, 0], grid >= 1.02)


def test_a_recorder_that_was_killed(tmp_path: Path) -> None:
    """Cut at any byte: what is whole is read and the rest is named; never more than was written, never other values."""
    whole = write(tmp_path / "whole.mcap", [joints(k / 100) for k in range(201)])
    full = opened(whole, streams=joint_only()).rows(0, "proprio")
    content = whole.read_bytes()
    for size in (len(content) * 6 // 10, len(content) // 3):
        cut = tmp_path / "cut.mcap"
        cut.write_bytes(content[:size])
        source = opened(cut, streams=joint_only())
        rows = source.rows(0, "proprio")
        assert 2 <= len(rows) < len(full)
        np.testing.assert_array_equal(rows, full[: len(rows)])
        assert any("no footer" in note and "messages in whole records" in note for note in source.notes)
    cut.write_bytes(content[:size] + bytes(1000))  # a file system that fills up with zeros
    np.testing.assert_array_equal(opened(cut, streams=joint_only()).rows(0, "proprio"), rows)


def test_messages_outside_of_chunks(tmp_path: Path) -> None:
    """rosbag2's noChunking: the same rows, with a word about checksums."""
    from mcap.writer import Writer as RawWriter

    chunked = McapFile(write(tmp_path / "chunked.mcap", arm()))
    with (tmp_path / "plain.mcap").open("wb") as file:
        writer = RawWriter(file, use_chunking=False)
        writer.start(profile="ros2", library="test")
        channels: dict[str, int] = {}
        for message in chunked.messages():
            topic, kind = chunked.topics[message.channel], chunked.types[message.channel]
            if topic not in channels:
                schema = writer.register_schema(kind, "ros2msg", DEFINITIONS[kind].encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], message.log_ns, message.data, message.log_ns)
        writer.finish()
    one, other = opened(tmp_path / "plain.mcap"), opened(tmp_path / "chunked.mcap")
    for key in ("proprio", "action", "age/proprio"):
        np.testing.assert_array_equal(one.rows(0, key), other.rows(0, key))
    assert any("241 messages lie outside of chunks" in note for note in one.notes)
    assert not any("outside of chunks" in note for note in other.notes)


def test_damage_is_named_by_byte(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.mcap", [joints(k / 100) for k in range(201)]).read_bytes()
    rng, path, outcomes = np.random.default_rng(0), tmp_path / "bad.mcap", []
    good = opened(tmp_path / "whole.mcap", streams=joint_only()).rows(0, "proprio")
    for place in rng.integers(len(content) // 20, len(content) * 3 // 5, 40).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            rows = opened(path, streams=joint_only()).rows(0, "proprio")
        except DataError as error:
            outcomes.append("record at byte" in str(error))
        else:
            np.testing.assert_array_equal(rows, good)  # a bit in an index that is not needed
    assert sum(outcomes) > 10
    assert all(outcomes)


def test_rosbag2_folder_of_several_files(tmp_path: Path) -> None:
    """A bag split by size is one recording; rows go on over the seam."""
    folder = tmp_path / "demo"
    folder.mkdir()
    messages = arm()
    write(folder / "demo_0.mcap", messages[:100])
    write(folder / "demo_1.mcap", messages[100:])
    said = "rosbag2_bagfile_information:\n  version: 9\n  storage_identifier: {}\n  compression_mode: '{}'\n"
    said += "  relative_file_paths: [demo_0.mcap, demo_1.mcap]\n"
    (folder / "metadata.yaml").write_text(said.format("mcap", ""))
    assert detect_format(folder) == "mcap"
    one = opened(write(tmp_path / "one.mcap", messages))
    for path in (folder, tmp_path / "bags"):
        if path.name == "bags":
            path.mkdir()
            folder.rename(path / "demo")
        source = opened(path)
        assert [e.name for e in source.episodes] == ["demo"]
        for key in ("proprio", "action", "age/proprio"):
            np.testing.assert_array_equal(source.rows(0, key), one.rows(0, key))
    (path / "demo" / "metadata.yaml").write_text(said.format("sqlite3", ""))
    text = refusal(lambda: opened(path / "demo"))
    assert "ros2 bag convert" in text
    assert ".db3" in text
    (path / "demo" / "metadata.yaml").write_text(said.format("mcap", "FILE"))
    assert "mode FILE" in refusal(lambda: opened(path / "demo"))
    (path / "demo" / "metadata.yaml").write_text(said.format("mcap", ""))
    (path / "demo" / "demo_1.mcap").unlink()
    assert "demo_1.mcap" in refusal(lambda: opened(path / "demo"))


def test_what_is_not_stated_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "bag.mcap", arm())
    text = refusal(lambda: McapSource(path))
    assert "no rate_hz, align, max_gap_s, streams, episodes" in text
    assert "/joint_states: sensor_msgs/msg/JointState, 201 messages" in text
    assert "streams:" in text
    assert "Did you mean '/commands'" in refusal(
        lambda: opened(path, streams={"x": {"topic": "/command", "align": "log"}})
    )
    assert "'topik'" in refusal(lambda: opened(path, streams={"x": {"topik": "/commands"}}))
    assert "log or header" in refusal(lambda: opened(path, align="receive"))
    (tmp_path / "empty.mcap").write_bytes(b"")
    assert "another beginning, or an empty file" in refusal(lambda: opened(tmp_path / "empty.mcap"))


def card(**changes: Any) -> SpecCard:
    said = {
        "env_id": "reach", "robot": "arm", "control_hz": 20, "max_episode_steps": 100, "joint_names": ["a", "b"],
        "action_semantics": {
            "kind": "absolute", "delta_reference": "none", "frame": "joint", "rotation": "none", "gripper": "none",
            "control_mode": "forward_position_controller",
        },
        "action": {"keys": ["action"], "units": ["rad"], "meanings": ["a", "b"]},
        "observation": {"proprio": {"keys": ["proprio"], "units": ["rad"], "meanings": ["a", "b"]}},
        "source": "teleop", "success": "last_step", "timestamp_key": "time", "timestamp_from_start": True, **changes,
    }  # fmt: skip
    return convert_config(SpecCard, said, where="card")


def test_import_to_a_store_and_numbers_that_are_none(tmp_path: Path) -> None:
    """Two bags, one with NaN in a message that a row takes: it is named, and left out with skip_bad."""
    folder = tmp_path / "bags"
    folder.mkdir()
    write(folder / "good.mcap", arm())
    bad = [joints(0.61, position=[0.61, float("nan")]) if m[:2] == (0.61, "/joint_states") else m for m in arm()]
    write(folder / "nan.mcap", bad)
    (folder / "zzz.mcap").write_bytes((folder / "good.mcap").read_bytes()[:200])  # cut before its first message
    source = opened(folder)
    assert [e.name for e in source.episodes] == ["good", "nan", "zzz"]
    reader = CardReader(source, card())
    text = refusal(lambda: reader.read(1))
    assert "nan" in text
    assert "step 12, element [1]" in text
    report = import_episodes(reader, tmp_path / "out.zarr", skip_bad=True)
    assert report.episodes == 1
    assert len(report.left_out) == 2
    assert "topic" in report.left_out[1]
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        episode = store.episode(0)
        assert len(episode) == 39
        assert store.metadata["import"]["rate_hz"] == 20
        np.testing.assert_allclose(episode.observation["proprio"][:, 0], 0.01 + np.arange(39) / 20, atol=1e-6)
        assert episode.metadata["ages_s"]["proprio"]["max"] == pytest.approx(0.002)


def test_messages_of_rclpy(tmp_path: Path) -> None:
    """The real message classes, serialised by Fast DDS's CDR (with its own padding bytes), read the same."""
    serialization = pytest.importorskip("rclpy.serialization")
    messages = pytest.importorskip("sensor_msgs.msg")
    from mcap.writer import Writer as RawWriter

    with (tmp_path / "ros.mcap").open("wb") as file:
        writer = RawWriter(file, chunk_size=2000)
        writer.start(profile="ros2", library="test")
        kind = "sensor_msgs/msg/JointState"
        channel = writer.register_channel(
            "/joint_states", "cdr", writer.register_schema(kind, "ros2msg", DEFINITIONS[kind].encode())
        )
        for k in range(101):
            at, _, _, content = joints(k / 100, names="ab" if k % 2 else "ba")
            message = messages.JointState()
            message.header.stamp.sec = content["header"]["stamp"]["sec"]
            message.header.stamp.nanosec = content["header"]["stamp"]["nanosec"]
            message.name, message.position, message.velocity = content["name"], content["position"], content["velocity"]
            log = BEGIN + round(at * 1e9)
            writer.add_message(channel, log, serialization.serialize_message(message), log)
        writer.finish()
    source = opened(tmp_path / "ros.mcap", streams=joint_only())
    np.testing.assert_allclose(source.rows(0, "proprio")[:, 0], np.arange(21) / 20, atol=1e-12)
    np.testing.assert_allclose(source.rows(0, "proprio")[:, 1], np.arange(21) / 2, atol=1e-12)


def test_many_bags_keep_one_open(tmp_path: Path) -> None:
    """Only places of rows stay in memory, and only the files of the bag that is read stay open."""
    folder = tmp_path / "bags"
    folder.mkdir()
    for number in range(30):
        write(folder / f"{number:02d}.mcap", [joints(k / 100) for k in range(21)])
    before = len(list(Path("/proc/self/fd").iterdir()))
    source = opened(folder, streams=joint_only())
    for index in (3, 29, 3, 0):
        assert len(source.rows(index, "proprio")) == 5
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    kept = [track for bag in source._bags if bag is not None for track in bag.tracks.values()]
    assert max(len(track.stamps_ns) for track in kept) == 1
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_logs_of_our_own_recorder(tmp_path: Path) -> None:
    """One file an episode; its metadata says whether it succeeded, how many were lost, and what is in it."""
    from robot_rl.hardware.raw_log import RawLog

    serialization = pytest.importorskip("rclpy.serialization")
    messages = pytest.importorskip("sensor_msgs.msg")
    from robot_rl.hardware.ros2_definitions import definition

    kind = "sensor_msgs/msg/JointState"
    for number, said in enumerate(("true", "false", "not said")):
        log = RawLog(tmp_path / f"episode_{number:06d}.mcap")
        log.add_topic("/joint_states", kind, definition(kind))
        for k in range(101):
            message = messages.JointState(name=["a", "b"], position=[k / 100, float(number)])
            log.add("/joint_states", serialization.serialize_message(message), log_ns=BEGIN + 10_000_000 * k)
        log.close({"success": said, "dropped": str(number)})
    source = opened(tmp_path, align="log", streams=joint_only())
    assert [e.name for e in source.episodes] == ["episode_000000", "episode_000001", "episode_000002"]
    for number in range(3):
        np.testing.assert_array_equal(source.rows(number, "proprio")[:, 1], number)
        np.testing.assert_array_equal(source.rows(number, "success"), [0] * 20 + [number == 0])
    assert source.episodes[1].metadata["recorder"]["success"] == "false"
    notes = " ".join(source.notes)
    assert "episode_000002: nobody said" in notes
    assert "episode_000001: its recorder dropped 1 messages" in notes


def test_places_lead_back_to_the_same_bytes(tmp_path: Path) -> None:
    file = McapFile(write(tmp_path / "bag.mcap", arm()))
    seen = list(file.messages())
    assert len(seen) == 241
    assert len({message.offset for message in seen}) > 3
    for message in reversed(seen):
        assert file.at(message.offset)[message.number] == message
    file.close()
