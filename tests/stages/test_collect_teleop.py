"""`collect teleop=...`: with the mock robot and an operator made of rules, and with the simulated arm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_teleop
from small_robot import write_small_card
from small_teleop import PlainClutch, PlainMapping

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect, collect_teleop
from robot_rl.stages.collect import CollectConfig, Keep
from robot_rl.stages.collect_teleop import TeleopConfig
from robot_rl.teleop.mapping_config import MappingConfig
from robot_rl.teleop.pilots import OperatorPilot

OPERATOR = {"_target_": "small_teleop.ScriptedOperator"}
MOCK = {"robot": {"_target_": "robot_rl.hardware.mock_robot.MockRobot", "streams": ("joints",)}}


@pytest.fixture
def plain_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mapping of these tests: absolute joints of two."""
    monkeypatch.setattr(collect_teleop, "_pilot", lambda *_: OperatorPilot(PlainMapping(), PlainClutch()))


@pytest.fixture
def small_card_file(tmp_path: Path) -> str:
    return write_small_card(tmp_path)


def play(folder: Path, card: str, **changes: Any) -> tuple[dict[str, Any], RunDirectory]:
    config = CollectConfig(
        teleop=OPERATOR, robot=card, driver=MOCK, dataset=str(folder / "d.zarr"), num_episodes=2,
    )  # fmt: skip
    run = RunDirectory.create(folder, stage="collect", task="test", seed=0, config_yaml="", command=["test"])
    return collect.run(replace(config, **changes), run), run


@pytest.mark.usefixtures("plain_pilot")
def test_a_dataset_is_filled_and_filled_further(
    tmp_path: Path, small_card_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    summary, run = play(tmp_path, small_card_file)
    assert (summary["saved"], summary["stored"], summary["successes"]) == (2, 2, 2)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][:3] == ["reset", "reset_done", "start"]
    stamps = [event["stamp_s"] for event in events]
    assert stamps == sorted(stamps)
    assert len((run.path / "episodes.jsonl").read_text().splitlines()) == 2
    caplog.set_level("INFO")
    summary, _ = play(tmp_path, small_card_file, num_episodes=5)
    assert "have 2, will record 3" in caplog.text
    assert (summary["saved"], summary["stored"]) == (3, 5)
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        store.verify()
        assert store.seeds.tolist() == [0, 1, 2, 3, 4]
        assert store.episode(0).metadata["device"] == "scripted operator"


@pytest.mark.usefixtures("plain_pilot")
def test_another_robot_is_refused_with_the_differences(tmp_path: Path, small_card_file: str) -> None:
    play(tmp_path, small_card_file)
    other = Path(small_card_file).with_name("other.yaml")
    other.write_text(Path(small_card_file).read_text().replace("elbow", "wrist"))
    with pytest.raises(DataError, match=r"joint_names.*elbow.*wrist"):
        play(tmp_path, str(other))
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        assert len(store) == 2


def test_a_leader_arm_of_another_robot_is_refused_before_anything_moves(tmp_path: Path, small_card_file: str) -> None:
    arm = {"_target_": "robot_rl.hardware.leader_arm.LeaderArm", "udp_port": 0, "joints": ["elbow", "shoulder"]}
    session = TeleopConfig(mapping=MappingConfig(input="joints"))
    with pytest.raises(ConfigError, match=r"leader_arm.*expected \['shoulder', 'elbow'\] in this order"):
        play(tmp_path, small_card_file, teleop=arm, session=session)
    assert not (tmp_path / "d.zarr").exists()


@pytest.mark.usefixtures("plain_pilot")
def test_failures_are_not_kept_with_keep_success(tmp_path: Path, small_card_file: str) -> None:
    summary, _ = play(
        tmp_path, small_card_file, num_episodes=1, keep=Keep.success,
        teleop={"_target_": "small_teleop.FailsOnce", "steps": 5},
    )  # fmt: skip
    assert (summary["stored"], summary["successes"], summary["discarded"]) == (1, 1, 1)


def test_the_simulated_arm_is_driven_through_mapping_and_clutch(tmp_path: Path) -> None:
    """A person of rules picks the cube with a velocity device; the task's limit of 50 steps does not end it."""
    pytest.importorskip("mani_skill")
    words = ["env=pick_cube", f"dataset={tmp_path}/d.zarr", "num_episodes=1", "session.mapping.speed_m_s=0.4"]
    config = load_config(CollectConfig, [*words, "+teleop={_target_: small_teleop.PickingOperator}"], name="collect")
    run = RunDirectory.create(tmp_path, stage="collect", task="test", seed=0, config_yaml="", command=["test"])
    summary = collect.run(config, run)
    assert (summary["stored"], summary["successes"]) == (1, 1)
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        store.verify()
        episode, spec = store.episode(0), store.spec
        columns = unpack_columns(episode.metadata)
    assert spec.max_episode_steps == 50, "the spec is that of the environment"
    assert len(episode) > 50
    assert episode.metadata["ended_by"] == "success"
    assert (np.abs(episode.action) <= 1).all()
    # What was asked is what the reader made of it: a delta of 0.1 m for 1, added to where the tool was measured.
    assert np.abs(episode.action[:, :3]).max() > 0.05
    asked = episode.observation["state"][:, 19:22] + np.array([0.615, 0, 0]) + 0.1 * episode.action[:, :3]
    moving = np.abs(episode.action[:, :3]).max(axis=1) > 0
    np.testing.assert_allclose(columns["sent"][moving, :3], asked[moving], atol=1e-4)


def test_intervene_wants_both_a_person_and_a_policy(tmp_path: Path, small_card_file: str) -> None:
    with pytest.raises(ConfigError, match="teleop=<device>"):
        play(tmp_path, small_card_file, teleop=None, mode=collect_teleop.SharedMode.intervene)
    with pytest.raises(ConfigError, match="mode=intervene"):
        play(tmp_path, small_card_file, policy="runs/somewhere")


def test_ctrl_c_in_a_terminal_loses_no_saved_episode(tmp_path: Path) -> None:
    """A real process of the command line, mapping and clutch; interrupted once two episodes are saved."""
    words = [
        "collect", "driver=mock", f"dataset={tmp_path}/d.zarr",
        "+teleop={_target_: small_teleop.ScriptedOperator, steps: 6}", f"run_root={tmp_path}", "num_episodes=1000",
    ]  # fmt: skip
    support = str(Path(small_teleop.__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "robot_rl", *words, "--track", "none"], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": support},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        saved, lines = 0, []
        for line in process.stderr:
            lines.append(line)
            saved += "saving -> resetting" in line
            if saved == 2:
                process.send_signal(signal.SIGINT)
                break
        lines += process.stderr.readlines()
        assert process.wait(60) == 130, "".join(lines)
    finally:
        process.kill()
    assert "are safe in" in "".join(lines)
    with EpisodeStore.open(tmp_path / "d.zarr", mode="a") as store:
        store.verify()
        assert len(store) >= 2
        count = len(store)
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["stored"] == count
