"""Rewrites before export: each product against torch's own convolution, each policy against itself as it was trained."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robot_rl.algorithms.diffusion import Prediction, SamplingMode
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.errors import PolicyError
from robot_rl.policies.denoisers import DenoiserKind
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.export_passes import MatmulConv1d, MatmulUpsample, rewritten
from robot_rl.policies.onestep import OneStepHead
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

BOTH = (ExportPass.film, ExportPass.conv)
SPEC = EnvSpec(
    env_id="Toy",
    observation={"state": ArraySpec("state", (6,)), "proprio": ArraySpec("proprio", (4,))},
    action=ArraySpec("action", (3,), low=(-1.0, -2.0, -0.5), high=(1.0, 2.0, 0.5)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "toy"),
    joint_names=(),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)
CONFIG = DiffusionPolicyConfig(
    history=2, horizon=8, execute=4, observation_keys=("state", "proprio"), hidden_width=32, channels=(16, 32, 64),
    level_embedding=16, num_steps=5,
)  # fmt: skip


def policy(kind: DenoiserKind, **changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    data = {key: torch.randn(200, spec.size) for key, spec in SPEC.observation.items()}
    data["action"] = 2 * torch.rand(200, 3) - 1
    modes = dict.fromkeys(SPEC.observation, NormalizerMode.standard) | {"action": NormalizerMode.range}
    config = replace(CONFIG, denoiser=kind, **changes)
    return DiffusionPolicy(config, SPEC, Normalizer.fit(data, modes)).eval().requires_grad_(False)


def inputs(made: Any, count: int = 5) -> tuple[Observation, torch.Tensor]:
    torch.manual_seed(1)
    observation = Observation(proprio=torch.randn(count, 2, 4), state=torch.randn(count, 2, 6))
    return observation, torch.randn(count, *made.noise_shape)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (2, 2, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_is_its_product(length: int, kernel: int, stride: int, padding: int, bias: bool) -> None:
    if length + 2 * padding < kernel:
        pytest.skip("torch refuses it too")
    torch.manual_seed(length)
    conv = nn.Conv1d(24, 40, kernel, stride=stride, padding=padding, bias=bias).double()
    x = torch.randn(3, 24, length, dtype=torch.float64)
    torch.testing.assert_close(MatmulConv1d(conv)(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_is_its_two_products(length: int, bias: bool) -> None:
    torch.manual_seed(length)
    conv = nn.ConvTranspose1d(24, 40, 4, stride=2, padding=1, bias=bias).double()
    x = torch.randn(3, 24, length, dtype=torch.float64)
    torch.testing.assert_close(MatmulUpsample(conv)(x), conv(x), rtol=1e-12, atol=1e-12)


def test_float32_at_the_size_of_a_large_net_is_as_near_the_truth_as_the_convolution() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv1d(1024, 1024, 3, padding=1), torch.randn(1, 1024, 4)
    with torch.no_grad():
        truth = copy.deepcopy(conv).double()(x.double())
        errors = [float((module(x) - truth).abs().max() / truth.abs().max()) for module in (MatmulConv1d(conv), conv)]
    assert errors[0] < 1e-6
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("passes", [BOTH[:1], BOTH[1:], BOTH], ids=["film", "conv", "both"])
@pytest.mark.parametrize(
    ("prediction", "mode"), [(Prediction.epsilon, SamplingMode.eta0), (Prediction.v, SamplingMode.eta1)]
)
def test_a_rewritten_unet_acts_as_before(
    passes: tuple[ExportPass, ...], prediction: Prediction, mode: SamplingMode
) -> None:
    before = policy(DenoiserKind.unet, mode=mode, prediction=prediction)
    after, applied = rewritten(before, passes)
    assert applied == passes
    convolutions = [m for m in after.denoiser.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    assert bool(convolutions) is (ExportPass.conv not in passes)
    expected = before.act(*inputs(before)).actions
    assert float(expected.std(dim=0).mean()) > 1e-2  # it reacts to what it sees
    torch.testing.assert_close(after.act(*inputs(after)).actions, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("head", list(OneStepHead))
@pytest.mark.parametrize("kind", [DenoiserKind.mlp, DenoiserKind.unet])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_rewritten_student_acts_as_before(kind: DenoiserKind, head: OneStepHead, steps: int) -> None:
    before = policy(kind).one_step_student(steps, head=head.value).eval()
    after, applied = before.for_export(BOTH)
    assert applied == (BOTH if kind is DenoiserKind.unet else BOTH[:1])
    torch.testing.assert_close(
        after.act(*inputs(after)).actions, before.act(*inputs(before)).actions, rtol=0, atol=5e-6
    )


def test_the_policy_itself_is_left_as_it_was() -> None:
    before = policy(DenoiserKind.unet)
    state = {name: value.clone() for name, value in before.state_dict().items()}
    rewritten(before, BOTH)
    assert before.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    assert rewritten(before, ()) == (before, ())


def test_a_transformer_has_nothing_to_rewrite_and_no_denoiser_neither() -> None:
    before = policy(DenoiserKind.transformer)
    assert rewritten(before, BOTH) == (before, ())
    other = nn.Linear(1, 1)
    assert rewritten(other, BOTH) == (other, ())


def test_a_convolution_with_named_padding_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"padding as a number.*'same'"):
        MatmulConv1d(nn.Conv1d(2, 2, 3, padding="same"))


def test_the_exported_graph_has_products_and_one_projection_of_the_observation(tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from robot_rl.stages.export import write_onnx

    before = policy(DenoiserKind.unet, num_steps=2, channels=(16, 32))
    after, _ = rewritten(before, BOTH)
    write_onnx(after, tmp_path / "policy.onnx", metadata={"spec": json.dumps({})})
    graph = onnx.load(str(tmp_path / "policy.onnx")).graph
    operators = [node.op_type for node in graph.node]
    assert not {"Conv", "ConvTranspose", "Sin", "Cos"} & set(operators)
    wide = sum(
        2 * block.second.out_channels for block in [*before.denoiser.down, before.denoiser.middle, *before.denoiser.up]
    )
    projections = [i.name for i in graph.initializer if wide in i.dims and before.encoder.size in i.dims]
    uses = [node for node in graph.node if set(node.input) & set(projections)]
    assert len(projections) == len(uses) == 1
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    observation, noise = inputs(before, count=2)
    feed = {"state": observation.state.numpy(), "proprio": observation.proprio.numpy(), "noise": noise.numpy()}
    (actions,) = session.run(["actions"], feed)
    np.testing.assert_allclose(actions, before.act(observation, noise).actions.numpy(), rtol=0, atol=2e-5)
