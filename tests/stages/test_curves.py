"""`robot-rl curves`: first passages by hand, and censored runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robot_rl.errors import DataError
from robot_rl.workbench.curves import main, read_curve, table


def run(folder: Path, seed: int, key: str, success: list[float], algo: str = "") -> Path:
    folder.mkdir()
    lines = [{"step": 0, "other": 1.0}] + [{"step": 1000 * place, key: value} for place, value in enumerate(success)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    head = f"algo: {{_target_: robot_rl.policies.{algo}}}\n" if algo else ""
    (folder / "config.yaml").write_text(f"{head}env: {{reward_mode: sparse}}\nseed: {seed}\n")
    return folder


def test_first_passages_and_censored_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [
        run(tmp_path / "b", 12, "online/success_once", [0.5, 0.8, 0.7, 0.95]),
        run(tmp_path / "a", 11, "online/success_once", [0.9, 0.94]),
        run(tmp_path / "c", 11, "baseline/success_once_deterministic", [0.0, 0.1, 0.0], "baseline_sb3.ppo"),
    ]
    ours, peer = table([read_curve(folder) for folder in runs], [0.8, 0.95])[::-1]
    assert ours == {
        "method": "online (ours)", "reward": "sparse", "seeds trained": 2,
        "steps to 80%": "0, 1000", "steps to 95%": "> 1000 (0.94), 3000", "last success": "0.94, 0.95",
    }  # fmt: skip
    assert peer["method"] == "baseline_sb3.ppo"
    assert peer["steps to 80%"] == "> 2000 (0.10)"
    output = tmp_path / "table.json"
    assert main([*map(str, runs), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["rows"] == [peer, ours]
    assert "> 2000 (0.10)" in capsys.readouterr().out


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a run of online or baseline"):
        read_curve(tmp_path)
    with pytest.raises(DataError, match="neither"):
        read_curve(run(tmp_path / "x", 1, "offline/value", [1.0]))
