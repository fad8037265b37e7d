"""OpenVINO against the answer by hand, each refusal, and what a process without it is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from side_by_side import wrong_answers
from small_rti import full_by_hand, noise_of, rest_of, seen_of, warm_by_hand, write_files

from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.openvino_policy import OpenVinoPolicy, OpenVinoSession
from robot_rl.deploy.policy_source import PolicySource, load_policy
from robot_rl.deploy.rti_policy import RtiPolicy
from robot_rl.deploy.tensorrt_policy import EngineOptions, Runtime, open_policy
from robot_rl.errors import DeployError


@pytest.fixture
def _openvino() -> None:
    pytest.importorskip("openvino")


@pytest.mark.usefixtures("_openvino")
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_gives_the_actions_by_hand_at_every_batch(toy: Any, path: Path, batch: int) -> None:
    policy = open_policy(path, runtime=Runtime.openvino, options=EngineOptions(max_batch=4))
    assert type(policy) is OpenVinoPolicy
    np.testing.assert_allclose(policy.act(*toy.observe(batch)).actions, toy.by_hand(*toy.observe(batch)), atol=1e-5)
    assert policy.provider.startswith("OpenVINO 20")
    assert policy.provider.endswith(" fp32")
    assert set(policy.parity) == {"batch_1", "batch_3", "batch_4"}


@pytest.mark.usefixtures("_openvino")
def test_an_answer_is_not_changed_by_the_next(toy: Any, path: Path) -> None:
    policy = OpenVinoPolicy(path)
    first = policy.act(*toy.observe(1)).actions
    kept = first.copy()
    observation, noise = toy.observe(1)
    policy.act(observation, noise + 1)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.usefixtures("_openvino")
def test_threads_get_their_own_answers(toy: Any, path: Path) -> None:
    """The second form (batch 2) is compiled while both ask: nothing is in the comparison but a batch of 1."""
    assert wrong_answers(OpenVinoPolicy(path), toy) == []


@pytest.mark.usefixtures("_openvino")
def test_other_actions_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OpenVinoSession.run
    monkeypatch.setattr(OpenVinoSession, "run", lambda self, names, feed: [right(self, names, feed)[0] + 2e-3])
    with pytest.raises(DeployError, match=r"within 0\.001 action units.*a difference of 0\.00") as caught:
        OpenVinoPolicy(path)
    assert "another version of openvino, or runtime=onnx" in str(caught.value)
    assert "TensorRT" not in str(caught.value)
    assert "precision=fp32" not in str(caught.value)  # it was that
    assert OpenVinoPolicy(path, tolerance=3e-3).parity["batch_1"] == pytest.approx(2e-3, rel=1e-2)


@pytest.mark.usefixtures("_openvino")
def test_an_int8_file_may_differ_by_two_roundings(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.model()
    stated = {"precision": "int8", "int8": {"recorded": {"rms_error": 0.02}, "random": {"rms_error": 0.03}}}
    for key, value in stated.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    path = toy.save(model, tmp_path)
    right = OpenVinoSession.run
    for error, fits in ((0.042, True), (0.043, False)):
        monkeypatch.setattr(
            OpenVinoSession, "run", lambda self, names, feed, off=error: [right(self, names, feed)[0] + off]
        )
        if fits:
            assert OpenVinoPolicy(path).provider.endswith(" int8")
            with pytest.raises(DeployError, match=r"within 0\.001 action units"):
                OpenVinoPolicy(path, tolerance=1e-3)  # what somebody asks for holds
        else:
            with pytest.raises(DeployError, match=r"within 0\.0424264 action units"):
                OpenVinoPolicy(path)


@pytest.mark.usefixtures("_openvino")
def test_fp16_is_refused_and_bf16_is_not(path: Path) -> None:
    with pytest.raises(DeployError, match="fp32 or bf16 for runtime=openvino"):
        open_policy(path, runtime=Runtime.openvino, options=EngineOptions(precision=Precision.fp16))
    policy = open_policy(path, runtime=Runtime.openvino, options=EngineOptions(precision=Precision.bf16, tolerance=1.0))
    assert policy.provider.endswith(" bf16")


def test_bf16_is_for_openvino_alone(path: Path) -> None:
    options = EngineOptions(precision=Precision.bf16)
    for words in ({"runtime": Runtime.tensorrt}, {"provider": "TensorrtExecutionProvider"}, {}):
        with pytest.raises(DeployError, match=r"runtime=openvino"):
            open_policy(path, options=options, **words)  # type: ignore[arg-type]


def test_without_the_package_the_error_names_the_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeployError, match=r"openvino installed.*pip install 'robot-rl\[openvino\]'"):
        open_policy(path, runtime=Runtime.openvino)


@pytest.mark.usefixtures("_openvino")
def test_a_robot_loads_it_by_name(toy: Any, path: Path) -> None:
    assert json.loads(json.dumps(vars(PolicySource(onnx="x", runtime=Runtime.openvino))))["runtime"] == "openvino"
    for runtime in (Runtime.openvino, "openvino"):  # the second: as the policy's process reads it
        policy = load_policy(PolicySource(onnx=str(path), runtime=runtime))
        assert type(policy) is OpenVinoPolicy
        assert set(policy.parity) == {"batch_1"}


@pytest.mark.usefixtures("_openvino")
def test_with_openvino_it_is_tried_too(toy: Any, path: Path, tmp_path: Path) -> None:
    policy = open_policy(path, runtime=Runtime.auto, options=EngineOptions(cache=str(tmp_path), max_batch=1))
    (file,) = (tmp_path / "autotune").iterdir()
    trials = json.loads(file.read_text())["trials"]
    assert {trial["runtime"] for trial in trials} == {"onnx", "openvino"}
    assert all(trial["max_error"] <= 1e-5 and trial["calls"] > 0 for trial in trials)
    np.testing.assert_allclose(policy.act(*toy.observe(1)).actions, toy.by_hand(*toy.observe(1)), atol=1e-5)


@pytest.mark.usefixtures("_openvino")
@pytest.mark.parametrize("draws", [0, 1])
def test_rti_runs_both_graphs(tmp_path: Path, draws: int) -> None:
    """By hand: two envs, one of which begins anew at the second decision."""
    policy = open_policy(
        write_files(tmp_path, draws=draws), runtime=Runtime.openvino, options=EngineOptions(max_batch=2)
    )
    assert isinstance(policy, RtiPolicy)
    assert type(policy.full) is type(policy.warm) is OpenVinoPolicy
    seen = seen_of((1.0, 0.2, 1.2), (1.0, 0.1, 0.3))
    first = policy.act(seen, noise_of(2)).actions
    kept = first.copy()
    np.testing.assert_allclose(first, full_by_hand(seen, noise_of(2)), atol=1e-5)
    policy.reset(np.array([False, True]))
    second = policy.act(seen, noise_of(2, 1)).actions
    np.testing.assert_array_equal(first, kept)
    wanted = warm_by_hand(seen, draws * noise_of(2, 1), rest_of(first))
    np.testing.assert_allclose(second[:1], wanted[:1], atol=1e-5)
    np.testing.assert_allclose(second[1:], full_by_hand(seen, noise_of(2, 1))[1:], atol=1e-5)
    policy.reset(np.array([True, False]))
    bad = seen_of((1.0, 0.2, 1.2), (1.0, np.nan, 0.3))
    policy.act(bad, noise_of(2))
    assert policy.counts.to_json() == {"warm": 1, "first": 4, "jump": 1, "full": 0}
