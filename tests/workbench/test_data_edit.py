"""Edits and repair as people type them: exit codes, dry runs, JSON, and the way back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import trashed
from robot_rl.errors import ConfigError, DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode
from robot_rl.workbench import data_edit, data_repair

SPEC = EnvSpec(
    env_id="EditTest-v1",
    observation={"proprio": ArraySpec("proprio", (3,))},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "pd"),
    joint_names=("a",),
    robot="panda",
    control_hz=10.0,
    max_episode_steps=40,
)


def make_episode(number: int, steps: int = 5) -> Episode:
    rng = np.random.default_rng(number)
    frames = rng.standard_normal((steps + 1, 3)).astype(np.float32)
    return Episode(
        observation={"proprio": frames[:-1]},
        final_observation={"proprio": frames[-1]},
        action=rng.standard_normal((steps, 2)).astype(np.float32),
        reward=np.zeros(steps, np.float32),
        success=(np.arange(steps) == steps - 1) & (number % 2 == 0),
        terminated=True,
        truncated=False,
        source=np.ones(steps, np.uint8),
        time=np.arange(steps) / 10.0,
        metadata={"seed": number},
    )


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    path = tmp_path / "demos.zarr"
    with EpisodeStore.create(path, SPEC) as store:
        store.append_many([make_episode(number) for number in range(6)])
    return path


def seeds(path: Path) -> list[int]:
    return EpisodeStore.open(path).seeds.tolist()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_delete_and_restore(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(demos.parent)
    assert data_edit.main(["delete", str(demos), "1", "3-4", "--dry-run"]) == 0
    assert "Dry run, nothing was written" in capsys.readouterr().out
    assert files_of(demos.parent) == before
    assert data_edit.main(["delete", str(demos), "1", "3-4"]) == 0
    text = capsys.readouterr().out
    assert "3 episodes, 15 steps, 2 with success" in text
    assert f"`robot-rl data restore {demos}` brings it back" in text
    assert seeds(demos) == [0, 2, 5]
    assert data_edit.main(["restore", str(demos), "--list", "--json"]) == 0
    (version,) = json.loads(capsys.readouterr().out)
    assert version["version"] == trashed(demos)[0].name
    assert version["bytes"] > 0
    assert data_edit.main(["restore", str(demos)]) == 0
    assert seeds(demos) == list(range(6))
    assert (
        data_edit.main(["delete", str(demos), "--failures", "--target", str(demos.parent / "good.zarr"), "--json"]) == 0
    )
    assert seeds(demos.parent / "good.zarr") == [0, 2, 4]
    assert seeds(demos) == list(range(6))


def test_an_index_that_does_not_exist_changes_nothing(demos: Path) -> None:
    before = files_of(demos.parent)
    with pytest.raises(DataError, match=r"episodes of 0\.\.5, got 17\. Nothing was changed") as caught:
        data_edit.main(["delete", str(demos), "2", "17"])
    assert caught.value.exit_code == 1
    with pytest.raises(ConfigError) as usage:
        data_edit.main(["delete", str(demos), "two"])
    assert usage.value.exit_code == 2
    with pytest.raises(SystemExit) as stop:
        data_edit.main(["delete", str(demos), "2", "--forc"])
    assert stop.value.code == 2
    assert files_of(demos.parent) == before


def test_split_and_merge_give_the_same_data(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = demos.parent
    parts = [f"{folder / 'train.zarr'}=0.7", f"{folder / 'val.zarr'}=rest"]
    assert data_edit.main(["split", str(demos), "--into", *parts, "--seed", "3", "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["episodes"] for report in reports] == [4, 2]
    both = [str(folder / "train.zarr"), str(folder / "val.zarr")]
    assert data_edit.main(["merge", *both, "--target", str(folder / "all.zarr")]) == 0
    assert sorted(seeds(folder / "all.zarr")) == list(range(6))
    with pytest.raises(DataError, match="6 duplicates"):
        data_edit.main(["merge", str(demos), str(folder / "all.zarr"), "--target", str(folder / "twice.zarr")])
    assert not (folder / "twice.zarr").exists()
    with pytest.raises(ConfigError, match="two stores or more"):
        data_edit.main(["merge", str(demos), "--target", str(folder / "one.zarr")])
    with pytest.raises(ConfigError, match="each store once"):
        data_edit.main(["split", str(demos), "--into", "a=1", "a=5"])


def test_trim_relabel_reencode(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_edit.main(["trim", str(demos), "--begin", "2", "--episodes", "1-2"]) == 0
    assert "2 episodes trimmed, 4 of 30 steps cut off" in capsys.readouterr().out
    assert EpisodeStore.open(demos).lengths.tolist() == [5, 3, 3, 5, 5, 5]
    words = ["relabel", str(demos), "--reward", "sparse", "--set", "licence=CC-BY-4.0", "--set", "operators=2"]
    assert data_edit.main(words) == 0
    assert "changed: data/reward in 3 episodes" in capsys.readouterr().out
    with EpisodeStore.open(demos) as store:
        assert store.episode(2).reward.tolist() == [0, 0, 1]
        card = store.metadata["card"]
        assert (card["licence"], card["operators"]) == ("CC-BY-4.0", 2)
        before = store.content_hash()
    assert data_edit.main(["reencode", str(demos)]) == 0
    with EpisodeStore.open(demos) as store:
        assert store.content_hash() == before
        assert [entry["command"] for entry in store.metadata["history"]] == ["trim", "relabel", "reencode"]
    assert len(trashed(demos)) == 3
    with pytest.raises(ConfigError):
        data_edit.main(["trim", str(demos), "--idle", "1", "--columns", "0-3"])
    with pytest.raises(DataError, match="Did you mean 'licence'"):
        data_edit.main(["relabel", str(demos), "--set", "license=MIT"])
    assert data_edit.main(["relabel", str(demos), "--set", "licence="]) == 0
    with EpisodeStore.open(demos) as store:
        assert store.metadata["card"].keys() == {"operators", "reward_rule"}


def test_verify_and_repair(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_repair.main(["verify", str(demos)]) == 0
    assert "all 6 episodes verify, nothing to repair" in capsys.readouterr().out
    os.truncate(demos / "data" / "action" / "0.0", 20)
    assert data_repair.main(["verify", str(demos), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["verified"], facts["episodes"], facts["is_whole"]) == (0, 6, False)
    assert "a file of 20 bytes" in facts["lost"]["5"]
    with pytest.raises(DataError, match="Nothing was changed"):
        data_repair.main(["repair", str(demos)])
    shutil.rmtree(demos)
    with EpisodeStore.create(demos, SPEC) as store:
        store.append_many([make_episode(number) for number in range(6)])
    file = demos / "meta" / "episode_seed" / "0"
    file.unlink()
    assert data_repair.main(["repair", str(demos), "--dry-run"]) == 0
    assert f"damaged: array meta/episode_seed, chunk {file}: no such file" in capsys.readouterr().out
    assert not trashed(demos)
    assert data_repair.main(["repair", str(demos), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["repaired"]["episodes"] == 6
    assert seeds(demos) == list(range(6))
    assert data_repair.main(["repair", str(demos)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert len(trashed(demos)) == 1
