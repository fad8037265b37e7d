"""The offline stage through the command line, on the point task: the gate, its records, restores and refusals."""

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
from safetensors.numpy import load_file

SHORT = [
    "critic.hidden_width=32", "dynamics.hidden_width=32", "dynamics.num_members=3", "critic_fit.num_steps=300",
    "critic_fit.check_every_steps=100", "model_fit.num_steps=200", "judge.fqe_bootstrap=50", "judge.num_starts=40",
    "imitation.train.num_steps=40", "imitation.train.checkpoint_every_steps=40", "imitation.train.batch_size=64",
    "ppo.num_states=32", "ppo.batch_size=128", "ppo.proposals=2", "ppo.iterations=1",
]  # fmt: skip
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
    """Good and failed demonstrations, a policy of them, and its own roll-outs, under a short time limit."""
    folder = tmp_path_factory.mktemp("offline")
    words = ["expert=point_reach", "expert.noise_sd=0.4", "num_episodes=60", "dataset=demos.zarr"]
    robot_rl("collect", *ENV, *words, cwd=folder)
    words = [
        "dataset=demos.zarr",
        "only_success=false",
        "policy.hidden_width=64",
        "policy.execute=2",
        "policy.horizon=4",
    ]
    words += ["policy.num_steps=5", "train.num_steps=600", "train.batch_size=64", "train.threads=1", "run_root=imitate"]
    robot_rl("imitate", *ENV, *words, cwd=folder)
    policy = only(folder / "imitate")
    words = [f"policy={policy}", "mode=eta1", "num_episodes=60", "first_seed=1000", "dataset=rollouts.zarr"]
    robot_rl("collect", *ENV, *words, cwd=folder)
    from robot_rl.data.store import EpisodeStore

    with EpisodeStore.open(str(folder / "rollouts.zarr"), mode="r") as store:
        assert 5 < int(store.success.sum()) < 60  # else the tests below show nothing
        assert store.metadata["collector"] == "policy"
    return folder


def offline(place: Path, *words: str, root: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run the stage (from `place`) and return its run directory and decisions."""
    data = [f"policy={only(place / 'imitate')}", "datasets=[demos.zarr,rollouts.zarr]", f"run_root={root}"]
    robot_rl("offline", *data, *SHORT, *words, cwd=place)
    run = only(place / root)
    return run, [json.loads(line) for line in (run / "ope/decisions.jsonl").read_text().splitlines()]


def weights(run: Path, name: str = "policy") -> dict[str, np.ndarray]:
    return load_file(run / f"checkpoints/last/{name}.safetensors")


def test_decisions_are_recorded_and_a_restart_makes_the_same(place: Path) -> None:
    run, first = offline(place, "methods=[success_only,awr,ppo]", root="runs_a")
    assert [record["method"] for record in first] == ["success_only", "awr", "ppo", "ppo"]
    for record in first:
        assert set(record["estimates"]) == {"am_q", "model_return", "fqe"}
        assert {check["name"] for check in record["checks"]} >= {
            "gain/fqe",
            "objection/am_q",
            "guard/disagreement_ratio",
        }
        assert record["accepted"] == all(check["passed"] for check in record["checks"])
        assert record["reason"].startswith("accepted" if record["accepted"] else "rejected")
    for record in first[2:]:
        assert len(record["numbers"]["kl_steps_nats"]) == 5
        assert record["numbers"]["kl_nats"] == pytest.approx(sum(record["numbers"]["kl_steps_nats"]), rel=1e-5)
    fits = json.loads((run / "round_00/fits.json").read_text())
    assert {"critic", "judge_critic", "judge_model", "noise_floor"} <= set(fits)
    before = weights(run)
    (run / "status.json").write_text(json.dumps(json.loads((run / "status.json").read_text()) | {"state": "running"}))
    robot_rl("offline", f"resume={run}", cwd=place)
    again = [json.loads(line) for line in (run / "ope/decisions.jsonl").read_text().splitlines()]
    assert again == first
    assert all(np.array_equal(before[key], value) for key, value in weights(run).items())
    robot_rl("evaluate", *ENV, f"policy={run}", "num_episodes=5", "run_root=runs_evaluate", cwd=place)
    words = ["evaluate", *ENV, f"policy={run}", "mode=eta1", "num_episodes=5", "best_of=4"]
    assert "critic=" in robot_rl(*words, cwd=place, code=2).stderr
    robot_rl(*words, f"critic={run}", "run_root=runs_best", cwd=place)
    protocol = json.loads((only(place / "runs_best") / "summary.json").read_text())["protocol"]
    assert protocol["policy"]["best_of"] == 4
    assert protocol["policy"]["sampling"].startswith("best of 4, eta1")
    policies = [str(only(place / "imitate")), *(str(run / "round_00" / name) for name in ("success_only", "awr"))]
    policies.append(str(run))  # left out where the gate kept one of those above
    words = ["judge", "calibrate", str(run), *policies, "--env", "point_reach", "env.max_episode_steps=20"]
    robot_rl(*words, "--episodes", "10", cwd=place)
    found = json.loads((run / "ope/calibration.json").read_text())
    assert [row["policy"] for row in found["policies"]][:3] == policies[:3]
    assert {row["judge"] for row in found["rows"]} == {"am_q", "model_return", "fqe"}
    # The judges are those of the stage: they score the kept policy as its summary says.
    kept = json.loads((run / "summary.json").read_text())["scores"]
    assert any(row["fqe"] == pytest.approx(kept["fqe"], abs=1e-6) for row in found["policies"])
    assert "at least 3 policies" in robot_rl(*words[:4], "--env", "point_reach", cwd=place, code=2).stderr


def test_what_the_gate_refuses_leaves_the_policy_as_it_was(place: Path) -> None:
    run, records = offline(place, "methods=[awr,ppo]", "gate.rule=never", "ppo.learning_rate=1e-3", root="runs_never")
    assert not any(record["accepted"] for record in records)
    assert any(record["numbers"]["kl_nats"] > 0.01 for record in records if record["method"] == "ppo")
    rates = [record["numbers"]["learning_rate"] for record in records if record["method"] == "ppo"]
    assert rates == pytest.approx([1e-3, 5e-4])  # a rejection shrinks the step
    start = load_file(only(place / "imitate") / "checkpoints/last/policy.safetensors")
    kept = weights(run)
    assert start.keys() == kept.keys()
    assert all(np.array_equal(start[key], kept[key]) for key in start)


def test_two_rounds_with_collection(place: Path) -> None:
    words = ["methods=[success_only]", "rounds=2", "collect=true", "collect_episodes=10", *ENV]
    run, records = offline(place, *words, root="runs_rounds")
    assert [record["round"] for record in records] == [0, 1]
    from robot_rl.data.store import EpisodeStore
    from robot_rl.types import Source

    with EpisodeStore.open(str(run / "round_01/collected.zarr"), mode="r") as store:
        assert len(store) == 10
        assert store.seeds.tolist() == list(range(70_010, 70_020))
        assert set(store.load(["source"])["source"].tolist()) == {int(Source.policy)}
    fits = json.loads((run / "round_01/fits.json").read_text())
    assert fits["episodes"] == 130
    assert len(fits["content_hashes"]) == 3


def test_one_field_of_a_nested_configuration_keeps_the_stage_s_other_defaults() -> None:
    from robot_rl.runs.config import load_config
    from robot_rl.stages.offline import OfflineConfig

    plain = load_config(OfflineConfig, [], name="offline")
    words = ["gate.rule=margin", "imitation.train.num_steps=600"]
    changed = load_config(OfflineConfig, words, name="offline")
    assert changed.gate.deciding == plain.gate.deciding == ("fqe",)
    assert (changed.gate.rule.value, plain.gate.rule.value) == ("margin", "lower_bound")
    assert changed.imitation.train.num_steps == 600
    assert changed.imitation.train.learning_rate == plain.imitation.train.learning_rate == 3e-4
    assert changed.imitation.train.threads == 1
    assert load_config(OfflineConfig, ["gate.deciding=[]"], name="offline").gate.deciding == ()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["policy="], 2, "policy=<imitate run>"),
        (["datasets=[nowhere.zarr]"], 1, "nowhere.zarr"),
        (["collect=true"], 2, "collect=true"),
        (["collect=true", "env=point_reach"], 2, "rounds=1"),
        (["methods=[pp]"], 2, "ppo"),
        (["methods=[awr,ppo,awr]"], 2, "each method once a round"),
        (["gate.deciding=[fqee]"], 1, "fqe"),
    ],
)
def test_wrong_words(place: Path, words: list[str], code: int, part: str) -> None:
    given = {word.partition("=")[0] for word in words}
    data = [f"policy={only(place / 'imitate')}", "datasets=[demos.zarr]", "run_root=runs_wrong"]
    data = [word for word in data if word.partition("=")[0] not in given]
    done = robot_rl("offline", *data, *SHORT, *words, cwd=place, code=code)
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_mixed_rewards_and_policies_without_denoising_steps_are_refused(place: Path) -> None:
    from dataclasses import replace

    from robot_rl.data.store import EpisodeStore

    with (
        EpisodeStore.open(str(place / "demos.zarr"), mode="r") as store,
        EpisodeStore.create(str(place / "dense.zarr"), store.spec, metadata={}) as dense,
    ):
        for index in range(30):
            episode = store.episode(index)
            dense.append(replace(episode, reward=episode.reward - 0.1))
    policy = f"policy={only(place / 'imitate')}"
    done = robot_rl(
        "offline", policy, "datasets=[demos.zarr,dense.zarr]", *SHORT, "run_root=runs_mixed", cwd=place, code=1
    )
    assert "rewards from -0.1" in done.stderr
    words = ["dataset=demos.zarr", f"teacher={only(place / 'imitate')}", "train.num_steps=2", "train.threads=1"]
    robot_rl("distill_onestep", *ENV, *words, "run_root=student", cwd=place)
    words = [f"policy={only(place / 'student')}", "datasets=[demos.zarr]", *SHORT, "run_root=runs_student"]
    assert "OneStepPolicy" in robot_rl("offline", *words, cwd=place, code=1).stderr


def test_pure_offline_needs_no_simulator(place: Path) -> None:
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('mani_skill', 'sapien', 'gymnasium', 'gym_pusht'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from robot_rl.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["offline", f"policy={only(place / 'imitate')}", "datasets=[demos.zarr]", "methods=[merged]", *SHORT]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "run_root=runs_blocked"], cwd=place, capture_output=True, text=True,
        timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_calibrate_scores_and_plays_every_policy_once(place: Path) -> None:
    run, _ = offline(place, "methods=[merged,success_only]", root="runs_calibrated")
    policies = [only(place / "imitate"), *(run / "round_00" / name for name in ("merged", "success_only"))]
    words = ["judge", "calibrate", str(run), *map(str, policies), "--env", "point_reach"]
    done = robot_rl(*words, "env.max_episode_steps=20", "--episodes", "12", cwd=place)
    assert "has the weights of" not in done.stderr
    document = json.loads((run / "ope" / "calibration.json").read_text())
    assert [row["policy"] for row in document["policies"]] == [str(policy) for policy in policies]
    copied = shutil.copytree(policies[1], place / "a_copy", symlinks=True)
    done = robot_rl(*words, str(copied), "env.max_episode_steps=20", "--episodes", "12", cwd=place)
    assert f"{copied} has the weights of {policies[1]} and is left out" in done.stderr
    again = json.loads((run / "ope" / "calibration.json").read_text())
    assert again["policies"] == document["policies"]
    assert all(row["checkpoints"] == 3 for row in again["rows"])
