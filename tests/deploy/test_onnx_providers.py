"""ONNX Runtime's GPU providers without a GPU, `open_policy`, and how `evaluate` asks for an engine."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.engine_cache import EngineCache, Precision
from robot_rl.deploy.onnx_checks import read_graph
from robot_rl.deploy.onnx_policy import CUDA_PROVIDER, TENSORRT_PROVIDER, OnnxPolicy
from robot_rl.deploy.runtime_options import PolicyKind, RuntimeOptions, require_read
from robot_rl.deploy.tensorrt_policy import (
    EngineOptions,
    Runtime,
    TensorRtPolicy,
    open_policy,
    provider_options,
)
from robot_rl.errors import ConfigError, DeployError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
RealSession = onnxruntime.InferenceSession


class FakeProviders:
    """An onnxruntime with GPU providers: computes on the CPU, and writes engine files as its TensorRT provider does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[Any] = []
        self.writes, self.loads, self.error = True, True, 0.0
        fake = self

        class Session:
            def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
                self.session = RealSession(path, options, providers=["CPUExecutionProvider"])
                name, settings = providers[0] if isinstance(providers[0], tuple) else (providers[0], {})
                self.name, self.gpu = name, name != "CPUExecutionProvider"
                if self.gpu:
                    fake.opened.append(providers)
                file = Path(settings.get("trt_engine_cache_path", "/nowhere"), "TensorrtEP_1.engine")
                if "trt_engine_cache_path" in settings and fake.writes and not file.exists():
                    file.write_bytes(b"engine by onnxruntime")
                self.get_modelmeta = self.session.get_modelmeta

            def get_providers(self) -> list[str]:
                return [self.name, "CPUExecutionProvider"] if fake.loads else ["CPUExecutionProvider"]

            def run(self, names: Any, feed: Any) -> list[Any]:
                (actions,) = self.session.run(names, feed)
                return [actions + np.float32(fake.error if self.gpu else 0)]

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        names = [TENSORRT_PROVIDER, CUDA_PROVIDER, "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> FakeProviders:
    return FakeProviders(monkeypatch)


def test_provider_options_by_hand(path: Path) -> None:
    options = EngineOptions(precision=Precision.fp16, max_batch=8)
    assert provider_options(read_graph(path), Path("/c/key"), options=options) == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/c/key",
        "trt_fp16_enable": "True",
        "trt_int8_enable": "False",
        "trt_profile_min_shapes": "proprio:1x2x3,noise:1x1x4x2",
        "trt_profile_opt_shapes": "proprio:1x2x3,noise:1x1x4x2",
        "trt_profile_max_shapes": "proprio:8x2x3,noise:8x1x4x2",
    }
    assert provider_options(read_graph(path), Path("/c"), options=EngineOptions())["trt_fp16_enable"] == "False"
    quantised = replace(read_graph(path), operators=frozenset({"QuantizeLinear"}))
    assert provider_options(quantised, Path("/c"), options=EngineOptions())["trt_int8_enable"] == "True"


def test_the_provider_keeps_its_engines_in_the_keyed_folder(
    toy: Any, path: Path, trt: Any, providers: FakeProviders, options: EngineOptions, caplog: pytest.LogCaptureFixture
) -> None:
    def opened_at() -> Path:
        ((name, settings), second) = providers.opened.pop()
        assert (name, second) == (TENSORRT_PROVIDER, CUDA_PROVIDER)
        return Path(settings["trt_engine_cache_path"])

    caplog.set_level(logging.WARNING)  # a test before this one may have called the cli, which logs from INFO on
    policy = open_policy(path, provider=TENSORRT_PROVIDER, options=options)
    assert policy.provider == TENSORRT_PROVIDER
    np.testing.assert_allclose(policy.act(*toy.observe(3)).actions, toy.by_hand(*toy.observe(3)), atol=1e-5)
    (entry,) = Path(options.cache).iterdir()
    assert opened_at() != entry  # built beside it, then renamed
    sidecar = json.loads((entry / "entry.json").read_text())
    assert sidecar["key"]["builder"] == f"onnxruntime {onnxruntime.__version__}"
    assert list(sidecar["sha256"]) == ["TensorrtEP_1.engine"]
    open_policy(path, provider=TENSORRT_PROVIDER, options=options)
    assert opened_at() == entry
    assert caplog.messages == []
    (entry / "TensorrtEP_1.engine").write_bytes(b"engine")
    open_policy(path, provider=TENSORRT_PROVIDER, options=options)
    assert opened_at() != entry
    assert len(caplog.messages) == 1
    assert (entry / "TensorrtEP_1.engine").read_bytes() == b"engine by onnxruntime"


def test_the_provider_is_refused_when_it_builds_nothing_or_acts_differently(
    path: Path, trt: Any, providers: FakeProviders, options: EngineOptions
) -> None:
    providers.writes = False
    with pytest.raises(DeployError, match="a built engine, got no file"):
        open_policy(path, provider=TENSORRT_PROVIDER, options=options)
    providers.writes, providers.error = True, 0.01
    with pytest.raises(DeployError, match=r"within 0\.001 action units"):
        open_policy(path, provider=TENSORRT_PROVIDER, options=options)
    providers.error, providers.loads = 0.0, False
    with pytest.raises(DeployError, match="it failed to load"):
        open_policy(path, provider=TENSORRT_PROVIDER, options=options)
    assert list(Path(options.cache).iterdir()) == []


def test_the_provider_without_a_gpu(
    path: Path, trt: Any, providers: FakeProviders, options: EngineOptions, caplog: pytest.LogCaptureFixture
) -> None:
    trt.cuda.device_error = trt.cuda.cudaError_t.cudaErrorInsufficientDriver
    with pytest.raises(DeployError, match="nvidia-smi"):
        open_policy(path, provider=TENSORRT_PROVIDER, options=options)
    policy = open_policy(path, provider=TENSORRT_PROVIDER, allow_cpu=True, options=options)
    assert policy.provider == "CPUExecutionProvider"
    (message,) = caplog.messages
    assert "runs on the CPU" in message


def test_cuda_provider_is_compared_too(path: Path, providers: FakeProviders) -> None:
    assert open_policy(path, provider=CUDA_PROVIDER).provider == CUDA_PROVIDER
    assert providers.opened == [[(CUDA_PROVIDER, {"use_tf32": "0"})]]
    providers.error = 0.01
    with pytest.raises(DeployError, match="parity"):
        open_policy(path, provider=CUDA_PROVIDER)


@pytest.mark.parametrize("provider", [TENSORRT_PROVIDER, CUDA_PROVIDER])
def test_a_provider_that_this_onnxruntime_lacks(toy: Any, provider: str, path: Path) -> None:
    if provider in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(DeployError, match=r"only \[.*CPUExecutionProvider.*export-gpu"):
        open_policy(path, provider=provider)
    policy = open_policy(path, provider=provider, allow_cpu=True)
    assert policy.provider == "CPUExecutionProvider"
    np.testing.assert_allclose(policy.act(*toy.observe(2)).actions, toy.by_hand(*toy.observe(2)), atol=1e-5)


def test_fp16_needs_an_engine(path: Path) -> None:
    with pytest.raises(DeployError, match="runtime=tensorrt or provider=TensorrtExecutionProvider"):
        open_policy(path, options=EngineOptions(precision=Precision.fp16))
    assert type(open_policy(path)) is OnnxPolicy


def test_evaluate_asks_for_an_engine(path: Path, trt: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl.runs.config import convert_config
    from robot_rl.stages.evaluate import EvaluateConfig, load_any_policy

    words = {"policy": str(path), "runtime": "tensorrt", "precision": "fp16", "engine_cache": str(tmp_path / "e")}
    policy = load_any_policy(convert_config(EvaluateConfig, words, where="evaluate"))
    assert isinstance(policy, TensorRtPolicy)
    assert trt.profile["proprio"] == ((1, 2, 3), (1, 2, 3), (16, 2, 3))
    assert trt.flags == {trt.BuilderFlag.FP16}
    trt.calls.clear()
    load_any_policy(convert_config(EvaluateConfig, words | {"num_envs": 3}, where="evaluate"))
    assert "build" not in trt.calls  # one engine for 1 to 16 envs
    load_any_policy(convert_config(EvaluateConfig, words | {"num_envs": 32}, where="evaluate"))
    assert trt.profile["proprio"][2] == (32, 2, 3)
    assert len(list(EngineCache(tmp_path / "e").folder.iterdir())) == 2


def test_evaluate_refuses_an_engine_of_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl.stages.evaluate import EvaluateConfig, load_any_policy

    with pytest.raises(ConfigError, match=r"an \.onnx file for runtime=tensorrt.*robot-rl export policy="):
        load_any_policy(EvaluateConfig(policy=str(tmp_path), runtime=Runtime.tensorrt))
    with pytest.raises(ConfigError, match="precision=fp16"):
        load_any_policy(EvaluateConfig(policy=str(tmp_path), precision=Precision.fp16))


NOTHING = RuntimeOptions()
CUDA = RuntimeOptions(provider="CUDAExecutionProvider")


@pytest.mark.parametrize(
    ("policy", "options", "says"),
    [
        ("ws://127.0.0.1:1", RuntimeOptions(threads=2), "threads=2"),
        ("ws://127.0.0.1:1", RuntimeOptions(Runtime.openvino, Precision.bf16), "runtime=openvino precision=bf16"),
        ("wss://127.0.0.1:1", RuntimeOptions(allow_cpu=True), "allow_cpu=true"),
        ("ws://127.0.0.1:1", CUDA, "provider=CUDAExecutionProvider"),
        ("run", CUDA, "provider=CUDAExecutionProvider"),
        ("run", RuntimeOptions(allow_cpu=True), "allow_cpu=true"),
        ("policy.onnx", RuntimeOptions(Runtime.openvino, provider=CUDA.provider), "runtime=onnx for provider=CUDA"),
        ("policy.onnx", RuntimeOptions(Runtime.tensorrt, allow_cpu=True), "runtime=onnx for allow_cpu=true"),
    ],
)
def test_evaluate_refuses_options_that_nobody_reads(policy: str, options: RuntimeOptions, says: str) -> None:
    pytest.importorskip("torch")
    from robot_rl.stages.evaluate import EvaluateConfig, load_any_policy

    with pytest.raises(ConfigError, match=says):
        load_any_policy(EvaluateConfig(policy=policy, **vars(options)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, NOTHING) for kind in PolicyKind), (PolicyKind.checkpoint, RuntimeOptions(threads=4)),
        (PolicyKind.file, RuntimeOptions(Runtime.onnx, Precision.fp16, "TensorrtExecutionProvider", True, 4)),
        (PolicyKind.file, RuntimeOptions(Runtime.openvino, Precision.bf16, threads=4)),
    ],
)  # fmt: skip
def test_options_that_are_read_are_taken(kind: PolicyKind, options: RuntimeOptions) -> None:
    require_read("p", kind, options)
