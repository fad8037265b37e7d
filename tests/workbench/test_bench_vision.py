"""bench vision: shares by hand, what is measured where nothing draws, and a real renderer where there is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from software_vulkan import software_icd

from robot_rl.errors import EnvError
from robot_rl.workbench import bench, bench_vision
from robot_rl.workbench.bench_timing import BenchError, Measurement, Options


def measured(name: str, seconds: float, work: int) -> Measurement:
    return Measurement(name, work, "frames", np.full((3, 1), seconds))


def test_shares_by_hand() -> None:
    times = {
        # 5 frames a call: physics 10 ms a frame, with drawing 70 ms, encoding 20 ms a frame.
        "env step, state": (0.05, 5), "env step, rgb": (0.35, 5), "encode rgb, 1": (0.04, 2),
        "train rgb": (1.0, 10), "train rgb: windows": (0.1, 10), "train rgb: encoder": (0.6, 10),
        "encode points, 1": (0.01, 1),
        # Measured apart, parts may come out longer than the whole.
        "train points": (1.0, 20), "train points: windows": (0.0, 20), "train points: encoder": (1.1, 20),
    }  # fmt: skip
    times["train points: windows"] = (1e-9, 20)
    found = bench_vision.shares_of({name: measured(name, *pair) for name, pair in times.items()})
    assert found["frame rgb"] == pytest.approx({"physics": 1 / 9, "drawing": 6 / 9, "encoding": 2 / 9})
    assert found["training rgb"] == pytest.approx({"windows": 0.1, "encoder": 0.6, "rest": 0.3})
    assert found["training points"] == pytest.approx({"windows": 0, "encoder": 1, "rest": 0}, abs=1e-6)
    assert "frame points" not in found  # not drawn


def test_without_a_renderer_the_rest_is_measured_and_the_reason_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_draws(node: Any, **_: Any) -> Any:
        if "obs_mode" in node:
            raise EnvError(
                "ManiSkill with images", expected="a Vulkan device", got="neither", hint="apt-get install x."
            )
        return plain_build(node, **_)

    plain_build = bench_vision.build
    monkeypatch.setattr(bench_vision, "build", nothing_draws)
    monkeypatch.setattr(bench_vision, "BATCH", {"rgb": 2, "points": 2})
    monkeypatch.setattr(bench_vision, "POINTS", 16)
    report = bench_vision.run(Options(rounds=1, image_size=40))
    names = {m.name: m for m in report.measurements}
    assert not any(name.startswith("env step") for name in names)
    assert {"encode rgb, 1", "encode rgb, 2", "train rgb", "train rgb: encoder", "train points"} <= set(names)
    assert all(m.rate > 0 for m in report.measurements)
    assert "a Vulkan device" in report.facts["rendering"]["not_run"]
    rows = dict(report.facts["table"])
    assert rows["frame rgb"].startswith("not run: ManiSkill with images")
    assert "encoder" in rows["training rgb"]
    assert sum(report.facts["shares"]["training rgb"].values()) == pytest.approx(1, abs=0.3)
    assert [(c.ours, c.peer) for c in report.comparisons][:2] == [
        ("train rgb", "train rgb: windows"), ("train rgb", "train rgb: encoder"),
    ]  # fmt: skip
    # An encoder of a real ResNet-18: the published weights less the classifier, and what is behind.
    assert report.facts["parameters"]["rgb"] > 11_176_512
    json.dumps(report.facts)


def test_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="a ManiSkill task"):
        bench_vision.run(Options(env="point_reach"))
    assert "vision" in bench.ALONE
    monkeypatch.setattr(bench, "probe_others", lambda: 99.0)
    with pytest.raises(BenchError, match="a quiet machine"):
        bench.main(["vision", "--image-size", "16"])


@pytest.mark.slow
def test_a_real_renderer(tmp_path: Path) -> None:
    if software_icd() is None:
        pytest.skip("no SwiftShader here (apt-get install chromium-common)")
    command = [sys.executable, "-W", "ignore", "-m", "robot_rl", "bench", "vision", "--force", "--rounds", "1",
               "--image-size", "64", "--env", "push_cube", "--json", str(tmp_path / "out.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out.json").read_text())["results"]["vision"]
    names = {m["name"] for m in result["measurements"]}
    assert {"env step, state", "env step, rgb", "env step, points"} <= names
    assert result["facts"]["rendering"].startswith("software")
    assert result["facts"]["shares"]["frame rgb"]["drawing"] > 0.05
