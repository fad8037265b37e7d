"""From nothing to the first action in the process of an exported policy: processor time, memory, and no torch.

`pytest -s -m slow tests/deploy/test_cold_start.py` prints the figures of docs/infer.md. Processor time is judged, for the clock on
the wall says what else this machine does. Files are in the page cache, as on every start but the first one behind a boot.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.policy_source import PolicySource, load_policy
from robot_rl.types import Observation
from robot_rl.workbench.bench_infer_nets import exported, random_policy

pytestmark = pytest.mark.slow
MOST_S, MOST_MB = 1.0, 150.0
ROUNDS = 5


@dataclass(frozen=True)
class Start:
    """Medians: s on the wall and of the processor until the first action, MB at most, and what the process mapped."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    maps: str


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of the 4.6 M U-Net with random weights, as `export` writes it."""
    policy, path = random_policy("unet 5 M"), tmp_path_factory.mktemp("cold") / "policy.onnx"
    assert 4.4e6 < sum(weight.numel() for weight in policy.denoiser.parameters()) < 4.8e6
    exported(policy.one_step_student(1).eval().requires_grad_(False), path, threads=1)
    return path


def started(file: Path, runtime: str) -> Start:
    policy = load_policy(PolicySource(onnx=str(file)))
    shapes = {
        key: (1, policy.config.history, *policy.spec.observation[key].shape) for key in policy.config.observation_keys
    }
    seen = Observation.from_arrays(
        {"proprio": np.zeros((1, policy.config.history, 0), np.float32)}
        | {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    )
    walls, cpus, peaks, maps = [], [], [], ""
    for _ in range(ROUNDS):
        runner, began_s = (
            ProcessPolicy(PolicySource(onnx=str(file), runtime=runtime), warm_up_calls=0),
            time.monotonic(),
        )
        try:
            runner.start()
            runner.ask(1, seen, episode_seed=0, decision=0)
            answer = runner.poll(60.0)
            assert answer is not None
            assert answer.actions is not None, answer.error
            walls.append(time.monotonic() - began_s)
            numbers = Path(f"/proc/{runner.pid}/stat").read_text().rsplit(")", 1)[1].split()
            cpus.append((int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK"))
            status = Path(f"/proc/{runner.pid}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
            maps = Path(f"/proc/{runner.pid}/maps").read_text()
        finally:
            runner.close()
    return Start(float(np.median(walls)), float(np.median(cpus)), max(peaks), maps)


def told(runtime: str, start: Start) -> None:
    print(
        f"\n{runtime}: {start.cpu_s:.2f} s of processor, {start.wall_s:.2f} s on the wall, {start.peak_mb:.0f} MB "
        f"(load {os.getloadavg()[0]:.1f})"
    )


def test_onnxruntime_is_there_in_a_second_and_150_mb(file: Path) -> None:
    start = started(file, "onnx")
    told("onnxruntime", start)
    assert "torch" not in start.maps
    assert start.cpu_s < MOST_S
    assert start.peak_mb < MOST_MB


def test_openvino_starts_without_torch(file: Path) -> None:
    """It is above one of the limits (docs/infer.md), so its figures are only printed."""
    pytest.importorskip("openvino")
    start = started(file, "openvino")
    told("openvino", start)
    assert "openvino" in start.maps
    assert "torch" not in start.maps
