"""A robot that says what it sends only when it is connected, as one behind topics: all of it is recorded; a policy's spec counts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_teleop
from small_onnx import write_policy
from small_robot import write_small_card
from small_teleop import PlainClutch, PlainMapping

from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.errors import ConfigError
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.runs.directory import RunDirectory
from robot_rl.specs import EnvSpec
from robot_rl.stages import collect, collect_teleop
from robot_rl.stages.collect import CollectConfig
from robot_rl.stages.collect_teleop import SharedMode
from robot_rl.teleop.pilots import OperatorPilot


class LateRobot(MockRobot):
    """Its camera is in its spec from `connect` on; without a policy, as Ros2Robot."""

    def __init__(self, config: MockRobotConfig, *, card: RobotCard, spec: EnvSpec | None = None) -> None:
        super().__init__(replace(config, streams=("joints",), cameras={"front": (8, 8)}), card=card, spec=spec)
        self._whole = self.spec
        if spec is None:
            self.spec = replace(self.spec, observation={"proprio": self.spec.observation["proprio"]})

    def connect(self) -> None:
        super().connect()
        self.spec = self._whole


class Closing:
    """A scene that notes its end."""

    ended = 0

    def __init__(self, config: MockRobotConfig, *, card: RobotCard) -> None:
        self.time_limit = True

    def reset(self, seed: int) -> None:
        assert not self.time_limit, "people are slower than a task's limit"

    def episode(self) -> Any:
        return type("Episode", (), {"success": False})

    def close(self) -> None:
        Closing.ended += 1


@pytest.fixture
def card(tmp_path: Path) -> str:
    return write_small_card(tmp_path)


def play(folder: Path, card: str, **changes: Any) -> dict[str, Any]:
    driver = {
        "robot": {"_target_": f"{__name__}.LateRobot"}, "scene": {"_target_": f"{__name__}.Closing"},
    }  # fmt: skip
    config = CollectConfig(
        env={"_target_": "not.asked"}, teleop={"_target_": f"{small_teleop.__name__}.ScriptedOperator"}, robot=card,
        driver=driver, dataset=str(folder / "d.zarr"), num_episodes=1,
    )  # fmt: skip
    run = RunDirectory.create(folder, stage="collect", task="test", seed=0, config_yaml="", command=["test"])
    return collect.run(replace(config, **changes), run)


def test_what_a_robot_sends_is_recorded(tmp_path: Path, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_teleop, "_pilot", lambda *_: OperatorPilot(PlainMapping(), PlainClutch()))
    before = Closing.ended
    play(tmp_path, card)
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        episode = store.episode(0)
        assert episode.observation["image/front"].shape == (len(episode), 8, 8, 3)
        assert list(episode.metadata["ages_s"]) == ["front"]
        assert "env" not in store.metadata, "the robot is not the scene of configs/env"
    assert Closing.ended == before + 1


def test_a_policy_s_own_actions_are_recorded(tmp_path: Path, card: str) -> None:
    """The card's robot has another id; a policy brings its own spec, and the dataset is of that."""
    robot = MockRobot(MockRobotConfig(streams=("joints",)), card=load_robot_card(card))
    spec = replace(robot.spec, env_id="Task of the policy", max_episode_steps=7)
    policy = write_policy(tmp_path / "p.onnx", spec, np.zeros((8, 2), np.float32), execute=4)
    mapping = replace(CollectConfig().session.mapping, jog=("shoulder", "elbow", "", "", "", ""))
    session = replace(CollectConfig().session, mapping=mapping)
    summary = play(tmp_path, card, policy=str(policy), mode=SharedMode.intervene, session=session)
    assert summary["stored"] == 1
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        assert store.spec.env_id == "Task of the policy"


class CardOnly(MockRobot):
    """A user's driver that says what it does itself."""

    def __init__(self, config: MockRobotConfig, *, card: RobotCard) -> None:
        super().__init__(replace(config, streams=("joints",)), card=card)


def test_a_driver_that_takes_no_spec_is_told_none(card: str) -> None:
    config = CollectConfig(robot=card, driver={"robot": {"_target_": f"{__name__}.CardOnly"}})
    spec = replace(MockRobot(MockRobotConfig(streams=("joints",)), card=load_robot_card(card)).spec, env_id="Other")
    assert collect_teleop.robot_of(config, spec=spec).spec.env_id != "Other"


def test_a_rendered_view_of_a_robot_that_shows_nothing_is_refused() -> None:
    config = CollectConfig(driver={"view": {"_target_": "not.asked"}})
    with ExitStack() as undo, pytest.raises(ConfigError, match=r"driver\.view"):
        collect_teleop._facts_of(config, object(), None, undo)
    assert collect_teleop._facts_of(replace(config, driver={}), object(), None, ExitStack()) is None
