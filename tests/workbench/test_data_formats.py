"""`robot-rl data export` and `import` as people type them: the format is found, and the store comes back the same."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from robot_rl.data.formats.known import FORMATS, detect_format
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect
from robot_rl.workbench.data import COMMANDS, main


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    words = ["env=point_reach", "expert=point_reach", f"dataset={folder / 'demos.zarr'}", "num_episodes=12"]
    config = load_config(collect.CONFIG, [*words, f"run_root={folder}"], name="collect")
    run = RunDirectory.create(folder, stage="collect", task="point", seed=0, config_yaml="", command="")
    collect.run(config, run)
    return folder / "demos.zarr"


@pytest.mark.parametrize(("name", "target"), [("robomimic", "out.hdf5"), ("lerobot", "out")])
def test_there_and_back(
    demos: Path, tmp_path: Path, name: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "lerobot" and find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed (extra data)")
    assert main(["export", str(demos), str(tmp_path / target), "--format", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 12
    assert detect_format(tmp_path / target) == name
    assert main(["import", str(tmp_path / target), str(tmp_path / "back.zarr")]) == 0
    with EpisodeStore.open(demos) as store, EpisodeStore.open(tmp_path / "back.zarr") as back:
        assert back.content_hash() == store.content_hash()
        assert back.spec == store.spec
    assert main(["info", str(tmp_path / target)]) == 0
    assert f"format: {name}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="swap"):
        main(["import", str(tmp_path / target), str(tmp_path / "x.zarr"), "--option", "swap=true"])


def test_what_is_no_dataset_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "notes.txt", tmp_path / "nothing"):
        with pytest.raises(DataError, match=r"known format.*lerobot"):
            main(["import", str(path), str(tmp_path / "x.zarr")])


def test_every_command_and_format_has_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"robot-rl data {command}" in capsys.readouterr().out
    assert "lerobot" in FORMATS
