"""`robot-rl data` as people type it: info, import with a card, and ManiSkill's own recording all the way into imitate."""

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
import zarr

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.workbench.data import main

CARD = """
env_id: PushT-v0
robot: pusher
control_hz: 10
max_episode_steps: 300
joint_names: []
source: teleop
success: last_step
action_semantics: {kind: absolute, delta_reference: none, frame: base, rotation: none, gripper: none, control_mode: pos}
action: {keys: [action], units: [px], meanings: [target x, target y]}
observation:
  proprio: {keys: [state], units: [px], meanings: [agent x, agent y]}
"""


@pytest.fixture
def pusht(tmp_path: Path) -> Path:
    """Two episodes of 4 rows, action = state + 1; and a card."""
    state = np.arange(16, dtype=np.float32).reshape(8, 2)
    root = zarr.open_group(str(tmp_path / "pusht.zarr"), mode="w", zarr_format=2)
    root.create_array("data/state", data=state)
    root.create_array("data/action", data=state + 1)
    root.create_array("meta/episode_ends", data=np.array([4, 8]))
    (tmp_path / "card.yaml").write_text(CARD)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    source, target = str(folder / "pusht.zarr"), str(folder / "out.zarr")
    return ["import", source, target, "--format", "diffusion_policy", *more]


def test_import_with_a_card(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(pusht, "--spec", str(pusht / "card.yaml"), "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["episodes"], report["steps"], report["successes"]) == (2, 6, 2)
    with EpisodeStore.open(pusht / "out.zarr") as store:
        assert report["content_hash"] == store.content_hash()
        assert store.episode(1).action.tolist() == [[9, 10], [11, 12], [13, 14]]
        assert store.spec.control_hz == 10


def test_card_may_be_json_and_the_limit_overridden(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from omegaconf import OmegaConf

    card = OmegaConf.to_container(OmegaConf.create(CARD))
    (pusht / "card.json").write_text(json.dumps(card))
    assert main(words(pusht, "--spec", str(pusht / "card.json"), "--max-episode-steps", "2")) == 0
    assert "2 of 2 demonstrations are longer than the limit of 2 steps" in capsys.readouterr().out


def test_no_card_prints_one_to_fill_in(pusht: Path) -> None:
    with pytest.raises(DataError) as caught:
        main(words(pusht))
    for part in ("action_semantics:", "control_hz: ???", "data/state: one row is (2,)"):
        assert part in str(caught.value)


def test_unfilled_template_is_refused(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The template that `info` prints is a whole card but for its question marks."""
    assert main(["info", str(pusht / "pusht.zarr"), "--json"]) == 0
    template = json.loads(capsys.readouterr().out)["card"]
    (pusht / "card.yaml").write_text(template)
    with pytest.raises(ConfigError, match=r"env_id.*expected a value"):
        main(words(pusht, "--spec", str(pusht / "card.yaml")))
    for before, after in (
        ("max_episode_steps: ???", "max_episode_steps: 300"), ("control_hz: ???", "control_hz: 10"),
        ("success: ???", "success: none"), ("kind: ???", "kind: absolute"), (": ???", ": none"),
        ('keys: ["???"]', "keys: [state]"), ('"???"', "x"),
    ):  # fmt: skip
        template = template.replace(before, after)
    (pusht / "card.yaml").write_text(template)
    assert main(words(pusht, "--spec", str(pusht / "card.yaml"))) == 0


def test_card_in_the_docs(tmp_path: Path) -> None:
    """docs/import.md's card, on a store with PushT's keys."""
    text = (Path(__file__).resolve().parents[2] / "docs/import.md").read_text()
    (tmp_path / "card.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    root = zarr.open_group(str(tmp_path / "pusht.zarr"), mode="w", zarr_format=2)
    for key, shape in (("state", (5,)), ("action", (2,)), ("img", (96, 96, 3))):
        root.create_array(f"data/{key}", data=np.ones((4, *shape), np.float32))
    root.create_array("meta/episode_ends", data=np.array([4]))
    assert main(words(tmp_path, "--spec", str(tmp_path / "card.yaml"))) == 0


def test_dry_run_lists_every_bad_episode_and_writes_nothing(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = zarr.open_group(str(pusht / "pusht.zarr"), mode="r+")["data/state"]
    state[:] = np.where(np.arange(16).reshape(8, 2) == 11, np.nan, state[:])
    card = ["--spec", str(pusht / "card.yaml")]
    assert main(words(pusht, *card, "--dry-run")) == 1
    assert "left out: episode 1: " in capsys.readouterr().out
    assert not (pusht / "out.zarr").exists()
    assert main(words(pusht, *card, "--skip-bad", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--spec", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--env", "pick_cube"], ["--spec"]),
        (["--max-episodes", "0"], ["--max-episodes"]),
    ],
)
def test_wrong_words(pusht: Path, more: list[str], parts: list[str]) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        main(words(pusht, *more))
    for part in parts:
        assert part in str(caught.value)


def test_misspelt_card_names_the_field(pusht: Path) -> None:
    (pusht / "card.yaml").write_text(CARD.replace("control_hz", "control_h"))
    with pytest.raises(ConfigError, match=r"control_h.*control_hz"):
        main(words(pusht, "--spec", str(pusht / "card.yaml")))


def test_info_of_a_store(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(pusht, "--spec", str(pusht / "card.yaml")))
    capsys.readouterr()
    assert main(["info", str(pusht / "out.zarr"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["episodes"], facts["steps"], facts["success_once"]) == ("robot-rl", 2, 6, 2)
    assert facts["spec"]["robot"] == "pusher"
    assert main(["info", str(pusht / "out.zarr")]) == 0
    assert "lengths: 3..3 of at most 300" in capsys.readouterr().out


def test_info_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing there"):
        main(["info", str(tmp_path / "none.zarr")])


# ---- ManiSkill ----


def grasp(state: np.ndarray) -> np.ndarray:
    """Controller for PickCube-v1 on its flat state: above the cube, down, close, to the goal."""
    to_cube, to_goal = state[36:39].copy(), state[39:42]
    near = np.linalg.norm(to_cube) < 0.01
    if np.linalg.norm(to_cube[:2]) > 0.01:
        to_cube[2] += 0.08
    is_grasped = bool(state[18])
    move = to_goal * 10 if is_grasped else (np.zeros(3) if near else to_cube * 10)
    return np.clip(np.concatenate([move, [-1.0 if near or is_grasped else 1.0]]), -1, 1).astype(np.float32)


def record(folder: Path, obs_mode: str, *, waits: int = 0) -> Path:
    """Two episodes of PickCube-v1 recorded by ManiSkill; `waits` steps of doing nothing come first."""
    pytest.importorskip("mani_skill")
    pytest.importorskip("h5py")
    from robot_rl.envs.headless import prepare_rendering

    backend = prepare_rendering("state", vulkan_icd=None).render_backend
    import gymnasium
    from mani_skill.utils.wrappers.record import RecordEpisode

    env: Any = gymnasium.make(
        "PickCube-v1", num_envs=1, obs_mode=obs_mode, control_mode="pd_ee_delta_pos", reward_mode="sparse",
        sim_backend="physx_cpu", render_backend=backend, max_episode_steps=200,
    )  # fmt: skip
    env = RecordEpisode(env, str(folder), trajectory_name="demo", save_video=False, source_type="motionplanning")
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        for step in range(waits + 60):
            if isinstance(obs, dict):
                from mani_skill.utils import common

                obs = common.flatten_state_dict(obs, use_torch=True) if obs else None
            action = np.zeros(4, np.float32) if obs is None or step < waits else grasp(obs[0].numpy())
            obs, _, terminated, truncated, _ = env.step(action[None])
            if terminated or truncated:
                break
    env.close()
    return folder / "demo.h5"


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("flat"), "state")


def test_flat_and_nested_files_give_the_same_store(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ways to record the same episodes; one spec from the file, one from our configuration."""
    nested = record(tmp_path, "state_dict")
    hashes = []
    for name, path, more in (("a", flat, []), ("b", nested, ["--env", "pick_cube"])):
        assert (
            main(["import", str(path), str(tmp_path / f"{name}.zarr"), "--format", "maniskill", *more, "--json"]) == 0
        )
        report = json.loads(capsys.readouterr().out)
        assert (report["episodes"], report["successes"], report["over_limit"]) == (2, 2, 0)
        hashes.append(report["content_hash"])
    assert hashes[0] == hashes[1]


def test_spec_of_another_store(flat: Path, tmp_path: Path) -> None:
    """Without a simulator: the spec of a store, or of a file with the same JSON, says how to read the file."""
    words = ["import", str(flat)]
    assert main([*words, str(tmp_path / "a.zarr"), "--format", "maniskill"]) == 0
    with EpisodeStore.open(tmp_path / "a.zarr") as store:
        (tmp_path / "spec.json").write_text(json.dumps(store.spec.to_json()))
        content = store.content_hash()
    for name, spec in (("b", "a.zarr"), ("c", "spec.json")):
        target = tmp_path / f"{name}.zarr"
        assert main([*words, str(target), "--format", "maniskill", "--spec", str(tmp_path / spec)]) == 0
        with EpisodeStore.open(target) as store:
            assert store.content_hash() == content


def test_imported_demonstrations_train_and_roll_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow demonstrations (40 idle steps, longer than PickCube's 50) are told, and imitate takes the store."""
    path = record(tmp_path, "state", waits=40)
    target = tmp_path / "demos.zarr"
    assert main(["info", str(path)]) == 0
    assert "control_mode: pd_ee_delta_pos" in capsys.readouterr().out
    assert main(["import", str(path), str(target), "--format", "maniskill"]) == 0
    text = capsys.readouterr().out
    assert "2 of 2 demonstrations are longer than the limit of 50 steps of PickCube-v1" in text
    assert "env.max_episode_steps=" in text
    done = subprocess.run(
        [
            sys.executable, "-m", "robot_rl", "imitate", "env=pick_cube", f"dataset={target}", "train.num_steps=2",
            "policy.observation_keys=[state]", "policy.hidden_width=32", "train.batch_size=8", "train.warmup_steps=1",
            "train.threads=1", "rollout_episodes=1", "env.max_episode_steps=5",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/checkpoints/step_000002/policy.safetensors"))


def test_recorded_without_observations_names_the_command(tmp_path: Path) -> None:
    path = record(tmp_path, "none")
    with pytest.raises(DataError) as caught:
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill"])
    for part in ("env_states", f"replay_trajectory --traj-path {path} -o state --use-env-states"):
        assert part in str(caught.value)


def test_env_of_another_control_mode_is_refused(flat: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(flat.parent, tmp_path / "copy")) / flat.name
    with pytest.raises(DataError, match=r"env_id.*StackCube-v1.*PickCube-v1"):
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill", "--env", "stack_cube"])
    content = json.loads(path.with_suffix(".json").read_text())
    for entry in content["episodes"]:
        entry["control_mode"] = "pd_joint_delta_pos"
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"control_mode.*pd_ee_delta_pos.*pd_joint_delta_pos"):
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill", "--env", "pick_cube"])
    with pytest.raises(DataError, match=r"actions: expected \(T, 8\)"):
        main(["import", str(path), str(tmp_path / "o.zarr"), "--format", "maniskill"])
