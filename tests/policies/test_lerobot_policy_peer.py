"""A LeRobot policy, served from LeRobot's own environment, answers our client as it answers LeRobot's recording loop.

Needs `tests/peers/lerobot.sh TARGET`, then ROBOT_RL_PEER_LEROBOT=TARGET/bin/python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from robot_rl.data.teacher_card import require_card
from robot_rl.data.teacher_card_file import load_teacher_card
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.policies.teacher_client import TeacherClient, TeacherClientConfig

PEER = os.environ.get("ROBOT_RL_PEER_LEROBOT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_LEROBOT is not set (tests/peers/lerobot.sh makes it)"),
]
ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "support" / "tiny_act.py")
CARD = """
name: tiny act
size: 2
control_hz: 10
semantics: {kind: delta, delta_reference: measured, frame: base, rotation: none, gripper: none, control_mode: delta_position}
scale: [0.5, 2]
keys: [proprio]
cameras: {observation.images.top: {source: top, height: 32, width: 32}}
"""


def test_it_answers_as_in_lerobots_recording_loop(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    folder, card = str(tmp_path / "act"), tmp_path / "card.yaml"
    card.write_text(CARD)
    subprocess.run([PEER, TINY, "make", folder], check=True, env=environment, timeout=400)
    env = make_env(PointReachConfig(image_size=32), num_envs=3, history=1)
    require_card(load_teacher_card(card), env.spec)
    observation = env.reset(range(3))
    np.savez(tmp_path / "in.npz", state=observation.proprio[:, 0], image=observation.images["top"][:, 0])
    words = [folder, str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    subprocess.run([PEER, TINY, "answer", *words], check=True, env=environment, timeout=400)
    wanted = np.load(tmp_path / "out.npy") * np.float32([0.5, 2])
    server = str(ROOT / "examples" / "teacher_servers" / "serve_lerobot.py")
    process = subprocess.Popen(
        [PEER, server, "--policy", folder, "--device", "cpu", "--port", "0"], stdout=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("listening on "))
        config = TeacherClientConfig(
            uri=f"ws://127.0.0.1:{line.split()[-1]}", card=str(card), names={"proprio": "observation.state"}
        )
        teacher = TeacherClient(config, spec=env.spec, build=lambda *_: None, load=lambda *_: None)
        found = [torch.as_tensor(teacher.label(observation).actions).numpy() for _ in range(2)]
        teacher.close()
    finally:
        process.kill()
        process.wait()
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)
    assert np.ptp(wanted, axis=0).max() > 1e-3  # it looks at what it is shown
