"""A person made of rules collects PickCube through the real page: real command, real Chromium, real key events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import virtual_operator
from virtual_operator import CHROMIUM, Hands, Operator, in_goal

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.data.store import EpisodeStore
from robot_rl.types import Source

GOAL_STATE = slice(26, 29)  # of PickCube's state: place of the goal, and of the cube behind it
CUBE_STATE = slice(29, 32)


def seen(tool: tuple[float, float, float], *, finger: float, seconds: float = 1.0) -> dict[str, Any]:
    """A view with the cube at (0.5, 0, 0.02) and the goal at (0.5, 0.2, 0.2)."""
    return {
        "pose": (*tool, 0.0, 1.0, 0.0, 0.0), "scene": {"cube": (0.5, 0.0, 0.02), "goal_site": (0.5, 0.2, 0.2)},
        "proprio": {"qpos[7]": finger}, "episode": {"seconds": seconds},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "finger", "phase", "keys"),
    [
        ((0.4, 0.1, 0.08), 0.04, "over", {"Space", "KeyW", "KeyD"}),  # fast: forward and right, the height is right
        ((0.53, 0.0, 0.08), 0.04, "over", {"Space", "KeyS", "ShiftLeft"}),  # near, so slowly
        ((0.5, 0.0, 0.15), 0.04, "down", {"Space", "KeyQ"}),
        ((0.5, 0.0, 0.15), 0.02, "down", {"Space", "KeyQ", "KeyR"}),  # it must be open
        ((0.5, 0.0, 0.025), 0.04, "grasp", {"Space", "KeyF"}),
        ((0.5, 0.0, 0.025), 0.025, "carry", {"Space", "KeyA", "KeyE"}),
    ],
)
def test_keys_of_a_view(tool: tuple[float, float, float], finger: float, phase: str, keys: set[str]) -> None:
    hands = Hands()
    assert hands.keys(seen(tool, finger=finger)) == keys
    assert hands.phase == phase


def test_a_tool_that_is_on_its_way_is_let_go_of_before_it_is_there() -> None:
    hands = Hands()
    hands.keys(seen((0.5, 0.0, 0.15), finger=0.04, seconds=1.0))
    # 0.3 m/s downwards: in 0.15 s it is 0.045 m lower, 0.015 m above the cube.
    assert hands.keys(seen((0.5, 0.0, 0.08), finger=0.04, seconds=1.2)) == {"Space", "KeyQ", "ShiftLeft"}
    assert not in_goal(seen((0.5, 0.0, 0.08), finger=0.04))


class Keyboard:
    """Of a page that nobody looks at."""

    def __init__(self) -> None:
        self.keyboard, self.pressed = self, list[str]()

    def press(self, key: str) -> None:
        self.pressed.append(key)


def test_a_scene_that_is_solved_at_its_start_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 8 of PickCube: the session refuses to begin, and would for ever."""
    now = [100.0]
    monkeypatch.setattr(virtual_operator.time, "monotonic", lambda: now[0])
    page = Keyboard()
    operator = Operator(page)
    operator.view = {"state": "ready", "message": ""}
    operator._between("ready")
    operator.view["message"] = "The task is solved already: reset first."
    for now[0] in (100.1, 101.0, 101.1, 101.6):  # said for a while yet, also behind the reset
        operator._between("ready")
    assert page.pressed == ["Digit1", "Digit8", "Digit1"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="browser tests left out: no chromium here (apt install chromium)")
def test_an_operator_at_the_page_collects_successes(tmp_path: Path) -> None:
    """Two episodes by key events alone; success is the simulator's, and the arm moved only with the clutch held."""
    for module in ("mani_skill", "fastapi", "playwright"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    done = virtual_operator.collect(tmp_path / "d.zarr", episodes=2, first_seed=900, folder=tmp_path, limit_s=400)
    assert done["code"] == 0, done
    assert done["labelled"] == {"the scene's signal": 2}, "nobody but the simulator said so"
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        store.verify()
        assert len(store) == 2
        for episode in map(store.episode, range(2)):
            assert episode.success[-1]
            assert not episode.success[:-1].any()
            assert episode.metadata["device"] == "browser"
            assert (episode.source == Source.teleop).all()
            state = episode.final_observation["state"]
            assert np.linalg.norm(state[CUBE_STATE] - state[GOAL_STATE]) <= 0.026
            columns = unpack_columns(episode.metadata)
            assert len(np.unique(columns["device_sequence"])) > len(episode) / 2, "fresh commands of the page"
            np.testing.assert_allclose(np.abs(episode.action[:, 3]), 1, atol=1e-6, err_msg="open or closed")
            assert set(np.sign(episode.action[:, 3])) == {-1.0, 1.0}
