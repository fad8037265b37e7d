"""`runtime=auto`: what is tried, what is chosen, what is remembered and when it is measured again."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy import autotune
from robot_rl.deploy.autotune import Candidate, Trial, choose, tuned_policy, tuning_key
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.deploy.tensorrt_policy import EngineOptions, Runtime, open_graph
from robot_rl.errors import DeployError

ONE, TWO = Candidate(Runtime.onnx, 1), Candidate(Runtime.onnx, 2)


class Slowed:
    """A session that waits before it answers, and adds to its actions."""

    def __init__(self, session: Any, wait_s: float, offset: float) -> None:
        self.session, self.wait_s, self.offset, self.calls = session, wait_s, offset, 0

    def run(self, names: Any, feed: Any) -> Any:
        self.calls += 1
        time.sleep(self.wait_s)
        return [self.session.run(names, feed)[0] + self.offset]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[float, float]]:
    """Wait and offset by number of threads; the real open_graph underneath. Two cores, no openvino."""
    behaviour = {1: (0.004, 0.0), 2: (0.001, 0.0)}

    def slowed(path: Any, *, threads: int, **words: Any) -> OnnxPolicy:
        policy = open_graph(path, threads=threads, **words)
        policy.session = Slowed(policy.session, *behaviour[threads])
        return policy

    monkeypatch.setattr(autotune, "open_graph", slowed)
    monkeypatch.setattr(autotune, "_cores", lambda: 2)
    real = autotune._version
    monkeypatch.setattr(autotune, "_version", lambda name: "" if name in ("openvino", "tensorrt") else real(name))
    return behaviour


def tune(path: Path, folder: Path, **options: Any) -> OnnxPolicy:
    return tuned_policy(path, options=EngineOptions(cache=str(folder), max_batch=2, **options), budget_s=0.2)


def test_the_fastest_is_taken_printed_and_remembered(
    toy: Any, path: Path, tmp_path: Path, opened: dict[int, tuple[float, float]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    policy = tune(path, tmp_path / "c")
    assert policy.threads == 2
    np.testing.assert_allclose(policy.act(*toy.observe(2)).actions, toy.by_hand(*toy.observe(2)), atol=1e-5)
    assert "runtime=auto takes onnx, 2 threads" in caplog.text
    assert "onnx, 1 thread " in caplog.text
    assert "openvino is not installed: pip install" in caplog.text
    (file,) = (tmp_path / "c" / "autotune").iterdir()
    kept = json.loads(file.read_text())
    assert kept["choice"] == {"runtime": "onnx", "threads": 2}
    by_threads = {trial["threads"]: trial for trial in kept["trials"]}
    assert by_threads[1]["p50_ms"] >= 4.0
    assert 1.0 <= by_threads[2]["p50_ms"] < by_threads[1]["p50_ms"]
    opened[2] = (0.009, 0.0)  # slower now, but what was measured is not measured again
    caplog.clear()
    assert tune(path, tmp_path / "c").threads == 2
    assert "as measured before" in caplog.text


def test_a_fast_wrong_answer_is_never_taken(
    path: Path, tmp_path: Path, opened: dict[int, tuple[float, float]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    opened[2] = (0.0, 0.01)
    assert tune(path, tmp_path).threads == 1
    assert "onnx, 2 threads        not used" in caplog.text
    opened[1] = (0.0, float("nan"))
    with pytest.raises(DeployError, match=r"a runtime that gives the actions of onnxruntime.*difference of inf"):
        tune(path, tmp_path / "other")


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 0}', "foreign"])
def test_a_damaged_choice_is_measured_again(
    path: Path, tmp_path: Path, opened: dict[int, tuple[float, float]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tune(path, tmp_path)
    (file,) = (tmp_path / "autotune").iterdir()
    document = json.loads(file.read_text())
    document["key"]["model_sha256"] = "0" * 64
    file.write_text(json.dumps(document) if damage == "foreign" else damage)
    opened[1] = (0.0, 0.0)
    assert tune(path, tmp_path).threads == 1
    assert "measuring again" in caplog.text
    assert json.loads(file.read_text())["choice"]["threads"] == 1
    assert [other.name for other in file.parent.iterdir()] == [file.name]


def test_the_key_names_everything_that_a_choice_depends_on(
    toy: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(cache=str(tmp_path))
    keys = [tuning_key(path, options), tuning_key(path, EngineOptions(max_batch=3))]
    monkeypatch.setattr(autotune, "_version", lambda name: "9.9")
    keys.append(tuning_key(path, options))
    monkeypatch.setattr(autotune, "_cpu_name", lambda: "another")
    keys.append(tuning_key(path, options))
    path.write_bytes(path.read_bytes() + b"\0")
    keys.append(tuning_key(path, options))
    assert len({autotune._digest(key) for key in keys}) == len(keys)
    with pytest.raises(DeployError, match="nothing there"):
        tuning_key(tmp_path / "none.onnx", options)


def test_alike_means_fewer_threads() -> None:
    def trial(threads: int, p50_ms: float | None) -> Trial:
        return Trial("onnx", threads, p50_ms, p50_ms)

    assert choose([trial(1, 1.04), trial(2, 1.0)], where="x") == ONE
    assert choose([trial(1, 1.06), trial(2, 1.0)], where="x") == TWO
    assert choose([trial(1, None), trial(2, 1.0)], where="x") == TWO


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_thread_counts_end_at_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, counts: list[int]) -> None:
    monkeypatch.setattr(autotune, "_cores", lambda: cores)
    monkeypatch.setattr(autotune, "_version", lambda name: "" if name == "tensorrt" else "1.0")
    wanted = [(runtime, count) for count in counts for runtime in ("onnx", "openvino")]
    assert [(c.runtime.value, c.threads) for c in autotune.candidates()] == wanted


def test_a_folder_that_can_not_be_written_is_named(
    path: Path, tmp_path: Path, opened: dict[int, tuple[float, float]]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match="Set engine_cache"):
        tune(path, tmp_path / "file")
