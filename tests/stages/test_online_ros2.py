"""A tiny trained policy on the simulated arm behind ROS 2: `online env=real_robot driver@env.driver=ros2`, and corrections of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mani_skill")
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

from ros_sessions import Process, domain, robot_rl, sim_node, write_card

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.data.store import EpisodeStore
from robot_rl.types import Source

pytestmark = pytest.mark.slow  # a policy is trained, and every test starts processes with a simulator

NUMBER = domain()
TASK = ["env=push_cube", "env.fast_cpu=true"]
FIRST = 1_000_000  # of the seeds of online
SMALL = ["critic.hidden_width=16", "value.epochs=2", "ppo.batch_size=64"]


def done(*words: str, cwd: Path, code: int = 0) -> str:
    return robot_rl(*words, domain=NUMBER, cwd=cwd).end(code)


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of 20 demonstrations of PushCube (19 of 20 fresh seeds when this was written), and a card for busy machines."""
    folder = tmp_path_factory.mktemp("ros2_online")
    done("collect", *TASK, "num_episodes=20", "num_envs=1", "dataset=demos.zarr", "run_root=collect", cwd=folder)
    done(
        "imitate", *TASK, "dataset=demos.zarr", "policy=mlp", "policy.num_steps=4", "policy.hidden_width=64",
        "train.num_steps=800", "train.threads=1", "rollout_episodes=0", "run_root=imitate", cwd=folder,
    )  # fmt: skip
    write_card(folder / "card.yaml")
    return folder


@pytest.fixture
def node(place: Path) -> Iterator[Process]:
    node = sim_node(NUMBER, place, "--env", "push_cube")
    yield node
    node.kill()


def online(place: Path, *more: str, root: str) -> Process:
    return robot_rl(
        "online", "env=real_robot", "driver@env.driver=ros2", f"env.robot={place / 'card.yaml'}", *SMALL, "num_envs=1",
        f"policy={only(place / 'imitate')}", "save_episodes=true", f"run_root={root}", *more, domain=NUMBER, cwd=place,
    )  # fmt: skip


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_on_a_robot_behind_topics_pauses_and_goes_on_another_day(place: Path, node: Process) -> None:
    person = "+env.panel={_target_: ros_sessions.PausingPerson, pause_at: 4, views: 20}"
    process = online(place, "episodes_per_iteration=4", "max_env_steps=150", person, root="runs")
    process.until(lambda line: "iteration 1," in line, what="the first iteration")
    process.process.send_signal(signal.SIGINT)
    text = process.end(130)
    assert "robot held" in text
    states = [view["state"] for view in process.views()]
    assert "paused" in states
    assert "recording" in states[states.index("paused") :], "it went on"
    run = only(place / "runs")
    before = metrics(run)
    assert before[-1]["step"] < 150
    again = robot_rl("online", f"resume={run}", domain=NUMBER, cwd=place)
    again.end()
    rows = metrics(run)
    assert rows[: len(before)] == before
    assert rows[-1]["step"] >= 150
    assert sum(row.get("online/gradient_steps", 0) for row in rows) > 0, (
        "behind the iteration that fits V alone, it learns"
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["env"] == "PushCube-v1"
    assert summary["protocol"]["real_time"]
    assert summary["protocol"]["reward_mode"] == "scene"
    with EpisodeStore.open(run / "episodes.zarr") as store:
        store.verify()
        episodes = [store.episode(index) for index in range(len(store))]
        assert store.spec.observation["state"].shape == episodes[0].observation["state"].shape[1:]
        assert sorted(store.seeds) == list(range(FIRST, FIRST + int(rows[-1]["online/episodes"])))
    assert rows[-1]["online/episodes"] == len(episodes)
    assert sum(row["online/success_once"] for row in rows) > 0, "the scene's own signal is the reward"
    for episode in episodes:
        assert episode.terminated == bool(episode.success.any())
        assert (np.abs(episode.action) <= 1).all()
        assert set(episode.source) == {Source.policy}
    moved = [
        np.abs(np.diff(episode.observation["proprio"][:, :7], axis=0)).max() for episode in episodes if len(episode) > 2
    ]
    assert min(moved) > 0.005, "the arm really went"


def test_the_same_arm_is_evaluated_and_played_into_a_store(place: Path, node: Process) -> None:
    """A policy that wants the scene's state and deltas, which a card alone does not promise."""
    person = "+env.panel={_target_: ros_sessions.PausingPerson}"
    arm = ["env=real_robot", "driver@env.driver=ros2", f"env.robot={place / 'card.yaml'}", person, "num_envs=1"]
    arm += [f"policy={only(place / 'imitate')}", "num_episodes=2"]
    done("evaluate", *arm, "run_root=evaluated", cwd=place)
    summary = json.loads((only(place / "evaluated") / "summary.json").read_text())
    assert (summary["episodes"], summary["protocol"]["real_time"]) == (2, True)
    done("collect", *arm, "keep=all", "dataset=played.zarr", "run_root=played", cwd=place)
    with EpisodeStore.open(place / "played.zarr") as store:
        store.verify()
        assert len(store) == 2
        assert set(store.episode(0).source) == {Source.policy}


def test_a_robot_that_is_killed_is_waited_for_and_the_run_goes_on(place: Path, node: Process) -> None:
    """SIGKILL of its node while it plays: a stop with its reason, a release that is refused, and on when the node is back."""
    person = "+env.panel={_target_: ros_sessions.PausingPerson}"
    process = online(place, "episodes_per_iteration=4", "max_env_steps=100", person, root="killed")
    process.until(lambda line: "iteration 1," in line, what="the first iteration")
    process.until_view(lambda view: view["state"] == "recording", what="an episode")
    node.kill()
    fault = process.until_view(lambda view: view["state"] == "fault", what="the stop")
    assert "robot_lost" in fault["message"]
    assert "the robot or its driver is gone" in fault["message"]
    process.until_view(lambda view: "expected fresh readings" in view["message"], what="a release that is refused")
    back = sim_node(NUMBER, place, "--env", "push_cube")
    try:
        process.end()
    finally:
        back.kill()
    run = only(place / "killed")
    rows = metrics(run)
    assert rows[-1]["step"] >= 100
    assert rows[-1]["online/robot_stops"] == 1
    assert rows[-1]["online/robot_stale_share"] > 0
    assert len(list((run / "black_box").glob("*robot_lost*.mcap"))) == 1
    with EpisodeStore.open(run / "episodes.zarr") as store:
        store.verify()
        assert sorted(store.seeds) == list(range(FIRST, FIRST + int(rows[-1]["online/episodes"])))
        lost = store.episode(4)
    assert lost.truncated
    assert not lost.success.any()


def test_a_trained_policy_is_corrected_by_a_person(place: Path, node: Process) -> None:
    done("export", f"policy={only(place / 'imitate')}", "dataset=demos.zarr", "run_root=export", cwd=place)
    session = robot_rl(
        "collect", "driver=ros2", f"policy={only(place / 'export')}", "mode=intervene", f"robot={place / 'card.yaml'}",
        "+teleop={_target_: ros_sessions.SpanOperator, spans: [[3, 6]], steps: 40}", "num_episodes=3",
        "dataset=corrections.zarr", "run_root=intervene", domain=NUMBER, cwd=place,
    )  # fmt: skip
    session.end()
    with EpisodeStore.open(place / "corrections.zarr") as store, EpisodeStore.open(place / "demos.zarr") as demos:
        store.verify()
        episodes = [store.episode(index) for index in range(len(store))]
        assert store.spec.action == demos.spec.action, "corrections are in the actions that the policy was trained with"
        assert store.spec.observation == demos.spec.observation
    for episode in episodes:
        assert set(episode.source) == {Source.policy, Source.intervention}
        assert episode.metadata["interventions"] == 1
        assert np.isfinite(unpack_columns(episode.metadata)["policy"]).all(axis=1).mean() > 0.8
    (summary,) = (json.loads(path.read_text()) for path in (place / "intervene").glob("*/summary.json"))
    assert 0 < summary["takeover"] < 1
    assert any(event["text"] == "the scene's signal" for event in _events(only(place / "intervene")))


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
