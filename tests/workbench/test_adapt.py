"""Few-shot adaptation on the point task: before and after on the same seeds, resumed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robot_rl.errors import ConfigError, DataError, RunError
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect, imitate
from robot_rl.stages.collect import CollectConfig
from robot_rl.stages.imitate import ImitateConfig
from robot_rl.workbench.adapt import main

POINT = ["env=point_reach", "expert=point_reach"]
SETTING = [*POINT, "num_episodes=20", "num_envs=4", "shift={scale: 1.1}"]
FEW = ["--demonstrations", "60", "--steps", "700", "--batch-size", "64", "--learning-rate", "1e-3", "--json"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has seen the middle of the square, and that not for long."""
    folder = tmp_path_factory.mktemp("adapt")
    words = [*POINT, "env.shift.scale=0.6", "num_episodes=15", f"dataset={folder}/demos.zarr"]
    collect.run(load_config(CollectConfig, words, name="collect"), opened(folder / "collect", "collect"))
    run = opened(folder / "imitate", "imitate")
    words = [
        "env=point_reach", f"dataset={folder}/demos.zarr", "policy.hidden_width=64", "train.num_steps=150",
        "train.batch_size=64", "train.threads=1",
    ]  # fmt: skip
    imitate.run(load_config(ImitateConfig, words, name="imitate"), run)
    return run.path


def opened(root: Path, stage: str) -> RunDirectory:
    return RunDirectory.create(root, stage=stage, task="t", seed=0, config_yaml="{}\n", command=[])


def adapted(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_demonstrations_of_the_changed_setting_help_there(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"policy={policy}", *SETTING, *FEW, "--home", "--folder", str(tmp_path / "a")]
    found = adapted(capsys, *words)
    here, home = found["comparison"]["here"], found["comparison"]["home"]
    assert [seed for seed, _, _ in here["outcomes"]] == list(range(100_000, 100_020))
    for name, protocol in (("a", here["a"]["protocol"]), ("b", here["b"]["protocol"])):
        assert protocol["shift"]["scale"] == 1.1, name
        assert "shift" not in home[name]["protocol"]
    assert here["a"]["protocol"]["policy"]["path"] == str(policy)
    assert here["b"]["protocol"]["policy"]["path"] == found["adapted"]
    k_before, k_after = here["a"]["success"]["k"], here["b"]["success"]["k"]
    assert here["pairs"]["only_b"] - here["pairs"]["only_a"] == k_after - k_before
    assert k_after >= k_before + 6, (k_before, k_after)
    assert here["test"]["method"] == "McNemar, exact"
    assert found["demonstrations"]["stored"] == 60
    assert json.loads((tmp_path / "a" / "adapt.json").read_text()) == found

    before = sorted((tmp_path / "a").rglob("*"))
    assert adapted(capsys, *words) == found  # everything is there already
    assert sorted((tmp_path / "a").rglob("*")) == before
    with pytest.raises(RunError, match="another one"):
        main([*words, "shift.xy_m=[0.01,0]"])


def test_given_demonstrations_are_used_and_others_refused(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = policy.parents[1] / "demos.zarr"
    words = [f"policy={policy}", *POINT, "num_episodes=2", *FEW, "--steps", "2", "--folder", str(tmp_path / "b")]
    found = adapted(capsys, *words, "--dataset", str(dataset))
    assert found["demonstrations"] is None
    assert not (tmp_path / "b" / "collect").exists()
    with pytest.raises(DataError):
        main([*words[:-1], str(tmp_path / "c"), "--dataset", str(tmp_path / "nothing.zarr")])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["env=point_reach"], "policy="),
        (["policy=a/policy.onnx"], "diffusion policy"),
        (["policy=a", "--demonstrations", "0"], "above 0"),
        (["policy=a", "--first-seed", "99999"], "apart"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(words: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        main([*words, "--folder", str(tmp_path / "d")])
    assert not (tmp_path / "d").exists()
