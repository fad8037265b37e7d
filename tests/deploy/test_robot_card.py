"""Robot cards: what a YAML says, and every way in which it can be wrong."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from robot_rl.deploy.robot_card import CommandKind, card_from, load_robot_card
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs" / "robot"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_card_that_we_ship_loads_under_its_own_name(file: Path) -> None:
    card = load_robot_card(file.stem)
    assert card == load_robot_card(file)
    assert card.name == file.stem
    known = {f"position/{name}" for name in (*card.joints, *card.mimic)}
    known |= {name.replace("position/", "velocity/") for name in known}
    if card.gripper is not None:
        known |= {f"{kind}/{card.gripper.joint}" for kind in ("position", "velocity")} | {"gripper"}
    known |= {f"pose/{name}" for name in ("x", "y", "z", "qw", "qx", "qy", "qz")}
    assert set(card.proprio) <= known


def test_the_simulated_arm() -> None:
    card = load_robot_card("sim_panda")
    assert card.command is CommandKind.pose
    assert card.limits.names == card.joints
    assert card.limits.low[3] == -3.0718
    assert card.ros2 is not None
    assert card.ros2.inputs["joints"].reliability == "best_effort"
    assert card.thresholds.age_s("joints") == 0.2


def _plain() -> dict:
    return yaml.safe_load((FOLDER / "sim_panda.yaml").read_text())


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("joint",), 1, ("'joint'", "joints")),
        (("command",), "poses", ("'poses'", "pose")),
        (("limits", "low"), [0.0], ("limits.low", "7")),
        (("limits", "speed"), [0.0], ("'speed'", "velocity")),
        (("limits",), [1], ("limits", "mapping")),
        (("pose",), None, ("limits of the end effector",)),
        (("pose", "speed_m_s"), -1.0, ("speed_m_s", "above 0")),
        (("pose", "box"), [[0, 0, 0], [1, 0, 1]], ("box",)),
        (("gripper", "close"), 0, ("'close'", "closed")),
        (("thresholds", "observation_s"), 0.0, ("observation_s",)),
        (("ros2", "inputs", "joints", "reliability"), "besteffort", ("best_effort",)),
        (("ros2", "inputs"), 3, ("inputs",)),
        (("home",), [0.0], ("home", "7")),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(path: tuple, value: object, words: tuple) -> None:
    plain = _plain()
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        card_from(plain, where="card.yaml")
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("key", ["name", "command", "joints", "limits", "proprio"])
def test_a_missing_key_is_named(key: str) -> None:
    plain = copy.deepcopy(_plain())
    del plain[key]
    with pytest.raises(ConfigError, match=key):
        card_from(plain, where="card.yaml")


def test_an_unknown_card_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sim_panda"):
        load_robot_card("sim_pandas")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="YAML"):
        load_robot_card(tmp_path / "bad.yaml")


def test_a_stream_may_have_an_age_of_its_own() -> None:
    thresholds = Thresholds(streams_s={"joints": 0.02})
    assert thresholds.age_s("joints") == 0.02
    assert thresholds.age_s("image/wrist") == 0.2
