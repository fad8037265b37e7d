"""RTI as two exported files, with graphs that were made by hand: what starts from what, fallbacks, and files that don't belong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_rti import (
    HORIZON,
    SPEC,
    full_by_hand,
    noise_of,
    rest_of,
    seen_of,
    warm_by_hand,
    write_files,
)

from robot_rl.contracts import Policy
from robot_rl.deploy.onnx_checks import read_graph
from robot_rl.deploy.onnx_policy import OnnxPolicy, measure_latency
from robot_rl.deploy.policy_source import PolicySource, info_of, load_policy
from robot_rl.deploy.rti_policy import RtiPolicy
from robot_rl.deploy.tensorrt_policy import EngineOptions, Runtime, open_policy
from robot_rl.errors import DeployError, PolicyError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
HERE = (1.0, 0.2, 1.2)


@pytest.fixture
def rti(tmp_path: Path) -> RtiPolicy:
    policy = open_policy(write_files(tmp_path))
    assert isinstance(policy, RtiPolicy)
    return policy


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_it_is_a_policy_and_says_what_it_is(rti: RtiPolicy) -> None:
    assert isinstance(rti, Policy)
    assert (rti.sampling, rti.noise_shape, rti.spec) == ("rti", (1, HORIZON, 2), SPEC)
    assert (rti.describe()["level"], rti.provider, rti.threads) == (21, "CPUExecutionProvider", 1)
    assert info_of(rti).starts_warm
    assert not info_of(rti).can_continue
    assert not info_of(rti.full).starts_warm


def test_the_first_decision_is_full_and_later_ones_go_on(rti: RtiPolicy) -> None:
    first = rti.act(seen_of(HERE), noise_of(1))
    close(first.actions, full_by_hand(seen_of(HERE), noise_of(1)))
    assert first.execute == 1
    second = rti.act(seen_of(HERE), noise_of(1, 1)).actions
    close(second, warm_by_hand(seen_of(HERE), noise_of(1, 1), rest_of(first.actions)))
    assert set(np.unique(second[..., 1])) <= {0.0, 4.0}
    third = rti.act(seen_of(HERE), noise_of(1, 2)).actions
    close(third, warm_by_hand(seen_of(HERE), noise_of(1, 2), rest_of(second)))
    assert rti.counts.to_json() == {"warm": 2, "first": 1, "jump": 0, "full": 0}


def test_of_two_envs_one_begins_anew(rti: RtiPolicy) -> None:
    seen = seen_of(HERE, (1.0, 0.1, 0.3))
    first = rti.act(seen, noise_of(2)).actions
    rti.reset(np.array([False, True]))
    second = rti.act(seen, noise_of(2, 1)).actions
    close(second[:1], warm_by_hand(seen, noise_of(2, 1), rest_of(first))[:1])
    close(second[1:], full_by_hand(seen, noise_of(2, 1))[1:])
    assert rti.counts.to_json() == {"warm": 1, "first": 3, "jump": 0, "full": 0}
    rti.reset(np.array([True, True]))
    close(rti.act(seen_of(HERE), noise_of(1)).actions, full_by_hand(seen_of(HERE), noise_of(1)))


@pytest.mark.parametrize(
    ("change", "is_jump"),
    [
        ((0.049, 0.0, 0.0), False),  # 0.49 normalised, for its gain is 10
        ((0.051, 0.0, 0.0), True),
        ((0.0, 0.49, 0.0), False),
        ((0.0, 0.0, -0.51), True),
        ((0.0, np.nan, 0.0), True),
        ((0.0, np.inf, 0.0), True),
    ],
)
def test_a_jump_by_hand(rti: RtiPolicy, change: tuple[float, float, float], is_jump: bool) -> None:
    first = rti.act(seen_of(HERE), noise_of(1)).actions
    seen = seen_of(tuple(np.add(HERE, change)))
    second = rti.act(seen, noise_of(1, 1)).actions
    assert rti.counts.jump == int(is_jump)
    if np.isfinite(change).all():
        rest = rest_of(first)
        close(second, full_by_hand(seen, noise_of(1, 1)) if is_jump else warm_by_hand(seen, noise_of(1, 1), rest))


def test_beyond_the_clamp_of_the_normaliser_nothing_jumps(rti: RtiPolicy) -> None:
    rti.act(seen_of((9.0, 0.2, 0.3)), noise_of(1))
    rti.act(seen_of((19.0, 0.2, 0.3)), noise_of(1))
    assert rti.counts.warm == 1


def test_nan_is_no_start_and_never_a_frame(rti: RtiPolicy) -> None:
    rti.act(seen_of(HERE), noise_of(1))
    rti.start_from(np.full((HORIZON, 2), np.nan, np.float32))
    close(rti.act(seen_of(HERE), noise_of(1)).actions, full_by_hand(seen_of(HERE), noise_of(1)))
    assert rti.counts.jump == 1
    rti.act(seen_of((np.nan, 0.0, 0.0)), noise_of(1))
    rti.act(seen_of(HERE), noise_of(1))
    assert rti.counts.to_json() == {"warm": 0, "first": 1, "jump": 3, "full": 0}


def test_a_loop_says_what_it_starts_from(rti: RtiPolicy) -> None:
    plan = np.random.default_rng(0).uniform(0, 4, (HORIZON, 2)).astype(np.float32)
    rti.start_from(plan)  # there is no observation yet to compare with
    close(rti.act(seen_of(HERE), noise_of(1)).actions, full_by_hand(seen_of(HERE), noise_of(1)))
    rti.start_from(plan)
    close(rti.act(seen_of(HERE), noise_of(1)).actions, warm_by_hand(seen_of(HERE), noise_of(1), plan[None]))
    rti.start_from(None)
    close(rti.act(seen_of(HERE), noise_of(1)).actions, full_by_hand(seen_of(HERE), noise_of(1)))
    assert rti.counts.to_json() == {"warm": 1, "first": 2, "jump": 0, "full": 0}
    rti.reset(np.ones(1, bool))
    rti.act(seen_of(HERE, HERE), noise_of(2))
    with pytest.raises(PolicyError, match="2 envs"):
        rti.start_from(plan)


def test_copies_have_their_own_state_and_one_count(rti: RtiPolicy) -> None:
    rti.act(seen_of(HERE), noise_of(1))
    other = copy.copy(rti)
    other.reset(np.ones(1, bool))
    other.act(seen_of(HERE), noise_of(1))
    rti.act(seen_of(HERE), noise_of(1))
    assert rti.counts.to_json() == {"warm": 1, "first": 2, "jump": 0, "full": 0}


def test_without_noise(tmp_path: Path) -> None:
    policy = open_policy(write_files(tmp_path, draws=0))
    assert {tensor.name for tensor in read_graph(policy.path).inputs} == {"proprio", "guess"}
    first = policy.act(seen_of(HERE), noise_of(1)).actions
    second = policy.act(seen_of(HERE), noise_of(1, 1)).actions
    close(second, warm_by_hand(seen_of(HERE), 0 * noise_of(1), rest_of(first)))


def test_images_alone_never_jump(tmp_path: Path) -> None:
    policy = open_policy(write_files(tmp_path, frame={}))
    for x in (0.0, 100.0):
        policy.act(seen_of((x, 0.0, 0.0)), noise_of(1))
    assert policy.counts.warm == 1  # type: ignore[union-attr]


def test_another_number_of_envs_and_other_noise_are_refused(rti: RtiPolicy) -> None:
    rti.act(seen_of(HERE, HERE), noise_of(2))
    with pytest.raises(PolicyError, match="2 envs"):
        rti.act(seen_of(HERE), noise_of(1))
    with pytest.raises(PolicyError, match="2 envs"):
        rti.reset(np.array([True, False, False]))
    with pytest.raises(DeployError, match=r"expected \(N, \*\(1, 4, 2\)\), got \(2, 2, 4, 2\)"):
        rti.act(seen_of(HERE, HERE), np.concatenate([noise_of(2)] * 2, axis=1))


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path)
    full = path.with_name("policy.onnx")
    good = full.read_bytes()
    full.unlink()
    with pytest.raises(DeployError, match=r"policy\.onnx beside it.*got no such file"):
        open_policy(path)
    model = onnx.load_from_string(good)
    model.doc_string = "exported again"
    onnx.save_model(model, str(full))
    with pytest.raises(DeployError, match=r"the policy\.onnx that it was exported with"):
        open_policy(path)
    full.write_bytes(good)
    assert isinstance(open_policy(path), RtiPolicy)
    assert type(open_policy(full)) is OnnxPolicy


def test_files_of_two_policies_are_refused_whoever_opened_them(tmp_path: Path) -> None:
    path = write_files(tmp_path)
    full = OnnxPolicy(path.with_name("policy.onnx"))
    full.metadata["checkpoint"] = "another"
    with pytest.raises(DeployError, match="the checkpoint of"):
        RtiPolicy(full, OnnxPolicy(path))


def test_the_warm_file_alone_decides_nothing(tmp_path: Path) -> None:
    alone = OnnxPolicy(write_files(tmp_path))
    with pytest.raises(DeployError, match=r"an rti\.onnx, which goes on from a last chunk"):
        alone.act(seen_of(HERE), noise_of(1))


def test_a_graph_without_its_guess_is_no_rti_file(tmp_path: Path) -> None:
    path = write_files(tmp_path)
    model = onnx.load(str(path.with_name("policy.onnx")))
    entry = model.metadata_props.add()
    entry.key, entry.value = "rti", json.dumps({"noise_draws": 1})
    onnx.save_model(model, str(path))
    with pytest.raises(DeployError, match=r"expected inputs \['guess', 'noise', 'proprio'\]"):
        read_graph(path)


def test_auto_tunes_the_warm_graph_and_opens_both_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from robot_rl.deploy import autotune

    caplog.set_level("INFO")
    monkeypatch.setattr(autotune, "candidates", lambda: (autotune.Candidate(Runtime.onnx, 2),))
    path = write_files(tmp_path)
    policy = open_policy(path, runtime=Runtime.auto, options=EngineOptions(cache=str(tmp_path / "c"), max_batch=1))
    assert isinstance(policy, RtiPolicy)
    assert policy.warm.threads == policy.full.threads == 2
    assert "rti.onnx: runtime=auto takes onnx, 2 threads" in caplog.text
    assert len(list((tmp_path / "c" / "autotune").iterdir())) == 1
    first = policy.act(seen_of(HERE), noise_of(1)).actions
    second = policy.act(seen_of(HERE), noise_of(1, 1)).actions
    close(second, warm_by_hand(seen_of(HERE), noise_of(1, 1), rest_of(first)))


def test_tensorrt_runs_both_graphs(tmp_path: Path, trt: Any, options: EngineOptions) -> None:
    policy = open_policy(write_files(tmp_path), runtime=Runtime.tensorrt, options=options)
    assert isinstance(policy, RtiPolicy)
    assert trt.calls.count("build") == 2
    assert policy.provider.startswith("TensorRT 10")
    first = policy.act(seen_of(HERE, HERE), noise_of(2)).actions
    close(first, full_by_hand(seen_of(HERE, HERE), noise_of(2)))
    second = policy.act(seen_of(HERE, HERE), noise_of(2, 1)).actions
    close(second, warm_by_hand(seen_of(HERE, HERE), noise_of(2, 1), rest_of(first)))


def test_a_robot_loads_it_and_latency_is_that_of_warm_decisions(tmp_path: Path) -> None:
    policy = load_policy(PolicySource(onnx=str(write_files(tmp_path))))
    assert isinstance(policy, RtiPolicy)
    assert measure_latency(policy, seen_of(HERE), calls=3, warmup_calls=2)["p50_ms"] > 0
    assert policy.counts.to_json() == {"warm": 4, "first": 1, "jump": 0, "full": 0}
