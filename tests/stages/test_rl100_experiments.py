"""experiment=rl100_pusht and rl100_peg_insertion: they compose, with their own experts, time limits and rewards."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
import yaml

from robot_rl.cli import main


def composed(experiment: str) -> dict[str, Any]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["pipeline", f"experiment={experiment}", "--dry-run"]) == 0
    return yaml.safe_load(printed.getvalue())


@pytest.mark.parametrize("experiment", ["rl100_pusht", "rl100_peg_insertion"])
def test_all_stages_take_part_and_failures_are_kept(experiment: str) -> None:
    config = composed(experiment)
    assert config["task"] == experiment
    assert config["with_offline"]
    assert config["with_online"]
    assert config["collect"]["keep"] == "all"
    assert not config["imitate"]["only_success"]
    assert config["evaluate"]["mode"] == config["distill_onestep"]["mode"] == "mean"
    # Seeds of demonstrations, of online RL and of the evaluation don't meet.
    first, last = (
        config["evaluate"]["first_seed"],
        config["evaluate"]["first_seed"] + config["evaluate"]["num_episodes"],
    )
    assert config["collect"]["first_seed"] + config["collect"]["num_episodes"] < first
    assert last < config["online"]["first_seed"]


def test_pusht_is_solved_sooner_rather_than_almost() -> None:
    config = composed("rl100_pusht")
    assert config["env"]["_target_"] == "robot_rl.envs.pusht.make_env"
    assert config["env"]["max_episode_steps"] == 150
    assert config["expert"]["_target_"] == "robot_rl.envs.pusht_expert.PushTPlanner"
    budget = {"samples": 24, "refined": 12, "rounds": 1, "finalists": 2}
    assert {name: config["expert"][name] for name in budget} == budget
    assert not config["offline"]["only_success_rewarded"]
    assert config["offline"]["methods"] == ["success_only", "awr"]
    # The coverage of a step is 1 at most: with 1 taken off, no step is worth waiting for.
    assert config["offline"]["reward"]["step_penalty"] == config["online"]["reward"]["step_penalty"] == 1.0


def test_peg_insertion_turns_the_hand() -> None:
    config = composed("rl100_peg_insertion")
    assert config["env"]["task"] == "PegInsertionSide-v1"
    assert config["env"]["control_mode"] == "pd_ee_delta_pose"
    assert config["env"]["max_episode_steps"] == 100
    assert not config["env"]["fast_cpu"]
    assert config["expert"]["_target_"] == "robot_rl.envs.peg_insertion_expert.PegInsertionExpert"
    assert config["expert"]["drop_probability"] > 0.0
    assert config["offline"]["only_success_rewarded"]
