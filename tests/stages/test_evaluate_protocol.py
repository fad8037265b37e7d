"""What an evaluation says of its policy: the provider and the precision that really ran."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.onnx_policy import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER
from robot_rl.deploy.tensorrt_policy import TensorRtPolicy
from robot_rl.errors import PolicyError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, CameraSpec, DeltaReference, EnvSpec
from robot_rl.stages.evaluate import EvaluateConfig, check_policy_spec, check_spec, load_any_policy
from robot_rl.stages.evaluate_play import policy_actor

SPEC = EnvSpec(
    env_id="Test-v1",
    observation={},
    action=ArraySpec("action", (7,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "rotvec", "none", "ee_delta"),
    joint_names=(),
    robot="point",
    control_hz=20.0,
    max_episode_steps=10,
)


class Named:
    """A policy that never acts."""

    noise_shape, sampling = (1, 8, 2), "one step"
    config = SimpleNamespace(horizon=8, execute=4, history=1)

    def __init__(self, provider: str | None = None, *, device: str | None = None) -> None:
        self.device = None if device is None else torch.device(device)
        if provider is not None:
            self.provider = provider

    def act(self, observation: Any, noise: Any) -> Any:
        raise NotImplementedError

    def reset(self, mask: Any) -> None:
        raise NotImplementedError


class NamedEngine(Named, TensorRtPolicy):
    """An engine without a GPU: nothing is loaded."""


ON_GPU = "TensorRT 10.9 fp16 on NVIDIA L4"


@pytest.mark.parametrize(
    ("policy", "asked", "provider", "precision"),
    [
        (Named(device="cpu"), Precision.fp32, "torch cpu", "fp32"),
        (Named(device="cuda:1"), Precision.fp32, "torch cuda:1", "fp32"),
        (Named(), Precision.fp32, "numpy", "fp32"),
        (Named(CPU_PROVIDER), Precision.fp32, CPU_PROVIDER, "fp32"),
        (Named(CUDA_PROVIDER), Precision.fp32, CUDA_PROVIDER, "fp32"),
        (Named(TENSORRT_PROVIDER), Precision.fp16, TENSORRT_PROVIDER, "fp16"),
        # provider=TensorrtExecutionProvider precision=fp16 allow_cpu=true on a machine without a GPU.
        (Named(CPU_PROVIDER), Precision.fp16, CPU_PROVIDER, "fp32"),
        (NamedEngine(ON_GPU), Precision.fp16, ON_GPU, "fp16"),
    ],
)
def test_provider_and_precision_are_what_ran(policy: Any, asked: Precision, provider: str, precision: str) -> None:
    config = EvaluateConfig(policy="p", precision=asked, provider=TENSORRT_PROVIDER)
    described = policy_actor(policy, config)[1]
    assert (described["provider"], described["precision"]) == (provider, precision)


def test_another_declaration_is_named_before_another_size() -> None:
    trained = SPEC
    joints = ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "joint_pos")
    given = replace(trained, action=ArraySpec("action", (8,)), action_semantics=joints)
    with pytest.raises(PolicyError, match=r"(?s)action semantics.*ee_delta.*joint_pos"):
        check_spec(trained, given, where="policy.pt")
    with pytest.raises(PolicyError, match="action size"):
        check_spec(trained, replace(given, action_semantics=trained.action_semantics), where="policy.pt")
    check_spec(trained, trained, where="policy.pt")


def test_what_a_policy_does_not_observe_need_not_be_there() -> None:
    arrays = {
        "proprio": ArraySpec("proprio", (9,)),
        "state": ArraySpec("state", (35,)),
        "points": ArraySpec("points", (64, 3)),
    }
    trained = replace(SPEC, observation=arrays)
    given = replace(trained, observation={key: arrays[key] for key in ("proprio", "points")})
    sees = SimpleNamespace(spec=trained, config=SimpleNamespace(observation_keys=("proprio", "points")))
    check_policy_spec(sees, given, where="policy.pt")
    with pytest.raises(PolicyError, match="observation 'state'"):
        check_spec(trained, given, where="policy.pt")
    sees.config.observation_keys = ("proprio", "state")
    with pytest.raises(PolicyError, match="observation 'state'"):
        check_policy_spec(sees, given, where="policy.pt")
    sees.config.observation_keys = ("points",)
    with pytest.raises(PolicyError, match=r"observation 'points'.*\(64, 3\)"):
        check_policy_spec(
            sees, replace(given, observation={"points": ArraySpec("points", (128, 3))}), where="policy.pt"
        )


def test_a_camera_counts_where_the_policy_looks_through_it() -> None:
    image = {f"image/{name}": ArraySpec(f"image/{name}", (8, 8, 3), "uint8") for name in ("top", "wrist")}
    cameras = {name: CameraSpec(8, 8, 6.0, 6.0, 3.5, 3.5, position_m=(0.0, 0.0, 1.0)) for name in ("top", "wrist")}
    points = {"points": ArraySpec("points", (64, 3))}
    trained = replace(SPEC, observation=image | points, cameras=cameras)
    sees = SimpleNamespace(spec=trained, config=SimpleNamespace(observation_keys=("image/top",)))
    moved = replace(cameras["wrist"], position_m=(0.0, 0.0, 1.2))
    for given in ({"top": cameras["top"]}, {"top": cameras["top"], "wrist": moved}):
        check_policy_spec(sees, replace(trained, cameras=given), where="policy.pt")
    other = replace(trained, cameras={"top": moved, "wrist": cameras["wrist"]})
    with pytest.raises(PolicyError, match=r"(?s)cameras.*top: 0.2 m away"):
        check_policy_spec(sees, other, where="policy.pt")
    sees.config.observation_keys = ("points",)  # of whatever cameras there are
    with pytest.raises(PolicyError, match=r"(?s)cameras.*wrist: 0.2 m away"):
        check_policy_spec(sees, replace(trained, cameras=cameras | {"wrist": moved}), where="policy.pt")


@pytest.mark.parametrize("mode", SamplingMode)
def test_a_file_was_exported_in_one_mode(mode: SamplingMode, tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").touch()
    with pytest.raises(PolicyError, match=f"(?s)no mode for an .onnx file.*mode={mode.value}"):
        load_any_policy(EvaluateConfig(policy=str(tmp_path / "policy.onnx"), mode=mode))
