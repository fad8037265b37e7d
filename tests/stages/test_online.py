"""The online stage through the command line, on the point task: it improves, resumes bit-equal, refuses a bad hand-over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from robot_rl.data.store import EpisodeStore
from robot_rl.types import Source

ENV = ["env=point_reach", "env.max_episode_steps=20"]
SHORT = [
    "critic.hidden_width=32", "episodes_per_iteration=60", "num_envs=20", "ppo.batch_size=256", "ppo.learning_rate=1e-3",
    "value.epochs=5",
]  # fmt: skip


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
    """Flawed demonstrations, and a policy of them that succeeds sometimes."""
    folder = tmp_path_factory.mktemp("online")
    words = ["expert=point_reach", "expert.noise_sd=0.3", "num_episodes=60", "dataset=demos.zarr"]
    robot_rl("collect", *ENV, *words, cwd=folder)
    words = [
        "only_success=false",
        "policy.hidden_width=64",
        "policy.execute=2",
        "policy.horizon=4",
        "policy.num_steps=5",
    ]
    words += [
        "dataset=demos.zarr",
        "train.num_steps=1500",
        "train.batch_size=64",
        "train.threads=1",
        "run_root=imitate",
    ]
    robot_rl("imitate", *ENV, *words, cwd=folder)
    return folder


def online(place: Path, *words: str, root: str, code: int = 0, policy: Path | None = None) -> Path:
    start = [f"policy={policy or only(place / 'imitate')}", f"run_root={root}"]
    robot_rl("online", *ENV, *start, *SHORT, *words, cwd=place, code=code)
    return only(place / root)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_improves_and_the_student_with_it(place: Path) -> None:
    run = online(place, "max_env_steps=16000", "student.num_steps=60", root="runs_a")
    rows = metrics(run)
    success = [row["online/success_once"] for row in rows]
    # Both ends are means of 180 episodes: a rise of .15 is 3 standard deviations of their difference.
    assert np.mean(success[-3:]) > np.mean(success[:3]) + 0.15, success
    assert "online/kl_nats" not in rows[0]  # the first iteration fits V alone
    assert rows[-1]["step"] == json.loads((run / "summary.json").read_text())["env_steps"] >= 16000
    evaluated = robot_rl("evaluate", *ENV, f"policy={run / 'student'}", "num_episodes=100", "--json", cwd=place).stdout
    assert json.loads(evaluated)["success_once"]["rate"] > np.mean(success[:3])


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not(place: Path) -> None:
    words = ["student.num_steps=5", "save_episodes=true"]
    whole = online(place, "max_env_steps=5000", *words, root="runs_whole")
    again = online(place, "max_env_steps=5000", *words, root="runs_cut")
    checkpoints = sorted((again / "checkpoints").glob("step_*"))
    for checkpoint in checkpoints[1:]:
        shutil.rmtree(checkpoint)
    robot_rl("online", f"resume={again}", cwd=place)
    for name in ("policy", "critic", "student", "optimizer"):
        first, second = (load_file(run / f"checkpoints/last/{name}.safetensors") for run in (whole, again))
        assert all(np.array_equal(first[key], second[key]) for key in first), name
    assert metrics(whole) == metrics(again)


def test_hand_over_with_another_sampler_normaliser_or_discount_is_refused(place: Path) -> None:
    run = online(place, "max_env_steps=1000", root="runs_b")
    asked = ["online", *ENV, *SHORT, "max_env_steps=1000", f"policy={run}", "run_root=runs_c"]
    assert "gamma 0.98" in robot_rl(*asked, "gamma=0.9", cwd=place, code=1).stderr
    assert "sigma_min 0.01" in robot_rl(*asked, "sigma_min=0.2", cwd=place, code=1).stderr
    assert "step_penalty" in robot_rl(*asked, "reward.step_penalty=0.01", cwd=place, code=1).stderr
    forged = shutil.copytree(run, place / "forged", symlinks=True)
    checkpoint = sorted((forged / "checkpoints").glob("step_*"))[-1]
    tensors = load_file(checkpoint / "policy.safetensors")
    name = "encoder.normalizer.state__scale"
    save_file(tensors | {name: 2 * tensors[name]}, checkpoint / "policy.safetensors")
    _seal(checkpoint)
    asked[-2] = f"policy={forged}"
    assert "normalizer" in robot_rl(*asked, cwd=place, code=1).stderr
    robot_rl(*asked[:-2], f"policy={run}", "run_root=runs_d", cwd=place)


def _seal(checkpoint: Path) -> None:
    import hashlib

    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["policy.safetensors"] = hashlib.sha256(
        (checkpoint / "policy.safetensors").read_bytes()
    ).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


HUMAN = [
    "intervener=scripted", "intervener.expert._target_=robot_rl.envs.point_reach.PointReachExpert",
    "intervener.after_steps=8", "intervener.share=0.5",
]  # fmt: skip


def test_a_human_takes_over_and_his_steps_are_kept_for_the_next_offline_round(place: Path) -> None:
    run = online(place, "max_env_steps=3000", "save_episodes=true", *HUMAN, root="runs_human")
    rows = metrics(run)
    assert all(0.03 < row["online/human_share"] < 0.6 for row in rows)
    with EpisodeStore.open(run / "episodes.zarr") as store:
        episodes = [store.episode(index) for index in range(len(store))]
    assert len(episodes) == rows[-1]["online/episodes"]
    human = [np.asarray(episode.source) == Source.intervention for episode in episodes]
    assert all(not steered[:8].any() and steered[8:].all() for steered in human if steered.any())
    alone = [bool(e.success.any()) and not steered.any() for e, steered in zip(episodes, human, strict=True)]
    assert sum(episode.success.any() for episode in episodes[:60]) > sum(alone[:60])
    assert rows[0]["online/success_once"] == np.mean(alone[:60])  # not what the human won for the policy
    long = [steered.any() for steered in human if len(steered) > 8]
    assert 0.2 < np.mean(long) < 0.8
    # The offline stage takes them as they are.
    demos = f"datasets=[demos.zarr,{run / 'episodes.zarr'}]"
    small = [
        "critic.hidden_width=16",
        "dynamics.hidden_width=16",
        "critic_fit.num_steps=100",
        "model_fit.num_steps=100",
    ]
    small += ["critic_fit.check_every_steps=50", "judge.fqe_bootstrap=20", "ppo.proposals=1", "ppo.iterations=1"]
    robot_rl("offline", f"policy={run}", demos, "methods=[ppo]", "run_root=runs_next", *small, cwd=place)


def test_wrong_words_are_explained(place: Path) -> None:
    policy = f"policy={only(place / 'imitate')}"
    assert "policy=<run>" in robot_rl("online", *ENV, "run_root=r", cwd=place, code=2).stderr
    assert "save_episodes=true" in robot_rl("online", *ENV, policy, "run_root=r", *HUMAN, cwd=place, code=2).stderr
    assert "ppo.group" in robot_rl("online", *ENV, policy, "run_root=r", "ppo.group=4", cwd=place, code=2).stderr
