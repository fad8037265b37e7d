"""`robot-rl robustness`: success of someone who follows colours falls when they change, and every run says what it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robot_rl import cli
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.stages import evaluate_play
from robot_rl.types import ActionChunk, Observation

SIZE = 24


class FollowsColours:
    """Walks from the middle of what is red to the middle of what is green, as the pictures show it."""

    spec = PointReach(PointReachConfig(image_size=SIZE), num_envs=1).spec
    config = SimpleNamespace(history=1, horizon=1, execute=1)
    noise_shape, sampling, device = (1, 1, 2), "none", torch.device("cpu")

    def reset(self, mask: Any) -> None:
        """Nothing to forget."""

    def act(self, observation: Observation, noise: Any) -> ActionChunk:
        picture = observation.images["top"][:, -1].float()
        middles = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
        # The floor is (30, 30, 40), whose hue may be turned too: far more of one colour marks a disc.
        places = []
        for channel, other in ((0, 1), (1, 0)):
            weight = (picture[..., channel] - picture[..., other] - 40).clamp(min=0)
            total = weight.sum((1, 2)).clamp(min=1e-6)
            x = (weight.sum(1) * middles).sum(1) / total
            y = (weight.sum(2) * -middles).sum(1) / total
            places.append(torch.stack([x, y], dim=1))
        return ActionChunk(actions=((places[1] - places[0]) / 0.1).clamp(-1, 1)[:, None], execute=1)


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(evaluate_play, "load_any_policy", lambda config: FollowsColours())
    return "follower"


def robustness(*words: object) -> int:
    return cli.main(["robustness", *map(str, words)])


def test_success_falls_with_the_hue_and_not_with_the_brightness(
    follower: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (follower, "--env", "point_reach", f"env.image_size={SIZE}", "--hue-deg", "120,10", "--brightness", "0.3",
             "--episodes", 12, "--num-envs", 4, "--output", tmp_path)  # fmt: skip
    assert robustness(*words) == 0
    document = json.loads((tmp_path / "robustness.json").read_text())
    rows = {(row["shift"], row["strength"]): row for row in document["rows"]}
    assert list(rows) == [("hue_deg", 0), ("hue_deg", 10), ("hue_deg", 120), ("brightness", 0), ("brightness", 0.3)]
    # Red looks green then, or green red: who follows colours never gets there. A little of it changes nothing.
    wins = {key: row["k"] for key, row in rows.items()}
    assert wins["hue_deg", 0] >= 11
    assert wins["hue_deg", 10] >= 11
    assert wins["brightness", 0.3] >= 11
    assert wins["hue_deg", 120] <= 2
    assert rows["hue_deg", 0] == rows["brightness", 0] | {"shift": "hue_deg"}
    assert rows["hue_deg", 120]["p_value"] < 0.01
    # Wilson's interval of 12 of 12 is (0.7575, 1).
    assert wins["hue_deg", 0] != 12 or rows["hue_deg", 0]["low"] == pytest.approx(0.7575, abs=1e-4)
    assert document["seeds"] == "100000-100011"
    assert (tmp_path / "robustness.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "hue_deg" in printed
    protocols = {
        path.parent.parent.name: json.loads(path.read_text())["protocol"] for path in tmp_path.glob("*/*/summary.json")
    }
    assert set(protocols) == {"0", "hue_deg_10", "hue_deg_120", "brightness_0.3"}
    assert protocols["hue_deg_120"]["view_shift"]["hue_deg"] == 120
    assert "view_shift" not in protocols["0"]

    # Once more: nothing is played again. Other settings into the same folder are refused.
    monkeypatch.setattr("robot_rl.stages.evaluate.run", lambda *args: pytest.fail("played again"))
    assert robustness(*words) == 0
    assert json.loads((tmp_path / "robustness.json").read_text())["rows"] == document["rows"]
    assert robustness(*words, "env.max_episode_steps=20") == 1
    assert "Give another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("p", "--env", "point_reach"), 2, "at least one shift"),
        (("p", "q", "--env", "point_reach", "--hue-deg", "5"), 2, "at most one policy"),
        (("p", "--env", "point_reach", "--hue-deg", "5,x"), 2, "e.g. 0,2,5,10"),
        (("p", "--env", "point_reach", "--hue-deg", "0"), 2, "a strength above 0"),
        (("p", "--env", "point_reach", "--brightness", "1.5"), 2, "brightness below 1"),
        (("p", "--hue-deg", "5"), 2, "--env"),
        (("p", "--env", "point_reach", "--hue-deg", "5", "num_episodes=9"), 2, "num_episodes: expected --episodes"),
        (("p", "--env", "point_reach", "--hue-deg", "5", "first_seed=9"), 2, "expected --first-seed"),
        (("p", "--env", "point_reach", "--hue-deg", "5", "view_shift.hue_deg=9"), 2, "an option for each shift"),
        (("p", "--env", "point_reach", "--hue-deg", "5", "env.view_shift.hue_deg=9"), 2, "an option for each shift"),
        (("p", "--env", "point_reach", "env.image_size=24", "--camera-deg", "5"), 1, "hue_deg and brightness alone"),
    ],
)  # fmt: skip
def test_wrong_words(words: tuple[str, ...], code: int, said: str, follower: str, tmp_path: Path, capsys: Any) -> None:
    assert robustness(*words, "--episodes", 2, "--output", tmp_path / "out") == code
    assert said in capsys.readouterr().err
