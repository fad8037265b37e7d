"""`robot-rl online env=real_robot` on robots that are formulas: it plays, stops at Ctrl-C with the robot held, and resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore

SUPPORT = Path(__file__).resolve().parents[1] / "support"
ENV = [
    "env=real_robot", "driver@env.driver=mock", "env.driver.robot._target_=reaching_robot.ReachRobot",
    "env.as_fast_as_possible=true",
]  # fmt: skip
SHORT = ["num_envs=1", "episodes_per_iteration=8", "critic.hidden_width=16", "value.epochs=2", "ppo.batch_size=64"]


def begin(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "robot_rl", *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)},
    )  # fmt: skip


def robot_rl(*words: str, cwd: Path, code: int = 0) -> str:
    process = begin(*words, cwd=cwd)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"{words}: exit {process.returncode}\n{out}\n{err}"
    return out + err


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy demonstrations that the robot itself played, and a policy of them."""
    folder = tmp_path_factory.mktemp("real_online")
    robot_rl(
        "collect", *ENV, "expert._target_=reaching_robot.ReachExpert", "expert.noise_sd=0.5", "num_episodes=20",
        "num_envs=1", "dataset=demos.zarr", cwd=folder,
    )  # fmt: skip
    robot_rl(
        "imitate", *ENV, "policy.hidden_width=32", "policy.execute=2", "policy.horizon=4", "policy.num_steps=4",
        "dataset=demos.zarr", "train.num_steps=400", "train.batch_size=64", "train.threads=1", "run_root=imitate",
        cwd=folder,
    )  # fmt: skip
    return folder


def words_of(place: Path, *more: str, root: str) -> list[str]:
    return ["online", *ENV, *SHORT, f"policy={only(place / 'imitate')}", f"run_root={root}", *more]


def test_it_plays_learns_and_keeps_what_was_executed(place: Path) -> None:
    robot_rl(*words_of(place, "max_env_steps=150", "save_episodes=true", root="runs_a"), cwd=place)
    run = only(place / "runs_a")
    rows = metrics(run)
    assert rows[-1]["online/robot_stops"] == 0
    assert rows[-1]["online/episodes"] == 8 * len(rows)
    assert 0 < rows[0]["online/success_once"] <= 1
    summary = json.loads((run / "summary.json").read_text())
    assert summary["protocol"]["executed_actions"] == "as sent after safety"
    with EpisodeStore.open(run / "episodes.zarr") as store:
        episodes = [store.episode(index) for index in range(len(store))]
    assert len(episodes) == rows[-1]["online/episodes"]
    assert all(np.abs(episode.action).max() <= 1 for episode in episodes)


@pytest.mark.slow  # a minute of processes that start
def test_it_goes_on_another_day(place: Path) -> None:
    """A Ctrl-C at once, while the robot plays: it is held, and the run goes on from its newest iteration."""
    words = words_of(place, "max_env_steps=500", "save_episodes=true", root="runs_b")
    process = begin(*words, cwd=place)
    deadline_s = time.monotonic() + 200
    while time.monotonic() < deadline_s and process.poll() is None:
        found = list((place / "runs_b").glob("*/metrics.jsonl"))
        if found and found[0].read_text().count("\n") >= 1:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, out + err
    assert "robot held" in err
    run = only(place / "runs_b")
    before = metrics(run)
    assert 0 < before[-1]["step"] < 500
    robot_rl("online", f"resume={run}", cwd=place)
    after = metrics(run)
    assert after[: len(before)] == before
    assert after[-1]["step"] >= 500
    with EpisodeStore.open(run / "episodes.zarr") as store:
        assert len({int(seed) for seed in store.seeds}) == len(store) == after[-1]["online/episodes"]


def test_several_robots_at_once_are_refused(place: Path) -> None:
    words = words_of(place, "num_envs=4", root="runs_c")
    assert "one robot" in robot_rl(*words, cwd=place, code=2)


def child_of(parent: int, module: str) -> int | None:
    """The process of a module that `parent` has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            status = (folder / "status").read_text()
        except OSError:
            continue
        if module in words and f"PPid:\t{parent}\n" in status:
            return int(folder.name)
    return None


@pytest.mark.slow  # a minute of processes that start; tests/fitting/test_learner_process.py has the same without a robot
def test_a_learner_killed_in_an_update_leaves_the_robot_held_and_the_run_goes_on(place: Path) -> None:
    words = words_of(
        place, "max_env_steps=250", "save_episodes=true", "learner=process", "value.epochs=300", root="runs_d"
    )
    process = begin(*words, cwd=place)
    deadline_s, learner = time.monotonic() + 200, None
    while learner is None and time.monotonic() < deadline_s and process.poll() is None:
        # Its second update, so that there is a checkpoint to go on from.
        if list((place / "runs_d").glob("*/learner/batch_000002.safetensors")):
            learner = child_of(process.pid, "robot_rl.fitting.learner_process")
        time.sleep(0.005)
    assert learner is not None
    os.kill(learner, signal.SIGKILL)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1, out + err
    assert "robot held" in err
    assert "exit code -9" in err
    run = only(place / "runs_d")
    assert f"resume={run.relative_to(place)}" in err
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    before = metrics(run)
    robot_rl("online", f"resume={run}", cwd=place)
    after = metrics(run)
    assert after[: len(before)] == before
    assert [row["online/episodes"] for row in after] == [8 * (number + 1) for number in range(len(after))]
    assert after[-1]["step"] >= 250
    assert {row["online/weights_age_iterations"] for row in after[1:]} == {1}
    with EpisodeStore.open(run / "episodes.zarr") as store:
        assert len({int(seed) for seed in store.seeds}) == len(store) == after[-1]["online/episodes"]
