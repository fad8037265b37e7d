"""`robot-rl card`: what it says of a policy is what the files of its runs say, and nothing that nobody measured."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from robot_rl.algorithms.statistics import proportion
from robot_rl.cli import main as robot_rl
from robot_rl.errors import ConfigError, DataError
from robot_rl.workbench.card import main


def stage(folder: Path, name: str, *words: str) -> Path:
    before = set(folder.glob(f"*_{name}_*"))
    assert robot_rl([name, "env=point_reach", f"run_root={folder}", "--quiet", "--track", "none", *words]) == 0
    (run,) = set(folder.glob(f"*_{name}_*")) - before
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy that was hardly trained, its export, and an evaluation of the file."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "data.zarr"
    stage(folder, "collect", "expert=point_reach", "num_episodes=8", f"dataset={data}")
    train = ("train.num_steps=20", "train.checkpoint_every_steps=20", "train.batch_size=16", "policy.hidden_width=32")
    imitate = stage(folder, "imitate", f"dataset={data}", *train)
    before = set(folder.iterdir())
    assert (
        robot_rl(["export", f"policy={imitate}", f"dataset={data}", f"run_root={folder}", "latency_calls=5", "--quiet"])
        == 0
    )
    (export,) = set(folder.iterdir()) - before
    played = ("num_episodes=5", "first_seed=400")
    evaluation = stage(folder, "evaluate", f"policy={export / 'export' / 'policy.onnx'}", *played)
    return {"imitate": imitate, "export": export, "data": data, "evaluation": evaluation}


def test_says_what_the_files_say(runs: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "README.md"
    words = [
        str(runs["export"]),
        "--evaluation",
        str(runs["evaluation"]),
        "--set",
        "licence=MIT",
        "--set",
        "use=a test",
    ]
    assert main([*words, "--output", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    file = runs["export"] / "export" / "policy.onnx"
    assert hashlib.sha256(file.read_bytes()).hexdigest() in text
    wins = json.loads((runs["evaluation"] / "summary.json").read_text())["success_once"]["k"]
    share = proportion(wins, 5)
    assert f"| {wins}/5 | {share.low:.1%} to {share.high:.1%} | seeds 400-404" in text
    parity = json.loads((file.parent / "parity.json").read_text())["max_error"]
    assert f"Largest difference {parity:.2g} action units" in text
    assert runs["imitate"].name in text
    assert str(runs["data"]) in text
    assert text.startswith("---\nlicense: mit\n")
    assert "| use | a test |" in text
    assert "| hardware | not said (arms that it has really moved) |" in text


def test_without_an_evaluation_it_says_so(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs["export"])]) == 0
    assert "Not evaluated here." in capsys.readouterr().out


def test_an_evaluation_of_another_policy_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs["evaluation"], other)
    summary = json.loads((other / "summary.json").read_text())
    summary["protocol"]["policy"]["path"] = str(runs["imitate"])
    (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match=r"expected an evaluation of .*policy\.onnx, got one of"):
        main([str(runs["export"]), "--evaluation", str(other)])


@pytest.mark.parametrize("setting", ["license=MIT", "licence=", "MIT"])
def test_an_unknown_field_is_refused(runs: dict[str, Path], setting: str) -> None:
    with pytest.raises(ConfigError, match="Fields: licence, use"):
        main([str(runs["export"]), "--set", setting])
