"""RL-100's measures in an evaluation: pushes and shifts in the protocol, rates and runs by hand, and the wall clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robot_rl import rollout as rollout_module
from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.envs.point_reach import PointReachConfig, PointReachExpert, PointReachExpertConfig, make_env
from robot_rl.errors import ConfigError, DataError, EnvError
from robot_rl.rollout import EpisodeRecord, rollout
from robot_rl.runs.config import config_to_yaml, load_config, read_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.report import read_run
from robot_rl.runs.report_text import sentence
from robot_rl.stages import evaluate
from robot_rl.stages.evaluate import EvaluateConfig, disturbed_env, pushed_share, throughput
from robot_rl.workbench.evaluations import check_protocols, read_evaluation

POINT = ["env=point_reach", "expert=point_reach", "num_episodes=12", "num_envs=3"]
PUSH = ["push.action_offset=1", "push.steps=12", "push.first_step=2", "push.last_step=6"]


def evaluated(root: Path, *words: str) -> tuple[Path, dict[str, Any]]:
    """An evaluation as the command line would make it."""
    config = load_config(EvaluateConfig, [*POINT, *words], name="evaluate")
    run = RunDirectory.create(
        root, stage="evaluate", task="point", seed=0, config_yaml=config_to_yaml(config), command=["robot-rl"]
    )
    assert read_config(EvaluateConfig, run.path / "config.yaml") == config
    summary = evaluate.run(config, run)
    run.set_status("finished")
    return run.path, summary


def record(seed: int, *, won: bool, length: int, wall_s: float | None = None) -> EpisodeRecord:
    return EpisodeRecord(
        seed=seed, length=length, total_reward=0.0, success_once=won, success_at_end=won, success_at_reset=False,
        terminated=won, truncated=not won, steps_to_success=length if won else None, action_change_rms=0.0,
        action_jerk_rms=0.0, gripper_flips=0, initial_state="", wall_s=wall_s,
    )  # fmt: skip


def test_push_and_shift_are_in_the_protocol_and_change_the_episodes(tmp_path: Path) -> None:
    plain, summary = evaluated(tmp_path / "plain")
    pushed, hard = evaluated(tmp_path / "pushed", *PUSH, "shift.xy_m=[0.05,0]", "reset_s=3")
    again, _ = evaluated(tmp_path / "again", *PUSH, "shift.xy_m=[0.05,0]", "num_envs=1")
    assert not {"push", "shift"} & summary["protocol"].keys()
    assert hard["protocol"]["push"] == Push(action_offset=1.0, steps=12, first_step=2, last_step=6).to_json()
    assert hard["protocol"]["shift"] == {"xy_m": [0.05, 0.0], "scale": 1.0, "bodies": []}
    tables = [(path / "episodes.jsonl").read_text() for path in (plain, pushed, again)]
    assert tables[1] == tables[2] != tables[0]
    assert hard["successes_an_hour"]["robot_time"] < summary["successes_an_hour"]["robot_time"]
    reached = [
        row for row in map(json.loads, tables[1].splitlines())
        if row["length"] > Push(first_step=2, last_step=6).draw(row["seed"])[0]
    ]  # fmt: skip
    assert hard["push"]["episodes_pushed"] == len(reached) > 0
    assert hard["push"]["success_once_of_pushed"]["k"] == sum(row["success_once"] for row in reached)
    hourly, length = hard["successes_an_hour"]["robot_time"], hard["longest_run"]["length"]
    said = sentence(read_run(pushed))
    assert "had success under a push and a shift in " in said
    assert f"at most {length} in a row by the order of the seeds, {hourly:.0f} an hour of robot time" in said
    assert " under a " not in sentence(read_run(plain))
    with pytest.raises(DataError, match="push"):
        check_protocols(read_evaluation(plain), read_evaluation(pushed))


def test_rates_and_runs_by_hand() -> None:
    records = [record(5, won=True, length=10), record(6, won=False, length=30), record(7, won=True, length=10)]
    found = throughput([*records, record(8, won=True, length=10)], control_hz=20.0, reset_s=7.25)
    # 60 steps of 0.05 s and four resets of 7.25 s are 32 s; three successes.
    assert found["successes_an_hour"] == {
        "robot_time": pytest.approx(3 * 3600 / 32), "play_s": 3.0, "control_period_s": 0.05, "reset_s": 7.25,
    }  # fmt: skip
    assert found["longest_run"] == {"length": 2, "order": "of the seeds", "first_seed": 7}
    lost = throughput([record(1, won=False, length=5)], control_hz=20.0, reset_s=0.0)
    assert lost["longest_run"] == {"length": 0, "order": "of the seeds", "first_seed": None}


def test_an_episode_that_ended_before_its_push_is_not_counted() -> None:
    push = Push(action_offset=1.0, first_step=5, last_step=5)
    # Action 5 is the sixth: an episode of five steps never played it.
    found = pushed_share([record(1, won=True, length=5), record(2, won=False, length=6)], push)
    assert (found["episodes_pushed"], found["success_once_of_pushed"]["k"]) == (1, 0)
    assert pushed_share([record(1, won=True, length=5)], push)["success_once_of_pushed"] is None


def test_wall_time_of_a_real_robot_counts_its_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds an action and thirty a reset, by a clock of ours; a simulator has no wall time."""
    clock = {"now": 0.0}
    monkeypatch.setattr(rollout_module.time, "monotonic", lambda: clock["now"])
    env = make_env(PointReachConfig(), num_envs=1, history=1)
    reset, step = env._env.reset_envs, env._env.step_envs

    def slow(function: Any, seconds: float) -> Any:
        def call(*arguments: Any) -> Any:
            clock["now"] += seconds
            return function(*arguments)

        return call

    env._env.reset_envs, env._env.step_envs = slow(reset, 30.0), slow(step, 2.0)  # type: ignore[method-assign]
    expert = PointReachExpert(PointReachExpertConfig(), env.spec)
    assert [row.wall_s for row in rollout(env, expert, range(2))] == [None, None]
    facts = env.protocol()
    monkeypatch.setattr(env, "protocol", lambda: facts | {"real_time": True})
    records = rollout(env, expert, range(3))
    # HistoryEnv resets at the end of the step in which an episode ended, so its clock has the next reset in it.
    assert sum(row.wall_s or 0 for row in records) == 3 * 30 + 2 * sum(row.length for row in records)
    hourly = throughput(records, control_hz=10.0, reset_s=1.0)["successes_an_hour"]
    assert hourly["wall_time"] == pytest.approx(3 * 3600 / hourly["wall_s"])
    assert hourly["wall_s"] == 90 + 20 * hourly["play_s"]


def test_the_evaluation_wins_over_the_push_of_the_env() -> None:
    words = ["env=point_reach", "env.push.action_offset=1", "shift={scale: 0.5}"]
    kept = load_config(EvaluateConfig, words, name="evaluate")
    node, push = disturbed_env(kept)
    assert (push, node["shift"]["scale"]) == (Push(action_offset=1.0), 0.5)
    assert disturbed_env(load_config(EvaluateConfig, [*words, "push.action_offset=2"], name="evaluate"))[1] == Push(
        action_offset=2.0
    )


def test_what_an_env_can_not_do_is_refused() -> None:
    env = {"_target_": "robot_rl.envs.gymnasium.make_env", "env_id": "Pendulum-v1"}
    for name, config in {"push": {"push": Push(action_offset=1.0)}, "shift": {"shift": Shift(scale=2.0)}}.items():
        with pytest.raises(EnvError, match=f"the option `{name}`"):
            disturbed_env(EvaluateConfig(env=env, **config))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="impulse_n_s"):
        load_config(EvaluateConfig, ["env=point_reach", "push.impulse=1"], name="evaluate")
