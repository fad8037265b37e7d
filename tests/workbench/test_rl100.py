"""rl100: the comparison by hand, finished runs are found again, and a failing stage is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robot_rl.cli import main
from robot_rl.errors import RunError
from robot_rl.workbench.rl100 import FLAWS, _compared, _row, env_words, finished_stage
from robot_rl.workbench.rl100_online import table


def test_comparison_by_hand() -> None:
    imitation = [True] * 4 + [False] * 6
    better = [True] * 9 + [False]
    found = _compared({"imitation": imitation, "offline": better, "merged": imitation})
    assert found["imitation"]["p_value_vs_imitation"] is None
    # Five discordant pairs, all one way: 2 / 2^5.
    assert found["offline"]["p_value_vs_imitation"] == pytest.approx(0.0625)
    assert found["merged"]["p_value_vs_imitation"] == 1.0
    assert (found["offline"]["k"], found["offline"]["n"]) == (9, 10)
    assert found["offline"]["low"] == pytest.approx(0.596, abs=1e-3)  # Wilson, 9 of 10
    row = _row(3, "offline", found["offline"])
    assert (row["training seed"], row["success once"], row["p against imitation"]) == (3, "9/10", "0.062")


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    run = tmp_path / "collect" / "2026-01-01_00-00-00_collect_x_s0"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "finished", "stage": "collect"}))
    assert finished_stage(tmp_path / "collect", "collect", "no=such_key") == run


def test_a_failing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"robot-rl collect(.|\n)*such_key"):
        finished_stage(tmp_path / "collect", "collect", "no_such_key=1")


def test_a_task_without_a_flawed_expert_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", "rl100", "--env", "stack_cub", "--seeds", "0", "--folder", "f"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Did you mean 'stack_cube'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("env", FLAWS)
def test_every_task_composes_with_its_expert(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", *env_words(env), *FLAWS[env], "--dry-run"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    # PegInsertionSide is driven by another controller than the one whose fast step is tested.
    assert config["env"]["fast_cpu"] == (env != "peg_insertion")
    assert config["expert"]["action_noise"] > 0.0


def test_online_table_by_hand() -> None:
    teacher, head = [True] * 9 + [False], [False] + [True] * 9
    wins = {"offline": [True, False] * 5, "online": teacher, "one step, ONNX": head}
    cost = {"offline": (0, 0.0), "online": (1000, 90.0), "one step, ONNX": (20, 60.0)}
    rows = table({4: (wins, cost), 5: (wins, cost)})
    assert [(row["training seed"], row["policy"]) for row in rows[2:4]] == [("4", "one step, ONNX"), ("5", "offline")]
    assert rows[1]["env steps"] == 1000
    assert rows[1]["minutes"] == 1.5
    assert rows[1]["longest run"] == 9
    assert rows[0]["against its teacher"] == "-"
    # One pair won and one lost of ten: no difference, Tango's interval is symmetric about it.
    shown = rows[2]["against its teacher"]
    assert shown.startswith(("+0.0 points (-", "-0.0 points (-"))
    low, high = (float(part) for part in shown.split("(")[1].rstrip(")").split(" to "))
    assert low == -high
    assert [row["success once"] for row in rows[-3:]] == ["10/20", "18/20", "18/20"]
