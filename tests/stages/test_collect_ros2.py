"""`robot-rl collect ... driver=ros2` as an operator types it, with the simulated arm or a fake one as a peer over real DDS."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mani_skill")
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

from fake_arm import FakeArm
from ros_sessions import Process, domain, robot_rl, sim_node, write_card, write_scenes
from small_onnx import write_policy

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.data.store import EpisodeStore
from robot_rl.hardware.sim_robot import live_scene
from robot_rl.types import Episode, Source

pytestmark = pytest.mark.slow  # every test starts two or three processes with a simulator

LATENCY_S, JITTER_S = 0.03, 0.01
UP = 0.1  # of the policy: 0.01 m a step


def saved(dataset: Path) -> tuple[EpisodeStore, list[Episode]]:
    store = EpisodeStore.open(dataset)
    store.verify()
    return store, [store.episode(index) for index in range(len(store))]


def events(folder: Path) -> list[dict[str, Any]]:
    (table,) = folder.glob("*/events.jsonl")
    return [json.loads(line) for line in table.read_text().splitlines()]


def test_a_person_records_episodes_of_a_robot_behind_topics(tmp_path: Path) -> None:
    """Two cubes are picked by a velocity device; the scene's own node ends the episodes, long after a policy's limit."""
    number, card, scenes = (
        domain(),
        write_card(tmp_path / "card.yaml"),
        write_scenes(tmp_path / "scenes.json", range(2)),
    )
    node = sim_node(number, tmp_path, "--latency-s", str(LATENCY_S), "--jitter-s", str(JITTER_S))
    try:
        session = robot_rl(
            "collect", "driver=ros2", f"robot={card}", f"+teleop={{_target_: ros_sessions.RosPicker, scenes: {scenes}}}",
            "session.mapping.speed_m_s=0.12", "session.operator=ann", "num_episodes=2", "dataset=d.zarr", "run_root=runs",
            domain=number, cwd=tmp_path,
        )  # fmt: skip
        session.end()
    finally:
        node.kill()
    store, episodes = saved(tmp_path / "d.zarr")
    assert store.seeds.tolist() == [0, 1]
    assert store.success.all()
    assert "env" not in store.metadata, "a robot behind topics is no environment of configs/env"
    assert store.spec.observation["state"].shape == (42,), "what the robot sends is recorded"
    for episode in episodes:
        assert len(episode) > 50, "longer than the task's limit for policies"
        assert episode.metadata["ended_by"] == "success"
        assert set(episode.source) == {Source.teleop}
        check_stamps(episode)
        check_meaning(episode)
    assert [event["text"] for event in events(tmp_path / "runs") if event["event"] == "success"] == [
        "the scene's signal"
    ] * 2


def check_stamps(episode: Episode) -> None:
    """Capture is the robot's own time, before receipt by the delay of its messages; then read, chosen, commanded, in order."""
    columns, begin_s = unpack_columns(episode.metadata), episode.metadata["begin_monotonic_s"]
    read_s = columns["read_s"]
    for stream in ("joints", "pose"):
        age_s = read_s - columns[f"capture_s/{stream}"]
        assert age_s.min() > LATENCY_S - JITTER_S - 0.002, "the time of the robot and not that of the receipt"
        assert np.median(age_s) < 0.5
        assert (np.diff(columns[f"capture_s/{stream}"]) >= 0).all()
    assert (columns["capture_s/state"] <= read_s).all()
    assert (columns["device_s"] <= read_s).all()
    assert (read_s <= columns["use_s"]).all()
    assert (columns["use_s"] <= columns["command_s"]).all()
    assert (np.diff(columns["device_sequence"]) >= 1).all()
    assert 0 <= read_s[0] - begin_s < 0.5
    assert read_s[-1] < time.monotonic()
    assert np.median(np.diff(read_s)) == pytest.approx(0.05, abs=0.01)


def check_meaning(episode: Episode) -> None:
    """Columns, actions and observations tell the same story: the tool went where it was sent, and the cube with it."""
    columns, state = unpack_columns(episode.metadata), episode.observation["state"]
    np.testing.assert_allclose(columns["sent"][:, :3], episode.action[:, :3], atol=0.02)
    np.testing.assert_allclose(columns["sent_gripper"], episode.action[:, 7], atol=1e-6)
    # Both tell the joints; they are two messages, up to 0.1 s apart.
    assert np.abs(np.median(state[:, :9] - episode.observation["proprio"][:, :9], axis=0)).max() < 0.02
    tool, cube = state[:, 19:22], state[:, 29:32]
    assert np.abs(tool[-1] - cube[-1]).max() < 0.03
    assert cube[-1][2] - cube[0][2] > 0.05


def test_cameras_are_recorded_and_a_slow_one_marks_the_episode(tmp_path: Path) -> None:
    """30 Hz, then 15 of 30 while it is recorded: marked within 0.5 s, shown, kept, and not saved by itself."""
    number, card = domain(), camera_card(tmp_path / "arm.yaml")
    arm = FakeArm(card, number, rate_hz=60.0, camera_every=2, still=True, follow=True)
    session: Process | None = None
    try:
        session = robot_rl(
            "collect", "driver=ros2", "driver.scene=null", f"robot={card}", "session.camera_hz=30", "session.auto_save=true",
            "+teleop={_target_: ros_sessions.SpanOperator, spans: [[10, 60]], steps: 150}", "num_episodes=2",
            "dataset=d.zarr", "run_root=runs", domain=number, cwd=tmp_path,
        )  # fmt: skip
        session.until_view(lambda view: view["state"] == "recording" and view["steps"] == 60, what="60 steps")
        slow_s = arm.set(camera_every=4)
        session.until_view(lambda view: view["state"] == "review", what="the end of the first episode")
        arm.set(camera_every=2)
        text = session.end()
        views = session.views()
    finally:
        arm.kill()
        if session is not None:
            session.kill()
    store, (marked, whole) = saved(tmp_path / "d.zarr")
    assert store.spec.observation["image/wrist"].shape == (4, 6, 3)
    assert (marked.observation["image/wrist"] == [3, 2, 1]).all(), "bgr8, as RGB"
    problem = next(text for text in marked.metadata["problems"] if text.startswith("wrist is slow"))
    # 15, by stamps that a busy machine makes uneven; from 24 on it would not be called slow.
    assert 12 < float(problem.split()[3]) < 24, problem
    told = next(event for event in events(tmp_path / "runs") if event["text"] == problem)
    late_s = float(unpack_columns(marked.metadata)["late_s"].max())
    assert 0 < told["stamp_s"] - slow_s < 0.5 + late_s
    assert any(problem in view["problems"] for view in views if view["state"] == "recording"), "the operator sees it"
    by = [(event["event"], event["by"]) for event in events(tmp_path / "runs") if event["event"] == "save"]
    expected = ["operator" if episode.metadata["problems"] else "session" for episode in (marked, whole)]
    assert by == [("save", who) for who in expected], "what has a problem is left to the person"
    assert problem in text
    ages = [np.median(episode.metadata["ages_s"]["wrist"][70:140]) for episode in (marked, whole)]
    assert ages[0] > ages[1]


def camera_card(path: Path) -> Path:
    import yaml

    plain = yaml.safe_load(write_card(path, observation_s=2.0).read_text())
    plain["control_hz"] = 30.0
    del plain["ros2"]["inputs"]["state"]
    plain["ros2"]["inputs"]["image/wrist"] = {"topic": "wrist/image_raw", "type": "Image"}
    plain["limits"]["low"], plain["limits"]["high"] = [-3.0] * 7, [3.0] * 7
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


@pytest.fixture
def up(tmp_path: Path) -> Path:
    """An exported policy that goes up, whatever it sees."""
    known = live_scene("pick_cube", {"fast_cpu": True})
    actions = np.tile(np.float32([0, 0, UP, 1]), (8, 1))
    known.close()
    return write_policy(tmp_path / "up.onnx", known.spec, actions, execute=4)


def test_a_policy_drives_and_a_person_takes_over(tmp_path: Path, up: Path) -> None:
    number, card = domain(), write_card(tmp_path / "card.yaml")
    node = sim_node(number, tmp_path)
    try:
        session = robot_rl(
            "collect", "driver=ros2", f"policy={up}", "mode=intervene", f"robot={card}", "dataset=d.zarr", "run_root=runs",
            "+teleop={_target_: ros_sessions.SpanOperator, spans: [[20, 35], [44, 54]]}", "num_episodes=2",
            domain=number, cwd=tmp_path,
        )  # fmt: skip
        session.end()
        views = session.views()
    finally:
        node.kill()
    store, episodes = saved(tmp_path / "d.zarr")
    assert store.spec.action.shape == (4,), "the policy's own actions"
    for episode in episodes:
        columns, source = unpack_columns(episode.metadata), episode.source
        assert set(source) == {Source.policy, Source.intervention}
        numbers = columns["intervention"]
        assert list(dict.fromkeys(numbers)) == [0, 1, 2]
        np.testing.assert_array_equal(source == Source.intervention, numbers > 0)
        assert 13 <= (numbers == 1).sum() <= 20, "views come 15 times a second"
        assert episode.metadata["interventions"] == 2
        assert episode.metadata["takeover"] == pytest.approx((numbers > 0).mean())
        asked = columns["policy"][np.isfinite(columns["policy"]).all(axis=1)]
        assert len(asked) > 0.8 * len(episode), "it is asked while the person drives, too"
        np.testing.assert_allclose(asked, np.tile([0, 0, UP, 1], (len(asked), 1)), atol=1e-6)
        assert np.isnan(columns["operator"][numbers == 0]).all()
        assert np.nanmin(columns["operator"][:, 1]) < -0.05
        tool = episode.observation["state"][:, 19:22]
        first, last = np.flatnonzero(numbers == 1)[[0, -1]]
        assert tool[first][2] - tool[0][2] > 0.03, "the policy went up"
        assert tool[last][1] - tool[first][1] < -0.03, "the person went to the right"
    share = np.mean([episode.metadata["takeover"] for episode in episodes])
    (summary,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/summary.json"))
    assert summary["takeover"] == pytest.approx(share)
    assert summary["autonomous_successes"] == 0
    shown = [view["takeover"] for view in views if view["state"] == "ready"]
    assert shown[-1] == pytest.approx(episodes[0].metadata["takeover"])


def test_a_robot_that_is_killed_is_told_and_what_was_recorded_stays(tmp_path: Path, up: Path) -> None:
    """SIGKILL of its node while the policy drives it: hold, a fault with its reason, nothing lost, and on when it is back."""
    number, card = domain(), write_card(tmp_path / "card.yaml", observation_s=0.5, robot_lost_s=1.0)
    node = sim_node(number, tmp_path)
    session: Process | None = None
    try:
        session = robot_rl(
            "collect", "driver=ros2", f"policy={up}", "mode=intervene", f"robot={card}", "dataset=d.zarr", "run_root=runs",
            "+teleop={_target_: ros_sessions.SpanOperator, spans: [[20, 25]], steps: 50}", "num_episodes=3",
            domain=number, cwd=tmp_path,
        )  # fmt: skip
        session.until_view(lambda view: view["message"].startswith("Saved as episode 0"), what="the first episode")
        session.until_view(lambda view: view["state"] == "recording" and view["steps"] == 20, what="the second one")
        killed_s = time.monotonic()
        node.kill()
        fault = session.until_view(lambda view: view["state"] == "fault", what="the fault")
        assert "robot_lost" in fault["message"]
        assert "s old: the robot or its driver is gone" in fault["message"]
        session.until_view(lambda view: "expected fresh readings" in view["message"], what="a release that is refused")
        assert len(saved(tmp_path / "d.zarr")[1]) == 1, "what was saved is there"
        node = sim_node(number, tmp_path)
        session.end()
    finally:
        node.kill()
        if session is not None:
            session.kill()
    store, episodes = saved(tmp_path / "d.zarr")
    assert store.seeds.tolist() == [0, 1, 2]
    assert [episode.metadata["ended_by"] for episode in episodes] == ["success", "robot_stop", "success"]
    lost = episodes[1]
    problem = next(text for text in lost.metadata["problems"] if text.endswith("s old: the robot held"))
    told = next(event for event in events(tmp_path / "runs") if event["text"] == problem)
    columns = unpack_columns(lost.metadata)
    assert (
        told["stamp_s"] - killed_s < 0.5 + 0.05 + 0.02 + float(columns["late_s"].max()) + 0.05
    )  # 0.05: the kill itself
    # From the threshold on the same place was commanded: it braked within its limits, and then stood.
    silent = columns["read_s"] - columns["capture_s/pose"] > 0.5
    assert silent.any()
    assert np.abs(np.diff(columns["sent"][silent][5:, :3], axis=0)).max() < 1e-6
