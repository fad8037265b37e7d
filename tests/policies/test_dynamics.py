"""The ensemble of transition models: batched members equal single ones, scales, bounds, configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

from robot_rl.algorithms.dynamics import ModelBounds
from robot_rl.errors import ConfigError
from robot_rl.policies.dynamics import DynamicsConfig, DynamicsEnsemble
from robot_rl.runs.config import build

FEATURES, ACTIONS, ROWS = 3, 2, 7


def ensemble(**fields: object) -> DynamicsEnsemble:
    torch.manual_seed(0)
    config = DynamicsConfig(**({"num_members": 4, "hidden_width": 16} | fields))
    return DynamicsEnsemble(config, feature_size=FEATURES, action_size=ACTIONS)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, FEATURES, generator=generator), torch.randn(ROWS, ACTIONS, generator=generator)


def test_members_in_one_product_equal_members_one_by_one() -> None:
    model = ensemble()
    feature, action = inputs()
    out = model(feature, action)
    assert out.mean.shape == out.log_std.shape == (4, ROWS, FEATURES)
    assert out.reward.shape == out.termination_logit.shape == (4, ROWS)
    for member in range(4):
        x = torch.cat([feature, action], dim=1)
        for layer in model.hidden:
            x = functional.silu(functional.linear(x, layer.weight[member].T, layer.bias[member, 0]))
        x = functional.linear(x, model.leave.weight[member].T, model.leave.bias[member, 0])
        assert torch.allclose(out.mean[member], x[:, :FEATURES], atol=1e-6)
        assert torch.allclose(out.reward[member], x[:, -3], atol=1e-6)
        assert torch.allclose(out.end_reward[member], x[:, -2], atol=1e-6)
        assert torch.allclose(out.termination_logit[member], x[:, -1], atol=1e-6)
    assert not torch.allclose(out.mean[0], out.mean[1])


def test_the_loss_of_a_member_moves_no_other() -> None:
    model = ensemble()
    out = model(*inputs())
    sum(part[2].sum() for part in (out.mean, out.log_std, out.reward, out.end_reward, out.termination_logit)).backward()
    for parameter in model.parameters():
        assert len(parameter) == 4
        moved = parameter.grad.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [False, False, True, False]


def test_predictions_are_in_the_units_of_the_data_and_survive_saving() -> None:
    model = ensemble()
    plain = model(*inputs())
    delta = torch.tensor([[0.0, 10.0, 5.0], [2.0, 30.0, 5.0]])  # mean 1, 20, 5; std 1, 10, 0
    bounds = ModelBounds(torch.zeros(3), torch.ones(3), torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 1.0]))
    model.set_data(delta, bounds)
    scaled = model(*inputs())
    std = torch.tensor([1.0, 10.0, 1e-3])
    assert torch.allclose(scaled.mean, plain.mean * std + torch.tensor([1.0, 20.0, 5.0]), atol=1e-5)
    assert torch.allclose(scaled.log_std, plain.log_std + std.log(), atol=1e-5)
    other = ensemble()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*inputs()).mean, scaled.mean)
    assert torch.equal(other.bounds.feature_high, torch.ones(3))
    assert other.bounds.reward_low.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("push", [-1e4, 1e4])
def test_spread_stays_inside_its_soft_bounds(push: float) -> None:
    model = ensemble(log_std_low=-4.0, log_std_high=0.5)
    with torch.no_grad():
        model.leave.bias[..., FEATURES : 2 * FEATURES] = push
    log_std = model(*inputs()).log_std
    expected = -4.0 if push < 0 else 0.5
    assert torch.allclose(log_std, torch.full_like(log_std, expected), atol=0.02)


def test_yaml_builds_it() -> None:
    path = Path(__file__).resolve().parents[2] / "configs" / "dynamics" / "ensemble.yaml"
    model = build(yaml.safe_load(path.read_text()), feature_size=5, action_size=3)
    assert isinstance(model, DynamicsEnsemble)
    assert model.config == DynamicsConfig()


@pytest.mark.parametrize("fields", [{"num_members": 0}, {"num_layers": 0}, {"log_std_low": 1.0}])
def test_impossible_configuration(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="transition model"):
        ensemble(**fields)
