"""The command line: exit codes, what is printed where, run directories and their status, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robot_rl import cli
from robot_rl.cli_help import STAGES
from robot_rl.errors import DataError, RobotRlError
from robot_rl.runs.directory import RunDirectory


@dataclass(frozen=True)
class Loop:
    """The loop.

    Attributes:
        num_steps: how often it
            turns.
    """

    num_steps: int = 5


@dataclass(frozen=True)
class Config:
    """Configuration.

    Attributes:
        loop: the loop.
        mode: what happens.
        seed, run_root, resume: as in every stage.
    """

    loop: Loop = field(default_factory=Loop)
    mode: str = "ok"
    env: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


class SafetyStop(RobotRlError):
    """A stop by the safety filter."""

    exit_code = 3


def fake_run(config: Config, run: RunDirectory) -> dict[str, Any]:
    (run.path / "seen.json").write_text(json.dumps({"resume": config.resume, "num_steps": config.loop.num_steps}))
    if config.mode == "data":
        raise DataError("set.zarr", expected="episodes", got="none", hint="Collect some.")
    if config.mode == "safety":
        raise SafetyStop("joint 3", expected="a small step", got="a jump", hint="Check the policy.")
    if config.mode == "bug":
        raise ZeroDivisionError("division by zero")
    if config.mode == "package":
        import robot_rl_absent_package  # type: ignore[import-not-found]  # noqa: F401
    if config.mode == "interrupt":
        raise KeyboardInterrupt
    if config.mode == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    return {"success_once": {"rate": 0.123456789}, "episodes": 3}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`collect` is a stage of ours, its YAML lies in the returned folder, and runs go to tmp_path/runs."""
    module = ModuleType("robot_rl.stages.collect", "Collect: a stage for the test.\n\nMetrics: none.")
    module.CONFIG, module.run = Config, fake_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robot_rl.stages.collect", module)
    monkeypatch.setattr(cli, "_log_to_stderr", lambda quiet: None)
    (tmp_path / "yaml/kind").mkdir(parents=True)
    (tmp_path / "yaml/collect.yaml").write_text("defaults:\n  - _self_\n  - kind: null\nloop:\n  num_steps: 7\n")
    (tmp_path / "yaml/kind/slow.yaml").write_text("# @package _global_\nloop: {num_steps: 9}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "yaml"


def call(stage: Path, *words: str) -> int:
    return cli.main(["collect", *words, "--config-dir", str(stage)])


def only_run(stage: Path) -> RunDirectory:
    (path,) = (stage.parent / "runs").iterdir()
    return RunDirectory.open(path)


def test_success(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(stage, "seed=4", "loop.num_steps=6") == 0
    run = only_run(stage)
    assert run.path.name.endswith("_collect_none_s4")
    assert run.read_json("status.json")["state"] == "finished"
    assert "num_steps: 6" in (run.path / "config.yaml").read_text()
    assert (run.path / "command.txt").read_text().startswith("robot-rl collect seed=4 loop.num_steps=6")
    assert "run directory" in (run.path / "log.txt").read_text()
    out = capsys.readouterr().out
    assert out == f"success_once:\n  rate: 0.123457\nepisodes: 3\nrun: runs/{run.path.name}\n"


def test_json_goes_to_stdout_alone(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(stage, "--json", "seed=1") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == {"run": f"runs/{only_run(stage).path.name}", "success_once": {"rate": 0.123456789}, "episodes": 3}


@pytest.mark.parametrize(
    ("mode", "code", "state", "message"),
    [
        ("data", 1, "failed", "set.zarr: expected episodes, got none. Collect some."),
        ("safety", 3, "failed", "joint 3"),
        ("bug", 1, "failed", "ZeroDivisionError: division by zero"),
        ("package", 2, "failed", "pip install robot-rl-absent-package"),
        ("interrupt", 130, "interrupted", "stopped by the user"),
        ("terminate", 130, "interrupted", "stopped by the user"),
    ],
)
def test_exit_code_status_and_log(stage: Path, mode: str, code: int, state: str, message: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert call(stage, f"mode={mode}") == code
    run = only_run(stage)
    status = run.read_json("status.json")
    assert (status["state"], status["stage"]) == (state, "collect")
    assert message in status["message"]
    log = (run.path / "log.txt").read_text()
    assert ("Traceback" in log) == (mode == "bug")
    assert state.removesuffix("ed") in log
    assert signal.getsignal(signal.SIGTERM) is before


def test_debug_shows_the_traceback_of_a_user_error(stage: Path) -> None:
    assert call(stage, "mode=data", "--debug") == 1
    assert "Traceback" in (only_run(stage).path / "log.txt").read_text()


def test_config_errors_leave_no_run_behind(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(stage, "loop.num_stebs=1") == 2
    assert not (stage.parent / "runs").exists()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Did you mean 'num_steps'" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_dry_run_prints_the_configuration_only(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(stage, "--dry-run", "kind=slow") == 0
    assert "loop:\n  num_steps: 9\nmode: ok\n" in capsys.readouterr().out
    assert not (stage.parent / "runs").exists()


def test_resume_uses_the_stored_configuration(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(stage, "mode=interrupt", "loop.num_steps=8", "seed=2") == 130
    run = only_run(stage)
    (run.path / "config.yaml").write_text((run.path / "config.yaml").read_text().replace("mode: interrupt", "mode: ok"))
    assert call(stage, f"resume={run.path}", "loop.num_steps=8") == 0
    assert run.read_json("seen.json") == {"resume": str(run.path), "num_steps": 8}
    assert run.read_json("status.json")["state"] == "finished"
    assert only_run(stage).path == run.path
    capsys.readouterr()
    assert call(stage, f"resume={run.path}", "loop.num_steps=9", "seed=2", "mode=x", "kind=slow", "+new=1") == 2
    error = capsys.readouterr().err
    assert "loop.num_steps=9 (the run has loop.num_steps=8); mode=x (the run has mode=ok)" in error
    assert "seed" not in error
    assert "kind=slow" in error
    assert "+new=1" in error


def test_resume_of_something_else(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = RunDirectory.create("runs", stage="imitate", task="t", seed=0, config_yaml="seed: 0\n", command=["x"])
    assert call(stage, f"resume={other.path}") == 2
    assert f"robot-rl imitate resume={other.path}" in capsys.readouterr().err
    assert call(stage, "resume=runs/absent") == 1
    assert "expected a run directory, got no such folder" in capsys.readouterr().err


def test_stage_help_lists_keys_groups_and_texts(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(stage, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Collect: a stage for the test." in lines
    assert [line.split() for line in lines if "loop.num_steps" in line] == [
        ["loop.num_steps:", "int", "=", "7", "how", "often", "it", "turns."]
    ]
    assert any(
        line.split() == ["resume:", "str", "or", "null", "=", "null", "as", "in", "every", "stage."] for line in lines
    )
    assert "  kind: slow" in lines
    assert any(line.startswith("  env: ") and "point_reach" in line for line in lines)


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["colect"]) == 2
    assert "Did you mean 'collect'" in capsys.readouterr().err
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["collect", "--num-episodes", "5", "env=point_reach"]) == 2
    said = capsys.readouterr().err
    assert "option '--num-episodes'" in said
    assert "`num_episodes=5`" in said
    assert "env=point_reach" not in said


def test_table_is_aligned() -> None:
    rows = [("stage", "success"), ("collect", "1/2"), ("x", "100/200")]
    assert cli.as_columns(rows) == "stage    success\n-------  -------\ncollect  1/2\nx        100/200"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"task": "pick", "env": {"task": "PickCube-v1"}}, "pick"),
        ({"env": {"_target_": "robot_rl.envs.maniskill.make_env", "task": "PickCube-v1"}}, "PickCube-v1"),
        ({"env": {"_target_": "robot_rl.envs.point_reach.make_env"}}, "point_reach"),
        ({"env": {}, "dataset": "datasets/demos.zarr"}, "demos"),
        ({"env": {}, "datasets": ["datasets/demos.zarr", "datasets/rollouts.zarr"]}, "demos"),
        ({"policy": "runs/a", "robot": "cards/my_arm.yaml"}, "my_arm"),
        ({}, "none"),
    ],
)
def test_task_of_the_run_directory(config: dict[str, Any], name: str) -> None:
    from types import SimpleNamespace

    assert cli.task_name(SimpleNamespace(**config)) == name


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from robot_rl.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'hydra', 'numpy', 'omegaconf', 'rich', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*STAGES, "info", "--json", "130 interrupted"):
        assert name in done.stdout


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["robot-rl"] == "0.1.0"
    assert {"gpus", "cpu_model", "git"} <= facts.keys()


def test_a_background_job_of_a_script_hears_an_interrupt(tmp_path: Path) -> None:
    """A shell without job control begins such jobs with SIGINT ignored; a stage that is not listening yet must hear it too."""
    (tmp_path / "job.py").write_text(
        "import os, signal\nassert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        "from robot_rl import cli\n"
        "cli.general_help = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "print('ended with', cli.main(['--help']))\n"
    )
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} job.py & wait $!"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.stdout == f"ended with {cli.INTERRUPTED}\n", done.stderr
