"""Best-of-N evaluation through the command line, on the point task: one chunk changes nothing, refusals are clear."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENV = ["env=point_reach", "env.max_episode_steps=20"]


def robot_rl(*words: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", *words], cwd=cwd, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, a policy of them, and an offline run whose gate keeps nothing but whose critic is fitted."""
    folder = tmp_path_factory.mktemp("best_of")
    robot_rl(
        "collect",
        *ENV,
        "expert=point_reach",
        "expert.noise_sd=0.4",
        "num_episodes=40",
        "dataset=demos.zarr",
        cwd=folder,
    )
    words = ["dataset=demos.zarr", "only_success=false", "policy.hidden_width=32", "policy.execute=2"]
    words += ["policy.horizon=4", "policy.num_steps=3", "train.num_steps=300", "train.batch_size=64", "train.threads=1"]
    robot_rl("imitate", *ENV, *words, "run_root=imitate", cwd=folder)
    words = [f"policy={only(folder / 'imitate')}", "datasets=[demos.zarr]", "methods=[merged]", "gate.rule=never"]
    words += ["critic.hidden_width=32", "critic_fit.num_steps=200", "critic_fit.check_every_steps=100"]
    words += ["dynamics.hidden_width=32", "dynamics.num_members=2", "model_fit.num_steps=100", "judge.num_starts=20"]
    words += ["judge.fqe_bootstrap=20", "imitation.train.num_steps=2", "imitation.train.batch_size=32"]
    robot_rl("offline", *words, "run_root=offline", cwd=folder)
    return folder


def evaluate(place: Path, root: str, *words: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Episodes and the description of the policy."""
    policy = [f"policy={only(place / 'imitate')}", "mode=eta1", "num_episodes=8", f"run_root={root}"]
    robot_rl("evaluate", *ENV, *policy, *words, cwd=place)
    run = only(place / root)
    episodes = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    described = json.loads((run / "summary.json").read_text())["protocol"]["policy"]
    return sorted(episodes, key=lambda episode: episode["seed"]), described


def test_one_chunk_plays_the_same_episodes_and_eight_play_others(place: Path) -> None:
    critic = f"critic={only(place / 'offline')}"
    plain, described = evaluate(place, "plain")
    assert "best_of" not in described
    one, described = evaluate(place, "one", critic, "best_of=1")
    assert one == plain
    assert described["sampling"] == "best of 1, eta1, 3 steps"
    eight, described = evaluate(place, "eight", critic + "/checkpoints/last", "best_of=8")
    assert [episode["seed"] for episode in eight] == [episode["seed"] for episode in plain]
    assert [episode["initial_state"] for episode in eight] == [episode["initial_state"] for episode in plain]
    assert [episode["total_reward"] for episode in eight] != [episode["total_reward"] for episode in plain] or [
        episode["action_change_rms"] for episode in eight
    ] != [episode["action_change_rms"] for episode in plain]
    assert (described["best_of"], described["class"]) == (8, "BestOfPolicy")
    assert described["critic"].endswith("checkpoints/last")
    assert described["sampling"] == "best of 8, eta1, 3 steps"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["best_of=4"], 2, "critic=<run directory of `robot-rl offline`>"),
        (["best_of=0", "critic={offline}"], 2, "best_of=0"),
        (["best_of=4", "critic={imitate}"], 1, "a checkpoint with a critic"),
        (["best_of=4", "critic={offline}", "policy=some/policy.onnx"], 1, "an .onnx file"),
        (["best_of=4", "critic=nowhere"], 1, "nowhere"),
    ],
)
def test_wrong_words(place: Path, words: list[str], code: int, part: str) -> None:
    names = {name: only(place / name) for name in ("imitate", "offline")}
    given = [f"policy={names['imitate']}", *(word.format(**names) for word in words)]
    given = list({word.partition("=")[0]: word for word in given}.values())
    done = robot_rl("evaluate", *ENV, *given, "num_episodes=2", "run_root=wrong", cwd=place, code=code)
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_of_export_is_an_exported_policy_too(place: Path) -> None:
    """It was played, and the critic left out without a word."""
    (place / "exported" / "export").mkdir(parents=True)
    (place / "exported" / "export" / "policy.onnx").touch()
    words = ["policy=exported", "best_of=4", f"critic={only(place / 'offline')}", "num_episodes=2", "run_root=wrong"]
    done = robot_rl("evaluate", *ENV, *words, cwd=place, code=1)
    assert "expected a run or checkpoint directory of a diffusion policy for best_of and critic" in done.stderr
