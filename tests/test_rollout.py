"""The one roll-out loop: each seed once and in order whatever num_envs is, and episodes that obey the point's physics."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robot_rl.deploy.smoothness import Smoothness
from robot_rl.envs.point_reach import PointReachConfig, PointReachExpert, PointReachExpertConfig, make_env
from robot_rl.rollout import EpisodeRecord, _Track, read_records, rollout
from robot_rl.types import Episode, Source

STEP_M, SUCCESS_M = 0.1, 0.05
SEEDS = [40, 3, 17, 5, 90, 61, 7]


def play(num_envs: int, *, noise_sd: float = 0.0, limit: int = 30) -> tuple[list[EpisodeRecord], list[Episode]]:
    env = make_env(PointReachConfig(max_episode_steps=limit), num_envs=num_envs, history=1)
    expert = PointReachExpert(PointReachExpertConfig(noise_sd=noise_sd), env.spec)
    order, episodes = [], []

    def on_episode(record: EpisodeRecord, episode: Episode | None) -> None:
        assert episode is not None
        order.append(record.seed)
        episodes.append(episode)

    records = rollout(env, expert, SEEDS, on_episode=on_episode, source=Source.scripted)
    assert order == SEEDS == [record.seed for record in records]
    return records, episodes


@pytest.mark.parametrize("num_envs", [2, 3, 7, 10])
def test_records_and_episodes_do_not_depend_on_num_envs(num_envs: int) -> None:
    one, many = play(1, noise_sd=0.3), play(num_envs, noise_sd=0.3)
    assert one[0] == many[0]
    for first, second in zip(one[1], many[1], strict=True):
        assert np.array_equal(first.action, second.action)
        assert np.array_equal(first.observation["state"], second.observation["state"])


def test_episodes_obey_the_physics_and_records_their_definition() -> None:
    for record, episode in zip(*play(3), strict=True):
        frames = np.concatenate([episode.observation["state"], episode.final_observation["state"][None]])
        assert len(frames) == record.length + 1
        moved = frames[:-1, :2] + STEP_M * episode.action
        assert np.allclose(frames[1:, :2], moved, atol=1e-6)
        assert np.array_equal(frames[:, 2:], np.repeat(frames[:1, 2:], len(frames), axis=0))
        distance = np.linalg.norm(frames[1:, 2:] - frames[1:, :2], axis=1)
        assert np.array_equal(episode.success, distance <= SUCCESS_M)
        assert record.steps_to_success == record.length == int(np.argmax(distance <= SUCCESS_M)) + 1
        # Straight at the goal, each axis by itself at full speed: the slower axis decides.
        gap = np.abs(frames[0, 2:] - frames[0, :2]).max()
        assert record.length in (math.ceil(gap / STEP_M) - 1, math.ceil(gap / STEP_M))
        assert (record.terminated, record.truncated, record.success_once, record.success_at_end) == (
            True,
            False,
            True,
            True,
        )
        assert record.total_reward == 1.0
        change = np.diff(episode.action, axis=0)
        assert record.action_change_rms == pytest.approx(float(np.sqrt((change**2).mean())), rel=1e-6)
        assert episode.time.tolist() == pytest.approx([step / episode_hz for step in range(record.length)])


episode_hz = make_env(PointReachConfig(), num_envs=1, history=1).spec.control_hz


@pytest.mark.parametrize("name", ["gripper", "Gripper width", "finger", "jaw"])
def test_a_gripper_is_one_by_whatever_name_the_house_knows(name: str) -> None:
    """By hand, and as a robot's loop counts it: the arm moves by 1, 2 and 3, the gripper shuts and opens."""
    spec = make_env(PointReachConfig(), num_envs=1, history=1).spec
    spec = replace(spec, action=replace(spec.action, meanings=("x", name)))
    actions = np.float32([[0, 1], [1, -1], [3, -1], [6, 1]])
    track, live = _Track(0, {}, success_at_reset=False), Smoothness(spec)
    arrays = {"rewards": np.zeros((1, 4)), "step_success": np.zeros((1, 4), bool)}
    track.add(0, actions[None], arrays, count=4, keep=False)
    record = track.record(spec, terminated=False, truncated=True)
    assert (record.gripper_flips, record.action_step_max) == (2, 3.0)
    assert record.action_change_rms == pytest.approx(math.sqrt(14 / 3))
    for action in actions:
        live.add(action)
    told = live.to_json()
    assert {key: getattr(record, key) for key in told} == pytest.approx(told)


def test_no_seeds_are_no_episodes() -> None:
    env = make_env(PointReachConfig(), num_envs=2, history=1)
    assert rollout(env, PointReachExpert(PointReachExpertConfig(), env.spec), []) == []


def test_time_limit_is_a_truncation_without_success() -> None:
    records, _ = play(2, limit=1)
    assert {(r.length, r.terminated, r.truncated, r.success_once, r.steps_to_success) for r in records} == {
        (1, False, True, False, None)
    }


def test_stopping_by_an_exception_leaves_what_was_written() -> None:
    env = make_env(PointReachConfig(), num_envs=3, history=1)
    seen: list[int] = []

    def on_episode(record: EpisodeRecord, _episode: Episode | None) -> None:
        seen.append(record.seed)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(env, PointReachExpert(PointReachExpertConfig(), env.spec), SEEDS, on_episode=on_episode)
    assert seen == SEEDS[:2]


def test_records_come_back_from_disk_and_a_torn_line_does_not(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    records, _ = play(2)
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records) + '{"seed": 4, "len')
    assert read_records(path) == records
