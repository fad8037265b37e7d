"""Training may not start on data with errors: refused by name before the first step, unless the check is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data import quality_gate
from robot_rl.data.quality_gate import require_trainable
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages import imitate, offline
from robot_rl.stages.imitate import ImitateConfig
from robot_rl.stages.offline import OfflineConfig
from robot_rl.types import Episode

SPEC = EnvSpec(
    env_id="Gate",
    observation={
        "proprio": ArraySpec("proprio", (2,), units=("m",), meanings=("x", "y")),
        "state": ArraySpec("state", (2,)),
        "image/top": ArraySpec("image/top", (8, 8, 3), dtype="uint8"),
    },
    action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "gate"),
    joint_names=(),
    robot="gate",
    control_hz=10.0,
    max_episode_steps=30,
)


def episode(number: int, *, steps: int = 20, success: bool = True) -> Episode:
    """A robot that goes where its action says, and a camera with noise."""
    rng = np.random.default_rng(number)
    action = rng.uniform(-0.5, 0.5, (steps, 2)).astype(np.float32)
    way = np.concatenate([np.zeros((1, 2)), np.cumsum(action, axis=0)]).astype(np.float32) / 10
    frames = {"proprio": way, "state": way[::-1].copy()}
    frames["image/top"] = rng.integers(30, 226, (steps + 1, 8, 8, 3)).astype(np.uint8)
    hits = (np.arange(steps) == steps - 1) & success
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=action, reward=hits.astype(np.float32), success=hits, terminated=success, truncated=not success,
        source=np.zeros(steps, np.uint8), time=np.arange(steps) / 10 + 1e-4 * rng.uniform(size=steps),
        metadata={"seed": number, "collector": "gate"},
    )  # fmt: skip


def store_of(path: Path, *episodes: Episode) -> str:
    with EpisodeStore.create(path, SPEC) as store:
        store.append_many(list(episodes))
    return str(path)


def late(one: Episode) -> Episode:
    time = one.time.copy()
    time[10:] += 5.0
    return replace(one, time=time)


def frozen(one: Episode) -> Episode:
    images = one.observation["image/top"].copy()
    images[5:] = images[5]
    return replace(one, observation={**one.observation, "image/top": images})


def rewarded_for_nothing(one: Episode) -> Episode:
    reward = one.reward.copy()
    reward[3] = 1
    return replace(one, reward=reward)


def jumping(one: Episode) -> Episode:
    proprio = one.observation["proprio"].copy()
    proprio[7, 1] += 3.0
    return replace(one, observation={**one.observation, "proprio": proprio})


@pytest.mark.parametrize(
    ("damage", "check", "place"),
    [
        (late, "gap", "episode 1, step 10, key time"),
        (frozen, "frozen_camera", "episode 1, step 6, camera top"),
        (rewarded_for_nothing, "reward_and_success", "episode 1, step 3, key reward"),
        (jumping, "jump", "episode 1, step 7, key proprio, element 1"),
    ],
)
def test_an_error_is_refused_by_name_and_may_be_allowed_by_name(
    tmp_path: Path, damage: Callable[[Episode], Episode], check: str, place: str
) -> None:
    good, bad = episode(0), damage(episode(1))
    path = store_of(tmp_path / "a.zarr", good, bad, episode(2))
    with pytest.raises(DataError, match=rf"(?s)error +{check}: {place}:.*fix: .*ignore_checks=\[.*{check}") as caught:
        require_trainable([path])
    assert str(caught.value).startswith(path)
    others = caught.value.hint.partition("[")[2].rstrip("].").split(",")
    report = require_trainable([path], ignore=others)
    assert check in {found["check"] for found in report["ignored"][path]}
    assert report["ignored_checks"] == sorted(others)
    json.dumps(report, allow_nan=False)
    # Episodes that are not trained on do not count.
    assert require_trainable([path], episodes=[0, 2])["ignored"] == {}


def test_a_word_that_is_no_check_is_refused(tmp_path: Path) -> None:
    path = store_of(tmp_path / "a.zarr", episode(0))
    with pytest.raises(ConfigError, match=r"ignore_checks: expected names of checks, got 'gpa'.*Did you mean 'gap'"):
        require_trainable([path], ignore=["gpa"])


def test_stores_of_failures_are_fine_beside_one_with_success(tmp_path: Path) -> None:
    failed = store_of(tmp_path / "f.zarr", episode(0, success=False), episode(1, success=False))
    mixed = store_of(tmp_path / "m.zarr", episode(2), episode(3, success=False))
    assert require_trainable([mixed, failed])["ignored"] == {}
    with pytest.raises(DataError, match="no_success: whole dataset: none of 2 episodes succeeds"):
        require_trainable([failed])
    assert list(require_trainable([failed], ignore=["no_success"])["ignored"]) == [failed]


def test_cameras_of_a_few_episodes_are_read_and_numbers_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store_of(tmp_path / "a.zarr", *(episode(number) for number in range(12)))
    seen: list[tuple[int, bool]] = []
    add = quality_gate.Audit.add

    def watched(self: quality_gate.Audit, number: int, one: Episode) -> None:
        seen.append((number, "image/top" in one.observation))
        add(self, number, one)

    monkeypatch.setattr(quality_gate.Audit, "add", watched)
    monkeypatch.setattr(quality_gate, "CAMERA_EPISODES", 3)
    require_trainable([path], episodes=[1, 2, 3, 5, 11])
    assert seen == [(1, True), (2, False), (3, True), (5, False), (11, True)]


def test_a_damaged_episode_is_named(tmp_path: Path) -> None:
    path = store_of(tmp_path / "a.zarr", episode(0), episode(1))
    chunk = tmp_path / "a.zarr" / "data" / "reward" / "0"
    content = bytearray(chunk.read_bytes())
    content[40] ^= 0xFF
    chunk.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged: episode 0: .*data/reward"):
        require_trainable([path])


def opened(root: Path, stage: str) -> RunDirectory:
    return RunDirectory.create(root, stage=stage, task="t", seed=0, config_yaml="{}\n", command=[])


def test_imitate_and_offline_do_not_start_on_errors(tmp_path: Path) -> None:
    path = store_of(tmp_path / "a.zarr", late(episode(0)), *(episode(number) for number in range(1, 6)))
    words = [
        f"dataset={path}", "policy=mlp", "policy.hidden_width=16", "train.num_steps=1", "train.batch_size=8",
        "train.threads=1", "train.warmup_steps=1",
    ]  # fmt: skip
    run = opened(tmp_path / "refused", "imitate")
    with pytest.raises(DataError, match=r"(?s)gap: episode 0, step 10.*ignore_checks=\["):
        imitate.run(load_config(ImitateConfig, words, name="imitate"), run)
    assert not (run.path / "checkpoints").exists()
    run = opened(tmp_path / "allowed", "imitate")
    imitate.run(load_config(ImitateConfig, [*words, "ignore_checks=[gap,rate]"], name="imitate"), run)
    noted = run.read_json("provenance.json")["data_check"]
    assert {found["check"] for found in noted["ignored"][path]} == {"gap", "rate"}
    assert "python" in run.read_json("provenance.json")
    words = [f"policy={run.path}", f"datasets=[{path}]"]
    with pytest.raises(DataError, match="gap: episode 0, step 10"):
        offline.run(load_config(OfflineConfig, words, name="offline"), opened(tmp_path / "offline", "offline"))
