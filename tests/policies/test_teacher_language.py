"""A small policy that sees and is told, trained on two instructions, served from another process over openpi's wire."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

import two_discs

from robot_rl.data.teacher_card import require_card
from robot_rl.data.teacher_card_file import load_teacher_card
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import DeployError
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig
from robot_rl.policies.teacher_client import TeacherClient, TeacherClientConfig
from robot_rl.types import Observation

CARD = """
name: two discs
size: 2
control_hz: 10
semantics: {kind: delta, delta_reference: measured, frame: base, rotation: none, gripper: none, control_mode: delta_position}
keys: [proprio]
cameras: {observation/image: {source: top, height: 32, width: 32}}
needs_instruction: true
"""
EPISODES, STEPS = 30, 25


def reached(teacher: AskedTeacher, scene: torch.Tensor, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Which episodes ended at the red disc, and which at the green one (N,)."""
    point, image = scene[:, :2].clone(), two_discs.seen(scene)
    for _ in range(STEPS):
        observation = Observation(
            proprio=point[:, None], images={"top": image[:, None]}, instruction=(text,) * len(scene)
        )
        point = (point + two_discs.STEP_M * teacher.label(observation).clamp(-1, 1)).clamp(-1, 1)
    near = [(point - scene[:, place : place + 2]).norm(dim=1) <= two_discs.REACHED_M for place in (2, 4)]
    return near[0], near[1]


def test_another_instruction_is_another_goal(tmp_path: Path) -> None:
    two_discs.save(two_discs.train(), tmp_path / "policy")
    card = tmp_path / "card.yaml"
    card.write_text(CARD)
    spec = make_env(PointReachConfig(image_size=two_discs.SIZE), num_envs=1, history=1).spec
    require_card(load_teacher_card(card), spec)
    words = [sys.executable, two_discs.__file__, str(tmp_path / "policy"), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().split()[-1]
        config = TeacherClientConfig(
            uri=f"ws://127.0.0.1:{port}", card=str(card), names={"proprio": "observation/state"}
        )
        client = TeacherClient(config, spec=spec, build=lambda *_: None, load=lambda *_: None)
        teacher = AskedTeacher(client, CallConfig(retries=0))
        scene = two_discs.scenes(EPISODES, seed=1)  # none of training's
        for number, text in enumerate(two_discs.INSTRUCTIONS):
            at = reached(teacher, scene, text)
            assert int(at[number].sum()) >= 0.9 * EPISODES, (text, [int(each.sum()) for each in at])
            assert int(at[1 - number].sum()) == 0
        with pytest.raises(DeployError, match="ValueError"):
            reached(teacher, scene[:1], "move to the blue disc")
        teacher.close()
    finally:
        process.kill()
        process.wait()
