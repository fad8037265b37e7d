"""rosbag2 folders that rosbags 0.11.9 writes by itself (metadata.yaml, MCAP, CDR, definitions) are read.

Needs its own environment: `tests/peers/rosbags.sh TARGET`, then ROBOT_RL_PEER_ROSBAGS=TARGET/bin/python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.formats.mcap_source import McapSource
from robot_rl.errors import DataError

PEER = os.environ.get("ROBOT_RL_PEER_ROSBAGS", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_ROSBAGS is not set (tests/peers/rosbags.sh makes it)"),
]
# Joints at 100 Hz (a = t, b = 10 t, in changing order), commands k at 20 Hz, 2 ms behind.
_WRITE = """
import sys
from pathlib import Path
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

store = get_typestore(Stores.ROS2_JAZZY)
kinds = store.types
with Writer(Path(sys.argv[1]), version=9, storage_plugin=StoragePlugin[sys.argv[2]]) as writer:
    joints = writer.add_connection("/joint_states", "sensor_msgs/msg/JointState", typestore=store)
    commands = writer.add_connection("/commands", "std_msgs/msg/Float64MultiArray", typestore=store)
    for k in range(201):
        at = 1_700_000_000_000_000_000 + k * 10_000_000
        stamp = kinds["builtin_interfaces/msg/Time"](sec=at // 10**9, nanosec=at % 10**9)
        header = kinds["std_msgs/msg/Header"](stamp=stamp, frame_id="base")
        order = [1, 0] if k % 2 else [0, 1]
        none = np.zeros(0)
        message = kinds["sensor_msgs/msg/JointState"](
            header=header, name=[["a", "b"][i] for i in order], velocity=none, effort=none,
            position=np.array([k / 100, k / 10])[order],
        )
        writer.write(joints, at, store.serialize_cdr(message, "sensor_msgs/msg/JointState"))
        if k % 5 == 0:
            layout = kinds["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
            message = kinds["std_msgs/msg/Float64MultiArray"](layout=layout, data=np.array([k / 5]))
            writer.write(commands, at + 2_000_000, store.serialize_cdr(message, "std_msgs/msg/Float64MultiArray"))
"""
STREAMS = {
    "proprio": {"topic": "/joint_states", "joints": ["a", "b"]},
    "action": {"topic": "/commands", "align": "log", "take": "next"},
}


def opened(path: Path) -> McapSource:
    return McapSource(path, rate_hz=20, align="header", max_gap_s=0.06, streams=STREAMS, episodes="bag")


def require_rows(source: McapSource) -> None:
    assert [episode.steps for episode in source.episodes] == [41]
    grid = np.arange(41) / 20
    np.testing.assert_allclose(source.rows(0, "proprio"), np.stack([grid, 10 * grid], axis=1), atol=1e-12)
    np.testing.assert_array_equal(source.rows(0, "action")[:, 0], np.arange(41))
    np.testing.assert_allclose(source.rows(0, "age/action"), -0.002, atol=1e-9)


def test_a_bag_of_another_writer(tmp_path: Path) -> None:
    subprocess.run([PEER, "-c", _WRITE, str(tmp_path / "bag"), "MCAP"], check=True)
    require_rows(opened(tmp_path / "bag"))


def test_the_conversion_that_the_error_names(tmp_path: Path) -> None:
    subprocess.run([PEER, "-c", _WRITE, str(tmp_path / "old"), "SQLITE3"], check=True)
    with pytest.raises(DataError, match=r"rosbags-convert --src .*old --dst NEW --dst-storage mcap"):
        opened(tmp_path / "old")
    convert = str(Path(PEER).parent / "rosbags-convert")
    words = ["--src", str(tmp_path / "old"), "--dst", str(tmp_path / "new"), "--dst-storage", "mcap"]
    subprocess.run([convert, *words], check=True)
    require_rows(opened(tmp_path / "new"))
