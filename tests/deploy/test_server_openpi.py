"""The policy server with openpi's own client, and our encoding byte for byte beside openpi's.

Needs its own environment: `tests/peers/openpi.sh TARGET`, then ROBOT_RL_PEER_OPENPI=TARGET/bin/python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from served_policy import ServedPolicy, answer

from robot_rl.deploy import wire
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.server import PolicyServer, ServerOptions

PEER = os.environ.get("ROBOT_RL_PEER_OPENPI", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_OPENPI is not set (tests/peers/openpi.sh makes it)"),
]
NOISE = NoiseSource(NoiseRule.seeded, 4, (1, 3, 2))
_TALK = """
import sys
import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

client = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="k")
out = {"metadata": client.get_server_metadata(), "chunks": []}
image = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) + 7
for step in range(4):
    part = {"observation/joint_position": np.float64([step]), "observation/gripper_position": np.float32([2])}
    got = client.infer({**part, "images": {"cam_high": image}, "prompt": "pick up the cube"})
    out["chunks"].append(got["actions"])
    assert got["policy_timing"]["infer_ms"] >= 0 and got["server_timing"]["infer_ms"] >= 0
broker = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="k"), action_horizon=3)
obs = {"observation/joint_position": np.float32([0]), "observation/gripper_position": np.float32([0])}
out["played"] = [broker.infer({**obs, "images": {"cam_high": image}})["actions"] for _ in range(6)]
bad = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="k")
try:
    bad.infer({"prompt": "nothing else"})
except RuntimeError as error:
    out["error"] = str(error)
open(sys.argv[2], "wb").write(msgpack_numpy.packb(out))
"""
_PACK = """
import sys
import numpy as np
from openpi_client import msgpack_numpy
given = msgpack_numpy.unpackb(open(sys.argv[1], "rb").read())
open(sys.argv[2], "wb").write(msgpack_numpy.packb(given))
"""


def peer(code: str, *words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    done = subprocess.run([PEER, "-c", code, *words], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


def test_openpi_client_gets_its_chunks(tmp_path: Path) -> None:
    names = {
        "proprio": ("observation/joint_position", "observation/gripper_position"), "image/front": ("images/cam_high",),
    }  # fmt: skip
    policy = ServedPolicy(keys=("proprio", "image/front"), history=1)
    server = PolicyServer(policy, NOISE, ServerOptions(port=0, api_key="k", names=names))
    server.start()
    peer(_TALK, str(server.port), str(tmp_path / "out"))
    server.close()
    out: Any = wire.unpack((tmp_path / "out").read_bytes())
    assert out["metadata"]["horizon"] == 3
    for step, actions in enumerate(out["chunks"]):
        frame = np.float32([step, 2])
        base = answer(frame, frame, step) + np.float32(7e6)
        np.testing.assert_array_equal(actions, np.float32(base + NOISE.draw([0], [step])[0, 0]))
    for index, action in enumerate(out["played"]):
        base = np.float32(7e6 + 1000 * (index // 3))
        np.testing.assert_array_equal(action, np.float32(base + NOISE.draw([1], [index // 3])[0, 0, index % 3]))
    assert "DataError: observation, key 'observation/joint_position'" in out["error"]
    assert server.metrics.errors["DataError"] == 1  # openpi's client ends without a close frame, so it is "lost" too


def test_both_pack_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    message = {
        "state": rng.normal(size=7), "images": {"cam_high": rng.integers(0, 255, (3, 8, 8), np.uint8)}, "prompt": "pick",
        "actions": rng.normal(size=(5, 2)).astype(np.float32)[::2], "flag": np.bool_(True), "f": np.float32(0.1), "n": 3,
        "none": None, "list": [1.5, "x", b"y"], "big": np.arange(300, dtype=np.int64), "text": np.array(["a", "bc"]),
        "timing": {"infer_ms": 0.25}, "empty": np.zeros((0, 3), np.float32), "scalar": np.array(2.0),
    }  # fmt: skip
    ours = wire.pack(message)
    (tmp_path / "in").write_bytes(ours)
    peer(_PACK, str(tmp_path / "in"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == ours
